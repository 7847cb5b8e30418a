//! The provider as the rest of the house sees it: metadata that heals by itself, code exchange, refresh, logout.

use async_trait::async_trait;

use super::error::ProviderError;
use super::types::{RefreshToken, TokenSet};
use crate::clock::Timestamp;

/// What an ID token in a refresh answer must agree with (OpenID Connect Core section 12.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshExpectation {
    /// The session's subject.
    pub subject: String,
    /// The session's `auth_time`, when known.
    pub auth_time: Option<u64>,
    /// First 16 bytes of SHA-256 of the login's nonce.
    pub nonce_hash: Option<[u8; 16]>,
}

/// The refresh grant (RFC 6749 section 6), as a trait so that the refresh engine's tests pass a double.
#[async_trait]
pub trait Grant: Send + Sync {
    /// Spends `token` once. One call is one try: retries are the caller's business.
    ///
    /// # Errors
    /// By who is to blame; `Invalid` when the answer's ID token does not belong to the session.
    async fn refresh(
        &self,
        token: &RefreshToken,
        expect: &RefreshExpectation,
        now: Timestamp,
    ) -> Result<TokenSet, ProviderError>;
}

/// The configured provider.
#[derive(Debug)]
pub struct Provider {}
