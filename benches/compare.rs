//! What a request costs, side by side with a bare Pingora proxy.
//!
//! `cargo bench --bench compare` takes about a minute; `-- --help` tells the options. The method, and what the columns
//! mean, is in `docs/performance.md`.
#![expect(clippy::disallowed_methods, reason = "a benchmark starts its peer at a socket address")]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use clap::Parser;
use http::{HeaderValue, header};
use parking_lot::Mutex;
use pingora::http::RequestHeader;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};
use pingora::upstreams::peer::HttpPeer;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

#[path = "../tests/support/mod.rs"]
mod support;

use support::client::Browser;
use support::gateway::free_port;
use support::provider::ProviderDouble;
use support::provider::switches::AccessToken;
use support::text::{b64u, random};

/// As in the program, so that the plain proxy has it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Bytes of the upstream's answer.
const BODY: usize = 1024;
/// Before each measurement, so that connections are open on both sides.
const WARM: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(20);

/// Measures sidegate against a bare Pingora proxy, all running at once and taking turns.
#[derive(Clone, Debug, Parser)]
#[command(name = "compare")]
struct Options {
    /// How often each target has its turn.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=1000))]
    turns: u32,
    /// Milliseconds of one turn.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    slice: u64,
    /// Keep-alive connections, each with one request under way.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Runs the proxies on this CPU, by `taskset`.
    #[arg(long)]
    pin: Option<u32>,
    /// Another build of sidegate, measured in the same turns: what a change is worth.
    #[arg(long)]
    other: Option<PathBuf>,
    /// Be the plain proxy: listen there, forward there; replace the cookie by a bearer of so many bytes.
    #[arg(long, hide = true, num_args = 3)]
    plain_proxy: Option<Vec<String>>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some([listen, upstream, bearer]) = options.plain_proxy.as_deref() {
        return plain_proxy(listen, upstream, bearer);
    }
    // One thread for load and upstream: with it and the proxy's one thread, two cores are busy and no more.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(compare(&options));
    ExitCode::SUCCESS
}

// -- The plain proxy -----------------------------------------------------------------------------------------------

/// Pingora with nothing on top: an address, and at most one field exchanged for another.
struct Plain {
    upstream: SocketAddr,
    bearer: Option<HeaderValue>,
}

#[async_trait]
impl ProxyHttp for Plain {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream, false, String::new())))
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        request: &mut RequestHeader,
        _: &mut (),
    ) -> pingora::Result<()> {
        if let Some(bearer) = &self.bearer {
            request.remove_header(&header::COOKIE);
            request.insert_header(header::AUTHORIZATION, bearer.clone())?;
        }
        Ok(())
    }
}

fn plain_proxy(listen: &str, upstream: &str, bearer: &str) -> ExitCode {
    let upstream = upstream.parse().expect("an address");
    let bearer = match bearer.parse().expect("a number") {
        0 => None,
        length => HeaderValue::try_from("b".repeat(length)).ok(),
    };
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: 512, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Plain { upstream, bearer });
    service.add_tcp(listen);
    server.add_service(service);
    server.run(RunArgs::default());
    ExitCode::SUCCESS
}

// -- The upstream --------------------------------------------------------------------------------------------------

/// Answers every request with the same kilobyte.
struct Upstream {
    addr: SocketAddr,
    /// Keep the next heads in `last`.
    looking: AtomicBool,
    last: Mutex<Vec<u8>>,
}

