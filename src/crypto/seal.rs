//! Sealed blobs, wire format version 1.
//!
//! ```text
//! offset  size  field
//!      0     1  type and version: 0x11 session, 0x21 login attempt, 0x31 marker, 0x41 `state`,
//!               0x51 tokens apart, 0x61 pass, 0x71 ticket
//!      1     1  flags, all zero; unknown ones are refused
//!      2     2  key id
//!      4    12  derivation salt
//!     16    12  nonce
//!     28     n  ciphertext of the plaintext, padded to a multiple of 32 (0x80, then zeros)
//!   28+n    16  GCM tag
//! ```
//!
//! Outside it is base64url without padding. Key: HKDF-SHA256 (RFC 5869) of the master key over the salt, with "cookie1"
//! and the type as info. Cipher: AES-256-GCM. Additional data: the first 28 bytes, then cookie name, public origin,
//! issuer and client id, each with its length before it, so that a blob opens only where it was made to be opened.
//!
//! One AES key with random 96-bit nonces is good for 2^32 messages (NIST SP 800-38D section 8.3). The salt, drawn once
//! per process and anew after 2^30 seals, keeps every derived key far below that; and because it changes so rarely the
//! derived ciphers can be remembered, and opening costs no HKDF.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
use arc_swap::ArcSwap;
use base64_simd::URL_SAFE_NO_PAD;
use parking_lot::{Mutex, RwLock};
use ring::{hkdf, hmac};

use zeroize::Zeroizing;

use super::keyring::{Key, KeyId, Keyring};
use super::random;
use crate::clock::Timestamp;

/// The longest sealed text that is looked at, in characters: nine cookies of 3800.
pub const MAX_TEXT: usize = 9 * 3800;

const HEADER: usize = 28;
const TAG: usize = 16;
const BLOCK: usize = 32;
/// Replicas see a new key file at different times; before this has passed some could not open what a new key sealed.
const SETTLE: Duration = Duration::from_secs(60);
const SEALS_PER_SALT: u32 = 1 << 30;
/// One entry per key, process that sealed and purpose. Only blobs that opened get in, so nobody can flush it at will.
const MAX_CIPHERS: usize = 256;

/// What a blob is for: a blob of one purpose never opens for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Purpose {
    Session = 0x11,
    /// The cookie of a login attempt.
    Login = 0x21,
    /// The cookie that counts verify redirects.
    Marker = 0x31,
    /// The `state` parameter.
    State = 0x41,
    /// The tokens that the `split` layout keeps apart from their session.
    Apart = 0x51,
    /// The way to such tokens and back.
    Pass = 0x61,
    /// The cookie of a session that is in the store.
    Ticket = 0x71,
}

/// The place where blobs open; anywhere else they are garbage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Base name, without prefix.
    pub cookie_name: String,
    /// Public origin, serialized.
    pub origin: String,
    pub issuer: String,
    pub client_id: String,
}

/// What became of a text that was presented.
#[derive(Debug)]
pub enum Opened {
    /// Authentic, ours, for this purpose.
    Plain(Plaintext),
    /// Well-formed, sealed by a key that we do not have: another replica may.
    UnknownKey,
    /// Anything else. Why is nobody's business: it would be an oracle.
    Broken,
}

/// What was sealed. Cannot be printed.
pub struct Plaintext {
    blob: Vec<u8>,
    end: usize,
}

impl Deref for Plaintext {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.blob.get(HEADER..self.end).unwrap_or_default()
    }
}

impl std::fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Plaintext(***)")
    }
}

/// Seals and opens for one application.
pub struct Sealer {
    /// The additional data after the header.
    place: Vec<u8>,
    ring: ArcSwap<Ring>,
    salts: Mutex<HashMap<KeyId, Salt>>,
}

struct Salt {
    bytes: [u8; 12],
    left: u32,
}

type CipherId = (KeyId, [u8; 12], Purpose);

/// One generation of the key ring, with what is derived from it.
struct Ring {
    /// Which generation: +1 with every replacement.
    number: u64,
    keys: Keyring,
    /// The key that sealed before and how long it goes on.
    held: Option<(Key, Timestamp)>,
    index: RwLock<HashMap<KeyId, hmac::Key>>,
    ciphers: RwLock<HashMap<CipherId, Arc<Aes256Gcm>>>,
}

