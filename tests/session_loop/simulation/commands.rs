//! The commands of a seed, and what each must come to.

use filestorage::celery::message::Message;

use crate::random::Random;
use crate::sent::{Sent, after_start, read, write};

/// How long commands are sent and faults go on, in milliseconds.
pub(super) const FAULTS: u64 = 60_000;
/// The queue of callbacks.
pub(super) const NEXT: &str = "next";
/// Bytes of a body from which on it is read when its turn comes, and the most that are drawn.
const LARGE: (u64, u64) = (64 * 1024, 200 * 1024);

/// What a command must come to.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub(super) id: String,
    /// The state of its answer; `None` where none is wanted.
    pub(super) state: Option<&'static str>,
    pub(super) writes: bool,
    pub(super) follows: bool,
    /// It waits in delay queues for its eta.
    pub(super) waits: bool,
    /// A copy of it is kept.
    pub(super) is_dead: bool,
}

/// Draws a command and when it is sent.
pub(super) fn draw(random: &mut Random, number: u64, is_large: bool) -> (u64, Message, Expected) {
    let id = format!("c{number}");
    let key = format!("k{}", random.between(0, 7));
    let writes = !random.one_in(3);
    let sent = if writes { write(&id, &key) } else { read(&id, &key) };
    let at = random.between(0, FAULTS);
    let mut expected =
        Expected { id: id.clone(), state: Some("SUCCESS"), writes, follows: false, waits: false, is_dead: false };
    let pause = if random.one_in(5) { random.between(500, 5000) } else { random.between(0, 50) };
    let mut sent = sent.with("ms", pause);
    match random.between(0, 19) {
        0 => {
            sent = sent.with("end", "fails");
            (expected.state, expected.writes) = (Some("FAILURE"), false);
        }
        1 => {
            sent = Sent::new("no.such_task", &id, &key);
            (expected.state, expected.writes, expected.is_dead) = (Some("FAILURE"), false, true);
        }
        2 => {
            sent = sent.header("expires", after_start(-1000));
            (expected.state, expected.writes) = (Some("REVOKED"), false);
        }
        3 => {
            sent = sent.header("eta", after_start(i64::try_from(at + random.between(1, 20_000)).unwrap()));
            expected.waits = true;
        }
        4..=7 => {
            sent = sent.followed("callbacks", NEXT);
            expected.follows = true;
        }
        8 => {
            sent = sent.replying_to(None);
            expected.state = None;
        }
        _ => {}
    }
    if is_large && random.one_in(12) {
        let (least, most) = LARGE;
        sent = sent.with("pad", "x".repeat(usize::try_from(random.between(least, most)).unwrap()));
    }
    (at, sent.message(), expected)
}
