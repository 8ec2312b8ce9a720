//! What the system cannot do now and may do in a moment: it lacks descriptors, memory or locks, or a network disk was away.

use std::io;
use std::time::Duration;

use rustix::io::Errno;

use crate::storage::error::Error;

/// Waits between attempts: the first, doubling, at most the last; about as those before a bucket.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Attempts for want of descriptors, which take about 25 s: others let go of theirs.
const LONG: u32 = 10;
/// Attempts for everything else that may pass.
const SHORT: u32 = 4;

/// Tells how often something is tried that the system refused with this, or `None` where trying again does not help.
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

/// What a file operation fails with.
pub(in crate::storage) trait Refusal {
    /// Finds the system's own words.
    fn system(&self) -> Option<&io::Error>;
}

impl Refusal for io::Error {
    fn system(&self) -> Option<&io::Error> {
        Some(self)
    }
}

impl Refusal for Error {
    fn system(&self) -> Option<&io::Error> {
        std::error::Error::source(self)?.downcast_ref()
    }
}

/// Tells whether trying again may help.
pub(in crate::storage) fn may_pass(refusal: &impl Refusal) -> bool {
    refusal.system().and_then(attempts).is_some()
}

/// Does work that may be begun again, as long as the system refuses it for want of what may be there in a moment; before each
/// wait `make_room` is called. Blocks.
pub(in crate::storage) fn outlast<T, E: Refusal>(
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
            tracing::debug!(why, "the system lacks something; trying again");
        }
        make_room();
        std::thread::sleep(wait);
        wait = (2 * wait).min(WAITS.1);
    }
}

/// Makes an error that is not tried again by whoever would begin with what has been done already.
pub(in crate::storage) fn settled(error: io::Error) -> io::Error {
    if may_pass(&error) { io::Error::other(error.to_string()) } else { error }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_may_pass_is_begun_again_and_nothing_else() {
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
            let done = outlast(work, || room.set(room.get() + 1));
            assert_eq!(
                (done.is_ok(), made.get(), room.get()),
                if passes { (true, 3, 2) } else { (false, 1, 0) },
                "{errno}"
            );
            assert!(!may_pass(&settled(errno.into())), "{errno}");
        }
    }
}
