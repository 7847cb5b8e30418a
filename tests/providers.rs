//! Several providers behind one gateway: the user chooses, and no code, token or word of one provider reaches another.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use rustix::process::Signal;
use support::client::{Ask, Browser, Initiator, Response};
use support::gateway::{Gateway, config, free_port, set};
use support::inside::Inside;
use support::provider::{Dpop, Endpoint, IssParameter, ProviderDouble, Rotation};
use support::redis::Redis;
use support::text::{self, percent};
use support::upstream::Upstream;
use support::wait::until;
use support::wire::{self, Conn};
use toml::{Table, Value};
use url::Url;

const HOUR: u64 = 3600;

struct Rig {
    /// Called `home`.
    home: ProviderDouble,
    /// Called `guests`.
    guests: ProviderDouble,
    upstream: Upstream,
    gateway: Inside,
}

/// `[provider]` becomes `[[provider]]` with a second one.
fn several(config: &mut Table, guests: &ProviderDouble) {
    set(config, "server.single_replica", "true");
    set(config, "logout.backchannel", "true");
    let mut home = config["provider"].as_table().unwrap().clone();
    let mut other = home.clone();
    home.insert("name".to_owned(), "home".into());
    other.insert("name".to_owned(), "guests".into());
    other.insert("issuer".to_owned(), guests.issuer.as_str().into());
    other.insert("client_secret".to_owned(), guests.client_secret().into());
    config.insert("provider".to_owned(), Value::Array(vec![home.into(), other.into()]));
}

fn of(config: &mut Table, index: usize) -> &mut Table {
    config["provider"].as_array_mut().unwrap()[index].as_table_mut().unwrap()
}

impl Rig {
    async fn start() -> Self {
        Self::with(|_, _| {}).await
    }

    async fn with(change: impl FnOnce(&mut Table, &ProviderDouble)) -> Self {
        let (home, guests) = (ProviderDouble::start().await, ProviderDouble::start().await);
        let upstream = Upstream::start().await;
        let gateway = Inside::start_with(&home, &upstream, |config| {
            several(config, &guests);
            guests.register(config["server"]["public_url"].as_str().unwrap());
            change(config, &guests);
        })
        .await;
        Self { home, guests, upstream, gateway }
    }

    async fn signed_in(&self, name: &str) -> Browser {
        let browser = self.gateway.browser();
        let page = go(&browser, &format!("/auth/login?return_to=/x&provider={name}")).await;
        assert_eq!((page.status, page.path().as_str()), (200, "/x"), "{page:?}");
        browser
    }

    fn tokens_of(&self) -> (usize, usize) {
        (self.home.calls_to(Endpoint::Token).len(), self.guests.calls_to(Endpoint::Token).len())
    }
}

async fn go(browser: &Browser, url: &str) -> Response {
    browser.navigate_from(Initiator::SameOrigin, url).await
}

