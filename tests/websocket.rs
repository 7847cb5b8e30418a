//! WebSockets and event streams: who may open one, what passes, what ends it.

mod support;

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use toml::Table;

use support::client::{Ask, Initiator};
use support::exact::{FOREIGN_LINK, Fields, PATIENCE, Rig, SCRIPT, TYPED, answer, route, routes};
use support::gateway::{Gateway, set};
use support::provider::ProviderDouble;
use support::text::{mark, random};
use support::upstream::{Script, Upstream, feed};
use support::wire::{self, Answer, Conn};
use support::ws;

const PARTNER: &str = "https://partner.example";

/// Routes of each kind.
fn all_kinds(config: &mut Table, up: &str) {
    let text = [
        route("/api/", up, ""),
        route("/login/", up, "on_anonymous = 'login'"),
        route("/opt/", up, "access = 'optional'"),
        route("/hook/", up, "csrf = false"),
        route("/plain/", up, "websocket = false"),
        route("/", up, "access = 'public'"),
    ];
    routes(config, &text.concat());
    set(config, "csrf.allowed_origins", &format!("['{PARTNER}']"));
}

fn handshake(key: &str) -> Vec<(&str, &str)> {
    vec![
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", key),
    ]
}

/// Waits so long for something that must not happen.
async fn a_while() {
    tokio::time::sleep(Duration::from_millis(900)).await;
}

/// WS-04, ASVS-4.4.2: a handshake needs an allowed origin, on every kind of route; nothing stands in for it.
#[tokio::test]
async fn ws_04_a_handshake_needs_our_origin() {
    let rig = Rig::start(all_kinds).await;
    let ours = rig.gateway.public_url.clone();
    let key = ws::new_key();
    let suffixed = format!("{ours}.evil.example");
    let refused: [&Fields<'_>; 10] = [
        &[],
        &[("X-CSRF", "1")],
        &[("Sec-Fetch-Site", "same-origin")],
        &[("Origin", "https://evil.example")],
        &[("Origin", "null")],
        &[("Origin", "")],
        &[("Origin", &suffixed)],
        &[("Origin", &ours), ("Origin", &ours)],
        &[("Origin", &ours), ("Sec-Fetch-Site", "cross-site")],
        &[("Origin", "https://evil.example"), ("Sec-Fetch-Site", "same-origin"), ("X-CSRF", "1")],
    ];
    for path in ["/api/ws", "/opt/ws", "/hook/ws", "/ws"] {
        for signed in [true, false] {
            for fields in refused {
                let fields = [&handshake(&key)[..], fields].concat();
                let fields = if signed { rig.signed(&fields) } else { fields };
                let reply = rig.call("GET", path, &fields).await;
                // Without a session a protected path may ask for the login first; it never opens.
                let expected = if signed || matches!(path, "/opt/ws" | "/ws") { &[403][..] } else { &[401, 403] };
                let twice = fields.iter().filter(|(name, _)| *name == "Origin").count() > 1;
                assert!(
                    expected.contains(&reply.status) || (twice && reply.status == 400),
                    "{path} {fields:?}: {}",
                    reply.status
                );
                assert_eq!((reply.header("location"), reply.header_all("set-cookie")), (None, vec![]));
            }
        }
    }
    assert!(rig.upstream.untouched());
    for path in ["/api/ws", "/opt/ws", "/hook/ws", "/ws"] {
        for origin in [&ours, PARTNER] {
            let fields = [&handshake(&key)[..], &[("Origin", origin)]].concat();
            let mut conn = rig.gateway.dial().await;
            conn.send(&rig.gateway.bytes("GET", path, &rig.signed(&fields), None)).await.expect("sent");
            let reply = answer(&mut conn, "GET").await.expect("an answer");
            assert_eq!(reply.status, 101, "{path} {origin}");
        }
    }
}

