//! The nouns of RFC 6749 and OpenID Connect Core, each a type of its own.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::HeaderValue;
use ring::digest;

use super::dpop::DpopKey;
use crate::clock::Timestamp;
use crate::memo::Memo;
use crate::secret::{Secret, secret_type};

/// An access token (RFC 6749 section 1.4): visible ASCII, opaque to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessToken {
    /// After [`BEARER`], as nearly every request wants it.
    text: Secret,
    /// The whole text in a header; the bytes are those of `text`.
    bearer: Memo<Option<HeaderValue>>,
}

/// The scheme of RFC 6750.
const BEARER: &str = "Bearer ";

impl AccessToken {
    /// Wraps a text.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self { text: Secret::new([BEARER, text.as_ref()].concat()), bearer: Memo::default() }
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        self.text.expose().get(BEARER.len()..).unwrap_or_default()
    }

    /// The value of the header that carries it: after this scheme (RFC 9110 section 11.4), or bare. None when the text
    /// is none that a header can carry.
    pub fn field(&self, scheme: Option<&str>) -> Option<HeaderValue> {
        let mut value = match scheme {
            Some("Bearer") => {
                let shared = || HeaderValue::from_maybe_shared(Bytes::from_owner(self.text.clone()));
                self.bearer.get_or_init(|| shared().ok()).clone()
            }
            Some(scheme) => HeaderValue::try_from(format!("{scheme} {}", self.expose())).ok(),
            None => HeaderValue::try_from(self.expose()).ok(),
        }?;
        value.set_sensitive(true);
        Some(value)
    }
}

secret_type!(
    /// A refresh token (RFC 6749 section 1.5).
    RefreshToken
);
secret_type!(
    /// A raw ID token, kept for `id_token_hint` and for routes that forward it.
    IdToken
);
secret_type!(
    /// An authorization code (RFC 6749 section 1.3.1).
    Code
);
secret_type!(
    /// `state` (RFC 6749 section 4.1.1) as it travels through the browser.
    State
);
secret_type!(
    /// `nonce` (OpenID Connect Core section 3.1.2.1).
    Nonce
);
secret_type!(
    /// A PKCE code verifier (RFC 7636 section 4.1).
    PkceVerifier
);

/// Tells one of several providers from the others: made of its issuer and our client id there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProviderKey(pub [u8; 8]);

/// What a successful token answer holds (RFC 6749 section 5.1), times made absolute.
#[derive(Clone, Debug)]
pub struct TokenSet {
    /// The token for the upstream.
    pub access_token: AccessToken,
    /// When it ends; none when the provider says nothing anywhere.
    pub access_expires: Option<Timestamp>,
    /// Absent in a refresh answer means: the old one stays (RFC 6749 section 6).
    pub refresh_token: Option<RefreshToken>,
    /// `refresh_expires_in` or `refresh_token_expires_in`, where the provider tells.
    pub refresh_expires: Option<Timestamp>,
    /// The ID token as it came, verified.
    pub id_token: Option<IdToken>,
    /// The granted scope, when the provider names one.
    pub scope: Option<String>,
}

/// What a token of a route's own is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenTarget {
    /// `audience` (RFC 8693 section 2.1).
    pub audience: Option<String>,
    /// `resource` (RFC 8707): absolute URIs.
    pub resource: Vec<String>,
    /// `scope`; empty = whatever the provider gives.
    pub scopes: Vec<String>,
}

impl TokenTarget {
    /// Names it: equal for equal targets.
    pub fn name(&self) -> [u8; 32] {
        let mut hash = digest::Context::new(&digest::SHA256);
        for list in [self.audience.as_slice(), &self.resource, &self.scopes] {
            for part in list {
                hash.update(part.as_bytes());
                hash.update(&[0]);
            }
            hash.update(&[1]);
        }
        hash.finish().as_ref().first_chunk().copied().unwrap_or_default()
    }

    /// Whether it asks for more than this scope, where that can be told: what another audience or resource grants is for
    /// the provider to say, and so is a scope that is a URI, which at some providers is that of another API.
    pub fn is_beyond(&self, granted: &str) -> bool {
        let plain = self.scopes.iter().filter(|scope| !scope.contains("://"));
        self.audience.is_none() && self.resource.is_empty() && !covers(granted, plain)
    }

    /// Whether a token of this scope is less than was asked for. `offline_access` is never in a token: it is asked for where
    /// a provider takes no refresh without it.
    pub fn is_denied(&self, scope: &str) -> bool {
        !covers(scope, self.scopes.iter())
    }
}

fn covers<'a>(given: &str, mut wanted: impl Iterator<Item = &'a String>) -> bool {
    wanted.all(|wanted| wanted == "offline_access" || given.split(' ').any(|one| one == wanted))
}

/// Who the user is: from the verified ID token, completed by userinfo.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    /// `sub`, compared byte for byte.
    pub subject: String,
    /// The provider's session id, for logout.
    pub sid: Option<String>,
    /// When the user authenticated, epoch seconds.
    pub auth_time: Option<u64>,
    /// The authentication context class.
    pub acr: Option<String>,
    /// All other claims, as JSON.
    pub claims: BTreeMap<String, serde_json::Value>,
}

impl Identity {
    /// A claim by its name in the ID token, whether it has a field of its own or not.
    pub fn claim(&self, name: &str) -> Option<serde_json::Value> {
        match name {
            "sub" => Some(self.subject.as_str().into()),
            "sid" => self.sid.as_deref().map(Into::into),
            "acr" => self.acr.as_deref().map(Into::into),
            "auth_time" => self.auth_time.map(Into::into),
            _ => self.claims.get(name).cloned(),
        }
    }
}

/// What a finished login yields.
#[derive(Clone, Debug)]
pub struct Login {
    /// The tokens.
    pub tokens: TokenSet,
    /// The user.
    pub identity: Identity,
    /// To which the tokens are bound.
    pub dpop: Option<DpopKey>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_stands_in_a_header_as_each_route_wants_it() {
        let token = AccessToken::new("a.b.c");
        for (scheme, wanted) in [
            (Some("Bearer"), "Bearer a.b.c"),
            (Some("Bearer"), "Bearer a.b.c"),
            (None, "a.b.c"),
            (Some("DPoP"), "DPoP a.b.c"),
            (Some("Bearer"), "Bearer a.b.c"),
        ] {
            let value = token.clone().field(scheme).unwrap();
            assert!(value == wanted && value.is_sensitive(), "{scheme:?}");
        }
        assert!(AccessToken::new("a\nb").field(Some("Bearer")).is_none());
        assert_eq!(token.expose(), "a.b.c");
        assert_eq!(token, AccessToken::new("a.b.c"));
        assert_ne!(token, AccessToken::new("a.b.d"));
    }
}
