//! The one place that builds the storage stack, and the runtime of a single command.

use std::path::Path;
use std::sync::Arc;

use super::outcome::{Code, Failure};
use crate::config::StorageSettings;
use crate::storage::{Engine, Local, Metered, Place};
use crate::telemetry::{Backend, Metrics};

/// Folder of the local store below `local_storage_path`.
const OBJECTS: &str = "objects";

/// Builds the stack the settings ask for. Blocks.
pub(super) fn engine(settings: &StorageSettings, metrics: &Metrics) -> Result<Engine, Failure> {
    let root = Path::new(&settings.local_storage_path).join(OBJECTS);
    let local = Metered::new(Arc::new(Local::open(root)?), Backend::Local, metrics.clone());
    Ok(Engine::new(Arc::new(local), Place::Local))
}

/// Runs one command to its end.
pub(super) fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Code::Io, format!("cannot start a runtime: {error}")))?;
    runtime.block_on(command)
}
