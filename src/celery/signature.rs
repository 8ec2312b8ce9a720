//! Signatures: the tasks that a message carries along as callbacks, errbacks and chain steps.

use super::encode::{write_list, write_members};
use super::options::{self, option};
use crate::json::{self, Json, ParseLimits, write_string};

/// A signature that was read and checked; its unknown members are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The name of the task.
    pub task: String,
    /// The positional arguments, without the previous result, which is put before them.
    pub args: Vec<Json>,
    /// The named arguments.
    pub kwargs: Vec<(String, Json)>,
    /// The options of `apply_async`.
    pub options: Vec<(String, Json)>,
    /// The kind: one task, or a workflow.
    pub kind: SignatureKind,
    /// Tells whether the task does not take the previous result as an argument.
    pub immutable: bool,
    extra: Vec<(String, Json)>,
}

/// The kind of a signature, by its `subtask_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureKind {
    /// One task.
    Task,
    /// Several tasks, one after another.
    Chain,
    /// Several tasks, side by side.
    Group,
    /// A group and a task that waits for it.
    Chord,
}

impl SignatureKind {
    fn of(value: &Json) -> Result<Self, String> {
        match value.get("subtask_type") {
            None | Some(Json::Null) => Ok(Self::Task),
            Some(kind) => match kind.as_text() {
                Some("chain") => Ok(Self::Chain),
                Some("group") => Ok(Self::Group),
                Some("chord") => Ok(Self::Chord),
                _ => Err("has an unknown subtask_type".to_owned()),
            },
        }
    }

    const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Task => None,
            Self::Chain => Some("chain"),
            Self::Group => Some("group"),
            Self::Chord => Some("chord"),
        }
    }
}

impl Signature {
    /// Reads one signature, and checks it together with those signatures inside it that the worker may publish.
    ///
    /// # Errors
    ///
    /// The fault as the end of a sentence whose subject is the signature: "has no task name".
    pub(super) fn read(value: Json) -> Result<Self, String> {
        check(&value)?;
        let mut signature = Self {
            task: String::new(),
            args: Vec::new(),
            kwargs: Vec::new(),
            options: Vec::new(),
            kind: SignatureKind::of(&value)?,
            immutable: false,
            extra: Vec::new(),
        };
        let Json::Object(members) = value else { return Ok(signature) };
        for (name, value) in members {
            match (name.as_str(), value) {
                ("task", Json::Text(task)) => signature.task = task,
                ("args", Json::Array(args)) => signature.args = args,
                ("kwargs", Json::Object(kwargs)) => signature.kwargs = kwargs,
                ("options", Json::Object(options)) => signature.options = options,
                ("immutable", Json::Bool(immutable)) => signature.immutable = immutable,
                ("args" | "kwargs" | "options" | "subtask_type" | "immutable", _) => {}
                (_, value) => signature.extra.push((name, value)),
            }
        }
        Ok(signature)
    }

    /// Reads a list of signatures, a single signature, or an empty value.
    pub(super) fn read_list(value: Json) -> Result<Vec<Self>, String> {
        match value {
            Json::Array(items) => items.into_iter().map(Self::read).collect(),
            empty if empty.is_falsy() => Ok(Vec::new()),
            one @ Json::Object(_) => Ok(vec![Self::read(one)?]),
            other => Err(format!("is a {}, not a list of signatures", other.python_type())),
        }
    }

    /// Removes the steps of a chain from the signature and returns them, first to last.
    pub(super) fn take_steps(&mut self) -> Vec<Self> {
        let tasks = self.kwargs.iter_mut().find(|(name, _)| name == "tasks");
        let tasks = tasks.map_or(Json::Null, |(_, tasks)| std::mem::replace(tasks, Json::Null));
        // Reading the chain has checked its steps.
        Self::read_list(tasks).unwrap_or_default()
    }

    /// Counts the tasks of the signature, including the signatures inside it.
    pub(super) fn tasks(&self) -> usize {
        let inside = self.kwargs.iter().filter(|(name, _)| name == "tasks" || name == "header" || name == "body");
        let linked = self.options.iter().filter(|(name, _)| name == "link" || name == "link_error");
        1 + inside.chain(linked).map(|(_, tasks)| count(tasks)).sum::<usize>()
    }

    /// Returns the kind of signature that would be started first: of a chain, that of its first step, and so on.
    pub(super) fn first_kind(&self) -> SignatureKind {
        let mut kind = self.kind;
        let mut tasks = self.kwargs.iter().find(|(name, _)| name == "tasks").map(|(_, tasks)| tasks);
        while kind == SignatureKind::Chain {
            let Some(first) = tasks.and_then(Json::as_array).and_then(<[Json]>::first) else { break };
            kind = SignatureKind::of(first).unwrap_or(SignatureKind::Task);
            tasks = first.get("kwargs").and_then(|kwargs| kwargs.get("tasks"));
        }
        kind
    }

