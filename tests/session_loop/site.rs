//! A worker on the scripted broker, and the producer beside it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use filestorage::broker::QueueType;
use filestorage::celery::message::Message;
use filestorage::commands::{Engine, Spool};
use filestorage::provider::BackendKind;
use filestorage::results::Rpc;
use filestorage::storage::{Cache, CacheOptions, Memory};
use filestorage::telemetry::{Component, Metrics, Readiness};
use filestorage::worker::{self, Announcer, Departure, ShownSettings, Stop, WallClock, WorkerOptions};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::model::{Arrival, Model};
use crate::scripted::Scripted;
use crate::sequential::Sequential;
use crate::work;

/// The queue of commands.
pub(crate) const WORK: &str = "work";
/// The queue of answers.
pub(crate) const REPLIES: &str = "replies";
/// Bytes of a body up to which it is read at once.
const LARGE: usize = 64 * 1024;
/// The name of the worker.
pub(crate) const NODE: &str = "filestorage@test";
/// The time at which every run begins.
pub(crate) const START: i64 = 1_800_000_000;

/// Runs a test with a clock that stands still whenever something runs.
pub(crate) fn with_paused_clock<T>(test: impl Future<Output = T>) -> T {
    work::forget();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(test)
}

/// A folder in memory where there is one: journals of thousands of runs need no disk.
pub(crate) fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// A worker with its broker.
pub(crate) struct Site {
    pub(crate) broker: Scripted,
    pub(crate) options: WorkerOptions,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Metrics,
    engine: Engine,
    stop: watch::Sender<Stop>,
    worker: Option<JoinHandle<Result<Departure, worker::WorkerError>>>,
    /// Holds the journal, and is removed with the site.
    folder: Arc<tempfile::TempDir>,
}

impl Site {
    /// Makes a broker with its queues, and a worker that does not run yet.
    pub(crate) fn new(seed: u64) -> Self {
        let folder = folder();
        let broker = Scripted::new(seed).of(NODE);
        broker.change(|model| {
            model.queue(WORK);
            model.queue(REPLIES);
        });
        let options = WorkerOptions {
            node: NODE.to_owned(),
            commands: work::TABLE,
            queues: vec![WORK.to_owned()],
            default_queue: WORK.to_owned(),
            queue_type: QueueType::Classic,
            concurrency: 8,
            prefetch_multiplier: 4,
            accept_content: vec!["json".to_owned()],
            results: Arc::new(Rpc::new(NODE, true)),
            result_extended: false,
            inherit_parent_priority: false,
            track_started: false,
            time_limit: None,
            soft_time_limit: None,
            task_events: false,
            message_max_retries: 3,
            remote_control: true,
            shown: ShownSettings::default(),
            events: true,
            events_max_batch: 256,
            max_reply_bytes: 1 << 20,
            max_in_flight_bytes: 64 << 20,
            max_crashes: 5,
            dead_max_messages: None,
            grace: Duration::from_secs(30),
            journal_max_bytes: 256 << 20,
            parked_max_bytes: 256 << 20,
            parked_max_age: Duration::from_secs(7 * 86_400),
            journal: folder.path().join("journal"),
            spool: Spool::new(folder.path()),
            is_shared: false,
            announcer: Announcer::new("store".to_owned()),
            clock: WallClock::starting_at(Timestamp::from_second(START).unwrap()),
        };
        Self {
            broker,
            options,
            readiness: Readiness::new(&[Component::Broker]),
            metrics: Metrics::new(),
            engine: Engine::new(Arc::new(Memory::new()), BackendKind::Local),
            stop: watch::Sender::new(Stop::No),
            worker: None,
            folder: Arc::new(folder),
        }
    }

    /// Makes a second worker on the same broker, store and folder, which does not run yet.
    pub(crate) fn sibling(&self, node: &str) -> Self {
        let options = WorkerOptions {
            node: node.to_owned(),
            results: Arc::new(Rpc::new(node, true)),
            announcer: Announcer::new("store".to_owned()),
            ..self.options.clone()
        };
        Self {
            broker: self.broker.of(node),
            options,
            readiness: Readiness::new(&[Component::Broker]),
            metrics: Metrics::new(),
            engine: self.engine.clone(),
            stop: watch::Sender::new(Stop::No),
            worker: None,
            folder: Arc::clone(&self.folder),
        }
    }

