//! The listener of the admin port: it bounds the number of connections and always accepts another one.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::serve::Listener;
use tokio::net::TcpListener;

use super::connection::{Connection, ConnectionHandle};

/// The most connections at once.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// The wait after a connection could not be accepted, for example because no descriptor was left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A listener that holds at most [`MAX_CONNECTIONS`] connections.
#[derive(Debug)]
pub(super) struct BoundedListener {
    listener: TcpListener,
    /// The open connections, oldest first.
    connections: Vec<ConnectionHandle>,
}

impl BoundedListener {
    pub(super) const fn new(listener: TcpListener) -> Self {
        Self { listener, connections: Vec::new() }
    }

    /// Makes room for another connection.
    ///
    /// When there are too many, the oldest connection that waits for no answer is closed, or else the oldest of all. So a
    /// client that holds all connections cannot keep a probe from asking whether the worker lives.
    fn make_room(&mut self) {
        self.connections.retain(|connection| !connection.is_closed());
        if self.connections.len() >= MAX_CONNECTIONS {
            let index = self.connections.iter().position(|connection| !connection.is_answering()).unwrap_or(0);
            self.connections.remove(index).close();
        }
    }
}

impl Listener for BoundedListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    self.make_room();
                    let (connection, handle) = Connection::new(stream);
                    self.connections.push(handle);
                    return (connection, address);
                }
                // The client has closed this connection already.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => {
                    tracing::warn!(%error, "the admin port cannot take a connection now; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
