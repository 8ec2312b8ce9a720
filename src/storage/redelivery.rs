//! Commands that came again without a record of how their first try ended.
//!
//! Each looks at the object first. What it then does names the generation it saw, so that look and deed are one step for
//! every other writer; whoever got in between is seen by the next look. Where a bucket that is away shows nothing, an
//! unconditional one is deferred: the fallback takes it under the stamp of its start, and its synchronization looks.

use jiff::Timestamp;

use super::{
    Attributes, Condition, Delete, DeleteOptions, Engine, Error, ErrorKind, Key, Landing, Object, Operation, Put,
    Receipt, Redelivered, Result, StoreOptions,
};

/// What to do with a redelivered command, as the object that is there now tells.
enum Verdict {
    /// The object is this command's own write.
    Own(Box<Attributes>),
    /// The object was written after this command began.
    Overtaken,
    /// The object is older, or none is there: the command is to run.
    Run(Option<Box<Attributes>>),
}

impl Engine {
    pub(super) async fn store_again(
        &self,
        key: &Key,
        object: Object,
        how: Put,
        again: Redelivered,
        receipt: Receipt,
    ) -> Result<Receipt> {
        let mine = Some(&object.attributes);
        let unconditional = how.condition == Condition::Always;
        let mut unseen = false;
        // Each turn but the last means that another writer got in between look and write, so somebody always advances, or
        // that the bucket went away.
        loop {
            let verdict = if unseen { Ok(Verdict::Run(None)) } else { self.verdict(key, mine, again).await };
            let seen = match verdict {
                Ok(Verdict::Own(attributes)) => return Ok(Receipt::of(key, self.0.place, &attributes)),
                Ok(Verdict::Overtaken) if unconditional => return Ok(receipt),
                Ok(Verdict::Overtaken) => None,
                Ok(Verdict::Run(seen)) => Some(seen),
                // What cannot be read tells nothing; an unconditional write repairs it.
                Err(error) if error.kind == ErrorKind::Integrity => None,
                Err(error) if unconditional && self.can_wait(&error) => {
                    unseen = true;
                    None
                }
                Err(error) => return Err(error.during(Operation::Store)),
            };
            let condition = match seen {
                Some(seen) if unconditional && again.started_at.is_some() && !unseen => {
                    let live = seen.filter(|seen| !seen.is_expired(Timestamp::now()));
                    live.map_or(Condition::Absent, |live| Condition::Generation(live.generation))
                }
                _ => how.condition.clone(),
            };
            let guarded = condition != how.condition;
            let (mut object, mut receipt) = (object.clone(), receipt.clone());
            let start = again.started_at.filter(|_| unseen).map(whole_microseconds);
            if let Some(start) = start {
                (object.attributes.stored_at, receipt.stored_at) = (start, start);
            }
            // A guard of our own only narrows a window; the caller's condition must hold or be refused.
            let put = Put { condition, lenient: guarded, fence: how.fence.clone(), deferred: start.is_some() };
            match self.0.backend.put(key, object, put).await {
                Ok(landing) => return Ok(receipt.landed(landing)),
                Err(error) if error.kind == ErrorKind::Precondition && (guarded || start.is_some()) => unseen = false,
                Err(error) if guarded && self.can_wait(&error) => unseen = true,
                Err(error) if error.kind == ErrorKind::Precondition => {
                    // The first try may still have been under way in a worker that lost its session.
                    return match self.verdict(key, mine, again).await {
                        Ok(Verdict::Own(attributes)) => Ok(Receipt::of(key, self.0.place, &attributes)),
                        Err(unknown) if unknown.is_transient() => Err(unknown.during(Operation::Store)),
                        _ => Err(error),
                    };
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Answers a redelivered store whose value is not there any more with the object it wrote, if it did.
    ///
    /// As in [`is_same_write`], but by the command's identity alone: the value that would be compared is gone.
    pub(super) async fn written_before(&self, key: &Key, options: &StoreOptions) -> Result<Option<Receipt>> {
        let (Some(again), Some(id)) = (options.redelivered, options.operation_id.as_deref()) else { return Ok(None) };
        let own = self
            .live(key)
            .await
            .map_err(|error| error.during(Operation::Store))?
            .filter(|present| present.operation_id.as_deref() == Some(id) && is_since(present, again));
        let Some(own) = own else { return Ok(None) };
        self.0.backend.flush(key).await?;
        Ok(Some(Receipt::of(key, self.0.place, &own)))
    }

    /// Looks at the object; what is answered as done without doing it is on stable storage then.
    async fn verdict(&self, key: &Key, mine: Option<&Attributes>, again: Redelivered) -> Result<Verdict> {
        let verdict = self.look(key, mine, again).await?;
        let done = match verdict {
            Verdict::Own(_) | Verdict::Overtaken => true,
            Verdict::Run(None) => mine.is_none(),
            Verdict::Run(Some(_)) => false,
        };
        if done {
            self.0.backend.flush(key).await?;
        }
        Ok(verdict)
    }

    async fn look(&self, key: &Key, mine: Option<&Attributes>, again: Redelivered) -> Result<Verdict> {
        let Some(attributes) = self.0.backend.stat(key).await? else {
            return Ok(Verdict::Run(None));
        };
        if mine.is_some_and(|mine| is_same_write(mine, &attributes, again)) {
            // Its own write that has expired is not there, so there is nothing to answer: it runs once more.
            let expired = attributes.is_expired(Timestamp::now());
            let own = Box::new(attributes);
            return Ok(if expired { Verdict::Run(Some(own)) } else { Verdict::Own(own) });
        }
        if again.started_at.is_some_and(|started_at| attributes.stored_at > started_at) {
            return Ok(Verdict::Overtaken);
        }
        Ok(Verdict::Run(Some(Box::new(attributes))))
    }

    pub(super) async fn delete_uncounted(&self, key: &Key, options: DeleteOptions) -> Result<Landing> {
        let DeleteOptions { generation, redelivered, fence } = options;
        let known = redelivered.filter(|again| again.started_at.is_some());
        let start = known.and_then(|again| again.started_at).map(whole_microseconds);
        let mut unseen = false;
        loop {
            let seen = match known.filter(|_| !unseen) {
                None => None,
                Some(again) => match self.verdict(key, None, again).await {
                    Ok(Verdict::Run(Some(seen))) => Some(seen),
                    Ok(Verdict::Own(_) | Verdict::Overtaken | Verdict::Run(None)) => return self.landing(key).await,
                    Err(error) if error.kind == ErrorKind::Integrity => None,
                    Err(error) if generation.is_none() && self.can_wait(&error) => {
                        unseen = true;
                        None
                    }
                    Err(error) => return Err(error.during(Operation::Delete)),
                },
            };
            let guarded = generation.is_none() && seen.is_some();
            let expected = generation.clone().or_else(|| seen.map(|seen| seen.generation));
            let deferred = start.filter(|_| unseen);
            let how = Delete { generation: expected, lenient: guarded, fence: fence.clone(), deferred };
            match self.0.backend.delete(key, how).await {
                Ok(removal) => return Ok(removal.landing),
                Err(error) if error.kind == ErrorKind::Precondition && (guarded || unseen) => unseen = false,
                Err(error) if guarded && self.can_wait(&error) => unseen = true,
                Err(error) if error.kind == ErrorKind::Precondition => {
                    // Another state that has expired is not there either.
                    return if self.live(key).await?.is_none() { Ok(Landing::Home) } else { Err(error) };
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Tells whether what the bucket cannot decide now may be left to a fallback.
    fn can_wait(&self, error: &Error) -> bool {
        error.is_transient() && self.0.fallback.is_some()
    }

    /// Tells where the key's newest state is.
    async fn landing(&self, key: &Key) -> Result<Landing> {
        match &self.0.fallback {
            Some(fallback) if fallback.holds(key).await? => Ok(Landing::Overlay),
            _ => Ok(Landing::Home),
        }
    }
}

/// Returns the time as writes are stamped.
fn whole_microseconds(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

/// The identity holds the command as it was sent. What a reference names may have changed since, and what was written before this
/// run was written by an equal command: each is another write.
///
/// A time to live counts from each try, so of two expiries only whether there is one can be compared.
pub(super) fn is_same_write(mine: &Attributes, present: &Attributes, again: Redelivered) -> bool {
    mine.operation_id.is_some()
        && mine.operation_id == present.operation_id
        && (mine.kind, mine.size, mine.checksum) == (present.kind, present.size, present.checksum)
        && mine.content_type == present.content_type
        && mine.expires_at.is_some() == present.expires_at.is_some()
        && mine.metadata.as_ref().map(|text| text.get()) == present.metadata.as_ref().map(|text| text.get())
        && is_since(present, again)
}

/// Writes are stamped in whole microseconds, and one may fall into the microsecond its command began in.
fn is_since(present: &Attributes, again: Redelivered) -> bool {
    again.started_at.is_none_or(|began| present.stored_at.as_microsecond() >= began.as_microsecond())
}
