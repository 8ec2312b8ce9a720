//! Copies: by the bucket where both keys are the bucket's, else through this machine.

use super::{Fallback, pending};
use crate::storage::backend::{CopySource, PutOptions};
use crate::storage::error::{Operation, Result};
use crate::storage::object::{Attributes, Key, ObjectInfo};

impl Fallback {
    /// Copies an object of the bucket within the bucket. Where either key has an entry in the overlay, the bytes are read
    /// and written as those of a put, so that they wait in the overlay where a put would.
    ///
    /// An object that only the bucket has cannot be copied while the bucket cannot be reached.
    pub(super) async fn copy_object(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        // Where the source rests says nothing of the copy.
        let info = ObjectInfo { pending: false, ..attributes.info };
        let attributes = &Attributes { info, ..attributes.clone() };
        let entry = self.overlay.stat(&source.key).await.map_err(|error| error.during(Operation::Copy))?;
        let is_pending = match &entry {
            Some(entry) if entry.tombstone || !source.is(entry) => return Ok(None),
            Some(_) => true,
            None if source.key == *key => false,
            None => match self.overlay.stat(key).await {
                Ok(entry) => entry.is_some(),
                // The write decides whether it repairs an entry that cannot be read.
                Err(_) => true,
            },
        };
        // With the token of its source, it is the same state: its data key was wrapped again.
        let is_same_state = source.key == *key && source.generation == attributes.generation;
        if is_pending && is_same_state {
            return self.rewrite_entry(key, attributes).await;
        }
        if is_pending {
            return source.copy_through(self, key, attributes, options).await;
        }
        let writer_id =
            if is_same_state { attributes.writer_id.clone() } else { Some(self.overlay.writer_id().to_owned()) };
        let attributes = Attributes { writer_id, ..attributes.clone() };
        self.primary.validate(key, &attributes)?;
        self.note_answer(self.primary.copy(source, key, &attributes, options).await)
    }

    /// Replaces the attributes of a pending entry; `None` where the entry has changed or was sent.
    async fn rewrite_entry(&self, key: &Key, attributes: &Attributes) -> Result<Option<Attributes>> {
        self.primary.validate(key, attributes)?;
        let _turn = self.rewriting.lock().await;
        // A pass that has read the entry would send it as it was, and would remove the one that replaced it.
        let _lock = self.overlay.wait_lock().await?;
        Ok(self.overlay.rewrite(key, attributes).await?.map(pending))
    }
}
