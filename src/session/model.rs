//! The session: who, with which tokens, since when.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::clock::Timestamp;
use crate::memo::Memo;
use crate::oidc::dpop::DpopKey;
use crate::oidc::types::{AccessToken, Login, ProviderKey, TokenSet};
use crate::session::Settings;
use crate::session::codec::PackedToken;
use crate::session::ticket::Ticket;

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
    /// Names the refresh token of this generation when it is in a cookie of its own that did not come along.
    pub elsewhere: Option<Handle>,
    /// All that the browser has of a session that is in the store.
    pub ticket: Option<Ticket>,
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
    /// Whose tokens these are, where there are several providers.
    pub provider: Option<ProviderKey>,
    /// To which the tokens are bound (RFC 9449); the same for the session's whole life.
    pub dpop: Option<DpopKey>,
    /// The user's pseudonym in the log.
    pub pseudonym: Memo<[u8; 8]>,
}

impl Session {
    /// The session that a login begins.
    pub fn begin(
        login: Login,
        nonce_hash: [u8; 16],
        id: SessionId,
        index_key: u16,
        settings: &Settings,
        now: Timestamp,
    ) -> Self {
        let Login { tokens, identity, dpop } = login;
        let claims = settings.claims.iter().filter_map(|name| Some((name.clone(), found(&identity.claims, name)?)));
        let claims = claims.collect();
        Self {
            id,
            generation: 0,
            created: now,
            last_used: now,
            issued: now,
            index_key,
            previous: None,
            access_token: tokens.access_token,
            access_expires: tokens.access_expires,
            refresh_token: tokens.refresh_token.map(|token| PackedToken::pack(token.expose())),
            elsewhere: None,
            ticket: None,
            refresh_expires: tokens.refresh_expires,
            id_token: tokens.id_token.map(|token| PackedToken::pack(token.expose())),
            scope: tokens.scope,
            subject: identity.subject,
            provider_sid: identity.sid,
            auth_time: identity.auth_time,
            acr: identity.acr,
            nonce_hash: Some(nonce_hash),
            claims,
            provider: None,
            dpop,
            pseudonym: Memo::default(),
        }
    }

    /// The next generation, from the answer to a refresh. `own` is the handle of this one.
    pub fn refreshed(&self, tokens: TokenSet, own: Handle, index_key: u16, now: Timestamp) -> Self {
        let (refresh_token, refresh_expires) = match tokens.refresh_token {
            Some(token) => (Some(PackedToken::pack(token.expose())), tokens.refresh_expires),
            // RFC 6749 section 6: without a new one the old one stays, and so does what is known of its life.
            None => (self.refresh_token.clone(), tokens.refresh_expires.or(self.refresh_expires)),
        };
        Self {
            id: self.id,
            generation: self.generation.saturating_add(1),
            created: self.created,
            last_used: self.last_used,
            issued: now,
            index_key,
            previous: Some(own),
            access_token: tokens.access_token,
            access_expires: tokens.access_expires,
            refresh_token,
            elsewhere: None,
            ticket: self.ticket.clone(),
            refresh_expires,
            id_token: tokens.id_token.map(|token| PackedToken::pack(token.expose())).or_else(|| self.id_token.clone()),
            scope: tokens.scope.or_else(|| self.scope.clone()),
            subject: self.subject.clone(),
            provider_sid: self.provider_sid.clone(),
            auth_time: self.auth_time,
            acr: self.acr.clone(),
            nonce_hash: self.nonce_hash,
            claims: self.claims.clone(),
            provider: self.provider,
            dpop: self.dpop.clone(),
            pseudonym: self.pseudonym.clone(),
        }
    }

    /// The next generation after the refresh token was spent for something else: what this session sends stays.
    pub fn rotated(&self, tokens: &TokenSet, own: Handle, index_key: u16) -> Self {
        let next = tokens.refresh_token.as_ref().map(|token| PackedToken::pack(token.expose()));
        Self {
            generation: self.generation.saturating_add(1),
            index_key,
            previous: Some(own),
            refresh_expires: if next.is_some() { tokens.refresh_expires } else { self.refresh_expires },
            refresh_token: next.or_else(|| self.refresh_token.clone()),
            elsewhere: None,
            ..self.clone()
        }
    }

