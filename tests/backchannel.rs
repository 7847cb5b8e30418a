//! The provider ends sessions: back-channel and front-channel logout.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::client::{Ask, Browser, Initiator};
use support::gateway::{Gateway, set};
use support::inside::Rig;
use support::provider::{Endpoint, LogoutFault, ProviderDouble, Verdict};
use support::text;
use support::upstream::{Script, Upstream};
use support::wire::{self, Conn, Reply};
use toml::Table;

const FORM: &str = "application/x-www-form-urlencoded";
const PATH: &str = "/auth/logout/backchannel";
/// Within which streams end (contract section 5), and some more for a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn both_on(config: &mut Table) {
    set(config, "server.single_replica", "true");
    set(config, "logout.backchannel", "true");
    set(config, "logout.frontchannel", "true");
}

impl Rig {
    async fn listening() -> Self {
        Self::listening_with(|_| {}).await
    }

    async fn listening_with(change: impl FnOnce(&mut Table)) -> Self {
        Self::with(|config| {
            both_on(config);
            change(config);
        })
        .await
    }

    /// A browser that is signed in, and the provider's name of that session.
    async fn signed_in(&self) -> (Browser, String) {
        (self.gateway.signed_in().await, self.provider.last_session().sid)
    }

    /// The provider's server sends a body: no browser, no cookie, no header that speaks of an origin.
    async fn post(&self, method: &str, content_type: &str, body: &[u8]) -> Reply {
        post(&self.gateway.browser(), method, content_type, body).await
    }

    async fn send(&self, token: &str) -> Reply {
        self.post("POST", FORM, text::form(&[("logout_token", token)]).as_bytes()).await
    }

    /// The session lives, to the user's eyes and to the upstream's.
    async fn alive(&self, browser: &Browser) -> bool {
        let shown = browser.session().await["authenticated"] == true;
        let status = browser.fetch("/api/x").await.status;
        assert_eq!(shown, status == 200, "{status}");
        shown
    }

    fn ended(&self, reason: &str) -> f64 {
        self.gateway.metric("sidegate_sessions_ended_total", &[("reason", reason)])
    }
}

async fn post(browser: &Browser, method: &str, content_type: &str, body: &[u8]) -> Reply {
    let mut conn = browser.dial().await;
    let host = browser.url("/").trim_start_matches("http://").trim_end_matches('/').to_owned();
    let headers = [("Host", host.as_str()), ("Content-Type", content_type), ("X-Request-Id", "the-same-for-all")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    conn.send(&wire::request_bytes(method, PATH, &headers, Some(body))).await.unwrap();
    read(&mut conn, method).await
}

async fn read(conn: &mut Conn, method: &str) -> Reply {
    tokio::time::timeout(PATIENCE, wire::read_reply(conn, method)).await.expect("in time").unwrap().expect("an answer")
}

fn header<'a>(reply: &'a Reply, name: &str) -> Option<&'a str> {
    text::header(&reply.headers, name)
}

/// BCL-05: a session that the provider ends while its code is being exchanged is over before it has begun.
#[tokio::test]
async fn a_logout_during_the_exchange_counts() {
    let rig = Rig::listening().await;
    let hold = rig.provider.hold_token_answers();
    let browser = rig.gateway.browser();
    let tab = browser.clone();
    let login = tokio::spawn(async move { tab.login("/").await });
    hold.wait_for(1).await;
    rig.gateway.advance(&rig.provider, 1);
    let reply = rig.send(&rig.provider.logout_token(Some("alice-4711"), None, None)).await;
    assert!(matches!(reply.status, 200 | 204), "{reply:?}");
    rig.gateway.advance(&rig.provider, 1);
    hold.release();
    login.await.unwrap();
    assert!(!rig.alive(&browser).await);
    assert!(rig.alive(&rig.signed_in().await.0).await, "a later login goes on");
}

