//! Celery's events about this worker and its tasks, until they are sent. None tells a value.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::time::Instant;

use crate::celery::error::Exception;
use crate::celery::event::{EventSource, Moment, TaskEvent, WorkerEvent, WorkerLoad};
use crate::celery::message::Publication;
use crate::celery::request::TaskRequest;
use crate::celery::{display, write_display};
use crate::commands::KeyUse;
use crate::worker::WallClock;

/// The time between two heartbeats. Monitors take a worker for dead after twice that.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Events about tasks in one message at most.
const BATCH: usize = 256;
/// Events that wait to be sent at most. What exceeds that is lost: monitors never hold a command up.
const MOST: usize = 8192;
/// Keys of a command that are shown at most.
pub(super) const MOST_KEYS: usize = 8;
/// The longest result that is shown, in bytes; of a longer one the size is.
const LONGEST_RESULT: usize = 512;

/// What a task comes to without having run.
#[derive(Clone, Debug)]
pub(in crate::worker) struct UnrunTask {
    id: String,
    end: UnrunEnd,
    arrival: Option<Arrival>,
}

/// What monitors have to be told of the arrival of a task that ends at once: they know the name of a task by that event only.
#[derive(Clone, Debug)]
pub(in crate::worker) struct Arrival {
    name: String,
    root_id: Option<String>,
    parent_id: Option<String>,
    retries: u32,
    expires: Option<Timestamp>,
}

impl Arrival {
    /// Notes what is told of a task; `None` for one whose arrival was told before it was delayed.
    pub(in crate::worker) fn of(request: &TaskRequest, was_delayed: bool) -> Option<Self> {
        (!was_delayed || request.retries > 0).then(|| Self {
            name: name(request).to_owned(),
            root_id: request.root_id.clone(),
            parent_id: request.parent_id.clone(),
            retries: request.retries,
            expires: request.expires,
        })
    }
}

#[derive(Clone, Debug)]
enum UnrunEnd {
    Failed { exception: String, traceback: Option<String> },
    Revoked { is_expired: bool },
}

impl UnrunTask {
    /// Tells that a task failed before it ran.
    pub(in crate::worker) fn failed(request: &TaskRequest, exception: &Exception) -> Self {
        let end = UnrunEnd::Failed { exception: exception.to_string(), traceback: exception.traceback(&request.task) };
        Self { id: request.id.clone(), end, arrival: None }
    }

    /// Has its arrival and its beginning told as well: a Python worker finds the fault by running the task.
    pub(in crate::worker) fn arrived(&mut self, arrival: Option<Arrival>) {
        self.arrival = arrival;
    }

    /// Tells that a task was revoked, or that its time had passed.
    pub(in crate::worker) fn revoked(request: &TaskRequest, is_expired: bool) -> Self {
        Self { id: request.id.clone(), end: UnrunEnd::Revoked { is_expired }, arrival: None }
    }
}

/// Composes events and keeps them until they are sent, and counts what monitors are told.
#[derive(Debug)]
pub(in crate::worker) struct Monitor {
    source: EventSource,
    wall: WallClock,
    /// The Lamport clock.
    clock: u64,
    /// Events about tasks are wanted.
    is_on: bool,
    tasks: Vec<String>,
    workers: Vec<Publication>,
    dropped: u64,
    next_beat: Instant,
    began: Instant,
    /// Commands that have begun, by the name of the task.
    totals: BTreeMap<&'static str, u64>,
}

impl Monitor {
    pub(in crate::worker) fn new(node: &str, is_on: bool, wall: WallClock) -> Self {
        let west = -f64::from(TimeZone::system().to_offset(wall.now()).seconds()) / 3600.0;
        // Not -0.0, which Python writes in another way.
        let source = EventSource { hostname: node.to_owned(), pid: std::process::id(), utcoffset: west + 0.0 };
        Self {
            source,
            wall,
            clock: 0,
            is_on,
            tasks: Vec::new(),
            workers: Vec::new(),
            dropped: 0,
            next_beat: Instant::now(),
            began: Instant::now(),
            totals: BTreeMap::new(),
        }
    }

    /// Has events about tasks sent, or not; tells whether that is a change.
    pub(in crate::worker) const fn switch(&mut self, is_on: bool) -> bool {
        let is_change = self.is_on != is_on;
        self.is_on = is_on;
        is_change
    }

    /// Counts an event of this worker on its Lamport clock and returns the time.
    pub(in crate::worker) const fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Returns the Lamport clock.
    pub(in crate::worker) const fn clock(&self) -> u64 {
        self.clock
    }

    /// Takes in the Lamport clock of another node.
    pub(in crate::worker) fn hear(&mut self, clock: u64) {
        self.clock = self.clock.max(clock).saturating_add(1);
    }

