//! Joins all: the life of one delivery.
