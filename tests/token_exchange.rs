//! A route's own token, by token exchange (RFC 8693) or by client credentials (RFC 6749 section 4.4).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use support::client::Ask;
use support::exact::{more_routes, route};
use support::inside::Rig;
use support::own_tokens;
use support::provider::{Call, Endpoint, ProviderDouble, Rotation};

/// `/api/orders/` and `/api/other/` have tokens of their own, `/api/ID/` with the audience `ID` too.
async fn own_tokens() -> Rig {
    const ORDERS: &str =
        "audience = 'orders', resource = ['https://orders.example/', 'https://b.example/'], scopes = ['read']";
    let targets = [
        ("orders", ORDERS),
        ("other", "audience = 'other'"),
        ("unknown", "audience = 'unknown'"),
        ("broken", "audience = 'broken'"),
        ("admin", "audience = 'orders', scopes = ['admin']"),
    ];
    let targets = targets.map(|(name, target)| (name, format!("{target}, exchange = true")));
    let targets = targets.each_ref().map(|(name, target)| (*name, target.as_str()));
    Rig::prepared(
        |provider| provider.set(|s| s.rotation = Rotation::Family),
        |config, upstream| own_tokens::routes(config, upstream, &targets),
    )
    .await
}

fn exchanges(provider: &ProviderDouble) -> Vec<Call> {
    let mut calls = provider.calls_to(Endpoint::Token);
    calls.retain(|call| call.param("subject_token").is_some());
    calls
}

/// Each token reaches only its upstream, is kept until it ends, and costs the session nothing.
#[tokio::test]
async fn a_token_of_its_own_is_exchanged_once_and_goes_nowhere_else() {
    let rig = own_tokens().await;
    let browser = rig.gateway.signed_in().await;
    let tokens = own_tokens::each_its_own(&rig, &browser, ["/api/orders", "/api/other"]).await;
    let Rig { provider, upstream, gateway } = rig;

    let asked = exchanges(&provider);
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].param("subject_token"), Some(tokens[0].as_str()));
    assert_eq!((asked[0].param("audience"), asked[0].param("scope")), (Some("orders"), Some("read")));
    let resources: Vec<_> = asked[0].form.iter().filter(|(name, _)| name == "resource").collect();
    assert_eq!(resources.len(), 2);
    assert_eq!((asked[1].param("audience"), asked[1].param("scope")), (Some("other"), None));

    // Past its end there is another one, for the refreshed token; nothing was spent but the session's own refresh.
    gateway.advance(&provider, 3600);
    assert_eq!(browser.fetch("/api/orders/3").await.status, 200);
    assert_ne!(upstream.last().bearer().unwrap(), tokens[1]);
    assert_eq!((exchanges(&provider).len(), provider.refreshes(), provider.reuse_alarms()), (3, 1, 0));
}

#[tokio::test]
async fn many_at_once_share_one_exchange_and_users_share_nothing() {
    let Rig { provider, upstream, gateway } = own_tokens().await;
    let browser = gateway.signed_in().await;
    let mut flights = Vec::new();
    for _ in 0..10 {
        flights.push(browser.launch(&Ask::fetch("/api/orders/x")).await);
    }
    for flight in flights {
        assert_eq!(flight.answer().await.status, 200);
    }
    assert_eq!(exchanges(&provider).len(), 1);
    let first = upstream.last().bearer().unwrap().to_owned();
    let other = gateway.signed_in().await;
    assert_eq!(other.fetch("/api/orders/x").await.status, 200);
    assert_ne!(upstream.last().bearer().unwrap(), first);
    assert_eq!(exchanges(&provider).len(), 2);
}

/// ASVS-8.3.3: never the session's own token instead; the session stays.
#[tokio::test]
async fn a_failed_exchange_is_told_and_nothing_is_forwarded() {
    let Rig { provider, upstream, gateway } = own_tokens().await;
    let browser = gateway.signed_in().await;
    upstream.forget();
    for (path, status, code) in [
        ("/api/unknown/x", 502, "provider_refused"),
        ("/api/broken/x", 503, "provider_unavailable"),
        ("/api/admin/x", 403, "forbidden"),
    ] {
        let answer = browser.fetch(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{path}");
        assert_eq!(answer.header("retry-after").is_some(), status == 503, "{path}");
    }
    assert!(upstream.untouched());
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    assert_eq!(provider.refreshes(), 0);
}

/// A session that is ended while its token is exchanged: the token of the route reaches nobody.
#[tokio::test]
async fn a_session_that_ends_during_the_exchange_forwards_nothing() {
    own_tokens::ended_meanwhile(&own_tokens().await).await;
}

/// The application's own token: one for all users, for its route only, and none for who has no session.
#[tokio::test]
async fn a_token_of_the_application_is_one_for_all_users() {
    let Rig { provider, upstream, gateway } = Rig::prepared(
        |_| {},
        |config, upstream| {
            for (path, access, scope) in [
                ("/api/app/", "session", "jobs"),
                ("/opt/app/", "optional", "jobs"),
                ("/api/admin/", "session", "admin"),
            ] {
                let keys =
                    format!("access = '{access}'\ntoken = {{ scopes = ['{scope}'], client_credentials = true }}");
                more_routes(config, &route(path, upstream, &keys));
            }
        },
    )
    .await;
    let asked = || {
        let mut calls = provider.calls_to(Endpoint::Token);
        calls.retain(|call| call.param("grant_type") == Some("client_credentials"));
        calls
    };
    let (one, two) = (gateway.signed_in().await, gateway.signed_in().await);
    let mut tokens = Vec::new();
    for (browser, path) in [(&one, "/api/app/x"), (&two, "/api/app/x"), (&one, "/opt/app/x"), (&two, "/api/x")] {
        assert_eq!(browser.fetch(path).await.status, 200, "{path}");
        tokens.push(upstream.last().bearer().unwrap().to_owned());
    }
    assert!(tokens[0] == tokens[1] && tokens[0] == tokens[2] && tokens[0] != tokens[3]);
    assert_eq!(asked().len(), 1);
    assert_eq!((asked()[0].param("scope"), asked()[0].param("refresh_token")), (Some("jobs"), None));
    assert!(asked()[0].header("authorization").is_some());

    assert_eq!(gateway.browser().fetch("/api/app/x").await.status, 401);
    assert_eq!(gateway.browser().fetch("/opt/app/x").await.status, 200);
    assert_eq!(upstream.last().bearer(), None);
    let refused = one.fetch("/api/admin/x").await;
    assert_eq!((refused.status, refused.code().as_str()), (403, "forbidden"));

    gateway.advance(&provider, 3600);
    assert_eq!(one.fetch("/api/app/x").await.status, 200);
    assert_ne!(upstream.last().bearer().unwrap(), tokens[0]);
    assert_eq!((asked().len(), provider.violations().len()), (3, 1));
}
