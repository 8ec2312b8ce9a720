//! The connection's byte stream, with the scrubber between the broker and the library.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_rs::{Runtime, Tokio, TokioRuntime, traits::Reactor, util::RuntimeParts};
use futures_io::{AsyncRead, AsyncWrite};
use futures_util::Stream;
use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties,
    tcp::{AMQPUriTcpExt, OwnedTLSConfig},
    uri::AMQPUri,
};

use tokio::{runtime::Handle, time::Sleep};

use super::scrubber::{self, Scrubber};
use crate::broker::{
    gate::{self, Gate},
    last_read::LastRead,
};

/// Opens a connection on which no message's text can break the library; with TLS, what is decrypted is scrubbed. Each read is
/// noted in `last_read`, and where there is a gate it holds the reading up.
pub(in crate::broker) async fn connect(
    uri: AMQPUri,
    properties: ConnectionProperties,
    tls: OwnedTLSConfig,
    last_read: LastRead,
    gate: Option<Gate>,
) -> lapin::Result<Connection> {
    let tokio = TokioRuntime::tokio_current();
    let runtime = Runtime::new(RuntimeParts::new(Tokio::current(), Network(Tokio::current(), last_read.clone())));
    let barrier = gate.map(|gate| Barrier { gate, handle: Handle::current(), pause: None });
    let dial = async move |uri: AMQPUri, _| {
        let stream = uri.connect_with_config_async(tls.as_ref(), &tokio).await?;
        Ok(AsyncTcpStream::Plain(Scrubbed::new(stream, last_read.clone(), barrier.as_ref().map(Barrier::anew))))
    };
    Connection::connector(uri, runtime, dial, properties).await
}

/// A stream whose reads are scrubbed.
///
/// Bytes are read straight into the caller's buffer and mended there; only a frame that has to be whole and is not yet
/// waits in a buffer of its own.
#[derive(Debug)]
struct Scrubbed<S> {
    inner: S,
    last_read: LastRead,
    scrubber: Scrubber,
    /// Something was read.
    begun: bool,
    /// The first frame was passed on.
    greeted: bool,
    /// A frame that began in an earlier read.
    held: Vec<u8>,
    /// So much of it may be passed on, and so much was.
    ready: usize,
    passed: usize,
    barrier: Option<Barrier>,
}

/// Holds reads up while nobody takes what was read.
#[derive(Debug)]
struct Barrier {
    gate: Gate,
    /// The library polls on a thread of its own.
    handle: Handle,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Barrier {
    fn anew(&self) -> Self {
        Self { gate: self.gate.clone(), handle: self.handle.clone(), pause: None }
    }

    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.gate.poll_open(context).is_ready() {
                self.pause = None;
                return Poll::Ready(());
            }
            let pause = self.pause.get_or_insert_with(|| {
                let _entered = self.handle.enter();
                Box::pin(tokio::time::sleep(gate::PAUSE))
            });
            ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
    }
}

impl<S> Scrubbed<S> {
    fn new(inner: S, last_read: LastRead, barrier: Option<Barrier>) -> Self {
        let scrubber = Scrubber::default();
        Self {
            inner,
            last_read,
            scrubber,
            begun: false,
            greeted: false,
            held: Vec::new(),
            ready: 0,
            passed: 0,
            barrier,
        }
    }

    /// Tells the gate what was read.
    fn count(&mut self) {
        let bodies = self.scrubber.take_bodies();
        if let Some(barrier) = &self.barrier {
            barrier.gate.note(bodies);
        }
    }

    fn pass_held(&mut self, buffer: &mut [u8]) -> usize {
        let rest = &self.held[self.passed..self.ready];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.passed += count;
        if self.passed == self.ready {
            (self.ready, self.passed) = (0, 0);
            self.held.clear();
        }
        count
    }
}

/// Looks at the first bytes of a broker: it answers with a method frame, or with the protocol it would rather speak.
fn speaks_amqp(first: &[u8]) -> io::Result<()> {
    let what = match first {
        [] | [1 | b'A', ..] => return Ok(()),
        // An alert or a handshake.
        [0x15 | 0x16, 3, ..] | [0x15 | 0x16] => {
            "that port speaks TLS: write amqps://, or name the one that does not, 5672 by custom"
        }
        _ => "what answers there is no AMQP broker: check host and port",
    };
    Err(io::Error::new(io::ErrorKind::InvalidData, what))
}

impl<S: AsyncRead + Unpin> Scrubbed<S> {
    /// Reads what is missing of the frame that began; never more, so that only one frame is ever held.
    fn poll_held(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let begun = self.held.len();
        self.held.resize(begun + scrubber::missing(&self.held), 0);
        let read = Pin::new(&mut self.inner).poll_read(context, &mut self.held[begun..]);
        let count = if let Poll::Ready(Ok(count)) = &read { *count } else { 0 };
        self.held.truncate(begun + count);
        let count = ready!(read)?;
        self.last_read.note();
        // The stream may end inside a frame.
        self.ready = if count == 0 { begun } else { self.scrubber.scrub(&mut self.held) };
        if self.ready > 0 && !std::mem::replace(&mut self.greeted, true) {
            self.last_read.note_greeting(&self.held[..self.ready]);
        }
        self.count();
        Poll::Ready(Ok(()))
    }
}

