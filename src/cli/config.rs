//! `filestorage config`: shows the settings.

use clap::Args;
use serde_json::json;

use super::terminal::Output;
use crate::config::Loaded;
use crate::wiring::{Code, Failure};

/// Shows the value and the source of each setting; secrets are hidden.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Writes the table of all settings in Markdown instead.
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
}

impl Arguments {
    pub(super) fn run(&self, loaded: &Loaded, output: &Output) -> Result<Code, Failure> {
        if self.markdown {
            Output::bytes(crate::config::reference().as_bytes())?;
            return Ok(Code::Success);
        }
        let rows: Vec<_> = loaded
            .effective
            .iter()
            .map(|row| json!({"setting": row.name, "value": row.value, "source": row.source.to_string()}))
            .collect();
        let value = |row: &crate::config::Effective| row.value.clone().unwrap_or_else(|| "-".to_owned());
        let widest = loaded.effective.iter().map(|row| value(row).chars().count()).max().unwrap_or_default().min(48);
        let mut text = String::new();
        for row in &loaded.effective {
            text.push_str(&format!("{:<36}{:<widest$}  {}\n", row.name, value(row), row.source));
        }
        output.answer(&rows, &text)?;
        Ok(Code::Success)
    }
}
