//! The rules for a message that was read when its turn came.

use super::{Decision, Desk, Job, Work};
use crate::broker::Inflow;
use crate::celery::canvas;
use crate::celery::error::Exception;
use crate::celery::message::{Message, Origin};
use crate::celery::request::Unreadable;
use crate::telemetry::CommandOutcome;
use crate::worker::answer::Answer;
use crate::worker::desk::End;
use crate::worker::invalidations::Stale;
use crate::worker::reader::{Call, Opened};

impl Desk {
    /// Decides what is done with a job whose message was read now that its turn came.
    pub(in crate::worker) fn unseal(
        &self,
        mut job: Job,
        opened: Result<Opened, Unreadable>,
        message: &Message,
        origin: &Origin,
        answer: Option<&Answer>,
    ) -> Decision {
        let opened = match opened {
            Ok(opened) => opened,
            Err(unreadable) => {
                let parcel = self.unreadable(job.case.ticket, &unreadable, message, origin);
                return Decision::End(Box::new(parcel), CommandOutcome::DeadLettered);
            }
        };
        job.case.kept = self.kept(&opened.request, message, origin);
        (job.case.request, job.case.extended) = (opened.request, opened.extended);
        if let Some(answer) = answer {
            let stale = match &opened.call {
                Call::Read(Ok(command)) => Stale::of(command.keys(), command.writes()),
                // Only what writes is known by an answer.
                Call::Read(Err(_)) | Call::Unknown | Call::Later => Stale::of(&job.keys, true),
            };
            let mut parcel = self.close(job.case, &End::Answered(answer));
            parcel.stale = stale;
            return Decision::End(Box::new(parcel), CommandOutcome::Replayed);
        }
        if let Err(unsupported) = canvas::check(&job.case.request) {
            let inflow = Inflow::default();
            let exception = unsupported.exception();
            return self.unrunnable(job.case, exception, "unsupported-canvas", message, origin, inflow);
        }
        match opened.call {
            Call::Read(Ok(command)) => {
                job.writes = command.writes();
                job.writes_unnamed = job.writes && !command.keys().iter().any(|used| used.writes);
                Decision::Run(Box::new(Job { work: Work::Run(command), ..job }))
            }
            Call::Read(Err(error)) => self.misused(job.definition, job.case, error),
            Call::Unknown | Call::Later => {
                let exception = Exception::not_registered(&job.case.request.task);
                self.unrunnable(job.case, exception, "not-registered", message, origin, Inflow::default())
            }
        }
    }
}
