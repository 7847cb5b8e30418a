//! A recording upstream: keeps the exact bytes of each request, answers each path by a script.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Map, json};
use tokio::sync::{mpsc, watch};

use super::text::{Pairs, header, mark};
use super::wire::{self, Answer, Conn, Request, Server};
use super::ws;

/// A running upstream. Stops when dropped.
#[derive(Debug)]
pub struct Upstream {
    server: Server,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    scripts: Mutex<HashMap<String, Script>>,
    otherwise: Mutex<Script>,
    requests: watch::Sender<Vec<Request>>,
    sockets: watch::Sender<Vec<Socket>>,
}

/// A WebSocket that was opened here.
#[derive(Clone, Debug, Default)]
pub struct Socket {
    /// The data frames that arrived.
    pub frames: Vec<ws::Frame>,
    /// The close frame that arrived.
    pub close: Option<ws::Frame>,
    /// Whether the connection is gone.
    pub over: bool,
}

/// What the upstream does with a request.
#[derive(Clone)]
pub enum Script {
    /// 200 with the request as JSON: `method`, `target`, `headers`, `body`, `token`, `connection`.
    Echo,
    /// This answer.
    Answer(Answer),
    /// Exactly these bytes; the connection stays open.
    Raw(Vec<u8>),
    /// Exactly these bytes, then FIN.
    RawThenClose(Vec<u8>),
    /// Exactly these bytes, then RST.
    RawThenReset(Vec<u8>),
    /// Exactly these bytes, then FIN in our direction only; reads on until the client ends.
    HalfClose(Vec<u8>),
    /// FIN, after the request was read.
    Close,
    /// RST, after the request was read.
    Reset,
    /// RST, after the head was read.
    ResetBeforeBody,
    /// This answer as soon as the head is there; then reads the body.
    Early(Answer),
    /// This answer as soon as the head is there; then closes without reading the body.
    EarlyThenClose(Answer),
    /// No answer until the client gives up.
    Stall,
    /// 101, then echoes data frames.
    WebSocket,
    /// 101 with a wrong `Sec-WebSocket-Accept`.
    WebSocketWrongAccept,
    /// 101 to anyone, asked or not, for this protocol.
    Upgrade(String),
    /// `text/event-stream` with this many events at once, then the end.
    Events(usize),
    /// The head at once, the body as the test feeds it.
    Fed(Fed),
    /// 200 with a body of so many bytes, one piece each time the pause is over.
    SlowBody { pieces: usize, pause: Duration },
    /// What the gate's owner lets through, then this.
    Held(Gate, Box<Self>),
    /// One after the other; the last one stays.
    Sequence(Arc<Mutex<Vec<Self>>>),
    /// 401 with `invalid_token` for every token but those that the function takes.
    Tokens(Arc<dyn Fn(&str) -> bool + Send + Sync>),
    /// Decided by the request.
    By(Arc<dyn Fn(&Request) -> Self + Send + Sync>),
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Script")
    }
}

impl Script {
    /// Status and text.
    pub fn text(status: u16, body: &str) -> Self {
        Self::Answer(Answer::new(status, "text/plain", body))
    }

    /// 401 as RFC 6750 section 3.1 says it.
    pub fn invalid_token() -> Self {
        let challenge = "Bearer error=\"invalid_token\"";
        Self::Answer(Answer::new(401, "text/plain", "no\n").with("WWW-Authenticate", challenge))
    }

    /// One after the other; the last one stays.
    pub fn sequence(scripts: impl IntoIterator<Item = Self>) -> Self {
        Self::Sequence(Arc::new(Mutex::new(scripts.into_iter().collect())))
    }

    /// Takes the tokens for which `good` holds; 401 for others.
    pub fn tokens(good: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self::Tokens(Arc::new(good))
    }

    /// Decided by the request.
    pub fn by(decide: impl Fn(&Request) -> Self + Send + Sync + 'static) -> Self {
        Self::By(Arc::new(decide))
    }
}

/// Lets requests wait at the upstream; clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    open: Arc<watch::Sender<bool>>,
    waiting: Arc<watch::Sender<usize>>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { open: Arc::new(watch::Sender::new(false)), waiting: Arc::new(watch::Sender::new(0)) }
    }
}

