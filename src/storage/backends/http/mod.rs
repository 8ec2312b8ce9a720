//! HTTP code that both clouds need.

pub(in crate::storage) mod cleanup;
mod headers;
pub(in crate::storage) mod outside;
pub(in crate::storage) mod pages;

pub use self::cleanup::wait_for_cleanup;
#[cfg(test)]
pub(in crate::storage) use self::headers::LONGEST_TEXT;
pub(in crate::storage) use self::headers::{clock_skew, cut, date, retry_after, text};
