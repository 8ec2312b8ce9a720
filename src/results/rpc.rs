//! Celery's backend `rpc://`: each answer goes to the queue that the client named, over the broker of the commands.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use uuid::Uuid;

use super::ResultBackend;
use crate::broker::{Confirmation, Early, Publish, PublishError};
use crate::celery::Serializer;
use crate::celery::chord::Part;
use crate::celery::message::{Address, Message, Publication};
use crate::celery::reply::{self, Child, Extended, ReplyOptions, ReplyTo, State};
use crate::celery::request::TaskRequest;
use crate::telemetry::Component;

/// The reply queues of clients, on the broker of the commands.
#[derive(Clone, Debug)]
pub struct Rpc {
    replies: ReplyOptions,
    serializer: Serializer,
}

impl Rpc {
    /// Answers in the name of this node; `persistent` answers survive a restart of the broker.
    #[must_use]
    pub fn new(node: impl Into<String>, persistent: bool) -> Self {
        let replies = ReplyOptions { worker: node.into(), pid: std::process::id(), persistent };
        Self { replies, serializer: Serializer::Json }
    }

    /// Writes the answers with this serializer, which their clients must accept.
    #[must_use]
    pub fn with_serializer(self, serializer: Serializer) -> Self {
        Self { serializer, ..self }
    }

    fn encoded(&self, answer: Publication) -> Publication {
        Publication { message: self.serializer.encode(answer.message), ..answer }
    }
}

#[async_trait]
impl ResultBackend for Rpc {
    fn recipient(&self, request: &TaskRequest) -> Option<ReplyTo> {
        request.reply_address()
    }

    fn success(
        &self,
        request: &TaskRequest,
        result: String,
        children: &[Child],
        extended: Option<&Extended>,
        now: Timestamp,
    ) -> Option<Publication> {
        reply::success(request, result, children, extended, &self.replies, now).map(|answer| self.encoded(answer))
    }

    fn answer_to(&self, to: &ReplyTo, state: &State<'_>, extended: Option<&Extended>, now: Timestamp) -> Publication {
        self.encoded(reply::reply_to(to, state, extended, &self.replies, now))
    }

    fn joins_chords(&self) -> bool {
        false
    }

    fn part(&self, _part: &Part) -> Option<Publication> {
        None
    }

    async fn send(
        &self,
        publisher: &dyn Publish,
        publications: Vec<Publication>,
        _answers: &[usize],
        limit: Duration,
        early: Option<Early>,
    ) -> Vec<Result<Confirmation, PublishError>> {
        publisher.publish_within(limit, publications, true, early).await
    }

    fn is_over_broker(&self) -> bool {
        true
    }

    /// Publishes to a queue that does not exist, through the default exchange as every answer: the broker returns the message.
    async fn probe(&self, publisher: &dyn Publish) -> Result<(), PublishError> {
        let nowhere = Address::queue(format!("filestorage.nobody-{}", Uuid::new_v4().simple()));
        let publication = Publication { address: nowhere, message: Message::default() };
        publisher
            .publish_within(publisher.patience(), vec![publication], true, None)
            .await
            .pop()
            .unwrap_or_else(|| Err(PublishError::Lost("the probe was not answered".to_owned())))
            .map(|_| ())
    }

    fn remedy(&self) -> &'static str {
        "grant the write permission on amq.default with rabbitmqctl set_permissions"
    }

    fn component(&self) -> Option<Component> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::celery::error::Exception;
    use crate::celery::message::{Field, Headers, Properties};
    use crate::celery::read::read;
    use crate::celery::request::ReadOptions;

    /// A command whose client waits at the queue `replies`.
    fn request(ignore_result: bool) -> TaskRequest {
        let properties = Properties {
            content_type: Some("application/json".to_owned()),
            content_encoding: Some("utf-8".to_owned()),
            correlation_id: Some("id".to_owned()),
            reply_to: Some("replies".to_owned()),
            ..Properties::default()
        };
        let mut headers = Headers::default();
        headers.set("id", "id".into());
        headers.set("task", "filestorage.exists".into());
        headers.set("ignore_result", Field::Bool(ignore_result));
        let message = Message { properties, headers, body: r#"[["k"], {}, {}]"#.into() };
        read(&message, &ReadOptions::default()).unwrap()
    }

    #[test]
    fn every_answer_goes_to_the_queue_of_its_client() {
        let (rpc, now) = (Rpc::new("w@h", true), Timestamp::UNIX_EPOCH);
        let request = request(false);
        let to = rpc.recipient(&request).unwrap();
        let exception = Exception::value_error("x");
        let failure = State::Failure(&exception);
        let answers = [
            rpc.answer(&request, &State::Started, None, now).unwrap(),
            rpc.success(&request, "1".to_owned(), &[], None, now).unwrap(),
            rpc.answer(&request, &failure, None, now).unwrap(),
            rpc.answer_to(&to, &failure, None, now),
        ];
        for answer in &answers {
            assert_eq!(answer.address, Address::queue("replies"));
            assert_eq!(answer.message.properties.delivery_mode, Some(2));
        }
        assert_eq!(answers[2], answers[3], "the answer that replaces a refused one is the same");
    }

    #[test]
    fn nobody_is_answered_who_ignores_the_result() {
        let (rpc, now) = (Rpc::new("w@h", true), Timestamp::UNIX_EPOCH);
        let request = request(true);
        assert_eq!(rpc.recipient(&request), None);
        assert_eq!(rpc.answer(&request, &State::Started, None, now), None);
        assert_eq!(rpc.success(&request, "1".to_owned(), &[], None, now), None);
    }
}
