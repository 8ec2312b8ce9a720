//! Reads of a cache that something overtakes, in every order.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use filestorage::storage::{
    Backend, Cache, Cached, Condition, DeleteOptions, ErrorKind, GetOptions, NoSiblings, Object, PutOptions,
};
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::fallback_sync::until;
use crate::support::{bytes, key, object};
use crate::unreliable_bucket::{Ask, Bucket, Fate};
use crate::wires::{Wires, cache};

/// What overtakes a read.
#[derive(Clone, Copy, Debug)]
enum Overtaker {
    Put,
    OtherPut,
    RefusedPut,
    Delete,
    Flush,
    DropKey,
    Clear,
    SuspendAndResume,
}

const OVERTAKERS: [Overtaker; 8] = [
    Overtaker::Put,
    Overtaker::OtherPut,
    Overtaker::RefusedPut,
    Overtaker::Delete,
    Overtaker::Flush,
    Overtaker::DropKey,
    Overtaker::Clear,
    Overtaker::SuspendAndResume,
];

/// A bucket with two workers, whose reads, or the answers to them, can be held.
struct Workers {
    bucket: Arc<Bucket>,
    cache: Cache,
    one: Arc<Cached>,
    other: Arc<Cached>,
}

fn workers() -> Workers {
    let (bucket, wires) = (Bucket::new(), Arc::new(Wires::default()));
    let (cache, one) = wires.worker(Arc::clone(&bucket) as Arc<dyn Backend>);
    let (_, other) = wires.worker(Arc::clone(&bucket) as Arc<dyn Backend>);
    Workers { bucket, cache, one, other }
}

impl Workers {
    /// Begins a read, and returns once it is in the bucket.
    async fn begin_read(&self) -> JoinHandle<Option<Bytes>> {
        self.bucket.requests();
        let one = Arc::clone(&self.one);
        let reading = tokio::spawn(async move { get(&one).await });
        until(async || !self.bucket.requests().is_empty()).await;
        reading
    }

    /// Holds reads, before or after they have seen the object.
    fn hold(&self, gate: &Arc<Semaphore>, after: bool) {
        let gate = Arc::clone(gate);
        self.bucket.weather(move |request| match request.ask {
            Ask::Get if after => Fate::ReplyHeld(Arc::clone(&gate)),
            Ask::Get => Fate::Held(Arc::clone(&gate)),
            _ => Fate::Served,
        });
    }

    async fn overtake(&self, overtaker: Overtaker) {
        let it = key("it");
        match overtaker {
            Overtaker::Put => drop(self.one.put(&it, &object("new"), &PutOptions::default()).await.unwrap()),
            Overtaker::OtherPut => drop(self.other.put(&it, &object("new"), &PutOptions::default()).await.unwrap()),
            Overtaker::RefusedPut => {
                let options = PutOptions { condition: Condition::Absent, ..PutOptions::default() };
                let error = self.one.put(&it, &object("new"), &options).await.unwrap_err();
                assert_eq!(error.kind, ErrorKind::Precondition);
            }
            Overtaker::Delete => assert!(self.one.delete(&it, &DeleteOptions::default()).await.unwrap().found),
            Overtaker::Flush => self.one.flush(&it).await.unwrap(),
            Overtaker::DropKey => self.cache.drop_key(&it),
            Overtaker::Clear => drop(self.cache.clear()),
            Overtaker::SuspendAndResume => {
                self.cache.suspend();
                self.cache.resume();
            }
        }
    }
}

async fn get(of: &Cached) -> Option<Bytes> {
    match of.get(&key("it"), GetOptions::default()).await.unwrap() {
        Some(object) => Some(bytes(object).await),
        None => None,
    }
}

async fn put(of: &Cached, value: &'static str) {
    of.put(&key("it"), &object(value), &PutOptions::default()).await.unwrap();
}

#[tokio::test]
async fn a_read_that_is_overtaken_leaves_nothing_behind() {
    for overtaker in OVERTAKERS {
        for after in [false, true] {
            let workers = workers();
            put(&workers.other, "old").await;
            let gate = Arc::new(Semaphore::new(0));
            workers.hold(&gate, after);
            let reading = workers.begin_read().await;
            workers.overtake(overtaker).await;
            // Whoever comes now must not be given what the held read finds.
            let one = Arc::clone(&workers.one);
            let late = tokio::spawn(async move { get(&one).await });
            gate.add_permits(1000);
            let found = reading.await.unwrap();
            assert!(found.is_none() || found == Some("old".into()) || found == Some("new".into()), "{overtaker:?}");
            let late = late.await.unwrap();
            workers.bucket.come_back();
            let truth = workers.bucket.inner.get(&key("it"), GetOptions::default()).await.unwrap();
            let truth = match truth {
                Some(object) => Some(bytes(object).await),
                None => None,
            };
            assert_eq!(late, truth, "{overtaker:?}, held after: {after}");
            for _ in 0..3 {
                assert_eq!(get(&workers.one).await, truth, "{overtaker:?}, held after: {after}");
            }
        }
    }
}

