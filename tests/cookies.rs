//! The sealed cookies, from outside: their attributes, what becomes of large ones, of broken ones, of others' ones.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use serde_json::Value;
use support::client::{Ask, Browser, Response};
use support::gateway::{Gateway, free_port, set};
use support::inside::Inside;
use support::leak::Canaries;
use support::provider::{AccessToken, ProviderDouble, Rotation};
use support::text::{b64u, random, unb64u};
use support::upstream::{Script, Upstream};
use support::wire::Answer;

const NAME: &str = "sidegate";
const HOUR: u64 = 3600;
/// With `__Host-Http-`, as over https.
const SECURE: &str = "__Host-Http-sidegate";

async fn rig(change: impl FnOnce(&mut toml::Table)) -> (ProviderDouble, Upstream, Inside) {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    provider.set(|s| s.rotation = Rotation::Family);
    let gateway = Inside::start_with(&provider, &upstream, change).await;
    (provider, upstream, gateway)
}

/// The names of our live cookies in the jar, in order.
fn ours(browser: &Browser) -> Vec<String> {
    let jar = browser.jar();
    let mut names: Vec<String> =
        jar.names().into_iter().filter(|name| name.contains(NAME)).map(ToOwned::to_owned).collect();
    names.sort();
    names
}

/// A script's request with exactly this `Cookie` header; the browser learns nothing.
async fn with_cookies(browser: &Browser, cookies: &str) -> Response {
    browser.launch(&Ask::fetch("/api/x").cookie(cookies)).await.answer().await
}

fn token(answer: &Response) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["token"].as_str().unwrap_or_default().to_owned()
}

/// The names that an answer expires.
fn expired(answer: &Response) -> Vec<String> {
    let mut names: Vec<String> =
        answer.set_cookies().into_iter().filter(|cookie| cookie.value.is_empty()).map(|cookie| cookie.name).collect();
    names.sort();
    names
}

// -- Attributes ----------------------------------------------------------------------------------------------------

/// BFF-12 to BFF-17, COOKIE-01, COOKIE-06, COOKIE-12, ASVS-3.3.1, ASVS-3.3.2, ASVS-3.3.3, ASVS-3.3.4: over https, from
/// the login to the logout.
#[tokio::test]
async fn the_attributes_over_https() {
    let (provider, _upstream, gateway) =
        rig(|table| set(table, "server.public_url", "\"https://app.example.test\"")).await;
    let browser = gateway.signed_in().await;
    gateway.advance(&provider, HOUR);
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    assert_eq!(browser.post("/auth/logout").await.status, 200);
    let history = browser.history();
    let all: Vec<_> = history.iter().flat_map(Response::set_cookies).filter(|c| c.name.contains(NAME)).collect();
    assert!(all.len() >= 4, "{all:?}");
    for cookie in &all {
        assert!(cookie.name.starts_with(SECURE), "{}", cookie.name);
        assert!(cookie.secure && cookie.http_only && cookie.host_only && cookie.has_path, "{}", cookie.line);
        assert_eq!(cookie.path, "/", "{}", cookie.line);
        assert!(cookie.name.len() + cookie.value.len() <= 4096);
        let login = cookie.name.starts_with("__Host-Http-sidegate-login-");
        let same_site = if login { support::client::SameSite::Lax } else { support::client::SameSite::Strict };
        assert_eq!(cookie.same_site, same_site, "{}", cookie.line);
        if login && !cookie.value.is_empty() {
            assert_eq!(cookie.max_age, Some(600));
        } else if !cookie.value.is_empty() {
            assert!(cookie.max_age.is_some_and(|life| life > 0 && life <= 12 * 3600), "{}", cookie.line);
        }
    }
    assert!(browser.jar().refused.is_empty(), "{:?}", browser.jar().refused);
    assert_eq!(ours(&browser), [""; 0], "nothing of ours is left");
}

