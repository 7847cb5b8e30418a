//! HTTP/2, towards clients and towards upstreams: what is forwarded, what is refused, what ends a flood, gRPC.
//!
//! What RFC 9113 asks of any server is checked by h2spec (`docs/operations.md`); here is what matters behind a
//! gateway.

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{ServerConfig, crypto::ring};

use support::exact::{PATIENCE, Rig, SCRIPT, answer, route, routes};
use support::gateway::set;
use support::http2::{Client, GrpcUpstream, Raw, Whole, field, frame};
use support::upstream::Script;

async fn h2c() -> Rig {
    Rig::start(|config, _| set(config, "server.h2c", "true")).await
}

fn code(whole: &Whole) -> String {
    let document: serde_json::Value = serde_json::from_slice(&whole.body).unwrap_or_default();
    document.get("code").and_then(|code| code.as_str()).unwrap_or_default().to_owned()
}

/// COOKIE-30, HDR-06: many requests on one connection, each forwarded as HTTP/1.1 with what it needs.
#[tokio::test]
async fn h2_requests_are_forwarded_as_http_1_1() {
    let rig = h2c().await;
    let client = Client::dial(rig.gateway.addr).await;
    let url = |path: &str| format!("{}{path}", rig.gateway.public_url);
    let crumbs = [("cookie", "a=1"), ("cookie", rig.cookie.as_str()), ("cookie", "b=2")];
    let fields = [SCRIPT, &crumbs, &[("x-forwarded-for", "192.0.2.1"), ("authorization", "Bearer mine")]].concat();
    for (method, body) in [("GET", None), ("POST", Some(&b"a body"[..])), ("PUT", Some(b"")), ("DELETE", None)] {
        rig.upstream.forget();
        let whole = client.call(method, &url("/api/x?y=1"), &fields, body).await.expect("an answer");
        assert_eq!(whole.status, 200, "{method}: {}", String::from_utf8_lossy(&whole.body));
        let seen = rig.upstream.last();
        assert_eq!(
            (seen.method.as_str(), seen.target.as_str(), seen.version.as_str()),
            (method, "/api/x?y=1", "HTTP/1.1")
        );
        assert_eq!(seen.body, body.unwrap_or_default());
        assert_eq!(seen.header_all("cookie"), ["a=1; b=2"]);
        assert_eq!(seen.header_all("host"), [rig.upstream.url().replace("http://", "")]);
        assert_eq!(seen.header_all("x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(seen.header_all("authorization").len(), 1);
        assert!(seen.bearer().is_some_and(|token| rig.provider.is_active(token)));
    }
    // HTTP-01: a body that ends with an empty frame ends once, and leaves nothing on the connection to the upstream.
    rig.upstream.forget();
    for _ in 0..5 {
        let whole = client.call("POST", &url("/api/x"), &fields, Some(b"")).await.expect("an answer");
        assert_eq!(whole.status, 200);
    }
    assert_eq!(rig.upstream.requests().len(), 5, "{:?}", rig.upstream.requests());
    let head = client.call("HEAD", &url("/x"), &[], None).await.expect("an answer");
    assert_eq!((head.status, head.body.len()), (200, 0));
    let anonymous = client.call("GET", &url("/api/x"), SCRIPT, None).await.expect("an answer");
    assert_eq!((anonymous.status, code(&anonymous)), (401, "login_required".to_owned()));
    // HTTP/1.1 on the same port.
    assert_eq!(rig.get("/api/x", &[]).await.status, 200);
}

/// HDR-10, COOKIE-13, ASVS-4.2.3: an answer is cleaned on HTTP/2 as well, and a refreshed session arrives.
#[tokio::test]
async fn h2_answers_are_cleaned() {
    let rig = h2c().await;
    let raw = "HTTP/1.1 200 OK\r\nServer: x\r\nKeep-Alive: 5\r\nConnection: X-Hop\r\nX-Hop: 1\r\nTransfer-Encoding: chunked\r\n\
               Trailer: X-Late\r\nSet-Cookie: sidegate=theirs\r\nSet-Cookie: own=1\r\n\r\n2\r\nok\r\n0\r\nX-Late: 1\r\n\r\n";
    rig.upstream.on("/api/raw", Script::Raw(raw.as_bytes().to_vec()));
    rig.gateway.advance(&rig.provider, 3600);
    let client = Client::dial(rig.gateway.addr).await;
    let url = format!("{}/api/raw", rig.gateway.public_url);
    let whole = client.call("GET", &url, &rig.signed(SCRIPT), None).await.expect("an answer");
    assert_eq!((whole.status, whole.body.as_slice(), whole.trailers), (200, &b"ok"[..], None));
    for gone in ["server", "keep-alive", "connection", "x-hop", "transfer-encoding", "trailer"] {
        assert!(!whole.headers.contains_key(gone), "{gone}");
    }
    let cookies: Vec<_> = whole.headers.get_all("set-cookie").iter().filter_map(|value| value.to_str().ok()).collect();
    assert!(cookies.contains(&"own=1") && !cookies.contains(&"sidegate=theirs"));
    assert!(cookies.iter().any(|cookie| cookie.starts_with("sidegate=")), "{cookies:?}");
}

/// H2-11: without `server.h2c` the preface is a bad request, and no upgrade leads there.
#[tokio::test]
async fn h2_11_prior_knowledge_is_off_by_default() {
    let rig = Rig::start(|_, _| {}).await;
    let mut conn = rig.gateway.dial().await;
    conn.send(&support::http2::preface()).await.expect("sent");
    assert_eq!(answer(&mut conn, "GET").await.expect("an answer").status, 400);
    let fields =
        [("Upgrade", "h2c"), ("Connection", "Upgrade, HTTP2-Settings"), ("HTTP2-Settings", "AAMAAABkAAQAAP__")];
    let seen = rig.forwarded("GET", "/x", &fields).await;
    assert_eq!((seen.header("upgrade"), seen.header("http2-settings")), (None, None));
}

/// H2-09: what a client may do is said, and bounded.
#[tokio::test]
async fn h2_09_settings_are_finite() {
    let rig = h2c().await;
    let mut raw = Raw::dial(rig.gateway.addr).await;
    let settings = raw.next_of(4).await.expect("SETTINGS").payload;
    let said = |id: u8| {
        let mut pairs = settings.chunks(6);
        let pair = pairs.find(|pair| pair[1] == id).unwrap_or_else(|| panic!("setting {id} of {settings:?}"));
        u32::from_be_bytes(pair[2..].try_into().expect("four bytes"))
    };
    assert_eq!((said(3), said(5), said(6)), (100, 16 * 1024, 64 * 1024));
}

/// A request with this block on stream 1, and a body if it has not ended.
fn request(fields: &[(&str, &str)], data: Option<&[u8]>) -> Vec<u8> {
    let block: Vec<u8> = fields.iter().flat_map(|(name, value)| field(name, value)).collect();
    let mut bytes = frame(1, if data.is_some() { 4 } else { 5 }, 1, &block);
    if let Some(data) = data {
        bytes.extend(frame(0, 1, 1, data));
    }
    bytes
}

/// H2-02, H2-03, H2-04, H2-05, H2-06, H2-07, ASVS-4.2.3, ASVS-4.2.4: what has no single meaning, above all as HTTP/1.1,
/// is refused, and nothing of it is forwarded.
#[tokio::test]
async fn h2_02_to_07_malformed_requests_are_not_forwarded() {
    let rig = h2c().await;
    let host = rig.gateway.host().to_owned();
    let good = [(":method", "GET"), (":scheme", "http"), (":authority", host.as_str()), (":path", "/x")];
    let with = |more: &[(&'static str, &'static str)]| [&good[..], more].concat();
    let instead = |name: &'static str, value: &'static str| {
        good.iter().map(|pair| if pair.0 == name { (name, value) } else { *pair }).collect::<Vec<_>>()
    };
    let without = |name: &str| good.iter().copied().filter(|pair| pair.0 != name).collect::<Vec<_>>();
    let cases: Vec<(Vec<_>, Option<&[u8]>)> = vec![
        (with(&[("connection", "close")]), None),
        (with(&[("transfer-encoding", "chunked")]), Some(b"x")),
        (with(&[("keep-alive", "1")]), None),
        (with(&[("upgrade", "websocket")]), None),
        (with(&[("proxy-connection", "x")]), None),
        (with(&[("te", "gzip")]), None),
        (with(&[("content-length", "5")]), Some(b"x")),
        (with(&[("content-length", "1"), ("content-length", "2")]), Some(b"x")),
        (with(&[("content-length", "1"), ("content-length", "1")]), Some(b"x")),
        (with(&[("content-length", "+1")]), Some(b"x")),
        (with(&[("content-length", "01")]), Some(b"x")),
        (with(&[("X-Upper", "1")]), None),
        (with(&[("x y", "1")]), None),
        (with(&[("x:y", "1")]), None),
        (with(&[("x", "a\r\nhost: evil")]), None),
        (with(&[("x", "a\nb")]), None),
        (with(&[("x", "a\0b")]), None),
        (with(&[("x", " a")]), None),
        (with(&[("x", "a\t")]), None),
        (with(&[("host", "evil.example")]), None),
        (with(&[(":path", "/y")]), None),
        ([&[("x", "1")], &good[..]].concat(), None),
        (instead(":path", "*"), None),
        (instead(":path", ""), None),
        (instead(":path", "x"), None),
        (instead(":path", "http://evil.example/x"), None),
        (instead(":path", "/x y"), None),
        (instead(":path", "/x\r\nHost: evil"), None),
        (instead(":path", "/a/..%2fx"), None),
        (instead(":authority", "evil.example"), None),
        (instead(":authority", "user@localhost"), None),
        (instead(":method", "CONNECT"), None),
        (instead(":method", "TRACE"), None),
        (instead(":method", "G ET"), None),
        (without(":authority"), None),
        (without(":path"), None),
        (without(":method"), None),
    ];
    for (fields, data) in cases {
        let mut raw = Raw::dial(rig.gateway.addr).await;
        raw.send(&request(&fields, data)).await;
        // 0x88 would be `:status: 200`.
        assert_ne!(raw.outcome().await, Some(0x88), "{fields:?}");
    }
    // Bodies are not gathered: of one with a wrong length the head may have left, but never a whole request.
    assert!(rig.upstream.requests().iter().all(|request| !request.complete), "{:?}", rig.upstream.requests());
    // Extended CONNECT (RFC 8441) is not offered, and refused.
    let mut raw = Raw::dial(rig.gateway.addr).await;
    let mut connect = instead(":method", "CONNECT");
    connect.insert(1, (":protocol", "websocket"));
    raw.send(&request(&connect, None)).await;
    assert_ne!(raw.outcome().await, Some(0x88));
    let mut raw = Raw::dial(rig.gateway.addr).await;
    raw.send(&request(&good, None)).await;
    assert_eq!(raw.outcome().await, Some(0x88), "the same without a fault is served");
    // ROUTE-04: a fragment is cut off before anything is judged.
    let mut raw = Raw::dial(rig.gateway.addr).await;
    raw.send(&request(&instead(":path", "/x#/../api"), None)).await;
    assert_eq!((raw.outcome().await, rig.upstream.last().target.as_str()), (Some(0x88), "/x"));
}

/// HTTP-26, ERR-01: refusals have our words.
#[tokio::test]
async fn h2_refusals_are_problem_documents() {
    let rig = h2c().await;
    let client = Client::dial(rig.gateway.addr).await;
    let url = |path: &str| format!("{}{path}", rig.gateway.public_url);
    let long = "x".repeat(17_000);
    let whole = client.call("GET", &url(&format!("/{long}")), &[], None).await.expect("an answer");
    assert_eq!((whole.status, code(&whole)), (414, "uri_too_long".to_owned()));
    let names: Vec<String> = (0..101).map(|n| format!("x-{n}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
    let whole = client.call("GET", &url("/x"), &many, None).await.expect("an answer");
    assert_eq!((whole.status, code(&whole)), (431, "headers_too_large".to_owned()));
    let whole = client.call("GET", "http://evil.example/x", &[], None).await.expect("an answer");
    assert_eq!((whole.status, code(&whole)), (421, "wrong_host".to_owned()));
    let whole = client.call("TRACE", &url("/x"), &[], None).await.expect("an answer");
    assert_eq!((whole.status, code(&whole)), (405, "method_not_allowed".to_owned()));
    assert!(!whole.headers.contains_key("server"));
    let large = vec![b'x'; 64 * 1024 + 1];
    let whole = client.call("POST", &url("/auth/logout"), SCRIPT, Some(&large)).await.expect("an answer");
    assert_eq!((whole.status, code(&whole)), (413, "body_too_large".to_owned()));
    assert!(rig.upstream.untouched());
    // The answer to HEAD ends with its head, also when it stands in for an upstream's.
    rig.upstream.on("/x", Script::RawThenClose(b"garbage\r\n\r\n".to_vec()));
    let whole = client.call("HEAD", &url("/x"), SCRIPT, None).await.expect("a whole answer");
    assert_eq!((whole.status, whole.body.len()), (502, 0));
}

/// H2-10: a small block that becomes a large one is not unpacked.
#[tokio::test]
async fn h2_10_a_header_bomb_is_refused() {
    let rig = h2c().await;
    let mut raw = Raw::dial(rig.gateway.addr).await;
    let good = [(":method", "GET"), (":scheme", "http"), (":authority", rig.gateway.host()), (":path", "/x")];
    let mut block: Vec<u8> = good.iter().flat_map(|(name, value)| field(name, value)).collect();
    // With incremental indexing: the dynamic table's first entry, which one byte then names again and again.
    let mut large = field("bomb", &"x".repeat(3000));
    large[0] = 0x40;
    block.extend(large);
    block.extend(vec![0xbe; 10_000]);
    raw.send(&frame(1, 5, 1, &block)).await;
    assert_ne!(raw.outcome().await, Some(0x88));
    assert!(rig.upstream.untouched());
}

/// H2-08: floods end the connection that they come on, with GOAWAY, and nobody else's.
#[tokio::test]
async fn h2_08_floods_end_the_connection() {
    let rig = h2c().await;
    let good = [(":method", "GET"), (":scheme", "http"), (":authority", rig.gateway.host()), (":path", "/x")];
    let block: Vec<u8> = good.iter().flat_map(|(name, value)| field(name, value)).collect();
    let stream_frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let mut bytes = frame(kind, flags, 0, payload);
        bytes[5..9].copy_from_slice(&stream.to_be_bytes());
        bytes
    };
    let rapid_reset: Vec<u8> = (0..2000)
        .flat_map(|n| [stream_frame(1, 5, 2 * n + 1, &block), stream_frame(3, 0, 2 * n + 1, &[0, 0, 0, 8])].concat())
        .collect();
    let mut continuations = stream_frame(1, 0, 1, &block);
    continuations.extend((0..5000).flat_map(|_| stream_frame(9, 0, 1, b"")));
    let mut empty = stream_frame(1, 4, 1, &block);
    empty.extend((0..5000).flat_map(|_| stream_frame(0, 0, 1, b"")));
    for (name, flood) in [
        ("rapid reset", rapid_reset),
        ("SETTINGS", frame(4, 0, 0, b"").repeat(5000)),
        ("PING", frame(6, 0, 0, &[7; 8]).repeat(5000)),
        ("PRIORITY", frame(2, 0, 1, &[0, 0, 0, 0, 1]).repeat(5000)),
        ("WINDOW_UPDATE", frame(8, 0, 0, &[0, 0, 0, 1]).repeat(5000)),
        ("CONTINUATION", continuations),
        ("empty DATA", empty),
    ] {
        let raw = Raw::dial(rig.gateway.addr).await;
        let (mut read, mut write) = raw.0.into_split();
        // Answers are read meanwhile: the flood is not held back by its own client.
        let sending = tokio::spawn(async move {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut write, &flood).await;
            write
        });
        let mut answers = Vec::new();
        let end = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut answers);
        let end = tokio::time::timeout(PATIENCE, end).await;
        assert!(end.is_ok(), "{name}: the connection ends");
        drop(sending.await);
        assert_eq!(rig.get("/api/x", &[]).await.status, 200, "after {name}");
    }
}

/// DOS-01: a head that does not come to its end, and a connection on which nothing happens, are cut off.
#[tokio::test]
async fn h2_slow_clients_are_cut_off() {
    let rig = Rig::start(|config, _| {
        set(config, "server.h2c", "true");
        set(config, "limits.head_timeout", "'300ms'");
        set(config, "limits.keepalive", "'300ms'");
        set(config, "limits.body_idle", "'300ms'");
    })
    .await;
    let block = field(":method", "GET");
    for bytes in [&b""[..], &frame(1, 0, 1, &block), &frame(1, 4, 1, &block)[..12], b"\0\0"] {
        let mut raw = Raw::dial(rig.gateway.addr).await;
        raw.send(bytes).await;
        while raw.next().await.is_some() {}
    }
    let client = Client::dial(rig.gateway.addr).await;
    let url = format!("{}/x", rig.gateway.public_url);
    let whole = client.stall(&url, &[]).await.expect("an answer");
    assert_eq!((whole.status, code(&whole)), (408, "request_timeout".to_owned()));
}

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", "tls", name].iter().collect()
}

