//! Deliveries, acknowledgements and what is given back.

use super::*;

#[test]
fn acknowledged_messages_go_and_others_return_in_order() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let (mut deliveries, settler) = consume(&session, "q", 100).await;
        publish(&session, numbered("q", 10)).await;
        let taken = take(&mut deliveries, 10).await;
        assert!(taken.iter().all(|delivery| !delivery.origin.redelivered && delivery.origin.queue == "q"));
        let mut ack_tokens: Vec<_> = taken.into_iter().map(|delivery| delivery.ack_token).collect();
        // 0, 1, 2 and 5 are done; 3 is slow.
        let fifth = ack_tokens.remove(5);
        let kept = ack_tokens.split_off(3);
        ack_tokens.push(fifth);
        assert_eq!(settler.settle(ack_tokens).unwrap(), 4);
        drop(kept);

        settler.stop().await.unwrap();
        assert_eq!(deliveries.next().await.unwrap_err(), End::Stopped);
        settler.close().await.unwrap();
        assert_eq!(session.state(), State::Open);
        let (mut deliveries, settler) = consume(&session, "q", 100).await;
        let taken = take(&mut deliveries, 6).await;
        assert_eq!(bodies(&taken), ["3", "4", "6", "7", "8", "9"]);
        assert!(taken.iter().all(|delivery| delivery.origin.redelivered));
        settler.settle(taken.into_iter().map(|delivery| delivery.ack_token).collect()).unwrap();
        settler.close().await.unwrap();
        until_ready(&session, "q", 0).await;
    });
}

#[test]
fn the_prefetch_counts_per_queue_and_finished_ones_make_room() {
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
        assert_eq!(settler.settle(done.map(|delivery| delivery.ack_token).collect()).unwrap(), 2);
        let next = take(&mut deliveries, 2).await;
        assert!(next.iter().all(|delivery| delivery.origin.queue == "a"));
        nothing(&mut deliveries).await;
        assert_eq!(settler.settle(vec![slow.ack_token]).unwrap(), 1);
        take(&mut deliveries, 1).await;
    });
}

#[test]
fn a_further_queue_joins_while_the_others_go_on() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let (mut deliveries, settler) = consume(&session, "a", 2).await;
        deliveries.adapt_prefetch(2, 1 << 20);
        publish(&session, numbered("a", 3)).await;
        let mut taken = take(&mut deliveries, 2).await;
        // It is missing, and made like those at the beginning.
        let joined = deliveries.joiner().join("b").await.unwrap();
        publish(&session, numbered("b", 3)).await;
        // What the new consumer is sent comes before what the old one is sent now, and waits for it.
        let next = taken.remove(0);
        assert_eq!(settler.settle(vec![next.ack_token]).unwrap(), 1);
        deliveries.join(joined);
        taken.extend(take(&mut deliveries, 3).await);
        nothing(&mut deliveries).await;
        let mut queues: Vec<_> = taken.iter().map(|delivery| delivery.origin.queue.as_str()).collect();
        queues.sort_unstable();
        assert_eq!(queues, ["a", "a", "b", "b"]);
        assert_eq!(settler.settle(taken.into_iter().map(|delivery| delivery.ack_token).collect()).unwrap(), 4);
        let last = take(&mut deliveries, 1).await;
        assert_eq!((last[0].origin.queue.as_str(), bodies(&last)), ("b", vec!["2".to_owned()]));
        // A stop ends its consumer as well.
        settler.stop().await.unwrap();
        publish(&session, numbered("b", 1)).await;
        until_ready(&session, "b", 1).await;
        assert_eq!(session.state(), State::Open);
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
        assert_eq!(settler.settle(old.into_iter().map(|delivery| delivery.ack_token).collect()).unwrap(), 0);
        drop((deliveries, new));
        settler.close().await.unwrap();
        until_ready(&session, "q", 2).await;
    });
}

#[test]
fn a_dropped_session_gives_all_back_despite_a_live_publisher() {
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
