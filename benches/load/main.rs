//! A load generator for anything that speaks Celery: keeps a window of commands in flight, prints JSON.
//!
//! It is blocking, single-threaded and writes prebuilt frames, so that it costs a few microseconds a command and the
//! worker under test is the bottleneck. Run by `benches/run`; see `--help`.

mod amqp;
mod command;

use std::io::{ErrorKind, Result, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use serde_json::json;

use crate::amqp::Client;
use crate::command::{Operation, Template, has_failed_item, is_success};

/// Sends Celery task messages and measures until each is answered.
#[derive(Parser)]
struct Arguments {
    /// Broker, as `amqp://user:password@host:port/vhost`.
    #[arg(long, default_value = "amqp://guest:guest@localhost:5672//")]
    broker: String,
    /// Queue of the worker under test; declared durable, emptied before the run. Without it nothing is done.
    queue: Option<String>,
    /// The queue is there: it is neither declared, whatever its type, nor emptied.
    #[arg(long)]
    existing: bool,
    /// `store`, `store-many`, `retrieve` or `delete`.
    #[arg(long, default_value = "store", value_parser = operation)]
    operation: Operation,
    /// Commands to send; their keys are numbered from `--first`.
    #[arg(long, default_value_t = 20_000)]
    commands: usize,
    /// Number of the first key.
    #[arg(long, default_value_t = 0)]
    first: usize,
    /// Commands in flight.
    #[arg(long, default_value_t = 256)]
    window: usize,
    /// Bytes of a value.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(12..))]
    size: u32,
    /// Values in one command of `store-many`.
    #[arg(long, default_value_t = 1_000)]
    items: usize,
    /// Stores metadata beside the value.
    #[arg(long)]
    metadata: bool,
    /// Seconds without any answer after which the rest counts as failed.
    #[arg(long, default_value_t = 30)]
    silence: u64,
    /// Also fail a `retrieve` whose answer does not hold the stored value.
    #[arg(long)]
    check_values: bool,
    /// Given by `cargo bench`, which is not how this program is meant to be run.
    #[arg(long, hide = true)]
    bench: bool,
}

fn operation(name: &str) -> std::result::Result<Operation, String> {
    match name {
        "store" => Ok(Operation::Store),
        "store-many" => Ok(Operation::StoreMany),
        "retrieve" => Ok(Operation::Retrieve),
        "delete" => Ok(Operation::Delete),
        _ => Err("store, store-many, retrieve or delete".to_owned()),
    }
}

/// What is known of one command.
#[derive(Clone, Copy)]
enum State {
    Waiting,
    Sent(Instant),
    Answered(Duration),
}

struct Run {
    states: Vec<State>,
    answered: usize,
    failed: usize,
    unexpected: usize,
    first_failure: Option<String>,
    first_answer: Option<SystemTime>,
    last_answer: Option<Instant>,
}

impl Run {
    fn new(commands: usize) -> Self {
        Self {
            states: vec![State::Waiting; commands],
            answered: 0,
            failed: 0,
            unexpected: 0,
            first_failure: None,
            first_answer: None,
            last_answer: None,
        }
    }

    /// Keeps the window full until each command is answered.
    fn drive(&mut self, client: &mut Client, template: &Template, arguments: &Arguments) -> Result<()> {
        let mut sent = 0;
        let mut out = Vec::new();
        while self.answered < arguments.commands {
            let until = arguments.commands.min(self.answered + arguments.window);
            if sent < until {
                out.clear();
                let now = Instant::now();
                for (number, state) in self.states.iter_mut().enumerate().take(until).skip(sent) {
                    template.append(arguments.first + number, &mut out);
                    *state = State::Sent(now);
                }
                client.send(&out)?;
                if sent == 0 {
                    // Whoever starts a worker to measure its first answer waits for this line.
                    writeln!(std::io::stderr(), "sent")?;
                }
                sent = until;
            }
            client.receive(|id, body| self.take(template, arguments, id, body))?;
        }
        Ok(())
    }

    fn take(&mut self, template: &Template, arguments: &Arguments, id: &[u8], body: &[u8]) {
        let number = template.number(id).and_then(|number| number.checked_sub(arguments.first));
        let state = number.and_then(|number| self.states.get_mut(number));
        let (Some(number), Some(state)) = (number, state) else {
            self.unexpected += 1;
            return;
        };
        let State::Sent(at) = *state else {
            self.unexpected += 1;
            return;
        };
        *state = State::Answered(at.elapsed());
        self.answered += 1;
        self.first_answer.get_or_insert_with(SystemTime::now);
        self.last_answer = Some(Instant::now());
        let wants_value = arguments.check_values && arguments.operation == Operation::Retrieve;
        let has_failed = arguments.operation == Operation::StoreMany && has_failed_item(body);
        if !is_success(body) || has_failed || (wants_value && !template.holds_value(arguments.first + number, body)) {
            self.failed += 1;
            self.first_failure.get_or_insert_with(|| String::from_utf8_lossy(body).into_owned());
        }
    }

    fn latencies(&self) -> Vec<Duration> {
        let mut latencies: Vec<Duration> = self
            .states
            .iter()
            .filter_map(|state| match state {
                State::Answered(after) => Some(*after),
                State::Waiting | State::Sent(_) => None,
            })
            .collect();
        latencies.sort_unstable();
        latencies
    }
}

fn measure(arguments: &Arguments, queue: &str) -> Result<serde_json::Value> {
    let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos() ^ std::process::id();
    // As Celery's clients name theirs, who may declare no others.
    let reply_to = uuid::Uuid::new_v4().to_string();
    let (size, with_metadata) = (arguments.size as usize, arguments.metadata);
    let template = Template::new(arguments.operation, queue, &reply_to, size, with_metadata, run, arguments.items);
    let mut client = Client::connect(&arguments.broker, Duration::from_secs(arguments.silence))?;
    if !arguments.existing {
        client.declare(queue, false)?;
        client.purge(queue)?;
    }
    client.declare(&reply_to, true)?;
    client.consume(&reply_to)?;

    let mut state = Run::new(arguments.commands);
    let cpu = cpu_seconds()?;
    let start = Instant::now();
    let outcome = state.drive(&mut client, &template, arguments);
    // Up to the last answer: waiting in vain for more is no part of the rate, it shows in the errors.
    let seconds = state.last_answer.map_or(0.0, |last| last.duration_since(start).as_secs_f64());
    let cpu = cpu_seconds()? - cpu;
    match outcome {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
        other => other?,
    }

    let latencies = state.latencies();
    let milliseconds = |share: f64| {
        let place = (latencies.len().saturating_sub(1) as f64 * share).round() as usize;
        latencies.get(place).map(|latency| latency.as_secs_f64() * 1e3)
    };
    Ok(json!({
        "commands": arguments.commands,
        "commands_per_second": if seconds > 0.0 { latencies.len() as f64 / seconds } else { 0.0 },
        "p50_ms": milliseconds(0.5),
        "p99_ms": milliseconds(0.99),
        "max_ms": milliseconds(1.0),
        "client_cpu_seconds": cpu,
        "errors": state.failed + arguments.commands - latencies.len(),
        "unanswered": arguments.commands - latencies.len(),
        "unexpected": state.unexpected,
        "first_failure": state.first_failure,
        "first_answer_at": state.first_answer.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|at| at.as_secs_f64()),
    }))
}

/// Seconds this single-threaded process was on a processor, by the scheduler's own count.
fn cpu_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/schedstat")?;
    let nanoseconds = text.split_whitespace().next().and_then(|field| field.parse::<u64>().ok());
    nanoseconds.map(|count| count as f64 / 1e9).ok_or_else(|| ErrorKind::InvalidData.into())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // `cargo bench` and `cargo test --benches` start every bench target bare.
    let Some(queue) = &arguments.queue else {
        println!("load: names no queue, nothing to do; benches/run drives it");
        return ExitCode::SUCCESS;
    };
    match measure(&arguments, queue) {
        Ok(result) => {
            println!("{result}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}
