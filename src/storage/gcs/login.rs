//! Who we are to Google: credentials, and the key that signs URLs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use google_cloud_auth::build_errors::Error as BuildError;
use google_cloud_auth::credentials::{
    self, CacheableResource, Credentials, CredentialsProvider, anonymous, external_account, impersonated,
    service_account, user_account,
};
use google_cloud_auth::errors::CredentialsError;
use google_cloud_auth::signer::Signer;
use http::{Extensions, HeaderMap};
use serde_json::Value;

use super::error::{Fault, chain, root};

/// How somebody gets a key file.
const MEND: &str = "name a service account's key or an external account's configuration in gcs_credentials_path, or \
                    leave it out and log in with `gcloud auth application-default login`";

/// Gives requests their authorization. Cheap to clone.
///
/// Credentials that were refused for good are built anew for the next request, so that a key file replaced or a right
/// restored is noticed without a restart.
#[derive(Clone)]
pub(super) struct Login(Arc<Inner>);

struct Inner {
    source: Source,
    patience: Duration,
    current: Mutex<Credentials>,
    signer: Result<Signer, String>,
}

/// Where credentials come from.
#[derive(Debug)]
enum Source {
    /// Nowhere: an emulator asks for none.
    Anonymous,
    /// Application default credentials.
    Default,
    File(PathBuf),
}

impl Login {
    /// Reads the credentials and asks nobody whether they are good; an emulator gets none, a key file signs all the same.
    ///
    /// # Errors
    ///
    /// What is wrong with them, and the mend.
    pub(super) async fn open(file: Option<&Path>, emulator: bool, patience: Duration) -> Result<Self, String> {
        let source = match file {
            _ if emulator => Source::Anonymous,
            Some(file) => Source::File(file.to_owned()),
            None => Source::Default,
        };
        let signer = match file {
            Some(file) => signer_of(file, &read(file).await?).await?,
            None if emulator => {
                Err("an emulator is asked without credentials; name a service account's key in gcs_credentials_path"
                    .to_owned())
            }
            None => credentials::Builder::default().build_signer().map_err(|_| {
                "the credentials of a person cannot sign; name a service account's key in gcs_credentials_path"
                    .to_owned()
            }),
        };
        let current = Mutex::new(source.build().await?);
        Ok(Self(Arc::new(Inner { source, patience, current, signer })))
    }

    /// Returns the headers that authorize a request.
    pub(super) async fn authorize(&self) -> Result<HeaderMap, Fault> {
        match self.headers(Extensions::new()).await {
            Ok(CacheableResource::New { data, .. }) => Ok(data),
            Ok(CacheableResource::NotModified) => Ok(HeaderMap::new()),
            Err(error) => Err(fault(&error)),
        }
    }

    /// Returns what signs URLs.
    ///
    /// # Errors
    ///
    /// Why nothing does, and the mend.
    pub(super) fn signer(&self) -> Result<&Signer, &str> {
        self.0.signer.as_ref().map_err(String::as_str)
    }

    fn current(&self) -> Credentials {
        self.0.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl CredentialsProvider for Login {
    async fn headers(&self, extensions: Extensions) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        let asked = tokio::time::timeout(self.0.patience, self.current().headers(extensions)).await;
        let Ok(outcome) = asked else {
            let seconds = self.0.patience.as_secs_f64();
            return Err(CredentialsError::from_msg(true, format!("no answer within {seconds} s")));
        };
        if outcome.as_ref().is_err_and(|error| !error.is_transient())
            && let Ok(fresh) = self.0.source.build().await
        {
            *self.0.current.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
        outcome
    }

    /// Only Google's own: asking would be a request to the metadata server before anything else.
    async fn universe_domain(&self) -> Option<String> {
        None
    }
}

/// Shows no secret.
impl fmt::Debug for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Login").field(&self.0.source).finish()
    }
}

impl Source {
    async fn build(&self) -> Result<Credentials, String> {
        match self {
            Self::Anonymous => Ok(anonymous::Builder::new().build()),
            Self::Default => credentials::Builder::default()
                .build()
                .map_err(|error| format!("the application default credentials {}; {MEND}", flaw(&error))),
            Self::File(file) => {
                let json = read(file).await?;
                let built = match kind(&json) {
                    Some("service_account") => service_account::Builder::new(json).build(),
                    Some("external_account") => external_account::Builder::new(json).build(),
                    Some("authorized_user") => user_account::Builder::new(json).build(),
                    Some("impersonated_service_account") => impersonated::Builder::new(json).build(),
                    _ => return Err(unusable(file, "has no `type` that is known")),
                };
                built.map_err(|error| unusable(file, flaw(&error)))
            }
        }
    }
}

/// Turns failed credentials into a fault.
pub(super) fn fault(error: &CredentialsError) -> Fault {
    let says = |word: &str| chain(error).any(|cause| cause.to_string().contains(word));
    // Only inside Google Cloud has its metadata server a name; elsewhere nobody has logged in, which does not pass.
    if says("application-default login") && says("dns error") {
        return Fault::Login { passing: false, why: "nobody has logged in on this machine".to_owned() };
    }
    Fault::Login { passing: error.is_transient(), why: root(error) }
}

async fn read(file: &Path) -> Result<Value, String> {
    let text = tokio::fs::read(file).await.map_err(|error| unusable(file, &format!("cannot be read: {error}")))?;
    // What the parser says may quote the file.
    serde_json::from_slice(&text)
        .map_err(|error| unusable(file, &format!("is no JSON (line {}, column {})", error.line(), error.column())))
}

/// Returns what signs with the file's key, or why nothing does; fails for a key that is none.
async fn signer_of(file: &Path, json: &Value) -> Result<Result<Signer, String>, String> {
    let json = json.clone();
    match kind(&json) {
        Some("service_account") => {
            let signer = service_account::Builder::new(json).build_signer();
            let signer = signer.map_err(|error| unusable(file, flaw(&error)))?;
            // The key itself is looked at only when it signs, which asks nobody.
            match signer.sign("is this a key?").await {
                Ok(_) => Ok(Ok(signer)),
                Err(_) => Err(unusable(file, "holds no private key that can be used")),
            }
        }
        Some("impersonated_service_account") => {
            Ok(impersonated::Builder::new(json).build_signer().map_err(|error| unusable(file, flaw(&error))))
        }
        _ => Ok(Err(unusable(file, "cannot sign"))),
    }
}

fn kind(json: &Value) -> Option<&str> {
    json.get("type")?.as_str()
}

/// Says what is wrong with credentials without the library's words, which may quote them.
fn flaw(error: &BuildError) -> &'static str {
    if error.is_loading() {
        "cannot be read"
    } else if error.is_missing_field() {
        "lack a field"
    } else if error.is_unknown_type() || error.is_not_supported() {
        "are of a type that is not known"
    } else {
        "have not the fields they must have"
    }
}

fn unusable(file: &Path, why: &str) -> String {
    format!("the credentials file {} {why}; {MEND}", file.display())
}
