//! Deliveries in, acknowledgements out.

use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures_util::{FutureExt, Stream, future::BoxFuture};
use lapin::{Channel, Consumer, options::BasicCancelOptions, types::ShortString};
use tokio::sync::watch;

use crate::celery::message::{Message, Origin};

use super::{
    Error, ErrorKind, Result,
    consumer_tags::ConsumerTags,
    convert::message_in,
    error,
    gate::{Gate, Inflow},
    joiner::{self, ConsumeError, ConsumedQueue, Joined, Joiner},
    link::Link,
    prefetch::Prefetch,
    settler::{AckToken, Settler},
    topology,
};

/// Deliveries handed over at once, at most.
pub const BATCH: usize = 256;
/// Bytes of bodies handed over at once, but for the last one: whoever decides about them does nothing else meanwhile.
pub const BATCH_BYTES: usize = 1 << 20;

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

impl Delivery {
    /// Makes a delivery whose body counts for nothing that was read ahead.
    pub fn new(message: Message, origin: Origin, ack_token: AckToken) -> Self {
        Self { message, origin, ack_token, inflow: Inflow::default() }
    }
}

/// Why no further delivery comes, from one queue or from any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// [`Settler::stop`] or [`Settler::close`] was called.
    Stopped,
    /// The broker ended one consumer: its queue was deleted, or the queue's node went down. Deliveries of the other queues still
    /// come.
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
    sources: Vec<ConsumedQueue>,
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
    tags: Arc<ConsumerTags>,
    /// A consumer that takes the place of another; one at a time, since the channel's prefetch counts for the next consumer.
    swap: Option<BoxFuture<'static, Swap>>,
    /// Deliveries that only wait for others.
    blocked: usize,
    /// Queues whose consumers the broker ended, and nobody was told yet.
    cancelled: Vec<String>,
}

/// A consumer that takes the place of another of its queue.
struct Swap {
    /// The tag of the one before.
    old: ShortString,
    queue: String,
    prefetch: Prefetch,
    begun: Result<(ShortString, Consumer)>,
}

impl fmt::Debug for Deliveries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deliveries").field("sources", &self.sources).field("next", &self.next).finish_non_exhaustive()
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
    let tags = Arc::new(ConsumerTags::new(tag_prefix));
    let mut sources = Vec::new();
    for queue in up {
        sources.push(ConsumedQueue::begin(link, &channel, queue, prefetch, &tags).await?);
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
        cancelled: Vec::new(),
    };
    let settler = Settler::new(Arc::clone(link), channel, tags, generation, stop);
    Ok((deliveries, settler))
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
        Joiner::new(link, channel, tags, self.first)
    }

    /// Takes in the consumer of a further queue, whose deliveries come with those of the others.
    pub fn join(&mut self, joined: Joined) {
        let mut source = joined.into_source();
        if let Some((full, bytes)) = self.bounds {
            source.prefetch.bound(full, bytes);
        }
        self.down.retain(|(queue, _)| *queue != source.queue);
        self.sources.push(source);
    }

    /// Ends the consumers of a queue; what was sent by then is still handed over.
    pub fn leave(&mut self, queue: &str) {
        for source in self.sources.iter_mut().filter(|source| source.queue == queue && !source.is_ending) {
            source.is_ending = true;
            // One poll puts it on its way; the consumer's end is its answer.
            drop(self.channel.basic_cancel(source.tag.clone(), BasicCancelOptions::default()).now_or_never());
        }
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
    /// The reason why there will be no other; after [`End::Cancelled`] those of the other queues come.
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
        if let End::Lost(reason) = &end {
            link.state.lose(reason);
        }
        Err(end)
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<Vec<Delivery>, End>> {
        if let Poll::Ready(Err(end)) = self.poll_swap(cx) {
            return Poll::Ready(Err(end));
        }
        let mut batch = ReadyDeliveries::default();
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
                    // A channel that closes ends all its consumers in this way.
                    Poll::Ready(None) if !self.channel.status().connected() => {
                        return Poll::Ready(Err(End::Lost("the channel of the consumers is closed".to_owned())));
                    }
                    Poll::Ready(None) => {
                        place -= 1;
                        let ended = self.sources.remove(place);
                        self.tags.active().retain(|tag| *tag != ended.tag);
                        if !ended.is_ending {
                            self.cancelled.push(ended.queue);
                        }
                        break;
                    }
                    Poll::Pending => break,
                }
            }
        }
        if let Poll::Ready(Err(end)) = self.poll_swap(cx) {
            return Poll::Ready(Err(end));
        }
        if !batch.deliveries.is_empty() {
            return Poll::Ready(Ok(batch.deliveries));
        }
        self.cancelled.pop().map_or(Poll::Pending, |queue| Poll::Ready(Err(End::Cancelled { queue })))
    }

    /// Has a queue consumed with another prefetch where the present one is far from right.
    fn poll_swap(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), End>> {
        loop {
            let Some(swap) = &mut self.swap else {
                let blocked = self.blocked;
                let change = self.sources.iter_mut().filter(|source| !source.is_ending).find_map(|source| {
                    source.prefetch.change(blocked)?;
                    Some((source.queue.clone(), source.tag.clone(), source.prefetch.clone()))
                });
                let Some((queue, old, prefetch)) = change else { return Poll::Pending };
                tracing::debug!(queue, prefetch = prefetch.current(), "prefetch changes");
                let (link, channel, tags) = (Arc::clone(&self.link), self.channel.clone(), Arc::clone(&self.tags));
                self.swap = Some(Box::pin(async move {
                    let begun = joiner::begin(&link, &channel, &queue, prefetch.current(), &tags).await;
                    Swap { old, queue, prefetch, begun }
                }));
                continue;
            };
            let Swap { old, queue, prefetch, begun } = ready!(swap.poll_unpin(cx));
            self.swap = None;
            let (tag, consumer) = match begun {
                Ok(begun) => begun,
                Err(error) => return Poll::Ready(Err(End::Lost(error.to_string()))),
            };
            let before = self.sources.iter_mut().find(|source| source.tag == old);
            let (to_end, source) = if let Some(before) = before.filter(|before| !before.is_ending) {
                before.is_ending = true;
                (old, ConsumedQueue { queue, consumer, tag, prefetch: before.prefetch.clone(), is_ending: false })
            } else {
                // The one before was ended meanwhile: the queue is not to be consumed any more, or is missing and has a trial.
                (tag.clone(), ConsumedQueue { queue, consumer, tag, prefetch, is_ending: true })
            };
            self.sources.push(source);
            // One poll puts it on its way; the consumer's end is its answer. Until then it hands over what was sent.
            drop(self.channel.basic_cancel(to_end, BasicCancelOptions::default()).now_or_never());
        }
    }
}

/// What is handed over at once.
#[derive(Default)]
struct ReadyDeliveries {
    deliveries: Vec<Delivery>,
    bytes: usize,
}

impl ReadyDeliveries {
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
        ack_token: AckToken::new(delivery.delivery_tag, generation),
    }
}
