//! Recognizes secrets and other misplaced texts by their form.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The form of a text that stands where a path, a name or a number belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The JSON of a credentials file, plain or in base64.
    Credentials,
    /// Any other JSON.
    Json,
    /// A PEM block.
    Pem,
    /// A URL.
    Url,
    /// A user and a password before a host, as in a URL without its scheme.
    Login,
    /// A JSON Web Token.
    Token,
    /// A key or token in base64 or hexadecimal digits.
    Key,
    /// More than one line.
    Lines,
}

impl fmt::Display for Shape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Credentials => "a key file's JSON",
            Self::Json => "JSON",
            Self::Pem => "the text of a PEM file",
            Self::Url => "a URL",
            Self::Login => "a login",
            Self::Token => "a token",
            Self::Key => "what looks like a key",
            Self::Lines => "text of several lines",
        })
    }
}

impl Shape {
    /// Recognizes the form of a text; returns `None` for a text that may be a path or a name.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        let text = text.trim().trim_matches(['"', '\'']).trim_start();
        let credentials = ["private_key", "client_secret", "refresh_token", "service_account", "external_account"];
        if text.starts_with('{') || ["[{", "[\""].iter().any(|begin| text.starts_with(begin)) {
            let is_key = credentials.iter().any(|name| text.contains(name));
            return Some(if is_key { Self::Credentials } else { Self::Json });
        }
        if text.contains("-----BEGIN") || text.contains("-----END") {
            return Some(Self::Pem);
        }
        if text.contains('\n') {
            return Some(Self::Lines);
        }
        let is_scheme = |scheme: &str| scheme.starts_with(|first: char| first.is_ascii_alphabetic());
        if text.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme) && !scheme.contains('/')) {
            return Some(Self::Url);
        }
        let login =
            text.split_once('@').filter(|_| !text.starts_with(['/', '.'])).and_then(|(it, _)| it.split_once(':'));
        if login.is_some_and(|(_, password)| !password.is_empty()) && !text.contains(' ') {
            return Some(Self::Login);
        }
        // These are `{"` and `{` before a line break, in base64.
        if text.len() >= 32 && ["eyJ", "ewo", "ewog", "ewoJ"].iter().any(|begin| text.starts_with(begin)) {
            return Some(if text.contains('.') { Self::Token } else { Self::Credentials });
        }
        is_key(text).then_some(Self::Key)
    }
}

/// Tells whether a text looks like a key or token: long, of base64 or hexadecimal digits, and not made of words.
fn is_key(text: &str) -> bool {
    let has = |is: fn(&u8) -> bool| text.bytes().any(|byte| is(&byte));
    let only = |others: &[u8]| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || others.contains(&byte));
    let mixed = has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_digit);
    // Names are words with separators between them; a key has a long run without a separator.
    let run = || text.split(['+', '/', '_', '-']).map(str::len).max().unwrap_or_default() >= 16;
    match text.len() {
        // Padding: only base64 ends like this.
        20.. if text.ends_with('=') && only(b"+/=_-") => {
            STANDARD.decode(text.replace('-', "+").replace('_', "/")).is_ok()
        }
        32.. if text.bytes().all(|byte| byte.is_ascii_hexdigit()) => has(u8::is_ascii_digit),
        32.. if !text.starts_with('/') => mixed && only(b"+/_-") && run(),
        _ => false,
    }
}

/// Shows a refused word in quotes, or names its form when the word may hold a secret.
#[must_use]
pub fn word(text: &str) -> String {
    match Shape::of(text) {
        Some(shape) => format!("({shape}, not repeated)"),
        None if text.contains(['@', '?']) => "(a text with a login or a query, not repeated)".to_owned(),
        None => format!("{text:?}"),
    }
}

/// Shows a path, or names the form of a text that is not a path and may be a secret.
///
/// A word without a slash or a dot is shown only when a file of that name exists.
#[must_use]
pub fn path(path: &Path) -> String {
    let text = path.to_string_lossy();
    match Shape::of(&text) {
        Some(shape) => format!("({shape}, not repeated)"),
        None if is_plainly_a_path(path) => text.into_owned(),
        None => "(a word that is no file, not repeated)".to_owned(),
    }
}

/// Tells whether a text is certainly a path: it holds a slash or a dot, or a file of this name exists.
#[must_use]
pub fn is_plainly_a_path(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().iter().any(|byte| matches!(byte, b'/' | b'.')) || path.exists()
}
