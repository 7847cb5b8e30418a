//! Connections to upstreams. They are dialled here and not by Pingora, so that one whose upstream has fallen silent can
//! be ended while Pingora reads from it: its own time-out is fixed before the answer's kind is known.
//!
//! A watch is set for one request at a time and counts the silence since the last sign of life:
//!
//! ```text
//! idle ─ begin ─► listening ⇄ paused ─ drop ─► idle
//!                     └─ silent for too long ─► shut down, and remembered
//! ```
//!
//! While the client still sends, it is not the upstream's turn to speak, but to take: one that takes nothing for too long
//! is shut down as well.
//!
//! For a handshake that asks for a tunnel the answer is held back until Pingora has passed on that the request has no
//! body: a `101` that it reads before ends the tunnel as soon as it has begun.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::connectors::L4Connect;
use pingora::http::ResponseHeader;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{Digest, GetProxyDigest};
use pingora::{Error, ErrorType, OrErr, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::spare::{Lent, Look, Socket, Spares};

/// How long a client may go on sending a body that was answered already, between two pieces of it.
pub const LINGER: Duration = Duration::from_secs(1);

/// What connects, by what becomes of the connection. Each leaves a [`Line`] on it.
#[derive(Debug)]
pub struct Dialers {
    plain: Arc<Dialer>,
    careful: Arc<Dialer>,
    layered: Arc<Dialer>,
    tunnels: Arc<Dialer>,
}

#[derive(Debug)]
struct Dialer {
    within: Duration,
    purpose: Purpose,
}

#[derive(Debug)]
enum Purpose {
    Plain(Arc<Spares>, Look),
    Layered,
    Tunnel,
}

impl Dialers {
    /// `within`: for the connect itself, a TLS handshake apart.
    pub fn new(within: Duration, spares: Arc<Spares>) -> Self {
        let dialer = |purpose| Arc::new(Dialer { within, purpose });
        Self {
            plain: dialer(Purpose::Plain(Arc::clone(&spares), Look::Told)),
            careful: dialer(Purpose::Plain(spares, Look::Asks)),
            layered: dialer(Purpose::Layered),
            tunnels: dialer(Purpose::Tunnel),
        }
    }

    /// For one request after the other in HTTP/1.1 without TLS.
    pub fn plain(&self) -> Arc<dyn L4Connect + Send + Sync> {
        Arc::clone(&self.plain) as _
    }

    /// The same for a request that is not sent again when its connection turns out to be dead.
    pub fn careful(&self) -> Arc<dyn L4Connect + Send + Sync> {
        Arc::clone(&self.careful) as _
    }

    /// For what TLS or HTTP/2 is laid on; Pingora keeps these.
    pub fn layered(&self) -> Arc<dyn L4Connect + Send + Sync> {
        Arc::clone(&self.layered) as _
    }

    /// For connections that are to become tunnels: see [`Line::hold_answer`].
    pub fn tunnels(&self) -> Arc<dyn L4Connect + Send + Sync> {
        Arc::clone(&self.tunnels) as _
    }
}

impl Dialer {
    async fn dial(&self, address: &SocketAddr) -> io::Result<(Stream, Arc<Line>)> {
        let (socket, again) = match address {
            SocketAddr::Inet(address) => {
                let stream = TcpStream::connect(address).await?;
                let again = stream.as_fd().try_clone_to_owned()?;
                (Socket::Tcp(stream), again)
            }
            SocketAddr::Unix(address) => {
                let path = address.as_pathname().ok_or(io::ErrorKind::InvalidInput)?;
                let stream = UnixStream::connect(path).await?;
                let again = stream.as_fd().try_clone_to_owned()?;
                (Socket::Unix(stream), again)
            }
        };
        let held = Arc::new(AtomicBool::new(false));
        let line = Line::new(again, Arc::clone(&held));
        let stream = match (&self.purpose, socket) {
            (Purpose::Plain(spares, _), socket) => {
                socket.set_nodelay()?;
                lend(Lent::new(socket, Arc::clone(&line), Arc::clone(spares), address.clone()))
            }
            (Purpose::Layered, Socket::Tcp(stream)) => stream.into(),
            (Purpose::Layered, Socket::Unix(stream)) => stream.into(),
            (Purpose::Tunnel, socket) => {
                let line = Arc::clone(&line);
                let held = Held { socket, line, held, unflushed: false, reader: None };
                VirtualSocketStream::new(Box::new(held)).into()
            }
        };
        Ok((stream, line))
    }

    async fn connect(&self, address: &SocketAddr) -> Result<(Stream, Arc<Line>)> {
        if let Purpose::Plain(spares, look) = &self.purpose
            && let Some(lent) = spares.take(address, Instant::now(), *look)
        {
            let line = Arc::clone(lent.line());
            return Ok((lend(lent), line));
        }
        let dialled = timeout(self.within, self.dial(address)).await;
        let dialled = dialled.map_err(|_| Error::new_up(ErrorType::ConnectTimedout))?;
        dialled.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => ErrorType::ConnectNoRoute,
                _ => ErrorType::ConnectError,
            };
            Error::because(kind, "while connecting", error).into_up()
        })
    }
}