/// COOKIE-01: names are compared exactly.
#[tokio::test]
async fn other_spellings_of_the_name_are_other_cookies() {
    let (_provider, upstream, gateway) =
        rig(|table| set(table, "server.public_url", "\"https://app.example.test\"")).await;
    let browser = gateway.signed_in().await;
    let value = browser.cookie(SECURE).unwrap();
    assert_eq!(with_cookies(&browser, &format!("{SECURE}={value}")).await.status, 200);
    upstream.forget();
    for name in [
        "__host-http-sidegate",
        "__HOST-HTTP-SIDEGATE",
        "__Host-Http-Sidegate",
        "__Host-Http-sidegate%20",
        "__Host-Http-sidegate.",
        "__Host-sidegate",
        "__Secure-sidegate",
        "sidegate",
        "\u{a0}__Host-Http-sidegate",
        "=__Host-Http-sidegate",
        "a  __Host-Http-sidegate",
    ] {
        let answer = with_cookies(&browser, &format!("{name}={value}")).await;
        assert_eq!(answer.status, 401, "{name}");
    }
    assert!(upstream.untouched());
}

/// BFF-18, COOKIE-27, ASVS-11.3.2: nothing of what is sealed can be read, in session and attempt cookies.
#[tokio::test]
async fn nothing_in_a_cookie_can_be_read() {
    let (provider, _upstream, gateway) = rig(|_| {}).await;
    let browser = gateway.browser();
    browser.start_login("/page-to-return-to").await;
    let attempt = browser.jar().cookies.iter().find(|c| c.name.starts_with("sidegate-login-")).cloned().unwrap();
    browser.login("/").await;
    let mut canaries: Canaries = provider.canaries();
    canaries.add("user", "alice-4711");
    canaries.add("e-mail", "alice@users.example");
    canaries.add("return to", "/page-to-return-to");
    for value in [attempt.value, browser.cookie(NAME).unwrap()] {
        canaries.assert_absent("the cookie", &value);
        canaries.assert_absent("the cookie's bytes", unb64u(&value).unwrap());
    }
}

// -- Large sessions ------------------------------------------------------------------------------------------------

/// COOKIE-08, COOKIE-10, COOKIE-12, ASVS-3.3.5: a large session in several cookies; what is left of it when it shrinks
/// is removed.
#[tokio::test]
async fn a_large_session_travels_in_parts() {
    let (provider, _upstream, gateway) = rig(|_| {}).await;
    provider.set(|s| s.access_token = AccessToken::Sized(5000));
    let browser = gateway.signed_in().await;
    assert_eq!(ours(&browser), ["sidegate", "sidegate-1"]);
    for cookie in &browser.jar().cookies {
        assert!(cookie.name.len() + cookie.value.len() <= 4096, "{}", cookie.name);
    }
    assert_eq!(token(&browser.fetch("/api/x").await).len(), 5000);

    provider.set(|s| s.access_token = AccessToken::Sized(500));
    gateway.advance(&provider, HOUR);
    let answer = browser.fetch("/api/x").await;
    assert_eq!(token(&answer).len(), 500);
    assert_eq!(expired(&answer), ["sidegate-1"]);
    assert_eq!(ours(&browser), ["sidegate"]);

    provider.set(|s| s.access_token = AccessToken::Sized(5000));
    gateway.advance(&provider, HOUR);
    browser.fetch("/api/x").await;
    assert_eq!(ours(&browser), ["sidegate", "sidegate-1"]);
    assert_eq!(browser.post("/auth/logout").await.status, 200);
    assert_eq!(ours(&browser), [""; 0]);
}

/// COOKIE-08: sizes around the boundaries.
#[tokio::test]
async fn every_size_within_the_budget_works() {
    let (provider, _upstream, gateway) = rig(|table| set(table, "session.max_age", "\"72h\"")).await;
    let browser = gateway.signed_in().await;
    for size in (3300..3500).step_by(20).chain([4000, 4800, 5000]) {
        provider.set(|s| s.access_token = AccessToken::Sized(size));
        gateway.advance(&provider, HOUR);
        assert_eq!(token(&browser.fetch("/api/x").await).len(), size);
        assert!(browser.jar().refused.is_empty());
        assert_eq!(token(&browser.fetch("/api/x").await).len(), size, "what was set opens");
    }
}

