//! Every preset before a provider that speaks its dialect: login, API call, expiry, refresh, what its errors mean,
//! logout. The presets' own hosts are replaced by the double's.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use serde_json::json;
use support::client::{Ask, Initiator};
use support::gateway::set;
use support::inside::Inside;
use support::provider::{
    AnswerStyle, ClientAuth, Endpoint, ErrorStyle, ExpiresIn, Outage, ProviderDouble, Rotation, Switches,
};
use support::upstream::{Script, Upstream};
use support::wire::Answer;
use toml::Table;

/// The access tokens of the double live for an hour.
const HOUR: u64 = 3600;

/// How a provider ends what it calls the user's session.
#[derive(Clone, Copy, PartialEq)]
enum Leave {
    /// RP-initiated logout.
    Oidc,
    /// The query has exactly these names.
    Names(&'static [&'static str]),
    Nothing,
}

struct Case {
    preset: &'static str,
    /// Keys of the provider besides client and endpoints.
    keys: &'static [(&'static str, &'static str)],
    openid: bool,
    switches: fn(&mut Switches),
    /// No refresh token at all.
    refreshes: bool,
    leave: Leave,
    /// Of the revocation endpoint: how often it is called at a logout.
    revocations: usize,
    /// What the session endpoint calls the user; none where the provider does not tell.
    sub: Option<&'static str>,
}

impl Case {
    const fn oidc(preset: &'static str) -> Self {
        Self {
            preset,
            keys: &[],
            openid: true,
            switches: |_| {},
            refreshes: true,
            leave: Leave::Oidc,
            revocations: 2,
            sub: Some("alice-4711"),
        }
    }

    const fn plain(preset: &'static str) -> Self {
        Self { openid: false, leave: Leave::Nothing, revocations: 0, sub: None, ..Self::oidc(preset) }
    }
}

fn post(s: &mut Switches) {
    s.client_auth = ClientAuth::Post;
}

fn family(s: &mut Switches) {
    s.rotation = Rotation::Family;
}

fn token(s: &mut Switches) {
    s.rotation = Rotation::Token;
}

fn kills(s: &mut Switches) {
    s.rotation = Rotation::Token;
    s.kills_access_token = true;
}

fn cases() -> Vec<Case> {
    vec![
        Case::oidc("oidc"),
        Case { revocations: 2, leave: Leave::Oidc, ..Case::plain("oauth2") },
        Case {
            switches: |s| {
                family(s);
                post(s);
                s.error_style = ErrorStyle::Auth0;
            },
            ..Case::oidc("auth0")
        },
        // Auth0's own example asks for no ID token, and its answer has no expires_in.
        Case {
            keys: &[("scopes", "[\"offline_access\"]"), ("audience", "\"https://api.acme.example\"")],
            switches: |s| {
                post(s);
                s.expires_in = ExpiresIn::Missing;
                s.id_token_at_login = false;
            },
            refreshes: false,
            openid: true,
            sub: None,
            ..Case::oidc("auth0")
        },
        Case { switches: family, ..Case::oidc("authelia") },
        Case { switches: token, ..Case::oidc("authentik") },
        Case {
            keys: &[("domain", "\"acme.auth.eu-west-1.amazoncognito.com\"")],
            leave: Leave::Names(&["client_id", "logout_uri"]),
            revocations: 1,
            ..Case::oidc("cognito")
        },
        Case { switches: family, ..Case::oidc("curity") },
        Case {
            switches: |s| {
                token(s);
                s.error_style = ErrorStyle::DexClaimed;
            },
            ..Case::oidc("dex")
        },
        Case {
            switches: |s| {
                token(s);
                s.error_style = ErrorStyle::DexExpired;
            },
            ..Case::oidc("dex")
        },
        Case {
            keys: &[("environment", "\"demo\"")],
            switches: |s| {
                s.userinfo_claims
                    .insert("accounts".into(), json!([{"is_default": true, "base_uri": "https://na2.docusign.net"}]));
            },
            sub: Some("alice-4711"),
            ..Case::plain("docusign")
        },
        Case::oidc("duende"),
        Case { keys: &[("tenant", "\"8eaef023-2b34-4da1-9baa-8bc8c9d6a490\"")], switches: post, ..Case::oidc("entra") },
        Case::oidc("fusionauth"),
        Case {
            switches: |s| {
                post(s);
                s.error_style = ErrorStyle::Status200;
                s.answer_style = AnswerStyle::Form;
                s.refresh_token_at_login = false;
                s.expires_in = ExpiresIn::Missing;
                s.userinfo_claims.insert("id".into(), json!(583231));
            },
            refreshes: false,
            revocations: 1,
            sub: Some("583231"),
            ..Case::plain("github")
        },
        Case {
            switches: |s| {
                post(s);
                kills(s);
                s.error_style = ErrorStyle::Status200;
                s.userinfo_claims.insert("id".into(), json!(583231));
            },
            revocations: 1,
            sub: Some("583231"),
            ..Case::plain("github-app")
        },
        Case {
            switches: |s| {
                kills(s);
                s.token_type = Some("bearer".into());
            },
            ..Case::oidc("gitlab")
        },
        Case {
            switches: |s| {
                post(s);
                s.refresh_token_at_refresh = false;
            },
            leave: Leave::Nothing,
            ..Case::oidc("google")
        },
        Case {
            switches: |s| {
                family(s);
                s.kills_access_token = true;
            },
            ..Case::oidc("hydra")
        },
        Case::oidc("keycloak"),
        Case { switches: family, ..Case::oidc("okta") },
        Case { switches: token, ..Case::oidc("pingfederate") },
        Case {
            keys: &[("region", "\"eu\""), ("environment_id", "\"00000000-0000-0000-0000-000000000000\"")],
            ..Case::oidc("pingone")
        },
        Case {
            switches: |s| {
                post(s);
                s.token_more.insert("instance_url".into(), json!("https://acme.my.salesforce.com"));
                s.token_more.insert("issued_at".into(), json!("1700000000000"));
            },
            ..Case::oidc("salesforce")
        },
        Case {
            keys: &[("user_scopes", "[\"search:read\", \"users:read\"]")],
            switches: |s| {
                token(s);
                s.error_style = ErrorStyle::OkFalse;
                s.answer_style = AnswerStyle::Nested;
                s.token_type = Some("user".into());
                s.token_more.insert("id".into(), json!("U0HQ"));
            },
            revocations: 1,
            sub: Some("U0HQ"),
            ..Case::plain("slack")
        },
        Case {
            keys: &[("scopes", "[\"read_vehicle_info\", \"read_odometer\"]")],
            switches: |s| {
                token(s);
                s.pkce = false;
            },
            ..Case::plain("smartcar")
        },
        Case {
            switches: |s| {
                s.pkce = false;
                s.wechat = true;
                s.error_style = ErrorStyle::Errcode;
                s.answer_style = AnswerStyle::WeChat;
            },
            sub: Some("o6_bmasdasdsad6_2sgVt7hMZOPfL"),
            ..Case::plain("wechat")
        },
        Case { keys: &[("project_id", "\"289000000000000000\"")], switches: kills, ..Case::oidc("zitadel") },
    ]
}

