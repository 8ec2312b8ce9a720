//! What is on its way to the broker: one batch for everybody, and one trial for each of some addresses that take nothing.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::broker::{CHANNELS, Confirmation, PublishError};
use crate::celery::message::Address;
use crate::results::ResultBackend;
use crate::worker::delivery::batch::{Batch, Landed};
use crate::worker::delivery::destinations::Destinations;
use crate::worker::delivery::outbox::Outbox;
use crate::worker::delivery::trial::Trial;
use crate::worker::delivery::way::{EarlyBatch, Landing, SLOW, Way};

/// Addresses tried at once.
const TRIALS: usize = 4;
/// Publications in one batch, beside events. RabbitMQ stops reading a whole connection once 400 messages wait in one of its channels.
const PUBLICATIONS: usize = 384;
/// Everybody's batch never waits for a channel: beside it, trials and slow batches there are a probe and what is being parked.
const _: () = assert!(1 + TRIALS + SLOW_BATCHES + 2 <= CHANNELS);

/// Batches of which something is still not confirmed while others leave.
const SLOW_BATCHES: usize = 8;

/// What is being confirmed.
#[derive(Default)]
pub(in crate::worker) struct InFlightBatches {
    under_way: FuturesUnordered<BoxFuture<'static, Arrival>>,
    /// Everybody's batch is under way.
    is_busy: bool,
    slow: Vec<SlowBatch>,
    /// Addresses that are being tried, or that batches wait for that are slow.
    tried: HashSet<Address>,
    /// How many of these are being tried.
    trials: usize,
    /// A probe is under way.
    is_probing: bool,
    /// When anything was last confirmed.
    confirmed: Option<Instant>,
    /// When something was last confirmed that a queue has.
    routed: Option<Instant>,
}

/// A batch of which something is still waited for.
struct SlowBatch {
    /// When it was sent, which tells it from others.
    sent: Instant,
    /// Ends the wait.
    enough: Option<oneshot::Sender<()>>,
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

    /// Ends the wait for slow batches: what of them is not confirmed is parked.
    ///
    /// `patience` is for an address that is known to take nothing. Where only a probe was confirmed since, all queues may be slow, as
    /// on a disk that stands still, and what is parked then arrives twice; so that takes `longest`.
    pub(in crate::worker) fn cut_slow(&mut self, patience: Duration, longest: Duration) {
        let (confirmed, routed) = (self.confirmed, self.routed);
        for SlowBatch { sent, enough } in &mut self.slow {
            let since = |at: Option<Instant>| at.is_some_and(|at| at > *sent + SLOW);
            let is_enough =
                since(routed) && sent.elapsed() >= patience || since(confirmed) && sent.elapsed() >= longest;
            if let Some(enough) = enough.take_if(|_| is_enough) {
                // Where nobody listens, the batch arrives anyway.
                enough.send(()).unwrap_or_default();
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
                self.slow.push(SlowBatch { sent, enough: Some(enough) });
                self.tried.extend(landed.slow.iter().cloned());
                self.under_way.push(Box::pin(async move {
                    let (batch, answers) = rest.await;
                    Arrival::Slow(sent, batch, answers)
                }));
                if !std::mem::replace(&mut self.is_probing, true) {
                    self.under_way.push(Box::pin(async move { Arrival::Probe(probe.await) }));
                }
                // What it says of the broker is as old as the batch.
                return Some(landed);
            }
            Arrival::Slow(sent, batch, answers) => {
                self.slow.retain(|slow| slow.sent != sent);
                let landed = batch.landed(answers, results.is_over_broker(), self.is_broker_well(sent));
                self.tried.retain(|address| !landed.was_slow.contains(address));
                landed
            }
            Arrival::Probe(is_well) => {
                self.is_probing = false;
                self.confirmed = if is_well { Some(Instant::now()) } else { self.confirmed };
                return Some(Landed::default());
            }
            Arrival::Trial(landed) => {
                self.trials -= 1;
                self.tried.retain(|address| landed.trial.as_ref() != Some(address));
                landed
            }
        };
        let now = Some(Instant::now());
        let [routed, returned, ..] = landed.counts;
        self.routed = if routed > 0 { now } else { self.routed };
        self.confirmed = if routed + returned > 0 { now } else { self.confirmed };
        Some(landed)
    }

    /// Tells whether the broker confirmed something when what was sent then was known to be slow.
    fn is_broker_well(&self, sent: Instant) -> bool {
        self.confirmed.is_some_and(|confirmed| confirmed > sent + SLOW)
    }
}
