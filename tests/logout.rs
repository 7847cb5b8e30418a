//! Logging out: the session ends here and at the provider, and only when the user's own page asks for it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use serde_json::json;
use support::client::{Ask, Browser, Cookie, Initiator, Response, SameSite};
use support::gateway::set;
use support::inside::Rig;
use support::provider::{AccessToken, Endpoint, Grants, LogoutReturn, Moment, Outage};
use support::text;

impl Rig {
    /// Everything that a user would take for "signed out", for this browser and for a copy of its cookies.
    async fn over(&self, browser: &Browser, copy: &Browser, what: &str) {
        assert!(browser.jar().names().iter().all(|name| !name.contains("sidegate")), "{what}: {:?}", browser.jar());
        self.upstream.forget();
        for tab in [browser, copy] {
            assert_eq!(tab.session().await, json!({"authenticated": false}), "{what}");
            assert_eq!(tab.fetch("/api/x").await.status, 401, "{what}");
            assert_eq!(tab.post("/auth/refresh").await.status, 401, "{what}");
        }
        assert!(self.upstream.untouched(), "{what}");
    }
}

async fn signed_in(browser: &Browser) -> bool {
    browser.session().await["authenticated"] == true
}

/// Where a script is told to send the browser.
#[track_caller]
fn told(answer: &Response) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let body = answer.json();
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    body["location"].as_str().expect("a location").to_owned()
}

/// BFF-07, RPL-04, RPL-05, RPL-06, RFC7009-01, oidcc-client-test-rp-init-logout: a script logs out.
#[tokio::test]
async fn a_script_logs_out() {
    let rig = Rig::start().await;
    let browser = rig.gateway.signed_in().await;
    let copy = browser.fork();
    let session = rig.provider.last_session();
    let answer = browser.post("/auth/logout").await;
    let location = told(&answer);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("clear-site-data"), Some("\"cache\""));
    assert!(location.starts_with(&format!("{}?", rig.provider.url(Endpoint::EndSession))), "{location}");
    let sent = text::unform(location.split_once('?').unwrap().1.as_bytes());
    let back = format!("{}/auth/logout/return", rig.gateway.public_url);
    assert_eq!(text::get(&sent, "id_token_hint"), session.id_tokens.first().map(String::as_str));
    assert_eq!(text::get(&sent, "post_logout_redirect_uri"), Some(back.as_str()));
    assert_eq!(text::get(&sent, "client_id"), Some(rig.provider.client_id().as_str()));
    assert!(text::get(&sent, "state").is_some_and(|state| state.len() >= 16));
    // Nothing but the hint and what a client says of itself.
    let secrets = rig.provider.canaries().only(&["access token", "refresh token", "code verifier", "client secret"]);
    assert_eq!(secrets.len(), 4);
    secrets.assert_absent("the logout's answer", answer.everything());

    rig.over(&browser, &copy, "before the provider was visited").await;
    let revoked: Vec<_> = rig.provider.calls_to(Endpoint::Revocation);
    let tokens: Vec<_> = revoked.iter().map(|call| (call.param("token_type_hint"), call.param("token"))).collect();
    let (refresh, access) = (session.refresh_tokens[0].as_str(), session.access_tokens[0].as_str());
    assert_eq!(tokens[0], (Some("refresh_token"), Some(refresh)), "RPL-06");
    assert!(!rig.provider.is_active(access) && !rig.provider.is_refreshable(refresh));

    let end = browser.navigate_from(Initiator::SameOrigin, &location).await;
    assert_eq!((end.status, end.url), (200, format!("{}/", rig.gateway.public_url)));
    assert!(!rig.provider.last_session().alive);
    assert_eq!(rig.provider.violations(), [""; 0]);
    assert_eq!(rig.gateway.metric("sidegate_sessions_ended_total", &[("reason", "logout")]), 1.0);

    // Once more changes nothing, and is no error: nobody is signed in afterwards.
    assert_eq!(told(&browser.post("/auth/logout").await), "/auth/logout/return");
    assert_eq!(told(&rig.gateway.browser().post("/auth/logout").await), "/auth/logout/return");
    assert_eq!(rig.gateway.metric("sidegate_sessions_ended_total", &[]), 1.0);
    assert_eq!(rig.provider.calls_to(Endpoint::Revocation).len(), revoked.len());
    assert!(signed_in(&rig.gateway.signed_in().await).await, "and a new login works");
}

