//! The shared parts of the subcommands: flags, answers, progress, interruption.

mod age;
pub(super) mod flags;
mod output;
mod progress;
pub(super) mod refusal;
mod runtime;
pub(super) mod sink;

pub(super) use self::age::span;
pub(super) use self::output::Output;
pub(super) use self::progress::Progress;
pub(super) use self::runtime::{block_on, interruptible, interruption, until_interrupted};
pub(super) use self::sink::Sink;
