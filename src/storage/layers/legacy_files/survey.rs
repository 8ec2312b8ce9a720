//! What is odd about the names of old files, for the report of a conversion.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;

use super::folder::LegacyFolder;
use super::walk;
use crate::storage::legacy::{Sidecar, names};

/// What is odd about the names of old files. Paths are relative to the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The number of files, beside sidecars.
    pub files: u64,
    /// The keys of files that have one sidecar together with others.
    pub shared_sidecars: BTreeSet<String>,
    /// Sidecars without a file.
    pub orphans: Vec<String>,
    /// Files that are named like a sidecar and are none.
    pub misnamed: Vec<String>,
    /// Links, pipes and other things that are no regular files.
    pub irregular: Vec<String>,
}

impl LegacyFolder {
    /// Walks all files. In memory are the names of one folder, and those that are odd.
    pub(super) fn survey(&self) -> io::Result<Survey> {
        let mut survey = Survey::default();
        let own_files = self.own().files();
        let mut open = vec![(String::new(), self.own().folders())];
        while let Some((begin, own)) = open.pop() {
            let path = self.root().join(&begin);
            // The files by the name of their sidecar.
            let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
            let mut sidecars = Vec::new();
            for name in walk::names(&path, own, &own_files)?.0 {
                let text = name.text();
                if name.is_folder {
                    open.push((format!("{begin}{text}/"), &[]));
                } else if !name.is_file {
                    survey.irregular.push(format!("{begin}{text}"));
                } else if text.ends_with(names::SIDECAR) {
                    sidecars.push(text.to_owned());
                } else {
                    survey.files += 1;
                    files.entry(names::sidecar(text)).or_default().push(format!("{begin}{text}"));
                }
            }
            for sidecar in sidecars {
                let relative = format!("{begin}{sidecar}");
                match files.remove(&sidecar) {
                    Some(keys) if keys.len() > 1 => survey.shared_sidecars.extend(keys),
                    Some(_) => {}
                    None if is_sidecar(&path.join(&sidecar))
                        .map_err(|error| walk::at(&path.join(&sidecar), error))? =>
                    {
                        survey.orphans.push(relative)
                    }
                    None => survey.misnamed.push(relative),
                }
            }
        }
        Ok(survey)
    }
}

fn is_sidecar(path: &std::path::Path) -> io::Result<bool> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(Sidecar::MOST).read_to_end(&mut bytes)?;
    Ok(Sidecar::parse(&bytes).is_some_and(|sidecar| sidecar.compressed.is_some()))
}
