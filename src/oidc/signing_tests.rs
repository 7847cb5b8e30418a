use std::process::Command;

use super::*;
use crate::oidc::jwks::KeySet;
use crate::oidc::jwt::Unverified;
use crate::oidc::testing::{Signer, b64};

fn claims() -> Map<String, Value> {
    let Value::Object(claims) = json!({"iss": "spa"}) else { unreachable!() };
    claims
}

/// What we sign, whoever has the public key can verify.
fn verifies(key: &SigningKey) {
    let token = key.jwt("JWT", None, &claims()).unwrap();
    let set = KeySet::parse(json!({"keys": [key.public_jwk()]}).to_string().as_bytes()).unwrap();
    let unverified = Unverified::parse(&token).unwrap();
    assert!(set.verify_for_test(&unverified, key.algorithm()), "{key:?}");
}

fn openssl(arguments: &str) -> Vec<u8> {
    let out = Command::new("openssl").args(arguments.split(' ')).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64_simd::STANDARD.encode_to_string(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[test]
fn every_form_of_key_is_read() {
    let random = SystemRandom::new();
    let ec = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let ed = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let rsa = include_bytes!("testdata/rsa2048.pk8");
    // The SEC1 key inside of the PKCS#8 document begins after 29 bytes, the RSA key inside of its own after 26.
    for (text, algorithm) in [
        (pem("PRIVATE KEY", ec.as_ref()), Algorithm::Es256),
        (pem("EC PRIVATE KEY", &ec.as_ref()[29..]), Algorithm::Es256),
        (pem("PRIVATE KEY", ed.as_ref()), Algorithm::EdDsa),
        (pem("PRIVATE KEY", rsa), Algorithm::Rs256),
        (pem("RSA PRIVATE KEY", &rsa[26..]), Algorithm::Rs256),
    ] {
        let key = SigningKey::parse(text.as_bytes(), Some("k")).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(key.algorithm(), algorithm);
        verifies(&key);
    }
    let pss = SigningKey::parse(pem("PRIVATE KEY", rsa).as_bytes(), None).unwrap().with_algorithm(Algorithm::Ps256);
    verifies(&pss.unwrap());
}

/// Keys as the usual tool writes them, where it is installed.
#[test]
fn keys_of_openssl_are_read() {
    if Command::new("openssl").arg("version").output().is_err() {
        return;
    }
    for (arguments, algorithm) in [
        ("ecparam -name prime256v1 -genkey", Algorithm::Es256),
        ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256", Algorithm::Es256),
        ("genpkey -algorithm ed25519", Algorithm::EdDsa),
        ("genrsa -traditional 2048", Algorithm::Rs256),
    ] {
        let key = SigningKey::parse(&openssl(arguments), None).unwrap_or_else(|error| panic!("{error}: {arguments}"));
        assert_eq!(key.algorithm(), algorithm, "{arguments}");
        verifies(&key);
    }
    // FAPI2-09: weak keys and other curves are refused at the start.
    for (arguments, word) in [
        ("genrsa 1024", "2048"),
        ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384", "P-256"),
        ("ecparam -name secp384r1 -genkey", "P-256"),
    ] {
        let error = SigningKey::parse(&openssl(arguments), None).unwrap_err();
        assert!(error.0.contains(word), "{error}");
    }
}

#[test]
fn a_jwk_brings_its_kid_and_algorithm() {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let (d, point) = (&document.as_ref()[36..68], &document.as_ref()[document.as_ref().len() - 64..]);
    let jwk =
        json!({"kty": "EC", "crv": "P-256", "kid": "own", "d": b64(d), "x": b64(&point[..32]), "y": b64(&point[32..])});
    let key = SigningKey::parse(jwk.to_string().as_bytes(), None).unwrap();
    verifies(&key);
    assert_eq!(key.kid.as_deref(), Some("own"));
    assert_eq!(SigningKey::parse(jwk.to_string().as_bytes(), Some("given")).unwrap().kid.as_deref(), Some("given"));

    let seed = [7; 32];
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "d": b64(seed), "x": b64(pair.public_key())});
    verifies(&SigningKey::parse(jwk.to_string().as_bytes(), None).unwrap());
}

#[test]
fn what_is_no_key_is_told() {
    let public = Signer::new(Algorithm::Es256, None).jwk().to_string();
    for (text, word) in [
        ("", "PEM or JWK"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "PEM or JWK"),
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n", "passphrase"),
        ("{", "JSON"),
        (r#"{"kty":"oct","k":"AAAA"}"#, "private key"),
        (public.as_str(), "lacks"),
    ] {
        let error = SigningKey::parse(text.as_bytes(), None).unwrap_err();
        assert!(error.0.contains(word), "{text}: {error}");
    }
}

/// RFC 7638: the example of section 3.1 has an RSA key, whose thumbprint is known.
#[test]
fn thumbprints_follow_the_canonical_form() {
    let key = SigningKey::parse(pem("PRIVATE KEY", include_bytes!("testdata/rsa2048.pk8")).as_bytes(), None).unwrap();
    let jwk = key.public_jwk();
    let canonical = format!(r#"{{"e":{},"kty":"RSA","n":{}}}"#, jwk["e"], jwk["n"]);
    assert_eq!(key.thumbprint(), b64(digest::digest(&digest::SHA256, canonical.as_bytes())));
}
