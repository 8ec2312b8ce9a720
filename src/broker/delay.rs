//! Messages that come back later, kept by the broker.
//!
//! One exchange and one queue for each step of 100 ms · 2^k: the queue's messages expire after the step and are
//! dead-lettered through the default exchange, whose routing key is the name of the queue they are for. A message waits in
//! the largest step that fits and is published again for the rest, so that one waiting for days is never behind one
//! waiting for seconds, and none is held unacknowledged.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use lapin::options::QueueDeleteOptions;
use uuid::Uuid;

use crate::celery::message::{Address, Field};

use super::{
    Error, ErrorKind, Exchange, ExchangeType, Look, Presence, QueueSpec, QueueType, Result, Topology, link::Link,
    topology,
};

/// The beginning of the names of delay queues and of their exchanges.
pub const DELAY_PREFIX: &str = "filestorage.delay.";
/// The smallest step, in milliseconds.
const FIRST: u64 = 100;
/// Doublings of the smallest step: the largest is 19 days.
const DOUBLINGS: u32 = 24;

/// Queues whose messages return to the queue they came from after a while.
#[derive(Clone, Debug)]
pub struct Delay {
    link: Arc<Link>,
}

impl Delay {
    pub(super) fn new(link: &Arc<Link>) -> Self {
        Self { link: Arc::clone(link) }
    }

    /// Returns the names of all delay queues; each has an exchange of its name.
    pub fn names() -> impl Iterator<Item = String> {
        (0..=DOUBLINGS).map(|doublings| name(FIRST << doublings))
    }

    /// Returns where to publish, with `mandatory`, what shall be back in `queue` after `remaining`: it comes back then or
    /// earlier, and is then published again for the rest. Only a rest below 100 ms takes 100 ms.
    ///
    /// # Errors
    /// `Denied` when the delay queue is missing and may not be created; `Down`, `Arguments`, `Lost`.
    pub async fn address(&self, queue: &str, remaining: Duration) -> Result<Address> {
        let step = step(remaining);
        let name = self::name(step);
        if !self.is_known(step) {
            self.ensure(&name, step).await?;
            self.link.delays.lock().unwrap_or_else(PoisonError::into_inner).insert(step);
        }
        Ok(Address { exchange: name, routing_key: queue.to_owned() })
    }

    /// Says which permission is missing for delay queues, and how many of them that leaves missing; `None` where all are
    /// there or may be made. Makes nothing that stays.
    ///
    /// # Errors
    /// `Lost`, and what else the broker says.
    pub async fn lack(&self) -> Result<Option<String>> {
        // Digits, as the names of the queues themselves have, which a right may be granted for.
        let name = format!("{DELAY_PREFIX}{}", Uuid::new_v4().as_u128());
        let spec = QueueSpec {
            durable: false,
            exclusive: true,
            auto_delete: true,
            ..QueueSpec::durable(name, QueueType::Classic)
        };
        let channel = self.link.channel().await?;
        let made = topology::declare_queue(&self.link, &channel, &spec).await;
        match made {
            Err(error) if error.kind() == ErrorKind::Denied => {}
            made => {
                made?;
                let gone = channel.queue_delete(spec.name.into(), QueueDeleteOptions::default());
                self.link.answer("deleting a queue that was a trial", gone).await?;
                Link::done(&channel);
                return Ok(None);
            }
        }
        let topology = Topology::new(&self.link);
        let mut missing = 0;
        for name in Self::names() {
            let look = topology.look(&name).await?;
            missing += u32::from(look == Look::Missing);
        }
        let (user, vhost) = (self.link.url.user(), self.link.url.vhost());
        Ok((missing > 0).then(|| {
            format!(
                "user '{user}' lacks the configure permission on queues and exchanges 'filestorage.delay.*' in vhost \
                 '{vhost}', and {missing} delay queues are missing: commands with countdown or eta will fail; grant it \
                 with rabbitmqctl set_permissions, or make them with deploy/rabbitmq/definitions"
            )
        }))
    }

    fn is_known(&self, step: u64) -> bool {
        self.link.delays.lock().unwrap_or_else(PoisonError::into_inner).contains(&step)
    }

    async fn ensure(&self, name: &str, step: u64) -> Result<()> {
        let link = &self.link;
        let mut queue = QueueSpec::durable(name, link.options.queue_type)
            .with("x-message-ttl", Field::Int(i64::try_from(step).unwrap_or(i64::MAX)))
            .with("x-dead-letter-exchange", "");
        if link.options.queue_type == QueueType::Quorum {
            // A quorum queue dead-letters at most once unless both are asked for.
            queue = queue.with("x-dead-letter-strategy", "at-least-once").with("x-overflow", "reject-publish");
        }
        let exchange = Exchange { name: name.to_owned(), kind: ExchangeType::Fanout, durable: true };
        let mut created = false;
        for presence in [topology::ensure_exchange(link, &exchange).await?, topology::ensure_queue(link, &queue).await?]
        {
            match presence {
                Presence::Present => {}
                Presence::Created => created = true,
                Presence::Down(text) => return Err(Error::new(ErrorKind::Down, text)),
                Presence::Denied(text) => return Err(Error::new(ErrorKind::Denied, text)),
            }
        }
        let channel = link.channel().await?;
        match topology::bind(link, &channel, name, name, "").await {
            // Both were there, so whoever made them has bound them.
            Err(error) if error.kind() == ErrorKind::Denied && !created => {}
            bound => {
                bound?;
                Link::done(&channel);
            }
        }
        Ok(())
    }
}

fn name(step: u64) -> String {
    format!("{DELAY_PREFIX}{step}")
}

/// The largest step that is not longer than `remaining`, in milliseconds; the smallest for less.
fn step(remaining: Duration) -> u64 {
    let steps = (0..=DOUBLINGS).map(|doublings| FIRST << doublings);
    steps.take_while(|step| Duration::from_millis(*step) <= remaining).last().unwrap_or(FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_never_overshoots_but_for_the_smallest() {
        let step_of = |milliseconds| step(Duration::from_millis(milliseconds));
        assert_eq!(step_of(0), 100);
        assert_eq!(step_of(199), 100);
        assert_eq!(step_of(200), 200);
        assert_eq!(step_of(700), 400);
        assert_eq!(step_of(3_000), 1_600);
        assert_eq!(step(Duration::from_secs(400 * 86_400)), 1_677_721_600);
    }
}
