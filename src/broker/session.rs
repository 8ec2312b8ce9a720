//! Two connections that live and die together.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::{sync::watch, time::Instant};

use super::{
    BrokerOptions, BrokerUrl, ConsumeError, Delay, Deliveries, Error, ErrorKind, Exchange, Notices, Parking, Publisher,
    Result, Settler, State, Subscription, Topology, consume, link::Link, notify::Notifier, subscribe,
};

use crate::celery::message::Publication;

/// Longest wait for one URL while another is untried.
const HASTE: Duration = Duration::from_secs(3);

/// Two connections that live and die together; dropping it closes both, whoever still holds a part of it.
#[derive(Debug)]
pub struct Session {
    pub(super) link: Arc<Link>,
    publisher: Publisher,
    notifier: Notifier,
}

impl Session {
    /// Connects, trying each URL in turn; needs a tokio runtime and stays on it.
    ///
    /// # Errors
    /// Names each URL's fault and its mend; permanent only when every one is.
    pub async fn open(options: &BrokerOptions) -> Result<Self> {
        Self::open_next(options, &mut 0).await
    }

    /// Connects as [`Session::open`] does, but begins with the URL at `next` and leaves the place behind the one that
    /// answered there: whoever loses that session, or cannot use it, goes on with another URL, as Celery does.
    ///
    /// # Errors
    /// As [`Session::open`]; `next` stays as it is.
    pub async fn open_next(options: &BrokerOptions, next: &mut usize) -> Result<Self> {
        let mut faults: Vec<Error> = Vec::new();
        let count = options.urls.len();
        for tried in 0..count {
            let place = (*next + tried) % count;
            // Behind a cut cable nothing answers at all, and others may; the last one is given its time.
            let limit = if tried + 1 < count { options.timeout.min(HASTE) } else { options.timeout };
            match Link::open(&options.urls[place], options, limit).await {
                Ok(link) => {
                    *next = place + 1;
                    let link = Arc::new(link);
                    let publisher = Publisher::new(&link)?;
                    return Ok(Self { link, publisher, notifier: Notifier::default() });
                }
                Err(fault) if options.is_default => {
                    faults.push(fault.noting("CELERY_BROKER_URL is not set, so its default was tried"));
                }
                Err(fault) => faults.push(fault),
            }
        }
        let message = faults.iter().map(Error::to_string).collect::<Vec<_>>().join("; ");
        let worst = faults.iter().find(|fault| !fault.is_permanent()).or(faults.last());
        Err(match worst {
            Some(fault) => Error::new(fault.kind(), message),
            None => Error::new(ErrorKind::Setting, "no broker url is set"),
        })
    }

    /// Tells how the session is now.
    #[must_use]
    pub fn state(&self) -> State {
        self.link.state.now()
    }

