//! HTTP/1.1 by hand: a connection that keeps what it read, messages in both directions, and a server on loopback whose
//! port can be taken down and put up again.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::text::{self, Pairs, find, latin1, unlatin1};

// -- A connection --------------------------------------------------------------------------------------------------

/// One TCP connection, either side of it.
#[derive(Debug)]
pub struct Conn {
    stream: TcpStream,
    unread: Vec<u8>,
    /// Counts from 1 in each server; 0 on the client's side.
    pub number: u64,
    log: Option<Arc<Mutex<Vec<u8>>>>,
}

impl Conn {
    /// Connects to `addr`.
    pub async fn dial(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, unread: Vec::new(), number: 0, log: None })
    }

    /// Reads once; 0 at the end.
    pub async fn fill(&mut self) -> io::Result<usize> {
        let mut piece = vec![0; 64 * 1024];
        let n = self.stream.read(&mut piece).await?;
        if let Some(log) = &self.log {
            log.lock().extend_from_slice(&piece[..n]);
        }
        self.unread.extend_from_slice(&piece[..n]);
        Ok(n)
    }

    /// Everything up to and with `marker`; `None` when the peer ended before it.
    pub async fn take_until(&mut self, marker: &[u8]) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = find(&self.unread, marker) {
                return Ok(Some(self.unread.drain(..at + marker.len()).collect()));
            }
            if self.fill().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// `n` bytes, or fewer when the peer ended before.
    pub async fn take(&mut self, n: usize) -> io::Result<Vec<u8>> {
        while self.unread.len() < n {
            if self.fill().await? == 0 {
                break;
            }
        }
        let n = n.min(self.unread.len());
        Ok(self.unread.drain(..n).collect())
    }

    /// Whatever is there, waiting for at least one byte; empty at the end.
    pub async fn take_some(&mut self) -> io::Result<Vec<u8>> {
        if self.unread.is_empty() {
            self.fill().await?;
        }
        Ok(std::mem::take(&mut self.unread))
    }

    /// All until the peer ends. A reset counts as an end.
    pub async fn take_to_end(&mut self) -> Vec<u8> {
        while matches!(self.fill().await, Ok(n) if n > 0) {}
        std::mem::take(&mut self.unread)
    }

    /// Whether the peer has ended while nothing was asked of it.
    pub async fn is_over(&mut self) -> bool {
        let looked = tokio::time::timeout(std::time::Duration::ZERO, self.fill()).await;
        matches!(looked, Ok(Ok(0) | Err(_)))
    }

    /// Sends all of it.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Ends our direction; the other stays open.
    pub async fn half_close(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// When it is dropped, the connection ends with RST instead of FIN.
    pub fn reset_soon(&self) {
        // An error here means that the peer was faster; the connection is gone either way.
        let _ = self.stream.set_zero_linger();
    }

    /// Waits for the peer to end, throwing away what it still sends.
    pub async fn wait_for_end(&mut self) {
        self.take_to_end().await;
    }
}

// -- Messages ------------------------------------------------------------------------------------------------------

/// A request as it came over the wire.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub version: String,
    pub headers: Pairs,
    /// The content, without chunk framing.
    pub body: Vec<u8>,
    pub trailers: Pairs,
    /// The exact bytes of the head, the empty line with it.
    pub head_bytes: Vec<u8>,
    /// The exact bytes after the head, chunk framing with it.
    pub body_bytes: Vec<u8>,
    /// False when the client ended in the middle of the body.
    pub complete: bool,
    /// Which connection of the server brought it.
    pub connection: u64,
}

impl Request {
    /// The exact bytes.
    pub fn raw(&self) -> Vec<u8> {
        [self.head_bytes.as_slice(), &self.body_bytes].concat()
    }

    /// The target up to the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The raw query.
    pub fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, q)| q)
    }

    /// The pairs of the query.
    pub fn query_pairs(&self) -> Pairs {
        text::unform(self.query().as_bytes())
    }

    /// The pairs of a form body.
    pub fn form(&self) -> Pairs {
        text::unform(&self.body)
    }

    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        text::header(&self.headers, name)
    }

    /// All headers of that name.
    pub fn header_all(&self, name: &str) -> Vec<&str> {
        text::header_all(&self.headers, name)
    }

    /// The token of the only `Authorization: Bearer` header.
    pub fn bearer(&self) -> Option<&str> {
        match self.header_all("authorization").as_slice() {
            [one] => one.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, t)| t),
            _ => None,
        }
    }
}

/// An answer as it came over the wire.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub reason: String,
    pub headers: Pairs,
    pub body: Vec<u8>,
    pub trailers: Pairs,
    /// Status codes of the 1xx answers before it.
    pub informational: Vec<u16>,
    pub head_bytes: Vec<u8>,
    /// False when the server ended in the middle of the body.
    pub complete: bool,
}

fn split_head(head: &[u8]) -> (String, Pairs) {
    let text = latin1(head);
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default().to_owned();
    let pair = |line: &str| {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        (name.to_owned(), value.trim_matches([' ', '\t']).to_owned())
    };
    (first, lines.filter(|l| !l.is_empty()).map(pair).collect())
}

