//! The stream that Pingora reads one request from and writes its answer to.
//!
//! A guard holds back what Pingora must not see: behind the judged head, which Pingora gets by itself, it hands out the
//! judged body, then nothing, though the client may already have sent its next request. It watches the answer for
//! `101`, and only then lets bytes through as they come. When Pingora drops it, the connection goes home to the serve
//! loop, which decides what becomes of it.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use pingora::protocols::http::ServerSession;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::connection::{ConnectionInfo, Connections, Half, TunnelCount};
use super::framer::{BodyReader, Upgrade};
use super::refusal::Refusal;
use super::turns::Turn;
use super::websocket::{Frames, GOING_AWAY};
use super::wire::Wire;
use crate::web::problem::Code;

/// How much of the next request is read while the current one is answered: reading on is how a reset is noticed.
const AHEAD: usize = 8 * 1024;
/// One read of a body.
const BODY_READ: usize = 64 * 1024;
/// Small writes are gathered up to here, so that a head and a short body leave in one packet.
const GATHER: usize = 4 * 1024;
/// How often the kernel is asked whether a half-closed client is still there.
const PROBE: Duration = Duration::from_secs(5);

/// A client connection between two requests.
pub(super) struct Connection {
    pub(super) wire: Wire,
    /// Bytes that were read and not judged.
    pub(super) rx: BytesMut,
    /// The client will send no more.
    pub(super) eof: bool,
    pub(super) info: Arc<ConnectionInfo>,
    pub(super) connections: Connections,
    pub(super) socket_digest: Arc<SocketDigest>,
    pub(super) ssl_digest: Option<Arc<SslDigest>>,
    /// Carries `info` to where only Pingora's digest is left of a stream.
    pub(super) tag: Option<Arc<ProxyDigest>>,
    /// Runs while a head is awaited. Kept from request to request: putting a timer off costs nothing, a new one a lock.
    pub(super) alarm: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    /// One that has just come, and that nobody counts.
    #[cfg(test)]
    pub(super) fn uncounted(wire: Wire) -> Self {
        let info = Arc::new(ConnectionInfo::new(None, false, None));
        Self {
            tag: info.tag(),
            info,
            socket_digest: Arc::new(SocketDigest::from_raw_fd(wire.fd())),
            wire,
            rx: BytesMut::new(),
            eof: false,
            connections: Connections::new(Arc::new(())),
            ssl_digest: None,
            alarm: None,
        }
    }

    /// The TLS handshake ended with HTTP/2.
    pub(super) fn speaks_http2(&self) -> bool {
        self.wire.negotiated() == Some(b"h2")
    }
}

/// Where a connection is put when its guard is dropped.
#[derive(Clone, Default)]
pub(super) struct Home(Arc<Mutex<Option<Box<Exchange>>>>);

impl Home {
    /// The connection, once the guard is gone.
    pub(super) fn take(&self) -> Option<Box<Exchange>> {
        self.0.lock().take()
    }
}

/// One request on a client connection, as Pingora sees it.
pub struct Guard {
    info: Arc<ConnectionInfo>,
    exchange: Option<Box<Exchange>>,
    home: Home,
}

impl Guard {
    /// `body_start`: what of the body was judged together with the head.
    pub(super) fn new(
        connection: Connection,
        upgrade: Upgrade,
        body: BodyReader,
        body_start: BytesMut,
        body_idle: Duration,
        turn: Option<Turn>,
        home: Home,
    ) -> Self {
        let info = connection.info.clone();
        let exchange = Exchange {
            connection,
            ready: body_start,
            body,
            body_idle,
            silence: None,
            stall: None,
            probe: None,
            upgrade,
            answer: Answer::default(),
            turn,
            tunnel: None,
            tx: BytesMut::new(),
            fault: None,
        };
        Self { info, exchange: Some(Box::new(exchange)), home }
    }

    /// The guard below a Pingora session; `None` on HTTP/2 and in tests with other streams.
    pub fn of(session: &ServerSession) -> Option<&Self> {
        session.stream().and_then(|stream| (**stream).as_any().downcast_ref())
    }

    /// The connection that the request came on.
    pub fn info(&self) -> &Arc<ConnectionInfo> {
        &self.info
    }

    /// Why the body could not be read to its end: malformed, or silent for too long. What to answer when Pingora
    /// reports a read error.
    pub fn fault(&self) -> Option<Refusal> {
        self.exchange.as_ref().and_then(|exchange| exchange.fault)
    }

    /// What the client asked the connection to become. A `101` to [`Upgrade::No`] ends the connection.
    pub fn upgrade(&self) -> Upgrade {
        self.exchange.as_ref().map_or(Upgrade::No, |exchange| exchange.upgrade)
    }

