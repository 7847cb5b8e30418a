//! The provider's key set (RFC 7517): what is fit for verifying, which key a token means, when to fetch again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use base64_simd::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::error::{Fault, ProviderError};
use super::json;
use super::jwt::{Algorithm, Claims, PublicKey, Unverified, Verified};
use super::settings::tenant;

/// A set with more entries is not a provider's: it is refused as a whole.
const MAX_KEYS: usize = 256;
/// So many keys are tried on one token; each try costs CPU.
const MAX_TRIES: usize = 16;
/// How long an unknown `kid` must wait when no token verified since the last fetch that one caused.
const REFETCH_PAUSE: Duration = Duration::from_secs(10);

/// One usable key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    kid: Option<String>,
    /// The JWK's own `alg`, which then is the only one that the key serves.
    alg: Option<Algorithm>,
    /// Whose tokens it signs, where a set says so: see [`KeySet::keep_apart`].
    issuer: Option<String>,
    public: PublicKey,
}

impl Key {
    fn signs_for(&self, claims: &Claims) -> bool {
        let Some(issuer) = &self.issuer else { return true };
        claims.get("iss").and_then(Value::as_str).is_some_and(|iss| iss == issuer || tenant(issuer, iss).is_some())
    }
}

/// The usable keys of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    keys: Vec<Key>,
    /// Whether each key counts for its own issuer only.
    apart: bool,
}

impl KeySet {
    /// Reads a JWK set. Entries that are no verification keys of ours (encryption, symmetric, unknown, malformed or
    /// weak ones) are skipped.
    ///
    /// # Errors
    /// `jwks` when the document itself is not a key set, or a monstrous one.
    pub fn parse(document: &[u8]) -> Result<Self, Fault> {
        let document = json::object(document).map_err(|_| Fault("jwks"))?;
        let entries = document.get("keys").and_then(Value::as_array).ok_or(Fault("jwks"))?;
        if entries.len() > MAX_KEYS {
            return Err(Fault("jwks"));
        }
        Ok(Self { keys: entries.iter().filter_map(|entry| key(entry.as_object()?)).collect(), apart: false })
    }

    /// The set that the tenants of a provider share: a key that names an issuer signs for that one only. Entra has keys
    /// there that are for personal accounts alone; what they sign is no token of a company's tenant.
    #[must_use]
    pub fn keep_apart(self) -> Self {
        Self { apart: true, ..self }
    }

    /// How many keys are usable.
    pub const fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key is usable.
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    #[cfg(test)]
    pub(super) fn verify_for_test(&self, token: &Unverified<'_>, algorithm: Algorithm) -> bool {
        self.verify(token, algorithm).1.is_ok()
    }

    /// Whether any key can verify signatures of `algorithm`.
    pub fn serves(&self, algorithm: Algorithm) -> bool {
        !self.candidates(None, algorithm).1.is_empty()
    }

    /// Whether the token means a key by name, and what comes of verifying it.
    fn verify(&self, token: &Unverified<'_>, algorithm: Algorithm) -> (bool, Result<Verified<Claims>, Fault>) {
        let (by_name, candidates) = self.candidates(token.header().kid.as_deref(), algorithm);
        let mut verdict = Err(Fault("signature"));
        for key in candidates {
            verdict = token.verify(algorithm, [&key.public]).and_then(|verified| {
                let foreign = self.apart && !key.signs_for(verified.get());
                if foreign { Err(Fault("key_issuer")) } else { Ok(verified) }
            });
            if !matches!(verdict, Err(Fault("signature" | "key_issuer"))) {
                break;
            }
        }
        (by_name, verdict)
    }

