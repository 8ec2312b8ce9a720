//! `filestorage retrieve`.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;

use super::open;
use super::outcome::{Code, Failure};
use super::output::Output;
use crate::config::Settings;
use crate::storage::{ByteRange, Key, Receipt, Retrieved, Value, Want};

/// Writes the value of a key to standard output or a file.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Key to read.
    key: String,

    /// File to write to; `-`, or none, is standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// First byte of a range.
    #[arg(long, value_name = "BYTES")]
    offset: Option<u64>,

    /// Longest range.
    #[arg(long, value_name = "BYTES")]
    length: Option<u64>,
}

/// The answer for programs when no file was named.
#[derive(Serialize)]
struct Answer<'a> {
    value: Box<RawValue>,
    /// `base64` when the value is bytes, `text` when it is JSON that only Python reads.
    encoding: Option<&'static str>,
    receipt: &'a Receipt,
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let key = Key::parse(&self.key)?;
        let range = (self.offset.is_some() || self.length.is_some())
            .then(|| ByteRange { offset: self.offset.unwrap_or_default(), length: self.length });
        let want = Want { range, ..Want::default() };
        let Some(engine) = open::reader(&settings.storage)? else {
            return Err(open::nothing_stored(&settings.storage));
        };
        let found = engine.retrieve(&key, want).await?;
        let Some(Retrieved { value, receipt }) = found else { return Err(Failure::missing(&self.key)) };
        match self.output.as_deref() {
            Some(path) if path != Path::new("-") => {
                let bytes = value.into_bytes();
                std::fs::write(path, &bytes)
                    .map_err(|error| Failure::new(Code::Io, format!("cannot write {}: {error}", path.display())))?;
                output.answer(&receipt, &format!("wrote {} bytes to {}\n", bytes.len(), path.display()))?;
            }
            _ if output.is_json() => {
                let (value, encoding) = embed(&value)?;
                output.answer(&Answer { value, encoding, receipt: &receipt }, "")?;
            }
            _ => print(&key, value)?,
        }
        Ok(Code::Success)
    }
}

fn print(key: &Key, value: Value) -> Result<(), Failure> {
    let bytes = value.into_bytes();
    if !Output::is_terminal() {
        return Output::bytes(&bytes);
    }
    if std::str::from_utf8(&bytes).is_err() {
        return Err(Failure::new(Code::Usage, format!("{key} is binary; name a file with -o, or use a pipe")));
    }
    Output::bytes(&bytes)?;
    if bytes.ends_with(b"\n") { Ok(()) } else { Output::bytes(b"\n") }
}

fn embed(value: &Value) -> Result<(Box<RawValue>, Option<&'static str>), Failure> {
    let quote = |text: &str| serde_json::value::to_raw_value(text);
    let embedded = match value {
        Value::Text(text) => quote(text).map(|raw| (raw, None)),
        Value::Bytes(bytes) => {
            quote(&base64::engine::general_purpose::STANDARD.encode(bytes)).map(|raw| (raw, Some("base64")))
        }
        // NaN and the infinities are JSON for Python only.
        Value::Json(text) => match RawValue::from_string(text.clone()) {
            Ok(raw) => Ok((raw, None)),
            Err(_) => quote(text).map(|raw| (raw, Some("text"))),
        },
    };
    embedded.map_err(|error| Failure::new(Code::BadData, format!("the value cannot be written as JSON: {error}")))
}
