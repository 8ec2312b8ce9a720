//! The broker room against a real RabbitMQ.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/broker.rs"]
mod broker_support;
#[path = "support/tcp_proxy.rs"]
mod tcp_proxy;

use std::{
    future::Future,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use broker_support::{Node, node};
use bytes::Bytes;
use filestorage::{
    broker::{
        Backoff, BrokerOptions, BrokerUrl, Confirmation, Deliveries, Delivery, End, ErrorKind, Exchange, ExchangeType,
        Look, Presence, PublishError, QueueSpec, QueueType, Session, Settler, State, Subscription,
    },
    celery::message::{Address, Field, Headers, Message, Properties, Publication},
};
use tcp_proxy::TcpProxy;

/// An alarm stops the whole node: that test runs alone.
static NODE_WIDE: RwLock<()> = RwLock::new(());

/// Longer than anything here takes; a test that hangs fails instead.
const PATIENCE: Duration = Duration::from_secs(60);

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE * 2, test).await.expect("the test hangs") })
}

/// Runs a test beside others, in a virtual host of its own.
fn live<F: Future<Output = ()>>(test: impl FnOnce(&'static Node, String) -> F) {
    let _shared = NODE_WIDE.read().unwrap_or_else(PoisonError::into_inner);
    let node = node();
    let vhost = node.vhost();
    run(test(node, vhost));
}

fn options(url: &str) -> BrokerOptions {
    BrokerOptions { urls: BrokerUrl::parse_all(url).unwrap(), ..BrokerOptions::default() }
}

async fn open(node: &Node, vhost: &str) -> Session {
    Session::open(&options(&node.url_for("guest:guest", vhost))).await.unwrap()
}

async fn consume(session: &Session, queue: &str, prefetch: u16) -> (Deliveries, Settler) {
    session.consume(&[queue.to_owned()], prefetch, "test").await.unwrap()
}

fn to(queue: &str, body: &str) -> Publication {
    let message = Message {
        properties: Properties {
            delivery_mode: Some(2),
            correlation_id: Some(format!("id-{}", body.get(..20).unwrap_or(body))),
            ..Properties::default()
        },
        headers: Headers::default(),
        body: Bytes::from(body.to_owned()),
    };
    Publication { address: Address::queue(queue), message }
}

fn numbered(queue: &str, count: usize) -> Vec<Publication> {
    (0..count).map(|number| to(queue, &number.to_string())).collect()
}

async fn publish(session: &Session, batch: Vec<Publication>) {
    for result in session.publisher().publish(batch, true).await {
        assert_eq!(result, Ok(Confirmation::Routed));
    }
}

/// Takes exactly so many deliveries.
async fn take(deliveries: &mut Deliveries, count: usize) -> Vec<Delivery> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.extend(tokio::time::timeout(PATIENCE, deliveries.next()).await.expect("nothing is delivered").unwrap());
    }
    assert_eq!(taken.len(), count);
    taken
}

/// Waits until nothing has come for a while: what the broker may send it sends at once.
async fn nothing(deliveries: &mut Deliveries) {
    let more = tokio::time::timeout(Duration::from_millis(500), deliveries.next()).await;
    assert!(more.is_err(), "{more:?}");
}

fn bodies(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|delivery| String::from_utf8(delivery.message.body.to_vec()).unwrap()).collect()
}

async fn until_lost(session: &Session) -> String {
    let mut watch = session.watch();
    let state = tokio::time::timeout(PATIENCE, watch.wait_for(|state| matches!(state, State::Lost(_)))).await;
    match state.expect("the session is not lost").unwrap().clone() {
        State::Lost(reason) => reason,
        state => panic!("{state:?}"),
    }
}

