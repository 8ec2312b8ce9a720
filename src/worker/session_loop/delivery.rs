//! What finished commands owe: sent, confirmed, acknowledged.

use tokio::time::{Duration, Instant};

use super::{HUSH, SessionLoop};
use crate::telemetry;
use crate::worker::delivery::batch::Landed;
use crate::worker::delivery::outbox::DeliveryReport;
use crate::worker::delivery::owed::Content;
use crate::worker::delivery::parking;
use crate::worker::delivery::pending_ack::PendingAck;
use crate::worker::delivery::refusal;
use crate::worker::delivery::role::own_queue;
use crate::worker::delivery::way::Way;
use crate::worker::signals::Stop;

/// How often it is looked what waits for too long.
const LOOK: Duration = Duration::from_millis(100);

impl SessionLoop<'_> {
    /// Sends what is owed, as far as it may leave, and acknowledges what owes nothing more.
    pub(super) fn send(&mut self) -> Result<(), String> {
        self.outbox.divert(&self.worker.destinations);
        let events_on = self.worker.options.events && self.worker.own_queues.takes_events();
        let way = Way {
            session: self.session.share(),
            results: std::sync::Arc::clone(&self.worker.options.results),
            queue_type: self.worker.options.queue_type,
            events: if events_on { self.worker.options.events_max_batch } else { 0 },
            may_park: self.parking.may_park(),
            cannot_park: self.parking.consumer.has_failed(),
        };
        while self.in_flight.may_launch(&self.outbox, &self.worker.destinations) {
            // The answer stands in the journal before its reply is published.
            self.worker.commit_journal();
            self.in_flight.launch(&mut self.outbox, &self.worker.destinations, way.clone());
        }
        // After the trials have left, which are taken from what waits.
        if self.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            self.looked = Some(Instant::now());
            self.look_at_delays()?;
        }
        self.settle()
    }

    /// Returns when the loop is to go on though nothing happened.
    pub(super) fn next_wake(&self) -> Instant {
        let now = Instant::now();
        let look = (self.outbox.has_apart() || self.in_flight.has_slow()).then(|| self.looked.unwrap_or(now) + LOOK);
        let trial = self.in_flight.next_trial(&self.outbox, &self.worker.destinations);
        [Some(now + HUSH), look, trial].into_iter().flatten().min().unwrap_or(now)
    }

    /// Gives up, gives back and forgets what has waited for too long.
    fn look_at_delays(&mut self) -> Result<(), String> {
        for address in self.worker.destinations.expire() {
            own_queue(&address).into_iter().for_each(|queue| self.worker.own_queues.forget(queue));
        }
        for why in self.outbox.give_up(&self.worker.destinations) {
            self.worker.metrics.record_given_up(why);
        }
        self.give_back_overdue()?;
        if let Some(patience) = self.patience() {
            let longest = if self.stop == Stop::No { parking::PATIENCE } else { patience };
            self.in_flight.cut_slow(patience, longest);
        }
        self.keep_aged_as_dead();
        self.park_stalled();
        self.report_held();
        Ok(())
    }

    /// Takes in what came of a batch or of a trial.
    pub(super) fn landed(&mut self, landed: Landed) -> Result<(), String> {
        let is_unheard = self.worker.own_queues.is_unheard();
        let report = self.outbox.land(landed, &mut self.worker.destinations, is_unheard);
        let DeliveryReport { refused, lost, published, unheard, counts, not_taken, .. } = &report;
        self.worker.count_publishes(*counts);
        self.worker.metrics.record_events(telemetry::Event::Published, *published);
        self.worker.metrics.record_events(telemetry::Event::Undeliverable, *unheard);
        if let Some((count, task_id, reason)) = not_taken {
            tracing::warn!(task_id, reason, publications = count, "held back");
        }
        for (debt, words, content) in refused {
            let copies = self.dead_copies();
            self.outbox.mend(debt, |pending| match &pending.returned {
                None => refusal::take(&self.policy.settlement, pending, debt, words),
                Some(_) => {
                    let publication = content.as_ref().map(Content::publication);
                    copies.replace(pending, debt.role, publication.as_ref(), words);
                }
            });
        }
        let lost = lost.clone();
        self.note_own_queues(report);
        self.settle()?;
        lost.map_or(Ok(()), Err)
    }

    /// Notes what the broker's words say of our own queues.
    fn note_own_queues(&mut self, report: DeliveryReport) {
        let DeliveryReport { published, has_no_listener, events_refused, held_back, away, closed, .. } = report;
        let own_queues = &mut self.worker.own_queues;
        if published > 0 {
            own_queues.heard();
        }
        closed.iter().filter_map(own_queue).for_each(|queue| own_queues.taken(queue));
        held_back.iter().for_each(|(queue, words)| own_queues.hold_back(*queue, words));
        if let Some((queue, words)) = away {
            own_queues.away(queue, &words);
        }
        if has_no_listener {
            own_queues.unheard();
        }
        if let Some(words) = events_refused {
            own_queues.refuse_events(&words);
        }
        self.look_after_queues();
    }

    /// Acknowledges the commands that owe nothing more.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        let done = self.outbox.take_done();
        if done.is_empty() {
            return Ok(());
        }
        let mut ack_tokens = Vec::with_capacity(done.len());
        let mut entries = Vec::with_capacity(done.len());
        for PendingAck { ack_token, entry, returned, .. } in done {
            if let Some(returned) = returned {
                self.parking.consumer.acknowledge(&returned.ticket);
                returned.end.into_iter().for_each(|end| self.worker.metrics.record_parked(end, 1));
            }
            if let Some(ack_token) = ack_token {
                ack_tokens.push(ack_token);
                entries.extend(entry);
            }
        }
        self.consumer.settle(ack_tokens).map_err(|error| error.to_string())?;
        entries.into_iter().for_each(|entry| self.worker.journal.settled(entry));
        Ok(())
    }
}
