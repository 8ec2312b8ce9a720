//! Checks how many files a worker may have open.

use super::report::Report;
use crate::storage::{descriptor_limit, descriptors_wanted};
use crate::wiring::Failure;

/// Compares the limit of descriptors, which is raised as in a worker, with the number that the commands may need.
pub(super) fn check(report: &mut Report<'_>, concurrency: usize) -> Result<(), Failure> {
    let (limit, wanted) = (descriptor_limit(), descriptors_wanted(concurrency));
    if limit >= wanted {
        return report.fine("descriptors", format!("{limit} files may be open at once, {wanted} may be wanted"));
    }
    let what = format!("{limit} files may be open at once and {concurrency} commands in flight may want {wanted}");
    let remedy =
        "raise the hard limit (ulimit -Hn, LimitNOFILE=, ulimits: in Compose) or lower celery_worker_concurrency";
    report.note("descriptors", format!("{what}: they wait for one another; {remedy}"))
}