    /// A claim by its name in the ID token, whether it has a field of its own or is among those that the configuration names.
    pub fn claim(&self, name: &str) -> Option<Cow<'_, serde_json::Value>> {
        let own: Option<serde_json::Value> = match name {
            "sub" => Some(self.subject.as_str().into()),
            "sid" => self.provider_sid.as_deref().map(Into::into),
            "acr" => self.acr.as_deref().map(Into::into),
            "auth_time" => self.auth_time.map(Into::into),
            _ => return self.claims.get(name).map(Cow::Borrowed),
        };
        own.map(Cow::Owned)
    }

    /// Whether it sends the same access token as `other`, a generation of the same session.
    pub fn shares_access(&self, other: &Self) -> bool {
        (self.issued, self.access_expires) == (other.issued, other.access_expires)
            && self.access_token.expose() == other.access_token.expose()
    }

    /// There is a refresh token, here or in its own cookie.
    pub fn has_refresh_token(&self) -> bool {
        self.refresh_token.is_some() || self.elsewhere.is_some()
    }

    /// Whether a refresh can still be made at `now`: there is a refresh token, it is not known to be past its life, and
    /// the limit of refreshes is not reached.
    pub fn is_refreshable(&self, settings: &Settings, now: Timestamp) -> bool {
        self.has_refresh_left(settings) && self.refresh_expires.is_none_or(|end| now < end)
    }

    pub(super) fn has_refresh_left(&self, settings: &Settings) -> bool {
        self.has_refresh_token() && (settings.max_refreshes == 0 || self.generation < settings.max_refreshes)
    }

    /// When the session is over whatever happens: at its absolute end, with its refresh token where the provider told
    /// its life (its own session is over then), or when its access token has ended and nothing can renew it any more.
    pub fn ends(&self, settings: &Settings) -> Timestamp {
        let absolute = self.created + settings.max_age;
        let tokens = match (self.access_expires, self.has_refresh_left(settings), self.refresh_expires) {
            // Nobody knows when they end.
            (_, true, None) | (None, false, _) => return absolute,
            (_, true, Some(refresh)) => refresh,
            (Some(access), false, _) => access,
        };
        absolute.min(tokens)
    }

    /// When it would be over if there were no `max_refreshes`.
    pub fn could_last(&self, settings: &Settings) -> Timestamp {
        self.ends(&Settings { max_refreshes: 0, ..settings.clone() })
    }

    /// When the session ends for want of use.
    pub fn idle_ends(&self, settings: &Settings) -> Option<Timestamp> {
        settings.idle_timeout.map(|idle| self.last_used + idle)
    }

    /// A request was forwarded.
    pub fn touch(&mut self, now: Timestamp) {
        self.last_used = self.last_used.max(now);
    }
}

