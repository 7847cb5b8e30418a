//! Tokens bound to a key (DPoP, RFC 9449) and the FAPI 2.0 profile, each client module of its suite by name.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use support::client::{Ask, Browser, Response};
use support::gateway::set;
use support::inside::Inside;
use support::jose::{Key, Proof};
use support::provider::{
    Authorization, ClientAuth, Dpop, Endpoint, ExpiresIn, Fault, IssParameter, Par, ProviderDouble, Switches,
};
use support::text::{self, header, mark};
use support::upstream::{Script, Upstream};
use support::wire::{Answer, Request};
use tempfile::TempDir;
use toml::Table;
use url::Url;

/// What a test does to the provider.
type Change = fn(&mut Switches);

/// What the upstream found in proofs.
#[derive(Debug, Default)]
struct Seen {
    keys: HashSet<String>,
    jtis: HashSet<String>,
    wrong: Vec<String>,
}

struct Rig {
    provider: ProviderDouble,
    upstream: Upstream,
    gateway: Inside,
    seen: Arc<Mutex<Seen>>,
    nonce: Arc<Mutex<Option<String>>>,
    dir: TempDir,
}

/// A resource server that verifies every proof, and asks for its nonce if it has one. `/api/fickle` is never content.
fn resource_server(origin: String, seen: Arc<Mutex<Seen>>, nonce: Arc<Mutex<Option<String>>>) -> Script {
    let challenge = |nonce: &str, scheme: &str| {
        let challenge = format!("{scheme} algs=\"ES256\", error=\"use_dpop_nonce\"");
        Answer::new(401, "text/plain", "no\n").with("WWW-Authenticate", &challenge).with("DPoP-Nonce", nonce)
    };
    Script::by(move |request: &Request| {
        let (token, proofs) = (request.header("authorization").unwrap_or_default(), request.header_all("dpop"));
        let Some(token) = token.strip_prefix("DPoP ") else {
            seen.lock().wrong.push(format!("authorization {token}"));
            return Script::invalid_token();
        };
        let url = format!("{origin}{}", request.path());
        let wanted = Proof { method: &request.method, url: &url, token: Some(token), now: text::now() };
        let found = match proofs[..] {
            [proof] => wanted.check(proof),
            _ => Err(format!("{} proofs", proofs.len())),
        };
        let (key, jti, given) = match found {
            Ok(found) => found,
            Err(wrong) => {
                seen.lock().wrong.push(wrong);
                return Script::invalid_token();
            }
        };
        let mut seen = seen.lock();
        seen.keys.insert(key);
        if !seen.jtis.insert(jti) {
            seen.wrong.push("jti used twice".to_owned());
        }
        if request.path() == "/api/fickle" {
            return Script::Answer(challenge(&mark("n-"), "DPoP"));
        }
        match nonce.lock().as_deref() {
            Some(wanted) if given.as_deref() != Some(wanted) => Script::Answer(challenge(wanted, "dPoP")),
            Some(wanted) => Script::Answer(Answer::new(200, "text/plain", "ok\n").with("DPoP-Nonce", wanted)),
            None => Script::text(200, "ok\n"),
        }
    })
}

impl Rig {
    async fn with(switches: impl FnOnce(&mut Switches), change: impl FnOnce(&mut Table)) -> Self {
        let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
        let (seen, nonce): (Arc<Mutex<Seen>>, Arc<Mutex<Option<String>>>) = Default::default();
        let dir = tempfile::tempdir().unwrap();
        let (key, content) = Key::p256_with_file("client-key");
        let file = dir.path().join("key.pem");
        std::fs::write(&file, content).unwrap();
        provider.set(|s| {
            s.client_auth = ClientAuth::KeyJwt(vec![key.jwk()]);
            s.dpop = Dpop::Bound;
            s.par = Par::Required;
            s.id_token_alg = "ES256";
            switches(s);
        });
        let script = resource_server(upstream.url(), Arc::clone(&seen), Arc::clone(&nonce));
        for path in ["/api/x", "/api/y", "/api/fickle"] {
            upstream.on(path, script.clone());
        }
        let gateway = Inside::start_with(&provider, &upstream, |config| {
            config["provider"].as_table_mut().unwrap().remove("client_secret");
            for (key, value) in [
                ("profile", "\"fapi2\""),
                ("client_auth", "\"private_key_jwt\""),
                ("private_key_id", "\"client-key\""),
                ("id_token_alg", "\"ES256\""),
                ("dpop", "\"require\""),
            ] {
                set(config, &format!("provider.{key}"), value);
            }
            set(config, "provider.private_key_file", &format!("{file:?}"));
            change(config);
        })
        .await;
        Self { provider, upstream, gateway, seen, nonce, dir }
    }

