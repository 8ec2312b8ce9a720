//! What is there, what is created, what is missing, and what comes back later.

use super::*;

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
        settler.settle(taken.into_iter().map(|delivery| delivery.ack_token).collect()).unwrap();
        // The missing one was made the way Celery makes it, with its exchange.
        let named = Publication {
            address: Address { exchange: "plain".to_owned(), routing_key: "plain".to_owned() },
            ..to("", "by name")
        };
        publish(&session, vec![named]).await;
        assert_eq!(bodies(&take(&mut deliveries, 1).await), ["by name"]);
        let arguments = node.ctl(&["list_queues", "--vhost", &vhost, "name", "durable", "arguments"]);
        // RabbitMQ 4 writes the type down where none was asked for.
        let plain = ["plain\ttrue\t[]", "plain\ttrue\t[{\"x-queue-type\",\"classic\"}]"];
        assert!(arguments.lines().any(|line| plain.contains(&line)), "{arguments}");
    });
}

#[test]
fn options_shape_the_queues_that_are_created() {
    live(async |node, vhost| {
        let url = node.url_for("guest:guest", &vhost);
        let quorum = BrokerOptions { queue_type: QueueType::Quorum, ..options(&url) };
        let session = Session::open(&quorum).await.unwrap();
        let (mut deliveries, _settler) = consume(&session, "tasks", 10).await;
        assert_eq!(session.topology().ensure_dead().await.unwrap(), Presence::Created);
        assert_eq!(session.topology().ensure_metrics(10).await.unwrap(), Presence::Created);
        let address = session.delay().address("tasks", Duration::from_secs(1)).await.unwrap();
        publish(&session, vec![Publication { address, ..to("", "later") }]).await;
        assert_eq!(bodies(&take(&mut deliveries, 1).await), ["later"]);
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
fn events_reach_the_metrics_queue_until_it_is_unbound() {
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
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let events = Exchange { name: "filestorage.events".to_owned(), kind: ExchangeType::Topic, durable: true };
        session.topology().ensure_exchange(&events).await.unwrap();
        let metrics = QueueSpec::durable("filestorage.metrics", QueueType::Classic);
        session.topology().ensure_queue(&metrics).await.unwrap();
        assert_eq!(session.topology().ensure_metrics(2).await.unwrap(), Presence::Present);
        let address = Address { exchange: events.name, routing_key: "store.succeeded".to_owned() };
        let results = session.publisher().publish(vec![Publication { address, ..to("", "1") }], true).await;
        assert!(matches!(results[..], [Ok(Confirmation::Returned { .. })]), "{results:?}");
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
        settler.settle(taken.into_iter().map(|delivery| delivery.ack_token).collect()).unwrap();

        let error = session.consume(&["missing".to_owned()], 1, "test").await.unwrap_err().error;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.is_permanent());
        assert!(error.to_string().contains("configure permission on queue 'missing'"), "{error}");
        let error = session.consume(&["unreadable".to_owned()], 1, "test").await.unwrap_err().error;
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
fn the_delay_steps_bring_a_message_back_to_its_queue() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let (mut deliveries, settler) = consume(&session, "q", 10).await;
        let short = ("short", Duration::from_millis(700), "filestorage.delay.400");
        let long = ("long", Duration::from_secs(3), "filestorage.delay.1600");
        for (body, remaining, first) in [short, long] {
            let due = tokio::time::Instant::now() + remaining;
            let mut message = to("q", body).message;
            let mut address = session.delay().address("q", remaining).await.unwrap();
            assert_eq!(address.exchange, first);
            loop {
                publish(&session, vec![Publication { address, message }]).await;
                let delivery = take(&mut deliveries, 1).await.remove(0);
                assert_eq!(delivery.origin.routing_key, "q");
                assert_eq!(bodies(std::slice::from_ref(&delivery)), [body]);
                settler.settle(vec![delivery.ack_token]).unwrap();
                message = delivery.message;
                assert!(message.headers.remove("x-death").is_some());
                let rest = due.saturating_duration_since(tokio::time::Instant::now());
                if rest.is_zero() {
                    break;
                }
                address = session.delay().address("q", rest).await.unwrap();
            }
        }
    });
}