/// COOKIE-09: parts that do not belong together do not open, and are cleaned up.
#[tokio::test]
async fn parts_are_never_mixed() {
    let (provider, upstream, gateway) = rig(|_| {}).await;
    provider.set(|s| s.access_token = AccessToken::Sized(5000));
    let browser = gateway.signed_in().await;
    let older = browser.fork();
    gateway.advance(&provider, HOUR);
    let newest = token(&browser.fetch("/api/x").await);
    assert_eq!(token(&browser.fetch("/api/x").await), newest);
    let part = |browser: &Browser, index: usize| {
        let name = ["sidegate", "sidegate-1"][index];
        format!("{name}={}", browser.cookie(name).unwrap())
    };
    let (old, new) = ([part(&older, 0), part(&older, 1)], [part(&browser, 0), part(&browser, 1)]);
    // Whole groups side by side, in any order: the newest counts.
    for cookies in [
        [&old[0], &old[1], &new[0], &new[1]],
        [&new[0], &new[1], &old[0], &old[1]],
        [&new[1], &old[0], &new[0], &old[1]],
    ] {
        assert_eq!(token(&with_cookies(&browser, &cookies.map(String::as_str).join("; ")).await), newest);
    }
    upstream.forget();
    let swapped = format!(
        "sidegate={}; sidegate-1={}",
        browser.cookie("sidegate-1").unwrap(),
        browser.cookie("sidegate").unwrap()
    );
    for cookies in
        [format!("{}; {}", old[0], new[1]), format!("{}; {}", new[0], old[1]), swapped, new[0].clone(), new[1].clone()]
    {
        let answer = with_cookies(&browser, &cookies).await;
        assert_eq!((answer.status, answer.code().as_str()), (401, "login_required"));
        let presented: Vec<&str> = cookies.split("; ").filter_map(|pair| pair.split('=').next()).collect();
        assert_eq!(expired(&answer), presented, "cleaned up");
    }
    assert!(upstream.untouched());
    let extra = format!("{}; sidegate-2=x; sidegate-7={}", new.join("; "), "y".repeat(40));
    assert_eq!(token(&with_cookies(&browser, &extra).await), newest, "what does not belong to it does not hide it");
}

/// COOKIE-11: counts and indices of a client are bounded before anything is made of them.
#[tokio::test]
async fn absurd_parts_are_harmless() {
    let (_provider, upstream, gateway) = rig(|_| {}).await;
    let browser = gateway.signed_in().await;
    let good = browser.cookie(NAME).unwrap();
    upstream.forget();
    let many: Vec<String> = (1..1000).map(|n| format!("sidegate-{n}=99AAAAAA")).collect();
    for cookies in [
        "sidegate-1000000000=x; sidegate-99999999999999999999=x".to_owned(),
        "sidegate=99AAAAAAx; sidegate-8=89AAAAAAx".to_owned(),
        many.join("; "),
        "sidegate=; sidegate-1=".to_owned(),
    ] {
        let answer = with_cookies(&browser, &cookies).await;
        assert!(matches!(answer.status, 401 | 431), "{answer:?}");
    }
    assert!(upstream.untouched());
    let first = format!("{NAME}={good}; sidegate-1000000000=x; sidegate-1=11AAAAAAx");
    assert_eq!(with_cookies(&browser, &first).await.status, 200);
}

/// MET-03: the cookies of the login are weighed, not only those of later answers.
#[tokio::test]
async fn the_cookies_of_a_login_are_weighed() {
    let (_provider, _upstream, gateway) = rig(|_| {}).await;
    assert_eq!(gateway.metric("sidegate_cookie_bytes_count", &[]), 0.0);
    let browser = gateway.signed_in().await;
    assert_eq!(gateway.metric("sidegate_cookie_bytes_count", &[]), 1.0);
    assert!(gateway.metric("sidegate_cookie_bytes_sum", &[]) >= browser.cookie(NAME).unwrap().len() as f64);
}

