//! Two connections that live and die together.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    pin::pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt};
use lapin::{
    Channel, Connection, ConnectionProperties, Event,
    tcp::{OwnedIdentity, OwnedTLSConfig},
};
use tokio::{sync::watch, time::MissedTickBehavior};

use super::{
    BrokerOptions, BrokerUrl, Delay, Deliveries, Error, ErrorKind, LoginMethod, Notices, Publisher, Result, Settler,
    State, Subscription, Tls, Topology, consume, error, gate::Gate, keepalive, lapin_workarounds::open_stream,
    last_read::LastRead, state::StateCell, subscribe, url,
};
use crate::queue_name::RESERVED_PREFIX;

/// Seconds; RabbitMQ's own 60 would leave a dead peer unnoticed for two minutes.
const HEARTBEAT: u16 = 8;

/// A connection can end without an event (an orderly close by the broker, a cut cable); so often it is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How many times longer an answer may take while large bodies come before it.
const BEHIND: u32 = 30;

/// Longest wait for one URL while another is untried.
const HASTE: Duration = Duration::from_secs(3);

/// Two connections that live and die together; dropping it closes both, whoever still holds a part of it.
#[derive(Debug)]
pub struct Session {
    pub(super) link: Arc<Link>,
    publisher: Publisher,
}

/// What the parts of a session share.
pub(super) struct Link {
    pub(super) consuming: Connection,
    pub(super) publishing: Connection,
    /// Of the consuming and of the publishing connection.
    last_read: [LastRead; 2],
    /// Of the consuming connection.
    pub(super) gate: Gate,
    pub(super) state: StateCell,
    pub(super) url: BrokerUrl,
    pub(super) options: BrokerOptions,
    /// Delay queues known to be there.
    pub(super) delays: Mutex<HashSet<u64>>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("url", &self.url).field("state", &self.state.now()).finish_non_exhaustive()
    }
}

impl Session {
    /// Connects, trying each URL in turn; needs a tokio runtime and stays on it.
    ///
    /// # Errors
    /// Names each URL's fault and its mend; permanent only when every one is.
    pub async fn open(options: &BrokerOptions) -> Result<Self> {
        Self::open_next(options, &mut 0).await
    }

    /// Connects as [`Session::open`] does, but begins with the URL at `next` and leaves the place behind the one that
    /// answered there: whoever loses that session, or cannot use it, goes on with another URL, as Celery does.
    ///
    /// # Errors
    /// As [`Session::open`]; `next` stays as it is.
    pub async fn open_next(options: &BrokerOptions, next: &mut usize) -> Result<Self> {
        let mut faults: Vec<Error> = Vec::new();
        let count = options.urls.len();
        for tried in 0..count {
            let place = (*next + tried) % count;
            // Behind a cut cable nothing answers at all, and others may; the last one is given its time.
            let limit = if tried + 1 < count { options.timeout.min(HASTE) } else { options.timeout };
            match Link::open(&options.urls[place], options, limit).await {
                Ok(link) => {
                    *next = place + 1;
                    let link = Arc::new(link);
                    let publisher = Publisher::new(&link)?;
                    return Ok(Self { link, publisher });
                }
                Err(fault) if options.is_default => {
                    faults.push(fault.noting("CELERY_BROKER_URL is not set, so its default was tried"));
                }
                Err(fault) => faults.push(fault),
            }
        }
        let message = faults.iter().map(Error::to_string).collect::<Vec<_>>().join("; ");
        let worst = faults.iter().find(|fault| !fault.is_permanent()).or(faults.last());
        Err(match worst {
            Some(fault) => Error::new(fault.kind(), message),
            None => Error::new(ErrorKind::Setting, "no broker url is set"),
        })
    }

    /// Tells how the session is now.
    #[must_use]
    pub fn state(&self) -> State {
        self.link.state.now()
    }

