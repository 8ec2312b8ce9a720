//! Messages that may be lost: events for monitors, and answers to remote control. Nobody waits for a confirm.

use std::collections::BTreeSet;
use std::sync::Arc;

use lapin::{Channel, options::BasicPublishOptions};
use tokio::sync::Mutex;

use super::{
    Error, ErrorKind, Exchange, Presence, Result,
    convert::{properties_out, short},
    error,
    link::Link,
    topology,
};
use crate::celery::message::Publication;

/// The channel of these messages. Each fault of the broker ends it, and the next message opens another.
#[derive(Debug, Default)]
pub(super) struct Notifier(Mutex<NotifyingChannel>);

#[derive(Debug, Default)]
struct NotifyingChannel {
    channel: Option<Channel>,
    /// Exchanges known to be there.
    exchanges: BTreeSet<String>,
}

impl Notifier {
    /// Hands messages for one exchange to the connection, one after another.
    pub(super) async fn notify(
        &self,
        link: &Arc<Link>,
        exchange: &Exchange,
        publications: Vec<Publication>,
    ) -> Result<()> {
        let mut notifying = self.0.lock().await;
        let sent = notifying.send(link, exchange, publications).await;
        if sent.is_err() {
            if let Some(channel) = notifying.channel.take() {
                Link::done(&channel);
            }
            notifying.exchanges.clear();
        }
        sent
    }
}

impl NotifyingChannel {
    async fn send(&mut self, link: &Arc<Link>, exchange: &Exchange, publications: Vec<Publication>) -> Result<()> {
        if !self.exchanges.contains(&exchange.name) {
            match topology::ensure_exchange(link, exchange).await? {
                Presence::Present | Presence::Created => {}
                Presence::Down(words) => return Err(Error::new(ErrorKind::Down, words)),
                Presence::Denied(words) => return Err(Error::new(ErrorKind::Denied, words)),
            }
            self.exchanges.insert(exchange.name.clone());
        }
        let channel = match &self.channel {
            Some(channel) => channel,
            None => {
                let opened = link.answer("opening a channel", link.publishing.create_channel()).await?;
                self.channel.insert(opened)
            }
        };
        let broken = |text| Error::new(ErrorKind::Arguments, text);
        let sending = async {
            for Publication { address, message } in publications {
                let properties =
                    properties_out(&message, link.publishing.configuration().frame_max()).map_err(broken)?;
                let exchange = short("the exchange", &address.exchange).map_err(broken)?;
                let routing_key = short("the routing key", &address.routing_key).map_err(broken)?;
                let options = BasicPublishOptions::default();
                let published = channel.basic_publish(exchange, routing_key, options, &message.body, properties).await;
                published.map_err(|fault| error::classify(&fault))?;
            }
            Ok(())
        };
        // The connection takes nothing while the broker blocks it: that is no fault, but these messages do not wait for the end of it.
        match link.state.within(link.options.timeout, sending).await? {
            Some(sent) => sent,
            None => Err(Error::new(ErrorKind::Unreachable, "the broker takes nothing")),
        }
    }
}
