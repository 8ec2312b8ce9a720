//! Looking at queues and creating the missing ones.

use super::{QueueType, Result};

/// Whether a queue is there, once we tried.
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

/// An exchange as it is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Name.
    pub name: String,
    /// Type.
    pub kind: ExchangeType,
    /// Survives a restart of the broker.
    pub durable: bool,
    /// Goes when the last queue bound to it does.
    pub auto_delete: bool,
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
    pub arguments: Vec<(String, crate::celery::message::Field)>,
}

/// Looks at queues and creates the missing ones.
#[derive(Clone, Debug)]
pub struct Topology {}

impl Topology {
    /// Looks whether a queue is there; needs no permission.
    ///
    /// # Errors
    /// `Lost` or `Unreachable`.
    pub async fn look(&self, queue: &str) -> Result<Look> {
        todo!()
    }

    /// Looks at a queue and creates it when it is missing.
    ///
    /// # Errors
    /// `Arguments` when the broker supports none such; `Lost`.
    pub async fn ensure_queue(&self, queue: &QueueSpec) -> Result<Presence> {
        todo!()
    }

    /// Creates an exchange when it is missing.
    ///
    /// # Errors
    /// As [`Topology::ensure_queue`].
    pub async fn ensure_exchange(&self, exchange: &Exchange) -> Result<Presence> {
        todo!()
    }

    /// Binds a queue to an exchange.
    ///
    /// # Errors
    /// `Denied`, `Missing` or `Lost`.
    pub async fn bind(&self, queue: &str, exchange: &str, routing_key: &str) -> Result<()> {
        todo!()
    }

    /// Makes sure of `filestorage.dead`, where what cannot be run is kept.
    ///
    /// # Errors
    /// As [`Topology::ensure_queue`].
    pub async fn ensure_dead(&self) -> Result<Presence> {
        todo!()
    }

    /// Makes sure of the topic exchange `filestorage.events` and of `filestorage.metrics` behind it, bounded to
    /// `max_length` events with the oldest dropped.
    ///
    /// # Errors
    /// As [`Topology::ensure_queue`].
    pub async fn ensure_metrics(&self, max_length: u32) -> Result<Presence> {
        todo!()
    }
}
