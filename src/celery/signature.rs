//! A task that a task carries along: callback, errback or chain step.

use super::compose::{write_list, write_members};
use crate::json::{Json, write_string};

/// A signature, read and checked; unknown members travel along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Task name.
    pub task: String,
    /// Positional arguments after the previous result.
    pub args: Vec<Json>,
    /// Named arguments.
    pub kwargs: Vec<(String, Json)>,
    /// `apply_async` options.
    pub options: Vec<(String, Json)>,
    /// What it stands for.
    pub kind: Kind,
    /// Takes no previous result.
    pub immutable: bool,
    extra: Vec<(String, Json)>,
}

/// What a signature stands for (`subtask_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One task.
    Task,
    /// Several, one after the other.
    Chain,
    /// Several, side by side.
    Group,
    /// A group and a task that waits for it.
    Chord,
}

impl Kind {
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
    /// Reads one signature and every one inside it that this worker may have to publish.
    ///
    /// # Errors
    ///
    /// What is wrong with it, to be put behind the place where it stood: "has no task name".
    pub(super) fn read(value: Json) -> Result<Self, String> {
        let Json::Object(members) = value else {
            return Err(format!("is a {}, not a signature", value.python_type()));
        };
        let mut signature = Self {
            task: String::new(),
            args: Vec::new(),
            kwargs: Vec::new(),
            options: Vec::new(),
            kind: Kind::Task,
            immutable: false,
            extra: Vec::new(),
        };
        for (name, value) in members {
            match (name.as_str(), value) {
                ("task", Json::Text(task)) => signature.task = task,
                ("args", Json::Array(args)) => signature.args = args,
                ("kwargs", Json::Object(kwargs)) => signature.kwargs = kwargs,
                ("options", Json::Object(options)) => signature.options = options,
                ("subtask_type", Json::Text(kind)) => signature.kind = kind_of(&kind)?,
                ("immutable", Json::Bool(immutable)) => signature.immutable = immutable,
                ("args" | "kwargs" | "options" | "subtask_type" | "immutable", Json::Null) => {}
                ("task" | "args" | "kwargs" | "options" | "subtask_type" | "immutable", value) => {
                    return Err(format!("has a {} as its {name}", value.python_type()));
                }
                (_, value) => signature.extra.push((name, value)),
            }
        }
        if signature.task.is_empty() {
            return Err("has no task name".to_owned());
        }
        signature.check()?;
        Ok(signature)
    }

    /// Reads a list of signatures, one alone, or null.
    pub(super) fn read_list(value: Json) -> Result<Vec<Self>, String> {
        match value {
            Json::Null => Ok(Vec::new()),
            Json::Array(items) => items.into_iter().map(Self::read).collect(),
            one @ Json::Object(_) => Ok(vec![Self::read(one)?]),
            other => Err(format!("is a {}, not a list of signatures", other.python_type())),
        }
    }

    /// Checks what composing a message from it relies upon.
    fn check(&self) -> Result<(), String> {
        for name in ["task_id", "reply_to", "queue", "exchange", "routing_key", "group_id", "shadow"] {
            if let Some(value) = self.option(name)
                && value.as_text().is_none()
            {
                return Err(format!("has a {} as option {name}", value.python_type()));
            }
        }
        for name in ["link", "link_error", "chain"] {
            if let Some(value) = self.option(name) {
                Self::read_list(value.clone()).map_err(|cause| format!("has an option {name} that {cause}"))?;
            }
        }
        super::compose::check(self)?;
        if self.kind == Kind::Chain {
            self.steps()?;
        }
        Ok(())
    }

    /// Reads the steps of a chain, first to last.
    pub(super) fn steps(&self) -> Result<Vec<Self>, String> {
        let tasks = self.kwargs.iter().find(|(name, _)| name == "tasks").map(|(_, tasks)| tasks.clone());
        Self::read_list(tasks.unwrap_or(Json::Null)).map_err(|cause| format!("is a chain with a step that {cause}"))
    }

    /// Looks an option up; null is absent.
    pub(super) fn option(&self, name: &str) -> Option<&Json> {
        self.options.iter().find(|(key, _)| key == name).map(|(_, value)| value).filter(|value| !value.is_null())
    }

    /// Looks a text option up; an empty one is absent.
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

    /// Appends the JSON form.
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

fn kind_of(name: &str) -> Result<Kind, String> {
    match name {
        "chain" => Ok(Kind::Chain),
        "group" => Ok(Kind::Group),
        "chord" => Ok(Kind::Chord),
        _ => Err("has an unknown subtask_type".to_owned()),
    }
}
