//! Faults of the worker itself.

/// Says that rules contradict each other. The session ends with it, so that the broker hands the delivery out again.
pub(super) fn fault(what: &str) -> String {
    format!("fault of this worker: {what}")
}
