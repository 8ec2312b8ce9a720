//! Cuts the headers of a copy so that they fit into one frame.

use super::message::{Field, Message, Properties};

/// The longest name of a header in AMQP, in bytes.
const MAX_NAME: usize = 255;
/// The longest text that says what was cut, in bytes.
const MAX_CUT: usize = 512;
/// The headers that Celery needs to run a task whose copy is published again; they are cut last.
const NEEDED: [&str; 14] = [
    "task",
    "id",
    "lang",
    "root_id",
    "parent_id",
    "group",
    "group_index",
    "eta",
    "expires",
    "retries",
    "timelimit",
    "ignore_result",
    "stamped_headers",
    "stamps",
];

/// The headers that this program adds to a copy, which are not cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct AddedHeaders<'a> {
    /// The names of all added headers.
    pub(super) names: &'a [&'a str],
    /// The name of the added header that is shortened when no other header is left to cut.
    pub(super) text: &'a str,
    /// The name of the header that says what was cut; it is set only when something was cut.
    pub(super) cut: &'a str,
}

/// Cuts headers until properties and headers of a copy fit into a frame of `frame_max` bytes.
///
/// Headers with names that AMQP cannot carry are always cut. Then the largest headers are cut first, those that Celery needs
/// last, and at the end the properties that do not describe the body. The added headers alone fit into the smallest
/// `frame_max` of AMQP, which is 4096 bytes.
pub(super) fn fit(message: &mut Message, frame_max: usize, added: AddedHeaders<'_>) {
    let mut size = message.header_frame();
    let unnameable = message.headers.iter().any(|(name, _)| name.len() > MAX_NAME);
    if size <= frame_max && !unnameable {
        return;
    }
    // Space for the header that says what was cut is reserved from the beginning.
    let room = frame_max.saturating_sub(1 + added.cut.len() + 5 + MAX_CUT);
    let mut foreign: Vec<(String, usize)> = message
        .headers
        .iter()
        .filter(|(name, _)| !added.names.contains(name) || name.len() > MAX_NAME)
        .map(|(name, field)| (name.to_owned(), 1 + name.len() + field.size()))
        .collect();
    foreign.sort_by_key(|(name, size)| {
        (name.len() <= MAX_NAME, NEEDED.contains(&name.as_str()), std::cmp::Reverse(*size))
    });
    let mut cut: Vec<String> = Vec::new();
    for (name, bytes) in foreign {
        if size <= room && name.len() <= MAX_NAME {
            break;
        }
        size -= bytes;
        cut.push(name);
    }
    let gone: std::collections::HashSet<&str> = cut.iter().map(String::as_str).collect();
    message.headers.retain(|name| !gone.contains(name));
    if size > room
        && let Some(Field::Text(text)) = message.headers.get(added.text)
    {
        let kept = text.floor_char_boundary(text.len().saturating_sub(size - room));
        size -= text.len() - kept;
        let text = text[..kept].to_owned();
        message.headers.set(added.text, text.into());
    }
    if size > room {
        cut.extend(cut_properties(&mut message.properties, size - room));
    }
    message.headers.set(added.cut, list_of_cuts(&cut).into());
}

/// Cuts properties, the largest first, until at least `bytes` bytes are gone; returns their names.
fn cut_properties(properties: &mut Properties, bytes: usize) -> Vec<String> {
    let mut texts = [
        ("app_id", &mut properties.app_id),
        ("type", &mut properties.kind),
        ("message_id", &mut properties.message_id),
        ("reply_to", &mut properties.reply_to),
        ("correlation_id", &mut properties.correlation_id),
    ];
    texts.sort_by_key(|(_, text)| std::cmp::Reverse(text.as_ref().map_or(0, String::len)));
    let (mut gone, mut cut) = (0, Vec::new());
    for (name, text) in texts {
        if gone >= bytes {
            break;
        }
        if let Some(text) = text.take() {
            gone += 1 + text.len();
            cut.push(format!("the property {name}"));
        }
    }
    cut
}

