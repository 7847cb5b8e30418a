use parking_lot::Mutex as Cell;
use ring::digest;
use serde_json::{Value, json};

use super::*;
use crate::oidc::jwt::Algorithm;
use crate::oidc::testing::{Reply, Seen, Server, Signer, discovery, settings};
use crate::oidc::types::State;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const T: i64 = 1_800_000_000;

type Answerer = fn() -> Reply;

/// What the provider double answers; a test changes what it needs.
struct Script {
    origin: String,
    signer: Signer,
    keys: Vec<Value>,
    claims: Value,
    tokens: Value,
    /// Answers by path, instead of the ordinary ones.
    instead: Vec<(&'static str, Answerer)>,
    metadata: Value,
    userinfo: Option<String>,
    userinfo_type: &'static str,
}

impl Script {
    fn new() -> Self {
        let signer = Signer::new(Algorithm::Rs256, Some("k1"));
        Self {
            origin: String::new(),
            keys: vec![signer.jwk()],
            signer,
            claims: json!({"sub": "alice", "aud": "spa", "exp": T + 300, "iat": T, "nonce": "n0nce", "auth_time": T - 5}),
            tokens: json!({"access_token": "at-1", "token_type": "Bearer", "expires_in": 300, "refresh_token": "rt-1"}),
            instead: Vec::new(),
            metadata: json!({}),
            userinfo: None,
            userinfo_type: "application/json",
        }
    }

    fn answer(&self, seen: &Seen) -> Reply {
        if let Some((_, reply)) = self.instead.iter().find(|(path, _)| *path == seen.target) {
            return reply();
        }
        match seen.target.as_str() {
            "/.well-known/openid-configuration" => Reply::Json(200, merged(discovery(&self.origin), &self.metadata)),
            "/jwks" => Reply::Json(200, json!({"keys": self.keys})),
            "/token" => {
                let mut tokens = self.tokens.clone();
                if tokens.get("id_token").is_none() {
                    let claims = merged(json!({"iss": self.origin}), &self.claims);
                    tokens["id_token"] = json!(self.signer.sign(&claims));
                }
                Reply::Json(200, tokens)
            }
            "/userinfo" => {
                let body =
                    self.userinfo.clone().unwrap_or_else(|| json!({"sub": "alice", "name": "Alice"}).to_string());
                Reply::text(200, &format!("Content-Type: {}\r\n", self.userinfo_type), &body)
            }
            "/revoke" => Reply::Json(200, json!({})),
            _ => Reply::Json(404, json!({})),
        }
    }
}

fn merged(mut base: Value, over: &Value) -> Value {
    for (name, value) in over.as_object().unwrap() {
        base[name] = value.clone();
    }
    base
}

struct Rig {
    server: Server,
    script: Arc<Cell<Script>>,
    provider: Arc<Provider>,
}

async fn rig_with(change: impl FnOnce(&mut Settings)) -> Rig {
    let script = Arc::new(Cell::new(Script::new()));
    let shared = Arc::clone(&script);
    let server = Server::start(move |seen| shared.lock().answer(seen)).await;
    script.lock().origin = server.origin.clone();
    let mut settings = settings(&server.origin);
    change(&mut settings);
    let provider = Provider::new(settings, Clock::manual(NOW), Box::new(|_, _| ())).unwrap();
    Rig { server, script, provider }
}

async fn rig() -> Rig {
    rig_with(|_| ()).await
}

fn login() -> RedeemContext {
    RedeemContext {
        nonce: Nonce::new("n0nce"),
        verifier: PkceVerifier::new("v"),
        max_age: None,
        acr_values: None,
        dpop: None,
        now: NOW,
    }
}

impl Rig {
    async fn redeem(&self) -> Result<Login, ProviderError> {
        self.provider.redeem(&Code::new("c0de"), &login()).await
    }

