//! `filestorage healthcheck`: asks a worker whether it is ready.

use clap::Args;
use serde_json::json;

use super::admin::Port;
use super::terminal::Output;
use crate::config::Settings;
use crate::wiring::{Code, Failure};

/// Asks the worker of this machine whether it is ready: exit code 0, or 69 with the reason.
#[derive(Debug, Args)]
pub(super) struct Arguments {}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let port = Port::of(settings.telemetry.metrics.as_ref());
        let port = port.map_err(|why| Failure::new(Code::Configuration, why))?;
        let unavailable = |why: String| Failure::new(Code::Unavailable, format!("worker at {port} is {why}"));
        let answer = port.ask("/readyz").await;
        let (status, body) = answer.map_err(|error| match error.kind() {
            std::io::ErrorKind::TimedOut => unavailable(error.to_string()),
            _ => unavailable(format!("not answering: {error}")),
        })?;
        if status != "200" {
            return Err(unavailable(format!("not ready: {}", body.trim())));
        }
        output.answer(&json!({"ready": true}), "ready\n")?;
        Ok(Code::Success)
    }
}
