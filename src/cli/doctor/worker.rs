//! Checks the worker that runs with these settings, by its admin port.

use std::io::ErrorKind;

use serde_json::Value;

use super::super::admin::Port;
use super::report::Report;
use crate::config::MetricsAddress;
use crate::wiring::{Code, Failure};

/// Asks the worker on this machine for its state; returns whether a worker runs.
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
            let remedy = "is it a worker that is suspended? look at its log";
            let why = format!("the program that listens at {port} does not answer: {error}; {remedy}");
            return report.fault("worker", Code::Unavailable, why).map(|()| false);
        }
    };
    let said: Value = serde_json::from_str(&body).unwrap_or_default();
    let Some(components) = said["components"].as_object().filter(|_| matches!(&*status, "200" | "503")) else {
        let remedy = "another program has the port; set metrics_port";
        return report
            .fault("worker", Code::Configuration, format!("the program that answers at {port} is no worker; {remedy}"))
            .map(|()| false);
    };
    let mut is_well = true;
    for (component, condition) in components {
        if let Some(reason) = condition["reason"].as_str() {
            is_well = false;
            let how = if condition["ready"] == true { "runs, but says" } else { "is not ready, and says" };
            report.fault(
                "worker",
                Code::Unavailable,
                format!("the worker at {port} {how} of its {component}: {reason}"),
            )?;
        }
    }
    health(report, &port, is_well).await.map(|()| true)
}

/// Reports the parts of `/health` that `/readyz` does not have: the state of the storage, and pending entries.
async fn health(report: &mut Report<'_>, port: &Port, is_well: bool) -> Result<(), Failure> {
    let said: Value = match port.ask("/health").await {
        Ok((_, body)) => serde_json::from_str(&body).unwrap_or_default(),
        Err(error) => {
            let why =
                format!("the worker at {port} does not report the state of its storage: {error}; look at its log");
            return report.fault("worker", Code::Unavailable, why);
        }
    };
    match said["pending_sync"].as_u64() {
        Some(0) | None => {}
        Some(waiting) => {
            let remedy = "`filestorage sync` sends them, or says why it cannot";
            report.note("worker", format!("{waiting} values wait at the worker at {port} for the bucket; {remedy}"))?;
        }
    }
    match said["status"].as_str() {
        Some("healthy") if is_well => report.fine("worker", format!("the worker at {port} is ready and healthy")),
        Some(status) if is_well => {
            let why = format!("the worker at {port} says of itself that it is {status}; look at its log");
            report.fault("worker", Code::Unavailable, why)
        }
        _ => Ok(()),
    }
}
