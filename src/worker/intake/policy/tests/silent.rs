//! What is owed to a queue that says neither yes nor no.

use std::collections::HashSet;

use super::*;
use crate::celery::message::Address;
use crate::worker::delivery::destinations::Destinations;
use crate::worker::delivery::pending_ack::Lane;

#[test]
fn what_goes_to_a_silent_queue_is_sent_apart_and_answers_to_it_are_given_up_in_the_end() {
    let mut table = Table::new();
    let mut destinations = Destinations::default();
    let mut outbox = Outbox::default();
    let mut fill = |outbox: &mut Outbox, replies: &str| {
        let mut message = store();
        message.properties.reply_to = Some(replies.into());
        let task = table.ready(message, false);
        let answer = table.answer(&task, Ok("{}".into()));
        outbox.push(table.policy.close(task.context, &TaskEnd::Answered(&answer)));
    };
    let unconfirmed = |publication: &Publication| Err(PublishError::Unconfirmed(Box::new(publication.clone())));
    let routed = || Ok(Confirmation::Routed);
    let address = Address::queue("silent");

    fill(&mut outbox, "silent");
    outbox.part(&mut destinations);
    let (batch, sent) = outbox.take(10, 10);
    let answered = batch.answered(vec![unconfirmed(&sent[0]), routed()]);
    assert!(answered.lost.is_some(), "at first the whole broker is in doubt");
    assert_eq!(answered.silent, HashSet::from([address.clone()]));
    destinations.note(&address);

    fill(&mut outbox, "silent");
    fill(&mut outbox, "other");
    outbox.part(&mut destinations);
    let (batch, sent) = outbox.take(10, 10);
    assert_eq!(routes(&sent), ["other", "store.succeeded"], "nothing else waits for it, not even the event");
    let answered = batch.answered(vec![routed(), routed()]);
    assert_eq!((answered.done.len(), answered.again.len()), (1, 1));
    answered.again.into_iter().for_each(|pending| outbox.push(pending));
    outbox.part(&mut destinations);
    assert!(!outbox.has_next() && !outbox.is_empty());
    assert_eq!(outbox.next_apart(&HashSet::from([address.clone()])), None, "one flight at a time");
    assert_eq!(outbox.next_apart(&HashSet::new()), Some(address.clone()));
    let (batch, sent) = outbox.take_apart(Lane { address: address.clone(), hopeless: false }, 10, 10);
    assert_eq!(routes(&sent), ["silent"]);
    let answered = batch.answered(vec![unconfirmed(&sent[0])]);
    assert!(answered.lost.is_none() && answered.done.is_empty());
    assert_eq!((answered.lane, answered.silent), (Some(address.clone()), HashSet::from([address.clone()])));
    answered.held.into_iter().for_each(|(pending, _)| outbox.push(pending));

    outbox.part(&mut destinations);
    let (batch, sent) = outbox.take_apart(Lane { address: address.clone(), hopeless: true }, 10, 10);
    assert_eq!(routes(&sent), ["silent"]);
    let answered = batch.answered(vec![unconfirmed(&sent[0])]);
    assert!(answered.lost.is_none() && answered.held.is_empty());
    assert_eq!(answered.done.len(), 1);

    fill(&mut outbox, "silent");
    destinations.heard(&address);
    outbox.part(&mut destinations);
    assert_eq!(routes(&outbox.take(10, 10).1), ["silent", "store.succeeded"], "it is one like all others again");
}

#[test]
fn silent_addresses_take_turns_and_each_is_sent_alone() {
    let mut table = Table::new();
    let mut destinations = Destinations::default();
    let mut outbox = Outbox::default();
    let addresses = ["one", "two"].map(Address::queue);
    addresses.iter().for_each(|address| destinations.note(address));
    destinations.note(&Address { exchange: events::EXCHANGE.into(), routing_key: "store.succeeded".into() });
    for _ in 0..3 {
        let mut message = store();
        message.properties.reply_to = Some("one".into());
        message.headers.set("metrics_reply_to", Field::from("two"));
        let task = table.ready(message, false);
        let answer = table.answer(&task, Ok("{}".into()));
        outbox.push(table.policy.close(task.context, &TaskEnd::Answered(&answer)));
    }
    let mut order = Vec::new();
    for _ in 0..9 {
        outbox.part(&mut destinations);
        assert!(!outbox.has_next());
        let address = outbox.next_apart(&HashSet::new()).unwrap();
        let (batch, sent) = outbox.take_apart(Lane { address: address.clone(), hopeless: false }, 1, 10);
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].address, address);
        order.push(address.routing_key);
        let answered = batch.answered(vec![Ok(Confirmation::Routed)]);
        answered.again.into_iter().for_each(|pending| outbox.push(pending));
    }
    assert!(outbox.is_empty());
    assert_eq!(order[..3], ["one", "one", "two"], "{order:?}");
    order.sort();
    assert_eq!(order, [["one"; 3], ["store.succeeded"; 3], ["two"; 3]].concat());
}

