//! Plain HTTP/1.1 connections to upstreams between two requests.
//!
//! ```text
//! lent ─ answer over, Pingora would keep it, silent ─► spare ─ taken ─► lent
//!                                                        └─ spare for too long, or ended ─► dropped
//! ```
//!
//! Pingora's own pool gives each connection that waits a task, which must have run before the connection can be taken
//! again: a task and a turn of the scheduler more for each request. So its pool never gets these. Before it keeps a connection it
//! reads one byte, to see whether the upstream is silent, as it should be. That read is answered with the end of the
//! stream, Pingora drops the connection, and dropping brings it here. All that Pingora checks before stays as it is.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::dial::Line;

/// Shorter than what common servers keep an idle connection (Node: 5 s), so that they rarely close one under us.
pub const IDLE: Duration = Duration::from_secs(4);
/// How often it is looked for those that are spare for too long.
const SWEEP: Duration = Duration::from_millis(500);
/// For all upstreams together.
const MOST: usize = 512;

/// How it is found out whether a connection that waits has ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Look {
    /// By what the runtime was told so far; for whom a dead one is an inconvenience.
    Told,
    /// The kernel is asked.
    Asks,
}

/// A socket without TLS.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub(super) fn set_nodelay(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nodelay(true),
            Self::Unix(_) => Ok(()),
        }
    }

    /// Nothing came that was not read, and the other side has not ended it. Asks the kernel only when something happened.
    fn is_silent(&self) -> bool {
        let read = match self {
            Self::Tcp(stream) => stream.try_read(&mut [0]),
            Self::Unix(stream) => stream.try_read(&mut [0]),
        };
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The same, as the kernel knows it now.
    fn is_silent_still(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = match self {
            Self::Tcp(stream) => recv(stream, &mut [0][..], flags),
            Self::Unix(stream) => recv(stream, &mut [0][..], flags),
        };
        peeked.is_err_and(|error| error == Errno::AGAIN)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A connection that waits.
#[derive(Debug)]
struct Spare {
    socket: Socket,
    line: Arc<Line>,
    since: Instant,
}

/// The connections that wait, by where they lead.
pub struct Spares {
    inner: Mutex<Inner>,
    most: usize,
}

impl Default for Spares {
    fn default() -> Self {
        Self { inner: Mutex::default(), most: MOST }
    }
}

#[derive(Default)]
struct Inner {
    /// The latest comes last, and is taken first.
    by_address: HashMap<SocketAddr, Vec<Spare>, RandomState>,
    count: usize,
    /// Somebody looks for those that are spare for too long.
    swept: bool,
}

impl fmt::Debug for Spares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spares").field("count", &self.inner.lock().count).finish_non_exhaustive()
    }
}

impl Spares {
    /// One that leads there and can be used at once.
    pub(super) fn take(self: &Arc<Self>, address: &SocketAddr, now: Instant, look: Look) -> Option<Lent> {
        loop {
            let spare = {
                let mut inner = self.inner.lock();
                let spare = inner.by_address.get_mut(address)?.pop()?;
                inner.count -= 1;
                spare
            };
            let silent = match look {
                Look::Told => spare.socket.is_silent(),
                Look::Asks => spare.socket.is_silent_still(),
            };
            if now.duration_since(spare.since) < IDLE && silent {
                return Some(Lent::new(spare.socket, spare.line, Arc::clone(self), address.clone()));
            }
        }
    }

    fn put(self: &Arc<Self>, address: &SocketAddr, socket: Socket, line: Arc<Line>) {
        let spare = Spare { socket, line, since: Instant::now() };
        let sweep = {
            let mut inner = self.inner.lock();
            if inner.count >= self.most {
                return;
            }
            inner.count += 1;
            match inner.by_address.get_mut(address) {
                Some(there) => there.push(spare),
                None => drop(inner.by_address.insert(address.clone(), vec![spare])),
            }
            !std::mem::replace(&mut inner.swept, true)
        };
        // Without a runtime the process is about to end.
        if let (true, Ok(runtime)) = (sweep, Handle::try_current()) {
            runtime.spawn(sweep_while_any(Arc::downgrade(self)));
        }
    }

    /// Drops those that wait for too long or were ended; false when none is left, and nobody has to look any more.
    fn sweep(&self, now: Instant) -> bool {
        let mut inner = self.inner.lock();
        inner.by_address.retain(|_, there| {
            there.retain(|spare| now.duration_since(spare.since) < IDLE && spare.socket.is_silent());
            !there.is_empty()
        });
        inner.count = inner.by_address.values().map(Vec::len).sum();
        inner.swept = inner.count > 0;
        inner.swept
    }
}

/// One task for all of them, and only while there are any.
async fn sweep_while_any(spares: Weak<Spares>) {
    loop {
        sleep(SWEEP).await;
        if !spares.upgrade().is_some_and(|spares| spares.sweep(Instant::now())) {
            return;
        }
    }
}

