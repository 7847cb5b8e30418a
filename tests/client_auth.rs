//! How sidegate proves itself at the provider and hands in its requests: client authentication, pushed and signed
//! authorization requests, answers by form.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use std::path::PathBuf;

use serde_json::{Value, json};
use support::client::{Ask, Browser, Initiator, Response, SameSite};
use support::gateway::{Gateway, set};
use support::inside::Inside;
use support::jose::{self, Key};
use support::mutual_tls::{self, MutualTls};
use support::provider::{Authorization, ClientAuth, Endpoint, Outage, Par, ProviderDouble};
use support::text::{get, unb64u};
use support::upstream::Upstream;
use tempfile::TempDir;
use toml::Table;
use url::Url;

/// Provider, upstream, and a directory for keys.
struct Rig {
    provider: ProviderDouble,
    upstream: Upstream,
    dir: TempDir,
}

impl Rig {
    async fn new() -> Self {
        let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
        Self { provider, upstream, dir: tempfile::tempdir().unwrap() }
    }

    async fn gateway(&self, change: impl FnOnce(&mut Table)) -> Inside {
        Inside::start_with(&self.provider, &self.upstream, change).await
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Login, API call, refresh, logout; the provider objects to nothing.
    async fn whole_journey(&self, gateway: &Inside) {
        let browser = gateway.signed_in().await;
        let answer = browser.fetch("/api/x").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let refreshed = browser.post("/auth/refresh").await;
        assert_eq!(refreshed.status, 200, "{refreshed:?}");
        let out = browser.post("/auth/logout").await;
        assert_eq!(out.status, 200, "{out:?}");
        assert_eq!(self.provider.violations(), Vec::<String>::new());
        assert!(!self.provider.calls_to(Endpoint::Revocation).is_empty());
    }
}

fn remove(config: &mut Table, key: &str) {
    config["provider"].as_table_mut().unwrap().remove(key);
}

fn by_key(config: &mut Table, file: &std::path::Path) {
    remove(config, "client_secret");
    set(config, "provider.client_auth", "\"private_key_jwt\"");
    set(config, "provider.private_key_file", &format!("{file:?}"));
    set(config, "provider.private_key_id", "\"k1\"");
}

/// BFF-29, FAPI2-04, RFC9700-11: each kind of key, in the algorithm that fits it or that is asked for. The double
/// verifies signature, audience, life and freshness of every assertion.
#[tokio::test]
async fn private_key_jwt_with_every_kind_of_key() {
    let (ec, ec_file) = Key::p256_with_file("k1");
    let (ed, ed_file) = Key::ed25519_with_file("k1");
    let rsa = Key::rsa(1, "k1");
    for (key, content, alg) in [
        (ec, ec_file.as_str(), None),
        (ed, ed_file.as_str(), None),
        (rsa.clone(), Key::rsa_file(1), None),
        (rsa.with_alg("PS256"), Key::rsa_file(1), Some("PS256")),
    ] {
        let rig = Rig::new().await;
        rig.provider.set(|s| s.client_auth = ClientAuth::KeyJwt(vec![key.jwk()]));
        let file = rig.file("key.pem", content);
        let gateway = rig
            .gateway(|config| {
                by_key(config, &file);
                if let Some(alg) = alg {
                    set(config, "provider.private_key_alg", &format!("{alg:?}"));
                }
            })
            .await;
        rig.whole_journey(&gateway).await;
        let call = &rig.provider.calls_to(Endpoint::Token)[0];
        let (header, claims) = jose::parse(call.param("client_assertion").unwrap()).unwrap();
        assert_eq!(header, json!({"alg": key.alg, "typ": "JWT", "kid": "k1"}));
        assert_eq!(claims["aud"], rig.provider.issuer, "a string, not a list");
        assert!(call.header("authorization").is_none() && call.param("client_secret").is_none());
    }
}

#[tokio::test]
async fn client_secret_jwt_signs_with_the_secret() {
    let rig = Rig::new().await;
    rig.provider.set(|s| {
        s.client_auth = ClientAuth::SecretJwt;
        s.client_secret = "a secret of more than thirty-two bytes \u{e9}%+&=".to_owned();
    });
    let gateway = rig.gateway(|config| set(config, "provider.client_auth", "\"client_secret_jwt\"")).await;
    rig.whole_journey(&gateway).await;
}

/// oidcc-client-test-client-secret-basic, and the dialect of servers that do not decode.
#[tokio::test]
async fn basic_is_encoded_unless_the_dialect_says_otherwise() {
    for raw in [false, true] {
        let rig = Rig::new().await;
        rig.provider.set(|s| {
            s.client_auth = if raw { ClientAuth::BasicRaw } else { ClientAuth::Basic };
            s.client_secret = "p%+w \u{e9}/&".to_owned();
        });
        let gateway = rig
            .gateway(|config| {
                if raw {
                    set(config, "provider.dialect", "{ token = { auth = \"basic_raw\" } }");
                }
            })
            .await;
        rig.whole_journey(&gateway).await;
    }
}

/// oidcc-client-test-mtls-endpoint-aliases, RFC8705, FAPI2-11: the certificate is shown at the aliases, and the id goes
/// along.
#[tokio::test]
async fn tls_client_auth_uses_the_aliases() {
    let rig = Rig::new().await;
    let front = MutualTls::start(&rig.provider).await;
    let [cert, key] = ["localhost.pem", "localhost.key"]
        .map(|name| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name));
    let known = mutual_tls::fingerprint(&std::fs::read_to_string(&cert).unwrap());
    rig.provider.set(|s| {
        s.client_auth = ClientAuth::Tls(known);
        s.par = Par::Offered;
        let alias = |path: &str| json!(format!("{}/{path}", front.origin));
        s.document.insert(
            "mtls_endpoint_aliases".to_owned(),
            json!({
                "token_endpoint": alias("token"), "revocation_endpoint": alias("revoke"),
                "userinfo_endpoint": alias("userinfo"), "pushed_authorization_request_endpoint": alias("par"),
            }),
        );
    });
    let ca = rig.file("ca.pem", mutual_tls::authority());
    let gateway = rig
        .gateway(|config| {
            remove(config, "client_secret");
            set(config, "provider.client_auth", "\"tls_client_auth\"");
            set(config, "provider.tls_cert_file", &format!("{cert:?}"));
            set(config, "provider.tls_key_file", &format!("{key:?}"));
            set(config, "provider.ca_file", &format!("{ca:?}"));
            set(config, "provider.userinfo", "true");
        })
        .await;
    rig.whole_journey(&gateway).await;
    for endpoint in [Endpoint::Token, Endpoint::Par, Endpoint::Userinfo, Endpoint::Revocation] {
        let calls = rig.provider.calls_to(endpoint);
        assert!(
            !calls.is_empty() && calls.iter().all(|c| c.header("x-test-client-certificate").is_some()),
            "{endpoint:?}"
        );
    }
}

