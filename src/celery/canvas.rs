//! Creates the messages that follow a task: callbacks and the next chain step, or errbacks and failures of later steps.

use jiff::Timestamp;

use super::body::Limits;
pub use super::compose::CanvasOptions;
use super::compose::{ComposeContext, First, MessageRole, message};
use super::error::Exception;
use super::follow_up_size;
use super::group_options;
use super::message::Publication;
use super::reply::{Child, ReplyTo};
use super::request::TaskRequest;
use super::signature::{Signature, SignatureKind};
use crate::json::{self, Json};

/// The follow-ups of a success, which are published in order, before the reply, which lists the children.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AfterSuccess {
    /// The callbacks, then the next step of the chain.
    pub publications: Vec<Publication>,
    /// The children for [`super::reply::State::Success`].
    pub children: Vec<Child>,
    /// The headers of chords that are started: their sizes must be known before their members run.
    pub chords: Vec<Header>,
    /// The reason why no follow-up was made: together they would be too large.
    pub withheld: Option<Withheld>,
}

/// The header of a chord that is started.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// The id of its group.
    pub group: String,
    /// The number of its members.
    pub size: usize,
    /// The signature of the body, as its members have it.
    pub body: Json,
}

/// The follow-ups of a failure, which are published in order, after the FAILURE reply of the task.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AfterFailure {
    /// The FAILURE replies for the remaining steps of the chain.
    pub answers: Vec<Publication>,
    /// The errbacks.
    pub publications: Vec<Publication>,
    /// The reason why an errback could not be published.
    pub unsupported: Option<Unsupported>,
    /// The reason why no errback was made: together they would be too large.
    pub withheld: Option<Withheld>,
}

/// The follow-ups would together be larger than [`CanvasOptions::max_bytes`], so that none was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the messages that follow task {task} would have {bytes} bytes together, and {most} is the most; send large arguments and errbacks once, not with each step"
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

/// Tells whether the follow-ups of a request may be larger than `most` bytes, with a result of at most `result` bytes.
#[must_use]
pub fn may_outgrow(request: &TaskRequest, result: usize, most: usize) -> bool {
    follow_up_size::after_success(request, result).max(follow_up_size::errbacks(request)) > most
}

/// A workflow that this worker cannot continue, because of a chord, or of a group with members that are no plain tasks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unsupported(String);

impl Unsupported {
    /// Returns the `NotImplementedError` for the answer.
    #[must_use]
    pub fn exception(&self) -> Exception {
        Exception::not_implemented(&self.0)
    }
}

/// Checks, before the task runs, whether the follow-ups of its success can be published.
///
/// # Errors
///
/// [`Unsupported`], as for [`after_success`], or when the message carries too many tasks along.
pub fn check(request: &TaskRequest) -> Result<(), Unsupported> {
    if request.chord.is_some() {
        return Err(unsupported(&request.task, "is a member of a chord, which the rpc result backend cannot join"));
    }
    check_follow_ups(request, false)
}

/// Checks the same where the result backend joins chords.
///
/// # Errors
///
/// [`Unsupported`] also when the body of the chord cannot be published.
pub fn check_member(request: &TaskRequest) -> Result<(), Unsupported> {
    if let Some(chord) = &request.chord {
        let body = Signature::read(chord.clone());
        let body =
            body.map_err(|why| unsupported(&request.task, &format!("is a member of a chord whose body {why}")))?;
        if request.group.is_none() {
            return Err(unsupported(&request.task, "is a member of a chord and of no group"));
        }
        startable(&request.task, &body, true)?;
    }
    check_follow_ups(request, true)
}

