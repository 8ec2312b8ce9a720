//! How far a quota is used, for `usage` and `doctor`.

use std::fmt;

use indicatif::HumanBytes;
use serde::Serialize;

use crate::quota_rule::QuotaRule;
use crate::storage::Entry;

/// One quota, and what of it is used: stored bytes and objects, also of values that have expired and are not removed yet.
#[derive(Debug, Serialize)]
pub(super) struct FilledQuota {
    prefix: String,
    bytes: u64,
    max_bytes: u64,
    objects: u64,
    max_objects: Option<u64>,
}

impl FilledQuota {
    pub(super) fn of(rule: &QuotaRule) -> Self {
        let QuotaRule { prefix, bytes, objects } = rule.clone();
        Self { prefix, bytes: 0, max_bytes: bytes, objects: 0, max_objects: objects }
    }

    pub(super) fn add(&mut self, entry: &Entry) {
        if entry.key.as_str().starts_with(&self.prefix) {
            self.bytes += entry.stored_size.unwrap_or_default();
            self.objects += 1;
        }
    }

    /// Returns the used part of the bytes or of the objects in percent, whichever is larger.
    pub(super) fn percent(&self) -> u64 {
        percent(self.bytes, self.max_bytes).max(self.max_objects.map_or(0, |most| percent(self.objects, most)))
    }
}

impl fmt::Display for FilledQuota {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, most) = (HumanBytes(self.bytes), HumanBytes(self.max_bytes));
        let prefix = if self.prefix.is_empty() { "(all keys)" } else { &self.prefix };
        write!(formatter, "{prefix}: {bytes} of {most} stored ({} %)", percent(self.bytes, self.max_bytes))?;
        match self.max_objects {
            Some(most) => write!(formatter, ", {} of {most} values", self.objects),
            None => Ok(()),
        }
    }
}

fn percent(used: u64, most: u64) -> u64 {
    used.saturating_mul(100).checked_div(most).unwrap_or(100)
}
