//! The payload of an upload.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{Stream, stream};

use super::error::GcsFault;
use super::progress::UploadProgress;
use super::{Checksum, CommitGuard, Error, Key, Object, Operation, Payload};

/// Streams a payload, and again from the offset at which an upload was interrupted. Cheap to clone.
///
/// Before the last bytes are sent, the checksum of a file is compared and the commit guard is asked. Without the last
/// bytes nothing becomes visible, so this is the commit point.
#[derive(Clone, Debug)]
pub(super) struct UploadSource {
    key: Key,
    payload: Payload,
    checksum: Checksum,
    commit_guard: CommitGuard,
    progress: UploadProgress,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// The number of bytes from the beginning that are in the checksum.
    hashed: u64,
    checksum: Checksum,
    /// The reason why this side stopped the stream.
    fault: Option<GcsFault>,
}

impl UploadSource {
    pub(super) fn new(key: &Key, object: &Object, commit_guard: &CommitGuard) -> Self {
        let state = State { hashed: 0, checksum: Checksum::of(&[]), fault: None };
        Self {
            key: key.clone(),
            payload: object.payload.clone(),
            checksum: object.attributes.stored_checksum,
            commit_guard: commit_guard.clone(),
            progress: UploadProgress::new(),
            state: Arc::new(Mutex::new(state)),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.payload.len()
    }

    /// Returns the progress of the stream.
    pub(super) const fn progress(&self) -> &UploadProgress {
        &self.progress
    }

    /// Returns the reason why this side stopped the stream, if it did. The server's answer is only a consequence then.
    pub(super) fn fault(&self) -> Option<GcsFault> {
        self.state().fault.take()
    }

    /// Streams the bytes from an offset on, which is at most the number of bytes that an earlier stream has sent.
    pub(super) fn stream(&self, from: u64) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let begin = (self.clone(), from, false);
        stream::try_unfold(begin, |(source, at, sealed)| async move {
            source.progress.note();
            if sealed {
                return Ok(None);
            }
            match source.step(at).await {
                Ok(chunk) => {
                    let next = at + chunk.len() as u64;
                    let sealed = next == source.len();
                    Ok(Some((chunk, (source, next, sealed))))
                }
                Err(fault) => {
                    source.state().fault = Some(fault);
                    Err(io::Error::other("the upload was stopped on this side"))
                }
            }
        })
    }

    /// Reads the next bytes; no bytes for an empty payload.
    async fn step(&self, at: u64) -> Result<Bytes, GcsFault> {
        let chunk = self.payload.read(at, Payload::CHUNK).await.map_err(GcsFault::Disk)?;
        // Bytes in memory cannot have changed since their checksum was computed.
        if self.payload.as_memory().is_none() {
            self.hash(at, &chunk);
        }
        if at + chunk.len() as u64 == self.len() {
            self.seal()?;
        }
        Ok(chunk)
    }

    fn hash(&self, at: u64, chunk: &Bytes) {
        let mut state = self.state();
        let known = usize::try_from(state.hashed.saturating_sub(at)).unwrap_or(usize::MAX);
        if let Some(new) = chunk.get(known..).filter(|new| !new.is_empty()) {
            state.checksum = state.checksum.append(new);
            state.hashed = at + chunk.len() as u64;
        }
    }

