//! Celery's events about workers and tasks, as monitors (`celery events`, Flower, exporters) read them.
//!
//! An event is one JSON object. Events about a worker are published alone, those about tasks together as an array, as a Python worker
//! on RabbitMQ does.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::message::{Address, Field, Headers, Message, Properties, Publication};
use crate::json::write_string;

/// The durable topic exchange of all events, unless the application names another.
pub const EVENT_EXCHANGE: &str = "celeryev";
/// The routing key of an array of events about tasks.
const MULTI: &str = "task.multi";
/// The name and the version of the software that monitors show for a worker.
const SW_IDENT: &str = "filestorage";

/// The worker that events come from.
#[derive(Clone, Debug)]
pub struct EventSource {
    /// The node name.
    pub hostname: String,
    /// The process id.
    pub pid: u32,
    /// Hours that local time is west of UTC, as Celery counts them: -5.5 in India.
    pub utcoffset: f64,
}

/// When an event happened: the Lamport clock of the worker and the time of day.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The clock.
    pub clock: u64,
    /// The time.
    pub at: Timestamp,
}

/// What an event says of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerEvent {
    /// The worker has begun to work.
    Online,
    /// The worker lives.
    Heartbeat,
    /// The worker goes in order.
    Offline,
}

/// The numbers in each event about a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WorkerLoad {
    /// Seconds between two heartbeats.
    pub freq: f64,
    /// Commands that run.
    pub active: usize,
    /// Commands that have begun since the process began.
    pub processed: u64,
    /// The load of the machine over 1, 5 and 15 minutes.
    pub loadavg: [f64; 3],
}

/// What an event says of a task.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskEvent<'a> {
    /// The worker has the task.
    Received {
        /// Its name, or what is shown instead.
        name: &'a str,
        /// Positional arguments as text.
        args: &'a str,
        /// Named arguments as text.
        kwargs: &'a str,
        /// The first task of the workflow.
        root_id: Option<&'a str>,
        /// The task that published this one.
        parent_id: Option<&'a str>,
        /// Retries so far.
        retries: u32,
        /// The time before which it does not start.
        eta: Option<Timestamp>,
        /// The time after which it does not start.
        expires: Option<Timestamp>,
    },
    /// It runs.
    Started,
    /// It returned.
    Succeeded {
        /// The result as text.
        result: &'a str,
        /// Seconds that it ran.
        runtime: f64,
    },
    /// It failed for good.
    Failed {
        /// The exception as Python shows it.
        exception: &'a str,
        /// The traceback; none of a task that is not registered.
        traceback: Option<&'a str>,
    },
    /// It failed and will run again.
    Retried {
        /// The exception as Python shows it.
        exception: &'a str,
        /// The traceback.
        traceback: Option<&'a str>,
    },
    /// It was given up without having run; a copy is kept.
    Rejected {
        /// It goes back to its queue.
        requeue: bool,
    },
    /// It was revoked.
    Revoked {
        /// It ran and was stopped.
        terminated: bool,
        /// The number of the signal that asked for it.
        signum: Option<i32>,
        /// Its time had passed.
        expired: bool,
    },
}

impl WorkerEvent {
    const fn kind(self) -> &'static str {
        match self {
            Self::Online => "worker-online",
            Self::Heartbeat => "worker-heartbeat",
            Self::Offline => "worker-offline",
        }
    }
}

impl TaskEvent<'_> {
    /// Returns the type of the event.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Received { .. } => "task-received",
            Self::Started => "task-started",
            Self::Succeeded { .. } => "task-succeeded",
            Self::Failed { .. } => "task-failed",
            Self::Retried { .. } => "task-retried",
            Self::Rejected { .. } => "task-rejected",
            Self::Revoked { .. } => "task-revoked",
        }
    }
}

impl EventSource {
    /// Writes an event about the worker as a message.
    #[must_use]
    pub fn worker(&self, event: WorkerEvent, load: &WorkerLoad, moment: Moment) -> Publication {
        let mut body = String::with_capacity(320);
        self.begin(&mut body, moment.clock);
        let WorkerLoad { freq, active, processed, loadavg: [one, five, fifteen] } = load;
        push(&mut body, format_args!(",\"freq\":{freq:?},\"active\":{active},\"processed\":{processed}"));
        push(&mut body, format_args!(",\"loadavg\":[{one:?},{five:?},{fifteen:?}],\"sw_ident\":\"{SW_IDENT}\""));
        push(&mut body, format_args!(",\"sw_ver\":\"{}\",\"sw_sys\":\"Linux\"", env!("CARGO_PKG_VERSION")));
        end(&mut body, event.kind(), moment.at);
        self.publication(&event.kind().replace('-', "."), body)
    }

