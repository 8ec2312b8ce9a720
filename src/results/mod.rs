//! Where the answers of commands go, apart from the transport by which the commands come.
//!
//! [`Rpc`] sends them to the queues of the clients, over the broker of the commands. [`Redis`] keeps them in a Redis.

mod redis;
mod rpc;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use crate::broker::{Confirmation, Early, Publish, PublishError};
use crate::celery::chord::Part;
use crate::celery::message::Publication;
use crate::celery::reply::{Child, Extended, ReplyTo, State};
use crate::celery::request::TaskRequest;
use crate::telemetry::Component;

pub use redis::{Redis, SharedUrl};
pub use rpc::Rpc;

pub use crate::celery::Serializer;

/// A place that takes the answers of commands.
///
/// The worker composes an answer when a command ends, sends it, and acknowledges the command once the answer is confirmed. What is
/// not confirmed is kept and sent again, less and less often; the worker decides how long. So the composing methods do no I/O, and
/// a composed answer is all that sending it needs.
///
/// An answer is a [`Publication`]. Its address tells answers apart that wait for different recipients: one address that takes
/// nothing holds up no other. A store, which takes them all or none, has one address for all, and the key in a header.
#[async_trait]
pub trait ResultBackend: fmt::Debug + Send + Sync {
    /// Returns the recipient of the answer to a request, or `None` when no answer is wanted.
    ///
    /// Of a request with `ignore_result` no answer is wanted, whether the task succeeds, fails, starts or is revoked. A recipient may
    /// be kept and given to [`ResultBackend::answer_to`] when the composed answer is refused.
    fn recipient(&self, request: &TaskRequest) -> Option<ReplyTo>;

    /// Composes the answer that tells a state of a request, or `None` when no answer is wanted.
    ///
    /// The same arguments give the same answer.
    fn answer(
        &self,
        request: &TaskRequest,
        state: &State<'_>,
        extended: Option<&Extended>,
        now: Timestamp,
    ) -> Option<Publication> {
        self.recipient(request).map(|to| self.answer_to(&to, state, extended, now))
    }

    /// Composes the answer of a success as [`ResultBackend::answer`] does, in the memory of the result.
    fn success(
        &self,
        request: &TaskRequest,
        result: String,
        children: &[Child],
        extended: Option<&Extended>,
        now: Timestamp,
    ) -> Option<Publication>;

    /// Composes an answer for a recipient, whose request may not be at hand: it could not be read, or waits in a chain, or its first
    /// answer was refused.
    fn answer_to(&self, to: &ReplyTo, state: &State<'_>, extended: Option<&Extended>, now: Timestamp) -> Publication;

    /// Tells whether the backend counts the members of chords, and sends the body once all have ended.
    fn joins_chords(&self) -> bool;

    /// Composes what counts a member of a chord, or tells the size of its header; `None` where chords are not joined.
    ///
    /// It belongs to this backend like an answer, is never given up, and is confirmed once it counts, and once what follows the last
    /// member is confirmed.
    fn part(&self, part: &Part) -> Option<Publication>;

    /// Sends what finished commands owe, and returns one result for each publication, in their order.
    ///
    /// `answers` are the positions of the answers, which belong to this backend; everything else goes to the broker by `publisher`.
    /// The batch is one call because a backend over the same broker sends it as a whole. A backend of its own confirms an answer when
    /// its store has said that it keeps the answer for as long as `result_expires` asks, and has told those who wait for it.
    ///
    /// Who asks for `early` word gets it as [`Publish::publish_within`] gives it, at least of what goes to the broker.
    ///
    /// An answer that was not confirmed within `limit` is [`PublishError::Unconfirmed`], also while the store is away: it is sent
    /// again, and may have been taken each time. What the store will never take is [`PublishError::Refused`]: the caller is told
    /// instead. [`PublishError::Lost`] is only the loss of the broker's session.
    async fn send(
        &self,
        publisher: &dyn Publish,
        publications: Vec<Publication>,
        answers: &[usize],
        limit: Duration,
        early: Option<Early>,
    ) -> Vec<Result<Confirmation, PublishError>>;

    /// Tells whether answers go over the broker of the commands, so that an answer which that broker does not confirm in time puts the
    /// session in doubt. A store of its own that is silent says nothing about the broker.
    fn is_over_broker(&self) -> bool;

    /// Makes sure that answers can be given, at the beginning of a session and for `filestorage doctor`. Nobody receives anything.
    ///
    /// # Errors
    ///
    /// Why no answer can be given. A session in which every command would be done and none answered does not begin.
    async fn probe(&self, publisher: &dyn Publish) -> Result<(), PublishError>;

    /// Returns what a person does when the probe is refused.
    fn remedy(&self) -> &'static str;

    /// Returns the component of the readiness that tells how the backend stands, or `None` where the broker's own says it.
    fn component(&self) -> Option<Component>;
}
