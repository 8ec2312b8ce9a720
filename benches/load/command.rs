//! The Celery task messages that are sent, prebuilt once and only numbered afterwards.

use crate::amqp::{Payload, publish_frames};

/// Stands in the prebuilt frames wherever the number of the command belongs; as long as a number in hexadecimal.
const PLACEHOLDER: &str = "__NUMBER____";

/// Most characters of a value in the header that describes the arguments.
const SHOWN: usize = 1_000;

/// What the commands of one run do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Store,
    StoreMany,
    Retrieve,
    Delete,
}

/// The frames of one command, as a Celery 5.7 producer would send them.
pub(crate) struct Template {
    frames: Vec<u8>,
    places: Vec<usize>,
    value: String,
    id_prefix: String,
}

impl Template {
    /// Prebuilds the frames; `size` is the length of the value, `run` makes the task ids of this run unique.
    pub(crate) fn new(
        operation: Operation,
        queue: &str,
        reply_to: &str,
        size: usize,
        with_metadata: bool,
        run: u32,
        items: usize,
    ) -> Self {
        let id_prefix = format!("{run:08x}-0000-4000-8000-");
        let id = format!("{id_prefix}{PLACEHOLDER}");
        let key = format!("bench/{PLACEHOLDER}");
        let value = value(size);
        let (name, arguments, repr) = match operation {
            Operation::Store => {
                // Celery cuts what it shows of the arguments.
                let shown = if size > SHOWN { format!("{}...", &value[..SHOWN]) } else { value.clone() };
                let metadata = if with_metadata { r#", {"n": 1}"# } else { "" };
                let arguments = format!(r#"["{key}", "{value}"{metadata}]"#);
                ("filestorage.store", arguments, format!("('{key}', '{shown}'{metadata})"))
            }
            Operation::StoreMany => {
                let item = |number| format!(r#"["{key}/{number}", "{value}"]"#);
                let items: Vec<String> = (0..items).map(item).collect();
                ("filestorage.store_many", format!("[[{}]]", items.join(", ")), "([...],)".to_owned())
            }
            Operation::Retrieve => ("filestorage.retrieve", format!(r#"["{key}"]"#), format!("('{key}',)")),
            Operation::Delete => ("filestorage.delete", format!(r#"["{key}"]"#), format!("('{key}',)")),
        };
        let body =
            format!(r#"[{arguments}, {{}}, {{"callbacks": null, "errbacks": null, "chain": null, "chord": null}}]"#);

        let text = |entries: Payload, name: &str, value: &str| entries.short_text(name).octet(b'S').long_text(value);
        let void = |entries: Payload, name: &str| entries.short_text(name).octet(b'V');
        let mut headers = text(Payload::default(), "lang", "py");
        headers = text(headers, "task", name);
        headers = text(headers, "id", &id);
        for name in ["shadow", "eta", "expires", "group", "group_index", "parent_id", "stamped_headers"] {
            headers = void(headers, name);
        }
        headers = headers.short_text("retries").octet(b'I').long(0);
        headers = headers.short_text("timelimit").octet(b'A').long(2).octet(b'V').octet(b'V');
        headers = text(headers, "root_id", &id);
        headers = text(headers, "argsrepr", &repr);
        headers = text(headers, "kwargsrepr", "{}");
        headers = text(headers, "origin", "gen1@load");
        headers = headers.short_text("ignore_result").octet(b't').octet(0);
        headers = headers.short_text("replaced_task_nesting").octet(b'I').long(0);
        headers = headers.short_text("stamps").octet(b'F').table(&Payload::default());

        // Content type and encoding, headers, delivery mode, priority, correlation id, reply-to.
        let properties = Payload::default()
            .short(0b1111_1110_0000_0000)
            .short_text("application/json")
            .short_text("utf-8")
            .table(&headers)
            .octet(2)
            .octet(0)
            .short_text(&id)
            .short_text(reply_to);
        let frames = publish_frames(queue, properties, body.as_bytes());
        let places = frames
            .windows(PLACEHOLDER.len())
            .enumerate()
            .filter(|(_, window)| *window == PLACEHOLDER.as_bytes())
            .map(|(place, _)| place)
            .collect();
        Self { frames, places, value, id_prefix }
    }

    /// Appends the frames of one command.
    pub(crate) fn append(&self, number: usize, out: &mut Vec<u8>) {
        let start = out.len();
        let digits = digits(number);
        out.extend(&self.frames);
        for place in &self.places {
            out[start + place..start + place + digits.len()].copy_from_slice(&digits);
        }
    }

    /// The number of the command that a correlation id of this run names.
    pub(crate) fn number(&self, correlation_id: &[u8]) -> Option<usize> {
        let digits = correlation_id.strip_prefix(self.id_prefix.as_bytes())?;
        usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    }

    /// Whether a reply to `retrieve` holds the value that `store` of the same number sent.
    pub(crate) fn holds_value(&self, number: usize, body: &[u8]) -> bool {
        let filling = &self.value.as_bytes()[PLACEHOLDER.len()..];
        let digits = digits(number);
        // The number occurs in the task id as well, so each place is looked at.
        (0..body.len().saturating_sub(self.value.len() - 1))
            .any(|at| body[at..].starts_with(&digits) && body[at + digits.len()..].starts_with(filling))
    }
}

/// Whether an item of a command of many has failed.
pub(crate) fn has_failed_item(body: &[u8]) -> bool {
    let failed = br#""ok": false"#;
    body.windows(failed.len()).any(|window| window == failed)
}

/// Whether the result message says `SUCCESS`; a quoted `"status"` inside a JSON string is escaped, so the first is it.
pub(crate) fn is_success(body: &[u8]) -> bool {
    let name = br#""status""#;
    let Some(at) = body.windows(name.len()).position(|window| window == name) else {
        return false;
    };
    let value = body[at + name.len()..].trim_ascii_start();
    value.strip_prefix(b":").is_some_and(|value| value.trim_ascii_start().starts_with(br#""SUCCESS""#))
}

fn value(size: usize) -> String {
    let letters = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    // A fixed linear congruence: text that does not compress to nothing and is the same in each run.
    let mut state = 1_u32;
    let filling = (PLACEHOLDER.len()..size).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(letters[(state >> 16) as usize % letters.len()])
    });
    PLACEHOLDER.chars().chain(filling).collect()
}

fn digits(number: usize) -> [u8; PLACEHOLDER.len()] {
    let mut digits = [b'0'; PLACEHOLDER.len()];
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[rest % 16];
        rest /= 16;
    }
    digits
}
