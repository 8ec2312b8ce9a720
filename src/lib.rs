//! filestorage: a storage engine that Celery producers command through RabbitMQ.
//!
//! A producer publishes `filestorage.store` to a queue. The worker runs this command, writes the value to stable storage,
//! answers on the producer's reply queue, and publishes a metric event.
//!
//! # Rooms
//!
//! A room is a folder or a file directly below `src/` with one idea.
//!
//! | room | idea |
//! |---|---|
//! | [`json`] | reads and writes Python's JSON without loss |
//! | [`celery`] | Celery's protocol as data, without I/O: messages, requests, replies, follow-ups |
//! | [`broker`] | sessions with RabbitMQ; the only room that imports lapin |
//! | [`storage`] | values under keys; knows no queue |
//! | [`commands`] | the tasks: typed arguments in, JSON out; know the storage engine and no queue |
//! | [`results`] | where answers go, apart from the transport of the commands |
//! | [`worker`] | joins broker, celery, commands, results and telemetry: from a delivery to its acknowledgement |
//! | [`config`] | the settings, from raw text to checked values |
//! | [`telemetry`] | logs, metrics, readiness, the admin port, reports to the service manager |
//! | `wiring` | builds storage stack, buckets and broker options from the settings |
//! | [`cli`] | the command line, one file or folder for each subcommand |
//! | [`redact`] | hides secrets in every text that is shown |
//! | [`broker_url`], [`redis_url`], [`encryption_key`], [`provider`], [`queue_name`], [`quota_rule`] | rules for the URLs of brokers and result backends, encryption keys, the names of buckets, the names of queues and quotas |
//! | [`charset`], [`instant`] | charsets, dates and times as Python writes them |
//!
//! Inside [`storage`]:
//!
//! | room | idea |
//! |---|---|
//! | `engine` | executes commands over a backend: keys, receipts, conditions, redelivered commands |
//! | `object` | the data: key, value, payload, attributes, metadata |
//! | `layers` | backends around a backend: cache, metrics, retries, circuit breaker, compression and encryption, fallback, old files |
//! | `legacy` | what the Python class `FileStorage` wrote: pickles, sidecars and names, as data only |
//! | `invalidation` | the announcement of changed keys to other workers |
//! | `reading` | reads one object of a backend as the bytes of its value |
//! | `backends` | the places that store objects: local disk, Cloud Storage, S3, memory |
//! | `external` | references of commands to files and objects outside the store |
//! | `files` | atomic files and the spool |
//!
//! # Arrows
//!
//! Each room may use those rooms that follow its arrow:
//!
//! ```text
//! main, cli  ─► everything
//! wiring     ─► broker, broker_url, config, provider, redact, redis_url, results, storage, telemetry
//! worker     ─► broker, celery, commands, json, redact, results, telemetry
//! results    ─► broker::{Publisher, Confirmation, PublishError}, celery, json, redis_url, telemetry::Component
//! commands   ─► instant, json, provider, storage
//! broker     ─► broker_url, celery::message, queue_name, redact
//! storage    ─► charset, encryption_key, json, provider, quota_rule, redact, telemetry
//! celery     ─► charset, instant, json
//! config     ─► broker_url, encryption_key, provider, queue_name, quota_rule, redact, redis_url
//! broker_url, redis_url, telemetry ─► redact
//! charset, encryption_key, instant, json, provider, queue_name, quota_rule, redact ─► nothing
//! ```
//!
//! The test `architecture` reads the sources and fails on any other use, also between the rooms inside [`storage`].
//!
//! # One command's journey
//!
//! ```text
//! 1 broker      delivery of lapin → Message, Origin, acknowledgement token
//! 2 worker      the policy decides: run, answer at once, delay, give up; the journal knows redelivered commands
//! 3 celery      Message → TaskRequest
//! 4 commands    name → command; JSON → typed arguments
//! 5 worker      the command waits for its permit and for earlier commands on its keys; the journal notes the start
//! 6 storage     engine → backend, up to the commit point
//! 7 worker      the journal notes the outcome; reply, follow-ups and event become publications
//! 8 broker      the publications are sent, in one batch with others, and confirmed
//! 9 worker      the delivery is acknowledged: the end
//! ```
//!
//! Start to read at [`worker`], which conducts this journey.

pub mod broker;
pub mod broker_url;
pub mod celery;
pub mod charset;
pub mod cli;
pub mod commands;
pub mod config;
pub mod encryption_key;
pub mod instant;
pub mod json;
pub mod provider;
pub mod queue_name;
pub mod quota_rule;
pub mod redact;
pub mod redis_url;
pub mod results;
pub mod storage;
pub mod telemetry;
mod wiring;
pub mod worker;
