//! What the parts of a session share: its two connections, and how the broker's answers are waited for on them.

use std::{
    collections::HashSet,
    fmt,
    pin::pin,
    sync::{Mutex, atomic::AtomicBool},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use lapin::{
    Channel, Connection, ConnectionProperties, Event,
    tcp::{OwnedIdentity, OwnedTLSConfig},
};
use tokio::time::MissedTickBehavior;

use super::{
    BrokerOptions, BrokerUrl, Error, ErrorKind, LoginMethod, Result, State, Tls, error, gate::Gate, keepalive,
    lapin_workarounds::open_stream, last_read::LastRead, state::StateCell, url,
};
use crate::queue_name::RESERVED_PREFIX;

/// Seconds; RabbitMQ's own 60 would leave a dead peer unnoticed for two minutes.
const HEARTBEAT: u16 = 8;

/// A connection can end without an event (an orderly close by the broker, a cut cable); so often it is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// How many times longer an answer may take while large bodies come before it.
const BEHIND: u32 = 30;

/// What the parts of a session share.
pub(super) struct Link {
    pub(super) consuming: Connection,
    pub(super) publishing: Connection,
    /// Of the consuming and of the publishing connection.
    pub(super) last_read: [LastRead; 2],
    /// Of the consuming connection.
    pub(super) gate: Gate,
    pub(super) state: StateCell,
    pub(super) url: BrokerUrl,
    pub(super) options: BrokerOptions,
    /// Delay queues known to be there.
    pub(super) delays: Mutex<HashSet<u64>>,
    /// The queues of parked publications are there.
    pub(super) parking: AtomicBool,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("url", &self.url).field("state", &self.state.now()).finish_non_exhaustive()
    }
}

impl Link {
    /// Connects to one URL, within a limit for each connection.
    pub(super) async fn open(url: &BrokerUrl, options: &BrokerOptions, limit: Duration) -> Result<Self> {
        let state = StateCell::new();
        let gate = Gate::default();
        let (consuming, last_read) = connect(url, options, "consume", limit, Some(gate.clone())).await?;
        let (publishing, publishing_heard) = connect(url, options, "publish", limit, None).await?;
        watch_over(&consuming, last_read.clone(), state.clone(), "consuming");
        watch_over(&publishing, publishing_heard.clone(), state.clone(), "publishing");
        let last_read = [last_read, publishing_heard];
        let (url, options) = (url.clone(), options.clone());
        let (delays, parking) = (Mutex::default(), AtomicBool::default());
        let link = Self { consuming, publishing, last_read, gate, state, url, options, delays, parking };
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
                        state.lose(format!("the {role} connection is dead: nothing heard for {seconds} s"));
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
