//! File descriptors: how many this process may have, and how many operations may use some at once.

use std::sync::LazyLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Semaphore;

/// Descriptors that no file operation uses: sockets, connections to the admin port, the journal, lock files that stay
/// open.
const BASE: u64 = 128;
/// The most descriptors that one operation uses: the file that is written, its source, its lock, its folder.
const EACH: u64 = 4;
/// The smallest number of operations at once, whatever the limit.
const LEAST: u64 = 8;
/// The largest number of operations at once: more than there will ever be threads.
const MOST: u64 = 65_536;

/// The operations on files that may run at once, as many as the descriptors suffice for.
pub(in crate::storage) static FILE_OPERATIONS: LazyLock<Semaphore> = LazyLock::new(|| {
    let operations = (limit().saturating_sub(BASE) / EACH).clamp(LEAST, MOST);
    Semaphore::new(usize::try_from(operations).unwrap_or(Semaphore::MAX_PERMITS))
});

/// Raises this process's soft limit of open files to the hard limit and returns the limit that is then in force.
///
/// The usual soft limit of 1024 exists for programs that use `select`, which this program does not.
pub fn raise_descriptor_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::debug!(%error, "the limit of open files could not be raised");
    }
    limit()
}

/// Returns how many files this process may have open.
#[must_use]
pub fn descriptor_limit() -> u64 {
    limit()
}

/// Returns how many descriptors a worker with this many commands in flight may use at once.
#[must_use]
pub fn descriptors_wanted(concurrency: usize) -> u64 {
    BASE + EACH * concurrency as u64
}

/// Returns how many lock files may stay open between operations.
pub(in crate::storage) fn kept_locks() -> usize {
    usize::try_from(limit() / 16).unwrap_or(usize::MAX)
}

fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
