//! Another writer that gets in exactly between the look and the deed of a redelivered command.

use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use filestorage::provider::BackendKind;
use filestorage::storage::{
    Attributes, Backend, DeleteOptions, DeleteRequest, Engine, GetOptions, Grant, Key, Kind, Listing, Memory, Object,
    Page, Probe, PutOptions, Redelivered, Removal, Result, StoreOptions, Value,
};
use jiff::Timestamp;

use crate::support::{bytes, key, object};

/// What the other writer does.
#[derive(Debug)]
enum Deed {
    Write(Box<Object>),
    Remove,
}

/// Does the next deed after each look.
#[derive(Debug, Default)]
struct Interloper {
    inner: Memory,
    deeds: Mutex<Vec<Deed>>,
    flushed: Mutex<Vec<Key>>,
}

impl fmt::Display for Interloper {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("interloper")
    }
}

#[async_trait]
impl Backend for Interloper {
    async fn put(&self, key: &Key, object: &Object, how: &PutOptions) -> Result<Attributes> {
        self.inner.put(key, &object, &how).await
    }

    async fn get(&self, key: &Key, want: GetOptions) -> Result<Option<Object>> {
        self.inner.get(key, want).await
    }

    async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
        let seen = self.inner.stat(key).await;
        let deed = self.deeds.lock().unwrap().pop();
        match deed {
            Some(Deed::Write(object)) => {
                self.inner.put(key, &*object, &PutOptions::default()).await?;
            }
            Some(Deed::Remove) => assert!(self.inner.delete(key, &DeleteOptions::default()).await?.found),
            None => {}
        }
        seen
    }

    async fn delete(&self, key: &Key, how: &DeleteOptions) -> Result<Removal> {
        self.inner.delete(key, &how).await
    }

    async fn list(&self, page: &Page) -> Result<Listing> {
        self.inner.list(page).await
    }

    async fn flush(&self, key: &Key) -> Result<()> {
        self.flushed.lock().unwrap().push(key.clone());
        self.inner.flush(key).await
    }

    async fn probe(&self) -> Result<Probe> {
        self.inner.probe().await
    }

    fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
        self.inner.validate(key, attributes)
    }

    async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
        self.inner.sign(key, grant).await
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
    let backend = Arc::new(Interloper { deeds: Mutex::new(deeds), ..Interloper::default() });
    if let Some(before) = before {
        backend.put(&it, &*before, &PutOptions::default()).await.unwrap();
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
    (found, backend.flushed.lock().unwrap().len())
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

#[tokio::test]
async fn a_redelivered_delete_never_removes_what_is_newer() {
    let old = || Some(other("old", false));
    assert_eq!(run(false, old(), vec![Deed::Write(other("newer", true))]).await, (Some(b"newer".to_vec()), 1));
    assert_eq!(run(false, old(), vec![Deed::Write(other("older", false))]).await, (None, 0));
    assert_eq!(run(false, old(), vec![Deed::Remove]).await, (None, 0));
    assert_eq!(run(false, None, vec![Deed::Write(other("newer", true))]).await, (Some(b"newer".to_vec()), 1));
}
