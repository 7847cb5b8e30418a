//! The admin listener: `/livez`, `/readyz`, `/metrics`, `/config`, `/revoke`.
//!
//! A server of its own, of the smallest kind: it reads one request of bounded size in bounded time, answers from memory and
//! closes. So it stays up when the gateway is busy, and a probe never waits for a session, a provider or an upstream.

pub mod readiness;
pub mod revoke;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{BufMut, BytesMut};
use http::StatusCode;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::metrics;
use readiness::Readiness;
use revoke::Revoke;

/// For the whole head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// For the answer; a scrape of a large registry over a slow link fits in.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to close, once it has its answer.
const LINGER: Duration = Duration::from_secs(1);
const HEAD_BYTES: usize = 8 * 1024;
const HEAD_FIELDS: usize = 64;
/// Of the one form that is taken.
const BODY_BYTES: usize = 8 * 1024;
/// For it.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Enough for probes, several scrapers and an operator; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// After an `accept` that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the endpoints show.
#[derive(Clone)]
pub struct AdminState {
    /// The page of the metrics, its gauges read for the occasion.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    pub readiness: Arc<Readiness>,
    /// The effective configuration as TOML, secrets masked.
    pub config: Arc<dyn Fn() -> String + Send + Sync>,
    pub revoke: Arc<Revoke>,
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminState").field("readiness", &self.readiness).finish_non_exhaustive()
    }
}

/// The admin listener as a service of Pingora's server, with one thread of its own.
#[derive(Debug)]
pub struct AdminService {
    /// Taken at the start.
    listener: Option<std::net::TcpListener>,
    address: SocketAddr,
    state: AdminState,
}

impl AdminService {
    /// Takes a bound listener: a port that is taken is found before anything starts.
    ///
    /// # Errors
    /// When the socket's address cannot be read or its mode not be set.
    pub fn new(listener: std::net::TcpListener, state: AdminState) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener: Some(listener), address, state })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[async_trait]
impl Service for AdminService {
    async fn start_service(&mut self, _: Option<ListenFds>, mut shutdown: ShutdownWatch, _: usize) {
        let Some(listener) = self.listener.take() else { return };
        match TcpListener::from_std(listener) {
            Ok(listener) => {
                // Ends with the process: probes are to see the whole way down.
                tokio::select! {
                    () = accept(listener, self.state.clone()) => {}
                    _ = shutdown.wait_for(|over| *over) => {}
                }
            }
            Err(error) => tracing::error!(target: "sidegate", event = "admin_failed", kind = %error.kind()),
        }
    }

