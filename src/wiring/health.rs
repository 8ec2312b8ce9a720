//! Creates the report of `/health`.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::storage::{Engine, HealthStatus};
use crate::telemetry::{HealthReport, Readiness};

/// Returns the function that creates `/health`: the health of the engine, which is degraded while the worker is not ready.
pub(crate) fn health_report(engine: Engine, readiness: Readiness) -> HealthReport {
    Arc::new(move || -> BoxFuture<'static, Value> {
        let (engine, readiness) = (engine.clone(), readiness.clone());
        Box::pin(async move {
            let mut health = engine.health().await;
            if health.status == HealthStatus::Healthy && !readiness.is_ready() {
                health.status = HealthStatus::Degraded;
            }
            json!(health)
        })
    })
}
