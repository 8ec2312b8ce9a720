//! What is owed to a queue that refuses, as a full one does.

use super::*;
use crate::celery::message::Address;
use crate::telemetry::GivenUp;
use crate::worker::delivery::deferred::{self, Deferred};
use crate::worker::delivery::destinations::Destinations;
use crate::worker::delivery::held::HeldCommands;
use crate::worker::delivery::parking;
use crate::worker::delivery::pending_ack::Lane;

fn answered(table: &mut Table, replies: &str) -> PendingAck {
    let mut message = store();
    message.properties.reply_to = Some(replies.into());
    let task = table.ready(message, false);
    let answer = table.answer(&task, Ok("{}".into()));
    table.policy.close(task.context, &TaskEnd::Answered(&answer))
}

fn nacked(publication: &Publication) -> Result<Confirmation, PublishError> {
    Err(PublishError::Nacked(Box::new(publication.clone())))
}

/// Waits, on a clock that costs nothing, as long as a held pending acknowledgement waits.
async fn waited(answered: Answered) -> PendingAck {
    let [(pending, reason)] = <[_; 1]>::try_from(answered.held).unwrap();
    assert!(reason.contains("takes nothing"), "{reason}");
    match deferred::hold(pending, None).await {
        Deferred::Again(pending_acks) => <[_; 1]>::try_from(pending_acks).unwrap().into_iter().next().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_refused_is_tried_as_long_as_one_that_meets_silence_and_holds_up_no_other() {
    let mut table = Table::new();
    let (mut destinations, mut outbox) = (Destinations::default(), Outbox::default());
    let address = Address::queue("full");
    outbox.push(answered(&mut table, "full"));
    outbox.part(&mut destinations);
    let (batch, sent) = outbox.take(10, 10);
    let first = batch.answered(vec![nacked(&sent[0]), Ok(Confirmation::Routed)]);
    assert!(first.lost.is_none() && first.full.contains(&address));
    destinations.refused(&address);
    let began = tokio::time::Instant::now();
    let mut pending = waited(first).await;
    let mut tries = 1;
    let given_up = loop {
        outbox.push(pending);
        outbox.push(answered(&mut table, "other"));
        outbox.part(&mut destinations);
        assert_eq!(routes(&outbox.take(10, 10).1), ["other", "store.succeeded"], "others do not wait for it");
        let (batch, sent) = outbox.take_apart(Lane { address: address.clone(), hopeless: false }, 10, 10);
        assert_eq!(routes(&sent), ["full"]);
        let again = batch.answered(vec![nacked(&sent[0])]);
        tries += 1;
        if again.held.is_empty() {
            break again;
        }
        pending = waited(again).await;
    };
    assert!(began.elapsed() >= Duration::from_secs(45) && tries >= 10, "{tries} tries in {:?}", began.elapsed());
    assert_eq!((given_up.given_up.as_slice(), given_up.done.len()), ([GivenUp::Full].as_slice(), 1));
    assert!(given_up.done[0].entry.is_some(), "its journal entry is settled like any other");
}

#[tokio::test(start_paused = true)]
async fn what_must_not_be_lost_waits_for_a_full_queue_and_what_is_said_in_between_does_not() {
    let mut table = Table::new();
    let Decision::Ended(mut pending, _) = table.decide(task_message("nope", &json!([[], {}, {}])), false) else {
        panic!()
    };
    for _ in 0..50 {
        let mut outbox = Outbox::default();
        outbox.push(*pending);
        let (batch, sent) = outbox.take(10, 10);
        let answers = sent.iter().map(|sent| match sent.address.routing_key.as_str() {
            DEAD_QUEUE => nacked(sent),
            _ => Ok(Confirmation::Routed),
        });
        *pending = waited(batch.answered(answers.collect())).await;
    }
    assert_eq!(routes(&flatten(*pending)), [DEAD_QUEUE]);

    let mut outbox = Outbox::default();
    let mut started = PendingAck::new(None, None);
    started.then.push((Role::Reply, Publication { address: Address::queue("full"), message: Message::default() }));
    outbox.push(started);
    let (batch, sent) = outbox.take(10, 10);
    let answered = batch.answered(vec![nacked(&sent[0])]);
    assert_eq!((answered.done.len(), answered.given_up.len()), (1, 0));
}

const PATIENCE: Duration = Duration::from_secs(5);

fn owing(follow_ups: &[&str]) -> PendingAck {
    let publication = |name: &str| Publication { address: Address::queue(name), message: Message::default() };
    let mut pending = PendingAck::new(Some(AckToken::stray()), Some("id".to_owned()));
    pending.first = follow_ups.iter().map(|name| (Role::FollowUp, publication(name))).collect();
    pending.then = vec![(Role::Reply, publication("replies"))];
    pending
}

#[tokio::test(start_paused = true)]
async fn what_a_full_queue_does_not_take_is_parked_after_a_while_and_then_counts_as_arrived() {
    let (mut destinations, mut outbox, held) = (Destinations::default(), Outbox::default(), HeldCommands::default());
    let full = Address::queue("full");
    destinations.refused(&full);
    outbox.push(owing(&["full", "other"]));
    outbox.part(&mut destinations);
    outbox.stall(&held);
    assert_eq!(held.count(), 1);
    assert!(outbox.take_stalled(&mut destinations, PATIENCE, 10).is_empty());
    tokio::time::advance(PATIENCE).await;
    assert!(outbox.take_stalled(&mut destinations, PATIENCE, 0).is_empty(), "no more than the limit");
    let [(mut pending, owed)] = <[_; 1]>::try_from(outbox.take_stalled(&mut destinations, PATIENCE, 10)).unwrap();
    let [owed] = <[_; 1]>::try_from(owed).unwrap();
    assert_eq!((owed.role, owed.is_first, &owed.publication.address), (Role::FollowUp, true, &full));
    pending.parked(&owed);
    destinations.parked(full);
    outbox.push(pending);
    for expected in ["other", "replies"] {
        outbox.part(&mut destinations);
        let (batch, sent) = outbox.take(10, 10);
        assert_eq!(routes(&sent), [expected]);
        batch.answered(vec![Ok(Confirmation::Routed)]).again.into_iter().for_each(|pending| outbox.push(pending));
    }
    assert!(outbox.is_empty());
    assert_eq!(held.count(), 0, "its slot is free");

    outbox.push(owing(&["full"]));
    outbox.part(&mut destinations);
    assert_eq!(outbox.take_stalled(&mut destinations, PATIENCE, 10).len(), 1, "what follows is parked at once");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_parked_is_owed_as_before_and_given_back_in_the_end() {
    let (mut destinations, mut outbox, held) = (Destinations::default(), Outbox::default(), HeldCommands::default());
    destinations.refused(&Address::queue("full"));
    destinations.refused(&Address::queue("replies"));
    outbox.push(owing(&["full"]));
    outbox.part(&mut destinations);
    outbox.stall(&held);
    tokio::time::advance(PATIENCE).await;
    let [(mut pending, owed)] = <[_; 1]>::try_from(outbox.take_stalled(&mut destinations, PATIENCE, 10)).unwrap();
    assert_eq!(owed.iter().map(|owed| owed.role).collect::<Vec<_>>(), [Role::FollowUp, Role::Reply]);
    owed.into_iter().for_each(|owed| pending.owe_again(owed));
    pending.is_unparkable = true;
    assert!(!pending.is_done());
    outbox.push(pending);
    outbox.part(&mut destinations);
    assert!(outbox.take_stalled(&mut destinations, PATIENCE, 10).is_empty());
    assert!(outbox.take_older(parking::LONGEST_HOLD).is_empty());
    tokio::time::advance(parking::LONGEST_HOLD).await;
    let [pending] = <[_; 1]>::try_from(outbox.take_older(parking::LONGEST_HOLD)).unwrap();
    assert_eq!(routes(&flatten(pending)), ["full", "replies"]);
    assert!(outbox.is_empty());
}

#[test]
fn held_slots_make_haste() {
    assert_eq!(parking::patience(1, 32), PATIENCE);
    assert!(parking::patience(16, 32) < Duration::from_secs(1));
    assert_eq!(parking::patience(1000, 0), PATIENCE, "without a limit no slot is wanting");
}
