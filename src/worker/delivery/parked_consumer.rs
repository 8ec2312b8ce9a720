//! Takes parked publications when their wait is over.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::broker::{BrokerSession, PARKED_QUEUE, ParkedDelivery, ParkedSource, ParkedToken, Presence};
use crate::telemetry::{Component, ComponentState, Readiness};

/// Publications taken and not acknowledged. Each is in memory, and may be as large as a message can be.
const PREFETCH: u16 = 8;
/// How long the queues wait to be looked at again that could not be consumed.
const AGAIN: Duration = Duration::from_secs(5);

/// The consumer of parked publications. Dropping it gives back what is not acknowledged.
pub(in crate::worker) struct ParkedConsumer {
    session: Arc<dyn BrokerSession>,
    /// Bytes that the queues hold together where this worker makes them.
    max_bytes: u64,
    readiness: Readiness,
    stage: Stage,
    /// Counts the channels on which publications were taken.
    channel: u64,
    /// Nothing could be taken when that was last tried.
    has_failed: bool,
}

enum Stage {
    Opening(BoxFuture<'static, Result<Box<dyn ParkedSource>, String>>),
    Open(Box<dyn ParkedSource>),
    Resting(Instant),
}

/// The right to acknowledge a publication that came back.
#[derive(Debug)]
pub(in crate::worker) struct Ticket {
    token: ParkedToken,
    channel: u64,
}

impl Ticket {
    /// Returns the number of the channel on which it came.
    pub(in crate::worker) const fn channel(&self) -> u64 {
        self.channel
    }
}

impl fmt::Debug for ParkedConsumer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ParkedConsumer").field("channel", &self.channel).finish_non_exhaustive()
    }
}

impl ParkedConsumer {
    /// Takes nothing before it is asked for the first publication.
    pub(in crate::worker) fn new(session: Arc<dyn BrokerSession>, max_bytes: u64, readiness: Readiness) -> Self {
        let stage = Stage::Resting(Instant::now());
        Self { session, max_bytes, readiness, stage, channel: 0, has_failed: false }
    }

    /// Tells whether somebody takes back what is parked. What nobody takes back must not be parked.
    pub(in crate::worker) const fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open(_))
    }

    /// Tells whether nothing can be parked in this session, as far as anybody knows: that was tried, and failed.
    pub(in crate::worker) const fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Waits for publications that come back; while the queues cannot be consumed it says so, and tries again. Dropping the future
    /// loses none.
    pub(in crate::worker) async fn next(&mut self) -> Vec<(Ticket, crate::celery::message::Message)> {
        loop {
            let unavailable = match &mut self.stage {
                Stage::Resting(until) => {
                    tokio::time::sleep_until(*until).await;
                    self.stage = Stage::Opening(Box::pin(open(Arc::clone(&self.session), self.max_bytes)));
                    continue;
                }
                Stage::Opening(opening) => match opening.await {
                    Ok(source) => {
                        self.channel += 1;
                        self.has_failed = false;
                        self.stage = Stage::Open(source);
                        self.readiness.set(Component::Parking, ComponentState::Ready);
                        continue;
                    }
                    Err(reason) => reason,
                },
                Stage::Open(source) => match source.next().await {
                    Ok(batch) => {
                        let channel = self.channel;
                        let ticket = |token| Ticket { token, channel };
                        return batch
                            .into_iter()
                            .map(|ParkedDelivery { message, ack_token }| (ticket(ack_token), message))
                            .collect();
                    }
                    Err(end) => format!("{PARKED_QUEUE}: {end:?}"),
                },
            };
            let reason = format!(
                "{unavailable}; what commands owe to full or missing queues is not parked, so these commands keep their slots"
            );
            self.readiness.set(Component::Parking, ComponentState::Degraded(reason));
            self.has_failed = true;
            self.stage = Stage::Resting(Instant::now() + AGAIN);
        }
    }

    /// Acknowledges a publication, without waiting. One of an earlier channel came back already.
    pub(in crate::worker) fn acknowledge(&self, ticket: &Ticket) {
        if let Stage::Open(source) = &self.stage
            && ticket.channel == self.channel
        {
            source.acknowledge(&ticket.token);
        }
    }

    /// Gives back everything that is not acknowledged, and takes it again after a while.
    pub(in crate::worker) fn give_back(&mut self) {
        self.stage = Stage::Resting(Instant::now() + AGAIN);
    }
}

/// Makes sure of the queues and begins to consume.
async fn open(session: Arc<dyn BrokerSession>, max_bytes: u64) -> Result<Box<dyn ParkedSource>, String> {
    match session.ensure_parking(max_bytes).await {
        Ok(Presence::Present | Presence::Created) => {}
        Ok(Presence::Down(words) | Presence::Denied(words)) => return Err(words),
        Err(error) => return Err(error.to_string()),
    }
    session.consume_parked(PREFETCH).await.map_err(|error| error.to_string())
}
