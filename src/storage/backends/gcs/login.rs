//! Credentials for Google, and the key that signs URLs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
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

use super::error::{GcsFault, nobody_is_logged_in, root};
use crate::redact;
use crate::storage::files::Stamp;

/// How a user gets a key file.
const REMEDY: &str = "name a service account's key or an external account's configuration in gcs_credentials_path, or \
                    leave it out and log in with `gcloud auth application-default login`";

/// Authorizes requests. Cheap to clone.
///
/// A key file that was replaced is read before the next request. Credentials or tokens that were refused are obtained
/// again, such as a token that expired while the machine slept. Neither case needs a restart.
#[derive(Clone)]
pub(super) struct Login(Arc<Inner>);

struct Inner {
    source: CredentialSource,
    idle_limit: Duration,
    held: Mutex<Held>,
    /// Whether a token was obtained before, so that the token server's name can be resolved here.
    known: AtomicBool,
}

/// The credentials that were read last.
#[derive(Clone)]
struct Held {
    credentials: Credentials,
    signer: Result<Signer, String>,
    /// The stamp of the key file when the credentials were read.
    stamp: Option<Stamp>,
}

/// The source of the credentials.
#[derive(Debug)]
enum CredentialSource {
    /// No credentials, for an emulator.
    Anonymous,
    /// Application default credentials.
    Default,
    File(PathBuf),
}

impl Login {
    /// Reads the credentials without checking them. An emulator gets none, but a key file can still sign.
    ///
    /// # Errors
    ///
    /// A message that names the fault and the remedy.
    pub(super) async fn open(file: Option<&Path>, emulator: bool, idle_limit: Duration) -> Result<Self, String> {
        let source = match file {
            _ if emulator => CredentialSource::Anonymous,
            Some(file) => CredentialSource::File(file.to_owned()),
            None => CredentialSource::Default,
        };
        let stamp = file.and_then(Stamp::of);
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
        let held = Mutex::new(Held { credentials: source.build().await?, signer, stamp });
        Ok(Self(Arc::new(Inner { source, idle_limit, held, known: AtomicBool::new(false) })))
    }

    /// Returns the headers that authorize a request.
    pub(super) async fn authorize(&self) -> Result<HeaderMap, GcsFault> {
        match self.headers(Extensions::new()).await {
            Ok(CacheableResource::New { data, .. }) => Ok(data),
            Ok(CacheableResource::NotModified) => Ok(HeaderMap::new()),
            Err(error) => Err(GcsFault::from(&error)),
        }
    }

    /// Obtains new credentials for the next request, after the present ones were refused.
    pub(super) async fn renew(&self) {
        // Where no new credentials can be read, the old ones stay, whose error says more.
        if let Ok(fresh) = self.0.source.build().await {
            self.0.held.lock().unwrap_or_else(PoisonError::into_inner).credentials = fresh;
        }
    }

    /// Returns the signer of URLs.
    ///
    /// # Errors
    ///
    /// A message that says why nothing can sign, and the remedy.
    pub(super) async fn signer(&self) -> Result<Signer, String> {
        self.held().await.signer
    }

    /// Returns the credentials that were read last, after reading a key file that was replaced since.
    ///
    /// A key file that is missing or broken meanwhile changes nothing.
    async fn held(&self) -> Held {
        let held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let CredentialSource::File(file) = &self.0.source else { return held };
        let stamp = Stamp::of(file);
        if stamp.is_none() || stamp == held.stamp {
            return held;
        }
        let read =
            async { Ok::<_, String>((self.0.source.build().await?, signer_of(file, &read(file).await?).await?)) };
        let Ok((credentials, signer)) = read.await else { return held };
        tracing::info!(file = %file.display(), "the credentials file was replaced, and the new one is used");
        let fresh = Held { credentials, signer, stamp };
        *self.0.held.lock().unwrap_or_else(PoisonError::into_inner) = fresh.clone();
        fresh
    }
}

impl CredentialsProvider for Login {
    async fn headers(&self, extensions: Extensions) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        let credentials = self.held().await.credentials;
        let asked = tokio::time::timeout(self.0.idle_limit, credentials.headers(extensions)).await;
        let Ok(outcome) = asked else {
            let seconds = self.0.idle_limit.as_secs_f64();
            return Err(CredentialsError::from_msg(true, format!("no answer within {seconds} s")));
        };
        match outcome {
            Ok(headers) => {
                self.0.known.store(true, Ordering::Relaxed);
                Ok(headers)
            }
            Err(error) => {
                if !error.is_transient() {
                    self.renew().await;
                }
                // An identity that was logged in still is. The name cannot be resolved at the moment.
                let passes = self.0.known.load(Ordering::Relaxed) && nobody_is_logged_in(&error);
                Err(if passes { CredentialsError::from_msg(true, root(&error)) } else { error })
            }
        }
    }

    /// Only Google's own domain is used. A lookup would begin with a request to the metadata server.
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

impl CredentialSource {
    async fn build(&self) -> Result<Credentials, String> {
        match self {
            Self::Anonymous => Ok(anonymous::Builder::new().build()),
            Self::Default => credentials::Builder::default()
                .build()
                .map_err(|error| format!("the application default credentials {}; {REMEDY}", flaw(&error))),
            Self::File(file) => {
                let json = read(file).await?;
                let built = match kind(&json) {
                    Some("service_account") => service_account::Builder::new(json).build(),
                    Some("external_account") => external_account::Builder::new(json).build(),
                    Some("authorized_user") => user_account::Builder::new(json).build(),
                    Some("impersonated_service_account") => impersonated::Builder::new(json).build(),
                    _ => return Err(unusable(file, "has no known `type`")),
                };
                built.map_err(|error| unusable(file, flaw(&error)))
            }
        }
    }
}

