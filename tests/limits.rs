//! What a caller may have of a thing at a time: `rate_limit`, event streams.

mod support;

use support::client::Ask;
use support::exact::{FOREIGN_SCRIPT, Rig, SCRIPT, TYPED, route, routes};
use support::gateway::set;

/// DOS-16: a route's `rate_limit` counts by session, else by address, and says when to come again.
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
    for _ in 0..200 {
        if rig.browser.open(&Ask::fetch("/auth/events")).await.response.status == 200 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("streams that ended still count");
}
