//! Reads ages and other spans of time such as `30s`, `15m`, `12h` and `7d`.

use std::time::Duration;

/// The units, each with its seconds.
const UNITS: &[(&str, u64)] = &[("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400), ("w", 604_800)];

/// The longest span in seconds: a thousand years.
const MAX_SECONDS: u64 = 31_557_600_000;

/// Reads a whole number with a unit.
pub(in crate::cli) fn span(text: &str) -> Result<Duration, String> {
    let why = || "must be a whole number with a unit: 30s, 15m, 12h, 7d or 2w".to_owned();
    let end = text.find(|character: char| !character.is_ascii_digit()).ok_or_else(why)?;
    let (number, unit) = text.split_at(end);
    let seconds = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, seconds)| *seconds).ok_or_else(why)?;
    let number: u64 = number.parse().map_err(|_| why())?;
    let seconds = number.checked_mul(seconds).filter(|seconds| *seconds <= MAX_SECONDS);
    seconds.map(Duration::from_secs).ok_or_else(|| "must be at most a thousand years".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_number_and_a_unit() {
        for (text, seconds) in
            [("0s", 0), ("30s", 30), ("15m", 900), ("12h", 43_200), ("7d", 604_800), ("2w", 1_209_600)]
        {
            assert_eq!(span(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "7", "d", "-1d", "1.5h", "7 d", "7D", "1y", "7dd", "99999999999999999999s"] {
            assert!(span(text).unwrap_err().contains("7d"), "{text}");
        }
        assert!(span("400000d").unwrap_err().contains("thousand years"));
    }
}
