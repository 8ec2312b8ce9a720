//! The task `filestorage.signed_url`: makes a URL that gives access to one object for a limited time.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use super::arguments::{Parameter, ParameterKind};
use super::{
    Arguments, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, KEY, KeyUse, schemas,
};
use crate::storage::{Grant, Method, format_timestamp};

pub(super) static DEFINITION: Definition = Definition {
    task: "filestorage.signed_url",
    operation: Some("signed_url"),
    signature: CallSignature {
        function: "signed_url",
        required: &[KEY],
        optional: &[],
        keyword_only: &[
            Parameter::new(
                "method",
                ParameterKind::Choice(&["GET", "PUT"]),
                "The HTTP method that the URL allows, GET by default.",
            ),
            Parameter::new(
                "expires_in",
                ParameterKind::Between(1, MAX_LIFETIME),
                "The number of seconds for which the URL is valid, 3600 by default.",
            ),
        ],
    },
    less: "nothing",
    walks: false,
    result: schemas::of::<SignedUrl>,
    parse,
};

/// The default lifetime of a URL, in seconds.
const LIFETIME: u64 = 3600;
/// The longest lifetime of a URL, in seconds: seven days, the limit of Cloud Storage and of S3.
const MAX_LIFETIME: u64 = 604_800;

/// A URL with which anyone can read or write one object for a limited time. Treat the URL as a secret.
#[derive(serde::Serialize, schemars::JsonSchema)]
struct SignedUrl {
    /// The signed URL.
    url: String,
    /// The HTTP method that the URL allows: `GET` or `PUT`.
    method: &'static str,
    /// When the URL stops being valid: ISO 8601 in UTC with microseconds and offset.
    #[schemars(extend("format" = "date-time"))]
    expires_at: String,
}

#[derive(Debug)]
struct Sign {
    target: KeyUse,
    grant: Grant,
}

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    let target = KeyUse::read(super::key(&mut arguments)?);
    let method = match arguments.optional_text("method")?.as_deref() {
        None | Some("GET") => Method::Get,
        Some("PUT") => Method::Put,
        Some(_) => return Err(CommandError::value_error("method must be GET or PUT")),
    };
    let seconds = arguments.optional_count("expires_in")?.unwrap_or(LIFETIME);
    if !(1..=MAX_LIFETIME).contains(&seconds) {
        return Err(CommandError::value_error(format!("expires_in must be 1 to {MAX_LIFETIME} seconds")));
    }
    Ok(Box::new(Sign { target, grant: Grant { method, lifetime: Duration::from_secs(seconds) } }))
}

#[async_trait]
impl Command for Sign {
    fn keys(&self) -> &[KeyUse] {
        std::slice::from_ref(&self.target)
    }

    /// Returns `false`, because the command changes nothing. So the journal does not keep the URL, which is a secret.
    fn writes(&self) -> bool {
        false
    }

    async fn run(self: Box<Self>, engine: &Engine, _context: Context) -> Finished {
        // A signature is dated in whole seconds. The one that is made below has this second or a later one.
        let begin = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH);
        let expires_at = begin.saturating_add(self.grant.lifetime).unwrap_or(Timestamp::MAX);
        let result = engine.sign(&self.target.key, &self.grant).await.map_err(CommandError::from).and_then(|url| {
            let expires_at = format_timestamp(expires_at);
            super::json(&SignedUrl { url, method: self.grant.method.as_str(), expires_at })
        });
        Finished { result, facts: vec![Facts::of(Some(&self.target.key), engine)], held: None }
    }
}
