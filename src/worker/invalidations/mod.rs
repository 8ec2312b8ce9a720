//! The coherence of caches: what this worker changes is announced to all others, and what they announce is dropped here.
//!
//! An announcement that is under way gathers those that come meanwhile into one message, as events are. What could not be
//! announced in a session is announced first in the next one.

mod message;
mod session;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::commands::{Invalidation, Key, KeyUse};

pub(super) use message::Stale;
pub(super) use session::Attendance;

/// Tells the other workers which cached values are old; clones share what waits.
#[derive(Clone, Debug, Default)]
pub struct Announcer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// How this process names itself.
    worker: String,
    waiting: Mutex<Waiting>,
    added: Notify,
    progress: watch::Sender<Progress>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            worker: Uuid::new_v4().to_string(),
            waiting: Mutex::default(),
            added: Notify::new(),
            progress: watch::Sender::default(),
        }
    }
}

/// What is to be announced.
#[derive(Debug, Default)]
struct Waiting {
    stale: Stale,
    /// What is being announced.
    under_way: Stale,
    /// How many announcements were begun.
    begun: u64,
    /// Number of the next message.
    number: u64,
    /// The next message says that this worker listens from now on.
    hello: bool,
}

/// How far the announcements are.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Announcements that the broker has confirmed, and all before them.
    confirmed: u64,
    /// Number after the last message that the broker has confirmed.
    number: u64,
    /// A confirmation is to be expected in this session.
    is_expected: bool,
    /// Which session it is, since the end of one may come after the beginning of the next.
    session: u64,
}

impl Announcer {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces and returns once the broker has confirmed it, or no session can now: then it goes first in the next one.
    pub(super) async fn tell(&self, stale: Stale) {
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
        drop(progress.wait_for(|progress| progress.confirmed > place || !progress.is_expected).await);
    }

    /// Begins the next session, in which announcements are waited for.
    fn attach(&self) -> u64 {
        let mut session = 0;
        self.0.progress.send_modify(|progress| {
            progress.session += 1;
            progress.is_expected = true;
            session = progress.session;
        });
        session
    }

    /// Says that nothing can be announced in this session for now, so that nobody waits for it.
    fn let_go(&self, session: u64) {
        self.0.progress.send_if_modified(|progress| {
            progress.session == session && std::mem::replace(&mut progress.is_expected, false)
        });
    }

    /// Begins an announcement of all that waits, even if that is nothing: returns its messages.
    fn begin(&self) -> Vec<bytes::Bytes> {
        let mut waiting = self.waiting();
        let stale = std::mem::take(&mut waiting.stale);
        waiting.under_way.add(stale);
        waiting.begun += 1;
        let hello = std::mem::take(&mut waiting.hello);
        let messages = waiting.under_way.write(&self.0.worker, waiting.number, hello);
        waiting.number += messages.len() as u64;
        messages
    }

    /// Sends a message soon, even if nothing changes, so that others know the number of this worker.
    fn tell_number(&self, hello: bool) {
        self.waiting().hello |= hello;
        self.0.added.notify_one();
    }

    /// Notes that the broker has all messages of the announcement.
    fn confirm(&self) {
        let mut waiting = self.waiting();
        waiting.under_way = Stale::default();
        let (confirmed, number) = (waiting.begun, waiting.number);
        drop(waiting);
        self.0
            .progress
            .send_modify(|progress| *progress = Progress { confirmed, number, is_expected: true, ..*progress });
    }

    /// Tells whether something waits to be announced.
    #[cfg(test)]
    fn owes(&self) -> bool {
        let waiting = self.waiting();
        !waiting.stale.is_none() || !waiting.under_way.is_none()
    }
}

#[async_trait]
impl Invalidation for Announcer {
    async fn announce(&self, key: &Key) {
        self.tell(Stale::Keys([key.clone()].into())).await;
    }

    async fn announce_all(&self) {
        self.tell(Stale::All).await;
    }
}

impl Stale {
    /// Returns what a command may have changed. Without a key it may be any: it goes through many, or empties caches.
    pub(super) fn of(keys: &[KeyUse], writes: bool) -> Self {
        match keys {
            _ if !writes => Self::default(),
            [] => Self::All,
            keys => Self::Keys(keys.iter().filter(|used| used.writes).map(|used| used.key.clone()).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    fn key(name: &str) -> Key {
        Key::parse(name).unwrap()
    }

    fn text(messages: &[bytes::Bytes]) -> String {
        assert_eq!(messages.len(), 1);
        String::from_utf8(messages[0].to_vec()).unwrap()
    }

    #[test]
    fn keys_are_gathered_while_the_last_confirm_is_under_way() {
        let announcer = Announcer::default();
        announcer.attach();
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
        assert!(!announcer.owes());
        assert!(text(&announcer.begin()).contains(r#""number":2,"keys":[]"#), "nothing waits");
    }

    #[test]
    fn what_was_not_confirmed_is_announced_again() {
        let announcer = Announcer::default();
        let session = announcer.attach();
        let (a, b) = (key("a"), key("b"));
        let mut first = pin!(announcer.announce(&a));
        assert!(first.as_mut().now_or_never().is_none());
        announcer.begin();
        announcer.let_go(session);
        assert!(first.as_mut().now_or_never().is_some(), "no session: nobody waits");
        assert!(announcer.announce(&b).now_or_never().is_some());
        assert!(announcer.owes());
        announcer.attach();
        announcer.let_go(session);
        assert!(announcer.0.progress.borrow().is_expected, "the end of the session before changes nothing any more");
        let again = text(&announcer.begin());
        assert!(again.contains(r#""a""#) && again.contains(r#""b""#), "{again}");
        assert!(again.contains(r#""number":1"#), "who missed the first one sees a gap: {again}");
        announcer.confirm();
        assert!(!announcer.owes());
    }

    #[test]
    fn a_command_may_have_changed_the_keys_it_writes() {
        let (read, write) = (KeyUse::read(key("r")), KeyUse::write(key("w")));
        assert_eq!(Stale::of(&[read, write], true), Stale::Keys([key("w")].into()));
        assert_eq!(Stale::of(&[], true), Stale::All);
        assert!(Stale::of(&[], false).is_none());
    }
}
