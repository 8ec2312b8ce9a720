//! filestorage: a storage engine behind Celery.
//!
//! A Celery producer puts `filestorage.store` on a RabbitMQ queue; this worker runs it, keeps the value on stable
//! storage, answers on the producer's reply queue and tells of it with a metric event.
//!
//! # Rooms and arrows
//!
//! ```text
//! main, cli ─► everything            worker ─► broker, celery, commands, telemetry
//! commands ─► storage                broker ─► celery::message        storage ─► telemetry
//! celery ─► nothing of ours          config ─► nothing of ours        json, redact: leaves, open to all
//! ```
//!
//! `tests/architecture.rs` reads the sources and fails on any other arrow.
//!
//! # One command's journey
//!
//! ```text
//! 1 broker      lapin delivery → Message, Origin, Ticket
//! 2 worker      desk decides: run, answer at once, park, give up; the journal knows redelivered ids
//! 3 celery      Message → TaskRequest
//! 4 commands    name → command; JSON → typed arguments
//! 5 worker      schedule: a permit, the order of its keys; the journal says it started
//! 6 storage     engine → backend, up to the commit point
//! 7 worker      the answer goes into the journal; desk makes a parcel of reply, follow-ups and event
//! 8 broker      the parcel is published with others and confirmed
//! 9 worker      shift settles the ticket: the end
//! ```
//!
//! Start reading at [`worker`]: `shift.rs` conducts one session, `desk.rs` holds the rules.

pub mod broker;
pub mod broker_url;
pub mod celery;
pub mod charset;
pub mod cli;
pub mod commands;
pub mod config;
pub mod instant;
pub mod json;
pub mod provider;
pub mod redact;
pub mod storage;
pub mod telemetry;
mod wiring;
pub mod worker;
