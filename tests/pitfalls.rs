//! What Pingora does by default and this gateway must not, one test a pitfall. Those that belong to an area are tested
//! there:
//!
//! | | pitfall | test |
//! | --- | --- | --- |
//! | 3 | identity headers from the client | `headers.rs` |
//! | 5 | paths with two readings | `routes.rs` |
//! | 7 | hop-by-hop response fields | `headers.rs` |
//! | 8, 25 | `X-Forwarded-*` | `headers.rs` |
//! | 9 | header limits | `wire.rs`; for HTTP/2 `http2.rs` |
//! | 10 | slow heads, idle connections | `wire.rs`; for HTTP/2 `http2.rs` |
//! | 11 | upstream time-outs | `wire.rs`, also `dos_08_…` |
//! | 12 | body limits | `wire.rs` |
//! | 13 | half-close and pipelining | `net.rs` |
//! | 17 | panics | `net.rs` |
//! | 18 | addresses that cannot be bound | `net.rs` |
//! | 19 | the way out | `shutdown.rs` |
//! | 26, 27, 28 | upstream certificates | `routes.rs` |
//! | 29 | certificates that change | `tls.rs` |
//! | 30 | slow handshakes, connection limits | `net.rs`, also `dos_07_…` |
//!
//! 20 to 22 (one runtime, spans, the port that was found) are about how the program is put together and show nothing
//! to a client.

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

use support::client::Ask;
use support::exact::{PATIENCE, Rig, SCRIPT, answer, cookie_of, route, routes};
use support::gateway::{Gateway, free_port, set};
use support::http2::{field, frame};
use support::inside::Inside;
use support::provider::{Endpoint, ProviderDouble};
use support::text::latin1;
use support::upstream::{Script, Upstream};

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", "tls", name].iter().collect()
}

/// The body of the answer on stream 1.
async fn http2_body<S: AsyncRead + Unpin>(stream: &mut S) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.expect("a frame");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).expect("fits")];
        stream.read_exact(&mut payload).await.expect("a whole frame");
        let (kind, flags, own) = (head[3], head[4], head[8] == 1);
        assert!(!matches!((kind, own), (3, true) | (7, _)), "the stream was refused: {kind} {payload:?}");
        if own && kind == 0 {
            body.extend_from_slice(&payload);
        }
        if own && matches!(kind, 0 | 1) && flags & 1 != 0 {
            return body;
        }
    }
}

/// COOKIE-30: cookies that HTTP/2 sent as crumbs are one header upstream, and a session in one of them is found.
#[tokio::test]
async fn pitfall_01_crumbs_of_cookies_are_joined() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let public = format!("https://localhost:{}", free_port());
    // The same application twice: behind a proxy that ends TLS, for the login, and with TLS of its own.
    let login = Inside::start_with(&provider, &upstream, |config| {
        set(config, "server.public_url", &format!("{public:?}"));
    })
    .await;
    let browser = login.browser();
    browser.login("/auth/logout/return").await;
    let cookie = cookie_of(&browser);
    assert!(cookie.starts_with("__Host-Http-sidegate="), "{:?}", browser.jar().names());
    let mut config = login.config.clone();
    set(&mut config, "server.listen", &format!("'127.0.0.1:{}'", free_port()));
    let files = [("cert_file", "localhost.pem"), ("key_file", "localhost.key")];
    for (key, file) in files {
        set(&mut config, &format!("server.tls.{key}"), &format!("{:?}", fixture(file)));
    }
    let gateway = Inside::run(config).await;

    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(fixture("localhost.pem")).expect("a certificate")).expect("an anchor");
    let mut tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(gateway.addr).await.expect("a connection");
    let name = "localhost".try_into().expect("a name");
    let mut stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let head = [
        field(":method", "GET"),
        field(":scheme", "https"),
        field(":authority", gateway.host()),
        field(":path", "/api/crumbs"),
        field("cookie", "a=1"),
        field("cookie", &cookie),
        field("sec-fetch-site", "same-origin"),
        field("cookie", "b=2"),
    ]
    .concat();
    upstream.forget();
    let request = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, b""), frame(1, 5, 1, &head)].concat();
    stream.write_all(&request).await.expect("sent");
    let body = tokio::time::timeout(PATIENCE, http2_body(&mut stream)).await.expect("an answer");
    assert!(String::from_utf8_lossy(&body).contains("/api/crumbs"), "{}", String::from_utf8_lossy(&body));
    let seen = upstream.last();
    assert_eq!(seen.header_all("cookie"), ["a=1; b=2"]);
    assert!(seen.bearer().is_some_and(|token| provider.is_active(token)));
    assert_eq!(seen.header_all("host"), [upstream.url().replace("http://", "")]);
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
}