/// RFC9700-16: a page logs out by navigating: 303, through the provider, and home.
#[tokio::test]
async fn a_page_logs_out_by_navigating() {
    let rig = Rig::start().await;
    let own = &rig.gateway.public_url;
    for (what, ask) in [
        ("a link", Ask::navigate("/auth/logout").from(Initiator::SameOrigin)),
        ("a form", Ask::navigate("/auth/logout").from(Initiator::SameOrigin).form(&[])),
        // What a page with `Referrer-Policy: no-referrer` sends.
        ("a form without referrer", {
            Ask::navigate("/auth/logout").from(Initiator::SameOrigin).form(&[]).header("Origin", "null")
        }),
    ] {
        let browser = rig.gateway.signed_in().await;
        let copy = browser.fork();
        let end = browser.send(ask).await;
        assert_eq!((end.status, end.url), (200, format!("{own}/")), "{what}");
        let hops: Vec<_> = end.via.iter().map(|hop| (hop.status, hop.path())).collect();
        let paths = ["/auth/logout", "/end-session", "/auth/logout/return"].map(str::to_owned);
        assert_eq!(hops, [303, 302, 302].into_iter().zip(paths).collect::<Vec<_>>(), "{what}");
        assert_eq!(end.via[0].header("clear-site-data"), Some("\"cache\""), "{what}");
        rig.over(&browser, &copy, what).await;
    }
    assert_eq!(rig.provider.violations(), [""; 0]);
}

/// RPL-01, BFF-23: no other page logs the user out, a sibling origin's neither, whatever cookies come along.
#[tokio::test]
async fn no_other_page_logs_the_user_out() {
    let rig = Rig::start().await;
    let browser = rig.gateway.signed_in().await;
    let cookie = format!("sidegate={}", browser.cookie("sidegate").unwrap());
    let before = browser.jar();
    for from in [Initiator::CrossSite, Initiator::SameSite] {
        for (what, ask) in [
            ("fetch", Ask::fetch("/auth/logout").method("POST")),
            ("fetch with the header", Ask::fetch("/auth/logout").method("POST").header("X-CSRF", "1")),
            ("form", Ask::navigate("/auth/logout").form(&[("a", "1")])),
            ("link", Ask::navigate("/auth/logout")),
            ("image", Ask::image("/auth/logout")),
            ("frame", Ask::frame("/auth/logout")),
        ] {
            for with_cookie in [false, true] {
                let ask = if with_cookie { ask.clone().cookie(&cookie) } else { ask.clone() };
                let answer = browser.send(ask.from(from.clone()).stay()).await;
                assert_eq!(answer.status, 403, "{from:?} {what} {with_cookie}: {}", answer.text());
                assert!(answer.text().contains("csrf"), "{from:?} {what}");
                assert!(answer.set_cookies().is_empty() && answer.location().is_none(), "{from:?} {what}");
                assert_eq!(answer.header("clear-site-data"), None, "{from:?} {what}");
            }
        }
    }
    assert_eq!(browser.jar().cookies, before.cookies);
    assert_eq!(browser.fetch("/api/x").await.status, 200, "the session survived");
    assert_eq!(rig.provider.calls_to(Endpoint::Revocation).len(), 0);
    // A proof that contradicts itself, and none at all.
    for headers in [vec![("Sec-Fetch-Site", "cross-site")], vec![("Sec-Fetch-Site", ""), ("Origin", "")]] {
        let ask = Ask::fetch("/auth/logout").method("POST");
        let ask = headers.iter().fold(ask, |ask, (name, value)| ask.header(name, value));
        assert_eq!(browser.send(ask).await.status, 403, "{headers:?}");
    }
    assert!(signed_in(&browser).await);
}

/// ASVS-3.5.3: logging out changes something, so a script does it by POST; other methods are not taken.
#[tokio::test]
async fn only_post_and_navigations_log_out() {
    let rig = Rig::start().await;
    let browser = rig.gateway.signed_in().await;
    let answer = browser.fetch("/auth/logout").await;
    assert_eq!((answer.status, answer.code().as_str()), (405, "method_not_allowed"));
    assert_eq!(answer.header("allow"), Some("POST"));
    for method in ["PUT", "DELETE", "PATCH", "HEAD"] {
        let answer = browser.send(Ask::fetch("/auth/logout").method(method)).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, POST")), "{method}");
    }
    let answer = browser.send(Ask::fetch("/auth/logout/return").method("POST")).await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")));
    assert!(signed_in(&browser).await);
}

