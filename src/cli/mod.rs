//! The command line: arguments, settings, exit code. Each subcommand has its file; `terminal` holds the shared parts.

mod admin;
mod broker;
mod cleanup;
mod config;
mod core_dump;
mod dead;
mod delete;
mod doctor;
mod exists;
mod filled_quota;
mod healthcheck;
mod list;
mod migrate;
mod queues;
mod retrieve;
mod rotate;
mod schema;
mod stat;
mod store;
mod sync;
mod terminal;
mod usage;
mod verify;
mod versions;
mod worker;

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::config::{Inputs, Loaded, LogLevel, Source, proxy};
use crate::redact::redact;
use crate::telemetry::{LogFormat, init_logs};
use crate::wiring::{Code, Failure};
use terminal::{Output, block_on, flags, interruptible, refusal};

/// Keeps values under keys; answers Celery commands from RabbitMQ.
#[derive(Debug, Parser)]
#[command(name = "filestorage", version, arg_required_else_help = true, subcommand_required = true)]
struct Arguments {
    /// Configuration file in TOML; by default `filestorage.toml`, if it exists.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Writes answers and errors as JSON.
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Worker(worker::Arguments),
    Store(store::Arguments),
    Retrieve(retrieve::Arguments),
    Delete(delete::Arguments),
    Exists(exists::Arguments),
    List(list::Arguments),
    Stat(stat::Arguments),
    Usage(usage::Arguments),
    Cleanup(cleanup::Arguments),
    Verify(verify::Arguments),
    Versions(versions::Arguments),
    Sync(sync::Arguments),
    Migrate(migrate::Arguments),
    Rotate(rotate::Arguments),
    Dead(dead::Arguments),
    Queues(queues::Arguments),
    Doctor(doctor::Arguments),
    Config(config::Arguments),
    Healthcheck(healthcheck::Arguments),
    Schema(schema::Arguments),
}

/// Runs the program with the arguments of the process.
#[must_use]
pub fn main() -> ExitCode {
    // First, before any secret is read.
    let undumped = core_dump::forbid();
    let matches = match flags::add_settings(Arguments::command()).try_get_matches() {
        Ok(matches) => matches,
        Err(refusal) => return usage(refusal),
    };
    let arguments = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(refusal) => return usage(refusal),
    };
    let output = Output::new(arguments.json);
    match run(&matches, arguments, &output, undumped) {
        Ok(code) => code.into(),
        Err(failure) => output.fail(&failure).into(),
    }
}

/// Prints help, version or a usage error, and returns the exit code: 0, or for a usage error 64.
fn usage(refusal: clap::Error) -> ExitCode {
    let refusal = refusal::unquoted(refusal);
    // When this cannot be written, the exit code alone reports the error.
    drop(refusal.print());
    if refusal.use_stderr() { Code::Usage.into() } else { Code::Success.into() }
}

fn run(
    matches: &clap::ArgMatches,
    arguments: Arguments,
    output: &Output,
    undumped: io::Result<()>,
) -> Result<Code, Failure> {
    let mut flags = flags::given(matches);
    let mut quiet = LogLevel::Warning;
    if let Command::Worker(command) = &arguments.command {
        flags.extend(command.flags());
        quiet = LogLevel::Info;
    }
    let inputs = Inputs::of_process(flags, arguments.config.as_deref())?;
    let (loaded, faults) = crate::config::survey(&inputs)?;
    if !faults.0.is_empty() && !matches!(arguments.command, Command::Doctor(_)) {
        return Err(faults.into());
    }
    proxy::exclude_loopback(loaded.settings.storage.gcs.emulator.as_deref())
        .map_err(|why| Failure::new(Code::Configuration, why))?;
    start_logs(&loaded, inputs.variable("RUST_LOG"), quiet)?;
    crate::storage::raise_descriptor_limit();
    if let Err(error) = undumped {
        tracing::warn!(%error, "a crash of this process may leave a core dump, which holds keys and values");
    }
    for warning in &loaded.warnings {
        tracing::warn!("{}", redact(warning));
    }
    let settings = &loaded.settings;
    match arguments.command {
        Command::Worker(_) => worker::run(&loaded, inputs),
        Command::Store(command) => block_on(interruptible(command.run(settings, output))),
        Command::Retrieve(command) => block_on(command.run(settings, output)),
        Command::Delete(command) => block_on(command.run(settings, output)),
        Command::Exists(command) => block_on(command.run(settings, output)),
        Command::List(command) => block_on(command.run(settings, output)),
        Command::Stat(command) => block_on(command.run(settings, output)),
        Command::Usage(command) => block_on(command.run(settings, output)),
        Command::Verify(command) => block_on(command.run(settings, output)),
        Command::Cleanup(command) => block_on(command.run(settings, output)),
        Command::Versions(command) => block_on(command.run(settings, output)),
        Command::Sync(command) => block_on(interruptible(command.run(settings, output))),
        Command::Migrate(command) => block_on(command.run(settings, output)),
        Command::Rotate(command) => block_on(command.run(settings, output)),
        Command::Dead(command) => block_on(command.run(settings, output)),
        Command::Queues(command) => block_on(interruptible(command.run(settings, output))),
        Command::Doctor(command) => block_on(command.run(&loaded, &faults, output)),
        Command::Config(command) => command.run(&loaded, output),
        Command::Schema(command) => command.run(output),
        Command::Healthcheck(command) => block_on(command.run(settings, output)),
    }
}

/// Sets up logging with the text of `RUST_LOG`, or else with the configured level, or else with the level `quiet`.
fn start_logs(loaded: &Loaded, rust_log: Option<&OsStr>, quiet: LogLevel) -> Result<(), Failure> {
    let asked = loaded.effective.iter().any(|it| it.name == "log_level" && it.source != Source::Default);
    let level = if asked { loaded.settings.telemetry.log_level } else { quiet };
    let filter = match rust_log.and_then(OsStr::to_str) {
        // lapin logs payloads. They are logged only when `RUST_LOG` names lapin.
        Some(filter) if filter.contains("lapin") => filter.to_owned(),
        Some(filter) => format!("{filter},lapin=off"),
        None => level.filter().to_owned(),
    };
    init_logs(&filter, LogFormat::detect()).map_err(|error| Failure::new(Code::Configuration, error.to_string()))
}
