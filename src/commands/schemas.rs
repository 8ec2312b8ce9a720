//! JSON Schemas of arguments and results.
