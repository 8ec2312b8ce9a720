//! The stack machine.

use super::call::{build, call};
use super::fault::PickleError;
use super::item::{Arena, Class, Item, Node, Span};
use super::limits;
use super::number::{self, Number};
use super::opcode as op;

/// A pickle that has been read to its end: one value.
#[derive(Debug)]
pub(in crate::storage) struct Pickle<'a> {
    pub(super) arena: Arena<'a>,
    pub(super) root: Item,
}

impl<'a> Pickle<'a> {
    /// Reads a whole pickle; the value keeps the pickle's texts and bytes where they are.
    ///
    /// # Errors
    ///
    /// [`PickleError`] for a pickle that is damaged, too large, or more than data.
    pub(in crate::storage) fn read(input: &'a [u8]) -> Result<Self, PickleError> {
        if input.len() > limits::BYTES {
            return Err(PickleError::too_large(input.len() as u64));
        }
        let mut machine = Machine {
            at: 0,
            opcode: 0,
            steps: 0,
            integers: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            arena: Arena::new(input),
        };
        let root = machine.run()?;
        let rest = input.len() - machine.at;
        if rest > 0 {
            return Err(PickleError::new(format!("{rest} bytes follow the end of the pickle")));
        }
        Ok(Self { arena: machine.arena, root })
    }
}