async fn start(case: &Case, provider: &ProviderDouble, upstream: &Upstream) -> Inside {
    // Told when the test fails.
    println!("preset {}", case.preset);
    provider.set(case.switches);
    Inside::start_with(provider, upstream, |config| configure(config, case, provider)).await
}

fn configure(config: &mut Table, case: &Case, provider: &ProviderDouble) {
    set(config, "refresh.wait", "\"300ms\"");
    set(config, "provider.preset", &format!("{:?}", case.preset));
    for (key, value) in case.keys {
        set(config, &format!("provider.{key}"), value);
    }
    if case.openid {
        let document = format!("{}/.well-known/openid-configuration", provider.issuer);
        set(config, "provider.discovery_url", &format!("{document:?}"));
    } else if case.preset != "docusign" {
        // Its preset knows an issuer, the others have none.
        config["provider"].as_table_mut().unwrap().remove("issuer");
    }
    let all = [
        ("authorization", Endpoint::Authorize),
        ("token", Endpoint::Token),
        ("refresh", Endpoint::Token),
        ("userinfo", Endpoint::Userinfo),
        ("end_session", Endpoint::EndSession),
        ("revocation", Endpoint::Revocation),
    ];
    for (name, endpoint) in all {
        set(config, &format!("provider.endpoints.{name}"), &format!("{:?}", provider.url(endpoint)));
    }
}

