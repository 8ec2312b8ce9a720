//! What finished commands owe to queues that take nothing, on a clock that costs nothing.

use super::*;
use crate::broker::{AckToken, Confirmation, PublishError};
use crate::celery::message::Message;
use crate::worker::delivery::destinations::GLANCE;
use crate::worker::delivery::parking;
use crate::worker::events::{EXCHANGE, Event};

const PATIENCE: Duration = Duration::from_secs(5);

type Word = Result<Confirmation, PublishError>;

/// An outbox, what is known of addresses, and a broker that says the same to everything for one address.
#[derive(Default)]
struct Post {
    outbox: Outbox,
    destinations: Destinations,
    /// What the broker says to publications with this routing key.
    words: HashMap<&'static str, fn(&Publication) -> Word>,
}

impl Post {
    fn with(routing_key: &'static str, word: fn(&Publication) -> Word) -> Self {
        let mut post = Self::default();
        post.words.insert(routing_key, word);
        post
    }

    fn words(&self, sent: &[Publication]) -> Vec<Word> {
        let word = |sent: &Publication| match self.words.get(sent.address.routing_key.as_str()) {
            Some(word) => word(sent),
            None => Ok(Confirmation::Routed),
        };
        sent.iter().map(word).collect()
    }

    /// Sends the next batch for everybody; returns where it went and what is left to do.
    fn send(&mut self) -> (Vec<String>, DeliveryReport) {
        self.outbox.divert(&self.destinations);
        let (batch, sent) = self.outbox.take(100, 10);
        let landed = batch.landed(self.words(&sent), true, false);
        (routes(&sent), self.outbox.land(landed, &mut self.destinations, false))
    }

    /// Tries the address whose turn it is, if there is one; returns where that went and what is left to do.
    fn try_one(&mut self) -> Option<(String, DeliveryReport)> {
        self.outbox.divert(&self.destinations);
        let (at, address) = self.outbox.next_trial(&self.destinations, &HashSet::new())?;
        let owed = (at <= Instant::now()).then(|| self.outbox.take_trial(&address)).flatten()?;
        let (batch, sent) = pack(std::iter::once(owed), 1, Some(address));
        let landed = batch.landed(self.words(&sent), true, false);
        Some((routes(&sent).concat(), self.outbox.land(landed, &mut self.destinations, false)))
    }

    fn parkable(&mut self, limit: usize) -> Vec<Owed> {
        let taken = self.outbox.take_parkable(&self.destinations, &HashSet::new(), Some(PATIENCE), limit);
        taken.into_iter().map(|parkable| parkable.owed).collect()
    }
}

fn routes(sent: &[Publication]) -> Vec<String> {
    sent.iter().map(|publication| publication.address.routing_key.clone()).collect()
}

fn nacked(sent: &Publication) -> Word {
    Err(PublishError::Nacked(Box::new(sent.clone())))
}

fn unconfirmed(sent: &Publication) -> Word {
    Err(PublishError::Unconfirmed(Box::new(sent.clone())))
}

fn refused(_: &Publication) -> Word {
    Err(PublishError::Refused { code: 406, text: "no".to_owned() })
}

fn publication(queue: &str) -> Publication {
    Publication { address: Address::queue(queue), message: Message::default() }
}

/// A command that owes these first and those then.
fn owing(first: &[(Role, &str)], then: &[(Role, &str)]) -> PendingAck {
    let publications = |owed: &[(Role, &str)]| owed.iter().map(|(role, queue)| (*role, publication(queue))).collect();
    let mut pending = PendingAck::new(Some(AckToken::stray()), Some("id".to_owned()));
    (pending.first, pending.then) = (publications(first), publications(then));
    pending
}

fn reply(queue: &str) -> PendingAck {
    owing(&[], &[(Role::Reply, queue)])
}

