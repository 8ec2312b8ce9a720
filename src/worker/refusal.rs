//! What the broker refuses for good, and whom that is told.

use super::desk::Desk;
use super::outbox::{Parcel, Role};
use crate::celery::error::Exception;

/// Takes in that a publication of this role is refused, in the broker's words: what is owed instead is in the parcel then.
pub(super) fn take(desk: &Desk, parcel: &mut Parcel, role: Role, words: &str) {
    tracing::error!(task_id = parcel.id, ?role, words, "publication refused for good");
    match role {
        // Nobody is told of these; what else the parcel owes stays owed.
        Role::Notice | Role::Dead => {}
        Role::FollowUp if parcel.spare.is_some() && is_too_large(words) => {
            parcel.then.extend(parcel.spare.take().map(|dead| (Role::Dead, *dead)));
        }
        Role::Reply | Role::FollowUp | Role::Park => {
            let exception = exception(role, parcel.reply_bytes, words);
            desk.refused(parcel, &exception);
        }
    }
}

/// Tells whether the broker refuses a message for its size: RabbitMQ's 406, or 311 of others.
fn is_too_large(words: &str) -> bool {
    words.starts_with("311") || words.starts_with("406") && words.contains("larger than")
}

/// Says to the caller why the broker does not take an answer or what follows it.
fn exception(role: Role, size: usize, words: &str) -> Exception {
    match role {
        Role::FollowUp => Exception::custom(
            "kombu.exceptions",
            "OperationalError",
            vec![
                format!("the broker refuses what follows this task (callback, errback or chain step): {words}").into(),
            ],
        ),
        Role::Park => Exception::custom(
            "kombu.exceptions",
            "OperationalError",
            vec![format!("the broker refuses to keep this task until its eta: {words}").into()],
        ),
        Role::Reply | Role::Notice | Role::Dead => Exception::value_error(format!(
            "the broker refuses the answer of {size} bytes: {words}; ask for less (offset, length, limit, start_after) \
             or raise the broker's max_message_size"
        )),
    }
}
