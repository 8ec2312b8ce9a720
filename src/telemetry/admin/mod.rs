//! The admin port: metrics, liveness, readiness, health.
//!
//! The port has its own thread, so that requests take no time from the worker's loop. The number of connections and the
//! time of each are bounded.

mod connection;
mod listener;
mod paced;

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot};

use self::listener::BoundedListener;
use self::paced::Paced;
use super::{ComponentState, Metrics, Readiness};

/// The longest time that `/livez` waits for an answer of the worker's loop.
const LOOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The function that creates the JSON of `/health`, for each request anew.
pub type HealthReport = Arc<dyn Fn() -> BoxFuture<'static, Value> + Send + Sync>;

/// The reason why the admin port cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {host}:{port}: {source}; set metrics_host and metrics_port to a free address, metrics_port = 0 takes any, or enable_metrics = false"
)]
pub struct BindError {
    /// The host as configured.
    pub host: String,
    /// The port as configured.
    pub port: u16,
    /// The error of the operating system.
    pub source: std::io::Error,
}

/// An admin port that is open and does not answer yet.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

/// A handle on the thread that serves the admin port; dropping the handle ends the thread and closes the port.
#[derive(Debug)]
pub struct Serving(#[expect(dead_code, reason = "its end is the message")] oneshot::Sender<()>);

impl Admin {
    /// Opens the port and logs its address, with the port that the system chose when `port` is 0.
    ///
    /// Blocks while the name of the host is looked up.
    ///
    /// # Errors
    ///
    /// [`BindError`] names the address and its settings, for example when the port is taken.
    pub fn bind(host: &str, port: u16) -> Result<Self, BindError> {
        let fail = |source| BindError { host: host.to_owned(), port, source };
        let listener = TcpListener::bind((host, port)).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        tracing::info!(host = %address.ip(), port = address.port(), "admin port open");
        Ok(Self { listener, address })
    }

    /// Returns the address on which the port listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves the port on its own thread until the result is dropped.
    ///
    /// Must be called in the runtime of the worker. `/livez` answers 200 when a task in that runtime answers within 5 s.
    ///
    /// # Errors
    ///
    /// The operating system's error, when no thread or no descriptor is left.
    pub fn serve(self, metrics: Metrics, readiness: Readiness, health: HealthReport) -> std::io::Result<Serving> {
        let (asks, mut asked) = mpsc::channel::<oneshot::Sender<()>>(listener::MAX_CONNECTIONS);
        tokio::spawn(async move {
            while let Some(answer) = asked.recv().await {
                // The request may have been given up meanwhile.
                answer.send(()).unwrap_or_default();
            }
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(self.listener)?
        };
        let (rendered, reported) = (Arc::default(), Arc::default());
        let router = router(Shared { metrics, readiness, health, asks, rendered, reported });
        std::thread::Builder::new().name("admin-port".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    served = axum::serve(BoundedListener::new(listener), router) => if let Err(error) = served {
                        tracing::error!(%error, "admin port closed");
                    },
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        })?;
        Ok(Serving(stop))
    }
}

#[derive(Clone)]
struct Shared {
    metrics: Metrics,
    readiness: Readiness,
    health: HealthReport,
    /// The questions of `/livez` to the worker's loop.
    asks: mpsc::Sender<oneshot::Sender<()>>,
    /// The answer of `/metrics`.
    rendered: Arc<Paced<Bytes>>,
    /// The answer of `/health`.
    reported: Arc<Paced<Value>>,
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
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/health", get(health))
        .with_state(shared)
}

async fn index() -> impl IntoResponse {
    const PAGE: &str = "<!doctype html><title>filestorage</title><h1>filestorage</h1><ul>\
        <li><a href=/readyz>/readyz</a> whether work can be taken, and why not\
        <li><a href=/health>/health</a> the state of the storage\
        <li><a href=/metrics>/metrics</a> numbers for Prometheus\
        <li><a href=/livez>/livez</a> whether the worker's loop goes round</ul>\n";
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE)
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = shared.rendered.fresh(async || Bytes::from(shared.metrics.encode())).await;
    ([(header::CONTENT_TYPE, OPEN_METRICS)], text)
}

