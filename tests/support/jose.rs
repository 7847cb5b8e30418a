//! JWS by hand, so that wrong ones can be made too. The keys are real and for tests only.

use std::sync::{Arc, LazyLock};

use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use serde_json::{Value, json};

use super::text::{b64u, unb64u, unhex};

static RSA_FILES: [&str; 5] = [
    include_str!("keys/rsa-1.pem"),
    include_str!("keys/rsa-2.pem"),
    include_str!("keys/rsa-3.pem"),
    include_str!("keys/rsa-4.pem"),
    include_str!("keys/rsa-5.pem"),
];

static RSA: LazyLock<Vec<Arc<RsaKeyPair>>> = LazyLock::new(|| {
    let pair = |pem: &&str| {
        let text: String =
            pem.lines().skip_while(|l| !l.starts_with("-----")).filter(|l| !l.starts_with('-')).collect();
        let der = base64_simd::STANDARD.decode_to_vec(text).expect("a PEM file");
        Arc::new(RsaKeyPair::from_pkcs8(&der).expect("an RSA key"))
    };
    RSA_FILES.iter().map(pair).collect()
});

static SMALL: LazyLock<Arc<SmallRsa>> = LazyLock::new(|| {
    let text = include_str!("keys/rsa-1024.txt");
    let value = |name: &str| unhex(text.lines().find_map(|l| l.strip_prefix(name)).expect("a value"));
    Arc::new(SmallRsa { n: value("n="), d: value("d=") })
});

/// A signing key of the provider.
#[derive(Clone)]
pub struct Key {
    /// Its name in the set and in token headers.
    pub kid: String,
    /// The algorithm it signs with.
    pub alg: &'static str,
    /// `sig`, or `enc` for a key that must never verify.
    pub usage: &'static str,
    secret: Secret,
}

#[derive(Clone)]
enum Secret {
    Rsa(Arc<RsaKeyPair>),
    Small(Arc<SmallRsa>),
    Ec(Arc<EcdsaKeyPair>),
    Ed(Arc<Ed25519KeyPair>),
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({}, {}, {})", self.kid, self.alg, self.usage)
    }
}

impl Key {
    /// One of the five RSA keys of 2048 bits.
    pub fn rsa(which: usize, kid: &str) -> Self {
        Self {
            kid: kid.to_owned(),
            alg: "RS256",
            usage: "sig",
            secret: Secret::Rsa(Arc::clone(&RSA[which % RSA.len()])),
        }
    }

    /// An RSA key of 1024 bits.
    pub fn small_rsa(kid: &str) -> Self {
        Self { kid: kid.to_owned(), alg: "RS256", usage: "sig", secret: Secret::Small(Arc::clone(&SMALL)) }
    }

    /// A fresh P-256 key.
    pub fn p256(kid: &str) -> Self {
        let (way, random) = (&signature::ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let document = EcdsaKeyPair::generate_pkcs8(way, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(way, document.as_ref(), &random).expect("a key");
        Self { kid: kid.to_owned(), alg: "ES256", usage: "sig", secret: Secret::Ec(Arc::new(pair)) }
    }

    /// A fresh Ed25519 key.
    pub fn ed25519(kid: &str) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("a key");
        Self { kid: kid.to_owned(), alg: "EdDSA", usage: "sig", secret: Secret::Ed(Arc::new(pair)) }
    }

    /// The same key for another algorithm.
    #[must_use]
    pub fn with_alg(mut self, alg: &'static str) -> Self {
        self.alg = alg;
        self
    }

    /// The same key, published for encryption.
    #[must_use]
    pub fn for_encryption(mut self) -> Self {
        self.usage = "enc";
        self
    }

    /// A fresh P-256 key, and the same as a PKCS#8 file in PEM.
    pub fn p256_with_file(kid: &str) -> (Self, String) {
        let (way, random) = (&signature::ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let document = EcdsaKeyPair::generate_pkcs8(way, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(way, document.as_ref(), &random).expect("a key");
        let key = Self { kid: kid.to_owned(), alg: "ES256", usage: "sig", secret: Secret::Ec(Arc::new(pair)) };
        (key, pem("PRIVATE KEY", document.as_ref()))
    }

    /// A fresh Ed25519 key, and the same as a PKCS#8 file in PEM.
    pub fn ed25519_with_file(kid: &str) -> (Self, String) {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("a key");
        let key = Self { kid: kid.to_owned(), alg: "EdDSA", usage: "sig", secret: Secret::Ed(Arc::new(pair)) };
        (key, pem("PRIVATE KEY", document.as_ref()))
    }

    /// The PKCS#8 file of one of the five RSA keys.
    pub fn rsa_file(which: usize) -> &'static str {
        RSA_FILES[which % RSA_FILES.len()]
    }

    /// The public key as JWK (RFC 7517).
    pub fn jwk(&self) -> Value {
        let mut jwk = match &self.secret {
            Secret::Rsa(pair) => {
                let parts = PublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({"kty": "RSA", "n": b64u(parts.n), "e": b64u(parts.e)})
            }
            Secret::Small(pair) => json!({"kty": "RSA", "n": b64u(&pair.n), "e": "AQAB"}),
            Secret::Ec(pair) => {
                let point = pair.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "x": b64u(&point[1..33]), "y": b64u(&point[33..])})
            }
            Secret::Ed(pair) => json!({"kty": "OKP", "crv": "Ed25519", "x": b64u(pair.public_key().as_ref())}),
        };
        jwk["kid"] = self.kid.clone().into();
        jwk["use"] = self.usage.into();
        jwk["alg"] = if self.usage == "enc" { "RSA-OAEP".into() } else { self.alg.into() };
        jwk
    }

