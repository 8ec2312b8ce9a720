//! What the broker refuses for good, and whom that is told.

use crate::celery::error::Exception;
use crate::worker::delivery::owed::Debt;
use crate::worker::delivery::pending_ack::PendingAck;
use crate::worker::delivery::role::Role;
use crate::worker::execution::settlement::Settlement;

/// Notes that the broker refuses a publication, in its words, and adds what is sent instead.
pub(in crate::worker) fn take(settlement: &Settlement, pending: &mut PendingAck, debt: &Debt, words: &str) {
    let role = debt.role;
    tracing::error!(task_id = pending.id, ?role, words, "publication refused for good");
    match role {
        // Nobody is told of these; what else the pending acknowledgement owes stays owed.
        Role::Notice | Role::Rest | Role::Part | Role::Dead | Role::Event => {}
        // The answer, which says that the command failed, stands.
        Role::FollowUp if !debt.is_first => {}
        Role::FollowUp if pending.is_spare_owed && is_too_large(words) => {}
        Role::FollowUp if pending.spare.is_some() && is_too_large(words) => {
            pending.is_spare_owed = true;
            pending.then.extend(pending.spare.take().map(|dead| (Role::Dead, *dead)));
        }
        Role::FollowUp | Role::Delay => {
            pending.fail();
            settlement.refused(pending, &exception(role, pending.reply_bytes, words));
        }
        Role::Reply => settlement.refused(pending, &exception(role, pending.reply_bytes, words)),
    }
}

/// Notes that the broker has no place for what a command would owe, in its words, and tells the caller.
pub(in crate::worker) fn give_up(settlement: &Settlement, pending: &mut PendingAck, role: Role, words: &str) {
    tracing::error!(task_id = pending.id, ?role, words, "refused for good");
    pending.fail();
    settlement.refused(pending, &exception(role, pending.reply_bytes, words));
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
        Role::Delay => Exception::custom(
            "kombu.exceptions",
            "OperationalError",
            vec![format!("the broker refuses to keep this task until its eta: {words}").into()],
        ),
        Role::Reply | Role::Rest | Role::Part | Role::Notice | Role::Dead | Role::Event => {
            Exception::value_error(format!(
                "the broker refuses the answer of {size} bytes: {words}; ask for less (offset, length, limit, start_after) \
             or raise the broker's max_message_size"
            ))
        }
    }
}
