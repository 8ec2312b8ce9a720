//! Copies within the bucket, which the bucket carries out in as many steps as it needs.

use http::header::CONTENT_TYPE;
use reqwest::Method;
use serde::Deserialize;

use super::error::GcsFault;
use super::resource::Stored;
use super::upload::{self, Sums};
use super::{Attributes, Condition, CopySource, Error, Gcs, Key, Operation, PutOptions, client};

/// The answer to one step of a copy.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    kind: String,
    done: bool,
    rewrite_token: Option<String>,
    resource: Option<Stored>,
}

/// The kind of such an answer.
const STEP: &str = "storage#rewriteResponse";

/// The most steps of one copy. A step moves far more than a MiB, and an object has at most 5 TiB.
const MOST_STEPS: usize = 100_000;

impl Gcs {
    /// Copies exactly the state of the source that is named; `None` where the source has another one.
    ///
    /// Both states are enforced with the bucket's own generations: that of the source, and that of the object which is
    /// replaced, where there is a condition. The commit point is passed before the first step: the bucket alone decides
    /// which step is the last, and a copy within one bucket usually has no other.
    pub(super) async fn copy_object(
        &self,
        source: &CopySource,
        key: &Key,
        attributes: &Attributes,
        options: &PutOptions,
    ) -> Result<Option<Attributes>, GcsFault> {
        let Some((from, seen)) = self.seen(source).await? else { return Ok(None) };
        let copied = if source.key == *key {
            options.condition.check(Operation::Copy, key, Some(&seen))?;
            self.rewrite(source, from, key, attributes, Some(from), options).await
        } else {
            match &options.condition {
                Condition::Always => self.rewrite(source, from, key, attributes, None, options).await,
                Condition::Generation(_) => {
                    let native = self.replaceable(key, &attributes.generation, &options.condition).await?;
                    self.rewrite(source, from, key, attributes, Some(native), options).await
                }
                Condition::Absent => match self.rewrite(source, from, key, attributes, Some(0), options).await {
                    // The key has an object, which may have expired, or the source has changed.
                    Err(fault) if fault.status() == Some(412) && self.is_unchanged(source, from).await? => {
                        let native = self.replaceable(key, &attributes.generation, &options.condition).await?;
                        self.rewrite(source, from, key, attributes, Some(native), options).await
                    }
                    outcome => outcome,
                },
            }
        };
        match copied {
            Ok(()) => Ok(Some(attributes.clone())),
            // The answer does not say which of the two objects has changed.
            Err(fault) if fault.status() == Some(412) && !self.is_unchanged(source, from).await? => Ok(None),
            // The bucket or the source is gone.
            Err(fault) if fault.is_missing() => self.missing_object(fault).await.map(|()| None),
            Err(fault) => Err(fault),
        }
    }

    /// Returns the source and the bucket's own generation of it, where it is in the state that is named.
    async fn seen(&self, source: &CopySource) -> Result<Option<(i64, Attributes)>, GcsFault> {
        let Some(found) = self.find(&source.key, None).await? else { return Ok(None) };
        let seen = found.attributes.map_err(|why| Self::damaged(&why))?;
        Ok(source.is(&seen).then_some((found.native, seen)))
    }

    async fn is_unchanged(&self, source: &CopySource, native: i64) -> Result<bool, GcsFault> {
        Ok(self.seen(source).await?.is_some_and(|(now, _)| now == native))
    }

    async fn rewrite(
        &self,
        source: &CopySource,
        from: i64,
        key: &Key,
        attributes: &Attributes,
        replaced: Option<i64>,
        options: &PutOptions,
    ) -> Result<(), GcsFault> {
        // The bucket knows the checksum of the source, and tells that of the copy.
        let insert = upload::insert(key, attributes, Sums::Omitted)?;
        if !options.commit_guard.commit() {
            return Err(Error::abandoned(Operation::Copy, key).into());
        }
        let mut token: Option<String> = None;
        for _ in 0..MOST_STEPS {
            let fields = format!("kind,done,rewriteToken,resource({})", Stored::FIELDS);
            let mut query = vec![("sourceGeneration", from.to_string()), ("fields", fields)];
            query.push(("ifSourceGenerationMatch", from.to_string()));
            query.extend(replaced.map(|native| ("ifGenerationMatch", native.to_string())));
            query.extend(token.map(|token| ("rewriteToken", token)));
            let request = self.client.request(Method::POST, &self.address.rewrite(&source.key, key)).await?;
            let request = request.query(&query).header(CONTENT_TYPE, "application/json; charset=UTF-8");
            let response = self.client.send(request.body(insert.clone())).await?;
            let outside = client::outside(&response);
            let step: Step = self.client.json(response).await?;
            if step.kind != STEP {
                return Err(GcsFault::strange(outside, "is no answer to a copy"));
            }
            match (step.done, step.resource, step.rewrite_token) {
                (true, Some(stored), _) => return self.proven(&stored, key, attributes),
                (false, _, Some(next)) => token = Some(next),
                _ => return Err(GcsFault::strange(outside, "says neither that a copy is done nor how it goes on")),
            }
        }
        Err(GcsFault::Repeating("a copy does not come to its end"))
    }
}
