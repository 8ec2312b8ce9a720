//! Listening without acknowledgement: control messages and broadcasts.

use std::sync::Arc;

use futures_util::StreamExt;
use lapin::{Channel, Consumer, options::BasicConsumeOptions, types::FieldTable};

use crate::celery::message::{Message, Origin};

use super::{
    End, Error, ErrorKind, Exchange, Presence, QueueSpec, Result,
    convert::{message_in, short},
    error,
    link::Link,
    topology,
};

/// A queue of our own, bound to an exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    /// The exchange; created when it is missing, taken as it is otherwise.
    pub exchange: Exchange,
    /// The queue; declared as it is said here.
    pub queue: QueueSpec,
    /// Binding key; empty for a fanout.
    pub routing_key: String,
}

/// What arrives on a subscription; dropping it ends it.
#[derive(Debug)]
pub struct Notices {
    link: Arc<Link>,
    channel: Channel,
    consumer: Consumer,
    queue: String,
}

pub(super) async fn subscribe(link: &Arc<Link>, subscription: &Subscription) -> Result<Notices> {
    let Subscription { exchange, queue, routing_key } = subscription;
    match topology::ensure_exchange(link, exchange).await? {
        Presence::Present | Presence::Created => {}
        Presence::Down(text) => return Err(Error::new(ErrorKind::Down, text)),
        Presence::Denied(text) => return Err(Error::new(ErrorKind::Denied, text)),
    }
    let channel = link.answer("opening a channel", link.publishing.create_channel()).await?;
    topology::declare_queue(link, &channel, queue).await?;
    topology::bind(link, &channel, &queue.name, &exchange.name, routing_key).await?;
    let name = short("a queue's name", &queue.name).map_err(|text| Error::new(ErrorKind::Arguments, text))?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let started = channel.basic_consume(name, "".into(), options, FieldTable::default());
    let consumer = link
        .answer(&format!("consuming from queue '{}'", queue.name), started)
        .await
        .map_err(|error| link.name_permission(error, "read", &format!("queue '{}'", queue.name)))?;
    Ok(Notices { link: Arc::clone(link), channel, consumer, queue: queue.name.clone() })
}

impl Notices {
    /// Waits for the next message; dropping the future loses none.
    ///
    /// # Errors
    /// The reason why there will be no other; the session may live on.
    pub async fn next(&mut self) -> std::result::Result<(Message, Origin), End> {
        let next = tokio::select! {
            biased;
            next = self.consumer.next() => next,
            reason = self.link.state.lost() => return Err(End::Lost(reason)),
        };
        match next {
            Some(Ok(delivery)) => {
                let origin = Origin {
                    queue: self.queue.clone(),
                    exchange: delivery.exchange.into(),
                    routing_key: delivery.routing_key.into(),
                    redelivered: delivery.redelivered,
                };
                Ok((message_in(&delivery.properties, delivery.data), origin))
            }
            Some(Err(fault)) => {
                Err(End::Lost(format!("listening on queue '{}': {}", self.queue, error::classify(&fault))))
            }
            None => Err(End::Cancelled { queue: self.queue.clone() }),
        }
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        Link::done(&self.channel);
    }
}
