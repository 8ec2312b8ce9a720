//! What the operating system asks for.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// How far the worker is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Not at all.
    No,
    /// Warm: finish what runs, give back the rest (first SIGTERM or SIGINT).
    Warm,
    /// Cold: at once (a second one, or SIGQUIT).
    Cold,
}

/// Listens for SIGTERM, SIGINT and SIGQUIT for the life of the process.
///
/// # Errors
///
/// When a handler cannot be installed.
pub fn listen() -> io::Result<watch::Receiver<Stop>> {
    let (sender, receiver) = watch::channel(Stop::No);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    tokio::spawn(async move {
        loop {
            let now = *sender.borrow();
            let stop = next(&mut terminate, &mut interrupt, &mut quit, now).await;
            tracing::info!(?stop, "asked to stop");
            if sender.send(stop).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Takes SIGUSR1 and SIGUSR2, with which operators ask Celery's own worker for stack traces and a debugger, for the life of the
/// process: they would end it.
///
/// # Errors
///
/// When a handler cannot be installed.
pub fn disregard() -> io::Result<()> {
    let (mut first, mut second) = (signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?);
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                Some(()) = first.recv() => "SIGUSR1",
                Some(()) = second.recv() => "SIGUSR2",
                else => return,
            };
            tracing::info!(name, "a signal that means nothing here is passed over");
        }
    });
    Ok(())
}

/// Returns each SIGHUP from now on; the signal no longer ends the process.
///
/// # Errors
///
/// When the handler cannot be installed.
pub fn hangups() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal, quit: &mut Signal, now: Stop) -> Stop {
    let gently = if now == Stop::No { Stop::Warm } else { Stop::Cold };
    tokio::select! {
        _ = terminate.recv() => gently,
        _ = interrupt.recv() => gently,
        _ = quit.recv() => Stop::Cold,
    }
}
