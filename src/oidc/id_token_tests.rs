use std::sync::LazyLock;

use serde_json::json;

use super::*;
use crate::oidc::jwks::KeySet;
use crate::oidc::jwt::{Algorithm, Unverified};
use crate::oidc::testing::{Signer, settings};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const T: i64 = 1_800_000_000;
static SIGNER: LazyLock<Signer> = LazyLock::new(|| Signer::new(Algorithm::Es256, None));

fn verified_with(header: &Value, claims: &Value) -> Verified<Claims> {
    let set = KeySet::parse(json!({"keys": [SIGNER.jwk()]}).to_string().as_bytes()).unwrap();
    let token = SIGNER.sign_text(&header.to_string(), &claims.to_string());
    let unverified = Unverified::parse(&token).unwrap();
    unverified.verify(Algorithm::Es256, &set.public_keys(Algorithm::Es256)).unwrap()
}

fn good() -> Value {
    json!({
        "iss": "https://op.example", "sub": "alice", "aud": "spa", "exp": T + 300, "iat": T, "nonce": "n0nce",
        "auth_time": T - 5, "sid": "s1", "acr": "gold", "email": "a@example.com",
    })
}

fn check(claims: &Value) -> Result<Identity, Fault> {
    check_as(&SIGNER.header(), claims, None, None, &settings("https://op.example"))
}

fn check_as(
    header: &Value,
    claims: &Value,
    max_age: Option<u64>,
    acr_values: Option<&str>,
    settings: &Settings,
) -> Result<Identity, Fault> {
    let (nonce, code, access_token) = (Nonce::new("n0nce"), Code::new("c0de"), AccessToken::new("at"));
    let expect = LoginExpectation { nonce: &nonce, code: &code, access_token: &access_token, max_age, acr_values };
    check_login(&verified_with(header, claims), settings, &expect, NOW)
}

fn with(name: &str, value: Value) -> Result<Identity, Fault> {
    let mut claims = good();
    claims[name] = value;
    check(&claims)
}

fn without(name: &str) -> Result<Identity, Fault> {
    let mut claims = good();
    claims.as_object_mut().unwrap().remove(name);
    check(&claims)
}

fn refused(name: &str, reason: &'static str, values: &[Value]) {
    for value in values {
        assert_eq!(with(name, value.clone()).unwrap_err(), Fault(reason), "{name} = {value}");
    }
}

/// oidcc-client-test: a good token yields the user, without what only protects the exchange.
#[test]
fn a_good_token() {
    let identity = check(&good()).unwrap();
    assert_eq!((identity.subject.as_str(), identity.sid.as_deref()), ("alice", Some("s1")));
    assert_eq!((identity.auth_time, identity.acr.as_deref()), (Some(1_799_999_995), Some("gold")));
    assert_eq!(identity.claim("email"), Some(json!("a@example.com")));
    assert_eq!(identity.claim("sub"), Some(json!("alice")));
    assert_eq!(identity.claim("nonce"), None);
}

/// oidcc-client-test-nonce-invalid, ASVS-10.5.1.
#[test]
fn nonce() {
    refused("nonce", "nonce", &[json!("n0nceX"), json!(""), json!("N0NCE"), json!(7), json!(null)]);
    assert_eq!(without("nonce").unwrap_err(), Fault("nonce"));
}

/// oidcc-client-test-invalid-iss.
#[test]
fn iss() {
    let values = ["https://op.example1", "https://op.example/", "https://OP.example", "http://op.example", ""];
    refused("iss", "iss", &values.map(|value| json!(value)));
    refused("iss", "iss", &[json!(["https://op.example"]), json!(null)]);
    assert_eq!(without("iss").unwrap_err(), Fault("iss"));
}

