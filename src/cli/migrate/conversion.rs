//! The conversion of what the Python class `FileStorage` wrote into objects of this program.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use crate::config::StorageSettings;
use crate::instant;
use crate::storage::{
    Attributes, Backend, Foreign, Key, LegacyFile, LegacyFiles, LegacyLock, LegacyValues, Memory, ObjectInfo,
    OwnEntries, Result, Survey,
};
use crate::wiring::folders::{OWN, spool};
use crate::wiring::{Code, Failure, codecs, encryption};

/// Where old files come from, and what becomes of them.
#[derive(Debug)]
pub(super) struct Conversion {
    files: LegacyFiles,
    /// Whether a file is removed once its value is stored.
    in_place: bool,
    honour_expiry: bool,
    survey: Survey,
}

/// The counts of what could not be told for sure.
#[derive(Debug, Default, Serialize)]
pub(super) struct Doubtful {
    /// Texts that may have been bytes.
    text_or_bytes: u64,
    /// Texts that are JSON.
    json_text: u64,
    /// Files that were taken for compressed.
    assumed_gzip: u64,
    /// Files that share a sidecar.
    shared_sidecar: u64,
    /// Files whose sidecar cannot be read.
    unreadable_sidecar: u64,
    /// Values whose types JSON does not keep.
    types_changed: u64,
    /// Pickles that are kept as bytes.
    kept_pickle: u64,
    /// Names that belong to no value.
    left_out: u64,
}

impl Conversion {
    /// Opens a folder that the class wrote. Blocks.
    pub(super) async fn open(
        settings: &StorageSettings,
        folder: &Path,
        in_place: bool,
        honour_expiry: bool,
        keep_pickles: bool,
    ) -> std::result::Result<(Arc<Self>, Arc<dyn Backend>), Failure> {
        if !folder.is_dir() {
            return Err(Failure::new(Code::NoInput, format!("there is no folder {}", folder.display())));
        }
        let files = LegacyFiles::new(
            Arc::new(Memory::new()),
            folder,
            OwnEntries::new(OWN, &settings.own_files),
            spool(settings),
        );
        let survey = files.survey().await?;
        let encoded = Arc::new(codecs(settings, Arc::new(files.clone()), &encryption(settings)?));
        let values = LegacyValues::new(encoded, spool(settings));
        let values = if keep_pickles { values.keeping_pickles() } else { values };
        Ok((Arc::new(Self { files, in_place, honour_expiry, survey }), Arc::new(values)))
    }

    /// Returns the attributes of the object that is stored for a file.
    pub(super) fn converted(&self, attributes: Attributes) -> Attributes {
        let expires_at = if self.honour_expiry { expiry(&attributes) } else { None };
        Attributes {
            compression: None,
            stored_size: attributes.size,
            stored_checksum: attributes.checksum,
            expires_at,
            foreign: Foreign::default(),
            info: ObjectInfo { legacy: attributes.info.legacy, ..ObjectInfo::default() },
            ..attributes
        }
    }

    /// Locks the file that is converted in place, so that no worker deletes the key between reading and storing.
    pub(super) async fn lock(&self, key: &Key) -> Result<Option<LegacyLock>> {
        if self.in_place { self.files.lock(key).await } else { Ok(None) }
    }

    /// Removes the file of a value that the target has.
    pub(super) async fn finish(&self, key: &Key, lock: LegacyLock, target: &dyn Backend) -> Result<()> {
        if let Some(stored) = target.stat(key).await? {
            self.files.remove(lock, &stored.generation).await?;
        }
        Ok(())
    }

    /// Removes the folders that the conversion has emptied.
    pub(super) async fn close(&self) -> Result<()> {
        if self.in_place {
            self.files.remove_empty_folders().await?;
        }
        Ok(())
    }

    /// Describes the names that belong to no value.
    pub(super) fn left_out(&self) -> Vec<String> {
        let Survey { orphans, misnamed, irregular, .. } = &self.survey;
        let said =
            |names: &[String], what: &str| names.iter().map(|name| format!("{name}: {what}")).collect::<Vec<_>>();
        [
            said(orphans, "a sidecar without a file was left alone"),
            said(misnamed, "named like a sidecar and none, was left alone; the class itself does not list it"),
            said(irregular, "no regular file, was left alone"),
        ]
        .concat()
    }

    /// Counts what could not be told of a value, and describes it.
    pub(super) fn doubts(&self, key: &Key, legacy: LegacyFile, counts: &mut Doubtful) -> Option<String> {
        let mut said = Vec::new();
        let mut note = |is: bool, count: &mut u64, what: &'static str| {
            if is {
                *count += 1;
                said.push(what);
            }
        };
        let shared = self.survey.shared_sidecars.contains(key.as_str());
        note(legacy.text_or_bytes, &mut counts.text_or_bytes, "taken for a text; bytes in UTF-8 look the same");
        note(legacy.json_text, &mut counts.json_text, "a text that is JSON, which the class returned parsed");
        note(legacy.assumed_gzip, &mut counts.assumed_gzip, "taken for compressed by its first bytes");
        note(shared, &mut counts.shared_sidecar, "has its sidecar together with other files, and so their metadata");
        note(
            legacy.unreadable_sidecar,
            &mut counts.unreadable_sidecar,
            "its sidecar cannot be read, so it has no metadata",
        );
        note(legacy.types_changed, &mut counts.types_changed, "tuples and sets are arrays, keys of dicts are texts");
        note(legacy.kept_pickle, &mut counts.kept_pickle, "kept as the bytes of a pickle");
        (!said.is_empty()).then(|| format!("{key}: {}", said.join("; ")))
    }

    /// Counts the names that belong to no value.
    pub(super) fn count_left_out(&self, counts: &mut Doubtful) {
        let Survey { orphans, misnamed, irregular, .. } = &self.survey;
        counts.left_out = (orphans.len() + misnamed.len() + irregular.len()) as u64;
    }
}

impl Doubtful {
    /// Writes the counts that are not 0.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (count, what) in [
            (self.text_or_bytes, "were taken for texts and may have been bytes"),
            (self.json_text, "are texts that are JSON"),
            (self.assumed_gzip, "were taken for compressed"),
            (self.shared_sidecar, "have their sidecar together with others"),
            (self.unreadable_sidecar, "have a sidecar that cannot be read"),
            (self.types_changed, "have other types in JSON"),
            (self.kept_pickle, "are kept as the bytes of a pickle"),
            (self.left_out, "names belong to no value"),
        ] {
            if count > 0 {
                text.push_str(&format!("{count} {what}, as reported above\n"));
            }
        }
        text
    }
}

/// Reads the time at which the caller wanted the value to expire. A time without an offset is UTC.
fn expiry(attributes: &Attributes) -> Option<jiff::Timestamp> {
    #[derive(serde::Deserialize)]
    struct Expiry {
        expires_at: Option<String>,
    }

    let metadata = attributes.metadata.as_ref()?;
    let Expiry { expires_at } = serde_json::from_str(metadata.get()).ok()?;
    instant::read(&expires_at?).filter(|at| *at != instant::NEVER)
}

/// Tells whether two paths lead to one folder, or would.
pub(super) fn is_same_folder(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| -> PathBuf { path.canonicalize().unwrap_or_else(|_| path.to_owned()) };
    let names: BTreeSet<PathBuf> = [real(one), real(other)].into();
    names.len() == 1
}