    /// Makes a site whose worker runs, and has no right to the queues of parked publications.
    pub(crate) fn started_without_parking() -> Self {
        let mut site = Self::new(1);
        site.broker.change(Model::forbid_parking);
        site.start();
        site
    }

    /// Makes a site whose worker runs.
    pub(crate) fn started() -> Self {
        let mut site = Self::new(1);
        site.start();
        site
    }

    /// Gives the worker a cache.
    pub(crate) fn cache(&mut self) {
        let options = CacheOptions { bytes: 1 << 20, ttl: Duration::from_secs(60) };
        self.engine = self.engine.clone().with_cache(Some(Cache::new(options, self.metrics.clone())));
    }

    /// Starts the worker, again after it ended.
    pub(crate) fn start(&mut self) {
        self.stop = watch::Sender::new(Stop::No);
        let (options, broker, engine) = (self.options.clone(), self.broker.clone(), self.engine.clone());
        let (metrics, readiness, stop) = (self.metrics.clone(), self.readiness.clone(), self.stop.subscribe());
        let worker = async move { worker::run(options, &broker, engine, metrics, readiness, stop).await };
        // The journal is opened, and large messages are read, in a thread.
        let (broker, node) = (self.broker.clone(), self.options.node.clone());
        let mut is_first = true;
        let may_block =
            move || std::mem::take(&mut is_first) || broker.look(|model| model.holds_more_than(&node, LARGE));
        self.worker = Some(tokio::spawn(Sequential::new(worker, may_block)));
    }

    /// Ends the worker between two instructions, as SIGKILL does.
    pub(crate) async fn kill(&mut self) {
        let worker = self.worker.take().unwrap();
        worker.abort();
        assert!(worker.await.unwrap_err().is_cancelled());
        self.broker.change(|model| {
            model.note(&format!("kill {}", self.options.node));
            for number in model.live_of(&self.options.node) {
                model.lose(number, "the worker was killed");
            }
        });
    }

    /// Asks the worker to stop.
    pub(crate) fn ask(&self, stop: Stop) {
        self.stop.send_replace(stop);
    }

    /// Waits until the worker has stopped.
    pub(crate) async fn stopped(&mut self) -> Result<Departure, worker::WorkerError> {
        self.worker.take().unwrap().await.unwrap()
    }

    /// Sends a command.
    pub(crate) fn send(&self, message: &Message) {
        self.broker.change(|model| model.put(WORK, message));
    }

    /// Waits until something holds of the broker, looking at it every few milliseconds; fails after `seconds`.
    pub(crate) async fn until(&self, seconds: u64, what: &str, holds: impl Fn(&Model) -> bool) {
        for _ in 0..seconds * 200 {
            if self.broker.look(|model| holds(model)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("not within {seconds} s: {what}\n{}", self.trace());
    }

    /// Waits until a command is acknowledged.
    pub(crate) async fn acknowledged(&self, id: &str) {
        self.until(600, &format!("{id} acknowledged"), |model| is_acknowledged(model, id)).await;
    }

    /// Returns the messages of a queue.
    pub(crate) fn messages(&self, queue: &str) -> Vec<Message> {
        self.broker.change(|model| model.queue(queue).messages.iter().map(|stored| stored.message.clone()).collect())
    }

    /// Returns the answers to a command.
    pub(crate) fn answers(&self, id: &str) -> Vec<Value> {
        let messages = self.messages(REPLIES).into_iter();
        let own = messages.filter(|message| message.properties.correlation_id.as_deref() == Some(id));
        own.map(|message| serde_json::from_slice(&message.body).unwrap()).collect()
    }

    /// Returns the states of the answers to a command.
    pub(crate) fn states(&self, id: &str) -> Vec<String> {
        self.answers(id).iter().map(|answer| answer["status"].as_str().unwrap().to_owned()).collect()
    }

    /// Returns what arrived at a queue or was to go there, in order.
    pub(crate) fn arrivals(&self, queue: &str) -> Vec<Arrival> {
        self.broker.change(|model| model.arrivals.iter().filter(|arrival| arrival.queue == queue).cloned().collect())
    }

    pub(crate) fn trace(&self) -> String {
        self.broker.change(|model| model.trace.clone())
    }
}

/// Tells whether a command was acknowledged.
pub(crate) fn is_acknowledged(model: &Model, id: &str) -> bool {
    model.acknowledged.iter().any(|(known, _)| known == id)
}
