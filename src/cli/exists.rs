//! `filestorage exists`: looks whether a key has a value.

use clap::Args;

use super::terminal::Output;
use crate::config::Settings;
use crate::storage::Key;
use crate::wiring::{Code, Failure, stack};

/// Tells whether a key has a value: `true` and exit code 0, or `false` and 66.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Key to look for.
    key: String,
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let key = Key::parse(&self.key)?;
        let Some(engine) = stack::reader(&settings.storage).await? else {
            output.answer(&false, "false\n")?;
            return Err(stack::nothing_stored(&settings.storage));
        };
        let found = engine.exists(&key).await?;
        output.answer(&found, &format!("{found}\n"))?;
        Ok(if found { Code::Success } else { Code::NoInput })
    }
}
