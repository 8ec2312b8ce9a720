//! Failures of the system that may pass in a moment: too few descriptors, memory or locks, or a network disk out of
//! reach.

use std::io;
use std::time::Duration;

use rustix::io::Errno;

use crate::storage::error::Error;

/// The first wait between attempts and the longest. The waits double, about like those between requests to a bucket.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The number of attempts, about 25 s, where descriptors are lacking: other operations release theirs.
const LONG: u32 = 10;
/// The number of attempts for every other failure that may pass.
const SHORT: u32 = 4;

/// Returns how often an operation is tried that the system refuses with this error, or `None` where a retry does not
/// help.
fn attempts(error: &io::Error) -> Option<u32> {
    match Errno::from_io_error(error)? {
        Errno::MFILE | Errno::NFILE => Some(LONG),
        Errno::AGAIN
        | Errno::INTR
        | Errno::NOMEM
        | Errno::NOLCK
        | Errno::STALE
        | Errno::BUSY
        | Errno::TXTBSY
        | Errno::TIMEDOUT => Some(SHORT),
        _ => None,
    }
}

/// An error of a file operation.
pub(in crate::storage) trait SystemFailure {
    /// Finds the error of the system, if one is the cause.
    fn system(&self) -> Option<&io::Error>;
}

impl SystemFailure for io::Error {
    fn system(&self) -> Option<&io::Error> {
        Some(self)
    }
}

impl SystemFailure for Error {
    fn system(&self) -> Option<&io::Error> {
        std::error::Error::source(self)?.downcast_ref()
    }
}

/// Tells whether a retry may help.
pub(in crate::storage) fn may_pass(failure: &impl SystemFailure) -> bool {
    failure.system().and_then(attempts).is_some()
}

/// Repeats work while the system refuses it with an error that may pass.
///
/// The work must be such that it can begin again. Before each wait `make_room` is called. Blocks.
pub(in crate::storage) fn retry<T, E: SystemFailure>(
    mut work: impl FnMut() -> Result<T, E>,
    make_room: impl Fn(),
) -> Result<T, E> {
    let (mut made, mut wait) = (0, WAITS.0);
    loop {
        let error = match work() {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        made += 1;
        match error.system().and_then(attempts) {
            Some(most) if made < most => {}
            _ => return Err(error),
        }
        if made == 1 {
            let why = error.system().map(ToString::to_string);
            tracing::debug!(why, "the system lacks a resource for a file operation; trying again");
        }
        make_room();
        std::thread::sleep(wait);
        wait = (2 * wait).min(WAITS.1);
    }
}

/// Makes an error that is not retried, for an operation that must not begin again with what has been done already.
pub(in crate::storage) fn not_retried(error: io::Error) -> io::Error {
    if may_pass(&error) { io::Error::other(error.to_string()) } else { error }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn only_errors_that_may_pass_are_retried() {
        for (errno, passes) in [
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::AGAIN, true),
            (Errno::INTR, true),
            (Errno::NOMEM, true),
            (Errno::NOLCK, true),
            (Errno::STALE, true),
            (Errno::BUSY, true),
            (Errno::TXTBSY, true),
            (Errno::TIMEDOUT, true),
            (Errno::NOSPC, false),
            (Errno::DQUOT, false),
            (Errno::ROFS, false),
            (Errno::ACCESS, false),
            (Errno::PERM, false),
            (Errno::IO, false),
            (Errno::FBIG, false),
            (Errno::NAMETOOLONG, false),
            (Errno::NOENT, false),
        ] {
            let (made, room) = (Cell::new(0), Cell::new(0));
            let work = || {
                made.set(made.get() + 1);
                if made.get() < 3 { Err(io::Error::from(errno)) } else { Ok(()) }
            };
            let done = retry(work, || room.set(room.get() + 1));
            assert_eq!(
                (done.is_ok(), made.get(), room.get()),
                if passes { (true, 3, 2) } else { (false, 1, 0) },
                "{errno}"
            );
            assert!(!may_pass(&not_retried(errno.into())), "{errno}");
        }
    }
}
