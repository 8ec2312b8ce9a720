//! The announcements of one session: the keys that this worker changed are sent, and those of other workers received.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio::time::MissedTickBehavior;

use super::message::Receiver;
use super::{Announcer, PATIENCE};
use crate::broker::{
    self, Announcements, BrokerSession, Error, ErrorKind, INVALIDATIONS_EXCHANGE, Presence, PublishError, State,
};
use crate::commands::Cache;
use crate::telemetry::{Component, ComponentState, Readiness};

/// The longest time between two messages. A receiver finds a gap with the next message.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often the own messages are checked for having come back from the broker, which takes milliseconds.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The wait before a missing exchange or permission is looked at again: the first one, and the longest one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// The wait before an announcement that was not confirmed is sent again.
const PAUSE: Duration = Duration::from_secs(1);
/// The number of messages after which other tasks on the thread get their turn.
const TURN: u32 = 256;

/// The background task that sends and receives the announcements of a session. When it ends, a bucket's cache is disabled.
#[derive(Debug)]
pub(in crate::worker) struct Coherence(JoinHandle<()>);

impl Drop for Coherence {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The state of the background task, for sending and for receiving.
#[derive(Debug)]
struct Exchanger {
    announcer: Announcer,
    /// The number of the session.
    number: u64,
    session: Arc<dyn BrokerSession>,
    readiness: Readiness,
    /// The values are in a bucket, so other workers must receive each changed key. In a local store they compare files.
    is_shared: bool,
}

impl Coherence {
    /// Begins to send and to receive announcements in the background.
    pub(in crate::worker) fn begin(
        session: Arc<dyn BrokerSession>,
        announcer: Announcer,
        cache: Option<Cache>,
        is_shared: bool,
        readiness: Readiness,
    ) -> Self {
        let number = announcer.begin_session();
        let exchanger = Exchanger { announcer, number, session, readiness, is_shared };
        Self(tokio::spawn(async move { exchanger.run(cache.as_ref()).await }))
    }

    /// Ends the task and returns once it has disabled the cache, so that it cannot disable it for a later session.
    pub(in crate::worker) async fn stop(mut self) {
        self.0.abort();
        if let Err(error) = (&mut self.0).await
            && error.is_panic()
        {
            tracing::error!(%error, "the announcements of the last session ended by a fault");
        }
    }
}

impl Drop for Exchanger {
    fn drop(&mut self) {
        self.announcer.stop_waiting(self.number);
    }
}

impl Exchanger {
    async fn run(&self, cache: Option<&Cache>) {
        tokio::select! {
            biased;
            _ = broker::lost(self.session.watch()) => {}
            () = self.follow_state() => {}
            () = self.exchange(cache) => {}
        }
    }

    /// Notes while the session lives whether the broker blocks it.
    async fn follow_state(&self) {
        let mut state = self.session.watch();
        loop {
            let is_blocked = matches!(*state.borrow_and_update(), State::Blocked(_));
            self.announcer.set_blocked(self.number, is_blocked);
            if state.changed().await.is_err() {
                return;
            }
        }
    }

    async fn exchange(&self, cache: Option<&Cache>) {
        // The queue is there before the first message is sent, which comes back to it then.
        let listening = match cache {
            Some(_) => Some(self.listen().await),
            None => None,
        };
        tokio::select! {
            biased;
            () = self.announce() => {}
            () = self.receive(cache, listening) => {}
        }
    }

    async fn listen(&self) -> Result<Box<dyn Announcements>, Error> {
        match self.session.ensure_fanout().await? {
            Presence::Present | Presence::Created => self.session.listen().await,
            Presence::Down(words) => Err(Error::new(ErrorKind::Down, words)),
            Presence::Denied(words) => Err(Error::new(ErrorKind::Denied, words)),
        }
    }

    /// Reports the state of sending or receiving. A local store needs both for `filestorage.clear_cache` only.
    fn report(&self, component: Component, state: ComponentState) {
        if self.is_shared {
            self.readiness.set(component, state);
        } else if let ComponentState::Degraded(reason) = state {
            tracing::info!(reason, "filestorage.clear_cache empties the cache of this worker only");
        }
    }

    /// Sends announcements while the session lives.
    async fn announce(&self) {
        let degraded = |why: &str| {
            ComponentState::Degraded(format!(
                "other workers are not told what changes here: {why}; their caches may answer old values until cache_ttl_seconds"
            ))
        };
        let mut wait = FIRST_RETRY;
        loop {
            let begun = Instant::now();
            let words = match self.session.ensure_fanout().await {
                Ok(Presence::Present | Presence::Created) => self.send_all(&degraded).await,
                Ok(Presence::Down(words) | Presence::Denied(words)) => words,
                Err(error) => error.to_string(),
            };
            self.announcer.stop_waiting(self.number);
            self.report(Component::Invalidations, degraded(&words));
            wait = pause(wait, begun).await;
        }
    }

    /// Sends one announcement after another, and returns the broker's words once it refuses.
    async fn send_all(&self, degraded: &impl Fn(&str) -> ComponentState) -> String {
        loop {
            let mut sending = pin!(self.send_until_taken());
            let ended = match broker::within(self.session.watch(), PATIENCE, sending.as_mut()).await {
                Ok(Some(ended)) => ended,
                Ok(None) => {
                    self.announcer.stop_waiting(self.number);
                    let why = format!("nothing was confirmed for {} s", PATIENCE.as_secs());
                    self.report(Component::Invalidations, degraded(&why));
                    sending.await
                }
                Err(lost) => return lost.to_string(),
            };
            if let Err(words) = ended {
                return words;
            }
            self.announcer.confirm();
            self.report(Component::Invalidations, ComponentState::Ready);
            // Waits for no longer than this when no key changes.
            drop(tokio::time::timeout(HEARTBEAT, self.announcer.0.added.notified()).await);
        }
    }

