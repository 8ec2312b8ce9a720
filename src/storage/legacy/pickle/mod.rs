//! Reads Python's pickles as data, and runs nothing.
//!
//! A pickle is a program for a small stack machine. [`Pickle::read`] carries out the part of it that builds values:
//! `None`, booleans, numbers, texts, bytes, lists, tuples, dicts and sets, of protocols 0 to 5. Of the calls, only those
//! of a fixed table are understood ([`call`]), each as the value that Python would have made: dates, times, `Decimal`,
//! `UUID`, and the dicts of `collections`. Every other class, and every other opcode, ends the reading with an error that
//! names it. No class is ever looked up.
//!
//! # Bounds
//!
//! The input, the stack, the memo and the number of containers are bounded by [`limits`]. No length that the pickle
//! declares is allocated before as many bytes are there. Memo indices must follow each other, so a large index costs
//! nothing (CPython gh-115952). A value is written without recursion beyond a fixed depth, and what is written is
//! bounded, too: a small pickle whose lists share their members may stand for a very large value.

mod call;
mod fault;
mod item;
pub(in crate::storage) mod limits;
mod machine;
mod number;
mod opcode;
mod time;
mod write;

pub(in crate::storage) use self::fault::PickleError;
pub(in crate::storage) use self::machine::Pickle;
pub(in crate::storage) use self::write::{Types, WriteFault};

/// Tells whether bytes begin as a pickle of protocol 2 to 5 does, the only ones that Python 3 writes by itself.
///
/// The first byte never begins a text in UTF-8.
pub(in crate::storage) const fn is_pickle(bytes: &[u8]) -> bool {
    matches!(bytes, [0x80, 2..=5, ..])
}

#[cfg(test)]
mod tests;