/// ASVS-9.2.3, ASVS-9.2.4: oidcc-client-test-missing-aud, -invalid-aud, IDT-03, ASVS-10.5.4.
#[test]
fn aud() {
    assert_eq!(without("aud").unwrap_err(), Fault("aud"));
    refused(
        "aud",
        "aud",
        &[json!("spa1"), json!("sp"), json!("SPA"), json!(""), json!({}), json!([]), json!(null), json!([7])],
    );
    refused("aud", "aud", &[json!(["spa", "other"]), json!(["other"]), json!(["spa", 7]), json!([["spa"]])]);
    assert!(with("aud", json!(["spa"])).is_ok());

    let mut trusting = settings("https://op.example");
    trusting.trusted_audiences = vec!["other".into()];
    let mut claims = good();
    claims["aud"] = json!(["other", "spa"]);
    assert!(check_as(&SIGNER.header(), &claims, None, None, &trusting).is_ok());
    claims["aud"] = json!(["other"]);
    assert_eq!(check_as(&SIGNER.header(), &claims, None, None, &trusting).unwrap_err(), Fault("aud"));
}

/// IDT-03.
#[test]
fn azp() {
    refused("azp", "azp", &[json!("other"), json!(""), json!(null), json!(["spa"])]);
    assert!(with("azp", json!("spa")).is_ok());
}

/// oidcc-client-test-missing-sub, IDT-11, ASVS-10.5.2.
#[test]
fn sub() {
    assert_eq!(without("sub").unwrap_err(), Fault("sub"));
    refused("sub", "sub", &[json!(""), json!(42), json!("x".repeat(256)), json!(null)]);
    assert!(with("sub", json!("x".repeat(255))).is_ok());
    assert_eq!(with("sub", json!("\u{fc}".repeat(255))).unwrap().subject.chars().count(), 255);
}

/// IDT-01, IDT-07, ASVS-9.2.1, ASVS-15.3.5.
#[test]
fn exp() {
    assert_eq!(without("exp").unwrap_err(), Fault("exp"));
    refused(
        "exp",
        "exp",
        &[
            json!(T - 61),
            json!("1800000300"),
            json!(1e300),
            json!(9_223_372_036_854_775_808_u64),
            json!(-1),
            json!(null),
            json!(true),
        ],
    );
    assert!(with("exp", json!(T - 30)).is_ok());
    assert!(with("exp", json!(f64::from(i32::MAX))).is_ok());
}

/// oidcc-client-test-missing-iat, IDT-02, ASVS-9.2.1.
#[test]
fn iat_and_nbf() {
    assert_eq!(without("iat").unwrap_err(), Fault("iat"));
    refused("iat", "iat", &[json!(T + 120), json!(T - 86_400), json!(T - 3601), json!("1800000000"), json!(null)]);
    refused("nbf", "nbf", &[json!(T + 120), json!("1800000000"), json!({})]);
    for fine in [T + 59, T - 3599] {
        assert!(with("iat", json!(fine)).is_ok());
    }
    assert!(with("nbf", json!(T + 59)).is_ok());
}

/// IDT-06, ASVS-9.2.2.
#[test]
fn typ() {
    let check = |typ: Option<&str>| {
        let mut header = json!({"alg": "ES256"});
        if let Some(typ) = typ {
            header["typ"] = json!(typ);
        }
        check_as(&header, &good(), None, None, &settings("https://op.example"))
    };
    assert!(check(None).is_ok() && check(Some("JWT")).is_ok() && check(Some("jwt")).is_ok());
    for typ in ["logout+jwt", "at+jwt", "application/at+jwt", "dpop+jwt", ""] {
        assert_eq!(check(Some(typ)).unwrap_err(), Fault("typ"), "{typ}");
    }
}

/// oidcc-client-test-invalid-athash, -invalid-chash: absent is fine, wrong is not.
#[test]
fn hashes() {
    let of = |text| json!(Algorithm::Es256.half_hash(text));
    assert!(with("at_hash", of("at")).is_ok() && with("c_hash", of("c0de")).is_ok());
    refused("at_hash", "at_hash", &[of("other"), json!(""), json!(7), json!(null)]);
    refused("c_hash", "c_hash", &[of("other"), of("at"), json!(null)]);
    // The example of OpenID Connect Core appendix A.3.
    let token = "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y";
    assert_eq!(Algorithm::Rs256.half_hash(token), "77QmUPtjPfzWtF2AnpK9RQ");
}

