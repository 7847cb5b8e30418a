//! Sensitive operations: a login that is too old or too weak is told to log in again, better (RFC 9470).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use support::client::{Ask, Browser, Response};
use support::inside::Inside;
use support::provider::{Endpoint, ProviderDouble};
use support::upstream::{Script, Upstream};
use support::wire::Answer;

/// `/api/pay/` wants a recent login, `/api/vault/` a strong one.
async fn sensitive() -> (ProviderDouble, Upstream, Inside) {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Inside::start_with(&provider, &upstream, |config| {
        let more = format!(
            "[[route]]\npath = '/api/pay/'\nupstream = '{0}'\nmax_auth_age = '5m'\n\
             [[route]]\npath = '/api/vault/'\nupstream = '{0}'\nacr_values = ['gold', 'silver']\n\
             [[route]]\npath = '/opt/pay'\nupstream = '{0}'\naccess = 'optional'\nmax_auth_age = '5m'\n",
            upstream.url()
        );
        support::exact::more_routes(config, &more);
        // What a route wants is passed on, whatever links may choose.
        support::gateway::set(config, "provider.login_params", "['prompt']");
    })
    .await;
    (provider, upstream, gateway)
}

/// Longer ago than `/api/pay/` allows: with a minute to spare, because the provider's clock, by which the login was, goes
/// on by itself.
const MUCH_LATER: u64 = 360;

/// The `login_url` of a step-up problem.
fn step_up(answer: &Response) -> String {
    assert_eq!((answer.status, answer.code().as_str()), (401, "step_up_required"), "{answer:?}");
    answer.json()["login_url"].as_str().expect("a login_url").to_owned()
}

fn asked(provider: &ProviderDouble, name: &str) -> Option<String> {
    provider.calls_to(Endpoint::Authorize).last().and_then(|call| call.param(name).map(str::to_owned))
}

/// ASVS-6.8.4: a login that is too old for the route; the next one is asked for its age, and is good for it.
#[tokio::test]
async fn an_old_login_is_told_to_log_in_again() {
    let (provider, upstream, gateway) = sensitive().await;
    let browser = gateway.signed_in().await;
    assert_eq!(browser.fetch("/api/pay/x").await.status, 200, "it is recent enough now");
    gateway.advance(&provider, MUCH_LATER);
    upstream.forget();
    let url = step_up(&browser.fetch("/api/pay/x").await);
    assert_eq!(url, "/auth/login?return_to=/&max_age=300");
    assert!(upstream.untouched());
    assert_eq!(browser.fetch("/api/other").await.status, 200, "elsewhere the session is as good as ever");
    assert_eq!(step_up(&browser.fetch("/opt/pay").await), url);

    let page = browser.navigate("/api/pay/x?y=1").await;
    assert_eq!((page.status, page.path().as_str()), (200, "/api/pay/x"), "{page:?}");
    assert_eq!(asked(&provider, "max_age").as_deref(), Some("300"));
    assert_eq!(browser.fetch("/api/pay/x").await.status, 200);
}

#[tokio::test]
async fn a_navigation_is_redirected_and_a_handshake_is_not() {
    let (provider, _upstream, gateway) = sensitive().await;
    let browser = gateway.signed_in().await;
    gateway.advance(&provider, MUCH_LATER);
    let answer = browser.send(Ask::navigate("/api/pay/x?y=1").stay()).await;
    assert_eq!(answer.status, 302);
    assert_eq!(answer.location(), Some("/auth/login?return_to=/api/pay/x%3Fy%3D1&max_age=300"));
    let answer = browser.send(Ask::frame("/api/pay/x").stay()).await;
    assert_eq!(answer.status, 401, "not inside a frame");
    let refused = browser.websocket("/api/pay/ws", support::client::Initiator::SameOrigin).await.expect_err("refused");
    assert_eq!(refused.status, 401);
}