/// oidcc-client-test-rp-backchannel-rpinitlogout, BCL-08, RPL-05: a logout token ends the session, for every copy of its
/// cookie, and the answer is as the specification wants it.
#[tokio::test]
async fn a_logout_token_ends_the_session() {
    let rig = Rig::listening().await;
    let (browser, sid) = rig.signed_in().await;
    let copy = browser.fork();
    let reply = rig.send(&rig.provider.logout_token(Some("alice-4711"), Some(&sid), None)).await;
    assert!(matches!(reply.status, 200 | 204), "{reply:?}");
    assert_eq!((header(&reply, "cache-control"), reply.body.len()), (Some("no-store"), 0));
    assert!(header(&reply, "set-cookie").is_none());
    rig.upstream.forget();
    for tab in [&browser, &copy] {
        assert_eq!(tab.session().await, json!({"authenticated": false}));
        assert_eq!(tab.fetch("/api/x").await.status, 401);
        assert_eq!(tab.post("/auth/refresh").await.status, 401);
    }
    assert!(rig.upstream.untouched());
    assert!(browser.jar().names().is_empty(), "the cookies went with it: {:?}", browser.jar());
    assert_eq!(rig.ended("backchannel"), 1.0, "one session, however many copies came");
    // Nothing is called at the provider for it.
    assert!(rig.provider.calls_to(Endpoint::Revocation).is_empty());
    rig.gateway.advance(&rig.provider, 1);
    let (again, _) = rig.signed_in().await;
    assert!(rig.alive(&again).await, "a new login works");
}

/// oidcc-client-test-rp-backchannel-rpinitlogout-alg-none, -no-event, -with-nonce, -wrong-alg, -wrong-aud,
/// -wrong-event, -wrong-iss, ASVS-10.5.5, BCL-01, BCL-02, KEY: every token that is not exactly one is 400, with one and
/// the same body, and ends nothing. What is only unusual is taken.
#[tokio::test]
async fn bcl_01_bcl_02_a_token_that_does_not_hold_ends_nothing() {
    let rig = Rig::listening().await;
    let (browser, sid) = rig.signed_in().await;
    let mut bodies = Vec::new();
    for fault in LogoutFault::ALL.iter().filter(|fault| fault.verdict() == Verdict::Refused) {
        let reply = rig.send(&rig.provider.logout_token(Some("alice-4711"), Some(&sid), Some(*fault))).await;
        assert_eq!((reply.status, header(&reply, "cache-control")), (400, Some("no-store")), "{fault:?}");
        bodies.push(reply.body);
        assert!(rig.alive(&browser).await, "{fault:?}");
    }
    rig.gateway.catch_up(&rig.provider);
    let odd = [
        ("typ", json!("id_token+jwt")),
        ("iat", json!(rig.provider.now() - 330)),
        ("iat", json!(rig.provider.now() + 120)),
        ("iat", json!("1700000000")),
        ("iat", Value::Null),
        ("exp", json!("soon")),
        ("nbf", json!(rig.provider.now() + 120)),
        ("nonce", Value::Null),
        ("nonce", json!("")),
        ("jti", json!("")),
        ("jti", json!(7)),
        ("sid", json!("")),
        ("sid", json!(["a"])),
        ("sub", json!(7)),
        ("events", json!(["http://schemas.openid.net/event/backchannel-logout"])),
        ("events", json!({"http://schemas.openid.net/event/backchannel-logout": true})),
        ("events", json!("http://schemas.openid.net/event/backchannel-logout")),
        ("events", json!({})),
        ("aud", json!([])),
        ("aud", json!(["another", "and another"])),
        ("aud", json!({})),
        ("iss", json!(format!("{}/", rig.provider.issuer))),
    ];
    for (name, value) in odd {
        let mut claims = rig.provider.logout_claims();
        claims.extend([("sub".to_owned(), json!("alice-4711")), ("sid".to_owned(), json!(sid))]);
        let typ = if name == "typ" { value.as_str().unwrap().to_owned() } else { "logout+jwt".to_owned() };
        if name != "typ" {
            claims.insert(name.to_owned(), value.clone());
        }
        let reply = rig.send(&rig.provider.logout_token_of(&typ, claims, None)).await;
        assert_eq!(reply.status, 400, "{name} {value}");
        bodies.push(reply.body);
        assert!(rig.alive(&browser).await, "{name} {value}");
    }
    // The ID token of the same login is no logout token.
    let id_token = rig.provider.last_session().id_tokens[0].clone();
    bodies.push(rig.send(&id_token).await.body);
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "BCL-08: the answer tells nothing of the reason");
    assert!(rig.alive(&browser).await);

    for fault in LogoutFault::ALL.iter().filter(|fault| fault.verdict() == Verdict::Fine) {
        rig.gateway.catch_up(&rig.provider);
        rig.gateway.advance(&rig.provider, 1);
        let (browser, sid) = rig.signed_in().await;
        let reply = rig.send(&rig.provider.logout_token(None, Some(&sid), Some(*fault))).await;
        assert_eq!((reply.status, rig.alive(&browser).await), (200, false), "{fault:?}");
    }
}

