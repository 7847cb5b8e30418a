//! What a caller may have of a thing at a time: `rate_limit`, event streams, answers that nobody reads, floods.

mod support;

use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, oneshot};

use support::client::Ask;
use support::exact::{FOREIGN_SCRIPT, Rig, SCRIPT, TYPED, answer, cookie_of, route, routes};
use support::gateway::{Gateway, set};
use support::http2::{Raw, field, frame};
use support::provider::{Endpoint, ProviderDouble};
use support::upstream::Upstream;
use support::wait::{eventually, until};
use support::wire::{Conn, request_bytes};

/// DOS-16, ASVS-15.2.2: a route's `rate_limit` counts by session, else by address, and says when to come again.
#[tokio::test]
async fn dos_16_a_route_has_a_rate() {
    let rig = Rig::start(|config, up| {
        let rate = "rate_limit = { requests = 1, per = '10s', burst = 3 }";
        let text = [
            route("/api/", up, rate),
            route("/open/", up, &format!("access = 'public'\n{rate}")),
            route("/free/", up, ""),
            route("/", up, "access = 'public'"),
        ];
        routes(config, &text.concat());
    })
    .await;
    for _ in 0..3 {
        assert_eq!(rig.get("/api/x", &[]).await.status, 200);
    }
    let reply = rig.get("/api/x", &[]).await;
    assert_eq!(reply.verdict(), (429, "rate_limited".to_owned()));
    assert_eq!(reply.header("retry-after"), Some("10"));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let page = rig.call("GET", "/api/x", &rig.signed(TYPED)).await;
    assert!(page.status == 429 && page.text().contains("rate_limited"), "{}", page.text());
    assert_eq!(rig.upstream.requests_to("/api/x").len(), 3, "nothing of what was refused was forwarded");
    assert_eq!(rig.get("/free/x", &[]).await.status, 200, "each route by itself");

    // Another session is another caller; without one the address counts.
    let other = rig.gateway.signed_in().await;
    assert_eq!(other.fetch("/api/x").await.status, 200);
    let statuses = |path: &'static str, count: usize| {
        let rig = &rig;
        async move {
            let mut statuses = Vec::new();
            for _ in 0..count {
                statuses.push(rig.call("GET", path, SCRIPT).await.status);
            }
            statuses
        }
    };
    assert_eq!(statuses("/api/x", 4).await, [401, 401, 401, 429]);
    assert_eq!(statuses("/open/x", 4).await, [200, 200, 200, 429]);
    rig.gateway.advance(&rig.provider, 10);
    assert_eq!(statuses("/open/x", 2).await, [200, 429], "one more for each interval");
    assert_eq!(rig.get("/api/x", &[]).await.status, 200);
}

/// DOS-16: what another site makes the browser send costs its user nothing.
#[tokio::test]
async fn dos_16_foreign_requests_do_not_count() {
    let rig = Rig::start(|config, up| {
        routes(config, &route("/api/", up, "rate_limit = { requests = 1, per = '10s', burst = 1 }"));
    })
    .await;
    for _ in 0..3 {
        assert_eq!(rig.call("POST", "/api/x", &rig.signed(FOREIGN_SCRIPT)).await.status, 403);
    }
    assert_eq!(rig.get("/api/x", &[]).await.status, 200);
}

/// DOS-16, HDR-06: behind a trusted proxy the client's address counts, and IPv6 by /64.
#[tokio::test]
async fn dos_16_addresses_behind_a_proxy() {
    let rig = Rig::start(|config, up| {
        set(config, "server.trusted_proxies", "['127.0.0.1/32']");
        let more = "access = 'public'\nrate_limit = { requests = 1, per = '10s', burst = 1 }";
        routes(config, &route("/", up, more));
    })
    .await;
    let mut statuses = Vec::new();
    for address in ["192.0.2.1", "192.0.2.2", "192.0.2.1", "2001:db8::1", "2001:db8::ffff", "2001:db8:0:1::1"] {
        statuses.push(rig.call("GET", "/x", &[("X-Forwarded-For", address)]).await.status);
    }
    assert_eq!(statuses, [200, 200, 429, 200, 429, 200]);
}

