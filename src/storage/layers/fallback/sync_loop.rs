//! Synchronization in the background.

use std::time::Duration;

use rand::RngExt as _;
use tokio::time::sleep;

use super::Fallback;

/// How soon what landed is sent, and how soon a bucket that is away is asked again at first.
const FIRST: Duration = Duration::from_secs(1);

/// How long a bucket that is away is left alone at most, and how often siblings' writes are looked for.
const LAST: Duration = Duration::from_secs(30);

/// What to wait for before the next pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Nothing waits that could be sent: for something to land.
    Arrival,
    /// More came while the pass ran: a moment.
    Moment,
    /// The bucket is away, or somebody else is sending: longer each time, unless it returns.
    Return,
}

impl Fallback {
    /// Sends what waits whenever the bucket can be reached, for ever; can be dropped at any time.
    ///
    /// It looks when something has landed here, when a command has reached the bucket again, and by itself: after one
    /// second, then less and less often up to every 30 while the bucket is away and something waits; every 30 seconds
    /// otherwise, since others share the folder.
    pub async fn sync_loop(&self) -> ! {
        let mut ceiling = FIRST;
        loop {
            let next = self.look_after().await;
            if next != Next::Return {
                ceiling = FIRST;
            }
            match next {
                Next::Arrival => tokio::select! {
                    () = sleep(jittered(LAST)) => {}
                    // Others of the same burst may follow.
                    () = self.arrived.notified() => sleep(jittered(FIRST)).await,
                    () = self.returned.notified() => {}
                },
                Next::Moment => sleep(jittered(FIRST)).await,
                Next::Return => {
                    tokio::select! {
                        () = sleep(jittered(ceiling)) => {}
                        () = self.returned.notified() => {}
                    }
                    ceiling = ceiling.saturating_mul(2).min(LAST);
                }
            }
        }
    }

    /// Runs one pass if it is this worker's turn.
    async fn look_after(&self) -> Next {
        let next = match self.sync_in_turn().await {
            Ok(Some(report)) if report.remaining > report.failed => Next::Moment,
            Ok(Some(_)) => Next::Arrival,
            Ok(None) => Next::Return,
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, "what waits cannot be sent yet");
                Next::Return
            }
            Err(error) => {
                tracing::warn!(%error, "what waits cannot be sent");
                Next::Return
            }
        };
        if let Err(error) = self.pending().await {
            tracing::warn!(%error, "what waits cannot be counted");
        }
        next
    }
}

/// Draws a time between half of the given and all of it, so that workers do not ask in step.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::rng().random_range(0.5..1.0))
}