/// A connection that carries a request. Dropped, it ends, or becomes spare.
pub(super) struct Lent {
    /// There until it is dropped.
    socket: Option<Socket>,
    line: Arc<Line>,
    spares: Arc<Spares>,
    address: SocketAddr,
    /// Pingora would keep it, and has done nothing with it since it asked.
    keep: bool,
}

impl Lent {
    pub(super) fn new(socket: Socket, line: Arc<Line>, spares: Arc<Spares>, address: SocketAddr) -> Self {
        Self { socket: Some(socket), line, spares, address, keep: false }
    }

    pub(super) fn line(&self) -> &Arc<Line> {
        &self.line
    }

    fn used(&mut self) -> io::Result<Pin<&mut Socket>> {
        self.keep = false;
        self.socket.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (true, Some(socket)) = (self.keep, self.socket.take()) {
            self.spares.put(&self.address, socket, Arc::clone(&self.line));
        }
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").field("address", &self.address).field("keep", &self.keep).finish_non_exhaustive()
    }
}

impl VirtualSocket for Lent {
    fn set_socket_option(&self, _option: VirtualSockOpt) -> io::Result<()> {
        // Set when it was dialled.
        Ok(())
    }
}

impl AsyncRead for Lent {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.line.is_probe(buf) {
            this.keep = this.line.is_answered() && this.socket.as_ref().is_some_and(Socket::is_silent);
            return Poll::Ready(Ok(()));
        }
        this.used()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Lent {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().used()?.poll_write(cx, buf)
    }

    /// Also when Pingora drops it; there is nothing to flush.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().used()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use pingora::protocols::l4::stream::Stream;
    use pingora::protocols::{Digest, GetProxyDigest};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::super::dial::{Dialers, Silence};
    use super::*;

    struct Upstream {
        listener: TcpListener,
        dialers: Dialers,
        spares: Arc<Spares>,
    }

    impl Upstream {
        async fn new() -> Self {
            let spares = Arc::<Spares>::default();
            let dialers = Dialers::new(Duration::from_secs(5), Arc::clone(&spares));
            Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap(), dialers, spares }
        }

        /// As Pingora asks for one, with a request's watch.
        async fn lend(&self) -> (Stream, Silence) {
            let address = SocketAddr::Inet(self.listener.local_addr().unwrap());
            let stream = self.dialers.plain().connect(&address).await.unwrap();
            let digest = Digest { proxy_digest: stream.get_proxy_digest(), ..Digest::default() };
            let silence = Line::of(&digest).unwrap().begin(Duration::from_secs(60));
            (stream, silence)
        }

        async fn accept(&self) -> TcpStream {
            self.listener.accept().await.unwrap().0
        }

        fn count(&self) -> usize {
            self.spares.inner.lock().count
        }