/// ASVS-6.8.4, IDT-10: a route needing acr leads to a new login with `acr_values`.
#[tokio::test]
async fn a_weak_login_is_told_to_log_in_stronger() {
    let (provider, upstream, gateway) = sensitive().await;
    let browser = gateway.signed_in().await;
    upstream.forget();
    let url = step_up(&browser.fetch("/api/vault/x").await);
    assert_eq!(url, "/auth/login?return_to=/&acr_values=gold%20silver");
    assert!(upstream.untouched());
    let page = browser.navigate("/api/vault/x").await;
    assert_eq!((page.status, page.path().as_str()), (200, "/api/vault/x"), "{page:?}");
    assert_eq!(asked(&provider, "acr_values").as_deref(), Some("gold silver"));
    // The page of the app is no page of the vault: from here on the session has what it needs.
    assert_eq!(browser.fetch("/api/vault/y").await.status, 200);
}

/// A provider that cannot do it: a refusal, not a circle, and the session that was there stays.
#[tokio::test]
async fn a_provider_that_does_not_rise_to_it_ends_in_a_refusal() {
    let (provider, _upstream, gateway) = sensitive().await;
    let browser = gateway.signed_in().await;
    provider.set(|s| s.acr = Some("bronze".into()));
    let page = browser.navigate("/api/vault/x").await;
    assert_eq!((page.status, page.path().as_str()), (400, "/auth/callback"), "{page:?}");
    provider.set(|s| s.auth_age = 330);
    gateway.advance(&provider, 400);
    let page = browser.navigate("/api/pay/x").await;
    assert_eq!((page.status, page.path().as_str()), (400, "/auth/callback"), "within the skew, but too old: {page:?}");
    assert_eq!(browser.fetch("/api/other").await.status, 200);
}

/// A browser whose app wants a stronger login for `/api/app`.
async fn challenged(challenge: &str) -> (ProviderDouble, Upstream, Inside, Browser) {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Inside::start(&provider, &upstream).await;
    let browser = gateway.signed_in().await;
    let refusal = Answer::new(401, "text/plain", "what the app says").with("WWW-Authenticate", challenge);
    upstream.on("/api/app", Script::Answer(refusal));
    (provider, upstream, gateway, browser)
}

const CHALLENGE: &str = "Bearer error=\"insufficient_user_authentication\", acr_values=\"gold\", max_age=\"60\"";

/// RFC 9470: the app's challenge becomes an answer that the page can act on, and nothing of the app's is shown.
#[tokio::test]
async fn the_challenge_of_an_app_becomes_a_step_up() {
    let (provider, upstream, _gateway, browser) = challenged(CHALLENGE).await;
    for ask in [Ask::fetch("/api/app"), Ask::fetch("/api/app").method("POST").form(&[("a", "1")])] {
        let answer = browser.send(ask).await;
        assert_eq!(step_up(&answer), "/auth/login?return_to=/&acr_values=gold&max_age=60");
        assert!(answer.header("www-authenticate").is_none() && !answer.text().contains("what the app says"));
    }
    assert_eq!(provider.refreshes(), 0);
    assert_eq!(upstream.requests_to("/api/app").len(), 2, "nothing is sent twice");
    let answer = browser.send(Ask::navigate("/api/app").stay()).await;
    assert_eq!(answer.location(), Some("/auth/login?return_to=/api/app&acr_values=gold&max_age=60"));
}

/// An app that is content with no login must not send the browser round.
#[tokio::test]
async fn an_app_that_is_never_content_makes_no_circle() {
    let (provider, _upstream, gateway, browser) = challenged(CHALLENGE).await;
    let before = provider.code_exchanges();
    let page = browser.navigate("/api/app").await;
    assert_eq!((page.status, page.path().as_str()), (401, "/api/app"), "{page:?}");
    assert!(page.text().contains("step_up_required"));
    assert_eq!(provider.code_exchanges(), before + 1);
    gateway.advance(&provider, 61);
    let answer = browser.send(Ask::navigate("/api/app").stay()).await;
    assert_eq!(answer.status, 302, "later another login may do");
}

/// All other 401s are the app's own.
#[tokio::test]
async fn other_refusals_of_an_app_pass_as_they_are() {
    let (_provider, upstream, _gateway, browser) = challenged("Bearer error=\"insufficient_scope\"").await;
    let answer = browser.fetch("/api/app").await;
    assert_eq!((answer.status, answer.text().as_str()), (401, "what the app says"));
    let refusal = Answer::new(401, "text/plain", "public").with("WWW-Authenticate", CHALLENGE);
    upstream.on("/app", Script::Answer(refusal));
    assert_eq!(browser.fetch("/app").await.text(), "public", "no login is behind a public route");
}
