//! Looking at queues and exchanges, and creating the missing ones.
//!
//! Declaring what is there with other arguments ends a channel with 406, and declaring at all needs a permission that a
//! worker may lack. So everything is looked at passively first, which needs none and accepts any arguments.

use std::sync::Arc;

use lapin::{
    Channel, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{FieldTable, ShortString},
};

use crate::celery::message::{Field, Headers};

use super::{
    Error, ErrorKind, QueueType, Result,
    convert::{short, table_out},
    link::Link,
};

/// The queue that keeps messages that cannot be run.
pub const DEAD_QUEUE: &str = "filestorage.dead";
/// Failed deliveries after which a quorum queue of dead copies drops one. RabbitMQ 4 drops after 20 unless told otherwise, and
/// everybody who looks at a copy and leaves it there counts as one.
const DEAD_DELIVERY_LIMIT: i64 = 1_000_000;
/// The durable topic exchange that metric events are published to.
pub const EVENTS_EXCHANGE: &str = "filestorage.events";
/// The queue that collects metric events by default.
pub const METRICS_QUEUE: &str = "filestorage.metrics";

/// Whether a queue or an exchange is there, once we tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It was there, with whatever arguments.
    Present,
    /// It was missing and is there now.
    Created,
    /// It is there but cannot be reached, with the broker's words.
    Down(String),
    /// It is missing and we may not create it, with the missing permission.
    Denied(String),
}

/// Whether a queue is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// It is.
    Present {
        /// Messages ready for delivery.
        messages: u32,
        /// Consumers.
        consumers: u32,
    },
    /// It is not.
    Missing,
    /// It is but cannot be reached, with the broker's words.
    Down(String),
}

/// Type of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeType {
    /// By equal routing key.
    Direct,
    /// To all.
    Fanout,
    /// By pattern.
    Topic,
}

/// An exchange as it is declared when it is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Name.
    pub name: String,
    /// Type.
    pub kind: ExchangeType,
    /// Survives a restart of the broker.
    pub durable: bool,
}

/// A queue as it is declared when it is missing.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueSpec {
    /// Name.
    pub name: String,
    /// Survives a restart of the broker.
    pub durable: bool,
    /// Only for this connection.
    pub exclusive: bool,
    /// Goes when its last consumer does.
    pub auto_delete: bool,
    /// Its type.
    pub queue_type: QueueType,
    /// Further `x-` arguments.
    pub arguments: Vec<(String, Field)>,
}

impl QueueSpec {
    /// Describes a durable queue, shared and kept.
    pub fn durable(name: impl Into<String>, queue_type: QueueType) -> Self {
        Self {
            name: name.into(),
            durable: true,
            exclusive: false,
            auto_delete: false,
            queue_type,
            arguments: Vec::new(),
        }
    }

    /// Adds an `x-` argument.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Field>) -> Self {
        self.arguments.push((name.to_owned(), value.into()));
        self
    }
}

/// Looks at queues and exchanges and creates the missing ones.
#[derive(Clone, Debug)]
pub struct Topology {
    pub(super) link: Arc<Link>,
}

impl Topology {
    pub(super) fn new(link: &Arc<Link>) -> Self {
        Self { link: Arc::clone(link) }
    }

    /// Looks whether a queue is there; needs no permission.
    ///
    /// # Errors
    /// `Lost`.
    pub async fn look(&self, queue: &str) -> Result<Look> {
        look(&self.link, queue).await
    }

    /// Looks at a queue and creates it when it is missing.
    ///
    /// # Errors
    /// `Arguments` when the broker supports none such; `Lost`.
    pub async fn ensure_queue(&self, queue: &QueueSpec) -> Result<Presence> {
        ensure_queue(&self.link, queue).await
    }

    /// Looks at an exchange and creates it when it is missing.
    ///
    /// # Errors
    /// As [`Topology::ensure_queue`].
    pub async fn ensure_exchange(&self, exchange: &Exchange) -> Result<Presence> {
        ensure_exchange(&self.link, exchange).await
    }

    /// Binds a queue to an exchange; doing it again changes nothing.
    ///
    /// # Errors
    /// `Denied` names the missing permissions; `Missing` or `Lost`.
    pub async fn bind(&self, queue: &str, exchange: &str, routing_key: &str) -> Result<()> {
        let channel = self.link.channel().await?;
        bind(&self.link, &channel, queue, exchange, routing_key).await?;
        Link::done(&channel);
        Ok(())
    }