/// Waits until a queue holds so many messages ready for delivery.
async fn until_ready(session: &Session, queue: &str, count: u32) {
    let wanted = async {
        loop {
            match session.topology().look(queue).await.unwrap() {
                Look::Present { messages, .. } if messages == count => return,
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, wanted).await.expect("the queue does not fill");
}

#[test]
fn what_is_acknowledged_is_gone_and_the_rest_comes_back_in_place() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let (mut deliveries, settler) = consume(&session, "q", 100).await;
        publish(&session, numbered("q", 10)).await;
        let taken = take(&mut deliveries, 10).await;
        assert!(taken.iter().all(|delivery| !delivery.origin.redelivered && delivery.origin.queue == "q"));
        let mut tickets: Vec<_> = taken.into_iter().map(|delivery| delivery.ticket).collect();
        // 0, 1, 2 and 5 are done; 3 is slow.
        let fifth = tickets.remove(5);
        let kept = tickets.split_off(3);
        tickets.push(fifth);
        assert_eq!(settler.settle(tickets).unwrap(), 4);
        drop(kept);

        settler.stop().await.unwrap();
        assert_eq!(deliveries.next().await.unwrap_err(), End::Stopped);
        settler.close().await.unwrap();
        assert_eq!(session.state(), State::Open);
        let (mut deliveries, settler) = consume(&session, "q", 100).await;
        let taken = take(&mut deliveries, 6).await;
        assert_eq!(bodies(&taken), ["3", "4", "6", "7", "8", "9"]);
        assert!(taken.iter().all(|delivery| delivery.origin.redelivered));
        settler.settle(taken.into_iter().map(|delivery| delivery.ticket).collect()).unwrap();
        settler.close().await.unwrap();
        until_ready(&session, "q", 0).await;
    });
}

#[test]
fn the_prefetch_holds_for_each_queue_and_a_finished_one_behind_a_slow_one_makes_room() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let queues = ["a".to_owned(), "b".to_owned()];
        let (mut deliveries, settler) = session.consume(&queues, 3, "test").await.unwrap();
        publish(&session, numbered("a", 8)).await;
        publish(&session, numbered("b", 8)).await;
        let mut taken = take(&mut deliveries, 6).await;
        nothing(&mut deliveries).await;
        assert_eq!(taken.iter().filter(|delivery| delivery.origin.queue == "a").count(), 3);
        // The oldest stays unfinished; two others of "a" are done.
        let slow = taken.iter().position(|delivery| delivery.origin.queue == "a").unwrap();
        let slow = taken.remove(slow);
        let done = taken.into_iter().filter(|delivery| delivery.origin.queue == "a");
        assert_eq!(settler.settle(done.map(|delivery| delivery.ticket).collect()).unwrap(), 2);
        let next = take(&mut deliveries, 2).await;
        assert!(next.iter().all(|delivery| delivery.origin.queue == "a"));
        nothing(&mut deliveries).await;
        assert_eq!(settler.settle(vec![slow.ticket]).unwrap(), 1);
        take(&mut deliveries, 1).await;
    });
}

#[test]
fn a_ticket_of_a_dead_channel_settles_nothing() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let (mut deliveries, settler) = consume(&session, "q", 10).await;
        publish(&session, numbered("q", 2)).await;
        let old = take(&mut deliveries, 2).await;
        settler.close().await.unwrap();
        let (mut deliveries, settler) = consume(&session, "q", 10).await;
        let new = take(&mut deliveries, 2).await;
        assert_eq!(settler.settle(old.into_iter().map(|delivery| delivery.ticket).collect()).unwrap(), 0);
        drop((deliveries, new));
        settler.close().await.unwrap();
        until_ready(&session, "q", 2).await;
    });
}

