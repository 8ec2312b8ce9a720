//! The readiness of this worker: whether it should be given work, and the reasons when it should not.

use std::collections::BTreeMap;
use std::fmt;

use tokio::sync::watch;

use crate::redact::redact;

/// A part of the process that readiness depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The session that consumes commands.
    Broker,
    /// The queues that the session consumes.
    Queues,
    /// The publication of metric events.
    Events,
    /// The queue of dead copies, of commands that cannot be run.
    DeadQueue,
    /// The delivery of what finished commands owe to queues that take nothing.
    Delivery,
    /// The store of results, where answers do not go over the broker.
    Results,
    /// The queues of parked publications.
    Parking,
    /// The announcements of changed keys to other workers.
    Invalidations,
    /// The cache of a bucket, which needs what other workers announce.
    Cache,
    /// The queue of requests of remote control.
    RemoteControl,
    /// The storage engine.
    Storage,
    /// The worker's journal of commands.
    Journal,
    /// The files from which secrets are read.
    Secrets,
    /// The phase of the worker itself: starting, draining.
    Worker,
}

impl Component {
    /// Returns the name of the component in `/readyz` and in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Queues => "queues",
            Self::Events => "events",
            Self::DeadQueue => "dead_queue",
            Self::Delivery => "delivery",
            Self::Results => "results",
            Self::Parking => "parking",
            Self::Invalidations => "invalidations",
            Self::Cache => "cache",
            Self::RemoteControl => "remote_control",
            Self::Storage => "storage",
            Self::Journal => "journal",
            Self::Secrets => "secrets",
            Self::Worker => "worker",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The state of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ComponentState {
    /// The component works.
    Ready,
    /// Commands run, but with something missing, for this reason; `/readyz` answers 200 and names the reason.
    Degraded(String),
    /// Commands cannot run, for this reason; `/readyz` answers 503.
    Unready(String),
}

impl ComponentState {
    /// Hides secrets in the reason, which `/readyz` and the log repeat.
    fn redacted(self) -> Self {
        match self {
            Self::Ready => Self::Ready,
            Self::Degraded(reason) => Self::Degraded(redact(&reason).into_owned()),
            Self::Unready(reason) => Self::Unready(redact(&reason).into_owned()),
        }
    }
}

/// The states of all components at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadinessState {
    pub(super) conditions: BTreeMap<Component, ComponentState>,
    /// Tells whether the start is over: the worker takes work, or waits for something that may come without a person.
    pub(super) started: bool,
}

impl ReadinessState {
    fn is_ready(&self) -> bool {
        !self.conditions.values().any(|condition| matches!(condition, ComponentState::Unready(_)))
    }
}

/// The shared record of the states of all components; clones share one record.
#[derive(Clone, Debug)]
pub struct Readiness(watch::Sender<ReadinessState>);

impl Readiness {
    /// Creates a record in which the given components are unready, with the reason `starting`.
    ///
    /// Any other component counts from its first [`Readiness::set`] on.
    #[must_use]
    pub fn new(awaited: &[Component]) -> Self {
        let starting = ComponentState::Unready("starting".to_owned());
        let conditions = awaited.iter().map(|&component| (component, starting.clone())).collect();
        Self(watch::Sender::new(ReadinessState { conditions, started: false }))
    }

    /// Records the state of a component, and logs the state when it has changed.
    pub fn set(&self, component: Component, condition: ComponentState) {
        let condition = condition.redacted();
        self.0.send_if_modified(|standing| {
            if standing.conditions.get(&component) == Some(&condition) {
                return false;
            }
            match &condition {
                ComponentState::Ready => tracing::info!(%component, "ready"),
                ComponentState::Degraded(reason) => tracing::warn!(%component, %reason, "degraded"),
                ComponentState::Unready(reason) => tracing::warn!(%component, %reason, "not ready"),
            }
            standing.conditions.insert(component, condition);
            true
        });
    }

    /// Records that the start is over: the worker takes work, or waits for something that may come without a person.
    pub fn set_started(&self) {
        self.0.send_if_modified(|standing| !std::mem::replace(&mut standing.started, true));
    }

    /// Tells whether no component is unready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_ready()
    }

    /// Returns the states of all components.
    #[must_use]
    pub fn conditions(&self) -> BTreeMap<Component, ComponentState> {
        self.0.borrow().conditions.clone()
    }

    /// Returns a receiver of all later changes.
    pub(super) fn follow(&self) -> watch::Receiver<ReadinessState> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_nothing_is_unready() {
        let readiness = Readiness::new(&[Component::Broker, Component::Storage]);
        assert!(!readiness.is_ready());
        readiness.set(Component::Broker, ComponentState::Ready);
        assert!(!readiness.is_ready());
        readiness.set(Component::Storage, ComponentState::Ready);
        assert!(readiness.is_ready());
        readiness.set(Component::Events, ComponentState::Degraded("queue is away".to_owned()));
        assert!(readiness.is_ready());
        let other = readiness.clone();
        other.set(Component::Broker, ComponentState::Unready("blocked".to_owned()));
        assert!(!readiness.is_ready());
        assert_eq!(readiness.conditions()[&Component::Broker], ComponentState::Unready("blocked".to_owned()));
    }
}
