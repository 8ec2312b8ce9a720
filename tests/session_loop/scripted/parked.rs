//! The parked publications that come back.

use std::collections::VecDeque;

use async_trait::async_trait;
use filestorage::broker::{End, ParkedDelivery, ParkedSource, ParkedToken, State};
use filestorage::celery::message::Message;

use super::Scripted;

/// The consumer of parked publications; dropping it gives those back that are not acknowledged.
#[derive(Debug)]
pub(super) struct ScriptedParked {
    pub(super) broker: Scripted,
    pub(super) number: u64,
    /// What was handed out and not asked for yet.
    pub(super) ready: VecDeque<ParkedDelivery>,
}

fn destination(message: &Message) -> [Option<String>; 2] {
    ["exchange", "routing-key"]
        .map(|name| message.headers.text(&format!("x-filestorage-parked-{name}")).map(str::to_owned))
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
            let batch = batch
                .into_iter()
                .map(|(tag, _, stored)| ParkedDelivery { message: stored.message, ack_token: ParkedToken::new(tag) });
            self.ready.extend(batch);
            // Those to several addresses are tried in an order that no seed decides.
            if let Some(first) = self.ready.front().map(|parked| destination(&parked.message)) {
                let others = self.ready.iter().position(|parked| destination(&parked.message) != first);
                return Ok(self.ready.drain(..others.unwrap_or(self.ready.len())).collect());
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