#[test]
fn queues_declared_by_others_are_consumed_as_they_are() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let quorum = QueueSpec::durable("quorum", QueueType::Quorum);
        let ranked = QueueSpec::durable("ranked", QueueType::Classic).with("x-max-priority", Field::Int(9));
        for foreign in [&quorum, &ranked] {
            assert_eq!(session.topology().ensure_queue(foreign).await.unwrap(), Presence::Created);
            assert_eq!(session.topology().ensure_queue(foreign).await.unwrap(), Presence::Present);
        }
        let queues = ["quorum", "ranked", "plain"].map(str::to_owned);
        let (mut deliveries, settler) = session.consume(&queues, 10, "test").await.unwrap();
        for queue in &queues {
            publish(&session, vec![to(queue, queue)]).await;
        }
        let taken = take(&mut deliveries, 3).await;
        settler.settle(taken.into_iter().map(|delivery| delivery.ticket).collect()).unwrap();
        // The missing one was made the way Celery makes it, with its exchange.
        let named = Publication {
            address: Address { exchange: "plain".to_owned(), routing_key: "plain".to_owned() },
            ..to("", "by name")
        };
        publish(&session, vec![named]).await;
        assert_eq!(bodies(&take(&mut deliveries, 1).await), ["by name"]);
        let arguments = node.ctl(&["list_queues", "--vhost", &vhost, "name", "durable", "arguments"]);
        assert!(arguments.lines().any(|line| line == "plain\ttrue\t[]"), "{arguments}");
    });
}

#[test]
fn options_shape_the_queues_that_are_created() {
    live(async |node, vhost| {
        let url = node.url_for("guest:guest", &vhost);
        let quorum = BrokerOptions { queue_type: QueueType::Quorum, ..options(&url) };
        let session = Session::open(&quorum).await.unwrap();
        consume(&session, "tasks", 10).await;
        assert_eq!(session.topology().ensure_dead().await.unwrap(), Presence::Created);
        assert_eq!(session.topology().ensure_metrics(10).await.unwrap(), Presence::Created);
        session.delay().address("tasks", Duration::from_secs(1)).await.unwrap();
        let ranked = BrokerOptions { max_priority: Some(5), ..options(&url) };
        consume(&Session::open(&ranked).await.unwrap(), "ranked", 10).await;
        let queues = node.ctl(&["list_queues", "--vhost", &vhost, "name", "type", "arguments"]);
        let line = |name: &str| queues.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        for name in ["tasks", "filestorage.dead", "filestorage.metrics", "filestorage.delay.800"] {
            assert!(line(name).contains("\tquorum\t"), "{queues}");
        }
        assert!(line("ranked").contains("x-max-priority"), "{queues}");
        assert!(line("filestorage.delay.800").contains("at-least-once"), "{queues}");
    });
}

#[test]
fn events_reach_the_bounded_metrics_queue_until_an_operator_unbinds_it() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        assert_eq!(session.topology().ensure_metrics(2).await.unwrap(), Presence::Created);
        assert_eq!(session.topology().ensure_metrics(2).await.unwrap(), Presence::Present);
        let event = |body| {
            let address =
                Address { exchange: "filestorage.events".to_owned(), routing_key: "store.succeeded".to_owned() };
            Publication { address, ..to("", body) }
        };
        publish(&session, vec![event("1"), event("2"), event("3")]).await;
        until_ready(&session, "filestorage.metrics", 2).await;
        assert_eq!(session.topology().look("filestorage.dead").await.unwrap(), Look::Missing);
    });
}

