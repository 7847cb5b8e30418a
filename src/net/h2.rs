//! An HTTP/2 connection on its way to Pingora, which frames it: what is added is an end from outside, deadlines, and an
//! end to floods.
//!
//! That needs to know where frames and header blocks begin and end (RFC 9113 section 4.1 and 6.2), nothing more; what
//! the frames say is for the `h2` crate to judge.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use foldhash::fast::RandomState;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep};

use super::connection::Half;
use super::guard::{Connection, hand_out};
use super::serve::DRAIN_GRACE;
use super::settings::Settings;

/// Requests at a time on one connection.
const STREAMS: u32 = 100;
/// The smallest that RFC 9113 allows, and the usual one.
const FRAME_BYTES: u32 = 16 * 1024;
/// How much of one request's body may wait here.
const STREAM_WINDOW: u32 = 256 * 1024;
/// How much of all bodies on a connection.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// How much of one answer may wait for a client that reads slowly.
const SEND_BUFFER: usize = 128 * 1024;

/// What Pingora's HTTP/2 server tells clients that they may do.
pub fn http2_options(settings: &Settings) -> H2Options {
    let mut options = default_h2_options();
    // Beyond twice the limit a head is not even read; below it the refusal is ours, and clears the cookies.
    options.max_header_list_size(u32::try_from(settings.header_bytes.saturating_mul(2)).unwrap_or(u32::MAX));
    options.max_concurrent_streams(STREAMS);
    options.max_frame_size(FRAME_BYTES);
    options.initial_window_size(STREAM_WINDOW);
    options.initial_connection_window_size(CONNECTION_WINDOW);
    options.max_send_buffer_size(SEND_BUFFER);
    options
}

/// What a client that speaks HTTP/2 by prior knowledge sends first; its line end included, no HTTP/1.1 head begins so.
pub(super) const PRIOR_KNOWLEDGE: &[u8] = b"PRI * HTTP/2.0\r\n";
/// The whole preface (RFC 9113 section 3.4).
const PREFACE_BYTES: usize = 24;

/// The stream that Pingora's HTTP/2 server reads.
pub(super) struct H2Stream {
    connection: Connection,
    head_timeout: Duration,
    body_idle: Duration,
    frames: Frames,
    /// Ours.
    sent: Frames,
    /// Requests that have no whole answer yet.
    open: HashSet<u32, RandomState>,
    /// The latest stream that was begun.
    latest: u32,
    allowance: Allowance,
    timer: Option<(Awaits, Pin<Box<Sleep>>)>,
    draining: watch::Receiver<bool>,
    /// Runs during the drain. Pingora says GOAWAY and then waits for the client, which may never answer.
    parting: Option<Pin<Box<Sleep>>>,
}

impl H2Stream {
    pub(super) fn new(connection: Connection, settings: &Settings, draining: watch::Receiver<bool>) -> Self {
        Self {
            connection,
            head_timeout: settings.head_timeout,
            body_idle: settings.body_idle,
            frames: Frames { preface_left: PREFACE_BYTES, ..Frames::default() },
            sent: Frames::default(),
            open: HashSet::default(),
            latest: 0,
            allowance: Allowance::new(),
            timer: None,
            draining,
            parting: None,
        }
    }

    /// The drain goes on for a while, and the client has no request open.
    fn poll_parted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !*self.draining.borrow() {
            return Poll::Pending;
        }
        loop {
            let parting = self.parting.get_or_insert_with(|| Box::pin(sleep(DRAIN_GRACE)));
            ready!(parting.as_mut().poll(cx));
            if self.open.is_empty() {
                return Poll::Ready(());
            }
            self.parting = None;
        }
    }

    /// Bytes came: a head that is still incomplete keeps its deadline, a body gets a new one.
    fn progressed(&mut self) {
        let (awaits, within) = match self.frames.awaits() {
            Awaits::Nothing => return self.timer = None,
            Awaits::Head if matches!(self.timer, Some((Awaits::Head, _))) => return,
            Awaits::Head => (Awaits::Head, self.head_timeout),
            Awaits::Body => (Awaits::Body, self.body_idle),
        };
        self.timer = Some((awaits, Box::pin(sleep(within))));
    }
}

impl AsyncRead for H2Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.timer.is_none() {
            this.progressed();
        }
        if this.allowance.is_used_up() && this.frames.is_between() {
            if this.allowance.told {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            // The `h2` crate says GOAWAY to what is no frame, after what it still has to write.
            this.allowance.told = true;
            buf.put_slice(NO_FRAME.get(..buf.remaining().min(NO_FRAME.len())).unwrap_or_default());
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = if this.connection.info.control.watch(Half::Read, cx.waker()) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        } else if this.connection.rx.is_empty() {
            Pin::new(&mut this.connection.wire).poll_read(cx, buf)
        } else {
            hand_out(&mut this.connection.rx, buf);
            Poll::Ready(Ok(()))
        };
        if read.is_ready() {
            let (open, latest) = (&mut this.open, &mut this.latest);
            let cost = this.frames.came(buf.filled().get(before..).unwrap_or_default(), |frame| match frame.kind {
                // Trailers come as such frames as well.
                Frames::HEADERS if frame.stream > *latest => {
                    *latest = frame.stream;
                    open.insert(frame.stream);
                }
                Frames::RST_STREAM => {
                    open.remove(&frame.stream);
                }
                _ => {}
            });
            this.allowance.spend(cost);
            this.progressed();
        } else if let Some((_, timer)) = &mut this.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        } else if this.poll_parted(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        read
    }
}

