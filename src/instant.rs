//! Reads ISO 8601 dates and times in every form that Celery's own parser accepts.
//!
//! People write Python's last instant, `datetime.max`, or another time on the last day of year 9999 for "never". In some
//! time zones these times lie beyond the last [`Timestamp`]. All times of that day are therefore read as [`NEVER`].

use jiff::civil::{Date, DateTime, ISOWeekDate, Time, Weekday};
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan as _};

/// The instant that stands for "never"; no instant is later.
pub const NEVER: Timestamp = Timestamp::MAX;

/// Reads an ISO 8601 date and time; returns `None` for any other text.
///
/// A time without an offset is UTC. Any one character may stand between date and time. Accepted are calendar dates, dates
/// of weeks (`2030-W01-3`) and of days (`2030-002`), with or without dashes. Date and time may leave out their last parts.
/// The fraction of a second may begin with `,` and have any number of digits; those after the sixth are dropped. `24:00` is
/// the midnight that ends the day.
#[must_use]
pub fn read(text: &str) -> Option<Timestamp> {
    found(text).map(|(at, _)| at)
}

/// Reads as [`read`] does, but only a text that has an offset.
#[must_use]
pub fn read_with_offset(text: &str) -> Option<Timestamp> {
    found(text).filter(|(_, has_offset)| *has_offset).map(|(at, _)| at)
}

/// Reads a date and time, and tells whether the text has an offset.
fn found(text: &str) -> Option<(Timestamp, bool)> {
    let bytes = text.as_bytes();
    let found = calendar(bytes).and_then(|(date, rest)| clocked(date, rest));
    let found = found.or_else(|| uncommon(bytes).and_then(|(date, rest)| clocked(date, rest)));
    let (local, offset) = match found {
        Some(found) => found,
        // Offsets with seconds, and other forms that only the time library reads.
        None => match text.parse::<Timestamp>() {
            Ok(at) => return Some((at, true)),
            Err(_) => (text.parse::<DateTime>().ok().filter(|local| local.year() > 0)?, None),
        },
    };
    Some((instant(local, offset.unwrap_or(0)), offset.is_some()))
}

/// Converts a local time into an instant; a time outside the calendar of [`Timestamp`] becomes the nearest instant inside.
fn instant(local: DateTime, offset: i32) -> Timestamp {
    if (local.year(), local.month(), local.day()) == (9999, 12, 31) {
        return NEVER;
    }
    match TimeZone::UTC.to_timestamp(local) {
        Ok(at) => at.checked_sub(SignedDuration::from_secs(offset.into())).unwrap_or(if offset < 0 {
            NEVER
        } else {
            Timestamp::MIN
        }),
        // The last hours of year 9999 have no timestamp.
        Err(_) => NEVER,
    }
}

/// Takes `count` decimal digits from the beginning; returns the number and the rest.
fn digits(bytes: &[u8], count: usize) -> Option<(i32, &[u8])> {
    let (number, rest) = bytes.split_at_checked(count)?;
    let digit = |sum: i32, byte: &u8| byte.is_ascii_digit().then(|| sum * 10 + i32::from(byte - b'0'));
    Some((number.iter().try_fold(0, digit)?, rest))
}

fn small(number: i32) -> Option<i8> {
    i8::try_from(number).ok()
}

/// Reads `YYYY`, `YYYY-MM`, `YYYY-MM-DD` and `YYYYMMDD`.
fn calendar(bytes: &[u8]) -> Option<(Date, &[u8])> {
    let (year, rest) = digits(bytes, 4)?;
    let date = |month, day| Date::new(i16::try_from(year).ok()?, small(month)?, small(day)?).ok().filter(|_| year > 0);
    if rest.is_empty() {
        return Some((date(1, 1)?, rest));
    }
    let (dashed, rest) = undash(rest);
    let (month, rest) = digits(rest, 2)?;
    if rest.is_empty() {
        return dashed.then_some((date(month, 1)?, rest));
    }
    let (second, rest) = undash(rest);
    if second != dashed {
        return None;
    }
    let (day, rest) = digits(rest, 2)?;
    Some((date(month, day)?, rest))
}

