//! Copies of objects: a new header and the same payload in a new file.

use super::write::Needs;
use super::{Root, read};
use crate::storage::backend::{CopySource, PutOptions};
use crate::storage::error::{ErrorKind, Operation, Result};
use crate::storage::object::{Attributes, Key, Object};

impl Root {
    /// Writes the payload of the source under the key; `None` where the source is in another state.
    ///
    /// The file that is open keeps its bytes whatever others do with its name, and they are compared with their checksum
    /// while they are written.
    pub(super) fn copy(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        let path = self.path(&source.key);
        let found = self.found(Operation::Copy, &source.key, &path, read::unverified(&path, &source.key))?;
        let Some(Object { attributes: seen, payload }) = found.filter(|found| source.is(&found.attributes)) else {
            return Ok(None);
        };
        let object = Object { attributes: attributes.clone(), payload };
        let written = if source.key == *key {
            options.condition.check(Operation::Copy, key, Some(&seen))?;
            self.put(key, &object, Needs::State(Some(&source.generation)), &options.commit_guard)
        } else {
            self.put(key, &object, Needs::Condition(&options.condition), &options.commit_guard)
        };
        match written {
            Ok(()) => Ok(Some(object.attributes)),
            Err(error) if error.kind == ErrorKind::Precondition && source.key == *key => Ok(None),
            Err(error) if error.kind == ErrorKind::Integrity && object.payload.len() == seen.stored_size => {
                let what = read::UNSOUND.to_owned();
                Err(Self::unread(Operation::Copy, &source.key, &path, read::ReadFault::Damaged(what)))
            }
            Err(error) => Err(error.during(Operation::Copy)),
        }
    }
}