#[tokio::test]
async fn the_user_chooses_and_stays_with_that_provider() {
    let rig = Rig::start().await;
    let browser = rig.gateway.browser();
    let page = go(&browser, "/auth/login?return_to=/x%3Fa%3D1%26b&ui_locales=de").await;
    let html = page.text();
    assert_eq!(page.status, 200);
    assert!(
        !html.contains("<script") && page.header("content-security-policy").unwrap().starts_with("default-src 'none'")
    );
    assert!(page.set_cookies().is_empty(), "nothing is begun yet");
    for name in ["home", "guests"] {
        assert!(html.contains(&format!(">{name}</a>")), "{html}");
    }
    let (_, link) = html.rsplit_once("href=\"").unwrap();
    let link = link.split_once('"').unwrap().0.replace("&#38;", "&");
    assert_eq!(go(&browser, &link).await.path(), "/x", "{link}");
    assert_eq!(rig.guests.last_session().params.iter().find(|(name, _)| name == "ui_locales").unwrap().1, "de");

    assert_eq!(browser.fetch("/api/x").await.status, 200);
    assert!(rig.guests.is_active(rig.upstream.last().bearer().unwrap()));
    rig.gateway.advance(&rig.guests, HOUR);
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    assert!(rig.guests.is_active(rig.upstream.last().bearer().unwrap()));
    let out = browser.post("/auth/logout").await;
    assert!(out.json()["location"].as_str().unwrap().starts_with(&rig.guests.issuer), "{out:?}");
    assert_eq!(rig.guests.calls_to(Endpoint::Revocation).len(), 2);
    assert_eq!(browser.fetch("/api/x").await.status, 401);
    // The other one never saw a code, a token or a logout.
    for endpoint in [Endpoint::Authorize, Endpoint::Token, Endpoint::Revocation, Endpoint::EndSession] {
        assert!(rig.home.calls_to(endpoint).is_empty(), "{endpoint:?}");
    }
    assert_eq!(rig.guests.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_login_names_its_provider_by_name_or_by_issuer() {
    let rig = Rig::start().await;
    rig.signed_in("home").await;
    assert_eq!(rig.tokens_of(), (1, 0));
    let iss = percent(&rig.guests.issuer);
    let browser = rig.gateway.browser();
    assert_eq!(go(&browser, &format!("/auth/login?iss={iss}&target_link_uri=/y")).await.path(), "/y");
    assert_eq!(rig.tokens_of(), (1, 1));
    for query in
        ["provider=nobody", "provider=home&provider=guests", &format!("provider=home&iss={iss}"), "iss=https://x"]
    {
        let answer = rig.gateway.browser().navigate(&format!("/auth/login?{query}")).await;
        assert_eq!(answer.status, 400, "{query}");
        assert!(answer.text().contains("bad_request") && answer.set_cookies().is_empty(), "{query}");
    }
    // A silent try asks nobody, and comes back.
    assert_eq!(go(&rig.gateway.browser(), "/auth/login?return_to=/z&prompt=none").await.path(), "/z");
    assert_eq!(rig.tokens_of(), (1, 1));
}

/// RFC9207-03, RFC9700-06, ASVS-10.2.2: an answer that another provider gave ends the attempt, and its code goes
/// nowhere.
#[tokio::test]
async fn a_mixed_up_answer_redeems_nothing() {
    let rig = Rig::start().await;
    let browser = rig.gateway.browser();
    let begin = Ask::navigate("/auth/login?return_to=/x&provider=home").from(Initiator::SameOrigin).stay();
    let start = browser.send(begin).await;
    assert!(start.location().unwrap().starts_with(&rig.home.issuer), "{start:?}");
    let state = start.location_param("state").unwrap();
    let callback = |iss: &str| format!("/auth/callback?code=c&state={}&iss={}", percent(&state), percent(iss));
    let answer = browser.navigate(&callback(&rig.guests.issuer)).await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("bad_callback"));
    let again = browser.navigate(&callback(&rig.home.issuer)).await;
    assert_ne!(again.path(), "/x");
    assert_eq!(rig.tokens_of(), (0, 0), "the attempt is over");
}

/// BCL, ASVS-6.8.1: the same subject at two providers is two users.
#[tokio::test]
async fn a_logout_token_ends_sessions_of_its_own_provider_only() {
    let rig = Rig::start().await;
    let (home, guests) = (rig.signed_in("home").await, rig.signed_in("guests").await);
    let token = rig.home.logout_token(Some("alice-4711"), None, None);
    let ask = Ask::fetch("/auth/logout/backchannel").method("POST").from(Initiator::Typed);
    let body = format!("logout_token={token}");
    let answer = rig.gateway.browser().send(ask.body("application/x-www-form-urlencoded", body)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(home.fetch("/api/x").await.status, 401);
    assert_eq!(guests.fetch("/api/x").await.status, 200);
}

/// RFC9700-06: mix-up where neither says `iss`. The user begins at the attacker's provider, which leads on to the honest one
/// in its place, with what sidegate asked of the attacker. With one callback for all the code would be the attacker's;
/// with a callback of its own it is nobody's.
#[tokio::test]
async fn the_callback_says_whose_answer_it_is_where_the_provider_does_not() {
    for (callback, robbed) in [("shared", 1), ("own", 0)] {
        let rig = Rig::with(|config, _| drop(of(config, 0).insert("callback".to_owned(), callback.into()))).await;
        for provider in [&rig.home, &rig.guests] {
            provider.set(|s| (s.announce_iss, s.iss_parameter) = (false, IssParameter::Missing));
        }
        let place = if callback == "own" { "/auth/callback/home" } else { "/auth/callback" };
        let registered = format!("{}{place}", rig.gateway.public_url);
        rig.home.set(|s| s.redirect_uris = vec![registered.clone()]);
        rig.signed_in("home").await;
        rig.signed_in("guests").await;
        assert_eq!(rig.tokens_of(), (1, 1), "{callback}: both work");

        let browser = rig.gateway.browser();
        let begin = Ask::navigate("/auth/login?return_to=/x&provider=guests").from(Initiator::SameOrigin).stay();
        let start = browser.send(begin).await;
        let asked = Url::parse(start.location().unwrap()).unwrap();
        for wanted in [registered, format!("{}/auth/callback", rig.gateway.public_url)] {
            let query: Vec<_> = asked
                .query_pairs()
                .map(|(name, value)| {
                    let value = if name == "redirect_uri" { wanted.clone() } else { value.into_owned() };
                    format!("{name}={}", percent(&value))
                })
                .collect();
            let led = format!("{}?{}", rig.home.url(Endpoint::Authorize), query.join("&"));
            let answer = browser.send(Ask::navigate(&led).from(Initiator::CrossSite).stay()).await;
            if let Some(location) = answer.location() {
                assert!(location.contains("code="), "{answer:?}");
                let end = browser.send(Ask::navigate(location).from(Initiator::CrossSite).stay()).await;
                assert_ne!(end.path(), "/x");
            }
        }
        assert_eq!(rig.tokens_of(), (1, 1 + robbed), "{callback}");
    }
}

/// A callback that is nobody's is not there; an attempt is finished at its provider's only.
#[tokio::test]
async fn a_callback_is_its_provider_s_only() {
    let rig = Rig::with(|config, _| drop(of(config, 0).insert("callback".to_owned(), "own".into()))).await;
    for (path, status) in [
        ("/auth/callback/nobody?code=c&state=s", 404),
        ("/auth/callback/guests?code=c&state=s", 404),
        ("/auth/callback/home/x?code=c&state=s", 404),
        ("/auth/callback/?code=c&state=s", 404),
        ("/auth/callback/home?code=c&state=s", 400),
    ] {
        assert_eq!(rig.gateway.browser().navigate(path).await.status, status, "{path}");
        let wrong = rig.gateway.browser().send(Ask::fetch(path).method("PUT")).await;
        assert_eq!(wrong.status, if status == 404 { 404 } else { 405 }, "what is not there takes no method: {path}");
    }
    for (name, path) in [("home", "/auth/callback"), ("guests", "/auth/callback/home")] {
        let browser = rig.gateway.browser();
        let begin = Ask::navigate(&format!("/auth/login?provider={name}")).from(Initiator::SameOrigin).stay();
        let state = browser.send(begin).await.location_param("state").unwrap();
        let answer = browser.navigate(&format!("{path}?code=c&state={}", percent(&state))).await;
        assert_eq!(answer.status, 400, "{path}");
        assert!(answer.text().contains("bad_callback"), "{path}");
    }
    assert_eq!(rig.tokens_of(), (0, 0));
}

/// The issuer of a provider that many tenants share stands for each of theirs, in a link, a logout token and a frame.
#[tokio::test]
async fn a_tenant_s_issuer_names_its_provider() {
    let rig = Rig::with(|config, guests| {
        set(config, "logout.frontchannel", "true");
        let guest = of(config, 1);
        guest.insert("issuer".to_owned(), format!("{}/{{tenantid}}/v2.0", guests.issuer).into());
        guest.insert("allowed_tenants".to_owned(), vec!["t-1"].into());
        guest.insert("discovery_url".to_owned(), guests.url(Endpoint::Discovery).into());
    })
    .await;
    let tenant = |name: &str| format!("{}/{name}/v2.0", rig.guests.issuer);
    rig.guests.set(|s| {
        s.document_issuer = Some(tenant("{tenantid}"));
        s.id_claims.insert("iss".to_owned(), tenant("t-1").into());
        (s.announce_iss, s.iss_parameter) = (false, IssParameter::Missing);
    });
    let signed_in = || async {
        let browser = rig.gateway.browser();
        let page = go(&browser, &format!("/auth/login?iss={}&target_link_uri=/y", percent(tenant("t-1")))).await;
        assert_eq!((page.status, page.path().as_str()), (200, "/y"), "{page:?}");
        (browser, rig.guests.last_session().sid)
    };
    let (by_token, _) = signed_in().await;
    let mut claims = rig.guests.logout_claims();
    claims.insert("iss".to_owned(), tenant("t-1").into());
    claims.insert("sub".to_owned(), "alice-4711".into());
    let token = rig.guests.logout_token_of("logout+jwt", claims, None);
    let ask = Ask::fetch("/auth/logout/backchannel").method("POST").from(Initiator::Typed);
    let ask = ask.body("application/x-www-form-urlencoded", format!("logout_token={token}"));
    assert_eq!(rig.gateway.browser().send(ask).await.status, 200);
    assert_eq!(by_token.fetch("/api/x").await.status, 401);

    // A second later: what a logout token ends is what was there before it.
    rig.gateway.advance(&rig.guests, 1);
    let (by_frame, sid) = signed_in().await;
    for (issuer, status) in [(tenant("t-2"), 400), (tenant("t-1"), 200)] {
        assert_eq!(by_frame.fetch("/api/x").await.status, 200);
        let frame = format!("/auth/logout/frontchannel?iss={}&sid={sid}", percent(&issuer));
        assert_eq!(rig.gateway.browser().send(Ask::frame(&frame)).await.status, status, "{issuer}");
    }
    assert_eq!(by_frame.fetch("/api/x").await.status, 401);
    assert_eq!(rig.tokens_of().0, 0);
}

/// FCL-01: a frame of one provider ends sessions of that one only.
#[tokio::test]
async fn a_frame_ends_sessions_of_its_own_provider_only() {
    let rig = Rig::with(|config, _| set(config, "logout.frontchannel", "true")).await;
    let (home, guests) = (rig.signed_in("home").await, rig.signed_in("guests").await);
    let (sid, issuer) = (rig.guests.last_session().sid, percent(&rig.home.issuer));
    let frame = |issuer: &str| Ask::frame(&format!("/auth/logout/frontchannel?iss={issuer}&sid={sid}"));
    assert_eq!(rig.gateway.browser().send(frame(&issuer)).await.status, 200);
    assert_eq!(guests.fetch("/api/x").await.status, 200, "the other one's sid");
    assert_eq!(rig.gateway.browser().send(frame(&percent(&rig.guests.issuer))).await.status, 200);
    assert_eq!((home.fetch("/api/x").await.status, guests.fetch("/api/x").await.status), (200, 401));
}

/// ASVS-6.8.1: equal subjects are told apart by `iss`, for the app by a header and for the page as a claim.
#[tokio::test]
async fn the_app_learns_whose_user_it_is() {
    let rig = Rig::with(|config, _| {
        set(config, "claims.expose", "['iss']");
        let route = config["route"][0].as_table_mut().unwrap();
        set(route, "identity_headers", "{ X-User = 'sub', X-Issuer = 'iss' }");
    })
    .await;
    for (name, issuer) in [("home", &rig.home.issuer), ("guests", &rig.guests.issuer)] {
        let browser = rig.signed_in(name).await;
        assert_eq!(browser.fetch("/api/x").await.status, 200);
        let sent = rig.upstream.last();
        assert_eq!((sent.header("x-user"), sent.header("x-issuer")), (Some("alice-4711"), Some(issuer.as_str())));
        assert_eq!(browser.session().await["claims"]["iss"], issuer.as_str());
    }
}

/// The refresh token in a cookie of its own goes to its provider too.
#[tokio::test]
async fn the_split_layout_keeps_to_the_provider() {
    let rig = Rig::with(|config, _| set(config, "session.layout", "'split'")).await;
    let browser = rig.signed_in("guests").await;
    rig.gateway.advance(&rig.guests, HOUR);
    let page = go(&browser, "/api/x").await;
    assert_eq!((page.status, page.path().as_str()), (200, "/api/x"), "{page:?}");
    assert!(rig.guests.is_active(rig.upstream.last().bearer().unwrap()));
    assert_eq!((rig.tokens_of(), rig.guests.refreshes()), ((0, 2), 1));
    assert_eq!(browser.post("/auth/logout").await.status, 200);
    assert_eq!(rig.home.calls_to(Endpoint::Revocation).len(), 0);
}

/// One provider binds its tokens, the other does not.
#[tokio::test]
async fn each_provider_binds_its_tokens_or_does_not() {
    let rig = Rig::with(|config, _| drop(of(config, 1).insert("dpop".to_owned(), "require".into()))).await;
    rig.guests.set(|s| s.dpop = Dpop::Bound);
    for (name, scheme, proofs) in [("home", "Bearer ", 0), ("guests", "DPoP ", 1)] {
        let browser = rig.signed_in(name).await;
        for _ in 0..2 {
            assert_eq!(browser.fetch("/api/x").await.status, 200, "{name}");
            let sent = rig.upstream.last();
            assert!(sent.header("authorization").unwrap().starts_with(scheme), "{name}");
            assert_eq!(sent.header_all("dpop").len(), proofs, "{name}");
            assert_eq!(browser.post("/auth/refresh").await.status, 200, "{name}");
        }
    }
    assert_eq!(rig.guests.violations(), Vec::<String>::new());
}

/// REDIS, BCL-06: replicas agree on whose session it is, on its refreshes and on its end.
#[tokio::test]
async fn replicas_keep_to_the_provider() {
    let (home, guests) = (ProviderDouble::start().await, ProviderDouble::start().await);
    let (upstream, redis) = (Upstream::start().await, Redis::start().await);
    guests.set(|s| s.rotation = Rotation::Family);
    let mut table = config(&home, &upstream);
    several(&mut table, &guests);
    set(&mut table, "redis.url", &format!("{:?}", redis.unix_url()));
    set(&mut table, "redis.timeout", "'5s'");
    let public = table["server"]["public_url"].as_str().unwrap().to_owned();
    home.register(&public);
    guests.register(&public);
    let one = Inside::run(table.clone()).await;
    set(&mut table, "server.listen", &format!("'127.0.0.1:{}'", free_port()));
    set(&mut table, "admin.listen", &format!("'127.0.0.1:{}'", free_port()));
    let two = Inside::run(table).await;
    let browser = one.browser();
    assert_eq!(go(&browser, "/auth/login?return_to=/x&provider=guests").await.status, 200);
    let there = browser.at(two.addr);
    for _ in 0..2 {
        guests.advance(HOUR.try_into().unwrap());
        one.catch_up(&guests);
        two.catch_up(&guests);
        let (here, other) = tokio::join!(browser.fetch("/api/x"), there.fetch("/api/x"));
        assert_eq!((here.status, other.status), (200, 200));
    }
    assert_eq!((guests.refreshes(), guests.reuse_alarms(), home.calls_to(Endpoint::Token).len()), (2, 0, 0));
    let token = guests.logout_token(Some("alice-4711"), None, None);
    let ask = Ask::fetch("/auth/logout/backchannel").method("POST").from(Initiator::Typed);
    let ask = ask.body("application/x-www-form-urlencoded", format!("logout_token={token}"));
    assert_eq!(one.browser().send(ask).await.status, 200);
    until("the other replica is told", async || there.fetch("/api/x").await.status == 401).await;
}

/// Contract 2.3, CFG-04: an operator ends sessions by user and issuer; a reload that takes a provider away ends its
/// sessions, and those of the others go on.
#[tokio::test]
async fn the_operator_s_means_know_the_provider() {
    let doubles = [ProviderDouble::start().await, ProviderDouble::start().await, ProviderDouble::start().await];
    let [home, guests, third] = &doubles;
    let upstream = Upstream::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "operators-token-0123456789\n").unwrap();
    let mut without = Table::new();
    let gateway = Gateway::start_with(home, &upstream, |config| {
        set(config, "admin.token_file", &format!("{:?}", file.to_str().unwrap()));
        several(config, guests);
        let mut more = of(config, 1).clone();
        more.insert("name".to_owned(), "third".into());
        more.insert("issuer".to_owned(), third.issuer.as_str().into());
        more.insert("client_secret".to_owned(), third.client_secret().into());
        config["provider"].as_array_mut().unwrap().push(more.into());
        without = config.clone();
        without["provider"].as_array_mut().unwrap().remove(1);
    })
    .await;
    guests.register(&gateway.public_url);
    third.register(&gateway.public_url);
    let signed_in = |name: &'static str| {
        let browser = gateway.browser();
        async move {
            let page = go(&browser, &format!("/auth/login?return_to=/x&provider={name}")).await;
            assert_eq!((page.status, page.path().as_str()), (200, "/x"), "{page:?}");
            browser
        }
    };
    let (one, two, three) = (signed_in("home").await, signed_in("guests").await, signed_in("third").await);
    let mut conn = Conn::dial(gateway.admin_addr).await.unwrap();
    let form = text::form(&[("sub", "alice-4711"), ("iss", third.issuer.as_str())]);
    let headers = [
        ("Host", "admin"),
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Authorization", "Bearer operators-token-0123456789"),
    ];
    let headers: Vec<_> = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    conn.send(&wire::request_bytes("POST", "/revoke", &headers, Some(form.as_bytes()))).await.unwrap();
    assert_eq!(wire::read_reply(&mut conn, "POST").await.unwrap().unwrap().status, 204);
    let status = |browser: Browser| async move { browser.fetch("/api/x").await.status };
    assert_eq!((status(one.clone()).await, status(two.clone()).await, status(three).await), (200, 200, 401));

    std::fs::write(gateway.config_file(), without.to_string()).unwrap();
    gateway.signal(Signal::HUP);
    let told = gateway.wait_for_log("reload", 1).await;
    assert_eq!(told[0]["outcome"], "ok", "{told:?}");
    assert_eq!((status(one.clone()).await, status(two).await), (200, 401));
    assert_eq!(one.post("/auth/refresh").await.status, 200);
    assert_eq!(go(&gateway.browser(), "/auth/login?provider=guests").await.status, 400);
}
