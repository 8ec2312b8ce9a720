//! `filestorage schema`: prints the JSON Schemas.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::terminal::Output;
use crate::wiring::{Code, Failure};

/// Prints the JSON Schemas of the arguments and results of all tasks and of the metric event, or writes them to a folder.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Folder into which each schema is written as a file.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Returns all schemas by the names of their files.
fn schemas() -> BTreeMap<String, Value> {
    let mut schemas = crate::commands::schemas();
    schemas.insert("event.json".to_owned(), crate::worker::event_schema());
    schemas
}

impl Arguments {
    pub(super) fn run(&self, output: &Output) -> Result<Code, Failure> {
        let schemas = schemas();
        let Some(folder) = &self.output else {
            let text = serde_json::to_string_pretty(&schemas)
                .map_err(|error| Failure::new(Code::BadData, error.to_string()))?;
            output.answer(&schemas, &format!("{text}\n"))?;
            return Ok(Code::Success);
        };
        let cannot = |path: &std::path::Path, error: &std::io::Error| {
            Failure::new(Code::Io, format!("cannot write {}: {error}", path.display()))
        };
        std::fs::create_dir_all(folder).map_err(|error| cannot(folder, &error))?;
        for (name, schema) in &schemas {
            let path = folder.join(name);
            let text =
                serde_json::to_string_pretty(schema).map_err(|error| Failure::new(Code::BadData, error.to_string()))?;
            std::fs::write(&path, format!("{text}\n")).map_err(|error| cannot(&path, &error))?;
        }
        let names: Vec<&String> = schemas.keys().collect();
        output.answer(&names, &format!("{} schemas written to {}\n", names.len(), folder.display()))?;
        Ok(Code::Success)
    }
}
