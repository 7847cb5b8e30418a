//! What the gateway makes of a provider whose answers do not hold: the suite's client modules by name, every fault of an
//! ID token at a login and at a refresh, odd token and userinfo answers, unusable metadata and keys.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use serde_json::json;
use support::client::{Browser, Initiator, Response};
use support::gateway::set;
use support::inside::Inside;
use support::jose::Key;
use support::leak::Canaries;
use support::provider::{
    AccessToken, AnswerStyle, ClientAuth, Endpoint, Expect, ExpiresIn, Fault, Grants, MODULES, Moment, Outage,
    ProviderDouble, Rotation, Switches, Userinfo, Verdict,
};
use support::text::mark;
use support::upstream::Upstream;
use toml::Table;

/// The names of the session's cookies in a browser.
fn session_cookies(browser: &Browser) -> Vec<String> {
    let names = browser.jar().names().into_iter().map(str::to_owned).collect::<Vec<_>>();
    names.into_iter().filter(|name| name.contains("sidegate") && !name.contains("-login-")).collect()
}

/// A provider, an upstream and a gateway before them, and what had happened when a row of a table began.
struct Rig {
    provider: ProviderDouble,
    upstream: Upstream,
    gateway: Inside,
    usual: Switches,
}

impl Rig {
    async fn start(change: impl FnOnce(&mut Table)) -> Self {
        let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
        Self::before(provider, upstream, change).await
    }

    async fn before(provider: ProviderDouble, upstream: Upstream, change: impl FnOnce(&mut Table)) -> Self {
        let alone = |table: &mut Table| {
            // One look at the cookie is enough before it is cleared: the many faults here need no more.
            set(table, "server.single_replica", "true");
            change(table);
        };
        let gateway = Inside::start_with(&provider, &upstream, alone).await;
        let usual = provider.switches.lock().clone();
        Self { provider, upstream, gateway, usual }
    }

    /// The provider behaves again.
    fn heal(&self) {
        *self.provider.switches.lock() = self.usual.clone();
    }

    /// "Login refused" of the checklist: an error page, no session, nothing used of the answer. Gives back the page.
    async fn refused(&self, what: &str) -> Response {
        self.refused_from(what, "/auth/login?return_to=/").await
    }

    async fn refused_from(&self, what: &str, login: &str) -> Response {
        let userinfo = self.provider.calls_to(Endpoint::Userinfo).len();
        let page = self.refused_with_userinfo(what, login).await;
        assert_eq!(self.provider.calls_to(Endpoint::Userinfo).len(), userinfo, "{what}: IDT-09, userinfo was called");
        page
    }

    async fn refused_with_userinfo(&self, what: &str, login: &str) -> Response {
        self.upstream.forget();
        let exchanges = self.provider.code_exchanges();
        self.gateway.catch_up(&self.provider);
        let browser = self.gateway.browser();
        let page = browser.navigate_from(Initiator::SameOrigin, login).await;
        assert!((400..600).contains(&page.status), "{what}: {} {}", page.status, page.text());
        assert_eq!(page.path(), "/auth/callback", "{what}");
        assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/html")), "{what}");
        assert!(page.set_cookies().iter().all(|cookie| cookie.deletes(support::text::now())), "{what}: {page:?}");
        assert_eq!(session_cookies(&browser), [""; 0], "{what}: a session cookie was set");
        assert_eq!(browser.session().await, json!({"authenticated": false}), "{what}");
        assert_eq!(browser.fetch("/api/x").await.status, 401, "{what}");
        assert!(self.upstream.requests().iter().all(|r| r.header("authorization").is_none()), "{what}");
        assert_eq!(self.provider.code_exchanges(), exchanges + 1, "{what}: TOK-03, one call for one code");
        let mut secrets = Canaries::default();
        let session = self.provider.last_session();
        for token in session.access_tokens.iter().chain(&session.refresh_tokens).chain(&session.id_tokens) {
            secrets.add("token", token);
        }
        secrets.assert_absent(what, page.everything());
        page
    }

    /// A login that works, and its token is the one that the upstream sees.
    async fn works(&self, what: &str) -> Browser {
        self.works_from(what, "/auth/login?return_to=/").await
    }

    async fn works_from(&self, what: &str, login: &str) -> Browser {
        let browser = self.gateway.browser();
        let page = browser.navigate_from(Initiator::SameOrigin, login).await;
        let violations = self.provider.violations();
        assert_eq!((page.status, page.path().as_str()), (200, "/"), "{what}: {} {violations:?}", page.text());
        assert_eq!(browser.session().await["authenticated"], true, "{what}");
        assert_eq!(browser.fetch("/api/x").await.status, 200, "{what}");
        let token = self.upstream.last().bearer().map(str::to_owned);
        assert!(token.is_some_and(|token| self.provider.is_active(&token)), "{what}: not the provider's token");
        browser
    }