impl Ring {
    fn new(number: u64, keys: Keyring, held: Option<(Key, Timestamp)>) -> Self {
        Self { number, keys, held, index: RwLock::default(), ciphers: RwLock::default() }
    }

    fn sealing(&self, now: Timestamp) -> &Key {
        match &self.held {
            Some((key, until)) if now < *until => key,
            _ => self.keys.sealing(),
        }
    }

    fn remember(&self, id: CipherId, cipher: Arc<Aes256Gcm>) {
        let mut ciphers = self.ciphers.write();
        if ciphers.len() >= MAX_CIPHERS {
            ciphers.clear(); // so rare that an order of eviction is not worth keeping
        }
        ciphers.insert(id, cipher);
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").finish_non_exhaustive()
    }
}

impl Sealer {
    /// A sealer whose first key seals at once.
    pub fn new(binding: &Binding, keys: Keyring) -> Self {
        let mut place = Vec::new();
        for part in [&binding.cookie_name, &binding.origin, &binding.issuer, &binding.client_id] {
            place.extend_from_slice(&(part.len() as u64).to_be_bytes());
            place.extend_from_slice(part.as_bytes());
        }
        Self { place, ring: ArcSwap::from_pointee(Ring::new(0, keys, None)), salts: Mutex::default() }
    }

    /// Puts another key ring in place, for all requests at once. A key newly in front seals only after 60 s, as long as
    /// the key that sealed until now is still in the ring.
    pub fn replace_keys(&self, keys: Keyring, now: Timestamp) {
        let old = self.ring.load();
        let sealing = old.sealing(now);
        let held = if keys.sealing() == sealing || keys.find(sealing.id()) != Some(sealing) {
            None
        } else {
            // Reading the same files again must not start the wait anew.
            match &old.held {
                Some((key, until)) if key == sealing && old.keys.sealing() == keys.sealing() => {
                    Some((key.clone(), *until))
                }
                _ => Some((sealing.clone(), now + SETTLE)),
            }
        };
        self.salts.lock().retain(|id, _| keys.find(*id).is_some());
        self.ring.store(Arc::new(Ring::new(old.number + 1, keys, held)));
    }

    /// Tells the key rings that were in place from each other: what one of them opened need not open by another.
    pub fn ring(&self) -> u64 {
        self.ring.load().number
    }

    /// The id of the key that seals now.
    pub fn sealing_key_id(&self, now: Timestamp) -> KeyId {
        self.ring.load().sealing(now).id()
    }

    /// The ids of all keys that open.
    pub fn key_ids(&self) -> Vec<KeyId> {
        self.ring.load().keys.ids().collect()
    }

    /// How many characters a plaintext of that many bytes makes.
    pub const fn sealed_len(plain: usize) -> usize {
        let blob = HEADER + (plain / BLOCK + 1) * BLOCK + TAG;
        (blob * 4).div_ceil(3)
    }

    /// Seals. Randomness comes from the system.
    ///
    /// # Panics
    /// When the system has no randomness.
    #[expect(clippy::expect_used, reason = "AES-GCM refuses only plaintexts of 64 GB")]
    pub fn seal(&self, purpose: Purpose, plain: &[u8], now: Timestamp) -> String {
        let ring = self.ring.load();
        let key = ring.sealing(now);
        let kid = key.id();
        let salt = self.salt(kid);
        let nonce = random::bytes::<12>();

        let padded = (plain.len() / BLOCK + 1) * BLOCK;
        let mut blob = Vec::with_capacity(HEADER + padded + TAG);
        blob.extend_from_slice(&[purpose as u8, 0]);
        blob.extend_from_slice(&kid.0.to_be_bytes());
        blob.extend_from_slice(&salt);
        blob.extend_from_slice(&nonce);
        let aad = self.aad(&blob);
        blob.extend_from_slice(plain);
        blob.push(0x80);
        blob.resize(HEADER + padded, 0);

        let id = (kid, salt, purpose);
        let cached = ring.ciphers.read().get(&id).cloned();
        let cipher = cached.unwrap_or_else(|| {
            let cipher = Arc::new(cipher(key, &salt, purpose));
            ring.remember(id, Arc::clone(&cipher));
            cipher
        });
        let (_, body) = blob.split_at_mut(HEADER);
        let tag = cipher
            .encrypt_inout_detached(&nonce.into(), &aad, InOutBuf::from(body))
            .expect("the length is far below 64 GB");
        blob.extend_from_slice(&tag);
        URL_SAFE_NO_PAD.encode_to_string(blob)
    }

