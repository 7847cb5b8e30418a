//! `GET /auth/session` and `POST /auth/refresh`: who is signed in, until when, and nothing more.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use serde_json::{Value, json};
use support::client::{Ask, Browser, Initiator, Kind, Response};
use support::gateway::set;
use support::inside::Rig;
use support::provider::{Endpoint, Grants, Moment, Outage, Rotation};

impl Rig {
    fn advance(&self, seconds: u64) {
        self.gateway.advance(&self.provider, seconds);
    }
}

/// Who is nobody.
fn nobody() -> Value {
    json!({"authenticated": false})
}

#[track_caller]
fn is_json(answer: &Response) {
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert!(answer.header("content-security-policy").is_some_and(|csp| csp.contains("frame-ancestors 'none'")));
    assert!(answer.location().is_none());
}

#[track_caller]
fn cleared(browser: &Browser) {
    assert!(browser.jar().names().iter().all(|name| !name.contains("sidegate")), "{:?}", browser.jar().names());
}

/// BFF-04, ASVS-3.5.7, ASVS-14.3.2: for nobody it says so, to scripts and to people, and sets nothing.
#[tokio::test]
async fn nobody_is_signed_in() {
    let rig = Rig::start().await;
    let browser = rig.gateway.browser();
    for answer in [browser.fetch("/auth/session").await, browser.navigate("/auth/session").await] {
        assert_eq!((answer.status, answer.json()), (200, nobody()));
        is_json(&answer);
        assert!(answer.set_cookies().is_empty());
    }
    let head = browser.send(Ask::fetch("/auth/session").method("HEAD")).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert!(rig.upstream.untouched());
}

