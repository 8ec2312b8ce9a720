//! Takes parked publications when their wait is over, tries their addresses again, and parks anew what is not taken.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::broker::{
    BrokerSession, Confirmation, DEAD_QUEUE, Look, METRICS_QUEUE, OpenSession, PARKED_QUEUE, ParkedDelivery,
    ParkedSource, ParkedToken, Parking, Presence, PublishError, QueueSpec, QueueType,
};
use crate::celery::error::Exception;
use crate::celery::message::{Address, Message, Origin, Publication};
use crate::celery::{Death, dead};
use crate::commands::{Budget, Held};
use crate::telemetry::{Component, ComponentState, Event, GivenUp, Metrics, Parked, Readiness};
use crate::worker::delivery::envelope::Envelope;
use crate::worker::delivery::outbox::ANSWER_PATIENCE;
use crate::worker::delivery::role::Role;
use crate::worker::{WallClock, WorkerOptions};

/// Publications taken and not acknowledged. Each is in memory, and may be as large as a message can be.
const PREFETCH: u16 = 8;
/// How long the queues wait to be looked at again, and what no queue takes waits to be parked again.
const AGAIN: Duration = Duration::from_secs(5);
/// How long an address is not tried that refused: what comes back meanwhile is parked anew.
const REFUSED: Duration = Duration::from_secs(1);
/// The same for one that neither took nor refused, since each try waits until it is clear, and may have been taken.
const SILENT: Duration = Duration::from_secs(60);
/// How long publications are kept that no queue takes; then they go back to [`PARKED_QUEUE`]. RabbitMQ allows 30 minutes.
const LONGEST: Duration = Duration::from_secs(600);
/// How long the end waits for what is being tried.
const FAREWELL: Duration = Duration::from_secs(2);
/// The reason of dead copies of publications that could not be delivered.
const UNDELIVERABLE: &str = "undeliverable";

/// The task that takes what comes back. Dropping it ends the task; what was not acknowledged comes back again.
#[derive(Debug)]
pub(in crate::worker) struct ParkedConsumer {
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
    is_stuck: Arc<AtomicBool>,
}

impl Drop for ParkedConsumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ParkedConsumer {
    /// Begins to take what comes back.
    pub(in crate::worker) fn begin(
        session: &OpenSession,
        options: &WorkerOptions,
        budget: &Budget,
        metrics: &Metrics,
        readiness: &Readiness,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let is_stuck = Arc::new(AtomicBool::new(true));
        let courier = Courier {
            session: session.share(),
            node: options.node.clone(),
            clock: options.clock,
            queue_type: options.queue_type,
            max_bytes: options.parked_max_bytes,
            max_age: options.parked_max_age,
            budget: budget.clone(),
            metrics: metrics.clone(),
            readiness: readiness.clone(),
            refusing: HashMap::new(),
            is_stuck: Arc::clone(&is_stuck),
            stopped,
        };
        Self { task: tokio::spawn(courier.run()), stop, is_stuck }
    }

    /// Tells whether nothing more may be parked: something that came back can be parked nowhere, or nothing can be taken back.
    pub(in crate::worker) fn is_stuck(&self) -> bool {
        self.is_stuck.load(Ordering::Relaxed)
    }

    /// Ends the task after what is being tried.
    pub(in crate::worker) async fn stop(&mut self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(FAREWELL, &mut self.task).await.is_err() {
            tracing::debug!("parked publications were being tried; they come back");
        }
    }
}

/// What became of one publication that was tried.
#[derive(Clone, Debug)]
enum Fate {
    Delivered,
    /// Nobody wants it.
    Unheard,
    NotTaken(GivenUp, String),
    /// The broker refuses it for good, in its words.
    Refused(String),
}

/// A publication under way.
#[derive(Debug)]
struct Parcel {
    envelope: Envelope,
    ack_token: ParkedToken,
    _held: Held,
}

/// What must be confirmed before a publication that came back is acknowledged.
#[derive(Debug)]
struct Move {
    publication: Publication,
    /// Where it goes when it is not taken there.
    otherwise: Publication,
    ack_token: ParkedToken,
    is_dead: bool,
    _held: Held,
}

struct Courier {
    session: Arc<dyn BrokerSession>,
    node: String,
    clock: WallClock,
    queue_type: QueueType,
    max_bytes: u64,
    max_age: Duration,
    budget: Budget,
    metrics: Metrics,
    readiness: Readiness,
    /// Addresses that are not tried until then, with the reason.
    refusing: HashMap<Address, (Instant, GivenUp, String)>,
    is_stuck: Arc<AtomicBool>,
    stopped: watch::Receiver<bool>,
}

