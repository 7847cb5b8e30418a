//! Where a session is kept: in one cookie, in two of which the browser sends one only below the prefix, or in Redis with
//! a ticket in the cookie. Whatever the form, nobody is logged out by a race, and nothing of it is lost when the form
//! changes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use std::cell::Cell;

use serde_json::json;
use support::client::{Ask, Browser, Initiator, Response, SameSite};
use support::gateway::{Gateway, set};
use support::inside::{Inside, Rig};
use support::provider::{Endpoint, Outage, ProviderDouble, Rotation};
use support::redis::Redis;
use support::upstream::Upstream;
use support::wait::until;
use toml::Table;

const SESSION: &str = "sidegate";
const REFRESH: &str = "sidegate-refresh";
const MARKER: &str = "sidegate-verify";
/// The access tokens of the double live for an hour.
const HOUR: u64 = 3600;

fn single(_: &mut Table) {}

fn split(table: &mut Table) {
    set(table, "session.layout", "\"split\"");
}

/// With all sessions in this store.
fn kept_in(redis: &Redis) -> impl FnOnce(&mut Table) {
    let url = redis.url();
    move |table| {
        set(table, "redis.url", &format!("{url:?}"));
        set(table, "redis.timeout", "\"2s\"");
        set(table, "session.store", "\"redis\"");
    }
}

impl Rig {
    fn expire_token(&self) {
        self.gateway.advance(&self.provider, HOUR);
    }

    /// The upstream got a token that its resource server would take.
    fn is_live(&self, answer: &Response) -> bool {
        answer.status == 200 && answer.json()["token"].as_str().is_some_and(|token| self.provider.is_active(token))
    }

    /// Token requests for refreshes, and refresh tokens that came twice.
    fn spent(&self) -> (usize, u32) {
        (self.provider.refreshes(), self.provider.reuse_alarms())
    }
}

fn ours(browser: &Browser) -> Vec<String> {
    let jar = browser.jar();
    let mut names: Vec<String> =
        jar.names().into_iter().filter(|name| name.starts_with(SESSION)).map(str::to_owned).collect();
    names.sort();
    names
}

fn sets(answer: &Response, name: &str) -> bool {
    answer.set_cookie(name).is_some_and(|cookie| !cookie.value.is_empty())
}

// -- The three stampedes, in every form ----------------------------------------------------------------------------

async fn fifty_at_once(change: impl FnOnce(&mut Table)) {
    let rig = Rig::strict(change).await;
    let browser = rig.gateway.signed_in().await;
    for round in 1..=3 {
        rig.expire_token();
        let joined = rig.gateway.metric("sidegate_refresh_joined_total", &[]);
        let hold = rig.provider.hold_token_endpoint();
        let burst = tokio::spawn({
            let browser = browser.clone();
            async move { browser.fetch_many("/api/x", 50).await }
        });
        rig.gateway.reaches("sidegate_refresh_joined_total", joined + 49.0).await;
        hold.release();
        let answers = burst.await.unwrap();
        assert_eq!(answers.iter().filter(|answer| rig.is_live(answer)).count(), 50, "round {round}");
        assert_eq!(rig.spent(), (round, 0));
    }
    assert!(rig.provider.violations().is_empty(), "{:?}", rig.provider.violations());
}

async fn a_late_answer(change: impl FnOnce(&mut Table)) {
    let rig = Rig::strict(change).await;
    let browser = rig.gateway.signed_in().await;
    rig.expire_token();
    let hold = rig.provider.hold_token_answers();
    let burst = |n| {
        let browser = browser.clone();
        tokio::spawn(async move { browser.fetch_many("/api/x", n).await })
    };
    let first = burst(25);
    hold.wait_for(1).await;
    let second = burst(25);
    rig.gateway.reaches("sidegate_refresh_joined_total", 49.0).await;
    hold.release();
    let answers = [first.await.unwrap(), second.await.unwrap()].concat();
    assert_eq!(answers.iter().filter(|answer| rig.is_live(answer)).count(), 50);
    assert_eq!(rig.spent(), (1, 0));
    rig.expire_token();
    assert!(rig.is_live(&browser.fetch("/api/x").await), "alive after the next expiry");
}

