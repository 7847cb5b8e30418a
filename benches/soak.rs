//! Mixed traffic with churn for an hour: does the process need more and more of anything, and is any answer wrong?
//!
//! `cargo bench --bench soak -- --minutes 60`; `-- --help` tells the options. The method, and what the table means, is in
//! `docs/performance.md`. It ends with an error when an answer was not what it had to be, or something grew.
#![expect(clippy::indexing_slicing, reason = "a benchmark stops when what it made itself is not there")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use parking_lot::Mutex;
use rustix::process::Signal;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
use toml::Table;
use url::Url;

#[path = "../tests/support/mod.rs"]
mod support;

use support::client::{Ask, Browser, Initiator, Response};
use support::exact::cookie_of;
use support::gateway::{Gateway, config, metric_in, set};
use support::http2::Client;
use support::provider::ProviderDouble;
use support::provider::switches::{ExpiresIn, Outage, Rotation};
use support::text::{self, draw, filler, random};
use support::upstream::{Script, Upstream, feed};
use support::wire::{self, Answer, Conn};

/// Bytes of an upload, and of a large answer.
const LARGE: usize = 100_000;
/// Longer than any answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// `limits.head_timeout` and `limits.body_idle`: slow clients come often, and go soon.
const SLOW: Duration = Duration::from_secs(3);
const EVERY: Duration = Duration::from_secs(5);
/// Descriptors that a process may have open when all clients have gone, besides those it had at first: what was opened
/// once for good (to the provider, for the metrics), and the connection that asks.
const KEPT_OPEN: f64 = 6.0;
/// Below this the memory of the first minutes still grows, and nothing is said of it.
const JUDGED: u64 = 20;

