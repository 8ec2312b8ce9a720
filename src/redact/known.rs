//! Secrets that were read: passwords, keys, tokens.

use std::sync::{PoisonError, RwLock};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::HIDDEN;

/// Shortest text that is hidden wherever it stands; a shorter one would be found in words that are none.
const SHORTEST: usize = 8;

/// Most forms that are kept: the oldest are those of secrets that were replaced since.
const KEPT: usize = 256;

static KNOWN: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// Makes a secret known to the redactor, in every form in which it may be written: as it is, escaped, percent-encoded.
///
/// What is short, or one plain word as `filestorage`, is not kept: hiding it would garble what is no secret.
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

/// Hides every secret that is known; none when there is none in the text.
pub(super) fn hide(text: &str) -> Option<String> {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    let mut found: Vec<&String> = known.iter().filter(|secret| text.contains(secret.as_str())).collect();
    // Of two secrets the one may begin the other, and the rest of that would stay.
    found.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
    found.into_iter().fold(None, |less: Option<String>, secret| {
        Some(less.as_deref().unwrap_or(text).replace(secret.as_str(), HIDDEN))
    })
}
