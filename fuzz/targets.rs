//! The fuzz targets, as plain functions: `fuzz_targets/` hands them to libFuzzer, `tests/fuzz.rs` runs each over the
//! corpus and some thousand mutations of it. A target panics when what it checks does not hold.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code, shared by a test and a package of its own"
)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::header::COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue};
use sidegate::clock::{Clock, Timestamp};
use sidegate::config::{self, Config, Surroundings};
use sidegate::net::ListenAddress;
use sidegate::net::framer::{Body, BodyReader, HeadLimits, HeadReader, Verdict};
use sidegate::oidc::jwks::KeySet;
use sidegate::oidc::jwt::{self, Unverified};
use sidegate::oidc::metadata::ProviderMetadata;
use sidegate::oidc::token::{self, Answer};
use sidegate::oidc::types::{AccessToken, Identity, Login, RefreshToken, TokenSet};
use sidegate::session::codec::{self, PackedToken};
use sidegate::session::jar::Jar;
use sidegate::session::lifecycle::State;
use sidegate::session::{Session, SessionId};
use sidegate::shutdown::Shutdown;
use sidegate::web::path::CleanPath;
use sidegate::web::return_to::ReturnTo;
use sidegate::web::{cookies, forwarded, query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// One target: takes any bytes, and panics when a promise is broken.
pub type Target = fn(&[u8]);

/// All of them, by the name of their corpus.
pub const ALL: &[(&str, Target)] = &[
    ("cookie_header", cookie_header),
    ("sealed_cookie", sealed_cookie),
    ("session_codec", session_codec),
    ("path", path),
    ("return_to", return_to),
    ("query", query_string),
    ("jwt", jwt_text),
    ("provider_documents", provider_documents),
    ("token_answer", token_answer),
    ("forwarded", forwarded_fields),
    ("configuration", configuration),
    ("http1", http1),
    ("gateway", gateway),
];

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3));

fn settings(upstream: &str) -> Config {
    let text = format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        public_url = "http://localhost:8080"
        [admin]
        listen = "off"
        [log]
        access = false
        level = "error"
        [limits]
        head_timeout = "300ms"
        [provider]
        issuer = "http://127.0.0.1:9"
        client_id = "app"
        client_secret = "a secret of some length"
        [session]
        keys = ["{KEY}"]
        [[route]]
        path = "/api/"
        upstream = "{upstream}"
        [[route]]
        path = "/"
        upstream = "{upstream}"
        access = "public"
        "#
    );
    let around = Surroundings { text: Some(("the fuzzer's configuration", text)), ..Surroundings::default() };
    config::load_in(&[], &around).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// Random bytes, in no use anywhere.
const KEY: &str = "AbR7dK3vYxq0mZ5sW9eTgPn4LhQ2cJfUoXi8yM6wBtE";

static CONFIG: LazyLock<Config> = LazyLock::new(|| settings("http://127.0.0.1:9"));
static JAR: LazyLock<Jar> = LazyLock::new(|| Jar::new(CONFIG.session.clone(), CONFIG.keyring.clone()));

fn session() -> Session {
    let tokens = TokenSet {
        access_token: AccessToken::new("at-0123456789"),
        access_expires: Some(NOW + Duration::from_secs(300)),
        refresh_token: Some(RefreshToken::new("rt-0123456789")),
        refresh_expires: None,
        id_token: None,
        scope: Some("openid".to_owned()),
    };
    let identity = Identity {
        subject: "alice".to_owned(),
        sid: Some("s1".to_owned()),
        auth_time: Some(1_799_999_000),
        acr: None,
        claims: BTreeMap::new(),
    };
    let key = JAR.sealing_key_id(NOW);
    Session::begin(Login { tokens, identity, dpop: None }, [1; 16], SessionId([2; 16]), key, &CONFIG.session, NOW)
}

