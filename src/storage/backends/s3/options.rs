//! The options of a bucket: its address and credentials, parsed once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use reqwest::Url;

use super::keys::FileKeys;
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::files::Spool;

/// The options of a bucket of S3 or of a store with the same API.
#[derive(Clone)]
pub struct S3Options {
    /// Name of the bucket.
    pub bucket: String,
    /// `http://…` or `https://…` of a store that is not Amazon's. The bucket becomes the first segment of the path.
    pub endpoint: Option<String>,
    /// The region for which requests are signed; by default `us-east-1`.
    pub region: Option<String>,
    /// The `AWS_*` variables as they were given: credentials, and endpoint and region where those above are unset.
    pub aws: BTreeMap<String, String>,
    /// The files of those variables whose values are in files. They are read again when they change.
    pub aws_files: BTreeMap<String, PathBuf>,
    /// Longest wait for a connection, for an answer once the request is sent, and between two pieces of the answer.
    pub timeout: Duration,
    /// The spool for payloads that are requested as files.
    pub spool: Spool,
}

impl fmt::Debug for S3Options {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("S3Options")
            .field("bucket", &self.bucket)
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            // Only names, because some of the values are secrets.
            .field("aws", &self.aws.keys())
            .field("aws_files", &self.aws_files)
            .field("timeout", &self.timeout)
            .field("spool", &self.spool)
            .finish()
    }
}

/// The address of a bucket.
#[derive(Clone, Debug)]
pub(super) struct S3Address {
    pub(super) bucket: String,
    pub(super) region: String,
    /// The URL of the bucket, without a slash at its end.
    pub(super) url: String,
    /// The setting that names the endpoint; `None` for Amazon's.
    pub(super) setting: Option<&'static str>,
    /// Whether credentials can only come from the metadata service of an EC2 instance.
    pub(super) only_instance_credentials: bool,
}

impl S3Address {
    /// Tells whether the store is used without TLS.
    pub(super) fn is_plain(&self) -> bool {
        self.url.starts_with("http://")
    }

    /// Tells whether a listing with this name is one of the bucket. Listings of access points have the names of their
    /// buckets.
    pub(super) fn is_named(&self, name: &str) -> bool {
        let alias = ["-s3alias", "--ol-s3", "--xa-s3"].iter().any(|end| self.bucket.ends_with(end));
        // The name of a tenant may precede the bucket's name.
        alias || name == self.bucket || name.rsplit([':', '/']).next() == Some(&*self.bucket)
    }

    /// Returns the setting that names the server, and the remedy for a wrong one.
    pub(super) fn setting_and_remedy(&self) -> (&'static str, &'static str) {
        match self.setting {
            Some(setting) => {
                (setting, "give it the address of the store's S3 API, not that of a console or of a web page")
            }
            None => (
                "s3_endpoint_url, which is unset",
                "check the proxies and servers between this machine and Amazon, or set s3_endpoint_url",
            ),
        }
    }

    /// Explains how endpoint and bucket are set separately.
    pub(super) fn without_bucket(&self) -> String {
        let (Self { bucket, .. }, setting) = (self, self.setting.unwrap_or("s3_endpoint_url"));
        format!(
            "does {setting} name a bucket, in its path or its host? leave that out: {setting} is the store's address alone, \
             and s3_bucket_name names the bucket {bucket:?}; where AWS_VIRTUAL_HOSTED_STYLE_REQUEST is true, {setting}'s host \
             begins with the bucket's name"
        )
    }
}

/// Tells whether a variable has a meaning here. `object_store` knows more, for requests that it would send itself.
const fn is_known(key: &AmazonS3ConfigKey) -> bool {
    use AmazonS3ConfigKey as Known;
    matches!(
        key,
        Known::AccessKeyId
            | Known::SecretAccessKey
            | Known::Token
            | Known::Region
            | Known::DefaultRegion
            | Known::Endpoint
            | Known::S3Endpoint
            | Known::VirtualHostedStyleRequest
            | Known::MetadataEndpoint
            | Known::ImdsV1Fallback
            | Known::ContainerCredentialsRelativeUri
            | Known::ContainerCredentialsFullUri
            | Known::ContainerAuthorizationTokenFile
            | Known::WebIdentityTokenFile
            | Known::RoleArn
            | Known::RoleSessionName
            | Known::StsEndpoint
    )
}

