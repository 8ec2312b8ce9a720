//! Copies: by the bucket where both keys are the bucket's, else through this machine.

use super::Fallback;
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
        if is_pending {
            return source.copy_through(self, key, attributes, options).await;
        }
        let writer_id = Some(self.overlay.writer_id().to_owned());
        let attributes = Attributes { writer_id, ..attributes.clone() };
        self.primary.validate(key, &attributes)?;
        self.note_answer(self.primary.copy(source, key, &attributes, options).await)
    }
}