    fn logins(&self, outcome: &str) -> f64 {
        let labels = [("outcome", outcome)];
        self.gateway.metric("sidegate_logins_total", if outcome.is_empty() { &[] } else { &labels })
    }
}

/// Flows of the suite that tests of their own drive: (module, where).
const ELSEWHERE: &[(&str, &str)] = &[
    ("oidcc-client-test-form-post-error", "client_auth.rs"),
    ("oidcc-client-test-mtls-endpoint-aliases", "client_auth.rs"),
    ("oidcc-client-test-signing-key-rotation", "below"),
    ("oidcc-client-test-3rd-party-init-login", "login.rs"),
    ("oidcc-client-test-rp-init-logout", "logout.rs"),
    ("oidcc-client-test-rp-init-logout-other-state", "logout.rs"),
    ("oidcc-client-test-rp-init-logout-no-state", "logout.rs"),
];

/// Section 2.1 of the checklist: each module of the suite's client plan, by name.
#[tokio::test]
async fn every_module_of_the_suite_ends_as_it_should() {
    for module in MODULES {
        let name = module.name;
        if module.expect == Expect::Flow {
            let later = name.contains("-backchannel-") || name.contains("-frontchannel-");
            assert!(later || ELSEWHERE.iter().any(|(known, _)| *known == name), "{name} is driven nowhere");
            continue;
        }
        let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
        (module.prepare)(&provider);
        let rig = Rig::before(provider, upstream, |config| {
            set(config, "provider.userinfo", &module.userinfo.to_string());
        })
        .await;
        let calls = |endpoint| rig.provider.calls_to(endpoint).len();
        match module.expect {
            Expect::Login => {
                let browser = rig.works(name).await;
                assert_eq!(rig.provider.violations(), [""; 0], "{name}");
                assert_eq!(calls(Endpoint::Userinfo), usize::from(module.userinfo), "{name}");
                assert_eq!(calls(Endpoint::Other), 0, "{name}: a URL out of a token was called");
                let extra = usize::from(name.ends_with("just-before-signing"));
                assert_eq!((calls(Endpoint::Discovery), calls(Endpoint::Jwks)), (1, 1 + extra), "{name}");
                if name == "oidcc-client-test-refresh-token" {
                    for _ in 0..2 {
                        rig.gateway.advance(&rig.provider, 3600);
                        assert_eq!(browser.fetch("/api/x").await.status, 200, "{name}");
                    }
                    let issued = rig.provider.last_session().refresh_tokens;
                    let sent: Vec<_> = rig.provider.calls().into_iter().filter(|c| c.is_refresh()).collect();
                    let sent: Vec<_> = sent.iter().map(|c| c.param("refresh_token").unwrap()).collect();
                    assert_eq!(sent, issued[..2], "{name}: byte for byte, the new one in place of the old");
                }
            }
            Expect::Refusal => {
                let page = if name.ends_with("userinfo-invalid-sub") {
                    rig.refused_with_userinfo(name, "/auth/login").await
                } else {
                    rig.refused(name).await
                };
                assert_eq!(page.status, 400, "{name}");
                assert!(page.text().contains("login_refused"), "{name}: {}", page.text());
                rig.provider.set(|s| (s.fault, s.userinfo) = (None, Userinfo::Json));
                rig.works(name).await;
            }
            Expect::Either => {
                let browser = rig.gateway.browser();
                let page = browser.login("/").await;
                let signed_in = browser.session().await["authenticated"] == true;
                assert_eq!(signed_in, page.status == 200, "{name}: {page:?}");
                rig.provider.set(|s| s.fault = Some(Fault::SigOutsiderWithoutKid));
                rig.refused(name).await;
            }
            Expect::RefreshRefused => {
                let browser = rig.works(name).await;
                rig.gateway.advance(&rig.provider, 3600);
                rig.upstream.forget();
                assert_eq!(browser.fetch("/api/x").await.status, 401, "{name}");
                assert!(rig.upstream.untouched(), "{name}: the new token was used");
                assert_eq!(session_cookies(&browser), [""; 0], "{name}");
                assert_eq!(browser.session().await["authenticated"], false, "{name}");
            }
            Expect::NotReady => {
                let browser = rig.gateway.browser();
                for _ in 0..2 {
                    let page = browser.login("/").await;
                    assert_eq!(page.status, 502, "{name}: {}", page.text());
                    assert!(page.text().contains("provider_refused"), "{name}");
                    assert!(page.set_cookies().is_empty() && browser.jar().cookies.is_empty(), "{name}");
                }
                assert_eq!((calls(Endpoint::Authorize), calls(Endpoint::Token)), (0, 0), "{name}");
            }
            Expect::Flow => unreachable!("left out above"),
        }
    }
}

