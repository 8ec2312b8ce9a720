//! A TCP proxy that can fall silent without closing anything, as a cut cable does.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A proxy in front of one address.
pub(crate) struct TcpProxy {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    silent: Arc<AtomicBool>,
}

impl TcpProxy {
    /// Listens on a free loopback port and carries every connection to `target`.
    pub(crate) fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let silent = Arc::new(AtomicBool::new(false));
        let (target, flag) = (target.to_owned(), Arc::clone(&silent));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(&target).await else { continue };
                let (near_in, near_out) = near.into_split();
                let (far_in, far_out) = far.into_split();
                tokio::spawn(carry(near_in, far_out, Arc::clone(&flag)));
                tokio::spawn(carry(far_in, near_out, Arc::clone(&flag)));
            }
        });
        Self { address, silent }
    }

    /// Swallows everything from now on; no connection is closed.
    pub(crate) fn fall_silent(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    silent: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read) = from.read(&mut buffer).await {
        if silent.load(Ordering::SeqCst) {
            if read == 0 {
                std::future::pending::<()>().await;
            }
            continue;
        }
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