    /// Returns a named argument; null counts as absent.
    pub(super) fn kwarg(&self, name: &str) -> Option<&Json> {
        option(&self.kwargs, name)
    }

    /// Returns the signature as a tree.
    pub(super) fn to_json(&self) -> Json {
        let mut text = String::new();
        self.write_json(&mut text);
        json::parse(text.as_bytes(), ParseLimits::default()).unwrap_or(Json::Null)
    }

    /// Returns an option by name; null counts as absent.
    pub(super) fn option(&self, name: &str) -> Option<&Json> {
        option(&self.options, name)
    }

    /// Returns a text option by name; an empty text counts as absent.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.option(name)?.as_text().filter(|text| !text.is_empty())
    }

    /// Sets an option.
    pub(super) fn set(&mut self, name: &str, value: Json) {
        match self.options.iter_mut().find(|(key, _)| key == name) {
            Some(slot) => slot.1 = value,
            None => self.options.push((name.to_owned(), value)),
        }
    }

    /// Returns an upper bound for the size of the unknown members, in bytes.
    pub(super) fn extra_len(&self) -> usize {
        self.extra.iter().map(|(name, value)| self.task.len() + name.len() + value.compact_len()).sum()
    }

    /// Appends the signature as JSON.
    pub(super) fn write_json(&self, out: &mut String) {
        out.push_str("{\"task\":");
        write_string(out, &self.task);
        out.push_str(",\"args\":");
        write_list(out, &self.args);
        out.push_str(",\"kwargs\":");
        write_members(out, &self.kwargs);
        out.push_str(",\"options\":");
        write_members(out, &self.options);
        out.push_str(",\"subtask_type\":");
        match self.kind.as_str() {
            Some(kind) => write_string(out, kind),
            None => out.push_str("null"),
        }
        out.push_str(if self.immutable { ",\"immutable\":true" } else { ",\"immutable\":false" });
        for (name, value) in &self.extra {
            out.push(',');
            write_string(out, name);
            out.push(':');
            value.write_compact(out);
        }
        out.push('}');
    }
}

/// Counts the tasks of a signature in JSON, or of a list of signatures.
fn count(value: &Json) -> usize {
    match value {
        Json::Array(items) => items.iter().map(count).sum(),
        Json::Object(_) => {
            let inside =
                ["tasks", "header", "body"].map(|name| value.get("kwargs").and_then(|kwargs| kwargs.get(name)));
            let linked = ["link", "link_error"].map(|name| value.get("options").and_then(|options| options.get(name)));
            1 + inside.into_iter().chain(linked).flatten().map(count).sum::<usize>()
        }
        _ => 0,
    }
}

/// Checks the parts of a signature from which its message is made, and those of all steps and links inside it.
fn check(value: &Json) -> Result<(), String> {
    let Json::Object(members) = value else {
        return Err(format!("is a {}, not a signature", value.python_type()));
    };
    let wrong = |name: &str, value: &Json| Err(format!("has a {} as its {name}", value.python_type()));
    match option(members, "task") {
        Some(Json::Text(task)) if !task.is_empty() => {}
        Some(value) if value.as_text().is_none() => return wrong("task", value),
        _ => return Err("has no task name".to_owned()),
    }
    if let Some(value) = option(members, "args").filter(|value| value.as_array().is_none() && !value.is_falsy()) {
        return wrong("args", value);
    }
    if let Some(value) = option(members, "immutable").filter(|value| value.as_bool().is_none()) {
        return wrong("immutable", value);
    }
    for name in ["kwargs", "options"] {
        if let Some(value) = option(members, name).filter(|value| value.as_object().is_none() && !value.is_falsy()) {
            return wrong(name, value);
        }
    }
    let options = value.get("options").and_then(Json::as_object).unwrap_or_default();
    for name in [
        "task_id",
        "reply_to",
        "queue",
        "exchange",
        "routing_key",
        "group_id",
        "shadow",
        "correlation_id",
        "message_id",
        "type",
        "app_id",
    ] {
        if let Some(value) = option(options, name).filter(|value| value.as_text().is_none()) {
            return Err(format!("has a {} as option {name}", value.python_type()));
        }
    }
    for name in ["link", "link_error", "chain"] {
        if let Some(value) = option(options, name) {
            check_list(value).map_err(|cause| format!("has an option {name} that {cause}"))?;
        }
    }
    options::check(options)?;
    if SignatureKind::of(value)? == SignatureKind::Chain {
        let tasks = value.get("kwargs").and_then(|kwargs| kwargs.get("tasks")).unwrap_or(&Json::Null);
        check_list(tasks).map_err(|cause| format!("has a step that {cause}"))?;
    }
    Ok(())
}

fn check_list(value: &Json) -> Result<(), String> {
    match value {
        Json::Array(items) => items.iter().try_for_each(check),
        empty if empty.is_falsy() => Ok(()),
        one => check(one),
    }
}
