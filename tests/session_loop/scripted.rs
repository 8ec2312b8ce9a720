//! The broker of the tests behind the traits that a worker knows.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use filestorage::broker::{
    self, AckToken, Announcements, Broker, BrokerSession, Confirmation, ConsumeError, Consumer, DEAD_QUEUE, Delivery,
    End, Error, ErrorKind, Look, METRICS_QUEUE, ParkedSource, Presence, Publish, PublishError, QueueJoiner, QueueSpec,
    State,
};
use filestorage::celery::message::{Address, Origin, Publication};
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use crate::model::{Door, Model, Mood, Verdict, name_of};

/// How long the session waits for a confirm.
pub(crate) const CONFIRM_LIMIT: Duration = Duration::from_secs(15);
/// How long the session waits for any other answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A broker in memory; clones share it.
#[derive(Clone)]
pub(crate) struct Scripted {
    model: Arc<Mutex<Model>>,
    /// Something changed that a consumer may wait for.
    changed: Arc<Notify>,
}

impl fmt::Debug for Scripted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Scripted")
    }
}

impl Scripted {
    pub(crate) fn new(seed: u64) -> Self {
        Self { model: Arc::new(Mutex::new(Model::new(seed))), changed: Arc::default() }
    }

    /// Changes the model, and wakes whoever waits for what came of it.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Model) -> T) -> T {
        let changed = change(&mut self.lock());
        self.changed.notify_waiters();
        changed
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap()
    }
}

#[async_trait]
impl Broker for Scripted {
    async fn open(&self) -> broker::Result<Arc<dyn BrokerSession>> {
        let step = self.lock().step();
        tokio::time::sleep(2 * step).await;
        let door = self.lock().door.clone();
        match door {
            Door::Open => {}
            Door::Unreachable => return Err(Error::new(ErrorKind::Unreachable, "nobody answers")),
        }
        let number = self.change(Model::connect);
        Ok(Arc::new(ScriptedSession { broker: self.clone(), number }))
    }
}

/// A session with the broker.
#[derive(Debug)]
struct ScriptedSession {
    broker: Scripted,
    number: u64,
}

impl ScriptedSession {
    fn state(&self) -> watch::Receiver<State> {
        self.broker.lock().clients[&self.number].state.subscribe()
    }

    /// Waits for one answer of the broker: two steps, or for ever while nothing comes through.
    async fn answer(&self) -> broker::Result<()> {
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
    async fn pass(&self) -> broker::Result<()> {
        let step = self.broker.lock().step();
        broker::within(self.state(), step, std::future::pending::<()>()).await.map(drop)
    }

    /// Makes a queue unless it is there.
    async fn ensure(&self, name: &str) -> broker::Result<Presence> {
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
            model.queue(name);
            model.note(&format!("make {name}"));
            Presence::Created
        }))
    }

    /// Begins to consume a queue.
    async fn begin(&self, queue: &str, prefetch: usize) -> Result<(), ConsumeError> {
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

    /// Publishes, and says what the broker said to each.
    async fn verdicts(&self, batch: &[Publication]) -> broker::Result<Vec<Verdict>> {
        let mut state = self.state();
        // A blocked broker reads nothing.
        if state.wait_for(|state| !matches!(state, State::Blocked(_))).await.is_err() {
            return Err(Error::lost("the broker is gone"));
        }
        self.pass().await?;
        let (verdicts, waiting) = self.broker.change(|model| {
            if model.clients[&self.number].cut.is_some() {
                model.note(&format!("swallowed {}", batch.len()));
                return (None, Vec::new());
            }
            let verdicts: Vec<_> = batch.iter().map(|publication| model.arrive(publication)).collect();
            let waiting: Vec<_> = batch.iter().filter_map(Model::delay).collect();
            (Some(verdicts), waiting)
        });
        for (wait, queue, message) in waiting {
            let broker = self.broker.clone();
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                broker.change(|model| {
                    let id = name_of(&message);
                    let index = model.delayed.iter().position(|delayed| *delayed == id).unwrap();
                    model.delayed.remove(index);
                    model.put(&queue, &message);
                });
            });
        }
        let Some(verdicts) = verdicts else { return std::future::pending().await };
        self.pass().await?;
        if self.broker.lock().clients[&self.number].cut.is_some() {
            // The confirms are on their way to nowhere.
            return std::future::pending().await;
        }
        Ok(verdicts)
    }
}

#[async_trait]
impl Publish for ScriptedSession {
    fn patience(&self) -> Duration {
        CONFIRM_LIMIT
    }

