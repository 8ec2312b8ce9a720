//! What a store can answer that no store here does: by a server whose every answer is written down beforehand.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use filestorage::storage::{
    Attributes, Backend, BreakerState, Condition, CopySource, DeleteOptions, ErrorKind, GetOptions, Listing, Page,
    PutOptions, Removal, Retry, RetryOptions, S3, S3Options, Spool, Versions, VersionsRequest,
};
use filestorage::telemetry::{self, Metrics};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{key, object};

/// A server that answers each request line by a rule, and remembers what it was asked.
struct Scripted {
    url: String,
    heads: Arc<Mutex<Vec<String>>>,
}

type Rule = Arc<dyn Fn(&str) -> String + Send + Sync>;

impl Scripted {
    async fn serve(rule: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let rule: Rule = Arc::new(rule);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heads = Arc::new(Mutex::new(Vec::new()));
        let asked = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(answer(client, Arc::clone(&rule), Arc::clone(&asked)));
            }
        });
        Self { url, heads }
    }

    fn options(&self) -> S3Options {
        let keys = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "the-secret")];
        S3Options {
            bucket: "b".to_owned(),
            endpoint: Some(self.url.clone()),
            region: None,
            aws_files: std::collections::BTreeMap::new(),
            aws: keys.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            timeout: Duration::from_secs(20),
            spool: Spool::new("/nowhere"),
        }
    }

    fn open(&self) -> S3 {
        S3::open(self.options()).unwrap()
    }

    /// Opens with these variables in the place of the keys.
    fn open_with(&self, aws: &[(&str, &str)]) -> S3 {
        let aws = aws.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        S3::open(S3Options { aws, ..self.options() }).unwrap()
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

/// Answers one request and closes.
async fn answer(mut client: TcpStream, rule: Rule, heads: Arc<Mutex<Vec<String>>>) {
    let mut taken = Vec::new();
    let head = loop {
        let mut buffer = [0; 4096];
        let length = client.read(&mut buffer).await.unwrap_or(0);
        taken.extend_from_slice(&buffer[..length]);
        if let Some(end) = taken.windows(4).position(|window| window == b"\r\n\r\n") {
            break String::from_utf8_lossy(&taken.drain(..end + 4).collect::<Vec<_>>()).to_lowercase();
        }
        if length == 0 {
            return;
        }
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    let mut rest = vec![0; length.unwrap_or(0).saturating_sub(taken.len())];
    client.read_exact(&mut rest).await.unwrap();
    heads.lock().unwrap().push(head.clone());
    let mut line = head.lines().next().unwrap().to_owned();
    if let Some(tag) = head.lines().find_map(|line| line.strip_prefix("x-amz-copy-source-if-match: ")) {
        line.push_str(&format!(" copying {tag}"));
    }
    client.write_all(rule(&line).as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
}

/// Writes an answer with its length.
fn reply(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

fn fault(status: &str, headers: &str, code: &str) -> String {
    reply(status, headers, &format!("<Error><Code>{code}</Code><Message>m</Message></Error>"))
}

/// What a store with no objects lists, and what every rule begins with: who is not recognized is asked for nothing.
const EMPTY: &str = "<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated></ListBucketResult>";

fn is_listing(line: &str) -> bool {
    line.starts_with("get /b?list-type=2")
}

#[tokio::test]
async fn a_key_in_files_that_is_replaced_signs_the_next_request() {
    let server = Scripted::serve(|_| reply("200 OK", "", "<ListBucketResult/>")).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("id");
    std::fs::write(&file, "id\n").unwrap();
    let files = [("AWS_ACCESS_KEY_ID".to_owned(), file.clone())].into();
    let s3 = S3::open(S3Options { aws_files: files, ..server.options() }).unwrap();
    let who = async || {
        drop(s3.probe().await);
        let head = server.heads().pop().unwrap();
        head.split_once("credential=").unwrap().1.split('/').next().unwrap().to_owned()
    };
    assert_eq!(who().await, "id");
    std::fs::write(&file, "second\n").unwrap();
    assert_eq!(who().await, "second");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(who().await, "second", "what was read last stays in use");
    std::fs::write(&file, "third\n").unwrap();
    assert_eq!(who().await, "third");
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_never_trusted_with_one() {
    let server = Scripted::serve(|line| match line {
        line if is_listing(line) => reply("200 OK", "", EMPTY),
        line if line.contains("?uploads=") => {
            let begun = "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>";
            reply("200 OK", "", begun)
        }
        line if line.contains("?uploadid=") && line.starts_with("post") => {
            reply("200 OK", "", "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")
        }
        line if line.starts_with("head") => {
            reply("200 OK", "ETag: \"e\"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n", "")
        }
        line if line.starts_with("delete") => reply("204 No Content", "x-amz-request-id: 1\r\n", ""),
        _ => reply("200 OK", "ETag: \"e\"\r\n", ""),
    })
    .await;
    let s3 = server.open();
    for condition in [Condition::Absent, Condition::Generation("e".to_owned())] {
        let refused =
            s3.put(&key("f/it"), &object("x"), &PutOptions { condition, ..PutOptions::default() }).await.unwrap_err();
        assert!(refused.kind == ErrorKind::Invalid && refused.message().contains("if_absent"), "{refused}");
    }
    let only = |lenient| DeleteOptions { generation: Some("e".to_owned()), lenient, ..DeleteOptions::default() };
    let refused = s3.delete(&key("f/it"), &only(false)).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Invalid && refused.message().contains("delete"), "{refused}");
    assert!(server.heads().iter().all(|head| !head.contains("/b/f/it")), "nothing was asked of the object itself");
    assert!(server.heads().iter().any(|head| head.starts_with("delete /b/f/filestorage-tries-conditions-")));
    assert_eq!(s3.delete(&key("f/it"), &only(true)).await.unwrap(), Removal { found: true, ..Removal::default() });
    s3.put(&key("f/it"), &object("x"), &PutOptions::default()).await.unwrap();
}

/// What a store answers to all but a copy: each key has an empty object of another tool.
fn simple(line: &str) -> String {
    let object = "ETag: \"e\"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nx-amz-checksum-crc32c: AAAAAA==\r\n";
    match line {
        line if is_listing(line) => reply("200 OK", "", EMPTY),
        line if line.contains("?uploads=") => {
            let begun = "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>";
            reply("200 OK", "", begun)
        }
        line if line.starts_with("delete") => reply("204 No Content", "x-amz-request-id: 1\r\n", ""),
        line if line.starts_with("put") => reply("200 OK", "ETag: \"e\"\r\n", ""),
        _ => reply("200 OK", object, ""),
    }
}

#[tokio::test]
async fn a_store_that_cannot_copy_is_read_and_written() {
    let not_allowed = Scripted::serve(|line| match line {
        line if line.contains(" copying ") => reply("405 Method Not Allowed", "", ""),
        line => simple(line),
    });
    let not_implemented = Scripted::serve(|line| match line {
        line if line.contains(" copying ") => fault("501 Not Implemented", "", "Unknown"),
        line => simple(line),
    });
    for server in [not_allowed.await, not_implemented.await] {
        let s3 = server.open();
        let seen = s3.stat(&key("it")).await.unwrap().unwrap();
        let attributes = Attributes { generation: "copy".to_owned(), ..seen.clone() };
        let source = CopySource::of(&key("it"), &seen);
        let copied = s3.copy(&source, &key("to"), &attributes, &PutOptions::default()).await.unwrap();
        assert_eq!(copied.unwrap().generation, "copy");
        let asked = |start: &str| server.heads().iter().any(|head| head.starts_with(start));
        assert!(asked("get /b/it") && asked("put /b/to"), "{:?}", server.heads());
    }
}

#[tokio::test]
async fn a_copy_in_parts_commits_when_all_parts_are_there() {
    let server = Scripted::serve(|line| match line {
        line if line.contains(" copying \"0000") => fault("412 Precondition Failed", "", "PreconditionFailed"),
        line if line.contains(" copying ") && line.contains("/b/to?") => {
            fault("500 Internal Server Error", "", "InternalError")
        }
        line if line.contains(" copying ") && line.contains("?partnumber=") => {
            reply("200 OK", "", "<CopyPartResult><ETag>e</ETag></CopyPartResult>")
        }
        line if line.contains(" copying ") => {
            reply("200 OK", "", "<CopyObjectResult><ETag>e</ETag></CopyObjectResult>")
        }
        line => simple(line),
    })
    .await;
    let s3 = server.open().with_copy_parts(5, 5);
    let source = CopySource { key: key("it"), generation: "e".to_owned() };
    let options = PutOptions::default();
    let error = s3.copy(&source, &key("to"), &object("eleven bytes").attributes, &options).await.unwrap_err();
    assert!(error.kind == ErrorKind::Unavailable && error.message().contains("InternalError"), "{error}");
    assert!(options.commit_guard.abandon(), "no part of it can have become visible");
}

#[tokio::test]
async fn patience_is_asked_for_with_a_time() {
    let server = Scripted::serve(|_| fault("503 Slow Down", "Retry-After: 7\r\n", "SlowDown")).await;
    let error = server.open().put(&key("it"), &object("x"), &PutOptions::default()).await.unwrap_err();
    assert_eq!((error.kind, error.retry_after), (ErrorKind::Throttled, Some(Duration::from_secs(7))));
    let server = Scripted::serve(|_| reply("503 Service Unavailable", "", "")).await;
    let error = server.open().get(&key("it"), GetOptions::default()).await.unwrap_err();
    assert_eq!((error.kind, error.retry_after), (ErrorKind::Unavailable, None));
    // Once: trying again is another layer's.
    assert_eq!(server.heads().len(), 1);
}

#[tokio::test]
async fn a_body_cut_short_or_changed_is_never_handed_out() {
    const OBJECT: &str = "ETag: \"e\"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n";
    let server = Scripted::serve(|line| match line {
        line if is_listing(line) => reply("200 OK", "", EMPTY),
        _ => format!("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n{OBJECT}\r\nshort"),
    })
    .await;
    assert_eq!(server.open().get(&key("it"), GetOptions::default()).await.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(server.open().stat(&key("it")).await.unwrap_err().kind, ErrorKind::Unavailable);
    let server = Scripted::serve(|line| match line {
        line if is_listing(line) => reply("200 OK", "", EMPTY),
        _ => reply("200 OK", &format!("{OBJECT}x-amz-checksum-crc32c: AAAAAA==\r\n"), "x"),
    })
    .await;
    assert_eq!(server.open().get(&key("it"), GetOptions::default()).await.unwrap_err().kind, ErrorKind::Integrity);
    // The sum of the sums of parts says nothing of the whole.
    let server = Scripted::serve(|line| match line {
        line if is_listing(line) => reply("200 OK", "", EMPTY),
        _ => reply("200 OK", &format!("{OBJECT}x-amz-checksum-crc32c: AAAAAA==-2\r\n"), "x"),
    })
    .await;
    assert!(server.open().get(&key("it"), GetOptions::default()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_listing_is_whole_or_fails() {
    // One of the listed objects cannot be asked about; another has gone meanwhile.
    const NAMES: &str = "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>gone</Key></Contents>\
                         <Contents><Key>kept</Key></Contents></ListBucketResult>";
    let server = Scripted::serve(|line| match line {
        line if line.starts_with("get /b?") => reply("200 OK", "", NAMES),
        line if line.contains("/gone") => fault("404 Not Found", "", "NoSuchKey"),
        _ => reply("500 Internal Server Error", "", ""),
    })
    .await;
    assert_eq!(server.open().list(&Page::default()).await.unwrap_err().kind, ErrorKind::Unavailable);
    let server = Scripted::serve(|line| match line {
        line if line.starts_with("get /b?") => reply("200 OK", "", NAMES),
        line if line.contains("/gone") => fault("404 Not Found", "", "NoSuchKey"),
        _ => reply("200 OK", "ETag: \"e\"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n", ""),
    })
    .await;
    let Listing { entries, foreign, more } = server.open().list(&Page::default()).await.unwrap();
    assert_eq!((entries.len(), entries[0].key.as_str(), foreign, more), (1, "kept", 0, false));
}

#[tokio::test]
async fn the_clock_of_the_store_is_compared() {
    let server = Scripted::serve(|_| {
        let ahead = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
        let date = ahead.strftime("%a, %d %b %Y %H:%M:%S GMT");
        reply("200 OK", &format!("Date: {date}\r\n"), EMPTY)
    })
    .await;
    let skew = server.open().probe().await.unwrap().skew.unwrap();
    assert!((skew - jiff::SignedDuration::from_hours(1)).abs() < jiff::SignedDuration::from_mins(1), "{skew:?}");
    let server = Scripted::serve(|_| reply("200 OK", "", EMPTY)).await;
    assert_eq!(server.open().probe().await.unwrap().skew, None);
}

#[tokio::test]
async fn a_listing_that_does_not_get_on_is_named_at_its_second_page() {
    const PAGE: &str = "<ListBucketResult><Name>b</Name><IsTruncated>true</IsTruncated><Contents><Key>k</Key></Contents>\
                        <NextContinuationToken>again</NextContinuationToken></ListBucketResult>";
    let server = Scripted::serve(|_| reply("200 OK", "", PAGE)).await;
    let options = RetryOptions { max_retries: 3, timeout: Duration::from_secs(20) };
    let retry = Retry::new(Arc::new(server.open()), options, telemetry::BackendLabel::S3, Metrics::new());
    for _ in 0..4 {
        let before = server.heads().len();
        let error = retry.list(&Page::default()).await.unwrap_err();
        assert!(error.kind == ErrorKind::Io && error.message().contains("page token"), "{error}");
        assert!(server.heads().len() - before <= 3, "at the second page, and once: {}", server.heads().len() - before);
        assert_eq!(retry.breaker().state(), BreakerState::Closed);
    }
    // Under other tokens the same page, and names that were not asked for.
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let server = Scripted::serve(|_| {
        let token = COUNT.fetch_add(1, Ordering::Relaxed);
        reply("200 OK", "", &PAGE.replace("again", &token.to_string()))
    })
    .await;
    let error = server.open().list(&Page::default()).await.unwrap_err();
    assert!(error.kind == ErrorKind::Io && error.message().contains("does not get on"), "{error}");
    let prefix = Page { prefix: "other/".to_owned(), ..Page::default() };
    let error = server.open().list(&prefix).await.unwrap_err();
    assert!(error.kind == ErrorKind::Io && error.message().contains("prefix"), "{error}");
}

#[tokio::test]
async fn a_store_that_does_not_know_where_to_begin_is_read_through() {
    const ALL: &str = "<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated><Contents><Key>a</Key></Contents>\
                       <Contents><Key>b</Key></Contents></ListBucketResult>";
    let server = Scripted::serve(|line| match line {
        line if is_listing(line) => reply("200 OK", "", ALL),
        _ => reply("200 OK", "ETag: \"e\"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n", ""),
    })
    .await;
    let page = |after: &str| Page { start_after: Some(after.to_owned()), ..Page::default() };
    let found = server.open().list(&page("a")).await.unwrap();
    assert_eq!((found.entries.len(), found.entries[0].key.as_str(), found.more), (1, "b", false));
    assert!(server.open().list(&page("b")).await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn a_removal_confirmed_without_marks_is_verified() {
    let there = Scripted::serve(|line| match line {
        line if is_listing(line) => reply("200 OK", "", EMPTY),
        line if line.starts_with("delete") => reply("204 No Content", "", ""),
        _ => reply("200 OK", "ETag: \"e\"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n", ""),
    })
    .await;
    let error = there.open().delete(&key("it"), &DeleteOptions::default()).await.unwrap_err();
    assert!(error.kind == ErrorKind::Unavailable && error.is_unexpected_answer(), "{error}");
    let gone = Scripted::serve(|line| match line {
        line if is_listing(line) => reply("200 OK", "", EMPTY),
        line if line.starts_with("delete") => reply("200 OK", "", ""),
        line if line.starts_with("head") => reply("404 Not Found", "", ""),
        _ => fault("404 Not Found", "", "NoSuchKey"),
    })
    .await;
    assert_eq!(gone.open().delete(&key("it"), &DeleteOptions::default()).await.unwrap(), Removal::default());
    // A web server misses everything, too.
    let page = Scripted::serve(|line| match line {
        line if is_listing(line) => reply("200 OK", "", EMPTY),
        line if line.starts_with("delete") => reply("204 No Content", "", ""),
        _ => reply("404 Not Found", "Content-Type: text/html\r\n", "<html>Not Found</html>"),
    })
    .await;
    let error = page.open().delete(&key("it"), &DeleteOptions::default()).await.unwrap_err();
    assert!(error.kind == ErrorKind::Unavailable, "{error}");
    let error = page.open().stat(&key("it")).await.unwrap_err();
    assert!(error.kind == ErrorKind::Unavailable && error.is_unexpected_answer(), "{error}");
}

#[tokio::test]
async fn one_redirect_is_not_as_another() {
    let moved = Scripted::serve(|_| {
        fault("301 Moved Permanently", "Location: https://elsewhere.example/x?secret=1\r\n", "PermanentRedirect")
    })
    .await;
    let error = moved.open().probe().await.unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && error.message().contains("another region"), "{error}");
    assert!(error.message().contains("https://elsewhere.example") && !error.message().contains("secret"), "{error}");
    let for_now = Scripted::serve(|_| {
        fault("307 Temporary Redirect", "Location: https://elsewhere.example/x?secret=1\r\n", "TemporaryRedirect")
    })
    .await;
    let error = for_now.open().probe().await.unwrap_err();
    assert!(error.kind == ErrorKind::Unavailable && error.message().contains("https://elsewhere.example"), "{error}");
    let secure = Scripted::serve(|_| reply("301 Moved Permanently", "Location: https://127.0.0.1/b\r\n", "")).await;
    let error = secure.open().probe().await.unwrap_err();
    assert!(error.is_unexpected_answer() && error.message().contains("https://"), "{error}");
    assert!(
        error.message().contains("wants to be asked with https://") && !error.message().contains("region"),
        "{error}"
    );
}

#[tokio::test]
async fn a_listing_of_another_bucket_is_none_of_this() {
    let server = Scripted::serve(|_| reply("200 OK", "", &EMPTY.replace("<Name>b<", "<Name>other<"))).await;
    let error = server.open().put(&key("it"), &object("x"), &PutOptions::default()).await.unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && error.message().contains("\"other\""), "{error}");
    assert_eq!(server.heads().len(), 1, "nothing was written");
    // Who may not list a bucket may still use it.
    let server = Scripted::serve(|line| match line {
        line if is_listing(line) => fault("403 Forbidden", "", "AccessDenied"),
        _ => reply("200 OK", "ETag: \"e\"\r\n", ""),
    })
    .await;
    server.open().put(&key("it"), &object("x"), &PutOptions::default()).await.unwrap();
}

#[tokio::test]
async fn the_right_region_is_named() {
    let server = Scripted::serve(|_| {
        fault(
            "301 Moved Permanently",
            "x-amz-bucket-region: eu-west-9\r\nLocation: http://127.0.0.1:1/\r\n",
            "PermanentRedirect",
        )
    })
    .await;
    let error = server.open().probe().await.unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && error.message().contains("eu-west-9"), "{error}");
}

#[tokio::test]
async fn credentials_that_cannot_be_had_say_what_to_set() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "Bearer very-secret").unwrap();
    let token = token.to_str().unwrap();
    let container = |server: &Scripted, given: &Scripted| {
        server.open_with(&[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{}/credentials", given.url)),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token),
        ])
    };
    let store = Scripted::serve(|_| reply("200 OK", "", EMPTY)).await;
    // A refusal is no outage, and an outage is no refusal.
    let refuses = Scripted::serve(|_| reply("403 Forbidden", "", "very-secret")).await;
    let error = container(&store, &refuses).probe().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    let fails = Scripted::serve(|_| reply("500 Internal Server Error", "", "")).await;
    let error = container(&store, &fails).probe().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert_eq!(fails.heads().len(), 1, "asked once");
    assert!(store.heads().is_empty());
    // What was given is used, the session's token too.
    let gives = Scripted::serve(|_| {
        let expiry = "2999-01-01T00:00:00Z";
        let secrets = r#""AccessKeyId":"given","SecretAccessKey":"s","Token":"session""#;
        reply("200 OK", "", &format!("{{{secrets},\"Expiration\":\"{expiry}\"}}"))
    })
    .await;
    container(&store, &gives).probe().await.unwrap();
    assert!(gives.heads()[0].contains("authorization: bearer very-secret"));
    assert!(
        store.heads()[0].contains("credential=given/") && store.heads()[0].contains("x-amz-security-token: session")
    );
    // Nothing is set at all, and this is no machine of Amazon's.
    let error = store.open_with(&[("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")]).probe().await.unwrap_err();
    assert!(error.kind == ErrorKind::Denied && error.message().contains("AWS_ACCESS_KEY_ID"), "{error}");
}

const VERSION: &str = "<IsLatest>false</IsLatest><Size>1</Size><Owner><ID>o</ID></Owner></Version>";

fn versions(inner: &str) -> String {
    let xmlns = "http://s3.amazonaws.com/doc/2006-03-01/";
    reply("200 OK", "", &format!("<ListVersionsResult xmlns=\"{xmlns}\"><Name>b</Name>{inner}</ListVersionsResult>"))
}

fn listed(key: &str, id: u32) -> String {
    format!("<Version><Key>{key}</Key><VersionId>v{id}</VersionId>{VERSION}")
}

/// Answers the request for a version; its entity tag is its id.
fn version(line: &str) -> String {
    let id = line.split_once("versionid=").unwrap().1.split(' ').next().unwrap();
    reply("200 OK", &format!("ETag: \"{id}\"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n"), "")
}

async fn ask(s3: &S3, generation: Option<&str>, limit: usize) -> filestorage::storage::Result<Versions> {
    s3.versions(&key("k"), &VersionsRequest { generation: generation.map(str::to_owned), limit }).await
}

#[tokio::test]
async fn versions_come_from_as_many_pages_as_they_fill() {
    let server = Scripted::serve(|line| match line {
        line if is_listing(line) => reply("200 OK", "", EMPTY),
        line if line.starts_with("head /b/k?versionid=v3") => reply("404 Not Found", "x-amz-request-id: 1\r\n", ""),
        line if line.starts_with("head") => version(line),
        line if line.contains("version-id-marker=v2%2b") => versions(&format!(
            "{}{}<DeleteMarker><Key>k</Key><VersionId>v5</VersionId><IsLatest>false</IsLatest></DeleteMarker>{}{}\
             <IsTruncated>true</IsTruncated><NextKeyMarker>k%2F1</NextKeyMarker><EncodingType>url</EncodingType>",
            listed("k", 3),
            listed("k", 4),
            listed("k", 6),
            listed("k%2F1", 7)
        )),
        line if line.starts_with("get /b?versions=&") && line.contains("&prefix=k ") => versions(&format!(
            "<IsTruncated>true</IsTruncated>{}<DeleteMarker><Key>k</Key><VersionId>x</VersionId><IsLatest>true</IsLatest>\
             </DeleteMarker>{}<NextKeyMarker>k</NextKeyMarker><NextVersionIdMarker>v2+</NextVersionIdMarker>",
            listed("k", 1),
            listed("k", 2)
        )),
        line => panic!("{line}"),
    })
    .await;
    let s3 = server.open();
    let found = ask(&s3, None, 10).await.unwrap();
    let ids: Vec<&str> = found.versions.iter().map(|version| version.id.as_str()).collect();
    assert_eq!((ids, found.more, found.unreadable), (vec!["v1", "v2", "v4", "v6"], false, 0));
    let found = ask(&s3, None, 2).await.unwrap();
    assert!(found.more && found.versions.len() == 2);
    let found = ask(&s3, Some("v4"), 1).await.unwrap();
    assert_eq!((found.versions.len(), found.versions[0].id.as_str()), (1, "v4"));
    assert!(ask(&s3, Some("v7"), 1).await.unwrap().versions.is_empty(), "that is another key's");
}

#[tokio::test]
async fn a_listing_of_versions_is_whole_or_fails() {
    let again = "<NextKeyMarker>k</NextKeyMarker><NextVersionIdMarker>v1</NextVersionIdMarker>";
    let truncated = "<ListVersionsResult><Name>b</Name><IsTruncated>true</IsTruncated></ListVersionsResult>";
    for (answer, kind, words) in [
        (versions(&listed("k", 1)), ErrorKind::Unavailable, "whether it is complete"),
        (versions("<IsTruncated>true</IsTruncated>"), ErrorKind::Unavailable, "marker"),
        (versions(&format!("<IsTruncated>true</IsTruncated>{again}")), ErrorKind::Io, "page token"),
        (reply("200 OK", "", EMPTY), ErrorKind::Unavailable, "ListVersionsResult"),
        (reply("200 OK", "", "<ListVersionsResult><IsTruncated>"), ErrorKind::Unavailable, "ListVersionsResult"),
        (reply("200 OK", "", &truncated.replace(">b<", ">other<")), ErrorKind::Invalid, "\"other\""),
        (reply("200 OK", "Server: SeaweedFS 30GB 4.05\r\n", truncated), ErrorKind::Invalid, "SeaweedFS"),
        (fault("403 Forbidden", "", "AccessDenied"), ErrorKind::Denied, "s3:ListBucketVersions"),
        (fault("501 Not Implemented", "", "NotImplemented"), ErrorKind::Invalid, "cannot do that"),
    ] {
        let rule = move |line: &str| if is_listing(line) { reply("200 OK", "", EMPTY) } else { answer.clone() };
        let error = ask(&Scripted::serve(rule).await.open(), None, 10).await.unwrap_err();
        assert!(error.kind == kind && error.message().contains(words), "{words}: {error:?}");
    }
}

#[tokio::test]
async fn no_more_versions_are_read_than_the_bound() {
    // Each page has a thousand versions that are gone when they are asked for, and there is always another page.
    let server = Scripted::serve(|line| match line {
        line if is_listing(line) => reply("200 OK", "", EMPTY),
        line if line.starts_with("head") => reply("404 Not Found", "x-amz-request-id: 1\r\n", ""),
        line => {
            let after = line.split_once("version-id-marker=v").map_or("0", |(_, rest)| rest.split(' ').next().unwrap());
            let first: u32 = after.parse().unwrap();
            let page: String = (first + 1..=first + 1_000).map(|id| listed("k", id)).collect();
            let next = format!(
                "<NextKeyMarker>k</NextKeyMarker><NextVersionIdMarker>v{}</NextVersionIdMarker>",
                first + 1_000
            );
            versions(&format!("<IsTruncated>true</IsTruncated>{next}{page}"))
        }
    })
    .await;
    let error = ask(&server.open(), Some("wanted"), 1).await.unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && error.message().contains("10000 versions"), "{error}");
    assert_eq!(server.heads().iter().filter(|head| head.starts_with("get /b?versions")).count(), 10);
}
