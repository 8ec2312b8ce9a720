//! Downloads: bytes are read from a bucket by Google's crate and checked here once more.

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
use super::{
    Attributes, Checksum, Error, ErrorKind, Gcs, GetOptions, Key, Object, ObjectInfo, Operation, Payload, SpoolWriter,
    VersionId,
};
use crate::storage::backends::metadata_header::{self, HEADER, RemoteObject};

/// How often an interrupted read continues where it was, in the same generation of the object.
const RESUMPTIONS: u32 = 3;

/// How often an object that is replaced while it is read is read again.
const READS: u32 = 8;

/// The largest number of bytes of memory that is reserved before any bytes have arrived.
const RESERVED: u64 = 8 * 1024 * 1024;

/// Makes the client of Google's crate. Its own retries are off, because retries belong to one layer, which is another
/// one.
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
    /// The attributes from the headers, where the headers have all of them.
    attributes: Option<Result<Attributes, String>>,
}

impl Gcs {
    /// Reads the requested bytes of an object. The other bytes are read, too, because only the checksum of all bytes
    /// shows that they are the stored ones.
    pub(super) async fn read(&self, key: &Key, options: &GetOptions) -> Result<Option<Object>, GcsFault> {
        let version = options.version.as_ref().map(|id| native(key, id)).transpose()?;
        for _ in 0..READS {
            let download = match self.download(key, version).await {
                Ok(download) => download,
                Err(fault) => {
                    if fault.status() == Some(401) {
                        self.login.renew().await;
                    }
                    let fault = self.explained(key, version, fault).await;
                    return self.missing_object(fault).await.map(|()| None);
                }
            };
            let attributes = match download.attributes {
                Some(attributes) => attributes,
                // Another tool wrote the object. Headers do not preserve the case of its metadata's names.
                None => match self.find(key, Some(download.native)).await? {
                    Some(found) => found.attributes,
                    None => continue,
                },
            };
            let attributes = attributes.map_err(|why| Self::damaged(&why))?;
            match self.take(key, download.response, &attributes, options).await {
                Ok(payload) => return Ok(Some(Object { attributes, payload })),
                // The read continued in a generation that is gone.
                Err(fault) if fault.status() == Some(404) => {}
                Err(fault) => return Err(fault),
            }
        }
        Err(GcsFault::Replaced)
    }

    /// Repeats a request whose answer Google's crate cannot parse, because the crate reports neither status nor content
    /// type.
    async fn explained(&self, key: &Key, version: Option<i64>, fault: GcsFault) -> GcsFault {
        let GcsFault::Strange(None, what) = fault else { return fault };
        let again = async {
            let request = self.client.request(Method::GET, &self.address.object(key)).await?;
            let request = version.into_iter().fold(request, |request, native| request.query(&[("generation", native)]));
            self.client.send(request.query(&[("alt", "media")])).await
        };
        match again.await {
            Ok(response) => GcsFault::strange(super::client::outside(&response), what),
            Err(fault @ GcsFault::Answer(_)) => fault,
            Err(_) => GcsFault::Strange(None, what),
        }
    }

    async fn download(&self, key: &Key, version: Option<i64>) -> Result<Download, GcsFault> {
        let request = self.storage.read_object(self.address.resource(), key.as_str());
        let request = version.into_iter().fold(request, |request, native| request.set_generation(native));
        let response = within(self.idle_limit, request.send()).await??;
        let highlights = response.object();
        let header = highlights.metadata.get(HEADER).cloned();
        let checksum = highlights.checksums.and_then(|checksums| checksums.crc32c).map(Checksum);
        let attributes = header.zip(checksum).and_then(|(header, checksum)| {
            // Not every server sends the size in a header. Then the bytes are only compared with the size in the
            // metadata header.
            let size =
                u64::try_from(highlights.size).ok().filter(|size| *size > 0).or_else(|| size_in_header(&header))?;
            let remote = RemoteObject {
                content_type: Some(highlights.content_type),
                content_encoding: None,
                stored_size: size,
                stored_checksum: Some(checksum),
                generation: highlights.generation.to_string(),
                received_at: Timestamp::UNIX_EPOCH,
                metadata: [(HEADER.to_owned(), header)].into(),
                headers: std::collections::BTreeMap::new(),
            };
            // The headers do not tell when the object was received. Only a request for the attributes does.
            Some(
                metadata_header::read(remote, || checksum)
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
        options: &GetOptions,
    ) -> Result<Payload, GcsFault> {
        let part = options.kept_part(key, attributes)?;
        let mut kept = if options.spooled {
            Kept::Spooled(self.spool.writer())
        } else {
            Kept::Memory(Vec::with_capacity((part.end - part.start).min(RESERVED) as usize))
        };
        let (mut arrived, mut checksum) = (0_u64, Checksum::of(&[]));
        while let Some(chunk) = within(self.idle_limit, response.next()).await? {
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

/// Reads the generation number that is the id of a version.
fn native(key: &Key, id: &VersionId) -> Result<i64, GcsFault> {
    id.as_str().parse().map_err(|_| {
        let why = format!("{:?} is no version of an object in Cloud Storage; ask for the versions again", id.as_str());
        Error::new(ErrorKind::Invalid, Operation::Retrieve, Some(key), why).into()
    })
}

/// The requested bytes of a download.
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
            Self::Spooled(writer) => writer.push(&bytes).await.map_err(GcsFault::Disk),
        }
    }

    async fn finish(self) -> Result<Payload, GcsFault> {
        match self {
            Self::Memory(all) => Ok(Payload::Memory(all.into())),
            Self::Spooled(writer) => writer.finish().await.map(|(payload, _)| payload).map_err(GcsFault::Disk),
        }
    }
}

/// Reads from a metadata header how many bytes are stored.
fn size_in_header(header: &str) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Size {
        stored_size: u64,
    }
    serde_json::from_str(header).ok().map(|Size { stored_size }| stored_size)
}
