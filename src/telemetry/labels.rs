//! The closed sets of label values of the metrics; a value that a caller sends never becomes a label.

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

/// Defines an enum whose variants are the only values one label can have.
macro_rules! label_values {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// All values, in the order of the definition.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Returns the label's text.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
                EncodeLabelValue::encode(&self.as_str(), encoder)
            }
        }
    };
}

label_values! {
    /// The task of a command.
    Command {
        /// `filestorage.store`.
        Store = "store",
        /// `filestorage.retrieve`.
        Retrieve = "retrieve",
        /// `filestorage.delete`.
        Delete = "delete",
        /// `filestorage.exists`.
        Exists = "exists",
        /// `filestorage.list_keys`.
        ListKeys = "list_keys",
        /// `filestorage.stat`.
        Stat = "stat",
        /// `filestorage.get_health_status`.
        GetHealthStatus = "get_health_status",
        /// `filestorage.get_stats`.
        GetStats = "get_stats",
        /// `filestorage.signed_url`.
        SignedUrl = "signed_url",
        /// `filestorage.clear_cache`.
        ClearCache = "clear_cache",
        /// `filestorage.sync`.
        Sync = "sync",
        /// `filestorage.cleanup`.
        Cleanup = "cleanup",
        /// `filestorage.get_storage_usage`.
        GetStorageUsage = "get_storage_usage",
        /// `filestorage.store_many`.
        StoreMany = "store_many",
        /// `filestorage.retrieve_many`.
        RetrieveMany = "retrieve_many",
        /// `filestorage.delete_many`.
        DeleteMany = "delete_many",
        /// `filestorage.exists_many`.
        ExistsMany = "exists_many",
        /// `filestorage.copy`.
        Copy = "copy",
        /// `filestorage.move`.
        Move = "move",
        /// `filestorage.verify`.
        Verify = "verify",
        /// Any other task, or a message that cannot be read.
        Other = "other",
    }
}

impl Command {
    /// Finds the label for the name of a task, such as `filestorage.store`; the label of an unknown name is
    /// [`Command::Other`].
    #[must_use]
    pub fn from_task(name: &str) -> Self {
        let Some(short) = name.strip_prefix("filestorage.") else { return Self::Other };
        Self::ALL.iter().copied().find(|command| command.as_str() == short).unwrap_or(Self::Other)
    }
}

label_values! {
    /// The end of a command.
    CommandOutcome {
        /// The command was answered with SUCCESS.
        Succeeded = "succeeded",
        /// The command was answered with FAILURE.
        Failed = "failed",
        /// The command was answered with REVOKED, because it had expired or was revoked.
        Revoked = "revoked",
        /// The command could not be run; its message was copied to the dead queue, and answered where possible.
        DeadLettered = "dead_lettered",
        /// The command was put into a delay queue until its eta.
        Parked = "parked",
        /// The command failed because the storage is unreachable, and was put into a delay queue for another attempt.
        Retried = "retried",
        /// The command was answered from the journal and not run again.
        Replayed = "replayed",
        /// The command was given up without an answer, because the session was lost or the worker stops; the broker
        /// delivers it again.
        Abandoned = "abandoned",
    }
}

label_values! {
    /// The kind of a delivery.
    Delivery {
        /// The message was delivered for the first time.
        First = "first",
        /// The broker says that it has delivered the message before.
        Redelivered = "redelivered",
    }
}

label_values! {
    /// The end of a publication.
    Publish {
        /// The broker has taken responsibility for the message.
        Confirmed = "confirmed",
        /// No queue took the message.
        Returned = "returned",
        /// The broker refuses the message, and would do so again.
        Refused = "refused",
        /// The broker neither confirmed nor refused the message in time.
        Unconfirmed = "unconfirmed",
        /// The session was lost before the broker's confirm came.
        Lost = "lost",
    }
}

label_values! {
    /// The reason why an answer was given up.
    GivenUp {
        /// The reply queue refused the answer at every attempt.
        Full = "full",
        /// The reply queue neither took nor refused the answer.
        Silent = "silent",
    }
}

