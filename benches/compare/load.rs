//! Clients: requests, one by one or as many as a proxy can take.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::process::{Proxy, spent};
use crate::report::percentile;

/// Before each measurement, so that connections are open on both sides.
const WARM: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(20);

/// A GET as a browser's `fetch()` sends it.
pub(crate) fn request(path: &str, host: SocketAddr, more: &[(&str, &str)]) -> Vec<u8> {
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
pub(crate) async fn ask(addr: SocketAddr, request: &[u8]) -> Option<Vec<u8>> {
    let exchange = async {
        let mut client = Client::dial(addr).await?;
        client.exchange(request).await?;
        Some(client.answer)
    };
    timeout(PATIENCE, exchange).await.ok()?
}

/// A keep-alive connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    /// The last answer, head and body.
    pub(crate) answer: Vec<u8>,
}

impl Client {
    pub(crate) async fn dial(addr: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(addr).await.ok()?;
        let _ = stream.set_nodelay(true);
        Some(Self { stream, answer: Vec::with_capacity(4 * 1024) })
    }

    /// Sends a request and reads the answer; `None` when the connection ends before it does.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Option<()> {
        self.stream.write_all(request).await.ok()?;
        self.answer.clear();
        let mut whole = None;
        loop {
            if self.stream.read_buf(&mut self.answer).await.ok()? == 0 {
                return None;
            }
            if whole.is_none() {
                whole = memchr::memmem::find(&self.answer, b"\r\n\r\n").map(|at| at + 4 + self.length(at));
            }
            if whole.is_some_and(|whole| self.answer.len() >= whole) {
                return Some(());
            }
        }
    }

    /// What `Content-Length` says. Chunked answers are not read to their end; only those of our own endpoints are.
    fn length(&self, head: usize) -> usize {
        let head = self.answer.get(..head).unwrap_or_default();
        let mut lines = head.split(|byte| *byte == b'\n');
        let value = lines.find_map(|line| {
            let (name, value) = line.split_at_checked(b"content-length:".len())?;
            name.eq_ignore_ascii_case(b"content-length:").then_some(value)
        });
        value.and_then(|value| std::str::from_utf8(value.trim_ascii()).ok()?.parse().ok()).unwrap_or(0)
    }

    /// The same for a request that has to be answered by 200.
    pub(crate) async fn exchange_ok(&mut self, request: &[u8]) -> Result<(), String> {
        let answered = self.exchange(request).await;
        answered.ok_or_else(|| format!("hangs up after {} bytes of an answer", self.answer.len()))?;
        if self.answer.starts_with(b"HTTP/1.1 200") {
            return Ok(());
        }
        Err(format!("answers {}", String::from_utf8_lossy(&self.answer)))
    }

    /// Gives back the memory of the last answer.
    pub(crate) fn forget(&mut self) {
        self.answer = Vec::new();
    }
}

/// One turn of one target.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    requests: usize,
    seconds: f64,
    cpu_nanos: u64,
    /// Microseconds, sorted.
    latencies: Vec<u32>,
    /// Resident at its end, the load still on.
    pub(crate) resident_kib: u64,
}

impl Slice {
    pub(crate) fn requests(&self) -> usize {
        self.requests
    }

    /// CPU microseconds of the proxy per request.
    pub(crate) fn cost(&self) -> f64 {
        self.cpu_nanos as f64 / 1000.0 / self.requests.max(1) as f64
    }

    pub(crate) fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    /// Of the latencies, in microseconds.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        percentile(&self.latencies, percent)
    }
}

/// The stages of a turn.
const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const OVER: u8 = 2;

/// What the clients of a turn share.
struct Turn {
    addr: SocketAddr,
    requests: Vec<Vec<u8>>,
    stage: AtomicU8,
    /// Clients that have had an answer.
    warm: AtomicU32,
}

impl Turn {
    /// Sends one request after the other on one connection, beginning with that of this index; the latencies, in
    /// microseconds, of those that ended while it was measured.
    async fn hammer(self: Arc<Self>, index: usize) -> Result<Vec<u32>, String> {
        let mut client = Client::dial(self.addr).await.ok_or("does not accept a connection")?;
        let mut latencies = Vec::with_capacity(1024);
        for (sent, request) in self.requests.iter().cycle().skip(index % self.requests.len()).enumerate() {
            let started = Instant::now();
            client.exchange_ok(request).await?;
            if sent == 0 {
                self.warm.fetch_add(1, Ordering::Relaxed);
            }
            match self.stage.load(Ordering::Relaxed) {
                WARMING => {}
                MEASURING => latencies.push(started.elapsed().as_micros().try_into().unwrap_or(u32::MAX)),
                _ => break,
            }
        }
        Ok(latencies)
    }
}

/// Loads a proxy for a time: so many connections, each with one of the requests under way.
///
/// # Errors
///
/// An answer was not 200, or none came.
pub(crate) async fn turn(
    proxy: &Proxy,
    requests: &[Vec<u8>],
    connections: u32,
    time: Duration,
) -> Result<Slice, String> {
    let (stage, warm) = (AtomicU8::new(WARMING), AtomicU32::new(0));
    let turn = Arc::new(Turn { addr: proxy.addr, requests: requests.to_vec(), stage, warm });
    let clients: Vec<_> =
        (0..connections).map(|index| tokio::spawn(Arc::clone(&turn).hammer(index as usize))).collect();
    while turn.warm.load(Ordering::Relaxed) < connections && !clients.iter().any(|client| client.is_finished()) {
        sleep(Duration::from_millis(1)).await;
    }
    sleep(WARM).await;
    let (before, started) = (proxy.cpu(), Instant::now());
    turn.stage.store(MEASURING, Ordering::Relaxed);
    sleep(time).await;
    let resident_kib = proxy.resident_kib();
    turn.stage.store(OVER, Ordering::Relaxed);
    let (after, seconds) = (proxy.cpu(), started.elapsed().as_secs_f64());
    let mut latencies = Vec::new();
    for client in clients {
        latencies.extend(client.await.map_err(|error| error.to_string())??);
    }
    latencies.sort_unstable();
    Ok(Slice { requests: latencies.len(), seconds, cpu_nanos: spent(&before, &after), latencies, resident_kib })
}
