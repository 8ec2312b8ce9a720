//! Secrets that files hold: read anew for each session, on SIGHUP, and every few seconds to tell of one that is gone.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::time::MissedTickBehavior;

use super::broker::{broker_urls, tls_files};
use crate::broker::BrokerOptions;
use crate::config::{self, Inputs, Settings};
use crate::telemetry::{Component, ComponentState, Readiness};

/// How soon it is noticed that a file is gone, or back.
const LOOK: Duration = Duration::from_secs(5);

/// What files of secrets held when they were last read whole. Cheap to clone.
///
/// A file that is missing, empty or broken for a while, as may happen when it is replaced, changes nothing: what it held
/// last stays in use, and `/readyz` says so. The storage room reads its own files when they change.
#[derive(Clone)]
pub(crate) struct Secrets(Arc<Inner>);

struct Inner {
    inputs: Inputs,
    readiness: Readiness,
    broker: Mutex<BrokerOptions>,
}

/// What one reading found.
struct Reading {
    files: Vec<PathBuf>,
    /// Files, or what is wrong with what they hold; empty when all is well.
    faults: Vec<String>,
    /// What is new, by the settings' names.
    changed: Vec<&'static str>,
}

impl Secrets {
    /// `broker` is what the inputs say now.
    pub(crate) fn new(inputs: Inputs, broker: BrokerOptions, readiness: Readiness) -> Self {
        Self(Arc::new(Inner { inputs, readiness, broker: Mutex::new(broker) }))
    }

    /// Reads the files and returns how the next session is opened. Blocks for as long as that takes.
    pub(crate) fn broker(&self) -> BrokerOptions {
        self.tell(&self.read());
        self.0.broker.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files at each SIGHUP, and now and then to say whether one is missing.
    pub(crate) async fn watch(self, mut hangups: Signal) -> io::Result<()> {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                Some(()) = hangups.recv() => true,
                _ = look.tick() => false,
            };
            let own = self.clone();
            // A file may lie on a disk that hangs.
            let reading = tokio::task::spawn_blocking(move || own.read()).await?;
            if asked {
                let shown: Vec<_> = reading.files.iter().map(|file| file.display().to_string()).collect();
                let (files, changed) = (shown.join(", "), reading.changed.join(", "));
                tracing::info!(files, changed, "SIGHUP: files of secrets were read again");
            }
            self.tell(&reading);
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
        // A value that was refused has its default here, which is not what was meant.
        if !faults.0.iter().any(|fault| fault.setting.starts_with("celery_broker_url")) {
            match broker_urls(queue) {
                Ok(urls) => reading.note("celery_broker_url", &mut broker.urls, urls),
                Err(failure) => reading.faults.push(failure.message),
            }
        }
        match tls_files(queue).read() {
            Ok(tls) => reading.note("broker_tls_…", &mut broker.tls, tls),
            Err(error) => reading.faults.push(error.to_string()),
        }
        drop(broker);
        // Anything else was right at the start and is not read again.
        let of_files =
            |name: &str| name.starts_with("celery_broker_url") || name.to_ascii_lowercase().ends_with("_file");
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

    /// Says how the files stand, if that is news.
    fn tell(&self, reading: &Reading) {
        let readiness = &self.0.readiness;
        if !reading.faults.is_empty() {
            let faults = reading.faults.join("; ");
            let condition = format!("{faults}; what was read there last stays in use: put the file back");
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

/// Looks whether a file holds JSON; says nothing of what it holds.
fn is_json(file: &std::path::Path) -> Result<(), String> {
    let text = std::fs::read(file).map_err(|error| format!("cannot be read: {error}"))?;
    serde_json::from_slice::<serde::de::IgnoredAny>(&text).map(drop).map_err(|_| "is no JSON".to_owned())
}
