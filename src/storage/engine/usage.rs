//! Counts the objects of the store and their bytes.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::storage::backend::Entry;
use crate::storage::engine::Engine;
use crate::storage::error::Result;

/// The number of bytes of a mebibyte.
const MEBIBYTE: f64 = 1_048_576.0;

/// The number of rows of a table by prefix; all other prefixes share one row.
const MAX_ROWS: usize = 1_000;

/// The objects that live in the store, and their bytes. Objects that have expired do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct Usage {
    /// The number of objects.
    pub file_count: u64,
    /// The bytes of their values, before compression and encryption. Of an object that another tool encoded, and of files of
    /// the Python class, whose values are not known without reading them, the stored bytes count.
    pub total_size_bytes: u64,
    /// The same number in units of 1,048,576 bytes.
    pub total_size_mb: f64,
    /// The bytes that are stored, after compression and encryption.
    pub stored_size_bytes: u64,
}

impl Usage {
    /// Counts one object.
    fn add(&mut self, entry: &Entry) {
        let stored = entry.stored_size.unwrap_or_default();
        self.file_count += 1;
        self.total_size_bytes += entry.size.unwrap_or(stored);
        self.total_size_mb = self.total_size_bytes as f64 / MEBIBYTE;
        self.stored_size_bytes += stored;
    }
}

/// The usage of a store by the folders of its keys, in bounded memory.
#[derive(Clone, Debug)]
pub struct UsageTable {
    depth: usize,
    /// All objects.
    pub total: Usage,
    /// The objects by the first folders of their keys, such as `reports/2026/`. The row of keys without a folder is `""`.
    pub rows: BTreeMap<String, Usage>,
    /// The objects of all further prefixes once there are 1,000 rows.
    pub others: Usage,
}

impl UsageTable {
    /// Makes an empty table whose rows are the first `depth` folders.
    #[must_use]
    pub fn new(depth: usize) -> Self {
        Self { depth, total: Usage::default(), rows: BTreeMap::new(), others: Usage::default() }
    }

    /// Counts one object, unless it has expired.
    pub fn add(&mut self, entry: &Entry, now: Timestamp) {
        if entry.is_expired(now) {
            return;
        }
        self.total.add(entry);
        if self.depth == 0 {
            return;
        }
        let key = entry.key.as_str();
        let end = key.match_indices('/').take(self.depth).last().map_or(0, |(at, _)| at + 1);
        let prefix = &key[..end];
        if let Some(row) = self.rows.get_mut(prefix) {
            row.add(entry);
        } else if self.rows.len() < MAX_ROWS {
            self.rows.entry(prefix.to_owned()).or_default().add(entry);
        } else {
            self.others.add(entry);
        }
    }
}

impl Engine {
    /// Counts the objects whose keys begin with `prefix`, in memory that does not grow with their number.
    ///
    /// Objects that are stored or removed meanwhile may count or not.
    ///
    /// # Errors
    ///
    /// The errors of the backend. A part of the objects is never counted for all.
    pub async fn usage(&self, prefix: &str) -> Result<Usage> {
        let count = async {
            let (mut table, mut walk) = (UsageTable::new(0), self.walk(prefix, None));
            while let Some(entries) = walk.next_page().await? {
                let now = Timestamp::now();
                entries.iter().for_each(|entry| table.add(entry, now));
            }
            Ok(table.total)
        };
        self.0.counters.measure(count).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::object::Key;

    fn entry(key: &str, size: Option<u64>, stored: u64) -> Entry {
        Entry { size, ..Entry::sized(Key::parse(key).unwrap(), Some(stored)) }
    }

    #[test]
    fn rows_are_the_first_folders_of_keys() {
        let now = Timestamp::now();
        let mut table = UsageTable::new(2);
        for key in ["a/b/c/d", "a/b/e", "a/f", "g", "a!", "a/b!"] {
            table.add(&entry(key, Some(10), 4), now);
        }
        table.add(&Entry { expires_at: Some(now), ..entry("a/x", Some(1), 1) }, now);
        let rows: Vec<_> = table.rows.iter().map(|(prefix, row)| (prefix.as_str(), row.file_count)).collect();
        assert_eq!(rows, [("", 2), ("a/", 2), ("a/b/", 2)]);
        let Usage { file_count, total_size_bytes, stored_size_bytes, .. } = table.total;
        assert_eq!((file_count, total_size_bytes, stored_size_bytes), (6, 60, 24));
    }

    #[test]
    fn an_unknown_size_counts_as_the_stored_one() {
        let mut table = UsageTable::new(0);
        table.add(&entry("a", None, 1 << 19), Timestamp::now());
        assert_eq!((table.total.total_size_bytes, table.total.total_size_mb), (1 << 19, 0.5));
        assert!(table.rows.is_empty());
    }

    #[test]
    fn rows_are_bounded() {
        let (mut table, now) = (UsageTable::new(1), Timestamp::now());
        for number in 0..MAX_ROWS + 5 {
            table.add(&entry(&format!("{number:04}/x"), Some(1), 1), now);
        }
        assert_eq!((table.rows.len(), table.others.file_count), (MAX_ROWS, 5));
        assert_eq!(table.total.file_count, 1_005);
    }
}
