//! Publications that wait in the broker because their address takes nothing.
//!
//! A parked publication waits in one of three queues, the steps. When the time of the step is over, the broker moves it to
//! [`PARKED_QUEUE`], from which any worker takes it and tries its address again. The steps are bounded in bytes and refuse
//! what exceeds the bound; the move out of a step is never refused.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::{Channel, Consumer, types::FieldTable};

use crate::celery::message::{Address, Field, Message};

use super::{
    End, Error, ErrorKind, Presence, QueueSpec, QueueType, Result,
    convert::{message_in, short},
    error,
    link::Link,
    topology,
};

/// The queue to which parked publications come back.
pub const PARKED_QUEUE: &str = "filestorage.parked";

/// The steps: the wait, and the part of the bound that the queue may hold.
///
/// A queue that was full for a moment is tried again soon, one that nobody reads seldom. What waits for long ends up in the
/// last step, so that step may hold the most.
const STEPS: [(Duration, u64); 3] =
    [(Duration::from_secs(5), 4), (Duration::from_secs(30), 4), (Duration::from_secs(300), 2)];

/// Returns that a quorum queue may make before it drops a message. RabbitMQ 4 drops after 20 unless told otherwise, and a
/// parked publication comes back each time a worker ends while it tries the address.
const RETURNS: i64 = 1_000_000;

/// The queues of parked publications.
#[derive(Clone, Debug)]
pub struct Parking {
    link: Arc<Link>,
}

/// The publications that come back from their wait; dropping it gives those back that are not acknowledged.
#[derive(Debug)]
pub struct ParkedDeliveries {
    link: Arc<Link>,
    channel: Channel,
    consumer: Consumer,
}

/// One publication that came back.
#[derive(Debug)]
pub struct ParkedDelivery {
    /// The message as it was parked.
    pub message: Message,
    /// Acknowledges it.
    pub ack_token: ParkedToken,
}

/// The right to acknowledge one publication that came back.
#[derive(Debug)]
#[must_use = "a publication that is not acknowledged comes back again"]
pub struct ParkedToken(u64);

impl ParkedToken {
    /// Makes the token of a publication: its number on its channel.
    pub const fn new(tag: u64) -> Self {
        Self(tag)
    }

    /// Returns the number of the publication on its channel.
    #[must_use]
    pub const fn tag(&self) -> u64 {
        self.0
    }
}

impl Parking {
    pub(super) fn new(link: &Arc<Link>) -> Self {
        Self { link: Arc::clone(link) }
    }

    /// Returns the names of all queues of parked publications.
    pub fn queues() -> impl Iterator<Item = String> {
        (0..STEPS.len()).map(|step| Self::address(step).routing_key).chain([PARKED_QUEUE.to_owned()])
    }

    /// Returns where a publication is parked for this step, counted from 0; every step after the last is the last.
    #[must_use]
    pub fn address(step: usize) -> Address {
        let (wait, _) = STEPS[step.min(STEPS.len() - 1)];
        Address::queue(format!("{PARKED_QUEUE}.{}", wait.as_millis()))
    }