/// Reads `YYYY-Www`, `YYYY-Www-D` and `YYYY-DDD`, with or without dashes.
fn uncommon(bytes: &[u8]) -> Option<(Date, &[u8])> {
    let (year, rest) = digits(bytes, 4)?;
    let year = i16::try_from(year).ok().filter(|year| *year > 0)?;
    let (dashed, rest) = undash(rest);
    if let Some(rest) = rest.strip_prefix(b"W") {
        let (week, rest) = digits(rest, 2)?;
        let (day, rest) = if rest.is_empty() {
            (1, rest)
        } else {
            let (second, rest) = undash(rest);
            if second != dashed {
                return None;
            }
            digits(rest, 1)?
        };
        let first = ISOWeekDate::new(year, 1, Weekday::Monday).ok()?.date();
        let weekday = Weekday::from_monday_one_offset(small(day)?).ok()?.to_monday_zero_offset();
        let days = (0 < week && week < 54).then(|| (week - 1) * 7 + i32::from(weekday))?;
        return Some((first.checked_add(days.days()).ok()?, rest));
    }
    let (day, rest) = digits(rest, 3)?;
    let date = Date::new(year, 1, 1).ok()?.checked_add((day - 1).days()).ok()?;
    (date.year() == year && day > 0).then_some((date, rest))
}

fn undash(bytes: &[u8]) -> (bool, &[u8]) {
    bytes.strip_prefix(b"-").map_or((false, bytes), |rest| (true, rest))
}

/// Reads the rest of a text behind the date: nothing, or one character, a time and an optional offset.
///
/// Returns the local time and the offset in seconds, if there is one.
fn clocked(date: Date, rest: &[u8]) -> Option<(DateTime, Option<i32>)> {
    let Some((_, rest)) = rest.split_first() else { return Some((date.to_datetime(Time::midnight()), None)) };
    let zone = rest.iter().position(|byte| matches!(byte, b'-' | b'+' | b'Z' | b'z')).unwrap_or(rest.len());
    let (clock, zone) = rest.split_at(zone);
    let (hour, rest) = digits(clock, 2)?;
    let colons = rest.starts_with(b":");
    let mut next = rest;
    let mut part = || -> Option<i32> {
        if next.is_empty() {
            return Some(0);
        }
        let rest = if colons { next.strip_prefix(b":")? } else { next };
        let (number, rest) = digits(rest, 2)?;
        next = rest;
        Some(number)
    };
    let (minute, second) = (part()?, part()?);
    let micros = match next {
        [] => 0,
        [b'.' | b',', fraction @ ..] if !fraction.is_empty() && fraction.iter().all(u8::is_ascii_digit) => {
            let digit = |index: usize| fraction.get(index).map_or(0, |byte| i32::from(byte - b'0'));
            (0..6).fold(0, |sum, index| sum * 10 + digit(index))
        }
        _ => return None,
    };
    let offset = if zone.is_empty() { None } else { Some(offset(zone)?) };
    if hour == 24 {
        let midnight = (minute, second, micros) == (0, 0, 0);
        let next = date.checked_add(1.day()).unwrap_or(Date::MAX);
        return midnight.then(|| (next.to_datetime(Time::midnight()), offset));
    }
    let time = Time::new(small(hour)?, small(minute)?, small(second)?, micros * 1000).ok()?;
    Some((date.to_datetime(time), offset))
}