    fn name(&self) -> &'static str {
        "admin"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

async fn accept(listener: TcpListener, state: AdminState) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let state = state.clone();
                tokio::spawn(async move {
                    serve(stream, &state).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(target: "sidegate", event = "accept_failed", listener = "admin", kind = %error.kind());
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, one answer. Errors are the client's affair: it went away.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, state: &AdminState) {
    let mut buffer = BytesMut::with_capacity(1024);
    let Ok(Ok(head)) = timeout(HEAD_TIMEOUT, read_head(&mut stream, &mut buffer)).await else {
        // Gone, or too slow; a probe that says nothing (a TCP check) needs no answer.
        return;
    };
    let (answer, send_body) = match head {
        Head::Request(head) => (respond(state, &head, &mut stream, &mut buffer).await, head.method != "HEAD"),
        Head::Malformed => (Answer::empty(StatusCode::BAD_REQUEST), true),
        Head::TooLarge => (Answer::empty(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE), true),
    };
    let message = answer.encode(send_body);
    let sent = timeout(ANSWER_TIMEOUT, async {
        stream.write_all(&message).await?;
        stream.shutdown().await
    });
    if matches!(sent.await, Ok(Ok(()))) {
        // A socket closed with unread bytes (a request's body) is reset, and the client may lose the answer (RFC 9112
        // section 9.6); so what still comes is read for a moment.
        let _ = timeout(LINGER, discard(&mut stream)).await;
    }
}

async fn discard<S: AsyncRead + Unpin>(stream: &mut S) {
    let mut scrap = [0; 4096];
    while matches!(stream.read(&mut scrap).await, Ok(read) if read > 0) {}
}

/// The head of a request, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    Request(RequestHead),
    Malformed,
    TooLarge,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct RequestHead {
    method: String,
    target: String,
    authorization: Vec<String>,
    content_type: Vec<String>,
    /// None: not announced, or not as one number.
    content_length: Option<usize>,
}

impl RequestHead {
    /// Paths are compared as they come: no decoding, no dot segments, so nothing else can mean one of them.
    fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    fn read(request: &httparse::Request<'_, '_>) -> Option<Self> {
        let values = |name: &str| -> Vec<String> {
            let fields = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
            fields.map(|field| String::from_utf8_lossy(field.value).trim().to_owned()).collect()
        };
        let lengths = values("content-length");
        let content_length = match lengths.as_slice() {
            [] if values("transfer-encoding").is_empty() => Some(0),
            [length] => length.bytes().all(|byte| byte.is_ascii_digit()).then(|| length.parse().ok()).flatten(),
            _ => None,
        };
        Some(Self {
            method: request.method?.to_owned(),
            target: request.path?.to_owned(),
            authorization: values("authorization"),
            content_type: values("content-type"),
            content_length,
        })
    }
}

async fn read_head<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut) -> io::Result<Head> {
    loop {
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut fields = [httparse::EMPTY_HEADER; HEAD_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(buffer) {
            Ok(httparse::Status::Complete(length)) => {
                let head = RequestHead::read(&request).map_or(Head::Malformed, Head::Request);
                // What is left is the beginning of the body.
                let _ = buffer.split_to(length);
                return Ok(head);
            }
            Ok(httparse::Status::Partial) if buffer.len() > HEAD_BYTES => return Ok(Head::TooLarge),
            Ok(httparse::Status::Partial) => {}
            Err(httparse::Error::TooManyHeaders) => return Ok(Head::TooLarge),
            Err(_) => return Ok(Head::Malformed),
        }
    }
}

/// An answer of this listener.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    media_type: &'static str,
    extra: Option<(&'static str, &'static str)>,
    body: String,
}

impl Answer {
    const TEXT: &str = "text/plain; charset=utf-8";

    fn new(status: StatusCode, media_type: &'static str, body: impl Into<String>) -> Self {
        Self { status, media_type, extra: None, body: body.into() }
    }

    /// The status in words.
    fn empty(status: StatusCode) -> Self {
        let reason = status.canonical_reason().unwrap_or_default();
        Self::new(status, Self::TEXT, format!("{}\n", reason.to_ascii_lowercase()))
    }

    fn not_allowed(allow: &'static str) -> Self {
        Self { extra: Some(("Allow", allow)), ..Self::empty(StatusCode::METHOD_NOT_ALLOWED) }
    }