/// Lists the names of everything that was cut, as far as they fit into [`MAX_CUT`] bytes.
fn list_of_cuts(cut: &[String]) -> String {
    const MORE: usize = 40;
    let mut text = String::new();
    for (index, name) in cut.iter().enumerate() {
        let gap = if index == 0 { "" } else { ", " };
        if text.len() + gap.len() + name.len() + MORE > MAX_CUT {
            let shown = &name[..name.floor_char_boundary(MAX_CUT.saturating_sub(text.len() + gap.len() + MORE))];
            text.push_str(gap);
            text.push_str(shown);
            text.push_str(&format!("… ({} in all)", cut.len()));
            return text;
        }
        text.push_str(gap);
        text.push_str(name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::celery::message::Headers;

    const OURS: AddedHeaders<'_> = AddedHeaders {
        names: &[
            "x-added-reason",
            "x-added-exception",
            "x-added-with-a-name-that-is-longer-than-any-that-there-is-one",
            "x-added-with-a-name-that-is-longer-than-any-that-there-is-two",
            "x-added-with-a-name-that-is-longer-than-any-that-there-is-three",
            "x-added-with-a-name-that-is-longer-than-any-that-there-is-four",
            "x-added-with-a-name-that-is-longer-than-any-that-there-is-five",
            "x-added-with-a-name-that-is-longer-than-any-that-there-is-six",
        ],
        text: "x-added-exception",
        cut: "x-added-cut",
    };

    fn message(headers: Vec<(String, Field)>) -> Message {
        let mut headers: Headers = headers.into_iter().collect();
        headers.set("x-added-reason", "not-registered".into());
        headers.set("x-added-exception", "e".repeat(1000).into());
        Message { headers, ..Message::default() }
    }

    fn fitted(mut message: Message, frame_max: usize) -> Message {
        fit(&mut message, frame_max, OURS);
        assert!(message.header_frame() <= frame_max, "{} in {frame_max}", message.header_frame());
        assert_eq!(message.headers.text("x-added-reason"), Some("not-registered"));
        message
    }

    #[test]
    fn a_copy_that_fits_stays_unchanged() {
        let original = message(vec![("x".to_owned(), "y".repeat(5000).into())]);
        assert_eq!(fitted(original.clone(), original.header_frame()), original);
        let cut = fitted(original.clone(), original.header_frame() - 1);
        assert_eq!((cut.headers.get("x"), cut.headers.text("x-added-cut")), (None, Some("x")));
    }

    #[test]
    fn the_largest_header_goes_first_and_needed_ones_last() {
        let headers = vec![
            ("task".to_owned(), "t".repeat(3000).into()),
            ("small".to_owned(), "s".into()),
            ("middle".to_owned(), "m".repeat(1000).into()),
            ("large".to_owned(), Field::List(vec!["l".repeat(60_000).into(); 2])),
        ];
        let cut = fitted(message(headers.clone()), 131_072 - 4_000);
        assert!(cut.headers.text("x-added-cut").is_none());
        let cut = fitted(message(headers.clone()), 100_000);
        assert_eq!(cut.headers.text("x-added-cut"), Some("large"));
        assert!(cut.headers.get("middle").is_some() && cut.headers.get("task").is_some());
        let cut = fitted(message(headers.clone()), 4900);
        assert_eq!(cut.headers.text("x-added-cut"), Some("large, middle"));
        let cut = fitted(message(headers), 4096);
        assert_eq!(cut.headers.text("x-added-cut"), Some("large, middle, small, task"));
        assert_eq!(cut.headers.text("x-added-exception").map(str::len), Some(1000));
    }

    #[test]
    fn names_of_cut_headers_are_listed_as_far_as_they_fit() {
        let many = (0..10_000).map(|n| (format!("x-{n:06}-{}", "é".repeat(120)), Field::Int(n))).collect();
        let cut = fitted(message(many), 131_072);
        let said = cut.headers.text("x-added-cut").unwrap();
        assert!(said.len() <= MAX_CUT && said.starts_with("x-000000-é") && said.contains(" in all)"), "{said}");
        assert!(cut.headers.len() > 400, "{}", cut.headers.len());
        // A name that grew beyond what AMQP carries is cut although there is room.
        let cut = fitted(message(vec![("n".repeat(256), Field::Void), ("x".to_owned(), Field::Void)]), 131_072);
        assert!(cut.headers.get("x").is_some() && cut.headers.text("x-added-cut").unwrap().starts_with("nnn"));
    }

    #[test]
    fn added_headers_fit_the_smallest_frame() {
        let text = || Some("p".repeat(255));
        let mut largest = message(vec![("task".to_owned(), "t".repeat(200_000).into())]);
        largest.headers.set("x-added-exception", "\u{10ffff}".repeat(1024).into());
        for name in &OURS.names[2..] {
            largest.headers.set(*name, "v".repeat(255).into());
        }
        largest.properties = Properties {
            content_type: text(),
            content_encoding: text(),
            correlation_id: text(),
            reply_to: text(),
            message_id: text(),
            kind: text(),
            app_id: text(),
            ..Properties::default()
        };
        let cut = fitted(largest, 4096);
        assert_eq!(cut.properties.content_type, text());
        assert!(cut.headers.text("x-added-cut").unwrap().contains("task, the property"));
    }
}
