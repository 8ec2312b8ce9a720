//! Something that costs time to make and is made a few times a second at most, however many ask.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// Shortest time between the beginnings of two.
const GAP: Duration = Duration::from_millis(250);

/// Makes what is asked for when it is asked for, once for all who wait: nobody is given what was made before he asked.
#[derive(Debug)]
pub(super) struct Paced<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Paced<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Paced<T> {
    /// Returns one that was begun after the question, by `make` or by somebody else.
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
    async fn however_many_ask_it_is_made_four_times_a_second_and_never_older_than_the_question() {
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
                // Within one instant of this clock all are the same question.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::join!(asking(), asking(), asking(), asking());
        assert!((8..=10).contains(&made.get()) && asked.get() >= 3 * made.get(), "{made:?} for {asked:?}");
    }
}
