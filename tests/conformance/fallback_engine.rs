//! An engine over a bucket with a fallback: receipts, and commands that come again while the bucket is away.

use filestorage::provider::BackendKind;
use filestorage::storage::{
    Backend, Condition, DeleteRequest, Engine, ErrorKind, Fallback, GetOptions, Key, Local, Redelivered, StoreOptions,
    Value,
};
use jiff::{SignedDuration, Timestamp};
use std::fs;
use std::sync::Arc;

use crate::fallback::{kind, pending, read, site};
use crate::support::{Rest, key, rest};
use crate::unreliable_bucket::{Ask, Fate};
use crate::xor::Xor;

/// What lies between engine and fallback.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Between {
    Nothing,
    /// A layer that changes what is kept.
    Xor,
}

impl Between {
    pub(crate) fn engine(self, fallback: &Arc<Fallback>) -> Engine {
        let engine = self.without_deferral(fallback).with_fallback(Arc::clone(fallback));
        match self {
            Self::Nothing => engine,
            Self::Xor => engine.with_deferral(Xor::over_fallback(fallback)),
        }
    }

    fn without_deferral(self, fallback: &Arc<Fallback>) -> Engine {
        Engine::new(self.over(Arc::clone(fallback) as Arc<dyn Backend>), BackendKind::Gcs)
    }

    fn over(self, place: Arc<dyn Backend>) -> Arc<dyn Backend> {
        match self {
            Self::Nothing => place,
            Self::Xor => Arc::new(Xor::new(place)),
        }
    }

    /// Reads the value that a place has under the key.
    pub(crate) async fn read(self, place: &Arc<dyn Backend>, key: &Key) -> Option<String> {
        read(&*self.over(Arc::clone(place)), key).await
    }
}

const BOTH: [Between; 2] = [Between::Nothing, Between::Xor];

fn again(started_at: Option<Timestamp>) -> StoreOptions {
    let redelivered = Some(Redelivered { started_at });
    StoreOptions { redelivered, operation_id: Some("mine".to_owned()), ..StoreOptions::default() }
}

fn value(text: &str) -> Value {
    Value::Text(text.to_owned())
}

#[tokio::test]
async fn the_engine_says_where_a_value_is() {
    for between in BOTH {
        says_where_a_value_is(between).await;
    }
}

async fn says_where_a_value_is(between: Between) {
    let (bucket, fallback, _folder) = site();
    let (engine, it) = (between.engine(&fallback), key("it"));
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
    for between in BOTH {
        is_left_to_the_sync(between).await;
    }
}

async fn is_left_to_the_sync(between: Between) {
    let begin = Timestamp::now();
    let (bucket, fallback, _folder) = site();
    let (engine, it) = (between.engine(&fallback), key("it"));
    let old = engine.store(&it, value("newer"), StoreOptions::default()).await.unwrap();
    bucket.leave();
    // Without a fallback nothing may be written.
    let bare = between.without_deferral(&fallback);
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
    assert_eq!(between.read(&bucket.inner, &it).await.as_deref(), Some("newer"));
    let kept = fallback.conflicts().await.unwrap();
    assert_eq!(kept.len(), 1, "{kept:?}");
    let file = fs::read(&kept[0].path).unwrap();
    assert_eq!(file.ends_with(b"\nmine"), matches!(between, Between::Nothing), "{between:?}");
    let aside = Local::open_existing(kept[0].path.parent().unwrap().to_owned()).unwrap().unwrap();
    assert_eq!(between.read(&(Arc::new(aside) as Arc<dyn Backend>), &it).await.as_deref(), Some("mine"));

    bucket.leave();
    assert_eq!(rest(engine.delete(&it, delete()).await.unwrap()), Rest::Overlay);
    assert_eq!(rest(engine.delete(&it, delete()).await.unwrap()), Rest::Overlay, "remembered already");
    bucket.come_back();
    assert_eq!(fallback.sync(&()).await.unwrap().conflicts, 1);
    assert_eq!(between.read(&bucket.inner, &it).await.as_deref(), Some("newer"));

    // Older than the start: replaced, and removed.
    bucket.leave();
    let later = Timestamp::now() + SignedDuration::from_secs(1);
    engine.store(&it, value("mine"), again(Some(later))).await.unwrap();
    bucket.come_back();
    assert_eq!(fallback.sync(&()).await.unwrap().sent, 1);
    assert_eq!(between.read(&bucket.inner, &it).await.as_deref(), Some("mine"));
    // Where no start is known there is nothing to compare: it runs.
    bucket.leave();
    let receipt = engine.store(&it, value("unknown"), again(None)).await.unwrap();
    assert!(receipt.pending_sync && receipt.stored_at > begin);
}

/// The bucket goes away or comes back exactly between the look and the deed of a redelivered command.
#[tokio::test]
async fn a_redelivered_write_survives_a_change_of_weather() {
    let begin = Timestamp::now();
    for (store, between) in [true, false].into_iter().flat_map(|store| BOTH.map(|between| (store, between))) {
        // It went away after the look.
        let (bucket, fallback, _folder) = site();
        let (engine, it) = (between.engine(&fallback), key("it"));
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
        assert_eq!(between.read(&bucket.inner, &it).await.as_deref(), store.then_some("mine"));
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
        assert_eq!(between.read(&bucket.inner, &it).await.as_deref(), Some("newer"));
    }
}
