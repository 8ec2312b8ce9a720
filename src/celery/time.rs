//! Instants and spans as Celery writes them.

use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// Writes an instant as Python's `isoformat` does for UTC, always with microseconds.
pub(super) fn iso(at: Timestamp) -> String {
    let mut text = format!("{at:.6}");
    text.truncate(text.len() - 1);
    text.push_str("+00:00");
    text
}

/// Reads an ISO 8601 instant; one without an offset is UTC.
pub(super) fn instant(text: &str) -> Option<Timestamp> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at);
    }
    let local: DateTime = text.parse().ok()?;
    TimeZone::UTC.to_timestamp(local).ok()
}

/// Reads a time limit in seconds; what is not above zero is no limit, as in Celery.
pub(super) fn limit(seconds: f64) -> Option<Duration> {
    if seconds > 0.0 { Duration::try_from_secs_f64(seconds).ok() } else { None }
}

/// Adds seconds to an instant, if the calendar has that day.
pub(super) fn later(from: Timestamp, seconds: f64) -> Option<Timestamp> {
    if !(seconds.abs() < 1e12) {
        return None;
    }
    from.checked_add(SignedDuration::from_micros((seconds * 1e6).round() as i64)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_read_as_python_does() {
        let utc = |text| instant(text).map(iso);
        for (text, read) in [
            ("2026-01-02T03:04:05.678901+00:00", "2026-01-02T03:04:05.678901+00:00"),
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000000+00:00"),
            ("2030-01-02T03:04:05+05:30", "2030-01-01T21:34:05.000000+00:00"),
            ("2030-01-02T03:04:05", "2030-01-02T03:04:05.000000+00:00"),
            ("2030-01-02 03:04:05", "2030-01-02T03:04:05.000000+00:00"),
            ("2030-01-02", "2030-01-02T00:00:00.000000+00:00"),
        ] {
            assert_eq!(utc(text).as_deref(), Some(read), "{text}");
        }
        for text in ["", "soon", "12", "2030-13-01T00:00:00", "2030-01-01T25:00:00"] {
            assert_eq!(utc(text), None, "{text}");
        }
    }

    #[test]
    fn absurd_spans_are_none() {
        for seconds in [f64::NAN, f64::INFINITY, 1e300, -1e300, 1e11] {
            assert_eq!(later(Timestamp::UNIX_EPOCH, seconds).filter(|at| at.as_second() < 1), None);
        }
        assert_eq!(limit(2.5), Some(Duration::from_millis(2500)));
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(limit(seconds), None);
        }
    }
}
