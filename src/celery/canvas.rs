//! What to publish when a task is done: callbacks and the next chain step, or errbacks and the failure of the rest.

use jiff::Timestamp;

pub use super::compose::CanvasOptions;
use super::compose::{ComposeContext, First, MessageRole, message};
use super::error::Exception;
use super::message::Publication;
use super::reply::{Child, ReplyOptions, ReplyTo, State, reply_to};
use super::request::TaskRequest;
use super::signature::{Signature, SignatureKind};
use super::weight;
use crate::json::{self, Json};

/// What follows a success; to be published, in order, before the reply that lists the children.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AfterSuccess {
    /// Callbacks, then the next chain step.
    pub publications: Vec<Publication>,
    /// For [`super::reply::State::Success`].
    pub children: Vec<Child>,
    /// Why nothing of it is made: it would be too large.
    pub withheld: Option<Withheld>,
}

/// What follows a failure; to be published, in order, after the task's own FAILURE reply.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AfterFailure {
    /// FAILURE for every remaining step of the chain, then the errbacks.
    pub publications: Vec<Publication>,
    /// An errback that could not be published.
    pub unsupported: Option<Unsupported>,
    /// Why no errback is made: they would be too large.
    pub withheld: Option<Withheld>,
}

/// Messages that would be larger together than [`CanvasOptions::max_bytes`], so none of them is made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "what follows task {task} would have {bytes} bytes and {most} is the most; send large arguments and errbacks once, not with each step"
)]
pub struct Withheld {
    task: String,
    bytes: usize,
    most: usize,
}

impl Withheld {
    fn of(request: &TaskRequest, bytes: usize, options: &CanvasOptions) -> Option<Self> {
        let most = options.max_bytes;
        (bytes > most).then(|| Self { task: request.task.clone(), bytes, most })
    }
}

/// Tells whether what follows a request may be larger than `most` bytes, with a result of at most `result` bytes.
#[must_use]
pub fn may_outgrow(request: &TaskRequest, result: usize, most: usize) -> bool {
    weight::after_success(request, result).max(weight::errbacks(request)) > most
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
    if request.chord.is_some() {
        return Err(unsupported(&request.task, "is a member of a chord, which the rpc result backend cannot join"));
    }
    for signature in request.callbacks.iter().chain(request.chain.last()) {
        startable(&request.task, signature)?;
    }
    let carried =
        request.callbacks.iter().chain(&request.errbacks).chain(&request.chain).map(Signature::tasks).sum::<usize>();
    if carried > MAX_CARRIED {
        return Err(Unsupported(format!(
            "task {} carries {carried} tasks along and {MAX_CARRIED} is the most; send them in parts",
            request.task
        )));
    }
    Ok(())
}

/// Tasks one message may carry along, and answers its failure may have: each is held, cloned and published while its parent waits to be acknowledged.
const MAX_CARRIED: usize = 1000;

fn startable(task: &str, signature: &Signature) -> Result<(), Unsupported> {
    match signature.first_kind() {
        SignatureKind::Task | SignatureKind::Chain => Ok(()),
        SignatureKind::Group => Err(unsupported(task, "is followed by a group, which this worker cannot start")),
        SignatureKind::Chord => {
            Err(unsupported(task, "is followed by a chord, which the rpc result backend does not support"))
        }
    }
}

fn unsupported(task: &str, cause: &str) -> Unsupported {
    Unsupported(format!("task {task} {cause}; use plain tasks and chains as callbacks and steps"))
}

/// Makes the messages that follow a success.
///
/// `result` is the return value as JSON text; it is embedded as it is. `new_id` gives the ids of groups and of tasks
/// that bring none: a group's before its members', a chain's first to last.
///
/// # Errors
///
/// [`Unsupported`] when a callback or the next step is a group or chord, or the task is a chord's member.
///
/// What would be too large is not made at all; [`AfterSuccess::withheld`] says so then.
pub fn after_success(
    request: &TaskRequest,
    result: &str,
    options: &CanvasOptions,
    now: Timestamp,
    new_id: &mut dyn FnMut() -> String,
) -> Result<AfterSuccess, Unsupported> {
    if request.callbacks.is_empty() && request.chain.is_empty() && request.chord.is_none() {
        return Ok(AfterSuccess::default());
    }
    check(request)?;
    let withheld = Withheld::of(request, weight::after_success(request, result.len()), options);
    if withheld.is_some() {
        return Ok(AfterSuccess { withheld, ..AfterSuccess::default() });
    }
    let shown = json::parse(result.as_bytes(), json::ParseLimits { depth: 256, ..json::ParseLimits::default() });
    let first = First { text: result, value: shown.unwrap_or_else(|_| Json::from("...")) };
    let context = context(request, first, options, now);
    let mut after = AfterSuccess::default();
    match request.callbacks.as_slice() {
        [] => {}
        [one] => after.publish(one, None, &context, new_id),
        several => {
            let (publications, child) = group(several.iter(), &context, new_id);
            after.publications.extend(publications);
            after.children.push(child);
        }
    }
    if let Some((next, rest)) = request.chain.split_last() {
        after.publish(next, Some(rest), &context, new_id);
    }
    Ok(after)
}

