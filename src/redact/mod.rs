//! The one redactor: what is shown to anybody passes through here, and secrets do not come out.
//!
//! - [`redact`] is for text on its way out: log lines, errors, answers of `doctor` and `config`, reasons in `/readyz`.
//! - [`Shape`] tells what somebody put where a path, a name or a number belongs, without repeating it.
//! - [`urls`], [`path`] and [`word`] show a setting's value as far as it can be no secret.
//! - [`remember`] makes a secret known, so that it is hidden wherever it turns up, in foreign libraries' words, too.
//!
//! Keys, arguments and values of commands are no secrets, and what is stored is never changed.

mod known;
mod pattern;
mod shape;
mod url;

use std::borrow::Cow;

pub use known::remember;
pub use shape::{Shape, is_plainly_a_path, path, word};
pub use url::urls;

/// What stands in the place of a secret.
pub const HIDDEN: &str = "***";

/// Hides what is known for a secret, or looks like one: logins and queries in URLs, private keys, tokens, and the members
/// of a credentials file. Text without any is returned as it is.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut shown = Cow::Borrowed(text);
    for hide in [known::hide, pattern::blocks, pattern::members, pattern::tokens, url::hide] {
        if let Some(less) = hide(&shown) {
            shown = Cow::Owned(less);
        }
    }
    shown
}

/// Returns what a text says before it quotes anything; panics quote what was at hand, which may be a value or a secret.
#[must_use]
pub fn unquoted(text: &str) -> &str {
    text.split(['"', '\'', '`', '\n', '{', '(']).next().unwrap_or_default().trim_end_matches([' ', ':'])
}

#[cfg(test)]
mod tests;
