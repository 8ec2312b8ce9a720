//! Confirmed, returned and refused publications.

use super::*;

#[test]
fn an_unroutable_message_is_told_from_a_routed_one() {
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

/// A limit of the broker's on bodies, in bytes; the one before is back even when its test fails, for the sake of the others.
struct BodyLimit(&'static Node, String);

impl BodyLimit {
    fn set(node: &'static Node, bytes: &str) -> Self {
        let before = node.ctl(&["eval", "{ok, Bytes} = application:get_env(rabbit, max_message_size), Bytes."]);
        let limit = Self(node, before.trim().to_owned());
        limit.put(bytes);
        limit
    }

    /// RabbitMQ 3 reads the setting, RabbitMQ 4 a term that it makes of it at its start.
    fn put(&self, bytes: &str) {
        let put = format!(
            "application:set_env(rabbit, max_message_size, {bytes}), persistent_term:put(max_message_size, {bytes})."
        );
        self.0.ctl(&["eval", &put]);
    }
}

impl Drop for BodyLimit {
    fn drop(&mut self) {
        self.put(&self.1);
    }
}

#[test]
fn a_body_over_the_broker_s_limit_is_refused() {
    let _alone = NODE_WIDE.write().unwrap_or_else(PoisonError::into_inner);
    let node = node();
    let vhost = node.vhost();
    let _limit = BodyLimit::set(node, "3000000");
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