#[tokio::test]
async fn nobody_joins_a_read_that_was_overtaken() {
    for overtaker in [Overtaker::Put, Overtaker::OtherPut, Overtaker::Delete] {
        let workers = workers();
        put(&workers.other, "old").await;
        let (held, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        workers.hold(&held, true);
        let reading = workers.begin_read().await;
        workers.overtake(overtaker).await;
        // Nothing of the key may be in the cache, so the next reader asks the bucket.
        workers.cache.drop_key(&key("it"));
        workers.hold(&gate, false);
        gate.add_permits(2);
        let fresh = get(&workers.one).await;
        let wanted = (!matches!(overtaker, Overtaker::Delete)).then(|| Bytes::from("new"));
        assert_eq!(fresh, wanted, "{overtaker:?}");
        held.add_permits(1);
        assert_eq!(reading.await.unwrap(), Some("old".into()), "it began before the change");
        assert_eq!(get(&workers.one).await, wanted, "{overtaker:?}");
    }
}

#[tokio::test]
async fn a_read_during_a_write_leaves_nothing_behind() {
    for after in [false, true] {
        let workers = workers();
        put(&workers.other, "old").await;
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        workers.bucket.weather(move |request| match request.ask {
            Ask::Put if after => Fate::ReplyHeld(Arc::clone(&held)),
            Ask::Put => Fate::Held(Arc::clone(&held)),
            _ => Fate::Served,
        });
        let one = Arc::clone(&workers.one);
        let writing = tokio::spawn(async move { put(&one, "new").await });
        until(async || workers.bucket.writing() == 1).await;
        if after {
            until(async || workers.bucket.history().await.len() == 2).await;
        }
        let seen = if after { "new" } else { "old" };
        for _ in 0..2 {
            assert_eq!(get(&workers.one).await, Some(seen.into()));
        }
        assert_eq!(workers.cache.counts().hits, 0, "the write may be carried out at any moment");
        gate.add_permits(1);
        writing.await.unwrap();
        workers.bucket.come_back();
        for _ in 0..2 {
            assert_eq!(get(&workers.one).await, Some("new".into()));
        }
        assert_eq!(workers.cache.counts().hits, 2, "what was written is kept");
    }
}

#[tokio::test]
async fn of_two_writes_at_once_neither_is_kept() {
    for first in [true, false] {
        let workers = workers();
        let gates = [Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0))];
        let mut writing = Vec::new();
        for (index, value) in ["one", "two"].into_iter().enumerate() {
            let gate = Arc::clone(&gates[index]);
            workers.bucket.weather(move |_| Fate::ReplyHeld(Arc::clone(&gate)));
            let one = Arc::clone(&workers.one);
            writing.push(tokio::spawn(async move { put(&one, value).await }));
            until(async || workers.bucket.history().await.len() == index + 1).await;
        }
        workers.bucket.come_back();
        for index in if first { [0, 1] } else { [1, 0] } {
            gates[index].add_permits(1);
            until(async || writing[index].is_finished()).await;
            assert_eq!(workers.cache.counts().entries, 0, "the bucket alone knows which was the last");
        }
        assert_eq!(get(&workers.one).await, Some("two".into()));
    }
}

#[tokio::test]
async fn what_was_written_while_suspended_is_not_kept() {
    let workers = workers();
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    workers.bucket.weather(move |request| match request.ask {
        Ask::Put => Fate::ReplyHeld(Arc::clone(&held)),
        _ => Fate::Served,
    });
    workers.cache.suspend();
    let one = Arc::clone(&workers.one);
    let writing = tokio::spawn(async move { put(&one, "old").await });
    until(async || workers.bucket.history().await.len() == 1).await;
    // The other worker's announcement reaches nobody.
    workers.bucket.inner.put(&key("it"), &object("new"), &PutOptions::default()).await.unwrap();
    workers.cache.resume();
    gate.add_permits(1);
    writing.await.unwrap();
    assert_eq!((get(&workers.one).await, workers.cache.counts().hits), (Some("new".into()), 0));
}