/// WS-07: a session may have so many event streams and no more; one that ends makes room.
#[tokio::test]
async fn ws_07_event_streams_of_a_session_are_bounded() {
    let rig = Rig::start(|_, _| {}).await;
    let mut open = Vec::new();
    loop {
        let stream = rig.browser.open(&Ask::fetch("/auth/events")).await;
        if stream.response.status != 200 {
            assert_eq!(stream.response.status, 429);
            assert!(stream.response.header("retry-after").is_some());
            break;
        }
        open.push(stream);
        assert!(open.len() < 100, "no end to them");
    }
    assert!(open.len() >= 10, "a user has some tabs");
    let other = rig.gateway.signed_in().await;
    assert_eq!(other.open(&Ask::fetch("/auth/events")).await.response.status, 200, "another session has its own");
    for stream in open.drain(..) {
        stream.abort();
    }
    // The gateway notices at the next write.
    until("streams that ended count no more", async || {
        rig.browser.open(&Ask::fetch("/auth/events")).await.response.status == 200
    })
    .await;
}

/// More than the kernel and a gateway that gathers nothing can hold.
const TOO_MUCH: usize = 512 << 20;

/// An upstream whose answer to the first `/big` has no end. Tells how much it could send before nobody took more for that
/// long, or before the connection was gone.
async fn endless(patience: Duration) -> (u16, oneshot::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (told, sent) = oneshot::channel();
    tokio::spawn(async move {
        let mut told = Some(told);
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let length = stream.read(&mut head).await.unwrap_or(0);
            if !String::from_utf8_lossy(head.get(..length).unwrap_or_default()).contains("/big") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                continue;
            }
            let Some(told) = told.take() else { continue };
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n").await;
            let (piece, mut sent) = (vec![b'x'; 64 * 1024], 0);
            while sent < TOO_MUCH
                && let Ok(Ok(n)) = tokio::time::timeout(patience, stream.write(&piece)).await
            {
                sent += n;
            }
            let _ = told.send(sent);
        }
    });
    (port, sent)
}

/// DOS-22: who does not read holds the upstream back; nothing is gathered here.
#[tokio::test]
async fn dos_22_a_slow_reader_holds_the_upstream_back() {
    for http2 in [false, true] {
        let (port, sent) = endless(Duration::from_millis(700)).await;
        let rig = Rig::start(|config, _| {
            set(config, "server.h2c", "true");
            routes(config, &route("/", &format!("http://127.0.0.1:{port}"), "access = 'public'"));
        })
        .await;
        let sent = if http2 {
            let mut raw = Raw::dial(rig.gateway.addr).await;
            let fields =
                [(":method", "GET"), (":scheme", "http"), (":authority", rig.gateway.host()), (":path", "/big")];
            let block: Vec<u8> = fields.iter().flat_map(|(name, value)| field(name, value)).collect();
            raw.send(&frame(1, 5, 1, &block)).await;
            sent.await
        } else {
            let mut conn = rig.gateway.dial().await;
            conn.send(&rig.gateway.bytes("GET", "/big", &[], None)).await.expect("sent");
            sent.await
        };
        // What the kernel buffers on two connections, and little besides.
        let sent = sent.expect("told");
        assert!((1..64 << 20).contains(&sent), "{sent} bytes");
    }
}

/// DOS-22: a client that takes nothing of its answer for `body_idle` is cut off, and so is what the app still sends.
#[tokio::test]
async fn dos_22_who_takes_nothing_is_cut_off() {
    for http2 in [false, true] {
        let (port, gone) = endless(Duration::MAX).await;
        let rig = Rig::start(|config, _| {
            set(config, "server.h2c", "true");
            set(config, "limits.body_idle", "'1s'");
            routes(config, &route("/", &format!("http://127.0.0.1:{port}"), "access = 'public'"));
        })
        .await;
        let fields = [(":method", "GET"), (":scheme", "http"), (":authority", rig.gateway.host()), (":path", "/big")];
        let block: Vec<u8> = fields.iter().flat_map(|(name, value)| field(name, value)).collect();
        let (mut raw, mut conn);
        if http2 {
            raw = Raw::dial(rig.gateway.addr).await;
            raw.send(&frame(1, 5, 1, &block)).await;
        } else {
            conn = rig.gateway.dial().await;
            conn.send(&rig.gateway.bytes("GET", "/big", &[], None)).await.expect("sent");
        }
        let sent = tokio::time::timeout(Duration::from_secs(30), gone)
            .await
            .unwrap_or_else(|_| panic!("HTTP/2 {http2}: the connection to the app stays"))
            .expect("told");
        assert!(sent < TOO_MUCH, "HTTP/2 {http2}: {sent} bytes");
    }
}

