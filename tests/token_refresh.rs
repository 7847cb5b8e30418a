//! A route's own token, by the session's refresh token (RFC 6749 section 6, RFC 8707 section 2.2).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use support::client::Ask;
use support::gateway::{free_port, set};
use support::inside::{Inside, Rig};
use support::own_tokens;
use support::provider::{AccessToken, Call, Endpoint, ProviderDouble, Rotation};
use toml::Table;

/// Routes below `/api/` with tokens of their own; nothing is forgiven by the provider.
async fn own_tokens() -> Rig {
    with(|_| {}).await
}

async fn with(change: impl FnOnce(&mut Table)) -> Rig {
    Rig::prepared(
        |provider| provider.set(|s| s.rotation = Rotation::Family),
        |config, upstream| {
            set(config, "provider.scopes", "['openid', 'offline_access', 'read', 'write']");
            let targets = [
                ("orders", "audience = 'orders', resource = ['https://orders.example/', 'https://b.example/']"),
                ("other", "audience = 'other'"),
                ("narrow", "scopes = ['read']"),
                ("unknown", "audience = 'unknown'"),
                ("consent", "audience = 'consent'"),
                ("broken", "audience = 'broken'"),
            ];
            own_tokens::routes(config, upstream, &targets);
            change(config);
        },
    )
    .await
}

/// Refreshes that were made for a route.
fn aside(provider: &ProviderDouble) -> Vec<Call> {
    let mut calls = provider.calls_to(Endpoint::Token);
    calls.retain(|call| call.is_refresh() && (call.param("audience").is_some() || call.param("scope").is_some()));
    calls
}

/// RFC9700-10, BFF-27: each token reaches only its upstream and is kept until it ends; the session keeps its own token, and
/// what the provider gave in the place of the refresh token.
#[tokio::test]
async fn each_route_has_the_token_that_it_asks_for() {
    let rig = own_tokens().await;
    let browser = rig.gateway.signed_in().await;
    let tokens = own_tokens::each_its_own(&rig, &browser, ["/api/orders", "/api/narrow"]).await;
    let Rig { provider, upstream, gateway } = rig;

    let asked = aside(&provider);
    let said = |call: &Call| {
        let resources = call.form.iter().filter(|(name, _)| name == "resource").count();
        (call.param("audience").map(str::to_owned), resources, call.param("scope").map(str::to_owned))
    };
    let asked: Vec<_> = asked.iter().map(said).collect();
    assert_eq!(asked, [(Some("orders".to_owned()), 2, None), (None, 0, Some("read".to_owned()))]);

    // Past its end there is another one, and the session's own is renewed as if nothing had been.
    gateway.advance(&provider, 3600);
    assert_eq!(browser.fetch("/api/orders/3").await.status, 200);
    assert_ne!(upstream.last().bearer().unwrap(), tokens[1]);
    assert_eq!((aside(&provider).len(), provider.refreshes(), provider.reuse_alarms()), (3, 4, 0));
    assert_eq!(provider.violations(), Vec::<String>::new());
}

/// What the browser holds is enough: another process, which knows nothing of the first, goes on from its cookie.
#[tokio::test]
async fn the_cookie_has_the_refresh_token_that_came_with_the_other_one() {
    let Rig { provider, upstream: _upstream, gateway } = own_tokens().await;
    let browser = gateway.signed_in().await;
    let answer = browser.fetch("/api/orders/1").await;
    assert!(answer.set_cookie("sidegate").is_some(), "{answer:?}");
    let mut table = gateway.config.clone();
    set(&mut table, "server.listen", &format!("'127.0.0.1:{}'", free_port()));
    set(&mut table, "admin.listen", &format!("'127.0.0.1:{}'", free_port()));
    let other = Inside::run(table).await;
    other.catch_up(&provider);
    let browser = browser.at(other.addr);
    assert_eq!(browser.fetch("/api/other/1").await.status, 200);
    assert_eq!(browser.post("/auth/refresh").await.status, 200);
    assert_eq!((provider.refreshes(), provider.reuse_alarms()), (3, 0));
}

