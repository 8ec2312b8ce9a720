//! Writes the value of a pickle: a text or bytes as they are, anything else as the JSON that Celery's clients write.

use std::collections::HashMap;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::fault::PickleError;
use super::item::{Item, Node};
use super::machine::Pickle;
use super::{limits, number};
use crate::storage::object::Kind;

/// The reason why a value was not written.
#[derive(Debug, thiserror::Error)]
pub(in crate::storage) enum WriteFault {
    /// No JSON value stands for the pickle, or the value is too large.
    #[error(transparent)]
    Pickle(#[from] PickleError),
    /// The place that the value is written to failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The bytes that are gathered before they are passed on.
const CHUNK: usize = 64 * 1024;

impl Pickle<'_> {
    /// Returns the kind of the value.
    pub(in crate::storage) fn kind(&self) -> Kind {
        if self.arena.text(self.root).is_some() {
            Kind::Text
        } else if self.arena.octets(self.root).is_some() {
            Kind::Bytes
        } else {
            Kind::Json
        }
    }

    /// Writes the value, of at most so many bytes, piece by piece, and tells whether JSON keeps its types.
    ///
    /// Not kept are tuples and sets, which become arrays, and keys of dicts that are no texts. Where two such keys have
    /// one text, the last one is written.
    ///
    /// # Errors
    ///
    /// [`WriteFault::Pickle`] for a value that JSON has no form for, that contains itself, or that is too large or too
    /// deep; the errors of `sink`.
    pub(in crate::storage) fn write(
        &self,
        most: u64,
        sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<Types, WriteFault> {
        let mut writer = Writer {
            pickle: self,
            sink,
            out: Vec::new(),
            most,
            written: 0,
            work: 0,
            depth: 0,
            open: vec![false; self.arena.len()],
            types: Types::Kept,
        };
        if let Some(text) = self.arena.text(self.root) {
            writer.put(text.as_bytes())?;
        } else if let Some(bytes) = self.arena.octets(self.root) {
            writer.put(bytes)?;
        } else {
            writer.value(self.root)?;
        }
        writer.pass_on()?;
        Ok(writer.types)
    }
}

/// Whether JSON keeps all types of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) enum Types {
    /// All types are kept.
    Kept,
    /// A tuple or set is an array now, or a key of a dict is a text.
    Changed,
}

struct Writer<'a, S> {
    pickle: &'a Pickle<'a>,
    sink: S,
    out: Vec<u8>,
    most: u64,
    written: u64,
    /// The work on members of dicts, which equal keys make larger than what is written.
    work: u64,
    depth: usize,
    /// Which values of the arena are being written.
    open: Vec<bool>,
    types: Types,
}

