//! Getting at a bucket: its name, its credentials, whether it is there, and URLs for those who have none.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use filestorage::storage::{
    Backend, DeleteOptions, Error, ErrorKind, Gcs, GcsOptions, GetOptions, Grant, Method, Page, PutOptions, Result,
};
use jiff::SignedDuration;
use serde_json::json;

use super::site::{Site, open};
use crate::support::{bytes, key, object, rest};

const WHOLE: GetOptions =
    GetOptions { range: None, limit: None, spooled: false, announced: false, version: None, uncached: false };

/// What an operation on a bucket that is not there comes to.
async fn outcomes(bucket: &dyn Backend) -> Vec<Result<String>> {
    let it = key("it");
    vec![
        bucket.stat(&it).await.map(|found| format!("{}", found.is_some())),
        bucket.get(&it, WHOLE).await.map(|found| format!("{}", found.is_some())),
        bucket.list(&Page::default()).await.map(|found| format!("{}", found.entries.len())),
        bucket.delete(&it, &DeleteOptions::default()).await.map(|removal| format!("{}", removal.found)),
        bucket.probe().await.map(|_| "there".to_owned()),
        bucket.put(&it, &object("x"), &PutOptions::default()).await.map(|stored| format!("{:?}", rest(stored))),
    ]
}

#[tokio::test]
async fn a_missing_bucket_is_created_if_the_project_is_known() {
    let site = Site::start();
    for number in 0..6 {
        // A bucket of its own for each, as each is the first that notices.
        let options = site.options();
        let bucket = Gcs::open(options.clone()).await.unwrap();
        let outcome = match number {
            0 => bucket.stat(&key("it")).await.map(|found| format!("{}", found.is_some())),
            1 => bucket.get(&key("it"), WHOLE).await.map(|found| format!("{}", found.is_some())),
            2 => bucket.list(&Page::default()).await.map(|found| format!("{}", found.entries.len())),
            3 => bucket.delete(&key("it"), &DeleteOptions::default()).await.map(|removal| format!("{}", removal.found)),
            4 => bucket.probe().await.map(|_| "there".to_owned()),
            _ => bucket
                .put(&key("it"), &object("x"), &PutOptions::default())
                .await
                .map(|stored| format!("{:?}", rest(stored))),
        };
        // Without a project it is found now, or still missing.
        let now = Gcs::open(GcsOptions { project: None, ..options }).await.unwrap().probe().await;
        if number < 4 {
            assert_eq!(
                outcome.unwrap_err().kind,
                ErrorKind::Invalid,
                "an empty bucket would say that nothing is there"
            );
            assert_eq!(now.unwrap_err().kind, ErrorKind::Invalid);
        } else {
            assert_eq!(outcome.unwrap(), ["there", "Bucket"][number - 4]);
            now.unwrap();
        }
    }
    // One that was there and was deleted since is not put back by somebody who only looks.
    let options = site.options();
    let bucket = open(options.clone()).await;
    let url = format!("{}/storage/v1/b/{}", options.endpoint.clone().unwrap(), options.bucket);
    assert!(reqwest::Client::new().delete(url).send().await.unwrap().status().is_success());
    assert_eq!(bucket.probe().await.unwrap_err().kind, ErrorKind::Invalid);
    bucket.put(&key("it"), &object("x"), &PutOptions::default()).await.unwrap();
    bucket.probe().await.unwrap();
    // Two that notice at once, and one that was there before it went away with its server.
    let options = site.options();
    let (one, other) = (Gcs::open(options.clone()).await.unwrap(), Gcs::open(options).await.unwrap());
    let (a, b) = (key("a"), key("b"));
    let (object, options) = (object("x"), PutOptions::default());
    let both = tokio::join!(one.put(&a, &object, &options), other.put(&b, &object, &options));
    assert!(both.0.is_ok() && both.1.is_ok(), "{both:?}");
}

#[tokio::test]
async fn a_missing_bucket_is_never_an_answer_about_an_object() {
    let site = Site::start();
    let bucket = Gcs::open(GcsOptions { project: None, ..site.options() }).await.unwrap();
    for outcome in outcomes(&bucket).await {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        assert!(error.message().contains("gcloud storage buckets create gs://t-"), "{error}");
        assert!(error.message().contains("gcs_project_id"), "{error}");
    }
    // The real service says which of the two is missing; then nobody has to be asked again.
    let there = open(site.options()).await;
    for (message, asked) in [("No such object: b/it", "GET "), ("Not Found", "GET GET ")] {
        let action = json!({ "status": 404, "body": { "error": { "message": message } } });
        site.rule(json!({ "object": "it" }), action).await;
        assert!(there.stat(&key("it")).await.unwrap().is_none());
        assert_eq!(site.asked().await, asked);
    }
    let gone = json!({ "status": 404, "body": { "error": { "message": "The specified bucket does not exist." } } });
    site.rule(json!({}), gone).await;
    assert_eq!(bucket.stat(&key("it")).await.unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(site.asked().await, "GET ");
    // Who may not make it is told so.
    let bucket = Gcs::open(site.options()).await.unwrap();
    site.rule(json!({ "path": "/b$" }), json!({ "status": 403, "body": { "error": { "message": "not you" } } })).await;
    let error = bucket.probe().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied);
    assert!(error.message().contains("not you") && error.message().contains("buckets create"), "{error}");
}

#[tokio::test]
async fn a_look_tells_how_far_the_clocks_are_apart() {
    let site = Site::start();
    let bucket = open(site.options()).await;
    for hours in [-2_i64, 0, 3] {
        let there = jiff::Timestamp::now() + SignedDuration::from_hours(hours);
        let date = there.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        site.rule(json!({}), json!({ "patch": { "Date": date } })).await;
        let skew = bucket.probe().await.unwrap().skew.unwrap();
        assert!((skew - SignedDuration::from_hours(hours)).abs() < SignedDuration::from_mins(5), "{skew}");
    }
}

