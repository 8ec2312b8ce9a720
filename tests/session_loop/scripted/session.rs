//! One session with the broker.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use filestorage::broker::{
    self, Announcements, BrokerSession, ConsumeError, Consumer, DEAD_QUEUE, Error, ErrorKind, Look, METRICS_QUEUE,
    NoticeSource, PARKED_QUEUE, ParkedSource, Parking, Presence, PublishError, QueueSpec, State, Subscription,
};
use filestorage::celery::message::{Address, Message, Publication};
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Scripted;
use super::announcements::Listener;
use super::consumer::ScriptedConsumer;
use super::notices::ScriptedNotices;
use super::parked::ScriptedParked;
use crate::model::{Exchange, Model, Mood, Queue};

/// How long the session waits for any answer but a confirm.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A session with the broker.
#[derive(Debug)]
pub(super) struct ScriptedSession {
    pub(super) broker: Scripted,
    pub(super) number: u64,
}

impl ScriptedSession {
    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.broker.lock().clients.get_mut(&self.number).unwrap().state.watch()
    }

    /// Waits for one answer of the broker: two steps, or for ever while nothing comes through.
    pub(super) async fn answer(&self) -> broker::Result<()> {
        let (step, is_cut) = {
            let mut model = self.broker.lock();
            (model.step() + model.step(), model.clients[&self.number].cut.is_some())
        };
        let wait = async {
            tokio::time::sleep(step).await;
            if is_cut {
                std::future::pending::<()>().await;
            }
        };
        match broker::within(self.state(), ANSWER_LIMIT, wait).await? {
            Some(()) => Ok(()),
            None => {
                self.broker.change(|model| model.lose(self.number, "no answer"));
                Err(Error::lost("no answer"))
            }
        }
    }

    /// Waits a step through the network.
    pub(super) async fn pass(&self) -> broker::Result<()> {
        let step = self.broker.lock().step();
        broker::within(self.state(), step, std::future::pending::<()>()).await.map(drop)
    }

    /// Makes a queue unless it is there.
    pub(super) async fn ensure(&self, name: &str) -> broker::Result<Presence> {
        self.ensure_as(name, Queue::default()).await
    }

    async fn ensure_as(&self, name: &str, queue: Queue) -> broker::Result<Presence> {
        self.answer().await?;
        Ok(self.broker.change(|model| {
            if let Some(queue) = model.queues.get(name) {
                return match queue.mood {
                    Mood::Down => Presence::Down("its node is down".to_owned()),
                    _ => Presence::Present,
                };
            }
            if model.forbidden.contains(name) {
                return Presence::Denied(format!("no right to make {name}"));
            }
            model.queues.insert(name.to_owned(), queue);
            model.note(&format!("make {name}"));
            Presence::Created
        }))
    }

    /// Makes the queues of parked publications, first the one to which all others lead.
    async fn ensure_parking_queues(&self, max_bytes: u64) -> broker::Result<Presence> {
        let mut names: Vec<_> = Parking::queues().collect();
        names.rotate_right(1);
        let mut presence = Presence::Present;
        for name in names {
            match self.ensure_as(&name, Model::parking_queue(&name, max_bytes)).await? {
                Presence::Present => {}
                Presence::Created => presence = Presence::Created,
                missing => return Ok(missing),
            }
        }
        Ok(presence)
    }

    /// Begins to consume a queue.
    pub(super) async fn begin(&self, queue: &str, prefetch: usize) -> Result<(), ConsumeError> {
        self.answer().await?;
        self.broker.change(|model| {
            if model.stalled.contains(queue) {
                model.lose(self.number, "no consumer");
                let error = Error::new(ErrorKind::Down, "it gives no consumer");
                return Err(ConsumeError { stalled: Some(queue.to_owned()), error });
            }
            model.note(&format!("consume {} {queue}", self.number));
            let client = model.clients.get_mut(&self.number).unwrap();
            client.consumed.push((queue.to_owned(), prefetch));
            Ok(())
        })
    }
}

#[async_trait]
impl BrokerSession for ScriptedSession {
    fn address(&self) -> String {
        "scripted".to_owned()
    }