struct Machine<'a> {
    at: usize,
    /// The opcode that is carried out, for errors.
    opcode: u8,
    /// The number of pushes and of entries of the memo so far.
    steps: usize,
    /// The number of bytes of large integers so far.
    integers: usize,
    stack: Vec<Item>,
    /// The heights of the stack at the marks that are open.
    marks: Vec<usize>,
    memo: Vec<Item>,
    arena: Arena<'a>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Item, PickleError> {
        loop {
            let begin = self.at;
            let &[opcode] = self.array()?;
            self.opcode = opcode;
            if opcode == op::STOP {
                return self.pop();
            }
            let done = self.value(opcode)? || self.container(opcode)? || self.reference(opcode)?;
            if !done {
                return Err(PickleError::new(match op::name(opcode) {
                    Some(name) => format!("the pickle has the opcode {name} at byte {begin}, which is not executed"),
                    None => format!("the pickle has the unknown opcode 0x{opcode:02x} at byte {begin}"),
                }));
            }
        }
    }

    /// Carries out an opcode that pushes a simple value.
    fn value(&mut self, opcode: u8) -> Result<bool, PickleError> {
        let item = match opcode {
            op::NONE => Item::None,
            op::NEWTRUE => Item::Bool(true),
            op::NEWFALSE => Item::Bool(false),
            op::BININT => Item::Int(i32::from_le_bytes(*self.array()?).into()),
            op::BININT1 => Item::Int(u8::from_le_bytes(*self.array()?).into()),
            op::BININT2 => Item::Int(u16::from_le_bytes(*self.array()?).into()),
            op::INT => match self.line()? {
                "00" => Item::Bool(false),
                "01" => Item::Bool(true),
                digits => self.number(number::decimal_integer(digits), digits.len())?,
            },
            op::LONG => {
                let line = self.line()?;
                let digits = line.strip_suffix('L').unwrap_or(line);
                self.number(number::decimal_integer(digits), digits.len())?
            }
            op::LONG1 => {
                let bytes = self.sized::<1>()?;
                self.number(number::integer(bytes), bytes.len())?
            }
            op::LONG4 => {
                let bytes = self.sized::<4>()?;
                self.number(number::integer(bytes), bytes.len())?
            }
            op::FLOAT => Item::Float(self.line()?.parse().map_err(|_| self.damaged("has no number"))?),
            op::BINFLOAT => Item::Float(f64::from_be_bytes(*self.array()?)),
            op::SHORT_BINUNICODE => self.text::<1>()?,
            op::BINUNICODE => self.text::<4>()?,
            op::BINUNICODE8 => self.text::<8>()?,
            op::SHORT_BINBYTES => self.span::<1>().map(Item::Bytes)?,
            op::BINBYTES => self.span::<4>().map(Item::Bytes)?,
            op::BINBYTES8 | op::BYTEARRAY8 => self.span::<8>().map(Item::Bytes)?,
            // Python 2's `str`, which Python 3 reads as ASCII.
            op::SHORT_BINSTRING => self.ascii::<1>()?,
            op::BINSTRING => self.ascii::<4>()?,
            op::STRING => {
                let text = unquoted(self.line()?).ok_or_else(|| self.damaged("has no text in quotes"))?;
                self.arena.add(Node::Text(text.into()))?
            }
            op::UNICODE => {
                let text =
                    unescaped(self.line_bytes()?).ok_or_else(|| self.damaged("has an escape that is no character"))?;
                self.arena.add(Node::Text(text.into()))?
            }
            _ => return Ok(false),
        };
        self.push(item)?;
        Ok(true)
    }

    /// Carries out an opcode that makes or fills a container.
    fn container(&mut self, opcode: u8) -> Result<bool, PickleError> {
        let made = match opcode {
            op::EMPTY_LIST => Node::List(Vec::new()),
            op::EMPTY_DICT => Node::Dict(Vec::new()),
            op::EMPTY_SET => Node::Set(Vec::new()),
            op::EMPTY_TUPLE => Node::Tuple(Box::default()),
            op::LIST => Node::List(self.since_mark()?),
            op::TUPLE => Node::Tuple(self.since_mark()?.into()),
            op::FROZENSET => Node::Set(self.since_mark()?),
            op::DICT => {
                Node::Dict(pairs(&self.since_mark()?).ok_or_else(|| self.damaged("has a key without a value"))?)
            }
            op::TUPLE1 => Node::Tuple([self.pop()?].into()),
            op::TUPLE2 => {
                let second = self.pop()?;
                Node::Tuple([self.pop()?, second].into())
            }
            op::TUPLE3 => {
                let (third, second) = (self.pop()?, self.pop()?);
                Node::Tuple([self.pop()?, second, third].into())
            }
            op::APPEND | op::APPENDS | op::ADDITEMS => {
                let items = if opcode == op::APPEND { vec![self.pop()?] } else { self.since_mark()? };
                let target = self.top()?;
                match (self.arena.node_mut(target), opcode == op::ADDITEMS) {
                    (Some(Node::List(members)), false) | (Some(Node::Set(members)), true) => members.extend(items),
                    _ => return Err(self.damaged("has no container to fill")),
                }
                return Ok(true);
            }
            op::SETITEM | op::SETITEMS => {
                let items = if opcode == op::SETITEM {
                    let value = self.pop()?;
                    vec![self.pop()?, value]
                } else {
                    self.since_mark()?
                };
                let members = pairs(&items).ok_or_else(|| self.damaged("has a key without a value"))?;
                let target = self.top()?;
                match self.arena.node_mut(target) {
                    Some(Node::Dict(dict)) => dict.extend(members),
                    _ => return Err(self.damaged("has no dict to fill")),
                }
                return Ok(true);
            }
            _ => return Ok(false),
        };
        let item = self.arena.add(made)?;
        self.push(item)?;
        Ok(true)
    }

    /// Carries out an opcode of stack, memo or calls.
    fn reference(&mut self, opcode: u8) -> Result<bool, PickleError> {
        match opcode {
            op::PROTO => {
                let &[protocol] = self.array()?;
                if protocol > 5 {
                    return Err(PickleError::new(format!("the pickle has protocol {protocol}; 0 to 5 are known")));
                }
            }
            // The frame tells how much is read at once, and all of it has been read already.
            op::FRAME => drop(self.array::<8>()?),
            op::MARK => {
                self.step()?;
                self.marks.push(self.stack.len());
            }
            op::POP if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            op::POP => drop(self.pop()?),
            op::POP_MARK => drop(self.since_mark()?),
            op::DUP => self.push(self.top()?)?,
            op::MEMOIZE => self.put(self.memo.len())?,
            op::BINPUT => {
                let place = u8::from_le_bytes(*self.array()?);
                self.put(place.into())?;
            }
            op::LONG_BINPUT => {
                let place = u32::from_le_bytes(*self.array()?);
                self.put(place as usize)?;
            }
            op::PUT => {
                let place = self.place()?;
                self.put(place)?;
            }
            op::BINGET => {
                let place = u8::from_le_bytes(*self.array()?);
                self.get(place.into())?;
            }
            op::LONG_BINGET => {
                let place = u32::from_le_bytes(*self.array()?);
                self.get(place as usize)?;
            }
            op::GET => {
                let place = self.place()?;
                self.get(place)?;
            }
            op::GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Item::Class(Class::named(module, name)?))?;
            }
            op::STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                let names = self.arena.text(module).zip(self.arena.text(name));
                let (module, name) = names.ok_or_else(|| self.damaged("has no names"))?;
                let class = Class::named(module, name)?;
                self.push(Item::Class(class))?;
            }
            op::REDUCE | op::NEWOBJ => {
                let (arguments, class) = (self.pop()?, self.pop()?);
                let Item::Class(class) = class else { return Err(self.damaged("has nothing to call")) };
                let made = call(&mut self.arena, class, arguments)?;
                self.push(made)?;
            }
            op::BUILD => {
                let state = self.pop()?;
                let object = self.top()?;
                build(&mut self.arena, object, state)?;
            }
            op::INST => {
                let (module, name) = (self.line()?, self.line()?);
                return Err(PickleError::class(module, name));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn step(&mut self) -> Result<(), PickleError> {
        self.steps += 1;
        if self.steps > limits::STEPS {
            return Err(PickleError::new(format!("the pickle has more than {} values", limits::STEPS)));
        }
        Ok(())
    }

    fn push(&mut self, item: Item) -> Result<(), PickleError> {
        self.step()?;
        self.stack.push(item);
        Ok(())
    }

    /// Takes the topmost value above the last mark.
    fn pop(&mut self) -> Result<Item, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn top(&self) -> Result<Item, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = self.stack.last().filter(|_| self.stack.len() > floor);
        top.copied().ok_or_else(|| self.damaged("finds no value on the stack"))
    }

    /// Takes all values above the last mark, and the mark.
    fn since_mark(&mut self) -> Result<Vec<Item>, PickleError> {
        let mark = self.marks.pop().ok_or_else(|| self.damaged("finds no mark on the stack"))?;
        // What is taken was pushed, so it is bounded.
        Ok(self.stack.split_off(mark))
    }

    fn put(&mut self, place: usize) -> Result<(), PickleError> {
        self.step()?;
        let item = self.top()?;
        let entries = self.memo.len();
        match self.memo.get_mut(place) {
            Some(present) => *present = item,
            // Python 2 counts from 1.
            None if place <= entries + 1 => {
                self.memo.resize(place, Item::Unset);
                self.memo.push(item);
            }
            None => return Err(self.damaged("has a memo index that does not follow the one before")),
        }
        Ok(())
    }

    fn get(&mut self, place: usize) -> Result<(), PickleError> {
        match self.memo.get(place) {
            None | Some(Item::Unset) => Err(self.damaged("names a memo entry that is not there")),
            Some(item) => self.push(*item),
        }
    }

    fn number(&mut self, number: Option<Number>, bytes: usize) -> Result<Item, PickleError> {
        match number {
            Some(Number::Small(number)) => Ok(Item::Int(number)),
            Some(Number::Large(digits)) => {
                self.integers += bytes;
                if self.integers > limits::INTEGERS {
                    let limit = limits::INTEGERS;
                    return Err(PickleError::new(format!("the pickle has more than {limit} bytes of large integers")));
                }
                self.arena.add(Node::Integer(digits))
            }
            None => {
                let limit = limits::DIGITS;
                Err(self.damaged(&format!("has no integer of at most {limit} digits")))
            }
        }
    }

    fn place(&mut self) -> Result<usize, PickleError> {
        self.line()?.parse().map_err(|_| self.damaged("has no memo index"))
    }

    /// Takes bytes of a fixed number.
    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], PickleError> {
        let rest = self.arena.input.get(self.at..).unwrap_or_default();
        let bytes = rest.first_chunk().ok_or_else(|| self.damaged("is cut off"))?;
        self.at += N;
        Ok(bytes)
    }

    /// Takes bytes after their number, which has `N` bytes itself.
    fn span<const N: usize>(&mut self) -> Result<Span, PickleError> {
        let declared: [u8; N] = *self.array()?;
        let mut whole = [0; 8];
        whole[..N].copy_from_slice(&declared);
        let length = u64::from_le_bytes(whole);
        if length > (self.arena.input.len() - self.at) as u64 {
            return Err(self.damaged("is cut off"));
        }
        // The input is shorter than 2³² bytes, and both numbers lie within it.
        let span = Span { begin: self.at as u32, length: length as u32 };
        self.at += length as usize;
        Ok(span)
    }

    fn sized<const N: usize>(&mut self) -> Result<&'a [u8], PickleError> {
        let span = self.span::<N>()?;
        Ok(self.arena.bytes(span))
    }

    fn text<const N: usize>(&mut self) -> Result<Item, PickleError> {
        let span = self.span::<N>()?;
        match std::str::from_utf8(self.arena.bytes(span)) {
            Ok(_) => Ok(Item::Text(span)),
            Err(_) => Err(self.damaged("has a text that is not UTF-8, or holds a lone surrogate")),
        }
    }

    fn ascii<const N: usize>(&mut self) -> Result<Item, PickleError> {
        let span = self.span::<N>()?;
        if self.arena.bytes(span).is_ascii() {
            Ok(Item::Text(span))
        } else {
            Err(self.damaged("has a text of Python 2 that is not ASCII"))
        }
    }

    /// Takes a line of text, without its end.
    fn line(&mut self) -> Result<&'a str, PickleError> {
        let line = self.line_bytes()?;
        std::str::from_utf8(line).map_err(|_| self.damaged("has a line that is not UTF-8"))
    }

    fn line_bytes(&mut self) -> Result<&'a [u8], PickleError> {
        let rest = self.arena.input.get(self.at..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or_else(|| self.damaged("is cut off"))?;
        self.at += end + 1;
        Ok(&rest[..end])
    }

    fn damaged(&self, what: &str) -> PickleError {
        let name = op::name(self.opcode).unwrap_or("beginning");
        PickleError::new(format!("the pickle is damaged: its {name} before byte {} {what}", self.at))
    }
}