    /// Returns how long the worker runs.
    pub(in crate::worker) fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// Returns how often each task has begun.
    pub(in crate::worker) const fn totals(&self) -> &BTreeMap<&'static str, u64> {
        &self.totals
    }

    /// Counts a command that begins.
    pub(in crate::worker) fn count(&mut self, task: &'static str) {
        *self.totals.entry(task).or_default() += 1;
    }

    /// Tells of the worker itself.
    pub(in crate::worker) fn worker(&mut self, event: WorkerEvent, active: usize) {
        let load = WorkerLoad {
            freq: HEARTBEAT.as_secs_f64(),
            active,
            processed: self.totals.values().sum(),
            loadavg: loadavg(),
        };
        let moment = self.moment();
        // A worker that could not send for long has nothing to say of the past.
        self.workers.truncate(1);
        self.workers.push(self.source.worker(event, &load, moment));
        self.next_beat = Instant::now() + HEARTBEAT;
    }

    /// Tells of the worker when it is time, and returns the next time.
    pub(in crate::worker) fn beat(&mut self, active: usize) -> Instant {
        if self.next_beat <= Instant::now() {
            self.worker(WorkerEvent::Heartbeat, active);
        }
        self.next_beat
    }

    /// Tells that a command has arrived.
    pub(in crate::worker) fn received(&mut self, request: &TaskRequest, keys: &[KeyUse], eta: Option<Timestamp>) {
        if !self.is_on {
            return;
        }
        let event = TaskEvent::Received {
            name: name(request),
            args: "()",
            kwargs: &shown_keys(keys),
            root_id: request.root_id.as_deref(),
            parent_id: request.parent_id.as_deref(),
            retries: request.retries,
            eta,
            expires: request.expires,
        };
        self.task(&request.id, &event);
    }

    /// Tells that a command begins.
    pub(in crate::worker) fn started(&mut self, request: &TaskRequest) {
        self.tell(&request.id, &TaskEvent::Started);
    }

    /// Tells how a command ended. `is_shown`: its result is no value of anybody's and no secret.
    pub(in crate::worker) fn succeeded(&mut self, request: &TaskRequest, result: &str, is_shown: bool, ran: Duration) {
        if self.is_on {
            let result = shown_result(result, is_shown);
            self.task(&request.id, &TaskEvent::Succeeded { result: &result, runtime: ran.as_secs_f64() });
        }
    }

    /// Tells that a command failed for good.
    pub(in crate::worker) fn failed(&mut self, request: &TaskRequest, exception: &Exception) {
        if self.is_on {
            let (text, traceback) = (exception.to_string(), exception.traceback(&request.task));
            self.task(&request.id, &TaskEvent::Failed { exception: &text, traceback: traceback.as_deref() });
        }
    }

    /// Tells that a command failed and will run again.
    pub(in crate::worker) fn retried(&mut self, request: &TaskRequest, exception: &Exception) {
        if self.is_on {
            let (text, traceback) = (exception.to_string(), exception.traceback(&request.task));
            self.task(&request.id, &TaskEvent::Retried { exception: &text, traceback: traceback.as_deref() });
        }
    }

    /// Tells that a command that ran was stopped by a signal of this number.
    pub(in crate::worker) fn terminated(&mut self, request: &TaskRequest, signum: i32) {
        self.tell(&request.id, &TaskEvent::Revoked { terminated: true, signum: Some(signum), expired: false });
    }

    /// Tells what a task came to that did not run.
    pub(in crate::worker) fn ended(&mut self, news: &UnrunTask) {
        if let Some(arrival) = &news.arrival {
            let event = TaskEvent::Received {
                name: &arrival.name,
                args: "()",
                kwargs: &shown_keys(&[]),
                root_id: arrival.root_id.as_deref(),
                parent_id: arrival.parent_id.as_deref(),
                retries: arrival.retries,
                eta: None,
                expires: arrival.expires,
            };
            self.tell(&news.id, &event);
            self.tell(&news.id, &TaskEvent::Started);
        }
        match &news.end {
            UnrunEnd::Failed { exception, traceback } => {
                self.tell(&news.id, &TaskEvent::Failed { exception, traceback: traceback.as_deref() });
            }
            UnrunEnd::Revoked { is_expired } => {
                self.tell(&news.id, &TaskEvent::Revoked { terminated: false, signum: None, expired: *is_expired });
            }
        }
    }

    fn tell(&mut self, id: &str, event: &TaskEvent<'_>) {
        if self.is_on {
            self.task(id, event);
        }
    }

    fn task(&mut self, id: &str, event: &TaskEvent<'_>) {
        let moment = self.moment();
        if self.tasks.len() >= MOST {
            if self.dropped == 0 {
                tracing::warn!("events for monitors are lost: the broker does not take them as fast as commands end");
            }
            self.dropped += 1;
            return;
        }
        self.tasks.push(self.source.task(id, event, moment));
    }

    fn moment(&mut self) -> Moment {
        Moment { clock: self.tick(), at: self.wall.now() }
    }

    /// Takes what is to be sent.
    pub(in crate::worker) fn take(&mut self) -> Vec<Publication> {
        if std::mem::take(&mut self.dropped) > 0 {
            tracing::info!("events for monitors are sent again");
        }
        let mut publications = std::mem::take(&mut self.workers);
        publications.extend(self.tasks.chunks(BATCH).map(|events| self.source.tasks(events)));
        self.tasks.clear();
        publications
    }

    /// Tells whether something is to be sent.
    pub(in crate::worker) const fn is_empty(&self) -> bool {
        self.workers.is_empty() && self.tasks.is_empty()
    }

    /// Forgets what was not sent: it belongs to a session that is over.
    pub(in crate::worker) fn forget(&mut self) {
        self.workers.clear();
        self.tasks.clear();
    }
}

