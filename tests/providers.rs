//! Several providers behind one gateway: the user chooses, and no code, token or word of one provider reaches another.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use support::client::{Ask, Browser, Initiator, Response};
use support::gateway::set;
use support::inside::Inside;
use support::provider::{Endpoint, ProviderDouble};
use support::text::percent;
use support::upstream::Upstream;
use toml::{Table, Value};

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

impl Rig {
    async fn start() -> Self {
        let (home, guests) = (ProviderDouble::start().await, ProviderDouble::start().await);
        let upstream = Upstream::start().await;
        let gateway = Inside::start_with(&home, &upstream, |config| {
            several(config, &guests);
            guests.register(config["server"]["public_url"].as_str().unwrap());
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
