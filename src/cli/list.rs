//! `filestorage list`: lists keys.

use clap::Args;

use super::terminal::Output;
use crate::config::Settings;
use crate::storage::ListRequest;
use crate::wiring::{Code, Failure, stack};

/// Lists keys in byte order, one a line.
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
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let request = ListRequest { prefix: self.prefix, start_after: self.start_after, limit: self.limit };
        let keys = match stack::reader(&settings.storage).await? {
            Some(engine) => engine.list(request).await?,
            None => Vec::new(),
        };
        let names: Vec<&str> = keys.iter().map(crate::storage::Key::as_str).collect();
        let text: String = names.iter().flat_map(|name| [*name, "\n"]).collect();
        output.answer(&names, &text)?;
        Ok(Code::Success)
    }
}
