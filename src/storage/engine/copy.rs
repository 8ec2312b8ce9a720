//! Copies and moves of objects, and what becomes of them when they are delivered again.

use jiff::Timestamp;

use crate::storage::backend::{Condition, CopySource, DeleteOptions, PutOptions};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::engine::{Engine, Receipt, Redelivered};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::{Attributes, Key, ObjectInfo, clock};

/// How often an object is looked at anew that others keep changing.
const LOOKS: usize = 16;

/// Options of a copy or a move.
#[derive(Clone, Debug, Default)]
pub struct CopyOptions {
    /// The condition of the destination that must hold for the write to happen.
    pub condition: Condition,
    /// The identity of the command that writes, which is kept in the object.
    pub operation_id: Option<String>,
    /// Set for a copy that may have been tried before, without any record of how the first try ended.
    pub redelivered: Option<Redelivered>,
    /// The guard that is asked right before the request that can make the copy visible. That is the first step of a copy
    /// in Cloud Storage, which may be the last.
    pub commit_guard: CommitGuard,
}

/// The state that a copy left behind, and how it came to be.
struct Copied {
    stored: Attributes,
    /// The generation token of the state that was copied, now or by an earlier attempt; `None` where it is not known.
    source: Option<String>,
}

impl Engine {
    /// Stores the value of one key under another, with its metadata and its expiry.
    ///
    /// The stored bytes are copied where they are: by the bucket itself, or on the local disk. A copy onto itself changes
    /// nothing. The copy is of one state of the source, whatever others do meanwhile.
    ///
    /// A redelivered copy ([`CopyOptions::redelivered`]) that finds its own object under the destination is answered. An
    /// unconditional one leaves an object alone that was written after its known start, and answers with it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Missing`] for a source without an object; [`ErrorKind::Precondition`]; [`ErrorKind::Abandoned`]; the
    /// errors of the backend. [`ErrorKind::Unavailable`] where only an unreachable bucket has the source.
    pub async fn copy(&self, source: &Key, destination: &Key, options: CopyOptions) -> Result<Receipt> {
        let copy = async {
            let copied = self.copy_uncounted(source, destination, &options).await?;
            Ok(Receipt::of(destination, self.0.kind, &copied.stored))
        };
        self.0.counters.measure(copy).await
    }

    /// Copies as [`Engine::copy`] does, and then removes exactly the state of the source that was copied.
    ///
    /// A value that somebody writes under the source meanwhile stays there. A redelivered move whose first run ended
    /// between the two steps removes what that run has copied, which the copy names ([`Attributes::copied_from`]). Where
    /// a newer object has replaced the copy, or prevents it, what is older than the move's known start is removed.
    ///
    /// # Errors
    ///
    /// As [`Engine::copy`]. A failure to remove the source leaves the value under both keys. [`ErrorKind::Precondition`]
    /// also for a redelivered move that cannot tell whether it has moved what the source has now.
    pub async fn rename(&self, source: &Key, destination: &Key, options: CopyOptions) -> Result<Receipt> {
        let rename = async {
            let copied = self.copy_uncounted(source, destination, &options).await?;
            let receipt = Receipt::of(destination, self.0.kind, &copied.stored);
            if source != destination {
                self.remove_copied(source, copied, &options).await?;
            }
            Ok(receipt)
        };
        self.0.counters.measure(rename).await
    }