/// IDT-10.
#[test]
fn max_age_and_acr() {
    let check = |claims: &Value, max_age, acr| {
        check_as(&SIGNER.header(), claims, max_age, acr, &settings("https://op.example"))
    };
    let mut claims = good();
    assert!(check(&claims, Some(5), Some("silver gold")).is_ok());
    assert_eq!(check(&claims, None, Some("silver golden")).unwrap_err(), Fault("acr"));
    claims["auth_time"] = json!(T - 400);
    assert_eq!(check(&claims, Some(300), None).unwrap_err(), Fault("max_age"));
    assert!(check(&claims, Some(350), None).is_ok(), "the clock skew is granted");
    claims["auth_time"] = json!("1800000000");
    assert_eq!(check(&claims, None, None).unwrap_err(), Fault("auth_time"));
    claims.as_object_mut().unwrap().remove("auth_time");
    assert_eq!(check(&claims, Some(300), None).unwrap_err(), Fault("auth_time"));
    claims.as_object_mut().unwrap().remove("acr");
    assert_eq!(check(&claims, None, Some("gold")).unwrap_err(), Fault("acr"));
    assert!(check(&claims, None, None).is_ok());
}

/// oidcc-client-test-refresh-token-invalid-issuer, -invalid-sub, RFR-04.
#[test]
fn refresh() {
    let hash = digest::digest(&digest::SHA256, b"n0nce");
    let expect = RefreshExpectation {
        provider: None,
        subject: "alice".into(),
        auth_time: Some(1_799_999_995),
        nonce_hash: Some(hash.as_ref()[..16].try_into().unwrap()),
        dpop: None,
    };
    let check = |name: &str, value: Option<Value>| {
        let mut claims = good();
        match value {
            Some(value) => claims[name] = value,
            None => drop(claims.as_object_mut().unwrap().remove(name)),
        }
        let token = verified_with(&SIGNER.header(), &claims);
        check_refresh(&token, &settings("https://op.example"), &expect, &AccessToken::new("at"), NOW)
    };
    assert_eq!(check("nonce", None), Ok(()));
    assert_eq!(check("auth_time", None), Ok(()));
    assert_eq!(check("nonce", Some(json!("n0nce"))), Ok(()));
    for (name, value) in [
        ("iss", json!("https://other.example")),
        ("sub", json!("mallory")),
        ("aud", json!("other")),
        ("nonce", json!("other")),
        ("auth_time", json!(T)),
        ("exp", json!(T - 100)),
        ("iat", json!(T - 7200)),
        ("at_hash", json!("wrong")),
    ] {
        assert_eq!(check(name, Some(value)), Err(Fault(name)), "{name}");
    }
    assert_eq!(check("iat", None), Err(Fault("iat")));
}

/// oidcc-client-test-userinfo-invalid-sub, -aggregated-claims, -distributed-claims, -scope-userinfo-claims.
#[test]
fn userinfo_completes_but_never_replaces_the_protocol() {
    let info = |value: Value| value.as_object().unwrap().clone();
    let mut identity = check(&good()).unwrap();
    for bad in [json!({"sub": "bob"}), json!({}), json!({"sub": 7}), json!({"sub": "ALICE"})] {
        assert_eq!(merge_userinfo(&mut identity, &info(bad)), Err(Fault("userinfo_sub")));
    }
    let claims = json!({
        "sub": "alice", "iss": "https://evil.example", "aud": "evil", "exp": 1, "acr": "evil", "sid": "evil", "email": "new@example.com",
        "phone_number": "1", "_claim_names": {"x": "s"}, "_claim_sources": {"s": {"endpoint": "https://evil.example"}},
    });
    merge_userinfo(&mut identity, &info(claims)).unwrap();
    assert_eq!(identity.claim("iss"), Some(json!("https://op.example")));
    assert_eq!(identity.claim("aud"), Some(json!("spa")));
    assert_eq!(identity.claim("acr"), Some(json!("gold")));
    assert_eq!(identity.claim("sid"), Some(json!("s1")));
    assert_eq!(identity.claim("email"), Some(json!("new@example.com")));
    assert_eq!(identity.claim("phone_number"), Some(json!("1")));
    assert_eq!(identity.claim("_claim_sources"), None);
}
