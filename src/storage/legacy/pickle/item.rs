//! The values on the stack and in the memo, and those that lie in the arena.

use super::fault::PickleError;
use super::limits;

/// A part of the pickle's own bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) begin: u32,
    pub(super) length: u32,
}

/// A value, small enough to be copied. Containers are shared by their place in the arena, as Python shares them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Item {
    /// A gap in the memo.
    Unset,
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Text in UTF-8, which has been checked.
    Text(Span),
    Bytes(Span),
    /// A value in the arena.
    Node(u32),
    /// A class or function of the table.
    Class(Class),
}

/// A value in the arena.
#[derive(Debug)]
pub(super) enum Node {
    Text(Box<str>),
    Bytes(Box<[u8]>),
    /// An integer beyond 64 bits, in decimal digits.
    Integer(Box<str>),
    List(Vec<Item>),
    Tuple(Box<[Item]>),
    Set(Vec<Item>),
    Dict(Vec<(Item, Item)>),
    /// A value that kombu's JSON writes as an object with its type: the type's name, and the JSON of the value.
    Typed(&'static str, Box<str>),
    /// A `UUID`, whose number comes after it was made.
    Uuid(Option<u128>),
    /// A `timedelta` in microseconds, as a time zone needs it.
    Span(i64),
    /// A `timezone` as its offset from UTC in microseconds.
    Zone(i64),
}

/// The classes and functions that are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Set,
    Bytes,
    /// `bytearray`.
    Array,
    /// `dict`, and those dicts of `collections` that are made like one.
    Dict,
    /// `defaultdict`, whose first argument makes missing members.
    DefaultDict,
    /// A type that only stands as an argument.
    Other,
    /// `_codecs.encode`, in which old protocols wrap bytes.
    Encode,
    /// `copyreg._reconstructor`, with which old protocols make an object.
    Reconstructor,
    Date,
    DateTime,
    Time,
    Span,
    Zone,
    Decimal,
    Uuid,
}

impl Class {
    /// Finds the class or function of a name.
    pub(super) fn named(module: &str, name: &str) -> Result<Self, PickleError> {
        Ok(match (module, name) {
            ("builtins" | "__builtin__", "set" | "frozenset") => Self::Set,
            ("builtins" | "__builtin__", "bytes") => Self::Bytes,
            ("builtins" | "__builtin__", "bytearray") => Self::Array,
            ("builtins" | "__builtin__", "dict") | ("collections", "OrderedDict" | "Counter") => Self::Dict,
            ("collections", "defaultdict") => Self::DefaultDict,
            ("builtins" | "__builtin__", "object" | "list" | "tuple" | "int" | "float" | "str" | "bool") => Self::Other,
            ("_codecs", "encode") => Self::Encode,
            ("copyreg" | "copy_reg", "_reconstructor") => Self::Reconstructor,
            ("datetime", "date") => Self::Date,
            ("datetime", "datetime") => Self::DateTime,
            ("datetime", "time") => Self::Time,
            ("datetime", "timedelta") => Self::Span,
            ("datetime", "timezone") => Self::Zone,
            ("decimal", "Decimal") => Self::Decimal,
            ("uuid", "UUID") => Self::Uuid,
            _ => return Err(PickleError::class(module, name)),
        })
    }
}

/// The bytes of a pickle and the values that they do not contain as such.
#[derive(Debug)]
pub(super) struct Arena<'a> {
    pub(super) input: &'a [u8],
    nodes: Vec<Node>,
    /// The bytes of texts and bytes in the arena.
    made: usize,
}

impl<'a> Arena<'a> {
    pub(super) const fn new(input: &'a [u8]) -> Self {
        Self { input, nodes: Vec::new(), made: 0 }
    }

    /// Adds a value.
    pub(super) fn add(&mut self, node: Node) -> Result<Item, PickleError> {
        if self.nodes.len() == limits::NODES {
            return Err(PickleError::new(format!("the pickle has more than {} containers", limits::NODES)));
        }
        self.made += match &node {
            Node::Text(text) | Node::Integer(text) | Node::Typed(_, text) => text.len(),
            Node::Bytes(bytes) => bytes.len(),
            _ => 0,
        };
        if self.made > limits::BYTES {
            return Err(PickleError::new(format!("the pickle makes more than {} bytes", limits::BYTES)));
        }
        // The limit is below 2³².
        let place = self.nodes.len() as u32;
        self.nodes.push(node);
        Ok(Item::Node(place))
    }

    /// Returns the number of values in the arena.
    pub(super) const fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns a value of the arena.
    pub(super) fn node(&self, place: u32) -> Option<&Node> {
        self.nodes.get(place as usize)
    }

    /// Returns a value of the arena, to be changed.
    pub(super) fn node_mut(&mut self, item: Item) -> Option<&mut Node> {
        match item {
            Item::Node(place) => self.nodes.get_mut(place as usize),
            _ => None,
        }
    }

    /// Returns a part of the pickle's bytes.
    pub(super) fn bytes(&self, span: Span) -> &'a [u8] {
        let begin = span.begin as usize;
        self.input.get(begin..begin + span.length as usize).unwrap_or_default()
    }

    /// Returns the text of a value that is one.
    pub(super) fn text(&self, item: Item) -> Option<&str> {
        match item {
            Item::Text(span) => std::str::from_utf8(self.bytes(span)).ok(),
            Item::Node(place) => match self.node(place)? {
                Node::Text(text) => Some(text),
                _ => None,
            },
            _ => None,
        }
    }

    /// Tells whether a value is this text; looks at no more bytes than this has.
    pub(super) fn is_text(&self, item: Item, text: &str) -> bool {
        match item {
            Item::Text(span) => self.bytes(span) == text.as_bytes(),
            Item::Node(place) => matches!(self.node(place), Some(Node::Text(made)) if **made == *text),
            _ => false,
        }
    }

    /// Returns the bytes of a value that is `bytes` or `bytearray`.
    pub(super) fn octets(&self, item: Item) -> Option<&[u8]> {
        match item {
            Item::Bytes(span) => Some(self.bytes(span)),
            Item::Node(place) => match self.node(place)? {
                Node::Bytes(bytes) => Some(bytes),
                _ => None,
            },
            _ => None,
        }
    }

    /// Returns the members of a list, tuple or set.
    pub(super) fn members(&self, item: Item) -> Option<&[Item]> {
        let Item::Node(place) = item else { return None };
        match self.node(place)? {
            Node::List(members) | Node::Set(members) => Some(members),
            Node::Tuple(members) => Some(members),
            _ => None,
        }
    }

    /// Tells whether a value is a dict.
    pub(super) fn is_dict(&self, item: Item) -> bool {
        matches!(item, Item::Node(place) if matches!(self.node(place), Some(Node::Dict(_))))
    }
}