    fn url(&self) -> Option<&broker::BrokerUrl> {
        None
    }

    fn watch(&self) -> watch::Receiver<State> {
        self.state()
    }

    fn silence(&self) -> Duration {
        self.broker.lock().silence(self.number)
    }

    fn late_since(&self, received: Instant) -> Option<Instant> {
        self.broker.lock().late_since(self.number, received)
    }

    async fn may_answer(&self, _probe: BoxFuture<'_, Result<(), PublishError>>) -> broker::Result<()> {
        self.answer().await
    }

    async fn consume(
        &self,
        queues: &[String],
        prefetch: u16,
        _tag_prefix: &str,
    ) -> Result<Box<dyn Consumer>, ConsumeError> {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for queue in queues {
            match self.ensure(queue).await? {
                Presence::Down(words) => down.push((queue.clone(), Error::new(ErrorKind::Down, words))),
                _ => up.push(queue.clone()),
            }
        }
        if let (true, Some((_, error))) = (up.is_empty(), down.first()) {
            return Err(error.clone().into());
        }
        for queue in &up {
            self.begin(queue, usize::from(prefetch)).await?;
        }
        let consumer = ScriptedConsumer {
            broker: self.broker.clone(),
            number: self.number,
            down,
            full: None,
            first: usize::from(prefetch),
        };
        Ok(Box::new(consumer))
    }

    async fn try_consumer(&self, queue: &str) -> broker::Result<()> {
        self.answer().await?;
        let mut model = self.broker.lock();
        model.note(&format!("try {queue}"));
        if model.stalled.contains(queue) {
            return Err(Error::new(ErrorKind::Down, "it gives no consumer"));
        }
        Ok(())
    }

    fn frame_max(&self) -> usize {
        131_072
    }

    fn is_parking_available(&self) -> bool {
        self.broker.lock().clients[&self.number].has_parking
    }

    async fn ensure_parking(&self, max_bytes: u64) -> broker::Result<Presence> {
        let presence = self.ensure_parking_queues(max_bytes).await;
        let is_there = matches!(presence, Ok(Presence::Present | Presence::Created));
        self.broker.change(|model| model.clients.get_mut(&self.number).unwrap().has_parking = is_there);
        presence
    }

    async fn consume_parked(&self, prefetch: u16) -> broker::Result<Box<dyn ParkedSource>> {
        self.answer().await?;
        self.broker.change(|model| {
            match model.queues.get(PARKED_QUEUE) {
                Some(queue) if queue.mood != Mood::Down => {}
                _ => return Err(Error::new(ErrorKind::Down, "it gives no consumer")),
            }
            model.note(&format!("consume {} {PARKED_QUEUE}", self.number));
            model.clients.get_mut(&self.number).unwrap().parked = Some(usize::from(prefetch));
            Ok(Box::new(ScriptedParked { broker: self.broker.clone(), number: self.number }) as _)
        })
    }

    async fn look(&self, queue: &str) -> broker::Result<Look> {
        self.answer().await?;
        let mut model = self.broker.lock();
        model.note(&format!("look {queue}"));
        Ok(match model.queues.get(queue) {
            None => Look::Missing,
            Some(found) if found.mood == Mood::Down => Look::Down("its node is down".to_owned()),
            Some(found) => {
                let messages = u32::try_from(found.messages.len()).unwrap();
                Look::Present { messages, consumers: 0 }
            }
        })
    }

    async fn ensure_queue(&self, queue: &QueueSpec) -> broker::Result<Presence> {
        self.ensure(&queue.name).await
    }

    async fn ensure_dead(&self) -> broker::Result<Presence> {
        self.ensure(DEAD_QUEUE).await
    }

    async fn trim_dead(&self, most: u64) -> broker::Result<u64> {
        self.answer().await?;
        Ok(self.broker.change(|model| {
            model.note("trim");
            let Some(queue) = model.queues.get_mut(DEAD_QUEUE) else { return 0 };
            let surplus = queue.messages.len().saturating_sub(usize::try_from(most).unwrap_or(usize::MAX));
            queue.messages.drain(..surplus).count() as u64
        }))
    }

    async fn ensure_metrics(&self, _max_length: u32) -> broker::Result<Presence> {
        self.ensure(METRICS_QUEUE).await
    }

