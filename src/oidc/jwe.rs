//! Encrypted ID tokens (JWE compact serialisation, RFC 7516; OpenID Connect Core section 10.2): what is inside is a signed
//! token like any other, and nothing of it counts before that signature does.
//!
//! One algorithm and one content encryption, both configured: a token that names others is not opened. AES-GCM, hashes and
//! random numbers are *ring*'s. It has no key agreement with a key that is kept, so that comes from `p256`. There is no
//! RSA: *ring* does not decrypt with it, and PKCS#1 v1.5 and OAEP in constant time are hard to have otherwise.

use std::fmt;

use aes_kw::{KeyInit, KwAes128, KwAes256};
use base64_simd::URL_SAFE_NO_PAD;
use p256::ecdh::diffie_hellman;
use p256::pkcs8::DecodePrivateKey;
use p256::{PublicKey, SecretKey};
use ring::{aead, digest};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::error::Fault;
use super::json;
use super::jwt::MAX_TOKEN_BYTES;
use super::signing::KeyError;

/// `alg`: how the content's key is agreed on (RFC 7518 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyManagement {
    /// The content's key is derived from the client secret (OpenID Connect Core section 10.2).
    Dir,
    /// It is agreed on by P-256.
    EcdhEs,
    /// It is wrapped by one that is.
    EcdhEsA128Kw,
    EcdhEsA256Kw,
}

impl KeyManagement {
    /// The name in the JOSE registry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::EcdhEs => "ECDH-ES",
            Self::EcdhEsA128Kw => "ECDH-ES+A128KW",
            Self::EcdhEsA256Kw => "ECDH-ES+A256KW",
        }
    }
}

/// `enc`: how the content is encrypted (RFC 7518 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentEncryption {
    A128Gcm,
    A256Gcm,
}

impl ContentEncryption {
    /// The name in the JOSE registry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A128Gcm => "A128GCM",
            Self::A256Gcm => "A256GCM",
        }
    }

    const fn algorithm(self) -> &'static aead::Algorithm {
        match self {
            Self::A128Gcm => &aead::AES_128_GCM,
            Self::A256Gcm => &aead::AES_256_GCM,
        }
    }
}

/// Opens ID tokens that are encrypted to us.
pub struct Decryption {
    alg: KeyManagement,
    enc: ContentEncryption,
    key: Key,
}

enum Key {
    /// SHA-256 of the client secret.
    Shared(Zeroizing<[u8; 32]>),
    P256(Box<SecretKey>),
}

impl fmt::Debug for Decryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decryption").field("alg", &self.alg).field("enc", &self.enc).finish_non_exhaustive()
    }
}

impl Decryption {
    /// With `dir`: the key is the client secret's.
    pub fn shared(secret: &str, enc: ContentEncryption) -> Self {
        let hash = digest::digest(&digest::SHA256, secret.as_bytes());
        let key = Zeroizing::new(hash.as_ref().first_chunk().copied().unwrap_or_default());
        Self { alg: KeyManagement::Dir, enc, key: Key::Shared(key) }
    }

    /// With a P-256 key of ours: PEM (PKCS#8, SEC1) or one JWK.
    ///
    /// # Errors
    /// What is wrong with it; reads well after the file's name.
    pub fn parse(content: &[u8], alg: KeyManagement, enc: ContentEncryption) -> Result<Self, KeyError> {
        const OTHER: KeyError = KeyError("holds no private key that can decrypt: P-256");
        let key = if content.trim_ascii_start().first() == Some(&b'{') {
            let jwk = json::object(content).map_err(|_| KeyError("is not a JWK: no JSON object"))?;
            let text = |name: &str| jwk.get(name).and_then(Value::as_str);
            if text("use").is_some_and(|usage| usage != "enc") {
                return Err(KeyError("holds a JWK that is not for encryption (\"use\")"));
            }
            if (text("kty"), text("crv")) != (Some("EC"), Some("P-256")) {
                return Err(OTHER);
            }
            let scalar = Zeroizing::new(text("d").and_then(|d| URL_SAFE_NO_PAD.decode_to_vec(d).ok()).ok_or(OTHER)?);
            SecretKey::from_slice(&scalar).map_err(|_| OTHER)?
        } else {
            match PrivateKeyDer::from_pem_slice(content) {
                Ok(PrivateKeyDer::Pkcs8(der)) => SecretKey::from_pkcs8_der(der.secret_pkcs8_der()),
                Ok(PrivateKeyDer::Sec1(der)) => {
                    SecretKey::from_sec1_der(der.secret_sec1_der()).map_err(|_| OTHER).map(Ok)?
                }
                _ => return Err(KeyError("holds no private key in PEM or JWK form")),
            }
            .map_err(|_| OTHER)?
        };
        Ok(Self { alg, enc, key: Key::P256(Box::new(key)) })
    }

