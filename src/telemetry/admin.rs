//! The admin port: metrics, liveness, readiness, health.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;

use super::{Condition, Metrics, Readiness};

/// Makes the JSON of `/health` when it is asked for; the same as the result of `filestorage.get_health_status`.
pub type HealthReport = Arc<dyn Fn() -> BoxFuture<'static, Value> + Send + Sync>;

/// Why the admin port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {host}:{port}: {source}; set metrics_host and metrics_port to a free address, metrics_port = 0 takes any, or enable_metrics = false"
)]
pub struct BindError {
    /// Host as configured.
    pub host: String,
    /// Port as configured.
    pub port: u16,
    /// The system's answer.
    pub source: std::io::Error,
}

/// An open admin port, not serving yet.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

impl Admin {
    /// Opens the port and logs the address, which tells the port chosen for port 0.
    ///
    /// # Errors
    ///
    /// [`BindError`] naming address and settings, when the port is taken for example.
    pub async fn bind(host: &str, port: u16) -> Result<Self, BindError> {
        let fail = |source| BindError { host: host.to_owned(), port, source };
        let listener = TcpListener::bind((host, port)).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        tracing::info!(host = %address.ip(), port = address.port(), "admin port open");
        Ok(Self { listener, address })
    }

    /// Returns the address listened on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the future is dropped.
    ///
    /// # Errors
    ///
    /// The listener's own, should it fail for good.
    pub async fn serve(self, metrics: Metrics, readiness: Readiness, health: HealthReport) -> std::io::Result<()> {
        let router = router(Shared { metrics, readiness, health });
        axum::serve(self.listener, router).await
    }
}

#[derive(Clone)]
struct Shared {
    metrics: Metrics,
    readiness: Readiness,
    health: HealthReport,
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").field("readiness", &self.readiness).finish_non_exhaustive()
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/health", get(health))
        .with_state(shared)
}

async fn index() -> impl IntoResponse {
    const PAGE: &str = "<!doctype html><title>filestorage</title><h1>filestorage</h1><ul>\
        <li><a href=/readyz>/readyz</a> whether work can be taken, and why not\
        <li><a href=/health>/health</a> the state of the storage\
        <li><a href=/metrics>/metrics</a> numbers for Prometheus\
        <li><a href=/livez>/livez</a> whether the process answers</ul>\n";
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE)
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPEN_METRICS)], shared.metrics.encode())
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let mut components = Map::new();
    for (component, condition) in shared.readiness.conditions() {
        let said = match condition {
            Condition::Ready => json!({"ready": true}),
            Condition::Degraded(reason) => json!({"ready": true, "reason": reason}),
            Condition::Unready(reason) => json!({"ready": false, "reason": reason}),
        };
        components.insert(component.as_str().to_owned(), said);
    }
    let ready = shared.readiness.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json_response(status, &json!({"ready": ready, "components": components}))
}

async fn health(State(shared): State<Shared>) -> Response {
    json_response(StatusCode::OK, &(shared.health)().await)
}

fn json_response(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::telemetry::{Component, Publish};

    async fn get(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn every_path_answers() {
        let (metrics, readiness) = (Metrics::new(), Readiness::new(&[Component::Broker]));
        let health: HealthReport = Arc::new(|| Box::pin(async { json!({"status": "healthy"}) }));
        let admin = Admin::bind("127.0.0.1", 0).await.unwrap();
        let address = admin.address();
        assert_ne!(address.port(), 0);
        let server = tokio::spawn(admin.serve(metrics.clone(), readiness.clone(), health));

        assert_eq!(get(address, "/livez").await, (200, "ok\n".to_owned()));
        let (status, body) = get(address, "/readyz").await;
        assert_eq!(status, 503);
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body, json!({"ready": false, "components": {"broker": {"ready": false, "reason": "starting"}}}));

        readiness.set(Component::Broker, Condition::Ready);
        readiness.set(Component::Events, Condition::Degraded("no queue".to_owned()));
        let (status, body) = get(address, "/readyz").await;
        assert_eq!(status, 200);
        assert!(body.contains(r#""events":{"ready":true,"reason":"no queue"}"#), "{body}");

        metrics.record_publishes(Publish::Returned, 1);
        let (status, body) = get(address, "/metrics").await;
        assert_eq!(status, 200);
        assert!(body.contains(r#"filestorage_queue_publishes_total{outcome="returned"} 1"#), "{body}");
        assert_eq!(get(address, "/health").await, (200, "{\"status\":\"healthy\"}\n".to_owned()));
        assert!(get(address, "/").await.1.contains("/readyz"));
        assert_eq!(get(address, "/nothing").await.0, 404);
        server.abort();
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_setting() {
        let first = Admin::bind("127.0.0.1", 0).await.unwrap();
        let port = first.address().port();
        let error = Admin::bind("127.0.0.1", port).await.unwrap_err().to_string();
        assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("metrics_port"), "{error}");
    }
}
