//! The way in over real sockets: what a client sees of the accept loop, and what gets past it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use pingora::apps::HttpPersistentSettings;
use pingora::apps::{HttpServerApp, ReusedHttpStream};
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::{ProxyHttp, Session, http_proxy};
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use sidegate::net::{
    AcceptService, ConnectionInfo, Connections, Entrance, Guard, Kind, ListenAddress, Observer, Refusal, Refusals,
    Settings, Tls, bind, load_server_config,
};

/// Long enough for anything that should happen; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Says what it got: `METHOD PATH BODY`. Some paths do something else.
#[derive(Default)]
struct Echo {
    served: AtomicUsize,
    seen: Mutex<Vec<Arc<ConnectionInfo>>>,
    entered: Notify,
    go: Notify,
    aborted: Notify,
}

async fn answer(session: &mut ServerSession, status: u16, body: String) -> pingora::Result<()> {
    let mut head = ResponseHeader::build(status, None)?;
    head.insert_header("content-length", body.len())?;
    session.write_response_header(Box::new(head)).await?;
    session.write_response_body(body.into(), true).await
}

#[async_trait]
impl HttpServerApp for Echo {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        assert!(session.read_request().await.ok()?);
        if *shutdown.borrow() {
            session.set_keepalive(None);
        }
        self.served.fetch_add(1, Ordering::SeqCst);
        let info = ConnectionInfo::of(&session)?.clone();
        self.seen.lock().push(info);
        let path = session.req_header().uri.path().to_owned();
        let method = session.req_header().method.to_string();
        match path.as_str() {
            "/panic" => panic!("as asked"),
            "/wait" => {
                self.entered.notify_one();
                self.go.notified().await;
            }
            "/abort" => {
                self.entered.notify_one();
                session.read_body_or_idle(true).await.unwrap_err();
                self.aborted.notify_one();
                return None;
            }
            "/tunnel" => {
                let mut head = ResponseHeader::build(101, None).ok()?;
                head.insert_header("upgrade", "websocket").ok()?;
                head.insert_header("connection", "upgrade").ok()?;
                session.write_response_header(Box::new(head)).await.ok()?;
                while let Ok(Some(bytes)) = session.read_request_body().await {
                    session.write_response_body(bytes, false).await.ok()?;
                }
                return None;
            }
            _ => {}
        }
        let mut body = Vec::new();
        loop {
            match session.read_request_body().await {
                Ok(Some(bytes)) => body.extend_from_slice(&bytes),
                Ok(None) => break,
                Err(_) => {
                    let fault = Guard::of(&session)?.fault()?;
                    answer(&mut session, fault.code.status().as_u16(), fault.code.as_str().into()).await.ok()?;
                    return None;
                }
            }
        }
        let text = format!("{method} {path} {}", String::from_utf8_lossy(&body));
        answer(&mut session, 200, text).await.ok()?;
        let settings = HttpPersistentSettings::for_session(&session);
        let stream = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(stream, settings))
    }
}

/// Answers refusals with their code, and keeps them.
#[derive(Default)]
struct Plain(Mutex<Vec<Refusal>>);

impl Refusals for Plain {
    fn refuse(&self, refusal: &Refusal, peer: IpAddr, _received: &[u8]) -> Bytes {
        assert!(peer.is_loopback());
        self.0.lock().push(*refusal);
        let (status, code) = (refusal.code.status().as_u16(), refusal.code.as_str());
        let length = code.len();
        format!("HTTP/1.1 {status} Refused\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{code}").into()
    }
}

#[derive(Default)]
struct Gauges {
    clients: AtomicUsize,
    locals: AtomicUsize,
    tunnels: AtomicUsize,
    handshakes_failed: AtomicUsize,
}

impl Gauges {
    fn of(&self, kind: Kind) -> &AtomicUsize {
        match kind {
            Kind::Client => &self.clients,
            Kind::Local => &self.locals,
            Kind::Tunnel => &self.tunnels,
        }
    }
}

impl Observer for Gauges {
    fn opened(&self, kind: Kind) {
        self.of(kind).fetch_add(1, Ordering::SeqCst);
    }

