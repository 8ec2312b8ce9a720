//! Joins all: from deliveries to acknowledgements, session after session.

mod clock;
mod consumed_queues;
mod context;
mod dead_bound;
mod delivery;
mod events;
mod execution;
mod intake;
mod invalidations;
mod journal;
mod own_queues;
mod remote;
mod session_loop;
mod signals;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::broker::{Backoff, Broker, Error, ErrorKind, OpenSession, PublishError, QueueType};
use crate::commands::{Budget, CommandTable, Engine, KnownOutcomes, Spool};
use crate::results::ResultBackend;
use crate::telemetry::{self, Component, ComponentState, Metrics, Readiness};

use consumed_queues::ConsumedQueues;
use context::WorkerContext;
use delivery::destinations::Destinations;
use journal::{Journal, JournalOutcomes};
use own_queues::{OwnQueue, OwnQueues};
use remote::{Monitor, TaskLimits};
use session_loop::{SessionEnd, SessionLoop};

pub use clock::WallClock;
pub use delivery::envelope::ParkedNote;
pub use events::event_schema;
pub use invalidations::Announcer;
pub use remote::ShownSettings;
pub use signals::{Stop, disregard, hangups, listen};

/// Unsettled deliveries a queue begins with, whose sizes are not known yet.
const FIRST_PREFETCH: usize = 16;
/// The part of the bytes in flight that deliveries may take which are fetched ahead.
const PREFETCHED: u64 = 4;
/// A session that lived so long was a good one: the next waits from the beginning.
const GOOD_SESSION: Duration = Duration::from_secs(10);
/// How long after a permanent fault at start it must be there again to be believed.
const SECOND_LOOK: Duration = Duration::from_secs(5);

/// How a worker works.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Node name, `filestorage@host`; unique in a virtual host.
    pub node: String,
    /// The tasks it runs.
    pub commands: CommandTable,
    /// Queues to consume.
    pub queues: Vec<String>,
    /// Where follow-ups go whose signature names no queue.
    pub default_queue: String,
    /// Type of queues made for follow-ups.
    pub queue_type: QueueType,
    /// Commands in flight.
    pub concurrency: usize,
    /// Unacknowledged deliveries per queue: this times [`Self::concurrency`], 65535 at most; 0 is no limit.
    pub prefetch_multiplier: u16,
    /// Celery's `accept_content`.
    pub accept_content: Vec<String>,
    /// Where answers go.
    pub results: Arc<dyn ResultBackend>,
    /// Replies repeat name, arguments and so on.
    pub result_extended: bool,
    /// Callbacks and steps of a chain have the priority of the command before them.
    pub inherit_parent_priority: bool,
    /// A STARTED reply says that a command runs.
    pub track_started: bool,
    /// Hard limit of commands that bring none.
    pub time_limit: Option<Duration>,
    /// Soft limit of commands that bring none.
    pub soft_time_limit: Option<Duration>,
    /// Celery's events about tasks are published.
    pub task_events: bool,
    /// Remote control is answered.
    pub remote_control: bool,
    /// What remote control shows of the settings.
    pub shown: ShownSettings,
    /// Metric events are published.
    pub events: bool,
    /// Events in one message at most.
    pub events_max_batch: usize,
    /// Longest answer in bytes.
    pub max_reply_bytes: usize,
    /// Bytes of commands held in memory at once.
    pub max_in_flight_bytes: u64,
    /// How often a command runs again whose storage is unreachable, where its message says nothing.
    pub message_max_retries: u32,
    /// Crashes of a worker a command may be part of.
    pub max_crashes: u32,
    /// Dead copies that the worker leaves in their queue at most; `None` is no bound.
    pub dead_max_messages: Option<u64>,
    /// How long a warm shutdown waits for what runs.
    pub grace: Duration,
    /// Bytes that its journal may have.
    pub journal_max_bytes: u64,
    /// Bytes that parked publications may have, in queues that this worker makes.
    pub parked_max_bytes: u64,
    /// How long a publication that must not be lost is parked at most.
    pub parked_max_age: Duration,
    /// Folder of the journal.
    pub journal: PathBuf,
    /// Keeps what is more than memory may hold.
    pub spool: Spool,
    /// The values are in a bucket, which other workers share: they must hear of each write.
    pub is_shared: bool,
    /// Announces to other workers what changes, in sessions and between them.
    pub announcer: Announcer,
    /// The time of day.
    pub clock: WallClock,
}

