//! Celery's backend `redis://`: each answer is kept in a Redis under the id of its task, and those who wait are told.

mod chords;
mod connection;
mod fault;
mod join;
mod sentinel;

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use redis::{Pipeline, Value};
use uuid::Uuid;

use self::connection::Store;
use self::fault::Fault;
use self::join::Parts;
use super::ResultBackend;
use crate::broker::{Confirmation, Early, Publish, PublishError};
use crate::celery::canvas::CanvasOptions;
use crate::celery::chord::Part;
use crate::celery::message::{Address, Headers, Message, Properties, Publication};
use crate::celery::reply::{self, Child, Extended, ReplyOptions, ReplyTo, State};
use crate::celery::request::TaskRequest;
use crate::json::as_python;
use crate::redis_url::{RedisLayout, RedisUrl};
use crate::telemetry::Component;

pub use self::connection::SharedUrl;

/// The routing key that stands for the Redis: no queue can have this name. All answers have this address, because a Redis takes
/// them all or none.
const PLACE: &str = "amq.redis results";
/// The beginning of the routing keys that stand for chords, before the id of the group: one that cannot be joined holds up nothing else.
const CHORD_PLACE: &str = "amq.redis chord ";
/// The header of an answer that names its key.
const KEY: &str = "redis-key";
/// The beginning of the keys of results, and of the channels on which those who wait are told.
const PREFIX: &str = "celery-task-meta-";
/// The most bytes of a value.
const LONGEST_VALUE: usize = 512 << 20;
/// Bytes of answers that are written in one transaction.
const AT_ONCE: usize = 8 << 20;
/// The beginning of a result that no later state replaces.
const SUCCESS: &str = r#"{"status": "SUCCESS""#;
/// How often it is looked whether an idle Redis still answers.
const CHECK: Duration = Duration::from_secs(5);
/// How soon at most it is looked again when it took something not.
const TROUBLE: Duration = Duration::from_secs(1);

/// The keys of results in a Redis, as Celery's own backend writes and reads them.
#[derive(Clone, Debug)]
pub struct Redis {
    replies: ReplyOptions,
    /// Seconds that a result is kept; `None` keeps it for ever.
    expires: Option<u64>,
    store: Store,
    place: Address,
    canvas: CanvasOptions,
    layout: RedisLayout,
}

/// What became of one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kept {
    /// It is kept, or a success is.
    Yes,
    /// It is not known to be kept; it may be sent again.
    Unknown,
    /// It never will be, for this reason.
    Never(String),
}

impl Redis {
    /// Answers in the name of this node; `expires` is how long a result is kept, in whole seconds, of which none means for ever. Bodies
    /// of chords that name no queue go to `default_queue`, with `max_bytes` at most.
    #[must_use]
    pub fn new(node: &str, url: SharedUrl, expires: Duration, default_queue: &str, max_bytes: u64) -> Self {
        let canvas = CanvasOptions::new(default_queue, node, max_bytes, true);
        let replies = ReplyOptions { worker: node.to_owned(), pid: std::process::id(), persistent: true };
        let expires = Some(expires.as_secs()).filter(|seconds| *seconds > 0);
        Self {
            replies,
            expires,
            store: Store::new(url, touched("")),
            place: Address::queue(PLACE),
            canvas,
            layout: RedisLayout::default(),
        }
    }

    /// Lays out keys and chords in this way, which all clients and workers must share.
    #[must_use]
    pub fn with_layout(self, layout: RedisLayout) -> Self {
        Self { store: Store::new(self.store.shared_url(), touched(&layout.key_prefix)), layout, ..self }
    }

    /// Returns the key of the result of a task.
    fn task_key(&self, id: &str) -> String {
        format!("{}{PREFIX}{id}", self.layout.key_prefix)
    }

    /// Returns the URL for people, without its login.
    #[must_use]
    pub fn url(&self) -> RedisUrl {
        self.store.url()
    }

    /// Checks the Redis again and again, also at once when it took something not, and tells `report` why it takes nothing, or that it
    /// does.
    pub async fn watch(&self, report: impl Fn(Result<(), String>)) {
        loop {
            report(self.check().await.map_err(|fault| fault.to_string()));
            self.pause().await;
        }
    }

    /// Waits until the next check.
    async fn pause(&self) {
        tokio::time::sleep(TROUBLE).await;
        tokio::select! {
            () = self.store.faulted() => {}
            () = tokio::time::sleep(CHECK - TROUBLE) => {}
        }
    }

