//! Copies that fit the one frame their headers travel in.

use super::message::{Field, Message, Properties};

/// Longest name of AMQP, in bytes.
const MAX_NAME: usize = 255;
/// Bytes of the text that says what was cut.
const MAX_CUT: usize = 512;
/// What Celery needs to run a task whose copy is published again; cut only when nothing else is left.
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

/// What of a message may not be cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ours<'a> {
    /// Our own headers.
    pub(super) names: &'a [&'a str],
    /// The one among them that may be shortened, once nothing foreign is left.
    pub(super) text: &'a str,
    /// The one that says what was cut; set only then.
    pub(super) cut: &'a str,
}

/// Cuts foreign headers until properties and headers fit a frame of `frame_max` bytes: the largest first, what Celery needs
/// last, then properties that say nothing of the body. Always cut are names that AMQP cannot carry.
///
/// Of a `frame_max` of 4096, the least that AMQP knows, our own headers take less.
pub(super) fn fit(message: &mut Message, frame_max: usize, ours: Ours<'_>) {
    let mut size = message.header_frame();
    let unnameable = message.headers.iter().any(|(name, _)| name.len() > MAX_NAME);
    if size <= frame_max && !unnameable {
        return;
    }
    // The header that says what was cut takes its place from the beginning.
    let room = frame_max.saturating_sub(1 + ours.cut.len() + 5 + MAX_CUT);
    let mut foreign: Vec<(String, usize)> = message
        .headers
        .iter()
        .filter(|(name, _)| !ours.names.contains(name) || name.len() > MAX_NAME)
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
        && let Some(Field::Text(text)) = message.headers.get(ours.text)
    {
        let kept = text.floor_char_boundary(text.len().saturating_sub(size - room));
        size -= text.len() - kept;
        let text = text[..kept].to_owned();
        message.headers.set(ours.text, text.into());
    }
    if size > room {
        cut.extend(cut_properties(&mut message.properties, size - room));
    }
    message.headers.set(ours.cut, said(&cut).into());
}

/// Cuts properties, the largest first, until so many bytes are gone; returns what they are called.
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

/// Names what was cut, as far as it fits.
fn said(cut: &[String]) -> String {
    const MORE: usize = 40;
    let mut text = String::new();
    for (place, name) in cut.iter().enumerate() {
        let gap = if place == 0 { "" } else { ", " };
        if text.len() + gap.len() + name.len() + MORE > MAX_CUT {
            let more = cut.len() - place;
            let shown = &name[..name.floor_char_boundary(MAX_CUT.saturating_sub(text.len() + gap.len() + MORE))];
            text.push_str(gap);
            text.push_str(shown);
            text.push_str(&format!("… ({} in all)", more + place));
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

    const OURS: Ours<'_> = Ours {
        names: &[
            "x-ours-reason",
            "x-ours-exception",
            "x-ours-with-a-name-that-is-longer-than-any-that-there-is-one",
            "x-ours-with-a-name-that-is-longer-than-any-that-there-is-two",
            "x-ours-with-a-name-that-is-longer-than-any-that-there-is-three",
            "x-ours-with-a-name-that-is-longer-than-any-that-there-is-four",
            "x-ours-with-a-name-that-is-longer-than-any-that-there-is-five",
            "x-ours-with-a-name-that-is-longer-than-any-that-there-is-six",
        ],
        text: "x-ours-exception",
        cut: "x-ours-cut",
    };

    fn message(headers: Vec<(String, Field)>) -> Message {
        let mut headers: Headers = headers.into_iter().collect();
        headers.set("x-ours-reason", "not-registered".into());
        headers.set("x-ours-exception", "e".repeat(1000).into());
        Message { headers, ..Message::default() }
    }

    fn fitted(mut message: Message, frame_max: usize) -> Message {
        fit(&mut message, frame_max, OURS);
        assert!(message.header_frame() <= frame_max, "{} in {frame_max}", message.header_frame());
        assert_eq!(message.headers.text("x-ours-reason"), Some("not-registered"));
        message
    }

    #[test]
    fn what_fits_stays_as_it_is_to_the_byte() {
        let original = message(vec![("x".to_owned(), "y".repeat(5000).into())]);
        assert_eq!(fitted(original.clone(), original.header_frame()), original);
        let cut = fitted(original.clone(), original.header_frame() - 1);
        assert_eq!((cut.headers.get("x"), cut.headers.text("x-ours-cut")), (None, Some("x")));
    }

    #[test]
    fn the_largest_goes_first_and_what_a_replay_needs_last() {
        let headers = vec![
            ("task".to_owned(), "t".repeat(3000).into()),
            ("small".to_owned(), "s".into()),
            ("middle".to_owned(), "m".repeat(1000).into()),
            ("large".to_owned(), Field::List(vec!["l".repeat(60_000).into(); 2])),
        ];
        let cut = fitted(message(headers.clone()), 131_072 - 4_000);
        assert!(cut.headers.text("x-ours-cut").is_none());
        let cut = fitted(message(headers.clone()), 100_000);
        assert_eq!(cut.headers.text("x-ours-cut"), Some("large"));
        assert!(cut.headers.get("middle").is_some() && cut.headers.get("task").is_some());
        let cut = fitted(message(headers.clone()), 4900);
        assert_eq!(cut.headers.text("x-ours-cut"), Some("large, middle"));
        let cut = fitted(message(headers), 4096);
        assert_eq!(cut.headers.text("x-ours-cut"), Some("large, middle, small, task"));
        assert_eq!(cut.headers.text("x-ours-exception").map(str::len), Some(1000));
    }

    #[test]
    fn many_and_long_names_are_named_as_far_as_there_is_room() {
        let many = (0..10_000).map(|n| (format!("x-{n:06}-{}", "é".repeat(120)), Field::Int(n))).collect();
        let cut = fitted(message(many), 131_072);
        let said = cut.headers.text("x-ours-cut").unwrap();
        assert!(said.len() <= MAX_CUT && said.starts_with("x-000000-é") && said.contains(" in all)"), "{said}");
        assert!(cut.headers.len() > 400, "{}", cut.headers.len());
        // A name that grew beyond what AMQP carries is cut although there is room.
        let cut = fitted(message(vec![("n".repeat(256), Field::Void), ("x".to_owned(), Field::Void)]), 131_072);
        assert!(cut.headers.get("x").is_some() && cut.headers.text("x-ours-cut").unwrap().starts_with("nnn"));
    }

    #[test]
    fn in_the_least_frame_fits_what_is_ours_whatever_came() {
        let text = || Some("p".repeat(255));
        let mut largest = message(vec![("task".to_owned(), "t".repeat(200_000).into())]);
        largest.headers.set("x-ours-exception", "\u{10ffff}".repeat(1024).into());
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
        assert!(cut.headers.text("x-ours-cut").unwrap().contains("task, the property"));
    }
}
