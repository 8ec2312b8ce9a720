//! The runtime of one command, and its interruption.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::storage::settled;
use crate::wiring::{Code, Failure};

/// Longest wait for uploads to be called off, once a command is over.
const FAREWELL: Duration = Duration::from_secs(10);

/// Runs one command to its end.
pub(in crate::cli) fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Code::Io, format!("cannot start a runtime: {error}")))?;
    let outcome = runtime.block_on(async {
        let outcome = command.await;
        // An upload that ended half-way is called off first.
        let second = interruption();
        tokio::select! {
            _ = settled(FAREWELL) => {}
            () = second => {}
        }
        outcome
    });
    // What still reads from a terminal or a pipe is not waited for.
    runtime.shutdown_background();
    outcome
}

/// Lets whoever runs the program end a command that writes.
pub(in crate::cli) async fn interruptible<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let interrupted = interruption();
    tokio::select! {
        outcome = command => outcome,
        () = interrupted => {
            let why = "interrupted before it was done; what was under way is called off, run it again";
            Err(Failure::new(Code::TryAgain, why))
        }
    }
}

/// Waits until somebody, or whoever runs the program, wants it to end.
pub(in crate::cli) async fn interruption() {
    let interrupt = tokio::signal::ctrl_c();
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = interrupt => {}
            _ = terminate.recv() => {}
        },
        // Without a handler it ends the program as ever.
        Err(_) => drop(interrupt.await),
    }
}