    /// Writes, publishes and runs a script, each as an answer would; nobody receives anything.
    async fn check(&self) -> Result<(), Fault> {
        self.store.look_again().await;
        let key = self.task_key(&format!("filestorage-check-{}", Uuid::new_v4().simple()));
        let mut pipeline = Pipeline::new();
        pipeline.cmd("GETRANGE").arg(&key).arg(0).arg(0);
        pipeline.cmd("MULTI").cmd("SETEX").arg(&key).arg(1).arg("").cmd("PUBLISH").arg(&key).arg("").cmd("EXEC");
        pipeline.cmd("EVAL").arg("return redis.call('EXISTS', KEYS[1])").arg(1).arg(&key);
        let values = self.store.run(&pipeline).await?;
        match values.iter().find_map(Fault::of_value) {
            Some(fault) => {
                self.store.note(&fault);
                Err(fault)
            }
            None => {
                self.store.note_taken();
                Ok(())
            }
        }
    }

    fn publication(&self, to: &ReplyTo, body: &str) -> Publication {
        let mut headers = Headers::default();
        headers.set(KEY, self.task_key(&to.task_id).as_str().into());
        let properties = Properties {
            content_type: Some("application/json".to_owned()),
            content_encoding: Some("utf-8".to_owned()),
            delivery_mode: Some(2),
            ..Properties::default()
        };
        Publication {
            address: self.place.clone(),
            message: Message { properties, headers, body: as_python(body).into() },
        }
    }

    /// Keeps answers, and returns what became of each.
    ///
    /// A result that is a success stays, as Celery does it: a late state of another run never replaces it.
    async fn keep(&self, answers: &[&Publication]) -> Vec<Kept> {
        let mut kept: Vec<Kept> = answers.iter().map(|answer| fits(answer)).collect();
        let open = |kept: &[Kept]| -> Vec<usize> { (0..kept.len()).filter(|&at| kept[at] == Kept::Unknown).collect() };
        let places = open(&kept);
        let mut look = Pipeline::new();
        for &at in &places {
            look.cmd("GETRANGE").arg(key(answers[at])).arg(0).arg(SUCCESS.len() - 1);
        }
        if places.is_empty() {
            return kept;
        }
        let Ok(found) = self.store.run(&look).await else { return kept };
        for (&at, found) in places.iter().zip(&found) {
            match found {
                Value::BulkString(text) if text == SUCCESS.as_bytes() => kept[at] = Kept::Yes,
                Value::ServerError(error) if error.code() != "WRONGTYPE" => {
                    self.note(found);
                    return kept;
                }
                _ => {}
            }
        }
        let mut places = &open(&kept)[..];
        while let Some((&first, rest)) = places.split_first() {
            // What is written at once is in memory three times.
            let mut bytes = answers[first].message.body.len();
            let has_room = |at: &&usize| {
                bytes += answers[**at].message.body.len();
                bytes <= AT_ONCE
            };
            let count = 1 + rest.iter().take_while(has_room).count();
            let (some, others) = places.split_at(count);
            if !self.write(answers, some, &mut kept).await {
                return kept;
            }
            places = others;
        }
        if kept.iter().all(|kept| *kept == Kept::Yes) {
            self.store.note_taken();
        }
        kept
    }

    /// Writes some of the answers in one transaction, and notes what became of them; tells whether there was an answer at all.
    async fn write(&self, answers: &[&Publication], places: &[usize], kept: &mut [Kept]) -> bool {
        let mut write = Pipeline::new();
        write.cmd("MULTI");
        for &at in places {
            let (key, body) = (key(answers[at]), &answers[at].message.body[..]);
            match self.expires {
                Some(seconds) => write.cmd("SETEX").arg(key).arg(seconds).arg(body),
                None => write.cmd("SET").arg(key).arg(body),
            };
            write.cmd("PUBLISH").arg(key).arg(body);
        }
        write.cmd("EXEC");
        let Ok(mut values) = self.store.run(&write).await else { return false };
        match values.pop() {
            Some(Value::Array(outcomes)) => {
                for (&at, outcome) in places.iter().zip(outcomes.chunks(2)) {
                    match outcome.iter().find_map(Fault::of_value) {
                        None => kept[at] = Kept::Yes,
                        Some(fault) => self.store.note(&fault),
                    }
                }
            }
            // One of the commands was refused, which says why, and so none was executed.
            Some(exec) => {
                self.note(values.iter().find(|value| matches!(value, Value::ServerError(_))).unwrap_or(&exec))
            }
            None => {}
        }
        true
    }

