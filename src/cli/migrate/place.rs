//! The places that `migrate` copies from and to.

use std::fmt;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

use crate::config::StorageSettings;
use crate::provider::Provider;
use crate::redact;
use crate::wiring::{Code, Failure, stack};

/// A place to copy values from or to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The local store below this folder, which is like that of `local_storage_path`.
    Local(PathBuf),
    /// A bucket.
    Bucket(Provider, String),
}

impl Place {
    /// Parses a place: a URL, or a word for a place that the settings name.
    pub(super) fn parse(text: &str, settings: &StorageSettings) -> Result<Self, Failure> {
        let named = |bucket: &Option<String>, provider, setting: &str| match bucket {
            Some(bucket) => Ok(Self::Bucket(provider, bucket.clone())),
            None => Err(Failure::new(
                Code::Usage,
                format!("{text} stands for the bucket that {setting} names, which is unset; set it, or give a URL"),
            )),
        };
        match text {
            "local" => return Ok(Self::Local(settings.local_storage_path.clone())),
            "gcs" => return named(&settings.gcs.bucket, Provider::Gcs, "gcs_bucket_name"),
            "s3" => return named(&settings.s3.bucket, Provider::S3, "s3_bucket_name"),
            _ => {}
        }
        match text.split_once("://") {
            Some(("gs", name)) => Self::bucket(Provider::Gcs, name),
            Some(("s3", name)) => Self::bucket(Provider::S3, name),
            Some(("file", path)) => Self::folder(text, path),
            _ => {
                let forms = "local, gcs, s3, gs://BUCKET, s3://BUCKET or file:///PATH";
                Err(Failure::new(
                    Code::Usage,
                    format!("{} is not a place; a place is one of {forms}", redact::word(text)),
                ))
            }
        }
    }

    fn bucket(provider: Provider, name: &str) -> Result<Self, Failure> {
        let name = name.strip_suffix('/').unwrap_or(name);
        if provider.allows(name) {
            return Ok(Self::Bucket(provider, name.to_owned()));
        }
        let remedy = if name.contains('/') { "; a part of a bucket is chosen with --prefix" } else { "" };
        Err(Failure::new(Code::Usage, format!("bucket {}: must be {}{remedy}", redact::word(name), provider.rule())))
    }

    fn folder(text: &str, path: &str) -> Result<Self, Failure> {
        let path = percent_decode_str(path).decode_utf8().ok();
        match path.filter(|path| Path::new(path.as_ref()).is_absolute()) {
            Some(path) => Ok(Self::Local(PathBuf::from(path.into_owned()))),
            None => Err(Failure::new(
                Code::Usage,
                format!("{text:?} is not a local place; write it as file:///absolute/path"),
            )),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(formatter, "{}", path.display()),
            Self::Bucket(provider, name) => formatter.write_str(&stack::url(*provider, name)),
        }
    }
}