async fn a_client_that_leaves(change: impl FnOnce(&mut Table)) {
    let rig = Rig::strict(change).await;
    let browser = rig.gateway.signed_in().await;
    for (round, after_commit) in [(1, true), (2, false)] {
        rig.expire_token();
        let hold = if after_commit { rig.provider.hold_token_answers() } else { rig.provider.hold_token_endpoint() };
        let leaving = tokio::spawn({
            let browser = browser.fork();
            async move { browser.fetch("/api/x").await }
        });
        hold.wait_for(1).await;
        leaving.abort();
        assert!(leaving.await.unwrap_err().is_cancelled());
        hold.release();
        rig.provider.wait_for_answers(Endpoint::Token, 1 + round).await;
        assert!(rig.is_live(&browser.fetch("/api/x").await));
        assert_eq!(rig.spent(), (round, 0), "no second grant");
    }
    rig.expire_token();
    assert!(rig.is_live(&browser.fetch("/api/x").await), "alive after the next expiry");
}

/// RFR-01, BFF-09
#[tokio::test]
async fn fifty_requests_at_once_are_one_refresh_in_one_cookie() {
    fifty_at_once(single).await;
}

/// RFR-01, BFF-09
#[tokio::test]
async fn fifty_requests_at_once_are_one_refresh_in_two_cookies() {
    fifty_at_once(split).await;
}

/// RFR-01
#[tokio::test]
async fn a_late_answer_is_waited_for_in_one_cookie() {
    a_late_answer(single).await;
}

/// RFR-01
#[tokio::test]
async fn a_late_answer_is_waited_for_in_two_cookies() {
    a_late_answer(split).await;
}

/// RFR-03
#[tokio::test]
async fn a_client_that_leaves_loses_nothing_in_one_cookie() {
    a_client_that_leaves(single).await;
}

/// RFR-03
#[tokio::test]
async fn a_client_that_leaves_loses_nothing_in_two_cookies() {
    a_client_that_leaves(split).await;
}

/// RFR-01, BFF-09
#[tokio::test]
async fn fifty_requests_at_once_are_one_refresh_in_redis() {
    let redis = Redis::start().await;
    fifty_at_once(kept_in(&redis)).await;
}

/// RFR-01
#[tokio::test]
async fn a_late_answer_is_waited_for_in_redis() {
    let redis = Redis::start().await;
    a_late_answer(kept_in(&redis)).await;
}

/// RFR-03
#[tokio::test]
async fn a_client_that_leaves_loses_nothing_in_redis() {
    let redis = Redis::start().await;
    a_client_that_leaves(kept_in(&redis)).await;
}

// -- Two cookies ---------------------------------------------------------------------------------------------------

/// COOKIE-01, COOKIE-12, COOKIE-13, BFF-07: what the browser gets, where it sends it, and that a logout takes it all.
#[tokio::test]
async fn the_refresh_token_travels_below_the_prefix_only() {
    let rig = Rig::strict(split).await;
    let browser = rig.gateway.signed_in().await;
    assert_eq!(ours(&browser), [SESSION, REFRESH]);
    let jar = browser.jar();
    let (session, refresh) = (jar.get(SESSION).unwrap(), jar.get(REFRESH).unwrap());
    assert_eq!((session.path.as_str(), refresh.path.as_str()), ("/", "/auth/"));
    for cookie in [session, refresh] {
        assert!(cookie.http_only && cookie.host_only && cookie.same_site == SameSite::Strict, "{cookie:?}");
    }
    assert!(refresh.max_age.unwrap() > 0 && refresh.max_age.unwrap() <= 12 * 3600);
    let whole = {
        let rig = Rig::strict(single).await;
        rig.gateway.signed_in().await.cookie(SESSION).unwrap().len()
    };
    assert!(session.value.len() < whole, "{} to {whole}", session.value.len());

    let answer = browser.fetch("/api/x").await;
    let sent = answer.sent_header("cookie").unwrap();
    assert!(sent.contains(&format!("{SESSION}=")) && !sent.contains(REFRESH), "{sent}");
    assert!(rig.is_live(&answer));
    assert!(answer.set_cookies().is_empty());

    let provider_session = rig.provider.last_session();
    let copy = browser.fork();
    let out = browser.post("/auth/logout").await;
    assert_eq!(out.status, 200);
    assert!(out.json()["location"].as_str().unwrap().contains("id_token_hint="), "the ID token came along");
    assert_eq!(ours(&browser), Vec::<String>::new());
    assert!(!rig.provider.is_refreshable(provider_session.refresh_tokens.last().unwrap()), "revoked");
    assert_eq!(copy.fetch("/api/x").await.status, 401);
    assert_eq!(copy.post("/auth/refresh").await.status, 401);
}