/// DOS-11, DOS-12: garbage in cookies and callbacks costs no call to the provider, and good requests go on.
#[tokio::test]
async fn dos_11_dos_12_garbage_asks_nobody() {
    let rig = Rig::start(|_, _| {}).await;
    let before = rig.provider.calls_to(Endpoint::Token).len();
    let long = "A".repeat(3000);
    let mut conn = rig.gateway.dial().await;
    for number in 0..300 {
        let cookie = format!("sidegate=EQ{number}{long}; sidegate-1={long}; other=1");
        let fields = [SCRIPT, &[("Cookie", cookie.as_str())]].concat();
        conn.send(&rig.gateway.bytes("GET", "/api/x", &fields, None)).await.expect("sent");
        assert_eq!(answer(&mut conn, "GET").await.expect("an answer").status, 401);
        let target = format!("/auth/callback?code=c{number}&state=IQ{number}{long}");
        conn.send(&rig.gateway.bytes("GET", &target, TYPED, None)).await.expect("sent");
        let reply = answer(&mut conn, "GET").await.expect("an answer");
        assert!((300..500).contains(&reply.status), "{}", reply.status);
    }
    assert_eq!(rig.provider.calls_to(Endpoint::Token).len(), before);
    assert!(rig.upstream.untouched());
    assert_eq!(rig.get("/api/x", &[]).await.status, 200);
}

/// MET-04: scrapers, and those that never ask, hold up no request and no other scrape.
#[tokio::test]
async fn met_04_scrapes_hold_up_nothing() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start(&provider, &upstream).await;
    let browser = gateway.signed_in().await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(gateway.admin_addr).await.expect("a connection"));
    }
    for _ in 0..10 {
        let (scrapes, answer) = tokio::join!(
            async {
                for _ in 0..10 {
                    assert!(gateway.metrics().await.contains("sidegate_requests_total"));
                }
            },
            browser.fetch("/api/x"),
        );
        assert_eq!((scrapes, answer.status), ((), 200));
    }
    assert_eq!(silent.len(), 20);
}

/// DOS-20: without a descriptor left those who are there are served on, on the connections that there are; those who come
/// wait, and are served when others leave.
#[tokio::test]
async fn dos_20_without_descriptors_good_traffic_goes_on() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start(&provider, &upstream).await;
    let browser = gateway.signed_in().await;
    let host = gateway.public_url.trim_start_matches("http://").to_owned();
    let cookie = cookie_of(&browser);
    let fields = [&[("Host", host.as_str()), ("Cookie", cookie.as_str())], SCRIPT].concat();
    let fields: Vec<_> = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let request = request_bytes("GET", "/api/x", &fields, None);
    let conn = Mutex::new(Conn::dial(gateway.addr).await.expect("a connection"));
    let served = async || {
        let mut conn = conn.lock().await;
        conn.send(&request).await.expect("sent");
        assert_eq!(answer(&mut conn, "GET").await.map(|reply| reply.status), Some(200));
    };
    served().await;

    let open = std::fs::read_dir(format!("/proc/{}/fd", gateway.id())).expect("Linux").count() as u64;
    let process = Pid::from_raw(i32::try_from(gateway.id()).expect("an id"));
    let limit = Rlimit { current: Some(open + 10), maximum: Some(1024) };
    prlimit(process, Resource::Nofile, limit).expect("our own child");
    let mut idle = Vec::new();
    for _ in 0..40 {
        idle.push(TcpStream::connect(gateway.addr).await.expect("a place in the backlog"));
    }
    let short = eventually(async || {
        served().await;
        gateway.output().contains("cannot accept")
    });
    assert!(short.await, "descriptors are left:\n{}", gateway.output());
    for _ in 0..20 {
        served().await;
    }
    let waits = browser.launch(&Ask::fetch("/api/x")).await;
    drop(idle);
    assert_eq!(waits.answer().await.status, 200);
    served().await;
    assert!(gateway.exit_status().is_none() && !gateway.output().contains("panicked"), "{}", gateway.output());
}