fn acceptor() -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(fixture("localhost.pem")).expect("PEM").collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_file(fixture("localhost.key")).expect("a key");
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain.expect("certificates"), key)
        .expect("a pair");
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// H2-12: a gRPC call passes with its status in the trailers, by prior knowledge and by negotiation, and is not cut
/// for its silence.
#[tokio::test]
async fn h2_12_grpc_passes_with_its_trailers() {
    for (tls, scheme) in [(None, "h2c"), (Some(acceptor()), "https")] {
        let server = GrpcUpstream::start(tls, Duration::from_millis(500)).await;
        let rig = Rig::start(|config, _| {
            set(config, "server.h2c", "true");
            let to = format!("{scheme}://localhost:{}", server.addr.port());
            let more = format!("read_timeout = '200ms'\nupstream_tls = {{ ca_file = {:?} }}", fixture("localhost.pem"));
            routes(config, &route("/", &to, &more));
        })
        .await;
        let client = Client::dial(rig.gateway.addr).await;
        let url = format!("{}/pkg.Service/Call", rig.gateway.public_url);
        let fields = [SCRIPT, &[("content-type", "application/grpc"), ("te", "trailers"), ("x-own", "1")]].concat();
        let whole = client.call("POST", &url, &rig.signed(&fields), Some(b"\0\0\0\0\x02hi")).await.expect("an answer");
        assert_eq!((whole.status, whole.body.as_slice()), (200, &b"\0\0\0\0\x02hi"[..]), "{scheme}");
        assert!(!whole.headers.contains_key("server"));
        let trailers = whole.trailers.expect("trailers");
        assert_eq!(trailers.get("grpc-status").map(|value| value.as_bytes()), Some(&b"0"[..]));
        assert!(!trailers.contains_key("set-cookie"));
        let head = server.heads().pop().expect("a request");
        assert_eq!(head.version, http::Version::HTTP_2);
        assert_eq!(head.uri.authority().map(ToString::to_string), Some(format!("localhost:{}", server.addr.port())));
        assert_eq!(head.uri.path(), "/pkg.Service/Call");
        assert_eq!(head.headers.get("te").map(|value| value.as_bytes()), Some(&b"trailers"[..]));
        assert_eq!(head.headers.get_all("authorization").iter().count(), 1);
        assert!(!head.headers.contains_key("host") && !head.headers.contains_key("cookie"));
    }
}