label_values! {
    /// What became of a publication whose address took nothing.
    Parked {
        /// The publication was parked, and its command acknowledged.
        Parked = "parked",
        /// The address took the publication after a wait.
        Delivered = "delivered",
        /// The publication was given up: an answer after its time, or an event that nobody listens to.
        GivenUp = "given_up",
        /// The publication was moved to `filestorage.dead`.
        Undeliverable = "undeliverable",
    }
}

label_values! {
    /// The end of the publication of a metric event.
    Event {
        /// The broker confirmed the event.
        Published = "published",
        /// The broker confirmed the event, but no queue was bound that would take it.
        Undeliverable = "undeliverable",
    }
}

label_values! {
    /// The state of the session with the broker.
    Session {
        /// There is no session; one is being opened.
        Connecting = "connecting",
        /// The session consumes commands.
        Connected = "connected",
        /// The broker has blocked publishers because of a memory or disk alarm.
        Blocked = "blocked",
        /// The worker finishes running commands and takes no new ones.
        Draining = "draining",
    }
}

label_values! {
    /// The operation of a backend.
    StorageOperation {
        /// A write of an object.
        Put = "put",
        /// A copy of an object within the backend.
        Copy = "copy",
        /// A read of an object.
        Get = "get",
        /// A read of the attributes of an object.
        Stat = "stat",
        /// A delete of an object.
        Delete = "delete",
        /// A listing of the versions of an object.
        Versions = "versions",
        /// A listing of keys.
        List = "list",
        /// A flush to disk of an object that another attempt wrote.
        Flush = "flush",
        /// A probe whether the backend can be used.
        Probe = "probe",
        /// The creation of a signed URL.
        Sign = "sign",
    }
}

label_values! {
    /// The backend of an operation.
    BackendLabel {
        /// The local disk.
        Local = "local",
        /// The memory of this process.
        Memory = "memory",
        /// The overlay: writes and deletes that wait for the bucket.
        Overlay = "overlay",
        /// Google Cloud Storage.
        Gcs = "gcs",
        /// Amazon S3 or a compatible store.
        S3 = "s3",
    }
}

label_values! {
    /// The end of a storage operation.
    StorageOutcome {
        /// The operation was done.
        Succeeded = "succeeded",
        /// The backend is certain that there is no such object.
        Missing = "missing",
        /// A precondition was not met.
        Precondition = "precondition",
        /// The stored bytes are damaged.
        Integrity = "integrity",
        /// The disk is full.
        NoSpace = "no_space",
        /// A quota has no room left.
        QuotaExceeded = "quota_exceeded",
        /// The backend refuses this identity.
        Denied = "denied",
        /// The backend cannot be reached.
        Unavailable = "unavailable",
        /// The backend asks for fewer requests.
        Throttled = "throttled",
        /// The operation was abandoned before its commit point.
        Abandoned = "abandoned",
        /// The operation failed for any other reason.
        Failed = "failed",
    }
}

label_values! {
    /// The result of a lookup in the cache of values.
    CacheLookup {
        /// The value was in the cache.
        Hit = "hit",
        /// The value was not in the cache, or what was there could not be used.
        Miss = "miss",
    }
}

label_values! {
    /// The reason why an entry left the cache of values by itself.
    CacheEviction {
        /// Other values needed the room, and this one was not used for the longest time.
        Size = "size",
        /// The time to live of the entry, or of the object, was over.
        Expired = "expired",
    }
}

label_values! {
    /// The end of an attempt to send one entry of the overlay to the bucket.
    SyncOutcome {
        /// The entry was written to the bucket.
        Sent = "sent",
        /// The object was deleted in the bucket, or was not there.
        Deleted = "deleted",
        /// The bucket had the entry already, from an earlier attempt whose answer was lost.
        AlreadyThere = "already_there",
        /// The object in the bucket was changed by somebody else; a pending write was quarantined, a pending delete
        /// dropped.
        Conflict = "conflict",
        /// The entry was refused or is damaged; it stays in the overlay.
        Failed = "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_tasks_have_a_label_of_their_own() {
        assert_eq!(Command::from_task("filestorage.list_keys"), Command::ListKeys);
        for foreign in ["list_keys", "filestorage.nope", "filestorage.other", "", "celery.ping"] {
            assert_eq!(Command::from_task(foreign), Command::Other, "{foreign}");
        }
    }
}