/// Contract 3: an expired token is answered with a 307 below the prefix, and a 307 back; method and body survive.
#[tokio::test]
async fn an_expired_token_is_fetched_by_way_of_the_prefix() {
    let rig = Rig::strict(split).await;
    let browser = rig.gateway.signed_in().await;
    let long = "x".repeat(200_000);
    for (round, ask) in [
        Ask::fetch("/api/x?a=1&b=%2F&c=it%27s"),
        Ask::fetch("/api/it's/x").json(&json!({"a": [1, 2]})),
        Ask::fetch("/api/x").method("DELETE"),
        Ask::fetch("/api/x").method("PUT").body("text/plain", long.as_bytes()),
        Ask::navigate("/api/page?x=1").from(Initiator::SameOrigin).form(&[("a", "ü b")]),
        Ask::navigate("/api/page"),
        Ask::fetch("/opt/x").method("PATCH").body("text/plain", "p"),
    ]
    .into_iter()
    .enumerate()
    {
        rig.expire_token();
        let answer = browser.send(ask.clone()).await;
        assert!(rig.is_live(&answer), "{ask:?}: {answer:?}");
        let [first, second] = answer.via.as_slice() else { panic!("{:?}", answer.via) };
        assert_eq!((first.status, second.status), (307, 307));
        let way = first.location().unwrap();
        assert!(way.starts_with("/auth/renew?"), "{way}");
        assert!(!sets(first, SESSION) && sets(first, MARKER));
        assert!(sets(second, SESSION) && sets(second, REFRESH));
        assert_eq!(second.location().unwrap(), ask.url);
        assert_eq!(second.header("cache-control"), Some("no-store"));
        let seen = answer.json();
        assert_eq!(seen["method"], ask.method.as_str());
        assert_eq!(seen["target"], ask.url.as_str());
        assert_eq!(seen["body"].as_str().unwrap_or_default().len(), ask.body.as_ref().map_or(0, Vec::len));
        assert_eq!(rig.spent(), (round + 1, 0));
        assert_eq!(ours(&browser), [SESSION, REFRESH], "the marker is gone");
        assert!(browser.fetch("/api/x").await.via.is_empty(), "once");
    }
    assert!(rig.provider.violations().is_empty(), "{:?}", rig.provider.violations());
}

