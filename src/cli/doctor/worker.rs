//! The worker that runs with these settings: what it says of itself.

use std::io::ErrorKind;

use serde_json::Value;

use super::super::admin::Port;
use super::report::Report;
use crate::config::MetricsAddress;
use crate::wiring::{Code, Failure};

/// Asks the worker of this machine how it stands; tells whether one runs.
pub(super) async fn check(report: &mut Report<'_>, address: Option<&MetricsAddress>) -> Result<bool, Failure> {
    let port = match Port::of(address) {
        Ok(port) => port,
        Err(why) => return report.skipped("worker", why).map(|()| false),
    };
    let (status, body) = match port.ask("/readyz").await {
        Ok(answer) => answer,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            let what = "none runs on this machine with this metrics_host and metrics_port";
            return report.note("worker", format!("nobody listens at {port}: {what}")).map(|()| false);
        }
        Err(error) => {
            let mend = "is it a worker, and not stopped in its tracks? look at its log";
            let why = format!("whoever listens at {port} does not answer: {error}; {mend}");
            return report.fault("worker", Code::Unavailable, why).map(|()| false);
        }
    };
    let said: Value = serde_json::from_str(&body).unwrap_or_default();
    let Some(components) = said["components"].as_object().filter(|_| matches!(&*status, "200" | "503")) else {
        let mend = "another program has the port; set metrics_port";
        return report
            .fault("worker", Code::Configuration, format!("what answers at {port} is no worker; {mend}"))
            .map(|()| false);
    };
    let mut is_well = true;
    for (component, condition) in components {
        if let Some(reason) = condition["reason"].as_str() {
            is_well = false;
            let how = if condition["ready"] == true { "goes on, but says" } else { "is not ready, and says" };
            report.fault(
                "worker",
                Code::Unavailable,
                format!("the one at {port} {how} of its {component}: {reason}"),
            )?;
        }
    }
    health(report, &port, is_well).await.map(|()| true)
}

/// What `/readyz` does not say: how the storage is, and what waits for it.
async fn health(report: &mut Report<'_>, port: &Port, is_well: bool) -> Result<(), Failure> {
    let said: Value = match port.ask("/health").await {
        Ok((_, body)) => serde_json::from_str(&body).unwrap_or_default(),
        Err(error) => {
            let why = format!("the one at {port} does not say how its storage is: {error}; look at its log");
            return report.fault("worker", Code::Unavailable, why);
        }
    };
    match said["pending_sync"].as_u64() {
        Some(0) | None => {}
        Some(waiting) => {
            let mend = "`filestorage sync` sends them, or says why not";
            report.note("worker", format!("{waiting} values wait on the machine of the one at {port}; {mend}"))?;
        }
    }
    match said["status"].as_str() {
        Some("healthy") if is_well => report.fine("worker", format!("the one at {port} is ready and healthy")),
        Some(status) if is_well => {
            let why = format!("the one at {port} says of itself that it is {status}; its log says why");
            report.fault("worker", Code::Unavailable, why)
        }
        _ => Ok(()),
    }
}