    /// Makes sure of `filestorage.dead`, where what cannot be run is kept.
    ///
    /// # Errors
    /// As [`Topology::ensure_queue`].
    pub async fn ensure_dead(&self) -> Result<Presence> {
        self.ensure_queue(&dead_queue(self.link.options.queue_type)).await
    }

    /// Makes sure of the topic exchange `filestorage.events` and of `filestorage.metrics`, bounded to `max_length` messages
    /// with the oldest dropped. The two are bound when one of them is created: a binding that an operator took away stays
    /// away.
    ///
    /// # Errors
    /// As [`Topology::ensure_queue`].
    pub async fn ensure_metrics(&self, max_length: u32) -> Result<Presence> {
        let events = Exchange { name: EVENTS_EXCHANGE.to_owned(), kind: ExchangeType::Topic, durable: true };
        let exchange = self.ensure_exchange(&events).await?;
        if matches!(exchange, Presence::Down(_) | Presence::Denied(_)) {
            return Ok(exchange);
        }
        let metrics = QueueSpec::durable(METRICS_QUEUE, self.link.options.queue_type)
            .with("x-max-length", Field::Int(max_length.into()))
            .with("x-overflow", "drop-head");
        let queue = self.ensure_queue(&metrics).await?;
        if matches!(queue, Presence::Down(_) | Presence::Denied(_)) {
            return Ok(queue);
        }
        if exchange == Presence::Created || queue == Presence::Created {
            match self.bind(METRICS_QUEUE, EVENTS_EXCHANGE, "#").await {
                Err(error) if error.kind() == ErrorKind::Denied => return Ok(Presence::Denied(error.to_string())),
                bound => bound?,
            }
        }
        Ok(queue)
    }
}

/// Describes the queue of dead copies as it is made.
pub(super) fn dead_queue(queue_type: QueueType) -> QueueSpec {
    let queue = QueueSpec::durable(DEAD_QUEUE, queue_type);
    if queue_type == QueueType::Quorum {
        queue.with("x-delivery-limit", Field::Int(DEAD_DELIVERY_LIMIT))
    } else {
        queue
    }
}