/// RFR-01: ten requests for each of three tokens, and ten for the session's, which is over: no refresh token comes twice.
#[tokio::test]
async fn whatever_is_asked_for_at_once_the_refresh_token_is_spent_once() {
    let Rig { provider, upstream: _upstream, gateway } = own_tokens().await;
    let browser = gateway.signed_in().await;
    gateway.advance(&provider, 3600);
    let mut flights = Vec::new();
    for _ in 0..10 {
        for path in ["/api/orders/x", "/api/x", "/api/other/x", "/api/narrow/x"] {
            flights.push(browser.launch(&Ask::fetch(path)).await);
        }
    }
    for flight in flights {
        let answer = flight.answer().await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!((aside(&provider).len(), provider.refreshes(), provider.reuse_alarms()), (3, 4, 0));
    assert_eq!(browser.session().await["authenticated"], true);
}

/// ASVS-8.3.3: never the session's own token instead; what the provider says of another token does not end the session.
#[tokio::test]
async fn a_token_that_is_not_to_be_had_is_told_and_nothing_is_forwarded() {
    let Rig { provider, upstream, gateway } = own_tokens().await;
    let browser = gateway.signed_in().await;
    upstream.forget();
    for (path, status, code) in [
        ("/api/unknown/x", 502, "provider_refused"),
        ("/api/consent/x", 502, "provider_refused"),
        ("/api/broken/x", 503, "provider_unavailable"),
    ] {
        let answer = browser.fetch(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{path}");
        assert_eq!(answer.header("retry-after").is_some(), status == 503, "{path}");
        // The provider is not asked again at once.
        let before = provider.refreshes();
        assert_eq!(browser.fetch(path).await.status, status, "{path}");
        assert_eq!(provider.refreshes(), before, "{path}");
    }
    // Less scope than the route needs: the answer is not used, its refresh token is.
    provider.set(|s| s.granted_scope = Some("openid".to_owned()));
    let answer = browser.fetch("/api/narrow/x").await;
    assert_eq!((answer.status, answer.code().as_str()), (403, "forbidden"));
    assert!(upstream.untouched());
    provider.set(|s| s.granted_scope = None);
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    assert_eq!(browser.post("/auth/refresh").await.status, 200);
    assert_eq!(provider.reuse_alarms(), 0);
}

/// A provider that does not heed the parameter gives one more token for the session's own API: it goes nowhere.
#[tokio::test]
async fn a_token_for_the_wrong_api_is_not_sent() {
    let Rig { provider, upstream, gateway } = own_tokens().await;
    provider.set(|s| s.access_token = AccessToken::Jwt);
    let browser = gateway.signed_in().await;
    upstream.forget();
    let answer = browser.fetch("/api/orders/x").await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "provider_refused"));
    assert!(upstream.untouched());
    // Less scope of the same API is another matter.
    assert_eq!(browser.fetch("/api/narrow/x").await.status, 200);
}

/// The provider has ended the session: that is what the user learns, as after a refresh.
#[tokio::test]
async fn a_session_that_the_provider_ended_is_over() {
    let Rig { provider, upstream, gateway } = with(|config| set(config, "server.single_replica", "true")).await;
    let browser = gateway.signed_in().await;
    provider.kill_all_sessions();
    upstream.forget();
    let answer = browser.fetch("/api/orders/x").await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "login_required"));
    assert_eq!(browser.session().await["authenticated"], false);
    assert!(upstream.untouched());
}

/// A session that is ended while its token is asked for: the token of the route reaches nobody.
#[tokio::test]
async fn a_session_that_ends_meanwhile_forwards_nothing() {
    own_tokens::ended_meanwhile(&own_tokens().await).await;
}

/// Without a refresh token there is none of the route's own either; the session is not over for that.
#[tokio::test]
async fn without_a_refresh_token_the_route_has_none() {
    let Rig { provider, upstream, gateway } = own_tokens().await;
    provider.set(|s| s.refresh_token_at_login = false);
    let browser = gateway.signed_in().await;
    upstream.forget();
    let answer = browser.fetch("/api/orders/x").await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "provider_refused"));
    assert!(upstream.untouched());
    assert_eq!(browser.fetch("/api/x").await.status, 200);
}
