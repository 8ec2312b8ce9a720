//! The admin port: metrics, liveness, readiness, health.
//!
//! It has a thread of its own, so that whoever asks takes no time from the worker's loop, and bounds what anybody can hold of it.

mod gate;
mod guest;
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

use self::gate::Gate;
use self::paced::Paced;
use super::{ComponentState, Metrics, Readiness};

/// How long `/livez` waits until the worker's loop comes round.
const LOOP: Duration = Duration::from_secs(5);

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

/// The thread that serves the admin port; it ends, and the port is closed, when this is dropped.
#[derive(Debug)]
pub struct Serving(#[expect(dead_code, reason = "its end is the message")] oneshot::Sender<()>);

impl Admin {
    /// Opens the port and logs the address, which tells the port chosen for port 0. Blocks where a name is to be looked up.
    ///
    /// # Errors
    ///
    /// [`BindError`] naming address and settings, when the port is taken for example.
    pub fn bind(host: &str, port: u16) -> Result<Self, BindError> {
        let fail = |source| BindError { host: host.to_owned(), port, source };
        let listener = TcpListener::bind((host, port)).map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        tracing::info!(host = %address.ip(), port = address.port(), "admin port open");
        Ok(Self { listener, address })
    }

    /// Returns the address listened on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves on a thread of its own until the result is dropped. `/livez` asks the runtime this is called in, whose loop is the
    /// worker's: 200 when it comes round within `LOOP`.
    ///
    /// # Errors
    ///
    /// The system's, when it has no thread or no descriptor left.
    pub fn serve(self, metrics: Metrics, readiness: Readiness, health: HealthReport) -> std::io::Result<Serving> {
        let (asks, mut asked) = mpsc::channel::<oneshot::Sender<()>>(gate::MOST);
        tokio::spawn(async move {
            while let Some(answer) = asked.recv().await {
                // Whoever asked may have gone.
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
                    served = axum::serve(Gate::new(listener), router) => if let Err(error) = served {
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
    /// Questions to the worker's loop.
    asks: mpsc::Sender<oneshot::Sender<()>>,
    /// What `/metrics` answers.
    rendered: Arc<Paced<Bytes>>,
    /// What `/health` answers.
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
    match tokio::time::timeout(LOOP, round).await {
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

    /// Counts the connections that the other end has not closed.
    fn open(connections: &[std::net::TcpStream]) -> usize {
        let is_open = |stream: &&std::net::TcpStream| {
            stream.set_nonblocking(true).unwrap();
            stream.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        connections.iter().filter(is_open).count()
    }

    #[tokio::test]
    async fn idle_connections_keep_nobody_out_and_end() {
        let (address, _serving) = serving();
        let idle: Vec<_> = (0..3 * gate::MOST).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        assert_eq!(get(address, "/livez").await.0, 200);
        assert!(open(&idle) <= gate::MOST, "{}", open(&idle));
        // The head of a request has seconds, however it trickles in.
        let deadline = std::time::Instant::now() + 3 * guest::HEAD;
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
    fn a_loop_that_stands_still_is_not_alive_while_the_port_answers() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (address, _serving) = runtime.block_on(async { serving() });
        // Nobody runs that loop now.
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