/// BFF-04, ASVS-14.2.3: exactly what contract section 3 lists, times in epoch seconds.
#[tokio::test]
async fn somebody_is_signed_in() {
    let rig = Rig::with(|config| {
        set(config, "session.max_age", r#""1h""#);
        set(config, "session.idle_timeout", r#""10m""#);
        set(config, "provider.userinfo", "true");
    })
    .await;
    rig.provider.set(|s| s.access_lifetime = 900);
    let browser = rig.gateway.signed_in().await;
    let answer = browser.fetch("/auth/session").await;
    is_json(&answer);
    assert!(answer.set_cookies().is_empty(), "a look changes nothing");
    let told = answer.json();
    let now = told["now"].as_i64().expect("a number");
    assert!((now - rig.provider.now()).abs() < 60);
    let expected = json!({
        "authenticated": true,
        "claims": {
            "sub": "alice-4711", "name": "Alice Example", "preferred_username": "alice",
            "email": "alice@users.example", "picture": "https://img.example/alice.png",
        },
        "expires_at": now + 3600, "access_token_expires_at": now + 900, "idle_expires_at": now + 600, "now": now,
    });
    assert_eq!(told, expected);

    let plain = Rig::start().await.gateway.signed_in().await.session().await;
    let now = plain["now"].as_i64().unwrap();
    assert_eq!((&plain["idle_expires_at"], &plain["expires_at"]), (&Value::Null, &json!(now + 12 * 3600)));
}

/// BFF-04, REG-24, REG-32, ASVS-1.2.1, ASVS-1.2.3, ASVS-14.2.6, ASVS-15.3.1: the claims that the configuration lists,
/// unchanged, as data.
#[tokio::test]
async fn only_listed_claims_are_shown_and_unchanged() {
    let rig =
        Rig::with(|config| set(config, "claims.expose", r#"["sub", "roles", "name", "email", "deep", "absent"]"#))
            .await;
    for (name, email) in [
        ("</pre><script>alert(1)</script>\"\u{2028}\u{2029}\\\u{0}", "a@b@c<img>"),
        ("Zo\u{eb} \u{1f980} \u{5f20}\u{4f1f} \u{202e}", "A@ALLOWED.EXAMPLE\u{200b}"),
        ("", "a@allowed.example."),
    ] {
        let deep = json!({"a": [1, 2.5, null, {"b": true}]});
        rig.provider.set(|s| {
            (s.name, s.email) = (name.to_owned(), email.to_owned());
            s.id_claims = json!({"roles": ["a", "b"], "deep": deep, "secret_claim": "canary-claim-0815"})
                .as_object()
                .unwrap()
                .clone();
        });
        let browser = rig.gateway.signed_in().await;
        let answer = browser.fetch("/auth/session").await;
        is_json(&answer);
        let expected = json!({"sub": "alice-4711", "roles": ["a", "b"], "name": name, "email": email, "deep": deep});
        assert_eq!(answer.json()["claims"], expected);
        let own = browser.history().into_iter().filter(|a| a.url.starts_with(&rig.gateway.public_url));
        assert!(own.into_iter().all(|a| !String::from_utf8_lossy(&a.everything()).contains("canary-claim")));
    }
}

/// Contract 2.10, 2.11: claims that the session keeps in places of their own are found by their names too: shown, sent to
/// the upstream, and asked for.
#[tokio::test]
async fn claims_of_the_login_itself_can_be_named() {
    let rig = Rig::with(|config| {
        set(config, "claims.expose", r#"["sub", "sid", "acr", "auth_time", "iss"]"#);
        let mut gold = config["route"][0].as_table().unwrap().clone();
        gold.insert("path".to_owned(), "/gold/".into());
        set(&mut gold, "require", "{ acr = ['gold'] }");
        set(&mut gold, "identity_headers", "{ X-Acr = 'acr', X-Sid = 'sid', X-Since = 'auth_time' }");
        config["route"].as_array_mut().unwrap().push(gold.into());
    })
    .await;
    let plain = rig.gateway.signed_in().await;
    assert_eq!(plain.fetch("/gold/x").await.status, 403);
    rig.provider.set(|s| s.acr = Some("gold".to_owned()));
    let browser = rig.gateway.signed_in().await;
    let login = rig.provider.last_session();
    let expected = json!({
        "sub": "alice-4711", "sid": login.sid, "acr": "gold", "auth_time": login.auth_time, "iss": rig.provider.issuer,
    });
    assert_eq!(browser.session().await["claims"], expected);
    assert_eq!(browser.fetch("/gold/x").await.status, 200);
    let sent = rig.upstream.last();
    assert_eq!((sent.header("x-acr"), sent.header("x-sid")), (Some("gold"), Some(login.sid.as_str())));
    assert_eq!(sent.header("x-since"), Some(login.auth_time.to_string().as_str()));
}

/// BFF-03, ASVS-10.1.1, ASVS-14.2.1: no token, code, verifier, nonce or secret in anything that the browser gets.
#[tokio::test]
async fn no_answer_holds_a_token() {
    let rig = Rig::start().await;
    rig.provider.set(|s| s.rotation = Rotation::Token);
    let browser = rig.gateway.signed_in().await;
    rig.upstream.otherwise(support::upstream::Script::text(200, "ok"));
    browser.fetch("/api/x").await;
    browser.fetch("/auth/session").await;
    browser.post("/auth/refresh").await;
    rig.advance(3600);
    browser.fetch("/api/x").await;
    rig.provider.go_down().await;
    rig.advance(3600);
    assert_eq!(browser.fetch("/api/x").await.status, 503);
    rig.provider.come_back().await;
    rig.provider.kill_all_sessions();
    rig.advance(60);
    browser.fetch("/api/x").await;
    browser.navigate("/api/x").await;
    let secrets = rig.provider.canaries().without(&["state", "nonce", "code_challenge", "code"]);
    assert!(secrets.len() >= 8);
    let own = |answer: &&Response| answer.url.starts_with(&rig.gateway.public_url);
    let history = browser.history();
    assert!(history.iter().filter(own).count() >= 8);
    for answer in history.iter().filter(own).filter(|answer| answer.path() != "/") {
        secrets.assert_absent(&answer.url, [answer.url.as_bytes(), &answer.everything()].concat());
    }
}

/// ASVS-3.5.6, COOKIE-*, ASVS-2.2.2: what the query says has no effect, and a cookie that does not open is nobody's.
#[tokio::test]
async fn queries_and_garbage_have_no_effect() {
    let rig = Rig::start().await;
    let browser = rig.gateway.signed_in().await;
    for query in ["?callback=x", "?jsonp=x", "?format=js", "?x[]=1&x=2", "?return_to=//evil.example"] {
        let answer = browser.fetch(&format!("/auth/session{query}")).await;
        is_json(&answer);
        assert_eq!(answer.json()["authenticated"], true, "{query}");
    }
    for value in ["x", "", "AAAA", &"A".repeat(3000)] {
        let answer = browser.send(Ask::fetch("/auth/session").cookie(&format!("sidegate={value}"))).await;
        assert_eq!((answer.status, answer.json()), (200, nobody()), "{value}");
    }
}

/// BFF-19, BFF-21, BFF-22, BFF-23, ASVS-3.2.1: another site learns nothing, even with the cookie sent along.
#[tokio::test]
async fn another_site_learns_nothing() {
    let rig = Rig::start().await;
    let browser = rig.gateway.signed_in().await;
    let cookie = format!("sidegate={}", browser.cookie("sidegate").unwrap());
    for from in [Initiator::CrossSite, Initiator::SameSite] {
        for (method, path) in [("GET", "/auth/session"), ("POST", "/auth/refresh")] {
            for kind in [Kind::Fetch, Kind::Image, Kind::Frame] {
                for cookie in [cookie.as_str(), ""] {
                    let mut ask = Ask::fetch(path).method(method).from(from.clone()).cookie(cookie).stay();
                    ask.kind = kind;
                    let answer = browser.send(ask).await;
                    assert_eq!(answer.status, 403, "{from:?} {method} {path} {kind:?}: {}", answer.text());
                    assert!(answer.header("access-control-allow-origin").is_none());
                    assert!(!answer.text().contains("alice"));
                }
            }
        }
    }
    assert_eq!(rig.provider.refreshes(), 0);
    assert!(rig.gateway.metric("sidegate_csrf_refused_total", &[]) >= 24.0);
}

/// ASVS-4.1.4, ASVS-3.5.3, ASVS-6.3.4: other methods and paths below the prefix.
#[tokio::test]
async fn other_methods_and_paths_are_refused() {
    let rig = Rig::start().await;
    let browser = rig.gateway.signed_in().await;
    for (path, methods, allow) in [
        ("/auth/session", &["POST", "PUT", "DELETE", "PATCH"][..], "GET, HEAD"),
        ("/auth/refresh", &["GET", "HEAD", "PUT", "DELETE"][..], "POST"),
    ] {
        for method in methods {
            let answer = browser.send(Ask::fetch(path).method(method)).await;
            assert_eq!((answer.status, answer.header("allow")), (405, Some(allow)), "{method} {path}");
        }
    }
    for path in ["/auth", "/auth/", "/auth/Session", "/auth/session/", "/auth/sessions", "/auth/session/x", "/auth/x"] {
        let answer = browser.fetch(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (404, "no_route"), "{path}");
    }
    assert!(rig.upstream.requests().iter().all(|r| !r.path().starts_with("/auth")), "never forwarded");
}

/// Contract 3: an expired access token with a live refresh token counts as signed in; a look refreshes nothing.
#[tokio::test]
async fn an_expired_access_token_is_still_a_session() {
    let rig = Rig::start().await;
    let browser = rig.gateway.signed_in().await;
    rig.advance(4000);
    let told = browser.session().await;
    assert_eq!(told["authenticated"], true);
    assert!(told["access_token_expires_at"].as_i64().unwrap() < told["now"].as_i64().unwrap());
    assert_eq!(rig.provider.refreshes(), 0);
}

/// BFF-39, ASVS-7.3.1: looking does not keep a session alive, using it does.
#[tokio::test]
async fn looking_does_not_extend_the_idle_timeout() {
    let rig = Rig::with(|config| set(config, "session.idle_timeout", r#""10m""#)).await;
    let (idle, busy) = (rig.gateway.signed_in().await, rig.gateway.signed_in().await);
    let copy = idle.fork();
    for _ in 0..5 {
        assert_eq!(idle.session().await["authenticated"], true);
        rig.advance(121);
        assert_eq!(busy.fetch("/api/x").await.status, 200);
    }
    assert_eq!(idle.session().await, nobody());
    cleared(&idle);
    assert_eq!(idle.fetch("/api/x").await.status, 401);
    assert_eq!(copy.fetch("/api/x").await.status, 401, "the idle time is in the sealed data");
    let told = busy.session().await;
    assert_eq!(told["idle_expires_at"].as_i64().unwrap() - told["now"].as_i64().unwrap(), 600);
}

/// ASVS-7.3.2, BFF-11, COOKIE-25: the absolute age is never extended.
#[tokio::test]
async fn refreshes_do_not_extend_the_absolute_age() {
    let rig = Rig::with(|config| set(config, "session.max_age", r#""3h""#)).await;
    let browser = rig.gateway.signed_in().await;
    let copy = browser.fork();
    let end = browser.session().await["expires_at"].clone();
    for n in 1..=2 {
        rig.advance(3600);
        assert_eq!(browser.fetch("/api/x").await.status, 200);
        assert_eq!((rig.provider.refreshes(), &browser.session().await["expires_at"]), (n, &end));
        let cookie = browser.jar().get("sidegate").cloned().unwrap();
        assert!(cookie.max_age.is_some_and(|left| left <= 3 * 3600 - 3600 * i64::try_from(n).unwrap()));
    }
    rig.advance(3601);
    assert_eq!(copy.fetch("/api/x").await.status, 401);
    assert_eq!(browser.fetch("/api/x").await.status, 401);
    assert_eq!((browser.session().await, rig.provider.refreshes()), (nobody(), 2));
    cleared(&browser);
}

/// BFF-11, ASVS-7.6.1: the session ends with its refresh token, whichever of the two tokens lives longer; no doomed
/// call is made.
#[tokio::test]
async fn the_session_follows_the_refresh_tokens_life() {
    for access_lifetime in [300, 3600] {
        let rig = Rig::start().await;
        rig.provider.set(|s| (s.refresh_lifetime, s.access_lifetime) = (Some(1800), access_lifetime));
        let browser = rig.gateway.signed_in().await;
        let told = browser.session().await;
        assert_eq!(told["expires_at"].as_i64().unwrap() - told["now"].as_i64().unwrap(), 1800);
        assert!(browser.jar().get("sidegate").and_then(|cookie| cookie.max_age).unwrap() <= 1800);
        rig.advance(1801);
        assert_eq!(browser.fetch("/api/x").await.status, 401);
        assert_eq!(rig.provider.refreshes(), 0, "a refresh token known to be over was sent");
    }
}

/// `POST /auth/refresh`: new tokens now, and the session endpoint's answer.
#[tokio::test]
async fn a_script_refreshes_now() {
    let rig = Rig::start().await;
    rig.provider.set(|s| s.rotation = Rotation::Token);
    let browser = rig.gateway.signed_in().await;
    let before = browser.session().await;
    rig.advance(100);
    let answer = browser.post("/auth/refresh").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    is_json(&answer);
    assert!(answer.set_cookie("sidegate").is_some());
    let told = answer.json();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        (keys(&told), &told["claims"], &told["expires_at"]),
        (keys(&before), &before["claims"], &before["expires_at"])
    );
    let moved = told["access_token_expires_at"].as_i64().unwrap() - before["access_token_expires_at"].as_i64().unwrap();
    assert_eq!((moved, rig.provider.refreshes()), (100, 1));
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    assert_eq!(rig.upstream.last().bearer(), rig.provider.last_session().access_tokens.last().map(String::as_str));

    // Five at once are one refresh.
    let held = rig.provider.hold(Endpoint::Token, Grants::Refresh, Moment::Before);
    let mut posts = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let tab = browser.clone();
        posts.spawn(async move { tab.post("/auth/refresh").await.status });
    }
    held.wait_for(1).await;
    for _ in 0..5 {
        browser.fork().fetch("/auth/session").await;
    }
    held.release();
    assert_eq!(posts.join_all().await, [200; 5]);
    assert_eq!((rig.provider.refreshes(), rig.provider.violations()), (2, vec![]));

    let stranger = rig.gateway.browser().post("/auth/refresh").await;
    assert_eq!((stranger.status, stranger.code().as_str()), (401, "login_required"));
    assert!(stranger.json()["login_url"].as_str().unwrap().starts_with("/auth/login?return_to="));
    assert!(stranger.set_cookies().is_empty());
}

/// BFF-10, RFR-06, contract 6: dead is 401 and over; away is 503, misconfigured 502, and the session is kept.
#[tokio::test]
async fn a_refresh_that_fails_says_whose_fault_it_is() {
    let rig = Rig::with(|config| {
        set(config, "refresh.timeout", r#""500ms""#);
        set(config, "refresh.wait", r#""1s""#);
    })
    .await;
    let browser = rig.gateway.signed_in().await;
    for (outage, status, code) in [
        (Outage::Status(500), 503, "provider_unavailable"),
        (Outage::TooMany(Some("7".to_owned())), 503, "provider_unavailable"),
        (Outage::Html(200), 503, "provider_unavailable"),
        (Outage::Empty, 503, "provider_unavailable"),
        (Outage::error("invalid_client"), 502, "provider_refused"),
        (Outage::error("unauthorized_client"), 502, "provider_refused"),
    ] {
        let what = format!("{outage:?}");
        rig.provider.set(|s| s.fail_refresh(outage));
        // The token is over, so nothing but a fresh one helps.
        rig.advance(4000);
        let answer = browser.post("/auth/refresh").await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{what}: {}", answer.text());
        assert_eq!(answer.header("retry-after").is_some(), status == 503, "{what}");
        assert!(answer.set_cookies().is_empty(), "{what}");
        assert_eq!(browser.session().await["authenticated"], true, "{what}: the session is kept");
        rig.provider.set(|s| s.heal(Endpoint::Token));
        rig.advance(60);
        assert_eq!(browser.post("/auth/refresh").await.status, 200, "after {what}");
    }
    rig.provider.kill_all_sessions();
    rig.advance(4000);
    let copy = browser.fork();
    let spent = rig.provider.refreshes() + 1;
    let answer = browser.post("/auth/refresh").await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "login_required"));
    assert!(answer.json()["login_url"].is_string());
    // R6: another replica may have sent a newer cookie meanwhile.
    let round: Vec<_> = answer.via.iter().map(|hop| (hop.status, hop.location())).collect();
    assert_eq!(round, [(307, Some("/auth/refresh")); 2]);
    cleared(&browser);
    assert_eq!(browser.session().await, nobody());
    assert_eq!((copy.post("/auth/refresh").await.status, copy.session().await), (401, nobody()));
    assert_eq!(rig.provider.refreshes(), spent, "a dead token is not tried again");
    assert_eq!(rig.gateway.metric("sidegate_sessions_ended_total", &[("reason", "refresh_dead")]), 1.0);
}

/// R7: the only instance knows that nobody else has spent the token.
#[tokio::test]
async fn a_dead_session_of_the_only_instance_is_cleared_at_once() {
    let rig = Rig::with(|config| set(config, "server.single_replica", "true")).await;
    let browser = rig.gateway.signed_in().await;
    rig.provider.kill_all_sessions();
    rig.advance(4000);
    let answer = browser.post("/auth/refresh").await;
    assert_eq!((answer.status, answer.via.len()), (401, 1), "one look at the present cookie, without a pause");
    cleared(&browser);
}

/// Contract 2.6: with `verify = "401"` nobody is sent round.
#[tokio::test]
async fn a_dead_session_is_cleared_without_a_redirect_where_that_is_configured() {
    let rig = Rig::with(|config| set(config, "refresh.verify", r#""401""#)).await;
    let browser = rig.gateway.signed_in().await;
    rig.provider.kill_all_sessions();
    rig.advance(4000);
    let answer = browser.post("/auth/refresh").await;
    assert_eq!((answer.status, answer.via.len()), (401, 0));
    cleared(&browser);
}

/// Contract 5, WS-06: what is open ends with a session that nobody uses any more. Only the sole instance can say that it
/// ended; else another replica may have seen the user, and the page asks again.
#[tokio::test]
async fn what_is_open_ends_with_an_idle_session() {
    for alone in [false, true] {
        let rig = Rig::with(|config| {
            set(config, "session.idle_timeout", r#""10m""#);
            set(config, "server.single_replica", if alone { "true" } else { "false" });
        })
        .await;
        let browser = rig.gateway.signed_in().await;
        let mut events = browser.open(&Ask::fetch("/auth/events")).await;
        assert!(events.read_until("\n\n").await.is_some());
        let mut socket = browser.websocket("/api/ws", Initiator::SameOrigin).await.expect("a tunnel");
        for _ in 0..2 {
            rig.advance(540);
            assert_eq!(browser.fetch("/api/x").await.status, 200);
        }
        assert_eq!(browser.post("/auth/refresh").await.status, 200);
        assert!(events.read_until("event: refreshed").await.is_some(), "used in time, it goes on");
        rig.advance(601);
        assert_eq!(events.read_until("event: ended").await.is_some(), alone);
        assert!(alone || events.complete, "it broke off");
        let end = socket.next().await;
        assert!(end.as_ref().is_none_or(|frame| frame.close_code() == Some(1001)), "{end:?}");
        assert_eq!(browser.session().await, nobody());
    }
}

/// BFF-22: a page of a listed origin can read the event stream too.
#[tokio::test]
async fn a_listed_origin_may_watch() {
    const PARTNER: &str = "https://partner.example";
    let rig = Rig::with(|config| set(config, "csrf.allowed_origins", &format!("['{PARTNER}']"))).await;
    let browser = rig.gateway.signed_in().await;
    let cookie = format!("sidegate={}", browser.cookie("sidegate").unwrap());
    let ask = Ask::fetch("/auth/events").from(Initiator::Origin(PARTNER.to_owned())).cookie(&cookie);
    let events = browser.open(&ask).await.response;
    assert_eq!((events.status, events.header("access-control-allow-origin")), (200, Some(PARTNER)));
    assert_eq!(events.header("access-control-allow-credentials"), Some("true"));
    assert!(events.header_all("vary").contains(&"Origin"));
    let own = browser.open(&Ask::fetch("/auth/events")).await.response;
    assert_eq!((own.status, own.header("access-control-allow-origin")), (200, None));
}

/// Contract 3: a page that watches is told when the provider calls the refresh token dead.
#[tokio::test]
async fn who_watches_is_told_of_a_dead_refresh_token() {
    let rig = Rig::with(|config| set(config, "refresh.verify", r#""401""#)).await;
    let browser = rig.gateway.signed_in().await;
    let mut events = browser.open(&Ask::fetch("/auth/events")).await;
    assert!(events.read_until("\n\n").await.is_some());
    rig.provider.kill_all_sessions();
    assert_eq!(browser.post("/auth/refresh").await.status, 401);
    assert!(events.read_until("event: ended").await.is_some());
}

/// Contract 2.5: `max_refreshes` reached: the token is used to its end, then a login.
#[tokio::test]
async fn after_max_refreshes_comes_a_login() {
    let rig = Rig::with(|config| set(config, "session.max_refreshes", "2")).await;
    let browser = rig.gateway.signed_in().await;
    for _ in 0..2 {
        assert_eq!(browser.post("/auth/refresh").await.status, 200);
    }
    let answer = browser.post("/auth/refresh").await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "login_required"));
    assert_eq!(browser.session().await["authenticated"], true);
    assert_eq!(browser.fetch("/api/x").await.status, 200, "the token is used to its end");
    rig.advance(3590);
    assert_eq!(browser.fetch("/api/x").await.status, 200, "to its very end");
    rig.advance(11);
    assert_eq!(browser.fetch("/api/x").await.status, 401);
    assert_eq!((browser.session().await, rig.provider.refreshes()), (nobody(), 2));
    assert_eq!(rig.gateway.metric("sidegate_sessions_ended_total", &[("reason", "refresh_limit")]), 1.0);
}

/// IDT-11, ASVS-7.2.1, ASVS-10.5.2: two browsers are two people, and a name is not an address.
#[tokio::test]
async fn two_browsers_are_two_people() {
    let rig = Rig::start().await;
    let alice = rig.gateway.signed_in().await;
    rig.provider.set(|s| s.sub = "Alice-4711".to_owned());
    let other = rig.gateway.signed_in().await;
    for (browser, sub) in [(&alice, "alice-4711"), (&other, "Alice-4711")] {
        assert_eq!(browser.session().await["claims"]["sub"], sub);
        assert_eq!(browser.fetch("/api/x").await.status, 200);
        let token = rig.upstream.last().bearer().unwrap().to_owned();
        let owner = rig.provider.sessions().into_iter().find(|s| s.access_tokens.contains(&token)).unwrap();
        assert_eq!(owner.sub, sub);
    }
}
