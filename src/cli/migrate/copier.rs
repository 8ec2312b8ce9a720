//! Copies one value from one place to another, completely and verified or not at all.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::conversion::Conversion;
use crate::storage::{
    Attributes, Backend, Condition, Error, ErrorKind, GetOptions, Key, LegacyFile, Operation, PutOptions, Result,
    format_timestamp,
};

/// Copies values from one place to another, and never removes a value.
#[derive(Clone, Debug)]
pub(super) struct Copier {
    pub(super) source: Arc<dyn Backend>,
    pub(super) target: Arc<dyn Backend>,
    /// Tells whether a different value at the target is replaced.
    pub(super) overwrite: bool,
    /// Tells whether nothing is written.
    pub(super) dry_run: bool,
    /// Tells whether each copy is read again, because the target does not verify stored bytes itself.
    pub(super) read_back: bool,
    /// The function that names the parts of a foreign object that the target cannot hold.
    pub(super) lost: fn(&Attributes) -> Vec<String>,
    /// The conversion that is made on the way, if any.
    pub(super) conversion: Option<Arc<Conversion>>,
}

/// The outcome for one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CopyOutcome {
    /// The value was copied, or would be; `lost` names the parts of a foreign object that were not copied, and `legacy` is
    /// what could not be told for sure of a converted file.
    Copied { bytes: u64, lost: Vec<String>, legacy: LegacyFile },
    /// The target has the same value already.
    AlreadyThere,
    /// The source does not have the value any more: it was deleted meanwhile, or has expired.
    Missing,
}

impl Copier {
    /// Copies the value of a key with all its attributes.
    ///
    /// Only a value that was seen at the target before is replaced. A value that somebody stores there in the meantime
    /// stays, and the copy fails.
    pub(super) async fn copy(&self, key: &Key) -> Result<CopyOutcome> {
        let conversion = self.conversion.as_ref().filter(|_| !self.dry_run);
        let lock = match conversion {
            Some(conversion) => conversion.lock(key).await?,
            None => None,
        };
        let outcome = self.copy_value(key).await?;
        if let (Some(conversion), Some(lock), true) = (conversion, lock, outcome != CopyOutcome::Missing) {
            conversion.finish(key, lock, &*self.target).await?;
        }
        Ok(outcome)
    }

