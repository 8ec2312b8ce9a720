//! Parking: when it begins, and how often it is tried.

use std::time::Duration;

use filestorage::broker::Parking;
use filestorage::telemetry::{Component, ComponentState};
use tokio::time::Instant;

use super::{assert_about, gaps, times, until};
use crate::model::{Model, Mood};
use crate::sent::write;
use crate::site::{Site, with_paused_clock};

/// The queue of callbacks, which is full.
const NEXT: &str = "next";

/// Makes a site that has run for a while, whose callbacks are refused.
async fn with_a_full_queue(change: impl FnOnce(&mut Model)) -> Site {
    let mut site = Site::new(1);
    site.broker.change(|model| {
        model.queue(NEXT).mood = Mood::Full;
        change(model);
    });
    site.start();
    tokio::time::sleep(Duration::from_secs(10)).await;
    site
}

fn send(site: &Site, number: usize) {
    site.send(&write(&format!("c{number}"), &format!("k{number}")).followed("callbacks", NEXT).message());
}

/// Returns when something reached the first step, in milliseconds; what came together counts once.
fn parked(site: &Site) -> Vec<u64> {
    let began = site.broker.look(|model| model.began);
    let arrivals = site.arrivals(&Parking::address(0).routing_key);
    let mut times: Vec<_> =
        arrivals.iter().map(|arrival| u64::try_from((arrival.at - began).as_millis()).unwrap()).collect();
    times.dedup();
    times
}

#[test]
fn a_callback_is_parked_at_the_first_look_after_five_seconds() {
    with_paused_clock(async {
        let site = with_a_full_queue(|_| ()).await;
        send(&site, 0);
        tokio::time::sleep(Duration::from_secs(10)).await;
        // It was refused after a millisecond or two, and looks are every 100 ms from its delivery on.
        let put = site.broker.look(|model| times(model, "put work c0")[0]);
        assert_about(parked(&site)[0] - put, 5_100, &site.trace());
    });
}

#[test]
fn half_of_the_slots_make_haste_to_park() {
    for (count, expected) in [(15, 5_100), (16, 600)] {
        with_paused_clock(async {
            let site = with_a_full_queue(|_| ()).await;
            (0..count).for_each(|number| send(&site, number));
            tokio::time::sleep(Duration::from_secs(10)).await;
            let put = site.broker.look(|model| times(model, "put work c0")[0]);
            assert_about(parked(&site)[0] - put, expected, &site.trace());
        });
    }
}

#[test]
fn nothing_is_parked_for_five_seconds_after_a_step_refused() {
    with_paused_clock(async {
        let step = Parking::address(0).routing_key;
        let site = with_a_full_queue(|model| model.queue(&step).mood = Mood::Full).await;
        send(&site, 0);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let gaps = gaps(&parked(&site));
        assert!(gaps.len() >= 8 && gaps.iter().all(|gap| (5_000..5_120).contains(gap)), "{gaps:?}");
    });
}

#[test]
fn queues_of_parking_are_looked_for_every_five_seconds() {
    with_paused_clock(async {
        let mut site = Site::new(1);
        site.broker.change(Model::forbid_parking);
        site.start();
        site.until(5, "the session", |model| model.trace.contains("consume 1 work")).await;
        let began = Instant::now();
        until(began, 1_000).await;
        site.broker.change(|model| model.forbidden.clear());
        until(began, 4_950).await;
        assert!(!site.trace().contains("make filestorage.parked"));
        until(began, 5_050).await;
        assert!(site.trace().contains("make filestorage.parked"), "{}", site.trace());
    });
}

#[test]
fn held_commands_are_told_once_a_second() {
    with_paused_clock(async {
        let site = with_a_full_queue(Model::forbid_parking).await;
        let told = || match &site.readiness.conditions()[&Component::Delivery] {
            ComponentState::Degraded(reason) => reason.split(' ').next().unwrap().to_owned(),
            state => format!("{state:?}"),
        };
        let began = Instant::now();
        send(&site, 0);
        until(began, 150).await;
        assert_eq!(told(), "1");
        send(&site, 1);
        until(began, 1_050).await;
        assert_eq!(told(), "1");
        until(began, 1_250).await;
        assert_eq!(told(), "2");
    });
}