    fn closed(&self, kind: Kind) {
        self.of(kind).fetch_sub(1, Ordering::SeqCst);
    }

    fn handshake_failed(&self) {
        self.handshakes_failed.fetch_add(1, Ordering::SeqCst);
    }
}

/// A running accept service.
struct Rig<A = Echo> {
    app: Arc<A>,
    address: SocketAddr,
    refusals: Arc<Plain>,
    gauges: Arc<Gauges>,
    connections: Connections,
    settings: Arc<ArcSwap<Settings>>,
    drain: watch::Sender<bool>,
    running: JoinHandle<()>,
    _pingora: watch::Sender<bool>,
}

impl Rig {
    fn new() -> Self {
        Self::with(Settings::default(), None)
    }

    fn with(settings: Settings, tls: Option<Tls>) -> Self {
        Self::serving(Arc::new(Echo::default()), settings, tls)
    }
}

impl<A: HttpServerApp + Send + Sync + 'static> Rig<A> {
    fn serving(app: Arc<A>, settings: Settings, tls: Option<Tls>) -> Self {
        Self::behind(&[], app, settings, tls)
    }

    /// `proxies`: who sends PROXY headers.
    fn behind(proxies: &[&str], app: Arc<A>, settings: Settings, tls: Option<Tls>) -> Self {
        let listeners = bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
        let ListenAddress::Tcp(address) = *listeners[0].address() else { unreachable!() };
        let (drain, draining) = watch::channel(false);
        let (pingora, shutdown) = watch::channel(false);
        let gauges = Arc::new(Gauges::default());
        let refusals = Arc::new(Plain::default());
        let entrance = Entrance {
            settings: Arc::new(ArcSwap::from_pointee(settings)),
            tls,
            h2c: Arc::new(AtomicBool::new(true)),
            proxy_protocol: Arc::new(ArcSwap::from_pointee(proxies.iter().map(|net| net.parse().unwrap()).collect())),
            refusals: refusals.clone(),
            connections: Connections::new(gauges.clone()),
            draining,
        };
        let (connections, settings) = (entrance.connections.clone(), entrance.settings.clone());
        let mut service = AcceptService::new(listeners, app.clone(), entrance);
        let running = tokio::spawn(async move { service.run(shutdown).await });
        Self { app, address, refusals, gauges, connections, settings, drain, running, _pingora: pingora }
    }

    async fn connect(&self) -> Client<TcpStream> {
        Client::new(TcpStream::connect(self.address).await.unwrap())
    }

    async fn connect_tls(&self, alpn: &[u8]) -> Client<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        Client::new(connector(alpn).connect("localhost".try_into().unwrap(), stream).await.unwrap())
    }

    /// All that comes back for these bytes, until the connection ends.
    async fn exchange(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut client = self.connect().await;
        client.send(bytes).await;
        client.rest().await
    }
}

struct Client<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    async fn more(&mut self) -> usize {
        let mut piece = [0; 4096];
        let read = timeout(PATIENCE, self.stream.read(&mut piece)).await.expect("nothing came");
        let read = match read {
            Ok(read) => read,
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof) => 0,
            Err(error) => panic!("{error}"),
        };
        self.buffer.extend_from_slice(&piece[..read]);
        read
    }

    /// Everything until the end of the connection.
    async fn rest(&mut self) -> String {
        while self.more().await > 0 {}
        String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned()
    }

    async fn until(&mut self, bytes: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.buffer.windows(bytes.len()).position(|window| window == bytes) {
                let rest = self.buffer.split_off(at + bytes.len());
                return std::mem::replace(&mut self.buffer, rest);
            }
            assert!(self.more().await > 0, "ended before {:?}: {:?}", bytes.escape_ascii().to_string(), self.buffer);
        }
    }

    /// Status, whether it says close, body.
    async fn answer(&mut self) -> (u16, bool, String) {
        let head = String::from_utf8(self.until(b"\r\n\r\n").await).unwrap().to_lowercase();
        let length: usize =
            head.split("content-length: ").nth(1).map_or(0, |l| l.lines().next().unwrap().parse().unwrap());
        while self.buffer.len() < length {
            assert!(self.more().await > 0, "ended within a body");
        }
        let rest = self.buffer.split_off(length);
        let body = std::mem::replace(&mut self.buffer, rest);
        (head[9..12].parse().unwrap(), head.contains("connection: close"), String::from_utf8(body).unwrap())
    }

    async fn get(&mut self, path: &str) -> (u16, bool, String) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        self.answer().await
    }
}