fn check_follow_ups(request: &TaskRequest, joins_chords: bool) -> Result<(), Unsupported> {
    for signature in request.callbacks.iter().chain(request.chain.last()) {
        startable(&request.task, signature, joins_chords)?;
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

/// The most tasks that one message may carry along, and the most FAILURE replies to later steps.
///
/// Each of them is held in memory and published before the message can be acknowledged.
const MAX_CARRIED: usize = 1000;

fn startable(task: &str, signature: &Signature, joins_chords: bool) -> Result<(), Unsupported> {
    match signature.first_kind() {
        SignatureKind::Task | SignatureKind::Chain => Ok(()),
        SignatureKind::Chord if !joins_chords => {
            Err(unsupported(task, "is followed by a chord, which the rpc result backend does not support"))
        }
        SignatureKind::Group | SignatureKind::Chord => startable_group(task, signature),
    }
}

/// Checks an errback: a task, a chain that begins with one, or a group of these.
fn sendable_errback(task: &str, errback: &Signature) -> Result<(), Unsupported> {
    match (errback.kind, errback.first_kind()) {
        (SignatureKind::Group, _) => startable_group(task, errback),
        (_, SignatureKind::Task | SignatureKind::Chain) => Ok(()),
        _ => Err(unsupported(task, "has an errback that begins with a chord, or is a chain that begins with a group")),
    }
}

fn unsupported(task: &str, cause: &str) -> Unsupported {
    Unsupported(format!("task {task} {cause}; use tasks, chains and groups of these as callbacks and steps"))
}

/// Creates the messages that follow a success.
///
/// `result` is the return value as JSON text, which is embedded unchanged. `new_id` creates the ids of groups, and of tasks
/// without an id: that of a group before those of its members, those of a chain first to last.
///
/// When the messages would be too large, none is made, and [`AfterSuccess::withheld`] is set.
///
/// # Errors
///
/// [`Unsupported`] when a callback or the next step is a chord, or the task is a member of one, and the result backend joins none.
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
    if options.joins_chords {
        check_follow_ups(request, true)?
    } else {
        check(request)?
    }
    let withheld = Withheld::of(request, follow_up_size::after_success(request, result.len()), options);
    if withheld.is_some() {
        return Ok(AfterSuccess { withheld, ..AfterSuccess::default() });
    }
    let shown = json::parse(
        result.as_bytes(),
        json::ParseLimits { depth: Limits::default().depth, ..json::ParseLimits::default() },
    );
    let first = First { text: result, value: shown.unwrap_or_else(|_| Json::from("...")) };
    let mut context = context(request, first, options, now);
    context.priority = request.priority.filter(|_| options.inherits_priority);
    let mut after = AfterSuccess::default();
    match request.callbacks.as_slice() {
        [] => {}
        [one] => after.publish(one, None, &context, new_id),
        several => {
            let is_one = |callback: &&Signature| !is_group(callback);
            for group in several.iter().filter(|callback| is_group(callback)) {
                after.publish(group, None, &context, new_id);
            }
            if several.iter().any(|callback| is_one(&callback)) {
                let id = new_id();
                let (publications, child) = group(several.iter().filter(is_one), id, None, &context, new_id);
                after.publications.extend(publications);
                after.children.push(child);
            }
        }
    }
    if let Some((next, rest)) = request.chain.split_last() {
        after.publish(next, Some(rest), &context, new_id);
    }
    Ok(after)
}

impl AfterSuccess {
    /// Adds the message of one callback or step; the steps of a chain come before those in `rest`.
    fn publish(
        &mut self,
        signature: &Signature,
        rest: Option<&[Signature]>,
        context: &ComposeContext<'_>,
        new_id: &mut dyn FnMut() -> String,
    ) {
        match signature.kind {
            SignatureKind::Group => {
                let id = signature.text("task_id").map_or_else(&mut *new_id, str::to_owned);
                let mut members = members(signature).unwrap_or_default();
                group_options::to_members(signature, &mut members);
                // The steps that wait behind the group take the place of those in its own option.
                let own =
                    signature.option("chain").filter(|_| rest.is_none()).map(|own| Signature::read_list(own.clone()));
                let own = own.transpose().unwrap_or_default();
                let (publications, child) = group(members.iter(), id, rest.or(own.as_deref()), context, new_id);
                if !publications.is_empty() {
                    self.publications.extend(publications);
                    self.children.push(child);
                }
                return;
            }
            SignatureKind::Chord => return self.publish_chord(signature, rest, context, new_id),
            SignatureKind::Chain if is_group(signature) => {
                let mut steps = flatten(signature.clone()).into_iter();
                let Some(first) = steps.next() else { return };
                let (mut behind, _) = named(steps, context, new_id);
                behind.reverse();
                let rest: Vec<_> = rest.unwrap_or_default().iter().cloned().chain(behind).collect();
                return self.publish(&first, Some(&rest), context, new_id);
            }
            SignatureKind::Task | SignatureKind::Chain => {}
        }
        let direct = MessageRole { group: None, direct: signature.kind == SignatureKind::Task };
        let Some(sent) = send(signature, direct, rest, context, new_id) else { return };
        if signature.option("add_to_parent") != Some(&Json::Bool(false)) {
            self.children.push(Child::Task(sent.head));
        }
        self.publications.push(sent.publication);
    }

    /// Adds the messages of the members of a chord. What would follow the chord follows its body.
    fn publish_chord(
        &mut self,
        signature: &Signature,
        rest: Option<&[Signature]>,
        context: &ComposeContext<'_>,
        new_id: &mut dyn FnMut() -> String,
    ) {
        let (Some(mut members), Some(mut body)) = (members(signature), body(signature)) else { return };
        let header = signature.kwarg("header").and_then(|header| header.get("options"));
        let id =
            header.and_then(|options| options.get("task_id")).and_then(Json::as_text).or(signature.text("task_id"));
        let id = id.filter(|id| !id.is_empty()).map_or_else(&mut *new_id, str::to_owned);
        group_options::to_members(signature, &mut members);
        group_options::to_body(signature, &mut body);
        body.set("root_id", context.root_id.into());
        if let Some(priority) = context.priority {
            body.set("priority", i64::from(priority).into());
        }
        // A body that is a member of a group itself stays one.
        if body.option("group_id").is_none() {
            body.set("group_id", id.as_str().into());
        }
        if body.text("task_id").is_none() {
            let id = signature.text("task_id").map_or_else(&mut *new_id, str::to_owned);
            body.set("task_id", id.into());
        }
        if body.option("reply_to").is_none() {
            body.set("reply_to", context.options.reply_to.as_str().into());
        }
        if let Some(rest) = rest {
            body.set("chain", Json::Array(rest.iter().map(Signature::to_json).collect()));
        }
        for name in ["link", "link_error"] {
            extend(&mut body, name, signature.option(name));
        }
        let body = body.to_json();
        members.iter_mut().for_each(|member| member.set("chord", body.clone()));
        let (publications, child) = group(members.iter(), id.clone(), None, context, new_id);
        self.chords.push(Header { group: id, size: publications.len(), body });
        self.publications.extend(publications);
        self.children.push(child);
    }
}

/// Tells whether the first thing that a signature starts is a group or a chord.
fn is_group(signature: &Signature) -> bool {
    matches!(signature.first_kind(), SignatureKind::Group | SignatureKind::Chord)
}

/// Reads the members of a group, or of the header of a chord; those of groups inside stand for these. `None` where one cannot be read.
fn members(signature: &Signature) -> Option<Vec<Signature>> {
    let name = if signature.kind == SignatureKind::Chord { "header" } else { "tasks" };
    let list = match signature.kwarg(name)? {
        group @ Json::Object(_) => group.get("kwargs")?.get("tasks")?,
        list => list,
    };
    let mut found = Vec::new();
    for member in list.as_array()? {
        let member = Signature::read(member.clone()).ok()?;
        match member.kind {
            SignatureKind::Group => found.extend(members(&member)?),
            SignatureKind::Chain if flatten(member.clone()).is_empty() => {}
            _ => found.push(member),
        }
    }
    Some(found)
}

/// Reads the body of a chord.
fn body(signature: &Signature) -> Option<Signature> {
    Signature::read(signature.kwarg("body")?.clone()).ok()
}

/// Checks a group or chord that a signature starts first: members are tasks, and chains that begin and end with one.
fn startable_group(task: &str, signature: &Signature) -> Result<(), Unsupported> {
    if signature.kind == SignatureKind::Chain {
        let first = flatten(signature.clone()).into_iter().next();
        return first.map_or(Ok(()), |first| startable_group(task, &first));
    }
    let is_plain = |member: &Signature| {
        let steps = flatten(member.clone());
        let ends = [steps.first(), steps.last()];
        ends.iter().all(|step| step.is_some_and(|step| step.kind == SignatureKind::Task))
    };
    match members(signature) {
        // Nothing would join a header without members.
        Some(members) if members.is_empty() && signature.kind == SignatureKind::Chord => {
            return Err(unsupported(task, "is followed by a chord whose header is empty"));
        }
        Some(members) if members.iter().all(is_plain) => {}
        _ => return Err(unsupported(task, "is followed by a group whose members this worker cannot start")),
    }
    if signature.kind == SignatureKind::Chord && body(signature).is_none() {
        return Err(unsupported(task, "is followed by a chord whose body cannot be read"));
    }
    Ok(())
}

/// The message of one signature, with the ids of the tasks of the signature.
struct Sent {
    publication: Publication,
    head: String,
    tail: Vec<String>,
}

/// Creates the message of a task, or of the first task of a chain; returns `None` for a chain without tasks.
fn send(
    signature: &Signature,
    role: MessageRole<'_>,
    rest: Option<&[Signature]>,
    context: &ComposeContext<'_>,
    new_id: &mut dyn FnMut() -> String,
) -> Option<Sent> {
    if signature.kind == SignatureKind::Task {
        let head = id_of(signature, new_id);
        return Some(Sent { publication: message(signature, &head, role, rest, context), head, tail: Vec::new() });
    }
    let mut steps = flatten(signature.clone()).into_iter();
    let first = steps.next()?;
    let head = id_of(&first, new_id);
    let (mut behind, tail) = named(steps, context, new_id);
    // Of a chain in a group, only the last step is a member of the group.
    let role = match (role.group, behind.last_mut()) {
        (Some((group, index)), Some(last)) => {
            last.set("group_id", group.into());
            last.set("group_index", i64::try_from(index).unwrap_or(i64::MAX).into());
            MessageRole { group: None, direct: false }
        }
        _ => role,
    };
    behind.reverse();
    let chain: Vec<_> = rest.unwrap_or_default().iter().cloned().chain(behind).collect();
    Some(Sent { publication: message(&first, &head, role, Some(&chain), context), head, tail })
}

fn id_of(signature: &Signature, new_id: &mut dyn FnMut() -> String) -> String {
    signature.text("task_id").map_or_else(new_id, str::to_owned)
}

/// Gives an id to each task of the steps that wait, and returns the steps with these ids.
fn named(
    steps: impl Iterator<Item = Signature>,
    context: &ComposeContext<'_>,
    new_id: &mut dyn FnMut() -> String,
) -> (Vec<Signature>, Vec<String>) {
    let (mut named, mut ids) = (Vec::new(), Vec::new());
    for mut step in steps {
        if step.kind == SignatureKind::Task {
            let id = id_of(&step, new_id);
            step.set("task_id", id.as_str().into());
            step.set("root_id", context.root_id.into());
            if step.option("reply_to").is_none() {
                step.set("reply_to", context.options.reply_to.as_str().into());
            }
            ids.push(id);
        }
        named.push(step);
    }
    (named, ids)
}

/// Resolves a chain, and the chains inside it, into its steps; each option of the chain goes to the steps that it concerns.
///
/// The `args` and `immutable` of a chain have no effect: Celery drops both when it reads a chain.
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

/// Appends signatures to an option that is a list of signatures or a single signature; no signature is added twice.
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

/// Creates the messages of a new group of tasks and chains.
fn group<'s>(
    members: impl Iterator<Item = &'s Signature>,
    id: String,
    rest: Option<&[Signature]>,
    context: &ComposeContext<'_>,
    new_id: &mut dyn FnMut() -> String,
) -> (Vec<Publication>, Child) {
    let mut publications = Vec::new();
    let mut children = Vec::new();
    for member in members {
        let role = MessageRole { group: Some((&id, publications.len())), direct: false };
        let Some(sent) = send(member, role, rest, context, new_id) else { continue };
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
    ComposeContext { first, parent_id: &request.id, root_id, options, now, priority: None }
}

/// Creates the messages that follow a failure.
///
/// Unless results are ignored, each remaining task of the chain that has a reply queue gets the `answer` that it failed. Then
/// follow the errbacks, as one new group, with the id of the failed task as their first argument. When there are more tasks
/// than a message may carry along, only the last steps fail, or no errbacks are sent.
#[must_use]
pub fn after_failure(
    request: &TaskRequest,
    options: &CanvasOptions,
    answer: &dyn Fn(&ReplyTo) -> Publication,
    now: Timestamp,
    new_id: &mut dyn FnMut() -> String,
) -> AfterFailure {
    let mut after = AfterFailure { answers: fail_rest(request, answer), ..AfterFailure::default() };
    let (sendable, other): (Vec<_>, Vec<_>) =
        request.errbacks.iter().partition(|errback| sendable_errback(&request.task, errback).is_ok());
    after.unsupported = other.first().and_then(|errback| sendable_errback(&request.task, errback).err());
    let members = |errback: &Signature| match errback.kind {
        SignatureKind::Group => members(errback).unwrap_or_default(),
        _ => vec![errback.clone()],
    };
    let plain: Vec<_> = sendable.into_iter().flat_map(members).collect();
    let errbacks = request.errbacks.iter().map(Signature::tasks).sum::<usize>();
    if errbacks > MAX_CARRIED {
        after.unsupported = Some(Unsupported(format!("{errbacks} errbacks are more than {MAX_CARRIED}: none is sent")));
    } else if let Some(withheld) = Withheld::of(request, follow_up_size::errbacks(request), options) {
        after.withheld = Some(withheld);
    } else if !plain.is_empty() {
        let mut text = String::new();
        json::write_string(&mut text, &request.id);
        let first = First { text: &text, value: Json::Text(request.id.clone()) };
        let context = context(request, first, options, now);
        let id = new_id();
        after.publications.extend(group(plain.iter(), id, None, &context, new_id).0);
    }
    after
}

/// Creates the answers for the remaining tasks of the chain that have a reply queue, unless results are ignored; `answer` tells one
/// of them that it failed.
#[must_use]
pub fn fail_rest(request: &TaskRequest, answer: &dyn Fn(&ReplyTo) -> Publication) -> Vec<Publication> {
    if request.ignore_result {
        return Vec::new();
    }
    let mut waiting = Vec::new();
    for step in &request.chain {
        reply_addresses(&step.options, &step.kwargs, step.kind != SignatureKind::Task, &mut waiting);
    }
    // The last step, for which clients usually wait, stands first.
    let told = waiting.iter_mut().take(MAX_CARRIED).map(|to| {
        to.task.clone_from(&request.task);
        answer(to)
    });
    told.collect()
}

/// Collects the reply addresses of a step, and of the tasks inside it when it is a group, chain or chord.
fn reply_addresses(options: &[(String, Json)], kwargs: &[(String, Json)], complex: bool, found: &mut Vec<ReplyTo>) {
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
            reply_addresses(members("options"), members("kwargs"), complex, found);
        }
    }
}
