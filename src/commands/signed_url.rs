//! `filestorage.signed_url`.

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
            Parameter::new("method", ParameterKind::Choice(&["GET", "PUT"]), "What the URL allows; GET by default."),
            Parameter::new(
                "expires_in",
                ParameterKind::Between(1, MAX_LIFETIME),
                "Seconds the URL is good for; 3600 by default.",
            ),
        ],
    },
    less: "nothing",
    walks: false,
    result: schemas::of::<SignedUrl>,
    parse,
};

/// Seconds a URL is good for when nobody says.
const LIFETIME: u64 = 3600;
/// Longest such time: seven days, of both signatures.
const MAX_LIFETIME: u64 = 604_800;

/// A URL by which anyone can read or write one object for a time. The URL is a secret.
#[derive(serde::Serialize, schemars::JsonSchema)]
struct SignedUrl {
    /// The URL itself.
    url: String,
    /// `GET` or `PUT`.
    method: &'static str,
    /// When it stops being good: ISO 8601 in UTC with microseconds and offset.
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

    /// Writes nothing, and so nothing of the URL is kept in the journal.
    fn writes(&self) -> bool {
        false
    }

    async fn run(self: Box<Self>, engine: &Engine, _context: Context) -> Finished {
        // Signatures count in whole seconds, from the one they are made in or a later one.
        let begin = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH);
        let expires_at = begin.saturating_add(self.grant.lifetime).unwrap_or(Timestamp::MAX);
        let result = engine.sign(&self.target.key, &self.grant).await.map_err(CommandError::from).and_then(|url| {
            let expires_at = format_timestamp(expires_at);
            super::json(&SignedUrl { url, method: self.grant.method.as_str(), expires_at })
        });
        Finished { result, facts: vec![Facts::of(Some(&self.target.key), engine)], held: None }
    }
}
