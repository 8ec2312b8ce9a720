//! The fanout by which workers tell each other which cached values are old.

use std::time::Instant;

use filestorage::broker::{Broadcasts, Fanout, INVALIDATIONS_EXCHANGE};

use super::*;

async fn heard(broadcasts: &mut Broadcasts) -> String {
    let next = tokio::time::timeout(PATIENCE, broadcasts.next()).await.unwrap();
    String::from_utf8(next.unwrap().to_vec()).unwrap()
}

async fn listening(session: &Session) -> (Fanout, Broadcasts) {
    let fanout = session.fanout();
    fanout.ensure().await.unwrap();
    let broadcasts = fanout.listen().await.unwrap();
    (fanout, broadcasts)
}

/// The names of all queues, and whether each belongs to a connection.
fn queues(node: &Node, vhost: &str) -> Vec<String> {
    let listed = node.ctl(&["list_queues", "--vhost", vhost, "name", "exclusive", "--quiet"]);
    listed.lines().filter(|line| line.starts_with("filestorage.")).map(str::to_owned).collect()
}

#[test]
fn a_broadcast_reaches_every_session_and_its_queue_goes() {
    live(async |node, vhost| {
        let (first, second) = (open(node, &vhost).await, open(node, &vhost).await);
        assert_eq!(first.fanout().ensure().await.unwrap(), Presence::Created);
        first.fanout().publish(Bytes::from_static(b"before anybody listens")).await.unwrap();
        let (fanout, mut one) = listening(&first).await;
        let (_, mut other) = listening(&second).await;
        for text in ["a", "b"] {
            fanout.publish(Bytes::from(text)).await.unwrap();
        }
        for broadcasts in [&mut one, &mut other] {
            assert_eq!((heard(broadcasts).await, heard(broadcasts).await), ("a".to_owned(), "b".to_owned()));
        }
        let mut late = Vec::new();
        for number in 0..1_000 {
            let text = format!("{number}");
            let confirmed = async {
                fanout.publish(Bytes::from(text.clone())).await.unwrap();
                Instant::now()
            };
            let taken = async {
                assert_eq!(heard(&mut other).await, text);
                Instant::now()
            };
            let (confirmed, taken) = tokio::join!(confirmed, taken);
            late.push(taken.saturating_duration_since(confirmed));
        }
        late.sort();
        println!(
            "heard after the confirmation, of 1,000: half {:?}, 99 % {:?}, all {:?}",
            late[500], late[990], late[999]
        );
        assert!(queues(node, &vhost).iter().all(|line| line.ends_with("true")), "{:?}", queues(node, &vhost));
        assert_eq!(queues(node, &vhost).len(), 2);
        drop((one, other));
        first.close().await;
        second.close().await;
        let gone = async {
            while !queues(node, &vhost).is_empty() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
    });
}

#[test]
fn a_broadcast_without_its_exchange_costs_no_session() {
    live(async |node, vhost| {
        let user = format!("fanout-{vhost}");
        node.ctl(&["add_user", &user, "word"]);
        node.ctl(&["set_permissions", "--vhost", &vhost, &user, "^$", ".*", ".*"]);
        let session = Session::open(&options(&node.url_for(&format!("{user}:word"), &vhost))).await.unwrap();
        let fanout = session.fanout();
        assert!(
            matches!(fanout.ensure().await.unwrap(), Presence::Denied(text) if text.contains(INVALIDATIONS_EXCHANGE))
        );
        for _ in 0..20 {
            let refused = fanout.publish(Bytes::from_static(b"x")).await.unwrap_err();
            assert!(matches!(refused, PublishError::Refused { code: 404, .. }), "{refused:?}");
        }
        let owner = open(node, &vhost).await;
        owner.fanout().ensure().await.unwrap();
        assert_eq!(fanout.ensure().await.unwrap(), Presence::Present);
        fanout.publish(Bytes::from_static(b"x")).await.unwrap();
        let error = fanout.listen().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(
            error.to_string().contains("configure permission on queue 'filestorage.invalidations.<uuid>'"),
            "{error}"
        );
        assert_eq!(session.state(), State::Open);
    });
}

#[test]
fn who_does_not_listen_loses_the_oldest_and_holds_few() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let (fanout, mut broadcasts) = listening(&session).await;
        let address = Address { exchange: INVALIDATIONS_EXCHANGE.to_owned(), routing_key: String::new() };
        for hundreds in 0..110 {
            let message = |number: usize| Publication { address: address.clone(), ..to("", &number.to_string()) };
            publish(&session, (0..100).map(|number| message(hundreds * 100 + number)).collect()).await;
        }
        fanout.publish(Bytes::from_static(b"last")).await.unwrap();
        let mut count = 0;
        while heard(&mut broadcasts).await != "last" {
            count += 1;
        }
        // 10,000 in the queue, and 256 that were sent ahead.
        assert!((9_999..=10_300).contains(&count), "{count}");
    });
}

#[test]
fn a_queue_that_is_taken_away_ends_the_listening_only() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let (fanout, mut broadcasts) = listening(&session).await;
        let name = queues(node, &vhost).remove(0).split('\t').next().unwrap().to_owned();
        node.ctl(&["delete_queue", "--vhost", &vhost, &name]);
        let why = tokio::time::timeout(PATIENCE, broadcasts.next()).await.unwrap().unwrap_err();
        assert!(why.contains(&name), "{why}");
        let mut again = fanout.listen().await.unwrap();
        fanout.publish(Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(heard(&mut again).await, "x");
        assert_eq!(session.state(), State::Open);
    });
}