impl<S: FnMut(&[u8]) -> io::Result<()>> Writer<'_, S> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteFault> {
        self.written += bytes.len() as u64;
        if self.written > self.most {
            let most = self.most;
            return Err(PickleError::new(format!("the pickle stands for a value of more than {most} bytes")).into());
        }
        self.out.extend_from_slice(bytes);
        if self.out.len() >= CHUNK { self.pass_on() } else { Ok(()) }
    }

    /// Counts work before it is done. A dict without equal keys never reaches the limit before its text does.
    fn work(&mut self, members: usize, key_bytes: usize) -> Result<(), WriteFault> {
        self.work += members as u64 * limits::MEMBER + key_bytes as u64;
        if self.work > self.most.saturating_mul(limits::WORK) {
            return Err(PickleError::new("the pickle repeats the keys of its dicts too often").into());
        }
        Ok(())
    }

    fn pass_on(&mut self) -> Result<(), WriteFault> {
        (self.sink)(&self.out)?;
        self.out.clear();
        Ok(())
    }

    fn value(&mut self, item: Item) -> Result<(), WriteFault> {
        match item {
            Item::None => self.put(b"null"),
            Item::Bool(true) => self.put(b"true"),
            Item::Bool(false) => self.put(b"false"),
            Item::Int(number) => self.put(number.to_string().as_bytes()),
            Item::Float(value) => self.put(number::float(value).as_bytes()),
            Item::Text(_) => self.text(self.pickle.arena.text(item).unwrap_or_default()),
            Item::Bytes(_) => self.bytes(self.pickle.arena.octets(item).unwrap_or_default()),
            Item::Node(place) => self.node(place),
            Item::Class(_) | Item::Unset => Err(PickleError::unwritable("a class").into()),
        }
    }

    fn node(&mut self, place: u32) -> Result<(), WriteFault> {
        let pickle = self.pickle;
        let Some(node) = pickle.arena.node(place) else { return Err(PickleError::unwritable("nothing").into()) };
        match node {
            Node::Text(text) => self.text(text),
            Node::Bytes(bytes) => self.bytes(bytes),
            Node::Integer(digits) => self.put(digits.as_bytes()),
            Node::Typed(name, value) => {
                self.put(format!("{{\"__type__\":\"{name}\",\"__value__\":{value}}}").as_bytes())
            }
            Node::Uuid(Some(number)) => {
                self.put(format!("{{\"__type__\":\"uuid\",\"__value__\":{{\"hex\":\"{number:032x}\"}}}}").as_bytes())
            }
            Node::Uuid(None) => Err(PickleError::unwritable("a UUID without its number").into()),
            Node::Span(_) => Err(PickleError::unwritable("a datetime.timedelta").into()),
            Node::Zone(_) => Err(PickleError::unwritable("a datetime.timezone").into()),
            Node::List(_) | Node::Tuple(_) | Node::Set(_) | Node::Dict(_) => {
                if self.depth == limits::DEPTH {
                    let limit = limits::DEPTH;
                    return Err(PickleError::new(format!("the pickle is nested deeper than {limit}")).into());
                }
                if std::mem::replace(&mut self.open[place as usize], true) {
                    return Err(PickleError::unwritable("a container that contains itself").into());
                }
                self.depth += 1;
                let written = self.container(node);
                self.depth -= 1;
                self.open[place as usize] = false;
                written
            }
        }
    }

    fn container(&mut self, node: &Node) -> Result<(), WriteFault> {
        let members: &[Item] = match node {
            Node::Dict(members) => return self.dict(members),
            Node::List(members) => members,
            Node::Set(members) => {
                self.types = Types::Changed;
                members
            }
            Node::Tuple(members) => {
                self.types = Types::Changed;
                members
            }
            _ => &[],
        };
        self.put(b"[")?;
        for (index, member) in members.iter().enumerate() {
            if index > 0 {
                self.put(b",")?;
            }
            self.value(*member)?;
        }
        self.put(b"]")
    }

    /// Writes a dict. Of equal keys the first one gives the place and the last one the value, as in Python.
    fn dict(&mut self, members: &[(Item, Item)]) -> Result<(), WriteFault> {
        self.work(members.len(), 0)?;
        let mut places: HashMap<Box<str>, usize> = HashMap::new();
        let mut last: Vec<(usize, Item)> = Vec::with_capacity(members.len());
        for (index, (key, value)) in members.iter().enumerate() {
            let name = self.name(*key)?;
            self.work(0, name.len())?;
            match places.entry(name) {
                std::collections::hash_map::Entry::Occupied(place) => {
                    if let Some(present) = last.get_mut(*place.get()) {
                        present.1 = *value;
                    }
                }
                std::collections::hash_map::Entry::Vacant(place) => {
                    place.insert(last.len());
                    last.push((index, *value));
                }
            }
        }
        drop(places);
        self.put(b"{")?;
        for (number, (index, value)) in last.into_iter().enumerate() {
            if number > 0 {
                self.put(b",")?;
            }
            let name = self.name(members[index].0)?;
            self.text(&name)?;
            self.put(b":")?;
            self.value(value)?;
        }
        self.put(b"}")
    }

    /// Returns the name of a member, as `json.dumps` makes it from a key.
    fn name(&mut self, key: Item) -> Result<Box<str>, WriteFault> {
        let arena = &self.pickle.arena;
        if let Some(text) = arena.text(key) {
            return Ok(text.into());
        }
        self.types = Types::Changed;
        match key {
            Item::None => Ok("null".into()),
            Item::Bool(true) => Ok("true".into()),
            Item::Bool(false) => Ok("false".into()),
            Item::Int(number) => Ok(number.to_string().into()),
            Item::Float(value) => Ok(number::float(value).into()),
            Item::Node(place) => match arena.node(place) {
                Some(Node::Integer(digits)) => Ok(digits.clone()),
                Some(Node::Tuple(_)) => Err(PickleError::unwritable("a dict whose key is a tuple").into()),
                _ => Err(PickleError::unwritable("a dict with a key that is no text").into()),
            },
            Item::Bytes(_) => Err(PickleError::unwritable("a dict whose key is bytes").into()),
            Item::Text(_) | Item::Class(_) | Item::Unset => {
                Err(PickleError::unwritable("a dict with a key that is no text").into())
            }
        }
    }

    fn text(&mut self, text: &str) -> Result<(), WriteFault> {
        // Checked before the escaped copy is made.
        if text.len() as u64 > self.most {
            return self.put(text.as_bytes());
        }
        let quoted = serde_json::to_vec(text).map_err(io::Error::other)?;
        self.put(&quoted)
    }

    /// Writes bytes as kombu's JSON does.
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), WriteFault> {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                self.put(b"{\"__type__\":\"bytes\",\"__value__\":")?;
                self.text(text)?;
                self.put(b"}")
            }
            Err(_) => {
                self.put(b"{\"__type__\":\"base64\",\"__value__\":\"")?;
                self.put(STANDARD.encode(bytes).as_bytes())?;
                self.put(b"\"}")
            }
        }
    }
}