/// One user's day with every preset.
#[tokio::test]
async fn every_preset_from_login_to_logout() {
    for case in cases() {
        let name = case.preset;
        let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
        let gateway = start(&case, &provider, &upstream).await;
        let browser = gateway.signed_in().await;
        if let Some(sub) = case.sub {
            assert_eq!(browser.session().await["claims"]["sub"], sub, "{name}");
        }
        assert_eq!(browser.fetch("/api/x").await.status, 200, "{name}");
        assert!(provider.is_active(upstream.last().bearer().unwrap()), "{name}");
        assert_eq!(provider.violations(), Vec::<String>::new(), "{name}");

        if case.refreshes {
            gateway.advance(&provider, HOUR);
            let answers = browser.fetch_many("/api/x", 5).await;
            assert!(answers.iter().all(|answer| answer.status == 200), "{name}");
            assert_eq!(provider.refreshes(), 1, "{name}: five calls, one refresh");
            assert!(provider.is_active(upstream.last().bearer().unwrap()), "{name}");
        }

        let out = browser.post("/auth/logout").await;
        assert_eq!(out.status, 200, "{name}");
        let location = out.json()["location"].as_str().unwrap().to_owned();
        let query = url::Url::parse(&location).map(|url| url.query_pairs().into_owned().collect::<Vec<_>>());
        match case.leave {
            Leave::Nothing => assert_eq!(location, "/auth/logout/return", "{name}"),
            Leave::Oidc => {
                let query = query.unwrap();
                assert!(query.iter().any(|(key, _)| key == "post_logout_redirect_uri"), "{name}: {location}");
            }
            Leave::Names(names) => {
                let query = query.unwrap();
                assert_eq!(query.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), names, "{name}");
            }
        }
        assert_eq!(provider.calls_to(Endpoint::Revocation).len(), case.revocations, "{name}");
        assert_eq!(browser.fetch("/api/x").await.status, 401, "{name}");
    }
}

/// What each provider's errors mean: a passing one ends nothing, a mistake in our own set-up ends nothing, a dead
/// refresh token ends the session.
#[tokio::test]
async fn every_preset_tells_dead_from_passing_and_from_our_own_mistake() {
    for case in cases().iter().filter(|case| case.refreshes) {
        let name = case.preset;
        let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
        let gateway = start(case, &provider, &upstream).await;
        let browser = gateway.signed_in().await;
        gateway.advance(&provider, HOUR);

        for (error, status) in [("temporarily_unavailable", 503), ("invalid_client", 502)] {
            provider.set(|s| s.fail_refresh(Outage::error(error)));
            let answer = browser.fetch("/api/x").await;
            assert_eq!(answer.status, status, "{name}: {error}: {answer:?}");
            assert_eq!(browser.session().await["authenticated"], true, "{name}: {error}");
            provider.set(|s| s.heal(Endpoint::Token));
            // The engine spares a provider that fails.
            gateway.advance(&provider, 60);
        }
        provider.kill_all_sessions();
        let answer = browser.fetch("/api/x").await;
        assert_eq!(answer.status, 401, "{name}: {answer:?}");
        assert_eq!(browser.session().await["authenticated"], false, "{name}");
    }
}

/// WeChat's own API takes the token, and with it whose it is, in the query. What the client calls so is not the client's to
/// say, and no answer tells the URL with the token to the page.
#[tokio::test]
async fn a_token_may_travel_in_the_query() {
    let case = cases().into_iter().find(|case| case.preset == "wechat").unwrap();
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    provider.set(case.switches);
    let gateway = Inside::start_with(&provider, &upstream, |config| {
        configure(config, &case, &provider);
        let place = "{ placement = 'query', extra = { openid = '{openid}', lang = 'zh_CN' } }";
        set(config, "provider.dialect.upstream", place);
    })
    .await;
    let browser = gateway.signed_in().await;
    for _ in 0..2 {
        let answer = browser.fetch("/api/x?a=%2f&access_token=mine&openid=other&b").await;
        assert_eq!(answer.status, 200);
        let sent = upstream.last();
        let (given, ours) = sent.target.split_once("&access_token=").unwrap();
        assert_eq!(given, "/api/x?a=%2f&b");
        let (token, more) = ours.split_once('&').unwrap();
        assert!(provider.is_active(token), "{token}");
        assert_eq!(more, "lang=zh_CN&openid=o6_bmasdasdsad6_2sgVt7hMZOPfL");
        assert!(sent.header("authorization").is_none());
        // The second round is after a refresh.
        gateway.advance(&provider, HOUR);
    }
    upstream.on(
        "/api/moved",
        Script::by(|request| {
            let answer = Answer::empty(302).with("Location", &format!("{}&again=1#top", request.target));
            Script::Answer(answer.with("X-Url", &request.target).with("Link", "</a>; rel=next"))
        }),
    );
    let answer = browser.send(Ask::fetch("/api/moved?c=1").stay()).await;
    assert_eq!(answer.location(), Some("/api/moved?c=1&lang=zh_CN&openid=o6_bmasdasdsad6_2sgVt7hMZOPfL&again=1#top"));
    assert!(answer.header("x-url").is_none() && answer.header("link").is_some());
    // Nobody's session, nobody's token; a public route is not looked at.
    let stranger = gateway.browser();
    for (asked, sent) in [("/opt/x?access_token=mine", "/opt/x"), ("/x?access_token=mine", "/x?access_token=mine")] {
        assert_eq!(stranger.fetch(asked).await.status, 200);
        assert_eq!(upstream.last().target, sent);
    }
}

