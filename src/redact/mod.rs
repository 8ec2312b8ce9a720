//! The only redactor: it removes secrets from every text that the program shows.
//!
//! - [`redact`] hides secrets in a text that leaves the program: log lines, errors, answers of `doctor` and `config`,
//!   reasons in `/readyz`.
//! - [`Shape`] describes a text that stands where a path, a name or a number belongs, without repeating the text.
//! - [`urls`], [`path`] and [`word`] show those parts of a setting's value that cannot be a secret.
//! - [`remember`] registers a secret, so that it is hidden in every text, also in messages of other libraries.
//!
//! Keys, arguments and values of commands are not secrets, and stored values are never changed.

mod known;
mod pattern;
mod shape;
mod url;

use std::borrow::Cow;

pub use known::remember;
pub use shape::{Shape, is_plainly_a_path, path, word};
pub use url::urls;

/// The text that replaces a secret.
pub const HIDDEN: &str = "***";

/// Replaces the secrets in a text by [`HIDDEN`].
///
/// Hidden are the secrets that were registered with [`remember`], and texts that look like secrets: logins and queries in
/// URLs, private keys, tokens, and the members of a credentials file. A text without secrets is returned unchanged.
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

/// Returns the part of a text before its first quotation.
///
/// The message of a panic may quote a value or a secret behind this part.
#[must_use]
pub fn unquoted(text: &str) -> &str {
    text.split(['"', '\'', '`', '\n', '{', '(']).next().unwrap_or_default().trim_end_matches([' ', ':'])
}

#[cfg(test)]
mod tests;
