//! The fanout exchange through which workers announce the keys of changed values to each other.
//!
//! Queue and consumer are on the connection that publishes. The other connection is not read while nobody takes commands, and
//! announcements must not wait behind them. The queue is exclusive to the connection and is deleted with it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use lapin::{
    Channel, Consumer,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::sync::watch;
use uuid::Uuid;

use crate::celery::message::{Address, Field, Message, Properties, Publication};

use super::{
    Error, ErrorKind, Exchange, ExchangeType, Presence, PublishError, Publisher, QueueSpec, QueueType, Result, Session,
    State, Topology, convert::short, error, link::Link, topology,
};

/// The durable fanout exchange that keys of changed values are published to.
pub const INVALIDATIONS_EXCHANGE: &str = "filestorage.invalidations";

/// Messages that the broker sends ahead; the rest waits in the queue, so that memory is bounded here.
const PREFETCH: u16 = 256;
/// Messages after which they are acknowledged, also when more are there.
const ACK_AFTER: u32 = 64;
/// Messages in the queue at most; the oldest are dropped, which the numbers of the others tell.
const MAX_LENGTH: i64 = 10_000;
/// Their bytes at most.
const MAX_BYTES: i64 = 16 << 20;

/// One session's access to the fanout.
#[derive(Clone, Debug)]
pub struct Fanout {
    link: Arc<Link>,
    publisher: Publisher,
}

/// The consumer of all announcements that are published after its queue was bound; dropping it ends the consumer.
#[derive(Debug)]
pub struct Broadcasts {
    link: Arc<Link>,
    channel: Channel,
    consumer: Consumer,
    queue: String,
    /// The newest message taken, and how many are not acknowledged.
    taken: Option<(u64, u32)>,
}

impl Session {
    /// Returns the access to the fanout.
    #[must_use]
    pub fn fanout(&self) -> Fanout {
        Fanout { link: Arc::clone(&self.link), publisher: self.publisher() }
    }
}

impl Fanout {
    /// Looks at the exchange and creates it when it is missing.
    ///
    /// # Errors
    /// As [`Topology::ensure_queue`].
    pub async fn ensure(&self) -> Result<Presence> {
        let name = INVALIDATIONS_EXCHANGE.to_owned();
        let exchange = Exchange { name, kind: ExchangeType::Fanout, durable: true };
        Topology::new(&self.link).ensure_exchange(&exchange).await
    }

    /// Publishes one transient message and waits until the broker has it in every queue that is bound.
    ///
    /// # Errors
    /// As [`Publisher::publish`]; a refusal costs no more than the channel.
    pub async fn publish(&self, body: Bytes) -> std::result::Result<(), PublishError> {
        let properties = Properties {
            content_type: Some("application/json".to_owned()),
            content_encoding: Some("utf-8".to_owned()),
            delivery_mode: Some(1),
            ..Properties::default()
        };
        let address = Address { exchange: INVALIDATIONS_EXCHANGE.to_owned(), routing_key: String::new() };
        let publication = Publication { address, message: Message { properties, body, ..Message::default() } };
        match self.publisher.publish(vec![publication], false).await.pop() {
            Some(answer) => answer.map(drop),
            None => Err(PublishError::Lost("not tried".to_owned())),
        }
    }

    /// Declares a queue of this connection, binds it to the exchange, which must be there, and consumes it.
    ///
    /// # Errors
    /// `Denied` names the missing permission; `Missing`, `Full` and `Lost` as the broker says. The session lives on but for
    /// `Lost`.
    pub async fn listen(&self) -> Result<Broadcasts> {
        let name = Uuid::new_v4().to_string();
        let listening = self.listen_as(&name).await;
        // Said of every such queue, and so the same each time.
        listening.map_err(|error| match error.kind() {
            ErrorKind::Denied => Error::new(ErrorKind::Denied, error.to_string().replace(&name, "<uuid>")),
            _ => error,
        })
    }

    async fn listen_as(&self, name: &str) -> Result<Broadcasts> {
        let link = &self.link;
        let queue = QueueSpec {
            durable: false,
            exclusive: true,
            auto_delete: true,
            ..QueueSpec::durable(format!("{INVALIDATIONS_EXCHANGE}.{name}"), QueueType::Classic)
        };
        let queue = queue
            .with("x-max-length", Field::Int(MAX_LENGTH))
            .with("x-max-length-bytes", Field::Int(MAX_BYTES))
            .with("x-overflow", "drop-head");
        let channel = link.answer("opening a channel", link.publishing.create_channel()).await?;
        topology::declare_queue(link, &channel, &queue).await?;
        topology::bind(link, &channel, &queue.name, INVALIDATIONS_EXCHANGE, "").await?;
        let ahead = channel.basic_qos(PREFETCH, BasicQosOptions::default());
        link.answer("limiting what is sent ahead", ahead).await?;
        let name = short("a queue's name", &queue.name).map_err(|text| Error::new(ErrorKind::Arguments, text))?;
        let started = channel.basic_consume(name, "".into(), BasicConsumeOptions::default(), FieldTable::default());
        let consumer = link
            .answer(&format!("consuming from queue '{}'", queue.name), started)
            .await
            .map_err(|error| link.name_permission(error, "read", &format!("queue '{}'", queue.name)))?;
        Ok(Broadcasts { link: Arc::clone(link), channel, consumer, queue: queue.name, taken: None })
    }

    /// Waits until the session is lost and returns the reason.
    pub async fn lost(&self) -> String {
        self.link.state.lost().await
    }

    /// Returns the state of the session, and all later ones.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<State> {
        self.link.state.watch()
    }

    /// Waits for a future no longer than `limit`, and returns `None` when it has not ended by then. The clock stands while
    /// the broker blocks the session.
    ///
    /// # Errors
    /// The session is lost.
    pub async fn within<T>(&self, limit: Duration, future: impl Future<Output = T>) -> Result<Option<T>> {
        self.link.state.within(limit, future).await
    }
}

impl Broadcasts {
    /// Waits for the next message; dropping the future loses none.
    ///
    /// # Errors
    /// The reason why there will be no other; the session may live on.
    pub async fn next(&mut self) -> std::result::Result<Bytes, String> {
        let next = match self.consumer.next().now_or_never() {
            Some(next) => next,
            None => {
                self.acknowledge();
                tokio::select! {
                    biased;
                    next = self.consumer.next() => next,
                    reason = self.link.state.lost() => return Err(reason),
                }
            }
        };
        match next {
            Some(Ok(delivery)) => {
                let count = self.taken.map_or(0, |(_, count)| count) + 1;
                self.taken = Some((delivery.delivery_tag, count));
                if count >= ACK_AFTER {
                    self.acknowledge();
                }
                Ok(delivery.data.into())
            }
            Some(Err(fault)) => Err(format!("listening on queue '{}': {}", self.queue, error::classify(&fault))),
            None => Err(format!("the broker ended the consumer of queue '{}'", self.queue)),
        }
    }

    /// Acknowledges what was taken; one poll puts it on its way, and a fault shows with the next message.
    fn acknowledge(&mut self) {
        if let Some((tag, _)) = self.taken.take() {
            drop(self.channel.basic_ack(tag, BasicAckOptions { multiple: true }).now_or_never());
        }
    }
}

impl Drop for Broadcasts {
    fn drop(&mut self) {
        Link::done(&self.channel);
    }
}