/// The API's host is the user's own, as the provider says it; a host that is not listed is never gone to.
#[tokio::test]
async fn an_upstream_may_depend_on_the_user() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Inside::start_with(&provider, &upstream, |config| {
        let route = config["route"][0].as_table_mut().unwrap();
        route.insert("upstream".to_owned(), "{account.base_uri}/v2".into());
        route.insert("allow_hosts".to_owned(), vec!["127.0.0.1"].into());
    })
    .await;
    let account = |uri: String| {
        provider.set(|s| drop(s.token_more.insert("account".to_owned(), json!({ "base_uri": uri }))));
    };
    account(upstream.url());
    let browser = gateway.signed_in().await;
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    assert_eq!(upstream.last().target, "/v2/api/x");
    gateway.advance(&provider, HOUR);
    assert_eq!(browser.fetch("/api/x").await.status, 200, "still after a refresh");
    assert!(provider.is_active(upstream.last().bearer().unwrap()));

    let port = upstream.url().rsplit_once(':').unwrap().1.to_owned();
    let calls = upstream.requests().len();
    for elsewhere in [
        format!("http://localhost:{port}"),
        format!("http://127.0.0.1:{port}@evil.example"),
        "http://169.254.169.254/latest".to_owned(),
        format!("unix:/127.0.0.1:{port}"),
        String::new(),
    ] {
        account(elsewhere.clone());
        let other = gateway.signed_in().await;
        let answer = other.fetch("/api/x").await;
        assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_unreachable"), "{elsewhere}");
    }
    provider.set(|s| drop(s.token_more.remove("account")));
    let other = gateway.signed_in().await;
    assert_eq!(other.fetch("/api/x").await.status, 502);
    // The pages of those logins went to the public route; the API was not called.
    assert!(upstream.requests().iter().skip(calls).all(|request| !request.target.contains("/api/")));
}

/// Smartcar's version 3: users log in elsewhere; the application's token goes to their cars' API, with whose car is meant as
/// the login says it, whatever the page says.
#[tokio::test]
async fn smartcar_v3_is_for_routes_and_not_for_logins() {
    let (login, cars) = (ProviderDouble::start().await, ProviderDouble::start().await);
    let upstream = Upstream::start().await;
    login.set(|s| drop(s.id_claims.insert("smartcar_user".to_owned(), json!("7c1d"))));
    // The double keeps a token in the place of a user's.
    let gateway = Inside::start_with(&login, &upstream, |config| {
        let mut home = config["provider"].as_table().unwrap().clone();
        home.insert("name".to_owned(), "home".into());
        let text = format!(
            "name = 'cars'\npreset = 'smartcar-v3'\nclient_id = {:?}\nclient_secret = {:?}\nendpoints = {{ token = {:?} }}",
            cars.client_id(),
            cars.client_secret(),
            cars.url(Endpoint::Token)
        );
        let service: Table = text.parse().unwrap();
        config.insert("provider".to_owned(), vec![toml::Value::from(home), service.into()].into());
        let text = format!(
            "path = '/cars/'\nupstream = {:?}\ntoken = {{ client_credentials = true, provider = 'cars' }}\n\
             identity_headers = {{ sc-user-id = 'smartcar_user' }}",
            upstream.url()
        );
        let route: Table = text.parse().unwrap();
        config["route"].as_array_mut().unwrap().push(route.into());
    })
    .await;
    // No chooser: there is one to log in at.
    let (one, two) = (gateway.signed_in().await, gateway.signed_in().await);
    let mut tokens = Vec::new();
    for browser in [&one, &two, &one] {
        let ask = Ask::fetch("/cars/v3/vehicles").header("sc-user-id", "somebody else");
        assert_eq!(browser.send(ask).await.status, 200);
        let sent = upstream.last();
        assert_eq!(sent.header_all("sc-user-id"), ["7c1d"]);
        tokens.push(sent.bearer().unwrap().to_owned());
    }
    assert!(tokens.iter().all(|token| *token == tokens[0] && cars.is_active(token)));
    assert_eq!((cars.calls().len(), cars.violations()), (1, vec![]));
    assert_eq!(cars.calls()[0].param("grant_type"), Some("client_credentials"));
    assert_eq!(gateway.browser().fetch("/cars/v3/vehicles").await.status, 401);
    for name in ["cars", "home"] {
        let answer =
            gateway.browser().navigate_from(Initiator::SameOrigin, &format!("/auth/login?provider={name}")).await;
        assert!(cars.calls_to(Endpoint::Authorize).is_empty(), "{name}: {answer:?}");
    }
    gateway.advance(&cars, HOUR);
    login.advance(HOUR.try_into().unwrap());
    assert_eq!(one.fetch("/cars/v3/vehicles").await.status, 200);
    assert_ne!(upstream.last().bearer().unwrap(), tokens[0]);
}
