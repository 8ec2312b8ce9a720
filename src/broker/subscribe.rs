//! Listening without acknowledgement: control messages and broadcasts.

use crate::celery::message::{Message, Origin};

use super::{End, Exchange, QueueSpec};

/// A queue of our own, bound to an exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    /// The exchange; declared first.
    pub exchange: Exchange,
    /// The queue; declared as it is said here.
    pub queue: QueueSpec,
    /// Binding key; empty for a fanout.
    pub routing_key: String,
}

/// What arrives on a subscription.
#[derive(Debug)]
pub struct Notices {}

impl Notices {
    /// Waits for the next message.
    ///
    /// # Errors
    /// The reason why there will be no other.
    pub async fn next(&mut self) -> std::result::Result<(Message, Origin), End> {
        todo!()
    }
}