/// RFC8705-01: a client certificate that is replaced is shown in the next handshake, without a restart.
#[tokio::test]
async fn the_client_certificate_is_rotated_by_its_file() {
    let rig = Rig::new().await;
    let front = MutualTls::start(&rig.provider).await;
    // Certificate and key in one file, so that they change at once.
    let pem = |name: &str| {
        let read = |end: &str| {
            let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls");
            std::fs::read_to_string(folder.join(format!("{name}.{end}"))).unwrap()
        };
        (read("pem"), read("key"))
    };
    let ((old, old_key), (new, new_key)) = (pem("localhost"), pem("other"));
    let file = rig.file("client.pem", &format!("{old}{old_key}"));
    let ca = rig.file("ca.pem", mutual_tls::authority());
    let expect = |certificate: &str| {
        let known = mutual_tls::fingerprint(certificate);
        rig.provider.set(|s| s.client_auth = ClientAuth::Tls(known));
    };
    expect(&old);
    let token = json!(format!("{}/token", front.origin));
    rig.provider.set(|s| {
        s.document.insert("mtls_endpoint_aliases".to_owned(), json!({"token_endpoint": token}));
    });
    let gateway = Gateway::start_with(&rig.provider, &rig.upstream, |config| {
        remove(config, "client_secret");
        set(config, "provider.client_auth", "\"tls_client_auth\"");
        set(config, "provider.tls_cert_file", &format!("{file:?}"));
        set(config, "provider.tls_key_file", &format!("{file:?}"));
        set(config, "provider.ca_file", &format!("{ca:?}"));
        set(config, "logout.revoke", "false");
    })
    .await;
    let browser = gateway.signed_in().await;
    assert_eq!(browser.post("/auth/refresh").await.status, 200);

    rig.file("client.pem", &format!("{new}{new_key}"));
    gateway.wait_for_log("reload", 1).await;
    expect(&new);
    assert_eq!(browser.post("/auth/refresh").await.status, 200, "{}", gateway.output());
    assert_eq!(rig.provider.violations(), Vec::<String>::new());
    rig.provider.canaries().assert_absent("the log", gateway.output());
}