    async fn copy_value(&self, key: &Key) -> Result<CopyOutcome> {
        let Some(wanted) = live(self.source.stat(key).await?) else { return Ok(CopyOutcome::Missing) };
        let wanted = self.converted(wanted);
        let condition = match self.target.stat(key).await.map(live) {
            Ok(Some(present)) if self.is_same(&present, &wanted) => return Ok(CopyOutcome::AlreadyThere),
            Ok(Some(present)) if self.overwrite => Condition::Generation(present.generation),
            Ok(Some(present)) => return Err(self.conflict(key, &present)),
            Ok(None) => Condition::Absent,
            // A damaged value at the target cannot be compared, and nothing is lost when it is replaced.
            Err(error) if error.kind == ErrorKind::Integrity && self.overwrite => Condition::Always,
            Err(error) => return Err(error),
        };
        self.target.validate(key, &wanted)?;
        let options = GetOptions { spooled: true, ..GetOptions::default() };
        if self.dry_run {
            // Only the value itself tells whether it can be converted.
            if self.conversion.is_some() {
                self.source.get(key, options).await?;
            }
            return Ok(self.copied(&wanted, &wanted));
        }
        let Some(mut object) = self.source.get(key, options).await? else { return Ok(CopyOutcome::Missing) };
        // The answer with the bytes may hold fewer headers than the answer of `stat`.
        if object.attributes.generation == wanted.generation {
            object.attributes.foreign.headers = wanted.foreign.headers;
        }
        object.attributes = self.converted(object.attributes);
        let wanted = object.attributes.clone();
        // Some stores enforce no condition on an upload in parts; a second `stat` must do then.
        let options = PutOptions { condition, lenient: true, ..PutOptions::default() };
        match self.target.put(key, &object, &options).await {
            Ok(_) => self.verify(key, &wanted).await,
            // When the answer to an earlier attempt was lost, the present value may be that of this copy.
            Err(error) if error.kind == ErrorKind::Precondition => match live(self.target.stat(key).await?) {
                Some(present) if self.is_same(&present, &wanted) => Ok(self.copied(&wanted, &present)),
                Some(present) => Err(self.conflict(key, &present)),
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Compares the copy at the target with the value that was read at the source.
    async fn verify(&self, key: &Key, wanted: &Attributes) -> Result<CopyOutcome> {
        let kept = if self.read_back {
            let options = GetOptions { spooled: true, ..GetOptions::default() };
            self.target.get(key, options).await?.map(|object| object.attributes)
        } else {
            self.target.stat(key).await?
        };
        match kept {
            Some(kept) if self.is_same(&kept, wanted) => Ok(self.copied(wanted, &kept)),
            Some(kept) => Err(self.conflict(key, &kept)),
            // The copy may have expired in the meantime.
            None if wanted.is_expired(Timestamp::now()) => Ok(CopyOutcome::Missing),
            None => {
                let why = format!("the copy was removed from {} by somebody else; run it again", self.target);
                Err(Error::new(ErrorKind::Precondition, Operation::Store, Some(key), why))
            }
        }
    }

    /// Returns the outcome of a copy, with the headers and parts that the target does not have.
    fn copied(&self, wanted: &Attributes, kept: &Attributes) -> CopyOutcome {
        let (wanted_headers, kept_headers) = (&wanted.foreign.headers, &kept.foreign.headers);
        let changed = wanted_headers.iter().filter(|(name, value)| kept_headers.get(*name) != Some(value));
        let lost: BTreeSet<String> = changed.map(|(name, _)| name.clone()).chain((self.lost)(wanted)).collect();
        let legacy = wanted.info.legacy.unwrap_or_default();
        CopyOutcome::Copied { bytes: wanted.stored_size, lost: lost.into_iter().collect(), legacy }
    }

    fn converted(&self, attributes: Attributes) -> Attributes {
        match &self.conversion {
            Some(conversion) => conversion.converted(attributes),
            None => {
                let mut attributes = attributes;
                // The target receives the object now.
                if let Some(envelope) = &mut attributes.encryption {
                    envelope.received_at = None;
                }
                attributes
            }
        }
    }

    /// Tells whether two values are the same, by generation and bytes; copies have equal generations on purpose.
    ///
    /// A conversion may store other bytes for the same value.
    fn is_same(&self, one: &Attributes, other: &Attributes) -> bool {
        let bytes = |attributes: &Attributes| match self.conversion {
            Some(_) => (attributes.size, attributes.checksum),
            None => (attributes.stored_size, attributes.stored_checksum),
        };
        one.generation == other.generation && bytes(one) == bytes(other)
    }

    fn conflict(&self, key: &Key, present: &Attributes) -> Error {
        let written = format_timestamp(present.stored_at);
        let remedy = if self.overwrite {
            "it was stored meanwhile; run it again to replace that too"
        } else {
            "replace it with --overwrite, or move it away"
        };
        let (target, size) = (&self.target, present.size);
        let why = format!("{target} has another value there, of {size} bytes, written {written}; {remedy}");
        Error::new(ErrorKind::Precondition, Operation::Store, Some(key), why)
    }
}

fn live(attributes: Option<Attributes>) -> Option<Attributes> {
    attributes.filter(|attributes| !attributes.tombstone && !attributes.is_expired(Timestamp::now()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::tests::Forwarding;
    use crate::storage::{Checksum, Kind, Memory, Object};

    fn object(text: &'static str) -> Object {
        let payload = bytes::Bytes::from_static(text.as_bytes());
        let (checksum, size) = (Checksum::of(&payload), payload.len() as u64);
        let attributes = Attributes {
            generation: format!("generation of {text}"),
            ..Attributes::new(Kind::Text, "text/plain".to_owned(), size, checksum)
        };
        Object { attributes, payload: payload.into() }
    }

    #[tokio::test]
    async fn a_value_stored_during_the_copy_stays() {
        let key = Key::parse("k").unwrap();
        for before in [None, Some("older")] {
            let target = Arc::new(Memory::new());
            if let Some(before) = before {
                target.put(&key, &object(before), &PutOptions::default()).await.unwrap();
            }
            let inner = Arc::new(Memory::new());
            inner.put(&key, &object("ours"), &PutOptions::default()).await.unwrap();
            let (written, it) = (Arc::clone(&target), key.clone());
            let source = Forwarding::new(inner, move |operation| {
                let (target, key) = (Arc::clone(&written), it.clone());
                Box::pin(async move {
                    if operation == Operation::Retrieve {
                        target.put(&key, &object("theirs"), &PutOptions::default()).await.unwrap();
                    }
                })
            });
            let copier = Copier {
                source: Arc::new(source),
                target: Arc::<Memory>::clone(&target),
                overwrite: true,
                dry_run: false,
                read_back: true,
                lost: |_| Vec::new(),
                conversion: None,
            };
            let error = copier.copy(&key).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Precondition);
            assert!(error.to_string().contains("run it again to replace that too"), "{error}");
            let kept = target.stat(&key).await.unwrap().unwrap();
            assert_eq!(kept.generation, "generation of theirs");
        }
    }
}