async fn opened(options: GcsOptions) -> Error {
    let error = Gcs::open(options).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    error
}

#[tokio::test]
async fn what_cannot_be_a_bucket_or_a_key_file_is_said_at_the_start() {
    let site = Site::start();
    let options = || GcsOptions { endpoint: None, ..site.options() };
    let error = opened(GcsOptions { bucket: "gs://bucket".to_owned(), ..options() }).await;
    assert!(error.message().contains("gcs_bucket_name"), "{error}");
    let error = opened(GcsOptions { endpoint: Some("http://u:secret@x".to_owned()), ..options() }).await;
    assert!(error.message().contains("STORAGE_EMULATOR_HOST") && !error.message().contains("secret"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.json");
    let missing = opened(GcsOptions { credentials: Some(path.clone()), ..options() }).await;
    assert!(missing.message().contains("No such file"), "{missing}");
    let pem = "-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n";
    let key = json!({
        "type": "service_account", "client_email": "a@b", "private_key_id": "1", "private_key": pem, "project_id": "p",
    });
    let mut without_key = key.clone();
    without_key.as_object_mut().unwrap().remove("private_key");
    for content in [
        "SECRET".to_owned(),
        "{\"SECRET\":".to_owned(),
        "[]".to_owned(),
        "{\"type\":\"SECRET\"}".to_owned(),
        "{\"type\":[\"SECRET\"]}".to_owned(),
        json!({ "type": "authorized_user", "client_id": ["SECRET"] }).to_string(),
        json!({ "type": "external_account", "audience": { "SECRET": 1 } }).to_string(),
        json!({ "type": "impersonated_service_account", "source_credentials": "SECRET" }).to_string(),
        key.to_string(),
        without_key.to_string(),
    ] {
        std::fs::write(&path, &content).unwrap();
        let error = opened(GcsOptions { credentials: Some(path.clone()), ..options() }).await;
        let text = format!("{error} {error:?}");
        assert!(text.contains("key.json") && text.contains("gcs_credentials_path"), "{content}: {text}");
        assert!(
            text.contains("gcloud auth application-default login") && !text.contains("SECRET"),
            "{content}: {text}"
        );
    }
}

/// Writes a service account's key; returns its file and that of its public half.
fn service_account(folder: &Path) -> std::path::PathBuf {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key.pem");
    openssl("pkey -in key.pem -pubout -out public.pem");
    let file = folder.join("key.json");
    let key = json!({
        "type": "service_account",
        "client_email": "signer@project.iam.gserviceaccount.com",
        "private_key_id": "1",
        "private_key": std::fs::read_to_string(folder.join("key.pem")).unwrap(),
        "project_id": "project",
    });
    std::fs::write(&file, key.to_string()).unwrap();
    file
}

#[tokio::test]
async fn whoever_has_a_signed_url_reads_and_writes_one_object() {
    let site = Site::start();
    let folder = tempfile::tempdir().unwrap();
    let file = service_account(folder.path());
    let bucket = open(GcsOptions { credentials: Some(file.clone()), ..site.options() }).await;
    let it = key("a/b c?d#é+%");
    bucket.put(&it, &object("for all"), &PutOptions::default()).await.unwrap();
    let http = reqwest::Client::new();
    let grant = |method| Grant { method, lifetime: Duration::from_secs(60) };
    let url = bucket.sign(&it, &grant(Method::Get)).await.unwrap();
    assert!(url.starts_with(&format!("{}/t-", site.url)) && url.contains("X-Goog-Expires=60"), "{url}");
    assert_eq!(http.get(&url).send().await.unwrap().text().await.unwrap(), "for all");
    let url = bucket.sign(&it, &grant(Method::Put)).await.unwrap();
    let put = http.put(&url).header("content-type", "text/plain").body("from outside").send().await.unwrap();
    assert!(put.status().is_success());
    assert_eq!(&*bytes(bucket.get(&it, WHOLE).await.unwrap().unwrap()).await, b"from outside");
    for seconds in [0, 7 * 86_400 + 1] {
        let long = Grant { method: Method::Get, lifetime: Duration::from_secs(seconds) };
        let error = bucket.sign(&it, &long).await.unwrap_err();
        assert!(error.kind == ErrorKind::Invalid && error.message().contains("expires_in"), "{error}");
    }
    // At Google's own server, and without asking anybody.
    let options = GcsOptions { credentials: Some(file), endpoint: None, ..site.options() };
    let google = Gcs::open(options).await.unwrap();
    let url = google.sign(&it, &grant(Method::Get)).await.unwrap();
    assert!(url.starts_with("https://storage.googleapis.com/t-"), "{url}");
    let unsigned = open(site.options()).await.sign(&it, &grant(Method::Get)).await.unwrap_err();
    assert_eq!(unsigned.kind, ErrorKind::Invalid);
    assert!(unsigned.message().contains("gcs_credentials_path"), "{unsigned}");
}

#[tokio::test]
async fn a_bucket_says_what_it_is_without_secrets() {
    let site = Site::start();
    let folder = tempfile::tempdir().unwrap();
    let options = GcsOptions { credentials: Some(service_account(folder.path())), ..site.options() };
    let bucket = Gcs::open(options.clone()).await.unwrap();
    assert_eq!(bucket.to_string(), format!("gcs {}", options.bucket));
    assert!(!format!("{bucket:?}").contains("PRIVATE KEY"));
}
