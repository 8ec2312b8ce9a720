//! One publication that a command owes: the unit of delivery.

use std::time::Duration;

use tokio::time::Instant;

use crate::celery::message::{Address, Publication};
use crate::worker::delivery::destinations::Destinations;
use crate::worker::delivery::role::Role;
use crate::worker::events::Event;

/// The number of a command in the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::worker) struct CommandNumber(pub(super) u64);

/// Which publication of which command is owed, and how it went so far.
#[derive(Clone, Debug)]
pub(in crate::worker) struct Debt {
    pub(super) command: CommandNumber,
    pub(in crate::worker) role: Role,
    /// The others of its command wait for it.
    pub(super) is_first: bool,
    /// How often its command had failed by a refusal when this was composed.
    pub(super) refusals: u8,
    /// It is said in between (STARTED).
    pub(super) is_passing: bool,
    /// How often it came back.
    pub(super) tries: u8,
    /// When it was first not taken, or first waited because its address takes nothing; before it was parked as well.
    pub(super) since: Option<Instant>,
    /// It came back from its parking: nobody's slot is kept by it.
    pub(in crate::worker) is_returned: bool,
    /// It cannot be put into the form in which it would be parked.
    pub(in crate::worker) is_unparkable: bool,
}

impl Debt {
    /// Returns how long it has been not taken.
    pub(super) fn age(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// What is sent.
#[derive(Debug)]
pub(in crate::worker) enum Content {
    Publication(Box<Publication>),
    /// Events share messages with others of their routing key.
    Event(Event),
}

/// A publication that is owed.
#[derive(Debug)]
pub(in crate::worker) struct Owed {
    pub(in crate::worker) debt: Debt,
    pub(in crate::worker) content: Content,
}

impl Content {
    /// Returns where it goes.
    pub(super) fn address(&self) -> Address {
        match self {
            Self::Publication(publication) => publication.address.clone(),
            Self::Event(event) => event.address(),
        }
    }

    /// Tells whether it goes to an address that takes nothing.
    pub(super) fn is_for_open(&self, destinations: &Destinations) -> bool {
        match self {
            Self::Publication(publication) => destinations.is_open(&publication.address),
            Self::Event(event) => destinations.is_open(&event.address()),
        }
    }

    /// Returns the publication, of an event one that tells of it alone.
    pub(in crate::worker) fn publication(&self) -> Publication {
        match self {
            Self::Publication(publication) => Publication::clone(publication),
            Self::Event(event) => event.alone(),
        }
    }
}
