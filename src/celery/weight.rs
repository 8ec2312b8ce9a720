//! How large the messages would be that follow a task, told before any of them is made.
//!
//! What is said of a chain is copied into each of its steps when it is started, so a large `link_error` above many steps grows with
//! their number. Everything here is at least what is composed in the end.

use super::options::option;
use super::request::TaskRequest;
use super::signature::{Signature, SignatureKind};
use crate::json::Json;

/// Headers, and members of a body that every message has.
const MESSAGE: usize = 4096;

/// Sizes what follows a success with a result of so many bytes, in bytes of all messages together.
pub(super) fn after_success(request: &TaskRequest, result: usize) -> usize {
    let callbacks = request.callbacks.iter().map(|callback| message(callback, result));
    let step = request.chain.split_last().map_or(0, |(next, rest)| {
        rest.iter().fold(message(next, result), |sum, waiting| sum.saturating_add(written(waiting)))
    });
    callbacks.fold(step, usize::saturating_add)
}

/// Sizes the errbacks of a failure, in bytes of all messages together.
pub(super) fn errbacks(request: &TaskRequest) -> usize {
    request.errbacks.iter().map(|errback| message(errback, request.id.len())).fold(0, usize::saturating_add)
}

fn message(signature: &Signature, first: usize) -> usize {
    let weight = if signature.kind == SignatureKind::Chain {
        chain(&signature.kwargs, &signature.options).bytes
    } else {
        written(signature)
    };
    weight.saturating_add(first).saturating_add(MESSAGE)
}

fn written(signature: &Signature) -> usize {
    let args = signature.args.iter().map(Json::compact_len).fold(0, usize::saturating_add);
    let named = members(&signature.kwargs).saturating_add(members(&signature.options));
    args.saturating_add(named).saturating_add(signature.extra_len()).saturating_add(MESSAGE)
}

/// What a signature becomes when it is started.
#[derive(Clone, Copy, Default)]
struct Weight {
    bytes: usize,
    steps: usize,
}

fn weigh(value: &Json) -> Weight {
    let inside = |name: &str| value.get(name).and_then(Json::as_object).unwrap_or_default();
    if value.get("subtask_type").and_then(Json::as_text) == Some("chain") {
        return chain(inside("kwargs"), inside("options"));
    }
    Weight { bytes: value.compact_len().saturating_add(MESSAGE), steps: 1 }
}

fn chain(kwargs: &[(String, Json)], options: &[(String, Json)]) -> Weight {
    let tasks = option(kwargs, "tasks");
    let tasks = tasks.map(|tasks| tasks.as_array().unwrap_or(std::slice::from_ref(tasks))).unwrap_or_default();
    let inside = tasks.iter().map(weigh).fold(Weight::default(), |all, one| Weight {
        bytes: all.bytes.saturating_add(one.bytes),
        steps: all.steps.saturating_add(one.steps),
    });
    let copied = option(options, "link_error").map_or(0, Json::compact_len);
    let bytes = inside.bytes.saturating_add(copied.saturating_mul(inside.steps)).saturating_add(members(options));
    Weight { bytes, steps: inside.steps }
}

fn members(members: &[(String, Json)]) -> usize {
    members.iter().map(|(name, value)| name.len() + 4 + value.compact_len()).fold(0, usize::saturating_add)
}
