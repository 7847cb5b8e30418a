//! The application behind all proxies: the same answer to every request, as cheaply as can be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::load::ask;
use crate::process::Proxy;

/// Bytes of an ordinary answer.
pub(crate) const BODY: usize = 1024;
/// Bytes of the answer to a path that begins like one of these.
pub(crate) const LARGE_BODY: usize = 100 * 1024;
/// Below it answers are large.
pub(crate) const LARGE_PATH: &str = "/api/large";
/// The same where nobody has to be signed in.
pub(crate) const LARGE_PUBLIC_PATH: &str = "/large";

/// Answers every request with 200 and `x`es.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) addr: SocketAddr,
    /// Keep the next heads in `last`.
    looking: AtomicBool,
    last: Mutex<Vec<u8>>,
}

impl Upstream {
    pub(crate) async fn start() -> Arc<Self> {
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
        let (small, mut large) = (answer(BODY), Vec::new());
        let mut unread = Vec::with_capacity(16 * 1024);
        while let Ok(1..) = stream.read_buf(&mut unread).await {
            // No request of ours has a body: a head's end is a request's end.
            while let Some(at) = memchr::memmem::find(&unread, b"\r\n\r\n") {
                let path = unread.strip_prefix(b"GET ").unwrap_or_default();
                let is_large = [LARGE_PATH, LARGE_PUBLIC_PATH].iter().any(|large| path.starts_with(large.as_bytes()));
                if is_large && large.is_empty() {
                    large = answer(LARGE_BODY);
                }
                if self.looking.load(Ordering::Relaxed) {
                    *self.last.lock() = unread.get(..at + 4).unwrap_or_default().to_vec();
                }
                unread.drain(..at + 4);
                if stream.write_all(if is_large { &large } else { &small }).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Sends a request through a proxy; the head that arrives.
    ///
    /// # Errors
    ///
    /// The proxy gave another answer than this application does.
    pub(crate) async fn look(&self, proxy: &Proxy, request: &[u8]) -> Result<String, String> {
        self.looking.store(true, Ordering::Relaxed);
        let answer = ask(proxy.addr, request).await.unwrap_or_default();
        self.looking.store(false, Ordering::Relaxed);
        let whole = [BODY, LARGE_BODY].iter().any(|length| answer.ends_with(&b"x".repeat(*length)));
        if answer.starts_with(b"HTTP/1.1 200") && whole {
            return Ok(String::from_utf8_lossy(&self.last.lock()).into_owned());
        }
        Err(format!("{} answered:\n{}\n{}", proxy.name, String::from_utf8_lossy(&answer), proxy.errors()))
    }
}

fn answer(length: usize) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    let mut answer = head.into_bytes();
    answer.resize(answer.len() + length, b'x');
    answer
}
