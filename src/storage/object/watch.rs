//! Tells somebody who waits how many bytes have passed.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

tokio::task_local! {
    static CURRENT: Watch;
}

/// Hears how many bytes of a value have been taken in or read so far; cheap to clone.
///
/// A value that is read twice, or again after a fault, is heard of from the beginning again.
#[derive(Clone)]
pub struct Watch(Arc<dyn Fn(u64) + Send + Sync>);

impl Watch {
    /// Makes one that calls `hear` with the bytes so far, from any thread.
    pub fn new(hear: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }

    /// Returns the one that watches this task's work.
    pub(in crate::storage) fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    pub(in crate::storage) fn hear(&self, bytes: u64) {
        (self.0)(bytes);
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Watch")
    }
}

/// Runs work whose intakes are watched, whichever backend makes them: what comes from a place is heard of as it comes.
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
    async fn what_is_taken_in_or_read_is_heard_of() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let watch = Watch::new({
            let heard = Arc::clone(&heard);
            move |bytes| heard.lock().unwrap().push(bytes)
        });
        let folder = tempfile::tempdir().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; Payload::CHUNK + 5]).unwrap();
        let whole = (Payload::CHUNK + 5) as u64;
        let payload = Payload::file(Arc::new(file), 0, whole);
        let take = async || {
            let mut intake = Spool::new(folder.path()).writer();
            intake.push(&Bytes::from_static(b"123")).await.unwrap();
            intake.push(&Bytes::from_static(b"45")).await.unwrap();
        };
        watched(watch.clone(), take()).await;
        let heard_of = payload.clone().watched(&watch);
        heard_of.checksum().await.unwrap();
        heard_of.slice(1..3).into_memory().await.unwrap();
        // Nobody asked to hear of these.
        take().await;
        payload.into_memory().await.unwrap();
        assert_eq!(*heard.lock().unwrap(), [3, 5, Payload::CHUNK as u64, whole, 2]);
    }
}
