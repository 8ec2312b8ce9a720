//! The sweeper, which removes expired objects in the background.

use std::ops::Range;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use tokio::time::sleep;

use crate::storage::commit_guard::CommitGuard;
use crate::storage::engine::Engine;
use crate::storage::engine::cleanup::{CleanupProgress, CleanupReport, Selection};
use crate::storage::error::{Error, Result};
use crate::storage::object::Key;
use crate::telemetry::Metrics;

/// The number of objects that the sweeper removes at once.
const AT_ONCE: usize = 2;

/// The rest after a page is so many times the time that the page took: the sweeper works a fifth of the time at most.
const REST: u32 = 4;

/// The sweeper leaves an object alone until it has been expired so long.
///
/// A value is often stored anew at about the time at which it expires: a lock, a session. At a place where a removal and a
/// store of the same key can cross (see [`Engine::cleanup`]), the two are minutes apart then. The time also covers clocks of
/// several workers that differ. Readers do not see the object in any case.
const EXPIRED_FOR: Duration = Duration::from_secs(300);

impl Engine {
    /// Removes objects that expired at least five minutes ago, at intervals; never returns, and can be dropped at any time.
    ///
    /// Sweepers of several workers do not disturb each other: a removal names the generation that was seen, and an object
    /// that is gone already is no error. While the bucket cannot be reached, nothing is removed. The intervals are varied by a
    /// quarter, and the first begins at any point, so that workers that start together do not sweep together.
    pub async fn sweep_loop(&self, interval: Duration, metrics: &Metrics) -> ! {
        sleep(varied(interval, 0.0..1.0)).await;
        loop {
            let mut report = CleanupReport::default();
            let outcome = self.sweep(&mut report, metrics).await;
            let CleanupReport { deleted, bytes, failed, first_failure, .. } = report;
            if deleted > 0 {
                tracing::info!(deleted, bytes, "removed expired objects");
            }
            if let Some(error) = first_failure {
                tracing::warn!(failed, %error, "expired objects could not be removed; the error is that of the first");
            }
            match outcome {
                Ok(()) => {}
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, "expired objects cannot be removed yet");
                }
                Err(error) => tracing::warn!(%error, "the sweep ended early; the next one tries again"),
            }
            sleep(varied(interval, 0.75..1.25)).await;
        }
    }

    /// Removes the objects that expired long enough ago.
    async fn sweep(&self, report: &mut CleanupReport, metrics: &Metrics) -> Result<()> {
        let selection = Selection { expired_for: Some(EXPIRED_FOR), stored_before: None };
        let mut walk = self.walk("", None);
        loop {
            let begun = Instant::now();
            let Some(entries) = walk.next_page().await? else { return Ok(()) };
            let expired = selection.of(entries);
            self.remove_all(expired, AT_ONCE, &CommitGuard::default(), report, &Swept(metrics)).await?;
            report.keys.clear();
            sleep(begun.elapsed() * REST).await;
        }
    }
}

/// Draws a time between two multiples of the given time.
fn varied(time: Duration, factors: Range<f64>) -> Duration {
    time.mul_f64(rand::rng().random_range(factors))
}

/// Counts what the sweeper has removed.
struct Swept<'a>(&'a Metrics);

impl CleanupProgress for Swept<'_> {
    fn listed(&self, _: u64) {}

    fn removed(&self, _: &Key, bytes: u64) {
        self.0.record_swept(bytes);
    }

    /// The sweeper logs the first failure of a pass alone.
    fn failed(&self, _: &Key, _: &Error) {}

    fn is_stopped(&self) -> bool {
        false
    }
}
