//! One list of bucket and overlay.

use std::collections::BTreeMap;
use std::sync::Arc;

use filestorage::storage::{Backend, CommitGuard, Deferral, ErrorKind, Fallback, Key, Page, PutOptions};

use crate::fallback::site;
use crate::support::{Rest, key, object, random, rest};
use crate::unreliable_bucket::{Ask, Bucket, Fate};

/// Puts into the overlay, whatever the weather.
async fn wait(fallback: &Fallback, key: &Key) {
    let stored = fallback.defer_put(key, &object("x"), &CommitGuard::default()).await.unwrap();
    assert_eq!(rest(stored), Rest::Overlay);
}

/// Deletes in the overlay.
async fn bury(fallback: &Fallback, key: &Key) {
    let removal = fallback.defer_delete(key, jiff::Timestamp::now(), &CommitGuard::default()).await.unwrap();
    assert_eq!(rest(removal), Rest::Overlay);
}

async fn keep(bucket: &Bucket, key: &Key) {
    bucket.inner.put(key, &object("x"), &PutOptions::default()).await.unwrap();
}

/// Every page there can be, against the plain definition.
#[tokio::test]
async fn any_page_of_any_mixture_is_exact() {
    let mut seed = 11;
    let mut pages = 0;
    for _ in 0..12 {
        let (bucket, fallback, _folder) = site();
        let mut there = BTreeMap::new();
        // From hardly any to nearly all of each sort.
        let (waiting, buried, kept) = (random(&mut seed) % 5, random(&mut seed) % 5, random(&mut seed) % 5);
        for number in 0..40 {
            let name = key(&format!("{}/{number}", ["a", "a!", "b"][number % 3]));
            let mut is_there = false;
            if random(&mut seed) % 5 <= kept {
                keep(&bucket, &name).await;
                is_there = true;
            }
            match random(&mut seed) % 10 {
                number if number < waiting => {
                    wait(&fallback, &name).await;
                    is_there = true;
                }
                number if number >= 10 - buried => {
                    bury(&fallback, &name).await;
                    is_there = false;
                }
                _ => {}
            }
            there.insert(name, is_there);
        }
        there.retain(|_, is_there| *is_there);
        for prefix in ["", "a", "a/", "a/1", "b/", "c"] {
            for after in [None, Some("a"), Some("a/1"), Some("a/22"), Some("b/"), Some("zz")] {
                for limit in [None, Some(0), Some(1), Some(2), Some(3), Some(7), Some(20), Some(100), Some(usize::MAX)]
                {
                    let page = Page {
                        prefix: prefix.to_owned(),
                        start_after: after.map(str::to_owned),
                        limit,
                        ..Page::default()
                    };
                    let mut wanted: Vec<&Key> = there
                        .keys()
                        .filter(|key| {
                            key.as_str().starts_with(prefix) && after.is_none_or(|after| key.as_str() > after)
                        })
                        .collect();
                    let more = wanted.len() > limit.unwrap_or(usize::MAX);
                    wanted.truncate(limit.unwrap_or(usize::MAX));
                    let found = fallback.list(&page).await.unwrap();
                    assert_eq!(found.entries.iter().map(|entry| &entry.key).collect::<Vec<_>>(), wanted, "{page:?}");
                    assert_eq!((found.more, found.foreign), (more, 0), "{page:?}");
                    assert!(found.entries.iter().all(|entry| !entry.tombstone));
                    pages += 1;
                }
            }
        }
    }
    println!("fallback: {pages} pages of 12 mixtures");
}

/// More tombstones than a page has entries, more pages of the bucket than one: still exact, and not a page for each.
#[tokio::test]
async fn many_tombstones_cost_few_requests() {
    let (bucket, fallback, _folder) = site();
    let names: Vec<Key> = (0..2_600).map(|number| key(&format!("k/{number:04}"))).collect();
    for (number, name) in names.iter().enumerate() {
        keep(&bucket, name).await;
        if number < 2_500 {
            bury(&fallback, name).await;
        }
    }
    let page = |limit, after: Option<&str>| Page { limit, start_after: after.map(str::to_owned), ..Page::default() };
    bucket.requests();
    let found = fallback.list(&page(Some(5), None)).await.unwrap();
    let listed: Vec<_> = found.entries.iter().map(|entry| entry.key.clone()).collect();
    assert_eq!((&*listed, found.more), (&names[2_500..2_505], true));
    assert!(bucket.requests().len() <= 4, "one for each thousand tombstones, and one behind");
    let found = fallback.list(&page(Some(95), Some("k/2504"))).await.unwrap();
    assert_eq!((found.entries.len(), found.more), (95, false));
    // Everything deleted is nothing, not an empty page with more.
    for name in &names[2_500..] {
        bury(&fallback, name).await;
    }
    for limit in [None, Some(0), Some(3), Some(5_000)] {
        let found = fallback.list(&page(limit, None)).await.unwrap();
        assert_eq!((found.entries.len(), found.more), (0, false), "{limit:?}");
    }
    // With nothing that waits a page is one request, with the caller's own limit.
    assert_eq!(fallback.sync(&()).await.unwrap().deleted, 2_600);
    keep(&bucket, &names[7]).await;
    bucket.requests();
    assert_eq!(fallback.list(&page(Some(1), None)).await.unwrap().entries.len(), 1);
    assert_eq!(bucket.requests().iter().map(|it| it.ask).collect::<Vec<_>>(), [Ask::List]);
}

#[tokio::test]
async fn an_outage_between_pages_is_an_error_not_half_a_list() {
    let (bucket, fallback, _folder) = site();
    for number in 0..2_200 {
        let name = key(&format!("{number:04}"));
        keep(&bucket, &name).await;
        if number % 2 == 0 {
            bury(&fallback, &name).await;
        }
    }
    wait(&fallback, &key("z")).await;
    for served in 0..3 {
        let count = Arc::new(std::sync::atomic::AtomicU64::new(0));
        bucket.weather(move |_| match count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            number if number < served => Fate::Served,
            _ => Fate::Refused(ErrorKind::Unavailable),
        });
        let found = fallback.list(&Page { limit: Some(1_090), ..Page::default() }).await;
        if served < 2 {
            assert_eq!(found.unwrap_err().kind, ErrorKind::Unavailable, "{served}");
        } else {
            let found = found.unwrap();
            assert_eq!((found.entries.len(), found.more), (1_090, true), "{served}");
        }
    }
}