/// ASVS-4.4.3: without a session: 401, never a redirect, whatever the route does with navigations.
#[tokio::test]
async fn a_handshake_without_a_session_is_a_401() {
    let rig = Rig::start(all_kinds).await;
    let (ours, key) = (rig.gateway.public_url.clone(), ws::new_key());
    for path in ["/api/ws", "/login/ws"] {
        for more in [&[][..], SCRIPT, TYPED, FOREIGN_LINK] {
            let fields = [&handshake(&key)[..], &[("Origin", ours.as_str())], more].concat();
            let reply = rig.call("GET", path, &fields).await;
            assert!(matches!(reply.status, 401 | 403), "{path} {more:?}: {}", reply.status);
            assert_eq!((reply.header("location"), reply.header_all("set-cookie")), (None, vec![]), "{path}");
        }
    }
    assert!(rig.upstream.untouched());
}

/// Frames of every kind and size pass both ways, byte for byte.
#[tokio::test]
async fn frames_pass_both_ways() {
    let rig = Rig::start(all_kinds).await;
    for path in ["/api/ws", "/ws"] {
        let mut socket = rig.browser.websocket(path, Initiator::SameOrigin).await.expect("a tunnel");
        assert_eq!(rig.upstream.last().bearer().is_some(), path == "/api/ws");
        for size in [0, 1, 125, 126, 65_535, 65_536, 300_000] {
            let payload = random(size);
            socket.send(ws::BINARY, &payload).await.expect("sent");
            let frame = socket.next().await.expect("an echo");
            assert_eq!((frame.opcode, frame.payload == payload), (ws::BINARY, true), "{size}");
        }
        for text in ["first", "second", "third"] {
            socket.send_text(text).await.expect("sent");
        }
        for text in ["first", "second", "third"] {
            assert_eq!(socket.next().await.expect("an echo").text(), text);
        }
        socket.send(ws::PING, b"ping").await.expect("sent");
        assert_eq!(socket.next().await.expect("a pong").opcode, ws::PONG);
        assert_eq!(socket.close(4001).await.and_then(|frame| frame.close_code()), Some(4001));
    }
    rig.upstream.wait_for_socket(1, |socket| socket.over).await;
    let close = rig.upstream.sockets()[0].close.clone();
    assert_eq!(close.and_then(|frame| frame.close_code()), Some(4001));
}

/// WS-03: a 101 that is no answer to the handshake is a 502.
#[tokio::test]
async fn ws_03_a_101_must_match_the_handshake() {
    let rig = Rig::start(all_kinds).await;
    let (ours, key) = (rig.gateway.public_url.clone(), ws::new_key());
    let accept = ws::accept_for(&key);
    let fields = [&handshake(&key)[..], &[("Origin", ours.as_str())]].concat();
    let head = |lines: &str| Script::Raw(format!("HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n").into_bytes());
    for (what, script) in [
        ("another key", Script::WebSocketWrongAccept),
        ("no accept", Script::Upgrade("websocket".to_owned())),
        (
            "another protocol",
            head(&format!("Upgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n")),
        ),
        (
            "two keys",
            head(&format!(
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\
                 Sec-WebSocket-Accept: {}\r\n",
                ws::accept_for("another key")
            )),
        ),
        ("no Upgrade", head(&format!("Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"))),
        ("no Connection", head(&format!("Upgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n"))),
    ] {
        rig.upstream.on("/api/ws", script);
        let reply = rig.call("GET", "/api/ws", &rig.signed(&fields)).await;
        assert_eq!(reply.verdict(), (502, "upstream_protocol".to_owned()), "{what}");
    }
    rig.upstream.on("/api/x", Script::Upgrade("websocket".to_owned()));
    let reply = rig.gateway.exact("GET", "/api/x", &rig.signed(SCRIPT), None).await;
    assert!(reply.is_none_or(|reply| reply.status == 502), "a 101 that nobody asked for");
}