/// Fields, one a line: `name: value`.
fn fields(data: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(64) {
        let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(at);
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value[1..].trim_ascii()))
        {
            headers.append(name, value);
        }
    }
    headers
}

/// What is taken out is ours and nothing else, and no forged cookie opens.
fn cookie_header(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(16) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(COOKIE, value);
        }
    }
    let opened = JAR.open(&headers, NOW);
    assert!(!matches!(opened.state, State::Open(_) | State::Over(..)), "a cookie that nobody sealed opened");
    let others: Vec<(String, Vec<u8>)> = foreign(&headers);
    let cookies::Stripped::Changed(left) = cookies::strip(&headers, |name| JAR.owns(name)) else {
        assert!(cookies::pairs(&headers).all(|(name, _)| !JAR.owns(name)), "one of ours would go upstream");
        return;
    };
    let mut stripped = HeaderMap::new();
    if let Some(left) = left {
        stripped.append(COOKIE, left);
    }
    assert!(cookies::pairs(&stripped).all(|(name, _)| !JAR.owns(name)), "one of ours would go upstream");
    assert_eq!(foreign(&stripped), others, "a cookie of the application was lost or changed");
}

fn foreign(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    cookies::pairs(headers)
        .filter(|(name, _)| !JAR.owns(name))
        .map(|(name, value)| (name.to_owned(), value.trim_ascii_end().to_vec()))
        .collect()
}

/// A sealed session opens as it was sealed, or not at all.
fn sealed_cookie(data: &[u8]) {
    static SEALED: LazyLock<String> = LazyLock::new(|| {
        let cookies = JAR.seal(&session(), &Default::default(), NOW).unwrap_or_else(|_| panic!("it fits"));
        let first = cookies.first().and_then(|value| value.to_str().ok()).unwrap_or_default();
        first.split(';').next().unwrap_or_default().to_owned()
    });
    let mut text = SEALED.clone().into_bytes();
    let from = text.iter().position(|byte| *byte == b'=').map_or(0, |at| at + 1);
    for edit in data.chunks_exact(3) {
        let at = from + usize::from(u16::from_be_bytes([edit[0], edit[1]])) % (text.len() - from);
        text[at] = edit[2];
    }
    let Ok(value) = HeaderValue::from_bytes(&text) else { return };
    let headers = HeaderMap::from_iter([(COOKIE, value)]);
    if let State::Open(opened) | State::Over(_, opened) = JAR.open(&headers, NOW).state {
        assert_eq!(*opened, session(), "a changed cookie opened as something else");
    }
}

/// Whatever decodes, encodes and decodes to the same again.
fn session_codec(data: &[u8]) {
    let Some(session) = codec::decode(data) else { return };
    let access = PackedToken::pack_plain(session.access_token.expose());
    let again = codec::decode(&codec::encode(&session, &access, true));
    assert_eq!(again.as_ref(), Some(&session));
}

/// A path that is accepted has one reading, and reading it again changes nothing.
fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(clean) = CleanPath::parse(text) else { return };
    let shown = clean.as_str();
    assert!(shown.starts_with('/') && !shown.contains("//") && !shown.contains('\\'), "{shown:?}");
    assert!(!shown.contains(|c: char| c.is_ascii_control() || c == ' '), "{shown:?}");
    let lower = shown.to_ascii_lowercase();
    assert!(["%2f", "%5c", "%00", "%2e"].iter().all(|bad| !lower.contains(bad)), "{shown:?}");
    assert!(shown.split('/').all(|segment| segment != "." && segment != ".."), "{shown:?}");
    match CleanPath::parse(shown) {
        Ok(again) => assert_eq!(again.as_str(), shown),
        Err(why) => panic!("{shown:?} was accepted, and is refused the second time: {why}"),
    }
}

