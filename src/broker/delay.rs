//! Messages that come back later, kept by the broker.

use std::time::Duration;

use crate::celery::message::Address;

use super::Result;

/// Queues whose messages return to the queue they came from after a while.
#[derive(Clone, Debug)]
pub struct Delay {}

impl Delay {
    /// Returns where to publish what shall be back in `queue` after `remaining`, at the latest; it may be back earlier and
    /// is then published again for the rest. The smallest step is 100 ms, the largest 19 days.
    ///
    /// # Errors
    /// `Denied` when the delay queue is missing and may not be created; `Down`, `Lost`.
    pub async fn address(&self, queue: &str, remaining: Duration) -> Result<Address> {
        todo!()
    }
}
