//! Proofs that a token is in the hands of whom it was issued to (DPoP, RFC 9449).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use base64_simd::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use ring::digest;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Map, Value};
use url::Url;
use zeroize::Zeroizing;

use super::signing::{SigningKey, fresh_id};
use super::types::AccessToken;
use crate::clock::Timestamp;

/// Bytes of a P-256 scalar.
const SCALAR: usize = 32;
/// Scalar, then the point without its leading 4.
const BYTES: usize = SCALAR + 64;
/// Servers that gave a nonce and are remembered. A gateway talks to a handful.
const MAX_ORIGINS: usize = 256;
/// Longer nonces are not a server's.
const MAX_NONCE: usize = 512;

/// A session's key for proofs: P-256. It never leaves the process but sealed. Cloning shares the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct DpopKey(Arc<Zeroizing<[u8; BYTES]>>);

impl fmt::Debug for DpopKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DpopKey(***)")
    }
}

impl DpopKey {
    /// A fresh one; none when the system has no random numbers.
    pub fn generate() -> Option<Self> {
        // What *ring* writes: a PKCS#8 document of fixed form, the scalar at 36 and the point at its end.
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).ok()?;
        let document = Zeroizing::new(document.as_ref().to_vec());
        let scalar = document.get(36..36 + SCALAR)?;
        let point = document.last_chunk::<64>()?;
        let key = Self::from_bytes(&Zeroizing::new([scalar, point].concat()))?;
        key.signer().map(|_| key)
    }

    /// As [`DpopKey::as_bytes`] gave it.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; BYTES] = bytes.try_into().ok()?;
        Some(Self(Arc::new(Zeroizing::new(bytes))))
    }

    /// For sealing.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_slice()
    }

    fn signer(&self) -> Option<SigningKey> {
        let (scalar, point) = self.0.split_at_checked(SCALAR)?;
        SigningKey::p256(scalar, &[&[4], point].concat())
    }

    /// `dpop_jkt`: the thumbprint that binds a code to this key (RFC 9449 section 10).
    pub fn thumbprint(&self) -> Option<String> {
        self.signer().map(|signer| signer.thumbprint())
    }

    /// A proof for one request (RFC 9449 section 4.2). `htu` is the target without query and fragment; `token` is the
    /// access token that goes along.
    pub fn proof(
        &self,
        htm: &str,
        htu: &str,
        token: Option<&AccessToken>,
        nonce: Option<&str>,
        now: Timestamp,
    ) -> Option<String> {
        let signer = self.signer()?;
        let mut claims = Map::new();
        let mut put = |name: &str, value: Value| claims.insert(name.to_owned(), value);
        put("jti", fresh_id()?.into());
        put("htm", htm.into());
        put("htu", htu.into());
        put("iat", now.as_secs().into());
        if let Some(token) = token {
            let hash = digest::digest(&digest::SHA256, token.expose().as_bytes());
            put("ath", URL_SAFE_NO_PAD.encode_to_string(hash).into());
        }
        if let Some(nonce) = nonce {
            put("nonce", nonce.into());
        }
        signer.jwt("dpop+jwt", Some(("jwk", signer.public_jwk())), &claims)
    }
}

/// The latest nonce of each server, by origin (RFC 9449 sections 8 and 9).
#[derive(Debug, Default)]
pub struct Nonces(Mutex<HashMap<String, String>>);

impl Nonces {
    /// The nonce to use at `origin`.
    pub fn get(&self, origin: &str) -> Option<String> {
        self.0.lock().get(origin).cloned()
    }

    /// Remembers what a server said. True when it is another nonce than the one known: worth another try.
    pub fn put(&self, origin: &str, nonce: &str) -> bool {
        // RFC 9449 section 8.1: NQCHAR.
        let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
        if nonce.is_empty() || nonce.len() > MAX_NONCE || !nonce.bytes().all(fits) {
            return false;
        }
        let mut known = self.0.lock();
        if known.get(origin).is_some_and(|old| old == nonce) {
            return false;
        }
        if known.len() >= MAX_ORIGINS && !known.contains_key(origin) {
            known.clear();
        }
        known.insert(origin.to_owned(), nonce.to_owned());
        true
    }
}

/// `htu` of a URL: without query and fragment.
pub fn htu(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

/// Whether a `WWW-Authenticate` value says that the proof lacks the server's nonce (RFC 9449 section 9). Schemes and
/// parameter names know no case; several challenges may stand in one value.
pub fn demands_nonce(challenge: &str) -> bool {
    let challenge = challenge.to_ascii_lowercase();
    let scheme = challenge.split([',', ' ', '\t']).any(|word| word == "dpop");
    scheme && challenge.split([',', ' ', '\t']).any(|word| word.replace('"', "") == "error=use_dpop_nonce")
}

#[cfg(test)]
#[path = "dpop_tests.rs"]
mod tests;
