//! Uploads: bytes are written to a bucket in one request, or in a session that continues where it was interrupted.
//!
//! Google's crate is not used for uploads. It sends the media part without a content type and the parts of a session
//! with a wrong one, which an emulator stores. It also drops the port from the address of an emulator's sessions.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION};
use reqwest::{Body, Method, RequestBuilder, Url};
use uuid::Uuid;

use super::client::{self, Client};
use super::error::GcsFault;
use super::resource::Stored;
use super::source::UploadSource;
use super::{
    Attributes, CommitGuard, Condition, Error, ErrorKind, Gcs, Key, Object, Operation, cleanup, metadata_header,
};
use crate::storage::backends::metadata_header::NameCase;

/// The largest number of bytes of names and values of custom metadata in a bucket.
const LONGEST_METADATA: usize = 8192;

/// The attributes of an object in the form of the API.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Insert<'a> {
    content_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_encoding: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_control: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_disposition: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_language: Option<&'a String>,
    /// The bucket refuses bytes with another checksum.
    #[serde(skip_serializing_if = "Option::is_none")]
    crc32c: Option<String>,
    metadata: BTreeMap<String, String>,
}

/// Returns the custom metadata of an object, or the reason why the bucket cannot store it.
pub(super) fn metadata(attributes: &Attributes) -> Result<BTreeMap<String, String>, String> {
    metadata_header::write(attributes, LONGEST_METADATA, NameCase::Exact)
}

/// Names the properties of another tool's object that the bucket cannot store.
pub(super) fn lost(attributes: &Attributes) -> Vec<String> {
    let headers = attributes.foreign.headers.keys();
    let kept = ["cache-control", "content-disposition", "content-language"];
    let lost = headers.filter(|name| !kept.contains(&name.as_str())).cloned();
    lost.chain(metadata_header::hidden(attributes, LONGEST_METADATA, NameCase::Exact)).collect()
}

impl Gcs {
    /// Writes the object. A condition is checked against the generation token and enforced with the bucket's own
    /// generation.
    ///
    /// Without a condition the write is one upload and no other request.
    pub(super) async fn write(
        &self,
        key: &Key,
        object: &Object,
        condition: &Condition,
        commit_guard: &CommitGuard,
    ) -> Result<(), GcsFault> {
        match condition {
            Condition::Always => self.upload(key, object, None, commit_guard).await,
            Condition::Generation(_) => {
                let native = self.replaceable(key, &object.attributes.generation, condition).await?;
                self.upload(key, object, Some(native), commit_guard).await
            }
            Condition::Absent => match self.upload(key, object, Some(0), commit_guard).await {
                // The key has an object. An expired object counts as absent, and so does one that this write itself
                // damaged.
                Err(fault) if fault.status() == Some(412) => {
                    let native = self.replaceable(key, &object.attributes.generation, condition).await?;
                    self.upload(key, object, Some(native), commit_guard).await
                }
                outcome => outcome,
            },
        }
    }

    /// Returns the bucket's generation that the condition permits this write to replace; 0 for no object.
    ///
    /// `mine` is the generation token of what is written.
    pub(super) async fn replaceable(&self, key: &Key, mine: &str, condition: &Condition) -> Result<i64, GcsFault> {
        let Some(found) = self.find(key, None).await? else {
            condition.check(Operation::Store, key, None)?;
            return Ok(0);
        };
        match found.attributes {
            Ok(present) => condition.check(Operation::Store, key, Some(&present))?,
            // An earlier attempt of this same write arrived damaged. Its condition held then, and nobody else has
            // written since.
            Err(_) if found.token.as_deref() == Some(mine) => {}
            Err(why) => return Err(Self::damaged(&why)),
        }
        Ok(found.native)
    }

    async fn upload(
        &self,
        key: &Key,
        object: &Object,
        native: Option<i64>,
        commit_guard: &CommitGuard,
    ) -> Result<(), GcsFault> {
        let source = UploadSource::new(key, object, commit_guard);
        let stored = if source.len() < self.resumable_from {
            self.in_one(key, object, native, &source).await?
        } else {
            self.in_session(key, object, native, &source).await?
        };
        self.proven(&stored, key, &object.attributes)
    }

