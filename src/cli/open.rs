//! The one place that builds the storage stack, and the runtime of a single command.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::outcome::{Code, Failure};
use crate::config::{Provider, StoragePlace, StorageSettings};
use crate::storage::{Engine, Exchange, Local, Metered, NoBuckets, Place};
use crate::telemetry::{Backend, Metrics};

/// Folder of the local store below `local_storage_path`.
const OBJECTS: &str = "objects";

/// Builds the stack the settings ask for. Blocks.
pub(super) fn engine(settings: &StorageSettings, metrics: &Metrics) -> Result<Engine, Failure> {
    if settings.place != StoragePlace::Local {
        return Err(Failure::new(Code::Configuration, "buckets are not wired yet; set storage_backend = local"));
    }
    let local = Metered::new(Arc::new(Local::open(root(settings))?), Backend::Local, metrics.clone());
    let exchange = Exchange::new(settings.exchange_directories.clone(), Arc::new(NoBuckets));
    Ok(Engine::new(Arc::new(local), Place::Local).with_exchange(exchange))
}

/// Builds the stack for reading, or nothing where nothing was ever stored; makes no folder. Blocks.
pub(super) fn reader(settings: &StorageSettings) -> Result<Option<Engine>, Failure> {
    let local = Local::open_existing(root(settings))?;
    Ok(local.map(|local| Engine::new(Arc::new(local), Place::Local)))
}

/// Whether a bucket that is missing is made, where its project is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Creation {
    WhenMissing,
    Never,
}

/// Opens a bucket and asks whether it can be used.
#[expect(clippy::unused_async, reason = "TODO")]
pub(super) async fn ready_bucket(
    _settings: &StorageSettings,
    _provider: Provider,
    _name: &str,
    _creation: Creation,
    _metrics: &Metrics,
) -> Result<Arc<dyn crate::storage::Backend>, Failure> {
    Err(Failure::new(Code::Configuration, "buckets are not wired yet; set storage_backend = local"))
}

/// Counts the writes that wait on this machine to be sent to a bucket.
#[expect(clippy::unused_async, reason = "TODO")]
pub(super) async fn waiting(_settings: &StorageSettings, _provider: Provider, _name: &str) -> Result<u64, Failure> {
    Ok(0)
}

/// Returns the folder of the local store below what `local_storage_path` names.
pub(super) fn objects(path: &Path) -> PathBuf {
    path.join(OBJECTS)
}

/// The failure of a command that needs a value where nothing was ever stored.
pub(super) fn nothing_stored(settings: &StorageSettings) -> Failure {
    let why = format!("nothing is stored under {}; is local_storage_path the right one?", root(settings).display());
    Failure::new(Code::NoInput, why)
}

fn root(settings: &StorageSettings) -> PathBuf {
    objects(&settings.local_storage_path)
}

/// Runs one command to its end.
pub(super) fn block_on<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Code::Io, format!("cannot start a runtime: {error}")))?;
    runtime.block_on(command)
}
