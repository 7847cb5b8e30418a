use serde_json::json;

use super::*;
use crate::oidc::jwks::KeySet;
use crate::oidc::jwt::{Algorithm, Unverified};
use crate::oidc::testing::b64;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn parts(proof: &str) -> (Value, Value) {
    let mut parts = proof.split('.').map(|part| URL_SAFE_NO_PAD.decode_to_vec(part).unwrap());
    let mut read = || serde_json::from_slice(&parts.next().unwrap()).unwrap();
    (read(), read())
}

/// RFC9449-01: what a proof says, and that its key verifies it.
#[test]
fn a_proof_says_what_it_is_for() {
    let key = DpopKey::generate().unwrap();
    let token = AccessToken::new("at");
    let url = Url::parse("https://rs.example/a%20b?x=1#f").unwrap();
    let proof = key.proof("GET", &htu(&url), Some(&token), Some("n-1"), NOW).unwrap();
    let (header, claims) = parts(&proof);
    assert_eq!((header["typ"].as_str(), header["alg"].as_str()), (Some("dpop+jwt"), Some("ES256")));
    let jwk = header["jwk"].as_object().unwrap();
    assert_eq!(jwk.keys().collect::<Vec<_>>(), ["crv", "kty", "x", "y"], "public members only");
    assert_eq!(claims["htm"], "GET");
    assert_eq!(claims["htu"], "https://rs.example/a%20b");
    assert_eq!(claims["iat"], 1_800_000_000);
    assert_eq!(claims["nonce"], "n-1");
    assert_eq!(claims["ath"], b64(digest::digest(&digest::SHA256, b"at")));
    let set = KeySet::parse(json!({"keys": [jwk]}).to_string().as_bytes()).unwrap();
    assert!(set.verify_for_test(&Unverified::parse(&proof).unwrap(), Algorithm::Es256));

    let (_, other) = parts(&key.proof("GET", "https://rs.example/", None, None, NOW).unwrap());
    assert_ne!(claims["jti"], other["jti"]);
    assert!(other.get("ath").is_none() && other.get("nonce").is_none());
}

/// RFC9449-06: the same key again after it was sealed, and nothing of it in `Debug`.
#[test]
fn a_key_survives_sealing_and_is_not_shown() {
    let key = DpopKey::generate().unwrap();
    let again = DpopKey::from_bytes(key.as_bytes()).unwrap();
    assert_eq!(key.thumbprint(), again.thumbprint());
    assert_eq!(format!("{key:?}"), "DpopKey(***)");
    assert_ne!(DpopKey::generate().unwrap().thumbprint(), key.thumbprint());
    assert!(DpopKey::from_bytes(&key.as_bytes()[1..]).is_none());
    assert!(DpopKey::from_bytes(&[1; BYTES]).unwrap().proof("GET", "x", None, None, NOW).is_none());
}

/// RFC9449-02: the latest nonce of each server; one that is known already is no reason to try again.
#[test]
fn nonces_are_kept_by_origin() {
    let nonces = Nonces::default();
    assert!(nonces.put("https://a.example", "n1") && nonces.put("https://b.example", "n2"));
    assert!(!nonces.put("https://a.example", "n1") && nonces.put("https://a.example", "n3"));
    assert_eq!(nonces.get("https://a.example").as_deref(), Some("n3"));
    for odd in ["", "a\"b", "a b", "\u{e9}", &"x".repeat(MAX_NONCE + 1)] {
        assert!(!nonces.put("https://a.example", odd), "{odd}");
    }
    for number in 0..3 * MAX_ORIGINS {
        nonces.put(&format!("https://{number}.example"), "n");
    }
    assert!(nonces.0.lock().len() <= MAX_ORIGINS);
}

#[test]
fn a_demand_for_a_nonce_is_recognised() {
    for challenge in [
        "DPoP error=\"use_dpop_nonce\"",
        "dPoP realm=\"x\", error=\"use_dpop_nonce\", error_description=\"y\"",
        "Bearer, DPoP algs=\"ES256\", error=\"use_dpop_nonce\"",
        "DPoP error=use_dpop_nonce",
    ] {
        assert!(demands_nonce(challenge), "{challenge}");
    }
    for challenge in ["DPoP error=\"invalid_token\"", "Bearer error=\"use_dpop_nonce\"", "", "DPoP"] {
        assert!(!demands_nonce(challenge), "{challenge}");
    }
}