/// ASVS-13.3.4: a key file that changes is taken within ten seconds; one that holds no key leaves the old one in force.
#[tokio::test]
async fn the_key_is_rotated_by_its_file() {
    let rig = Rig::new().await;
    let (old, old_file) = Key::p256_with_file("k1");
    let (new, new_file) = Key::p256_with_file("k1");
    rig.provider.set(|s| s.client_auth = ClientAuth::KeyJwt(vec![old.jwk()]));
    let file = rig.file("key.pem", &old_file);
    let gateway = Gateway::start_with(&rig.provider, &rig.upstream, |config| by_key(config, &file)).await;
    let browser = gateway.signed_in().await;

    rig.file("key.pem", "not a key");
    gateway.wait_for_log("reload", 1).await;
    assert_eq!(browser.post("/auth/refresh").await.status, 200, "the old key is in force");
    assert!(gateway.metric("sidegate_config_reloads_total", &[("outcome", "failed")]).await > 0.0);

    let before = gateway.log_events("reload").len();
    rig.file("key.pem", &new_file);
    gateway.wait_for_log("reload", before + 1).await;
    rig.provider.set(|s| s.client_auth = ClientAuth::KeyJwt(vec![new.jwk()]));
    assert_eq!(browser.post("/auth/refresh").await.status, 200, "{}", gateway.output());
    assert_eq!(rig.provider.violations(), Vec::<String>::new());
    rig.provider.canaries().assert_absent("the log", gateway.output());
}

// -- Pushed requests -----------------------------------------------------------------------------------------------

/// FAPI2-01, RFC9126-01: pushed where the provider offers it; the browser carries two parameters.
#[tokio::test]
async fn requests_are_pushed_where_that_is_offered() {
    for (offered, config_value) in [(Par::Offered, "auto"), (Par::Required, "auto"), (Par::Offered, "require")] {
        let rig = Rig::new().await;
        rig.provider.set(|s| s.par = offered);
        let gateway = rig.gateway(|config| set(config, "provider.par", &format!("{config_value:?}"))).await;
        let browser = gateway.browser();
        let start = browser.start_login("/").await;
        let url = Url::parse(start.location().unwrap()).unwrap();
        let names: Vec<_> = url.query_pairs().map(|(name, _)| name.into_owned()).collect();
        assert_eq!(names, ["client_id", "request_uri"]);
        let pushed = &rig.provider.calls_to(Endpoint::Par)[0];
        assert_eq!(pushed.method, "POST");
        assert!(get(&pushed.form, "state").is_some() && get(&pushed.form, "request_uri").is_none());
        rig.whole_journey(&gateway).await;
    }
    // Off means off, and not offered means plain.
    for (offered, config_value) in [(Par::Offered, "off"), (Par::Off, "auto")] {
        let rig = Rig::new().await;
        rig.provider.set(|s| s.par = offered);
        let gateway = rig.gateway(|config| set(config, "provider.par", &format!("{config_value:?}"))).await;
        rig.whole_journey(&gateway).await;
        assert!(rig.provider.calls_to(Endpoint::Par).is_empty());
    }
}

/// FAPI2-15: a failed push is a page, never a plain request, and heals.
#[tokio::test]
async fn a_failed_push_is_never_a_plain_request() {
    let rig = Rig::new().await;
    rig.provider.set(|s| s.par = Par::Offered);
    let gateway = rig.gateway(|_| {}).await;
    let browser = gateway.browser();
    for (outage, status, code) in [
        (Outage::error("invalid_request"), 502, "provider_refused"),
        (Outage::error("invalid_client"), 502, "provider_refused"),
        (Outage::Html(413), 502, "provider_refused"),
        (Outage::Redirect("https://evil.example/".to_owned()), 502, "provider_refused"),
        (Outage::json(201, "{}"), 502, "provider_refused"),
        (Outage::TooMany(Some("3".to_owned())), 503, "provider_unavailable"),
        (Outage::Status(500), 503, "provider_unavailable"),
        (Outage::Drop, 503, "provider_unavailable"),
    ] {
        rig.provider.set(|s| s.fail(Endpoint::Par, outage.clone()));
        let answer = browser.start_login("/").await;
        assert_eq!(answer.status, status, "{outage:?}");
        assert!(answer.text().contains(code) && answer.location().is_none(), "{outage:?}: {answer:?}");
        assert!(browser.jar().names().is_empty(), "no cookie of an attempt that never began");
        rig.provider.set(|s| s.heal(Endpoint::Par));
    }
    assert!(rig.provider.calls_to(Endpoint::Authorize).is_empty());
    rig.whole_journey(&gateway).await;
}

