//! Creates the report of `/health`.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::storage::Engine;
use crate::telemetry::{Component, ComponentState, HealthReport, Readiness};

/// Returns the function that creates `/health`: the statistics of the engine, and the state of storage and worker.
pub(crate) fn health_report(engine: Engine, readiness: Readiness) -> HealthReport {
    Arc::new(move || -> BoxFuture<'static, Value> {
        let (engine, readiness) = (engine.clone(), readiness.clone());
        Box::pin(async move {
            let storage = storage(&engine, &readiness).await;
            let status = match &storage {
                ComponentState::Unready(_) => "unhealthy",
                ComponentState::Ready if readiness.is_ready() => "healthy",
                ComponentState::Ready | ComponentState::Degraded(_) => "degraded",
            };
            let pending = match engine.fallback() {
                Some(fallback) => fallback.pending().await.ok().map(|pending| pending.entries),
                None => Some(0),
            };
            let stats = engine.stats();
            json!({
                "status": status,
                "gcs_available": stats.gcs_available && storage == ComponentState::Ready,
                "local_fallback_enabled": stats.local_fallback_enabled,
                "cache_enabled": stats.cache_enabled,
                "cache_size": stats.cache_size,
                "pending_sync": pending,
                "breaker": engine.breaker().map(|breaker| breaker.state().as_str()),
                "metrics": stats.metrics,
            })
        })
    })
}

/// Returns the state of the storage: of a bucket the state that the monitor reported, of a disk the result of a probe.
async fn storage(engine: &Engine, readiness: &Readiness) -> ComponentState {
    if engine.breaker().is_none() {
        return match engine.probe().await {
            Ok(_) => ComponentState::Ready,
            Err(error) => ComponentState::Unready(error.to_string()),
        };
    }
    readiness.conditions().remove(&Component::Storage).unwrap_or(ComponentState::Ready)
}