    async fn new(switches: impl FnOnce(&mut Switches)) -> Self {
        Self::with(switches, |_| {}).await
    }

    /// Login, two calls, a refresh, another call: nobody objects, and one key is behind it all.
    async fn works(&self) {
        let browser = self.gateway.signed_in().await;
        for path in ["/api/x?q=1", "/api/y"] {
            let answer = browser.fetch(path).await;
            assert_eq!(answer.status, 200, "{answer:?} {:?}", self.seen.lock());
            self.hides_dpop(&answer);
        }
        let refreshed = browser.post("/auth/refresh").await;
        assert_eq!(refreshed.status, 200, "{refreshed:?} {:?}", self.provider.violations());
        assert_eq!(browser.fetch("/api/x").await.status, 200);
        assert_eq!(self.provider.violations(), Vec::<String>::new());
        let seen = self.seen.lock();
        assert_eq!(seen.wrong, Vec::<String>::new());
        let tokens = self.provider.canaries().only(&["access token"]);
        assert!(tokens.len() > 0);
        let targets = self.upstream.requests().into_iter().map(|request| request.target);
        for target in targets.chain(self.provider.calls().into_iter().map(|call| call.target)) {
            tokens.assert_absent("a URL", &target);
        }
        assert_eq!(seen.keys.iter().collect::<Vec<_>>(), [&self.provider.last_session().jkt.unwrap()]);
    }

    /// The login is refused with this reason, and nothing is called with the token.
    async fn refuses(&self, reason: &str) {
        let browser = self.gateway.browser();
        let end = browser.login("/").await;
        assert!(matches!(end.status, 400 | 502), "{reason}: {end:?}");
        assert_eq!(browser.session().await["authenticated"], false, "{reason}");
        assert!(self.upstream.requests_to("/api/x").is_empty());
        assert!(self.provider.calls_to(Endpoint::Userinfo).is_empty());
    }

    fn hides_dpop(&self, answer: &Response) {
        assert!(answer.header("dpop-nonce").is_none() && answer.header("dpop").is_none());
        assert!(answer.header_all("www-authenticate").iter().all(|value| !value.to_lowercase().contains("dpop")));
    }

    fn upstream_calls(&self, path: &str) -> usize {
        self.upstream.requests_to(path).len()
    }
}

/// fapi2-security-profile-final-client-test-happy-path-no-dpop-nonce, RFC9449-01, RFC9449-04, FAPI2-01, FAPI2-04 to
/// FAPI2-06: every proof and every assertion is verified, one key serves the session, and the token stands in the
/// header only.
#[tokio::test]
async fn happy_path_no_dpop_nonce() {
    let rig = Rig::new(|_| {}).await;
    rig.works().await;
    let authorize = &rig.provider.calls_to(Endpoint::Authorize)[0];
    let names: Vec<_> = authorize.query.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["client_id", "request_uri"]);
    assert!(rig.provider.calls_to(Endpoint::Par)[0].param("dpop_jkt").is_some());
    // Another login has another key.
    let first = rig.provider.last_session().jkt;
    rig.gateway.signed_in().await;
    assert_ne!(rig.provider.last_session().jkt, first);
}