async fn livez(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    let (answer, answered) = oneshot::channel();
    let round = async { shared.asks.send(answer).await.is_ok() && answered.await.is_ok() };
    match tokio::time::timeout(LOOP_TIMEOUT, round).await {
        Ok(true) => (StatusCode::OK, "ok\n"),
        Ok(false) => (StatusCode::SERVICE_UNAVAILABLE, "the worker has ended\n"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the worker's loop stands still\n"),
    }
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let mut components = Map::new();
    for (component, condition) in shared.readiness.conditions() {
        let said = match condition {
            ComponentState::Ready => json!({"ready": true}),
            ComponentState::Degraded(reason) => json!({"ready": true, "reason": reason}),
            ComponentState::Unready(reason) => json!({"ready": false, "reason": reason}),
        };
        components.insert(component.as_str().to_owned(), said);
    }
    let ready = shared.readiness.is_ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json_response(status, &json!({"ready": ready, "components": components}))
}

async fn health(State(shared): State<Shared>) -> Response {
    json_response(StatusCode::OK, &shared.reported.fresh(|| (shared.health)()).await)
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
        let admin = Admin::bind("127.0.0.1", 0).unwrap();
        let address = admin.address();
        assert_ne!(address.port(), 0);
        let server = admin.serve(metrics.clone(), readiness.clone(), health).unwrap();

        assert_eq!(get(address, "/livez").await, (200, "ok\n".to_owned()));
        let (status, body) = get(address, "/readyz").await;
        assert_eq!(status, 503);
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body, json!({"ready": false, "components": {"broker": {"ready": false, "reason": "starting"}}}));

        readiness.set(Component::Broker, ComponentState::Ready);
        readiness.set(Component::Events, ComponentState::Degraded("no queue".to_owned()));
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
        drop(server);
        let closed = async {
            while tokio::net::TcpStream::connect(address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), closed).await.unwrap();
    }

    fn serving() -> (SocketAddr, Serving) {
        let admin = Admin::bind("127.0.0.1", 0).unwrap();
        let health: HealthReport = Arc::new(|| Box::pin(async { json!({}) }));
        (admin.address(), admin.serve(Metrics::new(), Readiness::new(&[]), health).unwrap())
    }

    /// Counts the connections that the server has not closed.
    fn open(connections: &[std::net::TcpStream]) -> usize {
        let is_open = |stream: &&std::net::TcpStream| {
            stream.set_nonblocking(true).unwrap();
            stream.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        connections.iter().filter(is_open).count()
    }

    #[tokio::test]
    async fn idle_connections_block_nobody_and_end() {
        let (address, _serving) = serving();
        let idle: Vec<_> =
            (0..3 * listener::MAX_CONNECTIONS).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        assert_eq!(get(address, "/livez").await.0, 200);
        assert!(open(&idle) <= listener::MAX_CONNECTIONS, "{}", open(&idle));
        // The head of a request has to be complete in time, also when its bytes come one by one.
        let deadline = std::time::Instant::now() + 3 * connection::HEAD_TIMEOUT;
        while open(&idle) > 0 {
            assert!(std::time::Instant::now() < deadline, "{} are still open", open(&idle));
            for stream in &idle {
                // Most are closed.
                drop(std::io::Write::write(&mut { stream }, b"G"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test]
    async fn a_connection_answers_one_request_after_another() {
        let (address, _serving) = serving();
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        for piece in ["GET /livez HT", "TP/1.1\r\nhost: x\r\n", "\r\n\r\nGET /livez HTTP/1.1\nhost: x\n\n"] {
            stream.write_all(piece.as_bytes()).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut answers = String::new();
        while answers.matches("ok\n").count() < 2 {
            let mut some = [0; 1024];
            let count = stream.read(&mut some).await.unwrap();
            assert!(count > 0, "{answers}");
            answers.push_str(std::str::from_utf8(&some[..count]).unwrap());
        }
    }

    #[test]
    fn a_stalled_loop_is_not_alive_while_the_port_answers() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (address, _serving) = runtime.block_on(async { serving() });
        // Nothing runs that loop now.
        let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert_eq!(other.block_on(get(address, "/livez")).0, 503);
        assert_eq!(other.block_on(get(address, "/readyz")).0, 200);
        assert_eq!(runtime.block_on(get(address, "/livez")).0, 200);
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_setting() {
        let first = Admin::bind("127.0.0.1", 0).unwrap();
        let port = first.address().port();
        let error = Admin::bind("127.0.0.1", port).unwrap_err().to_string();
        assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("metrics_port"), "{error}");
    }
}