#[test]
fn a_user_without_configure_works_and_is_told_what_it_lacks() {
    live(async |node, vhost| {
        let user = format!("least-{vhost}");
        node.ctl(&["add_user", &user, "word"]);
        node.ctl(&["set_permissions", "--vhost", &vhost, &user, "^$", "^(q|amq\\.default)$", "^q$"]);
        let owner = open(node, &vhost).await;
        consume(&owner, "q", 1).await.1.close().await.unwrap();
        owner.topology().ensure_queue(&QueueSpec::durable("unreadable", QueueType::Classic)).await.unwrap();

        let session = Session::open(&options(&node.url_for(&format!("{user}:word"), &vhost))).await.unwrap();
        let (mut deliveries, settler) = consume(&session, "q", 10).await;
        publish(&session, vec![to("q", "1")]).await;
        let taken = take(&mut deliveries, 1).await;
        settler.settle(taken.into_iter().map(|delivery| delivery.ticket).collect()).unwrap();

        let error = session.consume(&["missing".to_owned()], 1, "test").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.is_permanent());
        assert!(error.to_string().contains("configure permission on queue 'missing'"), "{error}");
        let error = session.consume(&["unreadable".to_owned()], 1, "test").await.unwrap_err();
        assert!(error.to_string().contains("read permission on queue 'unreadable'"), "{error}");
        assert!(matches!(session.topology().ensure_dead().await.unwrap(), Presence::Denied(text)
            if text.contains("configure permission on queue 'filestorage.dead'")));
        assert!(matches!(session.topology().ensure_metrics(10).await.unwrap(), Presence::Denied(_)));
        let error = session.delay().address("q", Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");

        let foreign = Publication {
            address: Address { exchange: "amq.topic".to_owned(), routing_key: "k".to_owned() },
            ..to("", "1")
        };
        let results = session.publisher().publish(vec![foreign, to("q", "2")], true).await;
        assert!(matches!(&results[0], Err(PublishError::Refused { code: 403, .. })), "{results:?}");
        assert_eq!(results[1], Ok(Confirmation::Routed));
        assert_eq!(session.state(), State::Open);
    });
}

#[test]
fn a_wrong_password_and_an_unknown_vhost_are_permanent() {
    live(async |node, vhost| {
        let error = Session::open(&options(&node.url_for("guest:secret", &vhost))).await.unwrap_err();
        assert!(error.is_permanent(), "{error}");
        assert!(error.to_string().contains("check user 'guest'"), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
        let error = Session::open(&options(&node.url_for("guest:guest", "nowhere"))).await.unwrap_err();
        assert!(error.is_permanent(), "{error}");
        assert!(error.to_string().contains("vhost 'nowhere'"), "{error}");
    });
}

#[test]
fn urls_are_tried_in_turn_and_one_that_may_come_up_is_not_permanent() {
    live(async |node, vhost| {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let refused = format!("amqp://{}", closed.local_addr().unwrap());
        drop(closed);
        let wrong = node.url_for("guest:secret", &vhost);
        let right = node.url_for("guest:guest", &vhost);
        let session = Session::open(&options(&format!("{refused};{wrong};{right}"))).await.unwrap();
        assert_eq!(session.url().vhost(), vhost);
        let error = Session::open(&options(&format!("{refused};{wrong}"))).await.unwrap_err();
        assert!(!error.is_permanent(), "{error}");
        assert!(error.to_string().contains("refused") && error.to_string().contains("check user"), "{error}");
        assert!(Backoff::default().next_wait() <= Duration::from_millis(100));
    });
}

#[test]
fn a_killed_connection_ends_the_session_and_the_next_one_gets_the_rest() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let (mut deliveries, settler) = consume(&session, "q", 10).await;
        publish(&session, numbered("q", 3)).await;
        let taken = take(&mut deliveries, 3).await;
        let (name, publisher) = (vhost.clone(), session.publisher());
        let killed =
            tokio::task::spawn_blocking(move || node.ctl(&["close_all_connections", "--vhost", &name, "tested"]));
        let end = tokio::time::timeout(PATIENCE, deliveries.next()).await.unwrap().unwrap_err();
        assert!(matches!(end, End::Lost(_)), "{end:?}");
        killed.await.unwrap();
        let reason = until_lost(&session).await;
        assert!(reason.contains("tested"), "{reason}");
        let error = settler.settle(taken.into_iter().map(|delivery| delivery.ticket).collect()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Lost);
        let results = publisher.publish(vec![to("q", "late")], true).await;
        assert!(matches!(&results[0], Err(PublishError::Lost(_))), "{results:?}");

        let session = open(node, &vhost).await;
        let (mut deliveries, _settler) = consume(&session, "q", 10).await;
        let again = take(&mut deliveries, 3).await;
        assert!(again.iter().all(|delivery| delivery.origin.redelivered));
    });
}

