//! The sync loop, which sends pending entries in the background.

use std::time::Duration;

use rand::RngExt as _;
use tokio::time::sleep;

use super::Fallback;

/// The wait before a new entry is sent, and the first wait before a bucket that cannot be reached is asked again.
const FIRST: Duration = Duration::from_secs(1);

/// The longest wait before such a bucket is asked again, and the interval at which entries of other workers are looked
/// for.
const LAST: Duration = Duration::from_secs(30);

/// The event that the sync loop waits for before its next pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// No entry is left that could be sent: the loop waits for a new one.
    Arrival,
    /// More entries were written during the pass: the loop waits a moment.
    Moment,
    /// The bucket cannot be reached, or another worker is sending: the wait is longer each time, unless the bucket
    /// answers.
    Return,
}

impl Fallback {
    /// Sends pending entries whenever the bucket can be reached; never returns, and can be dropped at any time.
    ///
    /// A pass begins when an entry was put into the overlay and when a command has reached the bucket again. Further
    /// passes begin on their own: after one second, then less and less often up to every 30 seconds while the bucket
    /// cannot be reached and entries are pending. Otherwise a pass begins every 30 seconds, since other workers may
    /// share the folder.
    pub async fn sync_loop(&self) -> ! {
        let mut ceiling = FIRST;
        loop {
            let next = self.run_pass().await;
            if next != Next::Return {
                ceiling = FIRST;
            }
            match next {
                Next::Arrival => tokio::select! {
                    () = sleep(jittered(LAST)) => {}
                    // Other entries of the same burst may follow.
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

    /// Runs one pass, unless another worker runs one.
    async fn run_pass(&self) -> Next {
        let next = match self.sync_in_turn().await {
            Ok(Some(report)) if report.remaining > report.failed => Next::Moment,
            Ok(Some(_)) => Next::Arrival,
            Ok(None) => Next::Return,
            Err(error) if error.is_transient() => {
                tracing::debug!(%error, "pending entries cannot be sent yet");
                Next::Return
            }
            Err(error) => {
                tracing::warn!(%error, "pending entries cannot be sent");
                Next::Return
            }
        };
        if let Err(error) = self.pending().await {
            tracing::warn!(%error, "pending entries cannot be counted");
        }
        next
    }
}

/// Draws a time between half of the given time and all of it, so that workers do not ask at the same moments.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::rng().random_range(0.5..1.0))
}