    /// Compares the description of an object that was just written with what was to be written.
    pub(super) fn proven(&self, stored: &Stored, key: &Key, attributes: &Attributes) -> Result<(), GcsFault> {
        if !stored.is_of(self.address.bucket(), key) {
            let what = "names another object than was written, or lacks generation or checksum".to_owned();
            return Err(GcsFault::Strange(None, what));
        }
        let Attributes { stored_size, stored_checksum, .. } = attributes;
        if stored.size != *stored_size || stored.crc32c.is_some_and(|found| found != *stored_checksum) {
            let why = "the bytes that arrived in the bucket are not those that were sent; store it again";
            return Err(GcsFault::Damaged(why.to_owned()));
        }
        Ok(())
    }

    /// Sends attributes and bytes in one request.
    async fn in_one(
        &self,
        key: &Key,
        object: &Object,
        native: Option<i64>,
        source: &UploadSource,
    ) -> Result<Stored, GcsFault> {
        let boundary = Uuid::new_v4().simple().to_string();
        let (insert, content_type) = (insert(key, &object.attributes, Sums::Sent)?, &object.attributes.content_type);
        let head = format!(
            "--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{insert}\r\n--{boundary}\r\nContent-Type: \
             {content_type}\r\n\r\n"
        );
        let tail = format!("\r\n--{boundary}--\r\n");
        let length = head.len() as u64 + source.len() + tail.len() as u64;
        let piece = |text: String| stream::once(std::future::ready(Ok(Bytes::from(text))));
        let body = piece(head).chain(source.stream(0)).chain(piece(tail));
        let request = self.client.request(Method::POST, &self.address.uploads()).await?;
        let request = request
            .query(&query("multipart", key, native))
            .header(CONTENT_TYPE, format!("multipart/related; boundary={boundary}"))
            .header(CONTENT_LENGTH, length)
            .body(Body::wrap_stream(body));
        self.send_from_source(request, source).await.map_err(Self::bucket_missing)
    }

    /// Sends attributes, then bytes, and continues after interruptions as long as each attempt gets further.
    async fn in_session(
        &self,
        key: &Key,
        object: &Object,
        native: Option<i64>,
        source: &UploadSource,
    ) -> Result<Stored, GcsFault> {
        let attributes = &object.attributes;
        let session = self.session(key, attributes, native).await?;
        let mut open = Open { client: Some(self.client.clone()), session: session.clone() };
        let mut from = 0;
        loop {
            let fault = match self.send_from(&session, attributes, source, from).await {
                Ok(stored) => {
                    open.client = None;
                    return Ok(stored);
                }
                Err(fault) if fault.can_continue() => fault,
                Err(fault) => return Err(fault),
            };
            match self.reached(&session, source.len()).await {
                Ok(Reached::Whole(stored)) => {
                    open.client = None;
                    return Ok(stored);
                }
                Ok(Reached::Part(arrived)) if arrived > from && arrived < source.len() => from = arrived,
                Ok(Reached::Part(_)) | Err(_) => return Err(fault),
            }
        }
    }

    /// Begins an upload session. With its URL anybody can write the object, so the URL is secret.
    async fn session(&self, key: &Key, attributes: &Attributes, native: Option<i64>) -> Result<Url, GcsFault> {
        let insert = insert(key, attributes, Sums::Sent)?;
        let request = self.client.request(Method::POST, &self.address.uploads()).await?;
        let request = request
            .query(&query("resumable", key, native))
            .header(CONTENT_TYPE, "application/json; charset=UTF-8")
            .header("x-upload-content-type", &attributes.content_type)
            .header("x-upload-content-length", attributes.stored_size)
            .body(insert);
        let response = self.client.send(request).await.map_err(Self::bucket_missing)?;
        let outside = client::outside(&response);
        if !matches!(outside.status, StatusCode::OK | StatusCode::CREATED) {
            return Err(GcsFault::strange(outside, "begins no upload session"));
        }
        let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        location
            .and_then(|location| Url::parse(location).ok())
            .ok_or_else(|| GcsFault::strange(outside, "names no upload session"))
    }

    /// Turns a 404 of a write into a missing bucket, because a write needs no object.
    fn bucket_missing(fault: GcsFault) -> GcsFault {
        if fault.is_missing() { GcsFault::NoBucket } else { fault }
    }