/// BCL-03: a token is good once: what comes again ends no later session, and neither does an old one.
#[tokio::test]
async fn bcl_03_a_replay_ends_no_later_session() {
    let rig = Rig::listening().await;
    let (first, _) = rig.signed_in().await;
    let token = rig.provider.logout_token(Some("alice-4711"), None, None);
    assert_eq!(rig.send(&token).await.status, 200);
    assert!(!rig.alive(&first).await);
    rig.gateway.advance(&rig.provider, 2);
    let (second, _) = rig.signed_in().await;
    rig.gateway.advance(&rig.provider, 1);
    let again = rig.send(&token).await;
    assert!(matches!(again.status, 200 | 400), "{again:?}");
    assert!(rig.alive(&second).await, "the replay ended nothing");
    rig.gateway.advance(&rig.provider, 300);
    assert_eq!(rig.send(&token).await.status, 400, "too old by now");
    assert!(rig.alive(&second).await);
    assert_eq!(rig.ended("backchannel"), 1.0);
}

/// BCL-04: one form, POST, one token; whatever else the request carries does not matter.
#[tokio::test]
async fn bcl_04_only_a_form_with_one_token() {
    let rig = Rig::listening().await;
    let (browser, sid) = rig.signed_in().await;
    let good = || text::form(&[("logout_token", &rig.provider.logout_token(None, Some(&sid), None))]);
    let get = rig.post("GET", FORM, b"").await;
    assert_eq!((get.status, header(&get, "allow")), (405, Some("POST")));
    let token = rig.provider.logout_token(None, Some(&sid), None);
    for (content_type, body) in [
        ("application/json", json!({"logout_token": token}).to_string()),
        ("application/json", good()),
        ("text/plain", good()),
        ("multipart/form-data; boundary=x", good()),
        (FORM, String::new()),
        (FORM, "logout_token=".to_owned()),
        (FORM, "logout_token=x".to_owned()),
        (FORM, "logout_token=%ff".to_owned()),
        (FORM, format!("{}&{}", good(), good())),
        (FORM, format!("{}&logout_token=", good())),
        (FORM, format!("token={token}")),
    ] {
        let reply = rig.post("POST", content_type, body.as_bytes()).await;
        assert_eq!(reply.status, 400, "{content_type} {body}");
    }
    let query = browser.send(Ask::fetch(&format!("{PATH}?logout_token={token}")).method("POST")).await;
    assert_eq!(query.status, 400, "the query is no form");
    assert!(rig.alive(&browser).await);
    // A foreign page's headers neither help nor hinder, nor does a parameter that nobody knows.
    let ask = Ask::fetch(PATH).from(Initiator::CrossSite).cookie("");
    let token = rig.provider.logout_token(None, Some(&sid), None);
    assert_eq!(browser.send(ask.form(&[("x", "1"), ("logout_token", &token)])).await.status, 200);
    assert!(!rig.alive(&browser).await);
    let charset = rig.post("POST", "Application/X-WWW-Form-Urlencoded; charset=UTF-8", good().as_bytes()).await;
    assert_eq!(charset.status, 200);
}

