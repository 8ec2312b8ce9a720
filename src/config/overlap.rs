//! Finds exchange directories that overlap with the storage folder or hold files of the configuration.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use super::inputs::set;
use super::storage::{JOURNAL, OBJECTS, OVERLAY, SPOOL};
use super::values::Values;
use super::{Inputs, SETTINGS, SettingKind};

/// The most symbolic links in one path, as on Linux.
const MAX_LINKS: usize = 40;

/// The file, below the home folder, in which Google's tools keep the login of a user.
const GOOGLE_LOGIN: &str = ".config/gcloud/application_default_credentials.json";

/// Reports each exchange directory that contains or lies in the storage folder, or contains a file of the configuration.
///
/// Paths are compared by their targets: links and `..` are followed, and a folder that is mounted twice is one folder. A
/// path that does not exist yet is compared by its name.
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

/// Collects the files that hold or are named by settings, also missing ones, and the login file of Google's tools.
pub(super) fn files(inputs: &Inputs, table: &toml::Table) -> Vec<(String, PathBuf)> {
    let mut files: Vec<_> =
        inputs.file.iter().map(|file| ("the configuration file".to_owned(), file.path.clone())).collect();
    let mut add = |name: &str, path: &str| files.push((format!("the file of {name}"), PathBuf::from(path)));
    let own = |setting: &super::Setting| setting.kind == SettingKind::File;
    for (setting, variant) in SETTINGS.iter().map(|setting| (setting, setting.file_variant())) {
        let Some(name) = variant.or_else(|| own(setting).then(|| setting.name.to_owned())) else { continue };
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
    // Google's client reads this file although no setting names it.
    let login = set(inputs, "HOME").map(|home| Path::new(home).join(GOOGLE_LOGIN)).filter(|path| path.exists());
    files.extend(login.map(|path| ("Google's login on this machine".to_owned(), path)));
    files
}

/// Resolves links and `..` in that part of a path that exists.
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
            // The target of this link does not exist yet.
            resolved.pop();
            resolved = resolve(&resolved.join(target), links + 1);
        }
    }
    resolved
}

/// Tells whether a resolved path is the given resolved folder or lies in it.
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
    fn the_storage_engine_knows_the_files_of_the_configuration() {
        let flag = Flag {
            setting: "gcs_credentials_path".to_owned(),
            flag: "--gcs-credentials-path".to_owned(),
            value: "/secrets/key.json".to_owned(),
        };
        let inputs = Inputs {
            flags: vec![flag],
            file: Some(ConfigFile { path: "filestorage.toml".into(), text: String::new() }),
            ..Inputs::default()
        };
        let files = load(&inputs).unwrap().settings.storage.own_files;
        assert_eq!(files, [PathBuf::from("filestorage.toml"), PathBuf::from("/secrets/key.json")]);
    }

    #[test]
    fn exchange_directories_overlap_no_files_of_the_program() {
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
