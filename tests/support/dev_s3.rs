//! An S3 store for one test binary, or the shared one that the environment names.
//!
//! Without `FILESTORAGE_TEST_S3_URL` one is started by `deploy/dev-s3` with its data below `target/`. A shell that reads
//! from this process stops it once this process is gone, however that came about.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use filestorage::storage::{S3, S3Options, Spool};
use http::{HeaderMap, Method};
use object_store::aws::{AwsAuthorizer, AwsCredential};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

static STORE: OnceLock<Store> = OnceLock::new();

/// The store that the tests of this binary share.
pub(crate) struct Store {
    /// `http://127.0.0.1:port`.
    pub(crate) url: String,
    /// The shell that stops the store once its input, which this process holds, ends.
    _keeper: Option<Child>,
}

/// Returns the store, starting it on first use.
pub(crate) fn store() -> &'static Store {
    STORE.get_or_init(|| match std::env::var("FILESTORAGE_TEST_S3_URL") {
        Ok(url) => Store { url: url.trim_end_matches('/').to_owned(), _keeper: None },
        Err(_) => Store::start(),
    })
}

impl Store {
    fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (script, folder) = (root.join("deploy/dev-s3"), root.join(format!("target/s3-{}", std::process::id())));
        let keeper = Command::new("sh")
            .args(["-c", "read _; \"$0\" stop; rm -rf \"$DEV_S3_DIR\""])
            .arg(&script)
            .env("DEV_S3_DIR", &folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = Command::new(&script).arg("start").env("DEV_S3_DIR", &folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { url: String::from_utf8(output.stdout).unwrap().trim().to_owned(), _keeper: Some(keeper) }
    }
}

/// A bucket of one test; gone with what is in it when it is dropped.
pub(crate) struct Bucket {
    pub(crate) name: String,
    folder: TempDir,
}

impl Bucket {
    pub(crate) async fn make() -> Self {
        let name = format!("filestorage-test-{}", Uuid::new_v4().simple());
        let answer = ask(Method::PUT, &format!("{name}/"), &[], "").await;
        assert!(answer.status().is_success(), "{answer:?}");
        Self { name, folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn options(&self) -> S3Options {
        let keys = [("AWS_ACCESS_KEY_ID", "worker"), ("AWS_SECRET_ACCESS_KEY", "worker-secret")];
        S3Options {
            bucket: self.name.clone(),
            endpoint: Some(store().url.clone()),
            region: None,
            aws_files: std::collections::BTreeMap::new(),
            aws: keys.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            timeout: Duration::from_secs(20),
            spool: Spool::new(self.folder.path()),
        }
    }

    pub(crate) fn open(&self) -> S3 {
        S3::open(self.options()).unwrap()
    }

    /// Asks as another tool would, for an object of this bucket.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: impl Into<Bytes>,
    ) -> reqwest::Response {
        ask(method, &format!("{}/{path}", self.name), headers, body).await
    }

    /// Removes the bucket and what is in it.
    pub(crate) async fn remove(self) {
        let answer = ask(Method::DELETE, &self.name, &[], "").await;
        assert!(answer.status().is_success(), "{answer:?}");
    }
}

/// Sends one signed request that knows nothing of the code under test.
pub(crate) async fn ask(
    method: Method,
    path: &str,
    headers: &[(&'static str, &str)],
    body: impl Into<Bytes>,
) -> reqwest::Response {
    let credential = AwsCredential { key_id: "test".to_owned(), secret_key: "test-secret".to_owned(), token: None };
    let body = body.into();
    let mut request = http::Request::new(body.clone().into());
    *request.uri_mut() = format!("{}/{path}", store().url).parse().unwrap();
    *request.method_mut() = method.clone();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    AwsAuthorizer::new(&credential, "s3", "us-east-1").try_authorize(&mut request, None).unwrap();
    let headers: HeaderMap = request.headers().clone();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client.request(method, request.uri().to_string()).headers(headers).body(body).send().await.unwrap()
}

/// Returns the URL of the store behind a relay that gives it another name.
pub(crate) async fn renamed() -> String {
    let upstream = store().url.trim_start_matches("http://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let upstream = upstream.clone();
            tokio::spawn(async move {
                let server = TcpStream::connect(upstream).await.unwrap();
                let ((mut asks, mut hears), (mut told, mut asked)) = (client.into_split(), server.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut asks, &mut asked).await });
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(length @ 1..) = told.read(&mut buffer).await {
                    // Of the same length, so that nothing else changes. A head comes in one piece.
                    if let Some(at) = buffer[..length].windows(9).position(|window| window == b"SeaweedFS") {
                        buffer[at..at + 9].copy_from_slice(b"AnotherFS");
                    }
                    if hears.write_all(&buffer[..length]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    url
}