/// BCL-10: the body is bounded, announced or not, and a body that does not end is not waited for.
#[tokio::test]
async fn bcl_10_the_body_is_bounded() {
    let rig = Rig::listening().await;
    let large = format!("logout_token={}", "x".repeat(1 << 20));
    assert_eq!(rig.post("POST", FORM, large.as_bytes()).await.status, 413);
    let host = rig.gateway.public_url.trim_start_matches("http://").to_owned();
    let head =
        format!("POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {FORM}\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut conn = rig.gateway.browser().dial().await;
    conn.send(format!("{head}{:x}\r\n{}", 100_000, "x".repeat(100_000)).as_bytes()).await.unwrap();
    assert_eq!(read(&mut conn, "POST").await.status, 413);
    // Chunks and a polite question make no difference.
    let (browser, sid) = rig.signed_in().await;
    let body = text::form(&[("logout_token", &rig.provider.logout_token(None, Some(&sid), None))]);
    let mut conn = rig.gateway.browser().dial().await;
    let polite = head.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    conn.send(polite.as_bytes()).await.unwrap();
    let (one, two) = body.split_at(100);
    for piece in [one, two, ""] {
        conn.send(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await.unwrap();
    }
    let reply = read(&mut conn, "POST").await;
    assert_eq!((reply.status, reply.informational), (200, vec![100]));
    assert!(!rig.alive(&browser).await);
}

/// BCL-10, DOS: who sends one bad token after the other is turned away for a while, before any signature is looked at;
/// front-channel requests are limited as such. Good tokens are not counted.
#[tokio::test]
async fn bcl_10_a_flood_is_turned_away() {
    let rig = Rig::listening().await;
    let (browser, sid) = rig.signed_in().await;
    for _ in 0..150 {
        assert_eq!(rig.send(&rig.provider.logout_token(None, Some("unheard-of"), None)).await.status, 200);
    }
    let bad = rig.provider.logout_token(None, Some(&sid), Some(LogoutFault::WrongAud));
    let mut answers = Vec::new();
    for _ in 0..120 {
        let reply = rig.send(&bad).await;
        answers.push((reply.status, header(&reply, "retry-after").is_some()));
    }
    answers.dedup();
    assert_eq!(answers, [(400, false), (429, true)]);
    rig.gateway.advance(&rig.provider, 60);
    let query = text::form(&[("iss", rig.provider.issuer.as_str()), ("sid", "unheard-of")]);
    let mut answers = Vec::new();
    for _ in 0..80 {
        answers.push(browser.send(Ask::frame(&format!("/auth/logout/frontchannel?{query}"))).await.status);
    }
    answers.dedup();
    assert_eq!(answers, [200, 429]);
    assert!(rig.alive(&browser).await);
    assert_eq!(rig.send(&rig.provider.logout_token(None, Some(&sid), None)).await.status, 200);
    assert!(!rig.alive(&browser).await);
}

/// BCL-05, ASVS-7.4.1: `sid` ends one session, `sub` alone all of the user, and nobody else's.
#[tokio::test]
async fn bcl_05_the_right_sessions_and_only_those() {
    let rig = Rig::listening().await;
    let (one, sid_of_one) = rig.signed_in().await;
    let (two, _) = rig.signed_in().await;
    rig.provider.set(|s| s.sub = "bob-0815".to_owned());
    let (bob, _) = rig.signed_in().await;
    rig.provider.set(|s| s.sub = "alice-4711".to_owned());
    let living = async || (rig.alive(&one).await, rig.alive(&two).await, rig.alive(&bob).await);

    assert_eq!(rig.send(&rig.provider.logout_token(None, Some("unheard-of"), None)).await.status, 200);
    assert_eq!(rig.send(&rig.provider.logout_token(Some("nobody"), None, None)).await.status, 200);
    assert_eq!(living().await, (true, true, true));
    let both = rig.provider.logout_token(Some("alice-4711"), Some(&sid_of_one), None);
    assert_eq!(rig.send(&both).await.status, 200);
    assert_eq!(living().await, (false, true, true), "sid with sub means the one session");
    assert_eq!(rig.send(&rig.provider.logout_token(Some("alice-4711"), None, None)).await.status, 200);
    assert_eq!(living().await, (false, false, true));
    assert_eq!(rig.ended("backchannel"), 2.0);
    rig.gateway.advance(&rig.provider, 1);
    let (three, _) = rig.signed_in().await;
    assert!(rig.alive(&three).await, "begun after receipt");
}

/// RFR: a session that is ended while its token is refreshed is not brought back by the result, neither upstream nor as
/// a cookie.
#[tokio::test]
async fn a_refresh_under_way_brings_nothing_back() {
    let rig = Rig::listening().await;
    let (browser, sid) = rig.signed_in().await;
    let copy = browser.fork();
    rig.gateway.advance(&rig.provider, 3600);
    let hold = rig.provider.hold_token_endpoint();
    let waiting = browser.launch(&Ask::fetch("/api/x")).await;
    hold.wait_for(1).await;
    rig.upstream.forget();
    assert_eq!(rig.send(&rig.provider.logout_token(None, Some(&sid), None)).await.status, 200);
    hold.release();
    let answer = waiting.answer().await;
    assert_eq!(answer.status, 401, "{}", answer.text());
    assert!(answer.set_cookies().iter().all(|cookie| cookie.value.is_empty()), "{:?}", answer.set_cookies());
    assert!(rig.upstream.untouched());
    assert_eq!(copy.fetch("/api/x").await.status, 401);
}

/// The same when the refresh began because the app refused the token: the app's answer stays, and nothing is sent again.
#[tokio::test]
async fn a_refused_token_is_not_replaced_once_the_session_has_ended() {
    let rig = Rig::listening().await;
    let (browser, sid) = rig.signed_in().await;
    rig.upstream.otherwise(Script::invalid_token());
    let hold = rig.provider.hold_token_endpoint();
    let waiting = browser.launch(&Ask::fetch("/api/x")).await;
    hold.wait_for(1).await;
    rig.upstream.otherwise(Script::Echo);
    assert_eq!(rig.send(&rig.provider.logout_token(None, Some(&sid), None)).await.status, 200);
    hold.release();
    let answer = waiting.answer().await;
    assert_eq!(answer.status, 401, "{}", answer.text());
    assert!(answer.set_cookies().iter().all(|cookie| cookie.value.is_empty()), "{:?}", answer.set_cookies());
    assert_eq!(rig.upstream.requests_to("/api/x").len(), 1);
}

/// KEY-06, DOS-14: a key that was rotated in between is looked for; forged tokens cause no flood of look-ups.
#[tokio::test]
async fn key_06_an_unknown_key_is_looked_for_once() {
    let rig = Rig::listening().await;
    let (browser, sid) = rig.signed_in().await;
    rig.provider.rotate_keys();
    let before = rig.provider.calls_to(Endpoint::Jwks).len();
    assert_eq!(rig.send(&rig.provider.logout_token(None, Some(&sid), None)).await.status, 200);
    assert!(!rig.alive(&browser).await);
    assert_eq!(rig.provider.calls_to(Endpoint::Jwks).len(), before + 1);
    rig.provider.rotate_keys();
    for _ in 0..20 {
        let forged = rig.provider.logout_token(None, Some(&sid), Some(LogoutFault::InvalidSig));
        assert!(matches!(rig.send(&forged).await.status, 400 | 429));
    }
    assert!(rig.provider.calls_to(Endpoint::Jwks).len() <= before + 2);
}

/// Contract 2.9: what is off is not there.
#[tokio::test]
async fn off_is_404() {
    let rig = Rig::listening_with(|config| {
        set(config, "logout.backchannel", "false");
        set(config, "logout.frontchannel", "false");
    })
    .await;
    let (browser, sid) = rig.signed_in().await;
    let reply = rig.send(&rig.provider.logout_token(None, Some(&sid), None)).await;
    assert_eq!(reply.status, 404);
    let query = text::form(&[("iss", &rig.provider.issuer), ("sid", &sid)]);
    let answer = browser.fetch(&format!("/auth/logout/frontchannel?{query}")).await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "no_route"));
    assert!(rig.alive(&browser).await);
}

