//! The rules for a message that was read when its turn came.

use super::{Decision, Policy, ReadyTask, Work, crashed};
use crate::broker::Inflow;
use crate::celery::error::Exception;
use crate::celery::message::{Message, Origin};
use crate::celery::reply::Revocation;
use crate::celery::request::Unreadable;
use crate::telemetry::CommandOutcome;
use crate::worker::execution::settlement::TaskEnd;
use crate::worker::intake::reader::{OpenedMessage, TaskCall};
use crate::worker::intake::sealed::KnownEnd;
use crate::worker::invalidations::Stale;

impl Policy {
    /// Decides what is done with a task whose message was read now that its turn came.
    pub(in crate::worker) fn unseal(
        &self,
        mut task: ReadyTask,
        opened: Result<OpenedMessage, Unreadable>,
        message: &Message,
        origin: &Origin,
        end: Option<&KnownEnd>,
    ) -> Decision {
        let opened = match opened {
            Ok(opened) => opened,
            Err(unreadable) => {
                if let Some(KnownEnd::Revoked(revocation)) = end {
                    // What follows cannot be read, and this stands in the headers.
                    return self.revoked(task, *revocation);
                }
                let pending = self.settlement.unreadable(task.context.ack_token, &unreadable, message, origin);
                return Decision::Ended(Box::new(pending), CommandOutcome::DeadLettered);
            }
        };
        task.context.kept = self.settlement.kept(&opened.request, message, origin);
        (task.context.request, task.context.extended) = (opened.request, opened.extended);
        match end {
            None => {}
            Some(KnownEnd::Answered(answer)) => {
                let stale = match &opened.call {
                    TaskCall::Read(Ok(command)) => Stale::of(command.keys(), command.writes()),
                    // Only what writes is known by an answer.
                    TaskCall::Read(Err(_)) | TaskCall::Unknown | TaskCall::Later => Stale::of(&task.keys, true),
                };
                let mut pending = self.settlement.close(task.context, &TaskEnd::Answered(answer));
                pending.stale = stale;
                return Decision::Ended(Box::new(pending), CommandOutcome::Replayed);
            }
            Some(KnownEnd::Revoked(revocation)) => return self.revoked(task, *revocation),
            Some(KnownEnd::Crashed(crashes)) => {
                let inflow = Inflow::default();
                return self.unrunnable(task.context, crashed(*crashes), "crashed", message, origin, inflow);
            }
        }
        if let Err(unsupported) = self.settlement.check(&task.context.request) {
            let inflow = Inflow::default();
            let exception = unsupported.exception();
            return self.unrunnable(task.context, exception, "unsupported-canvas", message, origin, inflow);
        }
        match opened.call {
            TaskCall::Read(Ok(command)) => {
                task.writes = command.writes();
                task.writes_unnamed = task.writes && !command.keys().iter().any(|used| used.writes);
                Decision::Run(Box::new(ReadyTask { work: Work::Run(command), ..task }))
            }
            TaskCall::Read(Err(error)) => self.misused(task.definition, task.context, error),
            TaskCall::Unknown | TaskCall::Later => {
                let exception = Exception::not_registered(&task.context.request.task);
                self.unrunnable(task.context, exception, "not-registered", message, origin, Inflow::default())
            }
        }
    }

    fn revoked(&self, task: ReadyTask, revocation: Revocation) -> Decision {
        let stale = task.stale();
        let mut pending = self.settlement.close(task.context, &TaskEnd::Revoked(revocation));
        pending.stale = stale;
        Decision::Ended(Box::new(pending), CommandOutcome::Revoked)
    }
}
