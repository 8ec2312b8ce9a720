//! The listener of the admin port: so many connections at most, and always room for another.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::serve::Listener;
use tokio::net::TcpListener;

use super::guest::{Guest, Host};

/// Connections at once.
pub(super) const MOST: usize = 64;
/// Wait after a connection could not be taken, for want of descriptors for example.
const PAUSE: Duration = Duration::from_secs(1);

/// Takes connections in, oldest first.
#[derive(Debug)]
pub(super) struct Gate {
    listener: TcpListener,
    guests: Vec<Host>,
}

impl Gate {
    pub(super) const fn new(listener: TcpListener) -> Self {
        Self { listener, guests: Vec::new() }
    }

    /// Makes room for another connection: the oldest that waits for no answer ends, or else the oldest of all, so that whoever
    /// holds all of them keeps nobody from asking whether the worker lives.
    fn make_room(&mut self) {
        self.guests.retain(|guest| !guest.is_gone());
        if self.guests.len() >= MOST {
            let place = self.guests.iter().position(|guest| !guest.is_answering()).unwrap_or(0);
            self.guests.remove(place).dismiss();
        }
    }
}

impl Listener for Gate {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    self.make_room();
                    let (guest, host) = Guest::new(stream);
                    self.guests.push(host);
                    return (guest, address);
                }
                // The one that was to be taken is gone.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => {
                    tracing::warn!(%error, "the admin port cannot take a connection now; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