/// COOKIE-08, ASVS-3.3.5, ASVS-4.2.5: what does not fit is refused with a page and a log line that tell the sizes.
#[tokio::test]
async fn a_session_over_the_budget_is_refused_with_its_sizes() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start(&provider, &upstream).await;
    provider.set(|s| s.access_token = AccessToken::Sized(14_000));
    let browser = gateway.browser();
    let page = browser.login("/").await;
    assert_eq!(page.status, 500);
    assert!(page.text().contains("session_too_large"), "{}", page.text());
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    assert_eq!(browser.cookie(NAME), None);
    assert_eq!(browser.session().await["authenticated"], false);
    let events = gateway.wait_for_log("login_refused", 1).await;
    assert_eq!(events[0]["reason"], "session_too_large");
    let sizes = events[0].to_string();
    assert!(sizes.contains("7600") && sizes.chars().filter(char::is_ascii_digit).count() > 10, "{sizes}");
    assert_eq!(gateway.log_events("login").len(), 0);
}

/// The ID token is the first to go, and the logout still works.
#[tokio::test]
async fn the_budget_drops_the_id_token_first() {
    let (provider, _upstream, gateway) = rig(|_| {}).await;
    let filler: String = (0..300).map(|n| format!("{n:x}-")).collect::<String>() + &b64u(random(1500));
    provider.set(|s| {
        s.access_token = AccessToken::Sized(4500);
        s.id_claims = [("filler".to_owned(), Value::from(filler))].into_iter().collect();
    });
    let browser = gateway.signed_in().await;
    assert_eq!(token(&browser.fetch("/api/x").await).len(), 4500);
    let out = browser.post("/auth/logout").await;
    assert!(out.json()["location"].as_str().unwrap().starts_with(&provider.issuer));
    assert!(!out.text().contains("id_token_hint"));
}

// -- Several, broken and foreign cookies ---------------------------------------------------------------------------

/// COOKIE-03: of several cookies of one name the one that opens counts, wherever it stands.
#[tokio::test]
async fn a_planted_cookie_does_not_hide_ours() {
    let (provider, _upstream, gateway) = rig(|_| {}).await;
    let browser = gateway.signed_in().await;
    let good = format!("{NAME}={}", browser.cookie(NAME).unwrap());
    let mine = token(&browser.fetch("/api/x").await);
    let mut broken = browser.cookie(NAME).unwrap();
    broken.replace_range(100..101, if &broken[100..101] == "A" { "B" } else { "A" });
    let broken = format!("{NAME}={broken}");
    for planted in ["sidegate=x", "sidegate=", &broken, "sidegate=12AAAAAAxyz"] {
        for (first, second) in [(planted, good.as_str()), (good.as_str(), planted)] {
            let one_line = with_cookies(&browser, &format!("{first}; {second}")).await;
            assert_eq!(token(&one_line), mine, "{first:.20} {second:.20}");
            let ask = Ask::fetch("/api/x").header("Cookie", first).header("Cookie", second);
            assert_eq!(token(&browser.launch(&ask).await.answer().await), mine, "two lines");
        }
    }
    // An attacker's own session, validly sealed but older than the user's.
    let attacker = browser.fork();
    gateway.advance(&provider, 5);
    browser.login("/").await;
    let (theirs, mine) = (attacker.cookie(NAME).unwrap(), browser.cookie(NAME).unwrap());
    let (newer, _) = (token(&browser.fetch("/api/x").await), ());
    for (first, second) in [(&theirs, &mine), (&mine, &theirs)] {
        let answer = with_cookies(&browser, &format!("{NAME}={first}; {NAME}={second}")).await;
        assert_eq!(token(&answer), newer, "the newest");
    }
}