    fn with(&mut self) -> io::Result<&mut Exchange> {
        self.exchange.as_deref_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        *self.home.0.lock() = self.exchange.take();
    }
}

/// The state of one request and its answer.
pub(super) struct Exchange {
    pub(super) connection: Connection,
    /// Judged body bytes that Pingora has not read.
    ready: BytesMut,
    body: BodyReader,
    body_idle: Duration,
    /// Runs while a body is awaited.
    silence: Option<Pin<Box<Sleep>>>,
    /// Runs while the client takes nothing of its answer.
    stall: Option<Pin<Box<Sleep>>>,
    /// Runs while a half-closed client awaits its answer.
    probe: Option<Pin<Box<Sleep>>>,
    upgrade: Upgrade,
    answer: Answer,
    /// Given back when the answer has begun: a stream or a tunnel may last for hours.
    turn: Option<Turn>,
    tunnel: Option<Tunnel>,
    /// Gathered writes.
    tx: BytesMut,
    fault: Option<Refusal>,
}

struct Tunnel {
    /// `None` when it is not a WebSocket.
    frames: Option<Frames>,
    _count: TunnelCount,
}

impl Exchange {
    /// Some byte of a final answer was written.
    pub(super) fn answered(&self) -> bool {
        matches!(self.answer, Answer::Final) || self.tunnel.is_some()
    }

    /// The connection can take another request: this one was read to its end and answered.
    pub(super) fn is_reusable(&self) -> bool {
        self.fault.is_none()
            && self.tunnel.is_none()
            && matches!(self.answer, Answer::Final)
            && self.ready.is_empty()
            && self.body.is_done()
            && !self.connection.info.control.is_closed()
            // Who sent several requests and then half-closed gets all the answers.
            && (!self.connection.eof || !self.connection.rx.is_empty())
            // Bytes sent in the hope of a tunnel are not a request.
            && (self.upgrade == Upgrade::No || self.connection.rx.is_empty())
    }

    /// Nothing more is expected of the client.
    pub(super) fn is_over(&self) -> bool {
        self.tunnel.is_some() || self.connection.eof
    }