    async fn copy_uncounted(&self, source: &Key, destination: &Key, options: &CopyOptions) -> Result<Copied> {
        let failed = |error: Error| error.during(Operation::Copy);
        for _ in 0..LOOKS {
            let mut write = PutOptions {
                condition: options.condition.clone(),
                commit_guard: options.commit_guard.clone(),
                ..PutOptions::default()
            };
            if let Some(again) = options.redelivered
                && source != destination
            {
                match self.look_at_copy(destination, options, again).await.map_err(failed)? {
                    Before::Done(stored) => {
                        return Ok(Copied { source: stored.copied_from.clone(), stored: *stored });
                    }
                    // What was copied has been replaced, so the only answer left is the state that replaced it.
                    Before::Overtaken(stored) if options.condition == Condition::Always => {
                        return Ok(Copied { stored: *stored, source: None });
                    }
                    Before::WriteIf(condition) if options.condition == Condition::Always => {
                        (write.condition, write.lenient) = (condition, true);
                    }
                    Before::Overtaken(_) | Before::WriteIf(_) | Before::Unknown => {}
                }
            }
            let seen = self.live(source).await.map_err(failed)?.ok_or_else(|| missing(source))?;
            if source == destination {
                options.condition.check(Operation::Copy, destination, Some(&seen))?;
                return Ok(Copied { stored: seen, source: None });
            }
            let copy_source = CopySource::of(source, &seen);
            let mut attributes = Attributes {
                operation_id: options.operation_id.clone(),
                stored_at: clock::stamp(),
                writer_id: None,
                info: ObjectInfo { legacy: seen.info.legacy, ..ObjectInfo::default() },
                generation: Attributes::new_generation(),
                copied_from: Some(copy_source.generation.clone()),
                ..seen
            };
            if self.0.backend.validate(destination, &attributes).is_err() {
                // Metadata that just fits leaves no room for the token.
                attributes.copied_from = None;
            }
            match self.0.backend.copy(&copy_source, destination, &attributes, &write).await {
                Ok(Some(stored)) => {
                    self.0.counters.stored(&stored);
                    return Ok(Copied { stored, source: Some(copy_source.generation) });
                }
                // The source, or what a redelivered copy replaces, has changed since it was looked at.
                Ok(None) => {}
                Err(error) if error.kind == ErrorKind::Precondition && write.condition != options.condition => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let why = "others keep changing the objects; try again when they are written less often";
        Err(Error::new(ErrorKind::Unavailable, Operation::Copy, Some(source), why))
    }

    /// Looks at the destination of a redelivered copy.
    async fn look_at_copy(&self, destination: &Key, options: &CopyOptions, again: Redelivered) -> Result<Before> {
        let present = match self.0.backend.stat(destination).await {
            // An object that cannot be read gives no answer; an unconditional copy repairs it.
            Err(error) if error.kind == ErrorKind::Integrity => return Ok(Before::Unknown),
            present => present?,
        };
        let Some(present) = present.filter(|present| !present.is_expired(Timestamp::now())) else {
            return Ok(if again.started_at.is_some() { Before::WriteIf(Condition::Absent) } else { Before::Unknown });
        };
        let is_own = options.operation_id.is_some() && options.operation_id == present.operation_id;
        let is_newer = again.started_at.is_some_and(|started_at| present.stored_at > started_at);
        if is_own && present.is_since(again.started_at) {
            self.0.backend.flush(destination).await?;
            return Ok(Before::Done(Box::new(present)));
        }
        if is_newer {
            // The source may be removed because of it.
            self.0.backend.flush(destination).await?;
            return Ok(Before::Overtaken(Box::new(present)));
        }
        Ok(match again.started_at {
            Some(_) => Before::WriteIf(Condition::Generation(present.generation)),
            None => Before::Unknown,
        })
    }

    /// Removes the state of the source that was copied. Another state was written later, and stays.
    async fn remove_copied(&self, source: &Key, copied: Copied, options: &CopyOptions) -> Result<()> {
        let is_copied = copied.source.is_some();
        let failed = |error: Error| {
            let error = error.during(Operation::Copy);
            let both = "the value is under the destination already, and still under the source; move it again";
            if is_copied { error.noting(both) } else { error }
        };
        let generation = match copied.source {
            Some(generation) => generation,
            None => match self.live(source).await.map_err(failed)? {
                None => return Ok(()),
                Some(seen) if is_older(&seen, options.redelivered) => seen.generation,
                Some(_) => return Err(doubtful(source)),
            },
        };
        let delete =
            DeleteOptions { generation: Some(generation), lenient: true, commit_guard: options.commit_guard.clone() };
        match self.0.backend.delete(source, &delete).await {
            Err(error) if error.kind == ErrorKind::Precondition => Ok(()),
            outcome => outcome.map(drop).map_err(failed),
        }
    }
}

/// What an earlier attempt of a copy has left under the destination.
enum Before {
    /// The copy.
    Done(Box<Attributes>),
    /// An object that was written after the copy began.
    Overtaken(Box<Attributes>),
    /// An older object, or none: the copy must run, and replace exactly that.
    WriteIf(Condition),
    /// Nothing that can be compared.
    Unknown,
}

/// Tells whether an object was written before the known start of a redelivered command.
fn is_older(seen: &Attributes, redelivered: Option<Redelivered>) -> bool {
    let started_at = redelivered.and_then(|again| again.started_at);
    started_at.is_some_and(|started_at| seen.stored_at <= started_at)
}

/// Makes the error of a redelivered move that finds a newer source, and no copy that tells what was moved.
fn doubtful(source: &Key) -> Error {
    let why = "the move came a second time, and whether it has moved the present value of this key is unknown: it was \
               written after the move began; compare both keys, and move it again if it has not been moved";
    Error::new(ErrorKind::Precondition, Operation::Copy, Some(source), why)
}

fn missing(key: &Key) -> Error {
    let why = "the key has no object; list the keys, or store a value under it";
    Error::new(ErrorKind::Missing, Operation::Copy, Some(key), why)
}
