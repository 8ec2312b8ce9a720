//! Computes an upper bound for the size of the messages that follow a task, before any of them is made.
//!
//! When a chain is started, its options are copied into each of its steps: a large `link_error` of a chain with many steps
//! takes space for each step. Each result here is at least the size of the messages that are made later.

use super::options::option;
use super::request::TaskRequest;
use super::signature::{Signature, SignatureKind};
use crate::json::Json;

/// The size of the headers and of those members of the body that every message has, in bytes.
const MESSAGE_OVERHEAD: usize = 4096;

/// Bounds the size of all messages that follow a success, in bytes; `result` is the size of the result in bytes.
pub(super) fn after_success(request: &TaskRequest, result: usize) -> usize {
    let callbacks = request.callbacks.iter().map(|callback| message(callback, result));
    let step = request.chain.split_last().map_or(0, |(next, rest)| {
        let waiting = rest.iter().map(written).fold(0, usize::saturating_add);
        // Each member of a group or chord takes the rest along.
        let is_group = matches!(next.first_kind(), SignatureKind::Group | SignatureKind::Chord);
        let times = if is_group { next.tasks() } else { 1 };
        message(next, result).saturating_add(waiting.saturating_mul(times))
    });
    callbacks.fold(step, usize::saturating_add)
}

/// Bounds the size of all errbacks of a failure, in bytes.
pub(super) fn errbacks(request: &TaskRequest) -> usize {
    request.errbacks.iter().map(|errback| message(errback, request.id.len())).fold(0, usize::saturating_add)
}

fn message(signature: &Signature, first: usize) -> usize {
    let size = if matches!(signature.first_kind(), SignatureKind::Group | SignatureKind::Chord) {
        // Each member has the result, the options of the group, and the body with all that follows it, which has the options too.
        let own = members(&signature.options);
        let carried = match signature.kind {
            SignatureKind::Group => own,
            SignatureKind::Chord => {
                let body = signature.kwarg("body").map_or_else(|| written(signature), Json::compact_len);
                body.saturating_add(own.saturating_mul(2))
            }
            // The group or chord that begins the chain stands inside it with its options.
            _ => own.saturating_add(written(signature).saturating_mul(2)),
        };
        let each = carried.saturating_add(first).saturating_add(MESSAGE_OVERHEAD);
        written(signature).saturating_add(each.saturating_mul(signature.tasks()))
    } else if signature.kind == SignatureKind::Chain {
        chain(&signature.kwargs, &signature.options).bytes
    } else {
        written(signature)
    };
    size.saturating_add(first).saturating_add(MESSAGE_OVERHEAD)
}

fn written(signature: &Signature) -> usize {
    let args = signature.args.iter().map(Json::compact_len).fold(0, usize::saturating_add);
    let named = members(&signature.kwargs).saturating_add(members(&signature.options));
    args.saturating_add(named).saturating_add(signature.extra_len()).saturating_add(MESSAGE_OVERHEAD)
}

/// The size of the messages that a signature becomes when it is started.
#[derive(Clone, Copy, Default)]
struct MessageSize {
    bytes: usize,
    /// The number of tasks, one after another.
    steps: usize,
}

fn size(value: &Json) -> MessageSize {
    let inside = |name: &str| value.get(name).and_then(Json::as_object).unwrap_or_default();
    if value.get("subtask_type").and_then(Json::as_text) == Some("chain") {
        return chain(inside("kwargs"), inside("options"));
    }
    MessageSize { bytes: value.compact_len().saturating_add(MESSAGE_OVERHEAD), steps: 1 }
}

fn chain(kwargs: &[(String, Json)], options: &[(String, Json)]) -> MessageSize {
    let tasks = option(kwargs, "tasks");
    let tasks = tasks.map(|tasks| tasks.as_array().unwrap_or(std::slice::from_ref(tasks))).unwrap_or_default();
    let inside = tasks.iter().map(size).fold(MessageSize::default(), |all, one| MessageSize {
        bytes: all.bytes.saturating_add(one.bytes),
        steps: all.steps.saturating_add(one.steps),
    });
    let copied = option(options, "link_error").map_or(0, Json::compact_len);
    let bytes = inside.bytes.saturating_add(copied.saturating_mul(inside.steps)).saturating_add(members(options));
    MessageSize { bytes, steps: inside.steps }
}

fn members(members: &[(String, Json)]) -> usize {
    members.iter().map(|(name, value)| name.len() + 4 + value.compact_len()).fold(0, usize::saturating_add)
}