    async fn delay_address(&self, queue: &str, remaining: Duration) -> broker::Result<Address> {
        self.answer().await?;
        let steps = (0..=24).map(|doublings| 100_u64 << doublings);
        let step = steps.take_while(|step| Duration::from_millis(*step) <= remaining).last().unwrap_or(100);
        let exchange = format!("filestorage.delay.{step}");
        let mut model = self.broker.lock();
        model.note(&format!("delay {queue}"));
        if model.delays_are_down {
            return Err(Error::new(ErrorKind::Down, "its node is down"));
        }
        if model.forbidden.contains(&exchange) {
            return Err(Error::new(ErrorKind::Denied, "no right to make it"));
        }
        Ok(Address { exchange, routing_key: queue.to_owned() })
    }

    async fn delay_lack(&self) -> broker::Result<Option<String>> {
        self.answer().await?;
        Ok(None)
    }

    async fn ensure_fanout(&self) -> broker::Result<Presence> {
        self.answer().await?;
        let mut model = self.broker.lock();
        model.note(&format!("fanout {}", self.number));
        let is_forbidden = model.forbidden.contains(broker::INVALIDATIONS_EXCHANGE);
        Ok(if is_forbidden { Presence::Denied("no right".to_owned()) } else { Presence::Present })
    }

    async fn announce(&self, body: Bytes) -> Result<(), PublishError> {
        if let Err(error) = self.answer().await {
            return Err(PublishError::Lost(error.to_string()));
        }
        let mut model = self.broker.lock();
        model.note(&format!("announce {}", self.number));
        if model.exchange == Exchange::Unconfirmed {
            let publication =
                Publication { address: Address::queue(""), message: Message { body, ..Message::default() } };
            return Err(PublishError::Unconfirmed(Box::new(publication)));
        }
        let listeners = model.clients.values().flat_map(|client| &client.listeners);
        for listener in listeners.filter(|_| model.exchange == Exchange::Works) {
            drop(listener.send(body.clone()));
        }
        Ok(())
    }

    async fn listen(&self) -> broker::Result<Box<dyn Announcements>> {
        self.answer().await?;
        let (sender, listener) = mpsc::unbounded_channel();
        self.broker.change(|model| model.clients.get_mut(&self.number).unwrap().listeners.push(sender));
        Ok(Box::new(Listener { listener, state: self.state() }))
    }

    async fn subscribe(&self, subscription: &Subscription) -> broker::Result<Box<dyn NoticeSource>> {
        self.answer().await?;
        let mut model = self.broker.lock();
        let queue = &subscription.queue.name;
        model.note(&format!("subscribe {} {queue}", self.number));
        if model.forbidden.contains(queue) {
            return Err(Error::new(ErrorKind::Denied, format!("no right to make {queue}")));
        }
        if model.locked {
            return Err(Error::new(ErrorKind::Down, format!("{queue} is locked")));
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        model.clients.get_mut(&self.number).unwrap().controls.push(sender);
        drop(model);
        Ok(Box::new(ScriptedNotices { receiver, state: self.state() }))
    }

    async fn notify(&self, exchange: &broker::Exchange, publications: Vec<Publication>) -> broker::Result<()> {
        self.pass().await?;
        if !self.broker.lock().takes_notices {
            std::future::pending::<()>().await;
        }
        self.broker.change(|model| {
            if model.forbidden.contains(&exchange.name) {
                return Err(Error::new(ErrorKind::Denied, format!("no right to make {}", exchange.name)));
            }
            if model.clients[&self.number].cut.is_none() {
                model.notices.extend(publications.into_iter().map(|publication| (Instant::now(), publication)));
            }
            Ok(())
        })
    }

    async fn close(&self) -> bool {
        if !self.broker.lock().answers_close {
            return std::future::pending().await;
        }
        if self.answer().await.is_err() {
            return false;
        }
        self.broker.change(|model| {
            model.note(&format!("close {}", self.number));
            model.give_back(self.number);
        });
        true
    }

    fn end(&self) {
        self.broker.change(|model| model.lose(self.number, "ended by the worker"));
    }
}
