//! Publications out, confirmed.

use crate::celery::message::Publication;

/// What the broker said to a publication that it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// It is in a queue, or nobody asked whether it is (`mandatory` was false).
    Routed,
    /// It was mandatory and no queue wanted it: delivered to nobody.
    Returned {
        /// 312 `NO_ROUTE`.
        code: u16,
        /// The broker's words.
        text: String,
    },
}

/// Why a publication is not known to be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The broker refuses this very publication and will again: too large, a foreign `user_id`, no write permission, no
    /// such exchange. Code 0: it cannot be put on the wire at all (a name over 255 bytes, headers larger than a frame).
    #[error("refused by the broker: {code} {text}")]
    Refused {
        /// AMQP reply code: 403, 404, 406; or 0.
        code: u16,
        /// The broker's words, or ours with code 0.
        text: String,
    },
    /// Nobody knows: the connection ended, the confirmation did not come in time, or the broker could not take it now
    /// (a negative confirmation, twice). It may have been taken.
    #[error("not confirmed: {0}")]
    Lost(String),
}

/// Publishes over a pool of confirming channels; clones share the pool.
#[derive(Clone, Debug)]
pub struct Publisher {}

impl Publisher {
    /// Publishes all and waits until each is confirmed or known not to be; one result for each, in order. With
    /// `mandatory` the broker returns what it cannot route. While the session is [`State::Blocked`](super::State) it
    /// waits without a time-out.
    pub async fn publish(
        &self,
        batch: Vec<Publication>,
        mandatory: bool,
    ) -> Vec<std::result::Result<Confirmation, PublishError>> {
        todo!()
    }
}
