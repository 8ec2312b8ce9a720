//! From a message to a call, on the loop where it is small and off it where it is not.

use crate::celery::body;
use crate::celery::message::{Message, Origin};
use crate::celery::read;
use crate::celery::reply::Extended;
use crate::celery::request::{self, ReadOptions, TaskRequest, Unreadable};
use crate::celery::scan::{self, Found, Scan, Sought};
use crate::commands::{
    Command, CommandError, CommandTable, Definition, Held, Key, KeyArgument, KeyPlaces, KeyUse, Keys,
};

/// Bytes of a text up to which it is read at once; what is larger is read when its turn comes.
pub(in crate::worker) const SMALL: usize = 64 * 1024;
/// Bytes of memory that one value of a JSON tree takes beside its text, on average.
const VALUE: u64 = 56;
/// Values at most, see [`crate::json::ParseLimits`].
const MOST_VALUES: u64 = 4_000_000;

/// Reads deliveries.
#[derive(Clone, Debug)]
pub(in crate::worker) struct MessageReader {
    options: ReadOptions,
    /// The worker's name, where replies repeat arguments.
    extended: Option<String>,
    commands: CommandTable,
}

/// A message that is a task.
#[derive(Debug)]
pub(in crate::worker) struct OpenedMessage {
    /// Without its arguments.
    pub(in crate::worker) request: TaskRequest,
    pub(in crate::worker) extended: Option<Extended>,
    pub(in crate::worker) call: TaskCall,
}

/// What is to be run.
#[derive(Debug)]
pub(in crate::worker) enum TaskCall {
    /// No task of ours.
    Unknown,
    /// It was read, or its arguments were refused.
    Read(Result<Box<dyn Command>, CommandError>),
    /// It is read when its turn comes.
    Later,
}

/// How a message is to be taken in.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::worker) enum Size {
    /// It is read at once and takes so many bytes then.
    Small(u64),
    /// It is read when its turn comes; it is ordered by these keys.
    Large(Keys),
    /// It is read when its turn comes, and its keys are not within its beginning: the whole message is searched for them first.
    Hidden,
    /// It is read before anything behind it: what has to be known of it stands in its body, or its keys are not found without that.
    Old,
}

/// What came of reading a large message.
#[derive(Debug)]
pub(in crate::worker) enum Reading {
    Done(Box<Result<OpenedMessage, Unreadable>>),
    /// The text is there, and its values need so many bytes more than were reserved.
    Short(Option<Vec<u8>>, u64),
}

impl MessageReader {
    pub(in crate::worker) const fn new(options: ReadOptions, extended: Option<String>, commands: CommandTable) -> Self {
        Self { options, extended, commands }
    }

    /// Reads a message whole.
    pub(in crate::worker) fn open(&self, message: &Message, origin: &Origin) -> Result<OpenedMessage, Unreadable> {
        Ok(self.opened(read::read(message, &self.options)?, origin))
    }

    /// Reads its headers only; `None` where they say nothing.
    pub(in crate::worker) fn outline(&self, message: &Message) -> Option<Result<OpenedMessage, Unreadable>> {
        let request = read::outline(message, &self.options)?;
        Some(request.map(|request| {
            let call = if self.commands.find(&request.task).is_some() { TaskCall::Later } else { TaskCall::Unknown };
            OpenedMessage { request, extended: None, call }
        }))
    }

    fn opened(&self, mut request: TaskRequest, origin: &Origin) -> OpenedMessage {
        let extended = self.extended.as_deref().map(|worker| Extended::of(&request, origin, worker));
        let (args, kwargs) = (std::mem::take(&mut request.args), std::mem::take(&mut request.kwargs));
        let definition = self.commands.find(&request.task);
        let call = definition.map_or(TaskCall::Unknown, |definition| TaskCall::Read(definition.parse(args, kwargs)));
        OpenedMessage { request, extended, call }
    }

