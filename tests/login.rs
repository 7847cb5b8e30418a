//! Logging in, as browser, provider and upstream see it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use std::collections::HashSet;

use serde_json::json;
use support::client::{Ask, Browser, Cookie, Initiator, Kind, Response, SameSite};
use support::gateway::{Gateway, set};
use support::inside::Rig;
use support::provider::{AccessToken, Authorization, Endpoint, IssParameter, Outage, ProviderDouble};
use support::text::{self, percent};
use support::upstream::Upstream;
use url::Url;

impl Rig {
    /// A login up to the provider's redirect back: the callback's URL.
    async fn callback(&self, browser: &Browser, return_to: &str) -> String {
        let start = browser.start_login(return_to).await;
        self.back(browser, &start).await
    }

    /// The callback's URL for a login that has started.
    async fn back(&self, browser: &Browser, start: &Response) -> String {
        let at_provider = browser.send(Ask::navigate(start.location().expect("to the provider")).stay()).await;
        at_provider.location().unwrap_or_else(|| panic!("{at_provider:?}")).to_owned()
    }

    /// The provider sends the browser there.
    async fn land(&self, browser: &Browser, callback: &str) -> Response {
        browser.navigate_from(Initiator::Origin(self.provider.issuer.clone()), callback).await
    }

    /// The same, without following what comes.
    async fn land_only(&self, browser: &Browser, callback: &str) -> Response {
        browser.send(Ask::navigate(callback).from(Initiator::Origin(self.provider.issuer.clone())).stay()).await
    }

    fn authorizations(&self) -> usize {
        self.provider.calls_to(Endpoint::Authorize).len()
    }
}

fn login_cookies(browser: &Browser) -> Vec<String> {
    browser.jar().names().into_iter().filter(|name| name.contains("-login-")).map(str::to_owned).collect()
}

fn session_cookies(browser: &Browser) -> Vec<String> {
    let session = |name: &&str| name.contains("sidegate") && !name.contains("-login-");
    browser.jar().names().into_iter().filter(session).map(str::to_owned).collect()
}

async fn signed_in(browser: &Browser) -> bool {
    browser.session().await["authenticated"] == true
}

fn at_callback(end: &Response) -> &Response {
    end.via.iter().chain([end]).find(|answer| answer.path() == "/auth/callback").expect("a callback")
}

/// Where `Location` leads, read as forgivingly as a browser does.
fn target_of(answer: &Response) -> Url {
    let location = answer.location().expect("a redirect");
    assert!(!location.chars().any(char::is_control), "{location:?}");
    Url::parse(&answer.url).unwrap().join(location.trim()).unwrap()
}

/// An error page for people: status, `code`, no script, not to be framed, no session.
#[track_caller]
fn error_page(answer: &Response, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{} {}", answer.url, answer.text());
    assert!(answer.text().contains(code), "{code}: {}", answer.text());
    assert!(!answer.text().to_lowercase().contains("<script"));
    let csp = answer.header("content-security-policy").unwrap_or_default();
    assert!(csp.contains("default-src 'none'") && csp.contains("frame-ancestors 'none'"), "{csp}");
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert!(answer.set_cookies().iter().all(|cookie| cookie.deletes(text::now())), "{answer:?}");
}

// -- The plain flow ------------------------------------------------------------------------------------------------

/// oidcc-client-test, BFF-01, BFF-02, BFF-06, COOKIE-06, FAPI2-13, RFC7636-01, RFC9700-07, RFC9700-08, RFC9700-19,
/// ASVS-14.2.1.
#[tokio::test]
async fn a_login_step_by_step() {
    let rig = Rig::start().await;
    let browser = rig.gateway.browser();

    let start = browser.start_login("/hello?x=1").await;
    assert_eq!(start.status, 302);
    assert_eq!(start.header("cache-control"), Some("no-store"));
    assert!(start.location().unwrap().starts_with(&rig.provider.url(Endpoint::Authorize)));
    let [cookie] = &start.set_cookies()[..] else { panic!("{:?}", start.set_cookies()) };
    assert!(cookie.name.starts_with("sidegate-login-"), "{}", cookie.name);
    assert!(cookie.http_only && cookie.host_only && cookie.path == "/" && cookie.same_site == SameSite::Lax);
    assert_eq!(cookie.max_age, Some(600));
    let param = |name: &str| start.location_param(name).unwrap_or_else(|| panic!("{name}"));
    assert_eq!((param("response_type").as_str(), param("code_challenge_method").as_str()), ("code", "S256"));
    assert_eq!(param("redirect_uri"), format!("{}/auth/callback", rig.gateway.public_url));
    assert_eq!(param("scope"), "openid offline_access");
    let url_safe = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~-".contains(&b));
    assert!((22..=43).contains(&param("nonce").len()) && url_safe(&param("nonce")));
    assert!(param("state").len() >= 22 && param("code_challenge").len() == 43);

    let callback = rig.back(&browser, &start).await;
    let answer = rig.land_only(&browser, &callback).await;
    assert_eq!((answer.status, answer.location()), (302, Some("/hello?x=1#")), "RFC9700-19: a fragment of our own");
    assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let code = text::get(&text::unform(callback.split_once('?').unwrap().1.as_bytes()), "code").unwrap().to_owned();
    assert!(text::find(&answer.everything(), code.as_bytes()).is_none());
    assert_eq!(login_cookies(&browser), [""; 0], "the attempt's cookie is deleted");
    let session = answer.set_cookie("sidegate").expect("a session");
    assert!(session.http_only && session.host_only && session.path == "/" && session.same_site == SameSite::Strict);
    assert_eq!(session.max_age, Some(12 * 3600));

    let exchange = &rig.provider.calls_to(Endpoint::Token)[0];
    let verifier = exchange.param("code_verifier").unwrap();
    assert!((43..=128).contains(&verifier.len()) && url_safe(verifier));
    assert_eq!(exchange.param("redirect_uri"), Some(param("redirect_uri").as_str()));
    let endpoints: Vec<_> = rig.provider.calls().iter().map(|call| call.endpoint).collect();
    let [Endpoint::Discovery, Endpoint::Jwks, Endpoint::Authorize, Endpoint::Token] = endpoints[..] else {
        panic!("{endpoints:?}")
    };
    assert_eq!(rig.provider.violations(), [""; 0]);
    assert_eq!(browser.session().await["claims"]["sub"], "alice-4711");
    assert_eq!(rig.gateway.metric("sidegate_logins_total", &[("outcome", "ok")]), 1.0);

    // BFF-03, RFC7636-01: neither verifier nor tokens went through the browser, the state and the code only on the way.
    let secrets = rig.provider.canaries();
    assert!(secrets.only(&["code verifier"]).len() == 1 && secrets.only(&["access token"]).len() == 1);
    let ours = |answer: &&Response| answer.url.starts_with(&rig.gateway.public_url);
    for answer in browser.history().iter().filter(ours) {
        let seen = [answer.url.as_bytes(), &answer.everything()].concat();
        secrets.without(&["state", "nonce", "code_challenge", "code"]).assert_absent(&answer.url, &seen);
        secrets.only(&["code verifier"]).assert_absent(&answer.url, &seen);
    }
}