impl WorkerOptions {
    /// Returns how many deliveries and bytes of bodies each of so many queues may have unacknowledged.
    fn prefetch(&self, queues: usize) -> (u16, u64) {
        let prefetch = self.concurrency.saturating_mul(usize::from(self.prefetch_multiplier));
        // AMQP's count has 16 bits, and 0 is no limit.
        let prefetch = u16::try_from(prefetch).ok().filter(|prefetch| *prefetch > 0).unwrap_or(u16::MAX);
        (prefetch, self.max_in_flight_bytes / PREFETCHED / queues.max(1) as u64)
    }
}

/// How a worker that was told to stop left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// Whatever was begun is answered and acknowledged.
    Orderly,
    /// What was begun comes back from its queue: the grace was over, or the stop was cold.
    LeftWork,
}

/// Why a worker cannot work; only a person can mend it.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The broker refuses permanently before the first session.
    #[error("{0}{mend}", mend = mend(.0))]
    Broker(Error),
    /// The journal cannot be opened.
    #[error("the journal cannot be opened: {0}; see to the folder's disk and permissions, or set local_storage_path")]
    Journal(std::io::Error),
}

/// Adds what a fault of the login does not say itself: where the login stands.
fn mend(error: &Error) -> &'static str {
    if error.kind() == ErrorKind::Login { "; correct CELERY_BROKER_URL, or what the broker grants" } else { "" }
}

/// Works until told to stop: sessions one after another, for ever.
///
/// `broker` opens them. Returns how it left once told to.
///
/// # Errors
///
/// [`WorkerError`] for what only a person can mend, before the first session; later faults are waited out.
pub async fn run(
    options: WorkerOptions,
    broker: &dyn Broker,
    engine: Engine,
    metrics: Metrics,
    readiness: Readiness,
    mut stop: watch::Receiver<Stop>,
) -> Result<Departure, WorkerError> {
    // A large one takes its time, and the loop is asked whether it lives meanwhile.
    let (folder, node, max_bytes) = (options.journal.clone(), options.node.clone(), options.journal_max_bytes);
    let clock = options.clock;
    let opening = tokio::task::spawn_blocking(move || Journal::open(&folder, &node, max_bytes, clock));
    let journal = opening.await.map_err(std::io::Error::other).flatten().map_err(WorkerError::Journal)?;
    let destinations = Destinations::default();
    let budget = Budget::new(options.max_in_flight_bytes);
    let outcomes = KnownOutcomes(Some(Arc::new(JournalOutcomes::new(&options.journal))));
    let monitor = Monitor::new(&options.node, options.task_events, options.clock);
    let mut worker = WorkerContext {
        options,
        engine,
        budget,
        journal,
        outcomes,
        metrics,
        own_queues: OwnQueues::new(readiness.clone()),
        consumed_queues: ConsumedQueues::default(),
        monitor,
        unheard: None,
        limits: TaskLimits::default(),
        shutdown: Stop::No,
        readiness,
        destinations,
        knows_rights: false,
        coherence: None,
        dead_bound: None,
    };
    let mut backoff = Backoff::new(&worker.options.node);
    let mut had_session = false;
    let mut doubted = false;
    while *stop.borrow() == Stop::No {
        worker.metrics.record_session(telemetry::Session::Connecting);
        let mut began = None;
        let opened = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop != Stop::No) => return Ok(Departure::Orderly),
            opened = open(&mut worker, broker) => opened,
        };
        let reason = match opened {
            Ok(session_loop) => {
                if had_session {
                    session_loop.count_reconnect();
                }
                had_session = true;
                began = Some(Instant::now());
                let SessionEnd { lost, left_work } = session_loop.work(&mut stop).await;
                match lost {
                    // A session that ends during the drain leaves its work behind as well.
                    _ if *stop.borrow() != Stop::No || worker.shutdown != Stop::No => return Ok(departure(left_work)),
                    None => return Ok(departure(left_work)),
                    Some(reason) => reason,
                }
            }
            Err(error) if error.is_permanent() && !had_session => {
                if doubted {
                    return Err(WorkerError::Broker(error));
                }
                doubted = true;
                tracing::error!(%error, "the broker refuses; trying once more");
                worker.readiness.set(Component::Broker, ComponentState::Unready(error.to_string()));
                pause(SECOND_LOOK, &mut stop).await;
                continue;
            }
            Err(error) => {
                doubted = false;
                worker.readiness.set_started();
                error.to_string()
            }
        };
        if began.is_some_and(|began| began.elapsed() > GOOD_SESSION) {
            backoff.reset();
        }
        let wait = backoff.next_wait();
        tracing::warn!(reason, wait_seconds = wait.as_secs_f64(), "no session with the broker; trying again");
        worker.readiness.set(Component::Broker, ComponentState::Unready(format!("no session: {reason}")));
        pause(wait, &mut stop).await;
    }
    Ok(Departure::Orderly)
}