    async fn refresh(&self) -> Result<TokenSet, ProviderError> {
        let hash = digest::digest(&digest::SHA256, b"n0nce");
        let expect = RefreshExpectation {
            provider: None,
            subject: "alice".into(),
            auth_time: Some(NOW.as_secs() - 5),
            nonce_hash: Some(hash.as_ref()[..16].try_into().unwrap()),
            dpop: None,
        };
        let token = RefreshToken::new("rt-1");
        self.provider.refresh(RefreshRequest { token: &token, target: None, expect: &expect, now: NOW }).await
    }

    fn set(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock());
    }

    fn calls(&self, path: &str) -> usize {
        self.server.seen(path).len()
    }
}

/// oidcc-client-test: discovery, keys, exchange, verified identity.
#[tokio::test]
async fn a_login() {
    let rig = rig().await;
    let login = rig.redeem().await.unwrap();
    assert_eq!(login.identity.subject, "alice");
    assert_eq!(login.tokens.access_token.expose(), "at-1");
    assert_eq!(login.tokens.access_expires, Some(NOW + Duration::from_secs(300)));
    assert_eq!(login.tokens.refresh_token.unwrap().expose(), "rt-1");
    assert!(login.tokens.id_token.is_some());
    let seen = &rig.server.seen("/token")[0];
    assert_eq!(seen.form("code").as_deref(), Some("c0de"));
    assert_eq!(seen.form("code_verifier").as_deref(), Some("v"));
    assert_eq!((rig.calls("/token"), rig.calls("/jwks"), rig.calls("/userinfo")), (1, 1, 0));
}

/// IDT-08, IDT-09, RFC9700-15: nothing is used before all holds.
#[tokio::test]
async fn userinfo_is_not_asked_before_the_id_token_holds() {
    let rig = rig_with(|settings| settings.userinfo = true).await;
    for (name, value, reason) in [
        ("nonce", json!("other"), "nonce"),
        ("aud", json!("other"), "aud"),
        ("at_hash", json!("wrong"), "at_hash"),
        ("iss", json!("https://other.example"), "iss"),
    ] {
        rig.set(|script| script.claims[name] = value);
        assert_eq!(rig.redeem().await.unwrap_err(), ProviderError::Invalid { reason });
        rig.set(|script| script.claims = Script::new().claims);
    }
    for (raw, reason) in [(json!(null), "id_token_missing"), (json!("a.b"), "parts"), (json!("a.b.c.d.e"), "encrypted")]
    {
        rig.set(|script| script.tokens["id_token"] = raw);
        assert_eq!(rig.redeem().await.unwrap_err(), ProviderError::Invalid { reason });
    }
    assert_eq!(rig.calls("/userinfo"), 0);
}

/// TOK-03: one call a code, whatever the answer; each failure keeps its class.
#[tokio::test]
async fn a_code_is_sent_once() {
    let rig = rig_with(|settings| settings.timeout = Duration::from_millis(500)).await;
    let cases: [(Answerer, ProviderError); 7] = [
        (|| Reply::Json(400, json!({"error": "invalid_grant"})), ProviderError::Dead { reason: "invalid_grant" }),
        (|| Reply::Json(401, json!({"error": "invalid_client"})), ProviderError::Refused { reason: "invalid_client" }),
        (|| Reply::Json(503, json!({})), ProviderError::Unavailable { reason: "server_error", retry_after: None }),
        (|| Reply::text(302, "Location: /token2\r\n", ""), ProviderError::Refused { reason: "redirect" }),
        (|| Reply::Drop, ProviderError::Ambiguous { reason: "lost" }),
        (|| Reply::Hang, ProviderError::Ambiguous { reason: "timeout" }),
        (|| Reply::text(200, "", &" ".repeat(2 * 1024 * 1024)), ProviderError::Invalid { reason: "too_large" }),
    ];
    for (n, (reply, expected)) in cases.into_iter().enumerate() {
        rig.set(|script| script.instead = vec![("/token", reply)]);
        assert_eq!(rig.redeem().await.unwrap_err(), expected);
        assert_eq!(rig.calls("/token"), n + 1);
    }
    assert_eq!(rig.calls("/token2"), 0);
}

