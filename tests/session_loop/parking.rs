//! What finished commands owe to queues that take nothing: it is parked, or the commands keep their slots.

use std::collections::BTreeMap;
use std::time::Duration;

use filestorage::broker::{PARKED_QUEUE, Parking};
use filestorage::celery::message::Message;
use filestorage::telemetry::{Component, ComponentState};
use tokio::time::Instant;

use crate::model::{Model, Mood};
use crate::sent::{Sent, read, write};
use crate::site::{START, Site, is_acknowledged, with_paused_clock};
use crate::work;

/// The queue of callbacks.
const NEXT: &str = "next";
/// Commands that a worker fetches.
const SLOTS: usize = 32;

/// Makes a command with a callback.
fn followed(number: usize) -> Sent {
    write(&format!("c{number}"), &format!("k{number}")).followed("callbacks", NEXT)
}

/// Makes a site whose callbacks are refused, and sends as many commands as the worker fetches.
fn with_a_full_queue(change: impl FnOnce(&mut Site)) -> Site {
    let mut site = Site::new(1);
    site.broker.change(|model| {
        model.queue(NEXT).mood = Mood::Full;
        model.stamps_from = Some(START * 1000);
    });
    change(&mut site);
    site.start();
    (0..SLOTS).for_each(|number| site.send(&followed(number).message()));
    site
}

/// Returns how many callbacks of each task arrived.
fn callbacks(site: &Site) -> BTreeMap<String, usize> {
    let mut ids = BTreeMap::new();
    for message in site.messages(NEXT) {
        *ids.entry(message.headers.text("id").unwrap().to_owned()).or_default() += 1;
    }
    ids
}

/// Lets the queue take everything, and waits until each of so many commands is acknowledged and has one callback.
async fn heal(site: &Site, count: usize) {
    site.broker.change(|model| model.queue(NEXT).mood = Mood::Takes);
    site.until(600, "all callbacks", |model| model.queues[NEXT].messages.len() >= count).await;
    site.until(600, "all acknowledgements", |model| {
        (0..count).all(|number| is_acknowledged(model, &format!("c{number}"))) && model.parked().is_empty()
    })
    .await;
    let callbacks = callbacks(site);
    assert_eq!((callbacks.len(), callbacks.values().max()), (count, Some(&1)), "{}", site.trace());
}

/// Returns the reason for which a component is not ready.
fn reason(site: &Site, component: Component) -> String {
    match &site.readiness.conditions()[&component] {
        ComponentState::Ready => String::new(),
        ComponentState::Degraded(reason) => format!("degraded: {reason}"),
        ComponentState::Unready(reason) => format!("unready: {reason}"),
    }
}

