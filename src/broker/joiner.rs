//! The beginning of consumers, of the first queues and of further ones.

use std::sync::Arc;

use lapin::{
    Channel, Consumer,
    options::{BasicConsumeOptions, BasicQosOptions},
    types::{FieldTable, ShortString},
};

use super::{
    Error, ErrorKind, Result, consumer_tags::ConsumerTags, convert::short, error, link::Link, prefetch::Prefetch,
    topology,
};

/// What a quorum queue without a leader says to a consumer.
const INTERNAL_ERROR: u16 = 541;

/// Why queues are not consumed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct ConsumeError {
    /// The queue that is there but gave no consumer, as a quorum queue without a majority; the session is lost with it.
    pub stalled: Option<String>,
    /// What the broker says.
    pub error: Error,
}

impl From<Error> for ConsumeError {
    fn from(error: Error) -> Self {
        Self { stalled: None, error }
    }
}

/// One consumed queue, by one consumer.
#[derive(Debug)]
pub(super) struct ConsumedQueue {
    pub(super) queue: String,
    pub(super) consumer: Consumer,
    pub(super) tag: ShortString,
    pub(super) prefetch: Prefetch,
    /// Another consumer has taken its place.
    pub(super) is_ending: bool,
}

impl ConsumedQueue {
    /// Begins to consume one queue.
    pub(super) async fn begin(
        link: &Link,
        channel: &Channel,
        queue: &str,
        prefetch: u16,
        tags: &ConsumerTags,
    ) -> std::result::Result<Self, ConsumeError> {
        let begun = begin(link, channel, queue, prefetch, tags).await;
        let (tag, consumer) = begun.map_err(|error| {
            let stalled = (error.kind() == ErrorKind::Down).then(|| queue.to_owned());
            ConsumeError { stalled, error }
        })?;
        Ok(Self { queue: queue.to_owned(), consumer, tag, prefetch: Prefetch::new(prefetch), is_ending: false })
    }
}

/// A consumer of a further queue, to be given to [`Deliveries::join`].
///
/// [`Deliveries::join`]: super::Deliveries::join
#[derive(Debug)]
pub struct Joined(ConsumedQueue);

/// Begins to consume further queues on the channel of some [`Deliveries`], while these go on.
///
/// [`Deliveries`]: super::Deliveries
#[derive(Clone, Debug)]
pub struct Joiner {
    link: Arc<Link>,
    channel: Channel,
    tags: Arc<ConsumerTags>,
    prefetch: u16,
}

impl Joined {
    pub(super) fn into_source(self) -> ConsumedQueue {
        self.0
    }
}

impl Joiner {
    pub(super) const fn new(link: Arc<Link>, channel: Channel, tags: Arc<ConsumerTags>, prefetch: u16) -> Self {
        Self { link, channel, tags, prefetch }
    }

    /// Begins to consume a queue, which is created when it is missing; what it delivers comes once the consumer is given to
    /// [`Deliveries::join`].
    ///
    /// # Errors
    /// As [`Session::consume`]; only with `Down` of a queue that is not stalled the session lives on.
    ///
    /// [`Session::consume`]: super::Session::consume
    /// [`Deliveries::join`]: super::Deliveries::join
    pub async fn join(&self, queue: &str) -> std::result::Result<Joined, ConsumeError> {
        topology::ensure_task_queue(&self.link, queue).await?;
        let source = ConsumedQueue::begin(&self.link, &self.channel, queue, self.prefetch, &self.tags).await?;
        Ok(Joined(source))
    }
}

/// Begins one consumer. A quorum queue without a majority answers a look but not this: RabbitMQ says nothing, or ends the
/// connection with 541. That queue is `Down`, and the session is lost.
pub(super) async fn begin(
    link: &Link,
    channel: &Channel,
    queue: &str,
    prefetch: u16,
    tags: &ConsumerTags,
) -> Result<(ShortString, Consumer)> {
    let (name, tag) =
        (short("a queue's name", queue).map_err(|text| Error::new(ErrorKind::Arguments, text))?, tags.next()?);
    let _turn = tags.turn().await;
    // It counts for the consumers that follow, and each has its own.
    let qos = channel.basic_qos(prefetch, BasicQosOptions { global: false });
    link.answer("setting the prefetch", qos).await?;
    let what = format!("consuming from queue '{queue}'");
    let limit = link.options.timeout;
    // Before it is sent: a stop meanwhile has to end it as well. The broker takes the end of a consumer that never began.
    tags.active().push(tag.clone());
    let started = channel.basic_consume(name, tag.clone(), BasicConsumeOptions::default(), FieldTable::default());
    let words = match link.within(limit, started).await? {
        Some(Ok(consumer)) => return Ok((tag, consumer)),
        Some(Err(fault)) => {
            let error = error::classify(&fault);
            if error::reply(&fault).is_none_or(|reply| reply.code != INTERNAL_ERROR) {
                return Err(link.name_permission(error.during(&what), "read", &format!("queue '{queue}'")));
            }
            error.to_string()
        }
        None => format!("no answer within {} s", limit.as_secs_f32()),
    };
    let mend = "has this quorum queue lost its majority? start the nodes that hold it";
    let error = Error::new(ErrorKind::Down, format!("{what}: {words}: {mend}"));
    link.state.lose(error.to_string());
    Err(error)
}
