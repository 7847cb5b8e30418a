//! The refresh as a user, a browser and a provider see it: nobody is logged out because several requests came at once,
//! an answer got lost, or the provider stumbled.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use serde_json::Value;
use support::client::{Ask, Browser, InFlight, Response};
use support::gateway::{Gateway, set};
use support::inside::Rig;
use support::provider::{Endpoint, Outage, ProviderDouble, Rotation};
use support::upstream::{Gate, Script, Upstream};

const COOKIE: &str = "sidegate";
/// The access tokens of the double live for an hour.
const HOUR: u64 = 3600;

/// The upstream got a token that its resource server would take.
fn is_live(provider: &ProviderDouble, answer: &Response) -> bool {
    answer.status == 200 && answer.json()["token"].as_str().is_some_and(|token| provider.is_active(token))
}

/// The same request `n` times, all with the cookies of this moment.
async fn launch_many(browser: &Browser, n: usize) -> Vec<InFlight> {
    let mut flights = Vec::new();
    for _ in 0..n {
        flights.push(browser.launch(&Ask::fetch("/api/x")).await);
    }
    flights
}

async fn answers(flights: Vec<InFlight>) -> Vec<Response> {
    let mut answers = Vec::new();
    for flight in flights {
        answers.push(flight.answer().await);
    }
    answers
}

/// Nothing in this answer changes our cookies.
fn leaves_cookies(answer: &Response) -> bool {
    !answer.set_cookies().iter().any(|cookie| cookie.name.starts_with(COOKIE))
}

/// Puts a session cookie into the browser.
fn sets_session(answer: &Response) -> bool {
    answer.set_cookies().iter().any(|cookie| cookie.name.starts_with(COOKIE) && !cookie.value.is_empty())
}

// -- The three stampedes -------------------------------------------------------------------------------------------

