//! Where answers go, from the settings.

use std::sync::Arc;

use super::failure::{Code, Failure};
use super::memory_limit::in_flight_bytes;
use crate::config::{Settings, WorkerSettings};
use crate::redis_url::{RedisOptions, RedisUrl, ResultUrl};
use crate::results::{Redis, ResultBackend, Rpc, Serializer, SharedUrl};
use crate::telemetry::{Component, ComponentState, Readiness};

/// The place that takes the answers of a node.
#[derive(Clone, Debug)]
pub(crate) struct Results {
    /// What the worker knows of it.
    pub(crate) backend: Arc<dyn ResultBackend>,
    redis: Option<(Redis, SharedUrl)>,
}

impl Results {
    /// Builds the place that takes the answers of the node with this name.
    pub(crate) fn new(settings: &Settings, node: &str) -> Result<Self, Failure> {
        let Settings { worker: settings, queue, .. } = settings;
        let refused = |why| Failure::new(Code::Configuration, why);
        let url = result_url(settings).map_err(refused)?;
        let layout = options(settings).map_err(refused)?.layout;
        let serializer = Serializer::of_name(&settings.result_serializer).unwrap_or_default();
        if serializer != Serializer::Json && matches!(url, ResultUrl::Redis(_)) {
            let why = "celery_result_serializer: answers in a Redis are written as JSON only; set it to json, in the clients as well";
            return Err(Failure::new(Code::Configuration, why));
        }
        Ok(match url {
            ResultUrl::Rpc => {
                let rpc = Rpc::new(node, settings.result_persistent).with_serializer(serializer);
                Self { backend: Arc::new(rpc), redis: None }
            }
            ResultUrl::Redis(url) => {
                let url = SharedUrl::new(url);
                let max_bytes = settings.max_in_flight_bytes.unwrap_or_else(in_flight_bytes);
                let redis = Redis::new(node, url.clone(), settings.result_expires, &queue.default_queue, max_bytes)
                    .with_layout(layout);
                Self { backend: Arc::new(redis.clone()), redis: Some((redis, url)) }
            }
        })
    }

    /// Returns the URL of the store of results, where there is one, as it may change with the file that holds it.
    pub(crate) fn shared_url(&self) -> Option<SharedUrl> {
        self.redis.as_ref().map(|(_, url)| url.clone())
    }

    /// Keeps `/readyz` true of the store of results, where there is one.
    pub(crate) async fn watch(self, readiness: Readiness) {
        let Some((redis, _)) = self.redis else { return };
        let report = |found: Result<(), String>| {
            let state = match found {
                Ok(()) => ComponentState::Ready,
                Err(why) => ComponentState::Degraded(format!(
                    "{} takes no results, which are kept and sent again: {why}",
                    redis.url()
                )),
            };
            readiness.set(Component::Results, state);
        };
        redis.watch(report).await;
    }
}

/// Parses the URL of the result backend; the error says what is wrong and never repeats the login.
fn result_url(settings: &WorkerSettings) -> Result<ResultUrl, String> {
    let (url, options) = (settings.result_backend.expose().trim(), options(settings)?);
    ResultUrl::with_options(url, &options).map_err(|fault| format!("celery_result_backend: {fault}"))
}

fn options(settings: &WorkerSettings) -> Result<RedisOptions, String> {
    RedisOptions::parse(settings.result_options.expose())
        .map_err(|why| format!("celery_result_backend_transport_options: {why}"))
}

/// Parses the URL of the store of results; the backend itself cannot change while the worker runs.
pub(super) fn redis_url(settings: &WorkerSettings) -> Result<RedisUrl, String> {
    match result_url(settings)? {
        ResultUrl::Redis(url) => Ok(url),
        ResultUrl::Rpc => Err("celery_result_backend: another backend takes a restart of the worker".to_owned()),
    }
}