/// ASVS-6.8.2: every fault of an ID token at a login: IDT-01 to IDT-14, KEY-04, KEY-06. With userinfo switched on, so
/// that a call before all checks passed would show (IDT-09, RFC9700-15).
#[tokio::test]
async fn every_fault_of_an_id_token_at_a_login() {
    let with_userinfo = Rig::start(|config| set(config, "provider.userinfo", "true")).await;
    let without = Rig::start(|_| {}).await;
    for fault in Fault::ALL {
        let name = format!("{fault:?}");
        // Another user's ID token is found out by userinfo; here it is to be an ordinary login.
        let rig = if *fault == Fault::SubOther { &without } else { &with_userinfo };
        let (good, bad) = (rig.logins("ok"), rig.logins("invalid"));
        rig.provider.set(|s| s.fault = Some(*fault));
        if fault.verdict() == Verdict::Refused {
            let page = rig.refused(&name).await;
            if *fault != Fault::Huge {
                assert!(page.text().contains("login_refused"), "{name}: {}", page.text());
                assert_eq!((page.status, rig.logins("invalid")), (400, bad + 1.0), "{name}");
            }
            rig.heal();
            rig.works(&format!("after {name}")).await;
        } else {
            rig.works(&name).await;
            rig.heal();
        }
        assert_eq!(rig.logins("ok"), good + 1.0, "{name}: every attempt is counted once");
    }
    let provider = with_userinfo.provider;
    assert_eq!(provider.calls_to(Endpoint::Other).len(), 0, "IDT-05: what a token points to is not fetched");
    assert_eq!(provider.violations(), [""; 0]);
}

