//! `filestorage list`: lists keys.

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::terminal::Output;
use crate::config::{Settings, StorageSettings};
use crate::storage::{Entry, Key, ListRequest, format_timestamp};
use crate::wiring::{Code, Failure, stack};

/// Lists keys in byte order, one a line.
///
/// With --long, each line has the size of the value in bytes, when it was stored, when it expires, its compression, and
/// whether it is encrypted; `-` stands for what is not set or not known without reading the value. The list is written
/// page by page, in memory that does not grow with the number of keys.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Lists only keys that begin with this text.
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,

    /// Largest number of keys to list.
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,

    /// Lists only keys after this one.
    #[arg(long, value_name = "KEY")]
    start_after: Option<String>,

    /// Shows sizes, times and codecs.
    #[arg(long)]
    long: bool,
}

/// One value of the long list.
#[derive(Debug, Serialize)]
struct Line<'a> {
    key: &'a str,
    size: Option<u64>,
    stored_size: Option<u64>,
    stored_at: Option<String>,
    expires_at: Option<String>,
    compression: Option<&'a str>,
    encrypted: Option<bool>,
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        if self.long {
            return self.run_long(&settings.storage, output).await;
        }
        let request = ListRequest { prefix: self.prefix, start_after: self.start_after, limit: self.limit };
        let keys = match stack::reader(&settings.storage).await? {
            Some(engine) => engine.list(request).await?,
            None => Vec::new(),
        };
        let names: Vec<&str> = keys.iter().map(Key::as_str).collect();
        let text: String = names.iter().flat_map(|name| [*name, "\n"]).collect();
        output.answer(&names, &text)?;
        Ok(Code::Success)
    }

    async fn run_long(self, settings: &StorageSettings, output: &Output) -> Result<Code, Failure> {
        let mut missing = self.limit.unwrap_or(usize::MAX);
        let (is_json, mut first) = (output.is_json(), true);
        let engine = stack::reader(settings).await?;
        let mut walk = engine.map(|engine| engine.walk(self.prefix.as_deref().unwrap_or_default(), self.start_after));
        if !is_json {
            let names = ["SIZE", "STORED", "STORED AT", "EXPIRES", "CODEC", "KEY"];
            Output::bytes(row(names).as_bytes())?;
        }
        while missing > 0
            && let Some(walk) = &mut walk
            && let Some(entries) = walk.next_page().await?
        {
            let now = Timestamp::now();
            let mut text = String::new();
            for entry in entries.iter().filter(|entry| !entry.is_expired(now)).take(missing) {
                missing -= 1;
                if is_json {
                    text.push(if std::mem::take(&mut first) { '[' } else { ',' });
                    text.push_str(&line(entry)?);
                } else {
                    text.push_str(&shown(entry));
                }
            }
            if !Output::bytes(text.as_bytes())? {
                return Ok(Code::Success);
            }
        }
        if is_json {
            Output::bytes(if first { b"[]\n" } else { b"]\n" })?;
        }
        Ok(Code::Success)
    }
}

fn line(entry: &Entry) -> Result<String, Failure> {
    let line = Line {
        key: entry.key.as_str(),
        size: entry.size,
        stored_size: entry.stored_size,
        stored_at: entry.stored_at.map(format_timestamp),
        expires_at: entry.expires_at.map(format_timestamp),
        compression: entry.compression.as_deref(),
        encrypted: entry.encrypted,
    };
    serde_json::to_string(&line)
        .map_err(|error| Failure::new(Code::BadData, format!("the answer cannot be written as JSON: {error}")))
}

fn shown(entry: &Entry) -> String {
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let time = |time: Option<Timestamp>| {
        time.map_or_else(|| "-".to_owned(), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    };
    let codec = match (entry.compression.as_deref(), entry.encrypted) {
        (Some(codec), Some(true)) => format!("{codec}+aes"),
        (None, Some(true)) => "aes".to_owned(),
        (codec, _) => codec.unwrap_or("-").to_owned(),
    };
    let (size, stored) = (number(entry.size), number(entry.stored_size));
    row([&size, &stored, &time(entry.stored_at), &time(entry.expires_at), &codec, entry.key.as_str()])
}

fn row([size, stored, stored_at, expires, codec, key]: [&str; 6]) -> String {
    format!("{size:>12} {stored:>12} {stored_at:<20} {expires:<20} {codec:<9} {key}\n")
}