/// Whatever is asked for, the browser stays on the application's origin and out of our endpoints.
fn return_to(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let target = ReturnTo::parse(Some(text), "/auth");
    let shown = target.as_str();
    let base = url::Url::parse("https://app.example.com/deep/page").unwrap_or_else(|why| panic!("{why}"));
    let there = base.join(shown).unwrap_or_else(|why| panic!("{shown:?}: {why}"));
    assert_eq!(there.origin(), base.origin(), "{shown:?} leads away");
    assert!(there.path() != "/auth" && !there.path().starts_with("/auth/"), "{shown:?} leads into our endpoints");
    assert!(HeaderValue::from_str(shown).is_ok(), "{shown:?} is no Location");
    assert_eq!(ReturnTo::parse(Some(shown), "/auth").as_str(), shown, "the second look sees something else");
}

/// Parameters are read the same way in a query and in a form.
fn query_string(data: &[u8]) {
    let form = query::Params::form(data);
    for (name, _) in form.iter() {
        assert!(form.contains(name));
        if let Ok(Some(value)) = form.one(name) {
            assert_eq!(form.first(name), Some(value));
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let params = query::Params::parse(Some(text));
        assert!(params.iter().eq(form.iter()), "a query and a form differ");
    }
}

/// A token that nobody signed is never more than unverified, and reading it does no harm.
fn jwt_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = jwt::peek_exp(text);
    let packed = PackedToken::pack(text);
    assert!(text.len() > 64 * 1024 || packed.unpack().as_deref() == Some(text), "a token changed in its cookie");
    if let Ok(parsed) = Unverified::parse(text) {
        assert_eq!(text.split('.').count(), 3);
        let _ = parsed.header();
    }
}

/// Discovery and key sets.
fn provider_documents(data: &[u8]) {
    let _ = KeySet::parse(data);
    if let Ok(metadata) = ProviderMetadata::parse(data, &CONFIG.oidc) {
        let _ = metadata.denies_scope("offline_access");
    }
}

/// Status and body of a token answer: never a panic, and never a token that could break out of a header.
fn token_answer(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    let status = [200, 200, 400, 401, 403, 429, 500, 503, 302, 204][usize::from(*kind) % 10];
    let content_type = ["application/json", "text/html", "application/x-www-form-urlencoded"][usize::from(*kind) % 3];
    let answer = Answer {
        status,
        content_type: content_type.to_owned(),
        retry_after: None,
        dpop_nonce: None,
        nonce_challenge: false,
        body: body.to_vec(),
    };
    if let Ok(answer) = token::decode(
        &answer,
        token::TokenType::Bearer,
        &sidegate::oidc::dialect::Dialect::default(),
        Some(Duration::from_secs(300)),
        NOW,
    ) {
        assert_eq!(status, 200);
        let token = answer.access_token.expose();
        assert!(!token.is_empty() && token.bytes().all(|byte| (0x21..0x7f).contains(&byte)));
    }
    if let Ok(text) = std::str::from_utf8(body) {
        let _ = token::retry_after(text, NOW);
    }
}

/// The chain that an upstream sees ends in the peer, and only trusted peers are believed.
fn forwarded_fields(data: &[u8]) {
    let headers = fields(data);
    let trusted: Vec<ipnet::IpNet> = vec!["10.0.0.0/8".parse().unwrap_or_else(|why| panic!("{why}"))];
    let stranger = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    assert_eq!(forwarded::client(stranger, &headers, &trusted), stranger);
    assert_eq!(forwarded::forwarded_for(stranger, &headers, &trusted), stranger.to_string().into_bytes());
    let chain = forwarded::forwarded_for(PEER, &headers, &trusted);
    assert!(chain.ends_with(PEER.to_string().as_bytes()), "{chain:?}");
    assert!(HeaderValue::from_bytes(&chain).is_ok(), "{chain:?}");
    let _ = forwarded::client(PEER, &headers, &trusted);
    if let Some(id) = forwarded::request_id(&headers) {
        assert!((8..=128).contains(&id.len()), "{id:?}");
    }
    if let Some(parent) = forwarded::traceparent(&headers) {
        assert!(forwarded::valid_traceparent(&parent));
    }
}