    /// The token inside, not verified.
    ///
    /// # Errors
    /// `jwe` when it is not one, or not for us; `jwe_alg`, `jwe_enc` and `jwe_header` when it is of another kind.
    pub fn open(&self, token: &str) -> Result<String, Fault> {
        const FAULT: Fault = Fault("jwe");
        if token.len() > MAX_TOKEN_BYTES {
            return Err(FAULT);
        }
        let mut parts = token.split('.');
        let mut part = || parts.next().ok_or(FAULT);
        let (header, wrapped, nonce, content, tag) = (part()?, part()?, part()?, part()?, part()?);
        if parts.next().is_some() {
            return Err(FAULT);
        }
        let decoded = |part: &str| URL_SAFE_NO_PAD.decode_to_vec(part).map_err(|_| FAULT);
        let members = json::object(&decoded(header)?).map_err(|_| Fault("jwe_header"))?;
        let says = |name: &str| members.get(name).and_then(Value::as_str);
        if says("alg") != Some(self.alg.name()) {
            return Err(Fault("jwe_alg"));
        }
        if says("enc") != Some(self.enc.name()) {
            return Err(Fault("jwe_enc"));
        }
        // No extension is understood, and nothing is unpacked: a small token could be a large one.
        let nested = says("cty").is_none_or(|content| content.eq_ignore_ascii_case("JWT"));
        if members.contains_key("crit") || members.contains_key("zip") || !nested {
            return Err(Fault("jwe_header"));
        }
        let key = self.content_key(&members, &decoded(wrapped)?)?;
        let key = aead::UnboundKey::new(self.enc.algorithm(), &key).map_err(|_| FAULT)?;
        let nonce = aead::Nonce::try_assume_unique_for_key(&decoded(nonce)?).map_err(|_| FAULT)?;
        let mut text = decoded(content)?;
        let tag = decoded(tag)?;
        if tag.len() != self.enc.algorithm().tag_len() {
            return Err(FAULT);
        }
        text.extend_from_slice(&tag);
        let plain = aead::LessSafeKey::new(key)
            .open_in_place(nonce, aead::Aad::from(header.as_bytes()), &mut text)
            .map_err(|_| FAULT)?;
        String::from_utf8(plain.to_vec()).map_err(|_| FAULT)
    }

