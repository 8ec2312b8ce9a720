//! Checks the disk: free space, inodes, and whether this user may write to the folders of the settings.

use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use rustix::fs::{Access, access, statvfs};

use super::report::Report;
use crate::storage::Spool;
use crate::wiring::{Code, Failure};

/// The least free space in bytes; less is a fault, since not even running commands have room.
const LEAST_BYTES: u64 = 64 << 20;
/// The least number of free inodes; fewer is a fault.
const LEAST_INODES: u64 = 1_000;
/// The divisor for a note: less than one part in 20 of space or inodes is free.
const LITTLE: u64 = 20;

/// Checks the folder `local_storage_path`.
pub(super) fn check(report: &mut Report<'_>, folder: &Path) -> Result<(), Failure> {
    let nearest = nearest(folder);
    room(report, &nearest)?;
    writable(report, folder, &nearest)
}

fn room(report: &mut Report<'_>, folder: &Path) -> Result<(), Failure> {
    let shown = folder.display();
    let system = match statvfs(folder) {
        Ok(system) => system,
        Err(error) => {
            return report.fault("disk", Code::Configuration, format!("{shown}: {error}; look at the disk it is on"));
        }
    };
    let (free, all) = (system.f_bavail * system.f_frsize, system.f_blocks * system.f_frsize);
    let said = format!("{} of {} are free at {shown}", HumanBytes(free), HumanBytes(all));
    if free < LEAST_BYTES {
        report.fault("disk", Code::Configuration, format!("{said}; free space, or set local_storage_path"))?;
    } else if free < all / LITTLE {
        report.note("disk", format!("{said}, which is little"))?;
    } else {
        report.fine("disk", said)?;
    }
    // Some file systems create inodes when they need them, and have no limit.
    if system.f_files == 0 {
        return report.fine("inodes", format!("the file system of {shown} sets no limit"));
    }
    let said = format!("{} of {} inodes are free at {shown}", system.f_favail, system.f_files);
    if system.f_favail < LEAST_INODES {
        let remedy = "remove files, or move local_storage_path to a file system made with more";
        report.fault("inodes", Code::Configuration, format!("{said}; each value takes one: {remedy}"))
    } else if system.f_favail < system.f_files / LITTLE {
        report.note("inodes", format!("{said}, which is few; each value takes one"))
    } else {
        report.fine("inodes", said)
    }
}

fn writable(report: &mut Report<'_>, folder: &Path, nearest: &Path) -> Result<(), Failure> {
    let shown = folder.display();
    let remedy = "let this user write there, or set local_storage_path";
    if folder != nearest {
        return match access(nearest, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) => report.fine("folder", format!("{shown} is not there yet and can be made")),
            Err(error) => {
                let why = format!("{shown} is not there and cannot be made in {}: {error}", nearest.display());
                report.fault("folder", Code::Configuration, format!("{why}; {remedy}"))
            }
        };
    }
    // A file without a name leaves nothing behind.
    match Spool::new(folder).create() {
        Ok(_) => report.fine("folder", format!("{shown} can be written")),
        Err(error) => {
            report.fault("folder", Code::Configuration, format!("{shown} cannot be written: {error}; {remedy}"))
        }
    }
}

/// Checks the folders below which commands may name files.
pub(super) fn exchange(report: &mut Report<'_>, directories: &[PathBuf]) -> Result<(), Failure> {
    for directory in directories {
        let shown = directory.display();
        let found = std::fs::metadata(directory);
        let why = match found {
            Ok(found) if !found.is_dir() => "is no folder".to_owned(),
            Ok(_) => match access(directory, Access::READ_OK | Access::EXEC_OK) {
                Ok(()) if access(directory, Access::WRITE_OK).is_ok() => {
                    report.fine("exchange", format!("{shown} can be read and written"))?;
                    continue;
                }
                Ok(()) => {
                    report.note("exchange", format!("{shown} can be read only; no value can be retrieved to it"))?;
                    continue;
                }
                Err(error) => format!("cannot be read: {error}"),
            },
            Err(error) => format!("cannot be found: {error}"),
        };
        let remedy = "make the folder, let this user read it, or take it out of exchange_directories";
        report.fault("exchange", Code::Configuration, format!("{shown} {why}; {remedy}"))?;
    }
    Ok(())
}

/// Returns the folder, or its nearest ancestor that exists.
fn nearest(folder: &Path) -> PathBuf {
    let there = folder.ancestors().find(|path| !path.as_os_str().is_empty() && path.exists());
    there.unwrap_or(Path::new(".")).to_owned()
}
