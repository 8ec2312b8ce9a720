//! What is on its way to the broker: one batch for everybody, and one trial for each of some addresses that take nothing.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::broker::{BATCH, Confirmation, PublishError};
use crate::celery::message::Address;
use crate::results::ResultBackend;
use crate::worker::delivery::batch::{Batch, Landed};
use crate::worker::delivery::destinations::Destinations;
use crate::worker::delivery::outbox::Outbox;
use crate::worker::delivery::trial::Trial;
use crate::worker::delivery::way::{EarlyBatch, Landing, SLOW, Way};

/// Addresses tried at once; everybody's batch must never wait for a channel.
const TRIALS: usize = 4;
/// Publications in one batch: of most commands a reply and an event.
const PUBLICATIONS: usize = 2 * BATCH;

/// Batches of which something is still not confirmed while others leave.
const SLOW_BATCHES: usize = 16;

/// What is being confirmed.
#[derive(Default)]
pub(in crate::worker) struct InFlightBatches {
    under_way: FuturesUnordered<BoxFuture<'static, Arrival>>,
    /// Everybody's batch is under way.
    is_busy: bool,
    /// What ends the wait for a slow batch, and when that was sent.
    slow: Vec<(Instant, oneshot::Sender<()>)>,
    /// Addresses that are being tried, or that batches wait for that are slow.
    tried: HashSet<Address>,
    /// How many of these are being tried.
    trials: usize,
    /// When something was last confirmed.
    confirmed: Option<Instant>,
}

/// What arrives from the broker.
enum Arrival {
    Batch(Instant, Landing),
    /// What a slow batch was waiting for.
    Slow(Instant, Batch, Vec<Result<Confirmation, PublishError>>),
    /// Whether the broker confirms what it is sent.
    Probe(bool),
    Trial(Landed),
}

impl InFlightBatches {
    /// Tells whether everybody's next batch may leave. While one is under way, what ends meanwhile gathers; two at once were
    /// slower, since each is smaller.
    pub(in crate::worker) const fn is_clear(&self) -> bool {
        !self.is_busy && self.slow.len() < SLOW_BATCHES
    }

    /// Tells whether nothing but trials is under way.
    pub(in crate::worker) const fn is_idle(&self) -> bool {
        !self.is_busy && self.slow.is_empty()
    }

    /// Tells whether a batch is slow.
    pub(in crate::worker) const fn has_slow(&self) -> bool {
        !self.slow.is_empty()
    }

    /// Tells whether something of the outbox may leave now.
    pub(in crate::worker) fn may_launch(&self, outbox: &Outbox, destinations: &Destinations) -> bool {
        self.is_clear() && outbox.has_next() || self.due_trial(outbox, destinations).is_some()
    }

    /// Returns the addresses that are being tried or waited for.
    pub(in crate::worker) const fn tried(&self) -> &HashSet<Address> {
        &self.tried
    }

    /// Returns when the next address is to be tried.
    pub(in crate::worker) fn next_trial(&self, outbox: &Outbox, destinations: &Destinations) -> Option<Instant> {
        if self.trials >= TRIALS {
            return None;
        }
        outbox.next_trial(destinations, &self.tried).map(|(at, _)| at)
    }

    fn due_trial(&self, outbox: &Outbox, destinations: &Destinations) -> Option<Address> {
        if self.trials >= TRIALS {
            return None;
        }
        outbox.next_trial(destinations, &self.tried).filter(|(at, _)| *at <= Instant::now()).map(|(_, address)| address)
    }

    /// Sends the next batch, or the next trial, if one may leave.
    pub(in crate::worker) fn launch(&mut self, outbox: &mut Outbox, destinations: &Destinations, way: Way) {
        if self.is_clear() && outbox.has_next() {
            let (batch, publications) = outbox.take(PUBLICATIONS, way.events);
            let sent = Instant::now();
            self.is_busy = true;
            self.under_way.push(Box::pin(async move { Arrival::Batch(sent, way.send(batch, publications).await) }));
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
            self.trials += 1;
            self.under_way.push(Box::pin(async move { Arrival::Trial(trial.run(way).await) }));
        }
    }

    /// Ends the wait for slow batches that were sent so long ago, while the broker confirms others: what of them is not confirmed is
    /// parked.
    pub(in crate::worker) fn cut_slow(&mut self, patience: Duration) {
        for (sent, enough) in &mut self.slow {
            let is_broker_well = self.confirmed.is_some_and(|confirmed| confirmed > *sent + SLOW);
            if is_broker_well && sent.elapsed() >= patience && !enough.is_closed() {
                // It can be sent only once. Where nobody listens, the batch arrives anyway.
                let (spent, _) = oneshot::channel();
                std::mem::replace(enough, spent).send(()).unwrap_or_default();
            }
        }
    }

    /// Waits for a batch or a trial to be answered; `None` while nothing is under way.
    pub(in crate::worker) async fn land(&mut self, results: &dyn ResultBackend) -> Option<Landed> {
        let arrival = self.under_way.next().await?;
        let landed = match arrival {
            Arrival::Batch(sent, Landing::Whole(batch, answers)) => {
                self.is_busy = false;
                batch.landed(answers, results.is_over_broker(), self.is_broker_well(sent))
            }
            Arrival::Batch(sent, Landing::Early(EarlyBatch { landed, rest, enough, probe })) => {
                self.is_busy = false;
                self.slow.push((sent, enough));
                self.tried.extend(landed.slow.iter().cloned());
                self.under_way.push(Box::pin(async move {
                    let (batch, answers) = rest.await;
                    Arrival::Slow(sent, batch, answers)
                }));
                self.under_way.push(Box::pin(async move { Arrival::Probe(probe.await) }));
                // What it says of the broker is as old as the batch.
                return Some(landed);
            }
            Arrival::Slow(sent, batch, answers) => {
                // Its wait is over: nobody listens to its end any more.
                self.slow.retain(|(_, enough)| !enough.is_closed());
                let landed = batch.landed(answers, results.is_over_broker(), self.is_broker_well(sent));
                self.tried.retain(|address| !landed.was_slow.contains(address));
                landed
            }
            Arrival::Probe(is_well) => {
                self.confirmed = if is_well { Some(Instant::now()) } else { self.confirmed };
                return Some(Landed::default());
            }
            Arrival::Trial(landed) => {
                self.trials -= 1;
                self.tried.retain(|address| landed.trial.as_ref() != Some(address));
                landed
            }
        };
        if landed.counts[0] + landed.counts[1] > 0 {
            self.confirmed = Some(Instant::now());
        }
        Some(landed)
    }

    /// Tells whether the broker confirmed something when what was sent then was known to be slow.
    fn is_broker_well(&self, sent: Instant) -> bool {
        self.confirmed.is_some_and(|confirmed| confirmed > sent + SLOW)
    }
}
