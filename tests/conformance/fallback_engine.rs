//! An engine over a bucket with a fallback: receipts, and commands that come again while the bucket is away.

use filestorage::provider::BackendKind;
use filestorage::storage::{
    Backend, Condition, DeleteRequest, Engine, ErrorKind, Fallback, GetOptions, Redelivered, StoreOptions, Value,
};
use jiff::{SignedDuration, Timestamp};
use std::fs;
use std::sync::Arc;

use crate::fallback::{kind, pending, read, site};
use crate::support::{Rest, key, rest};
use crate::unreliable_bucket::{Ask, Fate};

fn engine_over(fallback: &Arc<Fallback>) -> Engine {
    Engine::new(Arc::clone(fallback) as Arc<dyn Backend>, BackendKind::Gcs).with_fallback(Arc::clone(fallback))
}

fn again(started_at: Option<Timestamp>) -> StoreOptions {
    let redelivered = Some(Redelivered { started_at });
    StoreOptions { redelivered, operation_id: Some("mine".to_owned()), ..StoreOptions::default() }
}

fn value(text: &str) -> Value {
    Value::Text(text.to_owned())
}

#[tokio::test]
async fn the_engine_says_where_a_value_is() {
    let (bucket, fallback, _folder) = site();
    let (engine, it) = (engine_over(&fallback), key("it"));
    assert!(engine.stats().local_fallback_enabled && engine.fallback().is_some());
    bucket.leave();
    let receipt = engine.store(&it, value("1"), StoreOptions::default()).await.unwrap();
    assert_eq!((receipt.backend, receipt.pending_sync), (BackendKind::Local, true));
    assert_eq!(engine.stat(&it).await.unwrap().unwrap().receipt, receipt);
    assert_eq!(engine.retrieve(&it, GetOptions::default()).await.unwrap().unwrap().receipt, receipt);
    assert_eq!(rest(engine.delete(&it, DeleteRequest::default()).await.unwrap()), Rest::Overlay);
    assert_eq!((engine.exists(&it).await.unwrap(), engine.stat(&it).await.unwrap().is_none()), (false, true));
    bucket.come_back();
    fallback.sync(&()).await.unwrap();
    let receipt = engine.store(&it, value("2"), StoreOptions::default()).await.unwrap();
    assert_eq!((receipt.backend, receipt.pending_sync), (BackendKind::Gcs, false));
    assert_eq!(engine.stat(&it).await.unwrap().unwrap().receipt, receipt);
}

