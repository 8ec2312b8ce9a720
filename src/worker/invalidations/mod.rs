//! The coherence of caches: this worker announces the keys that it changes, and drops what other workers announce.
//!
//! Keys that change while an announcement is being confirmed are announced together in the next one. Keys that could not be
//! announced in a session are announced first in the next one.

mod message;
mod session;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::commands::{Invalidation, Key, KeyUse};

pub(super) use message::Stale;
pub(super) use session::Coherence;

use message::Sender;

/// How long an announcement that is not confirmed keeps a caller waiting: as long as an answer whose queue is silent is tried.
const PATIENCE: Duration = Duration::from_secs(45);

/// Announces to the other workers which cached values are out of date. Clones share what waits to be announced.
#[derive(Clone, Debug)]
pub struct Announcer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sender: Sender,
    waiting: Mutex<Waiting>,
    added: Notify,
    progress: watch::Sender<Progress>,
}

/// The keys that are not announced yet, and the counters of the messages.
#[derive(Debug, Default)]
struct Waiting {
    stale: Stale,
    /// The keys in the announcement that is not confirmed yet.
    under_way: Stale,
    /// The number of announcements that were begun.
    begun: u64,
    /// The number of the next message.
    number: u64,
    /// The next message asks the other workers for one of theirs.
    presence_request: bool,
}

/// The state of the announcements, for those who wait for one.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// The number of announcements that the broker has confirmed.
    confirmed: u64,
    /// The number after the last message that the broker has confirmed.
    number: u64,
    /// This session is expected to confirm what is announced.
    is_expected: bool,
    /// The broker takes no publications now, because of a memory or disk alarm.
    is_blocked: bool,
    /// The number of the session, since the end of one may come after the beginning of the next.
    session: u64,
}

impl Progress {
    /// Tells whether it makes sense to wait for a confirmation.
    const fn can_confirm(self) -> bool {
        self.is_expected && !self.is_blocked
    }
}

impl Announcer {
    /// Makes the announcer of a process.
    ///
    /// `store` names the store: workers pass over the announcements of stores with another name.
    #[must_use]
    pub fn new(store: String) -> Self {
        Self(Arc::new(Shared {
            sender: Sender { worker: Uuid::new_v4().to_string(), store },
            waiting: Mutex::default(),
            added: Notify::new(),
            progress: watch::Sender::default(),
        }))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces stale values, and returns once the broker has confirmed the announcement.
    ///
    /// Returns sooner where no confirmation can come now: without a session, and during an alarm of the broker. It returns after
    /// [`PATIENCE`] in any case. The announcement is kept, and sent as soon as the broker takes it.
    pub(super) async fn publish(&self, stale: Stale) {
        if stale.is_none() {
            return;
        }
        let place = {
            let mut waiting = self.waiting();
            waiting.stale.add(stale);
            waiting.begun
        };
        self.0.added.notify_one();
        let mut progress = self.0.progress.subscribe();
        // The sender lives in `self`.
        let ended = progress.wait_for(|progress| progress.confirmed > place || !progress.can_confirm());
        drop(tokio::time::timeout(PATIENCE, ended).await);
    }

    /// Notes that a session began, and returns its number. Callers wait for confirmations from now on.
    fn begin_session(&self) -> u64 {
        let mut session = 0;
        self.0.progress.send_modify(|progress| {
            progress.session += 1;
            progress.is_expected = true;
            progress.is_blocked = false;
            session = progress.session;
        });
        session
    }

    /// Notes that this session confirms nothing for now, so that no caller waits.
    fn stop_waiting(&self, session: u64) {
        self.0.progress.send_if_modified(|progress| {
            progress.session == session && std::mem::replace(&mut progress.is_expected, false)
        });
    }

    /// Notes whether the broker blocks this session, so that no caller waits for the end of an alarm.
    fn set_blocked(&self, session: u64, is_blocked: bool) {
        self.0.progress.send_if_modified(|progress| {
            progress.session == session && std::mem::replace(&mut progress.is_blocked, is_blocked) != is_blocked
        });
    }

    /// Begins an announcement of everything that waits, and returns its messages: at least one.
    fn begin(&self) -> Vec<bytes::Bytes> {
        let mut waiting = self.waiting();
        let stale = std::mem::take(&mut waiting.stale);
        waiting.under_way.add(stale);
        waiting.begun += 1;
        let presence_request = std::mem::take(&mut waiting.presence_request);
        let messages = waiting.under_way.write(&self.0.sender, waiting.number, presence_request);
        waiting.number += messages.len() as u64;
        messages
    }

    /// Sends a message soon, even if no key changes, so that other workers learn the number of this one.
    fn send_presence(&self, presence_request: bool) {
        self.waiting().presence_request |= presence_request;
        self.0.added.notify_one();
    }

    /// Notes that the broker has confirmed all messages of the announcement.
    fn confirm(&self) {
        let mut waiting = self.waiting();
        waiting.under_way = Stale::default();
        let (confirmed, number) = (waiting.begun, waiting.number);
        drop(waiting);
        self.0
            .progress
            .send_modify(|progress| *progress = Progress { confirmed, number, is_expected: true, ..*progress });
    }

    /// Tells whether keys wait to be announced.
    #[cfg(test)]
    fn has_pending(&self) -> bool {
        let waiting = self.waiting();
        !waiting.stale.is_none() || !waiting.under_way.is_none()
    }
}

#[async_trait]
impl Invalidation for Announcer {
    async fn announce(&self, key: &Key) {
        self.publish(Stale::Keys([key.clone()].into())).await;
    }

