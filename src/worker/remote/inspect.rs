//! What `celery inspect` is told, in the shapes of a Python worker. Of arguments only the keys are told.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;

use super::limits::TaskLimits;
use super::monitor::{MOST_KEYS, name, shown_keys};
use crate::commands::KeyUse;
use crate::json::write_string;
use crate::worker::intake::policy::TaskContext;

/// A command in the worker's hands.
#[derive(Debug)]
pub(in crate::worker) struct TaskInfo<'t> {
    pub(in crate::worker) context: &'t TaskContext,
    pub(in crate::worker) keys: &'t [KeyUse],
    pub(in crate::worker) node: &'t str,
    /// When it began.
    pub(in crate::worker) began: Option<Timestamp>,
}

impl TaskInfo<'_> {
    /// Writes the command; `is_safe` shows arguments as texts.
    pub(in crate::worker) fn write(&self, out: &mut String, is_safe: bool) {
        let TaskContext { request, origin, priority, .. } = self.context;
        member(out, '{', "id", &request.id);
        member(out, ',', "name", name(request));
        if is_safe {
            member(out, ',', "args", "()");
            member(out, ',', "kwargs", &shown_keys(self.keys));
        } else {
            out.push_str(",\"args\":[],\"kwargs\":{");
            self.write_keys(out);
            out.push('}');
        }
        member(out, ',', "type", &request.task);
        member(out, ',', "hostname", self.node);
        out.push_str(",\"time_start\":");
        match self.began {
            Some(began) => push(out, format_args!("{:?}", began.as_microsecond() as f64 / 1e6)),
            None => out.push_str("null"),
        }
        // Acknowledged when it is answered, as with `task_acks_late`.
        out.push_str(",\"acknowledged\":false,\"delivery_info\":");
        member(out, '{', "exchange", &origin.exchange);
        member(out, ',', "routing_key", &origin.routing_key);
        push(out, format_args!(",\"priority\":{},\"redelivered\":{}}}", priority.unwrap_or(0), origin.redelivered));
        match self.began {
            Some(_) => push(out, format_args!(",\"worker_pid\":{}}}", std::process::id())),
            None => out.push_str(",\"worker_pid\":null}"),
        }
    }

    fn write_keys(&self, out: &mut String) {
        match self.keys {
            [] => {}
            [one] => {
                out.push_str("\"key\":");
                write_string(out, one.key.as_str());
            }
            many => {
                out.push_str("\"keys\":[");
                for (index, used) in many.iter().take(MOST_KEYS).enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    write_string(out, used.key.as_str());
                }
                out.push(']');
            }
        }
    }
}

/// A consumed queue.
#[derive(Debug)]
pub(in crate::worker) struct QueueInfo<'q>(pub(in crate::worker) &'q str);

impl QueueInfo<'_> {
    /// Writes the queue as Celery declares it; what the broker has of it may differ.
    pub(in crate::worker) fn write(&self, out: &mut String) {
        member(out, '{', "name", self.0);
        out.push_str(",\"exchange\":");
        member(out, '{', "name", self.0);
        out.push_str(
            ",\"type\":\"direct\",\"arguments\":null,\"durable\":true,\"passive\":false,\"auto_delete\":false,\
             \"delivery_mode\":null,\"no_declare\":false}",
        );
        member(out, ',', "routing_key", self.0);
        out.push_str(
            ",\"queue_arguments\":null,\"binding_arguments\":null,\"consumer_arguments\":null,\"durable\":true,\
             \"exclusive\":false,\"auto_delete\":false,\"no_ack\":false,\"alias\":null,\"bindings\":[],\
             \"no_declare\":null,\"expires\":null,\"message_ttl\":null,\"max_length\":null,\
             \"max_length_bytes\":null,\"max_priority\":null}",
        );
    }
}

/// The numbers of the worker.
#[derive(Debug)]
pub(in crate::worker) struct WorkerStats<'s> {
    pub(in crate::worker) totals: &'s BTreeMap<&'static str, u64>,
    pub(in crate::worker) clock: u64,
    pub(in crate::worker) uptime: Duration,
    pub(in crate::worker) concurrency: usize,
    pub(in crate::worker) prefetch: usize,
    pub(in crate::worker) times: (Option<Duration>, Option<Duration>),
    pub(in crate::worker) limits: &'s TaskLimits,
    /// The broker's address without secrets, in Celery's fields, as JSON.
    pub(in crate::worker) broker: &'s str,
}

impl WorkerStats<'_> {
    pub(in crate::worker) fn write(&self, out: &mut String) {
        let pid = std::process::id();
        out.push_str("{\"total\":{");
        for (index, (task, count)) in self.totals.iter().enumerate() {
            push(out, format_args!("{}\"{task}\":{count}", if index > 0 { "," } else { "" }));
        }
        push(out, format_args!("}},\"pid\":{pid},\"clock\":\"{}\",\"uptime\":{}", self.clock, self.uptime.as_secs()));
        push(
            out,
            format_args!(
                ",\"pool\":{{\"implementation\":\"filestorage:async\",\"max-concurrency\":{}",
                self.concurrency
            ),
        );
        push(
            out,
            format_args!(",\"processes\":[{pid}],\"max-tasks-per-child\":\"N/A\",\"put-guarded-by-semaphore\":false"),
        );
        let [soft, hard] = [self.times.1, self.times.0].map(|limit| limit.map_or(0.0, |limit| limit.as_secs_f64()));
        push(out, format_args!(",\"timeouts\":[{soft:?},{hard:?}]}},\"broker\":{}", self.broker));
        push(out, format_args!(",\"prefetch_count\":{},\"rusage\":{}", self.prefetch, rusage()));
        out.push_str(",\"rate_limits\":{");
        for (index, (task, rate, waited)) in self.limits.rates().enumerate() {
            push(out, format_args!("{}\"{task}\":{{\"rate\":", if index > 0 { "," } else { "" }));
            write_string(out, rate);
            push(out, format_args!(",\"waited\":{waited}}}"));
        }
        out.push_str("},\"time_limits\":{");
        for (index, (task, limits)) in self.limits.all_times().enumerate() {
            let seconds = |limit: Option<Duration>| {
                limit.map_or_else(|| "null".to_owned(), |limit| format!("{:?}", limit.as_secs_f64()))
            };
            let (hard, soft) = (seconds(limits.hard), seconds(limits.soft));
            push(
                out,
                format_args!("{}\"{task}\":{{\"hard\":{hard},\"soft\":{soft}}}", if index > 0 { "," } else { "" }),
            );
        }
        out.push_str("}}");
    }
}

/// Returns what the process has used of the machine, as Python's `resource` tells it.
fn rusage() -> String {
    let used = crate::telemetry::process_usage();
    let (user, system) = (used.user.as_secs_f64(), used.system.as_secs_f64());
    format!("{{\"utime\":{user:?},\"stime\":{system:?},\"maxrss\":{}}}", used.peak_bytes / 1024)
}

fn member(out: &mut String, mark: char, name: &str, text: &str) {
    push(out, format_args!("{mark}\"{name}\":"));
    write_string(out, text);
}

/// Appends formatted text; writing to memory cannot fail.
fn push(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).unwrap_or_default();
}
