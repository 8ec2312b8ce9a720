//! The names of files and sidecars.

/// Ending of the name of a sidecar.
pub(in crate::storage) const SIDECAR: &str = ".metadata";

/// The folder that `mkfs` makes in the root of a file system.
pub(in crate::storage) const LOST_AND_FOUND: &str = "lost+found";

/// The longest name of a file in bytes.
const NAME: usize = 255;

/// Returns the name of the sidecar of a file, as `pathlib`'s `with_suffix(".metadata")` makes it.
///
/// So `a.json` and `a.txt` have one sidecar, `a.metadata`.
pub(in crate::storage) fn sidecar(name: &str) -> String {
    let stem = match name.rfind('.') {
        Some(dot) if dot > 0 && dot + 1 < name.len() => &name[..dot],
        _ => name,
    };
    format!("{stem}{SIDECAR}")
}

/// Splits a key into the folders and the name of its file; `None` where the class has no file of this key.
///
/// `own` are the folders of this program in the root. A name that ends like a sidecar's is that of a sidecar: the class
/// itself does not list it.
pub(in crate::storage) fn split<'a>(key: &'a str, own: &[&str]) -> Option<(Vec<&'a str>, &'a str)> {
    let mut folders: Vec<&str> = key.split('/').collect();
    let name = folders.pop()?;
    let is_own = own.contains(folders.first().unwrap_or(&name));
    let fits = folders.iter().chain([&name]).all(|segment| segment.len() <= NAME);
    (!is_own && fits && !name.ends_with(SIDECAR)).then_some((folders, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecars_have_the_names_that_pathlib_makes() {
        for (name, wanted) in [
            ("a", "a.metadata"),
            ("a.json", "a.metadata"),
            ("a.tar.gz", "a.tar.metadata"),
            (".hidden", ".hidden.metadata"),
            (".hidden.txt", ".hidden.metadata"),
            ("dot.", "dot..metadata"),
            ("..x", "..metadata"),
            ("日本.語", "日本.metadata"),
        ] {
            assert_eq!(sidecar(name), wanted, "{name}");
        }
    }

    #[test]
    fn only_keys_that_the_class_lists_have_files() {
        let own = ["objects", "journal"];
        assert_eq!(split("a/b/c.txt", &own), Some((vec!["a", "b"], "c.txt")));
        assert_eq!(split("object", &own), Some((vec![], "object")));
        assert_eq!(split("a/objects", &own), Some((vec!["a"], "objects")));
        for none in ["objects", "objects/x", "journal/a/b", "a.metadata", "a/.metadata", &"x".repeat(256)] {
            assert_eq!(split(none, &own), None, "{none}");
        }
    }
}
