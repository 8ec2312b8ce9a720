//! One request to the store: signed, sent, and its answer classified.
//!
//! `object_store` finds credentials, signs requests (SigV4) and sends them. Its errors lack the status, the code and
//! `Retry-After`, and one name that it cannot parse spoils a page of a listing. So requests are made and answers are
//! interpreted here.

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

use super::error::{RequestContext, S3Refusal};
use super::identity::{BucketIdentity, has_request_id};
use super::options::{S3Address, invalid};
use crate::storage::backends::http::outside::Outside;
use crate::storage::backends::http::text;
use crate::storage::error::{Operation, Result};
use crate::storage::object::{Key, Payload, payload};

/// The unreserved characters of RFC 3986 stay unescaped. The store computes the signature over this form.
const QUERY: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
pub(super) const PATH: AsciiSet = QUERY.remove(b'/');

/// The largest number of bytes of an answer other than a payload: a page of 1,000 longest names, escaped.
const LONGEST_ANSWER: usize = 8 << 20;

/// A connection to one bucket, shared by all its requests.
pub(super) struct Wire {
    pub(super) address: S3Address,
    /// Finds credentials and makes signed URLs; sends no other requests.
    pub(super) store: AmazonS3,
    client: HttpClient,
    /// Whether credentials were obtained before.
    known: AtomicBool,
    /// Whether an answer came from SeaweedFS.
    seaweedfs: AtomicBool,
    /// What earlier answers have shown about the server.
    pub(super) identity: BucketIdentity,
}

/// One request.
pub(super) struct Call<'a> {
    pub(super) operation: Operation,
    /// The object of the request; `None` for the bucket itself.
    pub(super) key: Option<&'a Key>,
    method: Method,
    query: Vec<(&'static str, String)>,
    headers: HeaderMap,
    body: Bytes,
}

/// An answer with a status of success. `proof` checks the rest of it.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Whether the request id is missing on an answer of a store that sends one with every answer.
    pub(super) lacks_request_id: bool,
    body: HttpResponseBody,
}