/// Turns options into an address and a builder of credentials.
///
/// # Errors
///
/// [`ErrorKind::Invalid`] with the setting and its rule.
pub(super) fn parse(options: &S3Options) -> Result<(S3Address, AmazonS3Builder)> {
    let bucket = &options.bucket;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if bucket.is_empty() || matches!(&**bucket, "." | "..") || !bucket.bytes().all(legal) {
        return Err(invalid(format!("{bucket:?} is no bucket name; give the name alone, without s3:// and path")));
    }
    let mut builder = AmazonS3Builder::new().with_bucket_name(bucket);
    for (name, value) in &options.aws {
        let Ok(key) = name.to_ascii_lowercase().parse() else { continue };
        // `AWS_ENDPOINT` is another spelling that no tool of Amazon knows and that the overlay's name does not cover.
        if value.is_empty() || !is_known(&key) || name.eq_ignore_ascii_case("AWS_ENDPOINT") {
            continue;
        }
        // A value that is sent in a header must be a legal one.
        if !value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err(invalid(format!("{name} contains something else than printable ASCII; correct it")));
        }
        let service = matches!(
            key,
            AmazonS3ConfigKey::StsEndpoint
                | AmazonS3ConfigKey::MetadataEndpoint
                | AmazonS3ConfigKey::ContainerCredentialsFullUri
        );
        if service && Url::parse(value).is_err() {
            return Err(invalid(format!("{name} is no URL; correct it")));
        }
        builder = builder.with_config(key, value);
    }
    let value = |key| builder.get_config_value(&key);
    let (s3, all) = (value(AmazonS3ConfigKey::S3Endpoint), value(AmazonS3ConfigKey::Endpoint));
    let named = options.endpoint.clone().or_else(|| s3.clone()).or_else(|| all.clone());
    // The options may already have the value of a variable.
    let is = |variable: &Option<String>| {
        variable
            .as_ref()
            .zip(named.as_ref())
            .is_some_and(|(one, other)| one.trim_end_matches('/') == other.trim_end_matches('/'))
    };
    let setting = named.as_ref().map(|_| match (is(&s3), s3.is_none() && is(&all)) {
        (true, _) => "AWS_ENDPOINT_URL_S3",
        (_, true) => "AWS_ENDPOINT_URL",
        _ => "s3_endpoint_url",
    });
    let endpoint = named.map(|given| endpoint_of(&given)).transpose()?;
    let region = options.region.clone().or_else(|| value(AmazonS3ConfigKey::Region));
    let region = region.unwrap_or_else(|| "us-east-1".to_owned());
    if region.is_empty() || !region.bytes().all(legal) {
        return Err(invalid(format!("{region:?} is no region; write it like `eu-central-1`")));
    }
    let named_host = value(AmazonS3ConfigKey::VirtualHostedStyleRequest).is_some_and(|given| given == "true");
    let url = match &endpoint {
        // With this setting the host of the endpoint includes the bucket already.
        Some(endpoint) if named_host => endpoint.clone(),
        Some(endpoint) => format!("{endpoint}/{bucket}"),
        None if named_host => format!("https://{bucket}.s3.{region}.amazonaws.com"),
        None => format!("https://s3.{region}.amazonaws.com/{bucket}"),
    };
    let only_instance_credentials = credentials(&value)?;
    builder = builder.with_region(&region);
    if let Some(keys) = FileKeys::of(&options.aws, &options.aws_files) {
        builder = builder.with_credentials(Arc::new(keys));
    }
    if let Some(endpoint) = endpoint {
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    Ok((S3Address { bucket: bucket.clone(), region, url, setting, only_instance_credentials }, builder))
}

/// Checks an endpoint and returns it as requests use it, without a slash at its end.
fn endpoint_of(given: &str) -> Result<String> {
    // Requests use the same parser later, where it must not fail any more.
    let url = Url::parse(given).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.host().is_some()
            && (url.username(), url.password(), url.query(), url.fragment()) == ("", None, None, None)
    });
    let url = url.ok_or_else(|| {
        let why = "the S3 endpoint is no URL of a store; write it like https://s3.example.com or http://127.0.0.1:9000";
        invalid(why.to_owned())
    })?;
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Checks the credentials that are set, and tells whether only an instance's metadata service is left to provide them.
///
/// The order is that of `object_store`, which is that of the AWS tools without their profiles.
fn credentials(value: &impl Fn(AmazonS3ConfigKey) -> Option<String>) -> Result<bool> {
    match (value(AmazonS3ConfigKey::AccessKeyId), value(AmazonS3ConfigKey::SecretAccessKey)) {
        (Some(_), Some(_)) => return Ok(false),
        (None, None) => {}
        (None, Some(_)) => {
            return Err(invalid("AWS_SECRET_ACCESS_KEY is set and AWS_ACCESS_KEY_ID is not; set both".to_owned()));
        }
        (Some(_), None) => {
            return Err(invalid("AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not; set both".to_owned()));
        }
    }
    let readable = |name: &str, file: &str| match std::fs::File::open(Path::new(file)) {
        Ok(_) => Ok(false),
        Err(error) => {
            Err(invalid(format!("{name} names {file}, which cannot be read: {error}; correct it")).with_source(error))
        }
    };
    if let (Some(file), Some(_)) = (value(AmazonS3ConfigKey::WebIdentityTokenFile), value(AmazonS3ConfigKey::RoleArn)) {
        return readable("AWS_WEB_IDENTITY_TOKEN_FILE", &file);
    }
    if value(AmazonS3ConfigKey::ContainerCredentialsRelativeUri).is_some() {
        return Ok(false);
    }
    let full = value(AmazonS3ConfigKey::ContainerCredentialsFullUri);
    if let (Some(_), Some(file)) = (full, value(AmazonS3ConfigKey::ContainerAuthorizationTokenFile)) {
        return readable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &file);
    }
    Ok(true)
}