#[test]
fn callbacks_to_a_full_queue_hold_up_nobody_else() {
    with_paused_clock(async {
        let site = with_a_full_queue(|_| ());
        tokio::time::sleep(Duration::from_millis(100)).await;
        for number in 0..40 {
            let id = format!("other{number}");
            site.send(&write(&id, &id).message());
            site.until(1, &format!("{id} acknowledged"), |model| is_acknowledged(model, &id)).await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        assert!(site.messages(NEXT).is_empty());
        heal(&site, SLOTS).await;
        assert_eq!(work::effects().len(), SLOTS + 40);
        assert!(site.broker.change(|model| model.clients.len() == 1), "no session was lost");
    });
}

#[test]
fn what_was_parked_arrives_as_it_was() {
    let callback = |mood: Mood| {
        with_paused_clock(async {
            let site = Site::started();
            site.broker.change(|model| model.queue(NEXT).mood = mood);
            site.send(&followed(1).message());
            site.acknowledged("c1").await;
            site.broker.change(|model| model.queue(NEXT).mood = Mood::Takes);
            site.until(600, "the callback", |model| !model.queues[NEXT].messages.is_empty()).await;
            let parked = site.arrivals(&Parking::address(0).routing_key).len();
            (parked, site.messages(NEXT))
        })
    };
    let (directly, parked) = (callback(Mood::Takes), callback(Mood::Full));
    assert_eq!((directly.0, parked.0), (0, 1));
    let sorted = |messages: Vec<Message>| {
        let [message] = <[Message; 1]>::try_from(messages).unwrap();
        let headers: BTreeMap<_, _> =
            message.headers.iter().map(|(name, value)| (name.to_owned(), format!("{value:?}"))).collect();
        (headers, message.properties, message.body)
    };
    assert_eq!(sorted(directly.1), sorted(parked.1));
}

#[test]
fn what_is_not_taken_again_waits_longer_each_time() {
    with_paused_clock(async {
        let site = with_a_full_queue(|_| ());
        tokio::time::sleep(Duration::from_secs(1000)).await;
        for step in 0..3 {
            let queue = Parking::address(step).routing_key;
            assert!(site.arrivals(&queue).len() >= SLOTS, "{queue}\n{}", site.trace());
        }
        let waits = |model: &Model| model.queues[&Parking::address(2).routing_key].messages.len();
        site.until(600, "all wait in the last step", |model| waits(model) >= SLOTS - 1).await;
        heal(&site, SLOTS).await;
    });
}

#[test]
fn without_parking_slots_are_kept_and_readyz_says_so() {
    with_paused_clock(async {
        let site = with_a_full_queue(|site| site.broker.change(Model::forbid_parking));
        site.send(&read("other", "k").message());
        site.acknowledged("other").await;
        assert!(reason(&site, Component::Parking).starts_with("degraded: no right to make"), "{:?}", site.readiness);
        // As many commands again may be held before others wait.
        (SLOTS..2 * SLOTS).for_each(|number| site.send(&followed(number).message()));
        tokio::time::sleep(Duration::from_secs(2)).await;
        site.send(&read("last", "k").message());
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!(site.broker.change(|model| model.acknowledged.len()), 1, "{}", site.trace());
        assert!(reason(&site, Component::Delivery).starts_with("unready: no slot is left"), "{:?}", site.readiness);
        heal(&site, 2 * SLOTS).await;
        site.acknowledged("last").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(reason(&site, Component::Delivery), "");
        assert_eq!(work::runs().len(), 2 * SLOTS + 2, "each ran once");
    });
}

#[test]
fn while_the_first_step_is_full_commands_keep_their_slots() {
    with_paused_clock(async {
        let step = Parking::address(0).routing_key;
        let site = with_a_full_queue(|site| site.broker.change(|model| model.queue(&step).mood = Mood::Full));
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert!(site.broker.change(|model| model.acknowledged.is_empty()), "{}", site.trace());
        let reason = reason(&site, Component::Delivery);
        assert!(reason.starts_with("degraded: 32 commands") && reason.contains("'next' takes nothing"), "{reason}");
        assert!(reason.contains("filestorage.parked.5000: its queue is full (parked_max_bytes)"), "{reason}");
        site.broker.change(|model| model.queue(&step).mood = Mood::Takes);
        heal(&site, SLOTS).await;
        assert_eq!(work::runs().len(), SLOTS, "each ran once");
    });
}

#[test]
fn what_is_parked_stays_within_its_bound() {
    const BOUND: u64 = 4000;
    with_paused_clock(async {
        let site = with_a_full_queue(|site| site.options.parked_max_bytes = BOUND);
        for number in SLOTS..600 {
            site.send(&followed(number).message());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let bytes: usize = site.broker.look(|model| model.parked().iter().map(|message| message.body.len()).sum());
        // What is taken and not acknowledged was within the bound before.
        assert!(bytes as u64 <= 2 * BOUND, "{bytes}");
    });
}

#[test]
fn a_slot_is_kept_for_ten_minutes_and_the_answer_is_known() {
    let keeps = |is_stamped: bool| async move {
        let site = with_a_full_queue(|site| {
            site.broker.change(|model| {
                model.forbid_parking();
                model.stamps_from = model.stamps_from.filter(|_| is_stamped);
            });
        });
        let began = Instant::now();
        let is_back = |model: &Model| !model.doubtful.is_empty();
        site.until(700, "a delivery that is given back", is_back).await;
        let kept = began.elapsed();
        assert!(kept >= Duration::from_secs(600) && kept < Duration::from_secs(610), "{kept:?}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!((work::runs().len(), work::effects().len()), (SLOTS, SLOTS), "nothing ran again\n{}", site.trace());
        heal(&site, SLOTS).await;
        assert_eq!((work::runs().len(), work::effects().len()), (SLOTS, SLOTS));
        assert!(site.broker.change(|model| model.held_for_too_long().is_empty() && model.clients.len() == 1));
    };
    [true, false].into_iter().for_each(|is_stamped| with_paused_clock(keeps(is_stamped)));
}

#[test]
fn a_kill_after_parking_sends_a_callback_twice_under_one_id() {
    with_paused_clock(async {
        let mut site = Site::new(1);
        site.broker.change(|model| {
            model.latency = (20, 20);
            model.queue(NEXT).mood = Mood::Full;
        });
        site.start();
        site.send(&followed(1).message());
        let step = Parking::address(0).routing_key;
        site.until(60, "the parking", |model| model.arrivals.iter().any(|arrival| arrival.queue == step)).await;
        // The confirm is on its way, and so is no acknowledgement yet.
        site.kill().await;
        assert!(!site.broker.change(|model| is_acknowledged(model, "c1")));
        site.start();
        site.acknowledged("c1").await;
        site.broker.change(|model| model.queue(NEXT).mood = Mood::Takes);
        site.until(600, "both callbacks", |model| model.parked().is_empty()).await;
        assert_eq!(callbacks(&site).into_values().collect::<Vec<_>>(), [2], "{}", site.trace());
        assert_eq!((work::runs().len(), site.messages(PARKED_QUEUE).len()), (1, 0));
    });
}
