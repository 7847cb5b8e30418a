//! What sidegate forwards means the same to every server: odd requests and mutations of them go through a gateway, and
//! what came out at its other side is read again by hyper, Node, nginx and Apache, as far as they are at hand. A server
//! may refuse a request; one that sees another request, or one more, fails.
//!
//! `MUTATIONS=100000 cargo test --test differential` is the long run.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "helpers of tests are test code too"
)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use support::exact::{route, routes};
use support::gateway::free_port;
use support::inside::Inside;
use support::mutate::{Dice, change};
use support::provider::ProviderDouble;
use support::server::{self, Process, Running};
use support::upstream::Upstream;
use support::wire::{self, Answer, Conn, Request, Server};

/// Mutations in the ordinary run.
const MUTATIONS: usize = 3_000;
/// Connections at once.
const AT_ONCE: usize = 16;
/// Requests on one connection to a server that reads again.
const BATCH: usize = 50;
/// Ends such a connection, so that nothing is left in it unseen.
const LAST: &[u8] = b"GET /the-last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
/// A server that does not answer in this time hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Odd, but each with at most one meaning.
fn seeds() -> Vec<Vec<u8>> {
    let head = |line: &str, fields: &str| format!("{line} HTTP/1.1\r\nHost: HOST\r\n{fields}\r\n");
    let texts = [
        head("GET /", ""),
        head("GET /a?x=1&y=%2F//..;#", ""),
        head("GET /%61;v=1/b", ""),
        head("HEAD /head", ""),
        head("OPTIONS *", ""),
        head("OPTIONS /o", "Origin: http://localhost\r\n"),
        head("DELETE /d", "Content-Length: 0\r\n"),
        head("PURGE /p", ""),
        head("POST /p", "Content-Length: 5\r\n") + "hello",
        head("POST /p", "Content-Length: 5\r\n") + "hello" + &head("GET /second", ""),
        head("POST /p", "Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n0\r\n\r\n",
        head("POST /p", "Transfer-Encoding: Chunked\r\n") + "5;ext=\"a;b\"\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n",
        head("POST /p", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n") + "5\r\nhello\r\n0\r\n\r\n",
        head("POST /p", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n")
            + "0\r\n\r\n"
            + &head("GET /smuggled", ""),
        head("POST /p", "Content-Length: 5\r\nContent-Length: 6\r\n") + "hello!",
        head("POST /p", "Content-Length: 5, 5\r\n") + "hello",
        head("POST /p", "Content-Length: +5\r\n") + "hello",
        head("POST /p", "Transfer-Encoding: gzip, chunked\r\n") + "0\r\n\r\n",
        head("POST /p", "Transfer-Encoding: identity\r\nContent-Length: 5\r\n") + "hello",
        head("POST /p", "Transfer-Encoding: xchunked\r\n") + "0\r\n\r\n",
        head("POST /p", "Transfer-Encoding\r\n : chunked\r\n") + "0\r\n\r\n",
        head("GET /get-with-body", "Content-Length: 3\r\n") + "abc" + &head("GET /after", ""),
        head("GET /e", "Expect: 100-continue\r\nContent-Length: 3\r\n") + "abc",
        head("GET /fold", "X-A: 1\r\n 2\r\n"),
        head("GET /lf", "X-A: 1\nX-B: 2\r\n"),
        head("GET /many", "X-A: 1\r\nX-A: 2\r\nx-a:3\r\nX-Empty:\r\nX-Tab:\t4\t\r\n"),
        head("GET /nominate", "Connection: close, x-a, content-length\r\nX-A: 1\r\n"),
        head(
            "GET /ws",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: ORIGIN\r\n",
        ),
        head("GET /h2c", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"),
        head("GET http://HOST/absolute", ""),
        head("GET http://HOST", ""),
        head("GET /latin-\u{e4}", "X-Latin: \u{e4}\r\n"),
        head("GET /two-hosts", "Host: evil.example\r\n"),
        "GET /old HTTP/1.0\r\nHost: HOST\r\n\r\n".to_owned(),
        "GET /old HTTP/1.0\r\nHost: HOST\r\nConnection: keep-alive\r\n\r\n".to_owned(),
        "GET /0.9\r\n".to_owned(),
        "\r\nGET /after-an-empty-line HTTP/1.1\r\nHost: HOST\r\n\r\n".to_owned(),
        "GET  /two-blanks HTTP/1.1\r\nHost: HOST\r\n\r\n".to_owned(),
        "GET /version HTTP/1.2\r\nHost: HOST\r\n\r\n".to_owned(),
        "G\u{e4}T /method HTTP/1.1\r\nHost: HOST\r\n\r\n".to_owned(),
    ];
    texts.into_iter().map(String::into_bytes).collect()
}

/// Reads what a gateway forwards, and keeps it by connection.
async fn capture() -> (Server, Arc<Mutex<Vec<Request>>>) {
    let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
    let keep = Arc::clone(&seen);
    let server = Server::start(move |mut conn: Conn| {
        let keep = Arc::clone(&keep);
        async move {
            while let Ok(Some(mut request)) = wire::read_request_head(&mut conn).await {
                if wire::read_request_body(&mut conn, &mut request).await.is_err() || !request.complete {
                    return;
                }
                let answer = Answer::new(200, "text/plain", "ok").bytes(&request.method);
                keep.lock().push(request);
                if conn.send(&answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (server, seen)
}

/// A server that says in `X-Seen` which request it answers.
struct Reader {
    name: &'static str,
    addr: SocketAddr,
    /// Says in `X-Body` how long the body was.
    measures: bool,
    _process: Option<Process>,
    _server: Option<Running>,
}

impl Reader {
    fn of(name: &'static str, server: Running) -> Self {
        Self { name, addr: server.addr, measures: false, _process: None, _server: Some(server) }
    }
}

async fn hyper_reader() -> Reader {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
                let host = request.headers().get("host").map_or("", |value| value.to_str().unwrap_or("?"));
                let seen = format!("{} {} {:?}|{host}", request.method(), request.uri(), request.version());
                let body = http_body_util::BodyExt::collect(request.into_body()).await?.to_bytes();
                let response = hyper::Response::builder().header("x-seen", seen).header("x-body", body.len());
                let empty = http_body_util::Empty::<bytes::Bytes>::new();
                Ok::<_, hyper::Error>(response.body(empty).expect("a response"))
            });
            let http = hyper::server::conn::http1::Builder::new();
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(async move { http_serve(http, io, service).await });
        }
    });
    Reader { name: "hyper", addr, measures: true, _process: None, _server: None }
}

async fn http_serve<S>(
    mut http: hyper::server::conn::http1::Builder,
    io: hyper_util::rt::TokioIo<tokio::net::TcpStream>,
    service: S,
) where
    S: hyper::service::HttpService<
            hyper::body::Incoming,
            ResBody = http_body_util::Empty<bytes::Bytes>,
            Error = hyper::Error,
        >,
{
    let _ = http.pipeline_flush(true).serve_connection(io, service).await;
}

fn node_reader() -> Reader {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/echo.mjs");
    let mut child = Command::new("node")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Node, which `scripts/install-tools.sh test` installs");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("the port");
    let addr = (Ipv4Addr::LOCALHOST, line.trim().parse().expect("a port")).into();
    Reader { name: "Node", addr, measures: true, _process: Some(Process(child)), _server: None }
}

async fn nginx_reader() -> Option<Reader> {
    let port = free_port();
    let server = server::nginx(port, |_| {
        format!(
            r#"
            client_max_body_size 0; keepalive_requests 1000000; large_client_header_buffers 8 64k;
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    add_header X-Seen "$request|$http_host" always;
                    return 204;
                }}
            }}"#
        )
    });
    Some(Reader::of("nginx", server.await?))
}

