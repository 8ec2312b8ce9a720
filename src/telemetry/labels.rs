//! The closed sets of label values; nothing a caller sends becomes a label.

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
            /// Every value, in the order of the definition.
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
    /// Which task a command names.
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
        /// `filestorage.get_stats`.
        GetStats = "get_stats",
        /// `filestorage.signed_url`.
        SignedUrl = "signed_url",
        /// `filestorage.sync`.
        Sync = "sync",
        /// Anything else, an unreadable message included.
        Other = "other",
    }
}

impl Command {
    /// Finds the label of a task name, `filestorage.store` for example; unknown names are [`Command::Other`].
    #[must_use]
    pub fn from_task(name: &str) -> Self {
        let Some(short) = name.strip_prefix("filestorage.") else { return Self::Other };
        Self::ALL.iter().copied().find(|command| command.as_str() == short).unwrap_or(Self::Other)
    }
}

label_values! {
    /// How a command ended.
    CommandOutcome {
        /// Answered SUCCESS.
        Succeeded = "succeeded",
        /// Answered FAILURE.
        Failed = "failed",
        /// Answered REVOKED: expired or revoked.
        Revoked = "revoked",
        /// Could not be run: answered where possible, kept in the dead queue.
        DeadLettered = "dead_lettered",
        /// Parked until its eta.
        Parked = "parked",
        /// Answered again from the journal, not run.
        Replayed = "replayed",
        /// Given up without an answer: the session was lost or the worker stops; the broker delivers it again.
        Abandoned = "abandoned",
    }
}

label_values! {
    /// What arrived from the queue.
    Delivery {
        /// Seen for the first time.
        First = "first",
        /// The broker says it delivered this message before.
        Redelivered = "redelivered",
    }
}

label_values! {
    /// How a publication ended.
    Publish {
        /// The broker has taken responsibility.
        Confirmed = "confirmed",
        /// No queue took it.
        Returned = "returned",
        /// The broker said no, for good.
        Refused = "refused",
        /// The broker said neither yes nor no in time.
        Unconfirmed = "unconfirmed",
        /// The session was lost before the answer came.
        Lost = "lost",
    }
}

label_values! {
    /// Why an answer was given up.
    GivenUp {
        /// Its queue refused it for as long as it was tried.
        Full = "full",
        /// Its queue said neither yes nor no.
        Silent = "silent",
    }
}

label_values! {
    /// What happened to a metric event.
    Event {
        /// Confirmed by the broker.
        Published = "published",
        /// Confirmed, but no queue was bound.
        Undeliverable = "undeliverable",
    }
}

label_values! {
    /// Where the broker session stands.
    Session {
        /// No session; one is being built.
        Connecting = "connecting",
        /// Consuming.
        Connected = "connected",
        /// The broker has blocked publishers: memory or disk alarm.
        Blocked = "blocked",
        /// The worker finishes what runs and takes nothing new.
        Draining = "draining",
    }
}

label_values! {
    /// Which operation a backend was asked for.
    StorageOperation {
        /// Writing an object.
        Put = "put",
        /// Reading an object.
        Get = "get",
        /// Reading attributes.
        Stat = "stat",
        /// Removing an object.
        Delete = "delete",
        /// Listing keys.
        List = "list",
        /// Syncing what another try wrote.
        Flush = "flush",
        /// Looking whether the place can be used.
        Probe = "probe",
        /// Making a signed URL.
        Sign = "sign",
    }
}

label_values! {
    /// Which place was asked.
    BackendLabel {
        /// Files of this machine.
        Local = "local",
        /// Memory of this process.
        Memory = "memory",
        /// Writes that wait for the bucket.
        Overlay = "overlay",
        /// Google Cloud Storage.
        Gcs = "gcs",
        /// Amazon S3 or a store that speaks like it.
        S3 = "s3",
    }
}

label_values! {
    /// How a storage operation ended.
    StorageOutcome {
        /// Done.
        Succeeded = "succeeded",
        /// The place is certain that nothing is there.
        Missing = "missing",
        /// A condition was not met.
        Precondition = "precondition",
        /// Kept bytes are damaged.
        Integrity = "integrity",
        /// The disk is full.
        NoSpace = "no_space",
        /// The backend refuses this identity.
        Denied = "denied",
        /// The backend cannot be reached.
        Unavailable = "unavailable",
        /// The backend asks for patience.
        Throttled = "throttled",
        /// Abandoned before the commit point.
        Abandoned = "abandoned",
        /// Any other fault.
        Failed = "failed",
    }
}

label_values! {
    /// What became of one entry of the overlay that was to be sent to the bucket.
    SyncOutcome {
        /// Written to the bucket.
        Sent = "sent",
        /// A delete that the bucket has now done, or had nothing to do for.
        Deleted = "deleted",
        /// The bucket had it: an earlier try whose answer was lost.
        AlreadyThere = "already_there",
        /// Somebody else changed the bucket's object since: set aside, or for a delete dropped.
        Conflict = "conflict",
        /// Refused or damaged; it stays.
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
