//! Determines how a value is written to a path: by replacing a file, or by writing into something that is open.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// The kind of target that `-o` names.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) enum Sink {
    /// Standard output, by any of its names.
    Output,
    /// Another open descriptor that the process inherited.
    Descriptor(RawFd),
    /// A device or a pipe, which cannot be replaced.
    Stream,
    /// A file, which may not exist yet.
    File,
}

impl Sink {
    /// Determines the target of a path by following its links; `-` is standard output.
    pub(in crate::cli) fn of(path: &Path) -> Self {
        if path == Path::new("-") {
            return Self::Output;
        }
        match descriptor(path) {
            Some(1) => Self::Output,
            Some(number) => Self::Descriptor(number),
            None if std::fs::metadata(path).is_ok_and(|present| !present.is_file()) => Self::Stream,
            None => Self::File,
        }
    }
}

/// The most links in a row that are followed, as in the kernel.
const MAX_LINKS: usize = 40;

/// Returns the descriptor that a path names: `/dev/stdout`, `/dev/fd/3`, `/proc/self/fd/3`, or a link to one of these.
fn descriptor(path: &Path) -> Option<RawFd> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let parent = parent.canonicalize().ok()?;
        let name = path.file_name()?;
        if is_own_descriptors(&parent) {
            return name.to_str()?.parse().ok();
        }
        let target = std::fs::read_link(parent.join(name)).ok()?;
        path = parent.join(target);
    }
    None
}

/// Tells whether a folder lists the descriptors of this process or of one of its threads.
fn is_own_descriptors(folder: &Path) -> bool {
    let own = PathBuf::from("/proc").join(std::process::id().to_string());
    let parts: Vec<_> = match folder.strip_prefix(&own) {
        Ok(rest) => rest.components().map(|part| part.as_os_str().to_owned()).collect(),
        Err(_) => return false,
    };
    match parts.as_slice() {
        [fd] => fd == "fd",
        [task, _, fd] => task == "task" && fd == "fd",
        _ => false,
    }
}

/// Duplicates an inherited descriptor, so that writing continues at the shared position.
pub(in crate::cli) fn duplicate(number: RawFd) -> io::Result<File> {
    // Descriptors that this program opens are closed on exec; inherited ones are not. Only an inherited one is allowed.
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).map(str::trim);
    let flags = flags.and_then(|flags| i64::from_str_radix(flags, 8).ok());
    if flags.is_none_or(|flags| flags & 0o2_000_000 != 0) {
        return Err(rustix::io::Errno::BADF.into());
    }
    let own =
        pidfd_open(getpid(), PidfdFlags::empty()).and_then(|own| pidfd_getfd(own, number, PidfdGetfdFlags::empty()));
    match own {
        Ok(descriptor) => Ok(File::from(descriptor)),
        Err(rustix::io::Errno::BADF) => Err(rustix::io::Errno::BADF.into()),
        // Before kernel 5.6, or in a sandbox, the bytes are appended to the file instead.
        Err(_) => OpenOptions::new().append(true).open(format!("/proc/self/fd/{number}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_program_opened_itself_is_not_written_to() {
        use std::os::fd::AsRawFd as _;
        let own = tempfile::tempfile().unwrap();
        assert!(duplicate(own.as_raw_fd()).is_err());
        assert!(duplicate(999_999).is_err());
    }

    #[test]
    fn every_name_of_a_descriptor_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/stdout", &link).unwrap();
        let second = folder.path().join("second");
        std::os::unix::fs::symlink("link", &second).unwrap();
        let own = format!("/proc/{}/fd/1", std::process::id());
        for name in
            ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/thread-self/fd/1", "/dev/../dev/stdout", &own]
        {
            assert_eq!(Sink::of(Path::new(name)), Sink::Output, "{name}");
        }
        assert_eq!(Sink::of(&link), Sink::Output);
        assert_eq!(Sink::of(&second), Sink::Output);
        assert_eq!(Sink::of(Path::new("/dev/stderr")), Sink::Descriptor(2));
        assert_eq!(Sink::of(Path::new("/dev/fd/77")), Sink::Descriptor(77));
        assert_eq!(Sink::of(Path::new("/dev/null")), Sink::Stream);
        let file = folder.path().join("file");
        assert_eq!(Sink::of(&file), Sink::File);
        std::fs::write(&file, "").unwrap();
        assert_eq!(Sink::of(&file), Sink::File);
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        assert_eq!(Sink::of(&second), Sink::File);
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("file", &file).unwrap();
        assert_eq!(Sink::of(&file), Sink::File, "a circle");
    }
}
