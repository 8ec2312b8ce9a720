//! `filestorage delete`: removes values.

use clap::Args;
use serde_json::json;

use super::terminal::Output;
use crate::config::Settings;
use crate::redact::redact;
use crate::storage::{DeleteRequest, Engine, Key};
use crate::telemetry::Metrics;
use crate::wiring::{Code, Failure, stack};

/// Removes keys; a missing key is no error.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Keys to remove.
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,

    /// Removes each key only when its value has this generation.
    #[arg(long, value_name = "GENERATION")]
    if_generation: Option<String>,
}

impl Arguments {
    /// Removes all keys, also after a failure; returns the exit code of the first failure.
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let engine = stack::engine(&settings.storage, &Metrics::new()).await?;
        let (mut first, mut answers, mut text) = (None, Vec::new(), String::new());
        for key in &self.keys {
            match self.delete(&engine, key).await {
                Ok(pending) => {
                    answers.push(json!({"key": key, "ok": true, "pending_sync": pending}));
                    let waits = if pending { "; the bucket is told when it is back" } else { "" };
                    text.push_str(&format!("deleted {key}{waits}\n"));
                }
                Err(failure) => {
                    answers.push(json!({"key": key, "ok": false, "error": redact(&failure.message)}));
                    let code = output.fail(&failure);
                    first.get_or_insert(code);
                }
            }
        }
        output.answer(&answers, &text)?;
        Ok(first.unwrap_or(Code::Success))
    }

    /// Removes one key; returns true when the delete is pending and still has to be sent to the bucket.
    async fn delete(&self, engine: &Engine, key: &str) -> Result<bool, Failure> {
        let options = DeleteRequest { generation: self.if_generation.clone(), ..DeleteRequest::default() };
        Ok(engine.delete(&Key::parse(key)?, options).await?)
    }
}