fn lend(lent: Lent) -> Stream {
    VirtualSocketStream::new(Box::new(lent)).into()
}

/// A connection that can hold back what the upstream says: [`Line::hold_answer`].
#[derive(Debug)]
struct Held {
    socket: Socket,
    line: Arc<Line>,
    held: Arc<AtomicBool>,
    /// Something was written since the last flush.
    unflushed: bool,
    reader: Option<Waker>,
}

impl VirtualSocket for Held {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        match option {
            VirtualSockOpt::NoDelay => self.socket.set_nodelay(),
            // Keep-alive, which nobody asks for here.
            _ => Ok(()),
        }
    }
}

impl AsyncRead for Held {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.held.load(Ordering::Acquire) {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        // Whatever is on top of it, perhaps TLS: nothing is to be read of what became no tunnel.
        if self.line.has_ended() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.unflushed = true;
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        // Pingora flushes behind the head, and once more, with nothing written, when the request is over.
        if !std::mem::take(&mut self.unflushed) && self.held.swap(false, Ordering::AcqRel) {
            self.reader.take().into_iter().for_each(Waker::wake);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[async_trait]
impl L4Connect for Dialer {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let (mut stream, line) = self.connect(address).await?;
        let head = ResponseHeader::build(200, Some(0)).or_err(ErrorType::InternalError, "while tagging")?;
        stream.set_proxy_digest(ProxyDigest::new(Box::new(head), Some(Box::new(line))));
        Ok(stream)
    }
}

/// One connection to an upstream.
pub struct Line {
    /// The connection's socket once more; gone with the connection, or it would keep it open.
    socket: OwnedFd,
    watch: Mutex<Watch>,
    begun: Arc<Notify>,
    watchman: Mutex<Option<AbortHandle>>,
    held: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Watch {
    /// Counts requests: the watch of an earlier one ends nothing of a later one's.
    request: u64,
    /// How long silence may last; none while nothing is expected of the upstream.
    allowed: Option<Duration>,
    since: Instant,
    /// How long the upstream may take nothing of a request's body; none when there is none to take.
    taking: Option<Duration>,
    /// When it was last seen to take something, or got something more to take.
    taken: Instant,
    /// When the watchman looks next; none when he has to be told. So a request tells him nothing while he is on his way
    /// to look anyway, which with requests one after the other is nearly always.
    looks: Option<Instant>,
    /// Silence lasted too long, and the connection was shut down.
    over: bool,
    /// It was the upstream that took nothing.
    stuck: bool,
    /// The current request has all of its answer.
    ended: bool,
    /// And the upstream has all of the request.
    answered: bool,
}

impl Watch {
    /// When something will have lasted too long, as things are now.
    fn due(&self) -> Option<Instant> {
        let silent = self.allowed.map(|allowed| self.since + allowed);
        silent.into_iter().chain(self.taking.map(|taking| self.taken + taking)).min()
    }
}

impl Line {
    fn new(socket: OwnedFd, held: Arc<AtomicBool>) -> Arc<Self> {
        let now = Instant::now();
        let watch = Watch {
            request: 0,
            allowed: None,
            since: now,
            taking: None,
            taken: now,
            looks: None,
            over: false,
            stuck: false,
            ended: false,
            answered: false,
        };
        let begun = Arc::new(Notify::new());
        let (watch, watchman) = (Mutex::new(watch), Mutex::default());
        let line = Arc::new(Self { socket, watch, begun: Arc::clone(&begun), watchman, held });
        let task = tokio::spawn(keep_watch(Arc::downgrade(&line), begun));
        *line.watchman.lock() = Some(task.abort_handle());
        line
    }

