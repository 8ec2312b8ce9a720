//! The queue of dead copies: looked at one by one, and kept within a bound.
//!
//! Whatever is got and not acknowledged goes back to its place when its channel closes. In a quorum queue the broker counts
//! that as a failed delivery, and drops a message that had too many.

use std::sync::Arc;

use futures_util::FutureExt as _;
use lapin::Channel;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions};

use crate::celery::message::{Field, Message};

use super::{
    Error, ErrorKind, Look, QueueType, Result, Session,
    convert::{message_in, short},
    link::Link,
    topology::{self, DEAD_QUEUE, dead_queue},
};

/// Copies that are got at a time before it is looked again whether they are too many.
const TRIM_BATCH: u64 = 256;

/// A look into the queue of dead copies; dropping it gives everything back that is not acknowledged.
#[derive(Debug)]
pub struct DeadReader {
    link: Arc<Link>,
    channel: Channel,
}

/// One copy that was got.
#[derive(Debug)]
pub struct DeadMessage {
    /// The copy.
    pub message: Message,
    /// How often its delivery failed, by a quorum queue's count; a classic queue does not count.
    pub failed_deliveries: u64,
    /// Acknowledges it.
    pub ack_token: DeadToken,
}

/// The right to remove one copy from the queue.
#[derive(Debug)]
#[must_use = "a copy that is not acknowledged goes back"]
pub struct DeadToken(u64);

impl Session {
    /// Begins to look into the queue of dead copies.
    ///
    /// # Errors
    /// What the broker says.
    pub async fn dead_reader(&self) -> Result<DeadReader> {
        Ok(DeadReader { link: Arc::clone(&self.link), channel: self.link.channel().await? })
    }

    /// Tells whether the queue of dead copies was made with our own limit of deliveries, which no number of looks reaches.
    ///
    /// # Errors
    /// `Lost`.
    pub async fn dead_outlasts_looks(&self) -> Result<bool> {
        let channel = self.link.channel().await?;
        // With the arguments that it has, a declaration changes nothing; with others it is refused.
        match topology::declare_queue(&self.link, &channel, &dead_queue(QueueType::Quorum)).await {
            Ok(()) => {
                Link::done(&channel);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::Arguments | ErrorKind::Denied) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the oldest dead copies above `most`, and returns how many. Several that do so at once remove none too many.
    ///
    /// # Errors
    /// `Denied` names the missing permission; `Lost`, and what else the broker says.
    pub async fn trim_dead(&self, most: u64) -> Result<u64> {
        let mut removed = 0;
        while let Some(surplus @ 1..) = self.waiting_dead().await?.checked_sub(most) {
            let mut reader = self.dead_reader().await?;
            let mut got = Vec::new();
            while (got.len() as u64) < surplus.min(TRIM_BATCH)
                && let Some(DeadMessage { ack_token, .. }) = reader.next().await?
            {
                got.push(ack_token);
            }
            // What others hold, and may remove, is not among those that wait now.
            let left = self.waiting_dead().await?;
            let spare = (got.len() as u64 + left).saturating_sub(most).min(got.len() as u64);
            got.truncate(usize::try_from(spare).unwrap_or(usize::MAX));
            got.iter().for_each(|ack_token| reader.acknowledge(ack_token));
            reader.close().await?;
            removed += spare;
            if spare == 0 {
                break;
            }
        }
        Ok(removed)
    }

    async fn waiting_dead(&self) -> Result<u64> {
        match self.topology().look(DEAD_QUEUE).await? {
            Look::Present { messages, .. } => Ok(messages.into()),
            Look::Missing | Look::Down(_) => Ok(0),
        }
    }
}

impl DeadReader {
    /// Gets the next copy; `None` when no other is ready.
    ///
    /// # Errors
    /// `Denied` names the missing permission; `Missing`, `Down` and `Lost` as the broker says.
    pub async fn next(&mut self) -> Result<Option<DeadMessage>> {
        let name = short("a queue's name", DEAD_QUEUE).map_err(|text| Error::new(ErrorKind::Arguments, text))?;
        let getting = self.channel.basic_get(name, BasicGetOptions::default());
        let got = self.link.answer(&format!("looking into queue '{DEAD_QUEUE}'"), getting).await;
        let got = got.map_err(|error| self.link.name_permission(error, "read", &format!("queue '{DEAD_QUEUE}'")))?;
        Ok(got.map(|BasicGetMessage { delivery, .. }| {
            let ack_token = DeadToken(delivery.delivery_tag);
            let message = message_in(&delivery.properties, delivery.data);
            let failed_deliveries = match message.headers.get("x-delivery-count") {
                Some(Field::Int(count)) => u64::try_from(*count).unwrap_or(0),
                _ => 0,
            };
            DeadMessage { message, failed_deliveries, ack_token }
        }))
    }

    /// Removes one copy from the queue; does not wait. [`DeadReader::close`] waits for all of them.
    pub fn acknowledge(&self, ack_token: &DeadToken) {
        // One poll queues the frame. Where the channel is gone, the copy stays in the queue.
        drop(self.channel.basic_ack(ack_token.0, BasicAckOptions::default()).now_or_never());
    }

    /// Ends the look: the broker has every acknowledgement then, and everything else is back in its place.
    ///
    /// # Errors
    /// `Lost`, and what else the broker says; of acknowledgements nobody knows then whether they arrived.
    pub async fn close(self) -> Result<()> {
        self.link.answer("closing a channel", self.channel.close(200, "OK".into())).await
    }
}
