//! One connection of the admin port, which is closed when it makes no progress.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep};

/// The longest time for the head of a request; for the first request it begins with the connection.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time between two requests, and the longest time without progress of an answer.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The thing for which a connection waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The next request.
    Idle,
    /// The rest of the head of a request.
    Head,
    /// The answer.
    Answer,
}

/// A connection with its time limits.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    phase: Phase,
    /// Tells whether the line that is being read is empty so far.
    blank: bool,
    deadline: Pin<Box<Sleep>>,
    /// Receives the order to close, which makes room for another connection.
    close: Option<oneshot::Receiver<()>>,
    answering: Arc<AtomicBool>,
}

/// The listener's handle on a connection.
#[derive(Debug)]
pub(super) struct ConnectionHandle {
    close: oneshot::Sender<()>,
    answering: Arc<AtomicBool>,
}

impl ConnectionHandle {
    /// Tells whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.close.is_closed()
    }

    /// Tells whether the connection waits for an answer.
    pub(super) fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed)
    }

    /// Closes the connection.
    pub(super) fn close(self) {
        // A connection that has ended meanwhile receives nothing.
        self.close.send(()).unwrap_or_default();
    }
}

impl Connection {
    /// Wraps an accepted stream.
    pub(super) fn new(stream: TcpStream) -> (Self, ConnectionHandle) {
        let (sender, close) = oneshot::channel();
        let answering = Arc::new(AtomicBool::new(false));
        let handle = ConnectionHandle { close: sender, answering: Arc::clone(&answering) };
        let deadline = Box::pin(sleep(HEAD_TIMEOUT));
        (Self { stream, phase: Phase::Head, blank: false, deadline, close: Some(close), answering }, handle)
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.answering.store(phase == Phase::Answer, Ordering::Relaxed);
        let limit = if phase == Phase::Head { HEAD_TIMEOUT } else { IDLE_TIMEOUT };
        self.deadline.as_mut().reset(Instant::now() + limit);
    }

    /// Fails when the time of the connection is over, or when another connection needs its place.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if let Some(close) = &mut self.close
            && Pin::new(close).poll(context).is_ready()
        {
            self.close = None;
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "another connection needs the place"));
        }
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    /// Updates the phase by the bytes that were read: finds where heads of requests begin and end.
    fn follow(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match (self.phase, byte) {
                // Empty lines before a request do not belong to it.
                (Phase::Idle | Phase::Answer, b'\r' | b'\n') => {}
                (Phase::Idle, _) => {
                    self.blank = false;
                    self.enter(Phase::Head);
                }
                (Phase::Head, b'\r') => {}
                (Phase::Head, b'\n') if self.blank => self.enter(Phase::Answer),
                (Phase::Head, byte) => self.blank = *byte == b'\n',
                // A further request is read once the answer is sent.
                (Phase::Answer, _) => {}
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.follow(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.enter(Phase::Idle);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
