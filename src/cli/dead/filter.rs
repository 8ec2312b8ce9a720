//! Which dead messages are meant: by reason, exception, task, key, age and id.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;

use super::walk::FoundMessage;
use crate::celery::message::Message;
use crate::celery::read;
use crate::celery::request::ReadOptions;
use crate::cli::terminal::span;
use crate::commands::CommandTable;
use crate::json::Json;

/// The criteria by which messages are chosen; all that are given must hold.
#[derive(Debug, Default, Args)]
pub(super) struct Filter {
    /// Only messages with this reason, such as not-registered, crashed or undeliverable; of several, any.
    #[arg(long, value_name = "REASON")]
    reason: Vec<String>,

    /// Only messages whose exception contains this text, such as NotRegistered; of several, any.
    #[arg(long, value_name = "TEXT")]
    exception: Vec<String>,

    /// Only messages of this task; of several, any.
    #[arg(long, value_name = "NAME")]
    task: Vec<String>,

    /// Only commands that name this key; of several, any. Of an unknown task it is the argument `key`, or the first one.
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,

    /// Only messages that were given up before this time, such as 15m, 12h or 7d.
    #[arg(long, value_name = "AGE", value_parser = span)]
    older_than: Option<Duration>,

    /// Only messages that were given up within this time.
    #[arg(long, value_name = "AGE", value_parser = span)]
    newer_than: Option<Duration>,
}

impl Filter {
    /// Tells whether nothing is asked for, so that all messages are meant.
    pub(super) fn is_empty(&self) -> bool {
        let Self { reason, exception, task, key, older_than, newer_than } = self;
        let texts = [reason, exception, task, key];
        texts.into_iter().all(Vec::is_empty) && older_than.is_none() && newer_than.is_none()
    }

    /// Tells whether a message is meant. `accept` names the serializers that are read.
    pub(super) fn takes(&self, found: &FoundMessage, now: Timestamp, accept: &[String]) -> bool {
        let copy = &found.copy;
        let is_one_of = |names: &[String], name: Option<&str>| {
            names.is_empty() || name.is_some_and(|name| names.iter().any(|wanted| wanted == name))
        };
        let age = copy.at.map(|at| Duration::try_from(now.duration_since(at)).unwrap_or_default());
        let shown = copy.exception.as_deref().unwrap_or_default();
        is_one_of(&self.reason, copy.reason.as_deref())
            && is_one_of(&self.task, copy.task.as_deref())
            && (self.exception.is_empty() || self.exception.iter().any(|wanted| shown.contains(wanted.as_str())))
            && self.older_than.is_none_or(|least| age.is_some_and(|age| age >= least))
            && self.newer_than.is_none_or(|most| age.is_some_and(|age| age <= most))
            && (self.key.is_empty() || keys(&found.message, accept).iter().any(|key| self.key.contains(key)))
    }
}

/// The messages that were asked for by name: task ids and fingerprints.
#[derive(Debug)]
pub(super) struct WantedIds {
    ids: Vec<String>,
    found: BTreeSet<String>,
}

impl WantedIds {
    pub(super) const fn new(ids: Vec<String>) -> Self {
        Self { ids, found: BTreeSet::new() }
    }

    /// Tells whether a message is asked for; without names, every one is.
    pub(super) fn takes(&mut self, found: &FoundMessage) -> bool {
        if self.ids.is_empty() {
            return true;
        }
        let copy = &found.copy;
        let is_named = |wanted: &&String| **wanted == copy.fingerprint || copy.id.as_ref() == Some(*wanted);
        let named: Vec<String> = self.ids.iter().filter(is_named).cloned().collect();
        let is_wanted = !named.is_empty();
        self.found.extend(named);
        is_wanted
    }

    /// Returns the names that no message had.
    pub(super) fn missing(&self) -> Vec<&str> {
        self.ids.iter().filter(|id| !self.found.contains(*id)).map(String::as_str).collect()
    }
}

