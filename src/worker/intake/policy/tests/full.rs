//! What is owed to a queue that refuses, as a full one does.

use super::*;
use crate::celery::message::Address;
use crate::telemetry::GivenUp;
use crate::worker::delivery::deferred::{self, Deferred};
use crate::worker::delivery::destinations::Destinations;
use crate::worker::delivery::outbox::Lane;

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
    match deferred::hold(pending).await {
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