    /// The line below a connection that [`Dialer`] made.
    pub fn of(digest: &Digest) -> Option<Arc<Self>> {
        digest.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref().cloned()
    }

    /// From now on nothing is read before the next request was written to its end. Only on a connection that was
    /// dialled [for a tunnel](Dialers::tunnels), and after its TLS handshake.
    pub fn hold_answer(&self) {
        self.held.store(true, Ordering::Release);
    }

    /// Begins a request's watch, paused.
    pub fn begin(self: Arc<Self>, allowed: Duration) -> Silence {
        let mut watch = self.watch.lock();
        watch.request += 1;
        (watch.allowed, watch.taking) = (None, None);
        (watch.ended, watch.answered) = (false, false);
        let request = watch.request;
        drop(watch);
        Silence { line: self, request, allowed }
    }

    /// The latest request and its answer are complete, and the connection was not shut down.
    pub(super) fn is_answered(&self) -> bool {
        let watch = self.watch.lock();
        watch.answered && !watch.over
    }

    /// Behind the end of an answer Pingora reads for one reason only: to see whether it may put the connection in its
    /// pool. There it would never be found again: the pool tells connections apart by their descriptor, which it does
    /// not know of a virtual socket.
    pub(super) fn is_probe(&self, buf: &ReadBuf<'_>) -> bool {
        buf.remaining() == 1 && self.has_ended()
    }

    /// The latest request has all of its answer.
    fn has_ended(&self) -> bool {
        self.watch.lock().ended
    }

    /// When silence will have lasted too long, as things are now; none while it may last. The watchman comes back then.
    fn look(&self) -> Option<Instant> {
        let mut watch = self.watch.lock();
        watch.looks = watch.due().filter(|_| !watch.over);
        watch.looks
    }

    /// Ends the connection, unless the upstream did send something and it is we who have not read it: a slow client
    /// holds its upstream back.
    fn give_up(&self) {
        let mut watch = self.watch.lock();
        let now = Instant::now();
        if watch.due().is_none_or(|due| due > now) {
            return;
        }
        if rustix::io::ioctl_fionread(&self.socket).is_ok_and(|unread| unread > 0) {
            (watch.since, watch.taken) = (now, now);
            return;
        }
        let stuck = watch.taking.is_some_and(|taking| watch.taken + taking <= now);
        watch.stuck = stuck && !self.takes();
        if stuck && !watch.stuck {
            watch.taken = now;
        }
        if !watch.stuck && watch.allowed.is_none_or(|allowed| watch.since + allowed > now) {
            return;
        }
        watch.over = true;
        // An error means that it has ended by itself.
        let _ = SockRef::from(&self.socket).shutdown(std::net::Shutdown::Both);
    }