#[test]
fn a_dropped_session_gives_everything_back_though_a_publisher_is_still_held() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let (mut deliveries, settler) = consume(&session, "q", 10).await;
        publish(&session, numbered("q", 2)).await;
        let taken = take(&mut deliveries, 2).await;
        let publisher = session.publisher();
        drop(session);
        assert_eq!(deliveries.next().await.unwrap_err(), End::Lost("the session was closed".to_owned()));
        let session = open(node, &vhost).await;
        until_ready(&session, "q", 2).await;
        drop((taken, settler, publisher));
        session.close().await;
    });
}

#[test]
fn a_deleted_queue_ends_the_session_and_is_made_anew() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let (mut deliveries, _settler) = consume(&session, "q", 10).await;
        let name = vhost.clone();
        let deleted = tokio::task::spawn_blocking(move || node.ctl(&["delete_queue", "--vhost", &name, "q"]));
        let end = tokio::time::timeout(PATIENCE, deliveries.next()).await.unwrap().unwrap_err();
        assert_eq!(end, End::Cancelled { queue: "q".to_owned() });
        deleted.await.unwrap();
        assert!(until_lost(&session).await.contains("'q'"));
        let session = open(node, &vhost).await;
        let (mut deliveries, _settler) = consume(&session, "q", 10).await;
        publish(&session, vec![to("q", "1")]).await;
        take(&mut deliveries, 1).await;
    });
}

#[test]
fn what_no_queue_wants_comes_back_and_is_told_from_what_was_routed() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        consume(&session, "q", 1).await.1.close().await.unwrap();
        let batch: Vec<_> = (0..200)
            .map(
                |number| if number % 3 == 0 { to("nobody", &number.to_string()) } else { to("q", &number.to_string()) },
            )
            .collect();
        let results = session.publisher().publish(batch.clone(), true).await;
        for (number, result) in results.iter().enumerate() {
            match result {
                Ok(Confirmation::Routed) => assert_ne!(number % 3, 0),
                Ok(Confirmation::Returned { code: 312, .. }) => assert_eq!(number % 3, 0),
                other => panic!("{other:?}"),
            }
        }
        let results = session.publisher().publish(batch, false).await;
        assert!(results.iter().all(|result| *result == Ok(Confirmation::Routed)));
        until_ready(&session, "q", 266).await;
    });
}

#[test]
fn one_culprit_in_a_batch_is_found_and_the_others_arrive() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        consume(&session, "q", 1).await.1.close().await.unwrap();
        let mut batch = numbered("q", 20);
        batch[7].message.properties.user_id = Some("somebody else".to_owned());
        batch[11].address.exchange = "no such exchange".to_owned();
        batch[13].message.properties.reply_to = Some("x".repeat(300));
        let results = session.publisher().publish(batch, true).await;
        for (number, result) in results.iter().enumerate() {
            match (number, result) {
                (7, Err(PublishError::Refused { code: 406, .. })) => {}
                (11, Err(PublishError::Refused { code: 404, .. })) => {}
                (13, Err(PublishError::Refused { code: 0, .. })) => {}
                (7 | 11 | 13, other) => panic!("{number}: {other:?}"),
                (_, result) => assert_eq!(*result, Ok(Confirmation::Routed), "{number}"),
            }
        }
        assert_eq!(session.state(), State::Open);
        publish(&session, vec![to("q", "after")]).await;
    });
}

#[test]
fn a_body_larger_than_the_broker_takes_is_refused_and_large_ones_within_pass() {
    let _alone = NODE_WIDE.write().unwrap_or_else(PoisonError::into_inner);
    let node = node();
    let vhost = node.vhost();
    let limit = |bytes: &str| node.ctl(&["eval", &format!("application:set_env(rabbit, max_message_size, {bytes}).")]);
    limit("3000000");
    run(async {
        let session = open(node, &vhost).await;
        consume(&session, "q", 1).await.1.close().await.unwrap();
        let large = "x".repeat(2_500_000);
        let batch = vec![to("q", &large), to("q", &"y".repeat(3_500_000)), to("q", &large), to("q", "small")];
        let results = session.publisher().publish(batch, true).await;
        assert!(matches!(&results[1], Err(PublishError::Refused { code: 406, .. })), "{results:?}");
        for number in [0, 2, 3] {
            assert_eq!(results[number], Ok(Confirmation::Routed), "{number}");
        }
        assert_eq!(session.state(), State::Open);
    });
    limit("134217728");
}

