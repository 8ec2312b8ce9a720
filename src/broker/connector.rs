//! Sessions with RabbitMQ behind the traits that the worker knows.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::{sync::watch, time::Instant};

use crate::celery::message::{Address, Message, Publication};

use super::{
    AckToken, Announcements, Broadcasts, Broker, BrokerOptions, BrokerSession, BrokerUrl, Confirmation, ConsumeError,
    Consumer, Deliveries, Delivery, Early, End, Error, Exchange, Joined, Joiner, Look, NoticeSource, Notices,
    ParkedDeliveries, ParkedDelivery, ParkedSource, ParkedToken, Presence, Publish, PublishError, Publisher,
    QueueJoiner, QueueSpec, Result, Session, Settler, State, Subscription,
};

/// How long a trial waits for a consumer, about as long as RabbitMQ itself: whenever the queue is back meanwhile, it is noticed.
const TRIAL: Duration = Duration::from_secs(60);

/// Opens sessions with RabbitMQ, each with the URL behind the one that answered last, as Celery does.
pub struct Connector {
    options: Box<dyn Fn() -> BrokerOptions + Send + Sync>,
    next_url: AtomicUsize,
}

impl Connector {
    /// Makes a connector; `options` says anew for each session how it is opened.
    pub fn new(options: impl Fn() -> BrokerOptions + Send + Sync + 'static) -> Self {
        Self { options: Box::new(options), next_url: AtomicUsize::new(0) }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("next_url", &self.next_url).finish_non_exhaustive()
    }
}

#[async_trait]
impl Broker for Connector {
    async fn open(&self) -> Result<Arc<dyn BrokerSession>> {
        let options = (self.options)();
        let mut next = self.next_url.load(Ordering::Relaxed);
        let session = Session::open_next(&options, &mut next).await?;
        self.next_url.store(next, Ordering::Relaxed);
        Ok(Arc::new(session))
    }
}

#[async_trait]
impl Publish for Session {
    fn patience(&self) -> Duration {
        self.publisher().patience()
    }

    async fn publish_within(
        &self,
        limit: Duration,
        batch: Vec<Publication>,
        mandatory: bool,
        early: Option<Early>,
    ) -> Vec<std::result::Result<Confirmation, PublishError>> {
        self.publisher().publish_within(limit, batch, mandatory, early).await
    }
}

#[async_trait]
impl Publish for Publisher {
    fn patience(&self) -> Duration {
        Self::patience(self)
    }

    async fn publish_within(
        &self,
        limit: Duration,
        batch: Vec<Publication>,
        mandatory: bool,
        early: Option<Early>,
    ) -> Vec<std::result::Result<Confirmation, PublishError>> {
        Self::publish_within(self, limit, batch, mandatory, early).await
    }
}

#[async_trait]
impl BrokerSession for Session {
    fn address(&self) -> String {
        self.url().to_string()
    }

    fn url(&self) -> Option<&BrokerUrl> {
        Some(Self::url(self))
    }

    fn watch(&self) -> watch::Receiver<State> {
        Self::watch(self)
    }

    fn silence(&self) -> Duration {
        Self::silence(self)
    }

    fn late_since(&self, received: Instant) -> Option<Instant> {
        Self::late_since(self, received)
    }

    async fn may_answer(&self, probe: BoxFuture<'_, std::result::Result<(), PublishError>>) -> Result<()> {
        Self::may_answer(self, probe).await
    }

    async fn consume(
        &self,
        queues: &[String],
        prefetch: u16,
        tag_prefix: &str,
    ) -> std::result::Result<Box<dyn Consumer>, ConsumeError> {
        let (deliveries, settler) = Self::consume(self, queues, prefetch, tag_prefix).await?;
        Ok(Box::new(LapinConsumer { deliveries, settler, begun: Arc::default() }))
    }

    async fn try_consumer(&self, queue: &str) -> Result<()> {
        let options = self.options();
        let connection_name = format!("{} trial", options.connection_name);
        let options = BrokerOptions { connection_name, timeout: TRIAL, ..options };
        let session = Self::open(&options).await?;
        Self::consume(&session, &[queue.to_owned()], 1, "trial").await.map_err(|fault| fault.error)?;
        Self::close(&session).await;
        Ok(())
    }

    fn frame_max(&self) -> usize {
        self.publisher().frame_max()
    }

    async fn look(&self, queue: &str) -> Result<Look> {
        self.topology().look(queue).await
    }

    async fn ensure_queue(&self, queue: &QueueSpec) -> Result<Presence> {
        self.topology().ensure_queue(queue).await
    }

    async fn ensure_dead(&self) -> Result<Presence> {
        self.topology().ensure_dead().await
    }