/// HTTP-08: other trailers stop here, also between two sides that could carry them; an upstream that speaks HTTP/2
/// serves clients of HTTP/1.1.
#[tokio::test]
async fn h2c_upstreams_serve_any_client() {
    let server = GrpcUpstream::start(None, Duration::ZERO).await;
    let rig = Rig::start(|config, _| {
        set(config, "server.h2c", "true");
        let to = format!("h2c://{}/base", server.addr);
        routes(config, &route("/", &to, "access = 'optional'"));
    })
    .await;
    let client = Client::dial(rig.gateway.addr).await;
    let url = format!("{}/x", rig.gateway.public_url);
    let whole = client.call("POST", &url, SCRIPT, Some(b"body")).await.expect("an answer");
    assert_eq!((whole.status, whole.body.as_slice()), (200, &b"body"[..]));
    assert!(whole.trailers.is_none_or(|trailers| trailers.is_empty()));
    let reply = rig.gateway.exact("POST", "/y", &rig.signed(SCRIPT), Some(b"body")).await.expect("an answer");
    assert_eq!((reply.status, reply.text().as_str(), reply.trailers.len()), (200, "body", 0));
    let reply = rig.get("/z", &[]).await;
    assert_eq!((reply.status, reply.complete), (200, true));
    let paths: Vec<String> = server.heads().iter().map(|head| head.uri.path().to_owned()).collect();
    assert!(paths.ends_with(&["/base/x", "/base/y", "/base/z"].map(str::to_owned)), "{paths:?}");
}

/// gRPC-web is plain HTTP: it passes to an upstream of HTTP/1.1 as it is.
#[tokio::test]
async fn grpc_web_passes_as_it_is() {
    let rig = h2c().await;
    let body = b"\0\0\0\0\x01x\x80\0\0\0\x0fgrpc-status:0\r\n";
    let mut raw = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/grpc-web+proto\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    raw.extend(body);
    rig.upstream.on("/api/web", Script::Raw(raw));
    let client = Client::dial(rig.gateway.addr).await;
    let url = format!("{}/api/web", rig.gateway.public_url);
    let fields = [SCRIPT, &[("content-type", "application/grpc-web+proto"), ("x-grpc-web", "1")]].concat();
    let whole = client.call("POST", &url, &rig.signed(&fields), Some(b"\0\0\0\0\x01y")).await.expect("an answer");
    assert_eq!((whole.status, whole.body.as_slice()), (200, &body[..]));
    assert_eq!(rig.upstream.last().body, b"\0\0\0\0\x01y");
}
