//! Checks the overlays on this machine: pending and quarantined entries.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use indicatif::{HumanBytes, HumanDuration};
use jiff::Timestamp;

use super::report::Report;
use crate::config::StorageSettings;
use crate::provider::Provider;
use crate::storage::{Local, Owner};
use crate::wiring::{Code, Failure, folders, stack};

/// The most quarantined writes that are reported one by one.
const MAX_REPORTED: usize = 50;

/// Checks the overlay of the bucket that keeps the values, and looks for overlays of other buckets.
pub(super) async fn check(report: &mut Report<'_>, settings: &StorageSettings) -> Result<(), Failure> {
    let kept_in = settings.bucket();
    let own = kept_in.map(|(provider, name)| folders::overlay_name(settings, provider, name));
    if let Some(own) = &own {
        let folder = folders::overlays(settings).join(own);
        mine(report, settings, &folder).await?;
    }
    let folder = folders::overlays(settings);
    let names = match names(&folder) {
        Ok(names) => names,
        Err(error) => {
            let (shown, remedy) = (folder.display(), "let this user read it");
            let what = format!("what waits for other buckets in {shown} cannot be looked at: {error}; {remedy}");
            return report.fault("overlay", Code::Configuration, what);
        }
    };
    for name in names {
        if own.as_deref().is_none_or(|own| name != own) {
            other(report, &folder.join(&name), bucket_of(settings, &name.to_string_lossy())).await?;
        }
    }
    Ok(())
}

/// Returns the names of the overlays of all buckets; a missing folder has none.
fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

async fn mine(report: &mut Report<'_>, settings: &StorageSettings, folder: &Path) -> Result<(), Failure> {
    let shown = folder.display();
    let opened = match stack::inspect(folder) {
        Ok(Some(opened)) => opened,
        Ok(None) => return report.fine("overlay", "nothing has ever waited for this bucket"),
        Err(error) => return report.refused("overlay", &error),
    };
    match opened.pending().await {
        Ok(pending) if pending.entries == 0 => report.fine("overlay", "nothing waits for this bucket")?,
        Ok(pending) => {
            let since = pending.oldest.map_or_else(String::new, |oldest| {
                let age = Timestamp::now().duration_since(oldest).unsigned_abs();
                format!(", the oldest for {}", HumanDuration(age))
            });
            let sends = if settings.local_fallback {
                "a worker sends them when the bucket is back, `filestorage sync` does it now"
            } else {
                "enable_local_fallback is off, so no worker sends them and no command sees them: run `filestorage sync`"
            };
            let (entries, bytes) = (pending.entries, HumanBytes(pending.bytes));
            report.note("overlay", format!("{entries} entries ({bytes}) wait in {shown}{since}; {sends}"))?;
        }
        Err(error) => report.refused("overlay", &error)?,
    }
    match opened.conflicts().await {
        Ok(conflicts) => {
            for conflict in conflicts.iter().take(MAX_REPORTED) {
                let (key, path) = (&conflict.key, conflict.path.display());
                let remedy =
                    "to keep the value, store it again (it follows the first line of the file); then remove the file";
                let why = "because somebody else had changed the key in the bucket";
                report.note(
                    "conflicts",
                    format!("{key}: a write of this key was quarantined in {path}, {why}; {remedy}"),
                )?;
            }
            if conflicts.len() > MAX_REPORTED {
                report
                    .note("conflicts", format!("and {} more below {shown}/#aside", conflicts.len() - MAX_REPORTED))?;
            }
        }
        Err(error) => report.refused("conflicts", &error)?,
    }
    match Local::open_existing(folder) {
        Ok(Some(files)) => super::abandoned_files(report, &files),
        Ok(None) => Ok(()),
        Err(error) => report.refused("leftovers", &error),
    }
}

/// Reports an overlay whose entries no worker sends with these settings.
async fn other(report: &mut Report<'_>, folder: &Path, bucket: Option<String>) -> Result<(), Failure> {
    let shown = folder.display();
    let counted = async {
        let Some(opened) = stack::inspect(folder)? else { return Ok((0, 0, None)) };
        Ok((opened.pending().await?.entries, opened.conflicts().await?.len(), opened.owner()?))
    };
    match counted.await {
        Ok((0, 0, _)) => Ok(()),
        Ok((waiting, quarantined, owner)) => {
            let bucket = owner.map(named).or(bucket).unwrap_or_else(|| "another bucket".to_owned());
            let what = format!(
                "{shown} is the overlay of {bucket}: {waiting} entries wait there, {quarantined} are quarantined"
            );
            let remedy = "nothing sends them with these settings; run `filestorage sync` with those of that bucket";
            report.note("overlay", format!("{what}; {remedy}"))
        }
        Err(error) => report.refused("overlay", &error),
    }
}

/// Writes the owner of an overlay as a URL.
fn named(Owner { backend, endpoint, bucket }: Owner) -> String {
    let scheme = if backend == "gcs" { "gs" } else { &*backend };
    let at = endpoint.map_or_else(String::new, |endpoint| format!(" at {endpoint}"));
    format!("{scheme}://{bucket}{at}")
}

/// Finds the bucket to which an overlay belongs, among the buckets that the settings name.
fn bucket_of(settings: &StorageSettings, folder: &str) -> Option<String> {
    let named = [(Provider::Gcs, &settings.gcs.bucket), (Provider::S3, &settings.s3.bucket)];
    named.into_iter().find_map(|(provider, name)| {
        let name = name.as_ref()?;
        (folders::overlay_name(settings, provider, name) == folder).then(|| stack::url(provider, name))
    })
}