/// The outcome of a request.
pub(super) enum Outcome {
    Done(Reply),
    /// The object is missing. The answer to HEAD has no text, so bucket or store may be missing as well.
    Missing {
        has_id: bool,
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
    /// Prepares the connection. Sends no request.
    pub(super) fn open(address: S3Address, builder: AmazonS3Builder, timeout: Duration) -> Result<Self> {
        let client = client(address.is_plain(), timeout, timeout)?;
        // Retries are decided by one layer above, for all backends.
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
            identity: BucketIdentity::default(),
        })
    }

    /// Sends a request for an object; `None` means that the object does not exist.
    pub(super) async fn send(&self, call: Call<'_>) -> Result<Option<Reply>> {
        let context = self.context(call.operation, call.key);
        match self.send_recognized(call).await? {
            Outcome::Done(reply) => Ok(Some(reply)),
            Outcome::Missing { .. } => Ok(None),
            Outcome::Refused(refusal) => Err(context.refused(refusal)),
        }
    }

    /// Sends a request for an object, after the server has shown to be that of the bucket.
    pub(super) async fn send_recognized(&self, call: Call<'_>) -> Result<Outcome> {
        self.recognize(&self.context(call.operation, call.key)).await?;
        self.execute(call).await
    }

    /// Sends a request once.
    pub(super) async fn execute(&self, call: Call<'_>) -> Result<Outcome> {
        let (operation, key, is_head) = (call.operation, call.key, call.method == Method::HEAD);
        let context = self.context(operation, key);
        let request = self.signed(&context, call).await?;
        let answer = self.client.execute(request).await.map_err(|cause| context.broken(cause))?;
        let (parts, body) = answer.into_parts();
        if names_seaweedfs(&parts.headers) {
            self.seaweedfs.store(true, Ordering::Relaxed);
        }
        let (status, headers) = (parts.status, parts.headers);
        let has_id = has_request_id(&headers);
        if status.is_success() {
            let lacks_request_id = self.identity.sends_request_ids() && !has_id && !names_seaweedfs(&headers);
            return Ok(Outcome::Done(Reply { status, headers, lacks_request_id, body }));
        }
        if is_head && status == StatusCode::NOT_FOUND {
            return Ok(Outcome::Missing { has_id });
        }
        // An answer whose text does not arrive is an answer all the same, of which only the status is known.
        let text = collect(body).await.unwrap_or_default();
        let outside = Outside::of(status, &headers, &self.address.url);
        let refusal = S3Refusal::read(outside, &headers, &text);
        Ok(if refusal.is_missing() { Outcome::Missing { has_id } } else { Outcome::Refused(refusal) })
    }

    /// Sends a request whose subject exists whenever the bucket does.
    pub(super) async fn demand(&self, call: Call<'_>) -> Result<Reply> {
        let context = self.context(call.operation, call.key);
        self.send(call)
            .await?
            .ok_or_else(|| context.unexpected_answer("it reports a missing object in answer to a request without one"))
    }

    /// Tells whether SeaweedFS has answered. It differs from other stores where no answer shows it.
    pub(super) fn is_seaweedfs(&self) -> bool {
        self.seaweedfs.load(Ordering::Relaxed)
    }

    /// Returns the context of a request, which makes its errors.
    pub(super) fn context<'a>(&'a self, operation: Operation, key: Option<&'a Key>) -> RequestContext<'a> {
        RequestContext { address: &self.address, operation, key }
    }

    /// Obtains credentials, or returns those that are still valid.
    pub(super) async fn credential(&self, context: &RequestContext<'_>) -> Result<Arc<AwsCredential>> {
        let credential = self.store.credentials().get_credential().await;
        let credential =
            credential.map_err(|cause| context.no_credentials(cause, self.known.load(Ordering::Relaxed)))?;
        self.known.store(true, Ordering::Relaxed);
        Ok(credential)
    }

    async fn signed(&self, context: &RequestContext<'_>, call: Call<'_>) -> Result<HttpRequest> {
        let credential = self.credential(context).await?;
        let long = call.body.len() > Payload::CHUNK;
        let request = self.request(call)?;
        let region = self.address.region.clone();
        if long {
            // Signing hashes the whole body, which would block the thread for other tasks.
            let signed = payload::run_blocking(move || Ok(authorized(&credential, &region, request))).await;
            return signed
                .map_err(|error| context.unexpected_answer(&error.to_string()))?
                .map_err(|cause| context.unsigned("request", &cause));
        }
        authorized(&credential, &region, request).map_err(|cause| context.unsigned("request", &cause))
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
        let context = self.context(call.operation, call.key);
        let sends = matches!(call.method, Method::PUT | Method::POST);
        let mut request: HttpRequest = Request::new(call.body.into());
        *request.method_mut() = call.method;
        *request.uri_mut() =
            url.parse().map_err(|error: http::uri::InvalidUri| context.unexpected_answer(&error.to_string()))?;
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
    /// Returns the text of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        text(&self.headers, name)
    }

    /// Returns the body as a stream.
    pub(super) fn into_stream(
        self,
    ) -> futures_util::stream::BoxStream<'static, Result<Bytes, object_store::client::HttpError>> {
        self.body.bytes_stream()
    }

    /// Returns the parts of the answer that may be shown.
    pub(super) fn outside(&self, context: &RequestContext<'_>) -> Outside {
        Outside::of(self.status, &self.headers, &context.address.url)
    }

    /// Reads the whole body as text.
    pub(super) async fn into_text(self, context: &RequestContext<'_>) -> Result<String> {
        match collect(self.body).await {
            Ok(text) => Ok(text),
            Err(TextFault::Broken(cause)) => Err(context.broken(cause)),
            Err(TextFault::TooLong) => Err(context.unexpected_answer("it does not end")),
        }
    }
}

fn names_seaweedfs(headers: &HeaderMap) -> bool {
    text(headers, header::SERVER.as_str()).is_some_and(|server| server.starts_with("SeaweedFS"))
}

enum TextFault {
    Broken(object_store::client::HttpError),
    TooLong,
}

async fn collect(body: HttpResponseBody) -> Result<String, TextFault> {
    let (mut stream, mut bytes) = (body.bytes_stream(), BytesMut::new());
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk.map_err(TextFault::Broken)?);
        if bytes.len() > LONGEST_ANSWER {
            return Err(TextFault::TooLong);
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

/// Makes clients for the services that provide credentials.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let plain = options.get_config_value(&ClientConfigKey::AllowHttp).is_some_and(|allowed| allowed == "true");
        // These services are near and answer quickly, or they do not exist.
        let client = client(plain, Duration::from_secs(2), Duration::from_secs(10));
        client
            .map(HttpClient::new)
            .map_err(|source| object_store::Error::Generic { store: "S3", source: source.into() })
    }
}

/// Makes a client without proxies from the environment, redirects and unpacking.
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
    // Without TLS the system's certificates are not needed. They may not even exist.
    let builder = if plain { builder.tls_certs_only([]) } else { builder.https_only(true) };
    builder.build().map_err(|error| {
        let why =
            format!("no TLS client could be made: {error}; check that the system's CA certificates are installed");
        invalid(why).with_source(error)
    })
}
