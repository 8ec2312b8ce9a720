//! Values from and to places outside the store.

use crate::storage::backend::GetOptions;
use crate::storage::commit_guard::CommitGuard;
use crate::storage::engine::{Engine, Receipt, RetrieveOptions, StateOptions, StoreOptions};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::external::{Incoming, Outgoing, Purpose, Reference};
use crate::storage::object::{Content, ContentType, Foreign, Key, Kind, Metadata, Object};
use crate::storage::reading::read;

impl Engine {
    /// Stores the value that a reference names: a file as bytes, an object of a bucket with its kind.
    ///
    /// Content type and metadata are those of the options, else those of the source. A redelivered store whose source
    /// is gone answers the object that its first try wrote.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Missing`] for a source that does not exist; [`ErrorKind::Denied`] for a bucket that commands may
    /// not read; [`ErrorKind::Invalid`] for a file that commands may not read, or for a source that contradicts its own
    /// attributes; [`ErrorKind::Integrity`] for a source that changes meanwhile; otherwise as [`Engine::store`].
    pub async fn store_from(&self, key: &Key, source: &Reference, options: StoreOptions) -> Result<Receipt> {
        self.0.counters.measure(self.store_from_uncounted(key, source, options)).await
    }

    /// Writes a value, or some bytes of it, to the place that a reference names.
    ///
    /// Returns the receipt of the object that was read. `None` means that the key has no object, and nothing was
    /// written.
    ///
    /// An object in a bucket keeps kind, content type and metadata. A range of a value is written as bytes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Missing`] for a folder that does not exist; [`ErrorKind::Denied`] for a bucket that commands may
    /// not write; [`ErrorKind::Invalid`] for a file that commands may not write, and for a range of a JSON value;
    /// [`ErrorKind::Abandoned`]; the errors of either place.
    pub async fn retrieve_to(
        &self,
        key: &Key,
        destination: &Reference,
        options: RetrieveOptions,
    ) -> Result<Option<Receipt>> {
        self.0.counters.measure(self.retrieve_to_uncounted(key, destination, options)).await
    }

    async fn store_from_uncounted(&self, key: &Key, source: &Reference, options: StoreOptions) -> Result<Receipt> {
        let purpose = Purpose { operation: Operation::Store, key, reference: source };
        self.0.external.check(purpose)?;
        let Incoming { content, content_type, metadata } = match self.fetch(purpose).await {
            Err(error) if error.kind == ErrorKind::Missing => {
                let stored = self.written_before(key, &options).await?.ok_or(error)?;
                return Ok(Receipt::of(key, self.0.kind, &stored));
            }
            incoming => incoming?,
        };
        let metadata = match (options.metadata, metadata) {
            (None, Some(kept)) => Some(Metadata::parse(kept.get()).map_err(|why| {
                purpose.fail(ErrorKind::Invalid, format!("{why}; give the value metadata of its own"))
            })?),
            (given, _) => given,
        };
        let content_type = options.content_type.or(content_type);
        self.store_uncounted(key, content, StoreOptions { metadata, content_type, ..options }).await
    }

    /// Reads the value that a permitted reference names. An object of the store's own bucket is read as a key.
    async fn fetch(&self, purpose: Purpose<'_>) -> Result<Incoming> {
        let Some(key) = self.0.external.own(purpose.reference) else {
            return self.0.external.read(purpose).await;
        };
        let options = GetOptions { spooled: true, ..GetOptions::default() };
        let found = read(&*self.0.backend, key, options).await.map_err(|error| purpose.foreign(error))?;
        purpose.take_found(found).await
    }

    /// Writes to the place that a permitted reference names. An object of the store's own bucket is stored as a key.
    async fn deliver(&self, purpose: Purpose<'_>, outgoing: Outgoing, commit_guard: CommitGuard) -> Result<()> {
        let Some(key) = self.0.external.own(purpose.reference) else {
            return self.0.external.write(purpose, outgoing, commit_guard).await;
        };
        let Outgoing { kind, content_type, metadata, payload, operation_id, foreign, .. } = outgoing;
        let (payload, content_type) = purpose.in_utf8(&foreign, payload, content_type).await?;
        let options = StoreOptions {
            metadata: metadata.map(Metadata::from_kept),
            content_type: ContentType::parse(&content_type).ok(),
            operation_id,
            commit_guard,
            ..StoreOptions::default()
        };
        let stored = self.store_uncounted(key, Content::new(kind, payload), options).await;
        stored.map(drop).map_err(|error| purpose.foreign(error))
    }

    async fn retrieve_to_uncounted(
        &self,
        key: &Key,
        destination: &Reference,
        options: RetrieveOptions,
    ) -> Result<Option<Receipt>> {
        let RetrieveOptions { generation, range, operation_id, commit_guard } = options;
        let purpose = Purpose { operation: Operation::Retrieve, key, reference: destination };
        // A refused destination is refused whether or not the key has an object.
        self.0.external.check(purpose)?;
        let bytes = GetOptions { range, spooled: true, ..GetOptions::default() };
        let Some(Object { attributes, payload }) = self.read_uncounted(key, StateOptions { generation, bytes }).await?
        else {
            return Ok(None);
        };
        let receipt = Receipt::of(key, self.0.kind, &attributes);
        let (kind, content_type, checksum, foreign) = match range {
            None => (attributes.kind, attributes.content_type, attributes.checksum, attributes.foreign),
            Some(_) => {
                let checksum = payload.checksum().await;
                let checksum = checksum.map_err(|error| Error::unread(Operation::Retrieve, key, error))?;
                (Kind::Bytes, Kind::Bytes.content_type().to_owned(), checksum, Foreign::default())
            }
        };
        let metadata = attributes.metadata;
        let outgoing = Outgoing { kind, content_type, metadata, payload, checksum, operation_id, foreign };
        self.deliver(purpose, outgoing, commit_guard).await?;
        Ok(Some(receipt))
    }
}
