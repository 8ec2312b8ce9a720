//! What a worker needs of a broker, as traits.
//!
//! The worker knows a broker by these traits only. [`Connector`](super::Connector) opens sessions with RabbitMQ; the tests
//! of the session loop implement the traits over queues in memory.

use std::{fmt, ops::Deref, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::{sync::watch, time::Instant};

use crate::celery::message::{Address, Message, Publication};

use super::{
    AckToken, BrokerUrl, Confirmation, ConsumeError, Delivery, Early, End, Error, Exchange, Look, ParkedDelivery,
    ParkedToken, Presence, PublishError, QueueSpec, Result, State, Subscription,
};

/// Opens sessions with a broker, one after another.
#[async_trait]
pub trait Broker: fmt::Debug + Send + Sync {
    /// Opens the next session.
    ///
    /// # Errors
    /// Why no broker gives a session; permanent only where waiting cannot help.
    async fn open(&self) -> Result<Arc<dyn BrokerSession>>;
}

/// Publishes with confirms.
#[async_trait]
pub trait Publish: fmt::Debug + Send + Sync {
    /// Returns how long a confirm is waited for unless the caller says otherwise.
    fn patience(&self) -> Duration;

    /// Publishes all, waits `limit` for the confirm of each, and returns one result for each, in order. What a queue does not
    /// want comes back when `mandatory`. While the broker is blocked the clock stands, and no early word is given.
    ///
    /// Who asks for `early` word gets it where not all is known by then; what it says of a publication stands.
    async fn publish_within(
        &self,
        limit: Duration,
        batch: Vec<Publication>,
        mandatory: bool,
        early: Option<Early>,
    ) -> Vec<std::result::Result<Confirmation, PublishError>>;
}

/// One session with a broker: everything that is lost together.
///
/// Every wait for the broker ends within a limit of the implementation, and at once when the session is lost. A lost
/// session stays lost.
#[async_trait]
pub trait BrokerSession: Publish {
    /// Returns the broker's address for the log, without secrets.
    fn address(&self) -> String;

    /// Returns the URL that answered; `None` where there is no such thing.
    fn url(&self) -> Option<&BrokerUrl>;

    /// Returns the state of the session, and all later ones.
    fn watch(&self) -> watch::Receiver<State>;

    /// Tells how long the broker has said nothing at all. An idle broker is asked something every other second.
    fn silence(&self) -> Duration;

    /// Tells since when the broker was silent if a delivery received at this time may have been handed out before: a
    /// silence of [`DOUBT`](super::DOUBT) that still lasts, or ended since or shortly before.
    fn late_since(&self, received: Instant) -> Option<Instant>;

    /// Makes sure that this user may answer, by the outcome of a publication that reaches nobody. A blocked broker counts as one
    /// that takes it.
    ///
    /// # Errors
    /// `Denied` names the missing permission; `Lost`.
    async fn may_answer(&self, probe: BoxFuture<'_, std::result::Result<(), PublishError>>) -> Result<()>;

    /// Consumes the task queues, creating those that are missing, with `prefetch` unsettled deliveries each at most.
    ///
    /// # Errors
    /// As the broker says; a queue that is down is no error as long as another one is there. With the queue's name when it is
    /// there but gives no consumer: the session is lost with it.
    async fn consume(
        &self,
        queues: &[String],
        prefetch: u16,
        tag_prefix: &str,
    ) -> std::result::Result<Box<dyn Consumer>, ConsumeError>;

    /// Tries in a session of its own whether a queue gives a consumer.
    ///
    /// # Errors
    /// Why it gives none.
    async fn try_consumer(&self, queue: &str) -> Result<()>;

    /// Returns the most bytes of a frame, which the headers of a publication must fit.
    fn frame_max(&self) -> usize;

    /// Looks whether a queue is there; needs no permission.
    ///
    /// # Errors
    /// `Lost`.
    async fn look(&self, queue: &str) -> Result<Look>;

    /// Looks at a queue and creates it when it is missing.
    ///
    /// # Errors
    /// `Arguments` when the broker supports none such; `Lost`.
    async fn ensure_queue(&self, queue: &QueueSpec) -> Result<Presence>;

    /// Makes sure of the queue of dead copies.
    ///
    /// # Errors
    /// As [`BrokerSession::ensure_queue`].
    async fn ensure_dead(&self) -> Result<Presence>;

    /// Removes the oldest dead copies above `most`, and returns how many. Several that do so at once remove none too many.
    ///
    /// # Errors
    /// `Denied` names the missing permission; `Lost`, and what else the broker says.
    async fn trim_dead(&self, most: u64) -> Result<u64>;

    /// Makes sure of the exchange of metric events and of the queue that collects `max_length` of them.
    ///
    /// # Errors
    /// As [`BrokerSession::ensure_queue`].
    async fn ensure_metrics(&self, max_length: u32) -> Result<Presence>;

    /// Returns where to publish what shall be back in `queue` after `remaining`, or earlier.
    ///
    /// # Errors
    /// `Denied` when the delay queue is missing and may not be created; `Down`, `Arguments`, `Lost`.
    async fn delay_address(&self, queue: &str, remaining: Duration) -> Result<Address>;

    /// Says which permission is missing for delay queues; `None` where all are there or may be made.
    ///
    /// # Errors
    /// `Lost`, and what else the broker says.
    async fn delay_lack(&self) -> Result<Option<String>>;

    /// Tells whether the queues of parked publications were there when this session last looked.
    fn is_parking_available(&self) -> bool;

    /// Makes sure of the queues of parked publications, which hold `max_bytes` together.
    ///
    /// # Errors
    /// As [`BrokerSession::ensure_queue`].
    async fn ensure_parking(&self, max_bytes: u64) -> Result<Presence>;

    /// Begins to take parked publications that come back, `prefetch` unacknowledged ones at most.
    ///
    /// # Errors
    /// `Denied` names the missing permission; what else the broker says. The session lives on.
    async fn consume_parked(&self, prefetch: u16) -> Result<Box<dyn ParkedSource>>;

    /// Makes sure of the exchange by which workers announce changed keys.
    ///
    /// # Errors
    /// As [`BrokerSession::ensure_queue`].
    async fn ensure_fanout(&self) -> Result<Presence>;

    /// Publishes one announcement and waits until every listener's queue has it.
    ///
    /// # Errors
    /// As [`Publish::publish_within`].
    async fn announce(&self, body: Bytes) -> std::result::Result<(), PublishError>;

    /// Listens to the announcements that are published from now on, also to those of this session.
    ///
    /// # Errors
    /// `Denied` names the missing permission; `Missing`, `Full` and `Lost` as the broker says.
    async fn listen(&self) -> Result<Box<dyn Announcements>>;

    /// Begins to take in what reaches a queue of this session.
    ///
    /// # Errors
    /// `Denied` names the missing permission; `Down` where another session has a queue of this name, and what else the broker says.
    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn NoticeSource>>;

    /// Sends messages that may be lost to an exchange, which is made when it is missing. Nothing is confirmed.
    ///
    /// # Errors
    /// Why they were not handed over; the session lives on but for `Lost`.
    async fn notify(&self, exchange: &Exchange, publications: Vec<Publication>) -> Result<()>;

    /// Closes the session in order; what is unsettled goes back to its place. Tells whether the broker said that it is
    /// closed: it has everything that was sent to it then.
    async fn close(&self) -> bool;

    /// Ends the session at once, whoever still holds a part of it; every wait in it ends.
    fn end(&self);
}

/// The deliveries of all consumed queues, in the order in which the broker sent them, and what settles them.
#[async_trait]
pub trait Consumer: fmt::Debug + Send {
    /// Returns the queues that were left out because they are down, with the broker's words.
    fn down(&self) -> &[(String, Error)];

    /// Returns what begins to consume further queues.
    fn joiner(&self) -> Arc<dyn QueueJoiner>;

    /// Takes in the deliveries of a further queue, which a joiner has begun to consume.
    fn join(&mut self, queue: &str);

    /// Lets each queue's prefetch follow the sizes of its deliveries, within `full` deliveries and `bytes` of bodies.
    fn adapt_prefetch(&mut self, full: u16, bytes: u64);

    /// Ends the consumers of a queue; what it has handed out can still be settled.
    fn leave(&mut self, queue: &str);

    /// Tells how many deliveries only wait for others of their kind: others of another kind shall be seen all the same.
    fn set_blocked(&mut self, count: usize);

    /// Waits for a delivery and returns it with all that are ready by now, [`BATCH`](super::BATCH) at most. Dropping the
    /// future loses none.
    ///
    /// # Errors
    /// The reason why there will be no other; after [`End::Cancelled`] those of the other queues come.
    async fn next(&mut self) -> std::result::Result<Vec<Delivery>, End>;

    /// Acknowledges finished deliveries, without waiting, and returns how many. Tokens of another session settle nothing.
    ///
    /// # Errors
    /// `Lost`; the broker will deliver these again.
    fn settle(&self, ack_tokens: Vec<AckToken>) -> Result<usize>;

    /// Counts the deliveries that may be unsettled at once, over all queues; 0 where there is no limit.
    fn window(&self) -> usize;

    /// Gives one delivery back to its queue, which delivers it again.
    ///
    /// # Errors
    /// `Lost`; the broker will deliver it again.
    fn give_back(&self, ack_token: &AckToken) -> Result<()>;

    /// Ends the consumers; what was handed out can still be settled.
    ///
    /// # Errors
    /// `Lost`.
    async fn stop(&mut self) -> Result<()>;

    /// Gives everything unsettled back to its place.
    ///
    /// # Errors
    /// `Lost`.
    async fn close(&mut self) -> Result<()>;
}

/// Begins to consume further queues while a consumer goes on.
#[async_trait]
pub trait QueueJoiner: fmt::Debug + Send + Sync {
    /// Begins to consume a queue, which is created when it is missing; its deliveries come after [`Consumer::join`].
    ///
    /// # Errors
    /// As [`BrokerSession::consume`]; only with `Down` of a queue that is not stalled the session lives on.
    async fn begin(&self, queue: &str) -> std::result::Result<(), ConsumeError>;
}

/// The parked publications that come back.
#[async_trait]
pub trait ParkedSource: fmt::Debug + Send + Sync {
    /// Waits for a publication and returns it with all that are ready. Dropping the future loses none.
    ///
    /// # Errors
    /// The reason why there will be no other; the session may live on.
    async fn next(&mut self) -> std::result::Result<Vec<ParkedDelivery>, End>;

    /// Acknowledges one publication; does not wait.
    fn acknowledge(&self, ack_token: &ParkedToken);
}

/// The announcements of changed keys that arrive.
#[async_trait]
pub trait Announcements: fmt::Debug + Send {
    /// Waits for the next announcement; dropping the future loses none.
    ///
    /// # Errors
    /// The reason why there will be no other; the session may live on.
    async fn next(&mut self) -> std::result::Result<Bytes, String>;
}

/// What reaches a queue of this session alone.
#[async_trait]
pub trait NoticeSource: fmt::Debug + Send {
    /// Waits for the next message; dropping the future loses none.
    ///
    /// # Errors
    /// The reason why there will be no other; the session may live on.
    async fn next(&mut self) -> std::result::Result<Message, End>;
}

/// A session that ends when this is dropped, whoever still holds a part of it.
#[derive(Debug)]
pub struct OpenSession(Arc<dyn BrokerSession>);

impl OpenSession {
    /// Takes a session over.
    #[must_use]
    pub const fn new(session: Arc<dyn BrokerSession>) -> Self {
        Self(session)
    }

    /// Returns the session for what waits beside its owner; it ends with the owner all the same.
    #[must_use]
    pub fn share(&self) -> Arc<dyn BrokerSession> {
        Arc::clone(&self.0)
    }
}

impl Deref for OpenSession {
    type Target = dyn BrokerSession;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.0.end();
    }
}