/// Contract 2.6, 3: what cannot be sent again gets 401 and clears nothing; the page fetches the token by itself.
#[tokio::test]
async fn what_cannot_be_sent_again_is_told_so() {
    let rig = Rig::strict(split).await;
    let browser = rig.gateway.signed_in().await;
    rig.expire_token();
    rig.upstream.forget();
    let refused = browser.websocket("/api/ws", Initiator::SameOrigin).await.err().unwrap();
    assert_eq!((refused.status, refused.code().as_str()), (401, "login_required"));
    assert!(refused.set_cookies().is_empty());
    let session = browser.cookie(SESSION).unwrap();
    let host = rig.gateway.public_url.trim_start_matches("http://").to_owned();
    let stream = |session: &str| {
        format!(
            "POST /api/x HTTP/1.1\r\nHost: {host}\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\n\
             Sec-Fetch-Dest: empty\r\nConnection: close\r\nCookie: {SESSION}={session}\r\n\
             Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        )
    };
    let bytes = String::from_utf8(browser.raw_to_end(stream(&session)).await).unwrap();
    assert!(bytes.starts_with("HTTP/1.1 401") && !bytes.to_lowercase().contains("set-cookie"), "{bytes}");
    assert!(rig.upstream.untouched());
    assert_eq!(rig.provider.refreshes(), 0);

    let renewed = browser.post("/auth/refresh").await;
    assert_eq!(renewed.status, 200);
    assert!(sets(&renewed, SESSION) && sets(&renewed, REFRESH));
    let bytes = String::from_utf8(browser.raw_to_end(stream(&browser.cookie(SESSION).unwrap())).await).unwrap();
    assert!(bytes.starts_with("HTTP/1.1 200"), "{bytes}");
    assert!(browser.websocket("/api/ws", Initiator::SameOrigin).await.err().is_none_or(|no| no.status != 401));
    assert_eq!(rig.spent(), (1, 0));
}

/// Contract 3: an expired access token with a live refresh token counts as authenticated.
#[tokio::test]
async fn the_session_endpoint_knows_of_the_refresh_token() {
    let rig = Rig::strict(split).await;
    let browser = rig.gateway.signed_in().await;
    rig.expire_token();
    let told = browser.session().await;
    assert_eq!(told["authenticated"], true);
    assert!(told["access_token_expires_at"].as_u64() <= told["now"].as_u64());
    let mut events = browser.open(&Ask::fetch("/auth/events")).await;
    assert_eq!(events.response.status, 200);
    assert!(rig.is_live(&browser.fetch("/api/x").await));
    assert!(events.read_until("event: refreshed").await.is_some());
    browser.post("/auth/logout").await;
    assert!(events.read_until("event: ended").await.is_some());
    assert_eq!(rig.spent(), (1, 0));
}

/// A sibling site can plant a cookie under that name, with a refresh token of its own that was validly sealed.
#[tokio::test]
async fn a_foreign_refresh_cookie_does_not_count() {
    let rig = Rig::strict(split).await;
    let (victim, attacker) = (rig.gateway.signed_in().await, rig.gateway.signed_in().await);
    let planted = attacker.cookie(REFRESH).unwrap();
    let header = |own: Option<String>| {
        let session = victim.cookie(SESSION).unwrap();
        let own = own.map(|own| format!("; {REFRESH}={own}")).unwrap_or_default();
        format!("{SESSION}={session}; {REFRESH}={planted}{own}")
    };
    rig.expire_token();
    // Beside the victim's own, in front of it.
    let answer = victim.send(Ask::fetch("/auth/refresh").method("POST").cookie(&header(victim.cookie(REFRESH)))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(rig.provider.refreshes(), 1);
    let calls = rig.provider.calls_to(Endpoint::Token);
    let first_login = &rig.provider.sessions()[0];
    let spent = calls.iter().find(|call| call.is_refresh()).unwrap().param("refresh_token").unwrap().to_owned();
    assert!(first_login.refresh_tokens.contains(&spent), "the victim's");
    // In its place.
    rig.expire_token();
    let alone = rig.gateway.signed_in().await;
    rig.expire_token();
    let header = format!("{SESSION}={}; {REFRESH}={planted}", alone.cookie(SESSION).unwrap());
    let answer = alone.send(Ask::fetch("/auth/refresh").method("POST").cookie(&header)).await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "login_required"));
    assert_eq!(rig.provider.refreshes(), 1, "the planted token is not spent");
    // Nothing but the refresh cookie is nobody.
    let answer = alone.send(Ask::fetch("/auth/session").cookie(&format!("{REFRESH}={planted}"))).await;
    assert_eq!(answer.json(), json!({"authenticated": false}));
}