    /// Tells how a message is to be taken in, by its beginning.
    pub(in crate::worker) fn size(&self, message: &Message) -> Size {
        let is_compressed = body::is_compressed(message);
        if !is_compressed && message.body.len() <= SMALL {
            return Size::Small(if body::is_json(message) {
                cost(&message.body)
            } else {
                // Each byte of another serializer may be a value.
                (2 + VALUE) * message.body.len() as u64
            });
        }
        let beginning = body::peek(message, SMALL);
        if let Some(beginning) = beginning.as_ref().filter(|beginning| beginning.is_whole) {
            return Size::Small(cost(&beginning.text) + beginning.text.len() as u64);
        }
        self.large(message, beginning.as_ref().map(|beginning| &*beginning.text))
    }

    /// Tells by what a message is ordered that is not read at once.
    pub(in crate::worker) fn large(&self, message: &Message, beginning: Option<&[u8]>) -> Size {
        let Some(Ok(outline)) = self.outline(message) else {
            return if message.headers.get("task").is_some() { Size::Large(Keys::None) } else { Size::Old };
        };
        if self.commands.find(&outline.request.task).is_none() && outline.request.group.is_some() {
            // It ends at once, and its chord is named in its body.
            return Size::Old;
        }
        match self.places(&outline.request.task) {
            KeyPlaces::Nowhere => Size::Large(Keys::None),
            KeyPlaces::Anywhere => Size::Old,
            KeyPlaces::Arguments(arguments) => {
                match Scan::new(&sought(&arguments)).push(beginning.unwrap_or_default()) {
                    Found::Texts(texts) => Size::Large(keys(texts)),
                    Found::Unread => Size::Hidden,
                    Found::TooMany => Size::Old,
                }
            }
        }
    }

    /// Searches a whole message for the keys by which it is ordered; `None` when they are told only once it is read. Takes its time.
    pub(in crate::worker) fn search(&self, message: &Message) -> Option<Keys> {
        match self.places(request::peek(message).task.unwrap_or_default()) {
            KeyPlaces::Nowhere => Some(Keys::None),
            KeyPlaces::Anywhere => None,
            KeyPlaces::Arguments(arguments) => {
                match body::search(message, &sought(&arguments), self.options.limits.max_body_bytes) {
                    Found::Texts(texts) => Some(keys(&texts)),
                    Found::Unread | Found::TooMany => None,
                }
            }
        }
    }

    fn places(&self, task: &str) -> KeyPlaces {
        self.commands.find(task).map_or(KeyPlaces::Nowhere, Definition::key_places)
    }

    /// Returns how many bytes must be reserved before a message is read, beside those of its body.
    pub(in crate::worker) fn need(&self, message: &Message, length: u64) -> u64 {
        let most = self.options.limits.max_body_bytes as u64;
        let need = match (body::is_compressed(message), body::keeps_window(message)) {
            (true, true) => 2 * most,
            (true, false) => most,
            (false, _) => 2 * length.min(most) + SMALL as u64,
        };
        // A character of one byte may have three in UTF-8.
        if body::is_utf8(message) { need } else { 4 * need }
    }

    /// Reads a large message within what was reserved. Takes its time.
    pub(in crate::worker) fn read_within(
        &self,
        message: &Message,
        origin: &Origin,
        text: Option<Vec<u8>>,
        held: &mut Held,
    ) -> Reading {
        let text = match text {
            Some(text) => std::borrow::Cow::Owned(text),
            None => match read::text(message, &self.options) {
                Ok(text) => text,
                Err(unreadable) => return Reading::Done(Box::new(Err(unreadable))),
            },
        };
        let owned = if matches!(text, std::borrow::Cow::Owned(_)) { text.len() as u64 } else { 0 };
        let need = cost(&text) + owned;
        if !held.try_grow(need) {
            let text = if owned > 0 { Some(text.into_owned()) } else { None };
            return Reading::Short(text, need);
        }
        let read = read::read_text(message, &text, &self.options);
        let length = text.len() as u64;
        drop(text);
        let opened = read.map(|request| self.opened(request, origin));
        // What is left is the value, and what is made of it.
        held.shrink(2 * length);
        Reading::Done(Box::new(opened))
    }
}