#[derive(Default)]
struct Body {
    content: Vec<u8>,
    bytes: Vec<u8>,
    trailers: Pairs,
    complete: bool,
}

async fn chunked(conn: &mut Conn) -> io::Result<Body> {
    let mut body = Body::default();
    loop {
        let Some(line) = conn.take_until(b"\r\n").await? else { return Ok(body) };
        body.bytes.extend_from_slice(&line);
        let digits = latin1(&line);
        let digits = digits.trim_end().split(';').next().unwrap_or_default().trim();
        let Ok(size) = usize::from_str_radix(digits, 16) else { return Ok(body) };
        if size == 0 {
            break;
        }
        let piece = conn.take(size + 2).await?;
        body.bytes.extend_from_slice(&piece);
        body.content.extend_from_slice(&piece[..size.min(piece.len())]);
        if piece.len() < size + 2 {
            return Ok(body);
        }
    }
    loop {
        let Some(line) = conn.take_until(b"\r\n").await? else { return Ok(body) };
        body.bytes.extend_from_slice(&line);
        if line == b"\r\n" {
            body.complete = true;
            return Ok(body);
        }
        body.trailers.extend(split_head(&[b"\r\n".as_slice(), &line].concat()).1);
    }
}

fn is_chunked(headers: &Pairs) -> bool {
    text::header(headers, "transfer-encoding").is_some_and(|v| v.to_ascii_lowercase().trim_end().ends_with("chunked"))
}

fn length(headers: &Pairs) -> Option<usize> {
    text::header(headers, "content-length").and_then(|v| v.trim().parse().ok())
}

/// The head of the next request; its body is still unread. `None` when the client ended.
pub async fn read_request_head(conn: &mut Conn) -> io::Result<Option<Request>> {
    let Some(head) = conn.take_until(b"\r\n\r\n").await? else { return Ok(None) };
    let (first, headers) = split_head(&head);
    let mut words = first.split(' ');
    let mut word = || words.next().unwrap_or_default().to_owned();
    let (method, target, version) = (word(), word(), word());
    let connection = conn.number;
    Ok(Some(Request { method, target, version, headers, head_bytes: head, connection, ..Request::default() }))
}

