//! AWS keys in files, which are read again when a file changes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;

use crate::storage::files::Stamp;

/// The three variables that make up a key.
const NAMES: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

/// A key of which at least one part is in a file. The check whether a file has changed takes microseconds a request.
///
/// While a file is missing, empty or no key, as during its replacement, the last key stays in use.
pub(super) struct FileKeys {
    /// The variables whose values are in files.
    files: BTreeMap<String, PathBuf>,
    kept: Mutex<Kept>,
}

struct Kept {
    /// The values by variable, as they were read last.
    values: BTreeMap<String, String>,
    /// The stamps of the files at that time, in the order of the files.
    stamps: Vec<Option<Stamp>>,
    key: Arc<AwsCredential>,
}

impl FileKeys {
    /// Takes the values of the variables, and the files of those that are in one; `None` where no file is part of a
    /// whole key.
    pub(super) fn of(aws: &BTreeMap<String, String>, files: &BTreeMap<String, PathBuf>) -> Option<Self> {
        let values: BTreeMap<_, _> = aws.iter().filter(|(name, _)| NAMES.contains(&name.as_str())).collect();
        let values: BTreeMap<_, _> = values.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let files: BTreeMap<_, _> = files.iter().filter(|(name, _)| values.contains_key(*name)).collect();
        let files: BTreeMap<_, _> = files.into_iter().map(|(name, file)| (name.clone(), file.clone())).collect();
        if files.is_empty() {
            return None;
        }
        let key = key(&values)?;
        // The values may have been read long before, so the first request checks the files.
        Some(Self { files, kept: Mutex::new(Kept { values, stamps: Vec::new(), key }) })
    }

    fn current(&self) -> Arc<AwsCredential> {
        let stamps: Vec<_> = self.files.values().map(|file| Stamp::of(file)).collect();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.stamps == stamps || stamps.contains(&None) {
            return Arc::clone(&kept.key);
        }
        let read = self.files.iter().map(|(name, file)| Some((name.clone(), value(file)?)));
        let Some(read) = read.collect::<Option<Vec<_>>>() else { return Arc::clone(&kept.key) };
        kept.values.extend(read);
        if let Some(key) = key(&kept.values) {
            if (&key.key_id, &key.secret_key, &key.token) != (&kept.key.key_id, &kept.key.secret_key, &kept.key.token) {
                tracing::info!("the AWS key in files was replaced, and the new one is used");
            }
            kept.key = key;
        }
        kept.stamps = stamps;
        Arc::clone(&kept.key)
    }
}

/// Shows no secret.
impl fmt::Debug for FileKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("FileKeys").field(&self.files).finish()
    }
}

#[async_trait]
impl CredentialProvider for FileKeys {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        Ok(self.current())
    }
}

fn key(values: &BTreeMap<String, String>) -> Option<Arc<AwsCredential>> {
    let value = |index: usize| values.get(NAMES[index]).filter(|value| !value.is_empty()).cloned();
    Some(Arc::new(AwsCredential { key_id: value(0)?, secret_key: value(1)?, token: value(2) }))
}

/// Reads a value as the settings do: without blanks and line ends; `None` for a text that cannot be a value.
fn value(file: &PathBuf) -> Option<String> {
    let text: String = std::fs::read_to_string(file).ok()?.lines().map(str::trim).collect();
    (!text.is_empty() && text.bytes().all(|byte| matches!(byte, b' '..=b'~'))).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_gives_a_new_key_and_a_missing_one_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "one\n").unwrap();
        let aws = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "one"), ("AWS_REGION", "r")];
        let aws: BTreeMap<_, _> = aws.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let files = BTreeMap::from([("AWS_SECRET_ACCESS_KEY".to_owned(), file.clone())]);
        let keys = FileKeys::of(&aws, &files).unwrap();
        let now = || (keys.current().key_id.clone(), keys.current().secret_key.clone());
        let pair = |secret: &str| ("id".to_owned(), secret.to_owned());
        assert_eq!(now(), pair("one"));
        // Mounted secrets are replaced like this: another file takes the name.
        std::fs::write(folder.path().join("next"), "two\n").unwrap();
        std::fs::rename(folder.path().join("next"), &file).unwrap();
        assert_eq!(now(), pair("two"));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(now(), pair("two"));
        for broken in ["", "\n", "\u{e9}"] {
            std::fs::write(&file, broken).unwrap();
            assert_eq!(now(), pair("two"), "{broken:?}");
        }
        std::fs::write(&file, "three").unwrap();
        assert_eq!(now(), pair("three"));
        assert!(!format!("{keys:?}").contains("three"));
        assert!(FileKeys::of(&aws, &BTreeMap::new()).is_none());
    }
}
