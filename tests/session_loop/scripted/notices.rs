//! Requests of remote control that arrive.

use async_trait::async_trait;
use filestorage::broker::{self, End, NoticeSource, State};
use filestorage::celery::message::Message;
use tokio::sync::{mpsc, watch};

/// What reaches the queue of a node.
#[derive(Debug)]
pub(super) struct ScriptedNotices {
    pub(super) receiver: mpsc::UnboundedReceiver<Message>,
    pub(super) state: watch::Receiver<State>,
}

#[async_trait]
impl NoticeSource for ScriptedNotices {
    async fn next(&mut self) -> Result<Message, End> {
        tokio::select! {
            biased;
            Some(message) = self.receiver.recv() => Ok(message),
            reason = broker::lost(self.state.clone()) => Err(End::Lost(reason)),
        }
    }
}
