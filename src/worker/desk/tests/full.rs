//! What is owed to a queue that refuses, as a full one does.

use super::*;
use crate::celery::message::Address;
use crate::telemetry::GivenUp;
use crate::worker::errand::{self, Errand};
use crate::worker::outbox::Lane;
use crate::worker::silences::Silences;

fn answered(table: &mut Table, replies: &str) -> Parcel {
    let mut message = store();
    message.properties.reply_to = Some(replies.into());
    let job = table.job(message, false);
    let answer = table.desk.answer(job.definition, &job.case, Ok("{}".into()), vec![Facts::default()], Duration::ZERO);
    table.desk.close(job.case, &End::Answered(&answer))
}

fn nacked(publication: &Publication) -> Result<Confirmation, PublishError> {
    Err(PublishError::Nacked(Box::new(publication.clone())))
}

/// Waits, on a clock that costs nothing, as long as a held parcel waits.
async fn waited(answered: Answered) -> Parcel {
    let [(parcel, reason)] = <[_; 1]>::try_from(answered.held).unwrap();
    assert!(reason.contains("takes nothing"), "{reason}");
    match errand::hold(parcel).await {
        Errand::Again(parcels) => <[_; 1]>::try_from(parcels).unwrap().into_iter().next().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_refused_is_tried_as_long_as_one_that_meets_silence_and_holds_up_no_other() {
    let mut table = Table::new();
    let (mut silences, mut outbox) = (Silences::default(), Outbox::default());
    let address = Address::queue("full");
    outbox.push(answered(&mut table, "full"));
    outbox.part(&mut silences);
    let (batch, sent) = outbox.take(10, 10);
    let first = batch.answered(vec![nacked(&sent[0]), Ok(Confirmation::Routed)]);
    assert!(first.lost.is_none() && first.full.contains(&address));
    silences.refused(&address);
    let began = tokio::time::Instant::now();
    let mut parcel = waited(first).await;
    let mut tries = 1;
    let given_up = loop {
        outbox.push(parcel);
        outbox.push(answered(&mut table, "other"));
        outbox.part(&mut silences);
        assert_eq!(routes(&outbox.take(10, 10).1), ["other", "store.succeeded"], "others do not wait for it");
        let (batch, sent) = outbox.take_apart(Lane { address: address.clone(), hopeless: false }, 10, 10);
        assert_eq!(routes(&sent), ["full"]);
        let again = batch.answered(vec![nacked(&sent[0])]);
        tries += 1;
        if again.held.is_empty() {
            break again;
        }
        parcel = waited(again).await;
    };
    assert!(began.elapsed() >= Duration::from_secs(45) && tries >= 10, "{tries} tries in {:?}", began.elapsed());
    assert_eq!((given_up.given_up.as_slice(), given_up.done.len()), ([GivenUp::Full].as_slice(), 1));
    assert!(given_up.done[0].entry.is_some(), "its journal entry is settled like any other");
}

#[tokio::test(start_paused = true)]
async fn what_must_not_be_lost_waits_for_a_full_queue_and_what_is_said_in_between_does_not() {
    let mut table = Table::new();
    let Decision::End(mut parcel, _) = table.decide(task("nope", &json!([[], {}, {}])), false) else { panic!() };
    for _ in 0..50 {
        let mut outbox = Outbox::default();
        outbox.push(*parcel);
        let (batch, sent) = outbox.take(10, 10);
        let answers = sent.iter().map(|sent| match sent.address.routing_key.as_str() {
            DEAD_QUEUE => nacked(sent),
            _ => Ok(Confirmation::Routed),
        });
        *parcel = waited(batch.answered(answers.collect())).await;
    }
    assert_eq!(routes(&flatten(*parcel)), [DEAD_QUEUE]);

    let mut outbox = Outbox::default();
    let mut started = Parcel::new(None, None);
    started.then.push((Role::Reply, Publication { address: Address::queue("full"), message: Message::default() }));
    outbox.push(started);
    let (batch, sent) = outbox.take(10, 10);
    let answered = batch.answered(vec![nacked(&sent[0])]);
    assert_eq!((answered.done.len(), answered.given_up.len()), (1, 0));
}
