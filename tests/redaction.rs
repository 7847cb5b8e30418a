//! What the real program says of a whole journey and of everything that can go wrong in it: enough for an operator, and
//! no secret, at the most talkative level.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeMap;

use serde_json::Value;
use support::client::{Ask, Browser, Initiator};
use support::gateway::{Gateway, config, set};
use support::leak::Canaries;
use support::provider::{Authorization, Endpoint, Fault, Outage, ProviderDouble};
use support::text::{filler, mark};
use support::upstream::{Script, Upstream};
use support::wire::Answer;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

/// The longest line.
const LINE: usize = 16 * 1024;

/// The real program at `trace`, with `RUST_LOG=trace`, which it must not heed.
async fn talkative(provider: &ProviderDouble, upstream: &Upstream) -> (Gateway, Canaries) {
    let mut table = config(provider, upstream);
    set(&mut table, "log.level", "\"trace\"");
    set(&mut table, "refresh.wait", "\"1s\"");
    let mut canaries = Canaries::default();
    canaries.add("cookie key", table["session"]["keys"][0].as_str().unwrap());
    let gateway = Gateway::run_in(&table, &[("RUST_LOG", "trace")]);
    provider.register(&gateway.public_url);
    gateway.wait_until_ready().await;
    (gateway, canaries)
}

/// Everything secret that went through these browsers and the provider.
fn secrets(canaries: &mut Canaries, provider: &ProviderDouble, browsers: &[&Browser]) {
    canaries.extend(&provider.canaries());
    for answer in browsers.iter().flat_map(|browser| browser.history()) {
        for answer in answer.via.iter().chain([&answer]) {
            for cookie in answer.set_cookies() {
                canaries.add("cookie value", &cookie.value);
            }
            for name in ["state", "nonce", "code", "code_challenge", "id_token_hint"] {
                canaries.add(name, &answer.location_param(name).unwrap_or_default());
            }
        }
    }
    for (label, value) in [("e-mail", "alice@users.example"), ("name", "Alice Example"), ("sub", "alice-4711")] {
        canaries.add(label, value);
    }
}

fn count(gateway: &Gateway) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in gateway.stdout() {
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        *counts.entry(line["event"].as_str().expect("every line has an event").to_owned()).or_default() += 1;
    }
    counts
}

async fn assert_silent(gateway: &Gateway, canaries: &Canaries) {
    for line in gateway.stdout() {
        assert!(line.len() <= LINE, "{} bytes: {line:.200}", line.len());
        assert!(serde_json::from_str::<Value>(&line).is_ok_and(|v| v.is_object()), "not JSON: {line}");
    }
    canaries.assert_absent("stdout and stderr", gateway.output());
    canaries.assert_absent("metrics", gateway.metrics().await);
    canaries.assert_absent("config", gateway.admin("/config").await.unwrap().body);
}

/// LOG-01, LOG-05, LOG-06, LOG-07, LOG-08, ASVS-16.2.1, ASVS-16.2.2, ASVS-16.2.4, ASVS-16.3.2: a good day, each event
/// once.
#[tokio::test]
async fn a_good_day_is_told_once_and_without_secrets() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let (gateway, mut canaries) = talkative(&provider, &upstream).await;
    let query = mark("query-");
    let body = mark("body-");
    let browser = gateway.browser();
    browser.login(&format!("/page?token={query}")).await;
    browser.fetch(&format!("/api/x?access_token={query}")).await;
    browser.send(Ask::fetch("/api/x").body("text/plain", body.as_str())).await;
    assert_eq!(browser.post("/auth/refresh").await.status, 200);
    browser.session().await;
    let foreign = browser.cookie("sidegate").unwrap();
    let ask = Ask::fetch("/api/x").method("POST").from(Initiator::CrossSite).cookie(&format!("sidegate={foreign}"));
    assert_eq!(browser.send(ask).await.code(), "csrf");
    assert_eq!(browser.post("/auth/logout").await.status, 200);
    assert_eq!(browser.fetch("/api/x").await.status, 401);

    secrets(&mut canaries, &provider, &[&browser]);
    canaries.add("query", &query);
    canaries.add("body", &body);
    let requests = browser.history().iter().filter(|answer| answer.url.starts_with(&gateway.public_url)).count();
    let told = gateway.wait_for_log("request", requests).await;
    assert_eq!(told.len(), requests, "one line a request");
    for line in &told {
        for field in ["ts", "level", "request_id", "route", "method", "path", "status", "duration_ms", "client"] {
            assert!(!line[field].is_null(), "{field}: {line}");
        }
        assert!(!line["path"].as_str().unwrap().contains('?'), "{line}");
        assert_eq!(line["client"], "127.0.0.1");
        let at = line["ts"].as_str().unwrap();
        assert!(at.ends_with('Z') && at.contains('T'), "{at}");
    }
    assert!(told.iter().any(|line| line["sub_hash"].is_string()));
    let counts = count(&gateway);
    for event in ["login", "refresh", "logout", "csrf_refused"] {
        assert_eq!(counts.get(event), Some(&1), "{event}: {counts:?}");
    }
    assert_eq!(counts.get("login_refused"), None);
    assert!(counts["listening"] >= 1);
    assert_silent(&gateway, &canaries).await;
}