/// Makes the error of options that cannot be used.
pub(super) fn invalid(why: String) -> Error {
    Error::new(ErrorKind::Invalid, Operation::Probe, None, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(endpoint: Option<&str>, aws: &[(&str, &str)]) -> S3Options {
        S3Options {
            bucket: "b".to_owned(),
            endpoint: endpoint.map(str::to_owned),
            region: None,
            aws: aws.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            aws_files: BTreeMap::new(),
            timeout: Duration::from_secs(1),
            spool: Spool::new("/nowhere"),
        }
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "very secret")];

    #[test]
    fn options_give_the_address_of_the_bucket() {
        let with = |more: &[(&'static str, &'static str)]| [&KEYS[..], more].concat();
        for (endpoint, aws, url, region) in [
            (None, with(&[]), "https://s3.us-east-1.amazonaws.com/b", "us-east-1"),
            (None, with(&[("AWS_DEFAULT_REGION", "eu-west-1")]), "https://s3.eu-west-1.amazonaws.com/b", "eu-west-1"),
            (
                None,
                with(&[("AWS_REGION", "eu-west-3"), ("AWS_DEFAULT_REGION", "eu-west-1")]),
                "https://s3.eu-west-3.amazonaws.com/b",
                "eu-west-3",
            ),
            (
                None,
                with(&[("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")]),
                "https://b.s3.us-east-1.amazonaws.com",
                "us-east-1",
            ),
            (Some("http://127.0.0.1:1/"), with(&[]), "http://127.0.0.1:1/b", "us-east-1"),
            (None, with(&[("AWS_ENDPOINT_URL", "https://one")]), "https://one/b", "us-east-1"),
            (
                None,
                with(&[("AWS_ENDPOINT_URL", "https://one"), ("AWS_ENDPOINT_URL_S3", "https://two/x/")]),
                "https://two/x/b",
                "us-east-1",
            ),
            (Some("https://three"), with(&[("AWS_ENDPOINT_URL_S3", "https://two")]), "https://three/b", "us-east-1"),
            (
                None,
                with(&[("AWS_ENDPOINT_URL", ""), ("AWS_UNHEARD_OF", "\n")]),
                "https://s3.us-east-1.amazonaws.com/b",
                "us-east-1",
            ),
        ] {
            let (address, _) = parse(&options(endpoint, &aws)).unwrap();
            assert_eq!((&*address.url, &*address.region), (url, region), "{aws:?}");
            assert!(!address.only_instance_credentials);
        }
        assert!(parse(&options(None, &[])).unwrap().0.only_instance_credentials);
    }

    #[test]
    fn unusable_options_are_named_and_never_shown() {
        for (endpoint, aws, named) in [
            (Some("127.0.0.1:9000"), KEYS.to_vec(), "endpoint"),
            (Some("ftp://x"), KEYS.to_vec(), "endpoint"),
            (Some("http://256.256.256.256"), KEYS.to_vec(), "endpoint"),
            (Some("http://x/?a=b"), KEYS.to_vec(), "endpoint"),
            (None, vec![("AWS_METADATA_ENDPOINT", "http://256.256.256.256")], "AWS_METADATA_ENDPOINT"),
            (Some("https://user:very-secret@x"), KEYS.to_vec(), "endpoint"),
            (None, vec![KEYS[0]], "AWS_SECRET_ACCESS_KEY"),
            (None, vec![KEYS[1]], "AWS_ACCESS_KEY_ID"),
            (None, vec![("AWS_ACCESS_KEY_ID", "very secret\n"), KEYS[1]], "AWS_ACCESS_KEY_ID"),
            (None, [&KEYS[..], &[("AWS_REGION", "eu west")]].concat(), "region"),
            (
                None,
                vec![("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere/token"), ("AWS_ROLE_ARN", "arn:x")],
                "AWS_WEB_IDENTITY_TOKEN_FILE names /nowhere/token",
            ),
        ] {
            let options = options(endpoint, &aws);
            let error = parse(&options).unwrap_err();
            assert!(error.kind == ErrorKind::Invalid && error.message().contains(named), "{error}");
            assert!(!error.to_string().contains("very"), "{error}");
            assert!(!format!("{options:?}").contains("very secret"));
        }
        for bucket in ["", "a/b", "s3://a", "..", "ü"] {
            let error = parse(&S3Options { bucket: bucket.to_owned(), ..options(None, &KEYS) }).unwrap_err();
            assert!(error.message().contains("bucket name"), "{error}");
        }
    }
}
