//! Reads a message as a [`TaskRequest`]: with protocol 2 from headers and body, with protocol 1 from the body alone.

use std::borrow::Cow;

use super::body;
use super::encode::field;
use super::message::{Field, Headers, Message};
use super::request::{Fault, LONGEST_ID, Peek, ReadOptions, ReplyTo, TaskRequest, Unreadable, peek};
use super::signature::Signature;
use super::time;
use crate::instant::{self, NEVER};
use crate::json::{self, ErrorKind, Json};

/// Reads a message as a task.
///
/// `task` and `id` are required; everything else may be absent or void. A header of another type than Celery writes counts
/// as absent. But an `eta` or `expires` that cannot be read is an error, since the task might run at the wrong time.
///
/// # Errors
///
/// [`Unreadable`] with the fault, and with the address of the answer when that could be read.
pub fn read(message: &Message, options: &ReadOptions) -> Result<TaskRequest, Unreadable> {
    read_with(message, None, options)
}

/// Reads a message as [`read`] does, but takes the text of the body from an earlier call of [`text`].
///
/// # Errors
///
/// [`Unreadable`], as for [`read`].
pub fn read_text(message: &Message, text: &[u8], options: &ReadOptions) -> Result<TaskRequest, Unreadable> {
    read_with(message, Some(text), options)
}

fn read_with(message: &Message, text: Option<&[u8]>, options: &ReadOptions) -> Result<TaskRequest, Unreadable> {
    let reader = Reader { message, peek: peek(message), options, text };
    if message.headers.get("task").is_some() { reader.protocol_2() } else { reader.protocol_1() }
}

/// Decodes the body of a message: undoes compression and content encoding.
///
/// # Errors
///
/// [`Unreadable`], as for [`read`].
pub fn text<'m>(message: &'m Message, options: &ReadOptions) -> Result<Cow<'m, [u8]>, Unreadable> {
    let reader = Reader { message, peek: peek(message), options, text: None };
    body::decode(message, &options.accept, options.limits).map_err(|error| reader.undecodable(&error))
}

/// Reads a task from the headers alone; returns `None` for protocol 1, which has the whole task in its body.
///
/// # Errors
///
/// [`Unreadable`], as for [`read`].
pub fn outline(message: &Message, options: &ReadOptions) -> Option<Result<TaskRequest, Unreadable>> {
    message.headers.get("task")?;
    Some(Reader { message, peek: peek(message), options, text: None }.outline())
}

struct Reader<'m> {
    message: &'m Message,
    peek: Peek<'m>,
    options: &'m ReadOptions,
    /// The text of the body, when it was decoded before.
    text: Option<&'m [u8]>,
}