fn ok(text: &str) -> (u16, bool, String) {
    (200, false, text.into())
}

#[tokio::test]
async fn http_18_pipelined_requests_are_answered_in_order() {
    let rig = Rig::new();
    let mut client = rig.connect().await;
    client
        .send(
            b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n\
              POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
              POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\ndef\r\n2\r\ngh\r\n0\r\nX: y\r\n\r\n\
              GET http://a/4 HTTP/1.1\r\nHost: a\r\n\r\n",
        )
        .await;
    for expected in ["GET /1 ", "POST /2 abc", "POST /3 defgh", "GET /4 "] {
        assert_eq!(client.answer().await, ok(expected));
    }
    assert_eq!(client.get("/5").await, ok("GET /5 "));
    assert_eq!(rig.app.seen.lock().iter().map(|info| info.id).collect::<Vec<_>>().len(), 5);
    assert!(rig.app.seen.lock().windows(2).all(|pair| pair[0].id == pair[1].id), "one connection");
}

#[tokio::test]
async fn a_body_may_come_in_any_pieces() {
    let rig = Rig::new();
    let mut client = rig.connect().await;
    for byte in b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n" {
        client.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.answer().await, ok("POST / abc"));
    let large = "x".repeat(300_000);
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n{large}")).await;
    assert_eq!(client.answer().await, ok(&format!("POST / {large}")));
    let chunk = format!("{:x}\r\n{large}\r\n", large.len());
    client
        .send(format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n"))
        .await;
    assert_eq!(client.answer().await, ok(&format!("POST / {large}{large}")));
}

/// ASVS-4.2.1.
#[tokio::test]
async fn http_01_to_17_a_refusal_is_answered_and_the_connection_closed() {
    let rig = Rig::new();
    for (request, status) in [
        ("GET / HTTP/1.1\n", "400 "),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n",
            "400 ",
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", "400 "),
        ("GET / HTTP/3.0\r\n", "505 "),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", "405 "),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", "417 "),
        ("\u{16}\u{3}\u{1}", "400 "),
    ] {
        let answer = rig.exchange(request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{request:?}: {answer}");
    }
    assert!(rig.exchange(format!("GET /{} HTTP/1.1\r\n", "a".repeat(20_000))).await.starts_with("HTTP/1.1 414 "));
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(400_000));
    assert!(rig.exchange(large).await.starts_with("HTTP/1.1 431 "));
    assert_eq!(rig.app.served.load(Ordering::SeqCst), 0);
    assert_eq!(rig.refusals.0.lock().len(), 9);
}