async fn apache_reader() -> Option<Reader> {
    let modules = Path::new("/usr/lib/apache2/modules");
    if !modules.is_dir() {
        return None;
    }
    let port = free_port();
    let server = server::start("apache2", port, |folder| {
        let folder = folder.display();
        let mut text = String::new();
        for module in ["mpm_event", "authz_core", "headers"] {
            text.push_str(&format!("LoadModule {module}_module {}/mod_{module}.so\n", modules.display()));
        }
        text.push_str(&format!(
            r#"
            ServerName localhost
            ServerRoot {folder}
            PidFile {folder}/pid
            ErrorLog {folder}/error.log
            Listen 127.0.0.1:{port}
            DocumentRoot {folder}
            KeepAlive On
            MaxKeepAliveRequests 0
            LimitRequestFieldSize 65536
            LimitRequestLine 65536
            HttpProtocolOptions Strict
            AllowEncodedSlashes NoDecode
            TraceEnable off
            Header always set X-Seen "expr=%{{THE_REQUEST}}|%{{req:Host}}"
            "#
        ));
        std::fs::write(format!("{folder}/apache.conf"), text).expect("written");
        vec!["-f".to_owned(), format!("{folder}/apache.conf"), "-X".to_owned()]
    });
    Some(Reader::of("Apache", server.await?))
}