    async fn trim_dead(&self, most: u64) -> Result<u64> {
        Self::trim_dead(self, most).await
    }

    async fn ensure_metrics(&self, max_length: u32) -> Result<Presence> {
        self.topology().ensure_metrics(max_length).await
    }

    async fn delay_address(&self, queue: &str, remaining: Duration) -> Result<Address> {
        self.delay().address(queue, remaining).await
    }

    async fn delay_lack(&self) -> Result<Option<String>> {
        self.delay().lack().await
    }

    fn is_parking_available(&self) -> bool {
        self.parking().is_available()
    }

    async fn ensure_parking(&self, max_bytes: u64) -> Result<Presence> {
        self.parking().ensure(max_bytes).await
    }

    async fn consume_parked(&self, prefetch: u16) -> Result<Box<dyn ParkedSource>> {
        Ok(Box::new(self.parking().consume(prefetch).await?))
    }

    async fn ensure_fanout(&self) -> Result<Presence> {
        self.fanout().ensure().await
    }

    async fn announce(&self, body: Bytes) -> std::result::Result<(), PublishError> {
        self.fanout().publish(body).await
    }

    async fn listen(&self) -> Result<Box<dyn Announcements>> {
        Ok(Box::new(self.fanout().listen().await?))
    }

    async fn subscribe(&self, subscription: &Subscription) -> Result<Box<dyn NoticeSource>> {
        Ok(Box::new(Self::subscribe(self, subscription).await?))
    }

    async fn notify(&self, exchange: &Exchange, publications: Vec<Publication>) -> Result<()> {
        Self::notify(self, exchange, publications).await
    }

    async fn close(&self) -> bool {
        Self::close(self).await
    }

    fn end(&self) {
        Self::end(self);
    }
}

/// The consuming channel of a session: deliveries and what settles them.
#[derive(Debug)]
struct LapinConsumer {
    deliveries: Deliveries,
    settler: Settler,
    /// Consumers of further queues that are not taken in yet.
    begun: Begun,
}

type Begun = Arc<Mutex<BTreeMap<String, Joined>>>;

#[async_trait]
impl Consumer for LapinConsumer {
    fn down(&self) -> &[(String, Error)] {
        self.deliveries.down()
    }

    fn joiner(&self) -> Arc<dyn QueueJoiner> {
        Arc::new(LapinJoiner { joiner: self.deliveries.joiner(), begun: Arc::clone(&self.begun) })
    }

    fn join(&mut self, queue: &str) {
        if let Some(joined) = self.begun.lock().unwrap_or_else(PoisonError::into_inner).remove(queue) {
            self.deliveries.join(joined);
        }
    }

    fn adapt_prefetch(&mut self, full: u16, bytes: u64) {
        self.deliveries.adapt_prefetch(full, bytes);
    }

    fn leave(&mut self, queue: &str) {
        self.deliveries.leave(queue);
    }

    fn set_blocked(&mut self, count: usize) {
        self.deliveries.set_blocked(count);
    }

    async fn next(&mut self) -> std::result::Result<Vec<Delivery>, End> {
        self.deliveries.next().await
    }

    fn window(&self) -> usize {
        self.deliveries.window()
    }

    fn give_back(&self, ack_token: &AckToken) -> Result<()> {
        self.settler.give_back(ack_token)
    }

    fn settle(&self, ack_tokens: Vec<AckToken>) -> Result<usize> {
        self.settler.settle(ack_tokens)
    }

    async fn stop(&mut self) -> Result<()> {
        self.settler.stop().await
    }

    async fn close(&mut self) -> Result<()> {
        self.settler.close().await
    }
}

#[derive(Debug)]
struct LapinJoiner {
    joiner: Joiner,
    begun: Begun,
}

#[async_trait]
impl QueueJoiner for LapinJoiner {
    async fn begin(&self, queue: &str) -> std::result::Result<(), ConsumeError> {
        let joined = self.joiner.join(queue).await?;
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.to_owned(), joined);
        Ok(())
    }
}

#[async_trait]
impl ParkedSource for ParkedDeliveries {
    async fn next(&mut self) -> std::result::Result<Vec<ParkedDelivery>, End> {
        Self::next(self).await
    }

    fn acknowledge(&self, ack_token: &ParkedToken) {
        Self::acknowledge(self, ack_token);
    }
}

#[async_trait]
impl NoticeSource for Notices {
    async fn next(&mut self) -> std::result::Result<Message, End> {
        Self::next(self).await.map(|(message, _)| message)
    }
}

#[async_trait]
impl Announcements for Broadcasts {
    async fn next(&mut self) -> std::result::Result<Bytes, String> {
        Self::next(self).await
    }
}