/// Required here or there, but not to be had: 502, no cookie.
#[tokio::test]
async fn a_push_that_is_required_but_not_offered() {
    for demanded_there in [false, true] {
        let rig = Rig::new().await;
        rig.provider.set(|s| {
            if demanded_there {
                s.document.insert("require_pushed_authorization_requests".to_owned(), json!(true));
            }
        });
        let par = if demanded_there { "\"auto\"" } else { "\"require\"" };
        let gateway = rig.gateway(|config| set(config, "provider.par", par)).await;
        let answer = gateway.browser().start_login("/").await;
        assert_eq!(answer.status, 502);
        assert!(answer.text().contains("provider_refused") && answer.set_cookies().is_empty());
    }
    // The endpoint may be named in the configuration.
    let rig = Rig::new().await;
    rig.provider.set(|s| {
        s.par = Par::Required;
        s.omit.push("pushed_authorization_request_endpoint".to_owned());
    });
    let endpoint = format!("{:?}", rig.provider.url(Endpoint::Par));
    let gateway = rig.gateway(|config| set(config, "provider.endpoints.pushed_authorization_request", &endpoint)).await;
    rig.whole_journey(&gateway).await;
}

/// FAPI2-18: signed where the provider demands it or the operator wishes it, pushed or not.
#[tokio::test]
async fn requests_are_signed_where_that_is_demanded() {
    for par in [Par::Off, Par::Offered] {
        let rig = Rig::new().await;
        let (key, content) = Key::p256_with_file("k1");
        rig.provider.set(|s| {
            s.par = par;
            s.request_object = Some(vec![key.jwk()]);
        });
        let file = rig.file("key.pem", &content);
        let gateway = rig
            .gateway(|config| {
                set(config, "provider.private_key_file", &format!("{file:?}"));
                set(config, "provider.request_object", "\"require\"");
            })
            .await;
        rig.whole_journey(&gateway).await;
        let endpoint = if par == Par::Off { Endpoint::Authorize } else { Endpoint::Par };
        let call = &rig.provider.calls_to(endpoint)[0];
        assert!(call.param("state").is_none() && call.param("request").is_some());
    }
    // Demanded there, and no key at hand.
    let rig = Rig::new().await;
    rig.provider.set(|s| s.request_object = Some(Vec::new()));
    let gateway = rig.gateway(|_| {}).await;
    let answer = gateway.browser().start_login("/").await;
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains("provider_refused"));
}

// -- Answers by form -----------------------------------------------------------------------------------------------

/// A login by form_post, up to the page that the provider sends: its form.
async fn form_of(browser: &Browser) -> Vec<(String, String)> {
    let start = browser.start_login("/account?x=1").await;
    let attempt = start.set_cookies().into_iter().find(|cookie| cookie.name.contains("-login-")).unwrap();
    assert!(attempt.same_site == SameSite::None && attempt.secure && attempt.http_only, "{}", attempt.line);
    let page = browser.send(Ask::navigate(start.location().unwrap()).stay()).await;
    let value = |field: &str, name: &str| {
        let rest = field.split_once(&format!("{name}=\"")).unwrap().1;
        rest.split('"').next().unwrap().replace("&amp;", "&")
    };
    page.text().split("<input ").skip(1).map(|field| (value(field, "name"), value(field, "value"))).collect()
}

async fn post(browser: &Browser, provider: &ProviderDouble, fields: &[(String, String)]) -> Response {
    let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let ask = Ask::navigate(&browser.url("/auth/callback")).form(&fields).stay();
    browser.send(ask.from(Initiator::Origin(provider.issuer.clone()))).await
}