    /// Writes an event about a task, to be published among others by [`EventSource::tasks`].
    #[must_use]
    pub fn task(&self, id: &str, event: &TaskEvent<'_>, moment: Moment) -> String {
        let mut body = String::with_capacity(256);
        self.begin(&mut body, moment.clock);
        text(&mut body, "uuid", id);
        match event {
            TaskEvent::Started => {}
            TaskEvent::Received { name, args, kwargs, root_id, parent_id, retries, eta, expires } => {
                text(&mut body, "name", name);
                text(&mut body, "args", args);
                text(&mut body, "kwargs", kwargs);
                optional(&mut body, "root_id", *root_id);
                optional(&mut body, "parent_id", *parent_id);
                push(&mut body, format_args!(",\"retries\":{retries}"));
                optional(&mut body, "eta", eta.map(super::time::iso).as_deref());
                optional(&mut body, "expires", expires.map(super::time::iso).as_deref());
            }
            TaskEvent::Succeeded { result, runtime } => {
                text(&mut body, "result", result);
                push(&mut body, format_args!(",\"runtime\":{runtime:?}"));
            }
            TaskEvent::Failed { exception, traceback } | TaskEvent::Retried { exception, traceback } => {
                text(&mut body, "exception", exception);
                if let Some(traceback) = traceback {
                    text(&mut body, "traceback", traceback);
                }
            }
            TaskEvent::Rejected { requeue } => push(&mut body, format_args!(",\"requeue\":{requeue}")),
            TaskEvent::Revoked { terminated, signum, expired } => {
                push(&mut body, format_args!(",\"terminated\":{terminated},\"signum\":"));
                match signum {
                    Some(signum) => push(&mut body, format_args!("{signum}")),
                    None => body.push_str("null"),
                }
                push(&mut body, format_args!(",\"expired\":{expired}"));
            }
        }
        end(&mut body, event.kind(), moment.at);
        body
    }

    /// Writes events about tasks as one message.
    #[must_use]
    pub fn tasks(&self, events: &[String]) -> Publication {
        let mut body = String::with_capacity(events.iter().map(|event| event.len() + 1).sum::<usize>() + 1);
        body.push('[');
        for (index, event) in events.iter().enumerate() {
            body.push_str(if index > 0 { "," } else { "" });
            body.push_str(event);
        }
        body.push(']');
        self.publication(MULTI, body)
    }

    fn begin(&self, body: &mut String, clock: u64) {
        body.push_str("{\"hostname\":");
        write_string(body, &self.hostname);
        let (utcoffset, pid) = (self.utcoffset, self.pid);
        push(body, format_args!(",\"utcoffset\":{utcoffset:?},\"pid\":{pid},\"clock\":{clock}"));
    }

    fn publication(&self, routing_key: &str, body: String) -> Publication {
        let properties = Properties::json(false);
        let mut headers = Headers::default();
        headers.set("hostname", Field::Text(self.hostname.clone()));
        Publication {
            address: Address { exchange: EVENT_EXCHANGE.to_owned(), routing_key: routing_key.to_owned() },
            message: Message { properties, headers, body: body.into() },
        }
    }
}

fn end(body: &mut String, kind: &str, at: Timestamp) {
    push(body, format_args!(",\"timestamp\":{:?},\"type\":\"{kind}\"}}", at.as_microsecond() as f64 / 1e6));
}

fn text(body: &mut String, name: &str, value: &str) {
    push(body, format_args!(",\"{name}\":"));
    write_string(body, value);
}

fn optional(body: &mut String, name: &str, value: Option<&str>) {
    match value {
        Some(value) => text(body, name, value),
        None => push(body, format_args!(",\"{name}\":null")),
    }
}

/// Appends formatted text; writing to memory cannot fail.
fn push(body: &mut String, arguments: std::fmt::Arguments<'_>) {
    body.write_fmt(arguments).unwrap_or_default();
}