    async fn send_from(
        &self,
        session: &Url,
        attributes: &Attributes,
        source: &UploadSource,
        from: u64,
    ) -> Result<Stored, GcsFault> {
        let length = source.len();
        let request = self
            .client
            .plain(Method::PUT, session.as_str())
            .header(CONTENT_TYPE, &attributes.content_type)
            .header(CONTENT_RANGE, format!("bytes {from}-{}/{length}", length.saturating_sub(1)))
            .header(CONTENT_LENGTH, length - from)
            .body(Body::wrap_stream(source.stream(from)));
        self.send_from_source(request, source).await
    }

    async fn send_from_source(&self, request: RequestBuilder, source: &UploadSource) -> Result<Stored, GcsFault> {
        match self.client.stream(request, source.progress()).await {
            Ok(response) => self.client.json(response).await,
            Err(fault) => Err(source.fault().unwrap_or(fault)),
        }
    }

    /// Asks how many bytes of a session have arrived.
    async fn reached(&self, session: &Url, length: u64) -> Result<Reached, GcsFault> {
        let request = self
            .client
            .plain(Method::PUT, session.as_str())
            .header(CONTENT_RANGE, format!("bytes */{length}"))
            .header(CONTENT_LENGTH, 0);
        match self.client.send(request).await {
            Ok(response) => Ok(Reached::Whole(self.client.json(response).await?)),
            Err(GcsFault::Answer(answer)) if answer.is_incomplete() => Ok(Reached::Part(answer.persisted)),
            Err(fault) => Err(fault),
        }
    }
}

/// A session that is cancelled unless it has ended, also when its future is dropped.
struct Open {
    /// `None` when the session has ended.
    client: Option<Client>,
    session: Url,
}

impl Drop for Open {
    fn drop(&mut self) {
        let (Some(client), Ok(_)) = (self.client.take(), tokio::runtime::Handle::try_current()) else { return };
        let session = self.session.clone();
        let cancelling = cleanup::spawn(async move {
            let request = client.plain(Method::DELETE, session.as_str()).header(CONTENT_LENGTH, 0);
            match client.send(request).await {
                // 499 is the answer to a cancellation, 404 and 410 say that the session is gone already.
                Ok(_) => {}
                Err(fault) if matches!(fault.status(), Some(404 | 410 | 499)) => {}
                Err(_) => tracing::debug!("an upload session could not be cancelled and expires by itself"),
            }
        });
        // The cancellation runs in the background.
        drop(cancelling);
    }
}

/// The bytes of a session that have arrived.
enum Reached {
    Whole(Stored),
    Part(u64),
}

fn query(kind: &str, key: &Key, native: Option<i64>) -> Vec<(&'static str, String)> {
    let name = key.as_str().to_owned();
    let mut query = vec![("uploadType", kind.to_owned()), ("name", name), ("fields", Stored::FIELDS.to_owned())];
    query.extend(native.map(|native| ("ifGenerationMatch", native.to_string())));
    query
}

/// Whether the checksum of the bytes is sent beside the attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sums {
    /// The bucket compares the checksum with the bytes that arrive.
    Sent,
    /// No bytes are sent.
    Omitted,
}

/// Writes the attributes of an object in the form of the API.
pub(super) fn insert(key: &Key, attributes: &Attributes, sums: Sums) -> Result<String, GcsFault> {
    let invalid = |why: String| Error::new(ErrorKind::Invalid, Operation::Store, Some(key), why);
    let metadata = metadata(attributes).map_err(invalid)?;
    // Encrypted bytes are in no coding that a reader of the header could undo.
    let compression = attributes.compression.as_deref().filter(|_| !attributes.encrypted);
    let checksum = attributes.stored_checksum.to_string();
    let insert = Insert {
        content_type: &attributes.content_type,
        content_encoding: compression,
        // Without this directive a server in between may unpack the bytes, and neither size nor checksum would match.
        cache_control: metadata_header::cache_control(attributes, compression.is_some()),
        content_disposition: attributes.foreign.headers.get("content-disposition"),
        content_language: attributes.foreign.headers.get("content-language"),
        crc32c: (sums == Sums::Sent).then(|| checksum.strip_prefix("crc32c:").unwrap_or(&checksum).to_owned()),
        metadata,
    };
    serde_json::to_string(&insert).map_err(|error| invalid(error.to_string()).into())
}
