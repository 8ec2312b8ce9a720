//! Writing and removing objects, and the conditions for it.
//!
//! A condition names our token. It is looked at first and then enforced with the entity tag of what was seen, where the
//! store enforces that (see `conditions`). A tag is made of the bytes alone. So that each conditional write changes it
//! even when it writes the bytes that are there already, such a one is sent in another form (in parts, or in parts of
//! another size), of which the tag depends too, where the store enforces conditions on that. What remains: a write of
//! the very same bytes between look and write that is unconditional, or made at a store that does not, is not noticed.

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

/// Most bytes of names and values of metadata; the store's own limit is 2,048.
const MOST_METADATA: usize = 2_000;
/// Most bytes of the caller's metadata as ASCII-escaped JSON: what is left beside our own fields.
const MOST_GIVEN: usize = 1_024;

impl S3 {
    pub(super) async fn write(&self, key: &Key, object: &Object, how: &PutOptions) -> Result<()> {
        let headers = validate(key, &object.attributes)?;
        let form = Form::of(&object.payload);
        if how.condition == Condition::Always {
            return self.write_guarded(key, object, headers, form, &Guard::None, &how.commit_guard).await;
        }
        let enforced = self.conditions(key, Operation::Store).await?;
        if !enforced.writes || (form != Form::Whole && !enforced.uploads) {
            if how.lenient {
                let asked = self.0.wire.asked(Operation::Store, Some(key));
                let seen = self.0.wire.look(Operation::Store, key).await?;
                let present = seen.map(|ticket| read::attributes(ticket, &asked)).transpose()?;
                how.condition.check(Operation::Store, key, present.as_ref())?;
                return self.write_guarded(key, object, headers, form, &Guard::None, &how.commit_guard).await;
            }
            let parts = if enforced.writes { " on a value that is stored in several parts" } else { "" };
            let what = format!("if_absent and if_generation{parts}");
            return Err(self.unenforced(key, Operation::Store, &what));
        }
        // Most often nothing is there. Many parts are not sent to find out.
        if how.condition == Condition::Absent && form == Form::Whole {
            let written =
                self.write_guarded(key, object, headers.clone(), form, &Guard::Absent, &how.commit_guard).await;
            match written {
                // What is there may have expired, and then it counts as absent.
                Err(error) if error.kind == ErrorKind::Precondition => {}
                done => return done,
            }
        }
        let asked = self.0.wire.asked(Operation::Store, Some(key));
        let seen = self.0.wire.look(Operation::Store, key).await?;
        let present = seen.clone().map(|ticket| read::attributes(ticket, &asked)).transpose()?;
        how.condition.check(Operation::Store, key, present.as_ref())?;
        let (guard, form) = match (seen, present) {
            (Some(seen), Some(present)) if enforced.uploads => {
                let form = other_form(form, object, &seen, &present);
                (Guard::Same(seen.generation), form)
            }
            (Some(seen), _) => (Guard::Same(seen.generation), form),
            (None, _) => (Guard::Absent, form),
        };
        self.write_guarded(key, object, headers, form, &guard, &how.commit_guard).await
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

    pub(super) async fn remove(&self, key: &Key, how: &DeleteOptions) -> Result<Removal> {
        let wire = &self.0.wire;
        let asked = wire.asked(Operation::Delete, Some(key));
        let enforced = match &how.generation {
            None => false,
            Some(_) => self.conditions(key, Operation::Delete).await?.deletes,
        };
        if how.generation.is_some() && !enforced && !how.lenient {
            return Err(self.unenforced(key, Operation::Delete, "if_generation of a delete"));
        }
        // Whether something was there is for a look to say: the answer to a removal is the same either way.
        let seen = match &how.generation {
            None => wire.glance(Operation::Delete, key).await?,
            // Nothing may be asked after it, so it has to be certain.
            Some(_) => wire.look(Operation::Delete, key).await?,
        };
        let mut call = Call::new(Operation::Delete, Method::DELETE, Some(key));
        if let (Some(generation), Some(ticket)) = (&how.generation, &seen) {
            let present = read::attributes(ticket.clone(), &asked)?;
            Condition::Generation(generation.clone()).check(Operation::Delete, key, Some(&present))?;
            if enforced {
                call = call.headers(Guard::Same(ticket.generation.clone()).headers());
            }
        }
        if !how.commit_guard.commit() {
            return Err(Error::abandoned(Operation::Delete, key));
        }
        if how.generation.is_some() && seen.is_none() {
            return Ok(Removal::default());
        }
        let Some(reply) = wire.send(call).await? else { return Ok(Removal::default()) };
        // What has no mark proves nothing; that nothing is there, said by a store, does.
        wire.prove_removal(reply, key, &asked).await?;
        Ok(Removal { found: seen.is_some(), ..Removal::default() })
    }
}

/// Refuses what no store like S3 keeps; returns the attributes as headers.
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
    // What is encrypted is no longer in that encoding to anyone else.
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

/// Makes a header's value of what others read the same way.
fn sendable(value: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(value).ok().filter(|_| value.is_ascii())
}

/// Names what another tool said of its object and the store has no place for.
pub(super) fn lost(attributes: &Attributes) -> Vec<String> {
    let unsent = attributes.foreign.headers.iter().filter(|(_, value)| sendable(value).is_none());
    let unsent = unsent.map(|(name, _)| name.clone());
    unsent.chain(metadata_header::hidden(attributes, MOST_METADATA, NameCase::Lower)).collect()
}

/// Picks a form in which the object gets another entity tag than the one that is there.
fn other_form(form: Form, object: &Object, seen: &RemoteObject, present: &Attributes) -> Form {
    // The checksum of an object of another tool may be unknown, and then it is 0.
    let told_apart = present.stored_size != object.payload.len()
        || (present.stored_checksum != object.attributes.stored_checksum && present.stored_checksum.0 != 0);
    if told_apart { form } else { form.other_than(&seen.generation, object.payload.len()) }
}
