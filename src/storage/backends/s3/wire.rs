//! One request to the store: signed, sent, and its answer told apart.
//!
//! `object_store` finds credentials, signs (SigV4) and carries requests. What it says of a failure leaves out the status,
//! the code and `Retry-After`, and one name it cannot read spoils a page of a listing; so what is asked and what an
//! answer means is decided here.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::header::{self, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode};
use object_store::aws::{AmazonS3, AmazonS3Builder, AwsAuthorizer, AwsCredential};
use object_store::client::{ClientConfigKey, HttpClient, HttpConnector, HttpRequest, HttpResponseBody};
use object_store::{ClientOptions, RetryConfig};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::error::{Asked, S3Refusal};
use super::identity::{BucketIdentity, is_marked};
use super::options::{S3Address, invalid};
use crate::storage::backends::http::outside::Outside;
use crate::storage::backends::http::text;
use crate::storage::error::{Operation, Result};
use crate::storage::object::{Key, Payload, payload};

/// RFC 3986's unreserved characters stay; the store computes the signature over this very form.
const QUERY: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const PATH: AsciiSet = QUERY.remove(b'/');

/// Most bytes of an answer that is not an object's payload: a page of 1,000 longest names, escaped.
const LONGEST_ANSWER: usize = 8 << 20;

/// A connection to one bucket, shared by all that is asked of it.
pub(super) struct Wire {
    pub(super) address: S3Address,
    /// Finds credentials and makes signed URLs; sends nothing itself.
    pub(super) store: AmazonS3,
    client: HttpClient,
    /// Credentials were had once.
    known: AtomicBool,
    /// An answer was SeaweedFS's.
    seaweedfs: AtomicBool,
    /// What is known of who answers there.
    pub(super) place: BucketIdentity,
}

/// What is asked.
pub(super) struct Call<'a> {
    pub(super) operation: Operation,
    /// The object that is asked for; none for the bucket itself.
    pub(super) key: Option<&'a Key>,
    method: Method,
    query: Vec<(&'static str, String)>,
    headers: HeaderMap,
    body: Bytes,
}

/// A success by its status; what it proves is for `proof` to say.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// A store that marks its answers would have marked this one.
    pub(super) unmarked: bool,
    body: HttpResponseBody,
}

/// What came of a request.
pub(super) enum Outcome {
    Done(Reply),
    /// No object is there; to a HEAD, which has no text, it may also mean that there is no bucket, or no store.
    Missing {
        marked: bool,
    },
    Refused(S3Refusal),
}

impl<'a> Call<'a> {
    pub(super) fn new(operation: Operation, method: Method, key: Option<&'a Key>) -> Self {
        let (query, headers, body) = (Vec::new(), HeaderMap::new(), Bytes::new());
        Self { operation, key, method, query, headers, body }
    }

    pub(super) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub(super) fn headers(mut self, headers: HeaderMap) -> Self {
        self.headers.extend(headers);
        self
    }

    pub(super) fn body(self, body: Bytes) -> Self {
        Self { body, ..self }
    }
}

impl Wire {
    /// Prepares to ask; asks nobody.
    pub(super) fn open(address: S3Address, builder: AmazonS3Builder, timeout: Duration) -> Result<Self> {
        let client = client(address.is_plain(), timeout, timeout)?;
        // Whoever asks decides what is tried again and when: one place for all backends.
        let once = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let store = builder
            .with_http_connector(Connector)
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .with_retry(once)
            .build()
            .map_err(|error| invalid(format!("{error}; correct the AWS_* variables")).with_source(error))?;
        Ok(Self {
            address,
            store,
            client: HttpClient::new(client),
            known: AtomicBool::new(false),
            seaweedfs: AtomicBool::new(false),
            place: BucketIdentity::default(),
        })
    }

    /// Asks once, for an object; `None` is the answer that none is there.
    pub(super) async fn send(&self, call: Call<'_>) -> Result<Option<Reply>> {
        let asked = self.asked(call.operation, call.key);
        match self.ask_place(call).await? {
            Outcome::Done(reply) => Ok(Some(reply)),
            Outcome::Missing { .. } => Ok(None),
            Outcome::Refused(refusal) => Err(asked.refused(refusal)),
        }
    }

    /// Asks once, for an object, of a place that has shown to be the bucket.
    pub(super) async fn ask_place(&self, call: Call<'_>) -> Result<Outcome> {
        self.recognize(&self.asked(call.operation, call.key)).await?;
        self.exchange(call).await
    }

    /// Asks once.
    pub(super) async fn exchange(&self, call: Call<'_>) -> Result<Outcome> {
        let (operation, key, is_head) = (call.operation, call.key, call.method == Method::HEAD);
        let asked = self.asked(operation, key);
        let request = self.signed(&asked, call).await?;
        let answer = self.client.execute(request).await.map_err(|cause| asked.broken(cause))?;
        let (parts, body) = answer.into_parts();
        if names_seaweedfs(&parts.headers) {
            self.seaweedfs.store(true, Ordering::Relaxed);
        }
        let (status, headers) = (parts.status, parts.headers);
        let marked = is_marked(&headers);
        if status.is_success() {
            let unmarked = self.place.marks() && !marked && !names_seaweedfs(&headers);
            return Ok(Outcome::Done(Reply { status, headers, unmarked, body }));
        }
        if is_head && status == StatusCode::NOT_FOUND {
            return Ok(Outcome::Missing { marked });
        }
        // Without its text an answer is still one: the status alone has to do then.
        let text = collect(body).await.unwrap_or_default();
        let outside = Outside::of(status, &headers, &self.address.url);
        let refusal = S3Refusal::read(outside, &headers, &text);
        Ok(if refusal.is_missing() { Outcome::Missing { marked } } else { Outcome::Refused(refusal) })
    }