    /// Tells whether all queues were there or made when this session last looked.
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.link.parking.load(Ordering::Relaxed)
    }

    /// Looks at all queues and makes the missing ones, whose steps hold `max_bytes` of bodies together.
    ///
    /// # Errors
    /// `Arguments` when the broker supports none such; `Lost`.
    pub async fn ensure(&self, max_bytes: u64) -> Result<Presence> {
        let presence = self.ensure_all(max_bytes).await;
        let is_there = matches!(presence, Ok(Presence::Present | Presence::Created));
        self.link.parking.store(is_there, Ordering::Relaxed);
        presence
    }

    async fn ensure_all(&self, max_bytes: u64) -> Result<Presence> {
        let queue_type = self.link.options.queue_type;
        let is_quorum = queue_type == QueueType::Quorum;
        let mut parked = QueueSpec::durable(PARKED_QUEUE, queue_type);
        if is_quorum {
            parked = parked.with("x-delivery-limit", Field::Int(RETURNS));
        }
        // First, since what leaves a step must find it.
        let mut specs = vec![parked];
        for (step, (wait, share)) in STEPS.into_iter().enumerate() {
            let integer = |value: u64| Field::Int(i64::try_from(value).unwrap_or(i64::MAX));
            let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            let mut queue = QueueSpec::durable(Self::address(step).routing_key, queue_type)
                .with("x-message-ttl", integer(wait))
                .with("x-dead-letter-exchange", "")
                .with("x-dead-letter-routing-key", PARKED_QUEUE)
                .with("x-max-length-bytes", integer(max_bytes / share))
                .with("x-overflow", "reject-publish");
            if is_quorum {
                queue = queue.with("x-dead-letter-strategy", "at-least-once");
            }
            specs.push(queue);
        }
        let mut presence = Presence::Present;
        for spec in &specs {
            match topology::ensure_queue(&self.link, spec).await? {
                Presence::Present => {}
                Presence::Created => presence = Presence::Created,
                missing => return Ok(missing),
            }
        }
        Ok(presence)
    }

    /// Looks at up to `limit` parked publications, in the order of the steps; they stay where they are, and count as delivered once
    /// more.
    ///
    /// # Errors
    /// `Denied` names the missing permission; what else the broker says. The session lives on.
    pub async fn peek(&self, limit: usize) -> Result<Vec<Message>> {
        let link = &self.link;
        // What it got goes back when it closes.
        let channel = link.channel().await?;
        let mut found = Vec::new();
        for queue in Self::queues() {
            while found.len() < limit {
                let name = short("a queue's name", &queue).map_err(|text| Error::new(ErrorKind::Arguments, text))?;
                let (what, getting) =
                    (format!("looking into queue '{queue}'"), channel.basic_get(name, BasicGetOptions::default()));
                let got = link.answer(&what, getting).await;
                let got = got.map_err(|error| link.name_permission(error, "read", &format!("queue '{queue}'")))?;
                let Some(got) = got else { break };
                found.push(message_in(&got.delivery.properties, got.delivery.data));
            }
        }
        link.answer("closing a channel", channel.close(200, "OK".into())).await?;
        Ok(found)
    }

    /// Begins to take what comes back, `prefetch` unacknowledged publications at most.
    ///
    /// # Errors
    /// `Denied` names the missing permission; what else the broker says. The session lives on.
    pub async fn consume(&self, prefetch: u16) -> Result<ParkedDeliveries> {
        let link = &self.link;
        let channel = link.channel().await?;
        let qos = channel.basic_qos(prefetch, BasicQosOptions { global: false });
        link.answer("setting the prefetch", qos).await?;
        let name = short("a queue's name", PARKED_QUEUE).map_err(|text| Error::new(ErrorKind::Arguments, text))?;
        let started = channel.basic_consume(name, "".into(), BasicConsumeOptions::default(), FieldTable::default());
        let consumer = link
            .answer(&format!("consuming from queue '{PARKED_QUEUE}'"), started)
            .await
            .map_err(|error| link.name_permission(error, "read", &format!("queue '{PARKED_QUEUE}'")))?;
        Ok(ParkedDeliveries { link: Arc::clone(link), channel, consumer })
    }
}

impl ParkedDeliveries {
    /// Waits for a publication and returns it with all that are ready, in the order they came. Dropping the future loses none.
    ///
    /// # Errors
    /// The reason why there will be no other. The session lives on unless it was lost before.
    pub async fn next(&mut self) -> std::result::Result<Vec<ParkedDelivery>, End> {
        let first = tokio::select! {
            biased;
            next = self.consumer.next() => next,
            reason = self.link.state.lost() => return Err(End::Lost(reason)),
        };
        let mut next = Some(first);
        let mut ready = Vec::new();
        while let Some(delivery) = next {
            match delivery {
                Some(Ok(delivery)) => {
                    drop(self.link.gate.inflow(delivery.data.len()));
                    ready.push(ParkedDelivery {
                        message: message_in(&delivery.properties, delivery.data),
                        ack_token: ParkedToken(delivery.delivery_tag),
                    });
                }
                // What is ready is tried first; the next call says what happened.
                _ if !ready.is_empty() => break,
                Some(Err(fault)) => return Err(End::Lost(error::classify(&fault).to_string())),
                None => return Err(End::Cancelled { queue: PARKED_QUEUE.to_owned() }),
            }
            next = self.consumer.next().now_or_never();
        }
        Ok(ready)
    }

    /// Acknowledges one publication; does not wait.
    pub fn acknowledge(&self, ack_token: &ParkedToken) {
        // One poll queues the frame. Where the channel is gone, the publication comes back again.
        drop(self.channel.basic_ack(ack_token.0, BasicAckOptions::default()).now_or_never());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_steps_wait_longer_and_all_together_keep_the_bound() {
        let names: Vec<String> = (0..5).map(|step| Parking::address(step).routing_key).collect();
        let last = "filestorage.parked.300000";
        assert_eq!(names, ["filestorage.parked.5000", "filestorage.parked.30000", last, last, last]);
        assert_eq!(STEPS.iter().map(|(_, share)| 1000 / share).sum::<u64>(), 1000);
        assert_eq!(Parking::queues().last().as_deref(), Some(PARKED_QUEUE));
    }
}
