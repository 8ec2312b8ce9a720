//! Acknowledgements of what was delivered, and the end of its consumers.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicCancelOptions, BasicNackOptions},
};
use tokio::sync::watch;

use super::{Error, Result, ack_tracker::AckTracker, consumer_tags::ConsumerTags, error, link::Link};

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

/// Settles what [`Deliveries`] handed out; clones settle on the same channel.
///
/// [`Deliveries`]: super::Deliveries
#[derive(Clone, Debug)]
pub struct Settler {
    link: Arc<Link>,
    channel: Channel,
    tags: Arc<ConsumerTags>,
    generation: u64,
    acks: Arc<Mutex<AckTracker>>,
    stopped: Arc<watch::Sender<bool>>,
}

impl Settler {
    pub(super) fn new(
        link: Arc<Link>,
        channel: Channel,
        tags: Arc<ConsumerTags>,
        generation: u64,
        stop: watch::Sender<bool>,
    ) -> Self {
        let acks = Arc::new(Mutex::new(AckTracker::new()));
        Self { link, channel, tags, generation, acks, stopped: Arc::new(stop) }
    }

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
