//! Deliveries in, acknowledgements out.

use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_util::{FutureExt, Stream, future::BoxFuture};
use lapin::{
    Channel, Consumer,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions},
    types::{FieldTable, ShortString},
};
use tokio::sync::{Mutex as Turn, watch};

use crate::celery::message::{Message, Origin};

use super::{
    Error, ErrorKind, Result,
    ack_tracker::AckTracker,
    convert::{message_in, short},
    error,
    gate::{Gate, Inflow},
    link::Link,
    prefetch::Prefetch,
    topology,
};

/// Deliveries handed over at once, at most.
pub const BATCH: usize = 256;
/// Bytes of bodies handed over at once, but for the last one: whoever decides about them does nothing else meanwhile.
pub const BATCH_BYTES: usize = 1 << 20;

/// What a quorum queue without a leader says to a consumer.
const INTERNAL_ERROR: u16 = 541;

/// Channels are told apart for the life of the process, so that an acknowledgement token never meets another channel's tag.
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// One message and the right to settle it.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// How it came in.
    pub origin: Origin,
    /// Settles it.
    pub ack_token: AckToken,
    /// Its body's part in what was read ahead; to be dropped once the body is counted elsewhere, or gone.
    pub inflow: Inflow,
}

/// The right to settle one delivery, once; dropping it leaves the delivery with the broker, which hands it out again when
/// the channel ends.
#[derive(Debug)]
#[must_use = "a dropped ack_token leaves its delivery unsettled"]
pub struct AckToken {
    tag: u64,
    generation: u64,
}

impl AckToken {
    /// Makes the token of a delivery: its number on its channel, and what tells the channel from all others.
    pub const fn new(tag: u64, generation: u64) -> Self {
        Self { tag, generation }
    }

    /// Returns the number of the delivery on its channel.
    #[must_use]
    pub const fn tag(&self) -> u64 {
        self.tag
    }

    /// Returns what tells the delivery's channel from all others.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Makes an acknowledgement token of no channel, for tests of what happens before settling.
    #[cfg(test)]
    pub(crate) const fn stray() -> Self {
        Self::new(0, 0)
    }
}

impl Delivery {
    /// Makes a delivery whose body counts for nothing that was read ahead.
    pub fn new(message: Message, origin: Origin, ack_token: AckToken) -> Self {
        Self { message, origin, ack_token, inflow: Inflow::default() }
    }
}

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

/// Why no further delivery comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// [`Settler::stop`] or [`Settler::close`] was called.
    Stopped,
    /// The broker ended the consumer: the queue was deleted or its node went down. The session is lost with it.
    Cancelled {
        /// The queue.
        queue: String,
    },
    /// The session is lost, with the reason.
    Lost(String),
}

/// The deliveries of all consumed queues, in the order in which the broker sent them.
pub struct Deliveries {
    link: Arc<Link>,
    channel: Channel,
    sources: Vec<Source>,
    down: Vec<(String, Error)>,
    /// Unsettled deliveries a further queue begins with.
    first: u16,
    /// Within which deliveries and bytes each queue's prefetch follows the sizes of its deliveries.
    bounds: Option<(u16, u64)>,
    /// The tag that follows those handed over; the broker counts them over all consumers of the channel.
    next: u64,
    /// What came by another consumer than an earlier tag that was not seen yet.
    early: BTreeMap<u64, Delivery>,
    generation: u64,
    stopped: watch::Receiver<bool>,
    tags: Arc<Tags>,
    /// A consumer that takes the place of another; one at a time, since the channel's prefetch counts for the next consumer.
    swap: Option<BoxFuture<'static, Swap>>,
    /// Deliveries that only wait for others.
    blocked: usize,
}

/// One consumed queue, by one consumer.
#[derive(Debug)]
struct Source {
    queue: String,
    consumer: Consumer,
    tag: ShortString,
    prefetch: Prefetch,
    /// Another consumer has taken its place.
    is_ending: bool,
}

