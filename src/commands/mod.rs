//! The tasks: typed arguments in, JSON out.
