//! Sends requests to the admin port of a worker on this machine.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::MetricsAddress;

/// The longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The longest answer that is read, in bytes; a worker answers with a few kilobytes.
const LONGEST: u64 = 1 << 20;

/// The address of the admin port of a worker with these settings.
#[derive(Debug)]
pub(super) struct Port {
    host: String,
    port: u16,
}

impl Port {
    /// Returns the address by the settings.
    ///
    /// # Errors
    ///
    /// The text says why no address is known.
    pub(super) fn of(address: Option<&MetricsAddress>) -> Result<Self, &'static str> {
        let Some(address) = address else {
            return Err("enable_metrics is false, so the worker has no admin port to ask");
        };
        if address.port == 0 {
            return Err("metrics_port is 0, so the worker's port is not known here; set metrics_port");
        }
        // A worker that listens on all addresses is reached at the loopback address.
        let host = match address.host.as_str() {
            "0.0.0.0" => "127.0.0.1",
            "::" => "::1",
            host => host,
        };
        Ok(Self { host: host.to_owned(), port: address.port })
    }

    /// Requests a path and returns status and body.
    ///
    /// # Errors
    ///
    /// The error of the connection; no answer within 5 s is `TimedOut`.
    pub(super) async fn ask(&self, path: &str) -> io::Result<(String, String)> {
        let silent = || io::Error::new(io::ErrorKind::TimedOut, format!("silent for {} s", TIMEOUT.as_secs()));
        timeout(TIMEOUT, self.exchange(path)).await.map_err(|_| silent())?
    }

    async fn exchange(&self, path: &str) -> io::Result<(String, String)> {
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {self}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(LONGEST).read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).unwrap_or_default();
        Ok((status.to_owned(), body.to_owned()))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.host, self.port)
    }
}
