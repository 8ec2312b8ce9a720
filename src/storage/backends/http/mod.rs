//! What both clouds need of HTTP.

mod headers;
pub(in crate::storage) mod leftovers;
pub(in crate::storage) mod outside;
pub(in crate::storage) mod pages;

#[cfg(test)]
pub(in crate::storage) use self::headers::LONGEST_TEXT;
pub(in crate::storage) use self::headers::{clock_skew, cut, date, retry_after, text};
pub use self::leftovers::settled;
