//! Copies one value from one place to another, whole and verified or not at all.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

use crate::storage::{
    Attributes, Backend, Condition, Error, ErrorKind, GetOptions, Key, Operation, PutOptions, Result, format_timestamp,
};

/// Copies values between two places; never removes one.
#[derive(Clone, Debug)]
pub(super) struct Mover {
    pub(super) source: Arc<dyn Backend>,
    pub(super) target: Arc<dyn Backend>,
    /// Another value at the target is replaced.
    pub(super) overwrite: bool,
    /// Nothing is written.
    pub(super) dry_run: bool,
    /// What was written is read again: the target does not say by itself that it has kept it whole.
    pub(super) read_back: bool,
    /// Names what another tool said of its object and the target has no place for.
    pub(super) lost: fn(&Attributes) -> Vec<String>,
}

/// What became of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// So many bytes were copied, or would be, and this of what another tool said beside them was not.
    Copied { bytes: u64, lost: Vec<String> },
    /// The target has this very value already.
    There,
    /// The source has it no more: deleted meanwhile, or expired.
    Gone,
}

impl Mover {
    /// Copies the value of a key with all its attributes.
    ///
    /// Only what was seen at the target is replaced: what somebody stores there in between stays, and is a failure.
    pub(super) async fn copy(&self, key: &Key) -> Result<Moved> {
        let Some(wanted) = live(self.source.stat(key).await?) else { return Ok(Moved::Gone) };
        let condition = match self.target.stat(key).await.map(live) {
            Ok(Some(present)) if is_same(&present, &wanted) => return Ok(Moved::There),
            Ok(Some(present)) if self.overwrite => Condition::Generation(present.generation),
            Ok(Some(present)) => return Err(self.conflict(key, &present)),
            Ok(None) => Condition::Absent,
            // What is damaged there cannot be compared; to replace it loses nothing.
            Err(error) if error.kind == ErrorKind::Integrity && self.overwrite => Condition::Always,
            Err(error) => return Err(error),
        };
        self.target.validate(key, &wanted)?;
        if self.dry_run {
            return Ok(self.copied(&wanted, &wanted));
        }
        let want = GetOptions { spooled: true, ..GetOptions::default() };
        let Some(mut object) = self.source.get(key, want).await? else { return Ok(Moved::Gone) };
        // What comes with the bytes may say less than what was asked for alone.
        if object.attributes.generation == wanted.generation {
            object.attributes.foreign.headers = wanted.foreign.headers;
        }
        let wanted = object.attributes.clone();
        // Some stores enforce no condition on a value in several parts; a second look is the best there is then.
        let how = PutOptions { condition, lenient: true, ..PutOptions::default() };
        match self.target.put(key, &object, &how).await {
            Ok(_) => self.verify(key, &wanted).await,
            // The answer to an earlier attempt may have got lost, and then what is in the way is our own.
            Err(error) if error.kind == ErrorKind::Precondition => match live(self.target.stat(key).await?) {
                Some(present) if is_same(&present, &wanted) => Ok(self.copied(&wanted, &present)),
                Some(present) => Err(self.conflict(key, &present)),
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Compares what the target has with what was read at the source.
    async fn verify(&self, key: &Key, wanted: &Attributes) -> Result<Moved> {
        let kept = if self.read_back {
            let want = GetOptions { spooled: true, ..GetOptions::default() };
            self.target.get(key, want).await?.map(|object| object.attributes)
        } else {
            self.target.stat(key).await?
        };
        match kept {
            Some(kept) if is_same(&kept, wanted) => Ok(self.copied(wanted, &kept)),
            Some(kept) => Err(self.conflict(key, &kept)),
            // It may have expired on the way.
            None if wanted.is_expired(Timestamp::now()) => Ok(Moved::Gone),
            None => {
                let why = format!("the copy was removed from {} by somebody else; run it again", self.target);
                Err(Error::new(ErrorKind::Precondition, Operation::Store, Some(key), why))
            }
        }
    }

    /// Says what was copied, and which of the headers did not arrive or has no place at the target.
    fn copied(&self, wanted: &Attributes, kept: &Attributes) -> Moved {
        let (wanted_headers, kept_headers) = (&wanted.foreign.headers, &kept.foreign.headers);
        let changed = wanted_headers.iter().filter(|(name, value)| kept_headers.get(*name) != Some(value));
        let lost: BTreeSet<String> = changed.map(|(name, _)| name.clone()).chain((self.lost)(wanted)).collect();
        Moved::Copied { bytes: wanted.stored_size, lost: lost.into_iter().collect() }
    }

    fn conflict(&self, key: &Key, present: &Attributes) -> Error {
        let written = format_timestamp(present.stored_at);
        let mend = if self.overwrite {
            "it came meanwhile; run it again to replace that too"
        } else {
            "replace it with --overwrite, or move it away"
        };
        let (target, size) = (&self.target, present.size);
        let why = format!("{target} has another value there, of {size} bytes, written {written}; {mend}");
        Error::new(ErrorKind::Precondition, Operation::Store, Some(key), why)
    }
}

fn live(attributes: Option<Attributes>) -> Option<Attributes> {
    attributes.filter(|attributes| !attributes.tombstone && !attributes.is_expired(Timestamp::now()))
}

/// The token alone is copied on purpose, so the bytes are compared as well.
fn is_same(one: &Attributes, other: &Attributes) -> bool {
    one.generation == other.generation
        && one.stored_checksum == other.stored_checksum
        && one.stored_size == other.stored_size
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::storage::{
        Checksum, DeleteOptions, Foreign, Grant, Kind, Listing, Memory, Object, ObjectInfo, Page, Probe, Removal,
    };

    fn object(text: &'static str) -> Object {
        let payload = bytes::Bytes::from_static(text.as_bytes());
        let (checksum, size) = (Checksum::of(&payload), payload.len() as u64);
        let attributes = Attributes {
            kind: Kind::Text,
            content_type: "text/plain".to_owned(),
            size,
            checksum,
            stored_size: size,
            stored_checksum: checksum,
            compression: None,
            encrypted: false,
            generation: format!("generation of {text}"),
            operation_id: None,
            metadata: None,
            stored_at: Timestamp::now(),
            expires_at: None,
            writer_id: None,
            tombstone: false,
            foreign: Foreign::default(),
            info: ObjectInfo::default(),
        };
        Object { attributes, payload: payload.into() }
    }

    /// A source at whose reading somebody else writes to the target.
    #[derive(Debug)]
    struct Meddled {
        inner: Memory,
        target: Arc<Memory>,
    }

    impl std::fmt::Display for Meddled {
        fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.inner.fmt(formatter)
        }
    }

    #[async_trait]
    impl Backend for Meddled {
        async fn put(&self, key: &Key, object: &Object, how: &PutOptions) -> Result<Attributes> {
            self.inner.put(key, object, how).await
        }

        async fn get(&self, key: &Key, want: GetOptions) -> Result<Option<Object>> {
            self.target.put(key, &object("theirs"), &PutOptions::default()).await?;
            self.inner.get(key, want).await
        }

        async fn stat(&self, key: &Key) -> Result<Option<Attributes>> {
            self.inner.stat(key).await
        }

        async fn delete(&self, key: &Key, how: &DeleteOptions) -> Result<Removal> {
            self.inner.delete(key, how).await
        }

        async fn list(&self, page: &Page) -> Result<Listing> {
            self.inner.list(page).await
        }

        async fn flush(&self, key: &Key) -> Result<()> {
            self.inner.flush(key).await
        }

        async fn probe(&self) -> Result<Probe> {
            self.inner.probe().await
        }

        fn validate(&self, key: &Key, attributes: &Attributes) -> Result<()> {
            self.inner.validate(key, attributes)
        }

        async fn sign(&self, key: &Key, grant: &Grant) -> Result<String> {
            self.inner.sign(key, grant).await
        }
    }

    #[tokio::test]
    async fn what_comes_to_the_target_between_look_and_write_stays() {
        let key = Key::parse("k").unwrap();
        for before in [None, Some("older")] {
            let target = Arc::new(Memory::new());
            if let Some(before) = before {
                target.put(&key, &object(before), &PutOptions::default()).await.unwrap();
            }
            let source = Meddled { inner: Memory::new(), target: Arc::clone(&target) };
            source.inner.put(&key, &object("ours"), &PutOptions::default()).await.unwrap();
            let mover = Mover {
                source: Arc::new(source),
                target: Arc::<Memory>::clone(&target),
                overwrite: true,
                dry_run: false,
                read_back: true,
                lost: |_| Vec::new(),
            };
            let error = mover.copy(&key).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Precondition);
            assert!(error.to_string().contains("run it again to replace that too"), "{error}");
            let kept = target.stat(&key).await.unwrap().unwrap();
            assert_eq!(kept.generation, "generation of theirs");
        }
    }
}