    /// Opens a text. Nothing is allocated for one that is too long, and nothing panics whatever the bytes.
    pub fn open(&self, purpose: Purpose, text: &[u8]) -> Opened {
        if text.len() > MAX_TEXT {
            return Opened::Broken;
        }
        let Ok(mut blob) = URL_SAFE_NO_PAD.decode_to_vec(text) else { return Opened::Broken };
        let Some((kid, salt, nonce)) = header(&blob, purpose) else { return Opened::Broken };
        let sealed = blob.len() - HEADER;
        if sealed < BLOCK + TAG || !(sealed - TAG).is_multiple_of(BLOCK) {
            return Opened::Broken;
        }
        let aad = self.aad(blob.get(..HEADER).unwrap_or_default());
        let (_, body) = blob.split_at_mut(HEADER);
        let (body, tag) = body.split_at_mut(sealed - TAG);
        let Ok(tag) = aes_gcm::Tag::try_from(&*tag) else { return Opened::Broken };

        let ring = self.ring.load();
        let id = (kid, salt, purpose);
        let cached = ring.ciphers.read().get(&id).cloned();
        let opened = if let Some(cipher) = cached {
            cipher.decrypt_inout_detached(&nonce.into(), &aad, InOutBuf::from(&mut *body), &tag).is_ok()
        } else {
            let Some(key) = ring.keys.find(kid) else { return Opened::UnknownKey };
            let cipher = cipher(key, &salt, purpose);
            let opened = cipher.decrypt_inout_detached(&nonce.into(), &aad, InOutBuf::from(&mut *body), &tag).is_ok();
            if opened {
                ring.remember(id, Arc::new(cipher));
            }
            opened
        };
        // A tag that fits comes from `seal` alone, so the padding is there.
        let padding = body.iter().rposition(|byte| *byte != 0);
        match padding {
            Some(end) if opened && body.get(end) == Some(&0x80) => Opened::Plain(Plaintext { blob, end: HEADER + end }),
            _ => Opened::Broken,
        }
    }

    /// Whether a text, or the beginning of one, names a key that we do not have.
    pub fn is_of_unknown_key(&self, purpose: Purpose, beginning: &[u8]) -> bool {
        // 40 characters hold the header and 2 bytes; the rest may be in another cookie.
        let Some(beginning) = beginning.get(..40) else { return false };
        let Ok(bytes) = URL_SAFE_NO_PAD.decode_to_vec(beginning) else { return false };
        header(&bytes, purpose).is_some_and(|(kid, ..)| self.ring.load().keys.find(kid).is_none())
    }

    /// HMAC-SHA256 over the parts under a key derived for indexing from the ring's key of that id. When the ring has it
    /// no longer, from its first key: all replicas with one ring still agree.
    pub fn index(&self, id: KeyId, parts: &[&[u8]]) -> [u8; 32] {
        let ring = self.ring.load();
        let known = ring.index.read().get(&id).cloned();
        let key = known.unwrap_or_else(|| {
            let key = ring.keys.find(id).unwrap_or_else(|| ring.keys.sealing());
            let key = hmac::Key::new(hmac::HMAC_SHA256, &*derive(key, &[], &[b"index1"]));
            let mut index = ring.index.write();
            if index.len() < MAX_CIPHERS {
                index.insert(id, key.clone());
            }
            key
        });
        let mut context = hmac::Context::with_key(&key);
        for part in parts {
            context.update(part);
        }
        context.sign().as_ref().try_into().unwrap_or_default()
    }