/// The consumer that replaces the one with this tag.
type Swap = (ShortString, Result<(ShortString, Consumer)>);

/// Tags of the consumers there are.
#[derive(Debug)]
struct Tags {
    prefix: String,
    count: AtomicU64,
    active: Mutex<Vec<ShortString>>,
    /// Held while a consumer begins: a prefetch counts for the consumer that follows it on the channel.
    turn: Turn<()>,
}

impl Tags {
    fn next(&self) -> Result<ShortString> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        short("a consumer's tag", &format!("{}-{count}", self.prefix)).map_err(invalid)
    }

    fn active(&self) -> MutexGuard<'_, Vec<ShortString>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Deliveries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deliveries").field("sources", &self.sources).field("next", &self.next).finish_non_exhaustive()
    }
}

/// Settles what [`Deliveries`] handed out; clones settle on the same channel.
#[derive(Clone, Debug)]
pub struct Settler {
    link: Arc<Link>,
    channel: Channel,
    tags: Arc<Tags>,
    generation: u64,
    acks: Arc<Mutex<AckTracker>>,
    stopped: Arc<watch::Sender<bool>>,
}

/// A consumer of a further queue, to be given to [`Deliveries::join`].
#[derive(Debug)]
pub struct Joined(Source);

/// Begins to consume further queues on the channel of some [`Deliveries`], while these go on.
#[derive(Clone, Debug)]
pub struct Joiner {
    link: Arc<Link>,
    channel: Channel,
    tags: Arc<Tags>,
    prefetch: u16,
}

impl Joiner {
    /// Begins to consume a queue, which is created when it is missing; what it delivers comes once the consumer is given to
    /// [`Deliveries::join`].
    ///
    /// # Errors
    /// As [`Session::consume`]; only with `Down` of a queue that is not stalled the session lives on.
    ///
    /// [`Session::consume`]: super::Session::consume
    pub async fn join(&self, queue: &str) -> std::result::Result<Joined, ConsumeError> {
        topology::ensure_task_queue(&self.link, queue).await?;
        let source = begin_source(&self.link, &self.channel, queue, self.prefetch, &self.tags).await?;
        Ok(Joined(source))
    }
}

pub(super) async fn consume(
    link: &Arc<Link>,
    queues: &[String],
    prefetch: u16,
    tag_prefix: &str,
) -> std::result::Result<(Deliveries, Settler), ConsumeError> {
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for queue in queues {
        match topology::ensure_task_queue(link, queue).await {
            Ok(()) => up.push(queue),
            Err(error) if error.kind() == ErrorKind::Down => down.push((queue.clone(), error)),
            Err(error) => return Err(error.into()),
        }
    }
    if let (true, Some((_, error))) = (up.is_empty(), down.first()) {
        return Err(error.clone().into());
    }
    let channel = link.channel().await?;
    let tags = Arc::new(Tags {
        prefix: tag_prefix.to_owned(),
        count: AtomicU64::new(0),
        active: Mutex::default(),
        turn: Turn::default(),
    });
    let mut sources = Vec::new();
    for queue in up {
        sources.push(begin_source(link, &channel, queue, prefetch, &tags).await?);
    }
    // Nobody takes anything before.
    link.gate.arm();
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
    let (stop, stopped) = watch::channel(false);
    let deliveries = Deliveries {
        link: Arc::clone(link),
        channel: channel.clone(),
        sources,
        down,
        first: prefetch,
        bounds: None,
        next: 1,
        early: BTreeMap::new(),
        generation,
        stopped,
        tags: Arc::clone(&tags),
        swap: None,
        blocked: 0,
    };
    let settler = Settler {
        link: Arc::clone(link),
        channel,
        tags,
        generation,
        acks: Arc::new(Mutex::new(AckTracker::new())),
        stopped: Arc::new(stop),
    };
    Ok((deliveries, settler))
}

