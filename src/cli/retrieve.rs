//! `filestorage retrieve`: reads a value.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;

use super::terminal::Output;
use super::terminal::Progress;
use super::terminal::{Sink, sink};
use crate::config::Settings;
use crate::storage::{
    AtomicFile, ByteRange, Content, GetOptions, Key, Opened, Payload, Receipt, Retrieved, StateOptions, Value, watched,
};
use crate::wiring::{Code, Failure, stack};

/// Writes the value of a key to standard output or to a file.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Key to read.
    key: String,

    /// File to write to; `-`, or no file, means standard output. Descriptors (/dev/stdout, /dev/fd/3), pipes and devices are
    /// written to and never replaced.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Position of the first byte to read.
    #[arg(long, value_name = "BYTES")]
    offset: Option<u64>,

    /// Largest number of bytes to read.
    #[arg(long, value_name = "BYTES")]
    length: Option<u64>,

    /// Generation of the state to read, as `filestorage versions` tells it; by default the present state.
    #[arg(long, value_name = "GENERATION")]
    generation: Option<String>,
}

/// The answer as JSON when no file was named.
#[derive(Serialize)]
struct Answer<'a> {
    value: Box<RawValue>,
    /// `base64` for a value of bytes, `text` for JSON that only Python reads.
    encoding: Option<&'static str>,
    receipt: &'a Receipt,
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let key = Key::parse(&self.key)?;
        let range = (self.offset.is_some() || self.length.is_some())
            .then(|| ByteRange { offset: self.offset.unwrap_or_default(), length: self.length });
        let Some(engine) = stack::reader(&settings.storage).await? else {
            return Err(stack::nothing_stored(&settings.storage));
        };
        let missing = || Failure::missing(&self.key);
        let file = self.output.as_deref().map(|path| (path, Sink::of(path)));
        let file = file.filter(|(_, sink)| *sink != Sink::Output);
        if file.is_none() && output.is_json() {
            let options = StateOptions {
                generation: self.generation.clone(),
                bytes: GetOptions { range, ..GetOptions::default() },
            };
            let Retrieved { value, receipt } = engine.retrieve(&key, options).await?.ok_or_else(missing)?;
            let (value, encoding) = embed(&value)?;
            output.answer(&Answer { value, encoding, receipt: &receipt }, "")?;
            return Ok(Code::Success);
        }
        let to_terminal = file.is_none() && Output::is_terminal();
        // A bar would mix with the value when both go to the terminal.
        let progress = if to_terminal { Progress::none() } else { Progress::new(output, "retrieving") };
        if progress.is_visible() && range.is_none() {
            let present = match &self.generation {
                Some(generation) => engine.stat_generation(&key, generation).await?,
                None => engine.stat(&key).await?,
            };
            if let Some(size) = present.ok_or_else(missing)?.receipt.size {
                progress.expect(size);
            }
        }
        let bytes = GetOptions { range, spooled: true, ..GetOptions::default() };
        let options = StateOptions { generation: self.generation.clone(), bytes };
        let opened = watched(progress.watch(), engine.open(&key, options)).await?;
        let Opened { content: Content { payload, .. }, receipt } = opened.ok_or_else(missing)?;
        progress.expect(payload.len());
        let payload = payload.watched(&progress.watch());
        match file {
            Some((path, sink)) => {
                write(path, &sink, &payload).await?;
                drop(progress);
                if output.is_json() {
                    output.answer(&receipt, "")?;
                } else {
                    output.remark(&format!("wrote {} bytes to {}", payload.len(), path.display()));
                }
            }
            None if to_terminal => show(&key, &payload).await?,
            None => drop(print(&payload).await?),
        }
        Ok(Code::Success)
    }
}

/// Writes the payload to a file, which is then complete or unchanged.
///
/// Into an open descriptor, a pipe or a device, the bytes are written one after another, until the reader closes it.
async fn write(path: &Path, sink: &Sink, payload: &Payload) -> Result<(), Failure> {
    let cannot = |error: io::Error| Failure::new(Code::Io, format!("cannot write {}: {error}", path.display()));
    let open: Option<File> = match sink {
        Sink::Descriptor(number) => Some(sink::duplicate(*number).map_err(cannot)?),
        Sink::Stream => Some(OpenOptions::new().write(true).open(path).map_err(cannot)?),
        Sink::Output | Sink::File => None,
    };
    if let Some(mut open) = open {
        let write = |chunk: &[u8]| match open.write_all(chunk) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(cannot(error)),
        };
        return pour(payload, write).await.map(drop);
    }
    let present = std::fs::metadata(path);
    // The target of a link is replaced, not the link itself.
    let target = if present.is_ok() { path.canonicalize().map_err(cannot)? } else { path.to_owned() };
    let mut file = AtomicFile::create(&target).map_err(cannot)?;
    file.write(payload).await.map_err(cannot)?;
    file.commit().map_err(cannot)
}

/// Writes the payload to standard output; returns false when the reader closed it before the end.
async fn print(payload: &Payload) -> Result<bool, Failure> {
    pour(payload, Output::bytes).await
}

/// Passes the payload to `write` in pieces, until `write` returns false.
async fn pour(payload: &Payload, mut write: impl FnMut(&[u8]) -> Result<bool, Failure>) -> Result<bool, Failure> {
    let mut offset = 0;
    while offset < payload.len() {
        let chunk = payload.read(offset, Payload::CHUNK).await.map_err(unread)?;
        offset += chunk.len() as u64;
        if !write(&chunk)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes the payload to a terminal; refuses bytes that are not text.
async fn show(key: &Key, payload: &Payload) -> Result<(), Failure> {
    if !payload.is_utf8().await.map_err(unread)? {
        return Err(Failure::new(Code::Usage, format!("{key} is binary; name a file with -o, or use a pipe")));
    }
    let last = payload.read(payload.len().saturating_sub(1), 1).await.map_err(unread)?;
    if print(payload).await? && last != b"\n".as_slice() {
        Output::bytes(b"\n")?;
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn unread(error: io::Error) -> Failure {
    Failure::new(Code::Io, format!("cannot read the value: {error}"))
}

fn embed(value: &Value) -> Result<(Box<RawValue>, Option<&'static str>), Failure> {
    let quote = |text: &str| serde_json::value::to_raw_value(text);
    let embedded = match value {
        Value::Text(text) => quote(text).map(|raw| (raw, None)),
        Value::Bytes(bytes) => {
            quote(&base64::engine::general_purpose::STANDARD.encode(bytes)).map(|raw| (raw, Some("base64")))
        }
        // `NaN` and the infinities are JSON for Python only.
        Value::Json(json) => match RawValue::from_string(json.as_str().to_owned()) {
            Ok(raw) => Ok((raw, None)),
            Err(_) => quote(json.as_str()).map(|raw| (raw, Some("text"))),
        },
    };
    embedded.map_err(|error| Failure::new(Code::BadData, format!("the value cannot be written as JSON: {error}")))
}
