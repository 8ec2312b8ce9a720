//! The one place that builds the storage stack, and the runtime of a single command.

use std::path::PathBuf;
use std::sync::Arc;

use super::outcome::{Code, Failure};
use crate::config::StorageSettings;
use crate::storage::{Engine, Exchange, Local, Metered, NoBuckets, Place, Spool};
use crate::telemetry::{Backend, Metrics};

/// Folder of nameless files below `local_storage_path`: what is on its way and too much for memory.
const SPOOL: &str = "spool";

/// Folder of the local store below `local_storage_path`.
const OBJECTS: &str = "objects";

/// Builds the stack the settings ask for. Blocks.
pub(super) fn engine(settings: &StorageSettings, metrics: &Metrics) -> Result<Engine, Failure> {
    let local = Metered::new(Arc::new(Local::open(root(settings))?), Backend::Local, metrics.clone());
    let exchange = Exchange::new(settings.exchange_directories.clone(), Arc::new(NoBuckets));
    Ok(Engine::new(Arc::new(local), Place::Local).with_exchange(exchange))
}

/// Builds the stack for reading, or nothing where nothing was ever stored; makes no folder. Blocks.
pub(super) fn reader(settings: &StorageSettings) -> Result<Option<Engine>, Failure> {
    let local = Local::open_existing(root(settings))?;
    Ok(local.map(|local| Engine::new(Arc::new(local), Place::Local)))
}

/// Returns where many bytes wait on their way.
pub(super) fn spool(settings: &StorageSettings) -> Spool {
    Spool::new(settings.local_storage_path.join(SPOOL))
}

/// The failure of a command that needs a value where nothing was ever stored.
pub(super) fn nothing_stored(settings: &StorageSettings) -> Failure {
    let why = format!("nothing is stored under {}; is local_storage_path the right one?", root(settings).display());
    Failure::new(Code::NoInput, why)
}

fn root(settings: &StorageSettings) -> PathBuf {
    settings.local_storage_path.join(OBJECTS)
}

/// Runs one command to its end.
pub(super) fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Code::Io, format!("cannot start a runtime: {error}")))?;
    runtime.block_on(command)
}
