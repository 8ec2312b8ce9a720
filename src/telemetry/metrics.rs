//! The registry of metrics: a closed list of names, and one `record_*` function for each event that is measured.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::labels::{
    BackendLabel, CacheEviction, CacheLookup, Command, CommandOutcome, Delivery, Event, GivenUp, Parked, Publish,
    Session, StorageOperation, StorageOutcome, SyncOutcome,
};
use super::pending::PendingCollector;
use super::process::ProcessCollector;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CommandLabels {
    command: Command,
    outcome: CommandOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CommandLabel {
    command: Command,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeliveryLabel {
    kind: Delivery,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PublishLabel {
    outcome: Publish,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GivenUpLabel {
    reason: GivenUp,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ParkedLabel {
    outcome: Parked,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabel {
    outcome: Event,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: Session,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StorageLabels {
    operation: StorageOperation,
    backend: BackendLabel,
    outcome: StorageOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabels {
    operation: StorageOperation,
    backend: BackendLabel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BreakerLabels {
    backend: BackendLabel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SyncLabel {
    outcome: SyncOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LookupLabel {
    outcome: CacheLookup,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EvictionLabel {
    reason: CacheEviction,
}

type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

/// All metrics of the process; clones share the same numbers.
///
/// A `record_*` call takes no write lock and formats no text once its combination of labels was used before.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    commands: Family<CommandLabels, Counter>,
    command_durations: Durations<CommandLabel>,
    in_flight: Gauge,
    deliveries: Family<DeliveryLabel, Counter>,
    publishes: Family<PublishLabel, Counter>,
    given_up: Family<GivenUpLabel, Counter>,
    held: Gauge,
    parked: Family<ParkedLabel, Counter>,
    dead_removed: Counter,
    session: Family<StateLabel, Gauge>,
    reconnects: Counter,
    journal: Gauge,
    events: Family<EventLabel, Counter>,
    storage_operations: Family<StorageLabels, Counter>,
    storage_durations: Durations<BackendLabels>,
    storage_bytes: Family<BackendLabels, Counter>,
    foreign_names: Counter,
    storage_retries: Family<BackendLabels, Counter>,
    breaker_open: Family<BreakerLabels, Gauge>,
    synced: Family<SyncLabel, Counter>,
    pending: PendingCollector,
    swept: Counter,
    swept_bytes: Counter,
    cache_lookups: Family<LookupLabel, Counter>,
    cache_evictions: Family<EvictionLabel, Counter>,
    cache_entries: Gauge,
    cache_size: Gauge,
}

/// Creates a histogram of durations with bounds from 250 µs, less than the write of a small value on tmpfs takes, to 65 s
/// in factors of four.
fn duration_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 4.0, 10))
}

impl Metrics {
    /// Registers all metrics with the prefix `filestorage`, and the usual `process_*` metrics.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessCollector::new()));
        let ours = registry.sub_registry_with_prefix("filestorage");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        ours.register("build", "Version of the running program", version);

        let commands = Family::default();
        ours.register("commands", "Commands, by task and outcome", commands.clone());
        let command_durations = Durations::new_with_constructor(duration_histogram);
        let help = "Time from the delivery of a command to its settlement";
        ours.register_with_unit("command_duration", help, Unit::Seconds, command_durations.clone());
        let in_flight = Gauge::default();
        ours.register("commands_in_flight", "Commands taken and not yet settled", in_flight.clone());

        let deliveries = Family::default();
        ours.register("queue_deliveries", "Messages that the broker delivered", deliveries.clone());
        let publishes = Family::default();
        ours.register("queue_publishes", "Messages published, by the broker's answer", publishes.clone());
        let given_up = Family::<GivenUpLabel, Counter>::default();
        for &reason in GivenUp::ALL {
            drop(given_up.get_or_create(&GivenUpLabel { reason }));
        }
        let help = "Answers given up, because their reply queue did not take them";
        ours.register("answers_given_up", help, given_up.clone());
        let held = Gauge::default();
        let help = "Commands that are done and not acknowledged, because a queue does not take what they owe";
        ours.register("commands_held", help, held.clone());
        let parked = Family::<ParkedLabel, Counter>::default();
        for &outcome in Parked::ALL {
            drop(parked.get_or_create(&ParkedLabel { outcome }));
        }
        let help = "Publications that were parked, and what became of parked ones";
        ours.register("parked_publications", help, parked.clone());
        let dead_removed = Counter::default();
        let help = "Oldest dead copies that this worker removed, because they were more than dead_max_messages";
        ours.register("dead_copies_removed", help, dead_removed.clone());
        let session = Family::<StateLabel, Gauge>::default();
        for &state in Session::ALL {
            session.get_or_create(&StateLabel { state }).set(0);
        }
        ours.register(
            "broker_session_state",
            "1 for the present state of the session with the broker, 0 for the others",
            session.clone(),
        );
        let reconnects = Counter::default();
        ours.register("broker_reconnects", "Sessions with the broker opened after the first", reconnects.clone());
        let journal = Gauge::default();
        ours.register_with_unit("journal_size", "Size of this worker's journal", Unit::Bytes, journal.clone());
        let events = Family::default();
        ours.register("events", "Metric events, by the outcome of their publication", events.clone());

        let storage_operations = Family::default();
        let help = "Operations of a backend, by outcome";
        ours.register("storage_operations", help, storage_operations.clone());
        let storage_durations = Durations::new_with_constructor(duration_histogram);
        let help = "Time of one operation at the backend";
        ours.register_with_unit("storage_operation_duration", help, Unit::Seconds, storage_durations.clone());
        let storage_bytes = Family::default();
        let help = "Payload moved to or from the backend";
        ours.register_with_unit("storage_transferred", help, Unit::Bytes, storage_bytes.clone());
        let foreign_names = Counter::default();
        let help = "Names in listings that are not valid keys";
        ours.register("storage_foreign_names", help, foreign_names.clone());
        let storage_retries = Family::default();
        let help = "Attempts at a backend after the first of an operation";
        ours.register("storage_retries", help, storage_retries.clone());
        let breaker_open = Family::default();
        let help = "1 while the circuit breaker of a backend is open, so that only probes are sent, else 0";
        ours.register("storage_breaker_open", help, breaker_open.clone());

        let synced = Family::default();
        let help = "Attempts to send an entry of the overlay to the bucket, by outcome";
        ours.register("synced_entries", help, synced.clone());
        let pending = PendingCollector::default();
        ours.register_collector(Box::new(pending.clone()));

        let swept = Counter::default();
        ours.register("swept_objects", "Expired objects that the sweeper removed", swept.clone());
        let swept_bytes = Counter::default();
        let help = "Stored bytes of the expired objects that the sweeper removed";
        ours.register_with_unit("swept", help, Unit::Bytes, swept_bytes.clone());

        let cache_lookups = Family::<LookupLabel, Counter>::default();
        for &outcome in CacheLookup::ALL {
            drop(cache_lookups.get_or_create(&LookupLabel { outcome }));
        }
        let help = "Reads that looked for their value in the cache, by outcome";
        ours.register("cache_lookups", help, cache_lookups.clone());
        let cache_evictions = Family::<EvictionLabel, Counter>::default();
        for &reason in CacheEviction::ALL {
            drop(cache_evictions.get_or_create(&EvictionLabel { reason }));
        }
        let help = "Entries that left the cache without a change of their object, by reason";
        ours.register("cache_evictions", help, cache_evictions.clone());
        let cache_entries = Gauge::default();
        ours.register("cache_entries", "Values in the cache", cache_entries.clone());
        let cache_size = Gauge::default();
        let help = "Memory of the values in the cache, with their attributes and an estimate of the bookkeeping";
        ours.register_with_unit("cache_size", help, Unit::Bytes, cache_size.clone());

        Self(Arc::new(Inner {
            registry,
            commands,
            command_durations,
            in_flight,
            deliveries,
            publishes,
            given_up,
            held,
            parked,
            dead_removed,
            session,
            reconnects,
            journal,
            events,
            storage_operations,
            storage_durations,
            storage_bytes,
            foreign_names,
            storage_retries,
            breaker_open,
            synced,
            pending,
            swept,
            swept_bytes,
            cache_lookups,
            cache_evictions,
            cache_entries,
            cache_size,
        }))
    }

    /// Counts a finished command; `duration` is the time from its delivery to its settlement.
    pub fn record_command(&self, command: Command, outcome: CommandOutcome, duration: Duration) {
        self.0.commands.get_or_create(&CommandLabels { command, outcome }).inc();
        self.0.command_durations.get_or_create(&CommandLabel { command }).observe(duration.as_secs_f64());
    }

    /// Counts a command as in flight until the returned guard is dropped.
    #[must_use]
    pub fn command_in_flight(&self) -> InFlight {
        self.0.in_flight.inc();
        InFlight(self.0.in_flight.clone())
    }

    /// Counts a message that the broker delivered.
    pub fn record_delivery(&self, kind: Delivery) {
        self.0.deliveries.get_or_create(&DeliveryLabel { kind }).inc();
    }

    /// Counts `count` published messages by the broker's answer.
    pub fn record_publishes(&self, outcome: Publish, count: u64) {
        self.0.publishes.get_or_create(&PublishLabel { outcome }).inc_by(count);
    }

    /// Counts an answer that was given up because its queue did not take it.
    pub fn record_given_up(&self, reason: GivenUp) {
        self.0.given_up.get_or_create(&GivenUpLabel { reason }).inc();
    }

    /// Records how many commands are done and keep their place, because a queue does not take what they owe.
    pub fn record_held(&self, commands: usize) {
        self.0.held.set(i64::try_from(commands).unwrap_or(i64::MAX));
    }

    /// Counts `count` publications that were parked, or had been parked and came to this end.
    pub fn record_parked(&self, outcome: Parked, count: u64) {
        self.0.parked.get_or_create(&ParkedLabel { outcome }).inc_by(count);
    }

    /// Counts `count` dead copies that were removed above the bound of their queue.
    pub fn record_dead_removed(&self, count: u64) {
        self.0.dead_removed.inc_by(count);
    }

    /// Records the present state of the session with the broker.
    pub fn record_session(&self, now: Session) {
        for &state in Session::ALL {
            self.0.session.get_or_create(&StateLabel { state }).set(i64::from(state == now));
        }
    }

    /// Counts a session that was opened after the loss of an earlier one.
    pub fn record_reconnect(&self) {
        self.0.reconnects.inc();
    }

    /// Records the size of this worker's journal in bytes.
    pub fn record_journal_size(&self, bytes: u64) {
        self.0.journal.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Counts `count` metric events by the end of their publication.
    pub fn record_events(&self, outcome: Event, count: u64) {
        self.0.events.get_or_create(&EventLabel { outcome }).inc_by(count);
    }

    /// Counts one operation of a backend; `bytes` is the size of the payload that was moved, or 0.
    pub fn record_storage(
        &self,
        operation: StorageOperation,
        backend: BackendLabel,
        outcome: StorageOutcome,
        duration: Duration,
        bytes: u64,
    ) {
        self.0.storage_operations.get_or_create(&StorageLabels { operation, backend, outcome }).inc();
        let labels = BackendLabels { operation, backend };
        self.0.storage_durations.get_or_create(&labels).observe(duration.as_secs_f64());
        if bytes > 0 {
            self.0.storage_bytes.get_or_create(&labels).inc_by(bytes);
        }
    }

    /// Counts `count` names in a listing that are not valid keys.
    pub fn record_foreign_names(&self, count: u64) {
        self.0.foreign_names.inc_by(count);
    }

    /// Counts one retry of an operation of a backend.
    pub fn record_retry(&self, operation: StorageOperation, backend: BackendLabel) {
        self.0.storage_retries.get_or_create(&BackendLabels { operation, backend }).inc();
    }

    /// Records whether the breaker of a backend is open.
    pub fn record_breaker(&self, backend: BackendLabel, open: bool) {
        self.0.breaker_open.get_or_create(&BreakerLabels { backend }).set(i64::from(open));
    }

    /// Counts one attempt to send an entry of the overlay to the bucket.
    pub fn record_synced(&self, outcome: SyncOutcome) {
        self.0.synced.get_or_create(&SyncLabel { outcome }).inc();
    }

    /// Records the content of the overlay: the number of entries, their payload in bytes, and the stamp of the oldest.
    pub fn record_pending(&self, entries: u64, bytes: u64, oldest: Option<Timestamp>) {
        self.0.pending.record(entries, bytes, oldest);
    }

    /// Counts an expired object that the sweeper removed, and its stored bytes.
    pub fn record_swept(&self, bytes: u64) {
        self.0.swept.inc();
        self.0.swept_bytes.inc_by(bytes);
    }

    /// Counts one lookup in the cache of values.
    pub fn record_cache_lookup(&self, outcome: CacheLookup) {
        self.0.cache_lookups.get_or_create(&LookupLabel { outcome }).inc();
    }

    /// Counts one entry that left the cache of values by itself.
    pub fn record_cache_eviction(&self, reason: CacheEviction) {
        self.0.cache_evictions.get_or_create(&EvictionLabel { reason }).inc();
    }

    /// Records the content of the cache of values: the number of entries, and their bytes.
    pub fn record_cache_content(&self, entries: u64, bytes: u64) {
        self.0.cache_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        self.0.cache_size.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Writes all metrics as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        match text::encode(&mut text, &self.0.registry) {
            Ok(()) => text,
            // A write into a string fails only when an encoder reports an error. A reader would take a cut text for a
            // complete one without some series.
            Err(fmt::Error) => String::from("# EOF\n"),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// A guard that counts one command as in flight until the guard is dropped.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_exposed_under_its_name() {
        let metrics = Metrics::new();
        metrics.record_command(Command::Store, CommandOutcome::Succeeded, Duration::from_millis(2));
        metrics.record_command(Command::Store, CommandOutcome::Succeeded, Duration::from_millis(3));
        let guard = metrics.command_in_flight();
        metrics.record_delivery(Delivery::Redelivered);
        metrics.record_publishes(Publish::Confirmed, 1);
        metrics.record_given_up(GivenUp::Full);
        metrics.record_held(2);
        metrics.record_parked(Parked::Delivered, 3);
        metrics.record_session(Session::Connecting);
        metrics.record_session(Session::Connected);
        metrics.record_reconnect();
        metrics.record_journal_size(4096);
        metrics.record_events(Event::Published, 3);
        let (operation, backend, outcome) = (StorageOperation::Put, BackendLabel::Local, StorageOutcome::Succeeded);
        metrics.record_storage(operation, backend, outcome, Duration::from_micros(700), 200);
        metrics.record_foreign_names(2);
        metrics.record_retry(StorageOperation::Get, BackendLabel::Gcs);
        metrics.record_breaker(BackendLabel::S3, false);
        metrics.record_breaker(BackendLabel::Gcs, true);
        metrics.record_synced(SyncOutcome::AlreadyThere);
        metrics.record_swept(700);
        metrics.record_cache_lookup(CacheLookup::Hit);
        metrics.record_cache_eviction(CacheEviction::Size);
        metrics.record_cache_content(2, 5_000);
        assert!(!metrics.encode().contains("pending_sync"));
        metrics.record_pending(3, 4_000, None);
        let text = metrics.encode();
        for line in [
            r#"filestorage_commands_total{command="store",outcome="succeeded"} 2"#,
            r#"filestorage_command_duration_seconds_count{command="store"} 2"#,
            "filestorage_commands_in_flight 1",
            r#"filestorage_queue_deliveries_total{kind="redelivered"} 1"#,
            r#"filestorage_queue_publishes_total{outcome="confirmed"} 1"#,
            r#"filestorage_answers_given_up_total{reason="full"} 1"#,
            r#"filestorage_answers_given_up_total{reason="silent"} 0"#,
            "filestorage_commands_held 2",
            r#"filestorage_parked_publications_total{outcome="delivered"} 3"#,
            r#"filestorage_parked_publications_total{outcome="undeliverable"} 0"#,
            r#"filestorage_broker_session_state{state="connected"} 1"#,
            r#"filestorage_broker_session_state{state="connecting"} 0"#,
            "filestorage_broker_reconnects_total 1",
            "filestorage_swept_objects_total 1",
            "filestorage_swept_bytes_total 700",
            "filestorage_journal_size_bytes 4096",
            r#"filestorage_events_total{outcome="published"} 3"#,
            r#"filestorage_storage_operations_total{operation="put",backend="local",outcome="succeeded"} 1"#,
            r#"filestorage_storage_operation_duration_seconds_count{operation="put",backend="local"} 1"#,
            r#"filestorage_storage_transferred_bytes_total{operation="put",backend="local"} 200"#,
            "filestorage_storage_foreign_names_total 2",
            r#"filestorage_storage_retries_total{operation="get",backend="gcs"} 1"#,
            r#"filestorage_storage_breaker_open{backend="gcs"} 1"#,
            r#"filestorage_storage_breaker_open{backend="s3"} 0"#,
            r#"filestorage_synced_entries_total{outcome="already_there"} 1"#,
            r#"filestorage_cache_lookups_total{outcome="hit"} 1"#,
            r#"filestorage_cache_lookups_total{outcome="miss"} 0"#,
            r#"filestorage_cache_evictions_total{reason="expired"} 0"#,
            r#"filestorage_cache_evictions_total{reason="size"} 1"#,
            "filestorage_cache_entries 2",
            "filestorage_cache_size_bytes 5000",
            "filestorage_pending_sync_entries 3.0",
            "filestorage_pending_sync_bytes 4000.0",
            "filestorage_pending_sync_oldest_age_seconds 0.0",
            concat!("filestorage_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        let minute = Timestamp::now() - jiff::SignedDuration::from_mins(1);
        metrics.record_pending(1, 0, Some(minute));
        let text = metrics.encode();
        let age = text.lines().find_map(|line| line.strip_prefix("filestorage_pending_sync_oldest_age_seconds "));
        assert!(age.unwrap().parse::<f64>().unwrap() >= 60.0, "{text}");
        drop(guard);
        assert!(metrics.clone().encode().contains("filestorage_commands_in_flight 0\n"));
    }
}
