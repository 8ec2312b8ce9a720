//! Requests by name: attributes, removal, listing, and the bucket itself.

use jiff::{SignedDuration, Timestamp};
use reqwest::{Method, RequestBuilder, Response};
use serde::Deserialize;

use super::client;
use super::error::{GcsFault, Missing};
use super::resource::{FIELDS, FoundObject, Resource};
use super::{Entry, Gcs, Key, Listing, Page};
use crate::storage::backends::http::clock_skew;
use crate::storage::backends::http::pages::Pages;

/// The largest number of entries of one answer.
pub(super) const LONGEST_PAGE: usize = 1000;

/// One answer of a listing.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NamePage {
    kind: String,
    #[serde(default)]
    pub(super) items: Vec<Resource>,
    pub(super) next_page_token: Option<String>,
}

/// The answer to the creation of a bucket.
#[derive(Deserialize)]
struct CreatedBucket {
    kind: String,
    name: String,
}

impl Gcs {
    /// Reads the attributes of a key's object, or of one generation of it; `None` when there is no such object.
    pub(super) async fn find(&self, key: &Key, native: Option<i64>) -> Result<Option<FoundObject>, GcsFault> {
        let request = self.client.request(Method::GET, &self.address.object(key)).await?.query(&[("fields", FIELDS)]);
        let request = native.into_iter().fold(request, |request, native| request.query(&[("generation", native)]));
        match self.client.send(request).await {
            Ok(response) => {
                let outside = client::outside(&response);
                let resource: Resource = self.client.json(response).await?;
                if !resource.is_of(self.address.bucket(), key) {
                    return Err(GcsFault::strange(outside, "does not describe the object that was asked for"));
                }
                Ok(Some(resource.into()))
            }
            Err(fault) => self.missing_object(fault).await.map(|()| None),
        }
    }

    /// Removes the object, or only this generation of it; tells whether the object existed.
    pub(super) async fn remove_object(&self, key: &Key, native: Option<i64>) -> Result<bool, GcsFault> {
        let request = self.client.request(Method::DELETE, &self.address.object(key)).await?;
        let only = |native: i64| ("ifGenerationMatch", native);
        let request = native.into_iter().fold(request, |request, native| request.query(&[only(native)]));
        let response = match self.client.send(request).await {
            Ok(response) => response,
            Err(fault) => return self.missing_object(fault).await.map(|()| false),
        };
        let outside = client::outside(&response);
        if self.client.removed(response).await? {
            return Ok(true);
        }
        // Any server can give that answer. Only a bucket can say that the object is gone or replaced.
        match self.find(key, None).await? {
            Some(found) if native.is_none_or(|native| native == found.native) => {
                Err(GcsFault::strange(outside, "confirms the removal of an object that is there"))
            }
            _ => Ok(true),
        }
    }

    /// Lists one page of keys in byte order, from as many pages of the API as necessary.
    pub(super) async fn names(&self, page: &Page) -> Result<Listing, GcsFault> {
        let wanted = page.limit.unwrap_or(usize::MAX);
        let (mut listing, mut token, mut pages) = (Listing::default(), None::<String>, Pages::default());
        loop {
            // One entry more shows whether more follow. Another one may be the start itself, which the API includes.
            let missing = wanted.saturating_sub(listing.entries.len()).saturating_add(2);
            let items = format!("kind,items({}),nextPageToken", FIELDS.replace("metadata", "metadata/filestorage"));
            let mut query = vec![("fields", items), ("maxResults", missing.min(LONGEST_PAGE).to_string())];
            query.extend((!page.prefix.is_empty()).then(|| ("prefix", page.prefix.clone())));
            query.extend(page.start_after.clone().map(|start| ("startOffset", start)));
            query.extend(token.map(|token| ("pageToken", token)));
            let request = self.client.request(Method::GET, &self.address.objects()).await?.query(&query);
            let answer = self.page(request).await?;
            if answer.items.iter().any(|item| !item.name.starts_with(&*page.prefix)) {
                return Err(GcsFault::Repeating("it lists names that do not begin with the prefix it was asked for"));
            }
            let ends = answer.items.first().map(|item| &*item.name).zip(answer.items.last().map(|item| &*item.name));
            pages.advance(ends, answer.next_page_token.as_deref()).map_err(GcsFault::Repeating)?;
            for resource in answer.items {
                if page.start_after.as_ref().is_some_and(|start| resource.name <= *start) {
                    continue;
                }
                let Ok(key) = Key::parse(&resource.name) else {
                    listing.foreign += 1;
                    continue;
                };
                if listing.entries.len() == wanted {
                    listing.more = true;
                    return Ok(listing);
                }
                let size = resource.size;
                let entry = match FoundObject::from(resource).attributes {
                    Ok(attributes) => Entry::of(&key, &attributes),
                    Err(_) => Entry::sized(key, Some(size)),
                };
                listing.entries.push(entry);
            }
            match answer.next_page_token {
                Some(next) => token = Some(next),
                None => return Ok(listing),
            }
        }
    }