/// RFC9700-16, RFC9700-02, oidcc-client-test-form-post-error: the answer by POST, under the same rules as by redirect.
#[tokio::test]
async fn answers_come_by_form() {
    let rig = Rig::new().await;
    let gateway = rig
        .gateway(|config| {
            set(config, "server.public_url", "\"https://app.example.test\"");
            set(config, "provider.response_mode", "\"form_post\"");
        })
        .await;
    let browser = gateway.browser();
    let fields = form_of(&browser).await;
    let done = post(&browser, &rig.provider, &fields).await;
    assert_eq!((done.status, done.location()), (303, Some("/account?x=1#")), "{done:?}");
    assert_eq!(browser.session().await["authenticated"], true);
    assert_eq!(rig.provider.violations(), Vec::<String>::new());
    let exchanges = rig.provider.code_exchanges();

    // Another browser, no state, a token by the front channel, no form: nothing is redeemed.
    let stranger = gateway.browser();
    let fields = form_of(&browser).await;
    assert_eq!(post(&stranger, &rig.provider, &fields).await.status, 200, "a stale attempt: the hop page");
    let without = |name: &str| fields.iter().filter(|(known, _)| known != name).cloned().collect::<Vec<_>>();
    assert_eq!(post(&browser, &rig.provider, &without("state")).await.status, 400);
    let token = [fields.clone(), vec![("id_token".to_owned(), "a.b.c".to_owned())]].concat();
    assert_eq!(post(&browser, &rig.provider, &token).await.status, 400);
    let json = Ask::navigate(&browser.url("/auth/callback")).method("POST").body("application/json", "{}").stay();
    assert_eq!(browser.send(json).await.status, 400);
    let large = Ask::navigate(&browser.url("/auth/callback"))
        .method("POST")
        .body("application/x-www-form-urlencoded", "x".repeat(70_000))
        .stay();
    assert_eq!(browser.send(large).await.status, 413);
    assert_eq!(rig.provider.code_exchanges(), exchanges);

    // An error is a page, and no loop.
    rig.provider.set(|s| s.authorization = Authorization::error("login_required"));
    let fields = form_of(&stranger).await;
    let refused = post(&stranger, &rig.provider, &fields).await;
    assert_eq!((refused.status, refused.location()), (400, None));
    assert!(refused.text().contains("login_refused"));
}

/// A POST that nobody asked for is not taken.
#[tokio::test]
async fn without_form_post_the_callback_takes_no_post() {
    let rig = Rig::new().await;
    let gateway = rig.gateway(|_| {}).await;
    let browser = gateway.browser();
    let refused = post(&browser, &rig.provider, &[("code".to_owned(), "x".to_owned())]).await;
    assert_eq!((refused.status, refused.header("allow")), (405, Some("GET")));
}

// -- Configuration -------------------------------------------------------------------------------------------------

fn problems(config: &Table) -> Vec<String> {
    let text = config.to_string();
    let around = sidegate::config::Surroundings {
        text: Some(("the test's configuration", text)),
        ..sidegate::config::Surroundings::default()
    };
    let found = sidegate::config::load_in(&[], &around).err().unwrap_or_default();
    found.iter().map(ToString::to_string).collect()
}

/// FAPI2-09, CFG-01: keys that cannot be used, or not so, are refused with their name.
#[tokio::test]
async fn unfit_keys_are_refused() {
    let rig = Rig::new().await;
    let (_, ec) = Key::p256_with_file("k1");
    let cases: [(&str, Option<&str>, &str); 4] = [
        ("nothing", None, "private_key_file"),
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n", None, "passphrase"),
        (&ec, Some("RS256"), "private_key_alg"),
        (Key::rsa_file(0), Some("EdDSA"), "private_key_alg"),
    ];
    for (content, alg, word) in cases {
        let file = rig.file("key.pem", content);
        let mut config = support::gateway::config(&rig.provider, &rig.upstream);
        by_key(&mut config, &file);
        if let Some(alg) = alg {
            set(&mut config, "provider.private_key_alg", &format!("{alg:?}"));
        }
        let found = problems(&config);
        assert!(found.iter().any(|text| text.contains(word)), "{word}: {found:?}");
        assert!(!found.iter().any(|text| text.contains("MC4") || text.contains("MII")), "no content of the file");
    }
}

#[test]
fn the_doubles_refuse_what_is_not_signed() {
    let (key, _) = Key::p256_with_file("k");
    let good = jose::compact(r#"{"alg":"ES256"}"#, "{}", &key);
    assert!(jose::verified(&good, &key.jwk()));
    assert!(!jose::verified(&good, &Key::p256("k").jwk()) && !jose::verified(&format!("{good}A"), &key.jwk()));
    let mac = jose::input(r#"{"alg":"HS256"}"#, "{}");
    let oct: Value = json!({"kty": "oct", "k": "AAAA"});
    let signature = jose::hs256(&unb64u("AAAA").unwrap(), mac.as_bytes());
    assert!(jose::verified(&format!("{mac}.{}", support::text::b64u(signature)), &oct));
}