        /// A new one that has carried a request to the end of its answer.
        async fn answered(&self) -> (Stream, TcpStream, Silence) {
            let (mut stream, silence) = self.lend().await;
            let mut peer = self.accept().await;
            assert!(!silence.reuses(), "a new one");
            answer(&mut stream, &mut peer, &silence).await;
            (stream, peer, silence)
        }
    }

    /// What Pingora does with a connection that it would keep.
    async fn give_back(mut stream: Stream) {
        let probe = tokio::task::unconstrained(async { stream.read(&mut [0]).await });
        assert_eq!(probe.now_or_never().map(Result::ok), Some(Some(0)), "it is to let go");
    }

    async fn answer(stream: &mut Stream, upstream: &mut TcpStream, silence: &Silence) {
        stream.write_all(b"GET").await.unwrap();
        upstream.read_exact(&mut [0; 3]).await.unwrap();
        upstream.write_all(b"200").await.unwrap();
        stream.read_exact(&mut [0; 3]).await.unwrap();
        silence.ended(true);
    }

    #[tokio::test]
    async fn one_that_was_answered_carries_the_next_request() {
        let upstream = Upstream::new().await;
        let (stream, mut peer, silence) = upstream.answered().await;
        give_back(stream).await;
        drop(silence);
        assert_eq!(upstream.count(), 1);
        let (mut stream, silence) = upstream.lend().await;
        assert_eq!(upstream.count(), 0);
        assert!(silence.reuses());
        answer(&mut stream, &mut peer, &silence).await;
    }

    /// Whoever got such a connection would read the answer to somebody else's request.
    #[tokio::test]
    async fn one_with_an_answer_under_way_is_not_kept() {
        let upstream = Upstream::new().await;
        let (mut stream, silence) = upstream.lend().await;
        let mut peer = upstream.accept().await;
        stream.write_all(b"GET").await.unwrap();
        // One byte is wanted, but not to see whether it may be kept.
        assert!(stream.read(&mut [0]).now_or_never().is_none());
        drop((stream, silence));
        assert_eq!(upstream.count(), 0);
        peer.read_exact(&mut [0; 3]).await.unwrap();
        assert_eq!(peer.read(&mut [0]).await.unwrap(), 0, "it has ended");

        // The watch of an answered request says nothing of the next one.
        let (stream, _peer, silence) = upstream.answered().await;
        give_back(stream).await;
        let (mut stream, _next) = upstream.lend().await;
        silence.ended(true);
        stream.write_all(b"GET").await.unwrap();
        assert!(stream.read(&mut [0]).now_or_never().is_none());
        drop(stream);
        assert_eq!(upstream.count(), 0);
    }

    /// What answers early may have a body half sent; what became no tunnel is not for plain requests.
    #[tokio::test]
    async fn no_connection_of_ours_enters_pingoras_pool() {
        let upstream = Upstream::new().await;
        let (mut stream, silence) = upstream.lend().await;
        silence.send(None);
        stream.write_all(b"POST").await.unwrap();
        silence.ended(false);
        give_back(stream).await;
        assert_eq!(upstream.count(), 0, "the body was not written to its end");
        let (stream, silence) = upstream.lend().await;
        silence.send(None);
        silence.ended(false);
        silence.sent(true);
        give_back(stream).await;
        assert_eq!(upstream.count(), 1, "and now it was");

        let address = SocketAddr::Inet(upstream.listener.local_addr().unwrap());
        let mut stream = upstream.dialers.tunnels().connect(&address).await.unwrap();
        let digest = Digest { proxy_digest: stream.get_proxy_digest(), ..Digest::default() };
        Line::of(&digest).unwrap().begin(Duration::from_secs(60)).ended(true);
        assert_eq!(stream.read(&mut [0; 100]).await.unwrap(), 0, "as TLS would read");
        give_back(stream).await;
        assert_eq!(upstream.count(), 1);
    }

    #[tokio::test]
    async fn one_that_pingora_would_not_keep_is_not_kept() {
        let upstream = Upstream::new().await;
        let (stream, _peer, _silence) = upstream.answered().await;
        drop(stream);
        assert_eq!(upstream.count(), 0);
    }

    #[tokio::test]
    async fn one_whose_upstream_says_more_or_has_ended_is_not_used_again() {
        let upstream = Upstream::new().await;
        let (stream, mut peer, _silence) = upstream.answered().await;
        give_back(stream).await;
        assert_eq!(upstream.count(), 1);
        peer.write_all(b"HTTP/1.1 200").await.unwrap();
        // Until the kernel has told of it.
        while upstream.spares.sweep(Instant::now()) {
            tokio::task::yield_now().await;
        }
        let (stream, peer, _silence) = upstream.answered().await;
        give_back(stream).await;
        drop(peer);
        while upstream.spares.sweep(Instant::now()) {
            tokio::task::yield_now().await;
        }
        assert!(!upstream.lend().await.1.reuses());
    }

    /// Also when the runtime was not told: nothing runs here between the end and the next request.
    #[tokio::test]
    async fn who_must_not_send_twice_asks_the_kernel() {
        let upstream = Upstream::new().await;
        let (stream, peer, silence) = upstream.answered().await;
        give_back(stream).await;
        drop((peer, silence));
        let address = SocketAddr::Inet(upstream.listener.local_addr().unwrap());
        assert!(upstream.spares.take(&address, Instant::now(), Look::Asks).is_none());
        let (stream, _peer, _silence) = upstream.answered().await;
        give_back(stream).await;
        assert!(upstream.spares.take(&address, Instant::now(), Look::Asks).is_some());
    }

    #[tokio::test]
    async fn more_behind_the_answer_shows_before_it_is_kept() {
        let upstream = Upstream::new().await;
        let (stream, silence) = upstream.lend().await;
        let line = Line::of(&Digest { proxy_digest: stream.get_proxy_digest(), ..Digest::default() }).unwrap();
        let address = SocketAddr::Inet(upstream.listener.local_addr().unwrap());
        let socket = TcpStream::connect(upstream.listener.local_addr().unwrap()).await.unwrap();
        let (_first, mut peer) = (upstream.accept().await, upstream.accept().await);
        peer.write_all(b"!").await.unwrap();
        socket.readable().await.unwrap();
        silence.ended(true);
        let mut lent = Lent::new(Socket::Tcp(socket), line, Arc::clone(&upstream.spares), address);
        assert_eq!(lent.read(&mut [0]).await.unwrap(), 0);
        drop(lent);
        assert_eq!(upstream.count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_nobody_needs_ends() {
        let upstream = Upstream::new().await;
        let (stream, mut peer, silence) = upstream.answered().await;
        give_back(stream).await;
        drop(silence);
        assert_eq!(peer.read(&mut [0]).await.unwrap(), 0, "it is ended, though nobody asks");
        assert_eq!(upstream.count(), 0);
    }

    #[tokio::test]
    async fn there_are_no_more_than_so_many() {
        let mut upstream = Upstream::new().await;
        upstream.spares = Arc::new(Spares { most: 2, ..Spares::default() });
        upstream.dialers = Dialers::new(Duration::from_secs(5), Arc::clone(&upstream.spares));
        let mut lent = Vec::new();
        for _ in 0..3 {
            let (stream, peer, _silence) = upstream.answered().await;
            lent.push((stream, peer));
        }
        let (streams, _peers): (Vec<_>, Vec<_>) = lent.into_iter().unzip();
        for stream in streams {
            give_back(stream).await;
        }
        assert_eq!(upstream.count(), 2);
    }
}