#[tokio::test(start_paused = true)]
async fn a_refused_answer_is_tried_for_45_s_and_holds_up_no_other() {
    let mut post = Post::with("full", nacked);
    post.outbox.push(reply("full"));
    let (sent, report) = post.send();
    assert_eq!((sent, report.lost, report.counts), (vec!["full".to_owned()], None, [0, 0, 1, 0]));
    let (began, mut tries) = (Instant::now(), 1);
    let given_up = loop {
        tokio::time::advance(Duration::from_millis(100)).await;
        post.outbox.push(reply("other"));
        assert_eq!(post.send().0, ["other"]);
        assert_eq!(post.outbox.take_done().len(), 1, "others do not wait for it");
        tries += usize::from(post.try_one().is_some());
        let given_up = post.outbox.give_up(&post.destinations);
        if !given_up.is_empty() {
            break given_up;
        }
    };
    assert_eq!(given_up, [GivenUp::Full]);
    assert!(began.elapsed() >= ANSWER_PATIENCE && began.elapsed() < ANSWER_PATIENCE + Duration::from_secs(6));
    assert!(tries >= 10, "{tries} tries");
    assert_eq!(post.outbox.take_done().len(), 1);
    assert!(post.outbox.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_patience_of_an_answer_begins_anew_when_its_queue_takes_another() {
    let mut post = Post::with("full", nacked);
    post.outbox.push(reply("full"));
    let waits_for = async |post: &mut Post, seconds: u64| {
        for _ in 0..seconds {
            tokio::time::advance(Duration::from_secs(1)).await;
            post.send();
            post.try_one();
        }
        post.outbox.give_up(&post.destinations).len()
    };
    post.send();
    assert_eq!(waits_for(&mut post, 40).await, 0);
    assert!(post.destinations.close(&Address::queue("full")), "it took another one");
    assert_eq!(waits_for(&mut post, 40).await, 0);
    assert_eq!(waits_for(&mut post, 11).await, 1);
}

#[tokio::test(start_paused = true)]
async fn what_must_not_be_lost_is_never_given_up() {
    let mut post = Post::with("full", nacked);
    post.outbox.push(owing(&[], &[(Role::Dead, "full"), (Role::FollowUp, "full")]));
    post.send();
    for _ in 0..200 {
        tokio::time::advance(Duration::from_secs(1)).await;
        post.try_one();
        assert!(post.outbox.give_up(&post.destinations).is_empty());
    }
    post.words.clear();
    tokio::time::advance(PATIENCE).await;
    post.try_one();
    assert_eq!(post.send().0, ["full"], "the other follows as soon as one was taken");
    assert_eq!(post.outbox.take_done().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_said_in_between_waits_for_nobody() {
    let started = || PendingAck { ack_token: None, ..reply("full") };
    let mut post = Post::with("full", nacked);
    post.outbox.push(started());
    post.send();
    assert_eq!((post.outbox.take_done().len(), post.outbox.held().count()), (1, 0));
    post.destinations.trip(&Address::queue("full"), Fault::Full);
    post.outbox.push(started());
    assert!(post.send().0.is_empty() && post.outbox.take_done().len() == 1);
    assert!(post.outbox.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_taken_is_parked_and_counts_as_arrived() {
    let mut post = Post::with("full", nacked);
    post.outbox.push(owing(&[(Role::FollowUp, "full"), (Role::FollowUp, "other")], &[(Role::Reply, "replies")]));
    assert_eq!(post.send().0, ["full", "other"]);
    assert_eq!(post.outbox.held().count(), 1);
    post.outbox.divert(&post.destinations);
    assert!(post.parkable(10).is_empty());
    tokio::time::advance(PATIENCE).await;
    assert!(post.parkable(0).is_empty(), "no more than the limit");
    let [owed] = <[_; 1]>::try_from(post.parkable(10)).unwrap();
    let full = Address::queue("full");
    assert_eq!((owed.debt.role, owed.content.address()), (Role::FollowUp, full.clone()));
    assert!(post.send().0.is_empty(), "the reply waits for it");
    post.outbox.parked(&owed.debt);
    post.destinations.parked(&full);
    assert_eq!(post.send().0, ["replies"]);
    assert_eq!(post.outbox.take_done().len(), 1);
    assert!(post.outbox.is_empty() && post.outbox.held().count() == 0, "its slot is free");
    post.outbox.push(owing(&[(Role::FollowUp, "full")], &[]));
    post.outbox.divert(&post.destinations);
    assert_eq!(post.parkable(10).len(), 1, "what follows is parked at once");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_parked_is_owed_and_given_back_at_last() {
    let mut post = Post::with("full", nacked);
    post.outbox.push(owing(&[], &[(Role::FollowUp, "full"), (Role::Reply, "replies")]));
    assert_eq!(post.send().0, ["full", "replies"]);
    tokio::time::advance(PATIENCE).await;
    post.outbox.divert(&post.destinations);
    let [mut owed] = <[_; 1]>::try_from(post.parkable(10)).unwrap();
    owed.debt.is_unparkable = true;
    post.outbox.owe_again(owed);
    post.outbox.divert(&post.destinations);
    assert!(post.parkable(10).is_empty());
    tokio::time::advance(parking::LONGEST_HOLD - PATIENCE - Duration::from_millis(1)).await;
    assert!(post.outbox.take_overdue(parking::LONGEST_HOLD).is_empty());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(post.outbox.take_overdue(parking::LONGEST_HOLD).len(), 1);
    assert!(post.outbox.is_empty() && !post.outbox.has_apart());
}

#[tokio::test(start_paused = true)]
async fn silence_first_doubts_the_broker_and_then_the_address() {
    let mut post = Post::with("silent", unconfirmed);
    post.outbox.push(reply("silent"));
    assert!(post.send().1.lost.is_some());
    // The next session.
    post.outbox = Outbox::default();
    for _ in 0..3 {
        post.outbox.push(reply("silent"));
    }
    post.outbox.push(reply("other"));
    assert_eq!(post.send().0, ["other"]);
    assert_eq!(post.outbox.take_done().len(), 1);
    assert!(post.try_one().is_none(), "not at once");
    let silent = Address::queue("silent");
    while !post.destinations.is_hopeless(&silent) {
        tokio::time::advance(post.destinations.next_try(&silent) - Instant::now()).await;
        let (sent, report) = post.try_one().unwrap();
        assert_eq!((sent.as_str(), report.lost, report.counts), ("silent", None, [0, 0, 0, 1]), "one at a time");
        if !post.destinations.is_hopeless(&silent) {
            post.outbox.divert(&post.destinations);
            assert!(post.outbox.give_up(&post.destinations).is_empty());
        }
    }
    assert!(post.destinations.is_hopeless(&Address::queue("silent")));
    post.outbox.divert(&post.destinations);
    assert_eq!(post.outbox.give_up(&post.destinations), [GivenUp::Silent; 3]);
    assert_eq!(post.outbox.take_done().len(), 3);
    post.outbox.push(reply("silent"));
    post.outbox.divert(&post.destinations);
    assert!(post.outbox.give_up(&post.destinations).is_empty(), "it is tried, or another one meanwhile");
    post.words.clear();
    tokio::time::advance(GLANCE).await;
    let (_, report) = post.try_one().unwrap();
    assert_eq!(report.closed, [Address::queue("silent")]);
    assert_eq!(post.outbox.take_done().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn addresses_that_take_nothing_are_tried_in_turn() {
    let mut post = Post::with("one", nacked);
    post.words.insert("two", nacked);
    for queue in ["one", "two", "one", "two"] {
        post.outbox.push(reply(queue));
    }
    post.send();
    let mut tried = Vec::new();
    for _ in 0..60 {
        tokio::time::advance(Duration::from_millis(100)).await;
        tried.extend(post.try_one().map(|(route, _)| route));
    }
    assert_eq!(tried, ["one", "two", "one", "two"], "after 1 and 2 s more");
}

#[tokio::test(start_paused = true)]
async fn an_event_to_a_silent_address_never_leaves_with_others() {
    let mut post = Post::default();
    post.destinations
        .trip(&Address { exchange: EXCHANGE.into(), routing_key: "store.succeeded".into() }, Fault::Silent);
    let mut pending = owing(&[(Role::FollowUp, "next")], &[(Role::Reply, "replies")]);
    pending.events = vec![Event::of("store.succeeded")];
    post.outbox.push(pending);
    assert_eq!(post.send().0, ["next"]);
    assert_eq!(post.send().0, ["replies"]);
    assert!(post.outbox.take_done().is_empty());
    tokio::time::advance(Duration::from_secs(1)).await;
    let (sent, report) = post.try_one().unwrap();
    assert_eq!((sent.as_str(), report.published), ("store.succeeded", 1));
    assert_eq!(report.closed.iter().filter_map(own_queue).collect::<Vec<_>>(), [OwnQueue::Events]);
    assert_eq!(post.outbox.take_done().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_replaces_an_answer_that_waits_apart() {
    let mut post = Post::with("full", nacked);
    post.words.insert("refusing", refused);
    post.outbox.push(owing(&[], &[(Role::Reply, "full"), (Role::Dead, "full"), (Role::FollowUp, "next")]));
    post.send();
    post.outbox.push(owing(&[], &[(Role::FollowUp, "refusing"), (Role::Reply, "full")]));
    let (_, report) = post.send();
    let [(debt, words, _)] = <[_; 1]>::try_from(report.refused).unwrap();
    assert_eq!((debt.role, words.as_str()), (Role::FollowUp, "406 no"));
    post.outbox.mend(&debt, |pending| {
        pending.fail();
        assert!(!pending.replied, "it is not out");
        pending.then.push((Role::Reply, publication("replies")));
    });
    assert_eq!(post.send().0, ["replies"]);
    assert_eq!(post.outbox.take_done().len(), 1, "the answer that waited is not owed any more");
    post.words.clear();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(post.try_one().unwrap().0, "full");
    assert_eq!(post.send().0, ["full"], "those of the other command");
    assert_eq!(post.outbox.take_done().len(), 1);
    assert!(post.outbox.is_empty());
}

#[tokio::test(start_paused = true)]
async fn two_refusals_of_one_batch_leave_one_answer() {
    let mut post = Post::with("refusing", refused);
    post.outbox.push(owing(&[(Role::FollowUp, "refusing"), (Role::FollowUp, "refusing")], &[(Role::Reply, "replies")]));
    let (_, report) = post.send();
    assert_eq!(report.refused.len(), 2);
    for (debt, ..) in report.refused {
        post.outbox.mend(&debt, |pending| {
            pending.fail();
            pending.then.push((Role::Reply, publication("failure")));
        });
    }
    assert_eq!(post.send().0, ["failure"]);
    assert_eq!(post.outbox.take_done().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_came_back_is_parked_only_after_a_try() {
    let mut post = Post::default();
    let address = Address::queue("back");
    post.destinations.doubt(&address, Fault::Full);
    post.outbox.push(owing(&[], &[(Role::FollowUp, "back")]));
    post.outbox.divert(&post.destinations);
    post.outbox.apart.values_mut().flatten().for_each(|owed| owed.debt.is_returned = true);
    assert!(post.parkable(10).is_empty(), "it is to be tried first");
    post.destinations.trip(&address, Fault::Full);
    assert_eq!(post.parkable(10).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_guess_gives_no_answer_up() {
    let mut post = Post::default();
    post.outbox.push(reply("back"));
    let long_ago = Instant::now();
    tokio::time::advance(2 * ANSWER_PATIENCE).await;
    post.destinations.doubt(&Address::queue("back"), Fault::Full);
    post.outbox.divert(&post.destinations);
    post.outbox.apart.values_mut().flatten().for_each(|owed| owed.debt.since = Some(long_ago));
    assert!(post.outbox.give_up(&post.destinations).is_empty());
    post.destinations.trip(&Address::queue("back"), Fault::Full);
    assert!(post.outbox.give_up(&post.destinations).is_empty(), "its queue took nothing once");
    tokio::time::advance(ANSWER_PATIENCE).await;
    post.destinations.trip(&Address::queue("back"), Fault::Full);
    assert_eq!(post.outbox.give_up(&post.destinations).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_nobody_may_make_has_its_follow_ups_refused() {
    let mut post = Post::default();
    post.destinations.trip(&Address::queue("absent"), Fault::Missing);
    for _ in 0..3 {
        post.outbox.push(owing(&[(Role::FollowUp, "absent")], &[]));
    }
    post.outbox.divert(&post.destinations);
    let owed = post.outbox.take_trial(&Address::queue("absent")).unwrap();
    let settled = Settled { debt: owed.debt, fate: Fate::Refused("no".into()), content: Some(owed.content) };
    let landed = Landed {
        settled: vec![settled],
        trial: Some(Address::queue("absent")),
        denied: Some("no".into()),
        ..Landed::default()
    };
    let report = post.outbox.land(landed, &mut post.destinations, false);
    assert_eq!(report.refused.len(), 3);
    for (debt, ..) in report.refused {
        post.outbox.mend(&debt, PendingAck::fail);
    }
    assert_eq!(post.outbox.take_done().len(), 3);
}
