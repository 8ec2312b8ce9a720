//! filestorage: a storage engine behind Celery.

pub mod broker;
pub mod celery;
pub mod cli;
pub mod commands;
pub mod config;
pub mod json;
pub mod storage;
pub mod telemetry;
pub mod worker;
