//! Joins all: the life of one delivery.

#[allow(dead_code)]
mod journal;
