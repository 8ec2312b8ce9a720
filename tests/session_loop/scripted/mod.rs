//! The broker of the tests behind the traits that a worker knows.

mod announcements;
mod consumer;
mod notices;
mod parked;
mod publish;
mod session;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use filestorage::broker::{self, Broker, BrokerSession, Error, ErrorKind};
use tokio::sync::Notify;

use crate::model::{Door, Model, Waiting};
use session::ScriptedSession;

/// A broker in memory; clones share it.
#[derive(Clone)]
pub(crate) struct Scripted {
    model: Arc<Mutex<Model>>,
    /// Something changed that a consumer may wait for.
    changed: Arc<Notify>,
    /// The worker that opens sessions with it.
    node: Arc<str>,
}

impl fmt::Debug for Scripted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Scripted")
    }
}

impl Scripted {
    pub(crate) fn new(seed: u64) -> Self {
        Self { model: Arc::new(Mutex::new(Model::new(seed))), changed: Arc::default(), node: "".into() }
    }

    /// Returns the same broker for a worker of this name.
    pub(crate) fn of(&self, node: &str) -> Self {
        Self { node: node.into(), ..self.clone() }
    }

    /// Changes the model, and wakes whoever waits for what came of it.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Model) -> T) -> T {
        let (changed, waiting) = {
            let mut model = self.lock();
            (change(&mut model), std::mem::take(&mut model.waiting))
        };
        waiting.into_iter().for_each(|(wait, waiting)| self.wait(wait, waiting));
        self.changed.notify_waiters();
        changed
    }

    /// Looks at the model, of which nobody hears.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Model) -> T) -> T {
        look(&self.lock())
    }

    /// Lets something happen after a while.
    fn wait(&self, wait: Duration, waiting: Waiting) {
        let broker = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            broker.change(|model| model.end_wait(waiting));
        });
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap()
    }
}

#[async_trait]
impl Broker for Scripted {
    async fn open(&self) -> broker::Result<Arc<dyn BrokerSession>> {
        let step = self.lock().step();
        tokio::time::sleep(2 * step).await;
        let door = self.lock().door.clone();
        match door {
            Door::Open => {}
            Door::Refuses => return Err(Error::new(ErrorKind::Login, "no such user")),
            Door::Unreachable => return Err(Error::new(ErrorKind::Unreachable, "nobody answers")),
        }
        let number = self.change(|model| model.connect(&self.node));
        Ok(Arc::new(ScriptedSession { broker: self.clone(), number }))
    }
}
