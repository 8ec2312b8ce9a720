//! Commands that came again without a record of how their first attempt ended.
//!
//! Each looks at the object first, makes a [`Plan`] and carries it out. A planned write names the generation that was seen,
//! so that look and write are one step for every other writer; a writer who got in between is seen by the next look. Where a
//! bucket that is away shows nothing, an unconditional write is deferred: the overlay takes it under the stamp of its first
//! attempt, and its synchronization compares it with what the bucket has received since.

use jiff::Timestamp;

use crate::storage::backend::{Condition, Deferral, DeleteOptions, PutOptions};
use crate::storage::engine::{DeleteRequest, Engine, Redelivered, StoreOptions};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::{Attributes, Key, Object};

/// How the object that is there now stands to a redelivered command.
enum Seen {
    /// The object is this command's own write.
    Own(Box<Attributes>),
    /// The object was written after this command began.
    Newer,
    /// The object is older, or the key has none: the command is to run.
    Older(Option<Box<Attributes>>),
}

/// What to do with a redelivered write or delete.
enum Plan<A> {
    /// It has been done: this is its answer.
    Answer(A),
    /// It is done if the condition holds. The condition is ours where the caller gave none, and then it only narrows a window.
    WriteIf { condition: Condition, ours: bool },
    /// It is left to the overlay, under the stamp of its first attempt.
    Defer(Timestamp),
}

impl Engine {
    /// Carries a redelivered store out, unless it was done before; returns what is stored of it.
    pub(super) async fn store_again(
        &self,
        key: &Key,
        object: &Object,
        options: &PutOptions,
        again: Redelivered,
    ) -> Result<Attributes> {
        let mut plan = self.plan_store(key, &object.attributes, &options.condition, again).await?;
        // Each turn but the last means that another writer got in between look and write, so somebody always advances, or
        // that the bucket went away.
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

    /// Looks at the object and plans what a redelivered store does.
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
            // What this command wrote was replaced, so its answer can only be what it would store.
            Ok(Seen::Newer) if unconditional => Plan::Answer(mine.clone()),
            Ok(Seen::Older(present)) if unconditional && again.started_at.is_some() => {
                let live = present.filter(|present| !present.is_expired(Timestamp::now()));
                let condition = live.map_or(Condition::Absent, |live| Condition::Generation(live.generation));
                Plan::WriteIf { condition, ours: true }
            }
            Ok(Seen::Newer | Seen::Older(_)) => as_asked(),
            // What cannot be read tells nothing; an unconditional write repairs it.
            Err(error) if error.kind == ErrorKind::Integrity => as_asked(),
            Err(error) if unconditional && self.can_wait(&error) => unseen(again),
            Err(error) => return Err(error.during(Operation::Store)),
        })
    }

    /// Carries a delete out, unless it is a redelivered one that was done before; tells whether it has still to be sent.
    pub(super) async fn delete_uncounted(&self, key: &Key, request: DeleteRequest) -> Result<bool> {
        let DeleteRequest { generation, redelivered, commit_guard } = request;
        // Without a known start a repeated delete cannot tell what is newer.
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

    /// Plans what a delete does; only a redelivered one looks at the object.
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

    /// Answers a redelivered store whose source is gone with the object it wrote, if it did.
    ///
    /// The object is recognized by the command's identity alone: the value that would be compared is gone.
    pub(super) async fn written_before(&self, key: &Key, options: &StoreOptions) -> Result<Option<Attributes>> {
        let (Some(again), Some(id)) = (options.redelivered, options.operation_id.as_deref()) else { return Ok(None) };
        let present = self.live(key).await.map_err(|error| error.during(Operation::Store))?;
        let own = present.filter(|it| it.operation_id.as_deref() == Some(id) && it.is_since(again.started_at));
        if own.is_some() {
            self.0.backend.flush(key).await?;
        }
        Ok(own)
    }

    /// Looks at the object; what will be answered as done without doing it is on stable storage then.
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
            // Its own write that has expired is not there, so there is nothing to answer: it runs once more.
            let expired = present.is_expired(Timestamp::now());
            let own = Box::new(present);
            return Ok(if expired { Seen::Older(Some(own)) } else { Seen::Own(own) });
        }
        if again.started_at.is_some_and(|started_at| present.stored_at > started_at) {
            return Ok(Seen::Newer);
        }
        Ok(Seen::Older(Some(Box::new(present))))
    }

    /// Tells whether what the bucket cannot decide now may be left to an overlay.
    fn can_wait(&self, error: &Error) -> bool {
        error.is_transient() && self.0.deferral.is_some()
    }

    fn deferral(&self, operation: Operation, key: &Key) -> Result<&dyn Deferral> {
        self.0.deferral.as_deref().ok_or_else(|| {
            let why = "the bucket is away, and there is no fallback that could keep the command; try again later";
            Error::new(ErrorKind::Unavailable, operation, Some(key), why)
        })
    }
}

/// Plans what an unconditional command does that cannot look: one whose start is unknown runs as if it came first.
fn unseen<A>(again: Redelivered) -> Plan<A> {
    match again.started_at {
        // Writes are stamped in whole microseconds.
        Some(start) => Plan::Defer(Timestamp::from_microsecond(start.as_microsecond()).unwrap_or(start)),
        None => Plan::WriteIf { condition: Condition::Always, ours: false },
    }
}
