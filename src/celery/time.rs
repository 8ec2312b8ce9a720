//! Reads and writes instants and time limits in Celery's form.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Writes an instant as Python's `isoformat` writes it for UTC, always with microseconds.
pub(super) fn iso(at: Timestamp) -> String {
    let mut text = format!("{at:.6}");
    text.truncate(text.len() - 1);
    text.push_str("+00:00");
    text
}

/// Converts a time limit from seconds; returns `None` for no limit, which a number up to zero means, as in Celery.
pub(super) fn limit(seconds: f64) -> Option<Duration> {
    if seconds > 0.0 { Duration::try_from_secs_f64(seconds).ok() } else { None }
}

/// Adds seconds to an instant; returns `None` outside the calendar.
pub(super) fn later(from: Timestamp, seconds: f64) -> Option<Timestamp> {
    if seconds.is_nan() || seconds.abs() > 1e12 {
        return None;
    }
    from.checked_add(SignedDuration::from_micros((seconds * 1e6).round() as i64)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_written_as_python_writes_it() {
        let at = "2026-01-02T03:04:05.678901Z".parse().unwrap();
        assert_eq!(iso(at), "2026-01-02T03:04:05.678901+00:00");
        assert_eq!(iso(Timestamp::UNIX_EPOCH), "1970-01-01T00:00:00.000000+00:00");
    }

    #[test]
    fn spans_outside_the_calendar_are_refused() {
        for seconds in [f64::NAN, f64::INFINITY, 1e300, -1e300, 1e11] {
            assert_eq!(later(Timestamp::UNIX_EPOCH, seconds).filter(|at| at.as_second() < 1), None);
        }
        assert_eq!(limit(2.5), Some(Duration::from_millis(2500)));
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(limit(seconds), None);
        }
    }
}
