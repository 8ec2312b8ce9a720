//! An answer that is costly to create and is created a few times a second at most, for any number of requests.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// The shortest time from the beginning of one creation to the beginning of the next.
const GAP: Duration = Duration::from_millis(250);

/// The last answer, with the time at which its creation began.
///
/// An answer is shared by all requests that were waiting when its creation began. No request gets an answer that is older
/// than the request.
#[derive(Debug)]
pub(super) struct Paced<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Paced<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Paced<T> {
    /// Returns an answer whose creation began after this call, from `make` or from another request.
    pub(super) async fn fresh<F: Future<Output = T>>(&self, make: impl FnOnce() -> F) -> T {
        let asked = Instant::now();
        let mut last = self.0.lock().await;
        if let Some((began, made)) = &*last {
            if *began >= asked {
                return made.clone();
            }
            sleep_until(*began + GAP).await;
        }
        let began = Instant::now();
        let made = make().await;
        *last = Some((began, made.clone()));
        made
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_are_shared_and_newer_than_the_question() {
        let (paced, made, asked) = (Paced::default(), Cell::new(0), Cell::new(0));
        let began = Instant::now();
        let asking = || async {
            while began.elapsed() < Duration::from_secs(2) {
                let before = Instant::now();
                let made = paced.fresh(async || {
                    made.set(made.get() + 1);
                    Instant::now()
                });
                assert!(made.await >= before);
                asked.set(asked.get() + 1);
                // All requests within one instant of the clock are equal.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::join!(asking(), asking(), asking(), asking());
        assert!((8..=10).contains(&made.get()) && asked.get() >= 3 * made.get(), "{made:?} for {asked:?}");
    }
}