    /// The keys that may have signed a token with this header, and whether they were meant by name.
    fn candidates(&self, kid: Option<&str>, algorithm: Algorithm) -> (bool, Vec<&Key>) {
        let fit = |key: &&Key| key.public.fits(algorithm) && key.alg.is_none_or(|alg| alg == algorithm);
        let fitting = || self.keys.iter().filter(fit);
        let named: Vec<_> = fitting().filter(|key| kid.is_some() && key.kid.as_deref() == kid).collect();
        let by_name = !named.is_empty();
        let keys = match kid {
            Some(_) if by_name => named,
            // A set may leave its keys unnamed although the tokens name one.
            Some(_) => fitting().filter(|key| key.kid.is_none()).collect(),
            None => fitting().collect(),
        };
        (by_name, keys.into_iter().take(MAX_TRIES).collect())
    }
}

fn key(jwk: &Map<String, Value>) -> Option<Key> {
    let text = |name: &str| jwk.get(name).map(|value| value.as_str().ok_or(()));
    // A member of the wrong type makes the key odd, an absent one does not.
    let optional = |name: &str| text(name).transpose().ok();
    if optional("use")?.is_some_and(|usage| usage != "sig") {
        return None;
    }
    if let Some(operations) = jwk.get("key_ops") {
        operations.as_array()?.iter().find(|operation| operation.as_str() == Some("verify"))?;
    }
    let alg = match optional("alg")? {
        Some(name) => Some(Algorithm::parse(name)?),
        None => None,
    };
    let bytes = |name: &str| URL_SAFE_NO_PAD.decode_to_vec(jwk.get(name)?.as_str()?).ok();
    let point = |size: usize| {
        let (x, y) = (bytes("x")?, bytes("y")?);
        (x.len() == size && y.len() == size).then(|| [&[4], x.as_slice(), y.as_slice()].concat())
    };
    let public = match (optional("kty")??, optional("crv")?) {
        ("RSA", _) => {
            let (n, e) = (trimmed(bytes("n")?), trimmed(bytes("e")?));
            let bits = n.len() * 8 - n.first().map_or(0, |byte| byte.leading_zeros() as usize);
            if !(2048..=8192).contains(&bits) {
                return None;
            }
            PublicKey::Rsa { n, e }
        }
        ("EC", Some("P-256")) => PublicKey::P256(point(32)?),
        ("EC", Some("P-384")) => PublicKey::P384(point(48)?),
        ("OKP", Some("Ed25519")) => PublicKey::Ed25519(bytes("x").filter(|x| x.len() == 32)?),
        _ => return None,
    };
    let issuer = jwk.get("issuer").and_then(Value::as_str).map(str::to_owned);
    alg.is_none_or(|alg| public.fits(alg)).then_some(Key {
        kid: optional("kid")?.map(str::to_owned),
        alg,
        issuer,
        public,
    })
}

fn trimmed(mut number: Vec<u8>) -> Vec<u8> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.drain(..zeros);
    number
}

/// How the set is read from the provider.
#[async_trait::async_trait]
pub trait FetchKeys: Send + Sync {
    /// Fetches the set once.
    ///
    /// # Errors
    /// When it is not to be had.
    async fn fetch(&self) -> Result<KeySet, ProviderError>;
}

/// The provider's keys as we know them, and the rule for looking again.
#[derive(Debug, Default)]
pub struct Keys {
    known: ArcSwapOption<KeySet>,
    /// Counts finished fetches, so that those who waited for one do not start another.
    fetches: AtomicU64,
    /// An unknown key was looked for, and no token verified since.
    spent: AtomicBool,
    gate: Mutex<Gate>,
}

#[derive(Debug, Default)]
struct Gate {
    looked: Option<Instant>,
}

impl Keys {
    /// Starts with what another instance knew.
    pub fn inherit(&self, other: &Self) {
        self.known.store(other.known.load_full());
    }

    /// The keys as last read.
    pub fn known(&self) -> Option<Arc<KeySet>> {
        self.known.load_full()
    }

