//! Headers of both clouds: dates, and the time to wait.

use std::time::Duration;

use http::{HeaderMap, header};
use jiff::{SignedDuration, Timestamp};

/// A smaller difference of two clocks counts as none, because the `Date` header has whole seconds.
const LEAST_SKEW: SignedDuration = SignedDuration::from_millis(1_500);

/// The largest number of characters that is shown of a text from a server.
pub(in crate::storage) const LONGEST_TEXT: usize = 300;

/// Returns a header as text.
pub(in crate::storage) fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// Reads an HTTP date.
pub(in crate::storage) fn date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::parse(text).ok().map(|zoned| zoned.timestamp())
}

/// Reads `Retry-After`: seconds, or a date. A date in the past asks for no wait.
pub(in crate::storage) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = text(headers, header::RETRY_AFTER.as_str())?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let wait = date(text)?.duration_since(Timestamp::now());
    Some(Duration::try_from(wait).unwrap_or_default())
}

/// Returns how much the server's clock is ahead of this machine's, from the `Date` of an answer and the times of its
/// request.
pub(in crate::storage) fn clock_skew(
    headers: &HeaderMap,
    begun: Timestamp,
    ended: Timestamp,
) -> Option<SignedDuration> {
    date(text(headers, header::DATE.as_str())?).map(|theirs| ahead(theirs, begun, ended))
}

/// Returns how much later a time in whole seconds is than the middle of a request.
fn ahead(theirs: Timestamp, begun: Timestamp, ended: Timestamp) -> SignedDuration {
    let ours = begun + ended.duration_since(begun) / 2;
    // The server dropped the fraction of the second, half a second on average.
    let ahead = theirs.duration_since(ours) + SignedDuration::from_millis(500);
    if ahead.abs() < LEAST_SKEW { SignedDuration::ZERO } else { ahead }
}

/// Shortens a text from a server and puts it on one line.
pub(in crate::storage) fn cut(text: &str) -> String {
    text.chars().map(|each| if each.is_control() { ' ' } else { each }).take(LONGEST_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let asked = |value: &str| retry_after(&HeaderMap::from_iter([(header::RETRY_AFTER, value.parse().unwrap())]));
        assert_eq!(retry_after(&HeaderMap::new()), None);
        assert_eq!(asked("7"), Some(Duration::from_secs(7)));
        assert_eq!(asked(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(asked("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::ZERO));
        assert!(asked("Tue, 31 Dec 2999 23:59:59 GMT") > Some(Duration::from_secs(1_000_000)));
        assert_eq!(asked("soon"), None);
    }

    #[test]
    fn small_clock_differences_count_as_none() {
        let at = |millisecond| Timestamp::from_millisecond(millisecond).unwrap();
        for (theirs, begun, ended, skew) in [
            (10_000, 10_000, 10_000, 0),
            (10_000, 10_999, 11_500, 0),
            (10_000, 11_000, 12_000, 0),
            (10_000, 12_000, 12_000, -1_500),
            (20_000, 10_000, 12_000, 9_500),
            (5_000, 10_000, 12_000, -5_500),
        ] {
            assert_eq!(ahead(at(theirs), at(begun), at(ended)), SignedDuration::from_millis(skew));
        }
    }

    #[test]
    fn texts_of_servers_are_shortened_to_one_line() {
        let shown = cut(&"x\n\u{1b}[31m".repeat(1000));
        assert!(shown.chars().count() == LONGEST_TEXT && !shown.contains(char::is_control), "{shown}");
    }
}
