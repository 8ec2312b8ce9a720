//! `filestorage queues`: what this program has declared at the broker, and the removal of what nobody needs.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::broker;
use super::terminal::Output;
use crate::broker::{
    DEAD_QUEUE, Delay, EVENTS_EXCHANGE, INVALIDATIONS_EXCHANGE, Look, METRICS_QUEUE, PARKED_QUEUE, Parking,
    RemovalOutcome, Session, Topology,
};
use crate::config::Settings;
use crate::redact::redact;
use crate::wiring::{Code, Failure};

/// How long a queue must have been empty. Somebody who looks into a queue holds its messages for a moment, and nobody else sees them.
const QUIET: Duration = Duration::from_secs(1);

/// Lists the queues and exchanges that workers have declared, with their messages and consumers.
///
/// They stay when the last worker is gone. With --prune, those that are empty and unused are removed: for a queue, no consumer and no
/// message; for an exchange, nothing bound to it. The queues of commands belong to the application and are never touched. The
/// next worker declares what it needs again.
///
/// Stop all workers first. While one consumes, nothing is removed. filestorage.dead is removed only with --dead, since the
/// messages that `filestorage dead` holds while it runs cannot be seen. Of a classic queue the broker itself makes sure that it
/// is empty and unused; quorum queues know no such condition, so they are looked at right before.
///
/// Exit codes: 0 everything that was asked for is done; 75 a worker runs, so nothing was removed; 77 this user may not remove them; 69 the broker cannot be reached.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Removes what is empty and unused.
    #[arg(long)]
    prune: bool,

    /// Removes filestorage.dead, too, if it is empty; no `filestorage dead` may run.
    #[arg(long, requires = "prune")]
    dead: bool,

    /// Says what would be removed, and removes nothing.
    #[arg(long, requires = "prune")]
    dry_run: bool,
}

/// The answer.
#[derive(Debug, Serialize)]
struct Listing {
    queues: Vec<Queue>,
    exchanges: Vec<Exchange>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prune: Option<Pruned>,
}

/// One queue that is there.
#[derive(Debug, Serialize)]
struct Queue {
    name: String,
    /// Messages that wait; `null` when the queue cannot be reached.
    messages: Option<u32>,
    consumers: Option<u32>,
    purpose: &'static str,
}

/// One exchange that is there.
#[derive(Debug, Serialize)]
struct Exchange {
    name: String,
    purpose: &'static str,
}

/// What came of the removal.
#[derive(Debug, Default, Serialize)]
struct Pruned {
    dry_run: bool,
    /// Names of what was removed, or would be.
    removed: Vec<Removed>,
    kept: Vec<Kept>,
}

#[derive(Debug, Serialize)]
struct Removed {
    kind: Kind,
    name: String,
}

#[derive(Debug, Serialize)]
struct Kept {
    kind: Kind,
    name: String,
    why: String,
}

/// A queue, or an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Queue,
    Exchange,
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let session = broker::open(settings, "filestorage queues").await?;
        let topology = session.topology();
        let mut listing = Listing { queues: look(&topology).await?, exchanges: Vec::new(), prune: None };
        for name in Topology::own_exchanges() {
            if topology.has_exchange(&name).await? {
                let purpose = purpose(&name);
                listing.exchanges.push(Exchange { name, purpose });
            }
        }
        let (mut is_used, mut failure) = (false, None);
        if self.prune {
            is_used = listing.queues.iter().any(|queue| is_workers(queue) && queue.consumers != Some(0));
            let mut pruning = Pruning {
                settings,
                session,
                is_used,
                dead: self.dead,
                pruned: Pruned { dry_run: self.dry_run, ..Pruned::default() },
            };
            failure = pruning.run(&listing).await.err();
            listing.prune = Some(pruning.finish().await);
        } else {
            session.close().await;
        }
        output.answer(&listing, &text(&listing))?;
        match failure {
            Some(failure) => Err(failure),
            None => Ok(if is_used { Code::TryAgain } else { Code::Success }),
        }
    }
}

/// Tells whether only workers consume a queue; other tools may read events and dead copies.
fn is_workers(queue: &Queue) -> bool {
    queue.name == PARKED_QUEUE
}

async fn look(topology: &Topology) -> Result<Vec<Queue>, Failure> {
    let mut queues = Vec::new();
    for name in Topology::own_queues() {
        let (messages, consumers) = match topology.look(&name).await? {
            Look::Missing => continue,
            Look::Present { messages, consumers } => (Some(messages), Some(consumers)),
            Look::Down(_) => (None, None),
        };
        let purpose = purpose(&name);
        queues.push(Queue { name, messages, consumers, purpose });
    }
    Ok(queues)
}

/// A removal that is under way.
struct Pruning<'s> {
    settings: &'s Settings,
    session: Session,
    /// A worker runs.
    is_used: bool,
    /// The queue of dead messages is meant, too.
    dead: bool,
    pruned: Pruned,
}

