use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::oidc::jwks::KeySet;
use crate::oidc::testing::{Signer, b64};

fn public(signer: &Signer) -> Vec<PublicKey> {
    let set = KeySet::parse(json!({"keys": [signer.jwk()]}).to_string().as_bytes()).unwrap();
    set.public_keys(signer.algorithm)
}

fn verify(token: &str, signer: &Signer) -> Result<Verified<Claims>, Fault> {
    Unverified::parse(token)?.verify(signer.algorithm, &public(signer))
}

fn claims() -> Value {
    json!({"iss": "https://op.example", "sub": "alice"})
}

#[test]
fn algorithms_have_their_registered_names() {
    for algorithm in Algorithm::ALL {
        assert_eq!(Algorithm::parse(algorithm.name()), Some(algorithm));
        assert_eq!(algorithm.name().parse(), Ok(algorithm));
    }
    for name in ["none", "None", "HS256", "rs256", "ES256K", "ES512", "RS1", ""] {
        assert_eq!(Algorithm::parse(name), None, "{name}");
    }
}

/// ASVS-9.1.1: oidcc-client-test-idtoken-sig-rs256 and the other algorithms that can be pinned.
#[test]
fn every_algorithm_verifies_and_a_flipped_bit_does_not() {
    for algorithm in Algorithm::ALL {
        let signer = Signer::new(algorithm, Some("k"));
        let token = signer.sign(&claims());
        let verified = verify(&token, &signer).unwrap();
        assert_eq!(verified.get()["sub"], "alice");
        assert_eq!((verified.algorithm(), verified.header().kid.as_deref()), (algorithm, Some("k")));

        let (signed, signature) = token.rsplit_once('.').unwrap();
        let mut bytes = URL_SAFE_NO_PAD.decode_to_vec(signature).unwrap();
        bytes[5] ^= 1;
        assert_eq!(verify(&format!("{signed}.{}", b64(&bytes)), &signer).unwrap_err(), Fault("signature"));
        assert_eq!(verify(&format!("{signed}."), &signer).unwrap_err(), Fault("signature"));
        let other = token.replacen(&b64(claims().to_string()), &b64(r#"{"sub":"mallory"}"#), 1);
        assert_eq!(verify(&other, &signer).unwrap_err(), Fault("signature"));
    }
}

/// oidcc-client-test-invalid-sig-es256: zero r and s, and a DER signature.
#[test]
fn malformed_ecdsa_signatures_are_refused() {
    let signer = Signer::new(Algorithm::Es256, None);
    let token = signer.sign(&claims());
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let fixed = URL_SAFE_NO_PAD.decode_to_vec(signature).unwrap();
    let (r, s) = fixed.split_at(32);
    let mut der = vec![0x30, 68, 2, 32];
    der.extend(r);
    der.extend([2, 32]);
    der.extend(s);
    for bad in [vec![0; 64], der, vec![0xff; 64], vec![], fixed[..63].to_vec()] {
        assert_eq!(verify(&format!("{signed}.{}", b64(&bad)), &signer).unwrap_err(), Fault("signature"));
    }
}

/// ASVS-9.1.2, ASVS-11.6.1: oidcc-client-test-idtoken-sig-none, -invalid-sig-hs256, IDT-04: the algorithm is pinned,
/// whatever the header says.
#[test]
fn another_algorithm_is_refused() {
    let rsa = Signer::new(Algorithm::Rs256, Some("k"));
    for alg in ["none", "None", "nOnE", "HS256", "RS384", "PS256", "ES256", ""] {
        let token = rsa.sign_text(&json!({"alg": alg, "kid": "k"}).to_string(), &claims().to_string());
        assert_eq!(verify(&token, &rsa).unwrap_err(), Fault("alg"), "{alg}");
        let unsigned = format!("{}.{}.", b64(json!({"alg": alg}).to_string()), b64(claims().to_string()));
        assert_eq!(verify(&unsigned, &rsa).unwrap_err(), Fault("alg"), "{alg}");
    }
    // Signed with the right key, labelled with the pinned name, but by another scheme.
    let pss = Signer::new(Algorithm::Ps256, Some("k"));
    let token = pss.sign_text(&rsa.header().to_string(), &claims().to_string());
    assert_eq!(verify(&token, &rsa).unwrap_err(), Fault("signature"));
}

/// IDT-12, IDT-13, DOS-17: exactly three parts of unpadded base64url, bounded; what is encrypted is not unpacked.
#[test]
fn the_compact_form_is_strict() {
    let signer = Signer::new(Algorithm::EdDsa, None);
    let token = signer.sign(&claims());
    let (first, rest) = token.split_once('.').unwrap();
    let cases = [
        (first.to_owned(), "parts"),
        (String::new(), "parts"),
        (format!("{first}.{first}"), "parts"),
        (format!("{token}.{first}"), "parts"),
        (format!("{token}.a.b"), "encrypted"),
        (format!("{token}.a.b.c"), "parts"),
        (format!("{token}="), "base64"),
        (format!("{token}\n"), "base64"),
        (format!(" {token}"), "base64"),
        (format!("{first}==.{rest}"), "base64"),
        (token.replacen('.', "+.", 1), "base64"),
        (format!("{first}.{}.x", "A".repeat(2 * 1024 * 1024)), "size"),
    ];
    // Bits that no byte needs: the last character of a 64-byte signature stands for two of them only.
    let loose = format!("{}{}", &token[..token.len() - 1], if token.ends_with('A') { 'B' } else { 'C' });
    assert_eq!(verify(&loose, &signer).unwrap_err(), Fault("base64"));
    for (text, reason) in cases {
        assert_eq!(verify(&text, &signer).unwrap_err(), Fault(reason), "{}", &text[..text.len().min(80)]);
    }
}

/// IDT-05, ASVS-9.1.3: `crit` is refused, embedded keys are not looked at.
#[test]
fn header_extensions() {
    let (ours, theirs) = (Signer::new(Algorithm::Es256, None), Signer::new(Algorithm::Es256, None));
    for crit in [json!(["x"]), json!([]), json!(null), json!(["exp"])] {
        let token = ours.sign_text(&json!({"alg": "ES256", "crit": crit}).to_string(), &claims().to_string());
        assert_eq!(verify(&token, &ours).unwrap_err(), Fault("crit"));
    }
    let header = json!({"alg": "ES256", "jwk": theirs.jwk(), "jku": "https://evil.example/jwks", "x5c": ["MIIB"]});
    let forged = theirs.sign_text(&header.to_string(), &claims().to_string());
    assert_eq!(verify(&forged, &ours).unwrap_err(), Fault("signature"));
    let fine = ours.sign_text(&header.to_string(), &claims().to_string());
    assert!(verify(&fine, &ours).is_ok());
}

/// IDT-07, ASVS-15.3.5: duplicate members and non-objects, in header and payload.
#[test]
fn odd_json_is_refused() {
    let signer = Signer::new(Algorithm::Es384, None);
    let header = signer.header().to_string();
    for payload in [r#"{"sub":"a","sub":"b"}"#, "[]", "\"x\"", "", "{} {}", r#"{"a":{"b":1,"b":2}}"#] {
        assert_eq!(verify(&signer.sign_text(&header, payload), &signer).unwrap_err(), Fault("claims"), "{payload}");
    }
    for header in
        [r#"{"alg":"ES384","alg":"ES384"}"#, "[]", "7", "", r#"{"alg":"ES384","kid":7}"#, r#"{"alg":"ES384","typ":[]}"#]
    {
        assert_eq!(verify(&signer.sign_text(header, "{}"), &signer).unwrap_err(), Fault("header"), "{header}");
    }
    assert_eq!(verify(&signer.sign_text("{}", "{}"), &signer).unwrap_err(), Fault("alg"));
}

/// TOK-02: an access token's own `exp`, as a hint.
#[test]
fn exp_is_peeked_from_a_jwt_only() {
    let token = |claims: Value| format!("{}.{}.c2ln", b64("{}"), b64(claims.to_string()));
    assert_eq!(peek_exp(&token(json!({"exp": 1_700_000_000}))), Some(1_700_000_000));
    assert_eq!(peek_exp(&token(json!({"exp": 1_700_000_000.9}))), Some(1_700_000_000));
    for exp in [json!("1700000000"), json!(-1), json!(1e300), json!(9_223_372_036_854_775_808_u64), json!(null)] {
        assert_eq!(peek_exp(&token(json!({"exp": exp}))), None);
    }
    for opaque in ["", "abc", "a.b.c", "v2.local.x", "a.b.c.d"] {
        assert_eq!(peek_exp(opaque), None);
    }
}

proptest! {
    #[test]
    fn parsing_never_panics(token in ".{0,80}") {
        let _ = Unverified::parse(&token);
        let _ = peek_exp(&token);
    }

    #[test]
    fn parsing_parts_never_panics(header in ".{0,40}", payload in ".{0,40}", signature in ".{0,20}") {
        let token = format!("{}.{}.{}", b64(header), b64(&payload), b64(signature));
        if let Ok(token) = Unverified::parse(&token) {
            prop_assert!(token.verify(Algorithm::EdDsa, &[PublicKey::Ed25519(vec![0; 32])]).is_err());
        }
    }
}