/// What the application answers instead of a 101 passes as it is.
#[tokio::test]
async fn a_refused_upgrade_passes() {
    let rig = Rig::start(all_kinds).await;
    for status in [200, 400, 403, 404, 426, 503] {
        let refusal = Answer::new(status, "text/plain", format!("no: {status}")).with("X-Why", "because");
        rig.upstream.on("/api/ws", Script::Answer(refusal));
        let refused = rig.browser.websocket("/api/ws", Initiator::SameOrigin).await.expect_err("no tunnel");
        assert_eq!((refused.status, refused.text()), (status, format!("no: {status}")));
        assert_eq!(refused.header("x-why"), Some("because"));
    }
}

/// WS-03: an upstream may be faster with its 101 than we are with what follows the head; the tunnel lives all the same.
#[tokio::test]
async fn ws_03_a_101_may_come_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let upstream = format!("http://{}", listener.local_addr().expect("an address"));
    let key = ws::new_key();
    let accept = ws::accept_for(&key);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes()).await;
            // The head, then one frame.
            let mut bytes = Vec::new();
            let is_frame_there = |bytes: &[u8]| {
                let head = memchr::memmem::find(bytes, b"\r\n\r\n");
                head.is_some_and(|head| bytes.len() >= head + 4 + ws::frame(ws::TEXT, b"hello", true).len())
            };
            while !is_frame_there(&bytes) && matches!(stream.read_buf(&mut bytes).await, Ok(1..)) {}
            let _ = stream.write_all(&ws::frame(ws::TEXT, b"heard", false)).await;
        }
    });
    let (provider, other) = (ProviderDouble::start().await, Upstream::start().await);
    // Several threads: one may learn of the answer while another is still about to send the request.
    let gateway = Gateway::start_with(&provider, &other, |config| {
        set(config, "server.threads", "4");
        routes(config, &route("/", &upstream, "access = 'public'"));
    })
    .await;
    let host = gateway.public_url.trim_start_matches("http://");
    let fields = [&handshake(&key)[..], &[("Host", host), ("Origin", gateway.public_url.as_str())]].concat();
    let fields: Vec<_> = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let request = wire::request_bytes("GET", "/ws", &fields, None);
    for number in 0..30 {
        let mut conn = Conn::dial(gateway.addr).await.expect("a connection");
        conn.send(&request).await.expect("sent");
        assert_eq!(answer(&mut conn, "GET").await.map(|reply| reply.status), Some(101));
        conn.send(&ws::frame(ws::TEXT, b"hello", true)).await.expect("sent");
        let frame = tokio::time::timeout(PATIENCE, ws::read_frame(&mut conn)).await.expect("a frame or an end");
        assert_eq!(frame.ok().flatten().map(|frame| frame.text()).as_deref(), Some("heard"), "tunnel {number}");
    }
}

/// WS-02: bytes sent in the hope of a tunnel are no request and reach nobody when there is none.
#[tokio::test]
async fn ws_02_early_bytes_are_not_tunnelled() {
    let rig = Rig::start(all_kinds).await;
    let (ours, key, canary) = (rig.gateway.public_url.clone(), ws::new_key(), mark("canary"));
    rig.upstream.on("/ws", Script::text(200, "no tunnel"));
    let fields = [&handshake(&key)[..], &[("Origin", ours.as_str())]].concat();
    let smuggled = format!("GET /{canary} HTTP/1.1\r\nHost: {}\r\n\r\n", rig.gateway.host());
    let bytes = [rig.gateway.bytes("GET", "/ws", &fields, None), smuggled.into_bytes()].concat();
    let mut conn = rig.gateway.dial().await;
    conn.send(&bytes).await.expect("sent");
    let all = tokio::time::timeout(PATIENCE, conn.take_to_end()).await.expect("the connection ends");
    assert!(String::from_utf8_lossy(&all).contains("no tunnel"));
    assert!(!String::from_utf8_lossy(&rig.upstream.bytes()).contains(&canary));
}

