//! Keeps the queue of dead copies within its bound: the oldest go.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::broker::{BrokerSession, ErrorKind};
use crate::telemetry::Metrics;

/// How often the queue is looked at. A look costs one channel; until the next one the queue may exceed its bound.
pub(super) const LOOK: Duration = Duration::from_secs(5);
/// Looks after which removals are logged again at the earliest.
const LOOKS_A_REPORT: u32 = 12;

/// The task that removes surplus dead copies in one session; dropping it ends the task.
#[derive(Debug)]
pub(super) struct DeadBound {
    _task: JoinSet<()>,
}

impl DeadBound {
    /// Begins to keep the queue at `most` copies.
    pub(super) fn begin(session: Arc<dyn BrokerSession>, most: u64, metrics: Metrics) -> Self {
        let mut task = JoinSet::new();
        task.spawn(keep(session, most, metrics));
        Self { _task: task }
    }
}

async fn keep(session: Arc<dyn BrokerSession>, most: u64, metrics: Metrics) {
    let (mut unreported, mut quiet) = (0, 0);
    loop {
        match session.trim_dead(most).await {
            Ok(removed) => {
                metrics.record_dead_removed(removed);
                unreported += removed;
            }
            Err(error) if error.kind() == ErrorKind::Lost => return,
            Err(error) => {
                tracing::warn!(%error, "dead_max_messages is not kept in this session");
                return;
            }
        }
        quiet = u32::saturating_sub(quiet, 1);
        if unreported > 0 && quiet == 0 {
            tracing::warn!(removed = unreported, dead_max_messages = most, "the oldest dead copies were removed");
            (unreported, quiet) = (0, LOOKS_A_REPORT);
        }
        tokio::time::sleep(LOOK).await;
    }
}
