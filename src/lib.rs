//! filestorage: a storage engine behind Celery.

pub mod celery;
pub mod json;
pub mod storage;