/// WS-01: nothing but a named `websocket` is upgraded; `websocket = false` forwards a plain request.
#[tokio::test]
async fn ws_01_other_upgrades_are_plain_requests() {
    let rig = Rig::start(all_kinds).await;
    let (ours, key) = (rig.gateway.public_url.clone(), ws::new_key());
    let rest = [("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Key", key.as_str()), ("Origin", ours.as_str())];
    for (path, connection, upgrade) in [
        ("/api/ws", "Upgrade", "foo"),
        ("/api/ws", "Upgrade, HTTP2-Settings", "h2c"),
        ("/api/ws", "Upgrade", "websocket, h2c"),
        ("/api/ws", "keep-alive", "websocket"),
        ("/plain/ws", "Upgrade", "websocket"),
    ] {
        let fields = [&[("Connection", connection), ("Upgrade", upgrade)], &rest[..]].concat();
        rig.upstream.forget();
        let reply = rig.call("GET", path, &rig.signed(&fields)).await;
        assert!(matches!(reply.status, 200 | 400), "{path} {connection} {upgrade}: {}", reply.status);
        if reply.status == 200 {
            let seen = rig.upstream.last();
            assert_eq!(seen.header("upgrade"), None, "{path} {upgrade}");
            assert!(!seen.header("connection").unwrap_or_default().to_lowercase().contains("upgrade"), "{path}");
        }
    }
    assert!(rig.upstream.sockets().is_empty());
    // A handshake is a GET without a body (RFC 6455 section 4.1).
    let fields = rig.signed(&[&[("Connection", "Upgrade"), ("Upgrade", "websocket")], &rest[..]].concat());
    let chunked = [&fields[..], &[("Transfer-Encoding", "chunked")]].concat();
    for (head, body) in [
        (rig.gateway.bytes("POST", "/api/x", &fields, None), ""),
        (rig.gateway.bytes("GET", "/api/x", &fields, Some(b"hello")), ""),
        (rig.gateway.bytes("GET", "/api/x", &chunked, None), "5\r\nhello\r\n0\r\n\r\n"),
    ] {
        rig.upstream.forget();
        let mut conn = rig.gateway.dial().await;
        conn.send(&[&head, body.as_bytes()].concat()).await.expect("sent");
        let reply = answer(&mut conn, "GET").await.expect("an answer");
        assert_eq!((reply.status, rig.upstream.last().header("upgrade")), (200, None), "{}", reply.text());
    }
}

/// A quiet WebSocket outlives every time-out but the session's.
#[tokio::test]
async fn a_quiet_socket_is_not_cut() {
    let rig = Rig::start(|config, up| {
        let short = "read_timeout = '200ms'\nconnect_timeout = '1s'";
        routes(config, &[route("/api/", up, short), route("/", up, &format!("access = 'public'\n{short}"))].concat());
        for key in ["head_timeout", "keepalive", "body_idle"] {
            set(config, &format!("limits.{key}"), "'200ms'");
        }
    })
    .await;
    let mut own = rig.browser.websocket("/api/ws", Initiator::SameOrigin).await.expect("a tunnel");
    let mut public = rig.browser.websocket("/ws", Initiator::SameOrigin).await.expect("a tunnel");
    for _ in 0..2 {
        a_while().await;
        for socket in [&mut own, &mut public] {
            socket.send_text("still there?").await.expect("sent");
            assert_eq!(socket.next().await.expect("an echo").text(), "still there?");
        }
    }
}

/// WS-06, ASVS-4.4.4: a tunnel ends with the session that opened it; a public one does not.
#[tokio::test]
async fn ws_06_a_tunnel_ends_with_its_session() {
    let rig = Rig::start(all_kinds).await;
    let mut own = rig.browser.websocket("/api/ws", Initiator::SameOrigin).await.expect("a tunnel");
    let mut public = rig.browser.websocket("/ws", Initiator::SameOrigin).await.expect("a tunnel");
    assert_eq!(rig.browser.post("/auth/logout").await.status, 200);
    let end = tokio::time::timeout(PATIENCE, own.next()).await.expect("the tunnel ends");
    assert!(end.as_ref().is_none_or(|frame| frame.close_code() == Some(1001)), "{end:?}");
    rig.upstream.wait_for_socket(0, |socket| socket.over).await;
    public.send_text("on").await.expect("sent");
    assert_eq!(public.next().await.expect("an echo").text(), "on");
}

