//! The members and bodies of chords, as Celery's backends count and join them; no I/O.

use jiff::Timestamp;

use super::canvas::{self, AfterFailure, AfterSuccess, CanvasOptions, Header};
use super::error::Exception;
use super::message::{Field, Headers, Message, Properties, Publication};
use super::reply::{ReplyTo, State};
use super::request::TaskRequest;
use super::signature::{Signature, SignatureKind};
use crate::json::{self, Json, ParseLimits, as_python, write_string};

/// The header of a part that names its group.
const GROUP: &str = "chord-group";
/// The header of a part with its index in the group.
const INDEX: &str = "chord-index";
/// The header of a part that names the first task of its workflow.
const ROOT: &str = "chord-root";
/// The header of a part with the size of the header of the chord, where it tells that.
const SIZE: &str = "chord-size";
/// The header of a part that names its task.
const TASK: &str = "chord-task";

/// The end of one member of the header of a chord, which is counted; or the size of a header, when it is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The id of the header.
    pub group: String,
    /// The index in the header.
    pub index: Option<i64>,
    /// The id of the member.
    pub task_id: String,
    /// The id of the first task of the workflow.
    root_id: Option<String>,
    /// What is counted: `[1, id, state, result]`, as Celery writes it; empty for a size.
    pub value: String,
    /// The number of members, of a header that is started.
    pub size: Option<i64>,
    /// The signature of the body, as JSON text.
    chord: String,
}

/// What the members of a header returned together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderResult {
    /// Their results as a JSON array.
    Results(String),
    /// One of them failed, or they cannot be read.
    Failed(Exception),
}

/// What the end of a header leaves to be sent.
#[derive(Clone, Debug, Default)]
pub struct AfterHeader {
    /// The body, or its errbacks.
    pub publications: Vec<Publication>,
    /// The sizes of headers that the body starts, to be told before.
    pub sizes: Vec<Part>,
    /// The failure of the body and of what would have followed it.
    pub answers: Vec<Publication>,
}

impl Part {
    /// Makes the part of a request that ended in a state; `None` for a state that is no end, and without a group.
    #[must_use]
    pub fn of(request: &TaskRequest, chord: &Json, state: &State<'_>) -> Option<Self> {
        let mut value = String::from("[1,");
        write_string(&mut value, &request.id);
        match state {
            State::Success { result, .. } => {
                value.push_str(",\"SUCCESS\",");
                value.push_str(result);
            }
            State::Failure(exception) => {
                value.push_str(",\"FAILURE\",");
                exception.write_json(&mut value);
            }
            State::Revoked(why) => {
                value.push_str(",\"REVOKED\",");
                Exception::task_revoked(why.as_str()).write_json(&mut value);
            }
            State::Started | State::Retry(_) => return None,
        }
        value.push(']');
        Some(Self {
            group: request.group.clone()?,
            index: request.group_index,
            task_id: request.id.clone(),
            root_id: request.root_id.clone(),
            value: as_python(&value),
            size: None,
            chord: chord.compact(),
        })
    }

    /// Makes the part that tells the size of a header which a request starts.
    #[must_use]
    pub fn of_header(request: &TaskRequest, header: &Header) -> Self {
        let root_id = request.root_id.as_ref().unwrap_or(&request.id);
        Self::sized(&request.id, root_id, header)
    }

    fn sized(task_id: &str, root_id: &str, header: &Header) -> Self {
        Self {
            group: header.group.clone(),
            index: None,
            task_id: task_id.to_owned(),
            root_id: Some(root_id.to_owned()),
            value: String::new(),
            size: Some(i64::try_from(header.size).unwrap_or(i64::MAX)),
            chord: header.body.compact(),
        }
    }

    /// Writes the part as a message, which may be kept in a broker until it is counted.
    #[must_use]
    pub fn to_message(&self) -> Message {
        let mut headers = Headers::default();
        headers.set(GROUP, self.group.as_str().into());
        headers.set(TASK, self.task_id.as_str().into());
        headers.set(INDEX, self.index.map_or(Field::Void, Field::Int));
        headers.set(ROOT, self.root_id.as_deref().map_or(Field::Void, Field::from));
        headers.set(SIZE, self.size.map_or(Field::Void, Field::Int));
        let properties = Properties { delivery_mode: Some(2), ..Properties::default() };
        // Neither text has a line break of its own.
        Message { properties, headers, body: format!("{}\n{}", self.value, self.chord).into() }
    }

