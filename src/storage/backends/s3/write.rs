//! Writes and removals of objects, and their conditions.
//!
//! A condition names the generation token of this program. The object is read first, and then the condition is enforced
//! with the entity tag that was seen, where the store enforces tags (see `conditions`). A tag is made from the bytes
//! alone. Each conditional write must change the tag, even when it writes the bytes that are there already. So such a
//! write is sent in another form (in parts, or in parts of another size), on which the tag depends, too, where the
//! store enforces conditions on that form.
//!
//! One case remains and is not noticed: a write of the same bytes between look and write that is unconditional, or at a
//! store that does not enforce conditions on the form.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::S3;
use super::guard::Guard;
use super::read::{self, METADATA};
use super::upload::{self, Form};
use super::wire::Call;
use crate::storage::backend::{Condition, DeleteOptions, PutOptions, Removal};
use crate::storage::backends::metadata_header::{self, NameCase, RemoteObject};
use crate::storage::commit_guard::CommitGuard;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::{Attributes, Key, Object};

/// The largest number of bytes of names and values of metadata. The store's own limit is 2,048.
const MOST_METADATA: usize = 2_000;
/// The largest number of bytes of the caller's metadata as ASCII-escaped JSON, with room for the fields of this
/// program.
const MOST_GIVEN: usize = 1_024;

impl S3 {
    pub(super) async fn write(&self, key: &Key, object: &Object, options: &PutOptions) -> Result<()> {
        let headers = validate(key, &object.attributes)?;
        let form = Form::of(&object.payload);
        if options.condition == Condition::Always {
            return self.write_guarded(key, object, headers, form, &Guard::None, &options.commit_guard).await;
        }
        let enforced = self.conditions(key, Operation::Store).await?;
        if !enforced.writes || (form != Form::Whole && !enforced.uploads) {
            if options.lenient {
                let context = self.0.wire.context(Operation::Store, Some(key));
                let seen = self.0.wire.find_object(Operation::Store, key).await?;
                let present = seen.map(|remote| read::attributes(remote, &context)).transpose()?;
                options.condition.check(Operation::Store, key, present.as_ref())?;
                return self.write_guarded(key, object, headers, form, &Guard::None, &options.commit_guard).await;
            }
            let parts = if enforced.writes { " on a value that is stored in several parts" } else { "" };
            let what = format!("if_absent and if_generation{parts}");
            return Err(self.unenforced(key, Operation::Store, &what));
        }
        // Most often the key has no object. A large object is not sent in many parts to find that out.
        if options.condition == Condition::Absent && form == Form::Whole {
            let written =
                self.write_guarded(key, object, headers.clone(), form, &Guard::Absent, &options.commit_guard).await;
            match written {
                // The object may have expired, and then it counts as absent.
                Err(error) if error.kind == ErrorKind::Precondition => {}
                done => return done,
            }
        }
        let context = self.0.wire.context(Operation::Store, Some(key));
        let seen = self.0.wire.find_object(Operation::Store, key).await?;
        let present = seen.clone().map(|remote| read::attributes(remote, &context)).transpose()?;
        options.condition.check(Operation::Store, key, present.as_ref())?;
        let (guard, form) = match (seen, present) {
            (Some(seen), Some(present)) if enforced.uploads => {
                let form = other_form(form, object, &seen, &present);
                (Guard::Same(seen.generation), form)
            }
            (Some(seen), _) => (Guard::Same(seen.generation), form),
            (None, _) => (Guard::Absent, form),
        };
        self.write_guarded(key, object, headers, form, &guard, &options.commit_guard).await
    }

    async fn write_guarded(
        &self,
        key: &Key,
        object: &Object,
        headers: HeaderMap,
        form: Form,
        guard: &Guard,
        commit_guard: &CommitGuard,
    ) -> Result<()> {
        match form {
            Form::Whole => upload::whole(&self.0.wire, key, object, headers, guard, commit_guard).await,
            Form::Parts(size) => upload::parts(&self.0.wire, key, object, headers, size, guard, commit_guard).await,
        }
    }