fn departure(left_work: bool) -> Departure {
    if left_work {
        tracing::warn!("stopped; what was begun and not answered comes back from its queue");
        return Departure::LeftWork;
    }
    tracing::info!("stopped");
    Departure::Orderly
}

async fn pause(wait: Duration, stop: &mut watch::Receiver<Stop>) {
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop != Stop::No) => {}
        () = tokio::time::sleep(wait) => {}
    }
}

/// Opens a session, sees to our own queues and begins to consume.
async fn open<'b>(worker: &'b mut WorkerContext, broker: &dyn Broker) -> Result<SessionLoop<'b>, Error> {
    let session = OpenSession::new(broker.open().await?);
    may_answer(worker, &session).await?;
    worker.begin_coherence(&session).await;
    worker.own_queues.begin(OwnQueue::Dead, &*session).await?;
    worker.begin_dead_bound(&session);
    if worker.options.events {
        worker.own_queues.begin(OwnQueue::Events, &*session).await?;
    }
    if !std::mem::replace(&mut worker.knows_rights, true)
        && let Ok(Some(lack)) = session.delay_lack().await
    {
        tracing::warn!(lack, "a permission is missing");
    }
    worker.journal.begin_session();
    let (prefetch, bytes) = worker.options.prefetch(worker.options.queues.len());
    let WorkerContext { options, consumed_queues, .. } = &mut *worker;
    let queues = options.queues.len().max(1);
    // While several are begun one after another, nobody takes what the first ones send.
    let first = if queues == 1 { FIRST_PREFETCH } else { (FIRST_PREFETCH / 2 / queues).max(1) };
    let first = prefetch.min(u16::try_from(first).unwrap_or(1));
    let mut consumer = consumed_queues.consume(&*session, &options.queues, first, &options.node).await?;
    consumer.adapt_prefetch(prefetch, bytes);
    let condition = consumed_queues.condition();
    if let ComponentState::Degraded(reason) = &condition {
        tracing::warn!(reason, "not all queues are consumed");
    }
    worker.readiness.set(Component::Queues, condition);
    tracing::info!(
        broker = session.address(),
        queues = worker.options.queues.join(","),
        concurrency = worker.options.concurrency,
        node = worker.options.node,
        "worker ready"
    );
    worker.readiness.set(Component::Worker, ComponentState::Ready);
    worker.readiness.set_started();
    Ok(SessionLoop::new(worker, session, consumer))
}

/// Makes sure that this user may answer: without that every command would be done and none answered.
async fn may_answer(worker: &WorkerContext, session: &OpenSession) -> Result<(), Error> {
    let (results, publisher) = (&worker.options.results, session.share());
    let probed = if results.is_over_broker() {
        session.may_answer(results.probe(&*publisher)).await
    } else {
        results.probe(&*publisher).await.map_err(|fault| match fault {
            PublishError::Refused { text, .. } => {
                Error::new(ErrorKind::Denied, format!("no result can be kept: {text}; {}", results.remedy()))
            }
            other => Error::lost(format!("no result can be kept: {other}")),
        })
    };
    if let Some(component) = results.component() {
        let state =
            probed.as_ref().map_or_else(|error| ComponentState::Unready(error.to_string()), |()| ComponentState::Ready);
        worker.readiness.set(component, state);
    }
    probed
}
