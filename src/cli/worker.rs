//! `filestorage worker`: starts the worker with its runtime, engine, admin port and service manager.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::broker::{BrokerOptions, Connector};
use crate::commands::CommandTable;
use crate::config::{Flag, Inputs, JOURNAL, Loaded, Settings, Source};
use crate::storage::{Engine, descriptor_limit, descriptors_wanted};
use crate::telemetry::{Admin, BindError, Component, ComponentState, Metrics, Readiness, ServiceManager, note_end};
use crate::wiring::{
    Bucket, BucketMonitor, Code, Failure, Results, Secrets, broker_options, expand, folders, health_report,
    in_flight_bytes, queue_type, stack,
};
use crate::worker::{self, Announcer, Departure, ShownSettings, Stop, WallClock, WorkerError, WorkerOptions};

/// The blocking threads besides one for each command: an abandoned operation may occupy its thread for a while.
const SPARE_THREADS: usize = 64;
/// The longest time of a cold stop: enough to note in the journal what was past its commit point.
const COLD_STOP: Duration = Duration::from_secs(1);

/// Consumes commands until SIGINT or SIGTERM.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Queues to consume, joined by commas.
    #[arg(short = 'Q', long, value_name = "QUEUES")]
    queues: Option<String>,

    /// URL of RabbitMQ, or the path of a file that holds the URL. A password in a URL on the command line can be seen by all
    /// users who list processes.
    #[arg(short = 'b', long, value_name = "URL|FILE")]
    broker: Option<String>,

    /// Commands in flight at once.
    #[arg(short = 'c', long, value_name = "COUNT")]
    concurrency: Option<String>,

    /// Node name; %h is the host name, %n its first part, %d the rest.
    #[arg(short = 'n', long, value_name = "NAME")]
    hostname: Option<String>,

    /// Level from which lines are logged: DEBUG, INFO, WARNING, ERROR or CRITICAL.
    #[arg(short = 'l', long, value_name = "LEVEL")]
    loglevel: Option<String>,

    /// Messages fetched ahead for each command in flight.
    #[arg(long, value_name = "COUNT")]
    prefetch_multiplier: Option<String>,

    /// Sends Celery's task events.
    #[arg(short = 'E', long)]
    task_events: bool,
}

impl Arguments {
    /// Returns Celery's own flags as settings, which override the flags of the settings.
    pub(super) fn flags(&self) -> Vec<Flag> {
        let is_url = self.broker.as_deref().is_some_and(|broker| broker.contains("://"));
        let broker = if is_url { "celery_broker_url" } else { "celery_broker_url_file" };
        let given = [
            (broker, "-b", self.broker.clone()),
            ("celery_task_queues", "-Q", self.queues.clone()),
            ("celery_worker_concurrency", "-c", self.concurrency.clone()),
            ("worker_name", "-n", self.hostname.clone()),
            ("log_level", "-l", self.loglevel.clone()),
            ("celery_worker_prefetch_multiplier", "--prefetch-multiplier", self.prefetch_multiplier.clone()),
            ("celery_worker_send_task_events", "-E", self.task_events.then(|| "true".to_owned())),
        ];
        given
            .into_iter()
            .filter_map(|(setting, flag, value)| {
                Some(Flag { setting: setting.to_owned(), flag: flag.to_owned(), value: value? })
            })
            .collect()
    }
}

/// Runs the worker until it stops.
///
/// The runtime has one thread besides the blocking pool, because a second thread slows small commands down.
pub(super) fn run(loaded: &Loaded, inputs: Inputs) -> Result<Code, Failure> {
    let settings = &loaded.settings;
    warn_of_descriptors(settings.worker.concurrency);
    let (options, results) = worker_options(settings)?;
    let options = WorkerOptions { shown: shown(loaded), ..options };
    let broker = broker_options(&settings.queue, &options.node)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(settings.worker.concurrency + SPARE_THREADS)
        .build()
        .map_err(|error| Failure::new(Code::Io, format!("cannot start a runtime: {error}")))?;
    let outcome = runtime.block_on(supervised(settings, inputs, options, broker, results));
    note_end();
    // Operations that a cold stop left on the blocking pool must not delay the end of the process.
    runtime.shutdown_background();
    outcome
}

