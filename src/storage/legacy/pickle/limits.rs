//! The bounds of a pickle that is read. Each keeps the memory of one reading below 400 MB.

/// The largest pickle in bytes.
pub(in crate::storage) const BYTES: usize = 64 << 20;

/// The largest number of values that are pushed on the stack, of marks, and of entries of the memo together.
pub(super) const STEPS: usize = 4 << 20;

/// The largest number of containers, and of values that are not a part of the pickle's own bytes.
pub(super) const NODES: usize = 1 << 20;

/// The deepest nesting of a value, that of any JSON value of this program.
pub(super) const DEPTH: usize = crate::json::MAX_DEPTH;

/// The longest integer in decimal digits, Python's own limit (`sys.int_info.default_max_str_digits`).
pub(super) const DIGITS: usize = 4300;

/// The largest number of bytes of all integers beyond 64 bits together; their conversion takes quadratic time.
pub(super) const INTEGERS: usize = 1 << 20;

/// The work on one member of a dict, as that on so many bytes of a key.
pub(super) const MEMBER: u64 = 16;

/// The most work on the members of dicts for each byte that may be written. A member takes 5 bytes at least: `"":1,`.
pub(super) const WORK: u64 = 4;

/// The largest value in bytes, as it is written.
pub(in crate::storage) const WRITTEN: u64 = 64 << 20;
