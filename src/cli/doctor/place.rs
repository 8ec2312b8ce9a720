//! The place values are kept in: whether it can be used, and each permission by using it.

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

/// A clock that is more off than this makes wrong what is newer and what has expired.
const OFF: Duration = Duration::from_secs(10);

/// Says how far our clock is from the place's.
pub(super) fn clock(report: &mut Report<'_>, skew: Option<SignedDuration>) -> Result<(), Failure> {
    let Some(skew) = skew else { return report.fine("clock", "the place does not tell its time, or agrees with ours") };
    let way = if skew.is_negative() { "ahead of" } else { "behind" };
    let said = format!("ours is {:.1} s {way} the bucket's", skew.unsigned_abs().as_secs_f64());
    if skew.unsigned_abs() <= OFF {
        return report.fine("clock", said);
    }
    let mend = "let NTP set the clock of this machine (`timedatectl set-ntp true`)";
    let why = format!("what is newer and what has expired is told wrongly beyond {} s", OFF.as_secs());
    report.fault("clock", Code::Configuration, format!("{said}; {why}; {mend}"))
}

/// Makes, reads, lists, replaces and removes an object of a name that nobody uses.
pub(super) async fn permissions(report: &mut Report<'_>, place: &dyn Backend) -> Result<(), Failure> {
    let Ok(key) = Key::parse(&format!(".filestorage-doctor-{}", Uuid::new_v4().simple())) else { return Ok(()) };
    // Without a condition: a store that first has to find out whether it keeps them needs more rights than this one.
    let created = put(place, &key, Condition::Always).await;
    let there = created.is_ok();
    tell(report, "create", created, "values can be stored")?;
    if there {
        conditions(report, place, &key).await?;
        tell(report, "get", get(place, &key).await, "values can be read")?;
    } else {
        for part in ["conditions", "get"] {
            report.skipped(part, "there is nothing to try it on")?;
        }
    }
    tell(report, "list", list(place, &key, there).await, "keys can be listed")?;
    if there {
        tell(report, "replace", put(place, &key, Condition::Always).await, "values can be replaced")?;
    } else {
        report.skipped("replace", "there is nothing to try it on")?;
    }
    // Also after a failed create: nobody knows how that ended.
    let removed = place.delete(&key, &DeleteOptions::default()).await;
    if there || removed.is_ok() {
        tell(report, "delete", removed.map(|_| ()), "values can be removed")
    } else {
        report.skipped("delete", "there is nothing to try it on")
    }
}

/// A second object where none may be must be refused.
async fn conditions(report: &mut Report<'_>, place: &dyn Backend, key: &Key) -> Result<(), Failure> {
    match put(place, key, Condition::Absent).await {
        Err(error) if error.kind == ErrorKind::Precondition => report.fine("conditions", "if_absent holds"),
        Err(error) => report.refused("conditions", &error),
        Ok(()) => {
            let why =
                "the place took a second value where none might be: if_absent and if_generation do not hold there";
            let mend = "use a store that keeps preconditions";
            report.fault("conditions", Code::Configuration, format!("{why}; {mend}"))
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

async fn put(place: &dyn Backend, key: &Key, condition: Condition) -> Result<()> {
    let (size, checksum) = (VALUE.len() as u64, Checksum::of(VALUE));
    let attributes = Attributes::new(Kind::Text, Kind::Text.content_type().to_owned(), size, checksum);
    let object = Object { attributes, payload: Bytes::from_static(VALUE).into() };
    place.put(key, &object, &PutOptions { condition, ..PutOptions::default() }).await.map(drop)
}

async fn get(place: &dyn Backend, key: &Key) -> Result<()> {
    use crate::storage::Operation::Retrieve;
    let Some(object) = place.get(key, GetOptions::default()).await? else {
        let why = "what was just stored is not there; is another program removing it, or the place not consistent?";
        return Err(Error::new(ErrorKind::Integrity, Retrieve, Some(key), why));
    };
    match object.payload.as_memory() {
        Some(bytes) if bytes.as_ref() == VALUE => Ok(()),
        _ => {
            let why = "what was just stored comes back otherwise; look at what stands between here and the place";
            Err(Error::new(ErrorKind::Integrity, Retrieve, Some(key), why))
        }
    }
}

async fn list(place: &dyn Backend, key: &Key, there: bool) -> Result<()> {
    let page = Page { prefix: key.as_str().to_owned(), start_after: None, limit: Some(2) };
    let listing = place.list(&page).await?;
    if there == listing.entries.iter().any(|entry| entry.key == *key) {
        return Ok(());
    }
    let why = "the list does not show what is there; is the place's listing consistent?";
    Err(Error::new(ErrorKind::Integrity, crate::storage::Operation::List, Some(key), why))
}
