//! Batches on their way to the broker: one for everybody, and one for each address that is silent or full.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use crate::broker::{BATCH, BrokerSession};
use crate::celery::message::Address;
use crate::results::ResultBackend;
use crate::worker::delivery::destinations::{Destinations, GLANCE};
use crate::worker::delivery::outbox::{Answered, Outbox};
use crate::worker::delivery::parking;
use crate::worker::delivery::pending_ack::Lane;

/// Silent addresses tried at once; everybody's batch must never wait for a channel.
const LANES: usize = 4;
/// Pending acknowledgements whose publications are on their way to one silent address. RabbitMQ stops reading a whole
/// connection once 400 messages wait in one of its channels, and one acknowledgement may wait for several of them.
const LANE_BATCH: usize = 64;

/// What is being confirmed.
#[derive(Default)]
pub(in crate::worker) struct InFlightBatches {
    under_way: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// Silent addresses that have a flight of their own among them.
    lanes: HashSet<Address>,
}

impl InFlightBatches {
    /// Tells whether nothing is under way.
    pub(in crate::worker) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Tells whether everybody's next batch may leave. While one is under way, what ends meanwhile gathers; two at once were
    /// slower, since each is smaller.
    pub(in crate::worker) fn is_clear(&self) -> bool {
        self.under_way.len() == self.lanes.len()
    }

    /// Tells whether something of the outbox may leave now.
    pub(in crate::worker) fn may_launch(&self, outbox: &Outbox) -> bool {
        self.is_clear() && outbox.has_next() || self.next_lane(outbox).is_some()
    }

    fn next_lane(&self, outbox: &Outbox) -> Option<Address> {
        outbox.next_apart(&self.lanes).filter(|_| self.lanes.len() < LANES)
    }

    /// Sends the next batch, if one may leave; at most `events` events share a message (0: no events at all).
    pub(in crate::worker) fn launch(
        &mut self,
        outbox: &mut Outbox,
        destinations: &Destinations,
        session: Arc<dyn BrokerSession>,
        results: &Arc<dyn ResultBackend>,
        events: usize,
        may_park: bool,
    ) {
        let results = Arc::clone(results);
        if self.is_clear() && outbox.has_next() {
            let (batch, publications) = outbox.take(BATCH, events);
            let (answers, limit) = (batch.answers(), session.patience());
            self.under_way.push(Box::pin(async move {
                batch.answered(results.send(&*session, publications, &answers, limit).await)
            }));
        } else if let Some(address) = self.next_lane(outbox) {
            let hopeless = destinations.is_hopeless(&address);
            self.lanes.insert(address.clone());
            let (batch, publications) = outbox.take_apart(Lane { address, hopeless }, LANE_BATCH, events);
            // What is published again and again may have been taken each time: that is waited for.
            let limit = match session.patience() {
                _ if hopeless && batch.may_be_given_up() => GLANCE,
                // What is not taken until then is parked.
                patience if may_park => patience.min(parking::PATIENCE),
                patience => patience,
            };
            let answers = batch.answers();
            self.under_way.push(Box::pin(async move {
                batch.answered(results.send(&*session, publications, &answers, limit).await)
            }));
        }
    }

    /// Waits for a batch to be answered and learns from it which addresses confirm nothing, and which do again; `None` while
    /// nothing is under way.
    pub(in crate::worker) async fn land(&mut self, destinations: &mut Destinations) -> Option<Answered> {
        let answered = self.under_way.next().await?;
        let Answered { lane, silent, full, missing, lost, .. } = &answered;
        full.iter().for_each(|address| destinations.refused(address));
        let Some(address) = lane else {
            silent.iter().for_each(|address| destinations.note(address));
            return Some(answered);
        };
        self.lanes.remove(address);
        if silent.contains(address) {
            // A queue that takes nothing soon stops its channel, and with it what else went there.
            destinations.note(address);
        } else if lost.is_none() {
            silent.iter().for_each(|address| destinations.note(address));
            if !full.contains(address) && !missing.contains(address) {
                destinations.heard(address);
            }
        }
        Some(answered)
    }
}
