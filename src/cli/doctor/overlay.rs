//! What waits on this machine for buckets, and what was set aside.

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

/// Most writes that were set aside which are told one by one.
const TOLD: usize = 50;

/// Looks at the overlay of the bucket values are kept in, and for those of others.
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
            let (shown, mend) = (folder.display(), "let this user read it");
            let what = format!("what waits for other buckets in {shown} cannot be looked at: {error}; {mend}");
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

/// Names of the overlays of all buckets; none where there never was one.
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
            for conflict in conflicts.iter().take(TOLD) {
                let (key, path) = (&conflict.key, conflict.path.display());
                let mend =
                    "if it is to stand, store it again (the value follows the file's first line), then remove the file";
                let why = "somebody else had changed the key in the bucket since";
                report
                    .note("conflicts", format!("{key}: a write of this key was set aside in {path}, {why}; {mend}"))?;
            }
            if conflicts.len() > TOLD {
                report.note("conflicts", format!("and {} more below {shown}/#aside", conflicts.len() - TOLD))?;
            }
        }
        Err(error) => report.refused("conflicts", &error)?,
    }
    match Local::open_existing(folder) {
        Ok(Some(files)) => super::leftovers(report, &files),
        Ok(None) => Ok(()),
        Err(error) => report.refused("leftovers", &error),
    }
}

/// Tells of an overlay that nobody looks after with these settings.
async fn other(report: &mut Report<'_>, folder: &Path, bucket: Option<String>) -> Result<(), Failure> {
    let shown = folder.display();
    let counted = async {
        let Some(opened) = stack::inspect(folder)? else { return Ok((0, 0, None)) };
        Ok((opened.pending().await?.entries, opened.conflicts().await?.len(), opened.owner()?))
    };
    match counted.await {
        Ok((0, 0, _)) => Ok(()),
        Ok((waiting, aside, owner)) => {
            let bucket = owner.map(named).or(bucket).unwrap_or_else(|| "another bucket".to_owned());
            let what =
                format!("{shown} is the overlay of {bucket}: {waiting} entries wait there, {aside} were set aside");
            let mend = "nothing sends them with these settings; run `filestorage sync` with those of that bucket";
            report.note("overlay", format!("{what}; {mend}"))
        }
        Err(error) => report.refused("overlay", &error),
    }
}

/// Names the bucket that an overlay says it belongs to.
fn named(Owner { backend, endpoint, bucket }: Owner) -> String {
    let scheme = if backend == "gcs" { "gs" } else { &*backend };
    let at = endpoint.map_or_else(String::new, |endpoint| format!(" at {endpoint}"));
    format!("{scheme}://{bucket}{at}")
}

/// Finds the bucket an overlay belongs to among those that the settings name.
fn bucket_of(settings: &StorageSettings, folder: &str) -> Option<String> {
    let named = [(Provider::Gcs, &settings.gcs.bucket), (Provider::S3, &settings.s3.bucket)];
    named.into_iter().find_map(|(provider, name)| {
        let name = name.as_ref()?;
        (folders::overlay_name(settings, provider, name) == folder).then(|| stack::url(provider, name))
    })
}
