//! Checks how far the quotas are used.

use std::time::Duration;

use super::super::filled_quota::FilledQuota;
use super::report::Report;
use crate::config::StorageSettings;
use crate::wiring::{Failure, stack};

/// The longest time of the count; a person waits for the report.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The used part of a quota, in percent, from which on it is a note.
const NEARLY_FULL: u64 = 90;

/// Counts what is stored below each quota, and reports how far it is used.
pub(super) async fn check(report: &mut Report<'_>, settings: &StorageSettings) -> Result<(), Failure> {
    let mut quotas: Vec<FilledQuota> = settings.quotas.iter().map(FilledQuota::of).collect();
    if quotas.is_empty() {
        return Ok(());
    }
    let prefix = match &*settings.quotas {
        [rule] => rule.prefix.as_str(),
        _ => "",
    };
    let count = async {
        let Some(engine) = stack::reader(settings).await? else { return Ok(()) };
        let mut walk = engine.walk_sizes(prefix);
        while let Some(entries) = walk.next_page().await? {
            for entry in &entries {
                quotas.iter_mut().for_each(|quota| quota.add(entry));
            }
        }
        Ok::<_, Failure>(())
    };
    let at_least = match tokio::time::timeout(TIMEOUT, count).await {
        Ok(Ok(())) => "",
        Ok(Err(failure)) => return report.fault("quotas", failure.code, failure.message),
        Err(_) => {
            let why = format!("not all values could be counted in {} s", TIMEOUT.as_secs());
            report.note("quotas", format!("{why}; `filestorage usage` counts all"))?;
            "at least "
        }
    };
    for quota in &quotas {
        let said = format!("{at_least}{quota}");
        match quota.percent() {
            100.. => {
                let why = "stores that need more room raise QuotaExceeded";
                report.note("quotas", format!("{said}: full, {why}; remove values, or raise the quota"))?;
            }
            NEARLY_FULL.. => {
                report.note("quotas", format!("{said}: nearly full; remove values, or raise the quota"))?;
            }
            _ => report.fine("quotas", said)?,
        }
    }
    Ok(())
}