    fn content_key(&self, header: &Map<String, Value>, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, Fault> {
        const FAULT: Fault = Fault("jwe");
        let length = self.enc.algorithm().key_len();
        let direct = |key: Zeroizing<Vec<u8>>| if wrapped.is_empty() { Ok(key) } else { Err(FAULT) };
        let own = match &self.key {
            Key::Shared(key) => return direct(Zeroizing::new(key.get(..length).ok_or(FAULT)?.to_vec())),
            Key::P256(own) => own,
        };
        let agreed = agreed(own, header).ok_or(Fault("jwe_header"))?;
        let derived = |name: &str, length: usize| derive(&agreed, name, length, header).ok_or(Fault("jwe_header"));
        let mut key = Zeroizing::new(vec![0; length]);
        match self.alg {
            KeyManagement::Dir | KeyManagement::EcdhEs => return direct(derived(self.enc.name(), length)?),
            KeyManagement::EcdhEsA128Kw => {
                let wrapping = KwAes128::new_from_slice(&derived(self.alg.name(), 16)?).map_err(|_| FAULT)?;
                wrapping.unwrap_key(wrapped, &mut key).map_err(|_| FAULT)?;
            }
            KeyManagement::EcdhEsA256Kw => {
                let wrapping = KwAes256::new_from_slice(&derived(self.alg.name(), 32)?).map_err(|_| FAULT)?;
                wrapping.unwrap_key(wrapped, &mut key).map_err(|_| FAULT)?;
            }
        }
        if wrapped.len() == length + 8 { Ok(key) } else { Err(FAULT) }
    }
}

/// The secret that our key and the header's `epk` have in common; none when that is no point of the curve.
fn agreed(own: &SecretKey, header: &Map<String, Value>) -> Option<Zeroizing<Vec<u8>>> {
    let theirs = header.get("epk")?.as_object()?;
    let text = |name: &str| theirs.get(name).and_then(Value::as_str);
    if (text("kty")?, text("crv")?) != ("EC", "P-256") {
        return None;
    }
    let half = |name: &str| text(name).and_then(|text| URL_SAFE_NO_PAD.decode_to_vec(text).ok());
    let (x, y) = (half("x")?, half("y")?);
    let point = PublicKey::from_sec1_bytes(&[&[4], x.as_slice(), &y].concat()).ok()?;
    let shared = diffie_hellman(own.to_nonzero_scalar(), point.as_affine());
    Some(Zeroizing::new(shared.raw_secret_bytes().to_vec()))
}

/// Concat KDF with SHA-256 (RFC 7518 section 4.6.2), for keys of at most one hash.
fn derive(agreed: &[u8], algorithm: &str, length: usize, header: &Map<String, Value>) -> Option<Zeroizing<Vec<u8>>> {
    let party = |name: &str| match header.get(name) {
        None => Some(Vec::new()),
        Some(value) => URL_SAFE_NO_PAD.decode_to_vec(value.as_str()?).ok(),
    };
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(&1_u32.to_be_bytes());
    hash.update(agreed);
    for info in [algorithm.as_bytes().to_vec(), party("apu")?, party("apv")?] {
        hash.update(&u32::try_from(info.len()).ok()?.to_be_bytes());
        hash.update(&info);
    }
    hash.update(&u32::try_from(length * 8).ok()?.to_be_bytes());
    hash.finish().as_ref().get(..length).map(|key| Zeroizing::new(key.to_vec()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Bob's key of RFC 7518 appendix C.
    fn bob() -> Vec<u8> {
        json!({
            "kty": "EC", "crv": "P-256", "d": "VEmDZpDXXK8p8N0Cndsxs924q6nS1RXFASRl6BfUqdw",
            "x": "weNJy2HscCSM6AEDTDg04biOvhFhyyWvOHQfeF_PxMQ", "y": "e8lnCO-AlStT-NJVX-crhB7QRYhiix03illJOVAOyck",
        })
        .to_string()
        .into_bytes()
    }

    fn header() -> Map<String, Value> {
        let header = json!({
            "alg": "ECDH-ES", "enc": "A128GCM", "apu": "QWxpY2U", "apv": "Qm9i",
            "epk": {
                "kty": "EC", "crv": "P-256", "x": "gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0",
                "y": "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps",
            },
        });
        header.as_object().unwrap().clone()
    }

    fn ecdh(enc: ContentEncryption) -> Decryption {
        Decryption::parse(&bob(), KeyManagement::EcdhEs, enc).unwrap()
    }

    /// The key that RFC 7518 appendix C arrives at.
    #[test]
    fn the_agreement_of_the_standard() {
        let key = ecdh(ContentEncryption::A128Gcm).content_key(&header(), &[]).unwrap();
        assert_eq!(URL_SAFE_NO_PAD.encode_to_string(&*key), "VqqN6vgjbSBcIijNcacQGg");
    }

    fn sealed(key: &[u8], header: &Value, text: &str) -> String {
        let header = URL_SAFE_NO_PAD.encode_to_string(header.to_string());
        let algorithm = if key.len() == 16 { &aead::AES_128_GCM } else { &aead::AES_256_GCM };
        let key = aead::LessSafeKey::new(aead::UnboundKey::new(algorithm, key).unwrap());
        let mut content = text.as_bytes().to_vec();
        let nonce = aead::Nonce::assume_unique_for_key([7; 12]);
        let tag = key.seal_in_place_separate_tag(nonce, aead::Aad::from(header.as_bytes()), &mut content).unwrap();
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode_to_string(bytes);
        format!("{header}..{}.{}.{}", text(&[7; 12]), text(&content), text(tag.as_ref()))
    }

    /// The token of the agreement above, opened, and every way in which it is none.
    #[test]
    fn what_is_not_as_configured_stays_shut() {
        let opens = ecdh(ContentEncryption::A128Gcm);
        let key = URL_SAFE_NO_PAD.decode_to_vec("VqqN6vgjbSBcIijNcacQGg").unwrap();
        let good = Value::Object(header());
        assert_eq!(opens.open(&sealed(&key, &good, "a.b.c")).unwrap(), "a.b.c");
        let with = |name: &str, value: Value| {
            let mut header = good.clone();
            header[name] = value;
            opens.open(&sealed(&key, &header, "a.b.c"))
        };
        for (name, value, fault) in [
            ("alg", json!("dir"), "jwe_alg"),
            ("alg", json!("RSA-OAEP"), "jwe_alg"),
            ("enc", json!("A256GCM"), "jwe_enc"),
            ("zip", json!("DEF"), "jwe_header"),
            ("crit", json!(["x"]), "jwe_header"),
            ("cty", json!("text/plain"), "jwe_header"),
            ("epk", Value::Null, "jwe_header"),
            ("epk", json!({"kty": "OKP", "crv": "X25519", "x": "AA"}), "jwe_header"),
            // Not on the curve: an agreement with it would tell of our key.
            ("epk", json!({"kty": "EC", "crv": "P-256", "x": good["epk"]["x"], "y": good["epk"]["x"]}), "jwe_header"),
            ("apu", json!(7), "jwe_header"),
            ("apv", json!("QWxpY2U"), "jwe"),
        ] {
            assert_eq!(with(name, value.clone()), Err(Fault(fault)), "{name} {value}");
        }
        assert_eq!(with("cty", json!("jwt")).unwrap(), "a.b.c");

        let token = sealed(&key, &good, "a.b.c");
        let parts: Vec<&str> = token.split('.').collect();
        for (index, other) in [(1, "AAAA"), (2, "AAAA"), (3, "AAAA"), (4, "AAAA"), (4, parts[3]), (0, "e30")] {
            let mut parts = parts.clone();
            parts[index] = other;
            assert!(opens.open(&parts.join(".")).is_err(), "{index} {other}");
        }
        for odd in ["", "a.b.c", "....", &format!("{token}."), &"x".repeat(MAX_TOKEN_BYTES + 1)] {
            assert!(opens.open(odd).is_err());
        }
    }

    /// OpenID Connect Core section 10.2.
    #[test]
    fn a_shared_key_is_the_secret_s() {
        let opens = Decryption::shared("a secret of the client", ContentEncryption::A256Gcm);
        let key = digest::digest(&digest::SHA256, b"a secret of the client");
        let header = json!({"alg": "dir", "enc": "A256GCM"});
        assert_eq!(opens.open(&sealed(key.as_ref(), &header, "a.b.c")).unwrap(), "a.b.c");
        assert!(
            Decryption::shared("another", ContentEncryption::A256Gcm)
                .open(&sealed(key.as_ref(), &header, "x"))
                .is_err()
        );
    }

    #[test]
    fn a_file_that_holds_no_such_key_is_said_to() {
        for (content, told) in [
            ("", "no private key in PEM"),
            ("{", "no JSON object"),
            ("{\"kty\":\"EC\",\"crv\":\"P-384\",\"d\":\"AA\"}", "P-256"),
            ("{\"kty\":\"EC\",\"crv\":\"P-256\",\"d\":\"AA\"}", "P-256"),
            ("{\"kty\":\"EC\",\"crv\":\"P-256\",\"use\":\"sig\"}", "\"use\""),
        ] {
            let error = Decryption::parse(content.as_bytes(), KeyManagement::EcdhEs, ContentEncryption::A256Gcm);
            assert!(error.unwrap_err().0.contains(told), "{content}");
        }
    }
}
