//! `filestorage healthcheck`.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::outcome::{Code, Failure};
use super::output::Output;
use crate::config::Settings;

/// Longest wait for the worker's answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the worker of this machine whether it is ready: exit code 0, or 69 with the reason.
#[derive(Debug, Args)]
pub(super) struct Arguments {}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let Some(address) = &settings.telemetry.metrics else {
            let message = "enable_metrics is false, so the worker has no admin port to ask";
            return Err(Failure::new(Code::Configuration, message));
        };
        if address.port == 0 {
            let message = "metrics_port is 0, so the worker's port is not known here; set metrics_port";
            return Err(Failure::new(Code::Configuration, message));
        }
        // A worker that listens on every address is asked on this machine's own.
        let host = match address.host.as_str() {
            "0.0.0.0" => "127.0.0.1",
            "::" => "::1",
            host => host,
        };
        let place = format!("{host}:{}", address.port);
        let unavailable = |why: String| Failure::new(Code::Unavailable, format!("worker at {place} is {why}"));
        let answer = timeout(PATIENCE, ask(host, address.port)).await;
        let answer = answer.map_err(|_| unavailable(format!("silent for {} s", PATIENCE.as_secs())))?;
        let (status, body) = answer.map_err(|error| unavailable(format!("not answering: {error}")))?;
        if status != "200" {
            return Err(unavailable(format!("not ready: {}", body.trim())));
        }
        output.answer(&json!({"ready": true}), "ready\n")?;
        Ok(Code::Success)
    }
}

async fn ask(host: &str, port: u16) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect((host, port)).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).unwrap_or_default();
    Ok((status.to_owned(), body.to_owned()))
}