/// RPL-02, RPL-06: a provider that is down, refuses or is silent does not hinder a logout.
#[tokio::test]
async fn a_failing_provider_does_not_hinder_a_logout() {
    let rig = Rig::start().await;
    for (what, outage) in [
        ("an error", Outage::Status(500)),
        ("a refusal", Outage::error("invalid_client")),
        ("a page", Outage::Html(200)),
        ("a closed connection", Outage::Drop),
        ("silence", Outage::Stall),
    ] {
        let browser = rig.gateway.signed_in().await;
        let copy = browser.fork();
        rig.provider.set(|s| s.fail(Endpoint::Revocation, outage));
        assert!(told(&browser.post("/auth/logout").await).starts_with(&rig.provider.issuer), "{what}");
        rig.provider.set(|s| s.heal(Endpoint::Revocation));
        rig.over(&browser, &copy, what).await;
    }
    let browser = rig.gateway.signed_in().await;
    let copy = browser.fork();
    rig.provider.go_down().await;
    told(&browser.post("/auth/logout").await);
    rig.over(&browser, &copy, "down").await;
}

/// Contract 2.9: what the operator switches off, and what the provider does not offer, is left out.
#[tokio::test]
async fn a_logout_may_stay_at_home() {
    let here = |rig: &Rig| rig.provider.calls_to(Endpoint::Revocation).len();
    let local = Rig::with(|config| {
        set(config, "logout", r#"{ provider = false, revoke = false, clear_site_data = [], return_to = "/bye?x=1" }"#);
    })
    .await;
    let browser = local.gateway.signed_in().await;
    let copy = browser.fork();
    let answer = browser.post("/auth/logout").await;
    assert_eq!((told(&answer).as_str(), answer.header("clear-site-data")), ("/auth/logout/return", None));
    local.over(&browser, &copy, "local").await;
    assert_eq!(here(&local), 0);
    let end = browser.navigate_from(Initiator::SameOrigin, "/auth/logout/return").await;
    assert_eq!(end.url, format!("{}/bye?x=1", local.gateway.public_url));

    let missing = ["end_session_endpoint", "revocation_endpoint"].map(str::to_owned);
    let poor = Rig::prepared(
        |provider| provider.set(|s| s.omit = missing.to_vec()),
        |config, _| set(config, "logout.clear_site_data", r#"["cache", "storage"]"#),
    )
    .await;
    let browser = poor.gateway.signed_in().await;
    let copy = browser.fork();
    let answer = browser.post("/auth/logout").await;
    assert_eq!(told(&answer), "/auth/logout/return");
    assert_eq!(answer.header("clear-site-data"), Some("\"cache\", \"storage\""));
    poor.over(&browser, &copy, "not offered").await;
}

/// RPL-03, ASVS-3.7.2: what the request says changes nothing.
#[tokio::test]
async fn parameters_of_the_request_are_ignored() {
    let rig = Rig::start().await;
    let evil = "post_logout_redirect_uri=https://evil.example/&return_to=//evil.example&state=chosen&id_token_hint=chosen\
                &client_id=chosen&redirect_uri=https://evil.example/";
    let browser = rig.gateway.signed_in().await;
    let ask = Ask::fetch(&format!("/auth/logout?{evil}")).body("application/x-www-form-urlencoded", evil);
    let location = told(&browser.send(ask).await);
    assert!(!location.contains("evil") && !location.contains("chosen"), "{location}");
    for answer in [
        browser.send(Ask::navigate(&format!("/auth/logout?{evil}")).from(Initiator::SameOrigin).stay()).await,
        browser.send(Ask::navigate(&format!("/auth/logout/return?{evil}")).from(Initiator::CrossSite).stay()).await,
    ] {
        let text = String::from_utf8_lossy(&answer.everything()).into_owned();
        assert!(matches!(answer.status, 302 | 303) && !text.contains("evil") && !text.contains("chosen"), "{text}");
    }
}

/// oidcc-client-test-rp-init-logout-other-state, oidcc-client-test-rp-init-logout-no-state: the user is signed out all
/// the same, and is not shown it.
#[tokio::test]
async fn the_way_back_may_have_any_state() {
    let rig = Rig::start().await;
    for (back, status, path) in [
        (LogoutReturn::Right, 200, "/"),
        (LogoutReturn::OtherState, 200, "/"),
        (LogoutReturn::NoState, 200, "/"),
        (LogoutReturn::Page, 200, "/end-session"),
    ] {
        rig.provider.set(|s| s.logout_return = back);
        let browser = rig.gateway.signed_in().await;
        let copy = browser.fork();
        let end = browser.navigate_from(Initiator::SameOrigin, "/auth/logout").await;
        assert_eq!((end.status, end.path().as_str()), (status, path), "{back:?}");
        assert!(!end.text().contains("other-state"), "{back:?}");
        rig.over(&browser, &copy, &format!("{back:?}")).await;
    }
    // Somebody who is signed in and goes there is not signed out by it.
    let browser = rig.gateway.signed_in().await;
    let end = browser.navigate_from(Initiator::CrossSite, "/auth/logout/return?state=x").await;
    assert_eq!((end.status, end.path().as_str(), signed_in(&browser).await), (200, "/", true));
}

/// Contract 2.9: where the start page would sign the user in again, a small page with a link instead.
#[tokio::test]
async fn the_signed_out_page_does_not_sign_in_again() {
    let rig = Rig::with(|config| set(config, "logout.return_to", r#""/api/start?x=1""#)).await;
    let browser = rig.gateway.signed_in().await;
    let asked = rig.provider.calls_to(Endpoint::Authorize).len();
    let end = browser.navigate_from(Initiator::SameOrigin, "/auth/logout").await;
    assert_eq!((end.status, end.path().as_str()), (200, "/auth/logout/return"));
    assert!(end.header("content-type").unwrap().starts_with("text/html") && end.hops_to().is_none());
    assert!(end.text().contains("href=\"/auth/login?return_to=/api/start%3Fx%3D1\""), "{}", end.text());
    assert!(!end.text().contains("<script"));
    let csp = end.header("content-security-policy").unwrap();
    assert!(csp.contains("default-src 'none'") && csp.contains("frame-ancestors 'none'"), "{csp}");
    assert_eq!(rig.provider.calls_to(Endpoint::Authorize).len(), asked);
}

/// BFF-12 to BFF-16: cookies are expired with the attributes they were set with, all parts of them.
#[tokio::test]
async fn cookies_are_expired_as_they_were_set() {
    for public_url in [None, Some(r#""https://app.example.test""#)] {
        let rig = Rig::with(|config| {
            if let Some(url) = public_url {
                set(config, "server.public_url", url);
            }
        })
        .await;
        rig.provider.set(|s| s.access_token = AccessToken::Sized(3600));
        let browser = rig.gateway.signed_in().await;
        // A tab with an unfinished login, too.
        browser.start_login("/").await;
        let before: Vec<Cookie> = browser.jar().cookies;
        assert!(before.iter().filter(|cookie| !cookie.name.contains("-login-")).count() >= 2, "{before:?}");
        let copy = browser.fork();
        let answer = browser.post("/auth/logout").await;
        told(&answer);
        let gone = answer.set_cookies();
        for cookie in &before {
            let same = |end: &&Cookie| (&end.name, &end.path, end.host_only) == (&cookie.name, &cookie.path, true);
            let end = gone.iter().find(same).unwrap_or_else(|| panic!("{} stays", cookie.name));
            assert!(end.deletes(text::now()) && end.value.is_empty(), "{}", end.line);
            assert_eq!((end.secure, end.http_only), (public_url.is_some(), true), "{}", end.line);
            let expected = if end.name.contains("-login-") { SameSite::Lax } else { SameSite::Strict };
            assert_eq!(end.same_site, expected, "{}", end.line);
        }
        assert_eq!((browser.jar().cookies, browser.jar().refused), (vec![], vec![]));
        rig.over(&browser, &copy, "in parts").await;
    }
}

/// RPL-05: a refresh under way while the user logs out brings nobody back.
#[tokio::test]
async fn a_refresh_under_way_does_not_outlive_the_logout() {
    let rig = Rig::start().await;
    let browser = rig.gateway.signed_in().await;
    let (tab, copy) = (browser.clone(), browser.fork());
    rig.gateway.advance(&rig.provider, 3600);
    let held = rig.provider.hold(Endpoint::Token, Grants::Refresh, Moment::After);
    let flight = tab.launch(&Ask::fetch("/api/x")).await;
    held.wait_for(1).await;
    told(&browser.post("/auth/logout").await);
    held.release();
    let late = flight.answer().await;
    tab.land(&late);
    assert_eq!(late.status, 401, "{}", late.text());
    rig.over(&browser, &copy, "a late refresh").await;
    let fresh = rig.provider.last_session().access_tokens;
    assert!(rig.upstream.requests().iter().all(|r| r.bearer() != fresh.last().map(String::as_str)));
}

/// One browser's logout is not another's, the same user's neither.
#[tokio::test]
async fn only_this_session_ends() {
    let rig = Rig::start().await;
    let (here, there) = (rig.gateway.signed_in().await, rig.gateway.signed_in().await);
    told(&here.post("/auth/logout").await);
    assert!(!signed_in(&here).await && signed_in(&there).await);
    assert_eq!(there.fetch("/api/x").await.status, 200);
}