/// HDR-02: `Connection` does not take away what later phases add.
#[tokio::test]
async fn pitfall_02_nominations_do_not_strip_the_token() {
    let rig = Rig::start(|_, _| {}).await;
    for nominated in ["authorization", "close, Authorization", "keep-alive, x-user, authorization"] {
        let seen = rig.forwarded("GET", "/api/x", &rig.signed(&[SCRIPT, &[("Connection", nominated)]].concat())).await;
        assert!(seen.bearer().is_some(), "{nominated}");
    }
}

/// LOG-01: at the most talkative level no line holds a token, a cookie, a code or a query.
#[tokio::test]
async fn pitfall_04_talkative_logs_hold_no_secret() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start_with(&provider, &upstream, |config| set(config, "log.level", "'trace'")).await;
    let browser = gateway.signed_in().await;
    assert_eq!(browser.fetch("/api/x?query-canary=1").await.status, 200);
    upstream.on("/api/bad", Script::RawThenClose(b"garbage-canary\r\n\r\n".to_vec()));
    assert_eq!(browser.fetch("/api/bad").await.status, 502);
    let cookie = browser.cookie("sidegate").expect("a session");
    browser.raw(b"GET / HTTP/1.1\r\nHost: x\r\nBad Header-canary: 1\r\n\r\n").await;
    assert_eq!(browser.post("/auth/logout").await.status, 200);
    gateway.wait_for_log("logout", 1).await;
    let log = gateway.output();
    let session = provider.last_session();
    let tokens = session.access_tokens.iter().chain(&session.refresh_tokens).chain(&session.id_tokens);
    let code = provider.calls_to(Endpoint::Token)[0].param("code").expect("a code").to_owned();
    let secret = provider.client_secret();
    for secret in tokens.chain([&cookie, &code, &secret]) {
        assert!(!log.contains(secret.as_str()), "{secret} in the log");
    }
    assert!(!log.contains("canary"), "{}", log.lines().find(|line| line.contains("canary")).unwrap_or_default());
    assert!(gateway.stdout().iter().all(|line| line.starts_with('{')), "every line is JSON");
}

/// HTTP-16: a target in absolute form is judged and forwarded as a path.
#[tokio::test]
async fn pitfall_06_absolute_targets_become_paths() {
    let rig = Rig::start(|_, _| {}).await;
    let absolute = |path: &str| format!("{}{path}", rig.gateway.public_url);
    assert_eq!(rig.call("GET", &absolute("/api/x"), SCRIPT).await.status, 401, "the path's own policy");
    for (target, path) in [("/api/x?y=1", "/api/x?y=1"), ("", "/"), ("?q", "/?q"), ("/", "/")] {
        assert_eq!(rig.forwarded("GET", &absolute(target), &rig.signed(SCRIPT)).await.target, path);
    }
    assert_eq!(rig.call("GET", &absolute("/auth/../api/x"), SCRIPT).await.status, 400);
    rig.upstream.forget();
    for target in ["ftp://localhost/x", "http://user@localhost/x", "api/x", "http:/x", "https://evil.test/x"] {
        let reply = rig.call("GET", target, &rig.signed(SCRIPT)).await;
        assert!(matches!(reply.status, 400 | 421), "{target}: {}", reply.status);
    }
    assert!(rig.upstream.untouched());
}

