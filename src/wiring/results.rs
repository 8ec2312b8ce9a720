//! Where answers go, from the settings.

use std::sync::Arc;

use crate::config::WorkerSettings;
use crate::results::{ResultBackend, Rpc};

/// Builds the place that takes the answers of the node with this name.
pub(crate) fn result_backend(settings: &WorkerSettings, node: &str) -> Arc<dyn ResultBackend> {
    Arc::new(Rpc::new(node, settings.result_persistent))
}
