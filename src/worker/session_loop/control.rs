//! Remote control: what `celery inspect` and `celery control` ask of the worker.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::SessionLoop;
use crate::broker::{Exchange, ExchangeType, Topology};
use crate::celery::control::{Arguments, ControlReply, ControlRequest, REPLY_EXCHANGE, RateLimit};
use crate::celery::event::{EVENT_EXCHANGE, WorkerEvent};
use crate::commands::{Definition, KeyUse};
use crate::json::write_string;
use crate::worker::intake::policy::{ReadyTask, TaskContext};
use crate::worker::journal::Revoked;
use crate::worker::remote::limits::TimeLimits;
use crate::worker::remote::{QueueInfo, TaskInfo, WorkerStats};
use crate::worker::signals::Stop;

/// Bytes of answers that wait to be sent at most.
const MOST_REPLIES: usize = 16 << 20;
/// The longest answer in bytes.
const LONGEST_REPLY: usize = 4 << 20;
/// Queues that are consumed at most where remote control adds them.
const MOST_QUEUES: usize = 64;
/// Commands in flight that may be asked for at most.
const MOST_PERMITS: usize = 65_535;
/// The number of the signal that terminates a task unless another is named.
const SIGTERM: i32 = 15;

/// Where a task is that somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whereabouts {
    Running,
    Waiting,
}

