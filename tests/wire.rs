//! The gateway between a client and an upstream that misbehave: limits, time-outs, dead connections, broken answers.
//! `tests/net.rs` covers the way in alone.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use toml::Table;

use support::client::Ask;
use support::exact::{PATIENCE, Rig, SCRIPT, TYPED, answer, more_routes, route, routes};
use support::gateway::set;
use support::text::mark;
use support::upstream::{Script, Upstream, feed};
use support::wire::Answer;

fn bounded(config: &mut Table, up: &str) {
    let text = [
        route("/api/", up, "max_body = '1KiB'\nread_timeout = '300ms'"),
        route("/dead/", "http://127.0.0.1:9", ""),
        route("/", up, "access = 'public'\nmax_body = '1KiB'\nread_timeout = '300ms'"),
    ];
    routes(config, &text.concat());
}

/// DOS-06: an announced excess is refused at once, and nothing of it reaches the upstream.
#[tokio::test]
async fn pitfall_12_an_announced_excess_is_a_413() {
    let rig = Rig::start(bounded).await;
    for path in ["/api/x", "/x"] {
        for body in [vec![b'x'; 1025], vec![b'x'; 200_000]] {
            let reply = rig.gateway.exact("POST", path, &rig.signed(SCRIPT), Some(&body)).await.expect("an answer");
            assert_eq!(reply.verdict(), (413, "body_too_large".to_owned()), "{path}");
        }
        // Nobody waits for the body.
        for more in
            [&[("Content-Length", "99999999999")][..], &[("Content-Length", "2000"), ("Expect", "100-continue")]]
        {
            let reply = rig.call("PUT", path, &rig.signed(&[SCRIPT, more].concat())).await;
            assert_eq!(reply.status, 413, "{path} {more:?}");
        }
    }
    assert!(rig.upstream.untouched());
    let reply = rig.gateway.exact("POST", "/api/x", &rig.signed(SCRIPT), Some(&[b'x'; 1024])).await.expect("an answer");
    assert_eq!((reply.status, rig.upstream.last().body.len()), (200, 1024), "the limit itself is within it");
    let page = rig.gateway.exact("POST", "/x", TYPED, Some(&[b'x'; 2000])).await.expect("an answer");
    assert!(page.status == 413 && page.text().contains("body_too_large"), "{}", page.text());
}

/// DOS-06: a chunked body over the limit never becomes a whole request upstream.
#[tokio::test]
async fn dos_06_a_chunked_excess_never_completes() {
    let rig = Rig::start(bounded).await;
    for chunks in [vec![2000], vec![600, 600], vec![1024, 1]] {
        rig.upstream.forget();
        let fields = rig.signed(&[SCRIPT, &[("Transfer-Encoding", "chunked")]].concat());
        let mut bytes = rig.gateway.bytes("POST", "/api/x", &fields, None);
        for size in &chunks {
            bytes.extend(format!("{size:x}\r\n{}\r\n", "x".repeat(*size)).into_bytes());
        }
        bytes.extend(b"0\r\n\r\n");
        let mut conn = rig.gateway.dial().await;
        conn.send(&bytes).await.expect("sent");
        let reply = answer(&mut conn, "POST").await;
        assert!(reply.as_ref().is_none_or(|r| r.verdict() == (413, "body_too_large".to_owned())), "{reply:?}");
        assert!(rig.upstream.requests().iter().all(|request| !request.complete), "{chunks:?}");
    }
}

/// DOS-03: what the parser behind would not take is refused as what is above the limit.
#[tokio::test]
async fn dos_03_a_limit_may_be_larger_than_what_can_be_read() {
    let rig = Rig::start(|config, up| {
        bounded(config, up);
        set(config, "limits.header_bytes", "'3MiB'");
        set(config, "limits.uri_bytes", "'1MiB'");
    })
    .await;
    let target = format!("/x?{}", "a".repeat(65_000));
    for (size, status) in [(900 * 1024 - 100, 200), (1_050_000, 431)] {
        let reply = rig.call("GET", &target, &[("X-Large", &"x".repeat(size))]).await;
        assert_eq!(reply.status, status, "{size}: {}", reply.head());
    }
    let reply = rig.call("GET", &format!("/x?{}", "a".repeat(70_000)), &[]).await;
    assert_eq!(reply.verdict(), (414, "uri_too_long".to_owned()));
}

