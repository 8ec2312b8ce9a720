//! The broker room against a real RabbitMQ.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/broker.rs"]
mod broker_support;
#[path = "../support/tcp_proxy.rs"]
mod tcp_proxy;

mod consuming;
mod doctor;
mod fanout;
mod faults;
mod foreign;
mod keys;
mod publishing;
mod quorum;
mod three_keys;
mod topology;

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
        Look, Presence, PublishError, QueueSpec, QueueType, Session, Settler, State, Subscription, TlsFiles,
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

/// Options of an encrypted session, and the files they were read from; says why when there is no such listener.
fn encrypted(node: &Node, vhost: &str) -> Option<(BrokerOptions, TlsFiles)> {
    let Some((port, directory)) = &node.tls else {
        eprintln!("not tested: the shared node has no encrypted listener");
        return None;
    };
    let file = |name: &str| Some(directory.join(name));
    let files =
        TlsFiles { ca_file: file("ca.pem"), certificate_file: file("client.pem"), key_file: file("client.key") };
    let tls = files.read().unwrap();
    Some((BrokerOptions { tls, ..options(&format!("amqps://guest:guest@localhost:{port}/{vhost}")) }, files))
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