/// A claim by its name, else by the way to it: `account.base_uri` is a member of the claim `account`.
fn found(claims: &BTreeMap<String, serde_json::Value>, name: &str) -> Option<serde_json::Value> {
    if let Some(value) = claims.get(name) {
        return Some(value.clone());
    }
    let mut steps = name.split('.');
    let mut value = claims.get(steps.next()?)?;
    for step in steps {
        value = value.get(step)?;
    }
    Some(value.clone())
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::oidc::types::{IdToken, Identity, RefreshToken};
    use crate::session::lifecycle::{self, Ended, State};
    use crate::session::settings::{Layout, SameSite, Store};
    use crate::web::origin::Origin;

    pub(in crate::session) const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    pub(in crate::session) fn at(seconds: u64) -> Timestamp {
        NOW + Duration::from_secs(seconds)
    }

    pub(in crate::session) fn settings() -> Settings {
        Settings {
            cookie_name: "sidegate".into(),
            same_site: SameSite::Strict,
            form_post: false,
            partitioned: false,
            public: Origin::parse("https://app.example.com").unwrap(),
            issuer: "https://login.example.com".into(),
            providers: Vec::new(),
            client_id: "app".into(),
            store: Store::Cookie,
            layout: Layout::Single,
            prefix: "/auth".into(),
            max_age: Duration::from_secs(12 * 3600),
            idle_timeout: None,
            max_refreshes: 0,
            header_budget: 7600,
            claims: vec!["email".into()],
            id_token_needed: false,
        }
    }

    pub(in crate::session) fn tokens(access: &str, refresh: Option<&str>) -> TokenSet {
        TokenSet {
            access_token: AccessToken::new(access),
            access_expires: Some(at(300)),
            refresh_token: refresh.map(RefreshToken::new),
            refresh_expires: None,
            id_token: None,
            scope: None,
        }
    }

    pub(in crate::session) fn login(tokens: TokenSet) -> Login {
        let identity = Identity {
            subject: "alice-4711".into(),
            sid: Some("s1".into()),
            auth_time: Some(1_799_999_000),
            acr: None,
            claims: [("email".to_owned(), "a@example.com".into()), ("secret".to_owned(), "x".into())].into(),
        };
        Login { tokens, identity, dpop: None }
    }

    pub(in crate::session) fn session(tokens: TokenSet) -> Session {
        Session::begin(login(tokens), [1; 16], SessionId([2; 16]), 7, &settings(), NOW)
    }

    #[test]
    fn a_login_keeps_only_the_claims_that_are_needed() {
        let session = session(tokens("a", Some("r")));
        assert_eq!(session.claims.keys().collect::<Vec<_>>(), ["email"]);
        assert_eq!((session.generation, session.created, session.issued, session.last_used), (0, NOW, NOW, NOW));
    }

    /// Contract 2.10, 2.11: whatever names a claim may name these too.
    #[test]
    fn claims_with_a_place_of_their_own_are_found_by_name() {
        let mut session = session(tokens("a", None));
        session.acr = Some("gold".into());
        let found = |name| session.claim(name).map(Cow::into_owned);
        assert_eq!(
            ["sub", "sid", "acr", "email"].map(found),
            ["alice-4711", "s1", "gold", "a@example.com"].map(|it| Some(it.into()))
        );
        assert_eq!(found("auth_time"), Some(1_799_999_000.into()));
        assert_eq!(found("secret"), None);
    }

    #[test]
    fn a_refresh_replaces_what_is_new_and_keeps_the_rest() {
        let mut first = session(TokenSet {
            id_token: Some(IdToken::new("id-1")),
            refresh_expires: Some(at(1000)),
            scope: Some("openid".into()),
            ..tokens("a", Some("r"))
        });
        first.dpop = DpopKey::generate();
        first.touch(at(5));
        let second = first.refreshed(tokens("b", None), Handle([9; 16]), 8, at(10));
        assert_eq!(second.generation, 1);
        assert_eq!((second.id, second.created, second.last_used, second.issued), (first.id, NOW, at(5), at(10)));
        assert_eq!((second.previous, second.index_key), (Some(Handle([9; 16])), 8));
        assert_eq!(second.access_token, AccessToken::new("b"));
        assert_eq!((&second.refresh_token, second.refresh_expires), (&first.refresh_token, Some(at(1000))));
        assert_eq!((&second.id_token, &second.scope, &second.claims), (&first.id_token, &first.scope, &first.claims));
        assert!(second.dpop.is_some() && second.dpop == first.dpop);

        let answer = TokenSet {
            id_token: Some(IdToken::new("id-2")),
            scope: Some("openid x".into()),
            ..tokens("c", Some("r2"))
        };
        let third = second.refreshed(answer, Handle([8; 16]), 8, at(20));
        assert_eq!(third.refresh_token.as_ref().unwrap().unpack().unwrap(), "r2");
        assert_eq!(third.refresh_expires, None, "the old token's life is not the new one's");
        assert_eq!(third.id_token.as_ref().unwrap().unpack().unwrap(), "id-2");
        assert_eq!(third.scope.as_deref(), Some("openid x"));
    }

    /// ASVS-7.3.1, BFF-11
    #[test]
    fn a_session_ends_when_nothing_can_renew_it() {
        let mut settings = settings();
        let mut session = session(tokens("a", Some("r")));
        assert_eq!(session.ends(&settings), NOW + settings.max_age);
        // The refresh token's life is known, and is the session's.
        session.refresh_expires = Some(at(3));
        assert_eq!(session.ends(&settings), at(3));
        assert!(session.is_refreshable(&settings, at(2)) && !session.is_refreshable(&settings, at(3)));
        session.access_expires = Some(at(2));
        assert_eq!(session.ends(&settings), at(3));
        session.access_expires = None;
        assert_eq!(session.ends(&settings), at(3));
        // The limit of refreshes is reached: the token is used to its end.
        session.access_expires = Some(at(300));
        session.refresh_expires = None;
        settings.max_refreshes = 2;
        session.generation = 1;
        assert_eq!(session.ends(&settings), NOW + settings.max_age);
        session.generation = 2;
        assert_eq!(session.ends(&settings), at(300));
        assert!(!session.is_refreshable(&settings, NOW));
        // No refresh token.
        settings.max_refreshes = 0;
        session.refresh_token = None;
        assert_eq!(session.ends(&settings), at(300));
        settings.max_age = Duration::from_secs(10);
        assert_eq!(session.ends(&settings), at(10));
    }

    #[test]
    fn cookie_25_time_is_judged_from_what_is_sealed() {
        let mut settings = settings();
        settings.idle_timeout = Some(Duration::from_secs(100));
        let session = session(tokens("a", Some("r")));
        let judge = |seconds| lifecycle::judge(std::sync::Arc::new(session.clone()), &settings, at(seconds));
        assert!(matches!(judge(0), State::Open(_)));
        assert!(matches!(judge(99), State::Open(_)));
        assert!(matches!(judge(100), State::Over(Ended::Idle, _)));
        assert!(matches!(judge(12 * 3600), State::Over(Ended::Expired, _)));
    }

    #[test]
    fn cookie_29_the_last_use_is_sealed_once_per_tenth() {
        let mut settings = settings();
        let mut session = session(tokens("a", Some("r")));
        assert!(!lifecycle::needs_touch(&session, &settings, at(10_000)));
        settings.idle_timeout = Some(Duration::from_secs(100));
        assert!(!lifecycle::needs_touch(&session, &settings, at(10)));
        assert!(lifecycle::needs_touch(&session, &settings, at(11)));
        session.touch(at(11));
        assert!(!lifecycle::needs_touch(&session, &settings, at(21)));
    }
}