#[tokio::test]
async fn a_thousand_concurrent_reads_are_one() {
    for present in [true, false] {
        let workers = workers();
        if present {
            put(&workers.other, "value").await;
        }
        let gate = Arc::new(Semaphore::new(0));
        workers.hold(&gate, false);
        let first = workers.begin_read().await;
        let one = || {
            let one = Arc::clone(&workers.one);
            tokio::spawn(async move { get(&one).await })
        };
        let others: Vec<_> = (0..999).map(|_| one()).collect();
        until(async || workers.cache.counts().misses == 1000).await;
        gate.add_permits(1000);
        let wanted = present.then(|| Bytes::from("value"));
        for found in join_all(others.into_iter().chain([first])).await {
            assert_eq!(found.unwrap(), wanted);
        }
        assert_eq!(workers.bucket.requests().len(), 0, "the first read was the only one");
    }
}

/// A bucket that is asked each time: the value of a read that began before the caller came may be old.
#[tokio::test]
async fn strict_reads_share_the_next_read() {
    let bucket = Bucket::new();
    let siblings = Arc::new(NoSiblings);
    let inner = Arc::clone(&bucket) as Arc<dyn Backend>;
    let cache = cache(1 << 20);
    let strict = Arc::new(Cached::over_bucket(inner, Some(cache.clone()), siblings, Some(Duration::ZERO)));
    bucket.inner.put(&key("it"), &object("old"), &PutOptions::default()).await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    bucket.weather(move |_| Fate::ReplyHeld(Arc::clone(&held)));
    let read = || {
        let strict = Arc::clone(&strict);
        tokio::spawn(async move { get(&strict).await })
    };
    let first = read();
    until(async || !bucket.requests().is_empty()).await;
    bucket.inner.put(&key("it"), &object("new"), &PutOptions::default()).await.unwrap();
    let others: Vec<_> = (0..99).map(|_| read()).collect();
    until(async || cache.counts().misses == 100).await;
    gate.add_permits(100);
    assert_eq!(first.await.unwrap(), Some("old".into()), "it began before the change");
    for found in join_all(others).await {
        assert_eq!(found.unwrap(), Some("new".into()));
    }
    let reads = bucket.requests().iter().filter(|request| request.ask == Ask::Get).count();
    assert_eq!(reads, 1, "all who came later shared one read");
}

#[tokio::test]
async fn a_reader_that_is_gone_or_fails_harms_nobody() {
    for cancelled in [true, false] {
        let workers = workers();
        put(&workers.other, "value").await;
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        let asked = std::sync::atomic::AtomicBool::new(false);
        workers.bucket.weather(move |request| match request.ask {
            Ask::Get if !asked.swap(true, std::sync::atomic::Ordering::SeqCst) => {
                if cancelled {
                    Fate::Held(Arc::clone(&held))
                } else {
                    Fate::HeldAndRefused(Arc::clone(&held))
                }
            }
            _ => Fate::Served,
        });
        workers.bucket.requests();
        let one = Arc::clone(&workers.one);
        let first = tokio::spawn(async move { one.get(&key("it"), GetOptions::default()).await });
        until(async || !workers.bucket.requests().is_empty()).await;
        let other = || {
            let one = Arc::clone(&workers.one);
            tokio::spawn(async move { get(&one).await })
        };
        let others: Vec<_> = (0..20).map(|_| other()).collect();
        until(async || workers.cache.counts().misses == 21).await;
        if cancelled {
            first.abort();
            assert!(first.await.unwrap_err().is_cancelled());
        } else {
            gate.add_permits(1);
            assert_eq!(first.await.unwrap().unwrap_err().kind, ErrorKind::Unavailable);
        }
        for found in join_all(others).await {
            assert_eq!(found.unwrap(), Some("value".into()));
        }
        if cancelled {
            assert_eq!(workers.bucket.requests().len(), 1, "one of those who waited has read for all");
        }
    }
}

/// Options of those who join a read are their own.
#[tokio::test]
async fn those_who_join_a_read_have_their_own_limits() {
    let workers = workers();
    put(&workers.other, "value").await;
    let gate = Arc::new(Semaphore::new(0));
    workers.hold(&gate, false);
    let first = workers.begin_read().await;
    let ask = |limit| {
        let one = Arc::clone(&workers.one);
        let options = GetOptions { limit: Some(limit), ..GetOptions::default() };
        tokio::spawn(async move { one.get(&key("it"), options).await })
    };
    let (fits, refused) = (ask(5), ask(4));
    until(async || workers.cache.counts().misses == 3).await;
    gate.add_permits(10);
    let value = |found: Option<Object>| bytes(found.unwrap());
    assert_eq!(value(fits.await.unwrap().unwrap()).await, "value");
    assert_eq!(refused.await.unwrap().unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(first.await.unwrap(), Some("value".into()));
    let hit = GetOptions { limit: Some(4), ..GetOptions::default() };
    assert_eq!(workers.one.get(&key("it"), hit).await.unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(workers.cache.counts().hits, 1);
}
