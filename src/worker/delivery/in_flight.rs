//! What is on its way to the broker: one batch for everybody, and one trial for each of some addresses that take nothing.

use std::collections::HashSet;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::broker::BATCH;
use crate::celery::message::Address;
use crate::worker::delivery::batch::Landed;
use crate::worker::delivery::destinations::Destinations;
use crate::worker::delivery::outbox::Outbox;
use crate::worker::delivery::trial::Trial;
use crate::worker::delivery::way::Way;

/// Addresses tried at once; everybody's batch must never wait for a channel.
const TRIALS: usize = 4;
/// Publications in one batch: of most commands a reply and an event.
const PUBLICATIONS: usize = 2 * BATCH;

/// What is being confirmed.
#[derive(Default)]
pub(in crate::worker) struct InFlightBatches {
    under_way: FuturesUnordered<BoxFuture<'static, Landed>>,
    /// Addresses that are being tried among them.
    tried: HashSet<Address>,
}

impl InFlightBatches {
    /// Tells whether everybody's next batch may leave. While one is under way, what ends meanwhile gathers; two at once were
    /// slower, since each is smaller.
    pub(in crate::worker) fn is_clear(&self) -> bool {
        self.under_way.len() == self.tried.len()
    }

    /// Tells whether something of the outbox may leave now.
    pub(in crate::worker) fn may_launch(&self, outbox: &Outbox, destinations: &Destinations) -> bool {
        self.is_clear() && outbox.has_next() || self.due_trial(outbox, destinations).is_some()
    }

    /// Returns the addresses that are being tried.
    pub(in crate::worker) const fn tried(&self) -> &HashSet<Address> {
        &self.tried
    }

    /// Returns when the next address is to be tried.
    pub(in crate::worker) fn next_trial(&self, outbox: &Outbox, destinations: &Destinations) -> Option<Instant> {
        if self.tried.len() >= TRIALS {
            return None;
        }
        outbox.next_trial(destinations, &self.tried).map(|(at, _)| at)
    }

    fn due_trial(&self, outbox: &Outbox, destinations: &Destinations) -> Option<Address> {
        if self.tried.len() >= TRIALS {
            return None;
        }
        outbox.next_trial(destinations, &self.tried).filter(|(at, _)| *at <= Instant::now()).map(|(_, address)| address)
    }

    /// Sends the next batch, or the next trial, if one may leave.
    pub(in crate::worker) fn launch(&mut self, outbox: &mut Outbox, destinations: &Destinations, way: Way) {
        if self.is_clear() && outbox.has_next() {
            let (batch, publications) = outbox.take(PUBLICATIONS, way.events);
            let limit = way.session.patience();
            self.under_way.push(Box::pin(way.send(batch, publications, limit)));
        } else if let Some(address) = self.due_trial(outbox, destinations)
            && let Some(owed) = outbox.take_trial(&address)
        {
            let trial = Trial {
                fault: destinations.fault(&address),
                is_hopeless: destinations.is_hopeless(&address),
                address: address.clone(),
                owed,
            };
            self.tried.insert(address);
            self.under_way.push(Box::pin(trial.run(way)));
        }
    }

    /// Waits for a batch or a trial to be answered; `None` while nothing is under way.
    pub(in crate::worker) async fn land(&mut self) -> Option<Landed> {
        let landed = self.under_way.next().await?;
        if let Some(address) = &landed.trial {
            self.tried.remove(address);
        }
        Some(landed)
    }
}
