//! Another writer that gets in exactly between the look and the deed of a redelivered command.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use filestorage::provider::BackendKind;
use filestorage::storage::{
    Backend, Budget, DeleteOptions, DeleteRequest, Engine, GetOptions, Key, Kind, Local, Memory, Object, PutOptions,
    Redelivered, Result, StoreOptions, Value,
};
use jiff::Timestamp;

use crate::forwarding::{Ask, Forwarding, Hook};
use crate::support::{bytes, key, noise, object, scratch};

/// What the other writer does.
#[derive(Debug)]
enum Deed {
    Write(Box<Object>),
    Remove,
}

/// Does the next deed after each look.
#[derive(Debug)]
struct ConcurrentWriter {
    look: Ask,
    deeds: Mutex<Vec<Deed>>,
    flushed: AtomicUsize,
}

impl Hook for ConcurrentWriter {
    async fn around<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        place: &dyn Backend,
        ask: Ask,
        key: Option<&Key>,
        work: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        let answer = work().await;
        if ask == Ask::Flush {
            self.flushed.fetch_add(1, Ordering::Relaxed);
        }
        let Some(key) = key.filter(|_| ask == self.look) else { return answer };
        let deed = self.deeds.lock().unwrap().pop();
        match deed {
            Some(Deed::Write(object)) => drop(place.put(key, &object, &PutOptions::default()).await?),
            Some(Deed::Remove) => assert!(place.delete(key, &DeleteOptions::default()).await?.found),
            None => {}
        }
        answer
    }
}

/// An object of another command, stamped now or an hour ago.
fn other(payload: &'static str, newer: bool) -> Box<Object> {
    let mut object = Box::new(object(payload));
    object.attributes.stored_at = Timestamp::now();
    if !newer {
        object.attributes.stored_at -= jiff::SignedDuration::from_hours(1);
    }
    object
}

/// Runs a redelivered store or delete that began a minute ago, with another writer after each of its looks.
async fn run(store: bool, before: Option<Box<Object>>, mut deeds: Vec<Deed>) -> (Option<Vec<u8>>, usize) {
    let it = key("it");
    deeds.reverse();
    let writer = ConcurrentWriter { look: Ask::Stat, deeds: Mutex::new(deeds), flushed: AtomicUsize::new(0) };
    let backend = Forwarding::over(Arc::new(Memory::new()), writer);
    if let Some(before) = before {
        backend.put(&it, &before, &PutOptions::default()).await.unwrap();
    }
    let engine = Engine::new(Arc::clone(&backend) as Arc<dyn Backend>, BackendKind::Local);
    let redelivered = Some(Redelivered { started_at: Some(Timestamp::now() - jiff::SignedDuration::from_mins(1)) });
    if store {
        let options = StoreOptions { redelivered, operation_id: Some("mine".to_owned()), ..StoreOptions::default() };
        engine.store(&it, Value::Text("mine".to_owned()), options).await.unwrap();
    } else {
        engine.delete(&it, DeleteRequest { redelivered, ..DeleteRequest::default() }).await.unwrap();
    }
    assert!(backend.deeds.lock().unwrap().is_empty(), "every deed was done");
    let found = match backend.inner.get(&it, GetOptions::default()).await.unwrap() {
        Some(object) => Some(bytes(object).await.to_vec()),
        None => None,
    };
    (found, backend.flushed.load(Ordering::Relaxed))
}

#[tokio::test]
async fn a_redelivered_store_never_overwrites_what_is_newer() {
    let newer = || Deed::Write(other("newer", true));
    for before in [None, Some(other("old", false))] {
        assert_eq!(run(true, before.clone(), vec![newer()]).await, (Some(b"newer".to_vec()), 1));
        let older = Deed::Write(other("older", false));
        assert_eq!(run(true, before.clone(), vec![older, newer()]).await, (Some(b"newer".to_vec()), 1));
        let older = Deed::Write(other("older", false));
        assert_eq!(run(true, before, vec![older]).await, (Some(b"mine".to_vec()), 0));
    }
    assert_eq!(run(true, Some(other("old", false)), vec![Deed::Remove]).await, (Some(b"mine".to_vec()), 0));
    // The first try, still under way in a worker that lost its session, gets in first: its write is the answer.
    let mut first = other("mine", true);
    first.attributes.kind = Kind::Text;
    first.attributes.operation_id = Some("mine".to_owned());
    first.attributes.content_type = "text/plain; charset=utf-8".to_owned();
    first.attributes.metadata = None;
    assert_eq!(run(true, Some(other("old", false)), vec![Deed::Write(first)]).await, (Some(b"mine".to_vec()), 1));
}

/// A large value is announced first and read once there is room for it. Another writer replaces or removes it in between.
#[tokio::test]
async fn room_is_made_for_what_came_in_between() {
    let (root, it) = (scratch(), key("it"));
    let value = |size| object(noise(size, 1));
    for (size, after) in [(2 << 20, Some(3 << 20)), (3 << 20, Some(2 << 20)), (2 << 20, Some(5)), (2 << 20, None)] {
        let deed = after.map_or(Deed::Remove, |after| Deed::Write(Box::new(value(after))));
        let writer = ConcurrentWriter { look: Ask::Get, deeds: Mutex::default(), flushed: AtomicUsize::new(0) };
        let backend = Forwarding::over(Arc::new(Local::open(root.path()).unwrap()), writer);
        backend.put(&it, &value(size), &PutOptions::default()).await.unwrap();
        backend.deeds.lock().unwrap().push(deed);
        let engine = Engine::new(Arc::clone(&backend) as Arc<dyn Backend>, BackendKind::Local);
        let budget = Budget::new(16 << 20);
        let (found, held) = engine.retrieve_within(&it, GetOptions::default(), &budget).await.unwrap();
        assert!(found.map(|found| found.value.into_bytes()) == after.map(|after| noise(after, 1).into()), "{after:?}");
        let least = after.map_or(0, |after| 2 * after as u64);
        assert!(held.map_or(0, |held| held.bytes()) >= least, "{after:?}: so much is in memory");
        assert!(backend.deeds.lock().unwrap().is_empty(), "every deed was done");
    }
}

#[tokio::test]
async fn a_redelivered_delete_never_removes_what_is_newer() {
    let old = || Some(other("old", false));
    assert_eq!(run(false, old(), vec![Deed::Write(other("newer", true))]).await, (Some(b"newer".to_vec()), 1));
    assert_eq!(run(false, old(), vec![Deed::Write(other("older", false))]).await, (None, 0));
    assert_eq!(run(false, old(), vec![Deed::Remove]).await, (None, 0));
    assert_eq!(run(false, None, vec![Deed::Write(other("newer", true))]).await, (Some(b"newer".to_vec()), 1));
}
