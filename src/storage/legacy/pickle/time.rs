//! Dates and times in ISO 8601, from the bytes that Python pickles them as.

/// Microseconds of a day, which an offset from UTC stays below.
const DAY: i64 = 86_400_000_000;

/// Writes a `date` as `isoformat` does; `None` for bytes that are no date.
pub(super) fn date(bytes: &[u8]) -> Option<String> {
    let &[century, year, month, day] = bytes else { return None };
    let year = i16::from_be_bytes([century, year]);
    let date = jiff::civil::Date::new(year, i8::try_from(month).ok()?, i8::try_from(day).ok()?).ok()?;
    (year >= 1).then(|| format!("{:04}-{:02}-{:02}", date.year(), date.month(), date.day()))
}

/// Writes a `time` as `isoformat` does, with an offset from UTC in microseconds.
pub(super) fn time(bytes: &[u8], offset: Option<i64>) -> Option<String> {
    let &[hour, minute, second, high, middle, low] = bytes else { return None };
    // The highest bit is `fold`, which `isoformat` does not write.
    let hour = hour & 0x7f;
    let micro = u32::from_be_bytes([0, high, middle, low]);
    if hour > 23 || minute > 59 || second > 59 || micro > 999_999 {
        return None;
    }
    let mut text = format!("{hour:02}:{minute:02}:{second:02}");
    if micro > 0 {
        text.push_str(&format!(".{micro:06}"));
    }
    if let Some(offset) = offset {
        text.push_str(&zone(offset)?);
    }
    Some(text)
}

/// Writes a `datetime` as `isoformat` does.
pub(super) fn datetime(bytes: &[u8], offset: Option<i64>) -> Option<String> {
    let &[century, year, month, day, ref clock @ ..] = bytes else { return None };
    // The highest bit of the month is `fold`.
    let date = date(&[century, year, month & 0x7f, day])?;
    clock.first().filter(|hour| **hour < 0x80)?;
    Some(format!("{date}T{}", time(clock, offset)?))
}

fn zone(offset: i64) -> Option<String> {
    if offset.abs() >= DAY {
        return None;
    }
    let sign = if offset < 0 { '-' } else { '+' };
    let (seconds, micro) = (offset.abs() / 1_000_000, offset.abs() % 1_000_000);
    let mut text = format!("{sign}{:02}:{:02}", seconds / 3600, seconds / 60 % 60);
    if seconds % 60 != 0 || micro != 0 {
        text.push_str(&format!(":{:02}", seconds % 60));
    }
    if micro != 0 {
        text.push_str(&format!(".{micro:06}"));
    }
    Some(text)
}
