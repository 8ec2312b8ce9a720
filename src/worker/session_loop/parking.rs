//! Commands that are done and keep their slots: what they owe is parked, or the reason is told.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::SessionLoop;
use crate::broker::{BrokerSession, OpenSession};
use crate::telemetry::{Component, ComponentState, Parked};
use crate::worker::context::WorkerContext;
use crate::worker::delivery::deferred::Deferred;
use crate::worker::delivery::held::HeldCommands;
use crate::worker::delivery::parked_consumer::ParkedConsumer;
use crate::worker::delivery::parking::{self, ParkingResult};
use crate::worker::delivery::pending_ack::PendingAck;
use crate::worker::signals::Stop;

/// How often it is told how many commands are held.
const REPORT: Duration = Duration::from_secs(1);
/// Names of queues that are told.
const NAMES: usize = 5;

/// What a session knows of parking.
pub(super) struct ParkingState {
    pub(super) held: HeldCommands,
    session: Arc<dyn BrokerSession>,
    pub(super) consumer: ParkedConsumer,
    is_under_way: bool,
    /// Until then nothing is parked, for this reason.
    rests: Option<(Instant, String)>,
    reported: Option<Instant>,
    is_ready: bool,
}

impl ParkingState {
    pub(super) fn new(session: &OpenSession, worker: &WorkerContext) -> Self {
        let WorkerContext { options, budget, metrics, readiness, .. } = worker;
        Self {
            held: HeldCommands::default(),
            session: session.share(),
            consumer: ParkedConsumer::begin(session, options, budget, metrics, readiness),
            is_under_way: false,
            rests: None,
            reported: None,
            is_ready: false,
        }
    }

    /// Tells whether something can be parked now.
    pub(super) fn may_park(&mut self) -> bool {
        self.rests.take_if(|(until, _)| *until <= Instant::now());
        self.session.is_parking_available() && self.rests.is_none() && !self.consumer.is_stuck()
    }
}

impl SessionLoop<'_> {
    /// Returns how long something may be not taken before it is parked; `None` where it cannot be parked.
    pub(super) fn patience(&mut self) -> Option<Duration> {
        if !self.parking.may_park() {
            return None;
        }
        let patience = parking::patience(self.parking.held.count(), self.consumer.window());
        // What is left at the end of a stop goes back to the broker and is done again.
        Some(if self.stop == Stop::No { patience } else { Duration::ZERO })
    }

    /// Parks what has waited for too long, and gives back what has waited for much too long.
    pub(super) fn park_stalled(&mut self) -> Result<(), String> {
        self.outbox.stall(&self.parking.held);
        if let Some(patience) = self.patience()
            && !self.parking.is_under_way
        {
            let owing = self.outbox.take_stalled(&mut self.worker.destinations, patience, parking::BATCH);
            if !owing.is_empty() {
                self.parking.is_under_way = true;
                let (session, now) = (self.session.share(), self.worker.options.clock.now());
                self.deferred.push(Box::pin(async move { Deferred::Parked(parking::park(session, now, owing).await) }));
            }
        }
        for pending in self.outbox.take_older(parking::LONGEST_HOLD) {
            let Some(ack_token) = &pending.ack_token else { continue };
            tracing::warn!(
                task_id = pending.id,
                "its queue has taken nothing for long, and nothing can be parked; the command goes back to its queue"
            );
            self.consumer.give_back(ack_token).map_err(|error| error.to_string())?;
        }
        self.report_held();
        Ok(())
    }

    /// Goes on with commands whose publications were parked.
    pub(super) fn was_parked(&mut self, result: ParkingResult) -> Result<(), String> {
        let ParkingResult { pending_acks, parked, addresses, refusal, lost } = result;
        self.parking.is_under_way = false;
        self.worker.metrics.record_parked(Parked::Parked, parked);
        if parked > 0 {
            tracing::info!(parked, commands = pending_acks.len(), "parked what was not taken");
        }
        addresses.into_iter().for_each(|address| self.worker.destinations.parked(address));
        if let Some(reason) = refusal {
            tracing::warn!(reason, "cannot be parked; commands keep their slots");
            self.parking.rests = Some((Instant::now() + parking::REST, reason));
        }
        let (done, rest): (Vec<PendingAck>, Vec<PendingAck>) = pending_acks.into_iter().partition(PendingAck::is_done);
        rest.into_iter().for_each(|pending| self.outbox.push(pending));
        self.settle(done)?;
        lost.map_or(Ok(()), Err)
    }

    /// Says from time to time how many commands keep their slots, and why.
    fn report_held(&mut self) {
        let held = self.parking.held.count();
        if held == 0 && self.parking.is_ready || self.parking.reported.is_some_and(|last| last.elapsed() < REPORT) {
            return;
        }
        self.parking.reported = Some(Instant::now());
        self.worker.metrics.record_held(held);
        let slots = self.consumer.window();
        let may_park = self.parking.may_park();
        self.parking.is_ready = held == 0 || may_park;
        if self.parking.is_ready {
            self.worker.readiness.set(Component::Delivery, ComponentState::Ready);
            // Those that are held are counted until there are none.
            self.parking.is_ready = held == 0;
            return;
        }
        let names = self.worker.destinations.names();
        let more = if names.len() > NAMES { " and others" } else { "" };
        let names = names.into_iter().take(NAMES).collect::<Vec<_>>().join(", ");
        let why = match &self.parking.rests {
            Some((_, reason)) => reason.as_str(),
            None => "`parking` says why",
        };
        let reason = format!(
            "{held} commands are done and keep their slots: '{names}'{more} takes nothing, and nothing can be parked: {why}"
        );
        let is_full = slots > 0 && held >= slots;
        let state = if is_full {
            ComponentState::Unready(format!("no slot is left: {reason}"))
        } else {
            ComponentState::Degraded(reason)
        };
        self.worker.readiness.set(Component::Delivery, state);
    }
}