impl Pruning<'_> {
    async fn run(&mut self, listing: &Listing) -> Result<(), Failure> {
        if !self.is_used && !self.pruned.dry_run {
            tokio::time::sleep(QUIET).await;
        }
        let mut stay = BTreeSet::new();
        for queue in &listing.queues {
            match self.obstacle(queue, &stay) {
                Some(why) => {
                    stay.insert(queue.name.as_str());
                    self.keep(Kind::Queue, &queue.name, &why);
                }
                None => match self.remove(Kind::Queue, &queue.name).await? {
                    None => {}
                    Some(why) => {
                        stay.insert(queue.name.as_str());
                        self.keep(Kind::Queue, &queue.name, &why);
                    }
                },
            }
        }
        for Exchange { name, .. } in &listing.exchanges {
            let bound = if name == EVENTS_EXCHANGE { METRICS_QUEUE } else { name.as_str() };
            let obstacle = if self.is_used {
                Some("a worker runs".to_owned())
            } else if stay.contains(bound) {
                Some(format!("the queue {bound} stays"))
            } else {
                None
            };
            let why = match obstacle {
                None => self.remove(Kind::Exchange, name).await?,
                obstacle => obstacle,
            };
            if let Some(why) = why {
                self.keep(Kind::Exchange, name, &why);
            }
        }
        Ok(())
    }

    /// Says why a queue stays, by what was seen of it.
    fn obstacle(&self, queue: &Queue, stay: &BTreeSet<&str>) -> Option<String> {
        let leads_here = |name: &&&str| queue.name == PARKED_QUEUE && name.starts_with(PARKED_QUEUE);
        match queue {
            _ if self.is_used => Some("a worker runs; stop it first".to_owned()),
            Queue { messages: None, .. } => Some("it cannot be reached; start the node that holds it".to_owned()),
            Queue { messages: Some(messages @ 1..), .. } => Some(format!("it holds {messages} messages")),
            Queue { consumers: Some(consumers @ 1..), .. } => Some(format!("it has {consumers} consumers")),
            Queue { name, .. } if name == DEAD_QUEUE && !self.dead => {
                Some("it is removed with --dead only, while no `filestorage dead` runs".to_owned())
            }
            // What waits in a step goes there.
            _ => stay.iter().find(leads_here).map(|step| format!("{step} leads to it, and stays")),
        }
    }

    /// Removes a queue or an exchange; returns why it stays.
    async fn remove(&mut self, kind: Kind, name: &str) -> Result<Option<String>, Failure> {
        if !self.pruned.dry_run {
            let topology = self.session.topology();
            let removal = match kind {
                Kind::Queue => match topology.remove_queue(name, true).await? {
                    RemovalOutcome::Unconditional => {
                        // The broker has ended the connection.
                        self.session = broker::open(self.settings, "filestorage queues").await?;
                        self.remove_quorum(name).await?
                    }
                    removal => removal,
                },
                Kind::Exchange => topology.remove_exchange(name).await?,
            };
            match removal {
                RemovalOutcome::Removed => {}
                RemovalOutcome::InUse(words) => return Ok(Some(words)),
                RemovalOutcome::Unconditional => return Ok(Some("the broker cannot remove it".to_owned())),
            }
        }
        self.pruned.removed.push(Removed { kind, name: name.to_owned() });
        Ok(None)
    }

    /// Removes a quorum queue that is empty and unused right before.
    async fn remove_quorum(&self, name: &str) -> Result<RemovalOutcome, Failure> {
        let topology = self.session.topology();
        Ok(match topology.look(name).await? {
            Look::Present { messages: 0, consumers: 0 } => topology.remove_queue(name, false).await?,
            Look::Missing => RemovalOutcome::Removed,
            Look::Present { messages, consumers } => {
                RemovalOutcome::InUse(format!("it holds {messages} messages and has {consumers} consumers"))
            }
            Look::Down(words) => RemovalOutcome::InUse(words),
        })
    }

    fn keep(&mut self, kind: Kind, name: &str, why: &str) {
        self.pruned.kept.push(Kept { kind, name: name.to_owned(), why: redact(why).into_owned() });
    }

    async fn finish(self) -> Pruned {
        self.session.close().await;
        self.pruned
    }
}

fn purpose(name: &str) -> &'static str {
    match name {
        DEAD_QUEUE => "messages that could not be run",
        METRICS_QUEUE => "events of finished operations",
        EVENTS_EXCHANGE => "routes events",
        INVALIDATIONS_EXCHANGE => "announces changed keys to the other workers",
        PARKED_QUEUE => "publications that are tried again",
        _ if Parking::queues().any(|parked| parked == name) => "publications that wait",
        _ if Delay::names().any(|delay| delay == name) => "commands that wait for their time",
        _ => "",
    }
}

fn text(listing: &Listing) -> String {
    let number = |number: Option<u32>| number.map_or_else(|| "down".to_owned(), |number| number.to_string());
    let mut text = String::new();
    let mut row = |kind: &str, messages: &str, consumers: &str, name: &str, purpose: &str| {
        text.push_str(&format!("{kind:<9} {messages:>10} {consumers:>10} {name:<32} {purpose}\n"));
    };
    row("KIND", "MESSAGES", "CONSUMERS", "NAME", "PURPOSE");
    for Queue { name, messages, consumers, purpose } in &listing.queues {
        row("queue", &number(*messages), &number(*consumers), name, purpose);
    }
    for Exchange { name, purpose } in &listing.exchanges {
        row("exchange", "-", "-", name, purpose);
    }
    let Some(Pruned { dry_run, removed, kept }) = &listing.prune else { return text };
    let shown = |kind: Kind| if kind == Kind::Queue { "queue" } else { "exchange" };
    for Removed { kind, name } in removed {
        let did = if *dry_run { "would be removed" } else { "removed" };
        text.push_str(&format!("{did}: {} {name}\n", shown(*kind)));
    }
    for Kept { kind, name, why } in kept {
        text.push_str(&format!("stays: {} {name}: {why}\n", shown(*kind)));
    }
    text
}
