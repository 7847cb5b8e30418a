//! The cookie keys: newest first, the first seals, all open.

use std::fmt;

use base64_simd::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Names a key in a cookie's clear header without telling anything about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub u16);

/// 32 random bytes. Cannot be printed.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Key([u8; 32]);

/// Why a text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// Not base64url of 32 bytes.
    Shape,
    /// Fewer than 12 different byte values: a word, zeros or a sample, not random.
    NotRandom,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shape => "is not base64url of 32 bytes; make one with `sidegate keygen`",
            Self::NotRandom => "is plainly not random; make one with `sidegate keygen`",
        })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(***)")
    }
}

impl Key {
    /// Reads base64url, padded or not.
    ///
    /// # Errors
    /// When it is not 32 bytes, or plainly not random.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let text = text.trim_end_matches('=').as_bytes();
        let mut bytes = URL_SAFE_NO_PAD.decode_to_vec(text).map_err(|_| KeyError::Shape)?;
        let key = <[u8; 32]>::try_from(bytes.as_slice());
        bytes.zeroize();
        let key = Self(key.map_err(|_| KeyError::Shape)?);
        let mut seen = [false; 256];
        for byte in key.0 {
            if let Some(slot) = seen.get_mut(usize::from(byte)) {
                *slot = true;
            }
        }
        // 32 random bytes show fewer than 12 values once in far more than 2^64 keys.
        if seen.iter().filter(|seen| **seen).count() < 12 { Err(KeyError::NotRandom) } else { Ok(key) }
    }

    /// A fresh key from the system's random source.
    ///
    /// # Panics
    /// When the system has no randomness to give, which leaves nothing to run on.
    #[expect(clippy::expect_used, reason = "no randomness, no security: there is nothing to fall back to")]
    pub fn generate() -> Self {
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).expect("the system's random source works");
        Self(bytes)
    }

    /// As `keygen` prints it.
    pub fn to_base64url(&self) -> String {
        URL_SAFE_NO_PAD.encode_to_string(self.0)
    }

    /// The first two bytes of SHA-256 over a label and the key.
    pub fn id(&self) -> KeyId {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        context.update(b"sidegate key id");
        context.update(&self.0);
        match context.finish().as_ref() {
            [high, low, ..] => KeyId(u16::from_be_bytes([*high, *low])),
            _ => KeyId(0),
        }
    }

    /// The key itself, for derivation only.
    pub(super) fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

/// All keys that open, the first of which seals. Never empty.
#[derive(Clone, Debug)]
pub struct Keyring {
    first: Key,
    older: Vec<Key>,
}

impl Keyring {
    /// Newest first; none when the list is empty.
    pub fn new(keys: Vec<Key>) -> Option<Self> {
        let mut keys = keys.into_iter();
        keys.next().map(|first| Self { first, older: keys.collect() })
    }

    /// The key that seals.
    pub fn sealing(&self) -> &Key {
        &self.first
    }

    /// The ids of all keys, the sealing one first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        std::iter::once(&self.first).chain(&self.older).map(Key::id)
    }

    /// The key of that id.
    pub fn find(&self, id: KeyId) -> Option<&Key> {
        std::iter::once(&self.first).chain(&self.older).find(|key| key.id() == id)
    }
}
