//! Hides secrets that are recognized by their form, or by the name in front of them.

use super::HIDDEN;

/// The names, in lower case, whose values are secrets: of credentials files, answers of token servers and HTTP headers.
const NAMES: [&str; 20] = [
    "private_key",
    "private_key_id",
    "client_secret",
    "refresh_token",
    "access_token",
    "id_token",
    "subject_token",
    "password",
    "passwd",
    "secret",
    "encryption_key",
    "api_key",
    "aws_secret_access_key",
    "aws_session_token",
    "secretaccesskey",
    "sessiontoken",
    "authorization",
    "proxy-authorization",
    "x-amz-security-token",
    "x-goog-api-key",
];

/// Hides PEM blocks, also those that are cut off.
pub(super) fn blocks(text: &str) -> Option<String> {
    const BEGIN: &str = "-----BEGIN ";
    let mut rest = text;
    let mut less = String::new();
    while let Some(at) = rest.find(BEGIN) {
        less.push_str(&rest[..at]);
        less.push_str(HIDDEN);
        let inside = |character: char| {
            character.is_ascii_alphanumeric() || character.is_ascii_whitespace() || "+/=-\\:,".contains(character)
        };
        let body = &rest[at..];
        let block = body.find(|character| !inside(character)).unwrap_or(body.len());
        // A text may go on behind the end line of a block.
        let end = body[..block].find("-----END ").and_then(|end| {
            let label = end + "-----END ".len();
            body[label..block].find("-----").map(|close| label + close + "-----".len())
        });
        rest = &body[end.unwrap_or(block)..];
    }
    (!less.is_empty()).then(|| less + rest)
}

/// Hides the values of members and headers whose names stand in [`NAMES`]: `"private_key": "…"`, escaped or not.
pub(super) fn members(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let mut hidden: Vec<(usize, usize)> = Vec::new();
    for name in NAMES {
        for (at, _) in lower.match_indices(name) {
            let quote = text[..at].len() - text[..at].trim_end_matches(['"', '\'']).len();
            if quote > 0
                && let Some(span) = value(text, at + name.len())
            {
                hidden.push(span);
            }
        }
    }
    hidden.sort_unstable();
    let mut less = String::new();
    let mut from = 0;
    for (start, end) in hidden {
        if start >= from {
            less.push_str(&text[from..start]);
            less.push_str(HIDDEN);
            from = end;
        }
    }
    (from > 0).then(|| less + &text[from..])
}

/// Returns the positions of the quoted value behind a quoted name; the quotes may be escaped and do not belong to it.
fn value(text: &str, behind: usize) -> Option<(usize, usize)> {
    let rest = &text[behind..];
    let slashes = rest.len() - rest.trim_start_matches('\\').len();
    let mark = rest[slashes..].chars().next().filter(|mark| matches!(mark, '"' | '\''))?;
    let quote = format!("{}{mark}", "\\".repeat(slashes));
    let rest = rest[quote.len()..].trim_start().strip_prefix(':')?.trim_start().strip_prefix(&quote)?;
    let start = text.len() - rest.len();
    let end = rest.match_indices(mark).find_map(|(at, _)| {
        let before = rest[..at].len() - rest[..at].trim_end_matches('\\').len();
        // A quote with more backslashes before it belongs to the value.
        (before == slashes || slashes == 0 && before % 2 == 0).then_some(at - slashes.min(before))
    });
    let end = end.unwrap_or(rest.len());
    Some((start, start + end))
}

/// Hides the tokens behind `Bearer`, `Basic` and `Signature=`, and JSON Web Tokens.
pub(super) fn tokens(text: &str) -> Option<String> {
    let is_token = |character: char| character.is_ascii_alphanumeric() || "-._~+/=".contains(character);
    let length = |rest: &str| rest.find(|character| !is_token(character)).unwrap_or(rest.len());
    let mut less = text.to_owned();
    for (begin, kept, shortest) in [
        ("Bearer ", "Bearer ", 8),
        ("bearer ", "bearer ", 8),
        ("Basic ", "Basic ", 16),
        ("Signature=", "Signature=", 16),
        ("signature=", "signature=", 16),
        ("eyJ", "", 36),
    ] {
        let mut from = 0;
        while let Some(at) = less[from..].find(begin).map(|at| from + at) {
            let start = at + kept.len();
            let long = length(&less[start..]);
            let dotted = || less[start..start + long].matches('.').count() == 2;
            if long >= shortest && (!kept.is_empty() || dotted()) {
                less.replace_range(start..start + long, HIDDEN);
            }
            from = (start + 1).min(less.len());
            while !less.is_char_boundary(from) {
                from += 1;
            }
        }
    }
    (less != text).then_some(less)
}