impl Reader<'_> {
    fn outline(&self) -> Result<TaskRequest, Unreadable> {
        let Some(task) = self.peek.task else {
            return Err(self.unreadable(Fault::NotATask, "the task header is no name; send the task's name"));
        };
        let headers = &self.message.headers;
        let Some(id) = headers.text("id").filter(|id| !id.is_empty()) else {
            let text = format!("task {task} has no id; send one in the id header");
            return Err(self.unreadable(Fault::MissingId, &text));
        };
        self.check_id(task, id)?;
        let mut request = self.request(2, task.to_owned(), id.to_owned());
        self.headers(headers, &mut request)?;
        Ok(request)
    }

    fn protocol_2(&self) -> Result<TaskRequest, Unreadable> {
        let mut request = self.outline()?;
        let [args, kwargs, embed] = match self.tree()? {
            Json::Array(parts) => <[Json; 3]>::try_from(parts)
                .map_err(|parts| self.invalid(&format!("has a body of {} parts, not three", parts.len())))?,
            other => return Err(self.invalid(&format!("has a {} as its body, not a list", other.python_type()))),
        };
        self.arguments(args, kwargs, &mut request)?;
        match embed {
            Json::Object(members) => self.embedded(members, &mut request)?,
            empty if empty.is_falsy() => {}
            other => return Err(self.invalid(&format!("has a {} as its embed, not a dict", other.python_type()))),
        }
        Ok(request)
    }

    fn protocol_1(&self) -> Result<TaskRequest, Unreadable> {
        let no_task = || self.unreadable(Fault::NotATask, "the message is no Celery task; send a task header");
        let Json::Object(mut members) = self.tree()? else { return Err(no_task()) };
        let mut take = |name: &str| {
            let slot = members.iter_mut().find(|(key, _)| key == name);
            slot.map_or(Json::Null, |(_, value)| std::mem::replace(value, Json::Null))
        };
        let text = |value| if let Json::Text(text) = value { Some(text).filter(|text| !text.is_empty()) } else { None };
        let Some(task) = text(take("task")) else { return Err(no_task()) };
        let Some(id) = text(take("id")) else {
            let text = format!("task {task} has no id; send one in the body");
            return Err(Unreadable { task: Some(task), ..self.unreadable(Fault::MissingId, &text) });
        };
        self.check_id(&task, &id).map_err(|error| Unreadable { task: Some(task.clone()), ..error })?;
        let mut request = self.request(1, task, id);
        let named = |error: Unreadable, request: &TaskRequest| self.named(error, request);
        // Protocol 1 has in its body what protocol 2 has in headers. The members are read as headers.
        let fields = ["group", "group_index", "retries", "eta", "expires", "timelimit"];
        let mut headers: Headers = fields.iter().map(|name| ((*name).to_owned(), field(&take(name)))).collect();
        // A retry of ours has them as headers, which Celery lays over the body, too.
        for name in ["retries", "eta"] {
            if let Some(value) = self.message.headers.get(name) {
                headers.set(name, value.clone());
            }
        }
        self.headers(&headers, &mut request).map_err(|error| named(error, &request))?;
        request.metrics_reply_to = given(self.message.headers.get("metrics_reply_to"));
        self.arguments(take("args"), take("kwargs"), &mut request).map_err(|error| named(error, &request))?;
        self.embedded(members, &mut request).map_err(|error| named(error, &request))?;
        Ok(request)
    }

    fn request(&self, protocol: u8, task: String, id: String) -> TaskRequest {
        let correlation_id = self.message.properties.correlation_id.as_deref().filter(|id| !id.is_empty());
        TaskRequest {
            protocol,
            task,
            correlation_id: correlation_id.unwrap_or(&id).to_owned(),
            id,
            root_id: None,
            parent_id: None,
            group: None,
            group_index: None,
            retries: 0,
            eta: None,
            expires: None,
            time_limit: None,
            soft_time_limit: None,
            args: Vec::new(),
            kwargs: Vec::new(),
            callbacks: Vec::new(),
            errbacks: Vec::new(),
            chain: Vec::new(),
            chord: None,
            reply_to: self.peek.reply_to.map(str::to_owned),
            ignore_result: false,
            shadow: None,
            stamped_headers: Vec::new(),
            stamps: Headers::default(),
            argsrepr: None,
            kwargsrepr: None,
            metrics_reply_to: None,
            replaced_task_nesting: 0,
            origin: None,
            priority: self.message.properties.priority,
        }
    }

    /// Fills the request from the headers, in one pass over them.
    fn headers(&self, headers: &Headers, request: &mut TaskRequest) -> Result<(), Unreadable> {
        for (name, value) in headers.iter() {
            match name {
                "root_id" => request.root_id = given(Some(value)),
                "parent_id" => request.parent_id = given(Some(value)),
                "group" => request.group = given(Some(value)),
                "group_index" => request.group_index = whole(value),
                "retries" => request.retries = whole(value).and_then(|count| count.try_into().ok()).unwrap_or(0),
                "eta" => request.eta = self.instant(name, value, &request.task)?,
                "expires" => {
                    request.expires = self.instant(name, value, &request.task)?.filter(|expires| *expires != NEVER);
                }
                "timelimit" => {
                    if let Field::List(limits) = value {
                        request.time_limit = limits.first().and_then(limit);
                        request.soft_time_limit = limits.get(1).and_then(limit);
                    }
                }
                "ignore_result" => request.ignore_result = matches!(value, Field::Bool(true) | Field::Int(1..)),
                "shadow" => request.shadow = given(Some(value)),
                "stamped_headers" => {
                    if let Field::List(names) = value {
                        request.stamped_headers = names.iter().filter_map(|name| given(Some(name))).collect();
                    }
                }
                "stamps" => {
                    if let Field::Table(stamps) = value {
                        request.stamps = stamps.clone();
                    }
                }
                "argsrepr" => request.argsrepr = given(Some(value)),
                "kwargsrepr" => request.kwargsrepr = given(Some(value)),
                "metrics_reply_to" => request.metrics_reply_to = given(Some(value)),
                "replaced_task_nesting" => request.replaced_task_nesting = whole(value).unwrap_or(0),
                "origin" => request.origin = given(Some(value)),
                _ => {}
            }
        }
        Ok(())
    }

    fn instant(&self, name: &str, value: &Field, task: &str) -> Result<Option<jiff::Timestamp>, Unreadable> {
        match value {
            Field::Void => Ok(None),
            Field::Text(text) => match instant::read(text) {
                Some(at) => Ok(Some(at)),
                None => Err(self.wrong_time(name, task)),
            },
            // The AMQP type of timestamps, which Python reads as a datetime.
            Field::Timestamp(seconds) => {
                let at = i64::try_from(*seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
                Ok(Some(at.unwrap_or(NEVER)))
            }
            _ => Err(self.wrong_time(name, task)),
        }
    }

    fn wrong_time(&self, name: &str, task: &str) -> Unreadable {
        let text = format!("task {task} has an unreadable {name}; send a text in ISO 8601, 2030-01-02T03:04:05+00:00");
        self.unreadable(Fault::InvalidTask, &text)
    }

    fn undecodable(&self, error: &body::Error) -> Unreadable {
        let what = if matches!(error, body::Error::Disallowed(_)) { Fault::ContentDisallowed } else { Fault::Decode };
        self.unreadable(what, &format!("{}: {error}", self.subject()))
    }

    fn tree(&self) -> Result<Json, Unreadable> {
        let limits = self.options.limits;
        let text = match self.text {
            Some(text) => Cow::Borrowed(text),
            None => {
                body::decode(self.message, &self.options.accept, limits).map_err(|error| self.undecodable(&error))?
            }
        };
        json::parse(&text, json::ParseLimits { depth: limits.depth, ..json::ParseLimits::default() }).map_err(|error| {
            let flatter = format!("send a flatter value, of {} levels at most", json::MAX_DEPTH);
            let (what, remedy) = match error.kind {
                ErrorKind::Syntax => (Fault::Decode, "send JSON in UTF-8"),
                ErrorKind::LoneSurrogate => (Fault::PythonOnlyJson, "send text, or bytes for what is none"),
                ErrorKind::TooDeep => (Fault::PythonOnlyJson, flatter.as_str()),
                ErrorKind::TooMany => (Fault::PythonOnlyJson, "send it in parts, or as bytes"),
            };
            self.unreadable(what, &format!("{}: the body is not readable JSON, {error}; {remedy}", self.subject()))
        })
    }

    fn arguments(&self, args: Json, kwargs: Json, request: &mut TaskRequest) -> Result<(), Unreadable> {
        match args {
            Json::Array(args) => request.args = args,
            empty if empty.is_falsy() => {}
            other => return Err(self.invalid(&format!("has a {} as its args, not a list", other.python_type()))),
        }
        match kwargs {
            Json::Object(kwargs) => request.kwargs = kwargs,
            empty if empty.is_falsy() => {}
            other => return Err(self.invalid(&format!("has a {} as its kwargs, not a dict", other.python_type()))),
        }
        Ok(())
    }

    fn embedded(&self, members: Vec<(String, Json)>, request: &mut TaskRequest) -> Result<(), Unreadable> {
        for (name, value) in members {
            let list = match name.as_str() {
                "callbacks" => &mut request.callbacks,
                "errbacks" => &mut request.errbacks,
                "chain" => &mut request.chain,
                "chord" => {
                    request.chord = Some(value).filter(|chord| !chord.is_falsy());
                    continue;
                }
                _ => continue,
            };
            *list = Signature::read_list(value)
                .map_err(|cause| self.invalid(&format!("has a signature in its {name} that {cause}")))?;
        }
        Ok(())
    }

    fn subject(&self) -> String {
        self.peek.task.map_or_else(|| "message".to_owned(), |task| format!("task {task}"))
    }

    fn check_id(&self, task: &str, id: &str) -> Result<(), Unreadable> {
        if id.len() <= LONGEST_ID {
            return Ok(());
        }
        let text =
            format!("task {task} has an id of {} bytes and may have one of {LONGEST_ID}; send a shorter id", id.len());
        Err(Unreadable { id: Some(beginning(id)), ..self.unreadable(Fault::LongId, &text) })
    }

    fn invalid(&self, cause: &str) -> Unreadable {
        let text = format!("{} {cause}; send what Celery's protocol says", self.subject());
        self.unreadable(Fault::InvalidTask, &text)
    }

    fn unreadable(&self, what: Fault, message: &str) -> Unreadable {
        let headers = &self.message.headers;
        let ignored = matches!(headers.get("ignore_result"), Some(Field::Bool(true) | Field::Int(1..)));
        let correlation = self.message.properties.correlation_id.as_deref().filter(|id| !id.is_empty());
        let id = self.peek.id.filter(|id| id.len() <= LONGEST_ID);
        let reply = match (self.peek.reply_to, id.or(correlation)) {
            (Some(queue), Some(id)) if !ignored => Some(Box::new(ReplyTo {
                queue: queue.to_owned(),
                task_id: id.to_owned(),
                correlation_id: correlation.unwrap_or(id).to_owned(),
                group: given(headers.get("group")),
                parent_id: given(headers.get("parent_id")),
                task: self.peek.task.unwrap_or_default().to_owned(),
            })),
            _ => None,
        };
        Unreadable {
            what,
            // A task name may be as long as a frame, and an answer or a log line must not be.
            message: message.chars().take(2000).collect(),
            task: self.peek.task.map(str::to_owned),
            id: self.peek.id.map(beginning),
            reply,
        }
    }

    /// Completes an error with the task name and id of a body of protocol 1.
    fn named(&self, error: Unreadable, request: &TaskRequest) -> Unreadable {
        let reply = request.reply_address().map(Box::new);
        let message = match error.message.strip_prefix("message ") {
            Some(rest) => format!("task {} {rest}", request.task),
            None => error.message,
        };
        Unreadable { task: Some(request.task.clone()), id: Some(request.id.clone()), reply, message, ..error }
    }
}

