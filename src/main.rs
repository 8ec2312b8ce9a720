//! provisional
use filestorage::{broker, storage, telemetry, worker};
use std::sync::Arc;
fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tracing_subscriber::fmt().with_writer(std::io::stderr).init();
        let root = std::path::PathBuf::from(std::env::var("LOCAL_STORAGE_PATH").unwrap());
        let local = storage::Local::open(root.join("objects")).unwrap();
        let engine = storage::Engine::new(Arc::new(local), storage::Place::Local);
        let readiness = telemetry::Readiness::new(&[]);
        let options = worker::WorkerOptions {
            node: "filestorage@h".into(),
            queues: vec!["filestorage".into()],
            default_queue: "filestorage".into(),
            queue_type: broker::QueueType::Classic,
            concurrency: 64,
            prefetch_multiplier: 8,
            accept_content: vec!["json".into()],
            result_persistent: true,
            result_extended: false,
            track_started: false,
            time_limit: None,
            soft_time_limit: None,
            events: std::env::var("EVENTS_OFF").is_err(),
            events_max_batch: 256,
            max_reply_bytes: 15 << 20,
            max_crashes: 5,
            grace: std::time::Duration::from_secs(25),
            journal: root.join("journal"),
        };
        let broker = broker::BrokerOptions {
            urls: broker::BrokerUrl::parse_all(&std::env::var("CELERY_BROKER_URL").unwrap()).unwrap(),
            ..Default::default()
        };
        let stop = worker::listen().unwrap();
        println!("{:?}", worker::run(options, broker, engine, telemetry::Metrics::new(), readiness, stop).await);
    });
}