    /// The public RSA key as DER (RFC 8017), or nothing for other kinds.
    pub fn public_der(&self) -> Vec<u8> {
        match &self.secret {
            Secret::Rsa(pair) => pair.public_key().as_ref().to_vec(),
            _ => Vec::new(),
        }
    }

    /// The public RSA key as PEM.
    pub fn public_pem(&self) -> String {
        let text = base64_simd::STANDARD.encode_to_string(self.public_der());
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).expect("ASCII")).collect();
        format!("-----BEGIN RSA PUBLIC KEY-----\n{}\n-----END RSA PUBLIC KEY-----\n", lines.join("\n"))
    }

    /// A signature over `input` by [`Key::alg`].
    pub fn sign(&self, input: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.secret {
            Secret::Rsa(pair) => {
                let way: &dyn signature::RsaEncoding = match self.alg {
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut out = vec![0; pair.public().modulus_len()];
                pair.sign(way, &random, input, &mut out).expect("an RSA signature");
                out
            }
            Secret::Small(pair) => pair.sign(input),
            Secret::Ec(pair) => pair.sign(&random, input).expect("an EC signature").as_ref().to_vec(),
            Secret::Ed(pair) => pair.sign(input).as_ref().to_vec(),
        }
    }
}

/// The signing input: header and payload, encoded and joined.
pub fn input(header: &str, payload: &str) -> String {
    format!("{}.{}", b64u(header), b64u(payload))
}

/// A compact JWS of exactly these texts.
pub fn compact(header: &str, payload: &str, key: &Key) -> String {
    let input = input(header, payload);
    let signature = key.sign(input.as_bytes());
    format!("{input}.{}", b64u(signature))
}

/// A PEM file.
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = base64_simd::STANDARD.encode_to_string(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).expect("ASCII")).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// HMAC-SHA256.
pub fn hs256(secret: &[u8], input: &[u8]) -> Vec<u8> {
    ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret), input).as_ref().to_vec()
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().to_vec()
}

/// `at_hash` and `c_hash` of OpenID Connect Core section 3.1.3.6; Ed25519 hashes with SHA-512.
pub fn half_hash(text: &str, alg: &str) -> String {
    let way = if alg == "EdDSA" { &ring::digest::SHA512 } else { &ring::digest::SHA256 };
    let hash = ring::digest::digest(way, text.as_bytes());
    b64u(&hash.as_ref()[..hash.as_ref().len() / 2])
}

/// Header and payload of a compact JWS, unverified.
pub fn parse(token: &str) -> Option<(Value, Value)> {
    let mut parts = token.split('.');
    let mut part = || serde_json::from_slice(&unb64u(parts.next()?)?).ok();
    Some((part()?, part()?))
}

/// Whether `token` is an RS256 JWS of a key in `jwks`, whatever its `kid`.
pub fn verified_rs256(token: &str, jwks: &Value) -> bool {
    let Some((input, signature)) = token.rsplit_once('.') else { return false };
    let Some(signature) = unb64u(signature) else { return false };
    let keys = jwks["keys"].as_array().cloned().unwrap_or_default();
    keys.iter().filter(|k| k["kty"] == "RSA" && k["use"] != "enc").any(|k| {
        let part = |name: &str| k[name].as_str().and_then(unb64u).unwrap_or_default();
        let public = PublicKeyComponents { n: part("n"), e: part("e") };
        public.verify(&signature::RSA_PKCS1_2048_8192_SHA256, input.as_bytes(), &signature).is_ok()
    })
}

