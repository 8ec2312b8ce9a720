//! Reports how many bytes of a value have been taken or read.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

tokio::task_local! {
    static CURRENT: Watch;
}

/// Receives how many bytes of a value have been taken or read so far; cheap to clone.
///
/// A value that is read twice, or again after a failure, is reported from its first byte again.
#[derive(Clone)]
pub struct Watch(Arc<dyn Fn(u64) + Send + Sync>);

impl Watch {
    /// Makes a watch that calls `report` with the bytes so far, from any thread.
    pub fn new(report: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self(Arc::new(report))
    }

    /// Returns the watch of the current task's work.
    pub(in crate::storage) fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    pub(in crate::storage) fn report(&self, bytes: u64) {
        (self.0)(bytes);
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Watch")
    }
}

/// Runs work and reports the bytes of every value that the work receives from a backend.
pub async fn watched<T>(watch: Watch, work: impl Future<Output = T>) -> T {
    CURRENT.scope(watch, work).await
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::Mutex;

    use bytes::Bytes;

    use super::*;
    use crate::storage::files::Spool;
    use crate::storage::object::Payload;

    #[tokio::test]
    async fn bytes_taken_and_bytes_read_are_reported() {
        let reported = Arc::new(Mutex::new(Vec::new()));
        let watch = Watch::new({
            let reported = Arc::clone(&reported);
            move |bytes| reported.lock().unwrap().push(bytes)
        });
        let folder = tempfile::tempdir().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; Payload::CHUNK + 5]).unwrap();
        let whole = (Payload::CHUNK + 5) as u64;
        let payload = Payload::file(Arc::new(file), 0, whole);
        let take = async || {
            let mut writer = Spool::new(folder.path()).writer();
            writer.push(&Bytes::from_static(b"123")).await.unwrap();
            writer.push(&Bytes::from_static(b"45")).await.unwrap();
        };
        watched(watch.clone(), take()).await;
        let observed = payload.clone().watched(&watch);
        observed.checksum().await.unwrap();
        observed.slice(1..3).into_memory().await.unwrap();
        // These are not watched.
        take().await;
        payload.into_memory().await.unwrap();
        assert_eq!(*reported.lock().unwrap(), [3, 5, Payload::CHUNK as u64, whole, 2]);
    }
}
