//! Earlier states of an object, by the generation token of their receipts.

use jiff::Timestamp;

use super::Engine;
use super::options::StateOptions;
use super::receipt::{KeptVersion, Receipt, Stat};
use crate::storage::backend::{GetOptions, Version, VersionsRequest};
use crate::storage::error::{Error, ErrorKind, Operation, Result};
use crate::storage::object::{Attributes, Key, Object};
use crate::storage::reading;

/// The largest number of versions in one answer.
const MOST: usize = 1_000;

/// The state of a key that a generation token names.
enum FoundState {
    /// The token is that of the present object.
    Present(Attributes),
    Earlier(Version),
}

impl Engine {
    /// Lists the versions of an object that have not expired, newest first.
    ///
    /// While a write or delete of the key waits in an overlay, no version is the present state.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] where no versions are kept, and for an object with more than 1,000 versions unless the limit
    /// asks for fewer; the errors of the backend. An incomplete list is never returned without a limit.
    pub async fn versions(&self, key: &Key, limit: Option<usize>) -> Result<Vec<KeptVersion>> {
        self.0.counters.measure(self.versions_uncounted(key, limit)).await
    }

    /// Reads receipt and metadata of the state with this generation token, present or earlier, without the value.
    ///
    /// # Errors
    ///
    /// As [`Engine::versions`]. The checksum of another tool's earlier version may be unknown.
    pub async fn stat_generation(&self, key: &Key, generation: &str) -> Result<Option<Stat>> {
        let look = async {
            let found = self.find_state(Operation::Stat, key, generation).await?;
            Ok(found.map(|found| match found {
                FoundState::Present(attributes) | FoundState::Earlier(Version { attributes, .. }) => {
                    Stat::of(key, self.0.kind, attributes)
                }
            }))
        };
        self.0.counters.measure(look).await
    }

    /// Reads an object that has not expired, or its earlier state with the generation token of the options.
    pub(in crate::storage) async fn read_uncounted(&self, key: &Key, options: StateOptions) -> Result<Option<Object>> {
        let StateOptions { generation, bytes } = options;
        let Some(generation) = generation else { return reading::read(&*self.0.backend, key, bytes).await };
        let earlier = match self.find_state(Operation::Retrieve, key, &generation).await? {
            None => return Ok(None),
            Some(FoundState::Earlier(version)) => version,
            Some(FoundState::Present(_)) => {
                let found = reading::read(&*self.0.backend, key, bytes.clone()).await?;
                match found.filter(|object| object.attributes.generation == generation) {
                    Some(object) => return Ok(Some(object)),
                    // Replaced or removed since the look.
                    None => match self.find_earlier(Operation::Retrieve, key, &generation).await? {
                        Some(version) => version,
                        None => return Ok(None),
                    },
                }
            }
        };
        let bytes = GetOptions { version: Some(earlier.id), ..bytes };
        reading::read(&*self.0.backend, key, bytes).await
    }

    async fn find_state(&self, operation: Operation, key: &Key, generation: &str) -> Result<Option<FoundState>> {
        let damage = match self.0.backend.stat(key).await {
            Ok(Some(present)) if present.generation == generation => {
                let present = Some(present).filter(|present| !present.is_expired(Timestamp::now()));
                return Ok(present.map(FoundState::Present));
            }
            Ok(_) => None,
            // An earlier state may be sound.
            Err(error) if error.kind == ErrorKind::Integrity => Some(error),
            Err(error) => return Err(error.during(operation)),
        };
        match (self.find_earlier(operation, key, generation).await, damage) {
            (Ok(None), Some(damage)) => Err(damage.during(operation)),
            // Where no versions are kept, the present object may be the wanted one.
            (Err(error), Some(damage)) if error.kind == ErrorKind::Invalid => Err(damage.during(operation)),
            (found, _) => Ok(found?.map(FoundState::Earlier)),
        }
    }

    async fn find_earlier(&self, operation: Operation, key: &Key, generation: &str) -> Result<Option<Version>> {
        let request = VersionsRequest { generation: Some(generation.to_owned()), limit: 1 };
        let found = self.0.backend.versions(key, &request).await.map_err(|error| error.during(operation))?;
        match found.versions.into_iter().next() {
            Some(version) => Ok(Some(version).filter(|version| !version.attributes.is_expired(Timestamp::now()))),
            None if found.unreadable > 0 => {
                let why = format!(
                    "the attributes of {} versions of the key cannot be read, and the generation may be that of one of them; look at \
                     them with the bucket's own tool",
                    found.unreadable
                );
                Err(Error::new(ErrorKind::Integrity, operation, Some(key), why))
            }
            None => Ok(None),
        }
    }

    async fn versions_uncounted(&self, key: &Key, limit: Option<usize>) -> Result<Vec<KeptVersion>> {
        let wanted = limit.unwrap_or(usize::MAX);
        let mut asked = wanted.min(MOST);
        loop {
            let request = VersionsRequest { generation: None, limit: asked };
            let found = self.0.backend.versions(key, &request).await?;
            let now = Timestamp::now();
            let live = found.versions.into_iter().filter(|version| !version.attributes.is_expired(now));
            let kept: Vec<_> = live
                .map(|version| KeptVersion {
                    receipt: Receipt::of(key, self.0.kind, &version.attributes),
                    is_current: version.is_current,
                })
                .collect();
            if !found.more || kept.len() >= wanted {
                if found.unreadable > 0 {
                    tracing::warn!(%key, versions = found.unreadable, "left out versions whose attributes cannot be read");
                }
                return Ok(kept);
            }
            if asked >= MOST {
                let why = format!(
                    "the key has more than {MOST} versions; ask for the newest with `limit`, and remove old ones with a \
                     lifecycle rule of the bucket"
                );
                return Err(Error::new(ErrorKind::Invalid, Operation::Versions, Some(key), why));
            }
            // Expired versions do not count against the caller's limit.
            asked = asked.saturating_mul(4).clamp(1, MOST);
        }
    }
}
