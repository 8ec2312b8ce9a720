//! Hides the secrets that the program has read: passwords, keys, tokens.

use std::sync::{PoisonError, RwLock};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::HIDDEN;

/// The shortest secret that is hidden, in bytes: a shorter one would also match inside harmless words.
const SHORTEST: usize = 8;

/// The most forms that are kept; when there are more, the oldest go, since their secrets have been replaced.
const KEPT: usize = 256;

static KNOWN: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// Registers a secret with the redactor, in every form in which a text may show it: as it is, escaped as in JSON,
/// percent-encoded.
///
/// A text of fewer than 8 bytes, or of lower-case letters only such as `filestorage`, is not registered: hiding it would
/// damage harmless texts.
pub fn remember(secret: &str) {
    let plain = |byte: u8| byte.is_ascii_lowercase();
    if secret.len() < SHORTEST || secret.bytes().all(plain) {
        return;
    }
    let escaped = serde_json::to_string(secret).unwrap_or_default();
    let forms = [
        secret.to_owned(),
        escaped.trim_matches('"').to_owned(),
        utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string(),
    ];
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    for form in forms {
        if !known.contains(&form) {
            known.push(form);
        }
    }
    let over = known.len().saturating_sub(KEPT);
    known.drain(..over);
}

/// Replaces every registered secret in a text; returns `None` when the text holds none.
pub(super) fn hide(text: &str) -> Option<String> {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    let mut found: Vec<&String> = known.iter().filter(|secret| text.contains(secret.as_str())).collect();
    // The longest first: when one secret is the beginning of another, the rest of the other would stay.
    found.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
    found.into_iter().fold(None, |less: Option<String>, secret| {
        Some(less.as_deref().unwrap_or(text).replace(secret.as_str(), HIDDEN))
    })
}
