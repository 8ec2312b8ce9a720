//! Checks the backend that keeps the values: its clock, and each permission by using it.

use std::time::Duration;

use bytes::Bytes;
use jiff::SignedDuration;
use uuid::Uuid;

use super::report::Report;
use crate::storage::{
    Attributes, Backend, Checksum, Condition, DeleteOptions, Error, ErrorKind, GetOptions, Key, Kind, Object, Page,
    PutOptions, Result,
};
use crate::wiring::{Code, Failure};

/// The largest difference of clocks that is no fault; beyond it, newer and expired values may be confused.
const MAX_SKEW: Duration = Duration::from_secs(10);

/// Reports the difference between the clocks of this machine and the bucket.
pub(super) fn clock(report: &mut Report<'_>, skew: Option<SignedDuration>) -> Result<(), Failure> {
    let Some(skew) = skew else {
        return report.fine("clock", "the bucket does not send its time, or has the same time");
    };
    let way = if skew.is_negative() { "ahead of" } else { "behind" };
    let said = format!("the clock of this machine is {:.1} s {way} the bucket's", skew.unsigned_abs().as_secs_f64());
    if skew.unsigned_abs() <= MAX_SKEW {
        return report.fine("clock", said);
    }
    let remedy = "let NTP set the clock of this machine (`timedatectl set-ntp true`)";
    let why = format!(
        "beyond {} s, the newer of two values and the expiry of values are determined wrongly",
        MAX_SKEW.as_secs()
    );
    report.fault("clock", Code::Configuration, format!("{said}; {why}; {remedy}"))
}

/// Stores, reads, lists, replaces and removes an object whose name no one else uses.
pub(super) async fn permissions(report: &mut Report<'_>, backend: &dyn Backend) -> Result<(), Failure> {
    let Ok(key) = Key::parse(&format!(".filestorage-doctor-{}", Uuid::new_v4().simple())) else { return Ok(()) };
    // Without a condition, because a conditional write may need further permissions in some stores.
    let created = put(backend, &key, Condition::Always).await;
    let there = created.is_ok();
    tell(report, "create", created, "values can be stored")?;
    if there {
        conditions(report, backend, &key).await?;
        tell(report, "get", get(backend, &key).await, "values can be read")?;
    } else {
        for part in ["conditions", "get"] {
            report.skipped(part, "there is nothing to try it on")?;
        }
    }
    tell(report, "list", list(backend, &key, there).await, "keys can be listed")?;
    if there {
        tell(report, "replace", put(backend, &key, Condition::Always).await, "values can be replaced")?;
    } else {
        report.skipped("replace", "there is nothing to try it on")?;
    }
    // Also after a failed create, which may have stored the object nevertheless.
    let removed = backend.delete(&key, &DeleteOptions::default()).await;
    if there || removed.is_ok() {
        tell(report, "delete", removed.map(|_| ()), "values can be removed")
    } else {
        report.skipped("delete", "there is nothing to try it on")
    }
}

/// Checks that the backend refuses a second object where `if_absent` forbids it.
async fn conditions(report: &mut Report<'_>, backend: &dyn Backend, key: &Key) -> Result<(), Failure> {
    match put(backend, key, Condition::Absent).await {
        Err(error) if error.kind == ErrorKind::Precondition => report.fine("conditions", "if_absent holds"),
        Err(error) => report.refused("conditions", &error),
        Ok(()) => {
            let why = "the bucket accepted a second value in spite of if_absent: if_absent and if_generation do not hold there";
            let remedy = "use a store that keeps preconditions";
            report.fault("conditions", Code::Configuration, format!("{why}; {remedy}"))
        }
    }
}

fn tell(report: &mut Report<'_>, check: &str, outcome: Result<()>, fine: &str) -> Result<(), Failure> {
    match outcome {
        Ok(()) => report.fine(check, fine),
        Err(error) => report.refused(check, &error),
    }
}

const VALUE: &[u8] = b"filestorage doctor: may be removed";

async fn put(backend: &dyn Backend, key: &Key, condition: Condition) -> Result<()> {
    let (size, checksum) = (VALUE.len() as u64, Checksum::of(VALUE));
    let attributes = Attributes::new(Kind::Text, Kind::Text.content_type().to_owned(), size, checksum);
    let object = Object { attributes, payload: Bytes::from_static(VALUE).into() };
    backend.put(key, &object, &PutOptions { condition, ..PutOptions::default() }).await.map(drop)
}

async fn get(backend: &dyn Backend, key: &Key) -> Result<()> {
    use crate::storage::Operation::Retrieve;
    let Some(object) = backend.get(key, GetOptions::default()).await? else {
        let why = "the value that was just stored is missing; does another program remove it, or is the store not consistent?";
        return Err(Error::new(ErrorKind::Integrity, Retrieve, Some(key), why));
    };
    match object.payload.as_memory() {
        Some(bytes) if bytes.as_ref() == VALUE => Ok(()),
        _ => {
            let why = "the value that was just stored comes back changed; look at proxies between this machine and the bucket";
            Err(Error::new(ErrorKind::Integrity, Retrieve, Some(key), why))
        }
    }
}

async fn list(backend: &dyn Backend, key: &Key, there: bool) -> Result<()> {
    let page = Page { prefix: key.as_str().to_owned(), limit: Some(2), ..Page::default() };
    let listing = backend.list(&page).await?;
    if there == listing.entries.iter().any(|entry| entry.key == *key) {
        return Ok(());
    }
    let why = "the list does not agree with the stored object; is the listing of the store consistent?";
    Err(Error::new(ErrorKind::Integrity, crate::storage::Operation::List, Some(key), why))
}
