//! Celery's protocol as data: synchronous, no I/O, no queue, no storage.

pub mod message;