/// Begins to consume one queue.
async fn begin_source(
    link: &Link,
    channel: &Channel,
    queue: &str,
    prefetch: u16,
    tags: &Tags,
) -> std::result::Result<Source, ConsumeError> {
    let begun = begin(link, channel, queue, prefetch, tags).await;
    let (tag, consumer) = begun.map_err(|error| {
        let stalled = (error.kind() == ErrorKind::Down).then(|| queue.to_owned());
        ConsumeError { stalled, error }
    })?;
    Ok(Source { queue: queue.to_owned(), consumer, tag, prefetch: Prefetch::new(prefetch), is_ending: false })
}

/// Begins one consumer. A quorum queue without a majority answers a look but not this: RabbitMQ says nothing, or ends the
/// connection with 541. That queue is `Down`, and the session is lost.
async fn begin(
    link: &Link,
    channel: &Channel,
    queue: &str,
    prefetch: u16,
    tags: &Tags,
) -> Result<(ShortString, Consumer)> {
    let (name, tag) = (short("a queue's name", queue).map_err(invalid)?, tags.next()?);
    let _turn = tags.turn.lock().await;
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

fn invalid(text: String) -> Error {
    Error::new(ErrorKind::Arguments, text)
}

impl Deliveries {
    /// Returns the queues that were left out because their node of the cluster is down, with the broker's words.
    #[must_use]
    pub fn down(&self) -> &[(String, Error)] {
        &self.down
    }

    /// Lets each queue's prefetch follow the sizes of its deliveries, within `full` deliveries and `bytes` of bodies together.
    ///
    /// It changes by a new consumer that begins before the old one ends: a queue that deletes itself with its last consumer
    /// stays, and nothing is handed back.
    pub fn adapt_prefetch(&mut self, full: u16, bytes: u64) {
        self.bounds = Some((full, bytes));
        for source in &mut self.sources {
            source.prefetch.bound(full, bytes);
        }
    }

    /// Returns what begins to consume further queues on this channel.
    #[must_use]
    pub fn joiner(&self) -> Joiner {
        let (link, channel, tags) = (Arc::clone(&self.link), self.channel.clone(), Arc::clone(&self.tags));
        Joiner { link, channel, tags, prefetch: self.first }
    }

    /// Takes in the consumer of a further queue, whose deliveries come with those of the others.
    pub fn join(&mut self, Joined(mut source): Joined) {
        if let Some((full, bytes)) = self.bounds {
            source.prefetch.bound(full, bytes);
        }
        self.down.retain(|(queue, _)| *queue != source.queue);
        self.sources.push(source);
    }

    /// Counts the deliveries that may be unsettled at once, over all queues; 0 where there is no limit.
    #[must_use]
    pub fn window(&self) -> usize {
        let counts = self.sources.iter().filter(|source| !source.is_ending).map(|source| source.prefetch.current());
        counts.map(usize::from).sum()
    }

    /// Tells how many deliveries only wait for others of their kind: others of another kind shall be seen all the same.
    pub const fn set_blocked(&mut self, count: usize) {
        self.blocked = count;
    }

    /// Waits for a delivery and returns it with all that are ready by now, [`BATCH`] and about [`BATCH_BYTES`] at most and at
    /// least one. Dropping the future loses none.
    ///
    /// # Errors
    /// The reason why there will be no other.
    pub async fn next(&mut self) -> std::result::Result<Vec<Delivery>, End> {
        let link = Arc::clone(&self.link);
        let mut stopped = self.stopped.clone();
        let stop = async {
            // An error means that the settler is gone, and nobody will stop us any more.
            if stopped.wait_for(|stopped| *stopped).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let ready = std::future::poll_fn(|cx| self.poll_ready(cx));
        let end = tokio::select! {
            biased;
            () = stop => return Err(End::Stopped),
            ready = ready => match ready {
                Ok(batch) => return Ok(batch),
                Err(end) => end,
            },
            reason = link.state.lost() => End::Lost(reason),
        };
        if *self.stopped.borrow() {
            return Err(End::Stopped);
        }
        match &end {
            End::Stopped => {}
            End::Cancelled { queue } => link.state.lose(format!("the broker ended the consumer of queue '{queue}'")),
            End::Lost(reason) => link.state.lose(reason),
        }
        Err(end)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<Vec<Delivery>, End>> {
        if let Poll::Ready(Err(end)) = self.poll_swap(cx) {
            return Poll::Ready(Err(end));
        }
        let mut batch = Batch::default();
        let mut place = 0;
        while let Some(source) = self.sources.get_mut(place) {
            place += 1;
            while batch.has_room() {
                match Pin::new(&mut source.consumer).poll_next(cx) {
                    Poll::Ready(Some(Ok(delivery))) => {
                        source.prefetch.note(delivery.data.len());
                        let tag = delivery.delivery_tag;
                        let delivery = take_over(delivery, &source.queue, self.generation, &self.link.gate);
                        if tag == self.next {
                            self.next += 1;
                            batch.push(delivery);
                        } else {
                            self.early.insert(tag, delivery);
                        }
                        while let Some(delivery) = self.early.remove(&self.next) {
                            self.next += 1;
                            batch.push(delivery);
                        }
                    }
                    // What is in the batch cannot be settled any more; the broker delivers it again.
                    Poll::Ready(Some(Err(fault))) => {
                        let reason = format!("consuming from queue '{}': {}", source.queue, error::classify(&fault));
                        return Poll::Ready(Err(End::Lost(reason)));
                    }
                    Poll::Ready(None) if source.is_ending => {
                        place -= 1;
                        let ended = self.sources.remove(place);
                        self.tags.active().retain(|tag| *tag != ended.tag);
                        break;
                    }
                    Poll::Ready(None) => return Poll::Ready(Err(End::Cancelled { queue: source.queue.clone() })),
                    Poll::Pending => break,
                }
            }
        }
        if let Poll::Ready(Err(end)) = self.poll_swap(cx) {
            return Poll::Ready(Err(end));
        }
        if batch.deliveries.is_empty() { Poll::Pending } else { Poll::Ready(Ok(batch.deliveries)) }
    }

    /// Has a queue consumed with another prefetch where the present one is far from right.
    fn poll_swap(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), End>> {
        loop {
            let Some(swap) = &mut self.swap else {
                let blocked = self.blocked;
                let change = self.sources.iter_mut().filter(|source| !source.is_ending).find_map(|source| {
                    let prefetch = source.prefetch.change(blocked)?;
                    Some((source.queue.clone(), source.tag.clone(), prefetch))
                });
                let Some((queue, old, prefetch)) = change else { return Poll::Pending };
                tracing::debug!(queue, prefetch, "prefetch changes");
                let (link, channel, tags) = (Arc::clone(&self.link), self.channel.clone(), Arc::clone(&self.tags));
                self.swap = Some(Box::pin(async move {
                    let begun = begin(&link, &channel, &queue, prefetch, &tags).await;
                    (old, begun)
                }));
                continue;
            };
            let (old, begun) = ready!(swap.poll_unpin(cx));
            self.swap = None;
            let (tag, consumer) = match begun {
                Ok(begun) => begun,
                Err(error) => return Poll::Ready(Err(End::Lost(error.to_string()))),
            };
            let Some(source) = self.sources.iter_mut().find(|source| source.tag == old) else { continue };
            source.is_ending = true;
            let (queue, prefetch) = (source.queue.clone(), source.prefetch.clone());
            self.sources.push(Source { queue, consumer, tag, prefetch, is_ending: false });
            // One poll puts it on its way; the old consumer's end is its answer. Until then it hands over what was sent.
            drop(self.channel.basic_cancel(old, BasicCancelOptions::default()).now_or_never());
        }
    }
}

/// What is handed over at once.
#[derive(Default)]
struct Batch {
    deliveries: Vec<Delivery>,
    bytes: usize,
}

impl Batch {
    const fn has_room(&self) -> bool {
        self.deliveries.len() < BATCH && self.bytes < BATCH_BYTES
    }

    fn push(&mut self, delivery: Delivery) {
        self.bytes += delivery.message.body.len();
        self.deliveries.push(delivery);
    }
}

fn take_over(delivery: lapin::message::Delivery, queue: &str, generation: u64, gate: &Gate) -> Delivery {
    Delivery {
        inflow: gate.inflow(delivery.data.len()),
        message: message_in(&delivery.properties, delivery.data),
        origin: Origin {
            queue: queue.to_owned(),
            exchange: delivery.exchange.into(),
            routing_key: delivery.routing_key.into(),
            redelivered: delivery.redelivered,
        },
        ack_token: AckToken { tag: delivery.delivery_tag, generation },
    }
}

impl Settler {
    /// Acknowledges finished deliveries and returns how many: one `multiple` acknowledgement up to the oldest unfinished
    /// delivery, single ones beyond it. Does not wait: the acknowledgements are on their way when it returns. Acknowledgement tokens of
    /// another channel settle nothing and are not counted.
    ///
    /// # Errors
    /// `Lost` when the channel is gone; the broker will deliver these again.
    pub fn settle(&self, ack_tokens: Vec<AckToken>) -> Result<usize> {
        let ours = ack_tokens.into_iter().filter(|ack_token| ack_token.generation == self.generation);
        let tags: Vec<u64> = ours.map(|ack_token| ack_token.tag).collect();
        let mut acks = self.acks.lock().unwrap_or_else(PoisonError::into_inner);
        for ack in acks.finish(&tags) {
            // One poll queues the frame; waiting until it is written would gain nothing, it is not answered.
            let queued = self.channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple }).now_or_never();
            if let Some(Err(fault)) = queued {
                let error = Error::lost(format!("acknowledging: {}", error::classify(&fault)));
                self.link.state.lose(error.to_string());
                return Err(error);
            }
        }
        Ok(tags.len())
    }

    /// Gives a delivery back to its queue, which delivers it again.
    ///
    /// # Errors
    /// `Lost` when the channel is gone; the broker will deliver it again.
    pub fn give_back(&self, ack_token: &AckToken) -> Result<()> {
        if ack_token.generation != self.generation {
            return Ok(());
        }
        self.acks.lock().unwrap_or_else(PoisonError::into_inner).settled(ack_token.tag);
        let options = BasicNackOptions { multiple: false, requeue: true };
        if let Some(Err(fault)) = self.channel.basic_nack(ack_token.tag, options).now_or_never() {
            let error = Error::lost(format!("giving a delivery back: {}", error::classify(&fault)));
            self.link.state.lose(error.to_string());
            return Err(error);
        }
        Ok(())
    }

    /// Ends the consumers (`basic.cancel`); what was handed out can still be settled, what was not stays with the channel
    /// until [`Settler::close`].
    ///
    /// # Errors
    /// `Lost`.
    pub async fn stop(&self) -> Result<()> {
        self.stopped.send_replace(true);
        let tags = self.tags.active().clone();
        for tag in tags {
            let cancelled = self.channel.basic_cancel(tag, BasicCancelOptions::default());
            self.link.answer("ending a consumer", cancelled).await?;
        }
        Ok(())
    }

    /// Closes the consuming channel: the broker puts everything unsettled back in its place at once.
    ///
    /// # Errors
    /// `Lost`.
    pub async fn close(&self) -> Result<()> {
        self.stopped.send_replace(true);
        self.link.answer("closing the consuming channel", self.channel.close(200, "OK".into())).await
    }
}
