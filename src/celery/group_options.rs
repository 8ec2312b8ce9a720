//! Hands the options of a group, or of a chord, on to the signatures inside it, as Celery does when it starts one.

use super::signature::{Signature, SignatureKind};
use crate::json::Json;

/// Options that no member takes over: what names the group itself, what its parent gives, what waits behind it, and what
/// Celery reads and drops.
///
/// Celery replaces the `priority` of a group by the one that its members inherit, or by none.
const ITS_OWN: [&str; 9] =
    ["chain", "task_id", "group_id", "group_index", "root_id", "parent_id", "priority", "add_to_parent", "route_name"];

/// Options of a chord that its header does not take over: these concern what comes after it.
const BEHIND_A_CHORD: [&str; 3] = ["link", "link_error", "chord"];

/// Options of a chord that its body does not take over: a delay is that of the header, and links are added to those of the
/// body.
const NOT_OF_A_BODY: [&str; 8] =
    ["task_id", "root_id", "parent_id", "priority", "link", "link_error", "countdown", "eta"];

/// Gives each member the options of its group or chord.
pub(super) fn to_members(of: &Signature, members: &mut [Signature]) {
    let handed_on = |name: &str| match (of.kind, name) {
        _ if ITS_OWN.contains(&name) => false,
        (SignatureKind::Chord, name) => !BEHIND_A_CHORD.contains(&name),
        // Celery takes it for the type of the signature.
        (_, name) => name != "type",
    };
    for member in members {
        // A member keeps its stamps. A chain does not: Celery merges its options without a look at them.
        let mut kept = Vec::new();
        if member.kind == SignatureKind::Task
            && let Some(stamped) = member.option("stamped_headers")
        {
            kept.push(Json::from("stamped_headers"));
            kept.extend_from_slice(stamped.as_array().unwrap_or_default());
        }
        for (name, value) in of.options.iter().filter(|(name, value)| handed_on(name) && !value.is_null()) {
            let is_kept = kept.iter().any(|kept| kept.as_text() == Some(name)) && member.option(name).is_some();
            if !is_kept {
                member.set(name, value.clone());
            }
        }
    }
}

/// Gives the body of a chord the options of the chord.
pub(super) fn to_body(chord: &Signature, body: &mut Signature) {
    for (name, value) in chord.options.iter().filter(|(name, _)| !NOT_OF_A_BODY.contains(&name.as_str())) {
        body.set(name, value.clone());
    }
}
