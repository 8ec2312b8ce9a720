//! Time constants of the worker: what each bounds, just before and just after.

mod announcements;
mod delivery;
mod journal;
mod parking;
mod queues;
mod sessions;

use std::time::Duration;

use filestorage::telemetry::{Component, ComponentState};
use tokio::time::Instant;

use crate::model::Model;
use crate::site::Site;

/// Waits until so many milliseconds after a time.
async fn until(from: Instant, milliseconds: u64) {
    tokio::time::sleep_until(from + Duration::from_millis(milliseconds)).await;
}

/// Tells whether a component is as it should be; one that was not told of is.
fn is_ready(site: &Site, component: Component) -> bool {
    matches!(site.readiness.conditions().get(&component), None | Some(ComponentState::Ready))
}

/// Returns when lines of the trace were written that begin with this, in milliseconds.
fn times(model: &Model, beginning: &str) -> Vec<u64> {
    let lines = model.trace.lines().filter_map(|line| line.split_once(' '));
    lines.filter(|(_, rest)| rest.starts_with(beginning)).map(|(at, _)| at.parse().unwrap()).collect()
}

/// Returns the milliseconds between each and the next.
fn gaps(times: &[u64]) -> Vec<u64> {
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// Makes sure that a time is this one or a few milliseconds later, as steps through the network take.
fn assert_about(found: u64, expected: u64, trace: &str) {
    assert!((expected..=expected + 20).contains(&found), "{found} ms instead of {expected}\n{trace}");
}