/// A configuration is accepted, or refused with words that name a key.
fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Reads no file but those that the text names; the seeds name none.
    if text.contains("_file") || text.contains("static_dir") {
        return;
    }
    let around = Surroundings { text: Some(("a file", text.to_owned())), ..Surroundings::default() };
    match config::load_in(&[], &around) {
        Ok(config) => assert!(!config.effective().is_empty()),
        Err(problems) => {
            assert!(!problems.is_empty() && problems.iter().all(|problem| !problem.to_string().is_empty()))
        }
    }
}

/// However the bytes of a message arrive, they mean the same, and what is accepted has one reading.
fn http1(data: &[u8]) {
    let whole = messages(data, data.len().max(1));
    for step in [1, 7] {
        assert_eq!(messages(data, step), whole, "read {step} bytes at a time");
    }
}

/// An accepted head and its body.
type Message = (Vec<u8>, Vec<u8>);

/// The accepted heads with their bodies, and whether the connection ended in a refusal.
fn messages(data: &[u8], step: usize) -> (Vec<Message>, bool) {
    let limits = HeadLimits { header_bytes: 8192, header_count: 32, uri_bytes: 4096 };
    let mut arriving = data.chunks(step);
    let mut buffer = BytesMut::new();
    let mut found = Vec::new();
    loop {
        let mut reader = HeadReader::new(limits);
        let head = loop {
            match reader.read(&mut buffer) {
                Verdict::Head(head) => break head,
                Verdict::Refuse(_) => return (found, true),
                Verdict::NeedMore => match arriving.next() {
                    Some(piece) => buffer.extend_from_slice(piece),
                    None => return (found, false),
                },
            }
        };
        let mut parsed = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut parsed);
        match request.parse(&head.bytes) {
            Ok(httparse::Status::Complete(length)) => assert_eq!(length, head.bytes.len(), "a head with a rest"),
            other => panic!("an accepted head does not parse: {other:?}"),
        }
        assert_eq!(request.method.map(str::as_bytes), Some(&head.method[..]));
        assert_eq!(request.path.map(str::as_bytes), Some(&head.target[..]));
        let lengths = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("content-length")).count();
        let codings =
            request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("transfer-encoding")).count();
        match head.body {
            // A length of 0 may be said.
            Body::None => assert!(lengths <= 1 && codings == 0, "{lengths} {codings}"),
            Body::Length(_) => assert_eq!((lengths, codings), (1, 0)),
            Body::Chunked => assert_eq!((lengths, codings), (0, 1)),
        }
        let mut body = BodyReader::new(head.body);
        let mut output = BytesMut::new();
        while !body.is_done() {
            if body.read(&mut buffer, &mut output).is_err() {
                return (found, true);
            }
            if body.is_done() {
                break;
            }
            match arriving.next() {
                Some(piece) => buffer.extend_from_slice(piece),
                None => return (found, false),
            }
        }
        found.push((head.bytes.to_vec(), output.to_vec()));
        if found.len() > 32 {
            return (found, false);
        }
    }
}

/// A gateway on a real socket: whatever a client sends, what goes upstream are whole requests of which none carries a
/// token, what comes back are answers, and the next client is served.
fn gateway(data: &[u8]) {
    let Running { runtime, address, seen } = running();
    let exchange = async {
        let mut client = TcpStream::connect(address).await.unwrap_or_else(|why| panic!("the gateway is gone: {why}"));
        let mut answers = Vec::new();
        // A client that stops reading or sending is cut off by the gateway's own deadlines.
        if client.write_all(data).await.is_ok() {
            let _ = client.shutdown().await;
        }
        let _ = client.read_to_end(&mut answers).await;
        assert!(answers.is_empty() || answers.starts_with(b"HTTP/1.1 "), "{:?}", String::from_utf8_lossy(&answers));
        let mut next = TcpStream::connect(address).await.unwrap_or_else(|why| panic!("the gateway is gone: {why}"));
        let plain = b"GET /last HTTP/1.1\r\nHost: localhost:8080\r\nConnection: close\r\n\r\n";
        let _ = next.write_all(plain).await;
        let mut answer = Vec::new();
        let _ = next.read_to_end(&mut answer).await;
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer));
        let mut seen = seen.lock().await;
        while let Some(head) = seen.recv().await {
            let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
            assert!(!text.contains("\nauthorization:"), "{text:?}");
            assert!(!text.contains("\nhost: evil"), "{text:?}");
            if text.starts_with("get /last ") {
                break;
            }
        }
    };
    let bounded = async { tokio::time::timeout(Duration::from_secs(30), exchange).await };
    assert!(runtime.block_on(bounded).is_ok(), "the gateway hangs");
}

