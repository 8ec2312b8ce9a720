//! Removes typed words from the errors of the parser of the command line, since a typed word may be a secret.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::redact::HIDDEN;

/// The longest word that counts as the name of a flag, in bytes.
const LONGEST: usize = 32;

/// Hides values and words that are not flags in an error; flags, suggestions and usage stay.
pub(in crate::cli) fn unquoted(mut refusal: clap::Error) -> clap::Error {
    let hidden = || ContextValue::String(HIDDEN.to_owned());
    for kind in [ContextKind::InvalidValue, ContextKind::InvalidSubcommand, ContextKind::TrailingArg] {
        // An empty text means that the value of a flag is missing.
        if matches!(refusal.get(kind), Some(ContextValue::String(text)) if !text.is_empty()) {
            refusal.insert(kind, hidden());
        }
    }
    let own = refusal.kind() != ErrorKind::UnknownArgument;
    if let Some(ContextValue::String(text)) = refusal.get(ContextKind::InvalidArg)
        && !own
        && !is_flag(text)
    {
        refusal.insert(ContextKind::InvalidArg, hidden());
        // The suggestion repeats the word after `--`.
        refusal.remove(ContextKind::Suggested);
    }
    refusal
}

/// Tells whether a word has the form of a flag, perhaps with a mistake.
fn is_flag(text: &str) -> bool {
    let name = text.trim_start_matches('-');
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    text.starts_with('-') && plain && name.len() <= LONGEST
}