    /// Sends everything that waits until the broker has confirmed it. An error is the broker's refusal, in its words.
    async fn send_until_taken(&self) -> Result<(), String> {
        loop {
            match self.send().await {
                Ok(()) => return Ok(()),
                Err(PublishError::Refused { code, text }) => {
                    return Err(format!("exchange '{INVALIDATIONS_EXCHANGE}': {code} {text}"));
                }
                Err(error) => tracing::debug!(%error, "an announcement was not confirmed"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Sends everything that waits, one message after another, so that they arrive in the order of their numbers.
    async fn send(&self) -> Result<(), PublishError> {
        for message in self.announcer.begin() {
            self.session.announce(message).await?;
        }
        Ok(())
    }

    /// Receives announcements while the session lives.
    async fn receive(&self, cache: Option<&Cache>, mut listening: Option<Result<Box<dyn Announcements>, Error>>) {
        let Some(cache) = cache else { return std::future::pending().await };
        let mut receiver = Receiver::new(self.announcer.0.sender.clone());
        let mut wait = FIRST_RETRY;
        loop {
            let begun = Instant::now();
            let listened = match listening.take() {
                Some(listened) => listened,
                None => self.listen().await,
            };
            let why = match listened {
                Ok(broadcasts) => {
                    self.report(Component::Cache, ComponentState::Ready);
                    self.receive_all(cache, broadcasts, &mut receiver).await
                }
                Err(error) => error.to_string(),
            };
            let state = ComponentState::Degraded(format!(
                "the cache is off: the announcements of other workers are not received: {why}"
            ));
            self.report(Component::Cache, state);
            wait = pause(wait, begun).await;
        }
    }

    /// Drops what other workers announce, and returns the reason when nothing more can be received. The cache is enabled meanwhile.
    async fn receive_all(
        &self,
        cache: &Cache,
        mut broadcasts: Box<dyn Announcements>,
        receiver: &mut Receiver,
    ) -> String {
        let _enabled = EnabledCache::new(cache, self.is_shared);
        // What is sent from now on comes back while the exchange and the binding are there.
        let floor = self.announcer.waiting().number;
        self.announcer.send_presence(true);
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        // After a standstill of the process, what came meanwhile is read before the next check.
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut awaited, mut was_late, mut turn) = (0, false, 0_u32);
        loop {
            tokio::select! {
                biased;
                // First, for it is seldom due, and messages may never end.
                _ = check.tick() => {
                    let is_late = receiver.own_next < awaited;
                    if is_late && was_late {
                        return "what was announced did not come back; was the exchange or the binding deleted?".to_owned();
                    }
                    was_late = is_late;
                    if is_late {
                        continue;
                    }
                    // A forged number must not stand for messages that are still to come back.
                    receiver.own_next = receiver.own_next.min(self.announcer.waiting().number);
                    let number = self.announcer.0.progress.borrow().number;
                    awaited = if number > floor { number } else { 0 };
                }
                message = broadcasts.next() => match message {
                    Ok(message) => {
                        receiver.take(&message).drop_from(cache);
                        if std::mem::take(&mut receiver.is_presence_requested) {
                            self.announcer.send_presence(false);
                        }
                        turn = turn.wrapping_add(1);
                        if turn.is_multiple_of(TURN) {
                            tokio::task::yield_now().await;
                        }
                    }
                    Err(why) => return why,
                },
            }
        }
    }
}

/// Waits before the next attempt, and returns the wait after that: a longer one, unless this attempt worked for a while.
async fn pause(wait: Duration, begun: Instant) -> Duration {
    if begun.elapsed() > LONGEST_RETRY {
        tokio::time::sleep(FIRST_RETRY).await;
        return FIRST_RETRY;
    }
    tokio::time::sleep(wait).await;
    wait.saturating_mul(2).min(LONGEST_RETRY)
}

/// The cache of a bucket while it is enabled. Dropping this disables it.
struct EnabledCache<'a>(Option<&'a Cache>);

impl<'a> EnabledCache<'a> {
    fn new(cache: &'a Cache, is_shared: bool) -> Self {
        let cache = is_shared.then_some(cache);
        cache.inspect(|cache| cache.resume());
        Self(cache)
    }
}

impl Drop for EnabledCache<'_> {
    fn drop(&mut self) {
        if let Some(cache) = self.0 {
            cache.suspend();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::CacheOptions;
    use crate::telemetry::Metrics;

    #[test]
    fn a_session_disables_the_cache_before_the_next_one_begins() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let cache = Cache::new(CacheOptions { bytes: 1 << 20, ttl: Duration::from_secs(60) }, Metrics::new());
            let (kept, (enabled, seen)) = (cache.clone(), tokio::sync::oneshot::channel());
            let task = tokio::spawn(async move {
                let _enabled = EnabledCache::new(&kept, true);
                enabled.send(()).unwrap();
                std::future::pending::<()>().await;
            });
            seen.await.unwrap();
            assert!(!cache.is_suspended());
            Coherence(task).stop().await;
            assert!(cache.is_suspended());
        });
    }
}
