//! Two connections that live and die together.

use tokio::sync::watch;

use super::{BrokerOptions, Delay, Deliveries, Notices, Publisher, Result, Settler, State, Subscription, Topology};

/// Two connections that live and die together; dropping it closes both.
#[derive(Debug)]
pub struct Session {}

impl Session {
    /// Connects, trying each URL in turn.
    ///
    /// # Errors
    /// That of the last URL; permanent only when every URL's is.
    pub async fn open(options: &BrokerOptions) -> Result<Self> {
        todo!()
    }

    /// Tells how the session is now.
    #[must_use]
    pub fn state(&self) -> State {
        todo!()
    }

    /// Watches how the session is.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<State> {
        todo!()
    }

    /// Names the broker's address and virtual host, without credentials.
    #[must_use]
    pub fn address(&self) -> &str {
        todo!()
    }

    /// Consumes the task queues, creating those that are missing, with `prefetch` unsettled deliveries each at most.
    ///
    /// # Errors
    /// `Denied` names the missing permission; `Arguments`, `Down` and `Lost` as the broker says.
    pub async fn consume(&self, queues: &[String], prefetch: u16, tag_prefix: &str) -> Result<(Deliveries, Settler)> {
        todo!()
    }

    /// Listens on a queue of our own: declares exchange and queue, binds and consumes without acknowledgement.
    ///
    /// # Errors
    /// `Denied` when the user may not declare it; what the broker says otherwise. The session lives on.
    pub async fn subscribe(&self, subscription: &Subscription) -> Result<Notices> {
        todo!()
    }

    /// Returns the publishing half.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        todo!()
    }

    /// Returns the means to look at and create queues.
    #[must_use]
    pub fn topology(&self) -> Topology {
        todo!()
    }

    /// Returns the delay queues.
    #[must_use]
    pub fn delay(&self) -> Delay {
        todo!()
    }

    /// Closes both connections in order.
    pub async fn close(self) {
        todo!()
    }
}
