//! The session: who, with which tokens, since when.

use std::collections::BTreeMap;

use crate::clock::Timestamp;
use crate::oidc::types::{AccessToken, TokenSet};
use crate::session::codec::PackedToken;

/// 16 random bytes made at login; never shown to anybody outside the sealed cookie.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub [u8; 16]);

impl std::fmt::Debug for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionId(***)")
    }
}

/// `h(RT, gen)` of `docs/sessions.md`: names one generation of one refresh token without telling it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub [u8; 16]);

/// Everything that one sealed cookie set holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Made at login, kept over refreshes.
    pub id: SessionId,
    /// +1 with every successful refresh.
    pub generation: u64,
    /// When the user logged in.
    pub created: Timestamp,
    /// When a request was last forwarded, to a tenth of `idle_timeout`.
    pub last_used: Timestamp,
    /// When this generation's tokens were issued.
    pub issued: Timestamp,
    /// The key of the ring from which `Handle`s of this generation derive; changes only with the generation.
    pub index_key: u16,
    /// `Handle` of the generation before this one: presenting this cookie acknowledges its delivery.
    pub previous: Option<Handle>,
    /// For the upstream.
    pub access_token: AccessToken,
    /// When it ends, if anybody knows.
    pub access_expires: Option<Timestamp>,
    /// Not decoded until a refresh needs it.
    pub refresh_token: Option<PackedToken>,
    /// When the provider says that the refresh token ends.
    pub refresh_expires: Option<Timestamp>,
    /// Not decoded until a logout or a route needs it. Dropped first when the cookies get too large.
    pub id_token: Option<PackedToken>,
    /// The granted scope.
    pub scope: Option<String>,
    /// `sub`.
    pub subject: String,
    /// The provider's `sid`.
    pub provider_sid: Option<String>,
    /// Epoch seconds.
    pub auth_time: Option<u64>,
    pub acr: Option<String>,
    /// First 16 bytes of SHA-256 of the login's nonce.
    pub nonce_hash: Option<[u8; 16]>,
    /// The claims that the configuration names.
    pub claims: BTreeMap<String, serde_json::Value>,
}

impl Session {
    /// The next generation, made by spending this one's refresh token, which `handle` names. What the answer leaves
    /// out stays as it was (RFC 6749 section 6).
    pub fn refreshed(&self, tokens: TokenSet, handle: Handle, index_key: u16, now: Timestamp) -> Self {
        let rotated = tokens.refresh_token.as_ref().map(|token| PackedToken::pack(token.expose()));
        Self {
            generation: self.generation.saturating_add(1),
            issued: now,
            index_key,
            previous: Some(handle),
            access_token: tokens.access_token,
            access_expires: tokens.access_expires,
            refresh_expires: tokens.refresh_expires.or_else(|| self.refresh_expires.filter(|_| rotated.is_none())),
            refresh_token: rotated.or_else(|| self.refresh_token.clone()),
            id_token: tokens.id_token.map(|token| PackedToken::pack(token.expose())).or_else(|| self.id_token.clone()),
            scope: tokens.scope.or_else(|| self.scope.clone()),
            ..self.clone()
        }
    }
}
