//! Whether this worker should be given work, and why not.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A part of the process that readiness depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The session that consumes commands.
    Broker,
    /// Publishing metric events.
    Events,
    /// Keeping copies of what cannot be run.
    DeadQueue,
    /// The storage engine.
    Storage,
    /// Writing down what was done.
    Journal,
    /// The worker's own life: starting, draining.
    Worker,
}

impl Component {
    /// Returns the name used in answers and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Events => "events",
            Self::DeadQueue => "dead_queue",
            Self::Storage => "storage",
            Self::Journal => "journal",
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
pub enum Condition {
    /// Works.
    Ready,
    /// Commands go on, but something is missing; `/readyz` stays 200 and says so.
    Degraded(String),
    /// Commands cannot run; `/readyz` is 503.
    Unready(String),
}

/// The conditions of all components; clones share them.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Mutex<BTreeMap<Component, Condition>>>);

impl Readiness {
    /// Starts with the given components unready, because `starting`; others count once they are set.
    #[must_use]
    pub fn new(awaited: &[Component]) -> Self {
        let starting = Condition::Unready("starting".to_owned());
        Self(Arc::new(Mutex::new(awaited.iter().map(|&component| (component, starting.clone())).collect())))
    }

    /// Notes how a component stands and logs a change once.
    pub fn set(&self, component: Component, condition: Condition) {
        let mut conditions = self.lock();
        if conditions.get(&component) == Some(&condition) {
            return;
        }
        match &condition {
            Condition::Ready => tracing::info!(%component, "ready"),
            Condition::Degraded(reason) => tracing::warn!(%component, %reason, "degraded"),
            Condition::Unready(reason) => tracing::warn!(%component, %reason, "not ready"),
        }
        conditions.insert(component, condition);
    }

    /// Tells whether every component can do its work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.lock().values().any(|condition| matches!(condition, Condition::Unready(_)))
    }

    /// Returns every component and how it stands.
    #[must_use]
    pub fn conditions(&self) -> BTreeMap<Component, Condition> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Component, Condition>> {
        // A writer that panicked left a whole map behind: every change is one insert.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_nothing_is_unready() {
        let readiness = Readiness::new(&[Component::Broker, Component::Storage]);
        assert!(!readiness.is_ready());
        readiness.set(Component::Broker, Condition::Ready);
        assert!(!readiness.is_ready());
        readiness.set(Component::Storage, Condition::Ready);
        assert!(readiness.is_ready());
        readiness.set(Component::Events, Condition::Degraded("queue is away".to_owned()));
        assert!(readiness.is_ready());
        let other = readiness.clone();
        other.set(Component::Broker, Condition::Unready("blocked".to_owned()));
        assert!(!readiness.is_ready());
        assert_eq!(readiness.conditions()[&Component::Broker], Condition::Unready("blocked".to_owned()));
    }
}
