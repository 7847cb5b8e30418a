//! Keys of ours that sign: client assertions, request objects and DPoP proofs.

use std::fmt;

use base64_simd::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{self, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair};
use ring::{digest, hmac};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Map, Value, json};

use super::json;
use super::jwt::Algorithm;

/// Why a file holds no key to sign with; reads well after the file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyError(pub &'static str);

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for KeyError {}

/// A private key and the algorithm that it signs with.
pub struct SigningKey {
    kid: Option<String>,
    algorithm: Algorithm,
    pair: Pair,
}

enum Pair {
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(Box<RsaKeyPair>),
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Reads a private key: PEM (PKCS#8, SEC1, PKCS#1) or one JWK (RFC 7517). A `kid` given here wins over the JWK's.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(content: &[u8], kid: Option<&str>) -> Result<Self, KeyError> {
        let (pair, algorithm, own_kid) = if content.trim_ascii_start().first() == Some(&b'{') {
            from_jwk(content)?
        } else {
            (from_pem(content)?, None, None)
        };
        let algorithm = algorithm.unwrap_or(match pair {
            Pair::P256(_) => Algorithm::Es256,
            Pair::Ed25519(_) => Algorithm::EdDsa,
            Pair::Rsa(_) => Algorithm::Rs256,
        });
        Ok(Self { kid: kid.map(str::to_owned).or(own_kid), algorithm, pair })
    }

    /// A P-256 key from its two halves: the scalar, and the uncompressed point.
    pub(super) fn p256(private: &[u8], public: &[u8]) -> Option<Self> {
        let pair = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            private,
            public,
            &SystemRandom::new(),
        );
        Some(Self { kid: None, algorithm: Algorithm::Es256, pair: Pair::P256(pair.ok()?) })
    }

    /// The same key for another algorithm; none when the key cannot sign so.
    pub fn with_algorithm(self, algorithm: Algorithm) -> Option<Self> {
        let fits = match self.pair {
            Pair::P256(_) => algorithm == Algorithm::Es256,
            Pair::Ed25519(_) => algorithm == Algorithm::EdDsa,
            Pair::Rsa(_) => matches!(algorithm, Algorithm::Rs256 | Algorithm::Ps256),
        };
        fits.then_some(Self { algorithm, ..self })
    }

    /// What it signs with.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The public key as a JWK, without `kid`. Members in the order of RFC 7638 section 3.2.
    pub fn public_jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode_to_string(bytes);
        match &self.pair {
            Pair::P256(pair) => {
                // An uncompressed point: 4, x, y.
                let (_, point) = pair.public_key().as_ref().split_at_checked(1).unwrap_or_default();
                let (x, y) = point.split_at_checked(point.len() / 2).unwrap_or_default();
                json!({"crv": "P-256", "kty": "EC", "x": text(x), "y": text(y)})
            }
            Pair::Ed25519(pair) => json!({"crv": "Ed25519", "kty": "OKP", "x": text(pair.public_key().as_ref())}),
            Pair::Rsa(pair) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({"e": text(&public.e), "kty": "RSA", "n": text(&public.n)})
            }
        }
    }

    /// The SHA-256 thumbprint of the public key, base64url (RFC 7638).
    pub fn thumbprint(&self) -> String {
        let canonical = self.public_jwk().to_string();
        URL_SAFE_NO_PAD.encode_to_string(digest::digest(&digest::SHA256, canonical.as_bytes()))
    }

    /// A JWT of this `typ`. `more` joins the header; `alg`, `typ` and `kid` are set here.
    pub fn jwt(&self, typ: &str, more: Option<(&str, Value)>, claims: &Map<String, Value>) -> Option<String> {
        let mut header = json!({"alg": self.algorithm.name(), "typ": typ});
        if let (Some(members), Some(kid)) = (header.as_object_mut(), &self.kid) {
            members.insert("kid".to_owned(), kid.as_str().into());
        }
        if let (Some(members), Some((name, value))) = (header.as_object_mut(), more) {
            members.insert(name.to_owned(), value);
        }
        compact(&header, claims, |message| self.sign(message))
    }

    fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::P256(pair) => Some(pair.sign(&random, message).ok()?.as_ref().to_vec()),
            Pair::Ed25519(pair) => Some(pair.sign(message).as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let padding: &dyn signature::RsaEncoding = match self.algorithm {
                    Algorithm::Ps256 => &signature::RSA_PSS_SHA256,
                    _ => &signature::RSA_PKCS1_SHA256,
                };
                let mut bytes = vec![0; pair.public().modulus_len()];
                pair.sign(padding, &random, message, &mut bytes).ok()?;
                Some(bytes)
            }
        }
    }
}

/// A JWT with a MAC by a shared secret (`client_secret_jwt`).
pub fn hs256_jwt(key: &hmac::Key, claims: &Map<String, Value>) -> Option<String> {
    let header = json!({"alg": "HS256", "typ": "JWT"});
    compact(&header, claims, |message| Some(hmac::sign(key, message).as_ref().to_vec()))
}

fn compact(header: &Value, claims: &Map<String, Value>, sign: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> Option<String> {
    let mut token = URL_SAFE_NO_PAD.encode_to_string(header.to_string());
    token.push('.');
    URL_SAFE_NO_PAD.encode_append(serde_json::to_vec(claims).ok()?, &mut token);
    let signature = sign(token.as_bytes())?;
    token.push('.');
    URL_SAFE_NO_PAD.encode_append(signature, &mut token);
    Some(token)
}

/// A fresh value that nobody can guess, for `jti` and `state`: 128 bits, base64url. None when the system has no random
/// numbers.
pub(super) fn fresh_id() -> Option<String> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode_to_string(bytes))
}

const UNUSABLE: KeyError = KeyError("holds no private key that can sign: P-256, Ed25519, or RSA of 2048 bits and more");

