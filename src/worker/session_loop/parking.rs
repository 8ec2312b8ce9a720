//! Commands that are done and keep their slots: what they owe is parked, or the reason is told.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::SessionLoop;
use super::deferred::Deferred;
use crate::broker::{BrokerSession, OpenSession};
use crate::celery::message::Message;
use crate::telemetry::{Component, ComponentState, Parked};
use crate::worker::context::WorkerContext;
use crate::worker::delivery::destinations::Fault;
use crate::worker::delivery::owed::{Debt, Owed};
use crate::worker::delivery::parked_consumer::{ParkedConsumer, Ticket};
use crate::worker::delivery::parking::{self, ParkingResult};
use crate::worker::delivery::unpark::{DeadCopies, unpark};
use crate::worker::signals::Stop;

/// How often it is told how many commands are held.
const REPORT: Duration = Duration::from_secs(1);
/// Names of queues that are told.
const NAMES: usize = 5;

/// What a session knows of parking.
pub(super) struct ParkingState {
    session: Arc<dyn BrokerSession>,
    pub(super) consumer: ParkedConsumer,
    /// The channel of what came back last.
    channel: u64,
    is_under_way: bool,
    /// Until then nothing is parked, for this reason.
    rests: Option<(Instant, String)>,
    /// Why something that came back could not be parked again. Nothing else is parked meanwhile: it would leave its step for
    /// a queue that has no bound.
    stuck: Option<String>,
    reported: Option<Instant>,
    is_ready: bool,
}

impl ParkingState {
    pub(super) fn new(session: &OpenSession, worker: &WorkerContext) -> Self {
        let WorkerContext { options, readiness, .. } = worker;
        Self {
            session: session.share(),
            consumer: ParkedConsumer::new(session.share(), options.parked_max_bytes, readiness.clone()),
            channel: 0,
            is_under_way: false,
            rests: None,
            stuck: None,
            reported: None,
            is_ready: false,
        }
    }

    /// Tells whether something can be parked now.
    pub(super) fn may_park(&mut self) -> bool {
        self.stuck.is_none() && self.may_park_again()
    }

    /// Tells whether what came back can be parked again now.
    fn may_park_again(&mut self) -> bool {
        self.rests.take_if(|(until, _)| *until <= Instant::now());
        self.session.is_parking_available() && self.rests.is_none() && self.consumer.is_open()
    }
}

impl SessionLoop<'_> {
    /// Returns how long something may be not taken before it is parked; `None` where it cannot be parked.
    pub(super) fn patience(&mut self) -> Option<Duration> {
        if !self.parking.may_park() {
            return None;
        }
        let patience = parking::patience(self.outbox.held().count(), self.slots());
        // What is left at the end of a stop goes back to the broker and is done again.
        Some(if self.stop == Stop::No { patience } else { Duration::ZERO })
    }

    /// Counts the deliveries that may be unsettled at once unless some of them only wait; 0 where there is no limit.
    pub(super) fn slots(&self) -> usize {
        let options = &self.worker.options;
        options.concurrency.saturating_mul(usize::from(options.prefetch_multiplier))
    }

    /// Parks what has waited for too long.
    pub(super) fn park_stalled(&mut self) {
        if self.parking.is_under_way || !self.outbox.has_apart() {
            return;
        }
        if self.parking.stuck.is_some() && !self.outbox.has_returned() {
            self.parking.stuck = None;
        }
        let patience = self.patience();
        if patience.is_none() && !self.parking.may_park_again() {
            return;
        }
        let tried = self.in_flight.tried();
        let parkable = self.outbox.take_parkable(&self.worker.destinations, tried, patience, parking::BATCH);
        if !parkable.is_empty() {
            self.parking.is_under_way = true;
            let (session, now) = (self.session.share(), self.worker.options.clock.now());
            self.deferred.push(Box::pin(async move { Deferred::Parked(parking::park(session, now, parkable).await) }));
        }
    }

    /// Gives commands back of which something has waited for much too long.
    pub(super) fn give_back_overdue(&mut self) -> Result<(), String> {
        for pending in self.outbox.take_overdue(parking::LONGEST_HOLD) {
            if pending.returned.is_some() {
                self.parking.consumer.give_back();
            }
            let Some(ack_token) = &pending.ack_token else { continue };
            tracing::warn!(
                task_id = pending.id,
                "its queue has taken nothing for long, and nothing can be parked; the command goes back to its queue"
            );
            if let Some(Err(error)) = pending.entry.map(|entry| self.worker.journal.given_back(entry)) {
                tracing::error!(task_id = pending.id, %error, "the answer cannot be read; the command may run again");
            }
            // Whoever is given it looks there.
            self.worker.commit_journal();
            self.consumer.give_back(ack_token).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Takes in publications that came back from their parking; each tries its address, alone at first.
    pub(super) fn came_back(&mut self, batch: Vec<(Ticket, Message)>) {
        let copies = self.dead_copies();
        if let Some((ticket, _)) = batch.first()
            && std::mem::replace(&mut self.parking.channel, ticket.channel()) != ticket.channel()
        {
            self.outbox.drop_returned();
        }
        for (ticket, message) in batch {
            let held = self.worker.budget.keep(message.body.len() as u64);
            let (pending, address) = unpark(ticket, &message, held, &copies);
            address.iter().for_each(|address| self.worker.destinations.doubt(address, Fault::Full));
            self.outbox.push(pending);
        }
    }

    /// Returns by what copies for the dead queue are made.
    pub(super) fn dead_copies(&self) -> DeadCopies {
        DeadCopies {
            node: self.worker.options.node.clone(),
            now: self.worker.options.clock.now(),
            frame_max: self.session.frame_max(),
        }
    }

    /// Keeps what was parked for too long as dead.
    pub(super) fn keep_aged_as_dead(&mut self) {
        let (now, max_age) = (self.worker.options.clock.now(), self.worker.options.parked_max_age);
        let aged = self.outbox.take_aged(&self.worker.destinations, self.in_flight.tried(), now, max_age);
        for Owed { debt, content } in aged {
            let copies = self.dead_copies();
            let words = "its queue took nothing for as long as anything is parked (parked_max_age_seconds)";
            let publication = content.publication();
            self.outbox.mend(&debt, |pending| copies.replace(pending, debt.role, Some(&publication), words));
        }
    }

    /// Goes on with commands whose publications were parked.
    pub(super) fn was_parked(&mut self, result: ParkingResult) -> Result<(), String> {
        let ParkingResult { parked, kept, refusal, backlog, lost } = result;
        let is_returned = |debt: &Debt| debt.is_returned && !debt.is_unparkable;
        if backlog.is_some() {
            self.parking.stuck = backlog;
        } else if kept.iter().any(|owed| is_returned(&owed.debt)) {
            self.parking.stuck.clone_from(&refusal);
        } else if parked.iter().any(|(debt, _)| is_returned(debt)) {
            self.parking.stuck = None;
        }
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
        let why = match self.parking.rests.as_ref().map(|(_, reason)| reason).or(self.parking.stuck.as_ref()) {
            Some(reason) => reason.as_str(),
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
