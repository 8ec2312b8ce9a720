//! One session's part in the coherence of caches: it announces what changed here and listens to what changed elsewhere.

use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use super::Announcer;
use super::message::Receiver;
use crate::broker::{Broadcasts, Error, ErrorKind, Fanout, INVALIDATIONS_EXCHANGE, Presence, PublishError, Session};
use crate::commands::Cache;
use crate::telemetry::{Component, ComponentState, Readiness};

/// How long nothing is said at most: what was missed before shows with the next message.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often it is looked whether what was announced came back; it takes milliseconds.
const COMES_BACK: Duration = Duration::from_secs(5);
/// How long a missing exchange or right is left alone: at first, and at most.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const LONGEST_LOOK: Duration = Duration::from_secs(30);
/// How long an announcement that is not confirmed keeps writes waiting: as long as an answer whose queue is silent is tried.
const PATIENCE: Duration = Duration::from_secs(45);
/// How long an announcement waits that was not confirmed.
const PAUSE: Duration = Duration::from_secs(1);
/// Messages after which others on the thread get their turn.
const TURN: u32 = 256;

/// A session's announcing and listening; dropping it ends both, and a bucket's cache is off then.
#[derive(Debug)]
pub(in crate::worker) struct Attendance(AbortHandle);

impl Drop for Attendance {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What both sides of a session need.
#[derive(Debug)]
struct Attendant {
    announcer: Announcer,
    /// Its number with the announcer.
    session: u64,
    fanout: Fanout,
    readiness: Readiness,
    /// Others must hear of each write: the values are in a bucket. Else they compare files.
    is_shared: bool,
}

impl Attendance {
    /// Begins to announce and to listen in the background.
    pub(in crate::worker) fn begin(
        session: &Session,
        announcer: Announcer,
        cache: Option<Cache>,
        is_shared: bool,
        readiness: Readiness,
    ) -> Self {
        let attendant =
            Attendant { session: announcer.attach(), announcer, fanout: session.fanout(), readiness, is_shared };
        Self(tokio::spawn(async move { attendant.attend(cache.as_ref()).await }).abort_handle())
    }
}

impl Drop for Attendant {
    fn drop(&mut self) {
        self.announcer.let_go(self.session);
    }
}

impl Attendant {
    async fn attend(&self, cache: Option<&Cache>) {
        // The queue is there before the first message is sent, which comes back to it then.
        let listening = match cache {
            Some(_) => Some(self.listen().await),
            None => None,
        };
        tokio::select! {
            biased;
            _ = self.fanout.lost() => {}
            () = self.announce() => {}
            () = self.hear_on(cache, listening) => {}
        }
    }

    async fn listen(&self) -> Result<Broadcasts, Error> {
        match self.fanout.ensure().await? {
            Presence::Present | Presence::Created => self.fanout.listen().await,
            Presence::Down(words) => Err(Error::new(ErrorKind::Down, words)),
            Presence::Denied(words) => Err(Error::new(ErrorKind::Denied, words)),
        }
    }

    /// Says how announcing or listening stands. A local store needs neither, but for the command that empties caches.
    fn say(&self, component: Component, state: ComponentState) {
        if self.is_shared {
            self.readiness.set(component, state);
        } else if let ComponentState::Degraded(reason) = state {
            tracing::info!(reason, "filestorage.clear_cache empties the cache of this worker only");
        }
    }

    /// Announces as long as the session lives.
    async fn announce(&self) {
        let degraded = |why: &str| {
            ComponentState::Degraded(format!(
                "other workers are not told what changes here: {why}; their caches may answer old values until cache_ttl_seconds"
            ))
        };
        let mut wait = LOOK_AGAIN;
        loop {
            let begun = Instant::now();
            let words = match self.fanout.ensure().await {
                Ok(Presence::Present | Presence::Created) => self.send_on(&degraded).await,
                Ok(Presence::Down(words) | Presence::Denied(words)) => words,
                Err(error) => error.to_string(),
            };
            self.announcer.let_go(self.session);
            self.say(Component::Invalidations, degraded(&words));
            wait = pause(wait, begun).await;
        }
    }