/// Returns the keys that a command names; none where they cannot be told.
pub(super) fn keys(message: &Message, accept: &[String]) -> Vec<String> {
    let options = ReadOptions { accept: accept.to_vec(), ..ReadOptions::default() };
    let Ok(request) = read::read(message, &options) else { return Vec::new() };
    if let Some(definition) = CommandTable::default().find(&request.task) {
        let command = definition.parse(request.args, request.kwargs);
        return command.map_or_else(
            |_| Vec::new(),
            |command| command.keys().iter().map(|used| used.key.as_str().to_owned()).collect(),
        );
    }
    let named = request.kwargs.into_iter().find(|(name, _)| name == "key").map(|(_, value)| value);
    match named.or_else(|| request.args.into_iter().next()) {
        Some(Json::Text(key)) => vec![key.to_string()],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::celery::message::{Headers, Properties};
    use crate::celery::{DeadCopy, dead};

    fn found(task: &str, body: &str) -> FoundMessage {
        let properties = Properties { content_type: Some("application/json".to_owned()), ..Properties::default() };
        let headers: Headers =
            [("task", task), ("id", "one")].map(|(name, value)| (name.to_owned(), value.into())).into_iter().collect();
        let message = Message { properties, headers, body: body.to_owned().into() };
        let exception = crate::celery::error::Exception::not_registered(task);
        let death = crate::celery::Death {
            reason: "not-registered",
            exception: &exception,
            at: Timestamp::UNIX_EPOCH,
            worker: "w@h",
        };
        let message = dead(&message, &Default::default(), &death, "filestorage.dead", 131_072).message;
        FoundMessage { copy: DeadCopy::read(&message), message, position: 1 }
    }

    fn filter(arguments: &[&str]) -> Filter {
        #[derive(clap::Parser)]
        struct Parsed {
            #[command(flatten)]
            filter: Filter,
        }
        <Parsed as clap::Parser>::try_parse_from([&["x"], arguments].concat()).unwrap().filter
    }

    fn takes(arguments: &[&str], found: &FoundMessage) -> bool {
        filter(arguments).takes(found, Timestamp::from_second(3600).unwrap(), &["json".to_owned()])
    }

    #[test]
    fn all_criteria_must_hold_and_of_one_any_value() {
        let found = found("filestorage.nope", r#"[["a/b", 1], {}, {}]"#);
        for (arguments, expected) in [
            (&[][..], true),
            (&["--reason", "not-registered"], true),
            (&["--reason", "crashed", "--reason", "not-registered"], true),
            (&["--reason", "crashed"], false),
            (&["--exception", "NotRegistered"], true),
            (&["--exception", "Decode"], false),
            (&["--task", "filestorage.nope", "--key", "a/b"], true),
            (&["--task", "filestorage.nope", "--key", "a"], false),
            (&["--older-than", "59m"], true),
            (&["--older-than", "61m"], false),
            (&["--newer-than", "61m"], true),
            (&["--newer-than", "59m"], false),
        ] {
            assert_eq!(takes(arguments, &found), expected, "{arguments:?}");
        }
        assert!(filter(&[]).is_empty() && !filter(&["--newer-than", "1s"]).is_empty());
    }

    #[test]
    fn keys_are_those_of_the_command() {
        let accept = ["json".to_owned()];
        for (task, body, expected) in [
            ("filestorage.store", r#"[["a", 1], {}, {}]"#, &["a"][..]),
            ("filestorage.copy", r#"[["a"], {"destination": "b"}, {}]"#, &["a", "b"]),
            ("filestorage.delete_many", r#"[[["a", "b"]], {}, {}]"#, &["a", "b"]),
            ("other", r#"[[7], {"key": "k"}, {}]"#, &["k"]),
            ("other", r#"[[7], {}, {}]"#, &[]),
            ("filestorage.store", "not JSON", &[]),
        ] {
            assert_eq!(keys(&found(task, body).message, &accept), expected, "{task} {body}");
        }
    }

    #[test]
    fn what_is_not_found_is_named() {
        let found = found("t", "[[], {}, {}]");
        let mut wanted = WantedIds::new(vec!["one".to_owned(), found.copy.fingerprint.clone(), "two".to_owned()]);
        assert!(wanted.takes(&found));
        assert_eq!(wanted.missing(), ["two"]);
        assert!(WantedIds::new(Vec::new()).takes(&found));
    }
}