#[test]
fn while_the_broker_is_blocked_everything_waits_and_nothing_is_lost() {
    let _alone = NODE_WIDE.write().unwrap_or_else(PoisonError::into_inner);
    let node = node();
    let vhost = node.vhost();
    run(async {
        let url = node.url_for("guest:guest", &vhost);
        let impatient = BrokerOptions { timeout: Duration::from_secs(2), ..options(&url) };
        let session = Session::open(&impatient).await.unwrap();
        let (mut deliveries, settler) = consume(&session, "q", 10).await;
        publish(&session, vec![to("q", "before")]).await;
        let before = take(&mut deliveries, 1).await;
        node.ctl(&["set_vm_memory_high_watermark", "0.0001"]);
        let publisher = session.publisher();
        let waiting = tokio::spawn(async move { publisher.publish(vec![to("q", "blocked")], true).await });
        let mut watch = session.watch();
        let blocked = watch.wait_for(|state| matches!(state, State::Blocked(_)));
        tokio::time::timeout(PATIENCE, blocked).await.unwrap().unwrap();
        // Well beyond the time-out.
        tokio::time::sleep(impatient.timeout * 2).await;
        assert!(!waiting.is_finished());
        assert!(matches!(session.state(), State::Blocked(reason) if !reason.is_empty()));
        // Settling and looking go on.
        settler.settle(before.into_iter().map(|delivery| delivery.ticket).collect()).unwrap();
        session.topology().look("q").await.unwrap();
        node.ctl(&["set_vm_memory_high_watermark", "0.4"]);
        let results = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
        assert_eq!(results, [Ok(Confirmation::Routed)]);
        assert_eq!(session.state(), State::Open);
        assert_eq!(bodies(&take(&mut deliveries, 1).await), ["blocked"]);
    });
}

#[test]
fn a_silent_peer_is_noticed_by_its_missing_heartbeat() {
    live(async |node, vhost| {
        let proxy = TcpProxy::start(node.place());
        let url = format!("amqp://guest:guest@{}/{vhost}", proxy.address);
        // So patient that only the heartbeat can tell.
        let patient = BrokerOptions { timeout: Duration::from_secs(600), ..options(&url) };
        let session = Session::open(&patient).await.unwrap();
        let (mut deliveries, settler) = consume(&session, "q", 10).await;
        let negotiated = node.ctl(&["list_connections", "vhost", "timeout"]);
        assert!(negotiated.lines().any(|line| line == format!("{vhost}\t8")), "{negotiated}");
        publish(&session, vec![to("q", "1")]).await;
        let taken = take(&mut deliveries, 1).await;
        proxy.fall_silent();
        let publisher = session.publisher();
        let (end, results, look) = tokio::join!(deliveries.next(), publisher.publish(numbered("q", 3), true), async {
            session.topology().look("q").await
        },);
        assert!(matches!(end, Err(End::Lost(_))), "{end:?}");
        assert!(results.iter().all(|result| matches!(result, Err(PublishError::Lost(_)))), "{results:?}");
        assert_eq!(look.unwrap_err().kind(), ErrorKind::Lost);
        assert_eq!(settler.close().await.unwrap_err().kind(), ErrorKind::Lost);
        drop(taken);
    });
}

