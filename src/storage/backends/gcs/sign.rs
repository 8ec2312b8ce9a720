//! Signed URLs, with which anybody can read or write one object for a time.

use std::time::Duration;

use google_cloud_storage::builder::storage::SignedUrlBuilder;

use super::error::GcsFault;
use super::progress::within;
use super::{Error, ErrorKind, Gcs, Grant, Key, Method, Operation};

/// Longest lifetime of a signed URL.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl Gcs {
    /// Signs a URL by Google's version 4, with the key of the key file, or by Google's signing service where there is
    /// none.
    pub(super) async fn signed(&self, key: &Key, grant: &Grant) -> Result<String, GcsFault> {
        let invalid = |why: &str| GcsFault::Other(Error::new(ErrorKind::Invalid, Operation::Sign, Some(key), why));
        if grant.lifetime < Duration::from_secs(1) || grant.lifetime > LONGEST {
            return Err(invalid("a signed URL is valid for 1 second to 7 days; give expires_in as 1 to 604800"));
        }
        let signer = self.login.signer().await.map_err(|why| invalid(&why))?;
        let method = match grant.method {
            Method::Get => http::Method::GET,
            Method::Put => http::Method::PUT,
        };
        let url = SignedUrlBuilder::for_object(self.address.resource(), key.as_str())
            .with_method(method)
            .with_expiration(grant.lifetime)
            .with_endpoint(self.address.server());
        Ok(within(self.idle_limit, url.sign_with(&signer)).await??)
    }
}