impl AsyncWrite for H2Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.connection.info.control.watch(Half::Write, cx.waker()) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let written = Pin::new(&mut this.connection.wire).poll_write(cx, buf);
        if let Poll::Ready(Ok(bytes)) = written {
            this.allowance.sent(bytes);
            let open = &mut this.open;
            this.sent.came(buf.get(..bytes).unwrap_or_default(), |frame| {
                if frame.ends_stream() {
                    open.remove(&frame.stream);
                }
            });
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().connection.wire).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().connection.wire).poll_shutdown(cx)
    }
}

/// A PING on a stream, which no client may send: a connection error (RFC 9113 section 6.7).
const NO_FRAME: [u8; 9] = [0, 0, 8, 6, 0, 0, 0, 0, 1];

/// What a client may send that costs us work and asks for nothing: frames that only manage the connection, requests that
/// it takes back at once. Used up by floods (rapid reset, SETTINGS, PING, empty frames), never by what browsers and gRPC
/// clients do.
#[derive(Debug)]
struct Allowance {
    left: u64,
    refilled: Instant,
    /// Bytes sent since the last that counted: who reads a long answer tells us of it.
    sent: usize,
    told: bool,
}

impl Allowance {
    const MOST: u64 = 2_000;
    const A_SECOND: u64 = 100;
    /// The smallest answer that is worth a WINDOW_UPDATE of its own.
    const BYTES: usize = 1024;

    fn new() -> Self {
        Self { left: Self::MOST, refilled: Instant::now(), sent: 0, told: false }
    }

    fn spend(&mut self, cost: u64) {
        if cost == 0 {
            return;
        }
        let seconds = self.refilled.elapsed().as_secs();
        if seconds > 0 {
            self.refilled += Duration::from_secs(seconds);
            self.left = self.left.saturating_add(seconds.saturating_mul(Self::A_SECOND)).min(Self::MOST);
        }
        self.left = self.left.saturating_sub(cost);
    }

    fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        let earned = (self.sent / Self::BYTES) as u64;
        self.sent %= Self::BYTES;
        // What is used up stays so.
        if self.left > 0 {
            self.left = self.left.saturating_add(earned).min(Self::MOST);
        }
    }

    fn is_used_up(&self) -> bool {
        self.left == 0
    }
}

/// What the client has begun and not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaits {
    Nothing,
    Head,
    Body,
}

/// The header of a frame, as far as it matters here.
#[derive(Clone, Copy, Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Frame {
    /// The last of its sender on the stream.
    fn ends_stream(self) -> bool {
        let last = matches!(self.kind, Frames::DATA | Frames::HEADERS) && self.flags & Frames::END_STREAM != 0;
        last || self.kind == Frames::RST_STREAM
    }
}

/// Follows the frames of one direction.
#[derive(Debug, Default)]
struct Frames {
    preface_left: usize,
    /// The current frame's header so far.
    header: Vec<u8>,
    kind: u8,
    payload_left: u32,
    /// A header block was begun and has no END_HEADERS yet.
    in_block: bool,
    /// The first frame (SETTINGS) was complete.
    greeted: bool,
    /// A header block came to its end.
    requested: bool,
}

impl Frames {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const CONTINUATION: u8 = 9;
    const END_HEADERS: u8 = 4;
    const END_STREAM: u8 = 1;

