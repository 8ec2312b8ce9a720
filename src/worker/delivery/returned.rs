//! What is known of a parked publication that came back.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::telemetry::Parked;
use crate::worker::delivery::parked_consumer::Ticket;

/// What is known of a publication that came back.
#[derive(Debug)]
pub(in crate::worker) struct Returned {
    pub(in crate::worker) ticket: Ticket,
    /// When it was first parked.
    pub(super) parked_at: Timestamp,
    /// The same on the clock of this process, as far as that goes back.
    pub(super) since: Instant,
    /// When it came back.
    pub(super) came: Instant,
    /// The step of its next wait.
    pub(super) step: usize,
    /// What it comes to; `None` once it is parked anew.
    pub(in crate::worker) end: Option<Parked>,
}

impl Returned {
    /// Tells whether it has waited for longer than anything is parked that must not be lost.
    pub(super) fn is_older(&self, now: Timestamp, max_age: Duration) -> bool {
        Duration::try_from(now.duration_since(self.parked_at)).is_ok_and(|age| age >= max_age)
    }
}
