//! Redelivered commands without a record of how their first attempt ended.
//!
//! Each command looks at the object first, makes a [`Plan`] and carries the plan out. A planned write names the
//! generation that was seen, so that look and write are one step for every other writer. A writer that got in between
//! is seen by the next look. Where the bucket cannot be reached, an unconditional write is deferred: the overlay stores
//! it with the stamp of its first attempt, and the sync loop compares that stamp with what the bucket has received
//! since.

use jiff::Timestamp;

use crate::storage::backend::{Condition, Deferral, DeleteOptions, PutOptions};
use crate::storage::engine::{DeleteRequest, Engine, Redelivered, StoreOptions};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::{Attributes, Key, Object};

/// The relation of the present object to a redelivered command.
enum Seen {
    /// The object is this command's own write.
    Own(Box<Attributes>),
    /// The object was written after this command began.
    Newer,
    /// The object is older, or the key has none: the command must run.
    Older(Option<Box<Attributes>>),
}

/// What to do with a redelivered write or delete.
enum Plan<A> {
    /// The command has been done, and this is its answer.
    Answer(A),
    /// The command is carried out if the condition holds. `ours` is true where the caller gave no condition; then the
    /// condition only narrows a window.
    WriteIf { condition: Condition, ours: bool },
    /// The command is left to the overlay, with the stamp of its first attempt.
    Defer(Timestamp),
}

impl Engine {
    /// Carries a redelivered store out unless it was done before, and returns the stored attributes.
    pub(super) async fn store_again(
        &self,
        key: &Key,
        object: &Object,
        options: &PutOptions,
        again: Redelivered,
    ) -> Result<Attributes> {
        let mut plan = self.plan_store(key, &object.attributes, &options.condition, again).await?;
        // Another turn means that another writer got in between look and write, so some writer always advances, or that
        // the bucket became unreachable.
        loop {
            let error = match plan {
                Plan::Answer(stored) => return Ok(stored),
                Plan::Defer(started_at) => {
                    let attributes = Attributes { stored_at: started_at, ..object.attributes.clone() };
                    let stamped = Object { attributes, payload: object.payload.clone() };
                    match self.deferral(Operation::Store, key)?.defer_put(key, &stamped, &options.commit_guard).await {
                        Err(error) if error.kind == ErrorKind::Precondition => None,
                        outcome => return outcome,
                    }
                }
                Plan::WriteIf { condition, ours } => {
                    // A caller's condition must hold or be refused.
                    let options = PutOptions { condition, lenient: ours, commit_guard: options.commit_guard.clone() };
                    match self.0.backend.put(key, object, &options).await {
                        Err(error) if ours && error.kind == ErrorKind::Precondition => None,
                        Err(error) if ours && self.can_wait(&error) => Some(error),
                        Err(error) if error.kind == ErrorKind::Precondition => {
                            // The first attempt may still have been under way in a worker that lost its session.
                            return match self.look_and_flush(key, Some(&object.attributes), again).await {
                                Ok(Seen::Own(stored)) => Ok(*stored),
                                Err(unknown) if unknown.is_transient() => Err(unknown.during(Operation::Store)),
                                _ => Err(error),
                            };
                        }
                        outcome => return outcome,
                    }
                }
            };
            plan = match error {
                Some(_) => unseen(again),
                None => self.plan_store(key, &object.attributes, &options.condition, again).await?,
            };
        }
    }

    /// Looks at the object and plans a redelivered store.
    async fn plan_store(
        &self,
        key: &Key,
        mine: &Attributes,
        condition: &Condition,
        again: Redelivered,
    ) -> Result<Plan<Attributes>> {
        let unconditional = *condition == Condition::Always;
        let as_asked = || Plan::WriteIf { condition: condition.clone(), ours: false };
        Ok(match self.look_and_flush(key, Some(mine), again).await {
            Ok(Seen::Own(stored)) => Plan::Answer(*stored),
            // The object of this command was replaced, so the only answer left is what the command would store.
            Ok(Seen::Newer) if unconditional => Plan::Answer(mine.clone()),
            Ok(Seen::Older(present)) if unconditional && again.started_at.is_some() => {
                let live = present.filter(|present| !present.is_expired(Timestamp::now()));
                let condition = live.map_or(Condition::Absent, |live| Condition::Generation(live.generation));
                Plan::WriteIf { condition, ours: true }
            }
            Ok(Seen::Newer | Seen::Older(_)) => as_asked(),
            // An object that cannot be read gives no answer; an unconditional write repairs it.
            Err(error) if error.kind == ErrorKind::Integrity => as_asked(),
            Err(error) if unconditional && self.can_wait(&error) => unseen(again),
            Err(error) => return Err(error.during(Operation::Store)),
        })
    }