/// Whether `token` is a JWS of the key in `jwk` by the algorithm that its header names.
pub fn verified(token: &str, jwk: &Value) -> bool {
    let Some((input, signature)) = token.rsplit_once('.') else { return false };
    let (Some(signature), Some((header, _))) = (unb64u(signature), parse(token)) else { return false };
    let part = |name: &str| jwk[name].as_str().and_then(unb64u).unwrap_or_default();
    let by = |way: &'static dyn signature::VerificationAlgorithm, key: Vec<u8>| {
        signature::UnparsedPublicKey::new(way, key).verify(input.as_bytes(), &signature).is_ok()
    };
    let rsa = |way: &'static signature::RsaParameters| {
        let public = PublicKeyComponents { n: part("n"), e: part("e") };
        public.verify(way, input.as_bytes(), &signature).is_ok()
    };
    match (jwk["kty"].as_str(), header["alg"].as_str()) {
        (Some("EC"), Some("ES256")) => {
            by(&signature::ECDSA_P256_SHA256_FIXED, [vec![4], part("x"), part("y")].concat())
        }
        (Some("OKP"), Some("EdDSA")) => by(&signature::ED25519, part("x")),
        (Some("RSA"), Some("RS256")) => rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
        (Some("RSA"), Some("PS256")) => rsa(&signature::RSA_PSS_2048_8192_SHA256),
        (Some("oct"), Some("HS256")) => hs256(&part("k"), input.as_bytes()) == signature,
        _ => false,
    }
}

/// The thumbprint of a public P-256 key (RFC 7638).
pub fn thumbprint(jwk: &Value) -> String {
    let canonical = format!(r#"{{"crv":{},"kty":{},"x":{},"y":{}}}"#, jwk["crv"], jwk["kty"], jwk["x"], jwk["y"]);
    b64u(sha256(canonical.as_bytes()))
}

/// What a DPoP proof must be for (RFC 9449 section 4.3).
#[derive(Clone, Copy, Debug)]
pub struct Proof<'a> {
    pub method: &'a str,
    /// Without query.
    pub url: &'a str,
    pub token: Option<&'a str>,
    pub now: i64,
}

impl Proof<'_> {
    /// The thumbprint of the proof's key, its `jti`, and its nonce; or what is wrong with it.
    pub fn check(&self, proof: &str) -> Result<(String, String, Option<String>), String> {
        let (header, claims) = parse(proof).ok_or("unreadable")?;
        let jwk = &header["jwk"];
        let members: Vec<&str> = jwk.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        if header["typ"] != "dpop+jwt" || members != ["crv", "kty", "x", "y"] {
            return Err(format!("header {header}"));
        }
        if !verified(proof, jwk) {
            return Err("signature".to_owned());
        }
        if claims["htm"] != self.method || claims["htu"] != self.url {
            return Err(format!("{} {} instead of {} {}", claims["htm"], claims["htu"], self.method, self.url));
        }
        if claims["iat"].as_i64().is_none_or(|iat| (iat - self.now).abs() > 30) {
            return Err(format!("iat {} at {}", claims["iat"], self.now));
        }
        let ath = self.token.map(|token| Value::from(b64u(sha256(token.as_bytes()))));
        if claims.get("ath") != ath.as_ref() {
            return Err("ath".to_owned());
        }
        let jti = claims["jti"].as_str().filter(|jti| jti.len() >= 16).ok_or("jti")?;
        Ok((thumbprint(jwk), jti.to_owned(), claims["nonce"].as_str().map(str::to_owned)))
    }
}

/// An RSA key that *ring* will not load because it is too short; signs by plain arithmetic.
struct SmallRsa {
    n: Vec<u8>,
    d: Vec<u8>,
}

impl SmallRsa {
    fn sign(&self, input: &[u8]) -> Vec<u8> {
        // EMSA-PKCS1-v1_5 with SHA-256 (RFC 8017 section 9.2).
        let prefix = unhex("3031300d060960864801650304020105000420");
        let digest = sha256(input);
        let padding = self.n.len() - 3 - prefix.len() - digest.len();
        let padded = [&[0, 1][..], &vec![0xff; padding], &[0], &prefix, &digest].concat();
        power(&padded, &self.d, &self.n)
    }
}

