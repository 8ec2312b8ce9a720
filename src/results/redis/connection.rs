//! One connection to a Redis, made again when it is lost, with a limit on every wait.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo as _, Pipeline,
    RedisConnectionInfo, TlsCertificates, Value, cmd,
};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::fault::Fault;
use super::sentinel;
use crate::redis_url::{RedisNode, RedisUrl};

/// How long a connection may take to be made, with TLS and the login.
const CONNECT: Duration = Duration::from_secs(4);
/// How long the answers to one pipeline are waited for. A Redis that takes longer for a few writes stands still.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a replica of a primary that sentinels name may take to have what was written.
const REPLICATED: Duration = Duration::from_secs(1);
/// What a slow network carries in a second; so much longer a large pipeline is waited for.
const SLOWEST: usize = 2 << 20;

/// The URL of a Redis, which changes with the file that holds it; clones share it.
#[derive(Clone, Debug)]
pub struct SharedUrl(Arc<Mutex<RedisUrl>>);

impl SharedUrl {
    /// Shares a URL.
    #[must_use]
    pub fn new(url: RedisUrl) -> Self {
        Self(Arc::new(Mutex::new(url)))
    }

    /// Returns the URL.
    #[must_use]
    pub fn get(&self) -> RedisUrl {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the URL, for connections that are made from now on; tells whether it is another one.
    pub fn set(&self, url: RedisUrl) -> bool {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_other = *kept != url;
        *kept = url;
        is_other
    }
}

/// The connection, and what was last wrong with it; clones share both.
#[derive(Clone, Debug)]
pub(super) struct Store(Arc<Inner>);

struct Inner {
    url: SharedUrl,
    /// A key that a new connection writes and nobody reads.
    touched: String,
    /// Held while a connection is made, so that one is made at a time.
    connection: tokio::sync::Mutex<Connection>,
    fault: Mutex<Option<Fault>>,
    faulted: Notify,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("url", &self.url).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Connection {
    /// Counts the connections that were made.
    number: u64,
    open: Option<Open>,
}

/// An open connection.
#[derive(Clone)]
struct Open {
    stream: MultiplexedConnection,
    /// Where it leads.
    node: RedisNode,
    /// What is written is confirmed once a replica has it, too. Only of a primary that sentinels name: when it dies, a replica takes
    /// its place with what it has.
    has_replicas: bool,
}

impl Store {
    pub(super) fn new(url: SharedUrl, touched: String) -> Self {
        Self(Arc::new(Inner {
            url,
            touched,
            connection: tokio::sync::Mutex::default(),
            fault: Mutex::default(),
            faulted: Notify::new(),
        }))
    }

    pub(super) fn shared_url(&self) -> SharedUrl {
        self.0.url.clone()
    }

    /// Sends a pipeline and returns one value for each of its commands; a refused command is a value, too.
    ///
    /// The connection is closed when it answers not, or answers that this login may do nothing.
    ///
    /// # Errors
    ///
    /// Why there is no answer. The commands may have been executed all the same.
    pub(super) async fn run(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Fault> {
        let outcome = self.answers(pipeline).await;
        if let Err(fault) = &outcome {
            self.note(fault);
        }
        outcome
    }

    async fn answers(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Fault> {
        let arguments = pipeline.cmd_iter().flat_map(redis::Cmd::args_iter);
        let bytes: usize =
            arguments.map(|argument| if let redis::Arg::Simple(bytes) = argument { bytes.len() } else { 0 }).sum();
        let limit = ANSWER + Duration::from_secs((bytes / SLOWEST) as u64);
        loop {
            let (is_new, number, mut open) = self.connection().await?;
            let (fault, is_closed) = match timeout(limit, open.send(pipeline)).await {
                Ok(Ok(values)) => match values.iter().find_map(Fault::of_connection) {
                    None if open.has_replicas => return open.replicated(limit).await.map(|()| values),
                    None => return Ok(values),
                    Some(fault) => (fault, false),
                },
                Ok(Err(error)) => (Fault::of(&error), error.is_connection_dropped()),
                Err(_) => (Fault::silent(limit), false),
            };
            let mut kept = self.0.connection.lock().await;
            if kept.number == number {
                kept.open = None;
            }
            // A server that was restarted has closed the connection long ago: that is found out by the next use.
            if is_new || !is_closed {
                return Err(fault);
            }
        }
    }

    /// Asks the sentinels, where there are any, whether the connection still leads to the primary, and the primary for its replicas.
    /// While no sentinel answers, an open connection stays in use.
    pub(super) async fn look_again(&self) {
        let url = self.0.url.get();
        let Some(sentinels) = url.sentinels() else { return };
        let Ok(primary) = sentinel::primary(sentinels).await else { return };
        let mut kept = self.0.connection.lock().await;
        let Some(open) = &mut kept.open else { return };
        let asked = timeout(ANSWER, sentinel::has_replicas(&mut open.stream)).await;
        match asked {
            Ok(Ok(has_replicas)) if open.node == primary => open.has_replicas = has_replicas,
            _ => kept.open = None,
        }
    }

    /// Returns the connection, its number, and whether it was just made.
    async fn connection(&self) -> Result<(bool, u64, Open), Fault> {
        let mut kept = self.0.connection.lock().await;
        if let Some(open) = &kept.open {
            return Ok((false, kept.number, open.clone()));
        }
        let url = self.0.url.get();
        let node = match url.sentinels() {
            Some(sentinels) => sentinel::primary(sentinels).await?,
            None => url.node().clone(),
        };
        let connecting = async {
            let mut stream = connect(&url, &node).await?;
            let has_replicas = url.sentinels().is_some() && sentinel::has_replicas(&mut stream).await?;
            if has_replicas {
                touch(&mut stream, &self.0.touched).await?;
            }
            Ok(Open { stream, node: node.clone(), has_replicas })
        };
        let made = timeout(CONNECT, connecting).await.unwrap_or_else(|_| Err(Fault::silent(CONNECT)))?;
        tracing::debug!(%url, %node, made.has_replicas, "connected to the Redis of the results");
        kept.number += 1;
        kept.open = Some(made.clone());
        Ok((true, kept.number, made))
    }

    /// Notes what is wrong, and wakes whoever watches.
    pub(super) fn note(&self, fault: &Fault) {
        let mut kept = self.0.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref() != Some(fault) {
            tracing::warn!(url = %self.0.url.get(), %fault, "the Redis of the results takes nothing");
            *kept = Some(fault.clone());
        }
        self.0.faulted.notify_one();
    }

    /// Notes that it takes what it gets.
    pub(super) fn note_taken(&self) {
        if self.0.fault.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            tracing::info!(url = %self.0.url.get(), "the Redis of the results takes results again");
        }
    }

    /// Waits until something is wrong that nobody waited for yet.
    pub(super) async fn faulted(&self) {
        self.0.faulted.notified().await;
    }

    pub(super) fn url(&self) -> RedisUrl {
        self.0.url.get()
    }
}

impl Open {
    async fn send(&mut self, pipeline: &Pipeline) -> redis::RedisResult<Vec<Value>> {
        self.stream.send_packed_commands(pipeline, 0, pipeline.len()).await
    }