/// WS-08: events arrive one by one as they are sent, silence in between is natural, and a client that leaves ends it.
#[tokio::test]
async fn ws_08_event_streams_are_not_buffered() {
    let rig = Rig::start(|config, up| {
        routes(config, &route("/api/", up, "read_timeout = '200ms'"));
        set(config, "limits.body_idle", "'200ms'");
        set(config, "limits.keepalive", "'200ms'");
    })
    .await;
    let (events, script) = feed("text/event-stream");
    rig.upstream.on("/api/events", script);
    let ask = Ask::fetch("/api/events").header("Accept", "text/event-stream");
    let mut stream = rig.browser.open(&ask).await;
    assert_eq!((stream.response.status, stream.response.header("content-type")), (200, Some("text/event-stream")));
    for number in 0..5 {
        let event = format!("id: {number}\ndata: {}\n\n", mark("e"));
        assert!(events.send(event.clone()));
        assert_eq!(stream.read_until("\n\n").await.as_deref(), Some(event.as_str()));
    }
    a_while().await;
    assert!(events.send("data: after a silence\n\n"));
    assert_eq!(stream.read_until("\n\n").await.as_deref(), Some("data: after a silence\n\n"));
    stream.abort();
    events.closed().await;
}

/// WS-08: an event stream ends with its session.
#[tokio::test]
async fn ws_08_an_event_stream_ends_with_its_session() {
    let rig = Rig::start(all_kinds).await;
    let (events, script) = feed("text/event-stream");
    rig.upstream.on("/api/events", script);
    let mut stream = rig.browser.open(&Ask::fetch("/api/events").header("Accept", "text/event-stream")).await;
    assert!(events.send("data: 1\n\n"));
    assert!(stream.read_until("\n\n").await.is_some());
    assert_eq!(rig.browser.post("/auth/logout").await.status, 200);
    let end = tokio::time::timeout(PATIENCE, stream.next()).await.expect("the stream ends");
    assert_eq!(end, None);
    events.closed().await;
}

/// WS-09: a sub-protocol is the app's business: no token is taken from it, and ours is not in it.
#[tokio::test]
async fn ws_09_sub_protocols_carry_no_token() {
    let rig = Rig::start(all_kinds).await;
    let (ours, key) = (rig.gateway.public_url.clone(), ws::new_key());
    let token = rig.provider.last_session().access_tokens[0].clone();
    let offered = format!("bearer, {token}");
    let fields = [&handshake(&key)[..], &[("Origin", ours.as_str()), ("Sec-WebSocket-Protocol", &offered)]].concat();
    assert_eq!(rig.call("GET", "/api/ws", &fields).await.status, 401);
    assert!(rig.upstream.untouched());
    let fields = [
        &handshake(&key)[..],
        &[("Origin", ours.as_str()), ("Sec-WebSocket-Protocol", "chat.v2"), ("Cookie", rig.cookie.as_str())],
    ]
    .concat();
    rig.upstream.on("/api/ws", Script::WebSocket);
    let mut conn = rig.gateway.dial().await;
    conn.send(&rig.gateway.bytes("GET", "/api/ws", &fields, None)).await.expect("sent");
    let head = tokio::time::timeout(PATIENCE, conn.take_until(b"\r\n\r\n")).await.expect("an answer");
    let head = String::from_utf8_lossy(&head.expect("an answer").expect("an answer")).into_owned();
    assert!(head.starts_with("HTTP/1.1 101") && !head.contains(&token), "{head}");
    let seen = rig.upstream.last();
    assert_eq!(seen.header_all("sec-websocket-protocol"), ["chat.v2"]);
    assert!(seen.bearer().is_some_and(|token| rig.provider.is_active(token)));
}
