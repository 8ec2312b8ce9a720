//! `filestorage versions`: lists the versions of a value.

use clap::Args;

use super::terminal::Output;
use crate::config::Settings;
use crate::storage::{KeptVersion, Key, format_timestamp};
use crate::wiring::{Code, Failure, stack};

/// Lists the versions of a value that the bucket keeps, newest first.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Key of the value.
    key: String,

    /// Largest number of versions to list.
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let key = Key::parse(&self.key)?;
        let Some(engine) = stack::reader(&settings.storage).await? else {
            return Err(stack::nothing_stored(&settings.storage));
        };
        let versions = engine.versions(&key, self.limit).await?;
        if versions.is_empty() && self.limit != Some(0) {
            return Err(Failure::missing(&self.key));
        }
        output.answer(&versions, &table(&versions))?;
        Ok(Code::Success)
    }
}

/// Shows one version a line; a star marks the present one.
fn table(versions: &[KeptVersion]) -> String {
    let width =
        versions.iter().map(|version| version.receipt.generation.len()).max().unwrap_or(0).max("generation".len());
    let mut text = format!("  {:<width$}  {:<32}  {:>12}  content type\n", "generation", "stored at", "bytes");
    for KeptVersion { receipt, is_current } in versions {
        let mark = if *is_current { '*' } else { ' ' };
        let size = receipt.size.map_or_else(|| "-".to_owned(), |size| size.to_string());
        let stored_at = format_timestamp(receipt.stored_at);
        text.push_str(&format!(
            "{mark} {:<width$}  {stored_at:<32}  {size:>12}  {}\n",
            receipt.generation, receipt.content_type
        ));
    }
    text
}