/// fapi2-security-profile-final-client-test-happy-path, -rs-dpop-auth-scheme-case-insensitivity (it says dPoP),
/// RFC9449-02, RFC9449-05: nonces demanded everywhere, one repetition each, none when the nonce is known.
#[tokio::test]
async fn happy_path_with_nonces_everywhere() {
    let rig = Rig::with(|s| s.dpop = Dpop::WithNonce, |config| set(config, "provider.userinfo", "true")).await;
    *rig.nonce.lock() = Some(mark("rs-nonce-"));
    rig.works().await;
    assert_eq!(rig.provider.calls_to(Endpoint::Par).len(), 2, "the first without nonce, the second with");
    // The nonce of the push serves the token endpoint of the same origin.
    assert_eq!(rig.provider.code_exchanges(), 1);
    assert_eq!(rig.upstream_calls("/api/x"), 3, "one repetition, then the nonce is known");
    // A new nonce there: one repetition again.
    rig.provider.renew_dpop_nonce();
    let browser = rig.gateway.signed_in().await;
    rig.provider.renew_dpop_nonce();
    let before = rig.provider.refreshes();
    assert_eq!(browser.post("/auth/refresh").await.status, 200);
    assert_eq!(rig.provider.refreshes(), before + 2);
}

/// RFC9449-02: a server that is never content gets two calls, then an error.
#[tokio::test]
async fn a_demand_for_a_nonce_is_never_a_loop() {
    let rig = Rig::new(|_| {}).await;
    let browser = rig.gateway.signed_in().await;
    let answer = browser.fetch("/api/fickle").await;
    assert_eq!((answer.status, rig.upstream_calls("/api/fickle")), (401, 2));
    rig.hides_dpop(&answer);

    rig.provider.set(|s| s.dpop = Dpop::NeverContent);
    let before = rig.provider.refreshes();
    let refreshed = browser.post("/auth/refresh").await;
    assert_eq!(refreshed.status, 502, "{refreshed:?}");
    assert_eq!(rig.provider.refreshes(), before + 2);
    assert_eq!(browser.session().await["authenticated"], true, "nothing is lost");
    let start = rig.gateway.browser().start_login("/").await;
    assert_eq!((start.status, start.set_cookies().len()), (502, 0));
}

/// RFC9449-03: what cannot be replayed is not; the nonce of the refusal serves the next request.
#[tokio::test]
async fn a_request_with_a_body_is_not_repeated() {
    let rig = Rig::new(|_| {}).await;
    let browser = rig.gateway.signed_in().await;
    *rig.nonce.lock() = Some(mark("rs-nonce-"));
    let post = || Ask::fetch("/api/x").method("POST").body("text/plain", "once");
    let refused = browser.send(post()).await;
    assert_eq!((refused.status, rig.upstream_calls("/api/x")), (401, 1));
    rig.hides_dpop(&refused);
    assert_eq!(browser.send(post()).await.status, 200);
    assert_eq!(rig.upstream_calls("/api/x"), 2);
}

/// RFC9449-01: a route's own token is bound to the session's key like any other, and the proof is for that token.
#[tokio::test]
async fn a_token_of_a_route_s_own_is_bound_too() {
    let rig = Rig::with(
        |_| {},
        |config| {
            let route = "path = '/api/y'\nupstream = 'UPSTREAM'\ntoken = { audience = 'orders' }";
            let upstream = config["route"][0]["upstream"].as_str().unwrap().to_owned();
            let route: Table = route.replace("UPSTREAM", &upstream).parse().unwrap();
            config["route"].as_array_mut().unwrap().push(route.into());
        },
    )
    .await;
    rig.works().await;
    let sent = |path: &str| rig.upstream.requests_to(path)[0].header("authorization").unwrap().to_owned();
    assert_ne!(sent("/api/x"), sent("/api/y"));
    assert_eq!(
        rig.provider.calls_to(Endpoint::Token).iter().filter(|call| call.param("audience").is_some()).count(),
        1
    );
}

/// RFC9449-01: a path of any spelling, a query, a base path: the proof is for what was asked of the upstream.
#[tokio::test]
async fn the_proof_names_the_url_that_the_upstream_sees() {
    let rig = Rig::with(|_| {}, |_| {}).await;
    let browser = rig.gateway.signed_in().await;
    for path in ["/api/a%20b/%C3%A9?x=%2f#", "/api/", "/api/x;y"] {
        let answer = browser.fetch(path).await;
        let sent = rig.upstream.last();
        let token = sent.header("authorization").unwrap().strip_prefix("DPoP ").unwrap();
        let url = format!("{}{}", rig.upstream.url(), sent.path());
        let proof = Proof { method: "GET", url: &url, token: Some(token), now: text::now() };
        proof.check(sent.header("dpop").unwrap()).unwrap_or_else(|wrong| panic!("{path}: {wrong} {answer:?}"));
    }
}