    fn encode(&self, send_body: bool) -> BytesMut {
        let head = format!(
            "HTTP/1.1 {} {}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n",
            self.status.as_u16(),
            self.status.canonical_reason().unwrap_or_default(),
        );
        // 204 has no body, and says nothing of one (RFC 9110 section 8.6).
        let has_body = self.status != StatusCode::NO_CONTENT;
        let mut message = BytesMut::with_capacity(head.len() + self.body.len() + 128);
        message.put_slice(head.as_bytes());
        if has_body {
            let content = format!("Content-Type: {}\r\nContent-Length: {}\r\n", self.media_type, self.body.len());
            message.put_slice(content.as_bytes());
        }
        if let Some((name, value)) = self.extra {
            message.put_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        message.put_slice(b"\r\n");
        if send_body && has_body {
            message.put_slice(self.body.as_bytes());
        }
        message
    }
}

async fn respond<S: AsyncRead + Unpin>(
    state: &AdminState,
    head: &RequestHead,
    stream: &mut S,
    buffer: &mut BytesMut,
) -> Answer {
    if head.path() == "/revoke" && state.revoke.is_on() {
        end_sessions(&state.revoke, head, stream, buffer).await
    } else {
        show(state, head)
    }
}

fn show(state: &AdminState, head: &RequestHead) -> Answer {
    let show: fn(&AdminState) -> Answer = match head.path() {
        "/livez" => |_| Answer::new(StatusCode::OK, Answer::TEXT, "ok\n"),
        "/readyz" => |state| {
            if state.readiness.is_ready() {
                Answer::new(StatusCode::OK, Answer::TEXT, "ready\n")
            } else {
                Answer::new(StatusCode::SERVICE_UNAVAILABLE, Answer::TEXT, "not ready\n")
            }
        },
        "/metrics" => |state| Answer::new(StatusCode::OK, metrics::MEDIA_TYPE, (state.metrics)()),
        "/config" => |state| Answer::new(StatusCode::OK, "application/toml", (state.config)()),
        _ => return Answer::empty(StatusCode::NOT_FOUND),
    };
    if head.method == "GET" || head.method == "HEAD" { show(state) } else { Answer::not_allowed("GET, HEAD") }
}

/// Who does not show the token learns nothing but that.
async fn end_sessions<S: AsyncRead + Unpin>(
    revoke: &Revoke,
    head: &RequestHead,
    stream: &mut S,
    buffer: &mut BytesMut,
) -> Answer {
    if head.method != "POST" {
        return Answer::not_allowed("POST");
    }
    if !revoke.allows(&head.authorization) {
        tracing::warn!(target: "sidegate", event = "revoke", outcome = "refused", reason = "token");
        return Answer { extra: Some(("WWW-Authenticate", "Bearer")), ..Answer::empty(StatusCode::UNAUTHORIZED) };
    }
    let form = match head.content_type.as_slice() {
        [media_type] => media_type.split(';').next().unwrap_or_default().trim(),
        _ => "",
    };
    let length = match head.content_length {
        Some(length) if length > BODY_BYTES => return Answer::empty(StatusCode::PAYLOAD_TOO_LARGE),
        Some(length) if form.eq_ignore_ascii_case("application/x-www-form-urlencoded") => length,
        _ => return Answer::empty(StatusCode::BAD_REQUEST),
    };
    let read = async {
        while buffer.len() < length {
            if stream.read_buf(buffer).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
        }
        Ok(())
    };
    if !matches!(timeout(BODY_TIMEOUT, read).await, Ok(Ok(()))) {
        return Answer::empty(StatusCode::BAD_REQUEST);
    }
    match buffer.get(..length) {
        Some(form) if revoke.carry_out(form) => Answer::empty(StatusCode::NO_CONTENT),
        _ => Answer::empty(StatusCode::BAD_REQUEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::shutdown::Phase;
    use tokio::net::TcpStream;
    use tokio::sync::watch;

    fn state(phase: &watch::Sender<Phase>) -> AdminState {
        let readiness = Readiness::new(phase.subscribe(), None);
        readiness.set_listening();
        let config = Arc::new(|| "[server]\n".to_owned());
        let metrics = Metrics::new();
        let metrics = Arc::new(move || metrics.render());
        AdminState { metrics, readiness, config, revoke: Arc::new(Revoke::new(|| None, |_| false)) }
    }

    /// The service as the server runs it; stops when the returned sender is dropped or told so.
    async fn started(state: AdminState) -> (SocketAddr, watch::Sender<bool>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut service = AdminService::new(listener, state).unwrap();
        let address = service.address();
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(async move { Service::start_service(&mut service, None, stopped, 1).await });
        (address, stop)
    }

    async fn exchange(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn call(address: SocketAddr, method: &str, path: &str) -> String {
        exchange(address, format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await
    }

    fn body(answer: &str) -> &str {
        answer.split_once("\r\n\r\n").unwrap().1
    }

    fn length(answer: &str) -> usize {
        answer.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap().parse().unwrap()
    }

    /// HLT-01, ASVS-4.1.1
    #[tokio::test]
    async fn serves_its_four_paths() {
        let phase = watch::Sender::new(Phase::Running);
        let (address, _stop) = started(state(&phase)).await;
        for (path, media_type, content) in [
            ("/livez", "text/plain; charset=utf-8", "ok\n"),
            ("/readyz", "text/plain; charset=utf-8", "ready\n"),
            ("/metrics?x=1", "text/plain; version=0.0.4; charset=utf-8", "sidegate_connections"),
            ("/config", "application/toml", "[server]\n"),
        ] {
            let answer = call(address, "GET", path).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {answer}");
            assert!(answer.contains(&format!("Content-Type: {media_type}\r\n")), "{path}: {answer}");
            assert!(body(&answer).contains(content), "{path}: {answer}");
            assert_eq!(body(&answer).len(), length(&answer));
            assert!(!answer.to_ascii_lowercase().contains("server: "), "names no product");
        }
        let head = call(address, "HEAD", "/config").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && body(&head).is_empty());
        assert_eq!(length(&head), "[server]\n".len());
    }

    /// MET-01, ASVS-6.1.3, ASVS-6.3.4, ASVS-8.4.2, ASVS-13.4.5
    #[tokio::test]
    async fn nothing_else_is_there() {
        let phase = watch::Sender::new(Phase::Running);
        let (address, _stop) = started(state(&phase)).await;
        for path in ["/", "/api/x", "/config/", "/../config", "/config/..", "/%63onfig", "//config", "/revoke", "*"] {
            assert!(call(address, "GET", path).await.starts_with("HTTP/1.1 404 "), "{path}");
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "get"] {
            let answer = call(address, method, "/config").await;
            assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("\r\nAllow: GET, HEAD\r\n"), "{answer}");
        }
        let answer = call(address, "POST", "/revoke").await;
        assert!(answer.starts_with("HTTP/1.1 404 "));
    }

    #[tokio::test]
    async fn refuses_what_is_no_request() {
        let phase = watch::Sender::new(Phase::Running);
        let (address, _stop) = started(state(&phase)).await;
        assert!(exchange(address, b"\x00\x01\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
        assert!(exchange(address, b"GET /livez HTTP/1.1\r\nBad Name: x\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
        let long = format!("GET /livez HTTP/1.1\r\nX: {}", "x".repeat(2 * HEAD_BYTES));
        assert!(exchange(address, long.as_bytes()).await.starts_with("HTTP/1.1 431 "));
        let many = format!("GET /livez HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(HEAD_FIELDS + 1));
        assert!(exchange(address, many.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    }

    #[tokio::test]
    async fn an_answer_survives_an_unread_body() {
        let phase = watch::Sender::new(Phase::Running);
        let (address, _stop) = started(state(&phase)).await;
        let request = format!("POST /livez HTTP/1.1\r\nContent-Length: 60000\r\n\r\n{}", "b".repeat(60_000));
        assert!(exchange(address, request.as_bytes()).await.starts_with("HTTP/1.1 405 "));
    }

    /// Readiness goes first, the listener last: a probe sees the whole way down.
    #[tokio::test]
    async fn alive_but_not_ready_while_it_shuts_down() {
        let phase = watch::Sender::new(Phase::Running);
        let (address, _stop) = started(state(&phase)).await;
        for gone in [Phase::Delaying, Phase::Draining] {
            phase.send_replace(gone);
            assert!(call(address, "GET", "/readyz").await.starts_with("HTTP/1.1 503 "));
            assert!(call(address, "GET", "/livez").await.starts_with("HTTP/1.1 200 "));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_head_is_cut_off() {
        let phase = watch::Sender::new(Phase::Running);
        let (mut client, server) = tokio::io::duplex(1024);
        let state = state(&phase);
        let served = tokio::spawn(async move { serve(server, &state).await });
        client.write_all(b"GET /livez HT").await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer.is_empty());
        served.await.unwrap();
    }
}