/// LOG-01 to LOG-05, LOG-07, ASVS-16.2.5, ASVS-16.3.3, ASVS-16.4.1: everything goes wrong.
#[tokio::test]
async fn a_bad_day_is_told_without_secrets() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let (gateway, mut canaries) = talkative(&provider, &upstream).await;
    let secret = mark("planted-secret-");
    canaries.add("planted", &secret);
    let browser = gateway.browser();
    let mut refused = 0;

    // Callbacks that prove nothing, or repeat what they should not.
    for query in [
        format!("code={secret}&state={secret}"),
        format!("code={secret}"),
        format!("state={secret}&error=access_denied&error_description={secret}"),
        format!("access_token={secret}&state={secret}"),
        format!("code={secret}&code={secret}&state={secret}"),
    ] {
        let answer = browser.navigate(&format!("/auth/callback?{query}")).await;
        assert_eq!(answer.status, 400);
        refused += 1;
    }
    // The provider refuses the user, the code, or tells nonsense.
    provider.set(|s| {
        let more = vec![("error_description".to_owned(), secret.clone()), ("error_uri".to_owned(), secret.clone())];
        s.authorization = Authorization::Error { error: secret.clone(), more };
    });
    assert_eq!(browser.login("/").await.status, 400);
    provider.set(|s| s.authorization = Authorization::Code);
    for outage in [
        Outage::Refuse { status: 400, error: "invalid_grant".to_owned(), description: secret.clone() },
        Outage::Refuse { status: 401, error: "invalid_client".to_owned(), description: secret.clone() },
        Outage::json(200, &format!(r#"{{"access_token":"{secret}","token_type":"{secret}"}}"#)),
        Outage::json(200, &format!(r#"{{"access_token":"{secret}"#)),
        Outage::Raw(format!("HTTP/1.1 200 OK\r\n{secret}\r\n\r\n{secret}").into_bytes()),
        Outage::Answer(Answer::new(503, "text/html", secret.clone())),
        Outage::Redirect(format!("http://127.0.0.1:1/?{secret}")),
    ] {
        provider.set(|s| s.fail_code(outage));
        assert!(browser.login("/").await.status >= 400);
        provider.set(|s| s.heal(Endpoint::Token));
    }
    for fault in [Fault::NonceInvalid, Fault::AudSuffix, Fault::NonceMissing] {
        provider.set(|s| s.fault = Some(fault));
        assert!(browser.login("/").await.status >= 400);
    }
    provider.set(|s| s.fault = None);
    refused += 1 + 7 + 3;

    // A login that holds, with every parameter that may be a person's.
    browser.navigate(&format!("/auth/login?login_hint=alice@users.example&return_to=/x?{secret}&x={secret}")).await;
    assert_eq!(browser.session().await["authenticated"], true);

    // Upstreams that break, and say more than they should.
    for script in [
        Script::RawThenClose(format!("HTTP/1.1 200 OK\r\n{secret}\r\n\r\n").into_bytes()),
        Script::RawThenClose(secret.clone().into_bytes()),
        Script::RawThenReset(format!("HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{secret}").into_bytes()),
        Script::Close,
        Script::Reset,
        Script::text(500, &secret),
        Script::WebSocketWrongAccept,
    ] {
        upstream.on("/api/bad", script);
        browser.fetch(&format!("/api/bad?{secret}")).await;
    }
    upstream.go_down().await;
    assert_eq!(browser.fetch(&format!("/api/x?{secret}")).await.status, 502);
    upstream.come_back().await;

    // Requests that are broken after a cookie was read.
    let session = browser.cookie("sidegate").unwrap();
    let host = gateway.public_url.trim_start_matches("http://");
    let cookie = format!("Cookie: sidegate={session}; other={secret}\r\nAuthorization: Bearer {secret}\r\n");
    let big = filler(40_000);
    for raw in [
        format!("GET /api/x?{secret} HTTP/1.1\r\nHost: {host}\r\n{cookie}bad header\r\n\r\n"),
        format!("GET /api/x?{secret} HTTP/1.1\r\nHost: {host}\r\n{cookie}\0: x\r\n\r\n"),
        format!("GET /api/x?{secret} HTTP/9.9\r\nHost: {host}\r\n{cookie}\r\n"),
        format!("GET /api/x%2f{secret}?{secret} HTTP/1.1\r\nHost: {host}\r\n{cookie}\r\n"),
        format!("GET /api/x HTTP/1.1\r\nHost: evil.{secret}\r\n{cookie}\r\n"),
        format!("GET /api/x HTTP/1.1\r\nHost: {host}\r\n{cookie}X-Big: {big}\r\n\r\n"),
        format!("GET /api/{big} HTTP/1.1\r\nHost: {host}\r\n{cookie}\r\n"),
        format!(
            "POST /api/x HTTP/1.1\r\nHost: {host}\r\n{cookie}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{secret}"
        ),
        format!("POST /api/x HTTP/1.1\r\nHost: {host}\r\n{cookie}Transfer-Encoding: chunked\r\n\r\n{secret}\r\n"),
        format!("{secret}\r\n\r\n"),
        format!("\u{16}\u{3}\u{1}{secret}"),
    ] {
        browser.raw_to_end(raw).await;
    }
    // Log injection: what a client chooses stays one value in one line.
    for value in ["a\"}\n{\"event\":\"login\"}", "\u{1b}[31mred", "\u{2028}", &"u".repeat(9000)] {
        let ask = Ask::fetch("/api/x")
            .header("User-Agent", &value.replace('\n', " "))
            .header("X-Request-Id", &value.replace('\n', " "));
        browser.send(ask).await;
    }
    let _ = browser.websocket("/api/ws", Initiator::CrossSite).await;

    // The refresh fails in each way. Each time in a session of its own, since a failure is remembered for a while.
    let mut browsers = vec![browser];
    for outage in [
        Outage::Refuse { status: 401, error: "invalid_client".to_owned(), description: secret.clone() },
        Outage::Answer(Answer::new(200, "text/html", secret.clone())),
        Outage::json(400, &format!(r#"{{"error":"{secret}","error_description":"{secret}"}}"#)),
        Outage::error("invalid_grant"),
    ] {
        let browser = gateway.signed_in().await;
        provider.set(|s| s.fail_refresh(outage));
        assert!(browser.post("/auth/refresh").await.status >= 400);
        provider.set(|s| s.heal(Endpoint::Token));
        browsers.push(browser);
    }
    assert_eq!(browsers.last().unwrap().session().await["authenticated"], false);
    let logins = browsers.len();

    secrets(&mut canaries, &provider, &browsers.iter().collect::<Vec<_>>());
    canaries.add("session", &session);
    let told = gateway.wait_for_log("login_refused", refused).await;
    assert_eq!(told.len(), refused, "{told:#?}");
    assert!(told.iter().all(|line| line["reason"].as_str().is_some_and(|reason| !reason.is_empty())));
    gateway.wait_for_log("refresh", 4).await;
    gateway.wait_for_log("session_ended", 1).await;
    let counts = count(&gateway);
    assert_eq!(counts.get("login"), Some(&logins), "{counts:?}");
    assert_eq!(counts.get("refresh"), Some(&4), "{counts:?}");
    assert_eq!(counts.get("session_ended"), Some(&1), "{counts:?}");
    assert_silent(&gateway, &canaries).await;
}

/// LOG-09: a refused configuration does not tell what is in it, and neither do `check` and the environment.
#[tokio::test]
async fn a_refused_configuration_does_not_tell_its_secrets() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let mut table = config(&provider, &upstream);
    let mut canaries = Canaries::default();
    canaries.add("cookie key", table["session"]["keys"][0].as_str().unwrap());
    canaries.add("client secret", &provider.client_secret());
    set(&mut table, "provider.client_secrets", "\"x\"");
    set(&mut table, "server.listen", "17");
    let gateway = Gateway::run_in(&table, &[("SIDEGATE_PROVIDER__CLIENT_SECRET", &provider.client_secret())]);
    assert_eq!(gateway.wait_for_exit().await.code(), Some(78));
    canaries.assert_absent("output", gateway.output());
}

/// ASVS-16.3.4: an upstream whose TLS fails is told, once a request, with its kind.
#[tokio::test]
async fn failures_of_tls_are_told() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let mut table = config(&provider, &upstream);
    // Speaks, but no TLS.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await;
        }
    });
    let route: toml::Table = format!("path = '/tls/'\nupstream = '{plain}'\naccess = 'public'").parse().unwrap();
    table["route"].as_array_mut().unwrap().push(route.into());
    let gateway = Gateway::run_in(&table, &[]);
    gateway.wait_until_ready().await;
    let answer = gateway.browser().fetch("/tls/x").await;
    assert_eq!(answer.status, 502);
    let told = gateway.wait_for_log("forward_failed", 1).await;
    assert_eq!(told.len(), 1);
    assert_eq!((&told[0]["level"], &told[0]["code"]), (&"warn".into(), &"upstream_unreachable".into()));
    assert_eq!(told[0]["kind"], "TLSHandshakeFailure");
    assert_eq!(told[0]["request_id"].as_str(), answer.json()["request_id"].as_str());
}