async fn read(file: &Path) -> Result<Value, String> {
    let text = tokio::fs::read(file).await.map_err(|error| unusable(file, &format!("cannot be read: {error}")))?;
    // The message of the parser may quote the file.
    let json: Value = serde_json::from_slice(&text)
        .map_err(|error| unusable(file, &format!("is no JSON (line {}, column {})", error.line(), error.column())))?;
    for member in ["private_key", "client_secret", "refresh_token"] {
        json.get(member).and_then(Value::as_str).into_iter().for_each(redact::remember);
    }
    Ok(json)
}

/// Returns the signer with the key of the file, or the reason why there is none; fails for an invalid key.
async fn signer_of(file: &Path, json: &Value) -> Result<Result<Signer, String>, String> {
    let json = json.clone();
    match kind(&json) {
        Some("service_account") => {
            let signer = service_account::Builder::new(json).build_signer();
            let signer = signer.map_err(|error| unusable(file, flaw(&error)))?;
            // The key is parsed only when it signs, which needs no request.
            match signer.sign("is this a key?").await {
                Ok(_) => Ok(Ok(signer)),
                Err(_) => Err(unusable(file, "has no usable private key")),
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

/// Describes a fault of credentials without the words of the library, which may quote them.
fn flaw(error: &BuildError) -> &'static str {
    if error.is_loading() {
        "cannot be read"
    } else if error.is_missing_field() {
        "lack a field"
    } else if error.is_unknown_type() || error.is_not_supported() {
        "are of an unknown type"
    } else {
        "lack the fields that they must have"
    }
}

fn unusable(file: &Path, why: &str) -> String {
    format!("the credentials file {} {why}; {REMEDY}", redact::path(file))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const IDLE_LIMIT: Duration = Duration::from_secs(5);

    fn private_key() -> String {
        let arguments = ["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
        String::from_utf8(Command::new("openssl").args(arguments).output().unwrap().stdout).unwrap()
    }

    fn write(file: &Path, key: &str, identity: &str) {
        let json = serde_json::json!({
            "type": "service_account",
            "client_email": identity,
            "private_key_id": "1",
            "private_key": key,
            "project_id": "p",
        });
        std::fs::write(file, json.to_string()).unwrap();
    }

    /// Returns the issuer that a token names.
    fn issuer(headers: &HeaderMap) -> String {
        use base64::Engine as _;
        let token = headers[http::header::AUTHORIZATION].to_str().unwrap().strip_prefix("Bearer ").unwrap();
        let claims = token.split('.').nth(1).unwrap();
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
        serde_json::from_slice::<Value>(&claims).unwrap()["iss"].as_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_key_file_authorizes_offline_and_may_be_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (file, key) = (folder.path().join("key.json"), private_key());
        write(&file, &key, "one@p.iam");
        let login = Login::open(Some(&file), false, IDLE_LIMIT).await.unwrap();
        assert_eq!(issuer(&login.authorize().await.unwrap()), "one@p.iam");
        write(&file, &key, "two@p.iam");
        assert_eq!(issuer(&login.authorize().await.unwrap()), "two@p.iam");
        assert_eq!(login.signer().await.unwrap().client_email().await.unwrap(), "two@p.iam");
        // A broken key file leaves the old credentials in use.
        std::fs::write(&file, "{").unwrap();
        assert_eq!(issuer(&login.authorize().await.unwrap()), "two@p.iam");
        login.renew().await;
        std::fs::remove_file(&file).unwrap();
        assert_eq!(issuer(&login.authorize().await.unwrap()), "two@p.iam");
        assert!(login.signer().await.is_ok() && !format!("{login:?}").contains("PRIVATE"));
        write(&file, &key, "three@p.iam");
        assert_eq!(issuer(&login.authorize().await.unwrap()), "three@p.iam");
    }

    #[tokio::test]
    async fn an_emulator_gets_no_credentials() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key.json");
        write(&file, &private_key(), "one@p.iam");
        let login = Login::open(Some(&file), true, IDLE_LIMIT).await.unwrap();
        assert!(login.authorize().await.unwrap().is_empty() && login.signer().await.is_ok());
        let login = Login::open(None, true, IDLE_LIMIT).await.unwrap();
        assert!(login.authorize().await.unwrap().is_empty());
        assert!(login.signer().await.unwrap_err().contains("gcs_credentials_path"));
    }

    #[tokio::test]
    async fn an_external_account_is_accepted_and_cannot_sign() {
        let folder = tempfile::tempdir().unwrap();
        let (file, token) = (folder.path().join("account.json"), folder.path().join("token"));
        std::fs::write(&token, "subject").unwrap();
        let json = serde_json::json!({
            "type": "external_account",
            "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/k",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": "http://127.0.0.1:1/token",
            "credential_source": { "file": token },
        });
        std::fs::write(&file, json.to_string()).unwrap();
        let login = Login::open(Some(&file), false, IDLE_LIMIT).await.unwrap();
        assert!(login.signer().await.unwrap_err().contains("cannot sign"));
        // The token server of this account cannot be reached, which may pass.
        let fault = login.authorize().await.unwrap_err();
        assert!(matches!(&fault, GcsFault::Login { passing: true, .. }), "{fault:?}");
    }
}