impl AfterSuccess {
    /// Publishes one callback or step, and what a chain brings with it before the rest.
    fn publish(
        &mut self,
        signature: &Signature,
        rest: Option<&[Signature]>,
        context: &ComposeContext<'_>,
        new_id: &mut dyn FnMut() -> String,
    ) {
        let direct = MessageRole { group: None, direct: signature.kind == SignatureKind::Task };
        let Some(sent) = send(signature, direct, rest, context, new_id) else { return };
        self.children.push(Child::Task(sent.head));
        self.publications.push(sent.publication);
    }
}

/// One published signature: its message, and the ids of the tasks it stands for.
struct Sent {
    publication: Publication,
    head: String,
    tail: Vec<String>,
}

/// Makes the message of a task or of a chain's first task; `None` for a chain without tasks.
fn send(
    signature: &Signature,
    place: MessageRole<'_>,
    rest: Option<&[Signature]>,
    context: &ComposeContext<'_>,
    new_id: &mut dyn FnMut() -> String,
) -> Option<Sent> {
    let id_of = |signature: &Signature, new_id: &mut dyn FnMut() -> String| {
        signature.text("task_id").map_or_else(new_id, str::to_owned)
    };
    if signature.kind == SignatureKind::Task {
        let head = id_of(signature, new_id);
        return Some(Sent { publication: message(signature, &head, place, rest, context), head, tail: Vec::new() });
    }
    let mut steps = flatten(signature.clone()).into_iter();
    let first = steps.next()?;
    let head = id_of(&first, new_id);
    let mut tail = Vec::new();
    let mut behind: Vec<Signature> = Vec::new();
    for mut step in steps {
        if step.kind == SignatureKind::Task {
            let id = id_of(&step, new_id);
            step.set("task_id", id.as_str().into());
            step.set("root_id", context.root_id.into());
            if step.option("reply_to").is_none() {
                step.set("reply_to", context.options.reply_to.as_str().into());
            }
            tail.push(id);
        }
        behind.push(step);
    }
    // Only the end of a chain is a member of the group the chain stands in.
    let place = match (place.group, behind.last_mut()) {
        (Some((group, index)), Some(last)) => {
            last.set("group_id", group.into());
            last.set("group_index", i64::try_from(index).unwrap_or(i64::MAX).into());
            MessageRole { group: None, direct: false }
        }
        _ => place,
    };
    behind.reverse();
    let chain: Vec<_> = rest.unwrap_or_default().iter().cloned().chain(behind).collect();
    Some(Sent { publication: message(&first, &head, place, Some(&chain), context), head, tail })
}

/// Resolves a chain, and chains inside it, into its steps; what was said of the chain goes to the step it concerns.
///
/// A chain's own `args` and `immutable` say nothing: Celery drops both when it reads one.
fn flatten(mut signature: Signature) -> Vec<Signature> {
    if signature.kind != SignatureKind::Chain {
        return vec![signature];
    }
    let mut steps: Vec<_> = signature.take_steps().into_iter().flat_map(flatten).collect();
    let stamped: Vec<_> = signature.option("stamped_headers").and_then(Json::as_array).unwrap_or_default().to_vec();
    if let Some(first) = steps.first_mut() {
        for (name, value) in signature.options.iter().filter(|(_, value)| !value.is_null()) {
            let its_own = match name.as_str() {
                "task_id" | "group_id" | "group_index" | "root_id" | "parent_id" | "link" | "link_error" | "chain"
                | "chord" => true,
                "reply_to" | "stamped_headers" => first.option(name).is_some(),
                _ => stamped.contains(&Json::from(name.as_str())) && first.option(name).is_some(),
            };
            if !its_own {
                first.set(name, value.clone());
            }
        }
    }
    for step in &mut steps {
        extend(step, "link_error", signature.option("link_error"));
    }
    if let Some(last) = steps.last_mut() {
        extend(last, "link", signature.option("link"));
        for name in ["task_id", "group_id", "group_index", "chord", "chain"] {
            if let Some(value) = signature.option(name)
                && last.option(name).is_none()
            {
                last.set(name, value.clone());
            }
        }
    }
    steps
}

/// Appends to an option that is a list of signatures, or one alone.
fn extend(signature: &mut Signature, name: &str, more: Option<&Json>) {
    let Some(more) = more else { return };
    let list = |value: &Json| value.as_array().map_or_else(|| vec![value.clone()], <[Json]>::to_vec);
    let mut all = signature.option(name).map(list).unwrap_or_default();
    for one in list(more) {
        if !all.contains(&one) {
            all.push(one);
        }
    }
    signature.set(name, Json::Array(all));
}

