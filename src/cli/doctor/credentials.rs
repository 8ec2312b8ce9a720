//! Reports which credentials the settings select and when they end; other checks show whether they are accepted.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::Value;

use super::report::Report;
use crate::config::{GcsSettings, S3Settings, Secret};
use crate::wiring::{Code, Failure};

/// Reports the credentials for Cloud Storage.
pub(super) fn gcs(report: &mut Report<'_>, settings: &GcsSettings) -> Result<(), Failure> {
    if let Some(emulator) = &settings.emulator {
        return report.fine("credentials", format!("none: the emulator at {emulator} asks for none"));
    }
    let Some(file) = &settings.credentials else {
        let what = "those of this machine: gcloud's login, else the metadata server of Google Cloud";
        return report.fine("credentials", what);
    };
    let shown = file.display();
    let Some(json) = std::fs::read(file).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok()) else {
        return report.fault(
            "credentials",
            Code::Configuration,
            format!("{shown} cannot be read, or is not JSON; name a key file in gcs_credentials_path"),
        );
    };
    let text = |pointer: &str| json.pointer(pointer).and_then(Value::as_str);
    let what = match (text("/type"), text("/client_email")) {
        (Some("service_account"), Some(email)) => {
            format!("the key of {email} in {shown}, which ends when it is deleted")
        }
        (Some("external_account"), _) => {
            if let Some(token) = text("/credential_source/file") {
                lifetime(report, Path::new(token))?;
            }
            format!("an external account by {shown}")
        }
        (Some(kind), _) => format!("{} by {shown}", kind.replace('_', " ")),
        (None, _) => format!("{shown}, which does not say its type"),
    };
    report.fine("credentials", what)
}

/// Reports the credentials for S3.
pub(super) fn s3(report: &mut Report<'_>, settings: &S3Settings) -> Result<(), Failure> {
    let named = |name: &str| settings.aws.get(name).map(Secret::expose);
    let what = if named("AWS_ACCESS_KEY_ID").is_some() {
        match named("AWS_SESSION_TOKEN") {
            Some(_) => "AWS_ACCESS_KEY_ID with AWS_SESSION_TOKEN, which ends with its session",
            None => "AWS_ACCESS_KEY_ID, which ends when it is deleted",
        }
    } else if let (Some(token), Some(_)) = (named("AWS_WEB_IDENTITY_TOKEN_FILE"), named("AWS_ROLE_ARN")) {
        lifetime(report, Path::new(token))?;
        "AWS_ROLE_ARN by AWS_WEB_IDENTITY_TOKEN_FILE"
    } else if settings.aws.keys().any(|name| name.starts_with("AWS_CONTAINER_CREDENTIALS_")) {
        "those of the container's service"
    } else {
        "no AWS_* variable names any; requests use those of the EC2 instance, if this is one"
    };
    report.fine("credentials", what)
}

/// Checks the end of a token that another program has to renew.
fn lifetime(report: &mut Report<'_>, token: &Path) -> Result<(), Failure> {
    let shown = token.display();
    let text = match std::fs::read_to_string(token) {
        Ok(text) => text,
        Err(error) => {
            let why = format!("the token in {shown} cannot be read: {error}; look at what mounts it");
            return report.fault("credentials", Code::Configuration, why);
        }
    };
    let Some(ends) = end_of(&text) else { return Ok(()) };
    if ends > Timestamp::now() {
        return report.fine("credentials", format!("the token in {shown} ends at {ends}"));
    }
    let why = format!("the token in {shown} ended at {ends}; look at what renews it");
    report.fault("credentials", Code::Configuration, why)
}

/// Reads the end of a JSON Web Token.
fn end_of(token: &str) -> Option<Timestamp> {
    let claims = URL_SAFE_NO_PAD.decode(token.trim().split('.').nth(1)?.trim_end_matches('=')).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    Timestamp::from_second(claims.get("exp")?.as_i64()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_tells_its_end() {
        let token = |claims: &str| format!("e30.{}.c2ln\n", URL_SAFE_NO_PAD.encode(claims));
        assert_eq!(end_of(&token(r#"{"exp":1790000000}"#)), Timestamp::from_second(1_790_000_000).ok());
        for other in ["opaque", "a.b.c", &token("{}"), &token("[]"), &token(r#"{"exp":"soon"}"#)] {
            assert_eq!(end_of(other), None, "{other}");
        }
    }
}
