//! Who we are to Google: credentials, and the key that signs URLs.

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

/// How somebody gets a key file.
const MEND: &str = "name a service account's key or an external account's configuration in gcs_credentials_path, or \
                    leave it out and log in with `gcloud auth application-default login`";

/// Gives requests their authorization. Cheap to clone.
///
/// A key file that was replaced is read before the next request, and credentials or tokens that were refused are had anew,
/// such as a token that ran out while the machine slept: neither needs a restart.
#[derive(Clone)]
pub(super) struct Login(Arc<Inner>);

struct Inner {
    source: UploadSource,
    patience: Duration,
    held: Mutex<Held>,
    /// A token was had once: whoever gives it is known here.
    known: AtomicBool,
}

/// What was had last.
#[derive(Clone)]
struct Held {
    credentials: Credentials,
    signer: Result<Signer, String>,
    /// Of the key file when this was read from it.
    stamp: Option<Stamp>,
}

/// Where credentials come from.
#[derive(Debug)]
enum UploadSource {
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
            _ if emulator => UploadSource::Anonymous,
            Some(file) => UploadSource::File(file.to_owned()),
            None => UploadSource::Default,
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
        Ok(Self(Arc::new(Inner { source, patience, held, known: AtomicBool::new(false) })))
    }

    /// Returns the headers that authorize a request.
    pub(super) async fn authorize(&self) -> Result<HeaderMap, GcsFault> {
        match self.headers(Extensions::new()).await {
            Ok(CacheableResource::New { data, .. }) => Ok(data),
            Ok(CacheableResource::NotModified) => Ok(HeaderMap::new()),
            Err(error) => Err(GcsFault::from(&error)),
        }
    }

    /// Builds the credentials anew for the next request, after the present ones were refused.
    pub(super) async fn renew(&self) {
        // What cannot be built now leaves the old ones, whose error says more.
        if let Ok(fresh) = self.0.source.build().await {
            self.0.held.lock().unwrap_or_else(PoisonError::into_inner).credentials = fresh;
        }
    }

    /// Returns what signs URLs.
    ///
    /// # Errors
    ///
    /// Why nothing does, and the mend.
    pub(super) async fn signer(&self) -> Result<Signer, String> {
        self.held().await.signer
    }

    /// Returns what was had last, after reading a key file that was replaced since. One that is missing or broken meanwhile
    /// changes nothing.
    async fn held(&self) -> Held {
        let held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let UploadSource::File(file) = &self.0.source else { return held };
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
        let asked = tokio::time::timeout(self.0.patience, credentials.headers(extensions)).await;
        let Ok(outcome) = asked else {
            let seconds = self.0.patience.as_secs_f64();
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
                // Who was logged in is so still: the names of this network are not to be had just now.
                let passes = self.0.known.load(Ordering::Relaxed) && nobody_is_logged_in(&error);
                Err(if passes { CredentialsError::from_msg(true, root(&error)) } else { error })
            }
        }
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

impl UploadSource {
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

async fn read(file: &Path) -> Result<Value, String> {
    let text = tokio::fs::read(file).await.map_err(|error| unusable(file, &format!("cannot be read: {error}")))?;
    // What the parser says may quote the file.
    let json: Value = serde_json::from_slice(&text)
        .map_err(|error| unusable(file, &format!("is no JSON (line {}, column {})", error.line(), error.column())))?;
    for member in ["private_key", "client_secret", "refresh_token"] {
        json.get(member).and_then(Value::as_str).into_iter().for_each(redact::remember);
    }
    Ok(json)
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
    format!("the credentials file {} {why}; {MEND}", redact::path(file))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

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

    /// Who a token was made for, by its own words.
    fn issuer(headers: &HeaderMap) -> String {
        use base64::Engine as _;
        let token = headers[http::header::AUTHORIZATION].to_str().unwrap().strip_prefix("Bearer ").unwrap();
        let claims = token.split('.').nth(1).unwrap();
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
        serde_json::from_slice::<Value>(&claims).unwrap()["iss"].as_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_key_file_authorizes_without_asking_anybody_and_may_be_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (file, key) = (folder.path().join("key.json"), private_key());
        write(&file, &key, "one@p.iam");
        let login = Login::open(Some(&file), false, PATIENCE).await.unwrap();
        assert_eq!(issuer(&login.authorize().await.unwrap()), "one@p.iam");
        write(&file, &key, "two@p.iam");
        assert_eq!(issuer(&login.authorize().await.unwrap()), "two@p.iam");
        assert_eq!(login.signer().await.unwrap().client_email().await.unwrap(), "two@p.iam");
        // What is no key file any more leaves the old one.
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
    async fn an_emulator_is_told_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key.json");
        write(&file, &private_key(), "one@p.iam");
        let login = Login::open(Some(&file), true, PATIENCE).await.unwrap();
        assert!(login.authorize().await.unwrap().is_empty() && login.signer().await.is_ok());
        let login = Login::open(None, true, PATIENCE).await.unwrap();
        assert!(login.authorize().await.unwrap().is_empty());
        assert!(login.signer().await.unwrap_err().contains("gcs_credentials_path"));
    }

    #[tokio::test]
    async fn an_external_account_is_taken_and_does_not_sign() {
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
        let login = Login::open(Some(&file), false, PATIENCE).await.unwrap();
        assert!(login.signer().await.unwrap_err().contains("cannot sign"));
        // Its server is away, which may pass.
        let fault = login.authorize().await.unwrap_err();
        assert!(matches!(&fault, GcsFault::Login { passing: true, .. }), "{fault:?}");
    }
}
