//! The queue of requests to this node (pidbox), in one session.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::broker::{
    BrokerSession, End, Error, ErrorKind, Exchange, ExchangeType, NoticeSource, QueueSpec, QueueType, Subscription,
};
use crate::celery::control::{self, CONTROL_EXCHANGE, ControlRequest};
use crate::celery::message::Field;
use crate::telemetry::{Component, ComponentState, Readiness};

/// How long a queue waits to be declared again that another session of this name has, perhaps one that is dead.
const AGAIN: Duration = Duration::from_secs(5);
/// The same where a right is missing: each attempt stands in the broker's log.
const DENIED_AGAIN: Duration = Duration::from_secs(60);

/// Takes requests in. Dropping it ends the queue with its session.
pub(in crate::worker) struct Pidbox {
    session: Arc<dyn BrokerSession>,
    node: String,
    readiness: Readiness,
    stage: Stage,
}

enum Stage {
    /// Remote control is off.
    Off,
    Opening(BoxFuture<'static, Result<Box<dyn NoticeSource>, Error>>),
    Open(Box<dyn NoticeSource>),
    Resting(Instant),
}

impl fmt::Debug for Pidbox {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pidbox").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Pidbox {
    pub(in crate::worker) fn new(
        session: Arc<dyn BrokerSession>,
        node: &str,
        is_on: bool,
        readiness: Readiness,
    ) -> Self {
        let stage = if is_on { Stage::Resting(Instant::now()) } else { Stage::Off };
        Self { session, node: node.to_owned(), readiness, stage }
    }

    /// Waits for the next request to this node. Dropping the future loses none.
    pub(in crate::worker) async fn next(&mut self) -> ControlRequest {
        loop {
            let (why, rest) = match &mut self.stage {
                Stage::Off => std::future::pending().await,
                Stage::Resting(until) => {
                    tokio::time::sleep_until(*until).await;
                    self.stage = Stage::Opening(Box::pin(open(Arc::clone(&self.session), self.node.clone())));
                    continue;
                }
                Stage::Opening(opening) => match opening.await {
                    Ok(source) => {
                        self.stage = Stage::Open(source);
                        self.readiness.set(Component::RemoteControl, ComponentState::Ready);
                        continue;
                    }
                    Err(error) if error.kind() == ErrorKind::Denied => (error.to_string(), DENIED_AGAIN),
                    Err(error) => (error.to_string(), AGAIN),
                },
                Stage::Open(source) => match source.next().await {
                    Ok(message) => match control::read(&message, &self.node) {
                        Ok(Some(request)) => return request,
                        Ok(None) => continue,
                        Err(fault) => {
                            tracing::warn!(fault, "a message of remote control cannot be read; it changes nothing");
                            continue;
                        }
                    },
                    Err(End::Lost(why)) => (why, AGAIN),
                    Err(end) => (format!("{end:?}"), AGAIN),
                },
            };
            let reason = format!("remote control is off: {why}");
            self.readiness.set(Component::RemoteControl, ComponentState::Degraded(reason));
            self.stage = Stage::Resting(Instant::now() + rest);
        }
    }
}

async fn open(session: Arc<dyn BrokerSession>, node: String) -> Result<Box<dyn NoticeSource>, Error> {
    let queue = QueueSpec {
        durable: false,
        exclusive: true,
        auto_delete: true,
        ..QueueSpec::durable(format!("{node}.{CONTROL_EXCHANGE}"), QueueType::Classic)
    };
    let subscription = Subscription {
        exchange: Exchange { name: CONTROL_EXCHANGE.to_owned(), kind: ExchangeType::Fanout, durable: false },
        queue: queue.with("x-expires", Field::Int(10_000)).with("x-message-ttl", Field::Int(300_000)),
        routing_key: String::new(),
    };
    session.subscribe(&subscription).await.map_err(|error| match error.kind() {
        ErrorKind::Down => Error::new(
            ErrorKind::Down,
            format!("{error}: does another worker have the name {node}? give each its own (worker_name, -n)"),
        ),
        _ => error,
    })
}
