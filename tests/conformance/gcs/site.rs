//! An emulator of Cloud Storage, with the fault proxy before it that adds the rules the emulator leaves out.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use filestorage::storage::{Backend, Gcs, GcsOptions, Spool};
use serde_json::Value;

static EMULATOR: OnceLock<Emulator> = OnceLock::new();

/// The emulator that the tests of this binary share: the one that `FILESTORAGE_TEST_GCS_URL` names, or one of their own.
struct Emulator {
    url: String,
    /// The shell that stops it once its input, which this process holds, ends.
    _keeper: Option<Child>,
}

fn emulator() -> &'static str {
    let start = || {
        if let Ok(url) = std::env::var("FILESTORAGE_TEST_GCS_URL") {
            return Emulator { url: url.trim_end_matches('/').to_owned(), _keeper: None };
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let keeper = Command::new("sh")
            .args(["-c", "deploy/dev-gcs start && read _; deploy/dev-gcs stop; rm -rf \"$DEV_GCS_DIR\""])
            .current_dir(root)
            .env("DEV_GCS_DIR", root.join(format!("target/dev-gcs-{}", std::process::id())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut keeper = keeper.unwrap();
        let url = lines(&mut keeper).next().expect("deploy/dev-gcs says why it did not start");
        Emulator { url, _keeper: Some(keeper) }
    };
    &EMULATOR.get_or_init(start).url
}

fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let out: ChildStdout = child.stdout.take().unwrap();
    BufReader::new(out).lines().map(|line| line.unwrap().trim().to_owned())
}

/// A fault proxy of one's own before the shared emulator.
pub(crate) struct Site {
    pub(crate) url: String,
    control: String,
    http: reqwest::Client,
    _proxy: Child,
}

impl Site {
    pub(crate) fn start() -> Self {
        Self::before(emulator(), &["--enforce", "gcs"])
    }

    /// The emulator's own faults stay: it checks hardly anything.
    pub(crate) fn lenient() -> Self {
        Self::before(emulator(), &[])
    }

    /// Before another server.
    pub(crate) fn before(upstream: &str, arguments: &[&str]) -> Self {
        let mut proxy = Command::new("python3")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/fault_proxy.py"))
            .args(["--upstream", upstream, "--until-eof"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = lines(&mut proxy);
        let mut next = |word: &str| lines.next().unwrap().strip_prefix(word).unwrap().trim().to_owned();
        let (url, control) = (next("ready"), next("control"));
        Self { url, control, http: reqwest::Client::new(), _proxy: proxy }
    }

    /// Options for a bucket of one's own.
    pub(crate) fn options(&self) -> GcsOptions {
        GcsOptions {
            bucket: format!("t-{}", uuid::Uuid::new_v4().simple()),
            project: Some("tests".to_owned()),
            location: "EU".to_owned(),
            credentials: None,
            endpoint: Some(self.url.clone()),
            proxy: None,
            timeout: Duration::from_secs(10),
            spool: Spool::new(std::env::temp_dir()),
        }
    }

    /// Tells the proxy what to do.
    pub(crate) async fn tell(&self, command: &str, body: Value) -> Value {
        let url = format!("{}/__proxy/{command}", self.control);
        let answer = self.http.post(url).json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{command}: {}", answer.text().await.unwrap());
        answer.json().await.unwrap()
    }

    /// Adds a rule after taking all others away.
    pub(crate) async fn rule(&self, matching: Value, action: Value) {
        self.tell("clear", Value::Null).await;
        self.tell("rules", serde_json::json!({ "match": matching, "action": action })).await;
    }

    /// Methods of the requests since the last time, each with a blank behind it.
    pub(crate) async fn asked(&self) -> String {
        let url = format!("{}/__proxy/log", self.control);
        let log: Value = self.http.get(url).send().await.unwrap().json().await.unwrap();
        self.tell("clear", Value::Null).await;
        log.as_array().unwrap().iter().map(|entry| format!("{} ", entry["method"].as_str().unwrap())).collect()
    }

    /// Writes an object as another tool does.
    pub(crate) async fn write(&self, bucket: &str, name: &str, content_type: &str, insert: Value, data: &str) {
        let body = format!(
            "--x\r\nContent-Type: application/json\r\n\r\n{insert}\r\n--x\r\nContent-Type: {content_type}\r\n\r\n{data}\r\n--x--"
        );
        let url = format!("{}/upload/storage/v1/b/{bucket}/o?uploadType=multipart", self.url);
        let request = self.http.post(url).query(&[("name", name)]).body(body);
        let answer = request.header("content-type", "multipart/related; boundary=x").send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    /// Makes a bucket that keeps the versions of its objects.
    pub(crate) async fn make_versioned(&self, bucket: &str) {
        let url = format!("{}/storage/v1/b?project=tests", self.url);
        let body = serde_json::json!({ "name": bucket, "versioning": { "enabled": true } });
        let answer = self.http.post(url).json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    /// Reads an object's description as another tool does.
    pub(crate) async fn describe(&self, bucket: &str, encoded: &str) -> Value {
        let url = format!("{}/storage/v1/b/{bucket}/o/{encoded}", self.url);
        self.http.get(url).send().await.unwrap().json().await.unwrap()
    }
}

/// Opens a bucket and makes sure that it is there.
pub(crate) async fn open(options: GcsOptions) -> Arc<dyn Backend> {
    let gcs = Gcs::open(options).await.unwrap();
    gcs.probe().await.unwrap();
    Arc::new(gcs)
}