/// `base` to the `exponent` modulo `modulus`, all big-endian; slow and not constant in time.
fn power(base: &[u8], exponent: &[u8], modulus: &[u8]) -> Vec<u8> {
    let limbs = |bytes: &[u8]| -> Vec<u32> {
        bytes.rchunks(4).map(|c| c.iter().fold(0, |acc, b| acc << 8 | u32::from(*b))).collect()
    };
    let n = limbs(modulus);
    let len = n.len();
    // Newton's iteration: the inverse of n modulo 2^32, negated.
    let inverse = (0..5).fold(1u32, |x, _| x.wrapping_mul(2u32.wrapping_sub(n[0].wrapping_mul(x)))).wrapping_neg();
    let less = |a: &[u32], b: &[u32]| a.iter().rev().lt(b.iter().rev());
    let subtract = |a: &mut [u32]| {
        let mut borrow = 0i64;
        for (i, limb) in a.iter_mut().enumerate() {
            let d = i64::from(*limb) - n.get(i).map_or(0, |x| i64::from(*x)) + borrow;
            *limb = d as u32;
            borrow = d >> 32;
        }
    };
    let multiply = |a: &[u32], b: &[u32]| -> Vec<u32> {
        let mut t = vec![0u32; len + 2];
        for x in a {
            let mut carry = 0u64;
            for j in 0..len {
                let s = u64::from(t[j]) + u64::from(*x) * u64::from(b[j]) + carry;
                t[j] = s as u32;
                carry = s >> 32;
            }
            let s = u64::from(t[len]) + carry;
            t[len] = s as u32;
            t[len + 1] = (s >> 32) as u32;
            let m = t[0].wrapping_mul(inverse);
            let mut carry = (u64::from(t[0]) + u64::from(m) * u64::from(n[0])) >> 32;
            for j in 1..len {
                let s = u64::from(t[j]) + u64::from(m) * u64::from(n[j]) + carry;
                t[j - 1] = s as u32;
                carry = s >> 32;
            }
            let s = u64::from(t[len]) + carry;
            t[len - 1] = s as u32;
            t[len] = t[len + 1] + (s >> 32) as u32;
            t[len + 1] = 0;
        }
        if t[len] != 0 || !less(&t[..len], &n) {
            subtract(&mut t[..=len]);
        }
        t.truncate(len);
        t
    };
    // 2^(64·len) modulo n, by doubling.
    let mut square = vec![0u32; len + 1];
    square[0] = 1;
    for _ in 0..64 * len {
        let mut carry = 0;
        for limb in &mut square {
            let next = *limb >> 31;
            *limb = *limb << 1 | carry;
            carry = next;
        }
        if square[len] != 0 || !less(&square[..len], &n) {
            subtract(&mut square);
        }
    }
    square.truncate(len);
    let mut one = vec![0u32; len];
    one[0] = 1;
    let mut padded = limbs(base);
    padded.resize(len, 0);
    let base = multiply(&padded, &square);
    let mut result = multiply(&one, &square);
    for byte in exponent {
        for bit in (0..8).rev() {
            result = multiply(&result, &result);
            if byte >> bit & 1 == 1 {
                result = multiply(&result, &base);
            }
        }
    }
    multiply(&result, &one).iter().rev().flat_map(|limb| limb.to_be_bytes()).collect()
}

// -- Encryption ----------------------------------------------------------------------------------------------------

/// A JWE by ECDH-ES and A256GCM to this public key (RFC 7518 section 4.6).
pub fn encrypted(text: &str, jwk: &Value) -> String {
    use ring::agreement::{self, ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey};
    let random = SystemRandom::new();
    let own = EphemeralPrivateKey::generate(&ECDH_P256, &random).expect("a key");
    let public = own.compute_public_key().expect("its public half");
    let (x, y) = public.as_ref()[1..].split_at(32);
    let half = |name: &str| jwk[name].as_str().and_then(unb64u).expect("a part of the key");
    let theirs = UnparsedPublicKey::new(&ECDH_P256, [&[4], half("x").as_slice(), &half("y")].concat());
    let key = agreement::agree_ephemeral(own, &theirs, |shared| {
        let mut info = 1_u32.to_be_bytes().to_vec();
        info.extend_from_slice(shared);
        for part in ["A256GCM", "us", "them"] {
            info.extend_from_slice(&u32::try_from(part.len()).expect("short").to_be_bytes());
            info.extend_from_slice(part.as_bytes());
        }
        info.extend_from_slice(&256_u32.to_be_bytes());
        sha256(&info)
    });
    let header = json!({
        "alg": "ECDH-ES", "enc": "A256GCM", "cty": "JWT", "apu": b64u("us"), "apv": b64u("them"),
        "epk": {"kty": "EC", "crv": "P-256", "x": b64u(x), "y": b64u(y)},
    });
    sealed(text, &header, &key.expect("on the curve"))
}

/// A JWE by the client secret (OpenID Connect Core section 10.2).
pub fn encrypted_by_secret(text: &str, secret: &str) -> String {
    sealed(text, &json!({"alg": "dir", "enc": "A256GCM", "cty": "JWT"}), &sha256(secret.as_bytes()))
}

fn sealed(text: &str, header: &Value, key: &[u8]) -> String {
    use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let header = b64u(header.to_string());
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("256 bits"));
    let nonce: [u8; 12] = super::text::random(12).try_into().expect("twelve");
    let mut content = text.as_bytes().to_vec();
    let aad = Aad::from(header.as_bytes());
    let sealed = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut content);
    format!("{header}..{}.{}.{}", b64u(nonce), b64u(&content), b64u(sealed.expect("short").as_ref()))
}
