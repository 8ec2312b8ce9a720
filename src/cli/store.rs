//! `filestorage store`: stores a value.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _, stdin};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::terminal::Output;
use super::terminal::Progress;
use crate::commands::Hints;
use crate::config::Settings;
use crate::json::{self, ErrorKind, Json};
use crate::storage::{
    Condition, Content, ContentType, JsonText, Key, Kind, Metadata, Payload, Spool, StoreOptions, Value, watched,
};
use crate::telemetry::Metrics;
use crate::wiring::{Code, Failure, folders, stack};

/// Stores a file, or standard input, under a key.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Key to store under.
    key: String,

    /// File to store; `-`, or no file, means standard input.
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

    /// Seconds after which the value is removed.
    #[arg(long, value_name = "SECONDS")]
    ttl_seconds: Option<f64>,

    /// Stores the value only when the key has none.
    #[arg(long, conflicts_with = "if_generation")]
    if_absent: bool,

    /// Stores the value only when the present value of the key has this generation.
    #[arg(long, value_name = "GENERATION")]
    if_generation: Option<String>,
}

/// The type that the bytes of a value have.
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
        let mut options = StoreOptions {
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
        // Metadata that is no JSON was refused above.
        let metadata = self.metadata.as_deref().unwrap_or("null").as_bytes();
        if let Ok(metadata) = json::parse(metadata, json::ParseLimits::default()) {
            Hints::of(&metadata).apply(&key, &mut options, Timestamp::now());
        }
        let file = self.file.as_deref().filter(|file| *file != Path::new("-"));
        // A bar would be drawn over the text that the user types.
        let typed = file.is_none() && stdin().is_terminal();
        let progress = if typed { Progress::none() } else { Progress::new(output, "storing") };
        // A full disk does not prevent a store into a bucket: the spool falls back to the folder for temporary files.
        let spool = folders::spool(&settings.storage).or(std::env::temp_dir());
        let content = match self.kind {
            KindArgument::Bytes => bytes(file, &spool, &progress).await?,
            KindArgument::Text => text(read(file)?)?.into(),
            KindArgument::Json => json(&read(file)?)?.into(),
        };
        let receipt = stack::engine(&settings.storage, &Metrics::new()).await?.store(&key, content, options).await?;
        drop(progress);
        let waits = if receipt.pending_sync { "; it waits on this machine until the bucket is back" } else { "" };
        let size = receipt.size.unwrap_or_default();
        let text = format!("stored {key}: {size} bytes, generation {}{waits}\n", receipt.generation);
        output.answer(&receipt, &text)?;
        Ok(Code::Success)
    }
}

/// Returns the content of a file or of standard input without holding it in memory.
///
/// A regular file is read later, when the value is stored. Other input is copied into the spool first.
async fn bytes(file: Option<&Path>, spool: &Spool, progress: &Progress) -> Result<Content, Failure> {
    let payload = match file {
        None => spooled(tokio::io::stdin(), "standard input", spool, progress).await?,
        Some(path) => {
            let cannot = |why| Failure::new(Code::NoInput, format!("cannot read {}: {why}", path.display()));
            let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
            let (metadata, file) = opened.map_err(|error| cannot(error.to_string()))?;
            if metadata.is_dir() {
                return Err(cannot("it is a folder".to_owned()));
            }
            if metadata.is_file() {
                Payload::file(Arc::new(file), 0, metadata.len())
            } else {
                spooled(tokio::fs::File::from_std(file), &path.display().to_string(), spool, progress).await?
            }
        }
    };
    progress.expect(payload.len());
    Ok(Content::new(Kind::Bytes, payload.watched(&progress.watch())))
}

/// Copies input of unknown length into the spool.
async fn spooled(
    mut source: impl AsyncRead + Unpin,
    name: &str,
    spool: &Spool,
    progress: &Progress,
) -> Result<Payload, Failure> {
    let unread = |error| Failure::new(Code::Io, format!("cannot read {name}: {error}"));
    let unwritten = |error| {
        let folder = spool.folder().display();
        Failure::new(Code::Io, format!("cannot copy {name} into {folder}: {error}"))
    };
    let copying = async {
        let mut writer = spool.writer();
        loop {
            let mut chunk = BytesMut::with_capacity(Payload::CHUNK);
            if source.read_buf(&mut chunk).await.map_err(unread)? == 0 {
                break;
            }
            writer.push(&chunk.freeze()).await.map_err(unwritten)?;
        }
        writer.finish().await.map_err(unwritten)
    };
    let (payload, _) = watched(progress.watch(), copying).await?;
    Ok(payload)
}

fn read(file: Option<&Path>) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    match file {
        Some(path) => std::fs::read(path)
            .map_err(|error| Failure::new(Code::NoInput, format!("cannot read {}: {error}", path.display()))),
        None => stdin()
            .lock()
            .read_to_end(&mut bytes)
            .map(|_| bytes)
            .map_err(|error| Failure::new(Code::Io, format!("cannot read standard input: {error}"))),
    }
}

fn text(bytes: Vec<u8>) -> Result<Value, Failure> {
    String::from_utf8(bytes).map(Value::Text).map_err(|error| {
        let why = error.utf8_error();
        Failure::new(Code::BadData, format!("the value is not UTF-8: {why}; store it with --kind bytes"))
    })
}

fn json(bytes: &[u8]) -> Result<Value, Failure> {
    match json::parse(bytes, json::ParseLimits::default()) {
        Ok(Json::Text(text)) => Ok(Value::Text(text)),
        Ok(value) => Ok(Value::Json(JsonText::of_parsed(value.compact()))),
        Err(error) if error.kind == ErrorKind::TooDeep => {
            Err(Failure::new(Code::BadData, format!("the value is {error}; store it with --kind bytes")))
        }
        Err(error) => Err(Failure::new(Code::BadData, format!("the value is not JSON: {error}"))),
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