    /// Waits until a replica has what was written on this connection.
    async fn replicated(&mut self, limit: Duration) -> Result<(), Fault> {
        let wait = cmd("WAIT").arg(1).arg(REPLICATED.as_secs() * 1000).to_owned();
        match timeout(limit, self.stream.send_packed_command(&wait)).await {
            Ok(Ok(Value::Int(1..))) => Ok(()),
            Ok(Ok(Value::Int(_))) => Err(Fault::passing("no replica has confirmed what was written".to_owned())),
            Ok(Ok(value)) => Err(Fault::of_value(&value)
                .unwrap_or_else(|| Fault::passing("it does not say which replicas have what was written".to_owned()))),
            Ok(Err(error)) => Err(Fault::of(&error)),
            Err(_) => Err(Fault::silent(limit)),
        }
    }
}

/// Writes something on a new connection. `WAIT` asks for the last write of its own connection, and where there was none it confirms
/// what an earlier connection wrote without a look at the replicas.
async fn touch(stream: &mut MultiplexedConnection, key: &str) -> Result<(), Fault> {
    cmd("SETEX").arg(key).arg(1).arg("").query_async(stream).await.map_err(|error| Fault::of(&error))
}

async fn connect(url: &RedisUrl, node: &RedisNode) -> Result<MultiplexedConnection, Fault> {
    let client = client(url, node).await?;
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(None);
    client.get_multiplexed_async_connection_with_config(&config).await.map_err(|error| Fault::of(&error))
}

async fn client(url: &RedisUrl, node: &RedisNode) -> Result<Client, Fault> {
    let RedisNode { host, port } = node.clone();
    let address = match url.tls() {
        None => ConnectionAddr::Tcp(host, port),
        Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
    };
    let mut login = RedisConnectionInfo::default().set_db(url.database());
    if let Some(user) = url.user() {
        login = login.set_username(user);
    }
    if let Some(password) = url.password() {
        login = login.set_password(password);
    }
    let info = address.into_connection_info().map_err(|error| Fault::of(&error))?.set_redis_settings(login);
    let Some(tls) = url.tls().cloned() else {
        return Client::open(info).map_err(|error| Fault::of(&error));
    };
    // The system's certificates are read, too; a disk may be slow.
    let built = tokio::task::spawn_blocking(move || {
        let root_cert = tls.authorities.as_deref().map(read).transpose()?;
        let client_tls = match &tls.identity {
            Some((certificate, key)) => {
                Some(ClientTlsConfig { client_cert: read(certificate)?, client_key: read(key)? })
            }
            None => None,
        };
        let certificates = TlsCertificates { client_tls, root_cert };
        Client::build_with_tls(info, certificates).map_err(|error| Fault::of(&error))
    });
    built.await.unwrap_or_else(|error| Err(Fault::passing(format!("reading certificates: {error}"))))
}

fn read(file: &Path) -> Result<Vec<u8>, Fault> {
    fs::read(file).map_err(|error| Fault::passing(format!("the file {} cannot be read: {error}", file.display())))
}