    /// Seals for whoever knows `secret`: AES-256-GCM under HKDF-SHA256 of the secret, salted with what is derived from
    /// the ring's key of that id, so that neither the secret nor the server's keys alone open it. The key is of `info`
    /// alone and the nonce random; the nonce stands first.
    pub fn seal_for(&self, id: KeyId, secret: &[&[u8]], info: &[&[u8]], aad: &[u8], plain: &[u8]) -> Option<Vec<u8>> {
        let cipher = self.cipher_for(id, secret, info);
        let nonce = random::bytes::<12>();
        let mut sealed = Vec::with_capacity(nonce.len() + plain.len() + TAG);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let (_, body) = sealed.split_at_mut(nonce.len());
        let tag = cipher.encrypt_inout_detached(&nonce.into(), aad, InOutBuf::from(body)).ok()?;
        sealed.extend_from_slice(&tag);
        Some(sealed)
    }

    /// Opens what [`Self::seal_for`] sealed.
    pub fn open_for(
        &self,
        id: KeyId,
        secret: &[&[u8]],
        info: &[&[u8]],
        aad: &[u8],
        sealed: &[u8],
    ) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, rest) = sealed.split_first_chunk::<12>()?;
        let (body, tag) = rest.split_last_chunk::<TAG>()?;
        let mut body = Zeroizing::new(body.to_vec());
        let cipher = self.cipher_for(id, secret, info);
        let opened =
            cipher.decrypt_inout_detached(&(*nonce).into(), aad, InOutBuf::from(&mut **body), &(*tag).into()).is_ok();
        opened.then_some(body)
    }

    /// The parts of a secret are hashed with their lengths, so that no two lists of parts are one secret.
    #[expect(clippy::expect_used, reason = "HKDF-SHA256 gives up to 8160 bytes")]
    fn cipher_for(&self, id: KeyId, secret: &[&[u8]], info: &[&[u8]]) -> Aes256Gcm {
        let salt = self.index(id, &[b"seal for"]);
        let mut material = Zeroizing::new(Vec::with_capacity(secret.iter().map(|part| part.len() + 8).sum()));
        for part in secret {
            material.extend_from_slice(&(part.len() as u64).to_be_bytes());
            material.extend_from_slice(part);
        }
        let mut key = Zeroizing::new([0; 32]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, &salt)
            .extract(&material)
            .expand(info, hkdf::HKDF_SHA256)
            .and_then(|expanded| expanded.fill(&mut *key))
            .expect("32 bytes are one output block");
        Aes256Gcm::new((&*key).into())
    }

    fn salt(&self, kid: KeyId) -> [u8; 12] {
        let mut salts = self.salts.lock();
        let salt = salts.entry(kid).or_insert(Salt { bytes: [0; 12], left: 0 });
        if salt.left == 0 {
            *salt = Salt { bytes: random::bytes(), left: SEALS_PER_SALT };
        }
        salt.left -= 1;
        salt.bytes
    }

    fn aad(&self, header: &[u8]) -> Vec<u8> {
        let mut aad = Vec::with_capacity(HEADER + self.place.len());
        aad.extend_from_slice(header);
        aad.extend_from_slice(&self.place);
        aad
    }
}

/// Key id, salt and nonce, when the header is one of this purpose and version.
fn header(blob: &[u8], purpose: Purpose) -> Option<(KeyId, [u8; 12], [u8; 12])> {
    let ([kind, flags, kid @ ..], rest) = blob.split_first_chunk::<4>()?;
    let (salt, rest) = rest.split_first_chunk::<12>()?;
    let (nonce, _) = rest.split_first_chunk::<12>()?;
    (*kind == purpose as u8 && *flags == 0).then(|| (KeyId(u16::from_be_bytes(*kid)), *salt, *nonce))
}

fn cipher(key: &Key, salt: &[u8; 12], purpose: Purpose) -> Aes256Gcm {
    Aes256Gcm::new((&*derive(key, salt, &[b"cookie1", &[purpose as u8]])).into())
}

#[expect(clippy::expect_used, reason = "HKDF-SHA256 gives up to 8160 bytes")]
fn derive(key: &Key, salt: &[u8], info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut bytes = Zeroizing::new([0; 32]);
    hkdf::Salt::new(hkdf::HKDF_SHA256, salt)
        .extract(key.expose())
        .expand(info, hkdf::HKDF_SHA256)
        .and_then(|key| key.fill(&mut *bytes))
        .expect("32 bytes are one output block");
    bytes
}

#[cfg(test)]
mod tests;