    /// Watches how the session is.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<State> {
        self.link.state.watch()
    }

    /// Tells how long the broker has said nothing on either connection. An idle one is asked something every other second.
    #[must_use]
    pub fn silence(&self) -> Duration {
        let [consuming, publishing] = &self.link.last_read;
        consuming.silence().min(publishing.silence())
    }

    /// Tells since when the broker was silent if a delivery received at this time may have been handed out before: a
    /// silence of [`DOUBT`] that ended since, or shortly before. Somebody else may have been given it meanwhile.
    ///
    /// [`DOUBT`]: super::DOUBT
    #[must_use]
    pub fn late_since(&self, received: Instant) -> Option<Instant> {
        self.link.last_read[0].late_since(received)
    }

    /// Declares the session over, for a reason that only the caller knows; every wait in it ends.
    pub fn lose(&self, reason: &str) {
        self.link.state.lose(reason);
    }

    /// Returns the URL that answered.
    #[must_use]
    pub fn url(&self) -> &BrokerUrl {
        &self.link.url
    }

    /// Returns the options that open another session at the URL that answered.
    #[must_use]
    pub fn options(&self) -> BrokerOptions {
        BrokerOptions { urls: vec![self.link.url.clone()], ..self.link.options.clone() }
    }

    /// Consumes the task queues, creating those that are missing, with `prefetch` unsettled deliveries each at most
    /// (0: without limit).
    ///
    /// A queue that is there is taken as it is. A missing one is declared as Celery does: durable, with the type and the
    /// highest priority of the options, bound to a direct exchange of its name where that is permitted. One whose node of
    /// the cluster is down is left out ([`Deliveries::down`]) as long as another is there.
    ///
    /// # Errors
    /// `Denied` names the missing permission; `Arguments`, `Down` and `Lost` as the broker says. With the queue's name when it is
    /// there but gives no consumer, as a quorum queue without a majority: only trying tells, and the session is lost with it.
    pub async fn consume(
        &self,
        queues: &[String],
        prefetch: u16,
        tag_prefix: &str,
    ) -> std::result::Result<(Deliveries, Settler), ConsumeError> {
        consume::consume(&self.link, queues, prefetch, tag_prefix).await
    }

    /// Listens on a queue of this session: declares exchange and queue, binds and consumes without acknowledgement, on the connection
    /// that publishes. The other one is not read while nobody takes commands.
    ///
    /// # Errors
    /// `Denied` when the user may not declare it, and what else the broker says; the session lives on.
    pub async fn subscribe(&self, subscription: &Subscription) -> Result<Notices> {
        subscribe::subscribe(&self.link, subscription).await
    }

    /// Sends messages that may be lost to an exchange, which is made when it is missing. Nothing is confirmed.
    ///
    /// # Errors
    /// Why they were not handed over; the session lives on but for `Lost`.
    pub async fn notify(&self, exchange: &Exchange, publications: Vec<Publication>) -> Result<()> {
        self.notifier.notify(&self.link, exchange, publications).await
    }

    /// Returns the publishing half.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// Returns the means to look at and create queues.
    #[must_use]
    pub fn topology(&self) -> Topology {
        Topology::new(&self.link)
    }

    /// Returns the delay queues.
    #[must_use]
    pub fn delay(&self) -> Delay {
        Delay::new(&self.link)
    }

    /// Returns the queues of parked publications.
    #[must_use]
    pub fn parking(&self) -> Parking {
        Parking::new(&self.link)
    }

    /// Closes both connections in order; what is unsettled goes back to its place. Tells whether the broker said that they are
    /// closed: it has all that was sent to it then.
    pub async fn close(&self) -> bool {
        let both = async {
            let consuming = self.link.consuming.close(200, "OK".into()).await;
            let publishing = self.link.publishing.close(200, "OK".into()).await;
            consuming.and(publishing)
        };
        match tokio::time::timeout(self.link.options.timeout, both).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => tracing::debug!(%error, "the session was over before it was closed"),
            Err(_) => tracing::debug!("the broker did not answer the close"),
        }
        false
    }

    /// Ends the session at once, whoever still holds a part of it; every wait in it ends.
    pub fn end(&self) {
        self.link.state.lose("the session was closed");
        // One poll puts the close on its way; its answer interests nobody. Without it a command that still holds a
        // publisher would keep the connection, and so the unsettled deliveries, from the broker.
        drop(self.link.consuming.close(200, "OK".into()).now_or_never());
        drop(self.link.publishing.close(200, "OK".into()).now_or_never());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker_url::BrokerUrl;

    #[tokio::test(start_paused = true)]
    async fn a_url_that_does_not_answer_has_three_seconds() {
        // It takes connections, and says nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("amqp://guest:guest@{}", silent.local_addr().unwrap());
        let options = BrokerOptions {
            urls: BrokerUrl::parse_all(&format!("{url};{url}")).unwrap(),
            timeout: Duration::from_secs(10),
            ..BrokerOptions::default()
        };
        let begun = tokio::time::Instant::now();
        Session::open(&options).await.unwrap_err();
        assert_eq!(begun.elapsed().as_secs(), 13, "the last one has its time");
    }
}
