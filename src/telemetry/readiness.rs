//! Whether this worker should be given work, and why not.

use std::collections::BTreeMap;
use std::fmt;

use tokio::sync::watch;

use crate::redact::redact;

/// A part of the process that readiness depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The session that consumes commands.
    Broker,
    /// The queues it consumes.
    Queues,
    /// Publishing metric events.
    Events,
    /// Keeping copies of what cannot be run.
    DeadQueue,
    /// The storage engine.
    Storage,
    /// Writing down what was done.
    Journal,
    /// The files that secrets are read from.
    Secrets,
    /// The worker's own life: starting, draining.
    Worker,
}

impl Component {
    /// Returns the name used in answers and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Queues => "queues",
            Self::Events => "events",
            Self::DeadQueue => "dead_queue",
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

/// How a component stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ComponentState {
    /// Works.
    Ready,
    /// Commands go on, but something is missing; `/readyz` stays 200 and says so.
    Degraded(String),
    /// Commands cannot run; `/readyz` is 503.
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

/// What is known of the process at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct ReadinessState {
    pub(super) conditions: BTreeMap<Component, ComponentState>,
    /// The start is over: work is taken, or what is waited for may come by itself.
    pub(super) started: bool,
}

impl ReadinessState {
    fn is_ready(&self) -> bool {
        !self.conditions.values().any(|condition| matches!(condition, ComponentState::Unready(_)))
    }
}

/// The conditions of all components; clones share them.
#[derive(Clone, Debug)]
pub struct Readiness(watch::Sender<ReadinessState>);

impl Readiness {
    /// Starts with the given components unready, because `starting`; others count once they are set.
    #[must_use]
    pub fn new(awaited: &[Component]) -> Self {
        let starting = ComponentState::Unready("starting".to_owned());
        let conditions = awaited.iter().map(|&component| (component, starting.clone())).collect();
        Self(watch::Sender::new(ReadinessState { conditions, started: false }))
    }

    /// Notes how a component stands and logs a change once.
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

    /// Notes that the start is over: work is taken, or what is waited for may come by itself.
    pub fn set_started(&self) {
        self.0.send_if_modified(|standing| !std::mem::replace(&mut standing.started, true));
    }

    /// Tells whether every component can do its work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.borrow().is_ready()
    }

    /// Returns every component and how it stands.
    #[must_use]
    pub fn conditions(&self) -> BTreeMap<Component, ComponentState> {
        self.0.borrow().conditions.clone()
    }

    /// Follows every change from now on.
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
