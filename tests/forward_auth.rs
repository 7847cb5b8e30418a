//! Forward-auth: other proxies ask on a listener of its own, and nginx does so for real.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use support::client::{Ask, Browser, Initiator};
use support::gateway::{free_port, set};
use support::inside::Inside;
use support::provider::ProviderDouble;
use support::server;
use support::upstream::Upstream;
use support::wire::{Conn, read_reply, request_bytes};

async fn asked(change: impl FnOnce(&mut toml::Table)) -> (ProviderDouble, Upstream, Inside) {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Inside::start_with(&provider, &upstream, |config| {
        set(config, "verify.listen", "'127.0.0.1:0'");
        let route = config["route"].as_array_mut().unwrap()[0].as_table_mut().unwrap();
        route.insert("identity_headers".into(), toml::Table::from_iter([("X-User".to_owned(), "sub".into())]).into());
        change(config);
    })
    .await;
    (provider, upstream, gateway)
}

/// nginx's form of a question.
fn nginx(ask: Ask, method: &str, uri: &str) -> Ask {
    ask.header("X-Original-URI", uri).header("X-Original-Method", method)
}

fn about(uri: &str) -> Ask {
    nginx(Ask::fetch("/any"), "GET", uri)
}

#[tokio::test]
async fn all_three_forms_get_token_and_identity() {
    let (_provider, upstream, gateway) = asked(|_| {}).await;
    let browser = gateway.signed_in().await;
    browser.fetch("/api/x").await;
    let token = format!("Bearer {}", upstream.last().bearer().unwrap());
    upstream.forget();
    let proxy = browser.at(gateway.verify.unwrap());
    let traefik = Ask::fetch("/").header("X-Forwarded-Uri", "/api/x?y").header("X-Forwarded-Method", "GET");
    for (ask, yes) in [(about("/api/x?y"), 204), (traefik, 204), (Ask::fetch("/ext-authz/api/x?y"), 200)] {
        let answer = proxy.send(ask).await;
        assert_eq!(answer.status, yes, "{answer:?}");
        assert_eq!(answer.header("authorization"), Some(token.as_str()));
        assert!(answer.header("x-user").is_some() && answer.body.is_empty());
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    let post = proxy.send(Ask::fetch("/ext-authz/api/x").method("POST")).await;
    assert_eq!(post.status, 200);
    let public = proxy.send(about("/index.html")).await;
    assert_eq!((public.status, public.header("authorization")), (204, None), "a public route has no token");
    assert!(upstream.untouched(), "nothing is forwarded");
    assert_eq!(gateway.metric("sidegate_requests_total", &[("route", "/api/"), ("status", "204")]), 2.0);
    assert_eq!(gateway.metric("sidegate_requests_total", &[("method", "POST"), ("status", "200")]), 1.0);
}

/// HDR-08: Envoy leaves a client's field in place where the answer has none of that name; so it is told which go.
#[tokio::test]
async fn envoy_is_told_what_to_remove() {
    let (_provider, _upstream, gateway) = asked(|config| {
        let route = config["route"].as_array_mut().unwrap()[0].as_table_mut().unwrap();
        let identity = [("X-User".to_owned(), "sub".into()), ("X-Level".to_owned(), "no_such_claim".into())];
        route.insert("identity_headers".into(), toml::Table::from_iter(identity).into());
    })
    .await;
    let browser = gateway.signed_in().await;
    let (proxy, stranger) = (browser.at(gateway.verify.unwrap()), gateway.browser().at(gateway.verify.unwrap()));
    let removed = |answer: &support::client::Response| {
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.header("x-envoy-auth-headers-to-remove").unwrap_or_default().to_owned()
    };
    let forged = Ask::fetch("/ext-authz/api/x").header("X-Level", "9").header("X_User", "root");
    assert_eq!(removed(&proxy.send(forged).await), "x-level, x_user", "what is set is not removed");
    for path in ["/ext-authz/opt/x", "/ext-authz/index.html"] {
        assert_eq!(removed(&stranger.send(Ask::fetch(path)).await), "authorization, x-level, x-user", "{path}");
    }
    let nginx = stranger.send(about("/opt/x")).await;
    assert_eq!((nginx.status, nginx.header("x-envoy-auth-headers-to-remove")), (204, None));
}

/// What the route would answer: login, refusal, nothing.
#[tokio::test]
async fn a_refusal_is_that_of_the_route() {
    let (_provider, _upstream, gateway) = asked(|config| {
        config["route"].as_array_mut().unwrap()[0].as_table_mut().unwrap().insert("methods".into(), vec!["GET"].into());
        config["route"].as_array_mut().unwrap().pop();
    })
    .await;
    let verify = gateway.verify.unwrap();
    let stranger = gateway.browser().at(verify);
    assert_eq!(stranger.send(about("/api/x")).await.code(), "login_required");
    let page = stranger.send(nginx(Ask::navigate("/any"), "GET", "/api/x?y").stay()).await;
    assert_eq!((page.status, page.location()), (302, Some("/auth/login?return_to=/api/x%3Fy")));
    for (uri, status) in [("/none", 404), ("/auth/session", 404), ("/api/%2fx", 400), ("/api/x#y", 400), ("x", 400)] {
        assert_eq!(stranger.send(about(uri)).await.status, status, "{uri}");
    }
    assert_eq!(stranger.send(nginx(Ask::fetch("/"), "PUT", "/api/x")).await.status, 405);
    let both = about("/opt/x").header("X-Forwarded-Uri", "/api/x").header("X-Forwarded-Method", "GET");
    assert_eq!(stranger.send(both).await.status, 400);
    assert_eq!(stranger.fetch("/auth/session").await.status, 400, "it has no endpoints");

    let browser = gateway.browser();
    browser.login("/opt/").await;
    let browser = browser.at(verify);
    let foreign = nginx(Ask::fetch("/any").from(Initiator::CrossSite), "GET", "/api/x");
    assert_eq!(browser.send(foreign).await.code(), "csrf", "and without its Strict cookie");
    // The hop page is not a yes: the proxy sends the browser to it.
    let link = Ask::navigate("/any").from(Initiator::CrossSite).stay();
    let link = browser.send(nginx(link, "GET", "/api/x?y")).await;
    assert_eq!((link.status, link.location()), (302, Some("/auth/hop?return_to=/api/x%3Fy")));
    let page = browser.at(gateway.addr).send(Ask::navigate("/auth/hop?return_to=/api/x%3Fy").stay()).await;
    assert_eq!((page.status, page.hops_to().as_deref()), (200, Some("/api/x?y")));
    let sibling = nginx(Ask::fetch("/any").from(Initiator::SameSite), "GET", "/api/x");
    assert_eq!(browser.send(sibling).await.code(), "csrf");
    let handshake = about("/api/x").from(Initiator::SameSite).header("Sec-WebSocket-Key", "x");
    assert_eq!(browser.send(handshake).await.code(), "csrf");
    let preflight = nginx(Ask::fetch("/any"), "OPTIONS", "/opt/x").header("Access-Control-Request-Method", "PUT");
    let preflight = browser.send(preflight.header("Origin", "https://other.example")).await;
    assert_eq!(preflight.status, 403, "a yes would let it through");
}

/// The public listener knows none of it: a page's script must not read a token.
#[tokio::test]
async fn the_public_listener_answers_no_question() {
    let (_provider, upstream, gateway) = asked(|_| {}).await;
    let browser = gateway.signed_in().await;
    let answer = browser.send(nginx(Ask::fetch("/ext-authz/api/x"), "GET", "/api/x")).await;
    assert_eq!((answer.status, answer.header("authorization")), (200, None));
    assert_eq!(upstream.last().header("x-original-uri"), None);
}

#[tokio::test]
async fn a_refreshed_cookie_comes_with_the_answer() {
    let (provider, _upstream, gateway) = asked(|_| {}).await;
    let browser = gateway.signed_in().await;
    gateway.advance(&provider, 3600);
    let answer = browser.at(gateway.verify.unwrap()).send(about("/api/x")).await;
    assert_eq!((answer.status, answer.set_cookies().len()), (204, 1), "{answer:?}");
    assert_eq!(provider.refreshes(), 1);
}

/// The configuration of docs/forward-auth.md, as it stands there.
fn documented(port: u16, gateway: &Inside, app: &str) -> String {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/forward-auth.md")).unwrap();
    let block = text.split("```nginx\n").nth(1).and_then(|rest| rest.split("```").next()).expect("the block");
    block
        .replace("listen 443 ssl", &format!("listen 127.0.0.1:{port}"))
        .replace("server_name app.example.com", "server_name localhost")
        .replace("http://127.0.0.1:8080", &format!("http://{}", gateway.addr))
        .replace("http://127.0.0.1:9181", &format!("http://{}", gateway.verify.unwrap()))
        .replace("http://127.0.0.1:3000", app)
}

/// Debian's nginx in front of the app: login, token, refresh, foreign identity headers, scripts and pages.
#[tokio::test]
async fn nginx_asks_for_real() {
    let port = free_port();
    let public = format!("http://localhost:{port}");
    let (provider, upstream, gateway) = asked(|config| {
        set(config, "server.public_url", &format!("'{public}'"));
        set(config, "server.trusted_proxies", "['127.0.0.1/32']");
    })
    .await;
    let Some(proxy) = server::nginx(port, |_| documented(port, &gateway, &upstream.url())).await else {
        assert!(std::env::var_os("CI").is_none(), "no nginx here");
        return;
    };
    let browser = Browser::behind(&public, proxy.addr);
    let refused = browser.fetch("/api/x").await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "login_required"), "{refused:?}");
    let page = browser.navigate("/api/page?y=1").await;
    assert_eq!((page.status, page.path().as_str()), (200, "/api/page"), "{page:?}");
    assert_eq!(upstream.last().target, "/api/page?y=1");

    let forged = Ask::fetch("/api/x").header("X-User", "root").header("Authorization", "Bearer mine");
    assert_eq!(browser.send(forged).await.status, 200);
    let sent = upstream.last();
    assert!(provider.is_active(sent.bearer().unwrap()), "the session's token");
    assert_ne!(sent.header("x-user"), Some("root"));
    let forged = Ask::fetch("/api/x").header("X-Forwarded-Uri", "/").header("X-Forwarded-Method", "GET");
    assert_eq!(browser.send(forged).await.status, 200, "it is nginx that asks");

    // The refreshed cookie comes back through nginx: the next request needs no refresh.
    let first = upstream.last().bearer().unwrap().to_owned();
    gateway.advance(&provider, 3600);
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    assert_ne!(upstream.last().bearer().unwrap(), first);
    gateway.advance(&provider, 120);
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    assert_eq!(provider.refreshes(), 1, "{:?}", provider.violations());
    assert_eq!(browser.send(Ask::fetch("/api/x").from(Initiator::SameSite)).await.status, 403);
    drop(proxy);
}

/// A listener that is not there is nobody's.
#[tokio::test]
async fn it_is_off_unless_configured() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Inside::start(&provider, &upstream).await;
    assert_eq!(gateway.verify, None);
    let mut conn = Conn::dial(gateway.addr).await.unwrap();
    let headers = [("Host", "localhost"), ("X-Original-URI", "/api/x"), ("X-Original-Method", "GET")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    conn.send(&request_bytes("GET", "/api/x", &headers, None)).await.unwrap();
    assert_eq!(read_reply(&mut conn, "GET").await.unwrap().unwrap().status, 401);
}