impl Courier {
    async fn run(mut self) {
        while !*self.stopped.borrow() {
            match self.serve().await {
                Ok(()) => {}
                Err(Interruption::Lost) => return,
                Err(Interruption::Unavailable(reason)) => {
                    // What nobody takes back must not be parked.
                    self.is_stuck.store(true, Ordering::Relaxed);
                    let reason = format!(
                        "{reason}; what commands owe to full or missing queues is not parked, so these commands keep their slots"
                    );
                    self.readiness.set(Component::Parking, ComponentState::Degraded(reason));
                }
            }
            let mut stopped = self.stopped.clone();
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
            }
        }
    }

    /// Takes what comes back until the worker stops, or something is in the way.
    async fn serve(&mut self) -> Result<(), Interruption> {
        match self.session.ensure_parking(self.max_bytes).await {
            Ok(Presence::Present | Presence::Created) => {}
            Ok(Presence::Down(words) | Presence::Denied(words)) => return Err(Interruption::Unavailable(words)),
            Err(error) => return Err(Interruption::Unavailable(error.to_string())),
        }
        let consuming = self.session.consume_parked(PREFETCH).await;
        let mut deliveries = consuming.map_err(|error| Interruption::Unavailable(error.to_string()))?;
        self.is_stuck.store(false, Ordering::Relaxed);
        self.readiness.set(Component::Parking, ComponentState::Ready);
        let mut stopped = self.stopped.clone();
        loop {
            let batch = tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
                batch = deliveries.next() => batch,
            };
            let batch = batch.map_err(|end| Interruption::Unavailable(format!("{PARKED_QUEUE}: {end:?}")))?;
            self.deliver(&*deliveries, batch).await?;
        }
    }

    /// Tries all publications of a batch, each address on its own.
    async fn deliver(&mut self, deliveries: &dyn ParkedSource, batch: Vec<ParkedDelivery>) -> Result<(), Interruption> {
        let now = self.clock.now();
        let mut moves = Vec::new();
        let mut groups: HashMap<Address, Vec<Parcel>> = HashMap::new();
        for ParkedDelivery { message, ack_token } in batch {
            let held = self.budget.keep(message.body.len() as u64);
            match Envelope::open(&message, now) {
                Ok(envelope) => {
                    let parcel = Parcel { envelope, ack_token, _held: held };
                    groups.entry(parcel.envelope.publication.address.clone()).or_default().push(parcel);
                }
                Err(why) => {
                    tracing::error!(why, queue = DEAD_QUEUE, "a parked publication cannot be read");
                    moves.push(self.unreadable(message, &why, ack_token, held));
                }
            }
        }
        self.refusing.retain(|_, (until, ..)| *until > Instant::now());
        let tries = groups.into_iter().map(|(address, parcels)| self.deliver_to(address, parcels));
        for tried in join_all(tries).await {
            let (address, parcels) = tried?;
            for (parcel, fate) in parcels {
                self.note(&address, &fate);
                match self.decide(parcel, fate, now) {
                    Next::Over(ack_token) => deliveries.acknowledge(&ack_token),
                    Next::Moves(next) => moves.push(*next),
                }
            }
        }
        self.carry_out(deliveries, moves).await
    }

    /// Tries an address with one publication, and with the others once that was taken.
    async fn deliver_to(
        &self,
        address: Address,
        parcels: Vec<Parcel>,
    ) -> Result<(Address, Vec<(Parcel, Fate)>), Interruption> {
        if let Some((_, why, words)) = self.refusing.get(&address) {
            let fate = Fate::NotTaken(*why, words.clone());
            return Ok((address, parcels.into_iter().map(|parcel| (parcel, fate.clone())).collect()));
        }
        let mut tried = Vec::with_capacity(parcels.len());
        let mut parcels = parcels.into_iter();
        while let Some(parcel) = parcels.next() {
            let fate = self.attempt(&parcel.envelope).await?;
            let is_refusing = matches!(fate, Fate::NotTaken(..));
            tried.push((parcel, fate.clone()));
            if is_refusing {
                tried.extend(parcels.by_ref().map(|parcel| (parcel, fate.clone())));
            }
        }
        Ok((address, tried))
    }

    async fn attempt(&self, envelope: &Envelope) -> Result<Fate, Interruption> {
        let fate = self.publish(envelope).await?;
        let Some(returned) = fate else {
            return Ok(match envelope.role {
                // Nobody waits for these.
                Role::Reply | Role::Rest | Role::Notice => Fate::Delivered,
                Role::Event => match self.session.look(METRICS_QUEUE).await {
                    Ok(Look::Down(words)) => Fate::NotTaken(GivenUp::Full, words),
                    Ok(_) => Fate::Unheard,
                    Err(error) => Fate::NotTaken(GivenUp::Full, error.to_string()),
                },
                Role::Dead | Role::FollowUp | Role::Park => {
                    let words = "no queue is there".to_owned();
                    let Address { exchange, routing_key } = &envelope.publication.address;
                    if !exchange.is_empty() {
                        return Ok(Fate::NotTaken(GivenUp::Full, words));
                    }
                    let made =
                        self.session.ensure_queue(&QueueSpec::durable(routing_key.as_str(), self.queue_type)).await;
                    match made {
                        Ok(Presence::Created | Presence::Present) => {
                            self.publish(envelope).await?.unwrap_or(Fate::NotTaken(GivenUp::Full, words))
                        }
                        Ok(Presence::Down(words) | Presence::Denied(words)) => Fate::NotTaken(GivenUp::Full, words),
                        Err(error) => Fate::NotTaken(GivenUp::Full, error.to_string()),
                    }
                }
            });
        };
        Ok(returned)
    }

    /// Publishes once; `None` where it came back, since no queue is there.
    async fn publish(&self, envelope: &Envelope) -> Result<Option<Fate>, Interruption> {
        Ok(
            match self
                .session
                .publish_within(self.session.patience(), vec![envelope.publication.clone()], true)
                .await
                .pop()
            {
                Some(Ok(Confirmation::Routed)) => Some(Fate::Delivered),
                Some(Ok(Confirmation::Returned { .. })) => None,
                Some(Err(PublishError::Nacked(_))) => {
                    Some(Fate::NotTaken(GivenUp::Full, "its queue refuses it; is it full?".to_owned()))
                }
                Some(Err(PublishError::Unconfirmed(_))) => {
                    Some(Fate::NotTaken(GivenUp::Silent, "its queue says neither yes nor no".to_owned()))
                }
                Some(Err(PublishError::Refused { code, text })) => Some(Fate::Refused(format!("{code} {text}"))),
                Some(Err(PublishError::Lost(_))) | None => return Err(Interruption::Lost),
            },
        )
    }

    /// Remembers that an address took nothing.
    fn note(&mut self, address: &Address, fate: &Fate) {
        if let Fate::NotTaken(why, words) = fate {
            let rest = if *why == GivenUp::Silent { SILENT } else { REFUSED };
            self.refusing.entry(address.clone()).or_insert_with(|| (Instant::now() + rest, *why, words.clone()));
        }
    }

    /// Decides what is done with a publication that was tried, and counts what is over.
    fn decide(&self, parcel: Parcel, fate: Fate, now: Timestamp) -> Next {
        let Parcel { mut envelope, ack_token, _held } = parcel;
        let age = Duration::try_from(now.duration_since(envelope.since)).unwrap_or_default();
        let is_answer = envelope.role.is_answer();
        let queue = envelope.publication.address.routing_key.clone();
        let (task_id, role) = (envelope.task_id.as_deref(), envelope.role);
        let words = match fate {
            Fate::Delivered => {
                self.metrics.record_parked(Parked::Delivered, 1);
                if role == Role::Event {
                    self.metrics.record_events(Event::Published, 1);
                }
                return Next::Over(ack_token);
            }
            Fate::Unheard => {
                self.metrics.record_parked(Parked::GivenUp, 1);
                self.metrics.record_events(Event::Undeliverable, 1);
                return Next::Over(ack_token);
            }
            Fate::NotTaken(why, words) if is_answer && age >= ANSWER_PATIENCE => {
                let seconds = age.as_secs();
                tracing::error!(task_id, ?role, queue, seconds, words, "answer given up");
                self.metrics.record_given_up(why);
                self.metrics.record_parked(Parked::GivenUp, 1);
                return Next::Over(ack_token);
            }
            Fate::Refused(words) if is_answer => {
                tracing::error!(task_id, ?role, queue, words, "answer given up: the broker refuses it");
                self.metrics.record_parked(Parked::GivenUp, 1);
                return Next::Over(ack_token);
            }
            Fate::Refused(words) if role != Role::Dead => words,
            Fate::NotTaken(_, words) if role != Role::Dead && !is_answer && age >= self.max_age => words,
            Fate::NotTaken(..) | Fate::Refused(_) => {
                // An answer has no time for longer waits.
                envelope.step = if is_answer { 0 } else { envelope.step.saturating_add(1) };
                let again = again(&envelope);
                return Next::Moves(Box::new(Move {
                    otherwise: again.clone(),
                    publication: again,
                    ack_token,
                    is_dead: false,
                    _held,
                }));
            }
        };
        tracing::error!(task_id, ?role, queue, words, kept = DEAD_QUEUE, "a parked publication cannot be delivered");
        let Address { exchange, routing_key } = envelope.publication.address.clone();
        let origin = Origin { queue, exchange, routing_key, redelivered: false };
        let copy = self.dead(&envelope.publication.message, &origin, &words);
        envelope.step = usize::MAX;
        let otherwise = again(&envelope);
        Next::Moves(Box::new(Move { publication: copy, otherwise, ack_token, is_dead: true, _held }))
    }

    fn unreadable(&self, message: Message, why: &str, ack_token: ParkedToken, held: Held) -> Move {
        let origin = Origin { queue: PARKED_QUEUE.to_owned(), ..Origin::default() };
        let publication = self.dead(&message, &origin, why);
        let otherwise = Publication { address: Parking::address(usize::MAX), message };
        Move { publication, otherwise, ack_token, is_dead: true, _held: held }
    }

    fn dead(&self, message: &Message, origin: &Origin, words: &str) -> Publication {
        let exception = Exception::custom("kombu.exceptions", "OperationalError", vec![words.to_owned().into()]);
        let death = Death { reason: UNDELIVERABLE, exception: &exception, at: self.clock.now(), worker: &self.node };
        dead(message, origin, &death, DEAD_QUEUE, self.session.frame_max())
    }

    /// Publishes what is parked anew or kept as dead, and acknowledges what is confirmed. What no queue takes is tried again
    /// until it is taken.
    async fn carry_out(&self, deliveries: &dyn ParkedSource, mut moves: Vec<Move>) -> Result<(), Interruption> {
        let began = Instant::now();
        let mut stopped = self.stopped.clone();
        while !moves.is_empty() {
            let publications = moves.iter().map(|next| next.publication.clone()).collect();
            let answers = self.session.publish_within(self.session.patience(), publications, true).await;
            let mut rest = Vec::new();
            let mut why = None;
            for (mut next, answer) in std::mem::take(&mut moves).into_iter().zip(answers) {
                match answer {
                    Ok(Confirmation::Routed) => {
                        if next.is_dead {
                            self.metrics.record_parked(Parked::Undeliverable, 1);
                        }
                        deliveries.acknowledge(&next.ack_token);
                        continue;
                    }
                    Err(PublishError::Lost(_)) => return Err(Interruption::Lost),
                    Ok(Confirmation::Returned { .. }) => why = Some("a queue is missing".to_owned()),
                    Err(fault) => why = Some(fault.to_string()),
                }
                if std::mem::take(&mut next.is_dead) {
                    next.publication = next.otherwise.clone();
                } else {
                    self.is_stuck.store(true, Ordering::Relaxed);
                }
                rest.push(next);
            }
            moves = rest;
            if !self.is_stuck.load(Ordering::Relaxed) || moves.is_empty() {
                continue;
            }
            let queue = moves.first().map(|next| next.publication.address.routing_key.as_str()).unwrap_or_default();
            let why = why.unwrap_or_default();
            let reason =
                format!("{queue} takes nothing more ({why}): nothing more is parked, and commands keep their slots");
            self.readiness.set(Component::Parking, ComponentState::Degraded(reason));
            if began.elapsed() >= LONGEST {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
            }
        }
        if self.is_stuck.swap(false, Ordering::Relaxed) {
            self.readiness.set(Component::Parking, ComponentState::Ready);
        }
        Ok(())
    }
}

fn again(envelope: &Envelope) -> Publication {
    Publication { address: Parking::address(envelope.step), message: envelope.seal() }
}

/// What is done next with a publication that was tried.
enum Next {
    Over(ParkedToken),
    Moves(Box<Move>),
}

/// Why nothing is taken for now.
#[derive(Debug)]
enum Interruption {
    /// The session is lost.
    Lost,
    /// The queues cannot be used, with the reason.
    Unavailable(String),
}
