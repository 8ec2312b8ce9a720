//! The keys that a command names, and their positions in a call.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use crate::storage::Key;

/// A key that a command names, and the kind of access to its object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// The key.
    pub key: Key,
    /// Tells whether the command changes the object of this key.
    pub writes: bool,
}

impl KeyUse {
    /// Makes the use of a key whose object is read.
    #[must_use]
    pub const fn read(key: Key) -> Self {
        Self { key, writes: false }
    }

    /// Makes the use of a key whose object is written or deleted.
    #[must_use]
    pub const fn write(key: Key) -> Self {
        Self { key, writes: true }
    }
}

/// The keys of one command, each of them once, in the order in which they were first named.
///
/// One key needs no allocation for the list. Clones of several keys share one list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Keys {
    /// The command has no key.
    #[default]
    None,
    /// The command has one key.
    One(KeyUse),
    /// The command has several keys.
    Several(Arc<[KeyUse]>),
}

impl Keys {
    /// Collects the keys of a command. A key that is named twice is listed once, as written if one of its uses writes.
    #[must_use]
    pub fn of(named: &[KeyUse]) -> Self {
        match named {
            [] => Self::None,
            [one] => Self::One(one.clone()),
            several => Self::distinct(several),
        }
    }

    fn distinct(named: &[KeyUse]) -> Self {
        let mut distinct: Vec<KeyUse> = Vec::with_capacity(named.len());
        let mut places: HashMap<&Key, usize> = HashMap::with_capacity(named.len());
        for used in named {
            let place = *places.entry(&used.key).or_insert(distinct.len());
            match distinct.get_mut(place) {
                Some(known) => known.writes |= used.writes,
                None => distinct.push(used.clone()),
            }
        }
        match distinct.as_slice() {
            [one] => Self::One(one.clone()),
            _ => Self::Several(distinct.into()),
        }
    }
}

impl Deref for Keys {
    type Target = [KeyUse];

    fn deref(&self) -> &[KeyUse] {
        match self {
            Self::None => &[],
            Self::One(one) => std::slice::from_ref(one),
            Self::Several(several) => several,
        }
    }
}

/// An argument that holds keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyArgument {
    /// Position of the argument, from 0. `None` for an argument that is given by name only.
    pub position: Option<usize>,
    /// Name of the argument.
    pub name: &'static str,
    /// Tells whether the argument is a list of keys instead of one key.
    pub is_list: bool,
}

/// The positions of the keys in the calls of a task. The worker orders calls by key before it parses them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlaces {
    /// The task has no key.
    Nowhere,
    /// These arguments hold all keys, as strings or lists of strings.
    Arguments(Vec<KeyArgument>),
    /// The keys are known only after the call was parsed.
    Anywhere,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    #[test]
    fn a_key_named_twice_is_written_if_one_use_writes() {
        assert_eq!(Keys::of(&[]), Keys::None);
        let one = KeyUse::read(key("a"));
        assert_eq!(Keys::of(std::slice::from_ref(&one)), Keys::One(one.clone()));
        assert_eq!(Keys::of(&[one.clone(), KeyUse::write(key("a"))]), Keys::One(KeyUse::write(key("a"))));
        let keys = Keys::of(&[KeyUse::write(key("b")), one.clone(), KeyUse::read(key("b")), one.clone()]);
        assert_eq!(*keys, [KeyUse::write(key("b")), one]);
    }
}