/// A code is not spent while its ID token could not be verified.
#[tokio::test]
async fn no_keys_no_exchange() {
    let rig = rig().await;
    rig.set(|script| script.instead = vec![("/jwks", || Reply::Json(500, json!({})))]);
    assert!(matches!(rig.redeem().await, Err(ProviderError::Unavailable { .. })));
    assert!(matches!(rig.refresh().await, Err(ProviderError::Unavailable { .. })));
    assert_eq!(rig.calls("/token"), 0);
    rig.set(|script| script.instead.clear());
    assert!(rig.redeem().await.is_ok());
}

/// oidcc-client-test-signing-key-rotation-just-before-signing.
#[tokio::test]
async fn key_rotation() {
    let rig = rig().await;
    rig.redeem().await.unwrap();
    rig.set(|script| {
        script.signer.kid = Some("k2".into());
        script.keys = vec![script.signer.jwk()];
    });
    rig.redeem().await.unwrap();
    assert_eq!(rig.calls("/jwks"), 2);
}

/// oidcc-client-test-userinfo-signed, -userinfo-invalid-sub, -scope-userinfo-claims, -distributed-claims.
#[tokio::test]
async fn userinfo_as_json_or_jwt() {
    let rig = rig_with(|settings| settings.userinfo = true).await;
    assert_eq!(rig.redeem().await.unwrap().identity.claim("name"), Some(json!("Alice")));
    assert_eq!(rig.server.seen("/userinfo")[0].header("authorization"), ["Bearer at-1"]);

    let answer = async |kind, body: String| {
        rig.set(|script| {
            script.userinfo_type = kind;
            script.userinfo = Some(body);
        });
        rig.redeem().await.map(|login| login.identity)
    };
    let json_type = "application/json; charset=utf-8";
    let invalid = |reason| Err(ProviderError::Invalid { reason });
    assert_eq!(answer(json_type, json!({"sub": "bob"}).to_string()).await, invalid("userinfo_sub"));
    assert_eq!(answer(json_type, json!([]).to_string()).await, invalid("userinfo"));
    assert_eq!(answer(json_type, r#"{"sub":"alice","sub":"alice"}"#.into()).await, invalid("userinfo"));
    assert!(matches!(answer(json_type, "<html>".into()).await, Err(ProviderError::Unavailable { .. })));

    let origin = rig.server.origin.clone();
    let signed = |claims: Value| Signer::new(Algorithm::Rs256, Some("k1")).sign(&claims);
    let good = json!({"iss": origin, "aud": "spa", "sub": "alice", "name": "Signed"});
    let identity = answer("application/jwt", signed(good.clone())).await.unwrap();
    assert_eq!(identity.claim("name"), Some(json!("Signed")));
    for (name, value, reason) in [
        ("aud", json!("other"), "aud"),
        ("iss", json!("https://other.example"), "iss"),
        ("sub", json!(null), "userinfo_sub"),
        ("exp", json!(T - 100), "exp"),
    ] {
        let claims = merged(good.clone(), &json!({ name: value }));
        assert_eq!(answer("application/jwt", signed(claims)).await, invalid(reason), "{name}");
    }
    let none = Signer::new(Algorithm::Rs256, None).sign_text(r#"{"alg":"none"}"#, &good.to_string());
    assert_eq!(answer("application/jwt", none).await, invalid("alg"));

    let huge = || Reply::text(200, "Content-Type: application/json\r\n", &" ".repeat(1024 * 1024 + 1));
    rig.set(|script| script.instead = vec![("/userinfo", huge)]);
    assert!(matches!(rig.redeem().await, Err(ProviderError::Unavailable { reason: "too_large", .. })));
    rig.set(|script| script.instead = vec![("/userinfo", || Reply::Json(500, json!({})))]);
    assert!(matches!(rig.redeem().await, Err(ProviderError::Unavailable { reason: "userinfo", .. })));
}

/// oidcc-client-test-refresh-token, RFR-05: what the answer does not name is not invented.
#[tokio::test]
async fn a_refresh() {
    let rig = rig().await;
    rig.set(|script| script.tokens = json!({"access_token": "at-2", "token_type": "bearer", "id_token": null}));
    let tokens = rig.refresh().await.unwrap();
    assert_eq!(tokens.access_token.expose(), "at-2");
    assert!(tokens.refresh_token.is_none() && tokens.id_token.is_none() && tokens.access_expires.is_none());
    let seen = &rig.server.seen("/token")[0];
    assert_eq!(seen.form("refresh_token").as_deref(), Some("rt-1"));
    assert_eq!(seen.form("scope"), None);
}

/// oidcc-client-test-refresh-token-invalid-issuer, -invalid-sub, RFR-04: such tokens are not used.
#[tokio::test]
async fn a_refresh_for_somebody_else() {
    let rig = rig().await;
    assert!(rig.refresh().await.unwrap().id_token.is_some());
    for (name, value) in [("iss", json!("x")), ("sub", json!("bob")), ("nonce", json!("x")), ("auth_time", json!(T))] {
        rig.set(|script| script.claims = merged(Script::new().claims, &json!({ name: value })));
        assert_eq!(rig.refresh().await.unwrap_err(), ProviderError::Invalid { reason: name });
    }
}

/// A badly made answer says nothing about the session, so it is not `Invalid`.
#[tokio::test]
async fn a_malformed_refresh_answer_does_not_end_the_session() {
    let rig = rig().await;
    rig.set(|script| script.tokens = json!({"access_token": "at-2"}));
    assert_eq!(rig.refresh().await.unwrap_err(), ProviderError::Refused { reason: "token_type" });
    rig.set(|script| script.tokens = json!({"access_token": "a\r\nb", "token_type": "Bearer"}));
    assert_eq!(rig.refresh().await.unwrap_err(), ProviderError::Refused { reason: "access_token" });
}

/// oidcc-client-test-discovery-issuer-mismatch, KEY-08: a failure is remembered for a back-off, then mended.
#[tokio::test]
async fn metadata_heals_by_itself() {
    let rig = rig().await;
    rig.set(|script| script.metadata = json!({"issuer": "https://other.example"}));
    for _ in 0..20 {
        assert_eq!(rig.provider.metadata().await.unwrap_err(), ProviderError::Refused { reason: "issuer" });
    }
    assert_eq!(rig.calls("/.well-known/openid-configuration"), 1, "a storm of logins is one fetch");
    assert!(rig.provider.known().is_none());
    rig.set(|script| script.metadata = json!({}));
    let keeper = tokio::spawn(Arc::clone(&rig.provider).keep_ready());
    let mended = async {
        while rig.provider.keys.known().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), mended).await.unwrap();
    assert!(rig.provider.known().is_some());
    keeper.abort();
}

/// A server that has one of the two documents is asked for both; an answer that is none of either is not.
#[tokio::test]
async fn metadata_is_looked_for_under_both_names() {
    const OAUTH: &str = "/.well-known/oauth-authorization-server";
    let other = |settings: &mut Settings| {
        settings.other_discovery_url = settings.discovery_url.take();
        settings.discovery_url = settings.other_discovery_url.clone().map(|mut url| {
            url.set_path(OAUTH);
            url
        });
    };
    let rig = rig_with(other).await;
    assert!(rig.provider.metadata().await.is_ok());
    assert_eq!((rig.calls(OAUTH), rig.calls("/.well-known/openid-configuration")), (1, 1));
    rig.set(|script| script.instead = vec![(OAUTH, || Reply::Json(503, json!({})))]);
    let mut settings = rig.provider.settings().clone();
    settings.client_id = "fresh".into();
    let fresh = Provider::new(settings, Clock::manual(NOW), Box::new(|_, _| ())).unwrap();
    assert!(matches!(fresh.metadata().await, Err(ProviderError::Unavailable { .. })));
    assert_eq!(rig.calls("/.well-known/openid-configuration"), 1);
}

/// Where the configuration says all endpoints of a login, a provider without a document is one all the same; one that is
/// only out of reach, or somebody else, is not.
#[tokio::test]
async fn a_provider_without_metadata_may_be_configured() {
    let configured = |origin: &str| {
        let mut settings = settings(origin);
        let url = |path: &str| Url::parse(&format!("{origin}{path}")).ok();
        settings.endpoints.authorization = url("/authorize");
        settings.endpoints.token = url("/token");
        settings.endpoints.jwks = url("/jwks");
        settings
    };
    let rig = rig().await;
    let document = "/.well-known/openid-configuration";
    let instead = |reply: Answerer| rig.set(|script| script.instead = vec![(document, reply)]);
    let fresh = |settings| Provider::new(settings, Clock::manual(NOW), Box::new(|_, _| ())).unwrap();
    // What was read once is not given up.
    rig.set(|script| script.instead.clear());
    let read = fresh(configured(&rig.server.origin));
    assert!(read.metadata().await.unwrap().userinfo.is_some());
    instead(|| Reply::Json(404, json!({})));
    assert!(read.renew().await.is_err() && read.known().unwrap().userinfo.is_some());
    for reply in [|| Reply::Json(404, json!({})), || Reply::text(200, "", "<html>no such page</html>")] {
        instead(reply);
        let provider = fresh(configured(&rig.server.origin));
        assert!(provider.redeem(&Code::new("c0de"), &login()).await.is_ok());
        assert_eq!(provider.renew().await, Ok(()), "nor is it missed later");
        let mut short = configured(&rig.server.origin);
        short.endpoints.jwks = None;
        assert!(matches!(fresh(short).metadata().await, Err(ProviderError::Refused { .. })));
    }
    for reply in
        [|| Reply::Drop, || Reply::Json(503, json!({})), || Reply::Json(200, json!({"issuer": "https://x.example"}))]
    {
        instead(reply);
        assert!(fresh(configured(&rig.server.origin)).metadata().await.is_err());
    }
}

/// Who waits for a login is told when to come again.
#[tokio::test]
async fn an_unreachable_provider_names_a_time() {
    let rig = rig().await;
    let failure: [Answerer; 2] = [|| Reply::Drop, || Reply::Json(503, json!({}))];
    for reply in failure {
        rig.set(|script| script.instead = vec![("/.well-known/openid-configuration", reply)]);
        let fresh = rig.provider.renewed(settings(&rig.server.origin)).unwrap();
        let Err(ProviderError::Unavailable { retry_after: Some(after), .. }) = fresh.metadata().await else {
            panic!("not unavailable");
        };
        assert!(after <= BACKOFF_LAST);
    }
    rig.set(|script| {
        script.instead = vec![("/.well-known/openid-configuration", || Reply::text(302, "Location: /x\r\n", ""))]
    });
    let fresh = rig.provider.renewed(settings(&rig.server.origin)).unwrap();
    assert_eq!(fresh.metadata().await.unwrap_err(), ProviderError::Refused { reason: "redirect" });
    assert_eq!(rig.calls("/x"), 0);
}

/// Concurrent fetches are one.
#[tokio::test]
async fn concurrent_metadata_fetches_are_one() {
    let rig = rig().await;
    let (a, b, c) = tokio::join!(rig.provider.metadata(), rig.provider.metadata(), rig.provider.metadata());
    assert!(a.is_ok() && b.is_ok() && c.is_ok());
    assert_eq!(rig.calls("/.well-known/openid-configuration"), 1);
}

#[test]
fn the_back_off_is_bounded() {
    for failures in [0, 1, 5, 31, 32, 1000, u32::MAX] {
        let pause = backoff(failures);
        assert!(pause >= BACKOFF_FIRST.mul_f64(0.8) && pause <= Duration::from_secs(10));
    }
}

/// The background task ends when its provider was replaced.
#[tokio::test(start_paused = true)]
async fn keep_ready_ends_with_its_provider() {
    let mut settings = settings("http://127.0.0.1:1");
    settings.timeout = Duration::from_millis(100);
    let provider = Provider::new(settings, Clock::System, Box::new(|_, _| ())).unwrap();
    let keeper = tokio::spawn(Arc::clone(&provider).keep_ready());
    drop(provider);
    keeper.await.unwrap();
}

/// A reload goes on with what is known, unless the provider is another one.
#[tokio::test]
async fn renewed_settings_keep_what_is_known() {
    let rig = rig().await;
    rig.redeem().await.unwrap();
    let mut changed = settings(&rig.server.origin);
    changed.userinfo = true;
    let same = rig.provider.renewed(changed).unwrap();
    assert!(same.known().is_some() && same.keys.known().is_some());
    let other = rig.provider.renewed(settings("https://other.example")).unwrap();
    assert!(other.known().is_none() && other.keys.known().is_none());
}

/// RFC9207-01, RFC9207-02.
#[tokio::test]
async fn callback_iss() {
    let rig = rig().await;
    let ours = rig.server.origin.clone();
    assert!(matches!(rig.provider.check_callback_iss(None), Err(ProviderError::Unavailable { .. })));
    rig.provider.metadata().await.unwrap();
    assert_eq!(rig.provider.check_callback_iss(None), Ok(()));
    assert_eq!(rig.provider.check_callback_iss(Some(&ours)), Ok(()));
    for wrong in ["", &format!("{ours}/"), "https://other.example"] {
        assert!(matches!(rig.provider.check_callback_iss(Some(wrong)), Err(ProviderError::Invalid { .. })), "{wrong}");
    }
    rig.set(|script| script.metadata = json!({"authorization_response_iss_parameter_supported": true}));
    let strict = rig.provider.renewed(settings(&ours)).unwrap();
    strict.fetch_metadata().await.unwrap();
    assert_eq!(strict.check_callback_iss(Some(&ours)), Ok(()));
    assert_eq!(strict.check_callback_iss(None), Err(ProviderError::Invalid { reason: "callback_iss_missing" }));
}

#[tokio::test]
async fn authorization_url_needs_metadata() {
    let rig = rig().await;
    let request = AuthorizationRequest {
        state: State::new("s"),
        nonce: Nonce::new("n"),
        verifier: PkceVerifier::new("v"),
        login_params: Vec::new(),
        dpop: None,
    };
    let url = rig.provider.authorization_url(&request).await.unwrap();
    assert!(url.starts_with(&format!("{}/authorize?response_type=code&", rig.server.origin)));
}

/// RFC7009-01, RPL-06: whatever happens there, logout goes on.
#[tokio::test]
async fn revocation() {
    let rig = rig().await;
    assert!(!rig.provider.revoke("rt-1", "refresh_token").await, "no metadata, nobody to tell");
    rig.provider.metadata().await.unwrap();
    assert!(rig.provider.revoke("rt-1", "refresh_token").await);
    let seen = &rig.server.seen("/revoke")[0];
    assert_eq!(
        (seen.form("token").as_deref(), seen.form("token_type_hint").as_deref()),
        (Some("rt-1"), Some("refresh_token"))
    );
    assert_eq!(seen.header("authorization").len(), 1);
    let failures: [Answerer; 2] = [|| Reply::Json(400, json!({"error": "unsupported_token_type"})), || Reply::Drop];
    for reply in failures {
        rig.set(|script| script.instead = vec![("/revoke", reply)]);
        assert!(!rig.provider.revoke("rt-1", "refresh_token").await);
    }
}

/// oidcc-client-test-rp-init-logout.
#[tokio::test]
async fn end_session() {
    let rig = rig().await;
    assert_eq!(rig.provider.end_session_url(None), None);
    rig.provider.metadata().await.unwrap();
    let url = rig.provider.end_session_url(Some(&IdToken::new("h.p.s"))).unwrap();
    assert!(url.starts_with(&format!("{}/end?id_token_hint=h.p.s&", rig.server.origin)) && url.contains("&state="));
    assert_ne!(rig.provider.end_session_url(None), rig.provider.end_session_url(None), "a state is fresh");
    let mut off = settings(&rig.server.origin);
    off.logout_at_provider = false;
    assert_eq!(rig.provider.renewed(off).unwrap().end_session_url(None), None);
}

/// `check --online`.
#[tokio::test]
async fn judging_online() {
    let rig = rig().await;
    assert_eq!(rig.provider.judge_online().await, []);

    rig.set(|script| {
        script.metadata = json!({
            "scopes_supported": ["openid"], "id_token_signing_alg_values_supported": ["ES256"],
            "code_challenge_methods_supported": ["plain"], "token_endpoint_auth_methods_supported": ["private_key_jwt"],
            "require_pushed_authorization_requests": true,
        });
        script.keys = vec![Signer::new(Algorithm::Es256, Some("k2")).jwk()];
    });
    let findings = rig.provider.judge_online().await;
    assert!(findings.iter().all(|finding| !finding.fatal));
    for (key, word) in [
        ("provider.scopes", "offline_access"),
        ("provider.id_token_alg", "RS256"),
        ("provider.issuer", "S256"),
        ("provider.par", "PAR"),
        ("provider.client_auth", "client_secret_basic"),
        ("provider.id_token_alg", "no key"),
    ] {
        assert!(
            findings.iter().any(|finding| finding.key == key && finding.text.contains(word)),
            "{key} {word}: {findings:?}"
        );
    }

    // What is switched on and not announced there.
    let mut more = settings(&rig.server.origin);
    (more.backchannel_logout, more.frontchannel_logout) = (true, true);
    more.introspection = Some(more.timeout);
    more.name = Some("one of several".to_owned());
    let wishes = ["logout.backchannel", "logout.frontchannel", "provider.introspection", "provider.callback"];
    let judged = |settings| async { rig.provider.renewed(settings).unwrap().judge_online().await };
    let findings = judged(more.clone()).await;
    assert!(wishes.iter().all(|key| findings.iter().any(|finding| finding.key == *key)), "{findings:?}");
    rig.set(|script| {
        script.metadata = json!({
            "backchannel_logout_supported": true, "frontchannel_logout_supported": true,
            "introspection_endpoint": "https://op.example/introspect",
        });
    });
    more.own_callback = more.name.clone();
    let findings = judged(more).await;
    assert!(wishes.iter().all(|key| findings.iter().all(|finding| finding.key != *key)), "{findings:?}");

    let answers: [Answerer; 3] = [
        || Reply::Drop,
        || Reply::Json(200, json!({"issuer": "https://other.example"})),
        || Reply::Json(404, json!({})),
    ];
    for answer in answers {
        rig.set(|script| script.instead = vec![("/.well-known/openid-configuration", answer)]);
        let findings = rig.provider.judge_online().await;
        assert!(matches!(findings.as_slice(), [Finding { fatal: true, key: "provider.issuer", .. }]), "{findings:?}");
    }
}

/// Nothing that is secret is in a `Debug` of ours.
#[tokio::test]
async fn debug_shows_no_secret() {
    let rig = rig().await;
    let login = rig.redeem().await.unwrap();
    let shown = format!("{:?} {:?} {:?}", rig.provider, login.tokens, rig.provider.client);
    for secret in ["s3cret", "at-1", "rt-1"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}
