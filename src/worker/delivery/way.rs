//! The way by which publications leave.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::broker::{BrokerSession, Confirmation, Early, PublishError, QueueType};
use crate::celery::message::{Address, Message, Publication};
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
    /// What is not taken can be parked now.
    pub(in crate::worker) may_park: bool,
    /// It was tried, and nothing can be parked.
    pub(in crate::worker) cannot_park: bool,
}

/// How long everybody waits for one address.
pub(super) const SLOW: Duration = Duration::from_secs(1);

/// A name that no queue has.
const NOWHERE: &str = "filestorage.nobody";

/// A batch that is answered, or the first word of one.
pub(super) enum Landing {
    /// Everything is known.
    Whole(Batch, Vec<Result<Confirmation, PublishError>>),
    /// Some of it is known.
    Early(EarlyBatch),
}

/// A batch of which some is known.
pub(super) struct EarlyBatch {
    pub(super) landed: Landed,
    /// The rest, which is still waited for.
    pub(super) rest: BoxFuture<'static, (Batch, Vec<Result<Confirmation, PublishError>>)>,
    /// Ends that wait.
    pub(super) enough: oneshot::Sender<()>,
    /// Tells whether the broker confirms what it is sent now.
    pub(super) probe: BoxFuture<'static, bool>,
}

impl Way {
    /// Sends a batch and waits for the broker's words, or for the first of them after a while.
    pub(super) async fn send(self, mut batch: Batch, publications: Vec<Publication>) -> Landing {
        let Self { session, results, .. } = self;
        let (sent, (word, first), (enough, cut)) = (Instant::now(), oneshot::channel(), oneshot::channel());
        let positions = batch.results();
        let limit = session.patience();
        let broker = Arc::clone(&session);
        let mut sending = Box::pin(async move {
            let early = Some(Early { after: SLOW, word, cut });
            results.send(&*session, publications, &positions, limit, early).await
        });
        tokio::select! {
            biased;
            answers = &mut sending => Landing::Whole(batch, answers),
            Ok(word) = first => {
                let landed = batch.landed_early(word, sent);
                let rest = Box::pin(async move { (batch, sending.await) });
                Landing::Early(EarlyBatch { landed, rest, enough, probe: Box::pin(probe(broker)) })
            }
        }
    }

    /// Sends one publication that tries an address.
    pub(super) async fn send_alone(self, batch: Batch, publications: Vec<Publication>, limit: Duration) -> Landed {
        let Self { session, results, .. } = self;
        let positions = batch.results();
        let answers = results.send(&*session, publications, &positions, limit, None).await;
        batch.landed(answers, results.is_over_broker(), true)
    }
}

/// Publishes to a queue that does not exist: nobody receives it, and the broker says so.
async fn probe(session: Arc<dyn BrokerSession>) -> bool {
    let nowhere = Publication { address: Address::queue(NOWHERE), message: Message::default() };
    let answers = session.publish_within(session.patience(), vec![nowhere], true, None).await;
    matches!(answers.as_slice(), [Ok(_)])
}