    /// Watches how the session is.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<State> {
        self.link.state.watch()
    }

    /// Tells how long the broker has said nothing on either connection. An idle one is asked something every other second.
    #[must_use]
    pub fn silence(&self) -> Duration {
        let [consuming, publishing] = &self.link.last_read;
        consuming.silence().min(publishing.silence())
    }

    /// Tells since when the broker was silent if a delivery received at this time may have been handed out before: a
    /// silence of [`DOUBT`] that ended since, or shortly before. Somebody else may have been given it meanwhile.
    ///
    /// [`DOUBT`]: super::DOUBT
    #[must_use]
    pub fn late_since(&self, received: Instant) -> Option<Instant> {
        self.link.last_read[0].late_since(received)
    }

    /// Declares the session over, for a reason that only the caller knows; every wait in it ends.
    pub fn lose(&self, reason: &str) {
        self.link.state.lose(reason);
    }

    /// Returns the URL that answered.
    #[must_use]
    pub fn url(&self) -> &BrokerUrl {
        &self.link.url
    }

    /// Returns the options that open another session at the URL that answered.
    #[must_use]
    pub fn options(&self) -> BrokerOptions {
        BrokerOptions { urls: vec![self.link.url.clone()], ..self.link.options.clone() }
    }

    /// Consumes the task queues, creating those that are missing, with `prefetch` unsettled deliveries each at most
    /// (0: without limit).
    ///
    /// A queue that is there is taken as it is. A missing one is declared as Celery does: durable, with the type and the
    /// highest priority of the options, bound to a direct exchange of its name where that is permitted. One whose node of
    /// the cluster is down is left out ([`Deliveries::down`]) as long as another is there.
    ///
    /// So is one that stands in `stalled`: there, but it gave no consumer, as a quorum queue without a majority. Only trying
    /// tells, and the session is lost with it, so `stalled` is kept for the next one; when all others are down or stalled,
    /// it is cleared and they are tried anew.
    ///
    /// # Errors
    /// `Denied` names the missing permission; `Arguments`, `Down` and `Lost` as the broker says.
    pub async fn consume(
        &self,
        queues: &[String],
        stalled: &mut BTreeMap<String, Error>,
        prefetch: u16,
        tag_prefix: &str,
    ) -> Result<(Deliveries, Settler)> {
        consume::consume(&self.link, queues, stalled, prefetch, tag_prefix).await
    }

    /// Listens on a queue of our own: declares exchange and queue, binds and consumes without acknowledgement.
    ///
    /// # Errors
    /// `Denied` when the user may not declare it, and what else the broker says; the session lives on.
    pub async fn subscribe(&self, subscription: &Subscription) -> Result<Notices> {
        subscribe::subscribe(&self.link, subscription).await
    }

    /// Returns the publishing half.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// Returns the means to look at and create queues.
    #[must_use]
    pub fn topology(&self) -> Topology {
        Topology::new(&self.link)
    }

    /// Returns the delay queues.
    #[must_use]
    pub fn delay(&self) -> Delay {
        Delay::new(&self.link)
    }

    /// Closes both connections in order; what is unsettled goes back to its place. Tells whether the broker said that they are
    /// closed: it has all that was sent to it then.
    pub async fn close(self) -> bool {
        let both = async {
            let consuming = self.link.consuming.close(200, "OK".into()).await;
            let publishing = self.link.publishing.close(200, "OK".into()).await;
            consuming.and(publishing)
        };
        match tokio::time::timeout(self.link.options.timeout, both).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => tracing::debug!(%error, "the session was over before it was closed"),
            Err(_) => tracing::debug!("the broker did not answer the close"),
        }
        false
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.link.state.lose("the session was closed");
        // One poll puts the close on its way; its answer interests nobody. Without it a command that still holds a
        // publisher would keep the connection, and so the unsettled deliveries, from the broker.
        drop(self.link.consuming.close(200, "OK".into()).now_or_never());
        drop(self.link.publishing.close(200, "OK".into()).now_or_never());
    }
}

impl Link {
    async fn open(url: &BrokerUrl, options: &BrokerOptions, limit: Duration) -> Result<Self> {
        let state = StateCell::new();
        let gate = Gate::default();
        let (consuming, last_read) = connect(url, options, "consume", limit, Some(gate.clone())).await?;
        let (publishing, publishing_heard) = connect(url, options, "publish", limit, None).await?;
        watch_over(&consuming, last_read.clone(), state.clone(), "consuming");
        watch_over(&publishing, publishing_heard.clone(), state.clone(), "publishing");
        let last_read = [last_read, publishing_heard];
        let (url, options) = (url.clone(), options.clone());
        let link = Self { consuming, publishing, last_read, gate, state, url, options, delays: Mutex::default() };
        // What is handed out comes here, so here silence matters; a blocked broker does not even read the other connection.
        keepalive::keep(link.channel().await?, link.last_read[0].clone(), link.state.clone());
        Ok(link)
    }

    /// Waits for one answer of the broker, as long as the session allows.
    pub(super) async fn answer<T>(&self, what: &str, answer: impl Future<Output = lapin::Result<T>>) -> Result<T> {
        let limit = self.options.timeout;
        match self.within(limit, answer).await? {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(fault)) => Err(error::classify(&fault).during(what)),
            None => {
                let reason = format!("no answer to {what} within {} s", limit.as_secs_f32());
                self.state.lose(&*reason);
                Err(Error::lost(reason))
            }
        }
    }

    /// Waits for one answer of the broker on the consuming connection, up to a limit, or some limits while large bodies come: the
    /// answer lies behind them.
    pub(super) async fn within<T>(&self, limit: Duration, answer: impl Future<Output = T>) -> Result<Option<T>> {
        let mut answer = pin!(answer);
        for _ in 0..BEHIND {
            let answered = self.state.within(limit, answer.as_mut()).await?;
            if answered.is_some() || !self.gate.is_busy(limit) {
                return Ok(answered);
            }
        }
        self.state.within(limit, answer).await
    }

    /// Opens a channel on the connection that is never blocked; one refused command ends it, so most serve one.
    pub(super) async fn channel(&self) -> Result<Channel> {
        self.answer("opening a channel", self.consuming.create_channel()).await
    }

    /// Closes a channel that has served; its answer changes nothing any more.
    pub(super) fn done(channel: &Channel) {
        drop(channel.close(200, "OK".into()).now_or_never());
    }

    /// Replaces the broker's refusal by the permission that is missing.
    pub(super) fn name_permission(&self, error: Error, permission: &str, resource: &str) -> Error {
        if error.kind() != ErrorKind::Denied {
            return error;
        }
        // No right of any user helps here.
        if error.to_string().contains("reserved prefix") {
            let text = format!(
                "{resource} cannot be made: names that begin with '{RESERVED_PREFIX}' are the broker's own; take another"
            );
            return Error::new(ErrorKind::Arguments, text);
        }
        let (user, vhost) = (self.url.user(), self.url.vhost());
        Error::new(
            ErrorKind::Denied,
            format!(
                "user '{user}' lacks the {permission} permission on {resource} in vhost '{vhost}': \
                 grant it with rabbitmqctl set_permissions"
            ),
        )
    }
}

