//! `filestorage stat`: shows the attributes of a value.

use clap::Args;
use serde_json::Value;

use super::terminal::Output;
use crate::config::Settings;
use crate::storage::Key;
use crate::wiring::{Code, Failure, stack};

/// Shows size, checksum, times and other attributes of a value, without reading the value.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Key of the value.
    key: String,

    /// Generation of the state to show, as `filestorage versions` tells it; by default the present state.
    #[arg(long, value_name = "GENERATION")]
    generation: Option<String>,
}

impl Arguments {
    pub(super) async fn run(self, settings: &Settings, output: &Output) -> Result<Code, Failure> {
        let key = Key::parse(&self.key)?;
        let Some(engine) = stack::reader(&settings.storage).await? else {
            return Err(stack::nothing_stored(&settings.storage));
        };
        let found = match &self.generation {
            Some(generation) => engine.stat_generation(&key, generation).await?,
            None => engine.stat(&key).await?,
        };
        let Some(stat) = found else { return Err(Failure::missing(&self.key)) };
        let metadata = stat.metadata.as_ref().map_or("-", |metadata| metadata.get());
        let mut text = String::new();
        if let Ok(Value::Object(members)) = serde_json::to_value(&stat.receipt) {
            for (name, value) in members {
                let shown = match value {
                    Value::Null => "-".to_owned(),
                    Value::String(shown) => shown,
                    other => other.to_string(),
                };
                text.push_str(&format!("{name:<14}{shown}\n"));
            }
        }
        text.push_str(&format!("{:<14}{metadata}\n", "metadata"));
        output.answer(&stat, &text)?;
        Ok(Code::Success)
    }
}
