//! Settings: raw, then checked.
