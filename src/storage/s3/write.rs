//! Writing and removing objects, and the conditions for it.
//!
//! A condition names our token. It is looked at first and then enforced with the entity tag of what was seen, where the
//! store enforces that (see `conditions`). A tag is made of the bytes alone: so that each conditional write changes it
//! even when it writes the bytes that are there already, such a one is sent in another form (in parts, or in parts of
//! another size), of which the tag depends too. What remains: an unconditional write of the very same bytes between look
//! and write is not noticed.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::super::label::{self, Ticket};
use super::super::{
    Attributes, Condition, Delete, Error, ErrorKind, Fence, Key, Object, Operation, Put, Removal, Result,
};
use super::S3;
use super::read::{self, METADATA};
use super::upload::{self, Form};
use super::wire::Call;

/// Most bytes of names and values of metadata; the store's own limit is 2,048.
const MOST_METADATA: usize = 2_000;
/// Most bytes of the caller's metadata as ASCII-escaped JSON: what is left beside our own fields.
const MOST_GIVEN: usize = 1_024;

/// What the store is told to check when it writes or removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Guard {
    /// Nothing.
    None,
    /// No object is there.
    Absent,
    /// The object that is there has this entity tag.
    Same(String),
}

impl Guard {
    pub(super) fn headers(&self) -> HeaderMap {
        let (name, value) = match self {
            Self::None => return HeaderMap::new(),
            Self::Absent => (header::IF_NONE_MATCH, Ok(HeaderValue::from_static("*"))),
            Self::Same(etag) => (header::IF_MATCH, HeaderValue::from_str(&format!("\"{etag}\""))),
        };
        // A tag came as a header, so it can be one.
        value.map(|value| HeaderMap::from_iter([(name, value)])).unwrap_or_default()
    }
}

impl S3 {
    pub(super) async fn write(&self, key: &Key, object: &Object, how: &Put) -> Result<()> {
        let headers = describe(key, &object.attributes)?;
        let form = Form::of(object.payload.len());
        if how.condition == Condition::Always {
            return self.write_guarded(key, object, headers, form, &Guard::None, &how.fence).await;
        }
        self.require(key, Operation::Store, |store| store.writes, "if_absent and if_generation").await?;
        // Most often nothing is there. Many parts are not sent to find out.
        if how.condition == Condition::Absent && form == Form::Whole {
            let written = self.write_guarded(key, object, headers.clone(), form, &Guard::Absent, &how.fence).await;
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
            (Some(seen), Some(present)) => {
                (Guard::Same(seen.generation.clone()), other_form(form, object, &seen, &present))
            }
            _ => (Guard::Absent, form),
        };
        if form != Form::Whole {
            self.require(key, Operation::Store, |store| store.uploads, "a condition on a write in several parts")
                .await?;
        }
        self.write_guarded(key, object, headers, form, &guard, &how.fence).await
    }

    async fn write_guarded(
        &self,
        key: &Key,
        object: &Object,
        headers: HeaderMap,
        form: Form,
        guard: &Guard,
        fence: &Fence,
    ) -> Result<()> {
        match form {
            Form::Whole => upload::whole(&self.0.wire, key, object, headers, guard, fence).await,
            Form::Parts(size) => upload::parts(&self.0.wire, key, object, headers, size, guard, fence).await,
        }
    }

    pub(super) async fn remove(&self, key: &Key, how: &Delete) -> Result<Removal> {
        let wire = &self.0.wire;
        let asked = wire.asked(Operation::Delete, Some(key));
        let guarded = match &how.generation {
            None => false,
            Some(_) => {
                let needed =
                    self.require(key, Operation::Delete, |store| store.deletes, "a delete with if_generation").await;
                match needed {
                    Err(error) if error.kind == ErrorKind::Invalid && how.lenient => false,
                    other => other.map(|()| true)?,
                }
            }
        };
        // Whether something was there is for a look to say: the answer to a removal is the same either way.
        let seen = wire.glance(Operation::Delete, key).await?;
        let mut call = Call::new(Operation::Delete, Method::DELETE, Some(key));
        if let (Some(generation), Some(ticket)) = (&how.generation, &seen) {
            let present = read::attributes(ticket.clone(), &asked)?;
            Condition::Generation(generation.clone()).check(Operation::Delete, key, Some(&present))?;
            if guarded {
                call = call.headers(Guard::Same(ticket.generation.clone()).headers());
            }
        }
        if !how.fence.commit() {
            return Err(Error::abandoned(Operation::Delete, key));
        }
        if how.generation.is_some() && seen.is_none() {
            return Ok(Removal::default());
        }
        let found = wire.send(call).await?.is_some() && seen.is_some();
        Ok(Removal { found, ..Removal::default() })
    }
}

/// Refuses what no store like S3 keeps.
pub(super) fn accept(key: &Key, attributes: &Attributes) -> Result<()> {
    describe(key, attributes)?;
    if attributes.stored_size <= upload::MOST {
        return Ok(());
    }
    let why =
        format!("{} bytes are more than the {} an object in S3 can have here", attributes.stored_size, upload::MOST);
    Err(Error::new(ErrorKind::Invalid, Operation::Store, Some(key), format!("{why}; store it under several keys")))
}

/// Writes the attributes as headers.
fn describe(key: &Key, attributes: &Attributes) -> Result<HeaderMap> {
    let refused = |why: String| Error::new(ErrorKind::Invalid, Operation::Store, Some(key), why);
    let given = attributes.metadata.as_ref().map_or(0, |metadata| label::escape(metadata.get()).len());
    if given > MOST_GIVEN {
        return Err(refused(format!(
            "metadata has {given} bytes of ASCII-escaped JSON, and S3 has room for {MOST_GIVEN}; shorten it, or put it into the value"
        )));
    }
    let metadata = label::write(attributes, MOST_METADATA).map_err(refused)?;
    let metadata = metadata.into_iter().map(|(name, value)| (format!("{METADATA}{name}"), value));
    let mut all = vec![(header::CONTENT_TYPE.to_string(), attributes.content_type.clone())];
    // What is encrypted is no longer in that encoding to anyone else.
    if let Some(codec) = attributes.compression.as_ref().filter(|_| !attributes.encrypted) {
        all.push((header::CONTENT_ENCODING.to_string(), codec.clone()));
        all.push((header::CACHE_CONTROL.to_string(), "no-transform".to_owned()));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in all.into_iter().chain(metadata) {
        let unfit = || refused(format!("{name} cannot be sent as a header; use printable ASCII"));
        let value = HeaderValue::from_str(&value).map_err(|_| unfit())?;
        headers.insert(HeaderName::try_from(&name).map_err(|_| unfit())?, value);
    }
    Ok(headers)
}

/// Picks a form in which the object gets another entity tag than the one that is there.
fn other_form(form: Form, object: &Object, seen: &Ticket, present: &Attributes) -> Form {
    // The checksum of an object of another tool may be unknown, and then it is 0.
    let told_apart = present.stored_size != object.payload.len()
        || (present.stored_checksum != object.attributes.stored_checksum && present.stored_checksum.0 != 0);
    if told_apart { form } else { form.other_than(&seen.generation, object.payload.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_sent_as_it_came() {
        let headers = Guard::Same("9dd4-1".to_owned()).headers();
        assert_eq!(headers[header::IF_MATCH], "\"9dd4-1\"");
        assert_eq!(Guard::Absent.headers()[header::IF_NONE_MATCH], "*");
        assert!(Guard::None.headers().is_empty());
    }
}
