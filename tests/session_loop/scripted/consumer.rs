//! Deliveries, and what settles them.

use std::sync::Arc;

use async_trait::async_trait;
use filestorage::broker::{
    self, AckToken, ConsumeError, Consumer, Delivery, End, Error, ErrorKind, Presence, QueueJoiner, State,
};
use filestorage::celery::message::{Address, Origin};

use super::Scripted;
use super::session::ScriptedSession;
use crate::model::Stored;

/// The deliveries of the consumed queues.
#[derive(Debug)]
pub(super) struct ScriptedConsumer {
    pub(super) broker: Scripted,
    pub(super) number: u64,
    /// Queues that were left out, and why.
    pub(super) down: Vec<(String, Error)>,
    /// The prefetch without what only waits.
    pub(super) full: Option<usize>,
    /// The prefetch that a queue begins with.
    pub(super) first: usize,
}

/// Begins to consume queues that were missing.
#[derive(Debug)]
struct ScriptedJoiner {
    session: ScriptedSession,
}

#[async_trait]
impl QueueJoiner for ScriptedJoiner {
    async fn begin(&self, queue: &str) -> Result<(), ConsumeError> {
        match self.session.ensure(queue).await? {
            Presence::Down(words) => Err(Error::new(ErrorKind::Down, words).into()),
            // Deliveries come once the queue is joined.
            _ => self.session.begin(queue, 0).await,
        }
    }
}

#[async_trait]
impl Consumer for ScriptedConsumer {
    fn down(&self) -> &[(String, Error)] {
        &self.down
    }

    fn joiner(&self) -> Arc<dyn QueueJoiner> {
        let session = ScriptedSession { broker: self.broker.clone(), number: self.number };
        Arc::new(ScriptedJoiner { session })
    }

    fn join(&mut self, queue: &str) {
        let prefetch = self.full.unwrap_or(self.first);
        self.broker.change(|model| {
            let client = model.clients.get_mut(&self.number).unwrap();
            let joined = client.consumed.iter_mut().filter(|(name, _)| name == queue);
            joined.for_each(|(_, known)| *known = prefetch);
        });
    }

    fn adapt_prefetch(&mut self, full: u16, _bytes: u64) {
        self.full = Some(usize::from(full));
        self.set_blocked(0);
    }

    fn leave(&mut self, queue: &str) {
        self.broker.change(|model| {
            model.note(&format!("leave {} {queue}", self.number));
            let client = model.clients.get_mut(&self.number).unwrap();
            client.consumed.retain(|(consumed, _)| consumed != queue);
        });
    }

    fn set_blocked(&mut self, count: usize) {
        let Some(full) = self.full else { return };
        let mut model = self.broker.lock();
        let client = model.clients.get_mut(&self.number).unwrap();
        client.consumed.iter_mut().for_each(|(_, prefetch)| *prefetch = full + count.min(4096));
    }

    async fn next(&mut self) -> Result<Vec<Delivery>, End> {
        let (mut state, mut stopped) = {
            let mut model = self.broker.lock();
            let client = model.clients.get_mut(&self.number).unwrap();
            (client.state.watch(), client.stopped.subscribe())
        };
        loop {
            let changed = self.broker.changed.notified();
            if *stopped.borrow_and_update() {
                return Err(End::Stopped);
            }
            if let State::Lost(reason) = &*state.borrow_and_update() {
                return Err(End::Lost(reason.clone()));
            }
            let batch = self.broker.lock().hand_out(self.number);
            if !batch.is_empty() {
                let delivery = |(tag, queue, stored): (u64, String, Stored)| {
                    let Address { exchange, routing_key } = stored.address;
                    let origin = Origin { queue, exchange, routing_key, redelivered: stored.redelivered };
                    Delivery::new(stored.message, origin, AckToken::new(tag, self.number))
                };
                return Ok(batch.into_iter().map(delivery).collect());
            }
            if let Some(queue) = self.broker.lock().tell_cancelled(self.number) {
                return Err(End::Cancelled { queue });
            }
            tokio::select! {
                biased;
                Ok(()) = state.changed() => {}
                Ok(()) = stopped.changed() => {}
                () = changed => {}
            }
        }
    }

    fn settle(&self, ack_tokens: Vec<AckToken>) -> broker::Result<usize> {
        let ours = ack_tokens.into_iter().filter(|token| token.generation() == self.number);
        let tags: Vec<u64> = ours.map(|token| token.tag()).collect();
        if tags.is_empty() {
            return Ok(0);
        }
        if let Some(reason) = self.broker.lock().clients[&self.number].state.lost() {
            return Err(Error::lost(reason));
        }
        self.broker.change(|model| model.settle(self.number, &tags));
        Ok(tags.len())
    }

    fn window(&self) -> usize {
        self.broker.lock().clients[&self.number].consumed.iter().map(|(_, prefetch)| prefetch).sum()
    }

    fn give_back(&self, ack_token: &AckToken) -> broker::Result<()> {
        self.broker.change(|model| model.give_one_back(self.number, ack_token.tag()));
        Ok(())
    }

    async fn stop(&mut self) -> broker::Result<()> {
        let session = ScriptedSession { broker: self.broker.clone(), number: self.number };
        self.broker.lock().clients[&self.number].stopped.send_replace(true);
        session.answer().await
    }

    async fn close(&mut self) -> broker::Result<()> {
        self.stop().await?;
        self.broker.change(|model| model.give_back(self.number));
        Ok(())
    }
}
