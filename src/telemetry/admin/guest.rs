//! One connection of the admin port, which ends when it makes no progress.

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

/// Longest time for the head of a request, of the first one from the connection's beginning.
pub(super) const HEAD: Duration = Duration::from_secs(5);
/// Longest time without another request, and longest time in which an answer does not go on.
pub(super) const IDLE: Duration = Duration::from_secs(30);

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The next request.
    Idle,
    /// The rest of a request's head.
    Head,
    /// The answer.
    Answer,
}

/// A connection with its time limits.
#[derive(Debug)]
pub(super) struct Guest {
    stream: TcpStream,
    phase: Phase,
    /// The line that is being read is empty so far.
    blank: bool,
    deadline: Pin<Box<Sleep>>,
    /// Told that another one needs the place.
    leave: Option<oneshot::Receiver<()>>,
    answering: Arc<AtomicBool>,
}

/// Who lets the connection in: asks whether it is still there and makes it leave.
#[derive(Debug)]
pub(super) struct Host {
    leave: oneshot::Sender<()>,
    answering: Arc<AtomicBool>,
}

impl Host {
    /// Tells whether the connection has ended.
    pub(super) fn is_gone(&self) -> bool {
        self.leave.is_closed()
    }

    /// Tells whether the connection waits for an answer.
    pub(super) fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed)
    }

    /// Ends the connection.
    pub(super) fn dismiss(self) {
        // One that has ended meanwhile need not be told.
        self.leave.send(()).unwrap_or_default();
    }
}

impl Guest {
    /// Takes a connection in.
    pub(super) fn new(stream: TcpStream) -> (Self, Host) {
        let (told, leave) = oneshot::channel();
        let answering = Arc::new(AtomicBool::new(false));
        let host = Host { leave: told, answering: Arc::clone(&answering) };
        let deadline = Box::pin(sleep(HEAD));
        (Self { stream, phase: Phase::Head, blank: false, deadline, leave: Some(leave), answering }, host)
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.answering.store(phase == Phase::Answer, Ordering::Relaxed);
        let limit = if phase == Phase::Head { HEAD } else { IDLE };
        self.deadline.as_mut().reset(Instant::now() + limit);
    }

    /// Ends the connection whose time is over or whose place is needed.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if let Some(leave) = &mut self.leave
            && Pin::new(leave).poll(context).is_ready()
        {
            self.leave = None;
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "another connection needs the place"));
        }
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    /// Follows where heads of requests begin and end.
    fn follow(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match (self.phase, byte) {
                // Empty lines before a request are no part of it.
                (Phase::Idle | Phase::Answer, b'\r' | b'\n') => {}
                (Phase::Idle, _) => {
                    self.blank = false;
                    self.enter(Phase::Head);
                }
                (Phase::Head, b'\r') => {}
                (Phase::Head, b'\n') if self.blank => self.enter(Phase::Answer),
                (Phase::Head, byte) => self.blank = *byte == b'\n',
                // What comes before the answer has left is read after it.
                (Phase::Answer, _) => {}
            }
        }
    }
}

impl AsyncRead for Guest {
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

impl AsyncWrite for Guest {
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
