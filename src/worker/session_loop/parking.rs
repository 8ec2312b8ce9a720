//! Commands that are done and keep their slots: what they owe is parked, or the reason is told.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::SessionLoop;
use crate::broker::{BrokerSession, OpenSession};
use crate::telemetry::{Component, ComponentState, Parked};
use crate::worker::context::WorkerContext;
use crate::worker::delivery::deferred::Deferred;
use crate::worker::delivery::parked_consumer::ParkedConsumer;
use crate::worker::delivery::parking::{self, ParkingResult};
use crate::worker::signals::Stop;

/// How often it is told how many commands are held.
const REPORT: Duration = Duration::from_secs(1);
/// Names of queues that are told.
const NAMES: usize = 5;

/// What a session knows of parking.
pub(super) struct ParkingState {
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
        let patience = parking::patience(self.outbox.held().count(), self.consumer.window());
        // What is left at the end of a stop goes back to the broker and is done again.
        Some(if self.stop == Stop::No { patience } else { Duration::ZERO })
    }

    /// Parks what has waited for too long.
    pub(super) fn park_stalled(&mut self) {
        if self.parking.is_under_way || !self.outbox.has_apart() {
            return;
        }
        let Some(patience) = self.patience() else { return };
        let owed = self.outbox.take_parkable(&self.worker.destinations, patience, parking::BATCH);
        if !owed.is_empty() {
            self.parking.is_under_way = true;
            let (session, now) = (self.session.share(), self.worker.options.clock.now());
            self.deferred.push(Box::pin(async move { Deferred::Parked(parking::park(session, now, owed).await) }));
        }
    }

    /// Gives commands back of which something has waited for much too long.
    pub(super) fn give_back_overdue(&mut self) -> Result<(), String> {
        for pending in self.outbox.take_overdue(parking::LONGEST_HOLD) {
            let Some(ack_token) = &pending.ack_token else { continue };
            tracing::warn!(
                task_id = pending.id,
                "its queue has taken nothing for long, and nothing can be parked; the command goes back to its queue"
            );
            self.consumer.give_back(ack_token).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Goes on with commands whose publications were parked.
    pub(super) fn was_parked(&mut self, result: ParkingResult) -> Result<(), String> {
        let ParkingResult { parked, kept, refusal, lost } = result;
        self.parking.is_under_way = false;
        if !parked.is_empty() {
            self.worker.metrics.record_parked(Parked::Parked, parked.len() as u64);
            tracing::info!(parked = parked.len(), "parked what was not taken");
        }
        for (debt, address) in parked {
            self.worker.destinations.parked(&address);
            self.outbox.parked(&debt);
        }
        if let Some(reason) = refusal {
            tracing::warn!(reason, "cannot be parked; commands keep their slots");
            self.parking.rests = Some((Instant::now() + parking::REST, reason));
        }
        kept.into_iter().for_each(|owed| self.outbox.owe_again(owed));
        self.settle()?;
        lost.map_or(Ok(()), Err)
    }

    /// Says from time to time how many commands keep their slots, and why.
    pub(super) fn report_held(&mut self) {
        let held = self.outbox.held().count();
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
