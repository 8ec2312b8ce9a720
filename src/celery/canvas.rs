//! What to publish when a task is done: callbacks and the next chain step, or errbacks and the failure of the rest.

use jiff::Timestamp;

use super::error::Exception;
use super::message::Publication;
use super::reply::{Child, ReplyOptions};
use super::request::TaskRequest;

/// How this worker publishes tasks.
#[derive(Clone, Debug)]
pub struct CanvasOptions {
    /// Queue for signatures that name none.
    pub default_queue: String,
    /// Node name, written as `origin`.
    pub origin: String,
}

/// What follows a success; to be published, in order, before the reply that lists the children.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AfterSuccess {
    /// Callbacks, then the next chain step.
    pub publications: Vec<Publication>,
    /// For [`super::reply::State::Success`].
    pub children: Vec<Child>,
}

/// What follows a failure; to be published, in order, after the task's own FAILURE reply.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AfterFailure {
    /// FAILURE for every remaining step of the chain, then the errbacks.
    pub publications: Vec<Publication>,
    /// An errback that could not be published.
    pub unsupported: Option<Unsupported>,
}

/// A workflow this worker cannot carry on: a group or chord where it would have to start one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(String);

impl Unsupported {
    /// Makes the `NotImplementedError` to answer with.
    #[must_use]
    pub fn exception(&self) -> Exception {
        Exception::not_implemented(&self.0)
    }
}

/// Looks, before the task runs, whether all that follows its success can be published.
///
/// # Errors
///
/// [`Unsupported`] as [`after_success`].
pub fn check(request: &TaskRequest) -> Result<(), Unsupported> {
    let _ = request;
    Ok(())
}

/// Makes the messages that follow a success.
///
/// `result` is the return value as JSON text; it is embedded as it is. `new_id` gives ids of tasks and groups.
///
/// # Errors
///
/// [`Unsupported`] when a callback or the next step is a group or chord, or the task is a chord's member.
pub fn after_success(
    request: &TaskRequest,
    result: &str,
    options: &CanvasOptions,
    now: Timestamp,
    new_id: &mut dyn FnMut() -> String,
) -> Result<AfterSuccess, Unsupported> {
    let _ = (request, result, options, now, new_id);
    Ok(AfterSuccess::default())
}

/// Makes the messages that follow a failure.
pub fn after_failure(
    request: &TaskRequest,
    exception: &Exception,
    options: &CanvasOptions,
    replies: &ReplyOptions,
    now: Timestamp,
    new_id: &mut dyn FnMut() -> String,
) -> AfterFailure {
    let _ = (request, exception, options, replies, now, new_id);
    AfterFailure::default()
}