    /// There is room for more: what was written before was taken, or the kernel still holds it for the upstream.
    fn takes(&self) -> bool {
        let mut room = [PollFd::new(&self.socket, PollFlags::OUT)];
        poll(&mut room, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(task) = self.watchman.get_mut() {
            task.abort();
        }
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("watch", &self.watch).finish_non_exhaustive()
    }
}

/// One task a connection, not one a request: it sleeps until the silence that is known would be too long.
async fn keep_watch(line: Weak<Line>, begun: Arc<Notify>) {
    loop {
        let Some(due) = line.upgrade().map(|line| line.look()) else { return };
        match due {
            None => begun.notified().await,
            Some(due) if due > Instant::now() => {
                tokio::select! {
                    () = sleep_until(due) => {}
                    // Perhaps less is allowed from now on.
                    () = begun.notified() => {}
                }
            }
            Some(_) => {
                if let Some(line) = line.upgrade() {
                    line.give_up();
                }
            }
        }
    }
}

/// A request's watch over the silence of its upstream; until it is dropped.
#[derive(Debug)]
pub struct Silence {
    line: Arc<Line>,
    request: u64,
    allowed: Duration,
}

impl Silence {
    /// From now on something is expected of the upstream; also a sign of life, from which silence is counted anew.
    pub fn listen(&self) {
        self.listen_from(Instant::now());
    }

    /// The same, for who knows the time.
    pub fn listen_from(&self, now: Instant) {
        self.change(|watch| (watch.since, watch.allowed) = (now, Some(self.allowed)));
    }

    /// The client sends: the upstream is to take it. `idle`: how long the client may be silent, where nobody else
    /// watches it.
    pub fn send(&self, idle: Option<Duration>) {
        let now = Instant::now();
        self.change(|watch| {
            (watch.since, watch.taken) = (now, now);
            (watch.allowed, watch.taking) = (idle, Some(self.allowed));
        });
    }

    /// The client has sent all. `answering`: the answer has begun, and says itself how silent it may be.
    pub fn sent(&self, answering: bool) {
        let now = Instant::now();
        self.change(|watch| {
            (watch.since, watch.taking) = (now, None);
            if watch.ended {
                (watch.allowed, watch.answered) = (None, true);
            } else if !answering {
                watch.allowed = Some(self.allowed);
            }
        });
    }

    /// Has the watchman come sooner where the change wants it.
    fn change(&self, change: impl FnOnce(&mut Watch)) {
        let mut watch = self.line.watch.lock();
        if watch.request != self.request {
            return;
        }
        change(&mut watch);
        let sooner = watch.due().is_some_and(|due| watch.looks.is_none_or(|looks| due < looks));
        drop(watch);
        if sooner {
            self.line.begun.notify_one();
        }
    }

    /// Silence is natural from now on.
    pub fn pause(&self) {
        let mut watch = self.line.watch.lock();
        if watch.request == self.request {
            watch.allowed = None;
        }
    }

    /// A sign of life, if one is expected.
    pub fn heard(&self) {
        let mut watch = self.line.watch.lock();
        if watch.request == self.request {
            let now = Instant::now();
            (watch.since, watch.taken) = (now, now);
        }
    }

    /// The answer has come to its end. `request_over`: nothing more is expected then; otherwise the client may send the
    /// rest, but is not waited for.
    pub fn ended(&self, request_over: bool) {
        if request_over {
            let mut watch = self.line.watch.lock();
            if watch.request == self.request {
                watch.allowed = None;
                (watch.ended, watch.answered) = (true, true);
            }
        } else {
            let now = Instant::now();
            self.change(|watch| {
                (watch.since, watch.ended) = (now, true);
                (watch.allowed, watch.taking) = (Some(LINGER), None);
            });
        }
    }

    /// The connection carried a request before this one, so it may have ended since.
    pub fn reuses(&self) -> bool {
        self.request > 1
    }

    /// Silence lasted too long.
    pub fn is_over(&self) -> bool {
        self.line.watch.lock().over
    }