/// COOKIE-04: whatever stands beside it, the session is found, and the others' cookies go on as they came.
#[tokio::test]
async fn odd_cookies_beside_ours_are_passed_on_byte_for_byte() {
    let (_provider, upstream, gateway) = rig(|_| {}).await;
    let browser = gateway.signed_in().await;
    let good = format!("{NAME}={}", browser.cookie(NAME).unwrap());
    for (before, after, kept) in [
        ("a=b; ", "", "a=b"),
        ("", "; a=b", "a=b"),
        ("a=b; ", "; c=d", "a=b; c=d"),
        ("theme=\"da rk\"; ", "; $Version=1; =x; n; u=1,2", "theme=\"da rk\"; $Version=1; =x; n; u=1,2"),
        (
            "SIDEGATE=1; ",
            "; sidegatex=2; sidegate.=3; sidegate%20=4",
            "SIDEGATE=1; sidegatex=2; sidegate.=3; sidegate%20=4",
        ),
        ("a=b; sidegate-1=x; sidegate-verify=y; ", "; sidegate-login-abc=z; c=d", "a=b; c=d"),
        ("a=b; __Host-Http-sidegate=x; __Host-sidegate-1=x; ", "; __Secure-sidegate-refresh=y; c=d", "a=b; c=d"),
        ("a=\u{e9}\u{ff}; ", "", "a=\u{e9}\u{ff}"),
    ] {
        let answer = with_cookies(&browser, &format!("{before}{good}{after}")).await;
        assert_eq!(answer.status, 200);
        assert_eq!(upstream.last().header_all("cookie"), [kept]);
    }
    assert_eq!(with_cookies(&browser, &good).await.status, 200);
    assert_eq!(upstream.last().header_all("cookie"), [""; 0]);
    let pairs: Vec<String> = (0..500).map(|n| format!("c{n}=v{n}")).collect();
    let answer = with_cookies(&browser, &format!("{}; {good}", pairs.join("; "))).await;
    assert_eq!(answer.status, 200);
    assert_eq!(upstream.last().header("cookie"), Some(pairs.join("; ").as_str()));
    // Several lines become one (RFC 9113 section 8.2.3 asks for it).
    let ask = Ask::fetch("/api/x").header("Cookie", "a=b").header("Cookie", &good).header("Cookie", "c=d");
    assert_eq!(browser.launch(&ask).await.answer().await.status, 200);
    assert_eq!(upstream.last().header_all("cookie"), ["a=b; c=d"]);
    // On public routes too.
    let ask = Ask::fetch("/open").cookie(&format!("a=b; {good}"));
    browser.launch(&ask).await.answer().await;
    assert_eq!(upstream.last().header_all("cookie"), ["a=b"]);
    let raw = String::from_utf8_lossy(&upstream.bytes()).into_owned();
    assert!(!raw.contains(good.trim_start_matches("sidegate=")), "in no byte of any request");
}

