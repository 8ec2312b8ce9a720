//! How bytes get out of a bucket: through Google's crate, checked here once more.

use bytes::Bytes;
use google_cloud_gax::retry_policy::NeverRetry;
use google_cloud_storage::client::Storage;
use google_cloud_storage::read_object::ReadObjectResponse;
use google_cloud_storage::read_resume_policy::{ReadResumePolicyExt as _, Recommended};
use jiff::Timestamp;
use reqwest::Method;

use super::address::GcsAddress;
use super::error::GcsFault;
use super::login::Login;
use super::progress::within;
use super::{Attributes, Checksum, Gcs, GetOptions, Key, Object, ObjectInfo, Payload, SpoolWriter};
use crate::storage::backends::metadata_header::{self, HEADER, RemoteObject};

/// How often a read that breaks off goes on where it was, in the same generation of the object.
const RESUMPTIONS: u32 = 3;

/// How often an object that is replaced while it is read is read again.
const READS: u32 = 8;

/// Most bytes of memory that are set aside before any have arrived.
const SET_ASIDE: u64 = 8 * 1024 * 1024;

/// Makes the crate's client. Its own retries are off: failed attempts are one layer's business, and it is not this one.
pub(super) async fn client(address: &GcsAddress, login: Login) -> Result<Storage, String> {
    let client = Storage::builder()
        .with_endpoint(address.server())
        .with_credentials(login)
        .with_retry_policy(NeverRetry)
        .with_read_resume_policy(Recommended.with_attempt_limit(RESUMPTIONS))
        .build();
    client.await.map_err(|error| format!("no connection can be set up: {}", super::error::root(&error)))
}

/// An object whose bytes are about to arrive.
struct Download {
    response: ReadObjectResponse,
    native: i64,
    /// What came ahead of the bytes, where that is enough.
    attributes: Option<Result<Attributes, String>>,
}

impl Gcs {
    /// Reads the wanted bytes of an object, and through all others: only the checksum of all of them tells that these are
    /// the ones that were stored.
    pub(super) async fn read(&self, key: &Key, want: GetOptions) -> Result<Option<Object>, GcsFault> {
        for _ in 0..READS {
            let download = match self.download(key).await {
                Ok(download) => download,
                Err(fault) => {
                    if fault.status() == Some(401) {
                        self.login.renew().await;
                    }
                    let fault = self.explained(key, fault).await;
                    return self.gone(fault).await.map(|()| None);
                }
            };
            let attributes = match download.attributes {
                Some(attributes) => attributes,
                // What another tool wrote: headers do not tell the letters of its metadata's names.
                None => match self.look(key, Some(download.native)).await? {
                    Some(found) => found.attributes,
                    None => continue,
                },
            };
            let attributes = attributes.map_err(|why| Self::damaged(&why))?;
            match self.take(key, download.response, &attributes, want).await {
                Ok(payload) => return Ok(Some(Object { attributes, payload })),
                // It went on in a generation that is gone.
                Err(fault) if fault.status() == Some(404) => {}
                Err(fault) => return Err(fault),
            }
        }
        Err(GcsFault::Restless)
    }

    /// Looks at what the crate cannot understand, of which it tells neither status nor content type.
    async fn explained(&self, key: &Key, fault: GcsFault) -> GcsFault {
        let GcsFault::Strange(None, what) = fault else { return fault };
        let again = async {
            let request = self.client.request(Method::GET, &self.address.object(key)).await?;
            self.client.send(request.query(&[("alt", "media")])).await
        };
        match again.await {
            Ok(response) => GcsFault::strange(super::client::outside(&response), what),
            Err(fault @ GcsFault::Answer(_)) => fault,
            Err(_) => GcsFault::Strange(None, what),
        }
    }

    async fn download(&self, key: &Key) -> Result<Download, GcsFault> {
        let request = self.storage.read_object(self.address.resource(), key.as_str()).send();
        let response = within(self.patience, request).await??;
        let highlights = response.object();
        let label = highlights.metadata.get(HEADER).cloned();
        let checksum = highlights.checksums.and_then(|checksums| checksums.crc32c).map(Checksum);
        let attributes = label.zip(checksum).and_then(|(label, checksum)| {
            // Not every server says it in a header; then what arrives is counted against the label alone.
            let size =
                u64::try_from(highlights.size).ok().filter(|size| *size > 0).or_else(|| labelled_size(&label))?;
            let ticket = RemoteObject {
                content_type: Some(highlights.content_type),
                content_encoding: None,
                stored_size: size,
                stored_checksum: Some(checksum),
                generation: highlights.generation.to_string(),
                received_at: Timestamp::UNIX_EPOCH,
                metadata: [(HEADER.to_owned(), label)].into(),
                headers: std::collections::BTreeMap::new(),
            };
            // The headers do not say when the object was received; only the crate's caller for attributes learns that.
            Some(
                metadata_header::read(ticket, || checksum)
                    .map(|read| Attributes { info: ObjectInfo::default(), ..read }),
            )
        });
        Ok(Download { native: highlights.generation, response, attributes })
    }

    async fn take(
        &self,
        key: &Key,
        mut response: ReadObjectResponse,
        attributes: &Attributes,
        want: GetOptions,
    ) -> Result<Payload, GcsFault> {
        let part = want.kept_part(key, attributes)?;
        let mut kept = if want.spooled {
            Kept::Spooled(self.spool.writer())
        } else {
            Kept::Memory(Vec::with_capacity((part.end - part.start).min(SET_ASIDE) as usize))
        };
        let (mut arrived, mut checksum) = (0_u64, Checksum::of(&[]));
        while let Some(chunk) = within(self.patience, response.next()).await? {
            let chunk = chunk?;
            checksum = checksum.append(&chunk);
            let end = arrived + chunk.len() as u64;
            let (from, to) = (part.start.clamp(arrived, end), part.end.clamp(arrived, end));
            kept.push(chunk.slice((from - arrived) as usize..(to - arrived) as usize)).await?;
            arrived = end;
        }
        if (arrived, checksum) != (attributes.stored_size, attributes.stored_checksum) {
            return Err(Self::damaged("the bytes that arrived do not match their size and checksum"));
        }
        kept.finish().await
    }

    pub(super) fn damaged(why: &str) -> GcsFault {
        GcsFault::Damaged(format!("{why}; retrieve it again, restore it from a backup, or store it again"))
    }
}

/// Bytes that are wanted.
enum Kept {
    Memory(Vec<u8>),
    Spooled(SpoolWriter),
}

impl Kept {
    async fn push(&mut self, bytes: Bytes) -> Result<(), GcsFault> {
        match self {
            Self::Memory(all) => {
                all.extend_from_slice(&bytes);
                Ok(())
            }
            Self::Spooled(intake) => intake.push(&bytes).await.map_err(GcsFault::Disk),
        }
    }

    async fn finish(self) -> Result<Payload, GcsFault> {
        match self {
            Self::Memory(all) => Ok(Payload::Memory(all.into())),
            Self::Spooled(intake) => intake.finish().await.map(|(payload, _)| payload).map_err(GcsFault::Disk),
        }
    }
}

/// Reads out of a label how many bytes it is of.
fn labelled_size(label: &str) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Size {
        stored_size: u64,
    }
    serde_json::from_str(label).ok().map(|Size { stored_size }| stored_size)
}