    /// Keeps answers and then counts members of chords, whose bodies may look at what was kept; returns what became of each.
    async fn keep_and_count(&self, publisher: &dyn Publish, publications: &[Publication]) -> Vec<Kept> {
        let is_answer = |publication: &&Publication| !is_part(publication);
        let answers: Vec<&Publication> = publications.iter().filter(is_answer).collect();
        let members: Vec<_> = publications
            .iter()
            .filter(|&publication| is_part(publication))
            .map(|part| Part::read(&part.message))
            .collect();
        let mut answers = self.keep(&answers).await.into_iter();
        let mut members =
            if members.is_empty() { Vec::new() } else { self.count(publisher, &members).await }.into_iter();
        let next = |publication: &Publication| if is_part(publication) { members.next() } else { answers.next() };
        publications.iter().map(next).map(|kept| kept.unwrap_or(Kept::Unknown)).collect()
    }

    fn note(&self, value: &Value) {
        if let Some(fault) = Fault::of_value(value) {
            self.store.note(&fault);
        }
    }
}

/// Returns the key of an answer.
fn key(answer: &Publication) -> &str {
    answer.message.headers.text(KEY).unwrap_or_default()
}

/// Tells whether an answer can be kept at all.
fn fits(answer: &Publication) -> Kept {
    let bytes = answer.message.body.len();
    if key(answer).is_empty() {
        Kept::Never("the answer names no key".to_owned())
    } else if bytes > LONGEST_VALUE {
        Kept::Never(format!("{bytes} bytes are larger than a value of Redis may be"))
    } else {
        Kept::Unknown
    }
}

/// Tells whether this backend keeps a publication.
fn is_kept_here(publication: &Publication) -> bool {
    let Address { exchange, routing_key } = &publication.address;
    exchange.is_empty() && (routing_key == PLACE || routing_key.starts_with(CHORD_PLACE))
}

/// Tells whether a publication counts a member of a chord.
fn is_part(publication: &Publication) -> bool {
    publication.address.routing_key.starts_with(CHORD_PLACE)
}

/// Says what became of an answer in the words of the trait.
fn outcome(kept: Kept, answer: Publication) -> Result<Confirmation, PublishError> {
    match kept {
        Kept::Yes => Ok(Confirmation::Routed),
        Kept::Unknown => Err(PublishError::Unconfirmed(Box::new(answer))),
        Kept::Never(text) => Err(PublishError::Refused { code: 406, text }),
    }
}

#[async_trait]
impl ResultBackend for Redis {
    fn recipient(&self, request: &TaskRequest) -> Option<ReplyTo> {
        request.recipient()
    }

    fn success(
        &self,
        request: &TaskRequest,
        result: String,
        children: &[Child],
        extended: Option<&Extended>,
        now: Timestamp,
    ) -> Option<Publication> {
        self.answer(request, &State::Success { result: &result, children }, extended, now)
    }

    fn answer_to(&self, to: &ReplyTo, state: &State<'_>, extended: Option<&Extended>, now: Timestamp) -> Publication {
        self.publication(to, &reply::text(to, state, extended, &self.replies, now))
    }

    fn joins_chords(&self) -> bool {
        true
    }

    fn part(&self, part: &Part) -> Option<Publication> {
        let address = Address::queue(format!("{CHORD_PLACE}{}", part.group));
        Some(Publication { address, message: part.to_message() })
    }

    async fn send(
        &self,
        publisher: &dyn Publish,
        publications: Vec<Publication>,
        answers: &[usize],
        limit: Duration,
        early: Option<Early>,
    ) -> Vec<Result<Confirmation, PublishError>> {
        // What came back from its parking may be for the queue of a client, from before this backend was chosen.
        let is_answer = |at: usize| answers.binary_search(&at).is_ok();
        let mut parts = Parts::of(publications, |at, publication| is_answer(at) && is_kept_here(publication));
        let rest = parts.take_rest();
        if parts.answers.is_empty() {
            return publisher.publish_within(limit, rest, true, early).await;
        }
        let (sent, kept) =
            parts.send(publisher, rest, self.keep_and_count(publisher, &parts.answers), limit, early).await;
        parts.joined(sent, kept, outcome)
    }

    fn is_over_broker(&self) -> bool {
        false
    }

    async fn probe(&self, _publisher: &dyn Publish) -> Result<(), PublishError> {
        self.check().await.map_err(|fault| {
            let text = format!("{}: {fault}", self.store.url());
            if fault.is_login() { PublishError::Refused { code: 403, text } } else { PublishError::Lost(text) }
        })
    }

    fn remedy(&self) -> &'static str {
        "correct CELERY_RESULT_BACKEND and its transport options, or what the Redis grants its user"
    }

    fn component(&self) -> Option<Component> {
        Some(Component::Results)
    }
}

/// Returns the key that a new connection writes.
fn touched(key_prefix: &str) -> String {
    format!("{key_prefix}{PREFIX}filestorage-connection")
}

#[cfg(test)]
mod tests;