/// DOS-06: our own endpoints take 64 KiB, whether or not a body says how long it is.
#[tokio::test]
async fn dos_06_endpoints_take_small_bodies_only() {
    let rig = Rig::start(|_, _| {}).await;
    for (size, status) in [(64 * 1024, 200), (64 * 1024 + 1, 413)] {
        let (chunked, body) = (format!("{size:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(size)), vec![b'x'; size]);
        for (fields, body) in [(&[][..], body), (&[("Transfer-Encoding", "chunked")], chunked.into_bytes())] {
            let fields = rig.signed(&[SCRIPT, fields].concat());
            let bytes = match fields.iter().any(|(name, _)| *name == "Transfer-Encoding") {
                true => [rig.gateway.bytes("GET", "/auth/session", &fields, None), body].concat(),
                false => rig.gateway.bytes("GET", "/auth/session", &fields, Some(&body)),
            };
            let mut conn = rig.gateway.dial().await;
            conn.send(&bytes).await.expect("sent");
            assert_eq!(answer(&mut conn, "GET").await.expect("an answer").status, status, "{size}");
        }
    }
}

/// DOS-03, DOS-04, DOS-05: heads have limits; 431 lets the user recover from cookies that grew too large.
#[tokio::test]
async fn pitfall_09_a_head_that_is_too_large() {
    let rig = Rig::start(|config, up| {
        bounded(config, up);
        set(config, "limits.header_bytes", "'8KiB'");
        set(config, "limits.header_count", "40");
        set(config, "limits.uri_bytes", "'1KiB'");
    })
    .await;
    let long = format!("/x?{}", "a".repeat(1024));
    assert_eq!(rig.call("GET", &long, SCRIPT).await.verdict(), (414, "uri_too_long".to_owned()));
    let page = rig.call("GET", &long, TYPED).await;
    assert!(page.status == 414 && page.text().contains("<title>"), "{}", page.text());
    let fat = "x".repeat(9000);
    let page = rig.call("GET", "/x", &[TYPED, &[("X-Fat", fat.as_str())]].concat()).await;
    assert!(page.status == 431 && page.text().contains("<title>"), "{}", page.text());
    let cookies = format!("{}; junk={fat}", rig.cookie);
    let many: Vec<(String, String)> = (0..50).map(|n| (format!("X-{n}"), n.to_string())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    for fields in [vec![("Cookie", cookies.as_str())], rig.signed(&[("X-Fat", &fat)]), rig.signed(&many)] {
        let reply = rig.call("GET", "/x", &fields).await;
        assert_eq!(reply.verdict(), (431, "headers_too_large".to_owned()));
        let names = rig.browser.jar();
        for name in names.names() {
            let gone = reply.header_all("set-cookie").into_iter().any(|line| {
                line.starts_with(&format!("{name}=")) && (line.contains("Max-Age=0") || line.contains("1970"))
            });
            assert!(gone, "{name} is not expired: {:?}", reply.header_all("set-cookie"));
        }
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        assert!(!reply.head().contains("Pingora") && reply.header("server").is_none());
    }
    assert!(rig.upstream.untouched());
}

/// DOS-01, DOS-02: a head or a body that does not come ends the connection.
#[tokio::test]
async fn pitfall_10_slow_clients_are_cut_off() {
    let rig = Rig::start(|config, up| {
        bounded(config, up);
        set(config, "limits.head_timeout", "'300ms'");
        set(config, "limits.body_idle", "'300ms'");
        set(config, "limits.keepalive", "'300ms'");
    })
    .await;
    let whole = rig.gateway.bytes("POST", "/x", &[("Content-Length", "10")], None);
    for sent in [&b"GET / HTTP/1.1\r\nHo"[..], b"", &[whole, b"half".to_vec()].concat()] {
        let mut conn = rig.gateway.dial().await;
        conn.send(sent).await.expect("sent");
        let all = tokio::time::timeout(PATIENCE, conn.take_to_end()).await.expect("the connection ends");
        let all = String::from_utf8_lossy(&all).into_owned();
        assert!(all.is_empty() || all.starts_with("HTTP/1.1 408 "), "{all}");
    }
    assert!(rig.upstream.requests().iter().all(|request| !request.complete));
    // Kept alive and idle: closed in silence.
    let mut conn = rig.gateway.dial().await;
    conn.send(&rig.gateway.bytes("GET", "/x", SCRIPT, None)).await.expect("sent");
    assert_eq!(answer(&mut conn, "GET").await.expect("an answer").status, 200);
    let rest = tokio::time::timeout(PATIENCE, conn.take_to_end()).await.expect("the connection ends");
    assert!(rest.is_empty());
}

/// ASVS-13.2.6: a kept-alive upstream connection that is dead: GET and HEAD are sent once more, nothing else ever is.
#[tokio::test]
async fn a_dead_kept_alive_connection() {
    let rig = Rig::start(|_, _| {}).await;
    // Closes what was used before, answers on fresh connections.
    let stale = || {
        let used = rig.upstream.connections();
        Script::by(move |request| if request.connection <= used { Script::Close } else { Script::Echo })
    };
    for (method, body, repeated) in [
        ("GET", None, true),
        ("HEAD", None, true),
        ("POST", Some(&b"body"[..]), false),
        ("POST", Some(b""), false),
        ("PUT", Some(b"body"), false),
        ("DELETE", None, false),
        ("OPTIONS", None, false),
        ("GET", Some(b"body"), false),
    ] {
        assert_eq!(rig.get("/api/warm", &[]).await.status, 200);
        let path = format!("/api/{}", mark("p"));
        rig.upstream.on(&path, stale());
        let fields = [&rig.signed(SCRIPT)[..], &[("X-Kept", "1"), ("X-Kept", "two")]].concat();
        let reply = rig.gateway.exact(method, &path, &fields, body).await.expect("an answer");
        let sent = rig.upstream.requests_to(&path);
        if repeated {
            assert_eq!((reply.status, sent.len()), (200, 2), "{method}");
            assert_eq!(sent[0].header_all("x-kept"), ["1", "two"]);
            assert!(sent[0].bearer().is_some());
            assert_eq!(sent[0].headers, sent[1].headers, "all of the client's fields, and of ours");
        } else {
            assert_eq!((reply.status, sent.len()), (502, 1), "{method} {body:?}");
        }
    }
    // Once, not until it works.
    assert_eq!(rig.get("/api/warm", &[]).await.status, 200);
    rig.upstream.on("/api/gone", Script::Close);
    let reply = rig.get("/api/gone", &[]).await;
    assert_eq!(reply.verdict(), (502, "upstream_protocol".to_owned()));
    assert_eq!(rig.upstream.requests_to("/api/gone").len(), 2);
    // Nor when the answer had begun: the connection was not dead.
    assert_eq!(rig.get("/api/warm", &[]).await.status, 200);
    rig.upstream.on("/api/begun", Script::RawThenClose(b"HTTP/1.1 200 OK\r\nX".to_vec()));
    let reply = rig.get("/api/begun", &[]).await;
    assert_eq!(reply.verdict(), (502, "upstream_protocol".to_owned()));
    assert_eq!(rig.upstream.requests_to("/api/begun").len(), 1);
    // And not on a connection that was fresh.
    rig.upstream.drop_connections().await;
    rig.upstream.on("/api/fresh", Script::Close);
    let reply = rig.get("/api/fresh", &[]).await;
    assert!(reply.status == 502 && rig.upstream.requests_to("/api/fresh").len() <= 2);
}

/// DOS-08, ASVS-13.2.6: silence of the upstream is a 504, no connection a 502.
#[tokio::test]
async fn pitfall_11_upstreams_that_do_not_answer() {
    let rig = Rig::start(bounded).await;
    rig.upstream.on("/api/x", Script::Stall);
    assert_eq!(rig.get("/api/x", &[]).await.verdict(), (504, "upstream_timeout".to_owned()));
    assert_eq!(rig.upstream.requests_to("/api/x").len(), 1, "and it is not asked again");
    assert_eq!(rig.get("/dead/x", &[]).await.verdict(), (502, "upstream_unreachable".to_owned()));
    let page = rig.call("GET", "/api/x", &rig.signed(TYPED)).await;
    assert!(page.status == 504 && page.text().contains("upstream_timeout"), "{}", page.text());
    // After the head: the connection is cut, so that the client can tell.
    let (events, script) = feed("text/plain");
    rig.upstream.on("/api/half", script);
    assert!(events.send("half"));
    let reply = rig.get("/api/half", &[]).await;
    assert_eq!((reply.status, reply.text().as_str(), reply.complete), (200, "half", false));
}

/// DOS-08: how long an upstream may be silent depends on what it answers, not on what the client says it would like.
#[tokio::test]
async fn dos_08_silence_is_judged_by_the_answer() {
    let rig = Rig::start(bounded).await;
    let events = [("Accept", "text/event-stream")];
    rig.upstream.on("/api/x", Script::Stall);
    assert_eq!(rig.get("/api/x", &events).await.verdict(), (504, "upstream_timeout".to_owned()));
    for (kind, accept) in [("text/plain", "text/event-stream"), ("application/json", "*/*, text/event-stream")] {
        let (pieces, script) = feed(kind);
        rig.upstream.on("/api/half", script);
        assert!(pieces.send("half"));
        let reply = rig.get("/api/half", &[("Accept", accept)]).await;
        assert_eq!((reply.status, reply.text().as_str(), reply.complete), (200, "half", false), "{kind}");
    }
    for kind in ["text/event-stream", "Text/Event-Stream;charset=utf-8", "application/grpc-web+proto"] {
        let (pieces, script) = feed(kind);
        rig.upstream.on("/api/events", script);
        let mut stream = rig.browser.open(&Ask::fetch("/api/events").header("Accept", "*/*")).await;
        tokio::time::sleep(Duration::from_millis(700)).await; // longer than others may be silent
        assert!(pieces.send("late"));
        assert_eq!(stream.read_until("late").await.as_deref(), Some("late"), "{kind}");
        stream.abort();
    }
    // An answer whose end is the connection's does not end for the client when it is we who end it.
    rig.upstream.on("/api/old", Script::Raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhalf".to_vec()));
    let reply = rig.get("/api/old", &[]).await;
    assert_eq!((reply.status, reply.text().as_str(), reply.complete), (200, "half", false));
    rig.upstream.on("/api/old", Script::RawThenClose(b"HTTP/1.1 200 OK\r\n\r\nwhole".to_vec()));
    let reply = rig.get("/api/old", &[]).await;
    assert_eq!((reply.text().as_str(), reply.complete), ("whole", true));
}

/// DOS-08: a client that is slow to send is not the upstream's silence; one that has sent all waits for the upstream.
#[tokio::test]
async fn dos_08_a_slow_upload_is_no_silence() {
    let rig = Rig::start(bounded).await;
    for expect in [&[][..], &[("Expect", "100-continue")]] {
        for (script, status) in [(Script::Echo, 200), (Script::Stall, 504)] {
            rig.upstream.on("/api/up", script);
            let mut conn = rig.gateway.dial().await;
            let fields = [SCRIPT, &[("Content-Length", "4")], expect].concat();
            conn.send(&rig.gateway.bytes("POST", "/api/up", &rig.signed(&fields), None)).await.expect("sent");
            for byte in ["b", "o", "d", "y"] {
                tokio::time::sleep(Duration::from_millis(200)).await;
                conn.send(byte.as_bytes()).await.expect("sent");
            }
            let mut reply = answer(&mut conn, "POST").await.expect("an answer");
            if reply.status == 100 {
                reply = answer(&mut conn, "POST").await.expect("an answer");
            }
            assert_eq!(reply.status, status, "{expect:?}");
        }
    }
}

/// DOS-08: an upstream that does not take the body is silent, whatever the client still has to send.
#[tokio::test]
async fn dos_08_an_upstream_that_stops_reading_is_a_504() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let deaf = format!("http://{}", listener.local_addr().expect("an address"));
    let rig = Rig::start(|config, up| {
        bounded(config, up);
        more_routes(config, &route("/deaf/", &deaf, "access = 'public'\nmax_body = '1GiB'\nread_timeout = '300ms'"));
    })
    .await;
    let mut conn = rig.gateway.dial().await;
    conn.send(&rig.gateway.bytes("POST", "/deaf/x", &[("Content-Length", "1000000000")], None)).await.expect("sent");
    let (_held, _) = listener.accept().await.expect("the gateway");
    let mut reply = std::pin::pin!(async {
        // As much as is taken.
        while conn.send(&[b'x'; 64 * 1024]).await.is_ok() {}
        answer(&mut conn, "POST").await
    });
    let reply = tokio::time::timeout(PATIENCE, &mut reply).await.expect("an end");
    assert_eq!(reply.expect("an answer").verdict(), (504, "upstream_timeout".to_owned()));
}

/// DOS-08, K8S-18, ASVS-16.5.2: all upstreams of a list are used; a dead one and one whose name does not resolve are
/// passed over, and not every request pays for them.
#[tokio::test]
async fn dead_upstreams_are_passed_over() {
    let second = Upstream::start().await;
    let (hole, visits) = black_hole().await;
    let rig = Rig::start(|config, up| {
        let list =
            format!("['http://127.0.0.1:9', {up:?}, 'http://no-such-host.invalid', {:?}, {hole:?}]", second.url());
        let text = format!(
            "[[route]]\npath = '/api/'\nupstream = {list}\nconnect_timeout = '300ms'\n\
             [[route]]\npath = '/gone/'\nupstream = 'http://no-such-host.invalid'\n"
        );
        routes(config, &text);
    })
    .await;
    for _ in 0..40 {
        assert_eq!(rig.get("/api/x", &[]).await.status, 200);
        assert_eq!(rig.call("POST", "/api/x", &rig.signed(SCRIPT)).await.status, 200);
    }
    let visits = visits.load(Ordering::Relaxed);
    assert!((1..8).contains(&visits), "each fifth of 80 requests began there, and {visits} tried");
    assert!(rig.upstream.requests().len() > 20 && second.requests().len() > 20);
    assert_eq!(rig.get("/gone/x", &[]).await.verdict(), (502, "upstream_unreachable".to_owned()));
}

/// Takes connections and never says a word, so that a TLS handshake with it does not end. Counts them.
async fn black_hole() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("https://{}", listener.local_addr().expect("an address"));
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    tokio::spawn(async move {
        let mut held: Vec<TcpStream> = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            counting.fetch_add(1, Ordering::Relaxed);
            held.push(stream);
        }
    });
    (url, count)
}

/// HTTP-22, HTTP-24, ASVS-4.2.2: an answer that is no valid HTTP is a 502 or a cut connection, never spliced into the
/// next.
#[tokio::test]
async fn http_22_broken_answers() {
    let rig = Rig::start(bounded).await;
    let ok = "HTTP/1.1 200 OK\r\n";
    for raw in [
        "garbage\r\n\r\n".to_owned(),
        "HTTP/9.9 200 OK\r\n\r\n".to_owned(),
        "HTTP/1.1 abc OK\r\n\r\n".to_owned(),
        "HTTP/1.1 200".to_owned(),
        String::new(),
        format!("{ok}Content-Length: 5\r\nBro ken: x\r\n\r\nhello"),
        format!("{ok}X: {}\r\n", "x".repeat(100)),
    ] {
        rig.upstream.on("/x", Script::RawThenClose(raw.clone().into_bytes()));
        let reply = rig.call("GET", "/x", SCRIPT).await;
        assert_eq!(reply.verdict(), (502, "upstream_protocol".to_owned()), "{raw:?}");
    }
    // Two readers of these would find two ends.
    let chunks = "\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    for raw in [
        format!("{ok}Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
        format!("{ok}Content-Length: 5, 5\r\n\r\nhello"),
        format!("{ok}Content-Length: 05\r\n\r\nhello"),
        format!("{ok}Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello"),
        format!("{ok}Transfer-Encoding: gzip, chunked{chunks}"),
        format!("{ok}Transfer-Encoding: chunked, identity{chunks}"),
        format!("{ok}Transfer-Encoding: chunked, chunked{chunks}"),
        format!("{ok}Transfer-Encoding: xchunked{chunks}"),
        format!("{ok}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked{chunks}"),
        format!("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked{chunks}"),
    ] {
        rig.upstream.on("/x", Script::RawThenClose(raw.clone().into_bytes()));
        let reply = rig.call("GET", "/x", SCRIPT).await;
        assert_eq!(reply.verdict(), (502, "upstream_protocol".to_owned()), "{raw:?}");
    }
    rig.upstream.on("/x", Script::Reset);
    assert_eq!(rig.call("GET", "/x", SCRIPT).await.verdict(), (502, "upstream_protocol".to_owned()));
    for raw in [
        format!("{ok}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
        format!("{ok}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        format!("{ok}Content-Length: +5\r\n\r\nhello"),
        format!("{ok}Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n"),
        format!("{ok}Transfer-Encoding: chunked\r\n\r\n5\r\nhel"),
        format!("{ok}Content-Length: 50\r\n\r\nhello"),
    ] {
        rig.upstream.on("/x", Script::RawThenClose(raw.clone().into_bytes()));
        let reply = rig.gateway.exact("GET", "/x", SCRIPT, None).await;
        let spliced =
            reply.as_ref().is_some_and(|reply| reply.status == 200 && reply.complete && reply.text() != "hello");
        assert!(!spliced, "{raw:?}: {reply:?}");
    }
}

/// HTTP-23, ASVS-4.2.2: bytes after the end of an answer belong to nobody.
#[tokio::test]
async fn http_23_the_pool_is_not_poisoned() {
    let rig = Rig::start(bounded).await;
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    for (method, raw) in [
        ("GET", format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{evil}")),
        ("HEAD", format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil{evil}")),
        ("GET", format!("HTTP/1.1 204 No Content\r\n\r\n{evil}")),
        ("GET", format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil{evil}")),
    ] {
        for _ in 0..3 {
            rig.upstream.on("/x", Script::Raw(raw.clone().into_bytes()));
            let reply = rig.gateway.exact(method, "/x", SCRIPT, None).await.expect("an answer");
            assert!(!reply.text().contains("evil"), "{method} {raw:?}");
            let next = rig.forwarded("GET", "/next", SCRIPT).await;
            assert_eq!(next.target, "/next");
            let reply = rig.call("GET", "/next", SCRIPT).await;
            assert!(reply.text().contains("\"target\":\"/next\""), "{method} {raw:?}: {}", reply.text());
        }
    }
}

/// HTTP-23: an answer without a body says nothing of one, or who believes it waits for the next answer's bytes.
#[tokio::test]
async fn http_23_what_has_no_body_announces_none() {
    let rig = Rig::start(bounded).await;
    for (raw, gone) in [
        ("HTTP/1.1 204 No Content\r\nContent-Length: 45\r\n\r\n", "content-length"),
        ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer-encoding"),
        ("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer-encoding"),
    ] {
        rig.upstream.on("/x", Script::RawThenClose(raw.as_bytes().to_vec()));
        let reply = rig.call("GET", "/x", SCRIPT).await;
        assert!([204, 304].contains(&reply.status) && reply.header(gone).is_none(), "{raw:?}: {}", reply.head());
    }
    rig.upstream.on("/x", Script::Raw(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 45\r\n\r\n".to_vec()));
    let reply = rig.call("GET", "/x", SCRIPT).await;
    assert_eq!(reply.header("content-length"), Some("45"), "the length of what the client has");
}

/// A client of HTTP/1.0 gets no chunks, which it need not know: the connection's end is the answer's.
#[tokio::test]
async fn a_client_of_http_1_0_gets_no_chunks() {
    let rig = Rig::start(bounded).await;
    let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let hints = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    for script in [
        Script::Raw(chunks.as_bytes().to_vec()),
        Script::Raw([hints, chunks].concat().into_bytes()),
        Script::RawThenClose(b"HTTP/1.1 200 OK\r\n\r\nhello".to_vec()),
        Script::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_vec()),
    ] {
        let ends_itself = matches!(&script, Script::Raw(raw) if raw.ends_with(b"\r\nhello"));
        rig.upstream.on("/x", script);
        let more = if ends_itself { "" } else { "Connection: keep-alive\r\n" };
        let request = format!("GET /x HTTP/1.0\r\nHost: {}\r\n{more}\r\n", rig.gateway.host());
        let mut conn = rig.gateway.dial().await;
        conn.send(request.as_bytes()).await.expect("sent");
        let all = tokio::time::timeout(PATIENCE, conn.take_to_end()).await.expect("an end");
        let all = String::from_utf8_lossy(&all).to_lowercase();
        let (head, body) = all.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(" 200 ") && !head.contains("transfer-encoding"), "{all}");
        assert!(body == "hello" && !head.contains("connection: keep-alive"), "{all}");
    }
}

/// RFR-10: the refreshed session reaches the browser on our own 502 and 504 too, and on no 1xx.
#[tokio::test]
async fn a_refreshed_session_is_never_lost() {
    let rig = Rig::start(bounded).await;
    for (path, script, status) in [
        ("/api/a", Script::Stall, 504),
        ("/api/b", Script::Reset, 502),
        ("/dead/c", Script::Echo, 502),
        ("/api/d", Script::RawThenClose(b"garbage\r\n\r\n".to_vec()), 502),
    ] {
        let before = rig.provider.refreshes();
        rig.upstream.on(path, script);
        rig.gateway.advance(&rig.provider, 3600);
        let reply = rig.get(path, &[]).await;
        assert_eq!((reply.status, rig.provider.refreshes()), (status, before + 1), "{path}");
        let fresh = reply.header_all("set-cookie").into_iter().find(|line| line.starts_with("sidegate="));
        assert!(fresh.is_some_and(|line| line.contains("HttpOnly") && !line.contains("Max-Age=0")), "{path}");
    }
    rig.gateway.advance(&rig.provider, 3600);
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    rig.upstream.on("/api/x", Script::Raw(hints.as_bytes().to_vec()));
    let mut conn = rig.gateway.dial().await;
    conn.send(&rig.gateway.bytes("GET", "/api/x", &rig.signed(&[SCRIPT, &[("Connection", "close")]].concat()), None))
        .await
        .expect("sent");
    let all = tokio::time::timeout(PATIENCE, conn.take_to_end()).await.expect("an end");
    let all = String::from_utf8_lossy(&all).to_lowercase();
    let (first, last) = all.split_once("http/1.1 200").unwrap_or(("", &all));
    assert!(!first.contains("set-cookie") && last.contains("set-cookie: sidegate="), "{all}");
}

/// HTTP-18, HTTP-19: on one connection each request is judged on its own, and a body that was not read is no request.
#[tokio::test]
async fn http_19_unread_bodies_are_not_requests() {
    let rig = Rig::start(bounded).await;
    let canary = mark("canary");
    let smuggled = format!("GET /{canary} HTTP/1.1\r\nHost: {}\r\n\r\n", rig.gateway.host());
    for (path, status) in [("/api/x", 401), ("/auth/session", 405), ("/auth/nowhere", 404)] {
        let mut bytes = rig.gateway.bytes("POST", path, SCRIPT, Some(smuggled.as_bytes()));
        bytes.extend(rig.gateway.bytes("GET", "/after", SCRIPT, None));
        let mut conn = rig.gateway.dial().await;
        conn.send(&bytes).await.expect("sent");
        assert_eq!(answer(&mut conn, "POST").await.expect("an answer").status, status, "{path}");
        if let Some(after) = answer(&mut conn, "GET").await {
            assert!(after.text().contains("\"target\":\"/after\""), "{path}: {}", after.text());
        }
    }
    assert!(!String::from_utf8_lossy(&rig.upstream.bytes()).contains(&canary));

    let mut conn = rig.gateway.dial().await;
    for (fields, status) in [(rig.signed(SCRIPT), 200), (SCRIPT.to_vec(), 401), (rig.signed(SCRIPT), 200)] {
        conn.send(&rig.gateway.bytes("GET", "/api/x", &fields, None)).await.expect("sent");
        assert_eq!(answer(&mut conn, "GET").await.expect("an answer").status, status, "no session is the connection's");
    }
}

/// HTTP-21: an answer before the end of the request passes, and the half-written connection is not used again.
#[tokio::test]
async fn http_21_an_early_answer_passes() {
    let rig = Rig::start(|config, _| set(config, "limits.body_idle", "'1h'")).await;
    rig.upstream.on("/x", Script::EarlyThenClose(Answer::new(403, "text/plain", "enough")));
    let head = rig.gateway.bytes("POST", "/x", &[("Content-Length", "1000000")], None);
    let mut conn = rig.gateway.dial().await;
    conn.send(&[head, vec![b'x'; 1000]].concat()).await.expect("sent");
    let reply = answer(&mut conn, "POST").await.expect("an answer");
    assert_eq!((reply.status, reply.text().as_str()), (403, "enough"));
    for _ in 0..3 {
        assert_eq!(rig.forwarded("GET", "/next", SCRIPT).await.target, "/next");
    }
    // Nor when the upstream would read on: the next request would be the rest of this one's body.
    rig.upstream.on("/y", Script::Early(Answer::new(403, "text/plain", "enough")));
    let head = rig.gateway.bytes("POST", "/y", &[("Content-Length", "1000000")], None);
    let mut conn = rig.gateway.dial().await;
    conn.send(&[head, vec![b'x'; 1000]].concat()).await.expect("sent");
    assert_eq!(answer(&mut conn, "POST").await.expect("an answer").status, 403);
    drop(conn);
    let half = rig.upstream.connections();
    for _ in 0..3 {
        let next = rig.forwarded("GET", "/next", SCRIPT).await;
        assert!(next.target == "/next" && next.connection > half, "{} on {}", next.target, next.connection);
    }
    // A client that does not send the rest is not waited for.
    rig.upstream.forget();
    for (path, status) in [("/y", 403), ("/z", 204)] {
        rig.upstream.on("/z", Script::Early(Answer::empty(204)));
        let mut conn = rig.gateway.dial().await;
        conn.send(&rig.gateway.bytes("POST", path, &[("Content-Length", "10")], None)).await.expect("sent");
        assert_eq!(answer(&mut conn, "POST").await.expect("an answer").status, status);
        assert!(tokio::time::timeout(PATIENCE, conn.take_to_end()).await.expect("the connection ends").is_empty());
    }
    rig.upstream.wait_for_requests(2).await;
    assert!(rig.upstream.requests().iter().all(|request| !request.complete));
    // One that sends it leaves a connection that can be used again.
    for path in ["/y", "/z"] {
        rig.upstream.forget();
        let mut conn = rig.gateway.dial().await;
        conn.send(&rig.gateway.bytes("POST", path, &[("Content-Length", "4")], None)).await.expect("sent");
        let _ = answer(&mut conn, "POST").await.expect("an answer");
        conn.send(b"rest").await.expect("sent");
        assert!(tokio::time::timeout(PATIENCE, conn.take_to_end()).await.expect("the connection ends").is_empty());
        rig.upstream.wait_for_requests(1).await;
        let connection = rig.upstream.last().connection;
        assert_eq!(rig.forwarded("GET", "/next", SCRIPT).await.connection, connection, "{path}");
    }
}

/// ASVS-1.4.3: a client that leaves ends the upstream's work.
#[tokio::test]
async fn a_client_that_leaves_is_noticed_upstream() {
    let rig = Rig::start(|_, _| {}).await;
    let (events, script) = feed("text/plain");
    rig.upstream.on("/x", script);
    let mut conn = rig.gateway.dial().await;
    conn.send(&rig.gateway.bytes("GET", "/x", SCRIPT, None)).await.expect("sent");
    assert!(events.send("first"));
    assert!(conn.take_until(b"first").await.expect("a body").is_some(), "bodies are not buffered");
    conn.reset_soon();
    drop(conn);
    events.closed().await;
}
