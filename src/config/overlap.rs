//! Exchange directories that overlap with what this program keeps or reads for itself.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use super::inputs::set;
use super::storage::{JOURNAL, OBJECTS, OVERLAY, SPOOL};
use super::values::Values;
use super::{Inputs, SETTINGS, SettingKind};

/// Most links one path may lead through, as on Linux.
const MAX_LINKS: usize = 40;

/// Where Google's tools keep the login of a user, below the home folder.
const GOOGLE_LOGIN: &str = ".config/gcloud/application_default_credentials.json";

/// Finds every exchange directory that contains or lies in the storage folder, or contains a file of the configuration.
///
/// Paths are compared by what they lead to: links and `..` are followed, a folder mounted twice is one, and what is not
/// there yet is taken by its name.
pub(super) fn faults(inputs: &Inputs, table: &toml::Table, values: &Values) -> Vec<String> {
    let directories = values.list("exchange_directories").unwrap_or_default();
    let Some(storage) = values.text("local_storage_path").filter(|_| !directories.is_empty()) else {
        return Vec::new();
    };
    let storage = Path::new(storage);
    let folders: Vec<_> = [("local_storage_path", storage.to_owned())]
        .into_iter()
        .chain([JOURNAL, OVERLAY, OBJECTS, SPOOL].map(|part| ("a folder of local_storage_path", storage.join(part))))
        .map(|(name, path)| (name, resolve(&path, 0), path))
        .collect();
    let files: Vec<_> = files(inputs, table).into_iter().map(|(name, path)| (name, resolve(&path, 0), path)).collect();
    directories
        .iter()
        .filter_map(|directory| {
            let (shown, directory) = (directory, resolve(Path::new(directory), 0));
            let folder = |verb: &str, (name, _, path): &(&str, PathBuf, PathBuf)| {
                let harm = "a command could read and replace what is kept there";
                format!("{shown} {verb} {name}, {}: {harm}; list a folder apart from it", path.display())
            };
            let held = folders.iter().find(|(_, at, _)| is_within(at, &directory)).map(|it| folder("contains", it));
            let holds = || folders.iter().rfind(|(_, at, _)| is_within(&directory, at)).map(|it| folder("lies in", it));
            let file = || {
                let (name, _, path) = files.iter().find(|(_, at, _)| is_within(at, &directory))?;
                let harm = "a command could read and replace it";
                Some(format!("{shown} contains {name}, {}: {harm}; list a folder without it", path.display()))
            };
            held.or_else(holds).or_else(file)
        })
        .collect()
}

/// Collects the files that settings come from or name, whether or not they are there, and the login that Google's tools leave.
fn files(inputs: &Inputs, table: &toml::Table) -> Vec<(String, PathBuf)> {
    let mut files: Vec<_> =
        inputs.file.iter().map(|file| ("the configuration file".to_owned(), file.path.clone())).collect();
    let mut add = |name: &str, path: &str| files.push((format!("the file of {name}"), PathBuf::from(path)));
    let own = |setting: &super::Setting| setting.kind == SettingKind::File;
    for (setting, twin) in SETTINGS.iter().map(|setting| (setting, setting.file_twin())) {
        let Some(name) = twin.or_else(|| own(setting).then(|| setting.name.to_owned())) else { continue };
        inputs.flags.iter().filter(|flag| flag.setting == name).for_each(|flag| add(&name, &flag.value));
        if let Some(path) = table.get(&name).and_then(toml::Value::as_str) {
            add(&name, path);
        }
        let variable = name.to_ascii_uppercase();
        let aliases = if own(setting) { setting.aliases } else { &[] };
        for variable in std::iter::once(variable.as_str()).chain(aliases.iter().copied()) {
            if let Some(path) = set(inputs, variable).and_then(|path| path.to_str()) {
                add(variable, path);
            }
        }
    }
    for name in inputs.environment.keys().filter(|name| name.starts_with("AWS_") && name.ends_with("_FILE")) {
        if let Some(path) = set(inputs, name).and_then(|path| path.to_str()) {
            add(name, path);
        }
    }
    // Used without being named by anybody.
    let login = set(inputs, "HOME").map(|home| Path::new(home).join(GOOGLE_LOGIN)).filter(|path| path.exists());
    files.extend(login.map(|path| ("Google's login on this machine".to_owned(), path)));
    files
}

