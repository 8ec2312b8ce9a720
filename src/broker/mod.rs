//! The queue: the only room that imports lapin.
//!
//! A [`Session`] is two connections that live and die together: one consumes and settles, one publishes and confirms, so
//! that a broker that blocks publishers never keeps an acknowledgement waiting. When any part of a session is lost, all of
//! it is: the worker drops it, waits for its [`Backoff`] and opens the next one. Acknowledgement tokens of an earlier session settle
//! nothing.
//!
//! The worker knows this room by the traits of `transport` only: [`Broker`], [`BrokerSession`], [`Consumer`]. [`Connector`]
//! implements them over lapin.

mod ack_tracker;
mod backoff;
mod connector;
mod consume;
mod consumer_tags;
mod convert;
mod dead;
mod delay;
mod error;
mod fanout;
mod gate;
mod greeting;
mod joiner;
mod keepalive;
mod lapin_workarounds;
mod last_read;
mod link;
mod notify;
mod options;
mod parking;
mod pem;
mod permissions;
mod pool;
mod prefetch;
mod prune;
mod publish;
mod session;
mod settler;
mod state;
mod subscribe;
mod topology;
mod transport;
mod url;

pub use crate::broker_url::{BrokerUrl, LoginMethod, UrlError};
pub use backoff::Backoff;
pub use connector::Connector;
pub use consume::{BATCH, BATCH_BYTES, Deliveries, Delivery, End};
pub use dead::{DeadMessage, DeadReader, DeadToken};
pub use delay::{DELAY_PREFIX, Delay};
pub use error::{Error, ErrorKind, Result};
pub use fanout::{Broadcasts, Fanout, INVALIDATIONS_EXCHANGE};
pub use gate::Inflow;
pub use joiner::{ConsumeError, Joined, Joiner};
pub use last_read::DOUBT;
pub use options::{BrokerOptions, CHANNELS, QueueType, Tls, TlsFiles};
pub use parking::{PARKED_QUEUE, ParkedDeliveries, ParkedDelivery, ParkedToken, Parking};
pub use prune::RemovalOutcome;
pub use publish::{Confirmation, Early, EarlyWord, PublishError, Publisher, wanted};
pub use session::Session;
pub use settler::{AckToken, Settler};
pub use state::{State, lost, within};
pub use subscribe::{Notices, Subscription};
pub use topology::{DEAD_QUEUE, EVENTS_EXCHANGE, METRICS_QUEUE};
pub use topology::{Exchange, ExchangeType, Look, Presence, QueueSpec, Topology};
pub use transport::{
    Announcements, Broker, BrokerSession, Consumer, NoticeSource, OpenSession, ParkedSource, Publish, QueueJoiner,
};
