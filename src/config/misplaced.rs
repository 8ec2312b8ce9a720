//! Recognizes values that stand in the wrong setting, and describes them without repeating them.

use std::path::Path;

use super::SettingKind;
use super::kind::Raw;
use crate::redact::{self, Shape};

/// Describes a value that stands in the place of a path, a name or a word; returns `None` for an acceptable value.
pub(super) fn find(kind: SettingKind, raw: &Raw) -> Option<String> {
    let items = match raw {
        Raw::Text(text) => std::slice::from_ref(text),
        Raw::List(items) => items,
    };
    items.iter().find_map(|item| match kind {
        SettingKind::Path => Shape::of(item).map(|shape| format!("holds {shape}, not the path of a folder")),
        SettingKind::Paths => Shape::of(item).map(|shape| format!("holds {shape}, not paths of folders")),
        SettingKind::Emulator => Shape::of(item)
            .filter(|shape| *shape != Shape::Url)
            .map(|shape| format!("holds {shape}, not {}", kind.allowed())),
        SettingKind::File => file(item, "its path"),
        SettingKind::Text | SettingKind::Name | SettingKind::Queue | SettingKind::Queues => {
            // People use digests and random words as names.
            let is_word = item.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
            // A queue may have any name.
            let is_queue = matches!(kind, SettingKind::Queue | SettingKind::Queues);
            let shape = Shape::of(item).filter(|shape| match shape {
                Shape::Key => !is_word,
                Shape::Login => !is_queue,
                _ => true,
            })?;
            Some(format!("holds {shape}, not {}", kind.allowed()))
        }
        _ => None,
    })
}

/// Describes a text that stands in the place of a file's path, and says what to write; returns `None` for a path.
///
/// `wanted` says what the text should be, for the message.
pub(super) fn file(text: &str, wanted: &str) -> Option<String> {
    const REMEDY: &str = "write it to a file that only this user can read, and give the path of that file";
    match Shape::of(text) {
        // A file may have any name.
        _ if text.len() < 255 && Path::new(text).exists() => None,
        Some(Shape::Url) => Some(format!("holds a URL, not {wanted}; give the path of a file on this machine")),
        Some(shape) => Some(format!("holds {shape}, not {wanted}; {REMEDY}")),
        None if !redact::is_plainly_a_path(Path::new(text)) => {
            Some(format!("holds a word that is not a file on this machine, not {wanted}; {REMEDY}"))
        }
        None => None,
    }
}

/// Returns the text of a refused value when it is a number, which is not a secret.
pub(super) fn show(kind: SettingKind, raw: &Raw) -> Option<String> {
    match (kind, raw) {
        (SettingKind::Integer { .. } | SettingKind::Seconds { .. } | SettingKind::Pause { .. }, Raw::Text(text))
            if text.len() < 24 =>
        {
            text.trim().parse::<f64>().ok().filter(|number| number.is_finite()).map(|_| text.clone())
        }
        _ => None,
    }
}

/// Finds the known word that is most similar to an unknown one.
pub(super) fn meant<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    let score = |word: &str| strsim::jaro_winkler(&text.trim().to_ascii_lowercase(), &word.to_ascii_lowercase());
    words
        .iter()
        .map(|&word| (score(word), word))
        .filter(|(score, _)| *score >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, word)| word)
}