/// Follows links and `..` as far as a path is there.
fn resolve(path: &Path, links: usize) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut resolved = PathBuf::new();
    for component in path.components() {
        if component == Component::ParentDir {
            resolved.pop();
            continue;
        }
        resolved.push(component);
        if let Ok(real) = resolved.canonicalize() {
            resolved = real;
        } else if let Ok(target) = resolved.read_link()
            && links < MAX_LINKS
        {
            // A link to what is not there yet.
            resolved.pop();
            resolved = resolve(&resolved.join(target), links + 1);
        }
    }
    resolved
}

/// Tells whether a path is a folder or lies in it; both are resolved.
fn is_within(path: &Path, folder: &Path) -> bool {
    let identity = |path: &Path| path.metadata().ok().map(|it| (it.dev(), it.ino()));
    let wanted = identity(folder);
    path.ancestors().any(|above| above == folder || (wanted.is_some() && identity(above) == wanted))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::{ConfigFile, Flag, load};

    /// Loads settings with one exchange directory, and returns the faults.
    fn told(exchange: &Path, storage: &Path, file: &Path, credentials: &Path) -> String {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let flag = |setting: &str, value: &Path| Flag {
            setting: setting.to_owned(),
            flag: format!("--{setting}"),
            value: text(value),
        };
        let inputs = Inputs {
            flags: vec![
                flag("exchange_directories", exchange),
                flag("local_storage_path", storage),
                flag("gcs_credentials_path", credentials),
            ],
            file: Some(ConfigFile { path: file.to_owned(), text: String::new() }),
            environment: [("HOME".into(), storage.with_file_name("home").into())].into_iter().collect(),
        };
        load(&inputs).map_or_else(|faults| faults.to_string(), |_| String::new())
    }

    #[test]
    fn exchange_directories_are_apart_from_what_the_program_keeps_and_reads() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for folder in ["store/journal", "config", "secrets", "exchange", "apart/overlay", "home/.config/gcloud"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        for file in ["config/filestorage.toml", "secrets/key.json", &format!("home/{GOOGLE_LOGIN}")] {
            fs::write(at(file), "").unwrap();
        }
        symlink(at("store"), at("link")).unwrap();
        symlink(at("store/later"), at("dangling")).unwrap();
        symlink("../secrets", at("exchange/up")).unwrap();
        symlink(at("apart/overlay"), at("store/overlay")).unwrap();
        let tell = |exchange: PathBuf| {
            let said = told(&exchange, &at("store"), &at("config/filestorage.toml"), &at("secrets/key.json"));
            assert!(said.is_empty() || said.contains(exchange.to_str().unwrap()), "{said}");
            said
        };
        for (exchange, word) in [
            (at(""), "contains local_storage_path"),
            (PathBuf::from("/"), "contains local_storage_path"),
            (at("store"), "contains local_storage_path"),
            (at("store/journal"), "a folder of local_storage_path"),
            (at("store/objects/a/b"), "lies in a folder of local_storage_path"),
            (at("store/not-yet"), "lies in local_storage_path"),
            (at("link/x"), "lies in local_storage_path"),
            (at("dangling"), "lies in local_storage_path"),
            (at("exchange/../store"), "contains local_storage_path"),
            (at("not/../store/./x"), "lies in local_storage_path"),
            (at("apart"), "contains a folder of local_storage_path"),
            (at("apart/overlay/x"), "lies in a folder of local_storage_path"),
            (at("config"), "contains the configuration file"),
            (at("secrets"), "contains the file of gcs_credentials_path"),
            (at("home"), "contains Google's login"),
            (at("exchange/up"), "contains the file of gcs_credentials_path"),
        ] {
            let said = tell(exchange.clone());
            assert!(said.contains(word), "{exchange:?}: {said}");
        }
        for exchange in [at("exchange"), at("storeroom"), at("not/yet"), at("config/exchange")] {
            assert_eq!(tell(exchange), "");
        }
    }
}