impl Upstream {
    async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound address");
        let upstream = Arc::new(Self { addr, looking: AtomicBool::new(false), last: Mutex::default() });
        let shared = Arc::clone(&upstream);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(Arc::clone(&shared).serve(stream));
            }
        });
        upstream
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let answer = answer();
        let mut unread = Vec::with_capacity(16 * 1024);
        while let Ok(1..) = stream.read_buf(&mut unread).await {
            // No request of ours has a body: a head's end is a request's end.
            while let Some(at) = memchr::memmem::find(&unread, b"\r\n\r\n") {
                let head: Vec<u8> = unread.drain(..at + 4).collect();
                if self.looking.load(Ordering::Relaxed) {
                    *self.last.lock() = head;
                }
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn answer() -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {BODY}\r\n\r\n");
    let mut answer = head.into_bytes();
    answer.resize(answer.len() + BODY, b'x');
    answer
}

// -- The processes -------------------------------------------------------------------------------------------------

/// A proxy as a child process. Killed when dropped.
struct Proxy {
    name: String,
    child: Child,
    addr: SocketAddr,
    /// From the start of the process to its first answer.
    ready: Duration,
    idle_kib: u64,
    _dir: TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    async fn plain(options: &Options, upstream: SocketAddr, bearer: usize) -> Self {
        let listen = local(free_port());
        let this = std::env::current_exe().expect("our own path");
        let args = ["--plain-proxy".to_owned(), listen.to_string(), upstream.to_string(), bearer.to_string()];
        let name = if bearer == 0 { "Pingora" } else { "Pingora, same bytes" };
        let dir = tempfile::tempdir().expect("a directory");
        Self::start(options, name, &this, &args, listen, listen, dir).await
    }

    async fn sidegate(options: &Options, name: &str, program: &Path, setup: &Setup<'_>, access_log: bool) -> Self {
        let (listen, admin) = (local(free_port()), local(free_port()));
        let public = format!("http://localhost:{}", listen.port());
        setup.provider.register(&public);
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("sidegate.toml");
        std::fs::write(&file, setup.config(listen, admin, &public, access_log)).expect("a written configuration");
        let args = ["run".to_owned(), "-c".to_owned(), file.display().to_string()];
        Self::start(options, name, program, &args, listen, admin, dir).await
    }

    /// `probe`: who answers `/readyz`, or anything at all.
    async fn start(
        options: &Options,
        name: &str,
        program: &Path,
        args: &[String],
        addr: SocketAddr,
        probe: SocketAddr,
        dir: TempDir,
    ) -> Self {
        let mut command = match options.pin {
            Some(cpu) => {
                let mut command = Command::new("taskset");
                command.arg("-c").arg(cpu.to_string()).arg(program);
                command
            }
            None => Command::new(program),
        };
        let errors = File::create(dir.path().join("stderr")).expect("a file");
        command.args(args).current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let started = Instant::now();
        let child = command.spawn().expect("the program starts");
        let mut proxy = Self { name: name.to_owned(), child, addr, ready: Duration::ZERO, idle_kib: 0, _dir: dir };
        while ask(probe, &request("/readyz", probe, &[]))
            .await
            .is_none_or(|answer| !answer.starts_with(b"HTTP/1.1 200"))
        {
            let ended = proxy.child.try_wait().expect("our own child");
            assert!(ended.is_none() && started.elapsed() < PATIENCE, "{name} does not start: {}", proxy.errors());
            sleep(Duration::from_millis(1)).await;
        }
        proxy.ready = started.elapsed();
        proxy.idle_kib = proxy.resident_kib();
        proxy
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(self._dir.path().join("stderr")).unwrap_or_default()
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    /// Nanoseconds on a CPU so far, by thread.
    fn cpu(&self) -> HashMap<String, u64> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten().flatten();
        let nanos = |task: &Path| -> Option<u64> {
            if let Ok(stat) = std::fs::read_to_string(task.join("schedstat")) {
                return stat.split(' ').next()?.parse().ok();
            }
            // Without it: utime and stime (proc(5)), in hundredths of a second on every Linux of today.
            let stat = std::fs::read_to_string(task.join("stat")).ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
            let mut ticks = || fields.next()?.parse::<u64>().ok();
            Some((ticks()? + ticks()?) * 10_000_000)
        };
        tasks.filter_map(|task| Some((task.file_name().to_string_lossy().into_owned(), nanos(&task.path())?))).collect()
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// What every sidegate needs.
struct Setup<'a> {
    provider: &'a ProviderDouble,
    upstream: SocketAddr,
    key: String,
}

impl Setup<'_> {
    fn config(&self, listen: SocketAddr, admin: SocketAddr, public: &str, access_log: bool) -> String {
        // Many scopes make an access token of an ordinary size.
        let scopes: String =
            (0..12).fold(String::new(), |all, n| all + &format!(r#", "https://api.example.com/scope-{n}""#));
        format!(
            r#"
            [server]
            listen = "{listen}"
            public_url = "{public}"
            threads = 1
            [admin]
            listen = "{admin}"
            [provider]
            issuer = {issuer:?}
            client_id = {id:?}
            client_secret = {secret:?}
            scopes = ["openid", "offline_access"{scopes}]
            [session]
            keys = ["{key}"]
            [log]
            format = "json"
            access = {access_log}
            [[route]]
            path = "/api/"
            upstream = "http://{upstream}"
            access = "session"
            [[route]]
            path = "/"
            upstream = "http://{upstream}"
            access = "public"
            "#,
            issuer = self.provider.issuer,
            id = self.provider.client_id(),
            secret = self.provider.client_secret(),
            key = self.key,
            upstream = self.upstream,
        )
    }
}

// -- The load ------------------------------------------------------------------------------------------------------

/// What is asked of which process.
struct Target {
    name: String,
    /// Index of the process.
    proxy: usize,
    request: Vec<u8>,
    /// Bytes of the head that reaches the upstream.
    forwarded: usize,
}

/// One turn of one target.
#[derive(Clone, Debug)]
struct Slice {
    requests: usize,
    seconds: f64,
    cpu_nanos: u64,
    /// Microseconds, sorted.
    latencies: Vec<u32>,
}

impl Slice {
    /// CPU microseconds of the proxy per request.
    fn cost(&self) -> f64 {
        self.cpu_nanos as f64 / 1000.0 / self.requests.max(1) as f64
    }

    fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    fn percentile(&self, hundredths: usize) -> f64 {
        let at = self.latencies.len().saturating_sub(1) * hundredths / 100;
        self.latencies.get(at).copied().map_or(0.0, f64::from)
    }
}

/// A GET as a browser's `fetch()` sends it.
fn request(path: &str, host: SocketAddr, more: &[(&str, &str)]) -> Vec<u8> {
    let mut head = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost:{}\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0)\r\n\
         Accept: application/json\r\nAccept-Language: en\r\nAccept-Encoding: gzip, deflate, br\r\n\
         Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n",
        host.port()
    );
    for (name, value) in more {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// One request on a connection of its own; the whole answer.
async fn ask(addr: SocketAddr, request: &[u8]) -> Option<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await.ok()?;
        stream.write_all(request).await.ok()?;
        let mut answer = Vec::new();
        while memchr::memmem::find(&answer, b"\r\n\r\n").is_none() {
            if stream.read_buf(&mut answer).await.ok()? == 0 {
                break;
            }
        }
        Some(answer)
    };
    timeout(PATIENCE, exchange).await.ok()?
}

/// The stages of a turn.
const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// Sends the same request again and again on one connection; the latencies, in microseconds, of those that ended while
/// it was measured.
async fn hammer(addr: SocketAddr, request: Arc<Vec<u8>>, stage: Arc<AtomicU8>) -> Vec<u32> {
    let mut stream = TcpStream::connect(addr).await.expect("the proxy accepts");
    let _ = stream.set_nodelay(true);
    let mut latencies = Vec::with_capacity(4096);
    let mut answer = Vec::with_capacity(16 * 1024);
    loop {
        let started = Instant::now();
        stream.write_all(&request).await.expect("the proxy reads");
        answer.clear();
        loop {
            assert_ne!(stream.read_buf(&mut answer).await.expect("the proxy answers"), 0, "the proxy hung up");
            if memchr::memmem::find(&answer, b"\r\n\r\n").is_some_and(|at| answer.len() >= at + 4 + BODY) {
                break;
            }
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        match stage.load(Ordering::Relaxed) {
            WARMING => {}
            MEASURING => latencies.push(started.elapsed().as_micros().try_into().unwrap_or(u32::MAX)),
            _ => return latencies,
        }
    }
}

async fn turn(options: &Options, proxy: &Proxy, target: &Target) -> Slice {
    let (request, stage) = (Arc::new(target.request.clone()), Arc::new(AtomicU8::new(WARMING)));
    let clients: Vec<_> = (0..options.connections)
        .map(|_| tokio::spawn(hammer(proxy.addr, Arc::clone(&request), Arc::clone(&stage))))
        .collect();
    sleep(WARM).await;
    let (before, started) = (proxy.cpu(), Instant::now());
    stage.store(MEASURING, Ordering::Relaxed);
    sleep(Duration::from_millis(options.slice)).await;
    stage.store(OVER, Ordering::Relaxed);
    let (after, seconds) = (proxy.cpu(), started.elapsed().as_secs_f64());
    let mut latencies = Vec::new();
    for client in clients {
        latencies.extend(client.await.expect("a client that ends"));
    }
    latencies.sort_unstable();
    let cpu_nanos =
        after.iter().map(|(task, nanos)| nanos.saturating_sub(before.get(task).copied().unwrap_or(0))).sum();
    Slice { requests: latencies.len(), seconds, cpu_nanos, latencies }
}

// -- The comparison ------------------------------------------------------------------------------------------------

async fn compare(options: &Options) {
    let upstream = Upstream::start().await;
    let provider = ProviderDouble::start().await;
    provider.set(|switches| {
        switches.access_token = AccessToken::Jwt;
        switches.refresh_token_size = 60;
        switches.access_lifetime = 24 * 3600;
    });
    let setup = Setup { provider: &provider, upstream: upstream.addr, key: b64u(random(32)) };
    let program = Path::new(env!("CARGO_BIN_EXE_sidegate"));

    let mut proxies = vec![
        Proxy::sidegate(options, "sidegate", program, &setup, true).await,
        Proxy::sidegate(options, "sidegate, no access log", program, &setup, false).await,
    ];
    if let Some(other) = &options.other {
        proxies.push(Proxy::sidegate(options, "other sidegate", other, &setup, true).await);
    }
    let mut targets = Vec::new();
    let mut sizes = (0, 0);
    for (index, proxy) in proxies.iter().enumerate() {
        let cookie = sign_in(proxy).await;
        let session = request("/api/orders", proxy.addr, &[("Cookie", &cookie)]);
        let forwarded = look(&upstream, proxy, &session).await;
        sizes = (cookie.len(), bearer_bytes(&upstream));
        if index != 1 {
            let public = request("/orders", proxy.addr, &[]);
            let name = format!("{}, public route", proxy.name);
            let forwarded = look(&upstream, proxy, &public).await;
            targets.push(Target { name, proxy: index, request: public, forwarded });
        }
        let name = format!("{}, session", proxy.name);
        targets.push(Target { name, proxy: index, request: session, forwarded });
    }
    let (cookie_bytes, bearer) = sizes;
    assert!(bearer > 0, "the session's token did not reach the upstream");
    // The peers come first in turns and tables.
    for (at, bearer) in [0, bearer].into_iter().enumerate() {
        let proxy = Proxy::plain(options, upstream.addr, bearer).await;
        let cookie = "c".repeat(cookie_bytes);
        let fields = [("Cookie", cookie.as_str())];
        let request = request("/api/orders", proxy.addr, if bearer == 0 { &[] } else { &fields });
        let forwarded = look(&upstream, &proxy, &request).await;
        targets.insert(at, Target { name: proxy.name.clone(), proxy: proxies.len(), request, forwarded });
        proxies.push(proxy);
    }

    println!(
        "{} targets, {} turns of {} ms each, {} connections; cookie {cookie_bytes} B, bearer {bearer} B, answers {BODY} B",
        targets.len(),
        options.turns,
        options.slice,
        options.connections
    );
    let mut slices: Vec<Vec<Slice>> = targets.iter().map(|_| Vec::new()).collect();
    for round in 0..options.turns as usize {
        // Nobody is always first.
        for step in 0..targets.len() {
            let index = (round + step) % targets.len();
            let (Some(target), Some(taken)) = (targets.get(index), slices.get_mut(index)) else { continue };
            if let Some(proxy) = proxies.get(target.proxy) {
                taken.push(turn(options, proxy, target).await);
            }
        }
    }
    report(&targets, &slices);
    report_processes(&proxies, program);
}

/// The `Cookie` field of a browser that is signed in.
async fn sign_in(proxy: &Proxy) -> String {
    let browser = Browser::behind(&format!("http://localhost:{}", proxy.addr.port()), proxy.addr);
    let landed = browser.login("/").await;
    assert_eq!(browser.session().await.get("authenticated"), Some(&true.into()), "{landed:?}");
    let pairs: Vec<_> =
        browser.jar().cookies.iter().map(|cookie| format!("{}={}", cookie.name, cookie.value)).collect();
    pairs.join("; ")
}

/// Sends a request once; how many bytes reach the upstream.
async fn look(upstream: &Upstream, proxy: &Proxy, request: &[u8]) -> usize {
    upstream.looking.store(true, Ordering::Relaxed);
    let answer = ask(proxy.addr, request).await.unwrap_or_default();
    upstream.looking.store(false, Ordering::Relaxed);
    let text = String::from_utf8_lossy(&answer);
    let length = format!("content-length: {BODY}\r\n");
    let good = text.starts_with("HTTP/1.1 200") && text.to_ascii_lowercase().contains(&length);
    assert!(good, "{} answered:\n{text}", proxy.name);
    upstream.last.lock().len()
}

/// The length of the `Authorization` field that reached the upstream.
fn bearer_bytes(upstream: &Upstream) -> usize {
    let head = String::from_utf8_lossy(&upstream.last.lock()).into_owned();
    let value = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("authorization").then_some(value.len())
    });
    value.unwrap_or(0)
}

