//! What a text is, told by how it looks.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What a text looks like that stands where a path, a name or a number belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The JSON of a credentials file, or that in base64.
    Credentials,
    /// Some other JSON.
    Json,
    /// A PEM block.
    Pem,
    /// A URL.
    Url,
    /// A user and a password before a place, as in a URL without its scheme.
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
    /// Tells what a text looks like; none for what may well be a path or a name.
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
        // `{"` and `{` with a line behind it, in base64.
        if text.len() >= 32 && ["eyJ", "ewo", "ewog", "ewoJ"].iter().any(|begin| text.starts_with(begin)) {
            return Some(if text.contains('.') { Self::Token } else { Self::Credentials });
        }
        is_key(text).then_some(Self::Key)
    }
}

/// Tells whether a text looks like key or token: long, of the digits of base64 or hexadecimals, and no word.
fn is_key(text: &str) -> bool {
    let has = |is: fn(&u8) -> bool| text.bytes().any(|byte| is(&byte));
    let only = |others: &[u8]| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || others.contains(&byte));
    let mixed = has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_digit);
    // Names are words with something in between.
    let run = || text.split(['+', '/', '_', '-']).map(str::len).max().unwrap_or_default() >= 16;
    match text.len() {
        // Padded: nothing else looks so.
        20.. if text.ends_with('=') && only(b"+/=_-") => {
            STANDARD.decode(text.replace('-', "+").replace('_', "/")).is_ok()
        }
        32.. if text.bytes().all(|byte| byte.is_ascii_hexdigit()) => has(u8::is_ascii_digit),
        32.. if !text.starts_with('/') => mixed && only(b"+/_-") && run(),
        _ => false,
    }
}

/// Shows a refused word in quotes; what may hold a secret is named instead.
#[must_use]
pub fn word(text: &str) -> String {
    match Shape::of(text) {
        Some(shape) => format!("({shape}, not repeated)"),
        None if text.contains(['@', '?']) => "(a text with a login or a query, not repeated)".to_owned(),
        None => format!("{text:?}"),
    }
}

/// Shows a path; what looks like a secret in its place is named instead.
///
/// One word without a slash or a dot is shown only where there is a file of that name.
#[must_use]
pub fn path(path: &Path) -> String {
    let text = path.to_string_lossy();
    match Shape::of(&text) {
        Some(shape) => format!("({shape}, not repeated)"),
        None if is_plainly_a_path(path) => text.into_owned(),
        None => "(a word that is no file, not repeated)".to_owned(),
    }
}

/// Tells a path from a word that may be anything.
#[must_use]
pub fn is_plainly_a_path(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().iter().any(|byte| matches!(byte, b'/' | b'.')) || path.exists()
}