#[test]
fn an_event_to_a_silent_queue_never_leaves_with_what_others_wait_for() {
    let mut destinations = Destinations::default();
    destinations.note(&Address { exchange: events::EXCHANGE.into(), routing_key: "store.succeeded".into() });
    let mut table = Table::new();
    let task = table.ready(store(), false);
    let answer = table.answer(&task, Ok("{}".into()));
    let mut pending = table.policy.close(task.context, &TaskEnd::Answered(&answer));
    pending.first =
        vec![(Role::FollowUp, Publication { address: Address::queue("next"), message: Message::default() })];
    pending.then.clear();
    let mut outbox = Outbox::default();
    outbox.push(pending);
    outbox.part(&mut destinations);
    let (batch, sent) = outbox.take(10, 10);
    assert_eq!(routes(&sent), ["next"]);
    batch.answered(vec![Ok(Confirmation::Routed)]).again.into_iter().for_each(|pending| outbox.push(pending));
    outbox.part(&mut destinations);
    assert!(!outbox.has_next());
    let lane = Lane { address: outbox.next_apart(&HashSet::new()).unwrap(), hopeless: true };
    let (batch, sent) = outbox.take_apart(lane, 10, 10);
    assert_eq!(routes(&sent), ["store.succeeded"]);
    assert!(!batch.may_be_given_up(), "an event is waited for");
}

#[test]
fn a_refusal_replaces_an_answer_that_was_put_off() {
    let mut destinations = Destinations::default();
    destinations.note(&Address::queue("replies"));
    let mut table = Table::new();
    let task = table.ready(store(), false);
    let answer = table.answer(&task, Ok("{}".into()));
    let mut outbox = Outbox::default();
    outbox.push(table.policy.close(task.context, &TaskEnd::Answered(&answer)));
    outbox.part(&mut destinations);
    let (batch, sent) = outbox.take(10, 10);
    assert_eq!(routes(&sent), ["store.succeeded"]);
    let [mut pending] = <[_; 1]>::try_from(batch.answered(vec![Ok(Confirmation::Routed)]).again).unwrap();
    table.policy.refused(&mut pending, &Exception::value_error("refused".to_owned()));
    let sent = flatten(pending);
    assert_eq!(routes(&sent), ["replies"]);
    assert_eq!(body(&sent[0])["status"], "FAILURE");
}

#[test]
fn only_answers_to_the_silent_address_itself_are_given_up() {
    let mut pending = PendingAck::new(None, None);
    let publication = |name: &str| Publication { address: Address::queue(name), message: Message::default() };
    pending.first = vec![(Role::Reply, publication("elected just now")), (Role::Reply, publication("silent"))];
    let mut destinations = Destinations::default();
    destinations.note(&Address::queue("silent"));
    let mut outbox = Outbox::default();
    outbox.push(pending);
    outbox.part(&mut destinations);
    let lane = Lane { address: Address::queue("silent"), hopeless: true };
    let (batch, sent) = outbox.take_apart(lane, 10, 10);
    let answers = sent.into_iter().map(|publication| Err(PublishError::Unconfirmed(Box::new(publication))));
    let answered = batch.answered(answers.collect());
    let [(pending, _)] = <[_; 1]>::try_from(answered.held).unwrap();
    assert_eq!(routes(&flatten(pending)), ["elected just now"]);
}

#[test]
fn what_must_not_be_lost_waits_for_a_silent_queue() {
    let mut table = Table::new();
    let (pending, _) = match table.decide(task_message("nope", &json!([[], {}, {}])), false) {
        Decision::Ended(pending, outcome) => (pending, outcome),
        other => panic!("not an end: {other:?}"),
    };
    let mut destinations = Destinations::default();
    destinations.note(&Address::queue(DEAD_QUEUE));
    let mut outbox = Outbox::default();
    outbox.push(*pending);
    outbox.part(&mut destinations);
    let (batch, sent) = outbox.take(10, 10);
    assert_eq!(routes(&sent), ["replies"], "the caller need not wait");
    batch.answered(vec![Ok(Confirmation::Routed)]).again.into_iter().for_each(|pending| outbox.push(pending));
    outbox.part(&mut destinations);
    let lane = Lane { address: Address::queue(DEAD_QUEUE), hopeless: true };
    let (batch, sent) = outbox.take_apart(lane, 10, 10);
    assert_eq!(routes(&sent), [DEAD_QUEUE]);
    let answered = batch.answered(vec![Err(PublishError::Unconfirmed(Box::new(sent[0].clone())))]);
    let [(pending, _)] = <[_; 1]>::try_from(answered.held).unwrap();
    assert_eq!(routes(&flatten(pending)), [DEAD_QUEUE]);
}
