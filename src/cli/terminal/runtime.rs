//! Runs a subcommand in its runtime, and ends it when it is interrupted.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::storage::wait_for_cleanup;
use crate::telemetry::note_end;
use crate::wiring::{Code, Failure};

/// The longest wait for the cancellation of uploads after the end of a command.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs one command to its end.
pub(in crate::cli) fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Code::Io, format!("cannot start a runtime: {error}")))?;
    let outcome = runtime.block_on(async {
        let outcome = command.await;
        // An unfinished upload is cancelled at the bucket before the program ends.
        let second = interruption();
        tokio::select! {
            _ = wait_for_cleanup(CANCEL_TIMEOUT) => {}
            () = second => {}
        }
        outcome
    });
    note_end();
    // A thread that still reads from a terminal or a pipe is not waited for.
    runtime.shutdown_background();
    outcome
}

/// Runs a command that writes, and ends it with a failure when the program is interrupted.
pub(in crate::cli) async fn interruptible<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    until_interrupted(command).await.unwrap_or_else(|| {
        let why = "interrupted before the end; the unfinished work is cancelled, run it again";
        Err(Failure::new(Code::TryAgain, why))
    })
}

/// Works until the end or an interruption, which is noticed from the beginning on; returns `None` when it was interrupted.
pub(in crate::cli) async fn until_interrupted<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = interruption() => None,
        outcome = work => Some(outcome),
    }
}

/// Waits for SIGINT or SIGTERM.
pub(in crate::cli) async fn interruption() {
    let interrupt = tokio::signal::ctrl_c();
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = interrupt => {}
            _ = terminate.recv() => {}
        },
        // Without a handler, SIGTERM ends the program at once.
        Err(_) => drop(interrupt.await),
    }
}