/// Makes one new group of tasks and chains.
fn group<'s>(
    members: impl Iterator<Item = &'s Signature>,
    context: &ComposeContext<'_>,
    new_id: &mut dyn FnMut() -> String,
) -> (Vec<Publication>, Child) {
    let id = new_id();
    let mut publications = Vec::new();
    let mut children = Vec::new();
    for member in members {
        let place = MessageRole { group: Some((&id, publications.len())), direct: false };
        let Some(sent) = send(member, place, None, context, new_id) else { continue };
        publications.push(sent.publication);
        children.push(if sent.tail.is_empty() {
            Child::Task(sent.head)
        } else {
            Child::Chain(std::iter::once(sent.head).chain(sent.tail).collect())
        });
    }
    (publications, Child::Group { id, members: children })
}

fn context<'a>(
    request: &'a TaskRequest,
    first: First<'a>,
    options: &'a CanvasOptions,
    now: Timestamp,
) -> ComposeContext<'a> {
    let root_id = request.root_id.as_deref().unwrap_or(&request.id);
    ComposeContext { first, parent_id: &request.id, root_id, options, now }
}

/// Makes the messages that follow a failure.
///
/// Every remaining task of the chain that somebody waits for fails with the same exception, unless results are
/// ignored; then the errbacks are sent as one new group, with the failed id as their first argument. Of more tasks than
/// a message may carry along the last steps are told, and none of the errbacks is sent.
#[must_use]
pub fn after_failure(
    request: &TaskRequest,
    exception: &Exception,
    options: &CanvasOptions,
    replies: &ReplyOptions,
    now: Timestamp,
    new_id: &mut dyn FnMut() -> String,
) -> AfterFailure {
    let publications = fail_rest(request, exception, replies, now);
    let mut after = AfterFailure { publications, ..AfterFailure::default() };
    let (plain, other): (Vec<_>, Vec<_>) =
        request.errbacks.iter().partition(|errback| startable(&request.task, errback).is_ok());
    after.unsupported = other.first().and_then(|errback| startable(&request.task, errback).err());
    let errbacks = request.errbacks.iter().map(Signature::tasks).sum::<usize>();
    if errbacks > MAX_CARRIED {
        after.unsupported = Some(Unsupported(format!("{errbacks} errbacks are more than {MAX_CARRIED}: none is sent")));
    } else if let Some(withheld) = Withheld::of(request, weight::errbacks(request), options) {
        after.withheld = Some(withheld);
    } else if !plain.is_empty() {
        let mut text = String::new();
        json::write_string(&mut text, &request.id);
        let first = First { text: &text, value: Json::Text(request.id.clone()) };
        let context = context(request, first, options, now);
        after.publications.extend(group(plain.into_iter(), &context, new_id).0);
    }
    after
}

/// Makes the FAILURE of every remaining task of the chain that somebody waits for, unless results are ignored.
#[must_use]
pub fn fail_rest(
    request: &TaskRequest,
    exception: &Exception,
    replies: &ReplyOptions,
    now: Timestamp,
) -> Vec<Publication> {
    if request.ignore_result {
        return Vec::new();
    }
    let mut waiting = Vec::new();
    for step in &request.chain {
        waiting_for(&step.options, &step.kwargs, step.kind != SignatureKind::Task, &mut waiting);
    }
    // The last step stands first, and it is the one that is waited for.
    let told = waiting.iter_mut().take(MAX_CARRIED).map(|to| {
        to.task.clone_from(&request.task);
        reply_to(to, &State::Failure(exception), None, replies, now)
    });
    told.collect()
}

/// Finds whom a step's failure is told: its own client, and those of the tasks inside a group, chain or chord.
fn waiting_for(options: &[(String, Json)], kwargs: &[(String, Json)], complex: bool, found: &mut Vec<ReplyTo>) {
    let text = |name: &str| {
        let option = options.iter().find(|(key, _)| key == name)?.1.as_text()?;
        (!option.is_empty()).then(|| option.to_owned())
    };
    if let (Some(task_id), Some(queue)) = (text("task_id"), text("reply_to")) {
        found.push(ReplyTo {
            queue,
            correlation_id: task_id.clone(),
            task_id,
            group: text("group_id"),
            parent_id: text("parent_id"),
            task: String::new(),
        });
    }
    if !complex {
        return;
    }
    for (_, inner) in kwargs.iter().filter(|(name, _)| matches!(name.as_str(), "tasks" | "header" | "body")) {
        for signature in inner.as_array().unwrap_or(std::slice::from_ref(inner)) {
            let members = |name: &str| signature.get(name).and_then(Json::as_object).unwrap_or_default();
            let complex = signature.get("subtask_type").is_some_and(|kind| !kind.is_null());
            waiting_for(members("options"), members("kwargs"), complex, found);
        }
    }
}