impl Gate {
    /// Lets all go, those to come too.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits until `n` requests in all have come to the gate.
    pub async fn wait_for(&self, n: usize) {
        let mut waiting = self.waiting.subscribe();
        within("requests at the upstream's gate", waiting.wait_for(|w| *w >= n)).await.expect("the gate lives");
    }

    async fn pass(&self) {
        self.waiting.send_modify(|n| *n += 1);
        let mut open = self.open.subscribe();
        open.wait_for(|open| *open).await.expect("the gate lives");
    }
}

/// A body that a test feeds piece by piece. See [`feed`].
#[derive(Clone, Debug)]
pub struct Fed {
    headers: Pairs,
    pieces: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Piece>>>,
}

#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    Break,
}

/// The test's end of a [`Fed`] body. Dropping it ends the body as it should end.
#[derive(Debug)]
pub struct Feed(mpsc::UnboundedSender<Piece>);

impl Feed {
    /// Sends one chunk. False when nobody reads any more.
    pub fn send(&self, bytes: impl Into<Vec<u8>>) -> bool {
        self.0.send(Piece::Bytes(bytes.into())).is_ok()
    }

    /// Cuts the connection in the middle of the body.
    pub fn break_off(self) {
        let _ = self.0.send(Piece::Break);
    }

    /// Waits until the reading side is gone.
    pub async fn closed(&self) {
        within("the end of a fed body", self.0.closed()).await;
    }
}

/// A chunked answer of this content type for one request, fed by the test.
pub fn feed(content_type: &str) -> (Feed, Script) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let headers = vec![
        ("Content-Type".to_owned(), content_type.to_owned()),
        ("Transfer-Encoding".to_owned(), "chunked".to_owned()),
    ];
    (Feed(sender), Script::Fed(Fed { headers, pieces: Arc::new(tokio::sync::Mutex::new(receiver)) }))
}

