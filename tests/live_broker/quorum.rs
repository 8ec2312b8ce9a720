//! Quorum queues: one node can show all but the loss of another.

use super::*;

/// A session whose own queues are quorum queues.
async fn open_quorum(node: &Node, vhost: &str) -> Session {
    let options = options(&node.url_for("guest:guest", vhost));
    Session::open(&BrokerOptions { queue_type: QueueType::Quorum, ..options }).await.unwrap()
}

#[test]
fn after_every_reconnect_the_whole_prefetch_is_there() {
    live(async |node, vhost| {
        let session = open_quorum(node, &vhost).await;
        consume(&session, "q", 1).await.1.close().await.unwrap();
        publish(&session, numbered("q", 25)).await;
        session.close().await;
        for round in 0..4 {
            let session = open_quorum(node, &vhost).await;
            let (mut deliveries, settler) = consume(&session, "q", 20).await;
            let consumers = node.ctl(&["list_consumers", "--vhost", &vhost, "queue_name", "prefetch_count"]);
            assert_eq!(consumers.lines().filter(|line| *line == "q\t20").count(), 1, "round {round}: {consumers}");
            // They come back with the session that is dropped, and behind them nothing else is sent.
            drop(take(&mut deliveries, 20).await);
            nothing(&mut deliveries).await;
            drop((deliveries, settler));
            drop(session);
            let session = open_quorum(node, &vhost).await;
            until_ready(&session, "q", 25).await;
            session.close().await;
        }
    });
}

#[test]
fn returned_messages_come_first_with_their_delivery_count() {
    live(async |node, vhost| {
        let session = open_quorum(node, &vhost).await;
        let (mut deliveries, settler) = consume(&session, "q", 4).await;
        publish(&session, numbered("q", 8)).await;
        let mut taken = take(&mut deliveries, 4).await;
        assert!(taken.iter().all(|delivery| delivery.message.headers.get("x-delivery-count").is_none()));
        settler.settle(vec![taken.remove(0).ack_token]).unwrap();
        drop(taken);
        settler.close().await.unwrap();
        let (mut deliveries, _settler) = consume(&session, "q", 100).await;
        let again = take(&mut deliveries, 7).await;
        // "4" was on its way when the channel closed, or was not: the order is the same.
        assert_eq!(bodies(&again), ["1", "2", "3", "4", "5", "6", "7"]);
        for delivery in &again[..3] {
            assert!(delivery.origin.redelivered);
            assert_eq!(delivery.message.headers.get("x-delivery-count"), Some(&Field::Int(1)));
        }
    });
}

#[test]
fn a_message_waits_through_several_delay_queues_and_comes_back() {
    live(async |node, vhost| {
        let session = open_quorum(node, &vhost).await;
        let (mut deliveries, settler) = consume(&session, "q", 10).await;
        let due = tokio::time::Instant::now() + Duration::from_millis(1_500);
        let mut message = to("q", "later").message;
        let mut steps = Vec::new();
        loop {
            let rest = due.saturating_duration_since(tokio::time::Instant::now());
            if rest.is_zero() {
                break;
            }
            let address = session.delay().address("q", rest).await.unwrap();
            steps.push(address.exchange.clone());
            publish(&session, vec![Publication { address, message }]).await;
            let delivery = take(&mut deliveries, 1).await.remove(0);
            settler.settle(vec![delivery.ack_token]).unwrap();
            message = filestorage::celery::park(&delivery.message);
        }
        assert_eq!(steps.first().map(String::as_str), Some("filestorage.delay.800"));
        assert!(steps.len() > 1, "{steps:?}");
        nothing(&mut deliveries).await;
        until_ready(&session, "q", 0).await;
    });
}

#[test]
fn a_message_that_a_full_queue_rejects_comes_back() {
    live(async |node, vhost| {
        let session = open_quorum(node, &vhost).await;
        for queue_type in [QueueType::Classic, QueueType::Quorum] {
            let name = format!("{queue_type:?}");
            let full = QueueSpec::durable(&*name, queue_type)
                .with("x-max-length", Field::Int(1))
                .with("x-overflow", "reject-publish");
            session.topology().ensure_queue(&full).await.unwrap();
            // A quorum queue takes some more before it notices.
            let mut tried = 0;
            let refused = loop {
                tried += 1;
                assert!(tried < 100, "{name} is never full");
                let wanted = to(&name, &tried.to_string());
                match session.publisher().publish(vec![wanted.clone()], true).await.remove(0) {
                    Ok(_) => {}
                    Err(error) => break (wanted, error),
                }
            };
            assert_eq!(refused.1, PublishError::Nacked(Box::new(refused.0)));
            assert_eq!(session.state(), State::Open);
        }
    });
}