async fn connect(
    url: &BrokerUrl,
    options: &BrokerOptions,
    role: &str,
    limit: Duration,
    gate: Option<Gate>,
) -> Result<(Connection, LastRead)> {
    let limit = url.connect_timeout().map_or(limit, |asked| limit.min(asked));
    // Without a method of its own a URL gets what the broker offers, as with Python's client.
    let methods = match url.login_method() {
        Some(method) => vec![method],
        None if options.tls.identity.is_some() && url.is_tls() => {
            vec![LoginMethod::Plain, LoginMethod::Amqplain, LoginMethod::External]
        }
        None => vec![LoginMethod::Plain, LoginMethod::Amqplain],
    };
    let mut offered: Option<Vec<String>> = None;
    for method in &methods {
        let lacks = |offered: &[String]| !offered.iter().any(|offered| offered == method.as_str());
        if offered.as_deref().is_some_and(lacks) {
            continue;
        }
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("{} {role}", options.connection_name).into())
            .with_client_property("product".into(), env!("CARGO_PKG_NAME").into())
            .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
        let uri = url::to_lapin(url, *method, HEARTBEAT, limit);
        let last_read = LastRead::new();
        let connection = open_stream(uri, properties, certificates(&options.tls), last_read.clone(), gate.clone());
        let connected = tokio::time::timeout(limit, connection).await;
        if let Ok(Ok(connection)) = connected {
            return Ok((connection, last_read));
        }
        // A login by a method that it does not offer is ended by the broker without a word, and after a while only.
        offered = last_read.offered().map(<[String]>::to_vec);
        match connected {
            _ if offered.as_deref().is_some_and(lacks) => {}
            Ok(Err(fault)) => return Err(error::opening(&fault, url, *method)),
            Ok(Ok(_)) | Err(_) => {
                let text = format!("{url} does not answer within {} s: is it a broker, and up?", limit.as_secs_f32());
                return Err(Error::new(ErrorKind::Unreachable, text));
            }
        }
    }
    Err(error::not_offered(url, &methods, &offered.unwrap_or_default()))
}

fn certificates(tls: &Tls) -> OwnedTLSConfig {
    let identity = tls.identity.clone();
    let identity = identity
        .map(|(certificate, key)| OwnedIdentity::PKCS8 { pem: certificate.into_bytes(), key: key.into_bytes() });
    OwnedTLSConfig { identity, cert_chain: tls.authorities.clone() }
}

/// Follows one connection until the session ends.
fn watch_over(connection: &Connection, last_read: LastRead, state: StateCell, role: &'static str) {
    let status = connection.status().clone();
    // A broker with nothing to say sends a heartbeat after half of it. The library waits for two whole ones and looks
    // every four seconds: with a new session to be opened that may be too late for the 20 s that are promised.
    let patience = Duration::from_secs(connection.configuration().heartbeat().into()).mul_f32(1.5);
    let events = connection.events_listener();
    tokio::spawn(async move {
        let mut events = pin!(events);
        let mut lost = pin!(state.lost());
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_silent = false;
        loop {
            let fault = tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        state.set(State::Blocked(reason));
                        None
                    }
                    Some(Event::ConnectionUnblocked) => {
                        state.set(State::Open);
                        None
                    }
                    Some(Event::Error(fault)) => Some(error::classify(&fault).to_string()),
                    Some(_) => None,
                    None => return,
                },
                _ = look.tick() => {
                    let silent = !patience.is_zero() && last_read.silence() > patience;
                    // Twice: a process that was stopped itself reads what has come meanwhile first.
                    if silent && was_silent {
                        let seconds = patience.as_secs_f32();
                        state.lose(format!("the {role} connection is dead: nothing last_read for {seconds} s"));
                    }
                    was_silent = silent;
                    Some("closed by the broker".to_owned())
                }
                _ = &mut lost => return,
            };
            // A channel's error comes as an event too and ends nothing but the channel.
            if let Some(fault) = fault
                && !status.connected()
            {
                state.lose(format!("the {role} connection ended: {fault}"));
            }
        }
    });
}