/// BFF-18, BFF-38, COOKIE-19, COOKIE-21, COOKIE-26, ASVS-11.2.5: however a cookie is broken, it is no session, and the
/// answer does not tell what was wrong.
#[tokio::test]
async fn a_broken_cookie_is_no_session_and_all_ways_look_alike() {
    let (_provider, upstream, gateway) = rig(|_| {}).await;
    let browser = gateway.browser();
    browser.start_login("/").await;
    let attempt = browser.jar().cookies.iter().find(|c| c.name.starts_with("sidegate-login-")).cloned().unwrap();
    browser.login("/").await;
    let good = browser.cookie(NAME).unwrap();
    let blob = unb64u(&good).unwrap();
    upstream.forget();
    let mut broken: Vec<(String, String)> = vec![
        ("truncated".to_owned(), good[..good.len() - 4].to_owned()),
        ("half".to_owned(), good[..good.len() / 2].to_owned()),
        ("longer".to_owned(), format!("{good}AAAA")),
        ("an attempt's".to_owned(), attempt.value),
        ("text".to_owned(), "hello".to_owned()),
        ("json".to_owned(), b64u(r#"{"sub":"alice"}"#)),
        ("twice".to_owned(), format!("{good}{good}")),
    ];
    // The key id stands in bytes 2 and 3: another one means another key, see below.
    for at in [0, 1, 4, 10, 16, 20, 28, 40, blob.len() / 2, blob.len() - 17, blob.len() - 16, blob.len() - 1] {
        for bit in [0, 7] {
            let mut bytes = blob.clone();
            bytes[at] ^= 1 << bit;
            broken.push((format!("bit {bit} of byte {at}"), b64u(bytes)));
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    for (what, value) in broken {
        let answer = with_cookies(&browser, &format!("{NAME}={value}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (401, "login_required"), "{what}");
        assert_eq!(expired(&answer), [NAME], "{what}");
        let headers: Vec<String> = answer
            .headers
            .iter()
            .filter(|(name, _)| !matches!(name.to_ascii_lowercase().as_str(), "date" | "x-request-id"))
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        let mut body = answer.json();
        body["request_id"] = Value::Null;
        seen.insert((headers, body.to_string()));
    }
    assert_eq!(seen.len(), 1, "{seen:#?}");
    assert!(upstream.untouched());
    assert_eq!(with_cookies(&browser, &format!("{NAME}={good}")).await.status, 200);
}

/// COOKIE-19: a session is no login attempt.
#[tokio::test]
async fn a_session_cookie_is_no_attempt() {
    let (provider, _upstream, gateway) = rig(|_| {}).await;
    let browser = gateway.signed_in().await;
    let started = browser.start_login("/").await;
    let attempt = browser.jar().cookies.iter().find(|c| c.name.starts_with("sidegate-login-")).cloned().unwrap();
    let callback = browser.send(Ask::navigate(started.location().unwrap()).stay()).await;
    let exchanges = provider.code_exchanges();
    let cookies = format!("{}={}", attempt.name, browser.cookie(NAME).unwrap());
    let answer = browser.launch(&Ask::navigate(callback.location().unwrap()).cookie(&cookies)).await.answer().await;
    assert!(answer.set_cookie(NAME).is_none_or(|cookie| cookie.value.is_empty()), "{answer:?}");
    assert_eq!(provider.code_exchanges(), exchanges);
}

// -- Keys, and other applications ----------------------------------------------------------------------------------

fn keys(table: &mut toml::Table, keys: &[&str]) {
    set(table, "session.keys", &format!("{keys:?}"));
}

/// Another instance of the application, on a port of its own, with changes to its configuration.
async fn sibling(gateway: &Inside, change: impl FnOnce(&mut toml::Table)) -> Inside {
    let mut table = gateway.config.clone();
    set(&mut table, "server.listen", &format!("\"127.0.0.1:{}\"", free_port()));
    change(&mut table);
    Inside::run(table).await
}

/// COOKIE-20, K8S-12, ASVS-11.2.2, ASVS-13.3.4: A, then B and A, then B: the sessions of the first step live through
/// the second, and are sealed anew at their next write.
#[tokio::test]
async fn keys_rotate_without_a_logout() {
    let (a, b) = (b64u(random(32)), b64u(random(32)));
    let (provider, upstream, first) = rig(|table| keys(table, &[&a])).await;
    let second = sibling(&first, |table| keys(table, &[&b, &a])).await;
    let third = sibling(&first, |table| keys(table, &[&b])).await;
    let browser = first.signed_in().await;
    let old = browser.fork();

    assert_eq!(browser.at(second.addr).fetch("/api/x").await.status, 200);
    second.advance(&provider, HOUR);
    let answer = browser.at(second.addr).fetch("/api/x").await;
    assert_eq!(answer.status, 200);
    assert!(answer.set_cookie(NAME).is_some(), "sealed anew");
    assert_eq!(browser.at(third.addr).fetch("/api/x").await.status, 200, "by the new key");

    // An unknown key: another replica may have it, so the cookie is left alone.
    upstream.forget();
    let before = old.cookie(NAME);
    for path in ["/api/x", "/auth/session", "/opt/x"] {
        let answer = old.at(third.addr).fetch(path).await;
        assert!(answer.set_cookies().is_empty(), "{answer:?}");
        assert!(answer.status == 401 || path != "/api/x");
    }
    assert_eq!(old.cookie(NAME), before);
    assert_eq!(old.at(third.addr).session().await["authenticated"], false);
    let page = old.at(third.addr).send(Ask::navigate("/api/x").stay()).await;
    assert_eq!(page.status, 302);
    assert!(page.set_cookies().is_empty());
}

/// COOKIE-23, BFF-35, ASVS-6.8.1: with the same key, but of another application, environment or provider's client.
#[tokio::test]
async fn a_cookie_cannot_be_moved_to_another_application() {
    let (provider, upstream, gateway) = rig(|_| {}).await;
    let browser = gateway.signed_in().await;
    let value = browser.cookie(NAME).unwrap();
    let same = sibling(&gateway, |_| {}).await;
    let move_to = |name: &str| Ask::fetch("/api/x").cookie(&format!("{name}={value}"));
    assert_eq!(browser.at(same.addr).launch(&move_to(NAME)).await.answer().await.status, 200, "a replica");

    let other_issuer = ProviderDouble::start().await;
    upstream.forget();
    let client = sibling(&gateway, |table| set(table, "provider.client_id", "\"another-client\"")).await;
    let name = sibling(&gateway, |table| set(table, "session.cookie_name", "\"other\"")).await;
    let origin = sibling(&gateway, |table| set(table, "server.public_url", "\"http://localhost:1\"")).await;
    let issuer = sibling(&gateway, |table| set(table, "provider.issuer", &format!("{:?}", other_issuer.issuer))).await;
    for (which, cookie, public) in [
        (&client, "sidegate", &gateway.public_url),
        (&name, "other", &gateway.public_url),
        (&name, "sidegate", &gateway.public_url),
        (&origin, "sidegate", &origin.public_url),
        (&issuer, "sidegate", &gateway.public_url),
    ] {
        let elsewhere = Browser::behind(public, which.addr);
        let answer = elsewhere.launch(&move_to(cookie)).await.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (401, "login_required"), "{cookie} at {public}");
    }
    assert!(upstream.untouched());
    assert!(provider.violations().is_empty());
}

// -- The upstream's cookies ----------------------------------------------------------------------------------------

/// COOKIE-14, COOKIE-15: an upstream cannot set a cookie under our names; its others arrive as they are, in order.
#[tokio::test]
async fn the_upstreams_cookies_pass_except_under_our_names() {
    let (provider, upstream, gateway) = rig(|_| {}).await;
    let browser = gateway.signed_in().await;
    let lines = [
        "a=1; Path=/; HttpOnly",
        "sidegate=planted; Path=/",
        "b=2; Expires=Wed, 21 Oct 2037 07:28:00 GMT",
        " sidegate =planted",
        "=sidegate=planted",
        "sidegate-1=planted",
        "sidegate-login-abc=planted",
        "sidegate-verify=planted",
        "SIDEGATE=another cookie",
        "sidegatex=3",
        "a=4; Path=/other",
    ];
    let answer = lines.iter().fold(Answer::empty(200), |answer, line| answer.with("Set-Cookie", line));
    upstream.otherwise(Script::Answer(answer));
    let kept = [
        "a=1; Path=/; HttpOnly",
        "b=2; Expires=Wed, 21 Oct 2037 07:28:00 GMT",
        "SIDEGATE=another cookie",
        "sidegatex=3",
        "a=4; Path=/other",
    ];
    for path in ["/api/x", "/opt/x", "/open"] {
        let got = browser.launch(&Ask::fetch(path)).await.answer().await;
        assert_eq!(got.header_all("set-cookie"), kept, "{path}");
    }
    gateway.advance(&provider, HOUR);
    let got = browser.launch(&Ask::fetch("/api/x")).await.answer().await;
    let (theirs, ours): (Vec<&str>, Vec<&str>) =
        got.header_all("set-cookie").into_iter().partition(|line| !line.starts_with("sidegate="));
    assert_eq!(theirs, kept);
    assert_eq!(ours.len(), 1);
    assert!(!ours[0].contains("planted"));
}
