//! Announcements of changed keys between workers.

use std::time::Duration;

use filestorage::broker::INVALIDATIONS_EXCHANGE;
use filestorage::telemetry::Component;

use super::{assert_about, gaps, is_ready, times};
use crate::model::Exchange;
use crate::site::{Site, with_paused_clock};

/// Makes a site whose values are in a bucket, with a cache.
fn shared() -> Site {
    let mut site = Site::new(1);
    site.options.is_shared = true;
    site.cache();
    site
}

#[test]
fn a_worker_without_changes_announces_every_ten_seconds() {
    with_paused_clock(async {
        let mut site = shared();
        site.start();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let gaps = gaps(&site.broker.look(|model| times(model, "announce 1")));
        assert!(gaps.len() >= 5, "{gaps:?}");
        gaps[1..].iter().for_each(|gap| assert_about(*gap, 10_000, &site.trace()));
    });
}

#[test]
fn an_unconfirmed_announcement_is_sent_again_after_a_second() {
    with_paused_clock(async {
        let mut site = shared();
        site.broker.change(|model| model.exchange = Exchange::Unconfirmed);
        site.start();
        tokio::time::sleep(Duration::from_secs(20)).await;
        let gaps = gaps(&site.broker.look(|model| times(model, "announce 1")));
        assert!(gaps.len() >= 15, "{gaps:?}");
        gaps.iter().for_each(|gap| assert_about(*gap, 1_000, &site.trace()));
    });
}

#[test]
fn a_missing_exchange_is_looked_at_less_and_less_often() {
    with_paused_clock(async {
        let mut site = Site::new(1);
        site.options.is_shared = true;
        site.broker.change(|model| _ = model.forbidden.insert(INVALIDATIONS_EXCHANGE.to_owned()));
        site.start();
        tokio::time::sleep(Duration::from_secs(180)).await;
        let gaps = gaps(&site.broker.look(|model| times(model, "fanout 1")));
        for (gap, expected) in gaps.iter().zip([1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]) {
            assert_about(*gap, expected, &site.trace());
        }
        assert!(gaps.len() >= 8, "{gaps:?}");
    });
}

#[test]
fn what_does_not_come_back_is_missed_at_the_third_check() {
    with_paused_clock(async {
        let mut site = shared();
        site.start();
        site.until(5, "the first announcement", |model| model.trace.contains("announce 1")).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(is_ready(&site, Component::Cache));
        // Checks are every five seconds: one learns what is sent, the next that it is late, and one more that it stays away.
        site.broker.change(|model| model.exchange = Exchange::Unbound);
        let began = site.broker.look(|model| times(model, "announce 1")[0]);
        let first = site.broker.look(|model| model.began) + Duration::from_millis(began);
        // The next announcement is sent at 10 s, right after the check at that time.
        super::until(first, 24_900).await;
        assert!(is_ready(&site, Component::Cache), "{}", site.trace());
        super::until(first, 25_100).await;
        assert!(!is_ready(&site, Component::Cache), "{}", site.trace());
    });
}