#[test]
fn a_silent_peer_is_noticed_by_a_missing_confirm() {
    live(async |node, vhost| {
        let proxy = TcpProxy::start(node.place());
        let url = format!("amqp://guest:guest@{}/{vhost}", proxy.address);
        let impatient = BrokerOptions { timeout: Duration::from_secs(2), ..options(&url) };
        let session = Session::open(&impatient).await.unwrap();
        consume(&session, "q", 1).await.1.close().await.unwrap();
        publish(&session, vec![to("q", "1")]).await;
        proxy.fall_silent();
        let results = session.publisher().publish(numbered("q", 3), true).await;
        assert!(results.iter().all(|result| matches!(result, Err(PublishError::Lost(_)))), "{results:?}");
        assert!(until_lost(&session).await.contains("confirm"));
        // A new session through the same silence does not hang either.
        let error = Session::open(&impatient).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    });
}

#[test]
fn the_delay_steps_bring_a_message_back_to_its_queue() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let (mut deliveries, settler) = consume(&session, "q", 10).await;
        for (body, remaining) in [("short", Duration::from_millis(700)), ("long", Duration::from_secs(3))] {
            let due = tokio::time::Instant::now() + remaining;
            let mut message = to("q", body).message;
            let mut rounds = 0;
            while let Some(rest) =
                due.checked_duration_since(tokio::time::Instant::now()).filter(|rest| !rest.is_zero())
            {
                let address = session.delay().address("q", rest).await.unwrap();
                publish(&session, vec![Publication { address, message }]).await;
                let mut back = take(&mut deliveries, 1).await;
                let delivery = back.remove(0);
                assert_eq!(delivery.origin.routing_key, "q");
                assert_eq!(bodies(std::slice::from_ref(&delivery)), [body]);
                settler.settle(vec![delivery.ticket]).unwrap();
                message = delivery.message;
                assert!(message.headers.remove("x-death").is_some());
                rounds += 1;
            }
            assert!(rounds > 1, "{body} came back at once");
        }
    });
}

#[test]
fn headers_of_every_type_survive_the_broker() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let (mut deliveries, _settler) = consume(&session, "q", 10).await;
        let mut sent = to("q", "1");
        let headers = &mut sent.message.headers;
        headers.set("eta", Field::Void);
        headers.set("task", "filestorage.store".into());
        headers.set("retries", Field::Int(1));
        headers.set("large", Field::Int(-(1 << 40)));
        headers.set("ratio", Field::Float(1.5));
        headers.set("when", Field::Timestamp(1_700_000_000));
        headers.set("timelimit", Field::List(vec![Field::Void, Field::Bool(false)]));
        headers.set("stamps", Field::Table(Headers::from_iter([("a".to_owned(), "é".into())])));
        sent.message.properties.priority = Some(3);
        publish(&session, vec![sent.clone()]).await;
        let received = take(&mut deliveries, 1).await.remove(0);
        assert_eq!(received.message.properties, sent.message.properties);
        assert_eq!(received.message.headers.len(), sent.message.headers.len());
        for (name, field) in sent.message.headers.iter() {
            assert_eq!(received.message.headers.get(name), Some(field), "{name}");
        }
    });
}

#[test]
fn a_subscription_hears_what_is_published_after_it() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let subscription = Subscription {
            exchange: Exchange { name: "celery.pidbox".to_owned(), kind: ExchangeType::Fanout, durable: false },
            queue: QueueSpec {
                durable: false,
                exclusive: true,
                auto_delete: true,
                ..QueueSpec::durable("me.celery.pidbox", QueueType::Classic)
            }
            .with("x-expires", Field::Int(10_000)),
            routing_key: String::new(),
        };
        let mut notices = session.subscribe(&subscription).await.unwrap();
        let call = Publication {
            address: Address { exchange: "celery.pidbox".to_owned(), routing_key: String::new() },
            ..to("", "ping")
        };
        publish(&session, vec![call]).await;
        let (message, origin) = notices.next().await.unwrap();
        assert_eq!(&message.body[..], b"ping");
        assert_eq!(origin.exchange, "celery.pidbox");
        // A second connection may not have the same exclusive queue; its session lives on.
        let other = open(node, &vhost).await;
        let error = other.subscribe(&subscription).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Down, "{error}");
        assert_eq!(other.state(), State::Open);
    });
}