/// A refresh cookie that the browser lost: the session goes on to its token's end, and no further.
#[tokio::test]
async fn without_the_refresh_cookie_the_session_ends_with_its_token() {
    let rig = Rig::strict(split).await;
    let browser = rig.gateway.signed_in().await;
    browser.with_jar(|jar| jar.remove(REFRESH));
    assert!(rig.is_live(&browser.fetch("/api/x").await));
    assert_eq!(browser.session().await["authenticated"], true);
    rig.expire_token();
    rig.upstream.forget();
    let answer = browser.fetch("/api/x").await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "login_required"));
    assert_eq!(answer.via.len(), 2, "led there and back");
    assert!(rig.upstream.untouched());
    assert_eq!(ours(&browser), Vec::<String>::new());
    assert_eq!(rig.provider.refreshes(), 0);
}

/// The browser stored one cookie of an answer and not the other.
#[tokio::test]
async fn cookies_of_two_answers_are_set_right_by_a_refresh() {
    for kept in [SESSION, REFRESH] {
        let rig = Rig::strict(split).await;
        let browser = rig.gateway.signed_in().await;
        let old = browser.jar().get(kept).unwrap().clone();
        rig.expire_token();
        assert!(rig.is_live(&browser.fetch("/api/x").await));
        browser.with_jar(|jar| {
            jar.remove(kept);
            jar.cookies.push(old);
        });
        let renewed = browser.post("/auth/refresh").await;
        assert_eq!(renewed.status, 200, "{kept}");
        assert!(rig.is_live(&browser.fetch("/api/x").await), "{kept}");
        rig.expire_token();
        assert!(rig.is_live(&browser.fetch("/api/x").await), "{kept}");
        assert_eq!(rig.provider.reuse_alarms(), 0, "{kept}");
    }
}

/// The provider says that it is over, or does not answer.
#[tokio::test]
async fn the_way_round_tells_how_it_went() {
    let rig = Rig::strict(split).await;
    let browser = rig.gateway.signed_in().await;
    rig.expire_token();
    rig.provider.set(|s| s.fail_refresh(Outage::Status(503)));
    let answer = browser.fetch("/api/x").await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "provider_unavailable"));
    assert!(answer.header("retry-after").is_some());
    assert!(ours(&browser).starts_with(&[SESSION.to_owned(), REFRESH.to_owned()]), "kept");
    rig.provider.set(|s| s.heal(Endpoint::Token));
    rig.gateway.advance(&rig.provider, 11);
    assert!(rig.is_live(&browser.fetch("/api/x").await));

    rig.expire_token();
    rig.provider.kill_all_sessions();
    rig.upstream.forget();
    let (script, page) = (browser.fork(), browser.fork());
    let answer = script.fetch("/api/x").await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "login_required"));
    assert_eq!(ours(&script), Vec::<String>::new(), "both are gone");
    let answer = page.send(Ask::navigate("/api/page")).await;
    assert!(answer.via.iter().any(|hop| hop.location().is_some_and(|to| to.starts_with("/auth/login"))), "{answer:?}");
}

/// BFF-19: before the way round and after it the request is judged like any other; the way itself needs a pass.
#[tokio::test]
async fn the_way_round_opens_nothing() {
    let rig = Rig::strict(split).await;
    let (browser, other) = (rig.gateway.signed_in().await, rig.gateway.signed_in().await);
    rig.expire_token();
    rig.upstream.forget();
    for from in [Initiator::CrossSite, Initiator::SameSite] {
        let answer = browser.send(Ask::fetch("/api/x").from(from.clone()).method("POST").stay()).await;
        assert!(answer.status == 403 || answer.status == 401 || answer.status == 0, "{from:?}: {answer:?}");
    }
    let way = browser.launch(&Ask::fetch("/api/x")).await.answer().await.location().unwrap().to_owned();
    let (pass, _) = way.split_once("&to=").unwrap();
    for wrong in [
        "/auth/renew".to_owned(),
        "/auth/renew?to=/api/x".to_owned(),
        format!("{pass}&to=/api/y"),
        format!("{pass}&to=//evil.example"),
        format!("{pass}&to=https://evil.example/"),
        format!("{way}&to=/api/y"),
        way.replace("pass=", "pass=A"),
    ] {
        let answer = browser.send(Ask::fetch(&wrong).stay()).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "bad_request"), "{wrong}");
    }
    // Somebody else's pass is the way to where everybody may go.
    let answer = other.send(Ask::fetch(&way).stay()).await;
    assert_eq!((answer.status, answer.location()), (307, Some("/api/x")));
    assert!(answer.set_cookies().is_empty());
    assert_eq!(rig.provider.refreshes(), 0);
    assert!(rig.upstream.untouched());
    // It is good for some minutes.
    rig.gateway.advance(&rig.provider, 301);
    assert_eq!(browser.send(Ask::fetch(&way).stay()).await.status, 400);
}

