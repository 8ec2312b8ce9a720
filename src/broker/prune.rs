//! Everything of this program that is declared at a broker and stays there, and the removal of what nobody needs.

use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::{ExchangeKind, types::FieldTable};

use super::{
    Delay, Error, ErrorKind, INVALIDATIONS_EXCHANGE, Parking, Result, Topology,
    convert::short,
    link::Link,
    topology::{DEAD_QUEUE, EVENTS_EXCHANGE, METRICS_QUEUE},
};

use crate::queue_name;

/// What came of a removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemovalOutcome {
    /// It is gone.
    Removed,
    /// It is used, or holds messages, in the broker's words.
    InUse(String),
    /// The broker knows no conditions for a queue of this type, and has ended the connection.
    Unconditional,
}

impl Topology {
    /// Returns the names of all queues that workers declare and that outlast them, those that others lead to last.
    pub fn own_queues() -> impl Iterator<Item = String> {
        Parking::queues().chain(Delay::names()).chain([METRICS_QUEUE, DEAD_QUEUE].map(str::to_owned))
    }

    /// Returns the names of all exchanges that workers declare.
    pub fn own_exchanges() -> impl Iterator<Item = String> {
        Delay::names().chain([EVENTS_EXCHANGE, INVALIDATIONS_EXCHANGE].map(str::to_owned))
    }

    /// Tells whether a queue of this name may hold commands: the name can be declared, and is of nothing that workers or Celery declare
    /// for themselves.
    #[must_use]
    pub fn may_hold_commands(queue: &str) -> bool {
        let is_of_one_connection = queue.starts_with(INVALIDATIONS_EXCHANGE)
            || queue.starts_with("celeryev.")
            || queue.ends_with("celery.pidbox");
        queue_name::can_be_declared(queue) && !is_of_one_connection && Self::own_queues().all(|own| own != queue)
    }

    /// Tells whether an exchange is there; needs no permission.
    ///
    /// # Errors
    /// `Lost`, and what else the broker says.
    pub async fn has_exchange(&self, exchange: &str) -> Result<bool> {
        let channel = self.link.channel().await?;
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let declared =
            channel.exchange_declare(name_of(exchange)?, ExchangeKind::Direct, options, FieldTable::default());
        match self.link.answer(&format!("looking at exchange '{exchange}'"), declared).await {
            Ok(()) => {
                Link::done(&channel);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::Missing => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a queue; with `conditions` only while it has no consumers and no messages.
    ///
    /// Quorum queues know no conditions: the first try ends the connection, and [`RemovalOutcome::Unconditional`] says so.
    ///
    /// # Errors
    /// `Denied` names the missing permission; `Lost`, and what else the broker says.
    pub async fn remove_queue(&self, queue: &str, conditions: bool) -> Result<RemovalOutcome> {
        let channel = self.link.channel().await?;
        let options =
            QueueDeleteOptions { if_unused: conditions, if_empty: conditions, ..QueueDeleteOptions::default() };
        let removed = channel.queue_delete(name_of(queue)?, options);
        let removed = self.link.answer(&format!("removing queue '{queue}'"), removed).await;
        self.removal(removed.map(drop), &format!("queue '{queue}'"))
    }

    /// Removes an exchange while nothing is bound to it.
    ///
    /// # Errors
    /// As [`Topology::remove_queue`].
    pub async fn remove_exchange(&self, exchange: &str) -> Result<RemovalOutcome> {
        let channel = self.link.channel().await?;
        let options = ExchangeDeleteOptions { if_unused: true, ..ExchangeDeleteOptions::default() };
        let removed = channel.exchange_delete(name_of(exchange)?, options);
        let removed = self.link.answer(&format!("removing exchange '{exchange}'"), removed).await;
        self.removal(removed, &format!("exchange '{exchange}'"))
    }

    fn removal(&self, removed: Result<()>, resource: &str) -> Result<RemovalOutcome> {
        let error = match removed {
            Ok(()) => return Ok(RemovalOutcome::Removed),
            Err(error) => self.link.name_permission(error, "configure", resource),
        };
        let words = error.to_string();
        match error.kind() {
            // Somebody else was faster.
            ErrorKind::Missing => Ok(RemovalOutcome::Removed),
            _ if words.contains("NOT_IMPLEMENTED") => Ok(RemovalOutcome::Unconditional),
            ErrorKind::Arguments if words.contains("PRECONDITION_FAILED") => Ok(RemovalOutcome::InUse(words)),
            _ => Err(error),
        }
    }
}

fn name_of(name: &str) -> Result<lapin::types::ShortString> {
    short("a name", name).map_err(|text| Error::new(ErrorKind::Arguments, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_to_which_others_lead_comes_after_them() {
        let names: Vec<String> = Topology::own_queues().collect();
        let place = |name: &str| names.iter().position(|other| other == name).unwrap();
        assert!(place("filestorage.parked.300000") < place("filestorage.parked"));
        assert_eq!(names.len(), 4 + 25 + 2);
        assert_eq!(Topology::own_exchanges().count(), 25 + 2);
        assert!(names.iter().all(|name| name.starts_with("filestorage.")), "never a queue of the application");
    }
}