/// WS-06, contract 5: tunnels and streams of the session end, `/auth/events` says so; others go on.
#[tokio::test]
async fn ws_06_what_is_open_ends_with_the_session() {
    let rig = Rig::listening().await;
    let (browser, sid) = rig.signed_in().await;
    let (other, _) = rig.signed_in().await;
    let mut socket = browser.websocket("/api/ws", Initiator::SameOrigin).await.expect("a tunnel");
    let mut others = other.websocket("/api/ws", Initiator::SameOrigin).await.expect("a tunnel");
    let mut events = browser.open(&Ask::fetch("/auth/events")).await;
    assert!(events.read_until("\n\n").await.is_some());
    assert_eq!(rig.send(&rig.provider.logout_token(None, Some(&sid), None)).await.status, 200);
    let told = tokio::time::timeout(PATIENCE, events.read_until("event: ended")).await.expect("in time");
    assert!(told.is_some());
    let end = tokio::time::timeout(PATIENCE, socket.next()).await.expect("the tunnel ends");
    assert!(end.as_ref().is_none_or(|frame| frame.close_code() == Some(1001)), "{end:?}");
    others.send_text("on").await.expect("sent");
    assert_eq!(others.next().await.expect("an echo").text(), "on");
    assert_eq!(rig.ended("backchannel"), 1.0);
}