    /// Sends what waits again and again, and returns the broker's words once it refuses.
    async fn send_on(&self, degraded: &impl Fn(&str) -> ComponentState) -> String {
        let mut failing: Option<Instant> = None;
        loop {
            match self.send().await {
                Ok(()) => {
                    failing = None;
                    self.announcer.confirm();
                    self.say(Component::Invalidations, ComponentState::Ready);
                    // Nothing waits for this long if nothing changes.
                    drop(tokio::time::timeout(HEARTBEAT, self.announcer.0.added.notified()).await);
                }
                Err(PublishError::Refused { code, text }) => {
                    return format!("exchange '{INVALIDATIONS_EXCHANGE}': {code} {text}");
                }
                Err(error) => {
                    if failing.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
                        self.announcer.let_go(self.session);
                        self.say(Component::Invalidations, degraded(&error.to_string()));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Sends what waits, one message after another, since their numbers are an order.
    async fn send(&self) -> Result<(), PublishError> {
        for message in self.announcer.begin() {
            self.fanout.publish(message).await?;
        }
        Ok(())
    }

    /// Listens as long as the session lives.
    async fn hear_on(&self, cache: Option<&Cache>, mut listening: Option<Result<Broadcasts, Error>>) {
        let Some(cache) = cache else { return std::future::pending().await };
        let mut receiver = Receiver::new(&self.announcer.0.worker);
        let mut wait = LOOK_AGAIN;
        loop {
            let begun = Instant::now();
            let listened = match listening.take() {
                Some(listened) => listened,
                None => self.listen().await,
            };
            let why = match listened {
                Ok(broadcasts) => {
                    self.say(Component::Cache, ComponentState::Ready);
                    self.hear(cache, broadcasts, &mut receiver).await
                }
                Err(error) => error.to_string(),
            };
            let state =
                ComponentState::Degraded(format!("the cache is off: what other workers change is not heard: {why}"));
            self.say(Component::Cache, state);
            wait = pause(wait, begun).await;
        }
    }

    /// Drops what other workers say is old, and returns why nothing more is heard. The cache is on meanwhile.
    async fn hear(&self, cache: &Cache, mut broadcasts: Broadcasts, receiver: &mut Receiver) -> String {
        let _on = On::new(cache, self.is_shared);
        // What is sent from now on comes back, if the exchange and the binding are still there.
        let floor = self.announcer.waiting().number;
        self.announcer.tell_number(true);
        let mut look = tokio::time::interval(COMES_BACK);
        let (mut awaited, mut turn) = (0, 0_u32);
        loop {
            tokio::select! {
                message = broadcasts.next() => match message {
                    Ok(message) => {
                        receiver.take(&message).drop_from(cache);
                        if std::mem::take(&mut receiver.is_asked) {
                            self.announcer.tell_number(false);
                        }
                        turn = turn.wrapping_add(1);
                        if turn.is_multiple_of(TURN) {
                            tokio::task::yield_now().await;
                        }
                    }
                    Err(why) => return why,
                },
                _ = look.tick() => {
                    if receiver.own_next < awaited {
                        return "what was announced did not come back; was the exchange or the binding deleted?".to_owned();
                    }
                    let number = self.announcer.0.progress.borrow().number;
                    awaited = if number > floor { number } else { 0 };
                }
            }
        }
    }
}

/// Waits before the next try and returns how long to wait after that: longer, unless this one was good for a while.
async fn pause(wait: Duration, begun: Instant) -> Duration {
    if begun.elapsed() > LONGEST_LOOK {
        tokio::time::sleep(LOOK_AGAIN).await;
        return LOOK_AGAIN;
    }
    tokio::time::sleep(wait).await;
    wait.saturating_mul(2).min(LONGEST_LOOK)
}

/// A bucket's cache that is on; dropping this turns it off.
struct On<'a>(Option<&'a Cache>);

impl<'a> On<'a> {
    fn new(cache: &'a Cache, is_shared: bool) -> Self {
        let cache = is_shared.then_some(cache);
        cache.inspect(|cache| cache.resume());
        Self(cache)
    }
}

impl Drop for On<'_> {
    fn drop(&mut self) {
        if let Some(cache) = self.0 {
            cache.suspend();
        }
    }
}