/// RFC6750-01, RFC9449-06: a proof of the client's own is gone, and nothing private reaches anybody.
#[tokio::test]
async fn keys_and_proofs_stay_where_they_belong() {
    let rig = Rig::new(|_| {}).await;
    let browser = rig.gateway.signed_in().await;
    let ask = Ask::fetch("/api/x").header("DPoP", "eyJ.own.proof").header("Authorization", "DPoP own");
    assert_eq!(browser.send(ask).await.status, 200);
    let sent = rig.upstream.last();
    assert_eq!((sent.header_all("dpop").len(), sent.header_all("authorization").len()), (1, 1));
    assert!(rig.seen.lock().wrong.is_empty(), "{:?}", rig.seen.lock());
    // Public routes and those without session get neither.
    rig.gateway.browser().fetch("/index.html").await;
    let public = rig.upstream.last();
    assert!(header(&public.headers, "dpop").is_none() && header(&public.headers, "authorization").is_none());
}

// -- fapi2-security-profile-final-client-test-… ---------------------------------------------------------------------

/// fapi2-security-profile-final-client-test-invalid-iss, -invalid-missing-iss, -invalid-aud, -invalid-missing-aud,
/// -invalid-secondary-aud, -invalid-null-alg, -invalid-alternate-alg, -invalid-expired-exp, -invalid-missing-exp,
/// -invalid-nonce, -invalid-missing-nonce: such an ID token is not taken.
#[tokio::test]
async fn wrong_id_tokens_are_refused() {
    for (module, fault) in [
        ("invalid-iss", Fault::InvalidIss),
        ("invalid-missing-iss", Fault::MissingIss),
        ("invalid-aud", Fault::InvalidAud),
        ("invalid-missing-aud", Fault::MissingAud),
        ("invalid-secondary-aud", Fault::AudListUntrusted),
        ("invalid-null-alg", Fault::SigNone),
        ("invalid-expired-exp", Fault::Expired),
        ("invalid-missing-exp", Fault::MissingExp),
        ("invalid-nonce", Fault::NonceInvalid),
        ("invalid-missing-nonce", Fault::NonceMissing),
    ] {
        let rig = Rig::new(|s| s.fault = Some(fault)).await;
        rig.refuses(module).await;
    }
    // invalid-alternate-alg: a key of the provider's, but RS256.
    Rig::new(|s| s.id_token_alg = "RS256").await.refuses("invalid-alternate-alg").await;
}

/// fapi2-security-profile-final-client-test-valid-aud-as-array, -token-endpoint-response-without-expires_in,
/// -token-type-case-insensitivity: all this works.
#[tokio::test]
async fn tolerated_variants() {
    Rig::new(|s| s.fault = Some(Fault::AudList)).await.works().await;
    Rig::new(|s| s.expires_in = ExpiresIn::Missing).await.works().await;
    Rig::new(|s| s.token_type = Some("dPOP".to_owned())).await.works().await;
    for alg in ["EdDSA", "PS256"] {
        let set_alg = |config: &mut Table| set(config, "provider.id_token_alg", &format!("{alg:?}"));
        Rig::with(|s| s.id_token_alg = alg, set_alg).await.works().await;
    }
}

/// FAPI2-05: a bearer token, or one of no type, is a downgrade.
#[tokio::test]
async fn a_token_that_is_not_bound_is_refused() {
    for token_type in [Some("bearer"), Some("BEARER"), None, Some("mac")] {
        let rig = Rig::new(|s| s.token_type = token_type.map(str::to_owned)).await;
        rig.refuses("token_type").await;
        assert_eq!(rig.provider.code_exchanges(), 1);
    }
    // At a refresh too: the new token is not used, the session stays.
    let rig = Rig::new(|_| {}).await;
    let browser = rig.gateway.signed_in().await;
    rig.provider.set(|s| s.token_type = Some("bearer".to_owned()));
    assert_eq!(browser.post("/auth/refresh").await.status, 502);
}