    /// Reads a part that [`Part::to_message`] wrote.
    #[must_use]
    pub fn read(message: &Message) -> Option<Self> {
        let text = |name: &str| message.headers.text(name).map(str::to_owned);
        let (value, chord) = std::str::from_utf8(&message.body).ok()?.split_once('\n')?;
        let number = |name: &str| match message.headers.get(name) {
            Some(Field::Int(number)) => Some(*number),
            _ => None,
        };
        Some(Self {
            group: text(GROUP)?,
            index: number(INDEX),
            size: number(SIZE),
            task_id: text(TASK)?,
            root_id: text(ROOT),
            value: value.to_owned(),
            chord: chord.to_owned(),
        })
    }

    /// Composes what follows once all members are counted: the body with their results, or its failure.
    ///
    /// `answer` tells a task that it failed. The same arguments give messages with the same ids.
    #[must_use]
    pub fn ended(
        &self,
        joined: HeaderResult,
        options: &CanvasOptions,
        answer: &dyn Fn(&ReplyTo, &Exception) -> Publication,
        now: Timestamp,
    ) -> AfterHeader {
        let exception = match joined {
            HeaderResult::Failed(exception) => exception,
            HeaderResult::Results(results) => match self.body(&results, options, now) {
                Ok(AfterSuccess { publications, chords, .. }) => {
                    let root_id = self.root_id.as_ref().unwrap_or(&self.task_id);
                    let sizes = chords.iter().map(|header| Self::sized(&self.task_id, root_id, header)).collect();
                    return AfterHeader { publications, sizes, answers: Vec::new() };
                }
                Err(why) => chord_error(format!("Callback error: {why}")),
            },
        };
        let Ok(body) = self.signature() else { return AfterHeader::default() };
        self.failed(body, &exception, options, answer, now)
    }

    fn signature(&self) -> Result<Signature, String> {
        let parsed = json::parse(self.chord.as_bytes(), ParseLimits::default()).map_err(|error| error.to_string())?;
        Signature::read(parsed)
    }

    fn body(&self, results: &str, options: &CanvasOptions, now: Timestamp) -> Result<AfterSuccess, String> {
        let unreadable = |why: String| Exception::value_error(format!("the body {why}")).to_string();
        let request = TaskRequest {
            id: self.task_id.clone(),
            task: "the header of a chord".to_owned(),
            root_id: self.root_id.clone(),
            callbacks: vec![self.signature().map_err(unreadable)?],
            ..TaskRequest::default()
        };
        let after = canvas::after_success(&request, results, options, now, &mut self.ids());
        let after = after.map_err(|unsupported| unsupported.exception().to_string())?;
        match &after.withheld {
            Some(withheld) => Err(Exception::value_error(withheld.to_string()).to_string()),
            None => Ok(after),
        }
    }

    fn failed(
        &self,
        body: Signature,
        exception: &Exception,
        options: &CanvasOptions,
        answer: &dyn Fn(&ReplyTo, &Exception) -> Publication,
        now: Timestamp,
    ) -> AfterHeader {
        let list = |value: Option<&Json>| {
            value.cloned().map_or_else(Vec::new, |value| Signature::read_list(value).unwrap_or_default())
        };
        let id = body.text("task_id").map_or_else(self.ids(), str::to_owned);
        let to = ReplyTo {
            queue: body.text("reply_to").unwrap_or_default().to_owned(),
            task_id: id.clone(),
            correlation_id: id.clone(),
            group: None,
            parent_id: None,
            task: body.task.clone(),
        };
        let mut chain = list(body.option("chain"));
        let errbacks = list(body.option("link_error"));
        if body.kind != SignatureKind::Task {
            // Whoever waits for one of its tasks is told, too.
            chain.push(body.clone());
        }
        let request = TaskRequest { id, task: body.task, errbacks, chain, ..TaskRequest::default() };
        let told = |to: &ReplyTo| answer(to, exception);
        let AfterFailure { mut answers, publications, .. } =
            canvas::after_failure(&request, options, &told, now, &mut self.ids());
        answers.insert(0, answer(&to, exception));
        AfterHeader { publications, sizes: Vec::new(), answers }
    }