    /// The keys, fetched when there are none yet.
    ///
    /// # Errors
    /// Those of the fetch.
    pub async fn load(&self, source: &dyn FetchKeys) -> Result<Arc<KeySet>, ProviderError> {
        if let Some(keys) = self.known() {
            return Ok(keys);
        }
        let before = self.fetches.load(Ordering::Acquire);
        let _gate = self.gate.lock().await;
        match self.known() {
            Some(keys) => Ok(keys),
            // The fetch that we waited for failed: it answers for us too, or a crowd would time out one by one.
            None if self.fetches.load(Ordering::Acquire) != before => {
                Err(ProviderError::Unavailable { reason: "jwks", retry_after: None })
            }
            None => self.fetch(source).await,
        }
    }

    /// Fetches anew; what was known stays when that fails.
    ///
    /// # Errors
    /// Those of the fetch.
    pub async fn reload(&self, source: &dyn FetchKeys) -> Result<Arc<KeySet>, ProviderError> {
        let _gate = self.gate.lock().await;
        self.fetch(source).await
    }

    async fn fetch(&self, source: &dyn FetchKeys) -> Result<Arc<KeySet>, ProviderError> {
        let fetched = source.fetch().await;
        self.fetches.fetch_add(1, Ordering::Release);
        let keys = Arc::new(fetched?);
        // Nobody signs with nothing: a document that is half written, or of another kind.
        if keys.is_empty() && self.known().is_some_and(|known| !known.is_empty()) {
            return Err(ProviderError::Unavailable { reason: "jwks_empty", retry_after: None });
        }
        self.known.store(Some(Arc::clone(&keys)));
        Ok(keys)
    }

    /// Verifies a token by the keys of the set, fetching it again when the token means a key that is not in it.
    ///
    /// # Errors
    /// `Invalid` when the token does not hold, else those of a fetch that was needed.
    pub async fn verify(
        &self,
        token: &str,
        algorithm: Algorithm,
        source: &dyn FetchKeys,
    ) -> Result<Verified<Claims>, ProviderError> {
        let token = Unverified::parse(token)?;
        token.require(algorithm)?;
        let before = self.fetches.load(Ordering::Acquire);
        let keys = self.load(source).await?;
        let verdict = match self.judge(&token, algorithm, &keys) {
            Ok(verdict) => verdict,
            Err(fault) => match self.look_again(before, source).await? {
                Some(keys) => self.judge(&token, algorithm, &keys).unwrap_or_else(Err),
                None => Err(fault),
            },
        };
        Ok(verdict?)
    }

    /// The outer error asks for a look at newer keys: the token names none that we know.
    fn judge(
        &self,
        token: &Unverified<'_>,
        algorithm: Algorithm,
        keys: &KeySet,
    ) -> Result<Result<Verified<Claims>, Fault>, Fault> {
        let (by_name, verdict) = keys.verify(token, algorithm);
        match verdict {
            Ok(verified) => {
                self.spent.store(false, Ordering::Release);
                Ok(Ok(verified))
            }
            Err(Fault("signature")) if !by_name => Err(Fault("signature")),
            Err(fault) => Ok(Err(fault)),
        }
    }

    /// Forged tokens must not make us hammer the provider: one look at once, the next one only after a token verified
    /// or a pause. Those who come while a fetch is under way share it.
    ///
    /// # Errors
    /// When the fetch failed: then nobody can tell whether the token is good. The old keys stay.
    async fn look_again(&self, before: u64, source: &dyn FetchKeys) -> Result<Option<Arc<KeySet>>, ProviderError> {
        let mut gate = self.gate.lock().await;
        if self.fetches.load(Ordering::Acquire) != before {
            return Ok(self.known());
        }
        let paused = gate.looked.is_none_or(|at| at.elapsed() >= REFETCH_PAUSE);
        if self.spent.swap(true, Ordering::AcqRel) && !paused {
            return Ok(None);
        }
        gate.looked = Some(Instant::now());
        let fetched = self.fetch(source).await.inspect_err(|error| {
            tracing::warn!(
                event = "provider_keys",
                reason = error.reason(),
                "cannot fetch the keys again, keeping the old ones"
            );
        });
        fetched.map(Some)
    }
}

#[cfg(test)]
#[path = "jwks_tests.rs"]
mod tests;
