//! Checks whether workers over a bucket can tell each other which values they changed.

use serde_json::json;
use uuid::Uuid;

use super::report::Report;
use crate::broker::{ErrorKind, INVALIDATIONS_EXCHANGE, PublishError, Session};
use crate::wiring::{Code, Failure};

/// Declares a queue of this connection, as a worker does, and publishes a message that names no key.
pub(super) async fn check(report: &mut Report<'_>, session: &Session, is_shared: bool) -> Result<(), Failure> {
    if !is_shared {
        return report.skipped("cache", "values are in files, which every worker compares");
    }
    let fanout = session.fanout();
    let listening = match fanout.listen().await {
        Ok(listening) => listening,
        Err(error) if error.kind() == ErrorKind::Missing => {
            let why = format!("the exchange {INVALIDATIONS_EXCHANGE} is not there yet; the first worker declares it");
            return report.note("cache", why);
        }
        Err(error) if error.kind() == ErrorKind::Denied => {
            return report.note("cache", format!("the cache of this user's workers is off: {error}"));
        }
        Err(error) => return report.fault("cache", Code::Unavailable, error.to_string()),
    };
    let nothing = json!({"version": 1, "worker": Uuid::new_v4().to_string(), "number": 0, "keys": []});
    let published = fanout.publish(nothing.to_string().into()).await;
    drop(listening);
    match published {
        Ok(()) => report.fine("cache", "workers can tell each other which values they changed"),
        Err(PublishError::Refused { code, text }) => {
            let remedy = format!(
                "grant the write permission on exchange {INVALIDATIONS_EXCHANGE} with rabbitmqctl set_permissions"
            );
            let why = format!("other workers may answer old values: the broker answered {code} {text}; {remedy}");
            report.fault("cache", Code::Configuration, why)
        }
        Err(error) => report.fault("cache", Code::Unavailable, format!("{error}; try again")),
    }
}