    fn seal(&self) -> Result<(), GcsFault> {
        let changed = self.payload.as_memory().is_none() && self.state().checksum != self.checksum;
        if changed {
            let why = "the source changed while it was stored; nothing was stored; store it again";
            return Err(GcsFault::Damaged(why.to_owned()));
        }
        if !self.commit_guard.commit() {
            return Err(Error::abandoned(Operation::Store, &self.key).into());
        }
        Ok(())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use futures_util::TryStreamExt as _;

    use super::super::{Attributes, Kind, ObjectInfo};
    use super::*;
    use crate::storage::object::Foreign;

    fn object(payload: Payload, of: &[u8]) -> Object {
        let (checksum, size) = (Checksum::of(of), of.len() as u64);
        let attributes = Attributes {
            kind: Kind::Bytes,
            content_type: "a/b".to_owned(),
            size,
            checksum,
            stored_size: size,
            stored_checksum: checksum,
            compression: None,
            encrypted: false,
            generation: "g".to_owned(),
            operation_id: None,
            copied_from: None,
            metadata: None,
            stored_at: jiff::Timestamp::UNIX_EPOCH,
            expires_at: None,
            writer_id: None,
            tombstone: false,
            foreign: Foreign::default(),
            encryption: None,
            info: ObjectInfo::default(),
        };
        Object { attributes, payload }
    }

    fn source(payload: Payload, of: &[u8], commit_guard: &CommitGuard) -> UploadSource {
        UploadSource::new(&Key::parse("k").unwrap(), &object(payload, of), commit_guard)
    }

    fn file(bytes: &[u8]) -> Payload {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Payload::file(Arc::new(file), 0, bytes.len() as u64)
    }

    async fn read(source: &UploadSource, from: u64) -> io::Result<Vec<u8>> {
        let chunks: Vec<Bytes> = source.stream(from).try_collect().await?;
        Ok(chunks.concat())
    }

    fn bytes(size: usize) -> Vec<u8> {
        (0..size).map(|at| (at * 31 % 251) as u8).collect()
    }

    #[tokio::test]
    async fn all_bytes_are_streamed_and_commit() {
        for size in [0, 1, Payload::CHUNK, Payload::CHUNK + 1, 3 * Payload::CHUNK] {
            let bytes = bytes(size);
            for payload in [file(&bytes), Payload::Memory(bytes.clone().into())] {
                let commit_guard = CommitGuard::default();
                let source = source(payload, &bytes, &commit_guard);
                assert_eq!(read(&source, 0).await.unwrap(), bytes);
                assert!(source.fault().is_none());
                assert!(!commit_guard.abandon(), "{size}: it was committed");
            }
        }
    }

    #[tokio::test]
    async fn an_upload_continues_where_it_was_interrupted() {
        let bytes = bytes(3 * Payload::CHUNK + 5);
        let source = source(file(&bytes), &bytes, &CommitGuard::default());
        let mut first = Box::pin(source.stream(0));
        assert!(first.try_next().await.unwrap().is_some() && first.try_next().await.unwrap().is_some());
        drop(first);
        let from = Payload::CHUNK + 7;
        assert_eq!(read(&source, from as u64).await.unwrap(), bytes[from..]);
        assert_eq!(read(&source, from as u64).await.unwrap(), bytes[from..]);
    }

    #[tokio::test]
    async fn changed_files_and_abandoned_writes_stop_the_stream() {
        let bytes = bytes(Payload::CHUNK + 5);
        let mut changed = bytes.clone();
        changed[3] ^= 1;
        let commit_guard = CommitGuard::default();
        let broken = source(file(&changed), &bytes, &commit_guard);
        read(&broken, 0).await.unwrap_err();
        assert!(matches!(broken.fault(), Some(GcsFault::Damaged(_))));
        assert!(commit_guard.abandon(), "nothing was committed");
        for payload in [file(&bytes), Payload::Memory(bytes.clone().into())] {
            let broken = source(payload, &bytes, &commit_guard);
            read(&broken, 0).await.unwrap_err();
            assert!(
                matches!(broken.fault(), Some(GcsFault::Other(error)) if error.kind == super::super::ErrorKind::Abandoned)
            );
        }
        let Payload::File(_) = file(&[]) else { panic!("it is a file") };
        let short = Payload::file(Arc::new(tempfile::tempfile().unwrap()), 0, 5);
        let broken = source(short, b"12345", &CommitGuard::default());
        read(&broken, 0).await.unwrap_err();
        assert!(matches!(broken.fault(), Some(GcsFault::Disk(_))));
    }
}