/// Warns at the start when the commands may need more descriptors than the limit allows, and would wait for one another.
fn warn_of_descriptors(concurrency: usize) {
    let (limit, wanted) = (descriptor_limit(), descriptors_wanted(concurrency));
    if limit < wanted {
        tracing::warn!(
            limit,
            wanted,
            concurrency,
            "few files may be open at once, so commands wait for one another; raise the hard limit (ulimit -Hn, LimitNOFILE=, \
             ulimits: in Compose) or lower celery_worker_concurrency"
        );
    }
}

/// Runs the worker, and reports its state to the service manager if there is one.
async fn supervised(
    settings: &Settings,
    inputs: Inputs,
    options: WorkerOptions,
    broker: BrokerOptions,
    results: Results,
) -> Result<Code, Failure> {
    let no_signals = |error| Failure::new(Code::Io, format!("cannot listen for signals: {error}"));
    let mut stop = worker::listen().map_err(no_signals)?;
    let readiness = Readiness::new(&[Component::Broker, Component::Storage]);
    let manager = ServiceManager::find(|name| inputs.variable(name).map(OsStr::to_owned));
    let secrets = Secrets::new(inputs, broker, results.shared_url(), readiness.clone());
    worker::disregard().map_err(no_signals)?;
    tokio::spawn(secrets.clone().watch(worker::hangups().map_err(no_signals)?));
    tokio::spawn(results.watch(readiness.clone()));
    let work = serve(settings, options, secrets, readiness.clone(), stop.clone());
    match manager {
        Ok(Some(manager)) => {
            let stopping = async move {
                if stop.wait_for(|stop| *stop != Stop::No).await.is_err() {
                    std::future::pending().await
                }
            };
            manager.accompany(work, &readiness, stopping).await
        }
        Ok(None) => work.await,
        Err(error) => {
            tracing::warn!(%error, "the state of the worker cannot be reported to the service manager");
            work.await
        }
    }
}

async fn serve(
    settings: &Settings,
    options: WorkerOptions,
    secrets: Secrets,
    readiness: Readiness,
    stop: watch::Receiver<Stop>,
) -> Result<Code, Failure> {
    tokio::spawn(end_when_cold(stop.clone()));
    let metrics = Metrics::new();
    // The port is opened first, so that a second worker with the same settings ends before it changes anything.
    let admin = match &settings.telemetry.metrics {
        Some(address) => Some(Admin::bind(&address.host, address.port)?),
        None => None,
    };
    let stack::Stack { engine, bucket } =
        stack::stack(&settings.storage, &metrics, Arc::new(options.announcer.clone())).await?;
    let _serving = match admin {
        Some(admin) => {
            let health = health_report(engine.clone(), readiness.clone());
            let serving = admin.serve(metrics.clone(), readiness.clone(), health);
            Some(serving.map_err(|error| Failure::new(Code::Io, format!("cannot serve the admin port: {error}")))?)
        }
        None => None,
    };
    // The tasks of this set end when this function ends. Nothing waits for them.
    let mut background = JoinSet::new();
    match bucket {
        Some(bucket) => attend(&engine, bucket, &readiness, stop.clone(), &mut background).await?,
        None => readiness.set(Component::Storage, ComponentState::Ready),
    }
    if let Some(quota) = engine.quota().cloned() {
        let interval = settings.storage.quota_recount;
        background.spawn(async move { quota.count_loop(interval).await });
    }
    if let Some(interval) = settings.storage.sweep_interval {
        let (engine, metrics) = (engine.clone(), metrics.clone());
        background.spawn(async move { engine.sweep_loop(interval, &metrics).await });
    }
    let broker = Connector::new(move || secrets.broker());
    let outcome = worker::run(options, &broker, engine, metrics, readiness, stop).await;
    let code = |departure| match departure {
        Departure::Orderly => Code::Success,
        Departure::LeftWork => Code::TryAgain,
    };
    outcome.map(code).map_err(|error| {
        let code = match &error {
            WorkerError::Broker(_) => Code::Configuration,
            WorkerError::Journal(_) => Code::Io,
        };
        Failure::new(code, error.to_string())
    })
}