/// Makes sure of a task queue, as Celery's own workers do.
pub(super) async fn ensure_task_queue(link: &Arc<Link>, name: &str) -> Result<()> {
    let mut queue = QueueSpec::durable(name, link.options.queue_type);
    if let Some(priority) = link.options.max_priority {
        queue = queue.with("x-max-priority", Field::Int(priority.into()));
    }
    match ensure_queue(link, &queue).await? {
        Presence::Present => return Ok(()),
        Presence::Created => {}
        Presence::Down(text) => return Err(Error::new(ErrorKind::Down, text)),
        Presence::Denied(text) => return Err(Error::new(ErrorKind::Denied, text)),
    }
    // Celery's clients publish to a direct queue through the default exchange; this one serves foreign publishers only.
    let exchange = Exchange { name: name.to_owned(), kind: ExchangeType::Direct, durable: true };
    let bound = match ensure_exchange(link, &exchange).await? {
        Presence::Present | Presence::Created => Topology::new(link).bind(name, name, name).await,
        Presence::Down(text) | Presence::Denied(text) => Err(Error::new(ErrorKind::Denied, text)),
    };
    match bound {
        Err(error) if error.kind() == ErrorKind::Lost => Err(error),
        Err(error) => {
            tracing::warn!(queue = name, %error, "the new queue has no exchange of its name");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

async fn look(link: &Link, queue: &str) -> Result<Look> {
    let channel = link.channel().await?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(name_of("queue", queue)?, options, FieldTable::default());
    match link.answer(&format!("looking at queue '{queue}'"), declared).await {
        Ok(queue) => {
            Link::done(&channel);
            Ok(Look::Present { messages: queue.message_count(), consumers: queue.consumer_count() })
        }
        Err(error) => match error.kind() {
            ErrorKind::Missing => Ok(Look::Missing),
            ErrorKind::Down => Ok(Look::Down(error.to_string())),
            _ => Err(error),
        },
    }
}

pub(super) async fn ensure_queue(link: &Link, queue: &QueueSpec) -> Result<Presence> {
    match look(link, &queue.name).await? {
        Look::Present { .. } => return Ok(Presence::Present),
        Look::Down(text) => return Ok(Presence::Down(text)),
        Look::Missing => {}
    }
    let channel = link.channel().await?;
    match declare_queue(link, &channel, queue).await {
        Ok(()) => {
            Link::done(&channel);
            Ok(Presence::Created)
        }
        Err(error) => match error.kind() {
            ErrorKind::Denied => Ok(Presence::Denied(error.to_string())),
            // A limit of queues is reached, until somebody deletes one.
            ErrorKind::Down | ErrorKind::Full => Ok(Presence::Down(error.to_string())),
            // Somebody else declared it meanwhile, with other arguments: it is there, which is what we want.
            ErrorKind::Arguments => match look(link, &queue.name).await? {
                Look::Present { .. } => Ok(Presence::Present),
                Look::Missing | Look::Down(_) => Err(error),
            },
            _ => Err(error),
        },
    }
}

pub(super) async fn declare_queue(link: &Link, channel: &Channel, queue: &QueueSpec) -> Result<()> {
    let mut arguments: Headers = queue.arguments.iter().cloned().collect();
    if queue.queue_type == QueueType::Quorum {
        arguments.set("x-queue-type", "quorum".into());
    }
    let arguments = table_out(&arguments).map_err(|text| Error::new(ErrorKind::Arguments, text))?;
    let options = QueueDeclareOptions {
        durable: queue.durable,
        exclusive: queue.exclusive,
        auto_delete: queue.auto_delete,
        ..QueueDeclareOptions::default()
    };
    let resource = format!("queue '{}'", queue.name);
    let declared = channel.queue_declare(name_of("queue", &queue.name)?, options, arguments);
    let declared = link.answer(&format!("declaring {resource}"), declared).await;
    declared.map(|_| ()).map_err(|error| link.name_permission(error, "configure", &resource))
}

pub(super) async fn ensure_exchange(link: &Link, exchange: &Exchange) -> Result<Presence> {
    let looked = declare_exchange(link, exchange, true).await;
    match looked {
        Ok(()) => return Ok(Presence::Present),
        Err(error) if error.kind() == ErrorKind::Missing => {}
        Err(error) => return Err(error),
    }
    match declare_exchange(link, exchange, false).await {
        Ok(()) => Ok(Presence::Created),
        Err(error) => match error.kind() {
            ErrorKind::Denied => Ok(Presence::Denied(error.to_string())),
            ErrorKind::Arguments => declare_exchange(link, exchange, true).await.map(|()| Presence::Present),
            _ => Err(error),
        },
    }
}

async fn declare_exchange(link: &Link, exchange: &Exchange, passive: bool) -> Result<()> {
    let kind = match exchange.kind {
        ExchangeType::Direct => ExchangeKind::Direct,
        ExchangeType::Fanout => ExchangeKind::Fanout,
        ExchangeType::Topic => ExchangeKind::Topic,
    };
    let channel = link.channel().await?;
    let options = ExchangeDeclareOptions { passive, durable: exchange.durable, ..ExchangeDeclareOptions::default() };
    let resource = format!("exchange '{}'", exchange.name);
    let declared = channel.exchange_declare(name_of("exchange", &exchange.name)?, kind, options, FieldTable::default());
    let what = format!("{} {resource}", if passive { "looking at" } else { "declaring" });
    let declared = link.answer(&what, declared).await;
    declared.map_err(|error| link.name_permission(error, "configure", &resource))?;
    Link::done(&channel);
    Ok(())
}

pub(super) async fn bind(link: &Link, channel: &Channel, queue: &str, exchange: &str, routing_key: &str) -> Result<()> {
    let bound = channel.queue_bind(
        name_of("queue", queue)?,
        name_of("exchange", exchange)?,
        name_of("binding key", routing_key)?,
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    let bound = link.answer(&format!("binding queue '{queue}' to exchange '{exchange}'"), bound).await;
    bound.map_err(|error| {
        let resource = format!("queue '{queue}' or the read permission on exchange '{exchange}'");
        link.name_permission(error, "write", &resource)
    })
}

fn name_of(what: &str, name: &str) -> Result<ShortString> {
    short(&format!("the {what} name"), name).map_err(|text| Error::new(ErrorKind::Arguments, text))
}
