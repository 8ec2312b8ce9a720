//! The announcements of changed keys.

use async_trait::async_trait;
use bytes::Bytes;
use filestorage::broker::{self, Announcements, State};
use tokio::sync::{mpsc, watch};

/// Hears what is announced.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) listener: mpsc::UnboundedReceiver<Bytes>,
    pub(super) state: watch::Receiver<State>,
}

#[async_trait]
impl Announcements for Listener {
    async fn next(&mut self) -> Result<Bytes, String> {
        tokio::select! {
            biased;
            Some(body) = self.listener.recv() => Ok(body),
            reason = broker::lost(self.state.clone()) => Err(reason),
        }
    }
}