/// FCL-01, oidcc-client-test-rp-frontchannel-opinitlogout: the frame of the issuer's page ends the session of the `sid`
/// although no cookie comes along, tells the provider nothing, and nobody else may frame it.
#[tokio::test]
async fn fcl_01_a_frame_of_the_provider_ends_the_session() {
    let rig = Rig::listening().await;
    let (browser, sid) = rig.signed_in().await;
    let (other, _) = rig.signed_in().await;
    let calls = rig.provider.calls().len();
    let query = text::form(&[("iss", &rig.provider.issuer), ("sid", &sid)]);
    let ask = Ask::frame(&format!("/auth/logout/frontchannel?{query}")).from(Initiator::CrossSite);
    let answer = browser.send(ask).await;
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")), "{}", answer.text());
    let policy = answer.header("content-security-policy").unwrap();
    assert_eq!(policy, format!("default-src 'none'; frame-ancestors {}", rig.provider.issuer));
    assert_eq!(answer.header("x-frame-options"), None);
    assert_eq!(rig.provider.calls().len(), calls, "nothing is called at the provider");
    assert!(!rig.alive(&browser).await && rig.alive(&other).await);
    assert!(rig.provider.calls_to(Endpoint::Revocation).is_empty());
    assert_eq!(rig.ended("frontchannel"), 1.0);
}

/// oidcc-client-test-rp-frontchannel-rpinitlogout: another issuer, another session or half a name ends nothing.
#[tokio::test]
async fn a_front_channel_request_needs_issuer_and_sid() {
    let rig = Rig::listening().await;
    let (browser, sid) = rig.signed_in().await;
    let iss = rig.provider.issuer.as_str();
    for (pairs, status) in [
        (vec![], 400),
        (vec![("iss", iss)], 400),
        (vec![("sid", sid.as_str())], 400),
        (vec![("iss", iss), ("sid", "")], 400),
        (vec![("iss", "https://other.example"), ("sid", &sid)], 400),
        (vec![("iss", iss), ("iss", iss), ("sid", &sid)], 400),
        (vec![("iss", iss), ("sid", &sid), ("sid", &sid)], 400),
        (vec![("iss", iss), ("sid", "unheard-of")], 200),
    ] {
        let query = text::form(&pairs);
        let answer = browser.send(Ask::frame(&format!("/auth/logout/frontchannel?{query}"))).await;
        assert_eq!(answer.status, status, "{query}");
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.contains(&format!("frame-ancestors {iss}")), "the provider's page shows it: {query}: {policy}");
        assert!(answer.set_cookies().is_empty(), "{query}");
        assert!(rig.alive(&browser).await, "{query}");
    }
    let query = text::form(&[("iss", iss), ("sid", &sid)]);
    let posted = browser.send(Ask::fetch(&format!("/auth/logout/frontchannel?{query}")).method("POST")).await;
    assert_eq!((posted.status, posted.header("allow")), (405, Some("GET")));
    // With the cookie, as an embedded app's frame has it, the browser is rid of it at once.
    let answer = browser.send(Ask::frame(&format!("/auth/logout/frontchannel?{query}"))).await;
    assert_eq!(answer.status, 200);
    assert!(browser.jar().names().is_empty(), "{:?}", browser.jar());
    assert_eq!(rig.ended("frontchannel"), 1.0);
}

/// Contract 8, LOG: the audit event of each session exactly once, and no token, subject or `sid` in the log.
#[tokio::test]
async fn the_log_has_each_end_once() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start_with(&provider, &upstream, both_on).await;
    let browser = gateway.signed_in().await;
    let sid = provider.last_session().sid;
    let copy = browser.fork();
    let token = provider.logout_token(Some("alice-4711"), Some(&sid), None);
    let forged = provider.logout_token(Some("alice-4711"), Some(&sid), Some(LogoutFault::WrongAud));
    let send = async |token: &str| {
        post(&gateway.browser(), "POST", FORM, text::form(&[("logout_token", token)]).as_bytes()).await.status
    };
    assert_eq!((send(&forged).await, send(&token).await, send(&token).await), (400, 200, 200));
    for tab in [&browser, &copy, &copy] {
        assert_eq!(tab.fetch("/api/x").await.status, 401);
    }
    let lines = gateway.wait_for_log("backchannel_logout", 3).await;
    let told: Vec<_> = lines.iter().map(|line| (line["outcome"].as_str(), line["reason"].as_str())).collect();
    assert_eq!(told, [(Some("refused"), Some("aud")), (Some("accepted"), None), (Some("repeated"), None)]);
    let ended = gateway.wait_for_log("session_ended", 1).await;
    assert_eq!(ended.len(), 1, "{ended:?}");
    assert_eq!(ended[0]["reason"], "backchannel");
    assert!(ended[0]["sub_hash"].is_string());
    let output = gateway.output();
    for secret in [token.as_str(), forged.as_str(), sid.as_str(), "alice-4711"] {
        assert!(!output.contains(secret), "{secret}");
    }
}
