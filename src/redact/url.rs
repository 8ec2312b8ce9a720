//! Hides logins, queries and fragments of URLs.

use super::HIDDEN;

/// Schemes of external references: the rest names a file or an object, in which `?` and `@` have no special meaning.
const NAMES: [&str; 3] = ["gs", "s3", "file"];

/// Shows the value of a setting that holds URLs joined by `;`.
///
/// Logins, queries and fragments are hidden, but for the user of a broker. A text without a scheme is treated as the URL
/// of a broker.
#[must_use]
pub fn urls(text: &str) -> String {
    let show = |url: &str| match url.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{}", rest_of(scheme, rest)),
        None => rest_of("amqp", url),
    };
    text.split(';').map(show).collect::<Vec<_>>().join(";")
}

/// Hides logins, queries and fragments of the URLs in a text; returns `None` when there is nothing to hide.
pub(super) fn hide(text: &str) -> Option<String> {
    let mut less = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let start = rest[..at]
            .rfind(|byte: char| !byte.is_ascii_alphanumeric())
            .map_or(0, |before| before + rest[before..].chars().next().map_or(1, char::len_utf8));
        let (before, scheme, behind) = (&rest[..at + 3], &rest[start..at], &rest[at + 3..]);
        // These characters end a URL. The password of a broker that is not percent-encoded may hold any other.
        let others = if is_broker(scheme) { "\"';" } else { "\"'`\\<>;,)}]|" };
        let ends = |character: char| character.is_whitespace() || others.contains(character);
        // The brackets of an IPv6 address do not end the URL.
        let skip = behind.find('[').and_then(|open| Some(open + behind[open..].find(']')? + 1));
        let skip = skip.filter(|skip| !behind[..*skip].contains(|character| ends(character) && character != ']'));
        let skip = skip.unwrap_or(0);
        let end = behind[skip..].find(ends).map_or(behind.len(), |end| skip + end);
        less.push_str(before);
        less.push_str(&rest_of(scheme, &behind[..end]));
        rest = &behind[end..];
    }
    less.push_str(rest);
    (less != text).then_some(less)
}

/// Tells whether a URL is that of a broker, or of a Redis, whose passwords are as unruly.
fn is_broker(scheme: &str) -> bool {
    let scheme = scheme.to_ascii_lowercase();
    scheme.contains("amqp") || scheme.contains("redis")
}

/// Shows the part of a URL behind `://`, with logins and queries hidden.
fn rest_of(scheme: &str, rest: &str) -> String {
    if NAMES.iter().any(|name| name.eq_ignore_ascii_case(scheme)) {
        return rest.to_owned();
    }
    let broker = is_broker(scheme);
    // In a broker's URL the last `@` ends the login, since a password may hold an unescaped `/`. The path of another URL may
    // hold an `@`.
    let authority = if broker { rest.len() } else { rest.find(['/', '?', '#']).unwrap_or(rest.len()) };
    let (login, host) = match rest[..authority].rfind('@') {
        Some(at) => (Some(&rest[..at]), &rest[at + 1..]),
        None => (None, rest),
    };
    let shown = match host.find(['?', '#']) {
        Some(at) if at + 1 < host.len() => format!("{}{HIDDEN}", &host[..=at]),
        _ => host.to_owned(),
    };
    match login.map(|login| (login.split_once(':'), login)) {
        None => shown,
        Some((Some((user, _)), _)) if broker => format!("{user}:{HIDDEN}@{shown}"),
        // A long user without a password may be a token.
        Some((None, user)) if broker && user.len() < 16 => format!("{user}@{shown}"),
        Some(_) => format!("{HIDDEN}@{shown}"),
    }
}