/// A browser that never comes back with the new cookie is not led round for ever.
#[tokio::test]
async fn the_way_round_has_an_end() {
    let rig = Rig::strict(split).await;
    let browser = rig.gateway.signed_in().await;
    rig.expire_token();
    for _ in 0..3 {
        let answer = browser.launch(&Ask::fetch("/api/x")).await.answer().await;
        assert_eq!(answer.status, 307);
        browser.land(&answer);
    }
    let answer = browser.launch(&Ask::fetch("/api/x")).await.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "login_required"));
    assert!(answer.set_cookies().is_empty(), "nothing is cleared");
    rig.gateway.advance(&rig.provider, 11);
    assert!(rig.is_live(&browser.fetch("/api/x").await));
}

/// With `idle_timeout` the last use is sealed in the session alone; the refresh token lasts as long.
#[tokio::test]
async fn use_keeps_both_cookies_alive() {
    let rig = Rig::strict(|table| {
        split(table);
        set(table, "session.idle_timeout", "\"30m\"");
    })
    .await;
    let browser = rig.gateway.signed_in().await;
    assert!(browser.jar().get(SESSION).unwrap().max_age.unwrap() <= 1800);
    assert!(browser.jar().get(REFRESH).unwrap().max_age.unwrap() > 2 * 3600);
    for _ in 0..10 {
        rig.gateway.advance(&rig.provider, 20 * 60);
        browser.with_jar(|jar| jar.advance(20 * 60));
        assert!(rig.is_live(&browser.fetch("/api/x").await));
    }
    assert_eq!(rig.spent().1, 0);
    rig.gateway.advance(&rig.provider, 31 * 60);
    assert_eq!(browser.fetch("/api/x").await.status, 401);
}

/// A table for `refresh first` on one route.
#[tokio::test]
async fn a_route_that_wants_a_fresh_token_gets_one() {
    let rig = Rig::strict(|table| {
        split(table);
        let routes = table["route"].as_array_mut().unwrap();
        let mut fresh = routes[0].clone();
        fresh["path"] = "/api/pay/".into();
        fresh.as_table_mut().unwrap().insert("max_token_age".to_owned(), "60s".into());
        routes.push(fresh);
    })
    .await;
    let browser = rig.gateway.signed_in().await;
    rig.gateway.advance(&rig.provider, 120);
    assert!(rig.is_live(&browser.fetch("/api/x").await));
    assert_eq!(rig.provider.refreshes(), 0);
    let answer = browser.fetch("/api/pay/x").await;
    assert!(rig.is_live(&answer), "{answer:?}");
    assert_eq!((answer.via.len(), rig.spent()), (2, (1, 0)));
}

// -- A ticket ------------------------------------------------------------------------------------------------------

