//! Confirming channels, lent to one batch at a time.

use std::sync::Arc;

use deadpool::managed::{Manager, Metrics, Object, Pool, RecycleError, RecycleResult};
use lapin::{Channel, options::ConfirmSelectOptions};

use super::{Error, ErrorKind, Result, link::Link};

/// Opens confirming channels on the publishing connection.
#[derive(Debug)]
pub(super) struct Channels {
    link: Arc<Link>,
}

impl Manager for Channels {
    type Type = Channel;
    type Error = Error;

    async fn create(&self) -> Result<Channel> {
        let link = &self.link;
        let channel = link.answer("opening a publishing channel", link.publishing.create_channel()).await?;
        link.answer("asking for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }

    async fn recycle(&self, channel: &mut Channel, _: &Metrics) -> RecycleResult<Error> {
        if channel.status().connected() { Ok(()) } else { Err(RecycleError::message("the channel was closed")) }
    }
}

/// A channel on loan. It goes back to the pool only once all its confirms are in: a batch that is dropped half way would
/// leave its own to the next one.
#[derive(Debug)]
pub(super) struct Loan {
    object: Option<Object<Channels>>,
}

impl Loan {
    /// The channel; there until it is given back.
    pub(super) fn channel(&self) -> Option<&Channel> {
        self.object.as_deref()
    }

    /// Gives the channel back.
    pub(super) fn give_back(mut self) {
        self.object = None;
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        // Dropped outside the pool it closes.
        drop(self.object.take().map(Object::take));
    }
}

/// The pool itself.
#[derive(Clone, Debug)]
pub(super) struct ChannelPool(Pool<Channels>);

impl ChannelPool {
    pub(super) fn new(link: &Arc<Link>) -> Result<Self> {
        let channels = Channels { link: Arc::clone(link) };
        let pool = Pool::builder(channels).max_size(link.options.channels.max(1)).build();
        pool.map(Self).map_err(|error| Error::new(ErrorKind::Setting, error.to_string()))
    }

    /// Waits for a free channel or opens one.
    pub(super) async fn lend(&self) -> Result<Loan> {
        match self.0.get().await {
            Ok(object) => Ok(Loan { object: Some(object) }),
            Err(deadpool::managed::PoolError::Backend(error)) => Err(error),
            Err(error) => Err(Error::lost(error.to_string())),
        }
    }
}