/// Reads an offset, `Z`, `±HH`, `±HHMM` or `±HH:MM`, as seconds.
fn offset(zone: &[u8]) -> Option<i32> {
    let (sign, rest) = match zone {
        b"Z" | b"z" => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, rest) = digits(rest, 2)?;
    let rest = rest.strip_prefix(b":").unwrap_or(rest);
    let (minutes, rest) = if rest.is_empty() { (0, rest) } else { digits(rest, 2)? };
    let seconds = (hours * 60 + minutes) * 60;
    // An offset is shorter than a day.
    (rest.is_empty() && hours < 24 && minutes < 60 && Offset::from_seconds(seconds).is_ok()).then_some(sign * seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_python_reads_them() {
        // On the right: the result of `dateutil.parser.isoparse`, in UTC.
        for (text, wanted) in [
            ("2026-01-02T03:04:05.678901+00:00", "2026-01-02T03:04:05.678901Z"),
            ("2026-01-02T03:04:05.6789019Z", "2026-01-02T03:04:05.678901Z"),
            ("2026-01-02T03:04:05,5z", "2026-01-02T03:04:05.5Z"),
            ("2030-01-02T03:04:05+05:30", "2030-01-01T21:34:05Z"),
            ("2030-01-02T03:04:05-0530", "2030-01-02T08:34:05Z"),
            ("2030-01-02T03:04:05+02", "2030-01-02T01:04:05Z"),
            ("2030-01-02T03:04:05", "2030-01-02T03:04:05Z"),
            ("2030-01-02 03:04", "2030-01-02T03:04:00Z"),
            ("2030-01-02T03", "2030-01-02T03:00:00Z"),
            ("2030-01-02T0304", "2030-01-02T03:04:00Z"),
            ("2030-01-02T030405", "2030-01-02T03:04:05Z"),
            ("20300102T030405Z", "2030-01-02T03:04:05Z"),
            ("2030-01-02T24:00", "2030-01-03T00:00:00Z"),
            ("2030-12-31T24:00:00+01:00", "2030-12-31T23:00:00Z"),
            ("2030-01-02", "2030-01-02T00:00:00Z"),
            ("20300102", "2030-01-02T00:00:00Z"),
            ("2030-02", "2030-02-01T00:00:00Z"),
            ("2030", "2030-01-01T00:00:00Z"),
            ("2030-W02-3", "2030-01-09T00:00:00Z"),
            ("2030W023", "2030-01-09T00:00:00Z"),
            ("2030-W02", "2030-01-07T00:00:00Z"),
            ("2030-W02-3T04:05Z", "2030-01-09T04:05:00Z"),
            ("2030-060", "2030-03-01T00:00:00Z"),
            ("2030060", "2030-03-01T00:00:00Z"),
            ("2028-366T01", "2028-12-31T01:00:00Z"),
            ("0001-01-01T00:00:00", "0001-01-01T00:00:00Z"),
            ("0001-01-01T00:00:00+14:00", "0000-12-31T10:00:00Z"),
            ("1582-10-04T00:00:00+00:00", "1582-10-04T00:00:00Z"),
            ("9999-12-30T00:00:00+00:00", "9999-12-30T00:00:00Z"),
        ] {
            assert_eq!(read(text).map(|at| at.to_string()).as_deref(), Some(wanted), "{text}");
        }
        for text in [
            "",
            "soon",
            "12",
            "2030-13-01T00:00:00",
            "2030-01-01T25:00:00",
            "2030-01-01T24:01",
            "2030-02-30",
            "203001",
            "2030-01-02T",
            "2030-01-02T3",
            "2030-01-02T03:0405",
            "2030-366",
            "2030-000",
            "2030-W00",
            "2030-W02-8",
            "0000-01-01",
            "2030-0102",
            "2030-01-02T03:04:05.Z",
            "2030-01-02T03:04:05+0:0",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn an_offset_is_told_from_none() {
        for text in [
            "2030-01-02T03:04:05Z",
            "2030-01-02 03:04z",
            "20300102T030405+00:00",
            "2030-01-02T03-08",
            "9999-12-31T23:59:59.999999+00:00",
            "2030-01-02T03:04:05+01:30:15",
        ] {
            assert!(read_with_offset(text).is_some() && read_with_offset(text) == read(text), "{text}");
        }
        for text in ["2030", "2030-02", "2030-01-02", "2030-01-02T03:04:05", "2030-W02-3T04:05", "9999-12-31T23:59:59"]
        {
            assert!(read_with_offset(text).is_none() && read(text).is_some(), "{text}");
        }
        assert_eq!(read_with_offset("soon+01:00"), None);
    }

    #[test]
    fn the_last_day_of_the_calendar_is_never() {
        for text in [
            "9999-12-31T23:59:59.999999",
            "9999-12-31T23:59:59.999999+00:00",
            "9999-12-31T23:59:59.999999-23:59",
            "9999-12-31T23:59:59+14:00",
            "9999-12-31T00:00:00+23:59",
            "9999-12-31",
            "9999-12-31 00:00Z",
            "9999-365",
            "9999-12-30T24:00",
            "9999-12-31T24:00",
            "9999-12-30T23:00:00-12:00",
            "9999-12-30T23:59:59Z",
        ] {
            assert_eq!(read(text), Some(NEVER), "{text}");
        }
    }
}
