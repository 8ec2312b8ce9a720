//! The parked publications that come back.

use async_trait::async_trait;
use filestorage::broker::{End, ParkedDelivery, ParkedSource, ParkedToken, State};

use super::Scripted;

/// The consumer of parked publications; dropping it gives those back that are not acknowledged.
#[derive(Debug)]
pub(super) struct ScriptedParked {
    pub(super) broker: Scripted,
    pub(super) number: u64,
}

#[async_trait]
impl ParkedSource for ScriptedParked {
    async fn next(&mut self) -> Result<Vec<ParkedDelivery>, End> {
        let mut state = self.broker.lock().clients.get_mut(&self.number).unwrap().state.watch();
        loop {
            let changed = self.broker.changed.notified();
            if let State::Lost(reason) = &*state.borrow_and_update() {
                return Err(End::Lost(reason.clone()));
            }
            let batch = self.broker.lock().hand_out_parked(self.number);
            if !batch.is_empty() {
                let parked = batch.into_iter().map(|(tag, _, stored)| ParkedDelivery {
                    message: stored.message,
                    ack_token: ParkedToken::new(tag),
                });
                return Ok(parked.collect());
            }
            tokio::select! {
                biased;
                Ok(()) = state.changed() => {}
                () = changed => {}
            }
        }
    }

    fn acknowledge(&self, ack_token: &ParkedToken) {
        self.broker.change(|model| {
            // Of a session that is over, nothing is left to settle.
            if model.clients[&self.number].unsettled.contains_key(&ack_token.tag()) {
                model.settle(self.number, &[ack_token.tag()]);
            }
        });
    }
}

impl Drop for ScriptedParked {
    fn drop(&mut self) {
        self.broker.change(|model| model.give_back_parked(self.number));
    }
}