    /// Creates ids of tasks that have none: always the same ones for a chord.
    fn ids(&self) -> impl FnMut() -> String {
        let (mut number, group) = (0_u32, self.group.clone());
        move || {
            number += 1;
            uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, format!("{group}/chord/{number}").as_bytes()).to_string()
        }
    }
}

/// Creates Celery's `ChordError`.
#[must_use]
pub fn chord_error(text: String) -> Exception {
    Exception::custom("celery.exceptions", "ChordError", vec![text.into()])
}

/// Joins what was counted, in the order in which it is given.
#[must_use]
pub fn join<'v>(values: impl Iterator<Item = &'v [u8]>) -> HeaderResult {
    let mut results = String::from("[");
    for (index, value) in values.enumerate() {
        let parsed = json::parse(value, ParseLimits::default());
        let Some([_, Json::Text(id), Json::Text(state), result]) = parsed.as_ref().ok().and_then(Json::as_array) else {
            return HeaderResult::Failed(chord_error("Join error: ValueError('a result cannot be read')".to_owned()));
        };
        if matches!(state.as_str(), "FAILURE" | "REVOKED") {
            return HeaderResult::Failed(dependency(id, result));
        }
        if index > 0 {
            results.push(',');
        }
        result.write_compact(&mut results);
    }
    results.push(']');
    HeaderResult::Results(results)
}

