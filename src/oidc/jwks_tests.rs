use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use parking_lot::Mutex as Cell;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::oidc::testing::{Signer, b64};

impl KeySet {
    /// For the tests of signatures.
    pub(in crate::oidc) fn public_keys(&self, algorithm: Algorithm) -> Vec<PublicKey> {
        self.candidates(None, algorithm).1.into_iter().map(|key| key.public.clone()).collect()
    }
}

fn set(keys: &[Value]) -> KeySet {
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

fn with(mut jwk: Value, name: &str, value: Value) -> Value {
    jwk[name] = value;
    jwk
}

/// KEY-03, KEY-04, IDT-14, ASVS-9.1.3, ASVS-11.6.1: what cannot verify for us is skipped and does no harm.
#[test]
fn unfit_keys_are_skipped() {
    let rsa = Signer::new(Algorithm::Rs256, Some("good")).jwk();
    let ec = Signer::new(Algorithm::Es256, None).jwk();
    let unfit = [
        json!(null),
        json!("text"),
        json!([]),
        json!({}),
        json!({"kty": 7}),
        json!({"kty": "oct", "k": "c2VjcmV0"}),
        json!({"kty": "EC", "crv": "secp256k1", "x": ec["x"], "y": ec["y"]}),
        json!({"kty": "EC", "crv": "P-521", "x": ec["x"], "y": ec["y"]}),
        json!({"kty": "OKP", "crv": "Ed448", "x": "AAAA"}),
        json!({"kty": "OKP", "crv": "X25519", "x": b64([1; 32])}),
        json!({"kty": "OKP", "crv": "Ed25519", "x": b64([1; 31])}),
        json!({"kty": "RSA", "n": b64([0xff; 128]), "e": "AQAB"}),
        json!({"kty": "RSA", "n": b64([&[0; 128][..], &[0xff; 128]].concat()), "e": "AQAB"}),
        json!({"kty": "RSA", "n": "not base64!", "e": "AQAB"}),
        json!({"kty": "RSA", "n": rsa["n"]}),
        with(ec.clone(), "x", json!("AAAA")),
        with(ec, "y", json!(7)),
        with(rsa.clone(), "use", json!("enc")),
        with(rsa.clone(), "use", json!(null)),
        with(rsa.clone(), "key_ops", json!(["encrypt"])),
        with(rsa.clone(), "key_ops", json!("verify")),
        with(rsa.clone(), "alg", json!("RSA-OAEP")),
        with(rsa.clone(), "alg", json!("ES256")),
        with(rsa.clone(), "kid", json!(7)),
    ];
    for jwk in &unfit {
        assert!(set(std::slice::from_ref(jwk)).is_empty(), "{jwk}");
    }
    let mut all = unfit.to_vec();
    all.push(rsa);
    assert_eq!(set(&all).len(), 1);
}

/// KEY-04: private members, certificates and unknown members do not matter; leading zeros neither.
#[test]
fn extra_members_are_ignored() {
    let rsa = Signer::new(Algorithm::Rs256, Some("k"));
    let mut jwk = rsa.jwk();
    let n = URL_SAFE_NO_PAD.decode_to_vec(jwk["n"].as_str().unwrap()).unwrap();
    jwk["n"] = json!(b64([&[0], n.as_slice()].concat()));
    jwk["d"] = json!("AAAA");
    jwk["x5c"] = json!(["MIIB"]);
    jwk["use"] = json!("sig");
    jwk["key_ops"] = json!(["sign", "verify"]);
    assert_eq!(set(&[jwk]), set(&[rsa.jwk()]));
}

/// Where tenants share a set, a key that names an issuer signs for no other; else that member means nothing.
#[test]
fn keys_of_a_shared_set_are_kept_apart() {
    let signer = Signer::new(Algorithm::Es256, Some("k"));
    let token = |iss: &str| signer.sign(&json!({"iss": iss}));
    let (one, other) = ("https://op.example/t-1/v2.0", "https://op.example/t-2/v2.0");
    let verdict = |keys: &KeySet, iss: &str| {
        let token = token(iss);
        keys.verify(&Unverified::parse(&token).unwrap(), Algorithm::Es256).1.map(drop)
    };
    let of = |issuer: &str| with(signer.jwk(), "issuer", json!(issuer));
    for (keys, one_is, other_is) in [
        (vec![signer.jwk()], Ok(()), Ok(())),
        (vec![of("https://op.example/{tenantid}/v2.0")], Ok(()), Ok(())),
        (vec![of(one)], Ok(()), Err(Fault("key_issuer"))),
        (vec![of(other), of(one)], Ok(()), Ok(())),
        (vec![of("https://other.example/{tenantid}/v2.0")], Err(Fault("key_issuer")), Err(Fault("key_issuer"))),
    ] {
        assert_eq!(verdict(&set(&keys), other), Ok(()), "a set of one issuer");
        let shared = set(&keys).keep_apart();
        assert_eq!((verdict(&shared, one), verdict(&shared, other)), (one_is, other_is), "{keys:?}");
    }
}

/// KEY-09: monstrous and odd documents.
#[test]
fn odd_documents_are_refused() {
    let many: Vec<_> = (0..=MAX_KEYS).map(|_| json!({})).collect();
    for document in [json!({ "keys": many }), json!([]), json!({}), json!({"keys": {}}), json!({"keys": null})] {
        assert_eq!(KeySet::parse(document.to_string().as_bytes()), Err(Fault("jwks")));
    }
    for text in ["", "<html>", r#"{"keys":[],"keys":[]}"#, r#"{"keys":[{"kty":"RSA","kty":"RSA"}]}"#] {
        assert_eq!(KeySet::parse(text.as_bytes()), Err(Fault("jwks")), "{text}");
    }
}

/// A key set that the test can change; counts how often it is read.
#[derive(Default)]
struct Source {
    keys: Cell<Option<Vec<Value>>>,
    fetches: AtomicUsize,
}

impl Source {
    fn of(signers: &[&Signer]) -> Self {
        let source = Self::default();
        source.publish(signers);
        source
    }

    fn publish(&self, signers: &[&Signer]) {
        *self.keys.lock() = Some(signers.iter().map(|signer| signer.jwk()).collect());
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl FetchKeys for Source {
    async fn fetch(&self) -> Result<KeySet, ProviderError> {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        let keys = self.keys.lock().clone();
        keys.map(|keys| set(&keys)).ok_or(ProviderError::Unavailable { reason: "connect", retry_after: None })
    }
}

async fn check(keys: &Keys, source: &Source, signer: &Signer) -> Result<(), ProviderError> {
    keys.verify(&signer.sign(&json!({"sub": "a"})), signer.algorithm, source).await.map(drop)
}

const SIGNATURE: Result<(), ProviderError> = Err(ProviderError::Invalid { reason: "signature" });

/// oidcc-client-test-kid-absent-single-jwks, -kid-absent-multiple-jwks: all that fit are tried.
#[tokio::test]
async fn without_kid_every_fitting_key_is_tried() {
    let signers: Vec<_> = (0..3).map(|_| Signer::new(Algorithm::Es256, None)).collect();
    let odd =
        [Signer::new(Algorithm::Rs256, None), Signer::new(Algorithm::EdDsa, None), Signer::new(Algorithm::Es384, None)];
    let source = Source::of(&odd.iter().chain(&signers).collect::<Vec<_>>());
    let keys = Keys::default();
    for signer in &signers {
        assert_eq!(check(&keys, &source, signer).await, Ok(()));
    }
    assert_eq!(source.fetches(), 1);
    assert_eq!(check(&keys, &source, &Signer::new(Algorithm::Es256, None)).await, SIGNATURE);
}

/// KEY-05: one `kid` on several keys: type, algorithm and use decide.
#[tokio::test]
async fn decoys_with_the_same_kid() {
    let right = Signer::new(Algorithm::Rs256, Some("k"));
    let decoys = [
        Signer::new(Algorithm::Es256, Some("k")).jwk(),
        Signer::new(Algorithm::EdDsa, Some("k")).jwk(),
        with(right.jwk(), "use", json!("enc")),
        with(right.jwk(), "alg", json!("RS512")),
        right.jwk(),
    ];
    let source = Source { keys: Cell::new(Some(decoys.to_vec())), ..Source::default() };
    assert_eq!(check(&Keys::default(), &source, &right).await, Ok(()));

    // The encryption key never verifies.
    let source = Source { keys: Cell::new(Some(decoys[..4].to_vec())), ..Source::default() };
    assert_eq!(check(&Keys::default(), &source, &right).await, SIGNATURE);
}

#[tokio::test]
async fn unnamed_keys_serve_tokens_that_name_one() {
    let signer = Signer::new(Algorithm::Es256, None);
    let source = Source::of(&[&signer]);
    let token = signer.sign_text(r#"{"alg":"ES256","kid":"x"}"#, "{}");
    assert!(Keys::default().verify(&token, Algorithm::Es256, &source).await.is_ok());
    assert_eq!(source.fetches(), 1);
}

/// oidcc-client-test-signing-key-rotation-just-before-signing, -signing-key-rotation: one more fetch, each time.
#[tokio::test(start_paused = true)]
async fn rotation_is_followed_at_once() {
    let source = Source::default();
    let keys = Keys::default();
    for round in 1..=4 {
        let signer = Signer::new(Algorithm::Es256, Some(&format!("k{round}")));
        source.publish(&[&signer]);
        assert_eq!(check(&keys, &source, &signer).await, Ok(()));
        assert_eq!(source.fetches(), round);
    }
}

/// KEY-06: forged `kid`s cost one fetch, then one in ten seconds; a verified token earns the next one.
#[tokio::test(start_paused = true)]
async fn forged_kids_do_not_hammer_the_provider() {
    let good = Signer::new(Algorithm::Es256, Some("good"));
    let source = Source::of(&[&good]);
    let keys = Keys::default();
    assert_eq!(check(&keys, &source, &good).await, Ok(()));
    let forged: Vec<_> = (0..50).map(|n| Signer::new(Algorithm::Es256, Some(&format!("f{n}")))).collect();
    for signer in &forged {
        assert_eq!(check(&keys, &source, signer).await, SIGNATURE);
    }
    assert_eq!(source.fetches(), 2);
    tokio::time::advance(REFETCH_PAUSE).await;
    for signer in &forged {
        assert_eq!(check(&keys, &source, signer).await, SIGNATURE);
    }
    assert_eq!(source.fetches(), 3);
    // A wrong signature under a known name is no reason to look.
    let impostor = Signer::new(Algorithm::Es256, Some("good"));
    assert_eq!(check(&keys, &source, &good).await, Ok(()));
    assert_eq!(check(&keys, &source, &impostor).await, SIGNATURE);
    assert_eq!(source.fetches(), 3);
    assert_eq!(check(&keys, &source, &forged[0]).await, SIGNATURE);
    assert_eq!(source.fetches(), 4);
}

/// KEY-06: concurrent fetches are one, the first and the later ones.
#[tokio::test]
async fn concurrent_fetches_are_one() {
    let (old, new) = (Signer::new(Algorithm::Es256, Some("old")), Signer::new(Algorithm::Es256, Some("new")));
    let source = Source::of(&[&old]);
    let keys = Keys::default();
    let all = async |signer| {
        tokio::join!(check(&keys, &source, signer), check(&keys, &source, signer), check(&keys, &source, signer))
    };
    assert_eq!(all(&old).await, (Ok(()), Ok(()), Ok(())));
    assert_eq!(source.fetches(), 1);
    source.publish(&[&new]);
    assert_eq!(all(&new).await, (Ok(()), Ok(()), Ok(())));
    assert_eq!(source.fetches(), 2);
}

/// KEY-06: a failed fetch keeps the old keys, and is an outage rather than a verdict on the token.
#[tokio::test(start_paused = true)]
async fn a_failed_fetch_keeps_the_old_keys() {
    let (old, new) = (Signer::new(Algorithm::Es256, Some("old")), Signer::new(Algorithm::Es256, Some("new")));
    let source = Source::of(&[&old]);
    let keys = Keys::default();
    assert_eq!(check(&keys, &source, &old).await, Ok(()));
    *source.keys.lock() = None;
    assert!(matches!(check(&keys, &source, &new).await, Err(ProviderError::Unavailable { .. })));
    assert_eq!(check(&keys, &source, &old).await, Ok(()));
    source.publish(&[&new]);
    assert_eq!(check(&keys, &source, &new).await, Ok(()));
}

/// KEY-06: a set without any key that is usable is no set; the first one is all that there is.
#[tokio::test(start_paused = true)]
async fn an_empty_set_keeps_the_old_keys() {
    let (old, new) = (Signer::new(Algorithm::Es256, Some("old")), Signer::new(Algorithm::Es256, Some("new")));
    let source = Source::of(&[]);
    let keys = Keys::default();
    assert_eq!(check(&keys, &source, &old).await, SIGNATURE);
    source.publish(&[&old]);
    tokio::time::advance(REFETCH_PAUSE).await;
    assert_eq!(check(&keys, &source, &old).await, Ok(()));
    source.publish(&[]);
    assert!(keys.reload(&source).await.is_err());
    assert_eq!(check(&keys, &source, &old).await, Ok(()), "still known");
    assert!(matches!(check(&keys, &source, &new).await, Err(ProviderError::Unavailable { .. })));
}

/// A token that cannot be right costs no fetch.
#[tokio::test]
async fn nothing_is_fetched_for_a_token_of_another_algorithm() {
    let source = Source::default();
    let token = Signer::new(Algorithm::EdDsa, Some("k")).sign(&json!({}));
    let verdict = Keys::default().verify(&token, Algorithm::Rs256, &source).await.map(drop);
    assert_eq!(verdict, Err(ProviderError::Invalid { reason: "alg" }));
    assert_eq!(source.fetches(), 0);
}

proptest! {
    #[test]
    fn parsing_never_panics(kty in "RSA|EC|OKP|oct|", crv in "P-256|P-384|Ed25519|", n in "[A-Za-z0-9_=-]{0,90}") {
        let document = json!({"keys": [{"kty": kty, "crv": crv, "n": n, "e": n, "x": n, "y": n, "kid": n}]});
        if let Ok(set) = KeySet::parse(document.to_string().as_bytes()) {
            let _ = set.serves(Algorithm::Rs256);
        }
    }
}