#[derive(Debug, Default)]
struct Tally {
    same: usize,
    refused: usize,
}

/// One pipelined connection after the other, until every request was answered or refused.
async fn reread(reader: &Reader, requests: &[Request]) -> Tally {
    let mut tally = Tally::default();
    let mut left = requests;
    // Node answers a bad request before the good ones ahead of it: after a refusal one at a time goes, for a while.
    let mut alone: usize = 0;
    while !left.is_empty() {
        // Nothing may follow a handshake until it is answered.
        let handshake = left.iter().position(|request| request.header("upgrade").is_some());
        let batch = match handshake {
            Some(0) => &left[..1],
            Some(at) => &left[..at.min(BATCH)],
            None => &left[..left.len().min(BATCH)],
        };
        let batch = if alone > 0 { &batch[..1] } else { batch };
        alone = alone.saturating_sub(1);
        let mut conn = Conn::dial(reader.addr).await.expect("the server is there");
        let mut bytes: Vec<u8> = batch.iter().flat_map(Request::raw).collect();
        if handshake != Some(0) {
            bytes.extend_from_slice(LAST);
        }
        let sent = conn.send(&bytes).await.is_ok();
        let mut answered = 0;
        while answered < batch.len() {
            let request = &batch[answered];
            let reply = tokio::time::timeout(PATIENCE, wire::read_reply(&mut conn, &request.method)).await;
            let reply = reply.unwrap_or_else(|_| panic!("{} hangs at {}", reader.name, shown(request)));
            let Ok(Some(reply)) = reply else { break };
            let seen = support::text::header(&reply.headers, "x-seen");
            let Some(seen) = seen.filter(|_| reply.status != 400) else {
                assert!((400..=599).contains(&reply.status), "{}: {reply:?} to {}", reader.name, shown(request));
                if batch.len() > 1 {
                    alone = batch.len() - answered;
                } else {
                    tally.refused += 1;
                    answered += 1;
                }
                break;
            };
            let host = request.header("host").unwrap_or_default();
            let expected = format!("{} {} HTTP/1.1|{host}", request.method, request.target);
            assert_eq!(
                support::text::unlatin1(seen),
                support::text::unlatin1(&expected),
                "{} reads {}",
                reader.name,
                shown(request)
            );
            if reader.measures {
                let length = support::text::header(&reply.headers, "x-body");
                assert_eq!(
                    length,
                    Some(request.body.len().to_string().as_str()),
                    "{} reads {}",
                    reader.name,
                    shown(request)
                );
            }
            tally.same += 1;
            answered += 1;
        }
        if answered == batch.len() && sent && handshake != Some(0) {
            let last = tokio::time::timeout(PATIENCE, wire::read_reply(&mut conn, "GET")).await;
            if let Ok(Ok(Some(last))) = last {
                let seen = support::text::header(&last.headers, "x-seen").unwrap_or_default();
                assert_eq!(seen, "GET /the-last HTTP/1.1|x", "{} sees a request more than was forwarded", reader.name);
            }
            let rest = tokio::time::timeout(PATIENCE, conn.take_to_end()).await.unwrap_or_default();
            assert!(
                rest.is_empty(),
                "{} sees a request more than was forwarded: {}",
                reader.name,
                String::from_utf8_lossy(&rest)
            );
        }
        // A server that closes before it answers refuses without a word.
        if answered == 0 && batch.len() == 1 {
            (tally.refused, answered) = (tally.refused + 1, 1);
        } else if answered < batch.len() && alone == 0 {
            alone = batch.len() - answered;
        }
        left = &left[answered..];
    }
    tally
}

