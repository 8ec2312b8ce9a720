//! `filestorage store`.

use std::io::{Read as _, stdin};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::outcome::{Code, Failure};
use super::output::Output;
use crate::config::Settings;
use crate::json::{self, Json};
use crate::storage::{Condition, ContentType, Key, Metadata, StoreOptions, Value};
use crate::telemetry::Metrics;

/// Stores a file, or what comes in on standard input, under a key.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Key to store under.
    key: String,

    /// File to store; `-`, or none, is standard input.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    /// Type of the value.
    #[arg(long, value_enum, default_value_t = KindArgument::Bytes)]
    kind: KindArgument,

    /// MIME type; by default that of the kind.
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,

    /// Metadata: a JSON object.
    #[arg(long, value_name = "JSON")]
    metadata: Option<String>,

    /// Removes the value after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    ttl_seconds: Option<f64>,

    /// Stores only when the key has no value.
    #[arg(long, conflicts_with = "if_generation")]
    if_absent: bool,

    /// Stores only when the key's value has this generation.
    #[arg(long, value_name = "GENERATION")]
    if_generation: Option<String>,
}

/// Type of a value that is given as bytes.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindArgument {
    /// A string in UTF-8.
    Text,
    /// Bytes.
    Bytes,
    /// A JSON value.
    Json,
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let key = Key::parse(&self.key)?;
        let options = StoreOptions {
            metadata: self.metadata.as_deref().map(Metadata::parse).transpose()?,
            content_type: self.content_type.as_deref().map(ContentType::parse).transpose()?,
            expires_at: self.ttl_seconds.map(expiry).transpose()?,
            condition: match self.if_generation {
                Some(generation) => Condition::Generation(generation),
                None if self.if_absent => Condition::Absent,
                None => Condition::Always,
            },
            ..StoreOptions::default()
        };
        let value = typed(self.kind, read(self.file.as_deref())?)?;
        let receipt = super::open::engine(&settings.storage, &Metrics::new())?.store(&key, value, options).await?;
        let text = format!("stored {key}: {} bytes, generation {}\n", receipt.size, receipt.generation);
        output.answer(&receipt, &text)?;
        Ok(Code::Success)
    }
}

fn read(file: Option<&Path>) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    match file {
        Some(path) if path != Path::new("-") => std::fs::read(path)
            .map_err(|error| Failure::new(Code::NoInput, format!("cannot read {}: {error}", path.display()))),
        _ => stdin()
            .lock()
            .read_to_end(&mut bytes)
            .map(|_| bytes)
            .map_err(|error| Failure::new(Code::Io, format!("cannot read standard input: {error}"))),
    }
}

fn typed(kind: KindArgument, bytes: Vec<u8>) -> Result<Value, Failure> {
    let bad = |why: String| Failure::new(Code::BadData, why);
    match kind {
        KindArgument::Bytes => Ok(Value::Bytes(bytes.into())),
        KindArgument::Text => String::from_utf8(bytes).map(Value::Text).map_err(|error| {
            bad(format!("the value is not UTF-8: {}; store it with --kind bytes", error.utf8_error()))
        }),
        KindArgument::Json => match json::parse(&bytes, json::Limits::default()) {
            Ok(Json::Text(text)) => Ok(Value::Text(text)),
            Ok(value) => Ok(Value::Json(value.compact())),
            Err(error) => Err(bad(format!("the value is not JSON: {error}"))),
        },
    }
}

fn expiry(seconds: f64) -> Result<Timestamp, Failure> {
    let bad =
        || Failure::new(Code::BadData, format!("--ttl-seconds {seconds} must be above 0 and end before year 9999"));
    if seconds <= 0.0 {
        return Err(bad());
    }
    let lifetime = Duration::try_from_secs_f64(seconds).map_err(|_| bad())?;
    Timestamp::now().checked_add(lifetime).map_err(|_| bad())
}
