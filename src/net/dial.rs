//! Connections to upstreams. They are dialled here and not by Pingora, so that one whose upstream has fallen silent can
//! be ended while Pingora reads from it: its own time-out is fixed before the answer's kind is known.
//!
//! A watch is set for one request at a time and counts the silence since the last sign of life:
//!
//! ```text
//! idle ─ begin ─► listening ⇄ paused ─ drop ─► idle
//!                     └─ silent for too long ─► shut down, and remembered
//! ```

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::connectors::L4Connect;
use pingora::http::ResponseHeader;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{Digest, GetProxyDigest};
use pingora::{Error, ErrorType, OrErr, Result};
use socket2::SockRef;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};

/// Connects, and leaves a [`Line`] on each connection.
#[derive(Debug)]
pub struct Dialer {
    within: Duration,
}

impl Dialer {
    /// `within`: for the connect itself, a TLS handshake apart.
    pub fn new(within: Duration) -> Arc<Self> {
        Arc::new(Self { within })
    }

    async fn dial(&self, address: &SocketAddr) -> io::Result<(Stream, OwnedFd)> {
        match address {
            SocketAddr::Inet(address) => {
                let stream = TcpStream::connect(address).await?;
                let socket = stream.as_fd().try_clone_to_owned()?;
                Ok((stream.into(), socket))
            }
            SocketAddr::Unix(address) => {
                let path = address.as_pathname().ok_or(io::ErrorKind::InvalidInput)?;
                let stream = UnixStream::connect(path).await?;
                let socket = stream.as_fd().try_clone_to_owned()?;
                Ok((stream.into(), socket))
            }
        }
    }
}

#[async_trait]
impl L4Connect for Dialer {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let dialled = timeout(self.within, self.dial(address)).await;
        let dialled = dialled.map_err(|_| Error::new_up(ErrorType::ConnectTimedout))?;
        let (mut stream, socket) = dialled.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => ErrorType::ConnectNoRoute,
                _ => ErrorType::ConnectError,
            };
            Error::because(kind, "while connecting", error).into_up()
        })?;
        let head = ResponseHeader::build(200, Some(0)).or_err(ErrorType::InternalError, "while tagging")?;
        stream.set_proxy_digest(ProxyDigest::new(Box::new(head), Some(Box::new(Line::new(socket)))));
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
}

#[derive(Debug)]
struct Watch {
    /// Counts requests: the watch of an earlier one ends nothing of a later one's.
    request: u64,
    /// How long silence may last; none while nothing is expected of the upstream.
    allowed: Option<Duration>,
    since: Instant,
    /// Silence lasted too long, and the connection was shut down.
    over: bool,
}

impl Line {
    fn new(socket: OwnedFd) -> Arc<Self> {
        let watch = Watch { request: 0, allowed: None, since: Instant::now(), over: false };
        let begun = Arc::new(Notify::new());
        let line =
            Arc::new(Self { socket, watch: Mutex::new(watch), begun: Arc::clone(&begun), watchman: Mutex::default() });
        let task = tokio::spawn(keep_watch(Arc::downgrade(&line), begun));
        *line.watchman.lock() = Some(task.abort_handle());
        line
    }

    /// The line below a connection that [`Dialer`] made.
    pub fn of(digest: &Digest) -> Option<Arc<Self>> {
        digest.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref().cloned()
    }

    /// Begins a request's watch, paused.
    pub fn begin(self: Arc<Self>, allowed: Duration) -> Silence {
        let mut watch = self.watch.lock();
        watch.request += 1;
        watch.allowed = None;
        let request = watch.request;
        drop(watch);
        Silence { line: self, request, allowed }
    }

    /// When silence will have lasted too long; none while it may last.
    fn due(&self) -> Option<Instant> {
        let watch = self.watch.lock();
        watch.allowed.filter(|_| !watch.over).map(|allowed| watch.since + allowed)
    }

    /// Ends the connection, unless the upstream did send something and it is we who have not read it: a slow client
    /// holds its upstream back.
    fn give_up(&self) {
        let mut watch = self.watch.lock();
        if watch.allowed.is_none_or(|allowed| watch.since + allowed > Instant::now()) {
            return;
        }
        if rustix::io::ioctl_fionread(&self.socket).is_ok_and(|unread| unread > 0) {
            watch.since = Instant::now();
            return;
        }
        watch.over = true;
        // An error means that it has ended by itself.
        let _ = SockRef::from(&self.socket).shutdown(std::net::Shutdown::Both);
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
        let Some(due) = line.upgrade().map(|line| line.due()) else { return };
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
        self.listen_for(self.allowed);
    }

    /// The same, with another limit.
    pub fn listen_for(&self, allowed: Duration) {
        let mut watch = self.line.watch.lock();
        if watch.request != self.request {
            return;
        }
        watch.since = Instant::now();
        let sooner = watch.allowed.replace(allowed).is_none_or(|before| before > allowed);
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
            watch.since = Instant::now();
        }
    }

    /// Silence lasted too long.
    pub fn is_over(&self) -> bool {
        self.line.watch.lock().over
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        self.pause();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const ALLOWED: Duration = Duration::from_millis(50);

    async fn connected() -> (Stream, Arc<Line>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = SocketAddr::Inet(listener.local_addr().unwrap());
        let stream = Dialer::new(Duration::from_secs(5)).connect(&address).await.unwrap();
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
    async fn the_connection_ends_when_its_stream_does() {
        let (stream, line, mut peer) = connected().await;
        drop(line);
        drop(stream);
        assert_eq!(peer.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn nobody_there_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = SocketAddr::Inet(listener.local_addr().unwrap());
        drop(listener);
        let error = Dialer::new(Duration::from_secs(5)).connect(&address).await.unwrap_err();
        assert_eq!(error.etype(), &ErrorType::ConnectRefused);
    }
}