/// fapi2-security-profile-final-client-test-discovery-issuer-mismatch: no push follows.
#[tokio::test]
async fn discovery_issuer_mismatch() {
    let rig = Rig::new(|s| s.document_issuer = Some("https://op.example/INVALID".to_owned())).await;
    let answer = rig.gateway.browser().start_login("/").await;
    assert_eq!(answer.status, 502);
    assert!(rig.provider.calls_to(Endpoint::Par).is_empty());
}

/// fapi2-security-profile-final-client-test-invalid-authorization-response-iss, -remove-authorization-response-iss,
/// -ensure-authorization-response-with-invalid-state-fails,
/// -ensure-authorization-response-with-invalid-missing-state-fails: no token call.
#[tokio::test]
async fn wrong_authorization_answers_stop_before_the_token_call() {
    let cases: [(&str, Change); 5] = [
        ("iss", |s| s.iss_parameter = IssParameter::Is("https://other.example".to_owned())),
        ("remove iss", |s| s.iss_parameter = IssParameter::Missing),
        ("remove iss, not announced", |s| {
            s.iss_parameter = IssParameter::Missing;
            s.announce_iss = false;
        }),
        ("state", |s| s.wrong_state = true),
        ("error", |s| s.authorization = Authorization::error("access_denied")),
    ];
    for (what, change) in cases {
        let rig = Rig::new(change).await;
        let end = rig.gateway.browser().login("/").await;
        assert_eq!(end.status, 400, "{what}: {end:?}");
        assert_eq!(rig.provider.code_exchanges(), 0, "{what}");
    }
    let rig = Rig::new(|_| {}).await;
    let browser: Browser = rig.gateway.browser();
    let start = browser.start_login("/").await;
    let back = browser.send(Ask::navigate(start.location().unwrap()).stay()).await;
    let mut url = Url::parse(back.location().unwrap()).unwrap();
    let kept: Vec<_> = url.query_pairs().into_owned().filter(|(name, _)| name != "state").collect();
    url.query_pairs_mut().clear().extend_pairs(kept);
    assert_eq!(browser.navigate(url.as_str()).await.status, 400, "missing state");
    assert_eq!(rig.provider.code_exchanges(), 0);
}

// -- The profile -----------------------------------------------------------------------------------------------------

fn problems(config: &Table) -> Vec<String> {
    let around = sidegate::config::Surroundings {
        text: Some(("the test's configuration", config.to_string())),
        ..sidegate::config::Surroundings::default()
    };
    let found = sidegate::config::load_in(&[], &around).err().unwrap_or_default();
    found.iter().map(ToString::to_string).collect()
}

/// FAPI2-03, -09: what cannot meet the profile is refused, what says nothing is switched on.
#[tokio::test]
async fn the_profile_refuses_and_switches_on() {
    let rig = Rig::with(
        |_| {},
        |config| {
            for key in ["dpop", "par"] {
                config["provider"].as_table_mut().unwrap().remove(key);
            }
        },
    )
    .await;
    rig.works().await;
    let good = rig.gateway.config.clone();
    assert_eq!(problems(&good), Vec::<String>::new());
    for (key, value, word) in [
        ("client_auth", "\"client_secret_basic\"", "client_auth"),
        ("client_auth", "\"none\"", "client_auth"),
        ("client_auth", "\"client_secret_jwt\"", "client_auth"),
        ("par", "\"off\"", "par"),
        ("dpop", "\"off\"", "dpop"),
        ("id_token_alg", "\"RS256\"", "id_token_alg"),
        ("id_token_alg", "\"PS512\"", "id_token_alg"),
    ] {
        let mut config = good.clone();
        set(&mut config, &format!("provider.{key}"), value);
        set(&mut config, "provider.client_secret", "\"a secret that is there in case it is asked for\"");
        let found = problems(&config);
        assert!(found.iter().any(|text| text.contains(&format!("provider.{word}"))), "{key} = {value}: {found:?}");
    }
    // An RSA key signs by PS256; RS256 is refused.
    let file = rig.dir.path().join("rsa.pem");
    std::fs::write(&file, Key::rsa_file(0)).unwrap();
    let mut config = good;
    set(&mut config, "provider.private_key_file", &format!("{file:?}"));
    assert_eq!(problems(&config), Vec::<String>::new());
    set(&mut config, "provider.private_key_alg", "\"RS256\"");
    assert!(problems(&config).iter().any(|text| text.contains("private_key_alg")));
}