    /// The connection, and what still has to be written to it.
    pub(super) fn into_parts(self) -> (Connection, BytesMut) {
        (self.connection, self.tx)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.connection.info.control.is_closed() {
            return self.read_closed(cx);
        }
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let read = match self.tunnel {
            Some(_) => self.poll_read_tunnel(cx, buf),
            None => self.poll_read_body(cx, buf),
        };
        if read.is_pending() {
            // Whoever waits for the client has nothing to add: what was gathered should go.
            if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
                return Poll::Ready(Err(error));
            }
            if self.connection.info.control.watch(Half::Read, cx.waker()) {
                return self.read_closed(cx);
            }
        }
        read
    }

    /// The end, as it looks to Pingora: a tunnel's client went away; a request's client broke off.
    fn read_closed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(tunnel) = &mut self.tunnel else {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        };
        if self.tx.is_empty() && tunnel.frames.as_ref().is_some_and(Frames::may_close) {
            tunnel.frames = None;
            // One try: a client that does not take four bytes is not worth waiting for.
            let wire = Pin::new(&mut self.connection.wire);
            let _ = wire.poll_write(cx, &GOING_AWAY);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read_tunnel(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.connection.rx.is_empty() {
            return Pin::new(&mut self.connection.wire).poll_read(cx, buf);
        }
        hand_out(&mut self.connection.rx, buf);
        Poll::Ready(Ok(()))
    }

    fn poll_read_body(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some(fault) = self.fault {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, fault.detail)));
            }
            if !self.ready.is_empty() {
                self.silence = None;
                hand_out(&mut self.ready, buf);
                return Poll::Ready(Ok(()));
            }
            if self.body.is_done() {
                return self.poll_wait(cx).map(Err);
            }
            let connection = &mut self.connection;
            if !connection.rx.is_empty() {
                self.fault = self.body.read(&mut connection.rx, &mut self.ready).err();
                continue;
            }
            if connection.eof {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            connection.rx.reserve(BODY_READ);
            match connection.wire.poll_read_into(cx, &mut connection.rx) {
                Poll::Ready(Ok(0)) => connection.eof = true,
                Poll::Ready(Ok(_)) => self.silence = None,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    let silence = self.silence.get_or_insert_with(|| Box::pin(sleep(self.body_idle)));
                    ready!(silence.as_mut().poll(cx));
                    self.fault = Some(Refusal::new(Code::RequestTimeout, "The request body stalled."));
                }
            }
        }
    }

    /// The request is complete. Never resolves but with the client's end: a client that only half-closed is waited
    /// for, since it may well be reading (RFC 9112 section 9.6).
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let connection = &mut self.connection;
        while !connection.eof && connection.rx.len() < AHEAD {
            if let Err(error) = ready!(connection.wire.poll_readable(cx)) {
                return Poll::Ready(error);
            }
            connection.rx.reserve(AHEAD / 4);
            match ready!(connection.wire.poll_read_into(cx, &mut connection.rx)) {
                Ok(0) => connection.eof = true,
                Ok(_) => {}
                Err(error) => return Poll::Ready(error),
            }
        }
        if !connection.eof {
            return Poll::Pending;
        }
        loop {
            let probe = self.probe.get_or_insert_with(|| Box::pin(sleep(PROBE)));
            ready!(probe.as_mut().poll(cx));
            self.probe = None;
            if let Ok(Some(error)) | Err(error) = connection.wire.take_error() {
                return Poll::Ready(error);
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.connection.info.control.is_closed() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        // Heads are gathered whole, however long: a `101` must be known before it is sent.
        let gathers = !matches!(self.answer, Answer::Final) || buf.len() <= GATHER;
        if self.tunnel.is_none() && gathers {
            if self.tx.len() + buf.len() > GATHER {
                ready!(self.poll_drain_watched(cx))?;
            }
            if let Some(after) = self.answer.saw(buf) {
                self.begin_tunnel(buf.get(after..).unwrap_or_default())?;
            }
            if matches!(self.answer, Answer::Final) {
                self.turn = None;
            }
            self.tx.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(self.poll_drain_watched(cx))?;
        let write = Pin::new(&mut self.connection.wire).poll_write(cx, buf);
        self.poll_stall(cx, write.is_pending())?;
        match (&write, &mut self.tunnel) {
            (Poll::Ready(Ok(written)), Some(Tunnel { frames: Some(frames), .. })) => {
                frames.sent(buf.get(..*written).unwrap_or_default());
            }
            (Poll::Pending, _) if self.connection.info.control.watch(Half::Write, cx.waker()) => {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            _ => {}
        }
        write
    }

    /// `first`: bytes that were written together with the `101`.
    fn begin_tunnel(&mut self, first: &[u8]) -> io::Result<()> {
        let mut frames = match self.upgrade {
            Upgrade::No => return Err(io::Error::new(io::ErrorKind::InvalidData, "101 to a request without upgrade")),
            Upgrade::WebSocket => Some(Frames::default()),
            Upgrade::Other => None,
        };
        if let Some(frames) = &mut frames {
            frames.sent(first);
        }
        self.tunnel = Some(Tunnel { frames, _count: TunnelCount::new(&self.connection.connections) });
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain_watched(cx))?;
        let flushed = Pin::new(&mut self.connection.wire).poll_flush(cx);
        self.poll_stall(cx, flushed.is_pending())?;
        flushed
    }

    fn poll_drain_watched(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.tx.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let drained = self.poll_drain(cx);
        self.poll_stall(cx, drained.is_pending())?;
        if drained.is_pending() && self.connection.info.control.watch(Half::Write, cx.waker()) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        drained
    }

    /// Who takes nothing of its answer for too long is not waited for. No timer runs while it does.
    fn poll_stall(&mut self, cx: &mut Context<'_>, stalls: bool) -> io::Result<()> {
        if !stalls {
            self.stall = None;
            return Ok(());
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(self.body_idle)));
        match stall.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    /// Writes what was gathered.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.tx.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while !self.tx.is_empty() {
            match ready!(Pin::new(&mut self.connection.wire).poll_write(cx, &self.tx))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.tx.advance(written),
            }
        }
        // TLS holds records back until it is flushed.
        Pin::new(&mut self.connection.wire).poll_flush(cx)
    }
}

pub(super) fn hand_out(bytes: &mut impl Buf, buf: &mut ReadBuf<'_>) {
    let count = bytes.remaining().min(buf.remaining());
    buf.put_slice(bytes.chunk().get(..count).unwrap_or_default());
    bytes.advance(count);
}

/// The answer's heads, as they are written.
///
/// ## Status => (Interim => Status)* => Final | Switching => Final
#[derive(Debug)]
enum Answer {
    /// `HTTP/1.1 200`, as far as it was seen.
    Status(Vec<u8>),
    /// Inside a 1xx head; how much of its end was seen.
    Interim(HeadEnd),
    /// Inside the head of a `101`.
    Switching(HeadEnd),
    /// A final answer has begun; nothing more to find out.
    Final,
}

impl Default for Answer {
    fn default() -> Self {
        Self::Status(Vec::new())
    }
}

