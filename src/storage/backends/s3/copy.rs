//! Copies within the bucket: in one request, or in parts where the object is large.
//!
//! The state of the source is enforced with its entity tag, as conditions of the destination are. What the store does
//! not enforce is found out by trying (see `conditions`); there the bytes pass through this program instead.

use std::sync::Arc;

use futures_util::stream::{FuturesOrdered, TryStreamExt as _};
use http::{HeaderMap, HeaderValue};

use super::S3;
use super::copy_request::{METADATA_DIRECTIVE, SOURCE_RANGE, copy, from_source};
use super::guard::Guard;
use super::read;
use super::upload::{self, Part, Upload};
use super::write::validate;
use crate::storage::backend::{Condition, CopySource, PutOptions};
use crate::storage::backends::metadata_header::RemoteObject;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::{Attributes, Key};

/// How large objects are copied.
#[derive(Clone, Copy, Debug)]
pub(super) struct CopyParts {
    /// An object of more bytes is copied in parts.
    pub(super) above: u64,
    /// The bytes of a part.
    pub(super) part: u64,
}

impl Default for CopyParts {
    fn default() -> Self {
        Self { above: 5 << 30, part: 1 << 30 }
    }
}

/// The number of parts that are copied at once.
const AT_ONCE: usize = 4;

impl S3 {
    /// Copies exactly the state of the source that is named; `None` where the source has another one.
    pub(super) async fn copy_object(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>> {
        let wire = &self.0.wire;
        let mut headers = validate(key, attributes)?;
        let Some((seen, from)) = self.seen(source).await? else { return Ok(None) };
        let enforced = self.copy_conditions(key).await?;
        let in_parts = attributes.stored_size > self.0.copies.above;
        let is_guarded = options.condition != Condition::Always || source.key == *key;
        let holds = match (in_parts, is_guarded) {
            (false, false) => enforced.sources,
            (false, true) => enforced.sources && enforced.destinations,
            (true, false) => enforced.parts,
            (true, true) => enforced.parts && self.conditions(key, Operation::Copy).await?.uploads,
        };
        if !holds {
            return source.copy_through(self, key, attributes, options).await;
        }
        let guard = if source.key == *key {
            options.condition.check(Operation::Copy, key, Some(&from))?;
            Guard::Same(seen.generation.clone())
        } else {
            self.guard_of(key, &options.condition).await?
        };
        let commit = || match options.commit_guard.commit() {
            true => Ok(()),
            false => Err(Error::abandoned(Operation::Copy, key)),
        };
        let copy = async {
            if in_parts {
                let (upload, parts) = self.copy_parts(&source.key, &seen, key, headers, attributes.stored_size).await?;
                commit()?;
                return upload.complete(&parts, &guard).await;
            }
            headers.extend(from_source(wire, &source.key, &seen.generation));
            headers.insert(METADATA_DIRECTIVE, HeaderValue::from_static("REPLACE"));
            commit()?;
            copy(wire, key, headers, &guard).await
        };
        match copy.await {
            Ok(()) => Ok(Some(attributes.clone())),
            // The answer does not say which of the two objects has changed.
            Err(error) if error.kind == ErrorKind::Precondition && !self.is_unchanged(source, &seen).await? => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the source, where it is in the state that is named.
    async fn seen(&self, source: &CopySource) -> Result<Option<(RemoteObject, Attributes)>> {
        let wire = &self.0.wire;
        let Some(remote) = wire.find_object(Operation::Copy, &source.key).await? else { return Ok(None) };
        let seen = read::attributes(remote.clone(), &wire.context(Operation::Copy, Some(&source.key)))?;
        Ok(source.is(&seen).then_some((remote, seen)))
    }

    async fn is_unchanged(&self, source: &CopySource, seen: &RemoteObject) -> Result<bool> {
        Ok(self.seen(source).await?.is_some_and(|(now, _)| now.generation == seen.generation))
    }

    /// Returns the guard that a condition of the destination needs.
    async fn guard_of(&self, key: &Key, condition: &Condition) -> Result<Guard> {
        if *condition == Condition::Always {
            return Ok(Guard::None);
        }
        let wire = &self.0.wire;
        let context = wire.context(Operation::Copy, Some(key));
        let seen = wire.find_object(Operation::Copy, key).await?;
        let present = seen.clone().map(|remote| read::attributes(remote, &context)).transpose()?;
        condition.check(Operation::Copy, key, present.as_ref())?;
        Ok(seen.map_or(Guard::Absent, |seen| Guard::Same(seen.generation)))
    }

    /// Copies all parts. Nothing is visible before the upload is completed.
    async fn copy_parts(
        &self,
        from: &Key,
        seen: &RemoteObject,
        key: &Key,
        headers: HeaderMap,
        size: u64,
    ) -> Result<(Arc<Upload>, Vec<Part>)> {
        let wire = &self.0.wire;
        let part = self.0.copies.part.max(size.div_ceil(upload::MOST_PARTS));
        let upload = Upload::begin_copy(wire, key, headers).await?;
        let (mut copied, mut under_way) = (Vec::new(), FuturesOrdered::new());
        for (number, first) in (1..).zip((0..size).step_by(usize::try_from(part).unwrap_or(usize::MAX))) {
            if under_way.len() == AT_ONCE {
                copied.extend(under_way.try_next().await?);
            }
            let mut headers = from_source(wire, from, &seen.generation);
            let range = format!("bytes={first}-{}", (first + part).min(size) - 1);
            headers.extend(HeaderValue::try_from(range).ok().map(|range| (SOURCE_RANGE, range)));
            under_way.push_back(upload.copy(number, headers));
        }
        copied.extend(under_way.try_collect::<Vec<_>>().await?);
        Ok((upload, copied))
    }
}
