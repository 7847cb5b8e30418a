//! Tokens of every make: opaque ones whose end has to be asked for, and encrypted ones.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use support::client::{Initiator, Response};
use support::gateway::set;
use support::inside::Rig;
use support::jose::Key;
use support::provider::{AccessToken, Endpoint, ExpiresIn, Outage, Switches};
use toml::Table;

/// The access tokens of the double live for an hour.
const HOUR: u64 = 3600;

impl Rig {
    async fn behind(switches: impl FnOnce(&mut Switches), change: impl FnOnce(&mut Table)) -> Self {
        Self::prepared(|provider| provider.set(switches), |config, _| change(config)).await
    }

    fn introspections(&self) -> usize {
        self.provider.calls_to(Endpoint::Introspection).len()
    }

    async fn tries_to_sign_in(&self) -> Response {
        self.gateway.browser().navigate_from(Initiator::SameOrigin, "/auth/login?return_to=/x").await
    }
}

fn introspects(config: &mut Table) {
    set(config, "provider.introspection", "true");
}

// -- Introspection (RFC 7662) --------------------------------------------------------------------------------------

/// Once for each token, never for a request, and with the client's proof (BFF-01).
#[tokio::test]
async fn the_end_of_an_opaque_token_is_asked_for_once() {
    let rig = Rig::behind(|s| s.expires_in = ExpiresIn::Missing, introspects).await;
    let browser = rig.gateway.signed_in().await;
    for refreshes in 0..2 {
        for _ in 0..4 {
            assert_eq!(browser.fetch("/api/x").await.status, 200);
        }
        assert_eq!((rig.provider.refreshes(), rig.introspections()), (refreshes, refreshes + 1));
        let asked = rig.provider.calls_to(Endpoint::Introspection).pop().unwrap();
        assert_eq!(asked.param("token"), rig.upstream.last().bearer());
        assert_eq!(asked.param("token_type_hint"), Some("access_token"));
        assert!(asked.header("authorization").unwrap().starts_with("Basic "));
        rig.gateway.advance(&rig.provider, HOUR);
    }
    assert_eq!(rig.provider.violations(), Vec::<String>::new());
}

/// What is known already is not asked for, and nothing is where it is not switched on.
#[tokio::test]
async fn what_is_known_is_not_asked_for() {
    type Case = (ExpiresIn, AccessToken, fn(&mut Table));
    let cases: [Case; 3] = [
        (ExpiresIn::Honest, AccessToken::Opaque, introspects),
        (ExpiresIn::Missing, AccessToken::Jwt, introspects),
        (ExpiresIn::Missing, AccessToken::Opaque, |_| {}),
    ];
    for (expires_in, token, change) in cases {
        let rig = Rig::behind(|s| (s.expires_in, s.access_token) = (expires_in.clone(), token.clone()), change).await;
        let browser = rig.gateway.signed_in().await;
        assert_eq!(browser.post("/auth/refresh").await.status, 200);
        assert_eq!(rig.introspections(), 0, "{expires_in:?} {token:?}");
    }
}

/// Whatever becomes of the question, no login and no refresh is lost for it.
#[tokio::test]
async fn a_question_that_is_not_answered_fails_nothing() {
    for outage in [
        Outage::Status(503),
        Outage::Drop,
        Outage::Stall,
        Outage::Html(200),
        Outage::json(200, "[]"),
        Outage::json(200, "{\"active\": false}"),
        Outage::json(200, "{\"active\": true, \"exp\": \"soon\"}"),
        Outage::json(401, "{\"error\": \"invalid_client\"}"),
    ] {
        let rig = Rig::behind(
            |s| {
                s.expires_in = ExpiresIn::Missing;
                s.fail(Endpoint::Introspection, outage.clone());
            },
            |config| {
                introspects(config);
                set(config, "refresh.default_expires_in", "'10m'");
            },
        )
        .await;
        let browser = rig.gateway.signed_in().await;
        for refreshes in 0..2 {
            assert_eq!(browser.fetch("/api/x").await.status, 200, "{outage:?}");
            assert_eq!(rig.provider.refreshes(), refreshes, "{outage:?}");
            // What the configuration says is what is left.
            rig.gateway.advance(&rig.provider, 600);
        }
        assert_eq!(rig.introspections(), 2, "{outage:?}");
    }
}

// -- Encryption (RFC 7516) -----------------------------------------------------------------------------------------

/// IDT-13: opened at login and refresh; what is inside is verified like any other, and is what others get.
#[tokio::test]
async fn encrypted_id_tokens_are_opened_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key.pem");
    let (key, content) = Key::p256_with_file("enc-key");
    std::fs::write(&file, content).unwrap();
    let (other, _) = Key::p256_with_file("other");
    for (alg, to, wrong) in [("ECDH-ES", Some(key.jwk()), Some(other.jwk())), ("dir", None, Some(key.jwk()))] {
        let rig = Rig::behind(
            |s| s.id_token_encryption = Some(to.clone()),
            |config| {
                set(config, "provider.id_token_encrypted_response_alg", &format!("{alg:?}"));
                if to.is_some() {
                    set(config, "provider.decryption_key_file", &format!("{file:?}"));
                }
                let route = config["route"][1].as_table_mut().unwrap();
                set(route, "token", "'id'");
            },
        )
        .await;
        let browser = rig.gateway.signed_in().await;
        assert_eq!(browser.session().await["claims"]["sub"], "alice-4711", "{alg}");
        for _ in 0..2 {
            assert_eq!(browser.fetch("/opt/x").await.status, 200, "{alg}");
            let signed = rig.provider.last_session().id_tokens.pop();
            assert_eq!(rig.upstream.last().bearer(), signed.as_deref(), "{alg}: the signed one");
            assert_eq!(browser.post("/auth/refresh").await.status, 200, "{alg}");
        }
        let hint = format!("id_token_hint={}", rig.provider.last_session().id_tokens.last().unwrap());
        let out = browser.post("/auth/logout").await;
        assert!(out.json()["location"].as_str().unwrap().contains(&hint), "{alg}: {out:?}");

        // One that is not encrypted, or to somebody else, is no login.
        for encryption in [None, Some(wrong.clone())] {
            rig.provider.set(|s| s.id_token_encryption = encryption.clone());
            let answer = rig.tries_to_sign_in().await;
            assert!(answer.text().contains("login_refused"), "{alg}: {encryption:?} {answer:?}");
        }
    }
}

/// Access tokens are opaque to us, whatever they are made of: an encrypted one travels byte for byte.
#[tokio::test]
async fn encrypted_access_tokens_are_passed_on() {
    let five_parts = ".eyJ0.bm9uY2U.Y29udGVudA.dGFn".to_owned();
    let rig = Rig::behind(|s| s.access_token = AccessToken::With(five_parts.clone()), |_| {}).await;
    let browser = rig.gateway.signed_in().await;
    for _ in 0..2 {
        assert_eq!(browser.fetch("/api/x").await.status, 200);
        let sent = rig.upstream.last();
        let token = sent.bearer().unwrap();
        assert!(token.ends_with(&five_parts) && rig.provider.is_active(token));
        rig.gateway.advance(&rig.provider, HOUR);
    }
}