impl SessionLoop<'_> {
    /// Carries a request out and answers it.
    pub(super) fn control(&mut self, request: &ControlRequest) {
        self.worker.monitor.hear(request.clock);
        let reply = self.carry_out(request);
        let (Some(to), Some(reply)) = (&request.reply_to, reply) else { return };
        let clock = self.worker.monitor.tick();
        let node = &self.worker.options.node;
        let mut reply = reply.publication(node, to, clock);
        if reply.message.body.len() > LONGEST_REPLY {
            let error = format!("the answer has more than {LONGEST_REPLY} bytes");
            reply = ControlReply::Error(error).publication(node, to, clock);
        }
        let waiting: usize = self.replies.iter().map(|reply| reply.message.body.len()).sum();
        if waiting + reply.message.body.len() > MOST_REPLIES {
            tracing::warn!(method = request.method, "too many answers to remote control wait; this one is not given");
            return;
        }
        self.replies.push(reply);
    }

    fn carry_out(&mut self, request: &ControlRequest) -> Option<ControlReply> {
        let ControlRequest { method, arguments, .. } = request;
        let value = |text: String| Some(ControlReply::Value(text));
        let ok = |text: &str| Some(ControlReply::Ok(text.to_owned()));
        match method.as_str() {
            "ping" => ok("pong"),
            "clock" => value(format!("{{\"clock\":{}}}", self.worker.monitor.clock())),
            "stats" => value(self.stats()),
            "active" | "dump_active" => value(self.active(arguments.is_true("safe"))),
            "reserved" | "dump_reserved" => value(self.reserved()),
            // What waits for its eta waits in the broker.
            "scheduled" | "dump_schedule" => value("[]".to_owned()),
            "revoked" | "dump_revoked" => value(list(&self.worker.journal.revocations.ids())),
            "registered" | "dump_tasks" => value(self.registered(&arguments.texts("taskinfoitems"))),
            "active_queues" => value(self.active_queues()),
            "conf" | "dump_conf" => {
                value(self.worker.options.shown.conf(arguments.is_true("with_defaults")).to_owned())
            }
            "report" => ok(&self.worker.options.shown.report()),
            "query_task" => value(self.query(&arguments.texts("ids"))),
            "hello" => self.hello(arguments),
            "memsample" => {
                let kibibytes = crate::telemetry::process_usage().peak_bytes / 1024;
                value(format!("\"{}MB\"", kibibytes / 1024))
            }
            "memdump" | "objgraph" => {
                Some(ControlReply::Error(format!("{method}: this worker has no Python objects; see its /metrics")))
            }
            "election" => value("null".to_owned()),
            "heartbeat" => {
                self.worker.monitor.worker(WorkerEvent::Heartbeat, self.running.len());
                value("null".to_owned())
            }
            "enable_events" => ok(match self.worker.monitor.switch(true) {
                true => "task events enabled",
                false => "task events already enabled",
            }),
            "disable_events" => ok(match self.worker.monitor.switch(false) {
                true => "task events disabled",
                false => "task events already disabled",
            }),
            "revoke" => Some(self.revoke(arguments, arguments.is_true("terminate"))),
            "terminate" => Some(self.revoke(arguments, true)),
            "revoke_by_stamped_headers" => Some(self.revoke_stamps(arguments)),
            "rate_limit" => Some(self.rate_limit(arguments)),
            "time_limit" => Some(self.time_limit(arguments)),
            "pool_grow" => Some(self.resize(arguments, true)),
            "pool_shrink" => Some(self.resize(arguments, false)),
            "autoscale" => Some(ControlReply::exception("ValueError", "Autoscale not enabled")),
            "pool_restart" => Some(ControlReply::exception("ValueError", "Pool restarts not enabled")),
            "add_consumer" => Some(self.add_consumer(arguments)),
            "cancel_consumer" => Some(self.cancel_consumer(arguments)),
            "shutdown" => {
                tracing::info!("told to stop by remote control");
                self.worker.shutdown = Stop::Warm;
                // Celery answers this to nobody.
                None
            }
            unknown => Some(ControlReply::exception("KeyError", unknown)),
        }
    }

    fn info<'t>(&'t self, context: &'t TaskContext, keys: &'t [KeyUse], began: Option<Instant>) -> TaskInfo<'t> {
        let ago = |began: Instant| SignedDuration::try_from(began.elapsed()).unwrap_or_default();
        let now = self.worker.options.clock.now();
        let began = began.map(|began| now.checked_sub(ago(began)).unwrap_or(Timestamp::UNIX_EPOCH));
        TaskInfo { context, keys, node: &self.worker.options.node, began }
    }

    fn active(&self, is_safe: bool) -> String {
        let mut running: Vec<_> = self.running.values().collect();
        running.sort_unstable_by_key(|running| running.number);
        let infos = running.iter().map(|running| self.info(&running.context, &running.keys, Some(running.started)));
        written(infos, |info, out| info.write(out, is_safe))
    }

    /// Walks the tasks that are here and have not begun.
    fn waiting(&self) -> impl Iterator<Item = &ReadyTask> {
        self.scheduler.waiting().chain(self.intake.readings.put_off_tasks())
    }

    fn reserved(&self) -> String {
        let infos = self.waiting().map(|task| self.info(&task.context, &task.keys, None));
        written(infos, |info, out| info.write(out, false))
    }

    fn query(&self, ids: &[String]) -> String {
        let mut out = String::from("{");
        let mut push = |state: &str, info: &TaskInfo<'_>| {
            out.push_str(if out.len() > 1 { "," } else { "" });
            write_string(&mut out, &info.context.request.id);
            out.push_str(":[\"");
            out.push_str(state);
            out.push_str("\",");
            info.write(&mut out, false);
            out.push(']');
        };
        let is_asked = |context: &TaskContext| ids.contains(&context.request.id);
        for running in self.running.values().filter(|running| is_asked(&running.context)) {
            push("active", &self.info(&running.context, &running.keys, Some(running.started)));
        }
        for task in self.waiting().filter(|task| is_asked(&task.context)) {
            push("reserved", &self.info(&task.context, &task.keys, None));
        }
        out.push('}');
        out
    }

    fn registered(&self, items: &[String]) -> String {
        // Of what Celery knows of a task there is a rate only.
        let shows_rate = items.is_empty() || items.iter().any(|item| item == "rate_limit");
        let tasks = self.worker.options.commands.names().map(|task| match self.worker.limits.rate(task) {
            Some(rate) if shows_rate => format!("{task} [rate_limit={rate}]"),
            _ => task.to_owned(),
        });
        let mut tasks: Vec<_> = tasks.collect();
        tasks.sort_unstable();
        list(&tasks)
    }

    fn active_queues(&self) -> String {
        written(self.worker.options.queues.iter().map(|queue| QueueInfo(queue)), |queue, out| queue.write(out))
    }

    fn stats(&self) -> String {
        let options = &self.worker.options;
        let stats = WorkerStats {
            totals: self.worker.monitor.totals(),
            clock: self.worker.monitor.clock(),
            uptime: self.worker.monitor.uptime(),
            concurrency: self.scheduler.permits(),
            prefetch: self.consumer.window(),
            times: (options.time_limit, options.soft_time_limit),
            limits: &self.worker.limits,
            broker: &crate::worker::remote::broker_info(self.session.url()),
        };
        let mut out = String::new();
        stats.write(&mut out);
        out
    }

    fn hello(&mut self, arguments: &Arguments) -> Option<ControlReply> {
        if arguments.text("from_node") == Some(&self.worker.options.node) {
            return Some(ControlReply::Value("null".to_owned()));
        }
        // A list of ids, or a table of them from earlier versions.
        let mut ids = arguments.texts("revoked");
        if let Some(table) = arguments.get("revoked").and_then(|revoked| revoked.as_object()) {
            ids.extend(table.iter().map(|(id, _)| id.clone()));
        }
        self.remember(ids.into_iter().map(|revoke| Revoked::Id { revoke }));
        let ids = list(&self.worker.journal.revocations.ids());
        let clock = self.worker.monitor.tick();
        Some(ControlReply::Value(format!("{{\"revoked\":{ids},\"clock\":{clock}}}")))
    }

    fn remember(&mut self, revoked: impl IntoIterator<Item = Revoked>) {
        if let Err(error) = self.worker.journal.revocations.revoke(revoked) {
            tracing::error!(%error, "what is revoked cannot be written, and a restart forgets it");
        }
    }

    fn whereabouts(&self, is_meant: impl Fn(&TaskContext) -> bool) -> Option<Whereabouts> {
        if self.running.values().any(|running| is_meant(&running.context)) {
            return Some(Whereabouts::Running);
        }
        self.waiting().any(|task| is_meant(&task.context)).then_some(Whereabouts::Waiting)
    }

    fn revoke(&mut self, arguments: &Arguments, is_terminated: bool) -> ControlReply {
        let ids = arguments.texts("task_id");
        if ids.is_empty() {
            return ControlReply::exception("TypeError", "revoke() missing 1 required positional argument: 'task_id'");
        }
        let told: Vec<String> = ids
            .iter()
            .map(|id| match self.whereabouts(|context| context.request.id == *id) {
                Some(Whereabouts::Running) => format!("{id} runs"),
                Some(Whereabouts::Waiting) => format!("{id} waits"),
                None => format!("{id} is not here"),
            })
            .collect();
        self.remember(ids.iter().map(|id| Revoked::Id { revoke: id.clone() }));
        if !is_terminated {
            let set: Vec<_> = ids.iter().map(|id| format!("'{id}'")).collect();
            return ControlReply::Ok(format!("tasks {{{}}} flagged as revoked ({})", set.join(", "), told.join(", ")));
        }
        let signum = match signal(arguments) {
            Ok(signum) => signum,
            Err(error) => return ControlReply::Error(error),
        };
        let terminated = self.terminate(signum, |context| ids.contains(&context.request.id));
        if terminated.is_empty() {
            return ControlReply::Ok("terminate: tasks unknown".to_owned());
        }
        ControlReply::Ok(format!("terminate: {}", terminated.join(", ")))
    }

    fn revoke_stamps(&mut self, arguments: &Arguments) -> ControlReply {
        let stamps = arguments.stamps("headers");
        if stamps.is_empty() {
            return ControlReply::Error("no stamped headers are named".to_owned());
        }
        self.remember(
            stamps.iter().map(|(header, value)| Revoked::Stamp { header: header.clone(), value: value.clone() }),
        );
        let set: Vec<_> = stamps.iter().map(|(header, value)| format!("'{header}': '{value}'")).collect();
        let set = format!("headers {{{}}}", set.join(", "));
        if !arguments.is_true("terminate") {
            return ControlReply::Ok(format!("{set} flagged as revoked, but not terminated"));
        }
        let signum = match signal(arguments) {
            Ok(signum) => signum,
            Err(error) => return ControlReply::Error(error),
        };
        let before: Vec<String> = self.running.values().map(|running| running.context.request.id.clone()).collect();
        let revocations = &mut self.worker.journal.revocations;
        let meant: Vec<String> = self
            .running
            .values()
            .filter(|running| revocations.contains(&running.context.request))
            .map(|running| running.context.request.id.clone())
            .collect();
        let terminated = self.terminate(signum, |context| meant.contains(&context.request.id));
        tracing::debug!(running = before.len(), terminated = terminated.len(), "revoked by stamps");
        let end = if terminated.is_empty() { "were not terminated" } else { "revoked" };
        ControlReply::Ok(format!("{set} {end}"))
    }

    /// Stops commands that run, where they are not past the point at which they take effect. Returns their ids.
    fn terminate(&mut self, signum: i32, is_meant: impl Fn(&TaskContext) -> bool) -> Vec<String> {
        let mut terminated = Vec::new();
        for running in self.running.values_mut().filter(|running| is_meant(&running.context)) {
            // What is past it goes on, and its answer tells what it did.
            if running.commit_guard.abandon() {
                running.terminated = Some(signum);
                running.handle.abort();
                terminated.push(running.context.request.id.clone());
            }
        }
        terminated
    }

    fn definition(&self, arguments: &Arguments) -> Option<&'static Definition> {
        arguments.text("task_name").and_then(|task| self.worker.options.commands.find(task))
    }

    fn rate_limit(&mut self, arguments: &Arguments) -> ControlReply {
        let limit = match RateLimit::read(arguments.get("rate_limit")) {
            Ok(limit) => limit,
            Err(error) => return ControlReply::Error(format!("Invalid rate limit string: {error}")),
        };
        let Some(definition) = self.definition(arguments) else {
            return ControlReply::Error("unknown task".to_owned());
        };
        let text = match arguments.get("rate_limit") {
            Some(value) => value.as_text().map_or_else(|| value.compact(), str::to_owned),
            None => "0".to_owned(),
        };
        tracing::info!(task = definition.task, rate_limit = text, "rate limit set by remote control");
        self.worker.limits.set_rate(definition.task, limit, text);
        ControlReply::Ok(match limit {
            RateLimit::None => "rate limit disabled successfully".to_owned(),
            RateLimit::Every(_) => "new rate limit set successfully".to_owned(),
        })
    }

    fn time_limit(&mut self, arguments: &Arguments) -> ControlReply {
        let Some(definition) = self.definition(arguments) else {
            return ControlReply::Error("unknown task".to_owned());
        };
        let (hard, soft) = match (arguments.seconds("hard"), arguments.seconds("soft")) {
            (Ok(hard), Ok(soft)) => (hard, soft),
            (Err(error), _) | (_, Err(error)) => return ControlReply::Error(error),
        };
        tracing::info!(task = definition.task, ?hard, ?soft, "time limits set by remote control");
        self.worker.limits.set_times(definition.task, TimeLimits { hard, soft });
        self.policy.set_limits(self.worker.limits.clone());
        ControlReply::Ok("time limits set successfully".to_owned())
    }

    fn resize(&mut self, arguments: &Arguments, is_larger: bool) -> ControlReply {
        let count = match arguments.count("n") {
            Ok(count) => count,
            Err(error) => return ControlReply::Error(error),
        };
        let permits = self.scheduler.permits();
        let wanted = if is_larger { permits.saturating_add(count) } else { permits.saturating_sub(count) };
        if !(1..=MOST_PERMITS).contains(&wanted) {
            return ControlReply::Error(format!("{wanted} commands in flight are not from 1 to {MOST_PERMITS}"));
        }
        self.scheduler.set_permits(wanted);
        self.worker.options.concurrency = wanted;
        let (prefetch, bytes) = self.worker.options.prefetch(self.worker.options.queues.len());
        self.consumer.adapt_prefetch(prefetch, bytes);
        tracing::info!(concurrency = wanted, "commands in flight set by remote control");
        ControlReply::Ok(if is_larger { "pool will grow" } else { "pool will shrink" }.to_owned())
    }

    fn add_consumer(&mut self, arguments: &Arguments) -> ControlReply {
        let Some(queue) = arguments.text("queue").filter(|queue| Topology::may_hold_commands(queue)) else {
            return ControlReply::Error("queue is no name of a queue of commands".to_owned());
        };
        if self.worker.options.queues.len() >= MOST_QUEUES {
            return ControlReply::Error(format!("{MOST_QUEUES} queues are consumed already"));
        }
        let exchange = arguments.text("exchange").unwrap_or(queue);
        let kind = arguments.text("exchange_type").unwrap_or("direct");
        if exchange != queue || kind != "direct" {
            let error = format!(
                "this worker consumes queues and binds none: bind {queue} to exchange {exchange} with the tools of the broker, and add \
                 the queue alone"
            );
            return ControlReply::Error(error);
        }
        if self.worker.options.queues.iter().any(|known| known == queue) {
            return ControlReply::Ok(format!("already consuming from {queue}"));
        }
        let trial = self.worker.consumed_queues.add(queue, &self.session, &self.consumer.joiner());
        self.trials.extend(trial);
        self.report_queues();
        tracing::info!(queue, "to be consumed, as told by remote control");
        ControlReply::Ok(format!("add consumer {queue}"))
    }

    fn cancel_consumer(&mut self, arguments: &Arguments) -> ControlReply {
        let Some(queue) = arguments.text("queue") else {
            return ControlReply::Error("queue is no name".to_owned());
        };
        self.worker.options.queues.retain(|known| known != queue);
        self.worker.consumed_queues.forget(queue);
        self.consumer.leave(queue);
        self.report_queues();
        tracing::info!(queue, "not consumed any more, as told by remote control");
        ControlReply::Ok(format!("no longer consuming from {queue}"))
    }

    /// Sends what monitors and those who asked are told, one message after another; what cannot be sent is lost.
    pub(super) fn notify(&mut self) {
        if self.notifying.is_some() || self.replies.is_empty() && self.worker.monitor.is_empty() {
            return;
        }
        let (session, replies, events) =
            (self.session.share(), std::mem::take(&mut self.replies), self.worker.monitor.take());
        self.notifying = Some(Box::pin(async move {
            let mut failed = None;
            let exchange = |name: &str, kind, durable| Exchange { name: name.to_owned(), kind, durable };
            for (exchange, publications) in [
                (exchange(REPLY_EXCHANGE, ExchangeType::Direct, false), replies),
                (exchange(EVENT_EXCHANGE, ExchangeType::Topic, true), events),
            ] {
                if !publications.is_empty()
                    && let Err(error) = session.notify(&exchange, publications).await
                {
                    failed = Some(format!("exchange '{}': {error}", exchange.name));
                }
            }
            failed
        }));
    }

    /// Takes in what came of sending. Each reason is said once.
    pub(super) fn notified(&mut self, failed: Option<String>) {
        self.notifying = None;
        if failed != self.worker.unheard {
            match &failed {
                Some(reason) => tracing::warn!(reason, "monitors are not told of this worker"),
                None => tracing::info!("monitors are told of this worker"),
            }
            self.worker.unheard = failed;
        }
    }

    /// Says the last word of the worker to monitors.
    pub(super) async fn say_goodbye(&mut self) {
        self.worker.monitor.worker(WorkerEvent::Offline, self.running.len());
        if let Some(notifying) = self.notifying.take() {
            drop(tokio::time::timeout(GOODBYE, notifying).await);
        }
        self.notify();
        if let Some(notifying) = self.notifying.take() {
            drop(tokio::time::timeout(GOODBYE, notifying).await);
        }
    }
}

/// How long the last word may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Reads the signal that is to end a task; only its number is told.
fn signal(arguments: &Arguments) -> Result<i32, String> {
    let Some(value) = arguments.get("signal") else { return Ok(SIGTERM) };
    if let Some(number) = value.as_i64() {
        return i32::try_from(number).map_err(|_| "signal is no number of a signal".to_owned());
    }
    let name = value.as_text().unwrap_or_default();
    let name = name.strip_prefix("SIG").unwrap_or(name);
    let known = [("HUP", 1), ("INT", 2), ("QUIT", 3), ("KILL", 9), ("USR1", 10), ("USR2", 12), ("TERM", SIGTERM)];
    let found = known.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    found.ok_or_else(|| "signal is not known: use TERM, KILL, INT, QUIT, HUP, USR1 or USR2".to_owned())
}

/// Writes a JSON array.
fn written<T>(items: impl Iterator<Item = T>, write: impl Fn(&T, &mut String)) -> String {
    let mut out = String::from("[");
    for (index, item) in items.enumerate() {
        out.push_str(if index > 0 { "," } else { "" });
        write(&item, &mut out);
    }
    out.push(']');
    out
}

fn list(texts: &[String]) -> String {
    written(texts.iter(), |text, out| write_string(out, text))
}