const OTHER_CURVE: KeyError = KeyError("holds an EC key of another curve; of these only P-256 is used here");
/// Object identifiers of curves that we do not sign with (RFC 5480 section 2.1.1.1, SEC 2).
const SECP384R1: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const SECP521R1: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x23];
const SECP256K1: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x0a];

fn from_pem(content: &[u8]) -> Result<Pair, KeyError> {
    if memchr::memmem::find(content, b"ENCRYPTED").is_some() {
        return Err(KeyError("is protected by a passphrase; decrypt it (openssl pkey) and guard the file"));
    }
    match PrivateKeyDer::from_pem_slice(content) {
        Ok(PrivateKeyDer::Pkcs8(der)) => from_pkcs8(der.secret_pkcs8_der()),
        Ok(PrivateKeyDer::Sec1(der)) => {
            let der = der.secret_sec1_der();
            // The curve may be left out; when it is there it must be ours.
            let others = [SECP384R1, SECP521R1, SECP256K1];
            if others.iter().any(|curve| memchr::memmem::find(der, curve).is_some()) {
                return Err(OTHER_CURVE);
            }
            from_pkcs8(&wrapped(der).ok_or(UNUSABLE)?)
        }
        Ok(PrivateKeyDer::Pkcs1(der)) => {
            RsaKeyPair::from_der(der.secret_pkcs1_der()).map(|pair| Pair::Rsa(Box::new(pair))).map_err(|_| weak_rsa())
        }
        _ => Err(KeyError("holds no private key in PEM or JWK form")),
    }
}

fn from_pkcs8(der: &[u8]) -> Result<Pair, KeyError> {
    // The identifiers of RFC 5480 section 2.1.1.1 and RFC 8017 appendix C say which kind it was meant to be.
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
        return Ok(Pair::Ed25519(pair));
    }
    let says = |identifier: &[u8]| memchr::memmem::find(der.get(..40).unwrap_or(der), identifier).is_some();
    if says(RSA) {
        return RsaKeyPair::from_pkcs8(der).map(|pair| Pair::Rsa(Box::new(pair))).map_err(|_| weak_rsa());
    }
    if says(P256) {
        return EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &SystemRandom::new())
            .map(Pair::P256)
            .map_err(|_| {
                KeyError("holds an EC key without its public half; `openssl ec -in FILE` writes one with it")
            });
    }
    Err(if [SECP384R1, SECP521R1, SECP256K1].into_iter().any(says) { OTHER_CURVE } else { UNUSABLE })
}

const fn weak_rsa() -> KeyError {
    KeyError("holds an RSA key that cannot be used; it needs 2048 to 4096 bits")
}

/// A SEC1 key (RFC 5915) in the PKCS#8 form that *ring* reads, taken for P-256.
fn wrapped(sec1: &[u8]) -> Option<Vec<u8>> {
    const ALGORITHM: [u8; 24] = [
        0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
        0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
    ];
    let tagged = |tag: u8, content: &[u8]| {
        let length = u8::try_from(content.len()).ok()?;
        let mut out = vec![tag];
        // DER: one byte up to 127, then the count of length bytes before them. A P-256 key has some 120 bytes.
        if length >= 0x80 {
            out.push(0x81);
        }
        out.push(length);
        out.extend_from_slice(content);
        Some(out)
    };
    let octets = tagged(0x04, sec1)?;
    tagged(0x30, &[ALGORITHM.as_slice(), &octets].concat())
}

/// The key, the algorithm that the JWK names, and its `kid`.
fn from_jwk(content: &[u8]) -> Result<(Pair, Option<Algorithm>, Option<String>), KeyError> {
    let jwk = json::object(content).map_err(|_| KeyError("is not a JWK: no JSON object"))?;
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    if text("use").is_some_and(|usage| usage != "sig") {
        return Err(KeyError("holds a JWK that is not for signing (\"use\")"));
    }
    let part = |name: &str| {
        let bytes = text(name).and_then(|text| URL_SAFE_NO_PAD.decode_to_vec(text).ok());
        bytes.ok_or(KeyError("holds a JWK that lacks a part of the private key"))
    };
    let pair = match (text("kty"), text("crv")) {
        (Some("EC"), Some("P-256")) => {
            let point = [&[4], part("x")?.as_slice(), part("y")?.as_slice()].concat();
            SigningKey::p256(&part("d")?, &point).ok_or(UNUSABLE)?.pair
        }
        (Some("OKP"), Some("Ed25519")) => {
            Pair::Ed25519(Ed25519KeyPair::from_seed_and_public_key(&part("d")?, &part("x")?).map_err(|_| UNUSABLE)?)
        }
        (Some("RSA"), _) => {
            let components = KeyPairComponents {
                public_key: PublicKeyComponents { n: part("n")?, e: part("e")? },
                d: part("d")?,
                p: part("p")?,
                q: part("q")?,
                dP: part("dp")?,
                dQ: part("dq")?,
                qInv: part("qi")?,
            };
            Pair::Rsa(Box::new(RsaKeyPair::from_components(&components).map_err(|_| weak_rsa())?))
        }
        _ => return Err(UNUSABLE),
    };
    let kid = text("kid").map(str::to_owned);
    let Some(name) = text("alg") else { return Ok((pair, None, kid)) };
    let algorithm = Algorithm::parse(name).ok_or(KeyError("holds a JWK for another algorithm than we sign with"))?;
    let key = SigningKey { kid: None, algorithm, pair }.with_algorithm(algorithm);
    Ok((key.ok_or(KeyError("holds a JWK whose \"alg\" is not one of its key"))?.pair, Some(algorithm), kid))
}

#[cfg(test)]
#[path = "signing_tests.rs"]
mod tests;
