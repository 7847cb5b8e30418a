//! The main job on one page: log in, call the API, refresh, log out.

mod support;

use support::inside::Inside;
use support::provider::ProviderDouble;
use support::upstream::Upstream;

/// BFF-03, BFF-08, BFF-09, BFF-10, RFC9700-09: a user's afternoon.
#[tokio::test]
async fn log_in_call_the_api_refresh_log_out() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Inside::start(&provider, &upstream).await;
    let browser = gateway.browser();
    assert_eq!(browser.fetch("/api/x").await.status, 401);

    let page = browser.login("/hello?x=1").await;
    assert_eq!((page.status, page.url.as_str()), (200, format!("{}/hello?x=1", gateway.public_url).as_str()));
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    let first = upstream.last().bearer().expect("a bearer").to_owned();
    assert!(provider.is_active(&first));

    gateway.advance(&provider, 3600);
    let answers = browser.fetch_many("/api/x", 10).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(provider.refreshes(), 1, "ten calls, one refresh");
    assert_ne!(upstream.last().bearer(), Some(first.as_str()));

    let old = browser.fork();
    let out = browser.post("/auth/logout").await;
    assert_eq!(out.status, 200);
    assert_eq!(browser.fetch("/api/x").await.status, 401);
    assert_eq!(old.fetch("/api/x").await.status, 401, "a copied cookie is worthless after logout (RPL-05)");

    // The hint of the logout is the one token that OpenID Connect puts in a URL.
    let tokens = provider.canaries().only(&["access token", "refresh token"]);
    assert!(tokens.len() >= 3, "two access tokens");
    let sent = upstream.requests().into_iter().map(|request| request.target);
    let called = provider.calls().into_iter().map(|call| call.target);
    let visited = browser.history();
    let urls = visited.iter().flat_map(|answer| [Some(answer.url.clone()), answer.location().map(str::to_owned)]);
    for target in sent.chain(called).chain(urls.flatten()) {
        tokens.assert_absent("a URL", &target);
    }
}