/// HTTP-08: trailers go nowhere, and nobody announces them.
#[tokio::test]
async fn pitfall_14_trailers_are_dropped_and_not_announced() {
    let rig = Rig::start(|_, _| {}).await;
    let trailing = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Late, Set-Cookie\r\n\r\n\
                    2\r\nok\r\n0\r\nX-Late: 1\r\nSet-Cookie: sidegate=late\r\n\r\n";
    rig.upstream.on("/x", Script::Raw(trailing.as_bytes().to_vec()));
    let reply = rig.call("GET", "/x", SCRIPT).await;
    assert_eq!((reply.status, reply.text().as_str(), reply.complete), (200, "ok", true));
    assert_eq!((reply.header("trailer"), reply.trailers.len()), (None, 0));

    let fields = [("Transfer-Encoding", "chunked"), ("Trailer", "Authorization, X-Late")];
    let mut bytes = rig.gateway.bytes("POST", "/y", &fields, None);
    bytes.extend(b"2\r\nok\r\n0\r\nAuthorization: Bearer late\r\nX-Late: 1\r\n\r\n");
    let mut conn = rig.gateway.dial().await;
    conn.send(&bytes).await.expect("sent");
    assert_eq!(answer(&mut conn, "POST").await.expect("an answer").status, 200);
    let seen = rig.upstream.last();
    assert_eq!((seen.body.as_slice(), seen.trailers.len(), seen.header("trailer")), (&b"ok"[..], 0, None));
    assert!(!latin1(&seen.raw()).to_lowercase().contains("late"));
}

/// HTTP-20: `100 Continue` comes when the upstream wants the body, and carries no cookie.
#[tokio::test]
async fn pitfall_15_interim_answers_carry_no_cookie() {
    let rig = Rig::start(|_, _| {}).await;
    rig.gateway.advance(&rig.provider, 3600);
    let fields = [SCRIPT, &[("Expect", "100-continue"), ("Content-Length", "4"), ("Connection", "close")]].concat();
    let mut conn = rig.gateway.dial().await;
    conn.send(&rig.gateway.bytes("POST", "/api/x", &rig.signed(&fields), None)).await.expect("sent");
    let interim = tokio::time::timeout(PATIENCE, conn.take_until(b"\r\n\r\n")).await.expect("an answer");
    let interim = latin1(&interim.expect("an answer").expect("an answer"));
    assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
    assert!(!interim.to_lowercase().contains("set-cookie"), "{interim}");
    conn.send(b"body").await.expect("sent");
    let reply = answer(&mut conn, "POST").await.expect("an answer");
    assert_eq!((reply.status, rig.upstream.last().body.as_slice()), (200, &b"body"[..]));
    assert!(reply.header_all("set-cookie").iter().any(|line| line.starts_with("sidegate=")), "the final one does");
    assert_eq!(rig.call("POST", "/x", &[("Expect", "something-else")]).await.status, 417);
}

/// RFR-02: a refresh outlives the client that caused it, and its outcome is kept.
#[tokio::test]
async fn pitfall_16_a_refresh_survives_its_client() {
    let rig = Rig::start(|_, _| {}).await;
    rig.gateway.advance(&rig.provider, 3600);
    let hold = rig.provider.hold_token_endpoint();
    let flight = rig.browser.launch(&Ask::fetch("/api/x")).await;
    hold.wait_for(1).await;
    flight.abort();
    hold.release();
    rig.provider.wait_for_answers(Endpoint::Token, 2).await;
    let reply = rig.get("/api/x", &[]).await;
    assert_eq!((reply.status, rig.provider.refreshes()), (200, 1), "the same cookie, no second refresh");
    assert!(rig.upstream.last().bearer().is_some_and(|token| rig.provider.is_active(token)));
}