/// Mixed traffic with churn, before real processes.
#[derive(Clone, Debug, Parser)]
#[command(name = "soak")]
struct Options {
    /// How long. From 20 minutes on it is judged whether something grows.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
    /// Users at once; all else comes in proportion.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(4..=1000))]
    users: u16,
    /// Another build of sidegate.
    #[arg(long)]
    program: Option<PathBuf>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    if runtime.block_on(soak(&options)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

// -- What runs -----------------------------------------------------------------------------------------------------

struct World {
    provider: Arc<ProviderDouble>,
    upstream: Upstream,
    /// Speaks HTTP/1.1 and h2c; has the users.
    plain: Gateway,
    /// Speaks TLS; has only new connections.
    tls: Gateway,
    home: Url,
    until: Instant,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    /// What was done, how often.
    done: BTreeMap<&'static str, u64>,
    /// What was not as it had to be, how often.
    wrong: BTreeMap<String, u64>,
}

impl World {
    async fn start(options: &Options) -> Arc<Self> {
        let (provider, upstream) = (Arc::new(ProviderDouble::start().await), Upstream::start().await);
        provider.set(|s| {
            s.rotation = Rotation::Family;
            // Tokens are due all the time; on a slow machine none is over before it is used.
            s.expires_in = ExpiresIn::Json("10".to_owned());
            s.access_lifetime = 300;
            s.refresh_latency = 10..60;
            s.refresh_mishaps = vec![(2, Outage::Status(503))];
        });
        upstream.otherwise(Script::by(application(Arc::clone(&provider))));

        let program = options.program.as_deref().unwrap_or_else(|| Path::new(env!("CARGO_BIN_EXE_sidegate")));
        // The process starts in a directory of its own.
        let program = &program.canonicalize().expect("the program");
        let mut plain = config(&provider, &upstream);
        set(&mut plain, "server.h2c", "true");
        let mut tls = config(&provider, &upstream);
        let fixture =
            |name| format!("{:?}", Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name));
        let url = tls["server"]["public_url"].as_str().expect("a URL").replace("http:", "https:");
        set(&mut tls, "server.public_url", &format!("{url:?}"));
        set(&mut tls, "server.tls.cert_file", &fixture("localhost.pem"));
        set(&mut tls, "server.tls.key_file", &fixture("localhost.key"));
        for table in [&mut plain, &mut tls] {
            set(table, "server.single_replica", "true");
            set(table, "server.threads", "2");
            set(table, "limits.head_timeout", &format!("\"{}s\"", SLOW.as_secs()));
            set(table, "limits.body_idle", &format!("\"{}s\"", SLOW.as_secs()));
            set(table, "limits.keepalive", "\"15s\"");
            // What is kept for lost answers is over within the first quarter, so that the rest can be compared.
            set(table, "refresh.recovery", "\"4m\"");
            set(table, "session.max_age", "\"20m\"");
        }
        let (plain, tls) = (Gateway::run_program(program, &plain, &[]), Gateway::run_program(program, &tls, &[]));
        for gateway in [&plain, &tls] {
            provider.register(&gateway.public_url);
            gateway.wait_until_ready().await;
        }
        let home = Url::parse(&plain.public_url).expect("a URL");
        let until = Instant::now() + Duration::from_secs(60 * options.minutes);
        Arc::new(Self { provider, upstream, plain, tls, home, until, tally: Mutex::default() })
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    /// Counts what was done; when it is not good, it says what came instead.
    fn count(&self, what: &'static str, good: bool, instead: impl FnOnce() -> String) {
        let mut tally = self.tally.lock();
        *tally.done.entry(what).or_default() += 1;
        if !good {
            *tally.wrong.entry(format!("{what}: {}", instead())).or_default() += 1;
        }
    }

    fn count_status(&self, what: &'static str, response: &Response, wanted: u16) {
        self.count(what, response.status == wanted && response.complete, || {
            let error = response.error.as_deref().unwrap_or_default();
            format!("{} {} {error} complete: {}", response.status, response.code(), response.complete)
        });
    }

    /// As a browser and a well-written script do it: 307 is followed, 503 is tried again when it says.
    async fn ask(&self, tab: &Browser, ask: &Ask) -> Response {
        let mut tries = 0;
        loop {
            let response = match tab.try_launch(ask).await {
                Ok(flight) => flight.answer().await,
                Err(failed) => *failed,
            };
            tab.with_jar(|jar| response.header_all("set-cookie").iter().for_each(|line| jar.store(&self.home, line)));
            tries += 1;
            match response.status {
                307 if tries < 5 => self.count("came back as told (307)", true, String::new),
                503 if tries < 5 && response.header("retry-after").is_some() => {
                    self.count("came back as told (503)", true, String::new);
                    sleep(Duration::from_secs(1)).await;
                }
                _ => return response,
            }
        }
    }

    async fn log_in(&self) -> Browser {
        let tab = self.plain.browser();
        let page = tab.login("/opt/page").await;
        self.count_status("login", &page, 200);
        // Without the history, which would keep every answer.
        tab.fork()
    }

    async fn log_out(&self, tab: &Browser) {
        let response = self.ask(tab, &Ask::fetch("/auth/logout").method("POST")).await;
        self.count_status("logout", &response, 200);
        let response = self.ask(tab, &Ask::fetch("/api/after")).await;
        self.count_status("nothing after the logout", &response, 401);
    }

    /// Sends exact bytes on a connection of its own; the status of the answer, none when there is none.
    async fn exact(&self, bytes: &[u8]) -> Option<u16> {
        let mut conn = Conn::dial(self.plain.addr).await.ok()?;
        // It may answer and close before it has read all.
        let _ = conn.send(bytes).await;
        let reply = timeout(PATIENCE, wire::read_reply(&mut conn, "GET")).await.ok()?;
        reply.ok().flatten().map(|reply| reply.status)
    }
}

/// What stands behind sidegate. `/api/` looks at the token.
fn application(provider: Arc<ProviderDouble>) -> impl Fn(&wire::Request) -> Script + Send + Sync + 'static {
    let (kilobyte, large) = (filler(1024), filler(LARGE));
    move |request| {
        let path = request.path();
        if path.starts_with("/api/") && !request.bearer().is_some_and(|token| provider.is_active(token)) {
            return Script::invalid_token();
        }
        match path.rsplit('/').next().unwrap_or_default() {
            "large" => Script::text(200, &large),
            "upload" => Script::text(200, request.header("content-length").unwrap_or("0")),
            "slow" => Script::SlowBody { pieces: 20, pause: Duration::from_millis(50) },
            "ws" => Script::WebSocket,
            "broken" => Script::Reset,
            "half" => Script::RawThenClose(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_vec()),
            "stream" => {
                let (feed, script) = feed("text/event-stream");
                tokio::spawn(async move {
                    while feed.send("data: tick\n\n") {
                        sleep(Duration::from_millis(500)).await;
                    }
                });
                script
            }
            _ => Script::Answer(Answer::new(200, "application/json", kilobyte.clone()).with("ETag", "\"1\"")),
        }
    }
}

// -- Who asks ------------------------------------------------------------------------------------------------------

/// A user with a browser: reads, writes, goes away in the middle, logs out, and comes back as somebody else.
async fn user(world: Arc<World>) {
    sleep(Duration::from_millis(draw(0..3000))).await;
    while world.goes_on() {
        let tab = world.log_in().await;
        let actions = draw(30..120);
        for _ in 0..actions {
            sleep(Duration::from_millis(draw(200..1800))).await;
            if !world.goes_on() {
                break;
            }
            act(&world, &tab).await;
        }
        // Some never log out: what is known of them has to go by itself.
        if draw(0..100) < 70 {
            world.log_out(&tab).await;
        }
    }
}

async fn act(world: &Arc<World>, tab: &Browser) {
    match draw(0..100) {
        0..45 => {
            let mut burst = JoinSet::new();
            for _ in 0..draw(1..5) {
                let (world, tab) = (Arc::clone(world), tab.clone());
                burst.spawn(async move {
                    let response = world.ask(&tab, &Ask::fetch("/api/load")).await;
                    world.count_status("read", &response, 200);
                });
            }
            burst.join_all().await;
        }
        45..55 => {
            let response = world.ask(tab, &Ask::fetch("/api/large")).await;
            world.count("download", response.status == 200 && response.body.len() == LARGE, || {
                format!("{} {} {} bytes", response.status, response.code(), response.body.len())
            });
        }
        55..65 => {
            let body = vec![b'u'; LARGE];
            let response = world.ask(tab, &Ask::fetch("/api/upload").body("application/octet-stream", body)).await;
            world.count("upload", response.status == 200 && response.text() == LARGE.to_string(), || {
                format!("{} {} {:?}", response.status, response.code(), response.error)
            });
        }
        65..73 => {
            let response = world.ask(tab, &Ask::fetch("/auth/session")).await;
            let known = response.status == 200 && response.json()["authenticated"] == true;
            world.count("session", known, || format!("{} {}", response.status, response.text()));
        }
        73..76 => {
            let response = world.ask(tab, &Ask::fetch("/auth/refresh").method("POST")).await;
            world.count_status("refresh asked for", &response, 200);
        }
        76..84 => {
            let response = world.ask(tab, &Ask::navigate("/opt/page").from(Initiator::SameOrigin)).await;
            world.count_status("page", &response, 200);
        }
        84..90 => {
            if let Ok(flight) = tab.try_launch(&Ask::fetch("/api/slow")).await {
                sleep(Duration::from_millis(draw(0..800))).await;
                flight.abort();
            }
            world.count("gone while reading", true, String::new);
        }
        90..94 => {
            // As many bytes as were announced, but for the last half.
            let fields = [("Host", host(world)), ("Cookie", cookie_of(tab)), ("Content-Length", LARGE.to_string())];
            let head = head("POST", "/api/upload", &fields);
            if let Ok(mut conn) = Conn::dial(world.plain.addr).await {
                let _ = conn.send(&head).await;
                let _ = conn.send(&vec![b'u'; LARGE / 2]).await;
                sleep(Duration::from_millis(draw(0..300))).await;
                conn.reset_soon();
            }
            world.count("gone while writing", true, String::new);
        }
        _ => {
            let ask = Ask::fetch("/api/load").method("POST").from(Initiator::CrossSite);
            let response = world.ask(tab, &ask).await;
            world.count("from another site", matches!(response.status, 401 | 403), || response.status.to_string());
        }
    }
}

fn host(world: &World) -> String {
    world.plain.public_url.trim_start_matches("http://").to_owned()
}

fn head(method: &str, target: &str, fields: &[(&str, String)]) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\n");
    for (name, value) in fields {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    (head + "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n\r\n").into_bytes()
}

/// Without a session: some requests on one connection, then the next connection.
async fn visitor(world: Arc<World>) {
    while world.goes_on() {
        let fields = [("Host", host(&world))];
        let Ok(mut conn) = Conn::dial(world.plain.addr).await else {
            world.count("visit", false, || "no connection".to_owned());
            return;
        };
        for _ in 0..draw(1..12) {
            let (target, wanted) = match draw(0..20) {
                0 => ("/large", 200),
                1 => ("/broken", 502),
                2 => ("/api/load", 401),
                _ => ("/page", 200),
            };
            let _ = conn.send(&head("GET", target, &fields)).await;
            let reply = timeout(PATIENCE, wire::read_reply(&mut conn, "GET")).await;
            let reply = reply.ok().and_then(Result::ok).flatten();
            let status = reply.as_ref().map(|reply| reply.status);
            world.count("visit", status == Some(wanted), || format!("{target}: {status:?}"));
            let closes = |reply: &wire::Reply| {
                text::header(&reply.headers, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
            };
            if reply.is_none_or(|reply| closes(&reply)) {
                break;
            }
            sleep(Duration::from_millis(draw(50..1000))).await;
        }
        // An answer that breaks off ends the connection.
        if draw(0..4) == 0 {
            let _ = conn.send(&head("GET", "/half", &fields)).await;
            let reply = timeout(PATIENCE, wire::read_reply(&mut conn, "GET")).await;
            let whole = matches!(&reply, Ok(Ok(Some(reply))) if reply.complete && reply.status == 200);
            world.count("half an answer", !whole, || "it was whole".to_owned());
        }
    }
}

/// WebSockets that talk for a while; some end by a close frame, some break, some end with their session.
async fn socket(world: Arc<World>) {
    while world.goes_on() {
        let tab = world.log_in().await;
        for _ in 0..draw(3..8) {
            sleep(Duration::from_millis(draw(100..2000))).await;
            // The session is kept fresh by what the page asks besides.
            let response = world.ask(&tab, &Ask::fetch("/api/load")).await;
            world.count_status("read", &response, 200);
            let Ok(mut socket) = tab.websocket("/api/ws", Initiator::SameOrigin).await else {
                world.count("WebSocket", false, || "refused".to_owned());
                continue;
            };
            for number in 0..draw(1..30) {
                let text = format!("{number} {}", filler(usize::try_from(draw(1..2000)).expect("small")));
                let _ = socket.send_text(&text).await;
                let frame = timeout(PATIENCE, socket.next()).await.ok().flatten();
                let same = frame.as_ref().is_some_and(|frame| frame.text() == text);
                world.count("WebSocket frame", same, || format!("{:?}", frame.map(|frame| frame.opcode)));
                if !same {
                    break;
                }
                sleep(Duration::from_millis(draw(100..1500))).await;
            }
            if draw(0..2) == 0 {
                let end = timeout(PATIENCE, socket.close(1000)).await.ok().flatten();
                world.count("WebSocket", end.is_some(), || "not closed".to_owned());
            }
        }
        let Ok(mut socket) = tab.websocket("/api/ws", Initiator::SameOrigin).await else { continue };
        world.log_out(&tab).await;
        let ended = async { while socket.next().await.is_some() {} };
        let ended = timeout(PATIENCE, ended).await.is_ok();
        world.count("WebSocket ends with its session", ended, || "it stayed".to_owned());
    }
}

/// Event streams, of the application and of sidegate.
async fn listener(world: Arc<World>) {
    while world.goes_on() {
        let tab = world.log_in().await;
        for _ in 0..draw(5..20) {
            sleep(Duration::from_millis(draw(100..2000))).await;
            let response = world.ask(&tab, &Ask::fetch("/api/load")).await;
            world.count_status("read", &response, 200);
            let own = draw(0..2) == 0;
            let path = if own { "/auth/events" } else { "/api/stream" };
            let mut stream = tab.open(&Ask::fetch(path).header("Accept", "text/event-stream")).await;
            world.count_status_of("event stream", stream.response.status, 200);
            if own {
                // It says something when the token is renewed; that may be later.
                let _ = timeout(Duration::from_millis(draw(100..8000)), stream.next()).await;
            } else {
                for _ in 0..draw(1..16) {
                    let event = timeout(PATIENCE, stream.next()).await.ok().flatten();
                    world.count("event", event.is_some(), || "none came".to_owned());
                }
            }
            stream.abort();
        }
        world.log_out(&tab).await;
    }
}

impl World {
    fn count_status_of(&self, what: &'static str, status: u16, wanted: u16) {
        self.count(what, status == wanted, || status.to_string());
    }
}

/// Clients that are slow with what they owe, or owe it for ever.
async fn slow(world: Arc<World>) {
    while world.goes_on() {
        let Ok(mut conn) = Conn::dial(world.plain.addr).await else { continue };
        let kind = draw(0..5);
        let begun = Instant::now();
        let begin = match kind {
            // Says nothing at all.
            0 => Vec::new(),
            // A head that goes on and on.
            1 | 2 => format!("GET /page HTTP/1.1\r\nHost: {}\r\n", host(&world)).into_bytes(),
            // A body that stops.
            3 => head("POST", "/upload", &[("Host", host(&world)), ("Content-Length", "1000".to_owned())]),
            // Reads a large answer piece by piece: is served.
            _ => head("GET", "/large", &[("Host", host(&world))]),
        };
        let _ = conn.send(&begin).await;
        if kind == 4 {
            let mut read = 0;
            while let Ok(Ok(piece @ 1..)) = timeout(PATIENCE, conn.fill()).await {
                read += piece;
                if read > LARGE {
                    break;
                }
                sleep(Duration::from_millis(200)).await;
            }
            world.count("slow reader", read > LARGE, || format!("{read} bytes"));
            continue;
        }
        let ended = async {
            loop {
                if kind != 3 && kind != 0 && conn.send(b"X: y\r\n").await.is_err() {
                    break;
                }
                if let Ok(Ok(0) | Err(_)) = timeout(Duration::from_millis(500), conn.fill()).await {
                    break;
                }
            }
        };
        let ended = timeout(SLOW * 4 + PATIENCE, ended).await.is_ok() && begun.elapsed() >= SLOW / 2;
        world.count("slow client is sent away", ended, || format!("kind {kind}, after {:?}", begun.elapsed()));
    }
}

/// What nobody should send.
async fn garbage(world: Arc<World>) {
    while world.goes_on() {
        sleep(Duration::from_millis(draw(200..1500))).await;
        let own = ("Host", host(&world));
        let noise = filler(usize::try_from(draw(10..3000)).expect("small"));
        let status = match draw(0..6) {
            0 | 1 => {
                let cookie = ("Cookie", format!("sidegate=EQ{noise}; sidegate-1={noise}; a=b"));
                let status = world.exact(&head("GET", "/api/load", &[own, cookie])).await;
                (status == Some(401), status)
            }
            2 => {
                let target = format!("/auth/callback?code={}&state=IQ{noise}", draw(0..1000));
                let status = world.exact(&head("GET", &target, &[own])).await;
                (status.is_some_and(|status| (300..500).contains(&status)), status)
            }
            3 => {
                let both = ("Transfer-Encoding", "chunked".to_owned());
                let length = ("Content-Length", "5".to_owned());
                let status = world.exact(&head("POST", "/upload", &[own, both, length])).await;
                (status == Some(400), status)
            }
            4 => {
                let status = world.exact(&head("GET", "/a/%2e%2e/%00", &[own])).await;
                (status.is_some_and(|status| (400..500).contains(&status)), status)
            }
            _ => {
                let mut bytes = random(200);
                bytes.extend_from_slice(b"\r\n\r\n");
                let status = world.exact(&bytes).await;
                (status.is_none_or(|status| (400..600).contains(&status)), status)
            }
        };
        world.count("garbage", status.0, || format!("{:?}", status.1));
        // A login that nobody ends.
        let begun = world.plain.browser().start_login("/page").await;
        world.count("login begun", begun.status == 302 || begun.status == 303, || begun.status.to_string());
    }
}

/// HTTP/2 without TLS: many requests on one connection, with a session and without, some of them given up.
async fn streams(world: Arc<World>) {
    while world.goes_on() {
        let tab = world.log_in().await;
        let url = |path: &str| world.home.join(path).expect("a URL").to_string();
        for _ in 0..draw(4..10) {
            let client = Client::dial(world.plain.addr).await;
            for _ in 0..draw(1..20) {
                let cookie = cookie_of(&tab);
                let fields = [
                    ("sec-fetch-site", "same-origin"),
                    ("sec-fetch-mode", "cors"),
                    ("sec-fetch-dest", "empty"),
                    ("cookie", cookie.as_str()),
                ];
                match draw(0..10) {
                    0 => {
                        let slow = url("/slow");
                        let given_up = client.call("GET", &slow, &fields, None);
                        let _ = timeout(Duration::from_millis(draw(1..500)), given_up).await;
                        world.count("stream given up", true, String::new);
                    }
                    1 | 2 => {
                        let body = vec![b'u'; LARGE / 2];
                        let answer = client.call("POST", &url("/upload"), &fields, Some(&body)).await;
                        let good = answer.as_ref().is_ok_and(|answer| answer.status == 200);
                        world.count("upload by HTTP/2", good, || format!("{:?}", answer.map(|answer| answer.status)));
                    }
                    kind => {
                        let path = if kind == 3 { "/api/large" } else { "/api/load" };
                        let answer = client.call("GET", &url(path), &fields, None).await;
                        let good = answer.as_ref().is_ok_and(|answer| matches!(answer.status, 200 | 503));
                        if let Ok(answer) = &answer {
                            let lines =
                                answer.headers.get_all("set-cookie").iter().filter_map(|line| line.to_str().ok());
                            tab.with_jar(|jar| lines.for_each(|line| jar.store(&world.home, line)));
                        }
                        world.count("read by HTTP/2", good, || format!("{:?}", answer.map(|answer| answer.status)));
                    }
                }
                sleep(Duration::from_millis(draw(100..1000))).await;
            }
        }
        world.log_out(&tab).await;
    }
}

/// TLS: a connection for each few requests, by HTTP/1.1 or HTTP/2, and handshakes that come to nothing.
async fn handshakes(world: Arc<World>) {
    let certificate = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls/localhost.pem");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).expect("a certificate")).expect("an anchor");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = |protocol: &[u8]| {
        let mut config = config.clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        TlsConnector::from(Arc::new(config))
    };
    let (one, two) = (connector(b"http/1.1"), connector(b"h2"));
    let name = || "localhost".try_into().expect("a name");
    while world.goes_on() {
        sleep(Duration::from_millis(draw(100..1000))).await;
        let Ok(mut stream) = TcpStream::connect(world.tls.addr).await else { continue };
        match draw(0..5) {
            0 => {
                let _ = stream.write_all(&random(usize::try_from(draw(1..300)).expect("small"))).await;
                let mut end = Vec::new();
                let ended = timeout(PATIENCE, stream.read_to_end(&mut end)).await.is_ok();
                world.count("no TLS", ended, || "it stayed".to_owned());
            }
            1 | 2 => {
                let Ok(stream) = two.connect(name(), stream).await else {
                    world.count("TLS", false, || "no handshake".to_owned());
                    continue;
                };
                let client = Client::on(stream).await;
                for _ in 0..draw(1..4) {
                    let answer = client.call("GET", &format!("{}/page", world.tls.public_url), &[], None).await;
                    let status = answer.map(|answer| answer.status);
                    world.count("TLS, HTTP/2", matches!(status, Ok(200)), || format!("{status:?}"));
                }
            }
            _ => {
                let Ok(mut stream) = one.connect(name(), stream).await else {
                    world.count("TLS", false, || "no handshake".to_owned());
                    continue;
                };
                let authority = world.tls.public_url.trim_start_matches("https://");
                let request = format!("GET /page HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all(request.as_bytes()).await;
                let mut answer = Vec::new();
                let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
                world.count("TLS, HTTP/1.1", answer.starts_with(b"HTTP/1.1 200"), || {
                    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
                });
            }
        }
    }
}

/// A changed configuration now and then.
async fn reloads(world: Arc<World>) {
    let mut round = 0;
    loop {
        sleep(Duration::from_secs(45)).await;
        if !world.goes_on() {
            return;
        }
        round += 1;
        for gateway in [&world.plain, &world.tls] {
            let taken = || gateway.metric("sidegate_config_reloads_total", &[("outcome", "ok")]);
            let before = taken().await;
            let file = gateway.config_file();
            let mut table: Table = std::fs::read_to_string(&file).expect("read").parse().expect("TOML");
            let routes = table["route"].as_array_mut().expect("routes");
            for route in routes.iter_mut().filter_map(|route| route.as_table_mut()) {
                let fields = Table::from_iter([("X-Round".to_owned(), format!("{round}").into())]);
                route.insert("response_headers".to_owned(), fields.into());
            }
            let new = file.with_extension("new");
            std::fs::write(&new, table.to_string()).expect("written");
            std::fs::rename(new, &file).expect("renamed");
            gateway.signal(Signal::HUP);
            let begun = Instant::now();
            while taken().await <= before && begun.elapsed() < PATIENCE {
                sleep(Duration::from_millis(200)).await;
            }
            let took = begun.elapsed() < PATIENCE;
            world.count("reload", took, || "not taken".to_owned());
        }
    }
}

// -- What is looked at ---------------------------------------------------------------------------------------------

/// A process at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    resident_kib: f64,
    descriptors: f64,
    threads: f64,
    connections: f64,
    handoff_entries: f64,
    requests: f64,
    cpu_seconds: f64,
}

/// What is shown: its name, the value, and how much it may grow (a part, and so much besides). Connections and descriptors
/// are as many as the clients of the moment need, which is more on a slow machine: they are judged when all are gone.
type Measure = (&'static str, fn(&Sample) -> f64, Option<(f64, f64)>);

const MEASURES: [Measure; 5] = [
    ("resident MiB", |sample| sample.resident_kib / 1024.0, Some((0.04, 1.0))),
    ("descriptors", |sample| sample.descriptors, None),
    // The runtime's own for files come and go.
    ("threads", |sample| sample.threads, Some((0.0, 2.0))),
    ("connections", |sample| sample.connections, None),
    ("kept results", |sample| sample.handoff_entries, Some((0.20, 20.0))),
];

async fn sample(gateway: &Gateway) -> Sample {
    let process = Path::new("/proc").join(gateway.id().to_string());
    let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
    };
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    let ticks = |number: usize| -> f64 {
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        fields.split_whitespace().nth(number).and_then(|value| value.parse().ok()).unwrap_or(0.0)
    };
    let metrics = gateway.metrics().await;
    Sample {
        resident_kib: field("VmRSS:"),
        descriptors: std::fs::read_dir(process.join("fd")).map_or(0.0, |entries| entries.count() as f64),
        threads: field("Threads:"),
        connections: metric_in(&metrics, "sidegate_connections", &[]),
        handoff_entries: metric_in(&metrics, "sidegate_handoff_entries", &[]),
        requests: metric_in(&metrics, "sidegate_requests_total", &[]),
        // utime and stime (proc(5)), in hundredths of a second on every Linux of today.
        cpu_seconds: (ticks(11) + ticks(12)) / 100.0,
    }
}

fn median(samples: &[Sample], of: fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(of).collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn print_head() {
    print!("{:8} {:8}", "process", "minute");
    MEASURES.iter().for_each(|(name, ..)| print!(" {name:>13}"));
    println!(" {:>9}", "requests");
}

fn print_row(name: &str, when: &str, samples: &[Sample]) {
    print!("{name:8} {when:>8}");
    MEASURES.iter().for_each(|(_, of, _)| print!(" {:13.1}", median(samples, *of)));
    println!(" {:9.0}", samples.last().map_or(0.0, |sample| sample.requests));
}

/// What grew from the second quarter to the last.
fn grown(name: &str, samples: &[Sample]) -> Vec<String> {
    let quarter = samples.len() / 4;
    let part = |from: usize, to: usize| samples.get(from..to).unwrap_or_default();
    let (second, last) = (part(quarter, 2 * quarter), part(3 * quarter, samples.len()));
    let mut grown = Vec::new();
    for (measure, of, allowed) in MEASURES {
        let (before, after) = (median(second, of), median(last, of));
        let change = 100.0 * (after - before) / before.max(1.0);
        println!("{name}: {measure}: second quarter {before:.1}, last quarter {after:.1}, {change:+.1} %");
        if let Some((part, more)) = allowed
            && after > before * (1.0 + part) + more
        {
            grown.push(format!("{name}: {measure} grew from {before:.1} to {after:.1}"));
        }
    }
    grown
}

// -- The whole -----------------------------------------------------------------------------------------------------

/// Whether all was well.
async fn soak(options: &Options) -> bool {
    let world = World::start(options).await;
    let mut bad = Vec::new();
    let mut actors = JoinSet::new();
    let share = |part: u16| 0..(options.users / part).max(1);
    (0..options.users).for_each(|_| drop(actors.spawn(user(Arc::clone(&world)))));
    share(3).for_each(|_| drop(actors.spawn(visitor(Arc::clone(&world)))));
    share(3).for_each(|_| drop(actors.spawn(socket(Arc::clone(&world)))));
    share(4).for_each(|_| drop(actors.spawn(listener(Arc::clone(&world)))));
    share(2).for_each(|_| drop(actors.spawn(slow(Arc::clone(&world)))));
    share(6).for_each(|_| drop(actors.spawn(garbage(Arc::clone(&world)))));
    share(6).for_each(|_| drop(actors.spawn(streams(Arc::clone(&world)))));
    share(6).for_each(|_| drop(actors.spawn(handshakes(Arc::clone(&world)))));
    actors.spawn(reloads(Arc::clone(&world)));

    let processes = [("plain", &world.plain), ("TLS", &world.tls)];
    let before = [sample(&world.plain).await, sample(&world.tls).await];
    let started = Instant::now();
    let mut taken: [Vec<Sample>; 2] = Default::default();
    let row = Duration::from_secs(60 * options.minutes) / 12;
    let (mut shown, mut since) = (row, [0; 2]);
    print_head();
    while world.goes_on() {
        sleep(EVERY).await;
        for ((name, gateway), samples) in processes.iter().zip(&mut taken) {
            if let Some(status) = gateway.exit_status() {
                println!("{name} ended with {status}:\n{}", gateway.output());
                return false;
            }
            samples.push(sample(gateway).await);
            // The doubles keep all they see; an hour of it is too much.
            let said = gateway.take_output();
            bad.extend(said.lines().filter(|line| alarming(line)).map(|line| format!("{name} says {line}")));
        }
        world.upstream.forget();
        if started.elapsed() >= shown {
            shown += row;
            for (((name, _), samples), since) in processes.iter().zip(&taken).zip(&mut since) {
                let minute = format!("{:.0}", started.elapsed().as_secs_f64() / 60.0);
                print_row(name, &minute, samples.get(*since..).unwrap_or_default());
                *since = samples.len();
            }
        }
    }
    while let Some(actor) = actors.join_next().await {
        if let Err(error) = actor {
            bad.push(format!("an actor: {error}"));
        }
    }

    // All clients are gone: so is what was held for them, when keep-alive is over on both sides.
    for ((name, gateway), before) in processes.iter().zip(before) {
        let mut rest = sample(gateway).await;
        let begun = Instant::now();
        let most = before.descriptors + KEPT_OPEN;
        // The metrics are asked for on the admin listener, which does not count.
        while (rest.connections > 0.0 || rest.descriptors > most) && begun.elapsed() < 2 * PATIENCE {
            sleep(Duration::from_millis(500)).await;
            rest = sample(gateway).await;
        }
        print_row(name, "idle", &[rest]);
        if rest.connections > 0.0 {
            bad.push(format!("{name}: {} connections are still counted", rest.connections));
        }
        if rest.descriptors > most {
            let (first, last) = (before.descriptors, rest.descriptors);
            bad.push(format!("{name}: {last} descriptors are open where there were {first}"));
        }
    }
    println!();
    for ((name, _), samples) in processes.iter().zip(&taken) {
        let (first, last) = (samples.first().copied().unwrap_or_default(), samples.last().copied().unwrap_or_default());
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{name}: {:.0} requests, {:.1} % of one CPU",
            last.requests,
            100.0 * (last.cpu_seconds - first.cpu_seconds) / seconds
        );
        let grown = grown(name, samples);
        if options.minutes >= JUDGED {
            bad.extend(grown);
        }
    }
    println!("refreshes: {}, reuse alarms: {}", world.provider.refreshes(), world.provider.reuse_alarms());
    if world.provider.reuse_alarms() > 0 {
        bad.push("a refresh token was spent twice".to_owned());
    }
    let tally = world.tally.lock();
    println!();
    tally.done.iter().for_each(|(what, times)| println!("{times:9}  {what}"));
    bad.extend(tally.wrong.iter().map(|(what, times)| format!("{times} times {what}")));
    println!();
    bad.iter().for_each(|what| println!("WRONG {what}"));
    println!("{}", if bad.is_empty() { "flat, and every answer as it had to be" } else { "not as it had to be" });
    bad.is_empty()
}

/// Whether a line of the log says that something is broken inside.
fn alarming(line: &str) -> bool {
    line.contains("panicked") || line.contains("\"level\":\"error\"") || line.contains("\"level\":\"ERROR\"")
}