/// IDT-10: what was asked for is verified, wherever it was asked for.
#[tokio::test]
async fn a_requested_max_age_and_acr_are_verified() {
    let asked = "/auth/login?max_age=600&acr_values=gold";
    let by_request = Rig::start(|_| {}).await;
    let by_configuration =
        Rig::start(|config| set(config, "provider.authorize_params", r#"{ max_age = "600", acr_values = "gold" }"#))
            .await;
    for (rig, login) in [(&by_request, asked), (&by_configuration, "/auth/login")] {
        rig.works_from(login, login).await;
        let faults = Fault::ALL.iter().filter(|f| f.verdict() == Verdict::RefusedWhenAsked);
        for fault in faults.chain([&Fault::AuthTimeOld]) {
            rig.provider.set(|s| s.fault = Some(*fault));
            rig.refused_from(&format!("{fault:?} {login}"), login).await;
            rig.heal();
        }
        rig.provider.set(|s| s.auth_age = 670);
        rig.refused_from("an old auth_time", login).await;
        rig.heal();
    }
    // The operator's word counts, not the request's.
    by_configuration.provider.set(|s| s.acr = Some("bronze".to_owned()));
    by_configuration.refused_from("talked down", "/auth/login?acr_values=bronze").await;
}

/// Every fault of an ID token at a refresh (RFR-04, OpenID Connect Core section 12.2): the session ends, and the new
/// tokens are not used.
#[tokio::test]
async fn every_fault_of_an_id_token_at_a_refresh() {
    let rig = Rig::start(|_| {}).await;
    // At a refresh no nonce is needed, nor are `auth_time` and `acr`; there is no code to which a `c_hash` could belong;
    // and the `iat` is of the refresh, an hour later.
    let fine = |fault| {
        let harmless = [Fault::NonceMissing, Fault::AuthTimeMissing, Fault::AcrOther, Fault::InvalidChash];
        harmless.contains(&fault) || fault == Fault::IatEarlier
    };
    for fault in Fault::ALL {
        let name = format!("{fault:?} at a refresh");
        let browser = rig.works(&name).await;
        let copy = browser.fork();
        let before = rig.provider.refreshes();
        rig.provider.set(|s| s.refresh_fault = Some(*fault));
        rig.gateway.advance(&rig.provider, 3600);
        rig.upstream.forget();
        // Not by way of the API: what a dead refresh does there is shown elsewhere, and takes its time.
        let answer = browser.post("/auth/refresh").await;
        if fault.verdict() == Verdict::Fine || fine(*fault) {
            assert_eq!(answer.status, 200, "{name}: {}", answer.text());
            assert_eq!(rig.provider.refreshes(), before + 1, "{name}");
        } else if *fault == Fault::Huge {
            // Not read to its end: nobody knows what it says, and nothing of it is used.
            assert!(matches!(answer.status, 401 | 502 | 503), "{name}: {}", answer.text());
            assert!(rig.upstream.untouched(), "{name}");
        } else {
            assert_eq!((answer.status, answer.code().as_str()), (401, "login_required"), "{name}: {}", answer.text());
            assert_eq!(session_cookies(&browser), [""; 0], "{name}: the cookies stay");
            rig.heal();
            let spent = rig.provider.refreshes();
            assert_eq!(copy.post("/auth/refresh").await.status, 401, "{name}: the session did not end");
            assert_eq!(copy.session().await["authenticated"], false, "{name}");
            assert_eq!(rig.provider.refreshes(), spent, "{name}: a copied cookie tried again");
            assert!(rig.upstream.untouched(), "{name}: something was forwarded");
        }
        rig.heal();
    }
}

/// oidcc-client-test-signing-key-rotation, KEY-06, DOS-14: rotation needs no restart, and forged keys no storm.
#[tokio::test]
async fn keys_rotate_without_a_restart() {
    let rig = Rig::start(|_| {}).await;
    for round in 0..3 {
        rig.works(&format!("round {round}")).await;
        assert_eq!(rig.provider.calls_to(Endpoint::Jwks).len(), 1 + round, "one fetch for one rotation");
        rig.provider.rotate_keys();
    }
    rig.works("the last key").await;
    let fetched = rig.provider.calls_to(Endpoint::Jwks).len();
    for n in 0..5 {
        rig.provider.set(|s| s.fault = Some(Fault::KidUnknown));
        rig.refused(&format!("forged {n}")).await;
    }
    let more = rig.provider.calls_to(Endpoint::Jwks).len() - fetched;
    assert!(more <= 2, "{more} fetches for five forged key ids");
    rig.heal();
    rig.works("still").await;
}

/// KEY-03, KEY-05, IDT-14: odd keys are skipped, and among keys of one `kid` the right one is found.
#[tokio::test]
async fn odd_keys_and_decoys_do_no_harm() {
    for decoys in [false, true] {
        let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
        provider.publish_odd_keys();
        if decoys {
            provider.publish_decoys();
        }
        let rig = Rig::before(provider, upstream, |_| {}).await;
        rig.works("odd keys").await;
        rig.provider.set(|s| s.fault = Some(Fault::SigOutsider));
        rig.refused("an outsider among odd keys").await;
    }
}

/// ASVS-16.5.3: a failed refetch keeps the old keys, and an unusable set fails closed (KEY-06, KEY-09).
#[tokio::test]
async fn an_unusable_key_set_fails_closed() {
    let rig = Rig::start(|_| {}).await;
    rig.works("at first").await;
    for (what, outage) in [
        ("503", Outage::Status(503)),
        ("a page", Outage::Html(200)),
        ("a redirect", Outage::Redirect(rig.provider.url(Endpoint::Other))),
        ("2 MiB", Outage::Huge(2 << 20)),
        ("no keys", Outage::json(200, "{}")),
    ] {
        rig.provider.set(|s| {
            s.fail(Endpoint::Jwks, outage);
            s.fault = Some(Fault::KidUnknown);
        });
        rig.refused(what).await;
        rig.provider.set(|s| s.fault = None);
        rig.works(&format!("the old keys after {what}")).await;
        rig.heal();
    }
    assert_eq!(rig.provider.calls_to(Endpoint::Other).len(), 0, "KEY-01: a redirect was followed");

    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    provider.set(|s| s.jwks_document = Some(json!({"keys": [Key::small_rsa("one").jwk()]}).to_string()));
    let rig = Rig::before(provider, upstream, |_| {}).await;
    let page = rig.gateway.browser().login("/").await;
    assert!((400..600).contains(&page.status), "{page:?}");
}

/// TOK-01, TOK-03, TOK-05, IDT-08, DOS-18: what a token answer may look like, and what ends the login.
#[tokio::test]
async fn odd_token_answers_end_the_login_or_work() {
    type Change = fn(&mut Switches);
    let rig = Rig::start(|config| set(config, "provider.userinfo", "true")).await;
    let works: &[(&str, Change)] = &[
        ("bearer", |s| s.token_type = Some("bearer".to_owned())),
        ("BEARER", |s| s.token_type = Some("BEARER".to_owned())),
        ("no expires_in", |s| s.expires_in = ExpiresIn::Missing),
        ("expires_in as text", |s| s.expires_in = ExpiresIn::Json("\"3600\"".to_owned())),
        ("expires_in with a fraction", |s| s.expires_in = ExpiresIn::Json("3599.5".to_owned())),
        ("an absurd expires_in", |s| s.expires_in = ExpiresIn::Json("1e300".to_owned())),
        ("a narrower scope", |s| s.granted_scope = Some("openid".to_owned())),
        ("a JWT", |s| s.access_token = AccessToken::Jwt),
        ("4 KiB", |s| s.access_token = AccessToken::Sized(4096)),
        ("no refresh token", |s| s.refresh_token_at_login = false),
        ("unknown members", |s| drop(s.token_more.insert("x".to_owned(), json!({"a": [1, null]})))),
        ("null for a refresh token", |s| {
            s.refresh_token_at_login = false;
            s.token_more.insert("refresh_token".to_owned(), json!(null));
        }),
    ];
    for (what, change) in works {
        rig.provider.set(change);
        rig.works(what).await;
        rig.heal();
    }
    let refused: &[(&str, u16, Change)] = &[
        ("token_type mac", 400, |s| s.token_type = Some("mac".to_owned())),
        ("no token_type", 400, |s| s.token_type = None),
        ("token_type DPoP that nobody asked for", 400, |s| s.token_type = Some("DPoP".to_owned())),
        ("no id_token", 400, |s| s.id_token_at_login = false),
        ("a list", 400, |s| s.answer_style = AnswerStyle::Array),
        ("a member twice", 400, |s| s.answer_style = AnswerStyle::Doubled),
        ("status 201", 0, |s| s.answer_style = AnswerStyle::Status(201)),
        ("a line break", 400, |s| s.access_token = AccessToken::With("\r\nX: 1".to_owned())),
        ("a blank", 400, |s| s.access_token = AccessToken::With(" x".to_owned())),
        ("not ASCII", 400, |s| s.access_token = AccessToken::With("\u{e9}".to_owned())),
        ("NUL", 400, |s| s.access_token = AccessToken::With("\0".to_owned())),
        ("an empty access token", 0, |s| {
            s.fail_code(Outage::json(200, r#"{"access_token":"","token_type":"Bearer"}"#))
        }),
        ("an empty object", 0, |s| s.fail_code(Outage::json(200, "{}"))),
        ("null", 0, |s| s.fail_code(Outage::json(200, "null"))),
        ("deep nesting", 0, |s| s.fail_code(Outage::json(200, &format!("{{\"a\":{}", "[".repeat(100_000))))),
        ("10 MiB", 0, |s| s.fail_code(Outage::Huge(10 << 20))),
        ("a page with 200", 0, |s| s.fail_code(Outage::Html(200))),
        ("nothing with 200", 0, |s| s.fail_code(Outage::Empty)),
        ("a redirect", 0, |s| s.fail_code(Outage::Redirect("/elsewhere".to_owned()))),
        ("invalid_grant", 400, |s| s.fail_code(Outage::error("invalid_grant"))),
        ("access_denied", 0, |s| s.fail_code(Outage::error("access_denied"))),
        ("invalid_client", 502, |s| s.fail_code(Outage::error("invalid_client"))),
        ("unauthorized_client", 502, |s| s.fail_code(Outage::error("unauthorized_client"))),
        ("Keycloak's word for a wrong secret", 502, |s| {
            s.fail_code(Outage::json(401, r#"{"error":"unauthorized_client"}"#))
        }),
        ("500", 503, |s| s.fail_code(Outage::Status(500))),
        ("503", 503, |s| s.fail_code(Outage::Unavailable(Some("3".to_owned())))),
        ("429", 503, |s| s.fail_code(Outage::TooMany(None))),
        ("a closed connection", 503, |s| s.fail_code(Outage::Drop)),
        ("a connection closed after the work", 503, |s| s.fail_code(Outage::DropAfterCommit)),
        ("no HTTP", 0, |s| s.fail_code(Outage::Raw(b"hello\r\n\r\n".to_vec()))),
    ];
    for (what, status, change) in refused {
        rig.provider.set(change);
        let page = rig.refused(what).await;
        assert!(*status == 0 || page.status == *status, "{what}: {} {}", page.status, page.text());
        if page.status == 503 {
            let wait: u64 = page.header("retry-after").expect(what).parse().expect("seconds");
            assert!((1..=10).contains(&wait), "{what}: {wait}");
        }
        rig.heal();
    }
    rig.works("at last").await;
    assert_eq!(rig.provider.calls_to(Endpoint::Other).len(), 0, "a redirect was followed");
}

/// TOK-03, DOS-09: a provider that is silent, or drips, is given up after `provider.timeout`.
#[tokio::test]
async fn a_silent_token_endpoint_is_given_up() {
    let rig = Rig::start(|config| set(config, "provider.timeout", r#""300ms""#)).await;
    rig.works("at first").await;
    for outage in [Outage::Stall, Outage::Drip] {
        let what = format!("{outage:?}");
        rig.provider.set(|s| s.fail_code(outage));
        assert_eq!(rig.refused(&what).await.status, 503, "{what}");
        rig.heal();
    }
    rig.works("at last").await;
}

/// oidcc-client-test-scope-userinfo-claims, -userinfo-signed, -userinfo-invalid-sub: merged when it is the same user's,
/// refused when not, 503 when not to be had.
#[tokio::test]
async fn userinfo_is_merged_or_the_login_refused() {
    let rig = Rig::start(|config| {
        set(config, "provider.userinfo", "true");
        set(config, "claims.expose", r#"["sub", "iss", "aud", "name", "email", "picture", "address", "team"]"#);
    })
    .await;
    rig.provider.set(|s| drop(s.userinfo_claims.insert("team".to_owned(), json!(["a", "b"]))));
    let other = rig.provider.url(Endpoint::Other);
    for good in
        [Userinfo::Json, Userinfo::Signed, Userinfo::Aggregated, Userinfo::Distributed(other), Userinfo::ReplacesIssuer]
    {
        let what = format!("{good:?}");
        rig.provider.set(|s| s.userinfo = good);
        let claims = rig.works(&what).await.session().await["claims"].take();
        assert_eq!((&claims["team"], &claims["sub"]), (&json!(["a", "b"]), &json!("alice-4711")), "{what}");
        assert_eq!(claims["picture"], "https://img.example/alice.png", "{what}");
        assert!(!claims.to_string().contains("other"), "{what}: userinfo replaced iss or aud: {claims}");
    }
    for bad in [
        Userinfo::WrongSub,
        Userinfo::MissingSub,
        Userinfo::Array,
        Userinfo::SignedWrongAud,
        Userinfo::SignedWrongIss,
        Userinfo::SignedNone,
        Userinfo::SignedWithoutSub,
        Userinfo::SignedByOutsider,
    ] {
        let what = format!("{bad:?}");
        rig.provider.set(|s| s.userinfo = bad);
        let page = rig.refused_with_userinfo(&what, "/auth/login").await;
        assert_eq!(page.status, 400, "{what}: {}", page.text());
        rig.heal();
        rig.works(&format!("after {what}")).await;
    }
    for outage in [Outage::Status(500), Outage::Status(401), Outage::Html(200), Outage::Drop, Outage::Huge(2 << 20)] {
        let what = format!("userinfo {outage:?}");
        rig.provider.set(|s| s.fail(Endpoint::Userinfo, outage));
        let page = rig.refused_with_userinfo(&what, "/auth/login").await;
        assert_eq!(page.status, 503, "{what}: {}", page.text());
        rig.heal();
    }
    assert_eq!(rig.provider.calls_to(Endpoint::Other).len(), 0, "a distributed claim was fetched");
    let calls = rig.provider.calls_to(Endpoint::Userinfo);
    let in_header = |call: &&support::provider::Call| {
        call.header("authorization").is_some_and(|v| v.starts_with("Bearer ")) && !call.target.contains('?')
    };
    assert_eq!(calls.iter().filter(in_header).count(), calls.len(), "the token belongs in the header only");
}

/// BFF-01, RFC6749-03, oidcc-client-test-client-secret-basic, ASVS-13.2.1: one authentication a call, of the configured
/// kind, for code, refresh and revocation.
#[tokio::test]
async fn the_client_authenticates_in_the_configured_way() {
    for (how, name) in [
        (ClientAuth::Basic, "client_secret_basic"),
        (ClientAuth::Post, "client_secret_post"),
        (ClientAuth::None, "none"),
    ] {
        let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
        provider.set(|s| {
            s.client_auth = how.clone();
            s.client_id = "spa client:%/\u{e9}".to_owned();
            s.client_secret = format!("{} a:b%+&=\u{e9}/", mark("secret-"));
        });
        let rig = Rig::before(provider, upstream, |config| {
            set(config, "provider.client_auth", &format!("{name:?}"));
            if how == ClientAuth::None {
                config["provider"].as_table_mut().unwrap().remove("client_secret");
            }
        })
        .await;
        let browser = rig.works(name).await;
        rig.gateway.advance(&rig.provider, 3600);
        assert_eq!(browser.fetch("/api/x").await.status, 200, "{name}");
        assert_eq!(browser.post("/auth/logout").await.status, 200, "{name}");
        rig.provider.wait_for_answers(Endpoint::Revocation, 1).await;
        assert_eq!(rig.provider.violations(), [""; 0], "{name}");
        assert_eq!((rig.provider.code_exchanges(), rig.provider.refreshes()), (1, 1), "{name}");
    }
}

/// A wrong secret is our misconfiguration: 502, tried once and in one way only (RFC6749-03).
#[tokio::test]
async fn a_wrong_secret_is_not_tried_in_another_way() {
    let rig = Rig::start(|_| {}).await;
    rig.provider.set(|s| s.client_secret = "another secret".to_owned());
    let page = rig.refused("a wrong secret").await;
    assert_eq!(page.status, 502, "{}", page.text());
    assert!(page.text().contains("provider_refused"));
}

/// KEY-08: a provider that is down at the start: 503 with `Retry-After` and no cookie, all else goes on, and it heals
/// by itself.
#[tokio::test]
async fn a_provider_that_is_down_at_the_start_heals() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    provider.go_down().await;
    let rig = Rig::before(provider, upstream, |_| {}).await;
    let browser = rig.gateway.browser();
    for answer in [browser.login("/").await, browser.fetch("/auth/login").await] {
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.text().contains("provider_unavailable"), "{}", answer.text());
        let wait: u64 = answer.header("retry-after").expect("Retry-After").parse().expect("seconds");
        assert!((1..=10).contains(&wait), "{wait}");
        assert!(answer.set_cookies().is_empty());
    }
    assert_eq!(browser.fetch("/page").await.status, 200);
    assert_eq!(browser.fetch("/api/x").await.status, 401, "never open while the provider is away");
    assert_eq!(browser.session().await["authenticated"], false);

    rig.provider.come_back().await;
    rig.provider.wait_for_answers(Endpoint::Jwks, 1).await;
    rig.works("healed").await;
}

/// ASVS-16.5.2: live sessions do not need the metadata again, and a login during an outage fails without harm (ERR-03).
#[tokio::test]
async fn a_provider_that_goes_away_ends_no_session() {
    let rig = Rig::start(|_| {}).await;
    let browser = rig.works("before").await;
    rig.provider.go_down().await;
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    let start = browser.start_login("/").await;
    assert_eq!(start.status, 302, "the metadata is known");
    assert_eq!(browser.session().await["authenticated"], true);
    rig.provider.come_back().await;
    rig.works("after").await;
}

/// KEY-01, KEY-02, KEY-09, IDT-07: a metadata document that is not one for us is not used; it heals.
#[tokio::test]
async fn an_unusable_metadata_document_is_not_used() {
    type Change = fn(&mut Switches);
    let rows: &[(&str, u16, Change)] = &[
        ("another issuer", 502, |s| s.document_issuer = Some("https://other.example".to_owned())),
        ("no issuer", 502, |s| s.omit = vec!["issuer".to_owned()]),
        ("no token endpoint", 502, |s| s.omit = vec!["token_endpoint".to_owned()]),
        ("no authorization endpoint", 502, |s| s.omit = vec!["authorization_endpoint".to_owned()]),
        ("no keys", 502, |s| s.omit = vec!["jwks_uri".to_owned()]),
        ("plain http", 502, |s| {
            s.document.insert("token_endpoint".to_owned(), json!("http://provider.example/token"));
        }),
        ("a script", 502, |s| {
            s.document.insert("authorization_endpoint".to_owned(), json!("javascript:alert(1)"));
        }),
        ("a file", 502, |s| drop(s.document.insert("jwks_uri".to_owned(), json!("file:///etc/passwd")))),
        ("user info", 502, |s| {
            s.document.insert("token_endpoint".to_owned(), json!("https://a:b@provider.example/token"));
        }),
        ("a relative URL", 502, |s| drop(s.document.insert("token_endpoint".to_owned(), json!("/token")))),
        ("a number", 502, |s| drop(s.document.insert("token_endpoint".to_owned(), json!(7)))),
        ("a member twice", 502, |s| {
            s.document_doubled = vec![("issuer".to_owned(), json!("https://other.example").to_string())];
        }),
        ("a page", 0, |s| s.fail(Endpoint::Discovery, Outage::Html(200))),
        ("a list", 0, |s| s.fail(Endpoint::Discovery, Outage::json(200, "[]"))),
        ("404", 0, |s| s.fail(Endpoint::Discovery, Outage::Status(404))),
        ("500", 503, |s| s.fail(Endpoint::Discovery, Outage::Status(500))),
        ("a redirect", 0, |s| s.fail(Endpoint::Discovery, Outage::Redirect("/elsewhere".to_owned()))),
        ("2 MiB", 0, |s| s.fail(Endpoint::Discovery, Outage::Huge(2 << 20))),
    ];
    let upstream = Upstream::start().await;
    for (what, status, change) in rows {
        let provider = ProviderDouble::start().await;
        provider.set(change);
        let gateway = Inside::start(&provider, &upstream).await;
        let browser = gateway.browser();
        let page = browser.login("/").await;
        let fits = if *status == 0 { matches!(page.status, 502 | 503) } else { page.status == *status };
        assert!(fits, "{what}: {} {}", page.status, page.text());
        assert_eq!(page.header("retry-after").is_some(), page.status == 503, "{what}");
        assert!(page.set_cookies().is_empty(), "{what}");
        assert_eq!(provider.calls_to(Endpoint::Authorize).len(), 0, "{what}");
        assert_eq!(provider.calls_to(Endpoint::Other).len(), 0, "{what}: a redirect was followed");
        assert_eq!(browser.fetch("/page").await.status, 200, "{what}");
    }
    // Healing is the same for all of them: once is enough.
    let provider = ProviderDouble::start().await;
    provider.set(|s| s.document_issuer = Some("https://other.example".to_owned()));
    let rig = Rig::before(provider, upstream, |_| {}).await;
    assert_eq!(rig.gateway.browser().login("/").await.status, 502);
    rig.provider.set(|s| s.document_issuer = None);
    rig.provider.wait_for_answers(Endpoint::Jwks, 1).await;
    rig.works("healed").await;
}

/// DOS-09: many who want to log in cause one fetch of the metadata.
#[tokio::test]
async fn concurrent_fetches_of_metadata_are_one() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let held = provider.hold(Endpoint::Discovery, Grants::Any, Moment::Before);
    let rig = Rig::before(provider, upstream, |_| {}).await;
    held.wait_for(1).await;
    let mut logins = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let browser = rig.gateway.browser();
        logins.spawn(async move { browser.start_login("/").await.status });
    }
    rig.gateway.browser().fetch("/page").await;
    held.release();
    assert_eq!(logins.join_all().await, [302; 10]);
    assert_eq!(rig.provider.calls_to(Endpoint::Discovery).len(), 1);
}

/// RFC9700-12: `offline_access` is left out where the provider says that it does not know it; without a refresh token
/// the session lives as long as the access token.
#[tokio::test]
async fn offline_access_is_left_out_where_it_is_unknown() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    provider.set(|s| {
        s.document.insert("scopes_supported".to_owned(), json!(["openid", "email"]));
        s.refresh_token_at_login = false;
    });
    let rig = Rig::before(provider, upstream, |_| {}).await;
    let browser = rig.works("without offline_access").await;
    let asked = rig.provider.calls_to(Endpoint::Authorize);
    assert_eq!(asked[0].param("scope"), Some("openid"));
    rig.gateway.advance(&rig.provider, 3700);
    assert_eq!(browser.fetch("/api/x").await.status, 401);
    assert_eq!((browser.session().await["authenticated"].clone(), rig.provider.refreshes()), (json!(false), 0));
}

/// The rotation that providers really have, over three refreshes (RFR-05).
#[tokio::test]
async fn a_new_refresh_token_replaces_the_old_one() {
    for rotation in [Rotation::None, Rotation::Token, Rotation::Family] {
        let rig = Rig::start(|_| {}).await;
        rig.provider.set(|s| s.rotation = rotation);
        let browser = rig.works("rotation").await;
        for n in 1..=3 {
            rig.gateway.advance(&rig.provider, 3600);
            assert_eq!(browser.fetch("/api/x").await.status, 200, "{rotation:?}");
            assert_eq!(rig.provider.refreshes(), n, "{rotation:?}");
        }
        assert_eq!((rig.provider.reuse_alarms(), rig.provider.violations()), (0, vec![]), "{rotation:?}");
    }
}
