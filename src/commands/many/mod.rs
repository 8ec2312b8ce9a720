//! The tasks of many items: each item has its own outcome, and a bad one fails no other.

mod delete;
mod entry;
mod exists;
mod retrieve;
mod store;

use std::collections::HashMap;
use std::future::Future;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

pub(super) use self::delete::DEFINITION as DELETE;
use self::entry::ItemOutcome;
pub(super) use self::exists::DEFINITION as EXISTS;
pub(super) use self::retrieve::DEFINITION as RETRIEVE;
pub(super) use self::store::DEFINITION as STORE;
use super::arguments::{Arguments, Parameter, ParameterKind};
use super::{CommandError, Facts, Finished, Key, KeyUse};
use crate::json::Json;
use crate::storage::counted;

/// The most items of one command. A message of so many receipts has about 5 MB.
const MOST: usize = 10_000;

/// The number of items that are worked on at once.
const AT_ONCE: usize = 16;

/// After this many items other tasks get their turn, since a local store in memory never waits.
const TURN: usize = 32;

/// The parameter of the tasks that take keys.
const KEYS: Parameter = Parameter::new(
    "keys",
    ParameterKind::Keys,
    "The keys, at most 10,000. The answer has an entry for each, in the same order.",
);

/// One item of a command: what is to be done with which key, or why nothing can be.
#[derive(Debug)]
struct Item<T> {
    /// The key as it was given, if it is a text.
    name: Option<String>,
    work: Result<(Key, T), CommandError>,
}

/// The items of a command, in the order in which they were given.
#[derive(Debug)]
struct Items<T> {
    items: Vec<Item<T>>,
    keys: Vec<KeyUse>,
}

impl<T> Items<T> {
    fn new(items: Vec<Item<T>>, used: fn(Key) -> KeyUse) -> Self {
        let keys = items.iter().filter_map(|item| item.work.as_ref().ok()).map(|(key, _)| used(key.clone())).collect();
        Self { items, keys }
    }

    /// Works on all items: on different keys at once, on one key in the order of the items.
    ///
    /// Returns the entries in the order of the items. Attempts at the backend and lookups in the cache are counted for each item.
    async fn run<F>(self, work: impl Fn(usize, Key, T) -> F + Sync) -> Vec<ItemOutcome>
    where
        T: Send,
        F: Future<Output = (Result<String, CommandError>, Facts)> + Send,
    {
        let mut entries: Vec<Option<ItemOutcome>> = Vec::with_capacity(self.items.len());
        let (mut groups, mut places) = (Vec::<Vec<(usize, Option<String>, Key, T)>>::new(), HashMap::new());
        for (place, Item { name, work }) in self.items.into_iter().enumerate() {
            match work {
                Ok((key, asked)) => {
                    let group = *places.entry(key.clone()).or_insert_with(|| {
                        groups.push(Vec::new());
                        groups.len() - 1
                    });
                    groups[group].push((place, name, key, asked));
                    entries.push(None);
                }
                Err(error) => entries.push(Some(ItemOutcome::refused(name, error))),
            }
        }
        let (mut waiting, mut under_way, work) = (groups.into_iter(), FuturesUnordered::new(), &work);
        let mut since = 0;
        loop {
            while under_way.len() < AT_ONCE
                && let Some(group) = waiting.next()
            {
                under_way.push(async move {
                    let mut done = Vec::with_capacity(group.len());
                    for (place, name, key, asked) in group {
                        let ((result, mut facts), counts) = counted(work(place, key, asked)).await;
                        facts.note_counts(counts);
                        done.push((place, ItemOutcome::new(name, result, facts)));
                    }
                    done
                });
            }
            let Some(done) = under_way.next().await else { break };
            since += done.len();
            for (place, entry) in done {
                entries[place] = Some(entry);
            }
            if since >= TURN {
                since = 0;
                tokio::task::yield_now().await;
            }
        }
        entries.into_iter().flatten().collect()
    }
}

/// Takes a list with at most so many members as a command may have.
fn list(arguments: &mut Arguments, name: &'static str) -> Result<Vec<Json>, CommandError> {
    match arguments.take(name) {
        Json::Array(members) if members.len() > MOST => Err(CommandError::value_error(format!(
            "{name} has {} members, and a command may have {MOST}; send several commands",
            members.len()
        ))),
        Json::Array(members) => Ok(members),
        other => Err(arguments.wrong_type(name, "list", &other)),
    }
}

/// Takes the list of keys. A member that is no key is the failure of its own item.
fn keys(arguments: &mut Arguments, used: fn(Key) -> KeyUse) -> Result<Items<()>, CommandError> {
    let members = list(arguments, "keys")?;
    let item = |(place, member)| match member {
        Json::Text(text) => {
            let work =
                Key::parse(&text).map(|key| (key, ())).map_err(|error| CommandError::value_error(error.to_string()));
            Item { name: Some(text), work }
        }
        other => Item { name: None, work: Err(arguments.wrong_type(&format!("keys[{place}]"), "str", &other)) },
    };
    Ok(Items::new(members.into_iter().enumerate().map(item).collect(), used))
}

/// Returns the answer of a command and what its events tell, one for each item.
fn finished(entries: Vec<ItemOutcome>) -> Finished {
    let mut text = String::with_capacity(entries.len() * 64);
    let mut facts = Vec::with_capacity(entries.len());
    text.push('[');
    for (place, entry) in entries.into_iter().enumerate() {
        if place > 0 {
            text.push_str(", ");
        }
        facts.push(entry.write(&mut text));
    }
    text.push(']');
    Finished { result: Ok(text), facts, held: None }
}

#[cfg(test)]
mod tests;
