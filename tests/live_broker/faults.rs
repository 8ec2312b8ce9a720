//! Logins, lost connections, silence and alarms.

use tokio::time::Instant;

use super::*;

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
fn tls_needs_a_trusted_authority_and_a_client_certificate() {
    live(async |node, vhost| {
        let Some((options, files)) = encrypted(node, &vhost) else { return };
        let session = Session::open(&options).await.unwrap();
        consume(&session, "q", 1).await.1.close().await.unwrap();
        publish(&session, vec![to("q", "1")]).await;

        let with = |files: TlsFiles| BrokerOptions { tls: files.read().unwrap(), ..options.clone() };
        let untrusted = with(TlsFiles { ca_file: None, ..files.clone() });
        let error = Session::open(&untrusted).await.unwrap_err();
        assert!(error.to_string().contains("authority"), "{error}");
        let anonymous = with(TlsFiles { certificate_file: None, key_file: None, ..files.clone() });
        Session::open(&anonymous).await.unwrap_err();
        let half = TlsFiles { key_file: None, ..files };
        assert_eq!(half.read().unwrap_err().kind(), ErrorKind::Setting);
    });
}

#[test]
fn urls_are_tried_in_turn_and_a_passing_fault_is_not_fatal() {
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
        let unset = BrokerOptions { is_default: true, ..options(&refused) };
        let error = Session::open(&unset).await.unwrap_err().to_string();
        assert!(error.contains("CELERY_BROKER_URL is not set, so its default was tried"), "{error}");
        // Whoever else listens there.
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let place = other.local_addr().unwrap();
        std::thread::spawn(move || {
            use std::io::Write as _;
            while let Ok((mut stream, _)) = other.accept() {
                drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
            }
        });
        let error = Session::open(&options(&format!("amqp://{place}"))).await.unwrap_err().to_string();
        assert!(error.contains("is no AMQP broker"), "{error}");
        let name = QueueSpec::durable("amq.mine", QueueType::Classic);
        let reserved = session.topology().ensure_queue(&name).await.unwrap_err();
        assert!(reserved.to_string().contains("'amq.'") && !reserved.to_string().contains("permission"), "{reserved}");
        assert!(Backoff::new("w@h").next_wait() <= Duration::from_millis(100));
    });
}

#[test]
fn the_next_session_begins_behind_the_url_that_answered() {
    live(async |node, vhost| {
        let other = node.vhost();
        let both = [&vhost, &other].map(|vhost| node.url_for("guest:guest", vhost)).join(";");
        let (both, mut next) = (options(&both), 0);
        for expected in [&vhost, &other, &vhost] {
            let session = Session::open_next(&both, &mut next).await.unwrap();
            assert_eq!(session.url().vhost(), expected);
        }
        // One that takes connections and says nothing is soon left for the next.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let place = silent.local_addr().unwrap();
        let urls = format!("amqp://{place};{}", node.url_for("guest:guest", &vhost));
        let soon = tokio::time::timeout(Duration::from_secs(8), Session::open(&options(&urls))).await;
        assert_eq!(soon.expect("it waits too long").unwrap().url().vhost(), vhost);
    });
}

#[test]
fn the_session_after_a_killed_connection_gets_the_rest() {
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
        let error = settler.settle(taken.into_iter().map(|delivery| delivery.ack_token).collect()).unwrap_err();
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
fn a_deleted_queue_is_made_anew_within_the_session() {
    live(async |node, vhost| {
        let session = open(node, &vhost).await;
        let queues = ["q".to_owned(), "other".to_owned()];
        let (mut deliveries, settler) = session.consume(&queues, 10, "test").await.unwrap();
        publish(&session, numbered("q", 3)).await;
        let taken = take(&mut deliveries, 3).await;
        for number in ["1", "2"] {
            let name = vhost.clone();
            let deleted = tokio::task::spawn_blocking(move || node.ctl(&["delete_queue", "--vhost", &name, "q"]));
            let end = tokio::time::timeout(PATIENCE, deliveries.next()).await.unwrap().unwrap_err();
            assert_eq!(end, End::Cancelled { queue: "q".to_owned() });
            deleted.await.unwrap();
            publish(&session, vec![to("other", number)]).await;
            assert_eq!(bodies(&take(&mut deliveries, 1).await), [number]);
            let joined = deliveries.joiner().join("q").await.unwrap();
            deliveries.join(joined);
            publish(&session, vec![to("q", number)]).await;
            assert_eq!(bodies(&take(&mut deliveries, 1).await), [number]);
        }
        // Acknowledgements of what the deleted queue had handed out cost nothing.
        settler.settle(taken.into_iter().map(|delivery| delivery.ack_token).collect()).unwrap();
        publish(&session, vec![to("other", "3")]).await;
        take(&mut deliveries, 1).await;
        assert_eq!(*session.watch().borrow(), State::Open);
    });
}

/// A memory alarm; lowered even when its test fails, for the sake of the others.
struct Alarm(&'static Node);

impl Alarm {
    fn raise(node: &'static Node) -> Self {
        node.ctl(&["set_vm_memory_high_watermark", "0.0001"]);
        Self(node)
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.0.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    }
}

#[test]
fn while_the_broker_is_blocked_nothing_is_lost() {
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
        let alarm = Alarm::raise(node);
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
        settler.settle(before.into_iter().map(|delivery| delivery.ack_token).collect()).unwrap();
        session.topology().look("q").await.unwrap();
        drop(alarm);
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
        // With time left of 20 s to open the next session.
        let reason = tokio::time::timeout(Duration::from_secs(16), until_lost(&session)).await;
        assert!(reason.expect("it is noticed too late").contains("nothing heard for 12 s"));
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
fn a_keepalive_makes_an_idle_broker_answer() {
    live(async |node, vhost| {
        let session = Session::open(&options(&node.url_for("guest:guest", &vhost))).await.unwrap();
        let _consuming = consume(&session, "q", 10).await;
        // Its first heartbeat comes only now: 4 s after the session began it had just said something.
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!(session.late_since(Instant::now()), None);
    });
}

#[test]
fn a_missing_confirm_gives_the_publications_back() {
    live(async |node, vhost| {
        let proxy = TcpProxy::start(node.place());
        let url = format!("amqp://guest:guest@{}/{vhost}", proxy.address);
        let impatient = BrokerOptions { timeout: Duration::from_secs(2), ..options(&url) };
        let session = Session::open(&impatient).await.unwrap();
        consume(&session, "q", 1).await.1.close().await.unwrap();
        publish(&session, vec![to("q", "1")]).await;
        proxy.fall_silent();
        let results = session.publisher().publish(numbered("q", 3), true).await;
        let unconfirmed = |publication| Err(PublishError::Unconfirmed(Box::new(publication)));
        assert_eq!(results, numbered("q", 3).into_iter().map(unconfirmed).collect::<Vec<_>>());
        assert_eq!(session.state(), State::Open, "one queue's silence is not yet the broker's");
        // A new session through the same silence does not hang either.
        let error = Session::open(&impatient).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    });
}
