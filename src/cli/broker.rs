//! Opens a session with the broker for a subcommand, and makes failures of the broker's faults.

use crate::broker::{Error, ErrorKind, Session};
use crate::config::Settings;
use crate::wiring::{Code, Failure, broker_options};

/// Opens a session at the first broker that answers.
pub(super) async fn open(settings: &Settings, name: &str) -> Result<Session, Failure> {
    let options = broker_options(&settings.queue, name)?;
    Ok(Session::open(&options).await?)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            ErrorKind::Unreachable | ErrorKind::Lost | ErrorKind::Down | ErrorKind::Full => Code::Unavailable,
            ErrorKind::Denied => Code::NoPermission,
            ErrorKind::Missing => Code::NoInput,
            _ => Code::Configuration,
        };
        Self::new(code, error.to_string())
    }
}
