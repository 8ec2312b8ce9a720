//! Reads the files of secrets again: for each session, at SIGHUP, and every few seconds to report missing files.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::time::MissedTickBehavior;

use super::broker::{broker_urls, tls_files};
use super::results::redis_url;
use crate::broker::BrokerOptions;
use crate::config::{self, Inputs, Settings};
use crate::results::SharedUrl;
use crate::telemetry::{Component, ComponentState, Readiness};

/// The time between two checks whether the files are there.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The secrets as they were last read completely from their files; cheap to clone.
///
/// A file may be missing, empty or broken while it is replaced. Its last valid content stays in use then, and `/readyz`
/// reports the fault. The room `storage` reads its own files again when they change.
#[derive(Clone)]
pub(crate) struct Secrets(Arc<Inner>);

struct Inner {
    inputs: Inputs,
    readiness: Readiness,
    broker: Mutex<BrokerOptions>,
    /// The URL of the store of results, where there is one.
    results: Option<SharedUrl>,
}

/// The result of reading all files once.
struct Reading {
    files: Vec<PathBuf>,
    /// The faults of files and of their contents.
    faults: Vec<String>,
    /// The names of the settings whose values have changed.
    changed: Vec<&'static str>,
}

impl Secrets {
    /// Creates the record of secrets; `broker` and `results` hold what was read from `inputs` at the start.
    pub(crate) fn new(inputs: Inputs, broker: BrokerOptions, results: Option<SharedUrl>, readiness: Readiness) -> Self {
        Self(Arc::new(Inner { inputs, readiness, broker: Mutex::new(broker), results }))
    }

    /// Reads the files and returns the options for the next session. Blocks while it reads.
    pub(crate) fn broker(&self) -> BrokerOptions {
        self.report(&self.read());
        self.0.broker.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files at each SIGHUP and every few seconds, and reports their faults.
    pub(crate) async fn watch(self, mut hangups: Signal) -> io::Result<()> {
        let mut checks = tokio::time::interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                Some(()) = hangups.recv() => true,
                _ = checks.tick() => false,
            };
            let own = self.clone();
            // A file may lie on a disk that hangs.
            let reading = tokio::task::spawn_blocking(move || own.read()).await?;
            if asked {
                let shown: Vec<_> = reading.files.iter().map(|file| file.display().to_string()).collect();
                let (files, changed) = (shown.join(", "), reading.changed.join(", "));
                tracing::info!(files, changed, "SIGHUP: files of secrets were read again");
            }
            self.report(&reading);
        }
    }

    fn read(&self) -> Reading {
        let mut reading = Reading { files: Vec::new(), faults: Vec::new(), changed: Vec::new() };
        let (loaded, faults) = match config::survey(&self.0.inputs) {
            Ok(surveyed) => surveyed,
            Err(faults) => {
                reading.faults.push(faults.to_string());
                return reading;
            }
        };
        let Settings { queue, storage, .. } = &loaded.settings;
        let mut broker = self.0.broker.lock().unwrap_or_else(PoisonError::into_inner);
        // A refused value was replaced by its default, which must not be used.
        if !faults.0.iter().any(|fault| fault.setting.starts_with("celery_broker_url")) {
            match broker_urls(queue) {
                Ok(urls) => reading.note("celery_broker_url", &mut broker.urls, urls),
                Err(failure) => reading.faults.push(failure.message),
            }
        }
        if let Some(shared) = &self.0.results
            && !faults.0.iter().any(|fault| fault.setting.starts_with("celery_result_backend"))
        {
            match redis_url(&loaded.settings.worker) {
                Ok(url) => {
                    if shared.set(url) {
                        reading.changed.push("celery_result_backend");
                    }
                }
                Err(why) => reading.faults.push(why),
            }
        }
        match tls_files(queue).read() {
            Ok(tls) => reading.note("broker_tls_…", &mut broker.tls, tls),
            Err(error) => reading.faults.push(error.to_string()),
        }
        drop(broker);
        // All other settings were valid at the start and are not read again.
        let of_files = |name: &str| {
            name.starts_with("celery_broker_url")
                || name.starts_with("celery_result_backend")
                || name.to_ascii_lowercase().ends_with("_file")
        };
        reading.faults.extend(faults.0.iter().filter(|fault| of_files(&fault.setting)).map(ToString::to_string));
        if let Some(file) = &storage.gcs.credentials
            && let Err(why) = is_json(file)
        {
            reading.faults.push(format!("gcs_credentials_path: {} {why}", file.display()));
        }
        let identity = queue.tls_identity.iter().flat_map(|own| [&own.certificate_file, &own.key_file]);
        reading.files = loaded.secret_files.clone();
        reading.files.extend(identity.chain(&queue.tls_ca_file).chain(&storage.gcs.credentials).cloned());
        reading
    }

    /// Reports the faults of the files to [`Readiness`], or that there are none.
    fn report(&self, reading: &Reading) {
        let readiness = &self.0.readiness;
        if !reading.faults.is_empty() {
            let faults = reading.faults.join("; ");
            let condition = format!("{faults}; the last valid content stays in use: put the file back");
            readiness.set(Component::Secrets, ComponentState::Degraded(condition));
        } else if readiness.conditions().contains_key(&Component::Secrets) {
            readiness.set(Component::Secrets, ComponentState::Ready);
        }
    }
}

impl Reading {
    fn note<T: PartialEq>(&mut self, name: &'static str, kept: &mut T, read: T) {
        if *kept != read {
            *kept = read;
            self.changed.push(name);
        }
    }
}

/// Checks that a file holds JSON; the error does not repeat the content.
fn is_json(file: &std::path::Path) -> Result<(), String> {
    let text = std::fs::read(file).map_err(|error| format!("cannot be read: {error}"))?;
    serde_json::from_slice::<serde::de::IgnoredAny>(&text).map(drop).map_err(|_| "is no JSON".to_owned())
}