/// Contract 2.5: under 1200 bytes, whatever the session; no token, subject or address in it, nor readable in Redis.
#[tokio::test]
async fn the_browser_has_a_ticket_only() {
    let redis = Redis::start().await;
    let rig = Rig::strict(kept_in(&redis)).await;
    let browser = rig.gateway.signed_in().await;
    assert_eq!(ours(&browser), [SESSION]);
    let ticket = browser.jar().get(SESSION).unwrap().clone();
    assert!(ticket.value.len() < 300, "{}", ticket.value.len());
    assert!(ticket.http_only && ticket.same_site == SameSite::Strict && ticket.path == "/");
    let keys = redis.keys().await;
    assert!(!keys.is_empty() && keys.iter().all(|key| key.starts_with("sidegate:")), "{keys:?}");
    for key in &keys {
        assert!(redis.say(&format!("PTTL {key}")).await.int() > 0, "{key} has a life");
    }
    let dump = redis.dump().await;
    for secret in ["alice", "@"] {
        assert!(!String::from_utf8_lossy(&dump).contains(&format!("{secret}-")), "{secret}");
    }
    let tokens = rig.provider.last_session();
    for token in tokens.refresh_tokens.iter().chain(&tokens.id_tokens) {
        assert!(!String::from_utf8_lossy(&dump).contains(token.as_str()));
    }
    assert!(rig.is_live(&browser.fetch("/api/x").await));
    rig.expire_token();
    let answer = browser.fetch("/api/x").await;
    assert!(rig.is_live(&answer) && answer.via.is_empty());
    let copy = browser.fork();
    assert_eq!(browser.post("/auth/logout").await.status, 200);
    assert!(redis.keys().await.iter().all(|key| !key.starts_with("sidegate:t")), "{:?}", redis.keys().await);
    assert_eq!(copy.fetch("/api/x").await.status, 401);
    assert_eq!(ours(&copy), Vec::<String>::new(), "gone is anonymous, and its cookie expired");
}

/// Contract 2.5: Redis away: 503, cookie untouched; public routes go on, and so does everything when it is back.
#[tokio::test]
async fn while_redis_is_away_sessions_wait() {
    let redis = Redis::start().await;
    let rig = Rig::strict(kept_in(&redis)).await;
    let browser = rig.gateway.signed_in().await;
    redis.stop();
    rig.upstream.forget();
    for path in ["/api/x", "/opt/x", "/auth/session"] {
        let answer = browser.fetch(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "store_unavailable"), "{path}");
        assert!(answer.set_cookies().is_empty(), "{path}");
        assert!(answer.header("retry-after").is_some(), "{path}");
    }
    assert!(rig.upstream.untouched());
    assert_eq!(browser.fetch("/open").await.status, 200);
    assert_eq!(rig.gateway.browser().fetch("/api/x").await.status, 401, "nobody is still nobody");
    let foreign = browser.send(Ask::fetch("/api/x").from(Initiator::CrossSite).method("POST").stay()).await;
    assert_ne!(foreign.status, 200);
    let refused = rig.gateway.browser().login("/").await;
    assert_eq!(refused.status, 503);
    assert!(refused.text().contains("store_unavailable"), "a page");
}

/// A second process sees what the first one did.
#[tokio::test]
async fn replicas_share_the_sessions_in_redis() {
    let redis = Redis::start().await;
    let rig = Rig::strict(kept_in(&redis)).await;
    let mut other = rig.gateway.config.clone();
    set(&mut other, "server.listen", &format!("\"127.0.0.1:{}\"", support::gateway::free_port()));
    let second = Inside::run(other).await;
    let browser = rig.gateway.signed_in().await;
    let there = browser.fork().at(second.addr);
    rig.expire_token();
    second.catch_up(&rig.provider);
    assert!(rig.is_live(&browser.fetch("/api/x").await));
    assert!(rig.is_live(&there.fetch("/api/x").await), "with the cookie of before");
    assert_eq!(rig.spent(), (1, 0));
    assert_eq!(browser.post("/auth/logout").await.status, 200);
    assert_eq!(there.fetch("/api/x").await.status, 401, "at once");
}

/// COOKIE-29, COOKIE-25: use keeps it alive, and is written down at most once per tenth of the time.
#[tokio::test]
async fn use_keeps_a_session_in_redis_alive() {
    let redis = Redis::start().await;
    let keep = kept_in(&redis);
    let rig = Rig::strict(|table| {
        keep(table);
        set(table, "session.idle_timeout", "\"10m\"");
    })
    .await;
    let browser = rig.gateway.signed_in().await;
    let mut written = 0;
    for _ in 0..24 {
        rig.gateway.advance(&rig.provider, 50);
        let answer = browser.fetch("/api/x").await;
        assert_eq!(answer.status, 200);
        written += usize::from(sets(&answer, SESSION));
    }
    assert!((5..=20).contains(&written), "{written}");
    rig.gateway.advance(&rig.provider, 601);
    assert_eq!(browser.fetch("/api/x").await.status, 401);
}