    pub(super) async fn remove(&self, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        let wire = &self.0.wire;
        let context = wire.context(Operation::Delete, Some(key));
        let enforced = match &options.generation {
            None => false,
            Some(_) => self.conditions(key, Operation::Delete).await?.deletes,
        };
        if options.generation.is_some() && !enforced && !options.lenient {
            return Err(self.unenforced(key, Operation::Delete, "if_generation of a delete"));
        }
        // The answer to a removal is the same whether or not the object existed, so the object is looked up first.
        let seen = match &options.generation {
            None => wire.find_object_quickly(Operation::Delete, key, None).await?,
            // No request may follow the removal's condition, so this answer must be certain.
            Some(_) => wire.find_object(Operation::Delete, key).await?,
        };
        let mut call = Call::new(Operation::Delete, Method::DELETE, Some(key));
        if let (Some(generation), Some(remote)) = (&options.generation, &seen) {
            let present = read::attributes(remote.clone(), &context)?;
            Condition::Generation(generation.clone()).check(Operation::Delete, key, Some(&present))?;
            if enforced {
                call = call.headers(Guard::Same(remote.generation.clone()).headers());
            }
        }
        if !options.commit_guard.commit() {
            return Err(Error::abandoned(Operation::Delete, key));
        }
        if options.generation.is_some() && seen.is_none() {
            return Ok(Removal::default());
        }
        let Some(reply) = wire.send(call).await? else { return Ok(Removal::default()) };
        // An answer without a request id proves nothing. A store's answer that the object is missing does.
        wire.prove_removal(reply, key, &context).await?;
        Ok(Removal { found: seen.is_some(), ..Removal::default() })
    }
}

/// Refuses an object that no store like S3 can store; returns the attributes as headers.
pub(super) fn validate(key: &Key, attributes: &Attributes) -> Result<HeaderMap> {
    let (size, most) = (attributes.stored_size, upload::MOST);
    if size > most {
        let why =
            format!("{size} bytes are more than the {most} that an object in S3 can have; store it under several keys");
        return Err(Error::new(ErrorKind::Invalid, Operation::Store, Some(key), why));
    }
    describe(key, attributes)
}

/// Writes the attributes as headers.
fn describe(key: &Key, attributes: &Attributes) -> Result<HeaderMap> {
    let refused = |why: String| Error::new(ErrorKind::Invalid, Operation::Store, Some(key), why);
    let given = attributes.metadata.as_ref().map_or(0, |metadata| metadata_header::escape(metadata.get()).len());
    if given > MOST_GIVEN {
        return Err(refused(format!(
            "metadata has {given} bytes of ASCII-escaped JSON, and S3 has room for {MOST_GIVEN}; shorten it, or put it into the value"
        )));
    }
    let metadata = metadata_header::write(attributes, MOST_METADATA, NameCase::Lower).map_err(refused)?;
    let metadata = metadata.into_iter().map(|(name, value)| (format!("{METADATA}{name}"), value));
    let mut all = vec![(header::CONTENT_TYPE.to_string(), attributes.content_type.clone())];
    // Encrypted bytes do not have that encoding for anyone else.
    if let Some(codec) = attributes.compression.as_ref().filter(|_| !attributes.encrypted) {
        all.push((header::CONTENT_ENCODING.to_string(), codec.clone()));
    }
    let packed = attributes.compression.is_some() && !attributes.encrypted;
    all.extend(
        metadata_header::cache_control(attributes, packed).map(|control| (header::CACHE_CONTROL.to_string(), control)),
    );
    let mut headers = HeaderMap::new();
    for (name, value) in all.into_iter().chain(metadata) {
        let unfit = || refused(format!("{name} cannot be sent as a header; use printable ASCII"));
        let value = HeaderValue::from_str(&value).map_err(|_| unfit())?;
        headers.insert(HeaderName::try_from(&name).map_err(|_| unfit())?, value);
    }
    for (name, value) in attributes.foreign.headers.iter().filter(|(name, _)| *name != "cache-control") {
        if let (Ok(name), Some(value)) = (HeaderName::try_from(name), sendable(value)) {
            headers.insert(name, value);
        }
    }
    Ok(headers)
}

/// Makes a header value, if other tools read the text in the same way.
fn sendable(value: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(value).ok().filter(|_| value.is_ascii())
}

/// Names the properties of another tool's object that the store cannot store.
pub(super) fn lost(attributes: &Attributes) -> Vec<String> {
    let unsent = attributes.foreign.headers.iter().filter(|(_, value)| sendable(value).is_none());
    let unsent = unsent.map(|(name, _)| name.clone());
    unsent.chain(metadata_header::hidden(attributes, MOST_METADATA, NameCase::Lower)).collect()
}

/// Picks a form in which the object gets another entity tag than the present object.
fn other_form(form: Form, object: &Object, seen: &RemoteObject, present: &Attributes) -> Form {
    // The checksum of another tool's object may be unknown, and then it is 0.
    let differs = present.stored_size != object.payload.len()
        || (present.stored_checksum != object.attributes.stored_checksum && present.stored_checksum.0 != 0);
    if differs { form } else { form.other_than(&seen.generation, object.payload.len()) }
}