/// RFC9700-01: the redirect URI is the configured one, whatever a request says of its host.
#[tokio::test]
async fn the_redirect_uri_is_the_configured_one() {
    let rig = Rig::start().await;
    let browser = rig.gateway.browser();
    let own = format!("{}/auth/callback", rig.gateway.public_url);
    for (name, value) in [
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Port", "444"),
        ("X-Original-Host", "evil.example"),
        ("Forwarded", "host=evil.example;proto=https"),
        ("X-Forwarded-Prefix", "/evil"),
    ] {
        let answer = browser.send(Ask::navigate("/auth/login").header(name, value).stay()).await;
        assert_eq!(answer.location_param("redirect_uri"), Some(own.clone()), "{name}");
    }
    let typed = "Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document";
    let forged = format!("GET /auth/login HTTP/1.1\r\nHost: evil.example\r\n{typed}\r\n\r\n");
    let answer = String::from_utf8_lossy(&browser.raw(forged).await).into_owned();
    assert!(answer.starts_with("HTTP/1.1 421 ") && !answer.contains("evil.example"), "{answer}");
}

/// BFF-12 to BFF-17, COOKIE-01, COOKIE-02, ASVS-3.4.1: over https every cookie has the prefix and what it demands.
#[tokio::test]
async fn cookies_over_https() {
    let rig = Rig::with(|config| set(config, "server.public_url", r#""https://app.example.test""#)).await;
    let browser = rig.gateway.browser();
    let page = browser.login("/x").await;
    assert_eq!((page.status, page.url.as_str()), (200, "https://app.example.test/x"));
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    browser.post("/auth/logout").await;
    assert_eq!(browser.jar().refused, [], "a browser would not store it");
    let own = |answer: &Response| answer.url.starts_with("https://app");
    let cookies: Vec<Cookie> = browser.history().iter().filter(|a| own(a)).flat_map(Response::set_cookies).collect();
    assert!(cookies.len() >= 4, "{cookies:?}");
    for cookie in cookies {
        assert!(cookie.name.starts_with("__Host-Http-sidegate"), "{}", cookie.line);
        assert!(cookie.secure && cookie.http_only && cookie.host_only && cookie.path == "/", "{}", cookie.line);
        let expected = if cookie.name.contains("-login-") { SameSite::Lax } else { SameSite::Strict };
        assert_eq!(cookie.same_site, expected, "{}", cookie.line);
    }
    let answers: Vec<Response> = browser.history().into_iter().filter(|a| a.path().starts_with("/auth/")).collect();
    assert!(answers.iter().filter(|a| own(a)).all(|a| a.header("strict-transport-security").is_some()));
}

/// oidcc-client-test-nonce-unless-code-flow, FAPI2-02, ASVS-10.1.2: nothing is used twice.
#[tokio::test]
async fn state_nonce_and_challenge_are_fresh() {
    let rig = Rig::start().await;
    let browser = rig.gateway.browser();
    let mut seen = HashSet::new();
    for _ in 0..20 {
        let start = browser.start_login("/").await;
        for name in ["state", "nonce", "code_challenge"] {
            assert!(seen.insert(start.location_param(name).unwrap()), "{name}");
        }
    }
}

/// BFF-05, REG-36: who is sent to the login, and who is told.
#[tokio::test]
async fn without_a_session_people_log_in_and_scripts_are_told() {
    let rig = Rig::start().await;
    let browser = rig.gateway.browser();
    let scripts = [
        Ask::fetch("/api/x"),
        Ask::fetch("/api/x").json(&json!({"a": 1})),
        Ask::fetch("/api/x").header("Accept", "text/html"),
        Ask::image("/api/x"),
        Ask::frame("/api/x"),
    ];
    for ask in scripts {
        let answer = browser.send(ask.clone().stay()).await;
        assert_eq!(answer.status, 401, "{ask:?}");
        assert!(answer.location().is_none() && answer.set_cookies().is_empty(), "{ask:?}");
        if ask.kind == Kind::Fetch {
            assert_eq!(answer.json()["code"], "login_required");
            let login = answer.json()["login_url"].as_str().unwrap().to_owned();
            assert!(login.starts_with("/auth/login?return_to="), "{login}");
        }
    }
    assert!(rig.upstream.untouched());

    let page = browser.navigate_from(Initiator::SameOrigin, "/api/report?id=7&q=a%20b").await;
    assert_eq!((page.status, page.path().as_str()), (200, "/api/report"));
    assert_eq!((rig.upstream.last().target.as_str(), rig.authorizations()), ("/api/report?id=7&q=a%20b", 1));

    // A form is not stored and sent again: the browser comes back to the page that held it.
    let form = Ask::navigate("/api/form").from(Initiator::SameOrigin).form(&[("a", "1")]);
    let form = form.header("Referer", &format!("{}/page?x=1", rig.gateway.public_url)).stay();
    let answer = rig.gateway.browser().send(form).await;
    assert_eq!((answer.status, answer.location()), (303, Some("/auth/login?return_to=/page%3Fx%3D1")));
    assert!(rig.upstream.requests().iter().all(|request| request.method != "POST"));
}

// -- What a login may be told --------------------------------------------------------------------------------------

/// REG-16, REG-17, RFC6749-01, FAPI2-08, ASVS-2.2.1, ASVS-2.2.2, ASVS-15.3.7: only the listed parameters pass, each at
/// most once.
#[tokio::test]
async fn only_listed_parameters_reach_the_provider() {
    let rig = Rig::start().await;
    let browser = rig.gateway.browser();
    let start = |url: String| {
        let browser = browser.clone();
        async move { browser.send(Ask::navigate(&url).from(Initiator::SameOrigin).stay()).await }
    };
    let answer =
        start("/auth/login?prompt=login&login_hint=a%40b.c&ui_locales=de%20en&acr_values=gold&max_age=60".into()).await;
    for (name, value) in [
        ("prompt", "login"),
        ("login_hint", "a@b.c"),
        ("ui_locales", "de en"),
        ("acr_values", "gold"),
        ("max_age", "60"),
    ] {
        assert_eq!(answer.location_param(name).as_deref(), Some(value), "{name}");
    }
    for name in [
        "scope",
        "redirect_uri",
        "nonce",
        "client_id",
        "state",
        "response_type",
        "response_mode",
        "code_challenge",
        "code_challenge_method",
        "request",
        "request_uri",
        "resource",
        "audience",
        "id_token_hint",
        "claims",
        "registration",
        "client_secret",
        "max_Age",
    ] {
        let answer = start(format!("/auth/login?return_to=/&{name}=chosen")).await;
        let query = answer.location().expect(name).split_once('?').unwrap().1;
        let pairs = text::unform(query.as_bytes());
        assert!(pairs.iter().all(|(_, value)| value != "chosen"), "{name}");
        assert_eq!(text::doubled(&pairs, &[]), None, "{name}");
    }
    let answer = start("/auth/login?prompt=none&prompt=login&return_to=/a&return_to=//evil.example".into()).await;
    let pairs = text::unform(answer.location().unwrap().split_once('?').unwrap().1.as_bytes());
    assert!(pairs.iter().filter(|(name, _)| name == "prompt").count() <= 1);
    for header in ["Host-Override", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "Forwarded"] {
        let value = if header == "Forwarded" { "host=evil.example;proto=https" } else { "evil.example" };
        let ask = Ask::navigate("/auth/login").from(Initiator::SameOrigin).header(header, value).stay();
        let answer = browser.send(ask).await;
        let redirect_uri = answer.location_param("redirect_uri").expect(header);
        assert_eq!(redirect_uri, format!("{}/auth/callback", rig.gateway.public_url), "RFC9700-01: {header}");
    }

    let narrow = Rig::with(|config| {
        set(config, "provider.login_params", r#"["login_hint"]"#);
        set(config, "provider.scopes", r#"["openid", "email", "api:read"]"#);
        set(config, "provider.audience", r#""https://api.example""#);
        set(config, "provider.resource", r#""https://rs.example/""#);
        set(config, "provider.authorize_params", r#"{ prompt = "consent", x_extra = "a b&c" }"#);
        set(config, "provider.token_params", r#"{ x_token = "t 1" }"#);
    })
    .await;
    let browser = narrow.gateway.browser();
    let login = "/auth/login?login_hint=a&prompt=none&max_age=1&x_extra=evil";
    assert_eq!(browser.navigate_from(Initiator::SameOrigin, login).await.status, 200);
    let asked = &narrow.provider.calls_to(Endpoint::Authorize)[0];
    for (name, value) in [
        ("login_hint", Some("a")),
        ("prompt", Some("consent")),
        ("max_age", None),
        ("x_extra", Some("a b&c")),
        ("scope", Some("openid email api:read")),
        ("audience", Some("https://api.example")),
        ("resource", Some("https://rs.example/")),
    ] {
        assert_eq!(asked.param(name), value, "RFC9700-10: {name}");
    }
    assert_eq!(narrow.provider.calls_to(Endpoint::Token)[0].param("x_token"), Some("t 1"));
}

/// FAPI2-17, BFF-37: only a top-level navigation starts a login when another page asks.
#[tokio::test]
async fn no_foreign_page_starts_a_login_behind_the_users_back() {
    let rig = Rig::start().await;
    let browser = rig.gateway.browser();
    for from in [Initiator::CrossSite, Initiator::SameSite] {
        for ask in [Ask::fetch("/auth/login"), Ask::image("/auth/login"), Ask::frame("/auth/login")] {
            let answer = browser.send(ask.from(from.clone()).stay()).await;
            assert_eq!(answer.status, 403, "{from:?} {:?}", answer.sent);
            assert!(answer.text().contains("csrf") && answer.location().is_none() && answer.set_cookies().is_empty());
        }
        let link = browser.send(Ask::navigate("/auth/login").from(from.clone()).stay()).await;
        assert_eq!(link.status, 302, "{from:?}: a link is the user's act");
    }
    for (method, path) in [("POST", "/auth/login"), ("PUT", "/auth/login"), ("POST", "/auth/callback")] {
        let answer = browser.send(Ask::fetch(path).method(method)).await;
        assert_eq!((answer.status, answer.code().as_str()), (405, "method_not_allowed"), "{method} {path}");
        assert_eq!(answer.header("allow"), Some("GET"), "{method} {path}");
    }
}

/// What `return_to` must not be: REG-05, REG-31, RFC9700-05, FAPI2-14.
const EVIL: &[&str] = &[
    "//evil.example",
    "///evil.example",
    "////evil.example",
    "/\\evil.example",
    "\\/evil.example",
    "\\\\evil.example",
    "/%09/evil.example",
    "/\t/evil.example",
    "/\n/evil.example",
    "/\r\n/evil.example",
    "https:evil.example",
    "https:/evil.example",
    "https://evil.example",
    "HTTPS://evil.example",
    "https://localhost@evil.example",
    "https://localhost.evil.example",
    "javascript:alert(1)",
    "data:text/html,x",
    "/%2f%2fevil.example",
    "/%2fevil.example",
    "/%5cevil.example",
    "/..//evil.example",
    "/.//evil.example",
    "/./\\evil.example",
    "evil.example",
    "@evil.example",
    ".evil.example",
    ":80",
    "?x=//evil.example",
    "#//evil.example",
    "",
    " //evil.example",
    "\u{2028}//evil.example",
    "/\u{a0}/evil.example",
    "http://localhost:1/",
    "//localhost:1/",
    "%2f%2fevil.example",
    "/%00",
    "/x\r\nSet-Cookie: a=b",
    "/auth/logout",
    "/auth/login",
    "/auth/callback?code=x",
    "/auth",
    "/a/../auth/logout",
    "/%61uth/logout",
    "//user@evil.example/",
];

/// FAPI2-14, RFC9700-05, ASVS-1.2.2, ASVS-3.7.2: nobody is sent elsewhere after a login.
#[tokio::test]
async fn return_to_stays_at_home() {
    let rig = Rig::start().await;
    let long = format!("/{}", "a".repeat(10_240));
    for value in EVIL.iter().copied().chain([long.as_str()]) {
        let browser = rig.gateway.browser();
        let start = browser.start_login(value).await;
        assert_eq!(start.status, 302, "{value:?}");
        let callback = rig.back(&browser, &start).await;
        let end = rig.land(&browser, &callback).await;
        let target = target_of(at_callback(&end));
        assert_eq!(target.origin().ascii_serialization(), rig.gateway.public_url, "{value:?} leads to {target}");
        assert!(!target.path().starts_with("/auth"), "{value:?} leads to {target}");
        assert!(!target.as_str().to_lowercase().contains("set-cookie"), "{value:?}");
        assert!(browser.history().iter().all(|answer| !answer.url.contains("//evil")), "{value:?}");
        assert!(signed_in(&browser).await, "{value:?}");
    }
    for value in ["/", "/a/b?c=d&e=f", "/a?b=//evil.example", "/%C3%A4?x=%2F%2Fe", "/a?next=https://x.example/"] {
        let page = rig.gateway.browser().login(value).await;
        assert_eq!((page.status, page.url), (200, format!("{}{value}", rig.gateway.public_url)));
    }
}

/// oidcc-client-test-3rd-party-init-login: our issuer only, and a local target only.
#[tokio::test]
async fn a_third_party_may_start_a_login_at_our_provider() {
    let rig = Rig::start().await;
    let issuer = percent(&rig.provider.issuer);
    let browser = rig.gateway.browser();
    let url = format!("/auth/login?iss={issuer}&login_hint=alice&target_link_uri=/inbox");
    let page = browser.navigate_from(Initiator::CrossSite, &url).await;
    assert_eq!((page.status, page.path().as_str()), (200, "/inbox"));
    assert_eq!(rig.provider.calls_to(Endpoint::Authorize)[0].param("login_hint"), Some("alice"));
    for query in [
        "iss=https://other.example".to_owned(),
        format!("iss={issuer}%2F"),
        format!("iss={issuer}&iss={issuer}"),
        "iss=".to_owned(),
    ] {
        let answer = browser.send(Ask::navigate(&format!("/auth/login?{query}")).stay()).await;
        error_page(&answer, 400, "bad_request");
    }
    // It is a URL in the specification; ours is as good as its path.
    let ours = &rig.gateway.public_url;
    for (target, path) in [(format!("{ours}/deep?x=1"), "/deep"), (ours.clone(), "/"), (format!("{ours}/"), "/")] {
        let url = format!("/auth/login?iss={issuer}&target_link_uri={}", percent(&target));
        let page = rig.gateway.browser().navigate_from(Initiator::CrossSite, &url).await;
        assert_eq!((page.status, page.path().as_str()), (200, path), "{target}");
    }
    let (evil, port) = (format!("{ours}.evil.example/"), format!("{ours}1/x"));
    for target in
        ["//evil.example", "https://evil.example/", "/auth/logout", &format!("{ours}//evil.example"), &evil, &port]
    {
        let browser = rig.gateway.browser();
        let url = format!("/auth/login?iss={issuer}&target_link_uri={}", percent(target));
        let page = browser.navigate_from(Initiator::CrossSite, &url).await;
        assert_eq!((page.status, page.path().as_str()), (200, "/"), "{target}");
    }
}

/// Without an ID token it is missed as well.
#[tokio::test]
async fn a_login_without_openid_is_told_that_no_refresh_token_came() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    provider.set(|s| s.refresh_token_at_login = false);
    let gateway = Gateway::start_with(&provider, &upstream, |config| {
        set(config, "provider.preset", r#""oauth2""#);
        set(config, "provider.scopes", r#"["api", "refresh_token"]"#);
    })
    .await;
    gateway.browser().login("/").await;
    let hint = gateway.wait_for_log("no_refresh_token", 1).await;
    assert!(hint[0].to_string().contains("the scope refresh_token was asked for"), "{hint:?}");
}

/// ASVS-7.6.2: a silent login comes back either way, without a loop and without a page of ours in between.
#[tokio::test]
async fn a_silent_login_comes_back_either_way() {
    let rig = Rig::start().await;
    for known in [true, false] {
        rig.provider.set(|s| s.signed_in = known);
        let browser = rig.gateway.browser();
        let before = (rig.authorizations(), rig.provider.code_exchanges());
        let page = browser.navigate_from(Initiator::SameOrigin, "/auth/login?prompt=none&return_to=/after").await;
        assert_eq!((page.status, page.path().as_str()), (200, "/after"));
        assert_eq!(signed_in(&browser).await, known);
        assert_eq!(rig.authorizations(), before.0 + 1);
        assert_eq!(rig.provider.code_exchanges(), before.1 + usize::from(known));
        assert_eq!(login_cookies(&browser), [""; 0]);
    }
    // What is sent with every login else would show something.
    let asking = Rig::with(|config| set(config, "provider.authorize_params", r#"{ prompt = "consent" }"#)).await;
    asking.provider.set(|s| s.signed_in = false);
    let browser = asking.gateway.browser();
    let page = browser.navigate_from(Initiator::SameOrigin, "/auth/login?prompt=none&return_to=/after").await;
    assert_eq!((page.status, page.path().as_str()), (200, "/after"));
    assert_eq!(asking.provider.calls_to(Endpoint::Authorize)[0].param("prompt"), Some("none"));
    assert!(!signed_in(&browser).await);
    // A page that needs a session would start over: the signed-out page instead.
    let browser = rig.gateway.browser();
    let page = browser.navigate_from(Initiator::SameOrigin, "/auth/login?prompt=none&return_to=/api/x").await;
    assert_eq!((page.status, page.path().as_str()), (200, "/auth/callback"));
    assert!(page.text().contains("/auth/login?return_to=/api/x"), "{}", page.text());
    assert!(page.hops_to().is_none(), "it must not go on by itself");
}

// -- The callback --------------------------------------------------------------------------------------------------

/// RFC9700-02, RFC9700-18, RFC6749-01, BFF-02, ASVS-2.2.1, ASVS-2.2.2, ASVS-2.3.1, ASVS-10.2.1: a page with 400,
/// without a token call; the login that is under way survives it.
#[tokio::test]
async fn a_callback_that_proves_nothing_is_refused() {
    let rig = Rig::start().await;
    let browser = rig.gateway.browser();
    let callback = rig.callback(&browser, "/done").await;
    let (at, query) = callback.split_once('?').unwrap();
    let pairs = text::unform(query.as_bytes());
    let part = |name: &str| text::get(&pairs, name).map(|value| format!("{name}={}", percent(value))).unwrap();
    let (code, state, iss) = (part("code"), part("state"), part("iss"));
    let last = if state.ends_with('A') { "B" } else { "A" };
    let altered = format!("{}{last}", &state[..state.len() - 1]);
    let rows = [
        String::new(),
        format!("{code}&{iss}"),
        format!("{code}&{iss}&state="),
        format!("{code}&{iss}&state=chosen-by-somebody-else"),
        format!("{code}&{iss}&{state}x"),
        format!("{code}&{iss}&{altered}"),
        format!("{code}&{iss}&{state}&{state}"),
        format!("{code}&{iss}&{state}&state=other"),
        format!("{code}&{code}&{iss}&{state}"),
        format!("{code}&code=other&{iss}&{state}"),
        format!("{code}&{iss}&{iss}&{state}"),
        format!("error=access_denied&error=access_denied&{iss}&{state}"),
        format!("{code}&error=access_denied&{iss}&{state}"),
        format!("{iss}&{state}"),
        format!("code=&{iss}&{state}"),
        format!("{code}&{iss}&{state}&access_token=x"),
        format!("{code}&{iss}&{state}&id_token=x"),
        format!("{code}&{iss}&{state}&refresh_token=x"),
        format!("access_token=x&{iss}&{state}"),
    ];
    let refused = |outcome| rig.gateway.metric("sidegate_logins_total", &[("outcome", outcome)]);
    for query in &rows {
        let answer = rig.land_only(&browser, &format!("{at}?{query}")).await;
        error_page(&answer, 400, "bad_callback");
        assert!(answer.location().is_none());
    }
    assert_eq!(rig.provider.code_exchanges(), 0);
    assert_eq!(refused("bad_callback"), rows.len() as f64);
    let end = rig.land(&browser, &format!("{callback}&session_state=x&unheard-of=1")).await;
    assert_eq!((end.status, end.path().as_str()), (200, "/done"), "unknown parameters are ignored: {}", end.text());
    assert!(signed_in(&browser).await);
}

/// BFF-36, RFC9700-02, ASVS-10.1.2: a callback of somebody else's browser signs nobody in; the code is never sent.
#[tokio::test]
async fn a_callback_from_another_browser_is_not_taken() {
    let rig = Rig::start().await;
    let attacker = rig.gateway.browser();
    let callback = rig.callback(&attacker, "/").await;
    let victim = rig.gateway.browser();
    let answer = rig.land_only(&victim, &callback).await;
    assert_eq!(answer.set_cookies(), []);
    assert_eq!((rig.provider.code_exchanges(), session_cookies(&victim)), (0, vec![]));
    // With a login of its own under way, too.
    victim.start_login("/mine").await;
    rig.land_only(&victim, &callback).await;
    assert_eq!((rig.provider.code_exchanges(), session_cookies(&victim)), (0, vec![]));
    // Another gateway's state is a foreign one.
    let other = Rig::start().await;
    let query = callback.split_once('?').unwrap().1;
    let answer = other.land_only(&other.gateway.browser(), &format!("/auth/callback?{query}")).await;
    error_page(&answer, 400, "bad_callback");
}

/// RFC9207-01, RFC9207-02, RFC9207-03, ASVS-10.2.2: `iss` of the authorization answer, errors too.
#[tokio::test]
async fn the_issuer_of_the_answer_is_checked() {
    for announced in [true, false] {
        let rig = Rig::prepared(|provider| provider.set(|s| s.announce_iss = announced), |_, _| {}).await;
        let issuer = rig.provider.issuer.clone();
        let wrong = [
            IssParameter::Is(format!("{issuer}/")),
            IssParameter::Is(issuer.to_uppercase()),
            IssParameter::Is(issuer.replace("http://", "https://")),
            IssParameter::Is("https://other.example".to_owned()),
            IssParameter::Is(String::new()),
        ];
        let missing = announced.then_some(IssParameter::Missing);
        for iss in wrong.into_iter().chain(missing) {
            for error in [false, true] {
                let (what, told) = (format!("{iss:?} announced: {announced} error: {error}"), "told-by-the-wrong-one");
                let more = vec![("error_description".to_owned(), told.to_owned())];
                rig.provider.set(|s| {
                    s.iss_parameter = iss.clone();
                    s.authorization = match error {
                        true => Authorization::Error { error: "access_denied".to_owned(), more },
                        false => Authorization::Code,
                    };
                });
                let browser = rig.gateway.browser();
                let callback = rig.callback(&browser, "/").await;
                let jar = browser.jar();
                let answer = rig.land_only(&browser, &callback).await;
                error_page(&answer, 400, "bad_callback");
                assert!(!answer.text().contains(told), "{what}");
                assert_eq!(login_cookies(&browser), [""; 0], "{what}: the attempt is over");
                // Consumed: with the right issuer it is too late, even for who kept the cookie.
                browser.set_jar(jar);
                let state = text::unform(callback.split_once('?').unwrap().1.as_bytes());
                let state = percent(text::get(&state, "state").unwrap());
                let again = format!("/auth/callback?code=x&state={state}&iss={}", percent(&issuer));
                rig.land_only(&browser, &again).await;
                assert_eq!((rig.provider.code_exchanges(), session_cookies(&browser)), (0, vec![]), "{what}");
            }
        }
        rig.provider.set(|s| {
            s.authorization = Authorization::Code;
            s.iss_parameter = if announced { IssParameter::Right } else { IssParameter::Missing };
        });
        assert_eq!(rig.gateway.browser().login("/").await.status, 200);
    }
}

/// RFC6749-02, ERR-01: the provider's no is a page of ours, without its words and without a loop.
#[tokio::test]
async fn an_error_of_the_provider_is_shown_once_and_not_quoted() {
    let rig = Rig::start().await;
    let hostile = "<script>alert(1)</script>\"'&";
    for error in ["access_denied", "server_error", "temporarily_unavailable", "invalid_scope", hostile] {
        rig.provider.set(|s| {
            let more = vec![
                ("error_description".to_owned(), format!("{hostile} told you so")),
                ("error_uri".to_owned(), "https://evil.example/explain".to_owned()),
            ];
            s.authorization = Authorization::Error { error: error.to_owned(), more };
        });
        let before = rig.authorizations();
        let browser = rig.gateway.browser();
        let page = browser.login("/").await;
        error_page(&page, 400, "login_refused");
        for text in ["told you so", "evil.example", "alert(1)"] {
            assert!(!page.text().contains(text), "{error}: {text}");
        }
        assert_eq!(login_cookies(&browser), [""; 0], "{error}: the attempt's cookie is deleted");
        assert_eq!((rig.authorizations(), signed_in(&browser).await), (before + 1, false), "{error}");
    }
    assert_eq!(rig.provider.code_exchanges(), 0);
    assert_eq!(rig.gateway.metric("sidegate_logins_total", &[("outcome", "refused")]), 5.0);
    rig.provider.set(|s| s.authorization = Authorization::OnlyState);
    error_page(&rig.gateway.browser().login("/").await, 400, "bad_callback");
}

/// TOK-04: a login that is granted less than is required is refused; what is only asked for may be missing.
#[tokio::test]
async fn a_login_without_a_required_scope_is_refused() {
    let rig = Rig::with(|config| {
        set(config, "provider.scopes", r#"["openid", "email", "api:read"]"#);
        set(config, "provider.required_scopes", r#"["openid", "api:read"]"#);
    })
    .await;
    for less in ["openid", "openid email api:rea", "api:read"] {
        rig.provider.set(|s| s.granted_scope = Some(less.to_owned()));
        let browser = rig.gateway.browser();
        error_page(&browser.login("/").await, 400, "login_refused");
        assert!(!signed_in(&browser).await, "{less:?}");
    }
    assert_eq!(rig.gateway.metric("sidegate_logins_total", &[("outcome", "invalid")]), 3.0);
    // The last one does not name its scope: that grants what was asked for.
    for enough in ["openid api:read", "api:read more openid", ""] {
        rig.provider.set(|s| s.granted_scope = Some(enough.to_owned()));
        let browser = rig.gateway.browser();
        browser.login("/").await;
        assert!(signed_in(&browser).await, "{enough:?}");
    }
}

/// RFC9700-03, TOK-03, ASVS-2.3.1: a code is sent once, whatever became of it, even for a browser that kept the
/// attempt's cookie.
#[tokio::test]
async fn a_code_is_sent_once() {
    let rig = Rig::start().await;
    for failing in [false, true] {
        let browser = rig.gateway.browser();
        let callback = rig.callback(&browser, "/").await;
        let jar = browser.jar();
        if failing {
            rig.provider.set(|s| s.fail_code(Outage::Status(503)));
        }
        let before = rig.provider.code_exchanges();
        let first = rig.land_only(&browser, &callback).await;
        assert_eq!(first.status, if failing { 503 } else { 302 });
        rig.provider.set(|s| s.heal(Endpoint::Token));
        for _ in 0..3 {
            browser.set_jar(jar.clone());
            let again = rig.land_only(&browser, &callback).await;
            assert!(again.status < 500 && session_cookies(&browser).is_empty(), "{again:?}");
        }
        assert_eq!(rig.provider.code_exchanges(), before + 1, "failing: {failing}");
    }
    assert_eq!(rig.provider.violations(), [""; 0]);
}

/// ASVS-15.4.2: a double click: the same callback twice at once shares one exchange, and both end signed in.
#[tokio::test]
async fn the_same_callback_twice_at_once_shares_one_exchange() {
    let rig = Rig::start().await;
    let browser = rig.gateway.browser();
    let callback = rig.callback(&browser, "/done").await;
    let held = rig.provider.hold_token_answers();
    let ask = Ask::navigate(&callback).from(Initiator::Origin(rig.provider.issuer.clone()));
    let (one, two) = (browser.launch(&ask).await, browser.launch(&ask).await);
    held.wait_for(1).await;
    for _ in 0..5 {
        // Later requests are answered: the second callback has been read by now.
        browser.fork().fetch("/auth/session").await;
    }
    held.release();
    for answer in [one.answer().await, two.answer().await] {
        assert_eq!((answer.status, answer.location()), (302, Some("/done#")), "{}", answer.text());
        assert!(answer.set_cookie("sidegate").is_some());
        let own = rig.gateway.browser();
        own.land(&answer);
        assert_eq!(own.fetch("/api/x").await.status, 200);
    }
    assert_eq!((rig.provider.code_exchanges(), rig.provider.violations()), (1, vec![]));
    assert_eq!(rig.gateway.metric("sidegate_logins_total", &[]), 1.0);
}

/// The browser that leaves in the middle loses nothing for others, and its code is spent (RFR-03's sister).
#[tokio::test]
async fn a_browser_that_leaves_during_the_exchange_does_no_harm() {
    let rig = Rig::start().await;
    let browser = rig.gateway.browser();
    let callback = rig.callback(&browser, "/").await;
    let held = rig.provider.hold_token_answers();
    let ask = Ask::navigate(&callback).from(Initiator::Origin(rig.provider.issuer.clone()));
    let flight = browser.launch(&ask).await;
    held.wait_for(1).await;
    flight.abort();
    held.release();
    rig.provider.wait_for_answers(Endpoint::Token, 1).await;
    let end = rig.land(&browser, &callback).await;
    assert_eq!(end.status, 200, "a new login takes over: {end:?}");
    assert!(signed_in(&browser).await);
    assert_eq!(rig.provider.violations(), [""; 0]);
}

/// The back button: with a live session a stale callback goes home, by way of the hop page.
#[tokio::test]
async fn a_stale_callback_goes_home_when_signed_in() {
    let rig = Rig::start().await;
    let browser = rig.gateway.browser();
    let callback = rig.callback(&browser, "/deep").await;
    assert_eq!(rig.land(&browser, &callback).await.path(), "/deep");
    let (asked, exchanges) = (rig.authorizations(), rig.provider.code_exchanges());

    let hop = rig.land_only(&browser, &callback).await;
    assert_eq!((hop.status, hop.location()), (200, None));
    assert!(hop.hops_to().is_some_and(|to| to.starts_with("/auth/")), "{}", hop.text());
    assert_eq!(hop.header("cache-control"), Some("no-store"));
    assert!(hop.header("content-security-policy").unwrap().contains("default-src 'none'"));
    for end in [rig.land(&browser, &callback).await, browser.navigate(&callback).await] {
        assert_eq!((end.status, end.path().as_str()), (200, "/"), "{end:?}");
    }
    assert_eq!((rig.authorizations(), rig.provider.code_exchanges()), (asked, exchanges), "nobody was asked");
    assert!(signed_in(&browser).await);
}

/// An attempt that expired, or whose cookie is gone, starts over, at most three times in a row.
#[tokio::test]
async fn a_stale_callback_starts_over_at_most_three_times() {
    let rig = Rig::start().await;
    // Once is enough when cookies work.
    let browser = rig.gateway.browser();
    let callback = rig.callback(&browser, "/").await;
    rig.gateway.advance(&rig.provider, 601);
    let end = rig.land(&browser, &callback).await;
    assert_eq!((end.status, rig.provider.code_exchanges()), (200, 1), "{end:?}");
    assert!(signed_in(&browser).await);

    // A browser that keeps no cookie of ours.
    let browser = rig.gateway.browser();
    let forgetful = async |ask: Ask| {
        browser.set_jar(support::client::Jar::default());
        browser.send(ask.stay()).await
    };
    let (before, exchanges) = (rig.authorizations(), rig.provider.code_exchanges());
    let mut callback = rig.callback(&browser, "/").await;
    let mut last = 0;
    for _ in 0..10 {
        let stale = forgetful(Ask::navigate(&callback).from(Initiator::Origin(rig.provider.issuer.clone()))).await;
        last = stale.status;
        let Some(next) = stale.hops_to() else {
            error_page(&stale, 400, "bad_callback");
            break;
        };
        let start = forgetful(Ask::navigate(&next).from(Initiator::SameOrigin)).await;
        callback = rig.back(&browser, &start).await;
    }
    assert_eq!((last, rig.authorizations() - before), (400, 4), "the first and three more");
    assert_eq!(rig.provider.code_exchanges(), exchanges);

    let answer = browser.send(Ask::navigate("/auth/login?resume=chosen").stay()).await;
    error_page(&answer, 400, "bad_callback");
}

// -- Tabs ----------------------------------------------------------------------------------------------------------

/// COOKIE-07: several tabs log in at once and finish in any order.
#[tokio::test]
async fn parallel_tabs_finish_in_any_order() {
    let rig = Rig::start().await;
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let browser = rig.gateway.browser();
        let mut callbacks = Vec::new();
        for tab in 0..3 {
            callbacks.push(rig.callback(&browser, &format!("/tab{tab}")).await);
        }
        for tab in order {
            let page = rig.land(&browser, &callbacks[tab]).await;
            assert_eq!((page.status, page.path()), (200, format!("/tab{tab}")), "{order:?}");
        }
        assert_eq!(login_cookies(&browser), [""; 0]);
        assert!(signed_in(&browser).await);
        assert_eq!(browser.fetch("/api/x").await.status, 200);
    }
    assert_eq!((rig.provider.code_exchanges(), rig.provider.violations()), (9, vec![]));
}

/// COOKIE-07, BFF-37, DOS-10: at most five attempts, the newest among them.
#[tokio::test]
async fn pending_attempts_are_capped() {
    let rig = Rig::start().await;
    let browser = rig.gateway.browser();
    for n in 0..12 {
        browser.start_login(&format!("/n{n}")).await;
        assert!(login_cookies(&browser).len() <= 5);
        rig.gateway.advance(&rig.provider, 1);
    }
    let callback = rig.callback(&browser, "/last").await;
    assert_eq!(login_cookies(&browser).len(), 5);
    assert_eq!(rig.land(&browser, &callback).await.path(), "/last");
}

// -- SameSite=Strict -----------------------------------------------------------------------------------------------

/// COOKIE-05, REG-34: a cold login lands on the protected page in one trip, however the user came.
#[tokio::test]
async fn a_cold_login_lands_on_the_protected_page_in_one_trip() {
    let rig = Rig::start().await;
    for chain_aware in [false, true] {
        for from in [Initiator::SameOrigin, Initiator::Typed, Initiator::CrossSite, Initiator::SameSite] {
            let what = format!("{from:?} chain-aware: {chain_aware}");
            let before = rig.authorizations();
            let mut browser = rig.gateway.browser();
            browser.chain_aware = chain_aware;
            let page = browser.navigate_from(from, "/api/page?a=1").await;
            assert_eq!((page.status, page.path().as_str()), (200, "/api/page"), "{what}: {:?}", page.error);
            assert_eq!(rig.upstream.last().target, "/api/page?a=1", "{what}");
            assert!(rig.upstream.last().bearer().is_some_and(|token| rig.provider.is_active(token)), "{what}");
            assert_eq!(rig.authorizations(), before + 1, "{what}: more than one trip");
        }
    }
}

/// COOKIE-05: a link in a mail keeps the session: one hop page, no login.
#[tokio::test]
async fn a_link_from_another_site_hops_once() {
    let rig = Rig::with(|config| {
        let mut strict = config["route"][0].as_table().unwrap().clone();
        strict.insert("path".to_owned(), "/strict/".into());
        strict.insert("on_anonymous".to_owned(), "401".into());
        config["route"].as_array_mut().unwrap().push(strict.into());
    })
    .await;
    let browser = rig.gateway.signed_in().await;
    let asked = rig.authorizations();
    let page = browser.navigate_from(Initiator::CrossSite, "/api/page?from=mail").await;
    assert_eq!((page.status, rig.upstream.last().target.as_str()), (200, "/api/page?from=mail"));
    assert_eq!(rig.authorizations(), asked, "a login was started although there is a session");
    let [hop] = &page.via[..] else { panic!("{:?}", page.via) };
    assert_eq!((hop.status, hop.location()), (200, None));
    assert_eq!(hop.header("cache-control"), Some("no-store"));
    assert!(hop.header("content-security-policy").unwrap().contains("default-src 'none'"));
    assert!(!hop.text().to_lowercase().contains("<script"));

    // Nothing but such a navigation gets it.
    for ask in [Ask::frame("/api/x"), Ask::fetch("/api/x"), Ask::image("/api/x"), Ask::navigate("/strict/x")] {
        let answer = browser.send(ask.from(Initiator::CrossSite).stay()).await;
        assert!(matches!(answer.status, 401 | 403), "{:?}: {}", answer.sent, answer.status);
    }
    let form = Ask::navigate("/api/x").method("POST").from(Initiator::CrossSite).stay();
    assert!(browser.send(form).await.hops_to().is_none());
    // Without a session the hop leads to the login, not to another hop.
    let stranger = rig.gateway.browser();
    let first = stranger.send(Ask::navigate("/api/x").from(Initiator::CrossSite).stay()).await;
    let next = stranger.send(Ask::navigate(&first.hops_to().unwrap()).from(Initiator::SameOrigin).stay()).await;
    assert_eq!((next.status, next.location()), (302, Some("/auth/login?return_to=/api/x")));
}

/// Contract 3: the attempt's cookie is deleted, however the login began. Browsers that withhold the Strict cookie from the
/// page behind a typed login's redirects get the hop page there.
#[tokio::test]
async fn a_typed_login_leaves_no_attempt_and_ends_in_the_app() {
    let rig = Rig::start().await;
    let browser = rig.gateway.browser();
    let page = browser.navigate("/api/page").await;
    assert_eq!(page.status, 200, "{page:?}");
    let jar = browser.jar();
    let names = jar.names();
    assert!(names.iter().all(|name| !name.contains("-login-")), "{names:?}");

    let trace = names.iter().find(|name| name.ends_with("-returned")).expect("a trace");
    let kept = jar.get(trace).unwrap();
    assert!(kept.max_age == Some(10) && kept.same_site == SameSite::Lax && kept.http_only, "{kept:?}");
    let withheld = |cookie: String| Ask::navigate("/api/page").cookie(&cookie).stay();
    let hop = browser.fork().send(withheld(format!("{trace}={}", kept.value))).await;
    assert_eq!((hop.status, hop.hops_to()), (200, Some("/api/page".to_owned())));
    let login = browser.fork().send(withheld("a=b".to_owned())).await;
    assert_eq!(login.status, 302, "without the trace a typed address leads to the login");
    assert!(!rig.upstream.last().header("cookie").unwrap_or_default().contains("returned"));
}

// -- Who is signed in ----------------------------------------------------------------------------------------------

/// REG-07, REG-25, ASVS-7.2.4: a login replaces the session that the browser had, once it is finished.
#[tokio::test]
async fn a_login_replaces_the_session_before_it() {
    let rig = Rig::start().await;
    let browser = rig.gateway.signed_in().await;
    let old = browser.fork();
    let before = browser.cookie("sidegate");
    rig.provider.set(|s| s.sub = "bob-1".to_owned());
    let start = browser.start_login("/").await;
    assert_eq!(browser.session().await["claims"]["sub"], "alice-4711", "an unfinished login changes nothing");
    let callback = rig.back(&browser, &start).await;
    rig.land(&browser, &callback).await;
    assert_ne!(browser.cookie("sidegate"), before);
    assert_eq!(browser.session().await["claims"]["sub"], "bob-1");
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    assert_eq!(old.fetch("/api/x").await.status, 401, "the session before is over");
    assert!(!signed_in(&old).await);
    assert_eq!(rig.gateway.metric("sidegate_sessions_ended_total", &[("reason", "replaced")]), 1.0);

    // A refused login leaves the session alone.
    rig.provider.set(|s| s.authorization = Authorization::error("access_denied"));
    error_page(&browser.login("/").await, 400, "login_refused");
    assert_eq!(browser.session().await["claims"]["sub"], "bob-1");
}

/// REG-07, ASVS-7.2.2: a planted cookie is not adopted: the thief's session does not become the victim's.
#[tokio::test]
async fn a_planted_session_is_not_adopted() {
    let rig = Rig::start().await;
    let thief = rig.gateway.signed_in().await;
    let victim = thief.fork();
    rig.provider.set(|s| s.sub = "victim-1".to_owned());
    victim.login("/").await;
    assert_eq!(victim.session().await["claims"]["sub"], "victim-1");
    assert_ne!(thief.session().await["claims"]["sub"], "victim-1");
    assert_ne!(thief.cookie("sidegate"), victim.cookie("sidegate"));
}

/// Contract 2.5, ASVS-4.2.5: over the budget the login is refused with a page that says so.
#[tokio::test]
async fn tokens_that_do_not_fit_refuse_the_login() {
    let rig = Rig::start().await;
    rig.provider.set(|s| s.access_token = AccessToken::Sized(16 * 1024));
    let browser = rig.gateway.browser();
    error_page(&browser.login("/").await, 500, "session_too_large");
    assert_eq!(session_cookies(&browser), [""; 0]);
    rig.provider.set(|s| s.access_token = AccessToken::Opaque);
    rig.gateway.signed_in().await;
}

/// LOG-01, LOG-02, LOG-07, MET-03, ASVS-16.3.1: each login is one event, a refused one with its reason, and no secret
/// is in the log.
#[tokio::test]
async fn logins_are_logged_once_and_without_secrets() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start_with(&provider, &upstream, |config| {
        set(config, "log.level", r#""debug""#);
        set(config, "log.format", r#""json""#);
    })
    .await;
    let browser = gateway.signed_in().await;
    let login = gateway.wait_for_log("login", 1).await;
    assert!(login[0]["sub_hash"].is_string() && login[0]["request_id"].is_string(), "{login:?}");

    provider.set(|s| s.fault = Some(support::provider::Fault::NonceInvalid));
    gateway.browser().login("/").await;
    assert_eq!(gateway.wait_for_log("login_refused", 1).await[0]["reason"], "nonce");
    provider.set(|s| (s.fault, s.authorization) = (None, Authorization::error("access_denied")));
    gateway.browser().login("/").await;
    assert_eq!(gateway.wait_for_log("login_refused", 2).await[1]["reason"], "access_denied");
    gateway.browser().navigate("/auth/callback?code=query-canary-1&state=query-canary-2").await;
    assert_eq!(gateway.wait_for_log("login_refused", 3).await[2]["reason"], "state");
    provider.set(|s| (s.authorization, s.refresh_token_at_login) = (Authorization::Code, false));
    gateway.browser().login("/").await;
    let hint = gateway.wait_for_log("no_refresh_token", 1).await;
    assert!(hint[0].to_string().contains("prompt"), "{hint:?}");
    browser.post("/auth/logout").await;
    gateway.wait_for_log("logout", 1).await;

    let counts = ["login", "login_refused", "no_refresh_token", "logout"].map(|event| gateway.log_events(event).len());
    assert_eq!(counts, [2, 3, 1, 1], "{}", gateway.output());
    assert_eq!(gateway.metric("sidegate_logins_total", &[]).await, 5.0);
    let log = gateway.output();
    provider.canaries().assert_absent("the log", &log);
    for text in ["query-canary", "alice@users.example", "Alice Example", "alice-4711"] {
        assert!(!log.contains(text), "{text} in the log");
    }
    let values = browser.history().into_iter().flat_map(|answer| answer.set_cookies()).map(|cookie| cookie.value);
    assert!(values.filter(|value| value.len() > 20).all(|value| !log.contains(&value)), "a cookie in the log");
    assert!(gateway.stdout().iter().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
}
