//! Deliveries in, acknowledgements out.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::{FutureExt, Stream};
use lapin::{
    Channel, Consumer,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::{FieldTable, ShortString},
};
use tokio::sync::watch;

use crate::celery::message::{Message, Origin};

use super::{
    Error, ErrorKind, Result,
    convert::{message_in, short},
    error,
    ledger::Ledger,
    session::Link,
    topology,
};

/// Deliveries handed over at once, at most.
pub const BATCH: usize = 256;

/// What a quorum queue without a leader says to a consumer.
const INTERNAL_ERROR: u16 = 541;

/// Channels are told apart for the life of the process, so that a ticket never meets another channel's tag.
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// One message and the right to settle it.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// How it came in.
    pub origin: Origin,
    /// Settles it.
    pub ticket: Ticket,
}

/// The right to settle one delivery, once; dropping it leaves the delivery with the broker, which hands it out again when
/// the channel ends.
#[derive(Debug)]
#[must_use = "a dropped ticket leaves its delivery unsettled"]
pub struct Ticket {
    tag: u64,
    generation: u64,
}

#[cfg(test)]
impl Ticket {
    /// Makes a ticket of no channel, for tests of what happens before settling.
    pub(crate) const fn stray() -> Self {
        Self { tag: 0, generation: 0 }
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

/// The deliveries of all consumed queues.
#[derive(Debug)]
pub struct Deliveries {
    link: Arc<Link>,
    consumers: Vec<(String, Consumer)>,
    down: Vec<(String, Error)>,
    /// Whose turn it is to be asked first, so that a busy queue does not starve the others.
    turn: usize,
    generation: u64,
    stopped: watch::Receiver<bool>,
}

/// Settles what [`Deliveries`] handed out; clones settle on the same channel.
#[derive(Clone, Debug)]
pub struct Settler {
    link: Arc<Link>,
    channel: Channel,
    tags: Arc<[ShortString]>,
    generation: u64,
    ledger: Arc<Mutex<Ledger>>,
    stopped: Arc<watch::Sender<bool>>,
}

pub(super) async fn consume(
    link: &Arc<Link>,
    queues: &[String],
    stalled: &mut BTreeMap<String, Error>,
    prefetch: u16,
    tag_prefix: &str,
) -> Result<(Deliveries, Settler)> {
    let (mut up, mut waiting, mut down) = (Vec::new(), Vec::new(), Vec::new());
    for queue in queues {
        match topology::ensure_task_queue(link, queue).await {
            Ok(()) if stalled.contains_key(queue) => waiting.push(queue),
            Ok(()) => up.push(queue),
            Err(error) if error.kind() == ErrorKind::Down => {
                // A look tells now.
                stalled.remove(queue);
                down.push((queue.clone(), error));
            }
            Err(error) => return Err(error),
        }
    }
    if up.is_empty() {
        // Trying them holds up nobody else, and nobody else tries them; each has its turn.
        up = waiting;
        stalled.clear();
    } else {
        let known = waiting.into_iter().filter_map(|queue| Some((queue.clone(), stalled.get(queue)?.clone())));
        down.extend(known);
    }
    if let (true, Some((_, error))) = (up.is_empty(), down.first()) {
        return Err(error.clone());
    }
    let channel = link.channel().await?;
    let mut consumers = Vec::new();
    let mut tags = Vec::new();
    for (place, queue) in up.into_iter().enumerate() {
        let tag = short("a consumer's tag", &format!("{tag_prefix}-{place}")).map_err(invalid)?;
        // Set before each consumer: it counts for those that follow, and each has its own.
        let qos = channel.basic_qos(prefetch, BasicQosOptions { global: false });
        link.answer("setting the prefetch", qos).await?;
        let begun = begin(link, &channel, queue, &tag).await;
        if let Some(error) = begun.as_ref().err().filter(|error| error.kind() == ErrorKind::Down) {
            stalled.insert(queue.clone(), error.clone());
        }
        consumers.push((queue.clone(), begun?));
        tags.push(tag);
    }
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
    let (stop, stopped) = watch::channel(false);
    let settler = Settler {
        link: Arc::clone(link),
        channel,
        tags: tags.into(),
        generation,
        ledger: Arc::new(Mutex::new(Ledger::new())),
        stopped: Arc::new(stop),
    };
    Ok((Deliveries { link: Arc::clone(link), consumers, down, turn: 0, generation, stopped }, settler))
}

/// Begins one consumer. A quorum queue without a majority answers a look but not this: RabbitMQ says nothing, or ends the
/// connection with 541. That queue is `Down`, and the session is lost.
async fn begin(link: &Link, channel: &Channel, queue: &str, tag: &ShortString) -> Result<Consumer> {
    let name = short("a queue's name", queue).map_err(invalid)?;
    let what = format!("consuming from queue '{queue}'");
    let limit = link.options.timeout;
    let started = channel.basic_consume(name, tag.clone(), BasicConsumeOptions::default(), FieldTable::default());
    let words = match link.state.within(limit, started).await? {
        Some(Ok(consumer)) => return Ok(consumer),
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
    /// Returns the queues that are not consumed because their node of the cluster is down or because they lately gave no
    /// consumer, with the broker's words.
    #[must_use]
    pub fn down(&self) -> &[(String, Error)] {
        &self.down
    }

    /// Waits for a delivery and returns it with all that are ready by now, [`BATCH`] at most and at least one. Dropping
    /// the future loses none.
    ///
    /// # Errors
    /// The reason why there will be no other.
    pub async fn next(&mut self) -> std::result::Result<Vec<Delivery>, End> {
        let Self { link, consumers, turn, generation, stopped, .. } = self;
        let stop = async {
            // An error means that the settler is gone, and nobody will stop us any more.
            if stopped.wait_for(|stopped| *stopped).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let ready = std::future::poll_fn(|cx| poll_ready(consumers, turn, *generation, cx));
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
            End::Cancelled { queue } => {
                self.link.state.lose(format!("the broker ended the consumer of queue '{queue}'"))
            }
            End::Lost(reason) => self.link.state.lose(reason),
        }
        Err(end)
    }
}

fn poll_ready(
    consumers: &mut [(String, Consumer)],
    turn: &mut usize,
    generation: u64,
    cx: &mut Context<'_>,
) -> Poll<std::result::Result<Vec<Delivery>, End>> {
    let count = consumers.len();
    let mut batch = Vec::new();
    for place in 0..count {
        let (queue, consumer) = &mut consumers[(*turn + place) % count];
        while batch.len() < BATCH {
            match Pin::new(&mut *consumer).poll_next(cx) {
                Poll::Ready(Some(Ok(delivery))) => batch.push(take_over(delivery, queue, generation)),
                // What is in the batch cannot be settled any more; the broker delivers it again.
                Poll::Ready(Some(Err(fault))) => {
                    let reason = format!("consuming from queue '{queue}': {}", error::classify(&fault));
                    return Poll::Ready(Err(End::Lost(reason)));
                }
                Poll::Ready(None) => return Poll::Ready(Err(End::Cancelled { queue: queue.clone() })),
                Poll::Pending => break,
            }
        }
    }
    if batch.is_empty() {
        return Poll::Pending;
    }
    *turn = (*turn + 1) % count;
    Poll::Ready(Ok(batch))
}

fn take_over(delivery: lapin::message::Delivery, queue: &str, generation: u64) -> Delivery {
    Delivery {
        message: message_in(&delivery.properties, delivery.data),
        origin: Origin {
            queue: queue.to_owned(),
            exchange: delivery.exchange.into(),
            routing_key: delivery.routing_key.into(),
            redelivered: delivery.redelivered,
        },
        ticket: Ticket { tag: delivery.delivery_tag, generation },
    }
}

impl Settler {
    /// Acknowledges finished deliveries and returns how many: one `multiple` acknowledgement up to the oldest unfinished
    /// delivery, single ones beyond it. Does not wait: the acknowledgements are on their way when it returns. Tickets of
    /// another channel settle nothing and are not counted.
    ///
    /// # Errors
    /// `Lost` when the channel is gone; the broker will deliver these again.
    pub fn settle(&self, tickets: Vec<Ticket>) -> Result<usize> {
        let ours = tickets.into_iter().filter(|ticket| ticket.generation == self.generation);
        let tags: Vec<u64> = ours.map(|ticket| ticket.tag).collect();
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        for ack in ledger.finish(&tags) {
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

    /// Ends the consumers (`basic.cancel`); what was handed out can still be settled, what was not stays with the channel
    /// until [`Settler::close`].
    ///
    /// # Errors
    /// `Lost`.
    pub async fn stop(&self) -> Result<()> {
        self.stopped.send_replace(true);
        for tag in self.tags.iter() {
            let cancelled = self.channel.basic_cancel(tag.clone(), BasicCancelOptions::default());
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
