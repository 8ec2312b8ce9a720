//! `filestorage dead`: the messages that could not be run.

mod drop;
mod filter;
mod list;
mod removal;
mod replay;
mod row;
mod show;
mod walk;

use clap::{Args, Subcommand};

use super::terminal::Output;
use crate::config::Settings;
use crate::wiring::{Code, Failure};

/// Looks at the messages that could not be run, and replays or drops them.
///
/// Unknown tasks, unreadable messages, commands that crashed the worker too often, and what could not be delivered are
/// kept in the queue filestorage.dead. A look removes nothing and keeps the order. Workers may run meanwhile. While one of these
/// commands runs, another one sees only what the first has not got yet.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(list::Arguments),
    Show(show::Arguments),
    Replay(replay::Arguments),
    Drop(drop::Arguments),
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        match self.command {
            Command::List(command) => command.run(settings, output).await,
            Command::Show(command) => command.run(settings, output).await,
            Command::Replay(command) => command.run(settings, output).await,
            Command::Drop(command) => command.run(settings, output).await,
        }
    }
}
