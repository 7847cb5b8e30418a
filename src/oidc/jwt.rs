//! Compact JWS (RFC 7515): the only constructor of verified claims.

use std::fmt;

use base64_simd::URL_SAFE_NO_PAD;
use ring::{digest, signature};
use serde_json::{Map, Value};

use super::error::Fault;
use super::json;

/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// A JWT claims set (RFC 7519 section 4).
pub type Claims = Map<String, Value>;

/// A signature algorithm that an operator may pin (`id_token_alg`). `none` and the symmetric ones are not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    /// All of them, in the order in which documentation names them.
    pub const ALL: [Self; 9] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::EdDsa,
    ];

    /// The name in the JOSE registry (RFC 7518 section 3.1, RFC 8037).
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }

    /// By its registered name, case counts. `Ed25519` is the newer name of EdDSA with that curve (RFC 9864).
    pub fn parse(name: &str) -> Option<Self> {
        if name == "Ed25519" {
            return Some(Self::EdDsa);
        }
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// The hash of `at_hash` and `c_hash` (OpenID Connect Core section 3.1.3.6); Ed25519 hashes with SHA-512.
    fn hash(self) -> &'static digest::Algorithm {
        match self {
            Self::Rs256 | Self::Ps256 | Self::Es256 => &digest::SHA256,
            Self::Rs384 | Self::Ps384 | Self::Es384 => &digest::SHA384,
            Self::Rs512 | Self::Ps512 | Self::EdDsa => &digest::SHA512,
        }
    }

    /// Left half of the hash of `text`, base64url.
    pub fn half_hash(self, text: &str) -> String {
        let digest = digest::digest(self.hash(), text.as_bytes());
        let (half, _) = digest.as_ref().split_at_checked(digest.as_ref().len() / 2).unwrap_or_default();
        URL_SAFE_NO_PAD.encode_to_string(half)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Algorithm {
    type Err = Fault;

    fn from_str(name: &str) -> Result<Self, Fault> {
        Self::parse(name).ok_or(Fault("alg"))
    }
}

/// The public half of a signing key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// Modulus and exponent, big-endian, no leading zero bytes.
    Rsa {
        /// The modulus, 2048 to 8192 bits.
        n: Vec<u8>,
        /// The exponent.
        e: Vec<u8>,
    },
    /// An uncompressed P-256 point.
    P256(Vec<u8>),
    /// An uncompressed P-384 point.
    P384(Vec<u8>),
    /// An Ed25519 key.
    Ed25519(Vec<u8>),
}

impl PublicKey {
    /// Whether a signature of `algorithm` can be made with this kind of key.
    pub const fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{EdDsa, Es256, Es384, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        matches!(
            (self, algorithm),
            (Self::Rsa { .. }, Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512)
                | (Self::P256(_), Es256)
                | (Self::P384(_), Es384)
                | (Self::Ed25519(_), EdDsa)
        )
    }

    fn verifies(&self, algorithm: Algorithm, message: &[u8], sig: &[u8]) -> bool {
        match (self, algorithm) {
            (Self::Rsa { n, e }, _) => {
                let parameters = match algorithm {
                    Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
                    Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
                    Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
                    Algorithm::Es256 | Algorithm::Es384 | Algorithm::EdDsa => return false,
                };
                signature::RsaPublicKeyComponents { n, e }.verify(parameters, message, sig).is_ok()
            }
            (Self::P256(point), Algorithm::Es256) => {
                signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, sig)
                    .is_ok()
            }
            (Self::P384(point), Algorithm::Es384) => {
                signature::UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point)
                    .verify(message, sig)
                    .is_ok()
            }
            (Self::Ed25519(key), Algorithm::EdDsa) => {
                signature::UnparsedPublicKey::new(&signature::ED25519, key).verify(message, sig).is_ok()
            }
            _ => false,
        }
    }
}

/// What we use of a JOSE header. `jwk`, `jku`, `x5c` and `x5u` are not in it: keys come from the provider's set only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The algorithm by name, whatever it is.
    pub alg: String,
    /// Which key.
    pub kid: Option<String>,
    /// What kind of token (RFC 8725 section 3.11).
    pub typ: Option<String>,
}

/// Something that was signed by a key of the provider's set. Only this module can make one.
#[derive(Clone, Debug)]
pub struct Verified<T> {
    header: Header,
    algorithm: Algorithm,
    content: T,
}

