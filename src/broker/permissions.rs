//! What this user may do, found out by doing it.

use futures_util::future::BoxFuture;

use super::{Error, ErrorKind, PublishError, Result, Session, State};

impl Session {
    /// Makes sure that this user may answer, by the outcome of a publication through the default exchange that reaches nobody.
    ///
    /// While the broker is blocked it takes nothing and refuses nothing; that is no fault.
    ///
    /// # Errors
    /// `Denied` names the missing permission; `Lost`.
    pub async fn may_answer(&self, probe: BoxFuture<'_, std::result::Result<(), PublishError>>) -> Result<()> {
        let mut state = self.watch();
        let probed = tokio::select! {
            probed = probe => probed,
            _ = state.wait_for(|state| matches!(state, State::Blocked(_))) => Ok(()),
        };
        match probed {
            Err(PublishError::Refused { code: 403, text }) => {
                let refused = Error::new(ErrorKind::Denied, text);
                Err(self.link.name_permission(refused, "write", "exchange 'amq.default'"))
            }
            Err(fault @ (PublishError::Lost(_) | PublishError::Unconfirmed(_))) => Err(Error::lost(fault.to_string())),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