    /// Takes note of bytes, and says what the frames that began among them cost. `each` is told of these.
    fn came(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) -> u64 {
        let mut cost = 0;
        while let Some((byte, rest)) = bytes.split_first() {
            if self.preface_left > 0 {
                self.preface_left -= 1;
                bytes = rest;
            } else if self.payload_left > 0 {
                let skip = usize::try_from(self.payload_left).map_or(bytes.len(), |left| left.min(bytes.len()));
                self.payload_left -= skip as u32;
                bytes = bytes.get(skip..).unwrap_or_default();
                self.greeted |= self.payload_left == 0;
            } else {
                self.header.push(*byte);
                bytes = rest;
                if let [a, b, c, kind, flags, stream @ ..] = self.header.as_slice()
                    && let (Ok(stream), a, b, c, kind, flags) = (stream.try_into(), *a, *b, *c, *kind, *flags)
                {
                    each(Frame { kind, flags, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1) });
                    self.kind = kind;
                    self.payload_left = u32::from_be_bytes([0, a, b, c]);
                    if matches!(kind, Self::HEADERS | Self::CONTINUATION) {
                        self.in_block = flags & Self::END_HEADERS == 0;
                        self.requested |= !self.in_block;
                    }
                    self.greeted |= self.payload_left == 0;
                    self.header.clear();
                    cost += self.cost(flags);
                }
            }
        }
        cost
    }

    /// Of the frame whose header is complete.
    fn cost(&self, flags: u8) -> u64 {
        match self.kind {
            // A request that is taken back was begun for nothing, perhaps up to the upstream.
            Self::RST_STREAM => 10,
            Self::DATA if self.payload_left == 0 && flags & Self::END_STREAM == 0 => 1,
            Self::DATA | Self::HEADERS => 0,
            _ => 1,
        }
    }

    /// No frame is under way.
    fn is_between(&self) -> bool {
        self.header.is_empty() && self.payload_left == 0 && self.preface_left == 0
    }

    fn awaits(&self) -> Awaits {
        let in_head = self.payload_left > 0 && matches!(self.kind, Self::HEADERS | Self::CONTINUATION);
        if !self.greeted || !self.requested || self.in_block || in_head || !self.header.is_empty() {
            Awaits::Head
        } else if self.payload_left > 0 && self.kind == Self::DATA {
            Awaits::Body
        } else {
            Awaits::Nothing
        }
    }
}

impl fmt::Debug for H2Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H2Stream").field("connection", &self.connection.info.id).finish_non_exhaustive()
    }
}

#[async_trait]
impl Shutdown for H2Stream {
    async fn shutdown(&mut self) {
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut self.connection.wire).await;
    }
}

impl UniqueID for H2Stream {
    fn id(&self) -> UniqueIDType {
        self.connection.wire.fd()
    }
}

impl Ssl for H2Stream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.connection.ssl_digest.clone()
    }

    /// Also for HTTP/2 by prior knowledge: it was recognised here.
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(ALPN::H2)
    }
}

impl GetTimingDigest for H2Stream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for H2Stream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.connection.tag.clone()
    }
}

impl GetSocketDigest for H2Stream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.connection.socket_digest.clone())
    }
}

impl Peek for H2Stream {}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let [_, a, b, c] = (payload as u32).to_be_bytes();
        let mut frame = vec![a, b, c, kind, flags, 0, 0, 0, 1];
        frame.resize(9 + payload, 0);
        frame
    }

    #[test]
    fn dos_01_a_head_is_awaited_from_its_first_byte_to_end_headers() {
        for piece in [1, 7, 1000] {
            let mut frames = Frames { preface_left: PREFACE_BYTES, ..Frames::default() };
            let mut came = |bytes: &[u8]| {
                for part in bytes.chunks(piece) {
                    frames.came(part, |_| {});
                }
                frames.awaits()
            };
            assert_eq!(came(&[]), Awaits::Head);
            assert_eq!(came(&[b'x'; PREFACE_BYTES]), Awaits::Head);
            assert_eq!(came(&frame(4, 0, 0)), Awaits::Head, "the first request has its deadline from the accept");
            assert_eq!(came(&frame(8, 0, 4)), Awaits::Head);
            assert_eq!(came(&frame(1, 4, 30)), Awaits::Nothing);
            assert_eq!(came(&frame(1, 0, 30)), Awaits::Head);
            assert_eq!(came(&frame(9, 0, 30)), Awaits::Head);
            assert_eq!(came(&frame(9, 4, 30)), Awaits::Nothing);
            assert_eq!(came(&frame(1, 4, 30)[..20]), Awaits::Head);
            assert_eq!(came(&[0; 19]), Awaits::Nothing);
            assert_eq!(came(&frame(0, 0, 30)[..20]), Awaits::Body);
            assert_eq!(came(&[0; 19]), Awaits::Nothing);
            assert_eq!(came(&[0]), Awaits::Head);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn h2_08_floods_use_the_allowance_up_and_browsers_do_not() {
        let flood = |kind: u8, flags: u8, payload: usize, count: u64| {
            let mut frames = Frames::default();
            let mut allowance = Allowance::new();
            for _ in 0..count {
                allowance.spend(frames.came(&frame(kind, flags, payload), |_| {}));
            }
            allowance
        };
        for (kind, flags, payload) in [(3, 0, 4), (4, 0, 0), (6, 0, 8), (2, 0, 5), (0, 0, 0), (9, 0, 0), (8, 0, 4)] {
            assert!(flood(kind, flags, payload, Allowance::MOST).is_used_up(), "{kind}");
        }
        assert!(!flood(1, 5, 30, 100_000).is_used_up(), "requests");
        assert!(!flood(0, 0, 100, 100_000).is_used_up(), "a body");
        assert!(!flood(3, 0, 4, 199).is_used_up(), "a page that is left");
        let mut reader = flood(8, 0, 4, Allowance::MOST - 1);
        reader.sent(64 * 1024);
        reader.spend(64);
        assert!(!reader.is_used_up(), "who reads a long answer says so");
        tokio::time::advance(Duration::from_secs(10)).await;
        reader.spend(900);
        assert!(!reader.is_used_up(), "and time passes");
    }
}