    /// And it was in taking the request's body.
    pub fn is_stuck(&self) -> bool {
        self.line.watch.lock().stuck
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let mut watch = self.line.watch.lock();
        if watch.request == self.request {
            (watch.allowed, watch.taking) = (None, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const ALLOWED: Duration = Duration::from_millis(50);

    fn dialers() -> Dialers {
        Dialers::new(Duration::from_secs(5), Arc::default())
    }

    async fn connected() -> (Stream, Arc<Line>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = SocketAddr::Inet(listener.local_addr().unwrap());
        let stream = dialers().layered().connect(&address).await.unwrap();
        let (peer, _) = listener.accept().await.unwrap();
        let digest = Digest { proxy_digest: stream.get_proxy_digest(), ..Digest::default() };
        (stream, Line::of(&digest).unwrap(), peer)
    }

    #[tokio::test]
    async fn a_silent_upstream_is_given_up() {
        let (mut stream, line, _peer) = connected().await;
        let silence = line.begin(ALLOWED);
        silence.listen();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(silence.is_over());
    }

    #[tokio::test]
    async fn silence_that_is_natural_or_ours_ends_nothing() {
        let (mut stream, line, mut peer) = connected().await;
        let silence = line.clone().begin(ALLOWED);
        silence.listen();
        silence.pause();
        tokio::time::sleep(ALLOWED * 3).await;
        assert!(!silence.is_over(), "paused");
        peer.write_all(b"unread").await.unwrap();
        silence.listen();
        tokio::time::sleep(ALLOWED * 3).await;
        assert!(!silence.is_over(), "it is we who do not read");
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 6);
        let next = line.begin(ALLOWED);
        silence.listen();
        drop(silence);
        tokio::time::sleep(ALLOWED * 3).await;
        assert!(!next.is_over(), "an earlier request's watch");
    }

    #[tokio::test]
    async fn an_upstream_that_takes_nothing_is_given_up() {
        let (mut stream, line, _peer) = connected().await;
        let silence = line.clone().begin(ALLOWED);
        silence.send(None);
        stream.write_all(b"body").await.unwrap();
        tokio::time::sleep(ALLOWED * 3).await;
        assert!(!silence.is_over(), "there is room for more, and the client has sent none");
        let piece = [0; 64 * 1024];
        while stream.write_all(&piece).await.is_ok() {
            silence.heard();
        }
        assert!(silence.is_over() && silence.is_stuck());
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchman_comes_in_time_after_pauses_and_for_shorter_limits() {
        let (_stream, line, _peer) = connected().await;
        let long = Duration::from_secs(60);
        let first = line.clone().begin(long);
        first.listen();
        tokio::time::sleep(long / 2).await;
        first.pause();
        tokio::time::sleep(long * 3).await;
        assert!(!first.is_over(), "paused");
        drop(first);
        let second = line.clone().begin(long);
        second.listen();
        tokio::time::sleep(long / 2).await;
        second.listen();
        tokio::time::sleep(long * 3 / 4).await;
        assert!(!second.is_over(), "counted anew");
        tokio::time::sleep(long / 2).await;
        assert!(second.is_over());
        drop(second);

        let (_stream, line, _peer) = connected().await;
        let third = line.begin(long);
        third.listen();
        tokio::task::yield_now().await;
        third.send(Some(ALLOWED));
        tokio::time::sleep(ALLOWED * 2).await;
        assert!(third.is_over(), "a shorter limit than he was sleeping for");
    }

    #[tokio::test]
    async fn the_connection_ends_when_its_stream_does() {
        let (stream, line, mut peer) = connected().await;
        drop(line);
        drop(stream);
        assert_eq!(peer.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn an_answer_is_held_back_until_the_request_is_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = SocketAddr::Inet(listener.local_addr().unwrap());
        let mut stream = dialers().tunnels().connect(&address).await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let digest = Digest { proxy_digest: stream.get_proxy_digest(), ..Digest::default() };
        // As in a TLS handshake.
        peer.write_all(b"hello").await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 5);
        Line::of(&digest).unwrap().hold_answer();
        peer.write_all(b"101").await.unwrap();
        stream.write_all(b"GET").await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = [0; 8];
        assert!(stream.read(&mut answer).now_or_never().is_none(), "only the head was written");
        stream.flush().await.unwrap();
        assert_eq!(stream.read(&mut answer).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn nobody_there_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = SocketAddr::Inet(listener.local_addr().unwrap());
        drop(listener);
        let error = dialers().layered().connect(&address).await.unwrap_err();
        assert_eq!(error.etype(), &ErrorType::ConnectRefused);
    }
}