impl<T> Verified<T> {
    /// The protected header.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The algorithm of the signature.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// What was signed.
    pub const fn get(&self) -> &T {
        &self.content
    }
}

/// A token whose syntax holds and whose signature is not checked yet; its claims cannot be read.
pub struct Unverified<'a> {
    header: Header,
    signed: &'a str,
    payload: &'a str,
    signature: Vec<u8>,
}

impl fmt::Debug for Unverified<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unverified").field("header", &self.header).finish_non_exhaustive()
    }
}

impl<'a> Unverified<'a> {
    /// Splits a compact JWS: three parts, base64url without padding, a header without duplicate members or `crit`.
    ///
    /// # Errors
    /// `size`, `encrypted` (five parts: JWE), `parts`, `base64`, `header`, `crit`.
    pub fn parse(token: &'a str) -> Result<Self, Fault> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Fault("size"));
        }
        match token.split('.').count() {
            3 => {}
            5 => return Err(Fault("encrypted")),
            _ => return Err(Fault("parts")),
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Fault("parts"))?;
        let (header, payload) = signed.split_once('.').ok_or(Fault("parts"))?;
        let header = parse_header(&decode(header)?)?;
        Ok(Self { header, signed, payload, signature: decode(signature)? })
    }

    /// The header. It is not proven by anything yet.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Whether the header names `algorithm`, the only one that will do.
    ///
    /// # Errors
    /// `alg`.
    pub fn require(&self, algorithm: Algorithm) -> Result<(), Fault> {
        if Algorithm::parse(&self.header.alg) == Some(algorithm) { Ok(()) } else { Err(Fault("alg")) }
    }

    /// Checks the signature by each of `keys` and then reads the claims.
    ///
    /// # Errors
    /// `alg` when the header names another algorithm, `signature` when no key fits, `claims` when the payload is not
    /// a JSON object without duplicate members.
    pub(super) fn verify<'k>(
        &self,
        algorithm: Algorithm,
        keys: impl IntoIterator<Item = &'k PublicKey>,
    ) -> Result<Verified<Claims>, Fault> {
        self.require(algorithm)?;
        let signed = self.signed.as_bytes();
        if !keys.into_iter().any(|key| key.verifies(algorithm, signed, &self.signature)) {
            return Err(Fault("signature"));
        }
        let content = json::object(&decode(self.payload)?).map_err(|_| Fault("claims"))?;
        Ok(Verified { header: self.header.clone(), algorithm, content })
    }
}

fn decode(part: &str) -> Result<Vec<u8>, Fault> {
    URL_SAFE_NO_PAD.decode_to_vec(part).map_err(|_| Fault("base64"))
}

fn parse_header(text: &[u8]) -> Result<Header, Fault> {
    let mut members = json::object(text).map_err(|_| Fault("header"))?;
    // We understand no extension, so every one that must be understood is one too many (RFC 7515 section 4.1.11).
    if members.contains_key("crit") {
        return Err(Fault("crit"));
    }
    let mut text = |name: &str| match members.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Fault("header")),
    };
    Ok(Header { kid: text("kid")?, typ: text("typ")?, alg: text("alg")?.ok_or(Fault("alg"))? })
}

/// The `exp` of a token that we only pass on, in epoch seconds: a hint, because nothing is verified here.
pub fn peek_exp(token: &str) -> Option<u64> {
    numeric_date(peek(token)?.get("exp")?).map(|millis| millis / 1000)
}

/// Whose token it says it is: only to choose the keys that judge it.
pub fn peek_issuer(token: &str) -> Option<String> {
    peek(token)?.get("iss")?.as_str().map(str::to_owned)
}

/// The `aud` of a token that we only pass on; empty when it does not say.
pub fn peek_audience(token: &str) -> Vec<String> {
    match peek(token).as_ref().and_then(|claims| claims.get("aud")) {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

fn peek(token: &str) -> Option<Claims> {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    json::object(&decode(payload).ok()?).ok()
}

/// A NumericDate (RFC 7519 section 2) in milliseconds; none when it is not a JSON number of the years 1970 to 9999.
pub fn numeric_date(value: &Value) -> Option<u64> {
    const LAST: f64 = 253_402_300_799.0;
    let secs = value.as_f64().filter(|secs| (0.0..=LAST).contains(secs))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was just checked")]
    Some((secs * 1000.0) as u64)
}

#[cfg(test)]
#[path = "jwt_tests.rs"]
mod tests;