/// The value at a quarter, the one in the middle, the one at three quarters.
fn quartiles(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
    [at(last / 4), f64::midpoint(at(last / 2), at(last.div_ceil(2))), at(last - last / 4)]
}

fn report(targets: &[Target], slices: &[Vec<Slice>]) {
    println!(
        "\n{:32} {:>9} {:>20} {:>20} {:>8} {:>7} {:>7} {:>7} {:>7}",
        "target", "CPU us", "to Pingora", "to same bytes", "req/s", "p50 us", "p99 us", "B in", "B out"
    );
    let peers: Vec<&Vec<Slice>> = slices.iter().take(2).collect();
    for (target, taken) in targets.iter().zip(slices) {
        let median = |of: fn(&Slice) -> f64| quartiles(taken.iter().map(of))[1];
        // Within one turn both met the same machine.
        let ratio = |peer: &Vec<Slice>| {
            let [low, middle, high] = quartiles(taken.iter().zip(peer).map(|(own, peer)| own.cost() / peer.cost()));
            format!("{middle:.2} ({low:.2}..{high:.2})")
        };
        let ratios: Vec<String> = peers.iter().map(|peer| ratio(peer)).collect();
        println!(
            "{:32} {:9.1} {:>20} {:>20} {:8.0} {:7.0} {:7.0} {:7} {:7}",
            target.name,
            median(Slice::cost),
            ratios.first().map_or("", String::as_str),
            ratios.get(1).map_or("", String::as_str),
            median(Slice::rate),
            median(|slice| slice.percentile(50)),
            median(|slice| slice.percentile(99)),
            target.request.len(),
            target.forwarded,
        );
    }
}

fn report_processes(proxies: &[Proxy], program: &Path) {
    println!("\n{:32} {:>9} {:>10} {:>10}", "process", "ready ms", "idle MiB", "after MiB");
    for proxy in proxies {
        let mib = |kib: u64| kib as f64 / 1024.0;
        println!(
            "{:32} {:9.1} {:10.1} {:10.1}",
            proxy.name,
            proxy.ready.as_secs_f64() * 1000.0,
            mib(proxy.idle_kib),
            mib(proxy.resident_kib())
        );
    }
    let bytes = std::fs::metadata(program).map_or(0, |file| file.len());
    println!("\n{}: {:.1} MiB", program.file_name().unwrap_or_default().to_string_lossy(), bytes as f64 / 1_048_576.0);
}
