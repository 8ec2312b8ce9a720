//! What both clouds need of HTTP.

pub(in crate::storage) mod leftovers;
pub(in crate::storage) mod outside;
pub(in crate::storage) mod pages;

pub use self::leftovers::settled;