// Vectored reads are the trait's own: they fill the first buffer, and the library asks again.
impl<S: AsyncRead + Unpin> AsyncRead for Scrubbed<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        loop {
            if this.ready > 0 {
                return Poll::Ready(Ok(this.pass_held(buffer)));
            }
            if let Some(barrier) = &mut this.barrier {
                ready!(barrier.poll_open(context));
            }
            if !this.held.is_empty() {
                ready!(this.poll_held(context))?;
                continue;
            }
            let count = ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
            this.last_read.note();
            if !std::mem::replace(&mut this.begun, true) {
                speaks_amqp(&buffer[..count])?;
            }
            let passed = this.scrubber.scrub(&mut buffer[..count]);
            if passed > 0 && !std::mem::replace(&mut this.greeted, true) {
                this.last_read.note_greeting(&buffer[..passed]);
            }
            this.count();
            this.held.extend_from_slice(&buffer[passed..count]);
            if passed > 0 || count == 0 {
                return Poll::Ready(Ok(passed));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Scrubbed<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}

type TokioStream = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// Tokio's reactor, but for the type of its streams: that is how the library learns which stream it is given.
#[derive(Clone, Debug)]
struct Network(Tokio, LastRead);

impl Reactor for Network {
    type TcpStream = Scrubbed<TokioStream>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let (stream, last_read) = (self.0.tcp_connect_addr(address), self.1.clone());
        async move { Ok(Scrubbed::new(AsyncTcpStream::Plain(stream.await?), last_read, None)) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::broker::lapin_workarounds::scrubber::tests::{SURROGATE, conversation, frame, mended};

    /// A peer that sends these pieces, one a read, and lets the reader wait before each; then it closes.
    struct Pieces(VecDeque<Vec<u8>>, bool);

    impl Pieces {
        fn new<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Self {
            Self(pieces.into_iter().filter(|piece| !piece.is_empty()).map(<[u8]>::to_vec).collect(), false)
        }
    }

    impl AsyncRead for Pieces {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
            self.1 = !self.1;
            if self.1 {
                return Poll::Pending;
            }
            let Some(piece) = self.0.front_mut() else { return Poll::Ready(Ok(0)) };
            let count = piece.len().min(buffer.len());
            buffer[..count].copy_from_slice(&piece[..count]);
            piece.drain(..count);
            if piece.is_empty() {
                self.0.pop_front();
            }
            Poll::Ready(Ok(count))
        }
    }

    /// Reads to the end with a buffer of this size.
    fn read(pieces: Pieces, size: usize) -> Vec<u8> {
        let mut stream = Scrubbed::new(pieces, LastRead::new(), None);
        let mut context = Context::from_waker(std::task::Waker::noop());
        let (mut all, mut buffer) = (Vec::new(), vec![0; size]);
        loop {
            match Pin::new(&mut stream).poll_read(&mut context, &mut buffer) {
                Poll::Pending => {}
                Poll::Ready(Ok(0)) => return all,
                Poll::Ready(Ok(count)) => all.extend_from_slice(&buffer[..count]),
                Poll::Ready(Err(error)) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn wherever_the_stream_is_split_the_same_is_read() {
        let (sent, wanted) = (conversation(SURROGATE), conversation(&mended(SURROGATE)));
        for at in 0..=sent.len() {
            let (first, second) = sent.split_at(at);
            assert_eq!(read(Pieces::new([first, second]), 4_096), wanted, "{at}");
        }
        for size in [1, 2, 3, 7, 8, 9, 64, 4_096] {
            assert_eq!(read(Pieces::new([&sent[..]]), size), wanted, "{size}");
            assert_eq!(read(Pieces::new(sent.chunks(size)), 4_096), wanted, "{size}");
            assert_eq!(read(Pieces::new(sent.chunks(size)), 1), wanted, "{size}");
        }
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_gives_what_came() {
        let (sent, wanted) = (conversation(SURROGATE), conversation(&mended(SURROGATE)));
        for end in 0..sent.len() {
            let got = read(Pieces::new([&sent[..end]]), 4_096);
            assert_eq!(got.len(), end);
            assert!(
                got.iter().zip(&sent).zip(&wanted).all(|((got, sent), wanted)| got == sent || got == wanted),
                "{end}"
            );
        }
    }

    #[test]
    fn a_large_body_is_read_straight_into_the_callers_buffer() {
        let body = frame(3, &[0xff; 100_000]);
        let mut stream = Scrubbed::new(Pieces::new(body.chunks(30_000)), LastRead::new(), None);
        // As in the middle of a connection.
        stream.begun = true;
        let mut context = Context::from_waker(std::task::Waker::noop());
        let (mut counts, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
        while counts.last() != Some(&0) {
            if let Poll::Ready(count) = Pin::new(&mut stream).poll_read(&mut context, &mut buffer) {
                counts.push(count.unwrap());
            }
        }
        assert_eq!(counts, [30_000, 30_000, 30_000, 10_008, 0]);
        assert_eq!(stream.held.capacity(), 0);
    }

    proptest! {
        #[test]
        fn noise_passes_as_it_came(
            noise in vec(any::<u8>(), 0..300),
            piece in 1_usize..400,
            size in 1_usize..400,
        ) {
            // Frames of the connection's start hold nothing to mend, then anything may follow.
            let sent = [conversation(b"valid"), noise].concat();
            let got = read(Pieces::new(sent.chunks(piece)), size);
            prop_assert_eq!(got.len(), sent.len());
            prop_assert_eq!(&got, &read(Pieces::new([&sent[..]]), 4_096));
        }
    }
}
