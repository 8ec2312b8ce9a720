//! What the command line's parser refuses, without what was typed: anything may be pasted there.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::redact::HIDDEN;

/// Longest name that is taken for that of a flag.
const LONGEST: usize = 32;

/// Hides values and words that are no flag; flags, what was meant, and how it is used are still said.
pub(in crate::cli) fn unquoted(mut refusal: clap::Error) -> clap::Error {
    let hidden = || ContextValue::String(HIDDEN.to_owned());
    for kind in [ContextKind::InvalidValue, ContextKind::InvalidSubcommand, ContextKind::TrailingArg] {
        // That a flag lacks its value is told by an empty one.
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
        // It repeats the word after `--`.
        refusal.remove(ContextKind::Suggested);
    }
    refusal
}

/// Tells a flag that may be mistyped from anything else.
fn is_flag(text: &str) -> bool {
    let name = text.trim_start_matches('-');
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    text.starts_with('-') && plain && name.len() <= LONGEST
}