impl Answer {
    /// Takes note of bytes that are written. Where the head of a `101` ends: the offset behind it.
    fn saw(&mut self, bytes: &[u8]) -> Option<usize> {
        if matches!(self, Self::Final) {
            return None;
        }
        for (at, byte) in bytes.iter().enumerate() {
            match self {
                Self::Status(line) => {
                    line.push(*byte);
                    *self = match line.get(9..12) {
                        None => continue,
                        Some(b"101") => Self::Switching(HeadEnd::default()),
                        Some([b'1', ..]) => Self::Interim(HeadEnd::default()),
                        Some(_) => Self::Final,
                    };
                }
                Self::Interim(end) => {
                    if end.saw(*byte) {
                        *self = Self::default();
                    }
                }
                Self::Switching(end) => {
                    if end.saw(*byte) {
                        *self = Self::Final;
                        return Some(at + 1);
                    }
                }
                Self::Final => return None,
            }
        }
        None
    }
}

/// Finds CR LF CR LF.
#[derive(Debug, Default)]
struct HeadEnd(u8);

impl HeadEnd {
    fn saw(&mut self, byte: u8) -> bool {
        self.0 = match (self.0, byte) {
            (0 | 2, b'\r') | (1 | 3, b'\n') => self.0 + 1,
            (_, b'\r') => 1,
            _ => 0,
        };
        self.0 == 4
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Pingora logs streams: nothing of what passes through may show.
        f.debug_struct("Guard").field("connection", &self.info.id).finish_non_exhaustive()
    }
}

impl AsyncRead for Guard {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().with()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Guard {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().with()?.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().with()?.poll_flush(cx)
    }

    /// The serve loop closes connections; here they are only flushed.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

#[async_trait]
impl Shutdown for Guard {
    /// Nothing: the serve loop closes connections, and it lingers.
    async fn shutdown(&mut self) {}
}

impl UniqueID for Guard {
    fn id(&self) -> UniqueIDType {
        self.exchange.as_ref().map_or(-1, |exchange| exchange.connection.wire.fd())
    }
}

impl Ssl for Guard {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.exchange.as_ref().and_then(|exchange| exchange.connection.ssl_digest.clone())
    }
}

impl GetTimingDigest for Guard {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Guard {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.exchange.as_ref().and_then(|exchange| exchange.connection.tag.clone())
    }
}

impl GetSocketDigest for Guard {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.exchange.as_ref().map(|exchange| exchange.connection.socket_digest.clone())
    }
}

impl Peek for Guard {}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::super::framer::Body;
    use super::super::turns::Turns;
    use super::*;

    fn guard(wire: Wire, upgrade: Upgrade, turn: Turn) -> Guard {
        let body = BodyReader::new(Body::None);
        Guard::new(
            Connection::uncounted(wire),
            upgrade,
            body,
            BytesMut::new(),
            Duration::MAX,
            Some(turn),
            Home::default(),
        )
    }

    #[tokio::test]
    async fn who_reads_a_stream_or_has_a_tunnel_keeps_nobody_waiting() {
        let turns = Turns::new(1);
        let (_client, wire) = UnixStream::pair().unwrap();
        let turn = turns.try_begin().unwrap();
        let mut stream = guard(Wire::Unix(wire), Upgrade::No, turn);
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await.unwrap();
        assert_eq!(turns.under_way(), 1);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await.unwrap();
        assert_eq!(turns.under_way(), 0);

        let (_client, wire) = UnixStream::pair().unwrap();
        let turn = turns.try_begin().unwrap();
        let mut tunnel = guard(Wire::Unix(wire), Upgrade::WebSocket, turn);
        assert_eq!(turns.under_way(), 1);
        tunnel.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n").await.unwrap();
        assert_eq!(turns.under_way(), 0);
    }

    fn tunnel_starts(pieces: &[&[u8]]) -> Option<(usize, usize)> {
        let mut answer = Answer::default();
        pieces.iter().enumerate().find_map(|(n, piece)| answer.saw(piece).map(|at| (n, at)))
    }

    #[test]
    fn ws_02_a_tunnel_begins_behind_the_head_of_a_101_and_nowhere_else() {
        let switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
        assert_eq!(tunnel_starts(&[switching]), Some((0, switching.len())));
        assert_eq!(tunnel_starts(&[b"HTTP/1.1 100 Continue\r\n\r\n", switching]), Some((1, switching.len())));
        let (front, back) = switching.split_at(11);
        assert_eq!(tunnel_starts(&[front, back]), Some((1, back.len())));
        assert_eq!(tunnel_starts(&[b"HTTP/1.1 200 OK\r\n\r\n", switching]), None);
        assert_eq!(tunnel_starts(&[b"HTTP/1.1 403 Forbidden\r\nX: HTTP/1.1 101 x\r\n\r\n"]), None);
        assert_eq!(tunnel_starts(&[b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"]), None);
    }
}