/// RFR-01, BFF-09, ASVS-15.4.1: fifty requests at once on an expired token, at a provider that forgives nothing.
#[tokio::test]
async fn fifty_requests_on_an_expired_token_are_one_refresh() {
    let Rig { provider, upstream: _upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    gateway.advance(&provider, HOUR);
    let hold = provider.hold_token_endpoint();
    let flights = launch_many(&browser, 50).await;
    gateway.reaches("sidegate_refresh_joined_total", 49.0).await;
    hold.release();
    let answers = answers(flights).await;
    assert_eq!(answers.iter().filter(|answer| is_live(&provider, answer)).count(), 50);
    assert!(answers.iter().all(sets_session), "each of them may be the only one that arrives");
    assert_eq!((provider.refreshes(), provider.reuse_alarms()), (1, 0));

    browser.land(&answers[37]);
    for round in 2..4 {
        gateway.advance(&provider, HOUR);
        let answers = browser.fetch_many("/api/x", 10).await;
        assert!(answers.iter().all(|answer| is_live(&provider, answer)), "alive after the next expiry");
        assert_eq!((provider.refreshes(), provider.reuse_alarms()), (round, 0));
    }
    assert!(provider.violations().is_empty(), "{:?}", provider.violations());
}

/// RFR-01: the provider has rotated, but its answer is late. Whoever comes meanwhile waits for it, and nobody asks again.
#[tokio::test]
async fn a_late_answer_of_the_provider_is_waited_for() {
    let Rig { provider, upstream: _upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    gateway.advance(&provider, HOUR);
    let hold = provider.hold_token_answers();
    let mut flights = launch_many(&browser, 25).await;
    hold.wait_for(1).await;
    flights.extend(launch_many(&browser, 25).await);
    gateway.reaches("sidegate_refresh_joined_total", 49.0).await;
    hold.release();
    let answers = answers(flights).await;
    assert_eq!(answers.iter().filter(|answer| is_live(&provider, answer)).count(), 50);
    assert_eq!((provider.refreshes(), provider.reuse_alarms()), (1, 0));
    browser.land(&answers[0]);
    gateway.advance(&provider, HOUR);
    assert!(is_live(&provider, &browser.fetch("/api/x").await), "alive after the next expiry");
}

/// The same, later than any request waits: 503 and nothing lost.
#[tokio::test]
async fn an_answer_later_than_anybody_waits_is_not_lost() {
    let Rig { provider, upstream, gateway } = Rig::strict(|table| set(table, "refresh.wait", "\"200ms\"")).await;
    let browser = gateway.signed_in().await;
    gateway.advance(&provider, HOUR);
    upstream.forget();
    let hold = provider.hold_token_answers();
    let turned_away = answers(launch_many(&browser, 5).await).await;
    for answer in &turned_away {
        assert_eq!((answer.status, answer.code().as_str()), (503, "provider_unavailable"));
        assert!(answer.header("retry-after").is_some());
        assert!(leaves_cookies(answer));
    }
    assert!(upstream.untouched());
    hold.release();
    provider.wait_for_answers(Endpoint::Token, 2).await;
    gateway.reaches("sidegate_refreshes_total", 1.0).await;
    assert!(is_live(&provider, &browser.fetch("/api/x").await));
    assert_eq!((provider.refreshes(), provider.reuse_alarms()), (1, 0));
}

/// RFR-03: the client leaves before the provider's answer; it comes back with the old cookie.
#[tokio::test]
async fn a_client_that_leaves_loses_nothing() {
    let Rig { provider, upstream: _upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    for (round, after_commit) in [(1, true), (2, false)] {
        gateway.advance(&provider, HOUR);
        let hold = if after_commit { provider.hold_token_answers() } else { provider.hold_token_endpoint() };
        let leaving = browser.launch(&Ask::fetch("/api/x")).await;
        hold.wait_for(1).await;
        leaving.abort();
        hold.release();
        provider.wait_for_answers(Endpoint::Token, 1 + round).await;
        let answer = browser.fetch("/api/x").await;
        assert!(is_live(&provider, &answer), "{answer:?}");
        assert!(sets_session(&answer));
        assert_eq!((provider.refreshes(), provider.reuse_alarms()), (round, 0), "no second grant");
    }
    gateway.advance(&provider, HOUR);
    assert!(is_live(&provider, &browser.fetch("/api/x").await), "alive after the next expiry");
}

// -- Stale cookies -------------------------------------------------------------------------------------------------

/// RFR-02: no answer of three refreshes reached the browser; its first cookie still leads to the newest tokens.
#[tokio::test]
async fn a_stale_cookie_is_followed_over_three_generations() {
    let Rig { provider, upstream: _upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    for generation in 1..=3 {
        gateway.advance(&provider, HOUR);
        let lost = browser.launch(&Ask::fetch("/api/x")).await.answer().await;
        assert!(is_live(&provider, &lost), "generation {generation}");
        assert_eq!((provider.refreshes(), provider.reuse_alarms()), (generation, 0));
    }
    assert!(gateway.metric("sidegate_stale_cookies_total", &[]) >= 2.0);
    let answer = browser.fetch("/api/x").await;
    assert!(is_live(&provider, &answer) && sets_session(&answer));
    gateway.advance(&provider, HOUR);
    assert!(is_live(&provider, &browser.fetch("/api/x").await));
    assert_eq!((provider.refreshes(), provider.reuse_alarms()), (4, 0));
}

/// RFR-03: to be used is not to be delivered. As long as only the old cookie comes, its successor is kept.
#[tokio::test]
async fn a_successor_is_kept_until_the_browser_shows_it() {
    let Rig { provider, upstream: _upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    gateway.advance(&provider, HOUR);
    for _ in 0..4 {
        let lost = browser.launch(&Ask::fetch("/api/x")).await.answer().await;
        assert!(is_live(&provider, &lost), "{lost:?}");
        let polled = browser.launch(&Ask::fetch("/auth/session")).await.answer().await;
        assert_eq!(polled.json()["authenticated"], true);
        assert!(sets_session(&polled), "a stale cookie is mended by whatever answer comes next");
        gateway.advance(&provider, 200);
    }
    assert!(is_live(&provider, &browser.fetch("/api/x").await));
    assert_eq!((provider.refreshes(), provider.reuse_alarms()), (1, 0));
}

/// COOKIE-28: once the new cookie was seen, an old one works for the grace time, and then no more.
#[tokio::test]
async fn an_old_cookie_ends_after_the_grace_time() {
    let Rig { provider, upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    let old = browser.fork();
    gateway.advance(&provider, HOUR);
    assert!(is_live(&provider, &browser.fetch("/api/x").await));
    assert!(is_live(&provider, &browser.fetch("/api/x").await), "shows the new cookie");
    gateway.advance(&provider, 50);
    let late = old.launch(&Ask::fetch("/api/x")).await.answer().await;
    assert!(is_live(&provider, &late), "within the grace time");
    gateway.advance(&provider, 20);
    upstream.forget();
    let refused = old.fetch("/api/x").await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "login_required"));
    assert!(upstream.untouched());
}

/// RFR-02: an older answer that comes last carries the newest generation.
#[tokio::test]
async fn a_late_answer_does_not_put_an_older_cookie_back() {
    let Rig { provider, upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    let gate = Gate::default();
    upstream.on("/api/slow", Script::Held(gate.clone(), Box::new(Script::Echo)));
    let before = browser.launch(&Ask::fetch("/api/slow")).await;
    gate.wait_for(1).await;
    gateway.advance(&provider, HOUR);
    // This one makes generation 1 and waits at the upstream with it.
    let maker = browser.launch(&Ask::fetch("/api/slow")).await;
    gate.wait_for(2).await;
    gateway.advance(&provider, HOUR);
    assert!(is_live(&provider, &browser.fetch("/api/x").await), "makes generation 2");
    gate.open();
    for late in [maker, before] {
        let late = late.answer().await;
        assert_eq!(late.status, 200);
        assert!(sets_session(&late), "of an older generation, so the newest goes along");
        browser.land(&late);
        assert!(is_live(&provider, &browser.fetch("/api/x").await));
    }
    assert_eq!((provider.refreshes(), provider.reuse_alarms()), (2, 0));
    gateway.advance(&provider, HOUR);
    assert!(is_live(&provider, &browser.fetch("/api/x").await));
    assert_eq!((provider.refreshes(), provider.reuse_alarms()), (3, 0));
}

/// POST /auth/refresh whose answer was lost is answered from what is known.
#[tokio::test]
async fn a_forced_refresh_is_made_once_however_often_its_answer_is_lost() {
    let Rig { provider, upstream: _upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    gateway.advance(&provider, 10);
    let ask = Ask::fetch("/auth/refresh").method("POST");
    for _ in 0..3 {
        let lost = browser.launch(&ask).await.answer().await;
        assert_eq!(lost.json()["authenticated"], true);
        assert!(sets_session(&lost));
    }
    assert_eq!((provider.refreshes(), provider.reuse_alarms()), (1, 0));
}

// -- Which answers carry the cookie --------------------------------------------------------------------------------

/// RFR-03, RFR-10, ASVS-14.2.2: on every final answer, whatever its status; never on an interim one; never for shared
/// caches.
#[tokio::test]
async fn the_new_cookie_goes_on_every_final_answer() {
    let Rig { provider, upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    let raw = |head: &str| Script::Raw(format!("HTTP/1.1 {head}\r\n\r\n").into_bytes());
    for (head, status) in [
        ("200 OK\r\nContent-Length: 0\r\nCache-Control: public, max-age=600", 200),
        ("200 OK\r\nContent-Length: 0\r\nCache-Control: no-cache, public", 200),
        ("200 OK\r\nContent-Length: 0", 200),
        ("304 Not Modified\r\nETag: \"x\"", 304),
        ("404 Not Found\r\nContent-Length: 0", 404),
        ("500 Internal Server Error\r\nContent-Length: 0", 500),
    ] {
        gateway.advance(&provider, HOUR);
        upstream.on("/api/it", raw(head));
        let answer = browser.fetch("/api/it").await;
        assert_eq!(answer.status, status);
        assert!(sets_session(&answer), "{head}");
        let caching = answer.header_all("cache-control").join(",");
        assert!(caching.contains("private") || caching.contains("no-store"), "{head}: {caching}");
        assert!(!caching.contains("public"), "{head}: {caching}");
        let again = browser.fetch("/api/it").await;
        assert!(leaves_cookies(&again), "once is enough");
    }
    upstream.on("/api/it", raw("200 OK\r\nContent-Length: 0\r\nCache-Control: public, max-age=600"));
    let answer = browser.fetch("/api/it").await;
    assert_eq!(answer.header("cache-control"), Some("public, max-age=600"), "no cookie, nothing changed");
    assert_eq!((provider.refreshes(), provider.reuse_alarms()), (6, 0));
}

/// RFR-03
#[tokio::test]
async fn the_new_cookie_goes_on_our_own_errors_too() {
    let Rig { provider, upstream, gateway } = Rig::strict(|table| {
        let routes = table["route"].as_array_mut().unwrap();
        routes[0].as_table_mut().unwrap().insert("read_timeout".to_owned(), "150ms".into());
        let mut guarded = routes[0].clone();
        guarded["path"] = "/api/staff/".into();
        guarded.as_table_mut().unwrap().insert("require".to_owned(), toml::toml! { groups = ["staff"] }.into());
        routes.push(guarded);
    })
    .await;
    let browser = gateway.signed_in().await;

    gateway.advance(&provider, HOUR);
    upstream.on("/api/stuck", Script::Stall);
    let answer = browser.fetch("/api/stuck").await;
    assert_eq!((answer.status, answer.code().as_str()), (504, "upstream_timeout"));
    assert!(sets_session(&answer));

    gateway.advance(&provider, HOUR);
    upstream.on("/api/odd", Script::RawThenClose(b"what?\r\n\r\n".to_vec()));
    let answer = browser.fetch("/api/odd").await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_protocol"));
    assert!(sets_session(&answer));

    gateway.advance(&provider, HOUR);
    let answer = browser.fetch("/api/staff/x").await;
    assert_eq!((answer.status, answer.code().as_str()), (403, "forbidden"));
    assert!(sets_session(&answer));

    gateway.advance(&provider, HOUR);
    upstream.go_down().await;
    let answer = browser.fetch("/api/x").await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_unreachable"));
    assert!(sets_session(&answer));
    upstream.come_back().await;
    assert!(is_live(&provider, &browser.fetch("/api/x").await));
    assert_eq!((provider.refreshes(), provider.reuse_alarms()), (4, 0));
}

/// Interim answers may be seen by others before it is known how the request ends: no cookie on them.
#[tokio::test]
async fn interim_answers_carry_no_cookie() {
    let Rig { provider, upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    for (method, extra, script) in [
        ("GET", "", Script::Raw(format!("{interim}{last}").into_bytes())),
        ("POST", "Expect: 100-continue\r\nContent-Length: 3\r\n", Script::Echo),
    ] {
        upstream.on("/api/it", script);
        gateway.advance(&provider, HOUR);
        let session = browser.cookie(COOKIE).unwrap();
        let body = if method == "POST" { "abc" } else { "" };
        let request = format!(
            "{method} /api/it HTTP/1.1\r\nHost: {host}\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\n\
             Sec-Fetch-Dest: empty\r\nConnection: close\r\nCookie: {COOKIE}={session}\r\n{extra}\r\n{body}",
            host = gateway.public_url.trim_start_matches("http://"),
        );
        let bytes = String::from_utf8(browser.raw_to_end(request).await).unwrap();
        let (before, after) = bytes.split_at(bytes.find("HTTP/1.1 200").unwrap_or_else(|| panic!("{bytes}")));
        assert!(!before.to_lowercase().contains("set-cookie"), "{bytes}");
        assert!(after.to_lowercase().contains("set-cookie: sidegate="), "{bytes}");
        // Take the cookie over for the next round.
        browser.fetch("/api/x").await;
    }
    assert_eq!((provider.refreshes(), provider.reuse_alarms()), (2, 0));
}

// -- The provider stumbles -----------------------------------------------------------------------------------------

/// RFR-06, RFR-09: near its end a token is renewed early; when that fails, it is used as it is.
#[tokio::test]
async fn a_token_that_is_still_good_is_used_while_the_provider_is_down() {
    // Replicas become eager at moments of their own; the only one at `before_expiry`.
    let Rig { provider, upstream: _upstream, gateway } =
        Rig::strict(|table| set(table, "server.single_replica", "true")).await;
    let browser = gateway.signed_in().await;
    gateway.advance(&provider, HOUR - 30);
    provider.set(|s| s.fail_refresh(Outage::Status(503)));
    let answer = browser.fetch("/api/x").await;
    assert!(is_live(&provider, &answer), "{answer:?}");
    assert!(leaves_cookies(&answer));
    let tries = provider.refreshes();
    assert!(tries >= 1);
    let answers = browser.fetch_many("/api/x", 20).await;
    assert!(answers.iter().all(|answer| is_live(&provider, answer)));
    assert_eq!(provider.refreshes(), tries, "not asked again by every request");
    provider.set(|s| s.heal(Endpoint::Token));
    gateway.advance(&provider, 15);
    assert!(sets_session(&browser.fetch("/api/x").await), "healed by itself, before the token ended");
}

/// RFR-06: none of these means that the session is over.
#[tokio::test]
async fn an_outage_ends_no_session() {
    let outages = [
        Outage::Status(500),
        Outage::TooMany(Some("120".to_owned())),
        Outage::TooMany(Some("nonsense".to_owned())),
        Outage::Html(200),
        Outage::Html(502),
        Outage::Empty,
        Outage::Drop,
        Outage::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n{".to_vec()),
        Outage::json(200, r#"{"access_token":"#),
        Outage::error("temporarily_unavailable"),
    ];
    let mut tasks = tokio::task::JoinSet::new();
    for outage in outages {
        tasks.spawn(async move {
            let Rig { provider, upstream, gateway } = Rig::strict(|_| {}).await;
            let browser = gateway.signed_in().await;
            let session = browser.cookie(COOKIE);
            gateway.advance(&provider, HOUR);
            upstream.forget();
            provider.set(|s| s.fail_refresh(outage.clone()));
            for path in ["/api/x", "/opt/x"] {
                let answer = browser.fetch(path).await;
                assert_eq!((answer.status, answer.code().as_str()), (503, "provider_unavailable"), "{outage:?}");
                let after: u64 = answer.header("retry-after").and_then(|v| v.parse().ok()).expect("Retry-After");
                assert!((1..=10).contains(&after), "{outage:?}: {after}");
                assert!(leaves_cookies(&answer), "{outage:?}");
            }
            assert!(upstream.untouched(), "an optional route does not forget who the user is");
            assert_eq!(browser.session().await["authenticated"], true, "{outage:?}");
            let page = browser.navigate("/api/x").await;
            assert_eq!((page.status, browser.cookie(COOKIE)), (503, session), "{outage:?}");
            provider.set(|s| s.heal(Endpoint::Token));
            gateway.advance(&provider, 11);
            let answer = browser.fetch("/api/x").await;
            assert!(is_live(&provider, &answer), "{outage:?}: {answer:?}");
            assert_eq!(provider.reuse_alarms(), 0, "{outage:?}");
        });
    }
    tasks.join_all().await;
}

/// RFR-06: nobody listens at all.
#[tokio::test]
async fn a_provider_that_is_gone_comes_back() {
    let Rig { provider, upstream: _upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    gateway.advance(&provider, HOUR);
    provider.go_down().await;
    let answer = browser.fetch("/api/x").await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "provider_unavailable"));
    assert_eq!(browser.fetch("/open").await.status, 200, "public routes go on");
    provider.come_back().await;
    gateway.advance(&provider, 11);
    assert!(is_live(&provider, &browser.fetch("/api/x").await));
}

/// A new client secret is rolled out in the wrong order: one minute of 502, and no session lost.
#[tokio::test]
async fn a_wrong_client_secret_ends_no_session() {
    let Rig { provider, upstream: _upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    for error in ["invalid_client", "unauthorized_client", "unsupported_grant_type"] {
        gateway.advance(&provider, HOUR);
        provider.set(|s| s.fail_refresh(Outage::error(error)));
        for path in ["/api/x", "/opt/x"] {
            let answer = browser.fetch(path).await;
            assert_eq!((answer.status, answer.code().as_str()), (502, "provider_refused"), "{error}");
            assert!(leaves_cookies(&answer));
        }
        provider.set(|s| s.heal(Endpoint::Token));
        gateway.advance(&provider, 2);
        assert!(is_live(&provider, &browser.fetch("/api/x").await), "{error}");
    }
    assert!(gateway.metric("sidegate_refreshes_total", &[("outcome", "config")]) >= 3.0);
}

/// R6: a cookie is not taken away at the first failure. The browser is sent round to the same URL twice, since a newer
/// cookie may be on its way; then it is believed.
#[tokio::test]
async fn a_dead_refresh_token_is_verified_before_the_cookies_are_cleared() {
    let Rig { provider, upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    gateway.advance(&provider, HOUR);
    provider.kill_all_sessions();
    upstream.forget();
    for _ in 0..2 {
        let answer = browser.launch(&Ask::fetch("/api/x?a=1")).await.answer().await;
        assert_eq!(answer.status, 307);
        assert_eq!(answer.location(), Some("/api/x?a=1"));
        browser.land(&answer);
        assert!(browser.cookie(COOKIE).is_some(), "not cleared yet");
    }
    let answer = browser.launch(&Ask::fetch("/api/x?a=1")).await.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "login_required"));
    browser.land(&answer);
    assert_eq!(browser.cookie(COOKIE), None);
    assert!(upstream.untouched());
    assert_eq!(provider.refreshes(), 1, "the verdict is remembered");
}

/// BFF-10: a token that the provider calls dead.
#[tokio::test]
async fn a_dead_refresh_token_ends_the_session() {
    let Rig { provider, upstream, gateway } = Rig::strict(|table| set(table, "refresh.verify", "\"401\"")).await;
    let browser = gateway.signed_in().await;
    let copy = browser.fork();
    let page = browser.fork();
    let visitor = browser.fork();
    gateway.advance(&provider, HOUR);
    provider.kill_all_sessions();
    upstream.forget();
    let answers = answers(launch_many(&browser, 10).await).await;
    for answer in &answers {
        assert_eq!((answer.status, answer.code().as_str()), (401, "login_required"));
        assert!(answer.json()["login_url"].as_str().unwrap().starts_with("/auth/login"));
    }
    answers.iter().for_each(|answer| browser.land(answer));
    assert_eq!(browser.cookie(COOKIE), None, "cleared");
    assert_eq!(copy.fetch("/api/x").await.status, 401);
    assert_eq!(provider.refreshes(), 1, "a dead token is not tried again");
    let to_login = page.send(Ask::navigate("/api/page?a=1").stay()).await;
    assert_eq!(to_login.status, 302, "{to_login:?}");
    assert!(to_login.location().unwrap().starts_with("/auth/login?return_to="), "{to_login:?}");
    assert_eq!(page.cookie(COOKIE), None, "cleared");
    assert!(upstream.untouched());
    let anonymous = visitor.fetch("/opt/x").await;
    assert_eq!((anonymous.status, &anonymous.json()["token"]), (200, &Value::Null));
    assert_eq!(visitor.cookie(COOKIE), None, "cleared");
    assert_eq!(gateway.metric("sidegate_sessions_ended_total", &[("reason", "refresh_dead")]), 1.0);
    let back = browser.login("/api/x").await;
    assert!(is_live(&provider, &back));
}

/// The connection broke after the provider had rotated: one more try at once, which a leeway forgives.
#[tokio::test]
async fn a_lost_answer_is_asked_for_once_more() {
    let Rig { provider, upstream: _upstream, gateway } = Rig::strict(|_| {}).await;
    provider.set(|s| s.leeway = std::time::Duration::from_secs(30));
    let browser = gateway.signed_in().await;
    for outage in [Outage::DropAfterCommit, Outage::StatusAfterCommit(502)] {
        gateway.advance(&provider, HOUR);
        provider.set(|s| s.fail_refresh_times(outage.clone(), 1));
        let before = provider.refreshes();
        let answers = browser.fetch_many("/api/x", 5).await;
        assert!(answers.iter().all(|answer| is_live(&provider, answer)), "{outage:?}");
        assert_eq!((provider.refreshes() - before, provider.reuse_alarms()), (2, 0), "{outage:?}");
    }
}

/// RFR-05, FAPI2-07: without a new refresh token the old one stays; a new one replaces it at once.
#[tokio::test]
async fn the_refresh_token_is_kept_or_replaced_as_the_provider_says() {
    for (rotation, given) in [(Rotation::None, false), (Rotation::None, true), (Rotation::Family, true)] {
        let Rig { provider, upstream: _upstream, gateway } = Rig::strict(|_| {}).await;
        provider.set(|s| (s.rotation, s.refresh_token_at_refresh) = (rotation, given));
        let browser = gateway.signed_in().await;
        for _ in 0..3 {
            gateway.advance(&provider, HOUR);
            assert!(is_live(&provider, &browser.fetch("/api/x").await));
        }
        let calls = provider.calls_to(Endpoint::Token);
        let used: Vec<&str> =
            calls.iter().filter(|c| c.is_refresh()).map(|c| c.param("refresh_token").unwrap()).collect();
        assert_eq!(used.len(), 3);
        assert_eq!(used[0] == used[1] && used[1] == used[2], rotation == Rotation::None);
        assert!(calls.iter().filter(|c| c.is_refresh()).all(|c| c.param("scope").is_none()));
    }
}

/// RFR-04: an ID token of a refresh that is about somebody else. Its tokens are not used.
#[tokio::test]
async fn an_answer_about_somebody_else_ends_the_session() {
    let Rig { provider, upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    gateway.advance(&provider, HOUR);
    provider.set(|s| s.sub = "mallory-666".to_owned());
    provider.set(|s| s.id_claims = [("sub".to_owned(), Value::from("mallory-666"))].into_iter().collect());
    upstream.forget();
    let answer = browser.fetch("/api/x").await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "login_required"));
    assert!(answer.via.is_empty(), "the token was not called dead: there is nothing to verify");
    assert!(upstream.untouched());
    assert_eq!(browser.cookie(COOKIE), None);
    assert_eq!(gateway.metric("sidegate_sessions_ended_total", &[("reason", "refresh_dead")]), 1.0);

    provider.set(|s| (s.sub, s.id_claims) = ("alice-4711".to_owned(), serde_json::Map::new()));
    let browser = gateway.signed_in().await;
    provider.set(|s| s.id_claims = [("sub".to_owned(), Value::from("mallory-666"))].into_iter().collect());
    let answer = browser.post("/auth/refresh").await;
    assert_eq!((answer.status, answer.via.len(), browser.cookie(COOKIE)), (401, 0, None));
}

// -- Logout, and the end by time -----------------------------------------------------------------------------------

/// ASVS-15.4.1, ASVS-15.4.2: A logout while a refresh and slow answers are under way: no cookie comes back.
#[tokio::test]
async fn a_logout_during_a_burst_is_final() {
    let Rig { provider, upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    let thief = browser.fork();
    let gate = Gate::default();
    upstream.on("/api/slow", Script::Held(gate.clone(), Box::new(Script::Echo)));
    gateway.advance(&provider, HOUR);
    // Refreshed by this one, which then waits at the upstream.
    let slow = browser.launch(&Ask::fetch("/api/slow")).await;
    gate.wait_for(1).await;
    gateway.advance(&provider, HOUR);
    let hold = provider.hold(Endpoint::Token, support::provider::Grants::Refresh, support::provider::Moment::After);
    let mut burst = launch_many(&browser, 5).await;
    hold.wait_for(1).await;
    let out = browser.post("/auth/logout").await;
    assert_eq!(out.status, 200);
    hold.release();
    gate.open();
    burst.push(slow);
    for answer in answers(burst).await {
        assert!(answer.status == 401 || answer.status == 200, "{answer:?}");
        assert!(!sets_session(&answer), "{answer:?}");
        browser.land(&answer);
    }
    assert_eq!(browser.cookie(COOKIE), None);
    assert_eq!(browser.fetch("/api/x").await.status, 401);
    assert_eq!(thief.fetch("/api/x").await.status, 401, "a copy of the cookie is worthless");
    assert_eq!(gateway.metric("sidegate_sessions_ended_total", &[]), 1.0);
}

/// BFF-39, COOKIE-25: to ask who is logged in is no use of the session.
#[tokio::test]
async fn polling_the_session_endpoint_does_not_keep_a_session_alive() {
    let Rig { provider, upstream, gateway } = Rig::strict(|table| set(table, "session.idle_timeout", "\"10m\"")).await;
    let browser = gateway.signed_in().await;
    for _ in 0..5 {
        gateway.advance(&provider, 110);
        let said = browser.session().await;
        assert_eq!(said["authenticated"], true);
        let left = said["idle_expires_at"].as_u64().unwrap() - said["now"].as_u64().unwrap();
        assert!(left < 600, "{said}");
    }
    gateway.advance(&provider, 110);
    upstream.forget();
    let copies = [browser.fork(), browser.fork(), browser.fork()];
    assert_eq!(browser.session().await["authenticated"], false);
    for copy in copies {
        assert_eq!(copy.fetch("/api/x").await.status, 401);
        assert_eq!(copy.cookie(COOKIE), None, "cleared");
    }
    assert!(upstream.untouched());
    assert_eq!(gateway.metric("sidegate_sessions_ended_total", &[("reason", "idle")]), 1.0, "told once");
}

/// COOKIE-29: use keeps it alive, and is written down at most once per tenth of the time.
#[tokio::test]
async fn use_keeps_a_session_alive_and_is_seldom_sealed() {
    let Rig { provider, upstream: _upstream, gateway } =
        Rig::strict(|table| set(table, "session.idle_timeout", "\"10m\"")).await;
    let browser = gateway.signed_in().await;
    let mut sealed = 0;
    for _ in 0..120 {
        gateway.advance(&provider, 10);
        let answer = browser.fetch("/api/x").await;
        assert_eq!(answer.status, 200);
        sealed += usize::from(sets_session(&answer));
    }
    assert!((10..=20).contains(&sealed), "{sealed} times in twice the idle time");
}

/// COOKIE-13, COOKIE-25: the absolute end is not moved by a refresh, and holds for copies of the cookie too.
#[tokio::test]
async fn max_age_counts_from_the_login() {
    let Rig { provider, upstream, gateway } = Rig::strict(|table| set(table, "session.max_age", "\"1h\"")).await;
    provider.set(|s| s.access_lifetime = 600);
    let browser = gateway.signed_in().await;
    for round in 1..=5 {
        gateway.advance(&provider, 600);
        let answer = browser.fetch("/api/x").await;
        assert!(is_live(&provider, &answer));
        let life = answer.set_cookie(COOKIE).unwrap().max_age.unwrap();
        assert!(life <= 3600 - 600 * round, "{life} in round {round}");
    }
    let copy = browser.fork();
    gateway.advance(&provider, 600);
    upstream.forget();
    assert_eq!(browser.fetch("/api/x").await.status, 401);
    assert_eq!(copy.fetch("/api/x").await.status, 401);
    assert_eq!(copy.session().await["authenticated"], false);
    assert!(upstream.untouched());
    assert_eq!(provider.refreshes(), 5);
    assert_eq!(gateway.metric("sidegate_sessions_ended_total", &[("reason", "expired")]), 1.0, "told once");
}

/// BFF-11: the session is over with its refresh token, when the provider says how long that lives.
#[tokio::test]
async fn a_session_ends_with_its_refresh_token() {
    let Rig { provider, upstream: _upstream, gateway } = Rig::strict(|_| {}).await;
    provider.set(|s| (s.access_lifetime, s.refresh_lifetime) = (300, Some(1800)));
    let browser = gateway.signed_in().await;
    let life = browser.jar().get(COOKIE).unwrap().max_age.unwrap();
    assert!(life <= 1800, "{life}");
    gateway.advance(&provider, 1801);
    let answer = browser.fetch("/api/x").await;
    assert_eq!(answer.status, 401);
    assert_eq!(provider.refreshes(), 0, "a call that is known to fail is not made");
    assert_eq!(gateway.metric("sidegate_sessions_ended_total", &[("reason", "expired")]), 1.0);
}

/// `max_refreshes`: the last token is used to its end, then a login.
#[tokio::test]
async fn after_max_refreshes_a_login_is_due() {
    let Rig { provider, upstream: _upstream, gateway } =
        Rig::strict(|table| set(table, "session.max_refreshes", "2")).await;
    let browser = gateway.signed_in().await;
    for _ in 0..2 {
        gateway.advance(&provider, HOUR);
        assert!(is_live(&provider, &browser.fetch("/api/x").await));
    }
    gateway.advance(&provider, 10);
    let refused = browser.post("/auth/refresh").await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "login_required"));
    assert!(is_live(&provider, &browser.fetch("/api/x").await), "to its end");
    gateway.advance(&provider, HOUR);
    assert_eq!(browser.fetch("/api/x").await.status, 401);
    assert_eq!(provider.refreshes(), 2);
    assert_eq!(gateway.metric("sidegate_sessions_ended_total", &[("reason", "refresh_limit")]), 1.0, "told once");
}

/// A login without a refresh token lives as long as its access token.
#[tokio::test]
async fn without_a_refresh_token_the_session_ends_with_the_access_token() {
    let Rig { provider, upstream: _upstream, gateway } = Rig::strict(|_| {}).await;
    provider.set(|s| s.refresh_token_at_login = false);
    let browser = gateway.signed_in().await;
    // The provider's clock also goes on by itself.
    gateway.advance(&provider, HOUR - 60);
    assert!(is_live(&provider, &browser.fetch("/api/x").await));
    gateway.advance(&provider, 60);
    assert_eq!(browser.fetch("/api/x").await.status, 401);
    assert_eq!(provider.refreshes(), 0);
}

/// MET-03: the scrape shows the hand-off as it is at that moment, not as it was when it was last swept.
#[tokio::test]
async fn the_hand_off_is_measured_when_it_is_asked_for() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start(&provider, &upstream).await;
    let browser = gateway.signed_in().await;
    assert_eq!(gateway.metric("sidegate_handoff_entries", &[]).await, 0.0);
    assert_eq!(browser.post("/auth/refresh").await.status, 200);
    assert_eq!(gateway.metric("sidegate_handoff_entries", &[]).await, 1.0);
    assert!(gateway.metric("sidegate_handoff_bytes", &[]).await > 0.0);
}

/// COOKIE-28, MET-03: what `on_reuse = "ignore"` lets pass is counted all the same.
#[tokio::test]
async fn a_reuse_that_is_ignored_is_counted() {
    let Rig { provider, upstream: _upstream, gateway } =
        Rig::strict(|config| set(config, "refresh.on_reuse", "'ignore'")).await;
    let browser = gateway.signed_in().await;
    let copy = browser.fork();
    for _ in 0..2 {
        gateway.advance(&provider, HOUR);
        assert!(is_live(&provider, &browser.fetch("/api/x").await));
    }
    gateway.advance(&provider, 61);
    browser.fetch("/api/x").await;
    assert_eq!(gateway.metric("sidegate_cookie_reuse_total", &[]), 0.0);
    copy.fetch("/api/x").await;
    assert!(gateway.metric("sidegate_cookie_reuse_total", &[]) >= 1.0);
}

/// COOKIE-28: a cookie from before a generation that was seen since is refused, and does the session no harm.
#[tokio::test]
async fn a_cookie_of_long_ago_is_refused_and_its_token_not_spent() {
    let Rig { provider, upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    let copies = [browser.fork(), browser.fork()];
    for _ in 0..2 {
        gateway.advance(&provider, HOUR);
        assert!(is_live(&provider, &browser.fetch("/api/x").await));
    }
    // The grace of the last delivery passes.
    gateway.advance(&provider, 61);
    upstream.forget();
    assert_eq!(browser.fork().session().await["authenticated"], true);
    for copy in &copies {
        let answer = copy.fetch("/api/x").await;
        assert_eq!((answer.status, answer.code().as_str()), (401, "login_required"));
        assert!(!sets_session(&answer));
    }
    assert!(upstream.untouched());
    assert_eq!((provider.refreshes(), provider.reuse_alarms()), (2, 0), "no false alarm");
    assert!(gateway.metric("sidegate_cookie_reuse_total", &[]) >= 1.0);
    gateway.advance(&provider, HOUR);
    assert!(is_live(&provider, &browser.fetch("/api/x").await), "the user goes on");
    assert_eq!(gateway.metric("sidegate_sessions_ended_total", &[]), 0.0);
}

/// COOKIE-28: it may be a late request of a browser that has the newer cookie by now, under the same name: no endpoint
/// takes that away, unless it is asked to.
#[tokio::test]
async fn a_cookie_of_long_ago_does_not_clear_the_newer_one() {
    let Rig { provider, upstream: _upstream, gateway } = Rig::strict(|_| {}).await;
    let browser = gateway.signed_in().await;
    let late = browser.fork();
    for _ in 0..2 {
        gateway.advance(&provider, HOUR);
        assert!(is_live(&provider, &browser.fetch("/api/x").await));
    }
    gateway.advance(&provider, 61);
    assert!(is_live(&provider, &browser.fetch("/api/x").await));
    let shown = late.fork().fetch("/auth/session").await;
    assert_eq!(shown.json()["authenticated"], false);
    assert!(leaves_cookies(&shown), "{:?}", shown.set_cookies());
    let refreshed = late.fork().send(Ask::fetch("/auth/refresh").method("POST")).await;
    assert_eq!((refreshed.status, refreshed.code().as_str()), (401, "login_required"));
    assert!(leaves_cookies(&refreshed), "{:?}", refreshed.set_cookies());
    let logout = late.send(Ask::fetch("/auth/logout").method("POST")).await;
    assert!(!leaves_cookies(&logout), "a logout is asked to");
}