/// Probes the bucket, and starts the bucket monitor and the sync loop.
///
/// A bucket that cannot be reached does not prevent the start: it may come back, and the fallback serves until then.
async fn attend(
    engine: &Engine,
    bucket: Bucket,
    readiness: &Readiness,
    mut stop: watch::Receiver<Stop>,
    background: &mut JoinSet<()>,
) -> Result<(), Failure> {
    let mut monitor = BucketMonitor::new(bucket, engine.clone(), readiness.clone());
    tokio::select! {
        first = monitor.first() => first?,
        _ = stop.wait_for(|stop| *stop != Stop::No) => return Ok(()),
    }
    background.spawn(async move { monitor.watch().await });
    if let Some(fallback) = engine.fallback().cloned() {
        background.spawn(async move { fallback.sync_loop().await });
    }
    Ok(())
}

/// Ends the process shortly after the order for a cold stop, even when operations still wait for a broker or a disk.
///
/// No command is lost: the broker delivers unacknowledged commands again once the socket is closed. The exit code says that
/// work is left.
async fn end_when_cold(mut stop: watch::Receiver<Stop>) {
    if stop.wait_for(|stop| *stop == Stop::Cold).await.is_ok() {
        tokio::time::sleep(COLD_STOP).await;
        tracing::info!("cold stop: the process ends now");
        std::process::exit(Code::TryAgain as i32);
    }
}

/// Returns what remote control shows of the settings; secrets are hidden.
fn shown(loaded: &Loaded) -> ShownSettings {
    let rows = loaded.effective.iter();
    ShownSettings::new(rows.map(|row| (row.name.as_str(), row.value.as_deref(), row.source == Source::Default)))
}

fn worker_options(settings: &Settings) -> Result<(WorkerOptions, Results), Failure> {
    let (queue, worker) = (&settings.queue, &settings.worker);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let node = expand(&worker.name, &host).map_err(|why| Failure::new(Code::Configuration, why))?;
    let results = Results::new(settings, &node)?;
    let options = WorkerOptions {
        commands: CommandTable::default(),
        queues: queue.queues.clone(),
        default_queue: queue.default_queue.clone(),
        queue_type: queue_type(queue.queue_type),
        concurrency: worker.concurrency,
        prefetch_multiplier: worker.prefetch_multiplier,
        accept_content: worker.accept_content.clone(),
        results: Arc::clone(&results.backend),
        node,
        result_extended: worker.result_extended,
        inherit_parent_priority: worker.inherit_parent_priority,
        track_started: worker.track_started,
        time_limit: worker.time_limit,
        soft_time_limit: worker.soft_time_limit,
        task_events: worker.send_task_events,
        remote_control: worker.remote_control,
        shown: ShownSettings::default(),
        events: worker.events,
        events_max_batch: worker.events_max_batch,
        max_reply_bytes: worker.max_reply_bytes,
        max_in_flight_bytes: worker.max_in_flight_bytes.unwrap_or_else(in_flight_bytes),
        message_max_retries: worker.message_max_retries,
        max_crashes: worker.max_crashes,
        dead_max_messages: worker.dead_max_messages,
        grace: worker.shutdown_grace,
        journal_max_bytes: worker.journal_max_bytes,
        parked_max_bytes: worker.parked_max_bytes,
        parked_max_age: worker.parked_max_age,
        journal: settings.storage.local_storage_path.join(JOURNAL),
        spool: folders::spool(&settings.storage),
        is_shared: settings.storage.bucket().is_some(),
        announcer: Announcer::new(folders::store_id(&settings.storage)),
        clock: WallClock::default(),
    };
    Ok((options, results))
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Self {
        Self::new(Code::Configuration, error.to_string())
    }
}
