//! The way by which publications leave.

use std::sync::Arc;
use std::time::Duration;

use crate::broker::{BrokerSession, QueueType};
use crate::celery::message::Publication;
use crate::results::ResultBackend;
use crate::worker::delivery::batch::{Batch, Landed};

/// By what is sent.
#[derive(Clone, Debug)]
pub(in crate::worker) struct Way {
    pub(in crate::worker) session: Arc<dyn BrokerSession>,
    pub(in crate::worker) results: Arc<dyn ResultBackend>,
    /// The type of queues made for follow-ups.
    pub(in crate::worker) queue_type: QueueType,
    /// Events that share a message at most; 0: no events at all.
    pub(in crate::worker) events: usize,
    /// What is not taken can be parked.
    pub(in crate::worker) may_park: bool,
}

impl Way {
    /// Sends a batch and reads what the broker says.
    pub(super) async fn send(self, batch: Batch, publications: Vec<Publication>, limit: Duration) -> Landed {
        let Self { session, results, .. } = self;
        let positions = batch.results();
        let answers = results.send(&*session, publications, &positions, limit).await;
        batch.landed(answers, results.is_over_broker())
    }
}