    async fn announce_all(&self) {
        self.publish(Stale::All).await;
    }
}

impl Stale {
    /// Returns the values that a command may have changed.
    ///
    /// A command that writes and names no key that it writes may change any: it removes many keys, empties caches, or writes
    /// to a destination in the own bucket.
    pub(super) fn of(keys: &[KeyUse], writes: bool) -> Self {
        if !writes {
            return Self::default();
        }
        let written: BTreeSet<Key> = keys.iter().filter(|used| used.writes).map(|used| used.key.clone()).collect();
        if written.is_empty() { Self::All } else { Self::Keys(written) }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    fn announcer() -> Announcer {
        Announcer::new("s".to_owned())
    }

    /// A runtime whose clock runs ahead when everything waits.
    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
    }

    fn key(name: &str) -> Key {
        Key::parse(name).unwrap()
    }

    fn text(messages: &[bytes::Bytes]) -> String {
        assert_eq!(messages.len(), 1);
        String::from_utf8(messages[0].to_vec()).unwrap()
    }

    #[test]
    fn keys_are_gathered_while_the_last_confirm_is_under_way() {
        let runtime = runtime();
        let _entered = runtime.enter();
        let announcer = announcer();
        announcer.begin_session();
        let (a, b, c) = (key("a"), key("b"), key("c"));
        let mut first = pin!(announcer.announce(&a));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(text(&announcer.begin()).contains(r#""number":0,"keys":["a"]"#));
        let mut second = pin!(announcer.announce(&b));
        let mut third = pin!(announcer.announce(&c));
        assert!(second.as_mut().now_or_never().is_none() && third.as_mut().now_or_never().is_none());
        announcer.confirm();
        assert!(first.as_mut().now_or_never().is_some());
        assert!(second.as_mut().now_or_never().is_none(), "its own is not confirmed yet");
        let both = text(&announcer.begin());
        assert!(both.contains(r#""number":1"#) && both.contains(r#""b""#) && both.contains(r#""c""#), "{both}");
        announcer.confirm();
        assert!(second.as_mut().now_or_never().is_some() && third.as_mut().now_or_never().is_some());
        assert!(!announcer.has_pending());
        assert!(text(&announcer.begin()).contains(r#""number":2,"keys":[]"#), "nothing waits");
    }

    #[test]
    fn what_was_not_confirmed_is_announced_again() {
        let runtime = runtime();
        let _entered = runtime.enter();
        let announcer = announcer();
        let session = announcer.begin_session();
        let (a, b) = (key("a"), key("b"));
        let mut first = pin!(announcer.announce(&a));
        assert!(first.as_mut().now_or_never().is_none());
        announcer.begin();
        announcer.stop_waiting(session);
        assert!(first.as_mut().now_or_never().is_some(), "no session: nobody waits");
        assert!(announcer.announce(&b).now_or_never().is_some());
        assert!(announcer.has_pending());
        announcer.begin_session();
        announcer.stop_waiting(session);
        assert!(announcer.0.progress.borrow().is_expected, "the end of the session before changes nothing any more");
        let again = text(&announcer.begin());
        assert!(again.contains(r#""a""#) && again.contains(r#""b""#), "{again}");
        assert!(again.contains(r#""number":1"#), "who missed the first one sees a gap: {again}");
        announcer.confirm();
        assert!(!announcer.has_pending());
    }

    #[test]
    fn nobody_waits_while_the_broker_is_blocked() {
        let runtime = runtime();
        let _entered = runtime.enter();
        let announcer = announcer();
        let old = announcer.begin_session();
        let session = announcer.begin_session();
        let (a, b) = (key("a"), key("b"));
        let mut first = pin!(announcer.announce(&a));
        announcer.set_blocked(old, true);
        assert!(first.as_mut().now_or_never().is_none(), "another session is blocked");
        announcer.set_blocked(session, true);
        assert!(first.as_mut().now_or_never().is_some());
        assert!(announcer.announce(&b).now_or_never().is_some());
        announcer.set_blocked(session, false);
        assert!(announcer.announce(&b).now_or_never().is_none());
        let kept = text(&announcer.begin());
        assert!(kept.contains(r#""a""#) && kept.contains(r#""b""#), "{kept}");
    }

    #[test]
    fn an_announcement_that_is_not_confirmed_ends_the_wait() {
        let announcer = announcer();
        announcer.begin_session();
        // Ends although nothing is ever confirmed.
        let waited = runtime().block_on(async {
            let begun = tokio::time::Instant::now();
            announcer.announce(&key("a")).await;
            begun.elapsed()
        });
        assert_eq!(waited.as_secs(), 45);
        assert!(announcer.has_pending());
    }

    #[test]
    fn a_command_may_have_changed_the_keys_it_writes() {
        let (read, write) = (KeyUse::read(key("r")), KeyUse::write(key("w")));
        assert_eq!(Stale::of(&[read.clone(), write], true), Stale::Keys([key("w")].into()));
        assert_eq!(Stale::of(std::slice::from_ref(&read), true), Stale::All, "it writes what none of its keys names");
        assert!(Stale::of(&[read], false).is_none());
        assert_eq!(Stale::of(&[], true), Stale::All);
        assert!(Stale::of(&[], false).is_none());
    }
}