/// ASVS-7.2.4: a new login ends the session that the browser had.
#[tokio::test]
async fn a_new_login_removes_the_old_session_from_redis() {
    let redis = Redis::start().await;
    let rig = Rig::strict(kept_in(&redis)).await;
    let browser = rig.gateway.signed_in().await;
    let old = browser.fork();
    browser.login("/").await;
    let kept = redis.keys().await.into_iter().filter(|key| key.starts_with("sidegate:t")).count();
    assert_eq!(kept, 1);
    assert_eq!(old.fetch("/api/x").await.status, 401);
    assert!(rig.is_live(&browser.fetch("/api/x").await));
}

// -- From one form to another --------------------------------------------------------------------------------------

/// No session is lost when the layout changes, in either direction; it takes the new form at the next write.
#[tokio::test]
async fn a_session_goes_from_one_layout_to_the_other() {
    let rig = Rig::strict(single).await;
    let mut other = rig.gateway.config.clone();
    split(&mut other);
    set(&mut other, "server.listen", &format!("\"127.0.0.1:{}\"", support::gateway::free_port()));
    let in_two = Inside::run(other).await;
    let both = || {
        rig.gateway.advance(&rig.provider, HOUR);
        in_two.catch_up(&rig.provider);
        rig.gateway.catch_up(&rig.provider);
    };
    let browser = rig.gateway.signed_in().await;
    let after = browser.at(in_two.addr);
    assert!(rig.is_live(&after.fetch("/api/x").await));
    assert_eq!(ours(&after), [SESSION]);
    both();
    assert!(rig.is_live(&after.fetch("/api/x").await));
    assert_eq!(ours(&after), [SESSION, REFRESH]);
    let back = after.at(rig.gateway.addr);
    assert!(rig.is_live(&back.fetch("/api/x").await));
    both();
    assert!(rig.is_live(&back.fetch("/api/x").await));
    assert_eq!(ours(&back), [SESSION], "what is not needed any more is removed");
    both();
    assert!(rig.is_live(&back.fetch("/api/x").await));
    assert_eq!(rig.spent(), (3, 0));
}

/// The real program, with tokens that live for seconds.
#[tokio::test]
async fn the_program_itself_in_two_cookies() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    provider.set(|s| (s.rotation, s.access_lifetime) = (Rotation::Family, 2));
    let gateway = Gateway::start_with(&provider, &upstream, split).await;
    let browser = gateway.signed_in().await;
    let ways = Cell::new(0);
    until("two tokens have ended", async || {
        for answer in &browser.fetch_many("/api/x", 4).await {
            assert_eq!(answer.status, 200, "{answer:?}\n{}", gateway.output());
            ways.set(ways.get() + usize::from(answer.via.len() == 2));
        }
        ways.get() > 0 && provider.refreshes() > 1
    })
    .await;
    assert_eq!(provider.reuse_alarms(), 0);
}

/// A session in a cookie goes on when the store is changed, and moves at its next refresh.
#[tokio::test]
async fn a_session_moves_from_the_cookie_into_redis() {
    let redis = Redis::start().await;
    let rig = Rig::strict(single).await;
    let mut other = rig.gateway.config.clone();
    kept_in(&redis)(&mut other);
    set(&mut other, "server.listen", &format!("\"127.0.0.1:{}\"", support::gateway::free_port()));
    let second = Inside::run(other).await;
    let browser = rig.gateway.signed_in().await;
    let large = browser.cookie(SESSION).unwrap().len();
    let after = browser.at(second.addr);
    assert!(rig.is_live(&after.fetch("/api/x").await));
    rig.expire_token();
    second.catch_up(&rig.provider);
    assert!(rig.is_live(&after.fetch("/api/x").await));
    assert!(after.cookie(SESSION).unwrap().len() < large);
    assert!(rig.is_live(&after.fetch("/api/x").await));
    assert_eq!(rig.spent(), (1, 0));
}