/// Names to the search the arguments that hold keys.
fn sought(arguments: &[KeyArgument]) -> Vec<Sought> {
    arguments.iter().map(|&KeyArgument { position, name, is_list }| Sought { position, name, is_list }).collect()
}

/// Gathers the keys among texts; what is no key is none that others could name. Until the command is read, each may be written.
fn keys(texts: &[String]) -> Keys {
    let keys: Vec<KeyUse> = texts.iter().filter_map(|text| Key::parse(text).ok()).map(KeyUse::write).collect();
    Keys::of(&keys)
}

/// Returns how many bytes a text's values may take, and what is made of them.
fn cost(text: &[u8]) -> u64 {
    2 * text.len() as u64 + VALUE * (scan::values(text) as u64).min(MOST_VALUES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::celery::message::{Field, Properties};
    use crate::commands::{Arguments, CallSignature, Parameter, ParameterKind};

    static LISTED: Definition = Definition {
        task: "test.listed",
        operation: None,
        signature: CallSignature {
            function: "listed",
            required: &[
                Parameter::new("into", ParameterKind::Key, ""),
                Parameter::new("keys", ParameterKind::Keys, ""),
            ],
            optional: &[Parameter::new("other", ParameterKind::Key, "")],
            keyword_only: &[Parameter::new("last", ParameterKind::Key, "")],
        },
        less: "",
        walks: false,
        result: || serde_json::Value::Null,
        parse: |_: Arguments| Err(CommandError::type_error("it is not run")),
    };

    static TABLE: &[&Definition] = &[&LISTED];

    fn message(body: &str) -> Message {
        let headers = [("task", "test.listed"), ("id", "1")];
        Message {
            headers: headers.map(|(name, text)| (name.to_owned(), Field::from(text))).into_iter().collect(),
            properties: Properties {
                content_type: Some("application/json".into()),
                content_encoding: Some("utf-8".into()),
                ..Properties::default()
            },
            body: body.to_owned().into(),
        }
    }

    fn all(names: &[&str]) -> Keys {
        keys(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_large_call_is_ordered_by_all_keys_it_names() {
        let reader = MessageReader::new(ReadOptions::default(), None, CommandTable(TABLE));
        let value = "x".repeat(SMALL);
        let size = |body: &str| reader.size(&message(body));
        assert!(matches!(size(r#"[["a", ["b"]], {}, {}]"#), Size::Small(_)));
        let early =
            format!(r#"[["a", ["b", "c", "b", "no//key"]], {{"last": "d", "other": "a", "v": "{value}"}}, {{}}]"#);
        assert_eq!(size(&early), Size::Large(all(&["a", "b", "c", "d"])), "each once, and what is no key is none");
        let late = format!(r#"[["a", ["b"]], {{"v": "{value}", "other": "c"}}, {{}}]"#);
        assert_eq!(size(&late), Size::Hidden, "more may come behind the value");
        assert_eq!(reader.search(&message(&late)), Some(all(&["a", "b", "c"])));
        let many = vec!["\"k\""; 200_000].join(",");
        let many = message(&format!(r#"[["a", [{many}]], {{}}, {{}}]"#));
        assert_eq!(reader.size(&many), Size::Hidden);
        assert_eq!(
            reader.search(&many),
            None,
            "so many are not gathered beside the body: it is read before what came behind it"
        );
        let mut unknown = message(&early);
        unknown.headers.set("task", "test.unknown".into());
        assert_eq!((reader.size(&unknown), reader.search(&unknown)), (Size::Large(Keys::None), Some(Keys::None)));
    }
}
