//! The byte stream of a connection, in which two faults of the library are mended before it reads.
//!
//! Both are in the crate `amq-protocol-types` 10.6, which lapin 4.12 reads frames with:
//!
//! - `parse_short_string` takes UTF-8 only. One message id, routing key or header name with other bytes, which AMQP allows,
//!   ends the connection. The broker delivers the same message to the next connection, which ends as well.
//! - `parse_field_table` and `parse_field_array` recurse without a limit, so a deeply nested header ends the process.
//!
//! This module may go when the crate keeps short strings as bytes and limits its recursion. Its tests feed the library the
//! unmended bytes and fail once it reads them.

mod scrubber;
mod stream;

pub(super) use stream::connect as open_stream;
