//! The metrics of the pending entries in an overlay; the age is computed when the metrics are read.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Exposes `pending_sync_entries`, `pending_sync_bytes` and `pending_sync_oldest_age_seconds`.
///
/// A worker without an overlay has none of these metrics. Clones share the numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingCollector(Arc<Mutex<Option<Waiting>>>);

#[derive(Clone, Copy, Debug)]
struct Waiting {
    entries: u64,
    bytes: u64,
    oldest: Option<Timestamp>,
}

impl PendingCollector {
    pub(super) fn record(&self, entries: u64, bytes: u64, oldest: Option<Timestamp>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Waiting { entries, bytes, oldest });
    }
}

impl Collector for PendingCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let waiting = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Waiting { entries, bytes, oldest }) = waiting else { return Ok(()) };
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        };
        let help = "Pending writes and deletes, which wait to be sent to the bucket";
        gauge("pending_sync_entries", help, None, entries as f64)?;
        gauge(
            "pending_sync",
            "Payload of pending writes, which wait to be sent to the bucket",
            Some(&Unit::Bytes),
            bytes as f64,
        )?;
        let age = oldest.map_or(0.0, |oldest| Timestamp::now().duration_since(oldest).as_secs_f64().max(0.0));
        gauge(
            "pending_sync_oldest_age",
            "Age of the oldest pending entry, 0 when there is none",
            Some(&Unit::Seconds),
            age,
        )
    }
}