/// Creates the `ChordError` that names the member which failed, by its exception as Celery keeps it.
#[must_use]
pub fn dependency(id: &str, exception: &Json) -> Exception {
    let text = |name: &str| exception.get(name).and_then(Json::as_text).unwrap_or_default();
    let mut args = match exception.get("exc_message") {
        Some(Json::Array(args)) => args.clone(),
        Some(one) => vec![one.clone()],
        None => Vec::new(),
    };
    let is_os_error = ["OSError", "FileNotFoundError", "PermissionError"].contains(&text("exc_type"));
    if is_os_error && (3..=5).contains(&args.len()) {
        // Python keeps the names of files apart.
        args.truncate(2);
    }
    let exception = Exception::custom(text("exc_module"), text("exc_type"), args);
    chord_error(format!("Dependency {id} raised {exception}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> TaskRequest {
        TaskRequest {
            id: "m".to_owned(),
            task: "t".to_owned(),
            root_id: Some("r".to_owned()),
            group: Some("g".to_owned()),
            group_index: Some(3),
            ..TaskRequest::default()
        }
    }

    fn body(text: &str) -> Json {
        json::parse(text.as_bytes(), ParseLimits::default()).unwrap()
    }

    fn options() -> CanvasOptions {
        CanvasOptions::new("q", "w@h", 1 << 20, true)
    }

    /// An answer that says to whom it goes and what it says.
    fn answer(to: &ReplyTo, exception: &Exception) -> Publication {
        let address = crate::celery::message::Address::queue(to.task_id.as_str());
        Publication { address, message: Message { body: exception.to_string().into(), ..Message::default() } }
    }

    fn part(state: &State<'_>, chord: &str) -> Part {
        Part::of(&request(), &body(chord), state).unwrap()
    }

    const SUCCESS: State<'static> = State::Success { result: r#"["é"]"#, children: &[] };

    #[test]
    fn a_part_is_what_celery_counts_and_survives_a_broker() {
        let exception = Exception::value_error("x");
        for (state, value) in [
            (SUCCESS, r#"[1, "m", "SUCCESS", ["\u00e9"]]"#),
            (
                State::Failure(&exception),
                r#"[1, "m", "FAILURE", {"exc_type": "ValueError", "exc_message": ["x"], "exc_module": "builtins"}]"#,
            ),
        ] {
            let part = part(&state, r#"{"task":"b"}"#);
            assert_eq!(part.value, value);
            assert_eq!(Part::read(&part.to_message()), Some(part));
        }
        assert_eq!(Part::of(&request(), &Json::Null, &State::Started), None, "no end");
        let alone = TaskRequest { group: None, ..request() };
        assert_eq!(Part::of(&alone, &Json::Null, &SUCCESS), None);
        assert_eq!(Part::read(&Message::default()), None);
    }

    #[test]
    fn results_are_joined_in_their_order() {
        let texts = [r#"[1, "a", "SUCCESS", NaN]"#, r#"[1, "b", "SUCCESS", {"k": 123456789012345678901234567890}]"#];
        let joined = join(texts.iter().map(|text| text.as_bytes()));
        assert_eq!(joined, HeaderResult::Results(r#"[NaN,{"k":123456789012345678901234567890}]"#.to_owned()));
        assert_eq!(join(std::iter::empty()), HeaderResult::Results("[]".to_owned()));
        let broken: &[u8] = b"[1]";
        assert!(matches!(join(std::iter::once(broken)), HeaderResult::Failed(_)));
    }

    #[test]
    fn the_first_failure_is_named_as_python_names_it() {
        for (exception, shown) in [
            (r#"{"exc_type":"ValueError","exc_message":["x"],"exc_module":"builtins"}"#, "ValueError('x')"),
            (r#"{"exc_type":"KeyError","exc_message":"k","exc_module":"builtins"}"#, "KeyError('k')"),
            (
                r#"{"exc_type":"FileNotFoundError","exc_message":[2,"No such","f"],"exc_module":"builtins"}"#,
                "FileNotFoundError(2, 'No such')",
            ),
        ] {
            let texts = [
                r#"[1, "a", "SUCCESS", 1]"#.to_owned(),
                format!(r#"[1, "b", "FAILURE", {exception}]"#),
                r#"[1, "c", "REVOKED", {}]"#.to_owned(),
            ];
            let joined = join(texts.iter().map(String::as_bytes));
            assert_eq!(joined, HeaderResult::Failed(chord_error(format!("Dependency b raised {shown}"))));
        }
    }

    #[test]
    fn the_body_gets_the_results_and_is_the_same_each_time() {
        let chord = r#"{"task":"b","args":[1],"kwargs":{},"options":{"task_id":"body","chain":[{"task":"c","args":[],"kwargs":{},"options":{}}]}}"#;
        let part = part(&SUCCESS, chord);
        let ended = |joined: HeaderResult| part.ended(joined, &options(), &answer, Timestamp::UNIX_EPOCH);
        let one = ended(HeaderResult::Results("[1,2]".to_owned()));
        assert!(one.answers.is_empty());
        let message = &one.publications[0].message;
        assert_eq!(message.headers.text("id"), Some("body"));
        assert_eq!(message.headers.text("root_id"), Some("r"));
        assert_eq!(message.headers.text("parent_id"), Some("m"));
        assert!(message.body.starts_with(b"[[[1,2],1],{}"), "{:?}", message.body);
        assert_eq!(ended(HeaderResult::Results("[1,2]".to_owned())).publications, one.publications);
    }

    #[test]
    fn a_failure_is_told_to_the_body_and_to_errbacks() {
        let chord = r#"{"task":"b","args":[],"kwargs":{},"options":{"task_id":"body","reply_to":"r",
            "link_error":[{"task":"e","args":[],"kwargs":{},"options":{}}],
            "chain":[{"task":"c","args":[],"kwargs":{},"options":{"task_id":"next","reply_to":"r"}}]}}"#;
        let part = part(&SUCCESS, chord);
        let ended =
            part.ended(HeaderResult::Failed(chord_error("x".to_owned())), &options(), &answer, Timestamp::UNIX_EPOCH);
        let told: Vec<_> = ended.answers.iter().map(|answer| answer.address.routing_key.as_str()).collect();
        assert_eq!(told, ["body", "next"]);
        assert_eq!(ended.answers[0].message.body, "ChordError('x')");
        assert!(ended.publications[0].message.body.starts_with(b"[[\"body\"]"), "{:?}", ended.publications);
    }

    #[test]
    fn a_body_that_cannot_be_sent_fails() {
        for (chord, why) in [
            (r#"{"task":"b","subtask_type":"group","kwargs":{"tasks":[]}}"#, "NotImplementedError"),
            (r#"{"task":"b","args":[],"options":{"task_id":"body","priority":"x"}}"#, ""),
        ] {
            let part = part(&SUCCESS, chord);
            let joined = HeaderResult::Results("[]".to_owned());
            let ended = part.ended(joined, &options(), &answer, Timestamp::UNIX_EPOCH);
            assert!(ended.publications.is_empty());
            for answer in &ended.answers {
                let text = String::from_utf8_lossy(&answer.message.body);
                assert!(text.contains("Callback error: ") && text.contains(why), "{text}");
            }
        }
    }
}