/// Returns an id, or the beginning of an id that is too long for a log line.
fn beginning(id: &str) -> String {
    if id.len() <= LONGEST_ID {
        return id.to_owned();
    }
    format!("{}…", &id[..id.floor_char_boundary(64)])
}

/// Returns the text of a header when it is a text and not empty.
fn given(value: Option<&Field>) -> Option<String> {
    match value {
        Some(Field::Text(text)) if !text.is_empty() => Some(text.clone()),
        _ => None,
    }
}

const fn whole(value: &Field) -> Option<i64> {
    match value {
        Field::Int(number) => Some(*number),
        _ => None,
    }
}

fn limit(value: &Field) -> Option<std::time::Duration> {
    match value {
        Field::Int(seconds) => time::limit(*seconds as f64),
        Field::Float(seconds) => time::limit(*seconds),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Properties;
    use super::*;

    fn message(headers: &[(&str, Field)], body: &str) -> Message {
        Message {
            properties: Properties { content_type: Some("application/json".to_owned()), ..Properties::default() },
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
            body: body.to_owned().into(),
        }
    }

    fn second(headers: &[(&str, Field)], body: &str) -> Result<TaskRequest, Unreadable> {
        let named = [("task", Field::from("t")), ("id", Field::from("1"))];
        let headers: Vec<_> = named.into_iter().chain(headers.iter().cloned()).collect();
        read(&message(&headers, body), &ReadOptions::default())
    }

    #[test]
    fn values_that_python_counts_as_false_are_empty() {
        for empty in ["[]", "{}", "null", "false", "0", "0.0", "\"\""] {
            for body in [
                format!("[[], {{}}, {empty}]"),
                format!("[[], {empty}, {{}}]"),
                format!("[{empty}, {{}}, {{}}]"),
                format!("[{empty}, {empty}, {empty}]"),
                format!(
                    r#"[[], {{}}, {{"callbacks": {empty}, "errbacks": {empty}, "chain": {empty}, "chord": {empty}}}]"#
                ),
            ] {
                let request = second(&[], &body).unwrap();
                assert!(request.args.is_empty() && request.kwargs.is_empty() && request.chord.is_none(), "{body}");
            }
            let body = format!(
                r#"[[], {{}}, {{"callbacks": {{"task": "c", "args": {empty}, "kwargs": {empty}, "options": {empty}}}}}]"#
            );
            assert_eq!(second(&[], &body).unwrap().callbacks.len(), 1, "{body}");
            let body =
                format!(r#"{{"task": "t", "id": "1", "args": {empty}, "kwargs": {empty}, "callbacks": {empty}}}"#);
            let request = read(&message(&[], &body), &ReadOptions::default()).unwrap();
            assert!(request.args.is_empty() && request.kwargs.is_empty() && request.callbacks.is_empty(), "{body}");
        }
        for full in ["[1]", "true", "1", "\"x\""] {
            let error = second(&[], &format!("[[], {full}, {{}}]")).unwrap_err();
            assert_eq!(error.what, Fault::InvalidTask, "{full}: {error}");
            assert!(second(&[], &format!("[[], {{}}, {full}]")).is_err(), "{full}");
        }
    }

    #[test]
    fn the_end_of_the_calendar_is_never() {
        for text in
            ["9999-12-31T23:59:59.999999", "9999-12-31T23:59:59.999999-23:59", "9999-12-31", "99991231T000000+14"]
        {
            let request = second(&[("eta", text.into()), ("expires", text.into())], "[[], {}, {}]").unwrap();
            assert_eq!((request.eta, request.expires), (Some(NEVER), None), "{text}");
            let body = format!(r#"{{"task": "t", "id": "1", "eta": "{text}", "expires": "{text}"}}"#);
            let request = read(&message(&[], &body), &ReadOptions::default()).unwrap();
            assert_eq!((request.eta, request.expires), (Some(NEVER), None), "{text}");
        }
        let times = [("eta", Field::Timestamp(1_900_000_000)), ("expires", Field::Timestamp(u64::MAX))];
        let request = second(&times, "[[], {}, {}]").unwrap();
        assert_eq!((request.eta.map(jiff::Timestamp::as_second), request.expires), (Some(1_900_000_000), None));
        let past = second(&[("expires", "0001-01-01T00:00:00+14:00".into())], "[[], {}, {}]").unwrap();
        assert!(past.expires.is_some_and(|expires| expires < jiff::Timestamp::UNIX_EPOCH));
        assert!(second(&[("eta", "soon".into())], "[[], {}, {}]").is_err());
    }
}
