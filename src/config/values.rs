//! The parsed values of all settings.

use std::collections::BTreeMap;
use std::time::Duration;

use super::kind::Parsed;

/// The parsed values by the names of their settings.
///
/// A test checks that each name that is looked up here is in the registry.
pub(super) struct Values(pub(super) BTreeMap<&'static str, Parsed>);

impl Values {
    /// Finds the faults of combinations of values, each of which is allowed alone; returns setting and message.
    pub(super) fn combined_faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let factors = (self.integer("celery_worker_concurrency"), self.integer("celery_worker_prefetch_multiplier"));
        if let (Some(concurrency), Some(multiplier)) = factors {
            let product: u64 = u64::saturating_mul(concurrency, multiplier);
            if product > u64::from(u16::MAX) {
                let message =
                    format!("times celery_worker_concurrency is {product} messages; AMQP allows at most 65535");
                faults.push(("celery_worker_prefetch_multiplier", message));
            }
        }
        if self.text("celery_task_default_queue_type") == Some("quorum")
            && self.integer::<u8>("celery_task_queue_max_priority").is_some()
        {
            let message = "quorum queues have no x-max-priority; unset it or use classic queues".to_owned();
            faults.push(("celery_task_queue_max_priority", message));
        }
        match (self.text("broker_tls_certificate_file"), self.text("broker_tls_key_file")) {
            (Some(_), None) => {
                faults.push(("broker_tls_key_file", "must be set as well: the certificate needs its key".to_owned()));
            }
            (None, Some(_)) => {
                let message = "must be set as well: the key needs its certificate".to_owned();
                faults.push(("broker_tls_certificate_file", message));
            }
            _ => {}
        }
        faults
    }

    pub(super) fn bool(&self, name: &str) -> bool {
        matches!(self.0.get(name), Some(Parsed::Bool(true)))
    }

    pub(super) fn integer<T: TryFrom<u64>>(&self, name: &str) -> Option<T> {
        match self.0.get(name) {
            Some(Parsed::Integer(number)) => T::try_from(*number).ok(),
            _ => None,
        }
    }

    pub(super) fn seconds(&self, name: &str) -> Option<Duration> {
        match self.0.get(name) {
            Some(Parsed::Seconds(duration)) => Some(*duration),
            _ => None,
        }
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name) {
            Some(Parsed::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn list(&self, name: &str) -> Option<&[String]> {
        match self.0.get(name) {
            Some(Parsed::List(items)) => Some(items),
            _ => None,
        }
    }
}
