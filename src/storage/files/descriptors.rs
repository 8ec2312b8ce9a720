//! File descriptors: how many this process may have, and how many operations may want some at once.

use std::sync::LazyLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Semaphore;

/// Descriptors for all that is no operation on files: sockets, the admin port's connections, the journal, locks that stay open.
const BASE: u64 = 128;
/// Descriptors of one operation at most: the file that is written, its source, its lock, its folder.
const EACH: u64 = 4;
/// Fewest operations at once, whatever the limit.
const LEAST: u64 = 8;
/// More than there will ever be threads.
const MOST: u64 = 65_536;

/// Operations on files that may run at once, as many as there are descriptors for.
pub(in crate::storage) static TURNS: LazyLock<Semaphore> = LazyLock::new(|| {
    let turns = (limit().saturating_sub(BASE) / EACH).clamp(LEAST, MOST);
    Semaphore::new(usize::try_from(turns).unwrap_or(Semaphore::MAX_PERMITS))
});

/// Raises this process's soft limit of open files to the hard one and returns what is in force then.
///
/// The usual soft limit of 1024 is there for programs that use `select`, which this one does not.
pub fn raise_descriptor_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    limit()
}

/// Returns how many files this process may have open.
#[must_use]
pub fn descriptor_limit() -> u64 {
    limit()
}

/// Returns how many descriptors a worker with so many commands in flight may want at once.
#[must_use]
pub fn descriptors_wanted(concurrency: usize) -> u64 {
    BASE + EACH * concurrency as u64
}

/// Returns how many lock files stay open between operations at most.
pub(in crate::storage) fn kept_locks() -> usize {
    usize::try_from(limit() / 16).unwrap_or(usize::MAX)
}

fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