#[tokio::test]
async fn a_redelivered_write_that_cannot_look_is_left_to_the_sync() {
    let begin = Timestamp::now();
    let (bucket, fallback, _folder) = site();
    let (engine, it) = (engine_over(&fallback), key("it"));
    let old = engine.store(&it, value("newer"), StoreOptions::default()).await.unwrap();
    bucket.leave();
    // Without a fallback nothing may be written.
    let bare = Engine::new(Arc::clone(&fallback) as Arc<dyn Backend>, BackendKind::Gcs);
    assert_eq!(kind(bare.store(&it, value("mine"), again(Some(begin))).await), ErrorKind::Unavailable);
    let redelivered = Some(Redelivered { started_at: Some(begin) });
    let delete = || DeleteRequest { redelivered, ..DeleteRequest::default() };
    assert_eq!(kind(bare.delete(&it, delete()).await), ErrorKind::Unavailable);
    assert_eq!(pending(&fallback).await, 0);
    // Of conditional ones the bucket alone can tell.
    let conditional = StoreOptions { condition: Condition::Generation(old.generation.clone()), ..again(Some(begin)) };
    assert_eq!(kind(engine.store(&it, value("mine"), conditional).await), ErrorKind::Unavailable);
    let conditional = DeleteRequest { generation: Some(old.generation), ..delete() };
    assert_eq!(kind(engine.delete(&it, conditional).await), ErrorKind::Unavailable);
    assert_eq!(pending(&fallback).await, 0);

    let receipt = engine.store(&it, value("mine"), again(Some(begin))).await.unwrap();
    assert!(receipt.pending_sync && receipt.stored_at <= begin, "{receipt:?}");
    assert_eq!(engine.stat(&it).await.unwrap().unwrap().receipt, receipt);
    assert_eq!(engine.store(&it, value("mine"), again(Some(begin))).await.unwrap(), receipt, "its own by now");
    bucket.come_back();
    let report = fallback.sync(&()).await.unwrap();
    assert_eq!((report.conflicts, report.remaining), (1, 0), "{report:?}");
    assert_eq!(read(&*bucket.inner, &it).await.as_deref(), Some("newer"));
    let kept = fallback.conflicts().await.unwrap();
    assert!(kept.len() == 1 && fs::read_to_string(&kept[0].path).unwrap().ends_with("\nmine"), "{kept:?}");

    bucket.leave();
    assert_eq!(rest(engine.delete(&it, delete()).await.unwrap()), Rest::Overlay);
    assert_eq!(rest(engine.delete(&it, delete()).await.unwrap()), Rest::Overlay, "remembered already");
    bucket.come_back();
    assert_eq!(fallback.sync(&()).await.unwrap().conflicts, 1);
    assert_eq!(read(&*bucket.inner, &it).await.as_deref(), Some("newer"));

    // Older than the start: replaced, and removed.
    bucket.leave();
    let later = Timestamp::now() + SignedDuration::from_secs(1);
    engine.store(&it, value("mine"), again(Some(later))).await.unwrap();
    bucket.come_back();
    assert_eq!(fallback.sync(&()).await.unwrap().sent, 1);
    assert_eq!(read(&*bucket.inner, &it).await.as_deref(), Some("mine"));
    // Where no start is known there is nothing to compare: it runs.
    bucket.leave();
    let receipt = engine.store(&it, value("unknown"), again(None)).await.unwrap();
    assert!(receipt.pending_sync && receipt.stored_at > begin);
}

/// The bucket goes away or comes back exactly between the look and the deed of a redelivered command.
#[tokio::test]
async fn a_redelivered_write_survives_a_change_of_weather() {
    let begin = Timestamp::now();
    for store in [true, false] {
        // It went away after the look.
        let (bucket, fallback, _folder) = site();
        let (engine, it) = (engine_over(&fallback), key("it"));
        engine.store(&it, value("old"), StoreOptions::default()).await.unwrap();
        let later = Timestamp::now() + SignedDuration::from_secs(1);
        bucket.weather(|request| match request.ask {
            Ask::Stat => Fate::Served,
            _ => Fate::Refused(ErrorKind::Unavailable),
        });
        let delete = |start| {
            let redelivered = Some(Redelivered { started_at: Some(start) });
            DeleteRequest { redelivered, ..DeleteRequest::default() }
        };
        if store {
            assert!(engine.store(&it, value("mine"), again(Some(later))).await.unwrap().pending_sync);
        } else {
            assert_eq!(rest(engine.delete(&it, delete(later)).await.unwrap()), Rest::Overlay);
        }
        bucket.come_back();
        fallback.sync(&()).await.unwrap();
        assert_eq!(read(&*bucket.inner, &it).await.as_deref(), store.then_some("mine"));
        // It came back after the look that it did not answer: still not written there unseen.
        engine.store(&it, value("newer"), StoreOptions::default()).await.unwrap();
        bucket.weather(|request| match request.ask {
            Ask::Stat => Fate::Refused(ErrorKind::Unavailable),
            _ => Fate::Served,
        });
        if store {
            assert!(engine.store(&it, value("mine"), again(Some(begin))).await.unwrap().pending_sync);
        } else {
            assert_eq!(rest(engine.delete(&it, delete(begin)).await.unwrap()), Rest::Overlay);
        }
        bucket.come_back();
        assert_eq!(fallback.sync(&()).await.unwrap().conflicts, 1);
        assert_eq!(read(&*bucket.inner, &it).await.as_deref(), Some("newer"));
    }
}