    async fn publish_within(
        &self,
        limit: Duration,
        batch: Vec<Publication>,
        mandatory: bool,
    ) -> Vec<Result<Confirmation, PublishError>> {
        let began = Instant::now();
        let verdicts = match broker::within(self.state(), limit, self.verdicts(&batch)).await {
            Ok(Some(Ok(verdicts))) => verdicts,
            Ok(None) => vec![Verdict::Silent; batch.len()],
            Ok(Some(Err(error))) | Err(error) => {
                self.broker.change(|model| model.doubt(&batch));
                return batch.iter().map(|_| Err(PublishError::Lost(error.to_string()))).collect();
            }
        };
        if verdicts.contains(&Verdict::Silent) {
            let rest = limit.saturating_sub(began.elapsed());
            if let Err(error) = broker::within(self.state(), rest, std::future::pending::<()>()).await {
                self.broker.change(|model| model.doubt(&batch));
                return batch.iter().map(|_| Err(PublishError::Lost(error.to_string()))).collect();
            }
        }
        self.broker.change(|model| {
            let answers = batch.into_iter().zip(verdicts).map(|(publication, verdict)| match verdict {
                Verdict::Routed => {
                    model.confirm(&publication);
                    Ok(Confirmation::Routed)
                }
                Verdict::Returned => {
                    if !mandatory {
                        return Ok(Confirmation::Routed);
                    }
                    model.confirm_returned(&publication);
                    Ok(Confirmation::Returned { code: 312, text: "NO_ROUTE".to_owned() })
                }
                Verdict::Nacked => Err(PublishError::Nacked(Box::new(publication))),
                Verdict::Silent => {
                    model.doubt(std::slice::from_ref(&publication));
                    Err(PublishError::Unconfirmed(Box::new(publication)))
                }
                Verdict::Refused(code, text) => Err(PublishError::Refused { code, text }),
            });
            answers.collect()
        })
    }
}

#[async_trait]
impl BrokerSession for ScriptedSession {
    fn address(&self) -> String {
        "scripted".to_owned()
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
        if self.broker.lock().stalled.contains(queue) {
            return Err(Error::new(ErrorKind::Down, "it gives no consumer"));
        }
        Ok(())
    }

    fn frame_max(&self) -> usize {
        131_072
    }

    fn is_parking_available(&self) -> bool {
        false
    }

    async fn ensure_parking(&self, _max_bytes: u64) -> broker::Result<Presence> {
        Ok(Presence::Denied("the scripted broker parks nothing".to_owned()))
    }

    async fn consume_parked(&self, _prefetch: u16) -> broker::Result<Box<dyn ParkedSource>> {
        Err(Error::new(ErrorKind::Denied, "the scripted broker parks nothing"))
    }

    async fn look(&self, queue: &str) -> broker::Result<Look> {
        self.answer().await?;
        let model = self.broker.lock();
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

    async fn ensure_metrics(&self, _max_length: u32) -> broker::Result<Presence> {
        self.ensure(METRICS_QUEUE).await
    }

    async fn delay_address(&self, queue: &str, remaining: Duration) -> broker::Result<Address> {
        self.answer().await?;
        let steps = (0..=24).map(|doublings| 100_u64 << doublings);
        let step = steps.take_while(|step| Duration::from_millis(*step) <= remaining).last().unwrap_or(100);
        let exchange = format!("filestorage.delay.{step}");
        if self.broker.lock().forbidden.contains(&exchange) {
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
        let is_forbidden = self.broker.lock().forbidden.contains(broker::INVALIDATIONS_EXCHANGE);
        Ok(if is_forbidden { Presence::Denied("no right".to_owned()) } else { Presence::Present })
    }

    async fn announce(&self, body: Bytes) -> Result<(), PublishError> {
        if let Err(error) = self.answer().await {
            return Err(PublishError::Lost(error.to_string()));
        }
        let model = self.broker.lock();
        for client in model.clients.values() {
            client.listeners.iter().for_each(|listener| drop(listener.send(body.clone())));
        }
        Ok(())
    }

    async fn listen(&self) -> broker::Result<Box<dyn Announcements>> {
        self.answer().await?;
        let (sender, listener) = mpsc::unbounded_channel();
        self.broker.change(|model| model.clients.get_mut(&self.number).unwrap().listeners.push(sender));
        Ok(Box::new(Listener { listener, state: self.state() }))
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

#[derive(Debug)]
struct ScriptedConsumer {
    broker: Scripted,
    number: u64,
    down: Vec<(String, Error)>,
    /// The prefetch without what only waits.
    full: Option<usize>,
    /// The prefetch that a queue begins with.
    first: usize,
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

    fn set_blocked(&mut self, count: usize) {
        let Some(full) = self.full else { return };
        let mut model = self.broker.lock();
        let client = model.clients.get_mut(&self.number).unwrap();
        client.consumed.iter_mut().for_each(|(_, prefetch)| *prefetch = full + count.min(4096));
    }

    async fn next(&mut self) -> Result<Vec<Delivery>, End> {
        let (mut state, mut stopped) = {
            let model = self.broker.lock();
            let client = &model.clients[&self.number];
            (client.state.subscribe(), client.stopped.subscribe())
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
                let delivery = |(tag, queue, stored): (u64, String, crate::model::Stored)| {
                    let Address { exchange, routing_key } = stored.address;
                    let origin = Origin { queue, exchange, routing_key, redelivered: stored.redelivered };
                    Delivery::new(stored.message, origin, AckToken::new(tag, self.number))
                };
                return Ok(batch.into_iter().map(delivery).collect());
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
        if let State::Lost(reason) = &*self.broker.lock().clients[&self.number].state.borrow() {
            return Err(Error::lost(reason.clone()));
        }
        self.broker.change(|model| model.settle(self.number, &tags));
        Ok(tags.len())
    }

    fn window(&self) -> usize {
        self.full.unwrap_or(self.first)
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

#[derive(Debug)]
struct Listener {
    listener: mpsc::UnboundedReceiver<Bytes>,
    state: watch::Receiver<State>,
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