    /// Sends the smallest request to the bucket; returns how much the bucket's clock is ahead of this machine's.
    pub(super) async fn probe_bucket(&self) -> Result<Option<SignedDuration>, GcsFault> {
        let query = [("fields", "kind"), ("maxResults", "1")];
        let request = self.client.request(Method::GET, &self.address.objects()).await?.query(&query);
        let begun = Timestamp::now();
        let response = self.listing(request).await?;
        let skew = clock_skew(response.headers(), begun, Timestamp::now());
        self.names_in(response).await.map(|_| skew)
    }

    pub(super) async fn page(&self, request: RequestBuilder) -> Result<NamePage, GcsFault> {
        let response = self.listing(request).await?;
        self.names_in(response).await
    }

    async fn listing(&self, request: RequestBuilder) -> Result<Response, GcsFault> {
        let answer = self.client.send(request).await;
        answer.map_err(|fault| if fault.is_missing() { GcsFault::NoBucket } else { fault })
    }

    /// Reads a listing. An empty listing has a kind, too.
    async fn names_in(&self, response: Response) -> Result<NamePage, GcsFault> {
        let outside = client::outside(&response);
        let names: NamePage = self.client.json(response).await?;
        if names.kind != "storage#objects" {
            return Err(GcsFault::strange(outside, "is no listing of a bucket"));
        }
        Ok(names)
    }

    /// Creates the bucket, where a project is set. A bucket that somebody else created meanwhile is accepted.
    pub(super) async fn create_bucket(&self) -> Result<(), GcsFault> {
        let Some(project) = &self.project else { return Err(GcsFault::NoBucket) };
        let bucket = serde_json::json!({ "name": self.address.bucket(), "location": self.location });
        let request = self.client.request(Method::POST, &self.address.buckets()).await?;
        match self.client.send(request.query(&[("project", project)]).json(&bucket)).await {
            Ok(response) => {
                let outside = client::outside(&response);
                let made: CreatedBucket = self.client.json(response).await?;
                if made.kind != "storage#bucket" || made.name != self.address.bucket() {
                    return Err(GcsFault::strange(outside, "does not confirm that the bucket was created"));
                }
                tracing::info!(bucket = self.address.bucket(), project, location = self.location, "created the bucket");
                Ok(())
            }
            Err(GcsFault::Answer(answer)) if answer.is_strange() => Err(GcsFault::Answer(answer)),
            Err(GcsFault::Answer(answer)) if answer.status == 409 => Ok(()),
            Err(GcsFault::Answer(answer)) if answer.status == 403 => Err(GcsFault::NotCreated(answer)),
            Err(fault) => Err(fault),
        }
    }

    /// Succeeds when a failed request certainly says that the object is missing, and not its bucket.
    pub(super) async fn missing_object(&self, fault: GcsFault) -> Result<(), GcsFault> {
        let GcsFault::Answer(answer) = &fault else { return Err(fault) };
        match answer.missing() {
            _ if !fault.is_missing() => Err(fault),
            Some(Missing::Object) => Ok(()),
            Some(Missing::Bucket) => Err(GcsFault::NoBucket),
            // The answer does not say which is missing, as answers of emulators.
            None => self.probe_bucket().await.map(|_| ()),
        }
    }
}