/// Returns the name that is shown of a task.
pub(super) fn name(request: &TaskRequest) -> &str {
    request.shadow.as_deref().unwrap_or(&request.task)
}

/// Writes the keys of a command as Python shows named arguments.
pub(super) fn shown_keys(keys: &[KeyUse]) -> String {
    let mut out = String::new();
    match keys {
        [] => out.push_str("{}"),
        [one] => {
            out.push_str("{'key': ");
            write_display(&mut out, one.key.as_str());
            out.push('}');
        }
        many => {
            out.push_str("{'keys': [");
            for (index, used) in many.iter().take(MOST_KEYS).enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_display(&mut out, used.key.as_str());
            }
            out.push_str(if many.len() > MOST_KEYS { ", ...]}" } else { "]}" });
        }
    }
    out
}

/// Writes a result as Python shows it, or its size.
fn shown_result(result: &str, is_shown: bool) -> String {
    if is_shown
        && result.len() <= LONGEST_RESULT
        && let Some(text) = display(result)
    {
        return text;
    }
    format!("<{} bytes>", result.len())
}

/// Returns the load of the machine over 1, 5 and 15 minutes.
fn loadavg() -> [f64; 3] {
    // Fixed-point numbers with 16 bits behind the point, shown with two decimals as Python shows them.
    rustix::system::sysinfo().loads.map(|load| (load as f64 / 65536.0 * 100.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::{Key, KeyUse};

    fn used(key: &str) -> KeyUse {
        KeyUse { key: Key::parse(key).unwrap(), writes: false }
    }

    #[test]
    fn keys_are_shown_and_values_never() {
        assert_eq!(shown_keys(&[]), "{}");
        assert_eq!(shown_keys(&[used("it's")]), "{'key': \"it's\"}");
        assert_eq!(shown_keys(&[used("a"), used("b")]), "{'keys': ['a', 'b']}");
        let many: Vec<_> = (0..9).map(|number| used(&number.to_string())).collect();
        assert!(shown_keys(&many).ends_with("'7', ...]}"));
    }

    #[test]
    fn small_results_are_shown_and_others_by_their_size() {
        assert_eq!(shown_result("true", true), "True");
        assert_eq!(shown_result(r#"{"key":"a","size":3}"#, true), "{'key': 'a', 'size': 3}");
        assert_eq!(shown_result("\"secret\"", false), "<8 bytes>");
        assert_eq!(shown_result(&"9".repeat(600), true), "<600 bytes>");
    }

    #[test]
    fn the_clock_is_never_behind_what_was_heard() {
        let mut monitor = Monitor::new("w@h", true, WallClock::default());
        assert_eq!(monitor.tick(), 1);
        monitor.hear(40);
        assert_eq!(monitor.clock(), 41);
        monitor.hear(3);
        assert_eq!(monitor.clock(), 42);
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeat_is_due_every_two_seconds() {
        let mut monitor = Monitor::new("w@h", false, WallClock::default());
        monitor.worker(WorkerEvent::Online, 0);
        assert_eq!(monitor.take().len(), 1);
        let next = monitor.beat(0);
        assert!(monitor.is_empty());
        tokio::time::sleep_until(next).await;
        assert_eq!(monitor.beat(3) - next, Duration::from_secs(2));
        let sent = monitor.take();
        assert_eq!(sent[0].address.routing_key, "worker.heartbeat");
        assert!(String::from_utf8_lossy(&sent[0].message.body).contains("\"active\":3"));
    }

    #[test]
    fn no_more_events_wait_than_there_is_room_for() {
        let mut monitor = Monitor::new("w@h", true, WallClock::default());
        for number in 0..MOST + 5 {
            monitor.tell(&number.to_string(), &TaskEvent::Started);
        }
        assert_eq!(monitor.dropped, 5);
        let batches = monitor.take();
        assert_eq!(batches.len(), MOST / BATCH);
        assert!(monitor.is_empty() && monitor.dropped == 0);
        monitor.switch(false);
        monitor.tell("off", &TaskEvent::Started);
        assert!(monitor.is_empty());
    }
}
