//! A delivery whose body is read when its turn comes, and where the body is meanwhile.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::broker::Inflow;
use crate::celery::message::{Message, Origin};
use crate::celery::reply::Revocation;
use crate::commands::{Budget, Held, Spool};
use crate::worker::execution::answer::{Answer, Outcome};

/// Bodies written to the disk at once.
const WRITERS: usize = 4;

/// A message that was not read yet.
#[derive(Debug)]
pub(in crate::worker) struct Sealed {
    /// Without its body where that is in a file.
    pub(in crate::worker) message: Message,
    pub(in crate::worker) origin: Origin,
    pub(in crate::worker) body: WaitingBody,
    /// Bytes of its body.
    pub(in crate::worker) length: u64,
    /// How it has ended already; the body is read for what follows that only.
    pub(in crate::worker) end: Option<Known>,
    /// What its keys count for, where it has several.
    pub(in crate::worker) _keys: Option<Held>,
}

/// How a task has ended that does not run; what follows its end stands in its body, which was not read.
#[derive(Debug)]
pub(in crate::worker) enum KnownEnd {
    /// The journal knows its answer.
    Answered(Box<Answer>),
    /// It must not begin, and its chord waits for it.
    Revoked(Revocation),
    /// It was running alone in so many crashes of a worker. That it is read is noted in the journal, so that a worker dies of that at most once.
    Crashed(u32),
}

/// An end that waits for its body, on the budget.
#[derive(Debug)]
pub(in crate::worker) struct Known {
    end: KnownEnd,
    _held: Held,
}

impl Known {
    pub(in crate::worker) fn new(end: KnownEnd, budget: &Budget) -> Self {
        let bytes = match &end {
            KnownEnd::Answered(answer) => match &answer.outcome {
                Outcome::Success(result) => result.len() as u64,
                // Its texts are short.
                Outcome::Failure(_) => 0,
            },
            KnownEnd::Revoked(_) | KnownEnd::Crashed(_) => 0,
        };
        Self { end, _held: budget.keep(bytes) }
    }

    pub(in crate::worker) const fn end(&self) -> &KnownEnd {
        &self.end
    }

    /// Tells whether the journal is told that the message is being read.
    pub(in crate::worker) const fn is_noted(&self) -> bool {
        matches!(self.end, KnownEnd::Crashed(_))
    }
}

/// Where a body is.
#[derive(Debug)]
pub(in crate::worker) enum WaitingBody {
    /// In memory, on the budget.
    Kept(Held),
    /// On its way into a file.
    Spooled(JoinHandle<Spooled>),
}

/// What became of a body that was to be written into a file.
#[derive(Debug)]
pub(in crate::worker) enum Spooled {
    File(File),
    /// It could not be written: it stays in memory, and the connection is left unread for it.
    Memory(Bytes, Inflow),
}

/// Keeps bodies until their turn: in memory while the budget has room, else in files without a name.
#[derive(Clone, Debug)]
pub(in crate::worker) struct BodyStore {
    budget: Budget,
    spool: Spool,
    writers: Arc<Semaphore>,
}

impl BodyStore {
    pub(in crate::worker) fn new(budget: Budget, spool: Spool) -> Self {
        Self { budget, spool, writers: Arc::new(Semaphore::new(WRITERS)) }
    }

    /// Puts the body of a message where it waits.
    pub(in crate::worker) fn keep(&self, message: &mut Message, inflow: Inflow) -> WaitingBody {
        if let Some(held) = self.budget.try_keep(message.body.len() as u64) {
            return WaitingBody::Kept(held);
        }
        let (store, body) = (self.clone(), std::mem::take(&mut message.body));
        WaitingBody::Spooled(tokio::spawn(async move {
            // Nobody closes it.
            let _permit = store.writers.acquire().await;
            let write = move || {
                // Encryption of what is written belongs here and into `read`.
                let written = store.spool.create().and_then(|mut file| file.write_all(&body).map(|()| file));
                match written {
                    Ok(file) => Spooled::File(file),
                    Err(error) => {
                        tracing::warn!(%error, folder = %store.spool.folder().display(), "no room for a message that waits");
                        Spooled::Memory(body, inflow)
                    }
                }
            };
            match tokio::task::spawn_blocking(write).await {
                Ok(spooled) => spooled,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }))
    }
}

impl WaitingBody {
    /// Tells whether the body has to be read back into memory.
    pub(in crate::worker) const fn is_spooled(&self) -> bool {
        matches!(self, Self::Spooled(_))
    }

    /// Waits until the body can be read back.
    pub(in crate::worker) async fn settled(self) -> Result<Body, String> {
        match self {
            Self::Kept(held) => Ok(Body::Kept(held)),
            Self::Spooled(written) => match written.await {
                Ok(Spooled::File(file)) => Ok(Body::File(file)),
                Ok(Spooled::Memory(bytes, inflow)) => Ok(Body::Memory(bytes, inflow)),
                Err(error) => Err(format!("a message that waits cannot be written: {error}")),
            },
        }
    }
}

/// A body that can be read back.
#[derive(Debug)]
pub(in crate::worker) enum Body {
    Kept(Held),
    File(File),
    Memory(Bytes, Inflow),
}

impl Body {
    /// Puts the body back into its message; what counts for it meanwhile is given back. Blocks.
    pub(in crate::worker) fn restore(self, message: &mut Message, length: u64) -> Result<Restored, String> {
        match self {
            Self::Kept(held) => Ok(Restored { _held: Some(held), _inflow: None }),
            Self::Memory(bytes, inflow) => {
                message.body = bytes;
                Ok(Restored { _held: None, _inflow: Some(inflow) })
            }
            Self::File(mut file) => {
                let mut body = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
                file.rewind()
                    .and_then(|()| file.read_to_end(&mut body))
                    .map_err(|error| format!("a message that waits cannot be read back: {error}"))?;
                message.body = body.into();
                Ok(Restored { _held: None, _inflow: None })
            }
        }
    }
}

/// What counts for a body while it is in memory.
#[derive(Debug)]
pub(in crate::worker) struct Restored {
    _held: Option<Held>,
    _inflow: Option<Inflow>,
}
