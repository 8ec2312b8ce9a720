//! Requests to the JSON API: authorized, and each wait bounded.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;

use super::error::{Answer, GcsFault};
use super::login::Login;
use super::progress::{UploadProgress, within};
use crate::storage::backends::http::outside::Outside;

/// The largest number of bytes that is read of an answer. A page of a thousand objects with full metadata is smaller.
const LONGEST_ANSWER: usize = 32 * 1024 * 1024;

/// The largest number of bytes that is read of an error answer.
const LONGEST_REFUSAL: usize = 64 * 1024;

/// One pool of connections to one server.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    login: Login,
    idle_limit: Duration,
}

impl Client {
    pub(super) fn open(login: Login, idle_limit: Duration) -> Result<Self, String> {
        // A redirect would carry the token to another server. 308 is an answer of the upload protocol.
        let http = reqwest::Client::builder().redirect(Policy::none()).build();
        let http = http.map_err(|error| format!("no connection can be set up: {}", super::error::root(&error)))?;
        Ok(Self { http, login, idle_limit })
    }

    /// Begins a request without authorization.
    pub(super) fn plain(&self, method: Method, url: &str) -> RequestBuilder {
        self.http.request(method, url)
    }

    /// Begins an authorized request.
    pub(super) async fn request(&self, method: Method, url: &str) -> Result<RequestBuilder, GcsFault> {
        Ok(self.http.request(method, url).headers(self.login.authorize().await?))
    }

    /// Sends a request with a small body. An answer without success is an error.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, GcsFault> {
        self.stream(request, &UploadProgress::new()).await
    }

    /// Sends a request whose body notes its progress. An answer without success is an error.
    pub(super) async fn stream(
        &self,
        request: RequestBuilder,
        progress: &UploadProgress,
    ) -> Result<Response, GcsFault> {
        let response = progress.watch(self.idle_limit, request.send()).await??;
        if response.status().is_success() {
            return Ok(response);
        }
        let (outside, headers) = (outside(&response), response.headers().clone());
        if outside.status == StatusCode::UNAUTHORIZED {
            self.login.renew().await;
        }
        // The status is enough where the body does not arrive.
        let body = self.body(response, LONGEST_REFUSAL).await.unwrap_or_default();
        Err(GcsFault::Answer(Answer::new(outside, &headers, &body)))
    }

    /// Reads the JSON of an answer with status 200, or 201, with which an upload session may end.
    pub(super) async fn json<T: DeserializeOwned>(&self, response: Response) -> Result<T, GcsFault> {
        let outside = outside(&response);
        let body = self.body(response, LONGEST_ANSWER).await?;
        // The parser's own message may quote data of users.
        let place = |error: serde_json::Error| {
            format!("is no JSON of the expected kind, line {} column {}", error.line(), error.column())
        };
        if !matches!(outside.status, StatusCode::OK | StatusCode::CREATED) {
            return Err(GcsFault::strange(outside, "is no answer to the request"));
        }
        serde_json::from_slice(&body).map_err(|error| GcsFault::strange(outside, place(error)))
    }

    /// Tells whether an answer proves a removal by itself. An answer that cannot answer a removal is an error.
    ///
    /// Google answers 204 with the id of the request, its emulator 200 with `null`.
    pub(super) async fn removed(&self, response: Response) -> Result<bool, GcsFault> {
        let (outside, google) = (outside(&response), response.headers().contains_key("x-guploader-uploadid"));
        let body = self.body(response, LONGEST_REFUSAL).await?;
        match (outside.status, body.trim_ascii()) {
            (StatusCode::NO_CONTENT, b"") => Ok(google),
            (StatusCode::OK, b"null") => Ok(true),
            (StatusCode::OK, b"") => Ok(false),
            _ => Err(GcsFault::strange(outside, "does not confirm a removal")),
        }
    }

    async fn body(&self, mut response: Response, most: usize) -> Result<Bytes, GcsFault> {
        let (mut body, outside) = (BytesMut::new(), outside(&response));
        while let Some(chunk) = within(self.idle_limit, response.chunk()).await?? {
            if body.len() + chunk.len() > most {
                return Err(GcsFault::strange(outside, format!("has more than {most} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }
}

/// Returns the parts of an answer that may be shown.
pub(super) fn outside(response: &Response) -> Outside {
    Outside::of(response.status(), response.headers(), response.url().as_str())
}