async fn within<F: Future>(what: &str, future: F) -> F::Output {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

impl Upstream {
    /// Starts on `127.0.0.1:0`. Paths without a script are echoed; an upgrade to WebSocket is taken.
    pub async fn start() -> Self {
        let inner = Arc::new(Inner {
            scripts: Mutex::default(),
            otherwise: Mutex::new(Script::Echo),
            requests: watch::Sender::new(Vec::new()),
            sockets: watch::Sender::new(Vec::new()),
        });
        let shared = Arc::clone(&inner);
        let server = Server::start(move |conn| Arc::clone(&shared).serve(conn)).await;
        Self { server, inner }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.addr)
    }

    /// Requests to `path` (without query) get this from now on.
    pub fn on(&self, path: &str, script: Script) {
        self.inner.scripts.lock().insert(path.to_owned(), script);
    }

    /// Requests to all other paths get this from now on.
    pub fn otherwise(&self, script: Script) {
        *self.inner.otherwise.lock() = script;
    }

    /// All requests so far, in the order in which they were complete (or broke off).
    pub fn requests(&self) -> Vec<Request> {
        self.inner.requests.borrow().clone()
    }

    /// The requests to one path.
    pub fn requests_to(&self, path: &str) -> Vec<Request> {
        self.inner.requests.borrow().iter().filter(|r| r.path() == path).cloned().collect()
    }

    /// The latest request.
    pub fn last(&self) -> Request {
        self.inner.requests.borrow().last().cloned().expect("a request at the upstream")
    }

    /// Waits until `n` requests in all have arrived.
    pub async fn wait_for_requests(&self, n: usize) {
        let mut seen = self.inner.requests.subscribe();
        within("requests at the upstream", seen.wait_for(|r| r.len() >= n)).await.expect("the upstream lives");
    }

    /// Every byte that arrived.
    pub fn bytes(&self) -> Vec<u8> {
        self.server.bytes()
    }

    /// Whether not a single byte arrived (since the last [`Upstream::forget`]).
    pub fn untouched(&self) -> bool {
        self.server.bytes().is_empty()
    }

    /// Forgets requests and bytes.
    pub fn forget(&self) {
        self.inner.requests.send_modify(Vec::clear);
        self.server.forget_bytes();
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> u64 {
        self.server.connections()
    }

    /// How many of them are open.
    pub fn open_connections(&self) -> usize {
        self.server.open_connections()
    }

    /// Closes all open connections: idle ones of a pool are dead afterwards.
    pub async fn drop_connections(&self) {
        self.server.drop_connections().await;
    }

    /// From now on connections are refused.
    pub async fn go_down(&self) {
        self.server.go_down().await;
    }

    /// Accepts connections again.
    pub async fn come_back(&self) {
        self.server.come_back().await;
    }

    /// The WebSockets that were opened here.
    pub fn sockets(&self) -> Vec<Socket> {
        self.inner.sockets.borrow().clone()
    }

    /// Waits until the `n`th WebSocket (from 0) fulfils a condition.
    pub async fn wait_for_socket(&self, n: usize, condition: impl Fn(&Socket) -> bool) {
        let mut seen = self.inner.sockets.subscribe();
        within("a WebSocket", seen.wait_for(|s| s.get(n).is_some_and(&condition))).await.expect("the upstream lives");
    }
}

impl Inner {
    async fn serve(self: Arc<Self>, mut conn: Conn) {
        while let Ok(Some(request)) = wire::read_request_head(&mut conn).await {
            let script = self.script_for(&request);
            if self.play(&mut conn, request, script).await.is_none() {
                return;
            }
        }
    }

    fn script_for(&self, request: &Request) -> Script {
        let script = self.scripts.lock().get(request.path()).cloned();
        let script = script.unwrap_or_else(|| self.otherwise.lock().clone());
        self.settle(script, request)
    }

    fn settle(&self, script: Script, request: &Request) -> Script {
        match script {
            Script::Sequence(rest) => {
                let next = {
                    let mut rest = rest.lock();
                    if rest.len() > 1 { rest.remove(0) } else { rest.first().cloned().unwrap_or(Script::Echo) }
                };
                self.settle(next, request)
            }
            Script::Tokens(good) => {
                if request.bearer().is_some_and(|t| good(t)) {
                    Script::Echo
                } else {
                    Script::invalid_token()
                }
            }
            Script::By(decide) => self.settle(decide(request), request),
            Script::Held(gate, then) => Script::Held(gate, Box::new(self.settle(*then, request))),
            Script::Echo if request.header("upgrade").is_some_and(|u| u.eq_ignore_ascii_case("websocket")) => {
                Script::WebSocket
            }
            other => other,
        }
    }

    /// Plays the script; `None` ends the connection.
    async fn play(&self, conn: &mut Conn, mut request: Request, script: Script) -> Option<()> {
        let method = request.method.clone();
        if let Script::ResetBeforeBody = script {
            self.note(request);
            conn.reset_soon();
            return None;
        }
        if let Script::Early(answer) | Script::EarlyThenClose(answer) = &script {
            conn.send(&answer.bytes(&method)).await.ok()?;
            if let Script::EarlyThenClose(_) = script {
                self.note(request);
                return None;
            }
        }
        let read = wire::read_request_body(conn, &mut request).await;
        self.note(request.clone());
        read.ok()?;
        if !request.complete {
            return None;
        }
        let script = match script {
            Script::Held(gate, then) => {
                gate.pass().await;
                *then
            }
            other => other,
        };
        match script {
            Script::Answer(answer) => conn.send(&answer.bytes(&method)).await.ok()?,
            Script::Raw(bytes) => conn.send(&bytes).await.ok()?,
            Script::RawThenClose(bytes) => {
                conn.send(&bytes).await.ok()?;
                return None;
            }
            Script::RawThenReset(bytes) => {
                conn.send(&bytes).await.ok()?;
                conn.reset_soon();
                return None;
            }
            Script::HalfClose(bytes) => {
                conn.send(&bytes).await.ok()?;
                conn.half_close().await.ok()?;
                conn.wait_for_end().await;
                return None;
            }
            Script::Close => return None,
            Script::Reset => {
                conn.reset_soon();
                return None;
            }
            Script::Stall => {
                conn.wait_for_end().await;
                return None;
            }
            Script::Early(_) => {}
            Script::WebSocket | Script::WebSocketWrongAccept => {
                let key = request.header("sec-websocket-key").unwrap_or_default();
                let right = matches!(script, Script::WebSocket);
                let accept = if right { ws::accept_for(key) } else { ws::accept_for("another key") };
                let answer = Answer::empty(101)
                    .with("Upgrade", "websocket")
                    .with("Connection", "Upgrade")
                    .with("Sec-WebSocket-Accept", &accept);
                conn.send(&answer.bytes(&method)).await.ok()?;
                self.echo_frames(conn).await;
                return None;
            }
            Script::Upgrade(protocol) => {
                let answer = Answer::empty(101).with("Upgrade", &protocol).with("Connection", "Upgrade");
                conn.send(&answer.bytes(&method)).await.ok()?;
                conn.wait_for_end().await;
                return None;
            }
            Script::Events(n) => {
                let body: String = (0..n).map(|i| format!("id: {i}\ndata: event {i}\n\n")).collect();
                let answer = Answer::new(200, "text/event-stream", body).with("Cache-Control", "no-cache");
                conn.send(&answer.bytes(&method)).await.ok()?;
            }
            Script::Fed(fed) => play_feed(conn, &fed).await?,
            Script::SlowBody { pieces, pause } => {
                let head = vec![("Content-Length".to_owned(), pieces.to_string())];
                conn.send(&wire::head_bytes(200, &head)).await.ok()?;
                for _ in 0..pieces {
                    tokio::time::sleep(pause).await;
                    conn.send(b"x").await.ok()?;
                }
            }
            _ => conn.send(&echo(&request).bytes(&method)).await.ok()?,
        }
        let close = header(&request.headers, "connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
        (!close).then_some(())
    }

    fn note(&self, request: Request) {
        self.requests.send_modify(|r| r.push(request));
    }

    async fn echo_frames(&self, conn: &mut Conn) {
        let mut number = 0;
        self.sockets.send_modify(|s| {
            number = s.len();
            s.push(Socket::default());
        });
        while let Ok(Some(frame)) = ws::read_frame(conn).await {
            let answer = match frame.opcode {
                ws::PING => ws::frame(ws::PONG, &frame.payload, false),
                opcode => ws::frame(opcode, &frame.payload, false),
            };
            let last = frame.opcode == ws::CLOSE;
            self.sockets.send_modify(|s| {
                if last {
                    s[number].close = Some(frame);
                } else {
                    s[number].frames.push(frame);
                }
            });
            if conn.send(&answer).await.is_err() || last {
                break;
            }
        }
        self.sockets.send_modify(|s| s[number].over = true);
    }
}

async fn play_feed(conn: &mut Conn, fed: &Fed) -> Option<()> {
    conn.send(&wire::head_bytes(200, &fed.headers)).await.ok()?;
    let mut pieces = fed.pieces.lock().await;
    loop {
        // The client's end must be noticed while nothing is to be sent.
        let piece = tokio::select! {
            piece = pieces.recv() => piece,
            () = conn.wait_for_end() => { pieces.close(); return None; }
        };
        match piece {
            Some(Piece::Bytes(bytes)) => {
                let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), &bytes, b"\r\n"].concat();
                if conn.send(&chunk).await.is_err() {
                    pieces.close();
                    return None;
                }
            }
            Some(Piece::Break) => return None,
            None => return conn.send(b"0\r\n\r\n").await.ok(),
        }
    }
}

fn echo(request: &Request) -> Answer {
    let mut headers = Map::new();
    for (name, value) in &request.headers {
        let name = name.to_ascii_lowercase();
        let joined = match headers.get(&name).and_then(|v| v.as_str()) {
            Some(before) => format!("{before}, {value}"),
            None => value.clone(),
        };
        headers.insert(name, joined.into());
    }
    let body = json!({
        "method": request.method,
        "target": request.target,
        "headers": headers,
        "body": String::from_utf8_lossy(&request.body),
        "token": request.bearer(),
        "connection": request.connection,
        "answer": mark(""),
    });
    Answer::json(200, body.to_string())
}