#[tokio::test]
async fn http_06_a_body_that_goes_wrong_later_ends_the_request() {
    let rig = Rig::new();
    let mut client = rig.connect().await;
    client.send("POST /wait HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    rig.app.entered.notified().await;
    client.send("3 \r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.app.go.notify_one();
    let (status, close, body) = client.answer().await;
    assert_eq!((status, close, body.as_str()), (400, true, "bad_request"));
    assert_eq!(client.rest().await, "");
    assert_eq!(rig.app.served.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn dos_01_a_dripped_head_is_cut_off() {
    let rig = Rig::with(Settings { head_timeout: Duration::from_millis(200), ..Settings::default() }, None);
    let mut client = rig.connect().await;
    for byte in b"GET / HTTP/1.1\r\nHost: a\r\n".iter().cycle() {
        // Writing fails once the other side is gone; the answer is still there to read.
        if client.stream.write_all(&[*byte]).await.is_err() || client.stream.try_read(&mut []).is_err() {
            break;
        }
        if timeout(Duration::from_millis(20), client.more()).await.is_ok() {
            break;
        }
    }
    assert!(client.rest().await.starts_with("HTTP/1.1 408 "));
    assert_eq!(rig.exchange("").await, "", "a client that says nothing gets no answer");
}

#[tokio::test]
async fn dos_07_an_idle_connection_is_closed() {
    let rig = Rig::with(Settings { keepalive: Duration::from_millis(100), ..Settings::default() }, None);
    let mut client = rig.connect().await;
    assert_eq!(client.get("/").await, ok("GET / "));
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn dos_02_a_stalled_body_is_cut_off() {
    let rig = Rig::with(Settings { body_idle: Duration::from_millis(100), ..Settings::default() }, None);
    let mut client = rig.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab").await;
    assert_eq!(client.answer().await, (408, true, "request_timeout".into()));
    assert_eq!(client.rest().await, "");
}

/// ASVS-15.4.4.
#[tokio::test]
async fn dos_07_connections_above_the_limit_wait_their_turn() {
    let rig = Rig::with(Settings { connections: 1, ..Settings::default() }, None);
    let mut first = rig.connect().await;
    assert_eq!(first.get("/1").await, ok("GET /1 "));
    let mut second = rig.connect().await;
    second.send("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(first.get("/3").await, ok("GET /3 "));
    assert_eq!(rig.app.served.load(Ordering::SeqCst), 2, "the second still waits");
    drop(first);
    assert_eq!(second.answer().await, ok("GET /2 "));
    assert_eq!(rig.gauges.clients.load(Ordering::SeqCst), 1);
}

/// Requests that come at once begin in groups; none of them waits for another's answer.
#[tokio::test]
async fn hundreds_of_requests_are_under_way_at_once() {
    let rig = Rig::new();
    let mut clients = Vec::new();
    for _ in 0..300 {
        let mut client = rig.connect().await;
        client.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await;
        clients.push(client);
    }
    let all_began = async {
        while rig.app.served.load(Ordering::SeqCst) < clients.len() {
            rig.app.entered.notified().await;
        }
    };
    timeout(PATIENCE, all_began).await.expect("all have begun, and none was answered");
    rig.app.go.notify_waiters();
    for client in &mut clients {
        assert_eq!(client.answer().await, ok("GET /wait "));
    }
}

#[tokio::test]
async fn settings_reach_connections_that_are_open() {
    let rig = Rig::new();
    let mut client = rig.connect().await;
    assert_eq!(client.get("/12345678901").await.0, 200);
    rig.settings.store(Arc::new(Settings { uri_bytes: 10, ..Settings::default() }));
    assert_eq!(client.get("/123456789").await.0, 200);
    assert_eq!(client.get("/1234567890").await.0, 414);
}

#[tokio::test]
async fn a_half_closed_client_gets_its_answer() {
    let rig = Rig::new();
    let mut client = rig.connect().await;
    client.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.stream.shutdown().await.unwrap();
    rig.app.entered.notified().await;
    rig.app.go.notify_one();
    assert_eq!(client.answer().await.2, "GET /wait ");
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn a_reset_is_noticed_while_the_answer_is_awaited() {
    let rig = Rig::new();
    let mut client = rig.connect().await;
    client.send("GET /abort HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.app.entered.notified().await;
    socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    timeout(PATIENCE, rig.app.aborted.notified()).await.unwrap();
}

const UPGRADE: &str = "HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[tokio::test]
async fn a_tunnel_passes_bytes_and_is_closed_from_outside() {
    let settings = Settings {
        keepalive: Duration::from_millis(100),
        body_idle: Duration::from_millis(100),
        head_timeout: Duration::from_millis(300),
        ..Settings::default()
    };
    let rig = Rig::with(settings, None);
    let mut client = rig.connect().await;
    // The frame that comes with the handshake is held back until there is a tunnel.
    client.send([format!("GET /tunnel {UPGRADE}").as_bytes(), &[0x81, 2, b'h', b'i']].concat()).await;
    assert!(client.until(b"\r\n\r\n").await.starts_with(b"HTTP/1.1 101 "));
    assert_eq!(client.until(b"hi").await, [0x81, 2, b'h', b'i']);
    assert_eq!(rig.gauges.tunnels.load(Ordering::SeqCst), 1);
    // None of the timeouts above concerns it.
    timeout(Duration::from_millis(500), client.more()).await.unwrap_err();
    client.send([0x81, 1, b'x']).await;
    assert_eq!(client.until(b"x").await, [0x81, 1, b'x']);
    rig.connections.close_all();
    assert_eq!(client.until(&[0x03, 0xe9]).await, [0x88, 2, 0x03, 0xe9]);
    assert_eq!(client.rest().await, "");
    timeout(PATIENCE, rig.connections.drained()).await.unwrap();
    assert_eq!(rig.gauges.tunnels.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn ws_03_a_101_without_an_upgrade_ends_the_connection() {
    let rig = Rig::new();
    assert_eq!(rig.exchange("GET /tunnel HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n").await, "");
}

#[tokio::test]
async fn ws_02_bytes_sent_in_hope_of_a_tunnel_are_not_a_request() {
    let rig = Rig::new();
    let answer = rig.exchange(format!("GET /no {UPGRADE}GET /canary HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    assert!(answer.contains("GET /no ") && !answer.contains("canary"), "{answer}");
    assert_eq!(rig.app.served.load(Ordering::SeqCst), 1);
}

/// DOS-19, ASVS-16.5.4: a panic is one client's trouble.
#[tokio::test]
async fn pitfall_17_a_panic_is_a_500_and_the_next_client_is_served() {
    let rig = Rig::new();
    assert!(rig.exchange("GET /panic HTTP/1.1\r\nHost: a\r\n\r\n").await.starts_with("HTTP/1.1 500 "));
    assert_eq!(rig.connect().await.get("/").await, ok("GET / "));
}

#[tokio::test]
async fn dos_25_a_drain_finishes_requests_and_ends_idle_connections() {
    let rig = Rig::new();
    let mut idle = rig.connect().await;
    assert_eq!(idle.get("/").await, ok("GET / "));
    let mut busy = rig.connect().await;
    busy.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.app.entered.notified().await;
    let (mut half, mut preface) = (rig.connect().await, rig.connect().await);
    half.send("GET / HTTP/1.1\r\nHo").await;
    preface.send("PRI * HTT").await;
    rig.drain.send_replace(true);
    assert_eq!(idle.rest().await, "");
    // What has begun is waited for a moment, not for as long as it may take otherwise.
    for mut slow in [half, preface] {
        let end = slow.rest().await;
        assert!(end.is_empty() || end.starts_with("HTTP/1.1 408 "), "{end}");
    }
    rig.app.go.notify_one();
    assert_eq!(busy.answer().await.2, "GET /wait ");
    assert_eq!(busy.rest().await, "");
    timeout(PATIENCE, rig.running).await.unwrap().unwrap();
    assert_eq!(rig.gauges.clients.load(Ordering::SeqCst), 0);
    TcpStream::connect(rig.address).await.unwrap_err();
}

fn tls() -> Tls {
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name);
    Tls::new(load_server_config(&fixture("localhost.pem"), &fixture("localhost.key"), None, true).unwrap())
}

fn connector(alpn: &[u8]) -> tokio_rustls::TlsConnector {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(include_bytes!("fixtures/tls/localhost.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config).into()
}

#[tokio::test]
async fn tls_carries_requests_and_names_the_host() {
    let rig = Rig::with(Settings::default(), Some(tls()));
    let mut client = rig.connect_tls(b"http/1.1").await;
    assert_eq!(client.stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(client.get("/1").await, ok("GET /1 "));
    client.send("POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").await;
    assert_eq!(client.answer().await, ok("POST /2 abc"));
    let info = rig.app.seen.lock()[0].clone();
    assert!(info.tls);
    assert_eq!(info.server_name.as_deref(), Some("localhost"));
    assert_eq!(info.peer, Some(client.stream.get_ref().0.local_addr().unwrap()));
}

/// DOS-23: nobody holds a connection by not shaking hands.
#[tokio::test]
async fn pitfall_30_a_handshake_has_a_deadline() {
    let settings = Settings { head_timeout: Duration::from_millis(200), ..Settings::default() };
    let rig = Rig::with(settings, Some(tls()));
    let mut silent = rig.connect().await;
    assert_eq!(silent.rest().await, "");
    let mut plain = rig.connect().await;
    plain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(!plain.rest().await.contains("HTTP/1.1"));
    assert_eq!(rig.app.served.load(Ordering::SeqCst), 0);
    timeout(PATIENCE, rig.connections.drained()).await.unwrap();
    assert_eq!(rig.gauges.handshakes_failed.load(Ordering::SeqCst), 2);
}

/// The preface and empty settings.
fn http2_greeting() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0, 0, 0, 4, 0, 0, 0, 0, 0][..]].concat()
}

/// The same, and `GET /` to `a` on the first stream.
fn http2_request() -> Vec<u8> {
    http2_get(&[0x84])
}

/// The same with another path, as HPACK has it.
fn http2_get(path: &[u8]) -> Vec<u8> {
    let head = [&[0x82, 0x86], path, &[0x41, 1, b'a']].concat();
    [http2_greeting(), vec![0, 0, head.len() as u8, 1, 5, 0, 0, 0, 1], head].concat()
}

/// The payload of the next frame of this type.
async fn http2_frame<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>, kind: u8) -> Vec<u8> {
    loop {
        while client.buffer.len() < 9 {
            assert!(client.more().await > 0, "ended before an answer");
        }
        let length = usize::from(client.buffer[1]) * 256 + usize::from(client.buffer[2]);
        while client.buffer.len() < 9 + length {
            assert!(client.more().await > 0, "ended within a frame");
        }
        let frame: Vec<u8> = client.buffer.drain(..9 + length).collect();
        if frame[3] == kind {
            return frame[9..].to_vec();
        }
    }
}

#[tokio::test]
async fn http_2_by_negotiation_and_by_prior_knowledge() {
    let rig = Rig::new();
    let mut client = rig.connect().await;
    client.send(http2_request()).await;
    assert_eq!(http2_frame(&mut client, 0).await, b"GET / ");
    assert_eq!(rig.app.seen.lock()[0].peer, Some(client.stream.local_addr().unwrap()));
    rig.drain.send_replace(true);
    // Asks whether anything is still on its way; the answer ends the connection.
    let ping = http2_frame(&mut client, 6).await;
    client.send([&[0, 0, 8, 6, 1, 0, 0, 0, 0][..], &ping].concat()).await;
    client.rest().await;
    timeout(PATIENCE, rig.running).await.unwrap().unwrap();

    // Who does not answer that is not waited for, unless it has a request open.
    let rig = Rig::new();
    let (mut idle, mut silent, mut busy) = (rig.connect().await, rig.connect().await, rig.connect().await);
    idle.send(http2_request()).await;
    assert_eq!(http2_frame(&mut idle, 0).await, b"GET / ");
    silent.send(http2_greeting()).await;
    http2_frame(&mut silent, 4).await;
    busy.send(http2_get(b"\x44\x05/wait")).await;
    rig.app.entered.notified().await;
    rig.drain.send_replace(true);
    idle.rest().await;
    silent.rest().await;
    rig.app.go.notify_one();
    assert_eq!(http2_frame(&mut busy, 0).await, b"GET /wait ");
    busy.rest().await;
    timeout(PATIENCE, rig.running).await.unwrap().unwrap();

    let rig = Rig::with(Settings::default(), Some(tls()));
    let mut client = rig.connect_tls(b"h2").await;
    client.send(http2_request()).await;
    assert_eq!(http2_frame(&mut client, 0).await, b"GET / ");
    assert!(rig.app.seen.lock()[0].tls);
    rig.connections.close_all();
    client.rest().await;
    timeout(PATIENCE, rig.connections.drained()).await.unwrap();
}

#[tokio::test]
async fn dos_01_an_http_2_head_has_a_deadline_too() {
    let settings = Settings { head_timeout: Duration::from_millis(200), ..Settings::default() };
    let rig = Rig::with(settings, Some(tls()));
    let mut silent = rig.connect_tls(b"h2").await;
    silent.rest().await;
    let mut idle = rig.connect_tls(b"h2").await;
    idle.send(http2_greeting()).await;
    idle.rest().await;
    let mut unfinished = rig.connect_tls(b"h2").await;
    let mut request = http2_request();
    // No END_HEADERS: the block is never complete.
    let flags = request.len() - 6 - 5;
    request[flags] = 1;
    unfinished.send(request).await;
    unfinished.rest().await;
    assert_eq!(rig.app.served.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn hdr_07_a_proxy_header_counts_only_from_trusted_peers() {
    const HEADER: &str = "PROXY TCP4 192.0.2.1 192.0.2.2 5 80\r\n";
    let request = |header: &str| format!("{header}GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    for untrusting in [Rig::new(), Rig::behind(&["10.0.0.0/8"], Arc::default(), Settings::default(), None)] {
        assert!(untrusting.exchange(request(HEADER)).await.starts_with("HTTP/1.1 400 "));
        assert!(untrusting.exchange(request("")).await.starts_with("HTTP/1.1 200 "));
    }
    let settings = Settings { head_timeout: Duration::from_millis(200), ..Settings::default() };
    let rig = Rig::behind(&["127.0.0.0/8"], Arc::new(Echo::default()), settings, None);
    assert!(rig.exchange(request(HEADER)).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(rig.app.seen.lock()[0].peer, Some("192.0.2.1:5".parse().unwrap()));
    assert_eq!(rig.exchange(request("")).await, "");
    assert_eq!(rig.exchange("PROXY TCP4").await, "");
    assert_eq!(rig.app.served.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn pitfall_18_a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = bind(&[ListenAddress::Tcp(address)]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn a_unix_socket_is_for_owner_and_group_and_replaces_a_dead_one() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("s.sock");
    let address = ListenAddress::Unix(path.clone());
    // Dropping a std listener leaves its file behind, as a killed process would.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listeners = bind(std::slice::from_ref(&address)).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert_eq!(bind(std::slice::from_ref(&address)).unwrap_err().kind(), io::ErrorKind::AddrInUse);

    let (drain, draining) = watch::channel(false);
    let gauges = Arc::new(Gauges::default());
    let entrance = Entrance {
        settings: Arc::default(),
        tls: None,
        h2c: Arc::default(),
        proxy_protocol: Arc::default(),
        refusals: Arc::new(Plain::default()),
        connections: Connections::new(gauges.clone()),
        draining: draining.clone(),
    };
    let app = Arc::new(Echo::default());
    let mut service = AcceptService::new(listeners, app.clone(), entrance);
    let running = tokio::spawn(async move { service.run(draining).await });
    let mut client = Client::new(UnixStream::connect(&path).await.unwrap());
    assert_eq!(client.get("/").await, ok("GET / "));
    let counted = [&gauges.clients, &gauges.locals].map(|count| count.load(Ordering::SeqCst));
    assert_eq!(counted, [0, 1], "counted as what it is");
    assert_eq!(app.seen.lock()[0].peer, None);
    drain.send_replace(true);
    timeout(PATIENCE, running).await.unwrap().unwrap();
    assert!(!path.exists());

    std::fs::write(&path, "not a socket").unwrap();
    bind(&[address]).unwrap_err();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "not a socket");
}

/// Pingora's own proxy on the guard.
struct Forward(SocketAddr);

#[async_trait]
impl ProxyHttp for Forward {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> pingora::Result<Box<HttpPeer>> {
        #[expect(clippy::disallowed_methods, reason = "a parsed address: nothing to resolve")]
        Ok(Box::new(HttpPeer::new(self.0, false, String::new())))
    }
}

/// An upstream whose connections the test drives, and the proxy before it.
async fn proxied() -> (Rig<pingora::proxy::HttpProxy<Forward>>, mpsc::UnboundedReceiver<Client<TcpStream>>) {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = upstream.local_addr().unwrap();
    let (accepted, connections) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = upstream.accept().await {
            if accepted.send(Client::new(stream)).is_err() {
                return;
            }
        }
    });
    let proxy = http_proxy(&Arc::new(ServerConf::default()), Forward(address));
    (Rig::serving(Arc::new(proxy), Settings::default(), None), connections)
}

async fn next<T>(receiver: &mut mpsc::UnboundedReceiver<T>) -> T {
    timeout(PATIENCE, receiver.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn http_08_the_upstream_gets_canonical_chunks_without_trailers() {
    let (rig, mut upstreams) = proxied().await;
    let mut client = rig.connect().await;
    client
        .send("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n03;e=f\r\nabc\r\n0\r\nAuthorization: x\r\n\r\n")
        .await;
    let mut upstream = next(&mut upstreams).await;
    upstream.until(b"\r\n\r\n").await;
    assert_eq!(upstream.until(b"0\r\n\r\n").await, b"3\r\nabc\r\n0\r\n\r\n");
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(client.answer().await, ok("ok"));
    client.send("GET /y HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(upstream.until(b"\r\n\r\n").await.starts_with(b"GET /y HTTP/1.1\r\n"));
    upstream.send("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(client.answer().await.0, 204);
}

#[tokio::test]
async fn http_07_a_broken_chunk_never_completes_the_upstream_request() {
    let (rig, mut upstreams) = proxied().await;
    let mut client = rig.connect().await;
    client.send("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    let mut upstream = next(&mut upstreams).await;
    upstream.until(b"3\r\nabc\r\n").await;
    client.send("3\nabc\r\n0\r\n\r\nGET /canary HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(upstream.rest().await, "");
    client.rest().await;
    assert!(upstreams.try_recv().is_err(), "no second request");
}

#[tokio::test]
async fn pitfall_13_pipelining_and_half_close_through_the_proxy() {
    let (rig, mut upstreams) = proxied().await;
    let mut client = rig.connect().await;
    client.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut upstream = next(&mut upstreams).await;
    assert!(upstream.until(b"\r\n\r\n").await.starts_with(b"GET /1 "));
    // A third, and the end, while the first is still being worked on.
    client.send("GET /3 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    client.stream.shutdown().await.unwrap();
    for answer in ["1", "2", "3"] {
        upstream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{answer}")).await;
        assert_eq!(client.answer().await, ok(answer));
        if answer != "3" {
            upstream.until(b"\r\n\r\n").await;
        }
    }
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn a_websocket_through_the_proxy_is_closed_with_1001() {
    let (rig, mut upstreams) = proxied().await;
    let mut client = rig.connect().await;
    client.send(format!("GET /ws {UPGRADE}")).await;
    let mut upstream = next(&mut upstreams).await;
    upstream.until(b"\r\n\r\n").await;
    upstream.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").await;
    assert!(client.until(b"\r\n\r\n").await.starts_with(b"HTTP/1.1 101 "));
    upstream.send([0x81, 2, b'h', b'i']).await;
    assert_eq!(client.until(b"hi").await, [0x81, 2, b'h', b'i']);
    client.send([0x81, 0x81, 0, 0, 0, 0, b'x']).await;
    assert_eq!(upstream.until(b"x").await, [0x81, 0x81, 0, 0, 0, 0, b'x']);
    rig.connections.close_all();
    assert_eq!(client.until(&[0x03, 0xe9]).await, [0x88, 2, 0x03, 0xe9]);
    assert_eq!(client.rest().await, "");
    assert_eq!(upstream.rest().await, "");
    timeout(PATIENCE, rig.connections.drained()).await.unwrap();
}

#[tokio::test]
async fn http_20_an_interim_answer_reaches_the_client_at_once() {
    let (rig, mut upstreams) = proxied().await;
    let mut client = rig.connect().await;
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").await;
    let mut upstream = next(&mut upstreams).await;
    upstream.until(b"\r\n\r\n").await;
    upstream.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert!(client.until(b"\r\n\r\n").await.starts_with(b"HTTP/1.1 100 "));
    client.send("hi").await;
    upstream.until(b"hi").await;
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab").await;
    // The half that is there does not wait for the other.
    client.until(b"\r\n\r\nab").await;
    upstream.send("cd").await;
    client.until(b"cd").await;
    assert_eq!(client.buffer, b"");
}