fn shown(request: &Request) -> String {
    String::from_utf8_lossy(&request.raw()).into_owned()
}

/// HTTP-01 to HTTP-14, ASVS-1.5.3, ASVS-4.2.1: one reading of every request, at the gateway and behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_forwarded_means_the_same_to_every_server() {
    let wanted = std::env::var("MUTATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(MUTATIONS);
    let provider = ProviderDouble::start().await;
    let unused = Upstream::start().await;
    let (upstream, seen) = capture().await;
    let url = format!("http://{}", upstream.addr);
    let gateway = Inside::start_with(&provider, &unused, |config| {
        routes(config, &route("/", &url, "access = 'public'"));
        support::gateway::set(config, "limits.head_timeout", "'1s'");
    })
    .await;
    let host = gateway.public_url.trim_start_matches("http://").to_owned();
    let seeds: Vec<Vec<u8>> = seeds().iter().map(|seed| replace(seed, &host, &gateway.public_url)).collect();

    let mut dice = Dice(0x0dd5_eed5_0000_0001);
    let mut inputs = seeds.clone();
    while inputs.len() < seeds.len() + wanted {
        let seed = &seeds[dice.below(seeds.len())];
        let mut input = seed.clone();
        // Few changes: the gateway is strict, and what it refuses shows nothing here.
        for _ in 0..=dice.below(2) {
            change(&mut input, &seeds, &mut dice);
        }
        inputs.push(input);
    }
    let inputs = Arc::new(Mutex::new(inputs));
    let mut clients = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (inputs, addr) = (Arc::clone(&inputs), gateway.addr);
        clients.spawn(async move {
            loop {
                let Some(input) = inputs.lock().pop() else { return };
                let mut conn = Conn::dial(addr).await.expect("the gateway is there");
                if conn.send(&input).await.is_ok() {
                    let _ = conn.half_close().await;
                }
                let answers = tokio::time::timeout(PATIENCE, conn.take_to_end()).await;
                let answers = answers.unwrap_or_else(|_| panic!("no end after {:?}", String::from_utf8_lossy(&input)));
                assert!(
                    answers.is_empty() || answers.starts_with(b"HTTP/1.1 "),
                    "{:?}",
                    String::from_utf8_lossy(&input)
                );
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.expect("a client");
    }
    let forwarded = std::mem::take(&mut *seen.lock());
    assert!(forwarded.len() > wanted / 20, "only {} requests passed", forwarded.len());

    let mut readers = vec![hyper_reader().await, node_reader()];
    readers.extend(nginx_reader().await);
    readers.extend(apache_reader().await);
    let mut out = std::io::stdout().lock();
    for reader in &readers {
        let tally = reread(reader, &forwarded).await;
        let _ = writeln!(
            out,
            "{}: {} of {} read alike, {} refused",
            reader.name,
            tally.same,
            forwarded.len(),
            tally.refused
        );
        assert!(tally.same * 10 > forwarded.len() * 8, "{} refuses too much: {tally:?}", reader.name);
    }
}

fn replace(seed: &[u8], host: &str, origin: &str) -> Vec<u8> {
    let text = String::from_utf8(seed.to_vec()).expect("seeds are text");
    text.replace("HOST", host).replace("ORIGIN", origin).into_bytes()
}