/// Reads the body into `request`, after `100 Continue` where that was asked for.
pub async fn read_request_body(conn: &mut Conn, request: &mut Request) -> io::Result<()> {
    let expects = request.header("expect").is_some_and(|v| v.eq_ignore_ascii_case("100-continue"));
    if expects && conn.unread.is_empty() {
        conn.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let body = if is_chunked(&request.headers) {
        chunked(conn).await?
    } else {
        let n = length(&request.headers).unwrap_or(0);
        let content = conn.take(n).await?;
        Body { complete: content.len() == n, bytes: content.clone(), content, ..Body::default() }
    };
    (request.body, request.body_bytes, request.trailers) = (body.content, body.bytes, body.trailers);
    request.complete = body.complete;
    Ok(())
}

/// The head of the next final answer, 1xx (but 101) read over. `None` when the server ended without one.
pub async fn read_reply_head(conn: &mut Conn) -> io::Result<Option<Reply>> {
    let mut informational = Vec::new();
    loop {
        let Some(head) = conn.take_until(b"\r\n\r\n").await? else { return Ok(None) };
        let (first, headers) = split_head(&head);
        let mut words = first.splitn(3, ' ').skip(1);
        let status = words.next().and_then(|w| w.parse().ok()).unwrap_or(0);
        let reason = words.next().unwrap_or_default().to_owned();
        if (100..200).contains(&status) && status != 101 {
            informational.push(status);
            continue;
        }
        return Ok(Some(Reply { status, reason, headers, informational, head_bytes: head, ..Reply::default() }));
    }
}

/// Reads the body that belongs to the answer's head.
pub async fn read_reply_body(conn: &mut Conn, method: &str, reply: &mut Reply) -> io::Result<()> {
    if method == "HEAD" || reply.status == 101 || reply.status == 204 || reply.status == 304 {
        reply.complete = true;
    } else if is_chunked(&reply.headers) {
        let body = chunked(conn).await?;
        (reply.body, reply.trailers, reply.complete) = (body.content, body.trailers, body.complete);
    } else if let Some(n) = length(&reply.headers) {
        reply.body = conn.take(n).await.unwrap_or_default();
        reply.complete = reply.body.len() == n;
    } else {
        reply.body = conn.take_to_end().await;
        reply.complete = true;
    }
    Ok(())
}

/// The next final answer, whole.
pub async fn read_reply(conn: &mut Conn, method: &str) -> io::Result<Option<Reply>> {
    let Some(mut reply) = read_reply_head(conn).await? else { return Ok(None) };
    read_reply_body(conn, method, &mut reply).await?;
    Ok(Some(reply))
}

/// The bytes of a request; `Content-Length` is added when there is a body and no length yet.
pub fn request_bytes(method: &str, target: &str, headers: &[(String, String)], body: Option<&[u8]>) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let framed = text::header(headers, "content-length").or_else(|| text::header(headers, "transfer-encoding"));
    if let (Some(body), None) = (body, framed) {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut bytes = unlatin1(&head);
    bytes.extend_from_slice(body.unwrap_or_default());
    bytes
}

/// The bytes of an answer's head.
pub fn head_bytes(status: u16, headers: &[(String, String)]) -> Vec<u8> {
    let reason = http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Unknown");
    let mut head = format!("HTTP/1.1 {status} {reason}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    unlatin1(&head)
}

/// An answer that a double gives.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Pairs,
    pub body: Vec<u8>,
}

impl Answer {
    /// Status, content type, body.
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("Content-Type".to_owned(), content_type.to_owned())];
        Self { status, headers, body: body.into() }
    }

    /// Without a body.
    pub fn empty(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// JSON.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::new(status, "application/json", body)
    }

    /// With one header more.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Its bytes as the answer to `method`; the length is added where none is given.
    pub fn bytes(&self, method: &str) -> Vec<u8> {
        let mut headers = self.headers.clone();
        let framed = text::header(&headers, "content-length").or_else(|| text::header(&headers, "transfer-encoding"));
        if framed.is_none() && self.status >= 200 && self.status != 204 && self.status != 304 {
            headers.push(("Content-Length".to_owned(), self.body.len().to_string()));
        }
        let mut bytes = head_bytes(self.status, &headers);
        if method != "HEAD" {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

// -- The server ----------------------------------------------------------------------------------------------------

type Handler = dyn Fn(Conn) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

/// A listener on a free loopback port that hands each connection to a function.
pub struct Server {
    /// Where it listens.
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    state: Mutex<Option<State>>,
}

struct Shared {
    handler: Box<Handler>,
    accepted: AtomicU64,
    open: AtomicUsize,
    tasks: Mutex<JoinSet<()>>,
    log: Arc<Mutex<Vec<u8>>>,
}

enum State {
    Listening(JoinHandle<()>),
    /// Bound but not listening: the port stays ours, and every connection to it is refused.
    Refusing(TcpSocket),
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("addr", &self.addr).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens on `127.0.0.1:0`.
    pub async fn start<F, T>(handler: F) -> Self
    where
        F: Fn(Conn) -> T + Send + Sync + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let shared = Arc::new(Shared {
            handler: Box::new(move |conn| Box::pin(handler(conn))),
            accepted: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            tasks: Mutex::new(JoinSet::new()),
            log: Arc::default(),
        });
        let listener = bound((Ipv4Addr::LOCALHOST, 0).into()).listen(1024).expect("a free port");
        let addr = listener.local_addr().expect("a bound address");
        let task = tokio::spawn(Arc::clone(&shared).accept(listener));
        Self { addr, shared, state: Mutex::new(Some(State::Listening(task))) }
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many of them are still open.
    pub fn open_connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Every byte that was read from any connection, in the order of reading.
    pub fn bytes(&self) -> Vec<u8> {
        self.shared.log.lock().clone()
    }

    /// Forgets the bytes read so far.
    pub fn forget_bytes(&self) {
        self.shared.log.lock().clear();
    }

    /// Closes all open connections; new ones are still accepted.
    pub async fn drop_connections(&self) {
        let mut tasks = std::mem::take(&mut *self.shared.tasks.lock());
        tasks.shutdown().await;
    }

    /// From now on connections are refused, and the open ones are closed.
    pub async fn go_down(&self) {
        let state = self.state.lock().take();
        let state = match state {
            Some(State::Listening(task)) => {
                // Before the listener goes, or a connection of somebody else could be given its port.
                let socket = bound(self.addr);
                task.abort();
                let _ = task.await;
                State::Refusing(socket)
            }
            Some(other) => other,
            None => return,
        };
        *self.state.lock() = Some(state);
        self.drop_connections().await;
    }

    /// Accepts connections again, on the same port.
    pub async fn come_back(&self) {
        let mut state = self.state.lock();
        *state = match state.take() {
            Some(State::Refusing(socket)) => {
                let listener = socket.listen(1024).expect("our own port");
                Some(State::Listening(tokio::spawn(Arc::clone(&self.shared).accept(listener))))
            }
            other => other,
        };
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(State::Listening(task)) = self.state.lock().take() {
            task.abort();
        }
        self.shared.tasks.lock().abort_all();
    }
}

/// Not listening yet. Another of ours may have the same port.
fn bound(addr: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("SO_REUSEADDR");
    socket.set_reuseport(true).expect("SO_REUSEPORT");
    socket.bind(addr).expect("a free port, or our own");
    socket
}

struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shared {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            let number = self.accepted.fetch_add(1, Ordering::SeqCst) + 1;
            self.open.fetch_add(1, Ordering::SeqCst);
            let open = Open(Arc::clone(&self));
            let conn = Conn { stream, unread: Vec::new(), number, log: Some(Arc::clone(&self.log)) };
            let serving = (self.handler)(conn);
            let mut tasks = self.tasks.lock();
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                let _open = open;
                serving.await;
            });
        }
    }
}
