//! The app refuses the token: one refresh, and the request once more, where that does no harm.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use support::client::Ask;
use support::gateway::set;
use support::inside::{Inside, Rig};
use support::provider::{Outage, ProviderDouble};
use support::upstream::{Script, Upstream};
use support::wire::Answer;

/// A browser with a live token that the app no longer takes; tokens issued from now on are good.
async fn refused(
    change: impl FnOnce(&mut toml::Table),
) -> (ProviderDouble, Upstream, Inside, support::client::Browser) {
    let Rig { provider, upstream, gateway } = Rig::strict(change).await;
    let browser = gateway.signed_in().await;
    browser.fetch("/api/first").await;
    let old = upstream.last().bearer().unwrap().to_owned();
    upstream.otherwise(Script::tokens(move |token| token != old));
    upstream.forget();
    (provider, upstream, gateway, browser)
}

/// RFR-05: a refused token is refreshed, and the request goes through as if nothing had been.
#[tokio::test]
async fn a_refused_token_is_refreshed_and_the_request_sent_once_more() {
    let (provider, upstream, _gateway, browser) = refused(|_| {}).await;
    let answer = browser.send(Ask::fetch("/api/x").header("X-Kept", "1")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let sent = upstream.requests_to("/api/x");
    assert_eq!(sent.iter().map(|request| request.header("x-kept")).collect::<Vec<_>>(), [Some("1"); 2]);
    assert_eq!(provider.refreshes(), 1);
    assert_ne!(upstream.requests()[0].bearer(), upstream.requests()[1].bearer());
    // The browser has the new session: the next request asks nobody.
    assert_eq!(browser.fetch("/api/y").await.status, 200);
    assert_eq!((upstream.requests_to("/api/y").len(), provider.refreshes()), (1, 1));
}

/// fapi2-security-profile-final-client-client-refresh-token-test: and again, when the newer one is refused later.
#[tokio::test]
async fn a_token_that_was_taken_is_refreshed_when_it_is_refused_later() {
    let (provider, upstream, _gateway, browser) = refused(|_| {}).await;
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    let second = upstream.last().bearer().unwrap().to_owned();
    upstream.otherwise(Script::tokens(move |token| token != second));
    assert_eq!(browser.fetch("/api/y").await.status, 200);
    assert_eq!((upstream.requests_to("/api/y").len(), provider.refreshes()), (2, 2));
}

/// Many at once: one refresh for all of them.
#[tokio::test]
async fn many_refused_at_once_share_one_refresh() {
    let (provider, _upstream, _gateway, browser) = refused(|_| {}).await;
    let mut flights = Vec::new();
    for _ in 0..10 {
        flights.push(browser.launch(&Ask::fetch("/api/x")).await);
    }
    for flight in flights {
        assert_eq!(flight.answer().await.status, 200);
    }
    assert_eq!(provider.refreshes(), 1);
    assert_eq!(browser.session().await["authenticated"], true);
}

/// RFR-08: what could do harm twice is never sent twice: the app's answer goes to the browser.
#[tokio::test]
async fn a_request_that_changes_something_is_never_sent_twice() {
    let (provider, upstream, _gateway, browser) = refused(|_| {}).await;
    for method in ["POST", "PATCH", "PUT", "DELETE"] {
        let ask = Ask::fetch("/api/x").method(method).form(&[("a", "1")]);
        assert_eq!(browser.send(ask).await.status, 401, "{method}");
    }
    assert_eq!(browser.send(Ask::fetch("/api/x").body("text/plain", "with a body")).await.status, 401);
    assert_eq!(upstream.requests_to("/api/x").len(), 5);
    assert_eq!(provider.refreshes(), 0);
}

/// An app that refuses every token costs one refresh, not one each time, and nobody is logged out.
#[tokio::test]
async fn an_app_that_takes_no_token_costs_one_refresh() {
    let (provider, upstream, _gateway, browser) = refused(|_| {}).await;
    upstream.otherwise(Script::invalid_token());
    for _ in 0..4 {
        let answer = browser.fetch("/api/x").await;
        assert_eq!(answer.status, 401);
        assert!(answer.header("www-authenticate").is_some(), "it is the app's own answer");
    }
    assert_eq!(upstream.requests_to("/api/x").len(), 5, "sent again once");
    assert_eq!(provider.refreshes(), 1);
    assert_eq!(browser.session().await["authenticated"], true);
}

/// What cannot be refreshed now leaves the app's answer as it is, and the session alone.
#[tokio::test]
async fn a_provider_that_is_down_changes_nothing() {
    let (provider, upstream, _gateway, browser) = refused(|_| {}).await;
    provider.set(|s| s.fail_refresh(Outage::Status(503)));
    let answer = browser.fetch("/api/x").await;
    assert_eq!(answer.status, 401);
    assert_eq!(upstream.requests_to("/api/x").len(), 1);
    assert_eq!(browser.session().await["authenticated"], true);
}

/// A wish for another login or for more scope is not met by a newer token of the same grant.
#[tokio::test]
async fn a_challenge_that_wants_more_is_passed_on() {
    let (provider, upstream, _gateway, browser) = refused(|_| {}).await;
    for error in ["insufficient_user_authentication", "insufficient_scope"] {
        let challenge = format!("Bearer error=\"{error}\"");
        upstream.otherwise(Script::Answer(Answer::new(401, "text/plain", "").with("WWW-Authenticate", &challenge)));
        assert_eq!(browser.fetch("/api/x").await.status, 401, "{error}");
    }
    assert_eq!(upstream.requests_to("/api/x").len(), 2);
    assert_eq!(provider.refreshes(), 0);
}

#[tokio::test]
async fn it_can_be_switched_off() {
    let (provider, upstream, _gateway, browser) =
        refused(|config| set(config, "refresh.on_upstream_401", "'off'")).await;
    assert_eq!(browser.fetch("/api/x").await.status, 401);
    assert_eq!(upstream.requests_to("/api/x").len(), 1);
    assert_eq!(provider.refreshes(), 0);
}
