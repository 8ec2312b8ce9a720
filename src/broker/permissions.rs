//! What this user may do, found out by doing it.

use uuid::Uuid;

use crate::celery::message::{Address, Message, Publication};

use super::{Error, ErrorKind, PublishError, Result, Session, State};

impl Session {
    /// Makes sure that this user may answer: every reply goes through the default exchange, and so does a message to a
    /// queue that does not exist, which comes back and reaches nobody.
    ///
    /// While the broker is blocked it takes nothing and refuses nothing; that is no fault.
    ///
    /// # Errors
    /// `Denied` names the missing permission; `Lost`.
    pub async fn may_answer(&self) -> Result<()> {
        let nowhere = Address::queue(format!("filestorage.nobody-{}", Uuid::new_v4().simple()));
        let publication = Publication { address: nowhere, message: Message::default() };
        let (publisher, mut state) = (self.publisher(), self.watch());
        let answer = tokio::select! {
            mut answers = publisher.publish(vec![publication], true) => answers.pop(),
            _ = state.wait_for(|state| matches!(state, State::Blocked(_))) => None,
        };
        match answer {
            Some(Err(PublishError::Refused { code: 403, text })) => {
                let refused = Error::new(ErrorKind::Denied, text);
                Err(self.link.name_permission(refused, "write", "exchange 'amq.default'"))
            }
            Some(Err(fault @ (PublishError::Lost(_) | PublishError::Unconfirmed(_)))) => {
                Err(Error::lost(fault.to_string()))
            }
            _ => Ok(()),
        }
    }
}