    /// Asks for what is there whenever the bucket is.
    pub(super) async fn demand(&self, call: Call<'_>) -> Result<Reply> {
        let asked = self.asked(call.operation, call.key);
        self.send(call).await?.ok_or_else(|| asked.senseless("it knows of no object where none is asked for"))
    }

    /// Tells whether SeaweedFS has answered, which differs where no answer shows it.
    pub(super) fn is_seaweedfs(&self) -> bool {
        self.seaweedfs.load(Ordering::Relaxed)
    }

    /// Returns who makes errors of what follows.
    pub(super) fn asked<'a>(&'a self, operation: Operation, key: Option<&'a Key>) -> Asked<'a> {
        Asked { address: &self.address, operation, key }
    }

    async fn signed(&self, asked: &Asked<'_>, call: Call<'_>) -> Result<HttpRequest> {
        let credential = self.store.credentials().get_credential().await;
        let credential = credential.map_err(|cause| asked.unknown(cause, self.known.load(Ordering::Relaxed)))?;
        self.known.store(true, Ordering::Relaxed);
        let long = call.body.len() > Payload::CHUNK;
        let request = self.request(call)?;
        let region = self.address.region.clone();
        if long {
            // Signing hashes the body; the loop has other things to do meanwhile.
            let signed = payload::run_blocking(move || Ok(authorized(&credential, &region, request))).await;
            return signed
                .map_err(|error| asked.senseless(&error.to_string()))?
                .map_err(|cause| asked.unsigned(&cause));
        }
        authorized(&credential, &region, request).map_err(|cause| asked.unsigned(&cause))
    }

    fn request(&self, call: Call<'_>) -> Result<HttpRequest> {
        let mut url = self.address.url.clone();
        if let Some(key) = call.key {
            url.push('/');
            url.extend(utf8_percent_encode(key.as_str(), &PATH));
        }
        for (position, (name, value)) in call.query.iter().enumerate() {
            url.push(if position == 0 { '?' } else { '&' });
            url.push_str(name);
            url.push('=');
            url.extend(utf8_percent_encode(value, &QUERY));
        }
        let asked = self.asked(call.operation, call.key);
        let sends = matches!(call.method, Method::PUT | Method::POST);
        let mut request: HttpRequest = Request::new(call.body.into());
        *request.method_mut() = call.method;
        *request.uri_mut() = url.parse().map_err(|error: http::uri::InvalidUri| asked.senseless(&error.to_string()))?;
        *request.headers_mut() = call.headers;
        if sends {
            let length = request.body().content_length();
            request.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        Ok(request)
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Wire").field(&self.address).finish()
    }
}

impl Reply {
    /// Returns one header's text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        text(&self.headers, name)
    }

    /// Gives the body as it comes.
    pub(super) fn into_stream(
        self,
    ) -> futures_util::stream::BoxStream<'static, Result<Bytes, object_store::client::HttpError>> {
        self.body.bytes_stream()
    }

    /// Returns what may be told of the answer.
    pub(super) fn outside(&self, asked: &Asked<'_>) -> Outside {
        Outside::of(self.status, &self.headers, &asked.address.url)
    }

    /// Reads the whole body as text.
    pub(super) async fn into_text(self, asked: &Asked<'_>) -> Result<String> {
        match collect(self.body).await {
            Ok(text) => Ok(text),
            Err(Cut::Broken(cause)) => Err(asked.broken(cause)),
            Err(Cut::TooLong) => Err(asked.senseless("it does not end")),
        }
    }
}

fn names_seaweedfs(headers: &HeaderMap) -> bool {
    text(headers, header::SERVER.as_str()).is_some_and(|server| server.starts_with("SeaweedFS"))
}

enum Cut {
    Broken(object_store::client::HttpError),
    TooLong,
}

async fn collect(body: HttpResponseBody) -> Result<String, Cut> {
    let (mut stream, mut bytes) = (body.bytes_stream(), BytesMut::new());
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk.map_err(Cut::Broken)?);
        if bytes.len() > LONGEST_ANSWER {
            return Err(Cut::TooLong);
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn authorized(
    credential: &Arc<AwsCredential>,
    region: &str,
    mut request: HttpRequest,
) -> Result<HttpRequest, object_store::Error> {
    AwsAuthorizer::new(credential, "s3", region).try_authorize(&mut request, None)?;
    Ok(request)
}

/// Makes clients for the services that give credentials.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let plain = options.get_config_value(&ClientConfigKey::AllowHttp).is_some_and(|allowed| allowed == "true");
        // These services are next door, or they are not there at all.
        let client = client(plain, Duration::from_secs(2), Duration::from_secs(10));
        client
            .map(HttpClient::new)
            .map_err(|source| object_store::Error::Generic { store: "S3", source: source.into() })
    }
}

/// Makes a client that does what it is told: no proxy of the environment, no redirect, no unpacking.
fn client(plain: bool, connect: Duration, wait: Duration) -> Result<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("filestorage/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .http1_only()
        .connect_timeout(connect)
        .read_timeout(wait);
    // Without TLS there is no need of the system's certificates, which may not even be there.
    let builder = if plain { builder.tls_certs_only([]) } else { builder.https_only(true) };
    builder.build().map_err(|error| {
        let why = format!("no TLS client could be made: {error}; are the system's CA certificates installed?");
        invalid(why).with_source(error)
    })
}