/// Names of header fields are compared without case, whatever case the upstream or the client writes.
#[tokio::test]
async fn pitfall_24_the_case_of_names_does_not_matter() {
    let rig = Rig::start(|config, up| {
        routes(config, &route("/api/", up, "identity_headers = { 'X-USER' = 'sub' }"));
    })
    .await;
    let fields = [("cOOKIE", rig.cookie.as_str()), ("SEC-FETCH-SITE", "same-origin"), ("aUTHORIZATION", "Bearer x")];
    let seen = rig.forwarded("GET", "/api/x", &fields).await;
    assert_eq!(seen.header_all("x-user").len(), 1);
    assert!(seen.bearer().is_some_and(|token| token != "x"));
    let raw = "HTTP/1.1 200 OK\r\nsEt-cOOkie: sidegate=x\r\nkEEP-aLIVE: 1\r\ncONTENT-lENGTH: 2\r\n\r\nok";
    rig.upstream.on("/api/raw", Script::Raw(raw.as_bytes().to_vec()));
    let reply = rig.get("/api/raw", &[]).await;
    assert_eq!((reply.text().as_str(), reply.header("set-cookie"), reply.header("keep-alive")), ("ok", None, None));
}

/// ERR-01: what does not parse gets our own document, is counted, and does not name the library.
#[tokio::test]
async fn pitfall_31_malformed_requests_get_our_answer() {
    let rig = Rig::start(|_, _| {}).await;
    let many: String = (0..300).map(|n| format!("X-{n}: 1\r\n")).collect();
    for (bytes, status) in [
        ("GET / HTTP/1.1\r\nBad Name: x\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("\x16\x03\x01\x02\x00\x01\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"), 431),
        ("GET / HTTP/3.0\r\nHost: localhost\r\n\r\n".to_owned(), 505),
    ] {
        let mut conn = rig.gateway.dial().await;
        conn.send(bytes.as_bytes()).await.expect("sent");
        let reply = answer(&mut conn, "GET").await.expect("an answer");
        assert!(reply.status == status || reply.status == 400, "{bytes:.40}: {}", reply.status);
        assert!(reply.header("content-type").is_some_and(|kind| kind.starts_with("application/problem+json")));
        assert!(!reply.head().contains("ingora"), "{}", reply.head());
        let rest = tokio::time::timeout(PATIENCE, conn.take_to_end()).await.expect("the connection ends");
        assert!(rest.is_empty());
    }
    assert!(rig.gateway.metric("sidegate_requests_total", &[("method", "GET"), ("route", "invalid")]) >= 3.0);
    assert!(rig.gateway.metric("sidegate_requests_total", &[("method", "other")]) >= 1.0);
    assert!(rig.upstream.untouched());
}

/// A bug would be a 500; a proxy variable of the environment changes nothing. The provider is reached directly.
#[tokio::test]
async fn pitfall_32_proxy_variables_are_not_read() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Inside::start(&provider, &upstream).await;
    let browser = gateway.signed_in().await;
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    assert!(PATIENCE > Duration::ZERO && provider.violations().is_empty(), "{:?}", provider.violations());
}

/// ASVS-11.2.1, ASVS-11.4.1: one library does all cryptography, and nothing brings another one along.
#[test]
fn pitfall_23_one_crypto_library() {
    let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).expect("the lock file");
    for other in ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls", "boring-sys", "md5", "md-5"] {
        assert!(!lock.contains(&format!("name = \"{other}\"")), "{other}");
    }
    assert!(lock.contains("name = \"ring\""));
}

/// SUP-03, HTTP-16: no version with published smuggling bugs.
#[test]
fn sup_03_versions_without_known_smuggling() {
    let lock: toml::Table = include_str!("../Cargo.lock").parse().expect("TOML");
    let number = |text: &str| -> Vec<u64> { text.split('.').map_while(|part| part.parse().ok()).collect() };
    for (name, least) in [("pingora-core", "0.8.0"), ("pingora-proxy", "0.8.0"), ("http", "1.5.0")] {
        let versions: Vec<&str> = lock["package"]
            .as_array()
            .expect("packages")
            .iter()
            .filter(|package| package["name"].as_str() == Some(name))
            .map(|package| package["version"].as_str().expect("a version"))
            .collect();
        assert!(!versions.is_empty(), "{name}");
        for version in versions {
            assert!(number(version) >= number(least), "{name} {version}");
        }
    }
}