fn pairs(items: &[Item]) -> Option<Vec<(Item, Item)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[key, value]| (*key, *value)).collect())
}

/// Reads Python's `repr` of an ASCII text, the form of Python 2.
fn unquoted(line: &str) -> Option<String> {
    let quote = line.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    let inner = line.get(1..)?.strip_suffix(quote)?;
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner.chars();
    while let Some(character) = rest.next() {
        if character != '\\' {
            text.push(character);
            continue;
        }
        text.push(match rest.next()? {
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'x' => {
                let code = rest.by_ref().take(2).collect::<String>();
                u8::from_str_radix(&code, 16).ok().filter(u8::is_ascii)?.into()
            }
            plain @ ('\\' | '\'' | '"') => plain,
            _ => return None,
        });
    }
    text.is_ascii().then_some(text)
}

/// Reads a text in Latin-1, in which `\uXXXX` and `\UXXXXXXXX` stand for other characters.
fn unescaped(line: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((first, after)) = rest.split_first() {
        let length = match (first, after.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                text.push(char::from(*first));
                rest = after;
                continue;
            }
        };
        let digits = std::str::from_utf8(after.get(1..=length)?).ok()?;
        let code = u32::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?;
        text.push(char::from_u32(code)?);
        rest = &after[length + 1..];
    }
    Some(text)
}