struct Running {
    runtime: tokio::runtime::Runtime,
    address: SocketAddr,
    /// Heads that went upstream.
    seen: tokio::sync::Mutex<mpsc::UnboundedReceiver<Vec<u8>>>,
}

fn running() -> &'static Running {
    static RUNNING: OnceLock<Running> = OnceLock::new();
    RUNNING.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap_or_else(|why| panic!("{why}"));
        let (tell, seen) = mpsc::unbounded_channel();
        let address = runtime.block_on(async {
            let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap_or_else(|why| panic!("{why}"));
            let upstream_url = format!("http://{}", upstream.local_addr().unwrap_or_else(|why| panic!("{why}")));
            tokio::spawn(serve_upstream(upstream, tell));
            let config = settings(&upstream_url);
            let shutdown = Shutdown::new(Duration::ZERO, Duration::ZERO);
            let reload = Arc::new(|| config::Reading { files: Vec::new(), outcome: Err(Vec::new()) });
            let mut assembly = sidegate::app::Assembly::new(config, &Clock::System, &shutdown, reload)
                .unwrap_or_else(|why| panic!("{why}"));
            let Some(ListenAddress::Tcp(address)) = assembly.addresses().first().cloned() else {
                panic!("a TCP listener")
            };
            tokio::spawn(async move {
                // Dropped never: the gateway serves as long as the process lives.
                let (_stop, stopped) = watch::channel(false);
                assembly.serve(stopped).await;
            });
            address
        });
        Running { runtime, address, seen: tokio::sync::Mutex::new(seen) }
    })
}

/// Reads strictly what the gateway sends, and panics at the first request that is not whole.
async fn serve_upstream(listener: TcpListener, tell: mpsc::UnboundedSender<Vec<u8>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let tell = tell.clone();
        tokio::spawn(async move {
            let mut buffer = BytesMut::new();
            loop {
                let mut parsed = [httparse::EMPTY_HEADER; 256];
                let mut request = httparse::Request::new(&mut parsed);
                let read = request.parse(&buffer);
                let Ok(httparse::Status::Complete(length)) = read else {
                    assert!(read.is_ok(), "the gateway sent no request: {:?}", String::from_utf8_lossy(&buffer));
                    match stream.read_buf(&mut buffer).await {
                        Ok(0) | Err(_) => return,
                        Ok(_) => continue,
                    }
                };
                let announced = request.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
                let length_of_body = announced.and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok());
                let chunked = request.headers.iter().any(|field| field.name.eq_ignore_ascii_case("transfer-encoding"));
                let framed = if chunked { Body::Chunked } else { Body::Length(length_of_body.unwrap_or(0)) };
                let _ = tell.send(buffer[..length].to_vec());
                buffer.advance(length);
                let mut body = BodyReader::new(framed);
                let mut scrap = BytesMut::new();
                while !body.is_done() {
                    assert!(body.read(&mut buffer, &mut scrap).is_ok(), "the gateway sent a broken body");
                    if !body.is_done() && !matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
                        return;
                    }
                }
                if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.is_err() {
                    return;
                }
            }
        });
    }
}