    /// Carries a delete out unless it is redelivered and was done before; tells whether it has still to be sent to the
    /// bucket.
    pub(super) async fn delete_uncounted(&self, key: &Key, request: DeleteRequest) -> Result<bool> {
        let DeleteRequest { generation, redelivered, commit_guard } = request;
        // Without a known start, a redelivered delete cannot tell which object is newer.
        let known = redelivered.filter(|again| again.started_at.is_some());
        let mut plan = self.plan_delete(key, generation.as_deref(), known).await?;
        loop {
            let error = match plan {
                Plan::Answer(pending) => return Ok(pending),
                Plan::Defer(started_at) => {
                    let deferral = self.deferral(Operation::Delete, key)?;
                    match deferral.defer_delete(key, started_at, &commit_guard).await {
                        Err(error) if error.kind == ErrorKind::Precondition => None,
                        outcome => return outcome.map(|removal| removal.pending),
                    }
                }
                Plan::WriteIf { condition, ours } => {
                    let generation = match condition {
                        Condition::Generation(generation) => Some(generation),
                        Condition::Always | Condition::Absent => None,
                    };
                    let options = DeleteOptions { generation, lenient: ours, commit_guard: commit_guard.clone() };
                    match self.0.backend.delete(key, &options).await {
                        Err(error) if ours && error.kind == ErrorKind::Precondition => None,
                        Err(error) if ours && self.can_wait(&error) => Some(error),
                        Err(error) if error.kind == ErrorKind::Precondition => {
                            // An object in another state that has expired is not there either.
                            return if self.live(key).await?.is_none() { Ok(false) } else { Err(error) };
                        }
                        outcome => return outcome.map(|removal| removal.pending),
                    }
                }
            };
            plan = match (error, known) {
                (Some(_), Some(again)) => unseen(again),
                _ => self.plan_delete(key, generation.as_deref(), known).await?,
            };
        }
    }

    /// Plans a delete. Only a redelivered delete looks at the object.
    async fn plan_delete(&self, key: &Key, generation: Option<&str>, again: Option<Redelivered>) -> Result<Plan<bool>> {
        let asked = generation.map_or(Condition::Always, |generation| Condition::Generation(generation.to_owned()));
        let as_asked = Plan::WriteIf { condition: asked, ours: false };
        let Some(again) = again else { return Ok(as_asked) };
        Ok(match self.look_and_flush(key, None, again).await {
            Ok(Seen::Older(Some(present))) if generation.is_none() => {
                Plan::WriteIf { condition: Condition::Generation(present.generation), ours: true }
            }
            Ok(Seen::Older(Some(_))) => as_asked,
            Ok(Seen::Own(_) | Seen::Newer | Seen::Older(None)) => Plan::Answer(match &self.0.deferral {
                Some(deferral) => deferral.is_pending(key).await?,
                None => false,
            }),
            Err(error) if error.kind == ErrorKind::Integrity => as_asked,
            Err(error) if generation.is_none() && self.can_wait(&error) => unseen(again),
            Err(error) => return Err(error.during(Operation::Delete)),
        })
    }

    /// Finds the object that a redelivered store wrote at its first attempt, for a store whose source is gone.
    ///
    /// The object is recognized by the identity of the command alone, since there is no value left to compare.
    pub(super) async fn written_before(&self, key: &Key, options: &StoreOptions) -> Result<Option<Attributes>> {
        let (Some(again), Some(id)) = (options.redelivered, options.operation_id.as_deref()) else { return Ok(None) };
        let present = self.live(key).await.map_err(|error| error.during(Operation::Store))?;
        let own =
            present.filter(|object| object.operation_id.as_deref() == Some(id) && object.is_since(again.started_at));
        if own.is_some() {
            self.0.backend.flush(key).await?;
        }
        Ok(own)
    }

    /// Looks at the object and, where the command needs no new write, puts the present state on stable storage.
    async fn look_and_flush(&self, key: &Key, mine: Option<&Attributes>, again: Redelivered) -> Result<Seen> {
        let seen = self.look(key, mine, again).await?;
        let done = match seen {
            Seen::Own(_) | Seen::Newer => true,
            Seen::Older(None) => mine.is_none(),
            Seen::Older(Some(_)) => false,
        };
        if done {
            self.0.backend.flush(key).await?;
        }
        Ok(seen)
    }

    async fn look(&self, key: &Key, mine: Option<&Attributes>, again: Redelivered) -> Result<Seen> {
        let Some(present) = self.0.backend.stat(key).await? else { return Ok(Seen::Older(None)) };
        if mine.is_some_and(|mine| mine.is_same_write(&present, again.started_at)) {
            // An expired object counts as absent, so there is nothing to answer and the command runs once more.
            let expired = present.is_expired(Timestamp::now());
            let own = Box::new(present);
            return Ok(if expired { Seen::Older(Some(own)) } else { Seen::Own(own) });
        }
        if again.started_at.is_some_and(|started_at| present.stored_at > started_at) {
            return Ok(Seen::Newer);
        }
        Ok(Seen::Older(Some(Box::new(present))))
    }

    /// Tells whether a command that the bucket cannot decide now may be left to an overlay.
    fn can_wait(&self, error: &Error) -> bool {
        error.is_transient() && self.0.deferral.is_some()
    }

    fn deferral(&self, operation: Operation, key: &Key) -> Result<&dyn Deferral> {
        self.0.deferral.as_deref().ok_or_else(|| {
            let why =
                "the bucket cannot be reached, and there is no fallback that could keep the command; try again later";
            Error::new(ErrorKind::Unavailable, operation, Some(key), why)
        })
    }
}

/// Plans an unconditional command that cannot look at the object. Without a known start it runs as if for the first
/// time.
fn unseen<A>(again: Redelivered) -> Plan<A> {
    match again.started_at {
        // Writes are stamped in whole microseconds.
        Some(start) => Plan::Defer(Timestamp::from_microsecond(start.as_microsecond()).unwrap_or(start)),
        None => Plan::WriteIf { condition: Condition::Always, ours: false },
    }
}
