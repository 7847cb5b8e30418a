//! The provider as the rest of the house sees it: metadata that heals by itself, code exchange, refresh, logout.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use base64_simd::URL_SAFE_NO_PAD;
use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use super::authorize::{self, AuthorizationRequest};
use super::client::{CallError, Client, Credential, Observer, SetupError};
use super::dialect::Revocation;
use super::dpop::DpopKey;
use super::error::{Fault, ProviderError};
use super::id_token::{self, LoginExpectation};
use super::json;
use super::jwks::{FetchKeys, KeySet, Keys};
use super::jwt::{Claims, Unverified, Verified, numeric_date};
use super::logout::{self, LogoutToken};
use super::metadata::ProviderMetadata;
use super::settings::{ClientAuth, Par, RequestObject, Settings};
use super::token::{self, Answer, Form, TokenAnswer, TokenType};
use super::types::{
    AccessToken, Code, IdToken, Identity, Login, Nonce, PkceVerifier, ProviderKey, RefreshToken, TokenSet, TokenTarget,
};
use crate::clock::{Clock, Timestamp};

/// The first and the longest pause between two attempts to read the metadata.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_LAST: Duration = Duration::from_secs(5);
/// How often metadata and keys are read anew although nothing asks for it, and how soon again when that fails.
const RENEW_EVERY: Duration = Duration::from_secs(3600);
const RENEW_AGAIN: Duration = Duration::from_secs(60);

/// The most time for an introspection, and what must be left for everything else.
const INTROSPECTION_MAX: Duration = Duration::from_secs(2);
const INTROSPECTION_SLACK: Duration = Duration::from_millis(500);

/// What an ID token in a refresh answer must agree with (OpenID Connect Core section 12.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshExpectation {
    /// Whose token it is, among several.
    pub provider: Option<ProviderKey>,
    /// The session's subject.
    pub subject: String,
    /// The session's `auth_time`, when known.
    pub auth_time: Option<u64>,
    /// First 16 bytes of SHA-256 of the login's nonce.
    pub nonce_hash: Option<[u8; 16]>,
    /// The key that the tokens are bound to: the new ones must be too (RFC 9449 section 5).
    pub dpop: Option<DpopKey>,
}

/// A refresh token to be spent (RFC 6749 section 6).
#[derive(Clone, Copy, Debug)]
pub struct RefreshRequest<'a> {
    pub token: &'a RefreshToken,
    /// What the new tokens are for: none for the session's own.
    pub target: Option<&'a TokenTarget>,
    /// What its answer must agree with.
    pub expect: &'a RefreshExpectation,
    pub now: Timestamp,
}

/// The refresh grant (RFC 6749 section 6), as a trait so that the refresh engine's tests pass a double.
#[async_trait]
pub trait Grant: Send + Sync {
    /// Spends the token once. One call is one try: retries are the caller's business.
    ///
    /// # Errors
    /// By who is to blame; `Invalid` when the answer's ID token does not belong to the session.
    async fn refresh(&self, request: RefreshRequest<'_>) -> Result<TokenSet, ProviderError>;
}

/// What the login attempt remembers for the exchange of its code.
#[derive(Clone, Debug)]
pub struct RedeemContext {
    /// The attempt's nonce.
    pub nonce: Nonce,
    /// The attempt's PKCE verifier.
    pub verifier: PkceVerifier,
    /// A requested `max_age`, in seconds, to be verified against `auth_time`.
    pub max_age: Option<u64>,
    /// Requested `acr_values` that must be met.
    pub acr_values: Option<String>,
    /// The key that the code is bound to.
    pub dpop: Option<DpopKey>,
    /// When the callback came.
    pub now: Timestamp,
}

/// Something that `check --online` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The configuration cannot work like this.
    pub fatal: bool,
    /// The configuration key to look at.
    pub key: &'static str,
    /// A sentence for the operator.
    pub text: String,
}

/// The configured provider.
pub struct Provider {
    settings: Settings,
    clock: Clock,
    client: Client,
    known: ArcSwapOption<ProviderMetadata>,
    gate: Mutex<Gate>,
    keys: Keys,
    told: AtomicBool,
}

/// Guards the fetching of metadata, so that concurrent fetches are one, and remembers a failure for a moment.
#[derive(Default)]
struct Gate {
    failures: u32,
    failed: Option<(ProviderError, Instant)>,
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider").field("issuer", &self.settings.issuer).finish_non_exhaustive()
    }
}

impl Provider {
    /// Reads the trust anchors; nothing is fetched yet.
    ///
    /// # Errors
    /// A sentence that names the configuration key.
    pub fn new(settings: Settings, clock: Clock, observer: Observer) -> Result<Arc<Self>, SetupError> {
        let client = Client::new(&settings, clock.clone(), observer)?;
        Ok(Arc::new(Self::with_client(settings, clock, client)))
    }

    fn with_client(settings: Settings, clock: Clock, client: Client) -> Self {
        Self {
            settings,
            clock,
            client,
            known: ArcSwapOption::empty(),
            gate: Mutex::default(),
            keys: Keys::default(),
            told: AtomicBool::new(false),
        }
    }

    /// A provider for changed settings or a changed `ca_file`, that goes on with what this one knows if it still
    /// counts.
    ///
    /// # Errors
    /// As [`Provider::new`].
    pub fn renewed(&self, settings: Settings) -> Result<Arc<Self>, SetupError> {
        let client = self.client.renewed(&settings)?;
        let old = &self.settings;
        let same_source = old.issuer == settings.issuer
            && old.discovery_url == settings.discovery_url
            && old.other_discovery_url == settings.other_discovery_url
            && old.backchannel_base_url == settings.backchannel_base_url
            && old.endpoints == settings.endpoints
            // It decides between the endpoints and their aliases.
            && old.client_certificate.is_some() == settings.client_certificate.is_some();
        let next = Self::with_client(settings, self.clock.clone(), client);
        if same_source {
            next.known.store(self.known.load_full());
            next.keys.inherit(&self.keys);
        }
        Ok(Arc::new(next))
    }

    /// What the operator configured.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The metadata, when it was loaded already.
    pub fn known(&self) -> Option<Arc<ProviderMetadata>> {
        self.known.load_full()
    }

    /// The metadata, fetched when there is none yet. Concurrent fetches are one; after a failure the next one waits
    /// for a back-off, until which the failure is the answer.
    ///
    /// # Errors
    /// `Unavailable` when the document is not to be had, `Refused` when it is not one for us.
    pub async fn metadata(&self) -> Result<Arc<ProviderMetadata>, ProviderError> {
        if let Some(metadata) = self.known() {
            return Ok(metadata);
        }
        let mut gate = self.gate.lock().await;
        if let Some(metadata) = self.known() {
            return Ok(metadata);
        }
        if let Some((error, until)) = &gate.failed {
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                return Err(later(error.clone(), left));
            }
        }
        match self.fetch_metadata().await {
            Ok(metadata) => {
                *gate = Gate::default();
                Ok(metadata)
            }
            Err(error) => {
                let pause = backoff(gate.failures);
                tracing::warn!(event = "provider_metadata", reason = error.reason(), "no usable provider metadata yet");
                gate.failures = gate.failures.saturating_add(1);
                gate.failed = Some((error.clone(), Instant::now() + pause));
                Err(later(error, pause))
            }
        }
    }

    async fn fetch_metadata(&self) -> Result<Arc<ProviderMetadata>, ProviderError> {
        let metadata = Arc::new(self.read_metadata().await?);
        self.known.store(Some(Arc::clone(&metadata)));
        if !self.told.swap(true, Ordering::Relaxed) {
            for finding in self.judge(&metadata) {
                tracing::warn!(event = "provider_support", key = finding.key, "{}", finding.text);
            }
        }
        Ok(metadata)
    }

    async fn read_metadata(&self) -> Result<ProviderMetadata, ProviderError> {
        let refused = |Fault(reason)| ProviderError::Refused { reason };
        let settings = &self.settings;
        let Some(url) = &settings.discovery_url else {
            return ProviderMetadata::configured(settings).map_err(refused);
        };
        let read = async |url| self.client.get("discovery", url, None).await.map_err(CallError::of_read);
        let mut answer = read(url).await?;
        if answer.status == 404
            && let Some(other) = &settings.other_discovery_url
        {
            answer = read(other).await?;
        }
        let found = document(answer).and_then(|it| ProviderMetadata::parse(&it.body, settings).map_err(refused));
        let Err(ProviderError::Refused { reason: reason @ ("status" | "metadata") }) = found else { return found };
        if !settings.says_all() {
            return found;
        }
        // There is no document, and the configuration says all that would be looked for in it. What was read once is not
        // given up for that.
        let configured = ProviderMetadata::configured(settings).map_err(refused)?;
        match self.known() {
            Some(known) if *known == configured => Ok(configured),
            Some(_) => found,
            None => {
                tracing::warn!(
                    event = "provider_metadata",
                    reason,
                    "the provider has no metadata: provider.endpoints are all that is known of it"
                );
                Ok(configured)
            }
        }
    }

    /// Loads metadata and keys, again and again until it succeeds, and renews them from time to time. Ends when
    /// nobody else holds the provider any more.
    pub async fn keep_ready(self: Arc<Self>) {
        let weak = Arc::downgrade(&self);
        let mut this = self;
        let (mut failures, mut renew) = (0, false);
        loop {
            let loaded = if renew { this.renew().await } else { this.prepare().await };
            let pause = match loaded {
                Ok(()) => {
                    renew = true;
                    jittered(RENEW_EVERY)
                }
                Err(_) if renew => jittered(RENEW_AGAIN),
                Err(_) => {
                    failures += 1;
                    this.until_next_try().await.unwrap_or_else(|| backoff(failures - 1))
                }
            };
            drop(this);
            tokio::time::sleep(pause).await;
            match weak.upgrade() {
                Some(alive) => this = alive,
                None => return,
            }
        }
    }

    /// What is left of the back-off, when the metadata is what is missing.
    async fn until_next_try(&self) -> Option<Duration> {
        let gate = self.gate.lock().await;
        let (_, until) = gate.failed.as_ref()?;
        Some(until.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    async fn prepare(&self) -> Result<(), ProviderError> {
        let metadata = self.metadata().await?;
        self.load_keys(&metadata).await
    }

    /// Keys are needed where there are ID tokens.
    async fn load_keys(&self, metadata: &Arc<ProviderMetadata>) -> Result<(), ProviderError> {
        if !self.settings.openid {
            return Ok(());
        }
        self.keys.load(&self.key_source(metadata)).await.map(drop)
    }

    /// What is known stays in use while this fails.
    async fn renew(&self) -> Result<(), ProviderError> {
        let metadata = self.fetch_metadata().await.inspect_err(|error| {
            tracing::warn!(event = "provider_metadata", reason = error.reason(), "cannot renew the provider metadata");
        })?;
        if !self.settings.openid {
            return Ok(());
        }
        self.keys.reload(&self.key_source(&metadata)).await.map(drop)
    }

    fn key_source(&self, metadata: &Arc<ProviderMetadata>) -> KeySource<'_> {
        KeySource { client: &self.client, metadata: Arc::clone(metadata), apart: self.settings.has_tenants() }
    }

    async fn verify(&self, metadata: &Arc<ProviderMetadata>, token: &str) -> Result<Verified<Claims>, ProviderError> {
        self.keys.verify(token, self.settings.id_token_alg, &self.key_source(metadata)).await
    }

    /// Where to send the browser to sign in. The request is signed and pushed as configured and as the provider wants
    /// it; a push that fails is never replaced by a plain request.
    ///
    /// # Errors
    /// Those of [`Provider::metadata`] and of the push.
    pub async fn authorization_url(&self, request: &AuthorizationRequest) -> Result<String, ProviderError> {
        let metadata = self.metadata().await?;
        let settings = &self.settings;
        let mut pairs = authorize::parameters(settings, &metadata, request);
        if settings.request_object == RequestObject::Require || metadata.request_object_required {
            let key = settings.signing_key.as_ref().ok_or(ProviderError::Refused { reason: "request_object_key" })?;
            let signed = authorize::signed(settings, key, &pairs, self.clock.now());
            pairs = signed.ok_or(ProviderError::Refused { reason: "request_object" })?;
        }
        match (settings.par, &metadata.pushed_authorization_request) {
            (Par::Off, _) => {}
            (Par::Auto, None) if !metadata.par_required => {}
            (Par::Auto | Par::Require, None) => return Err(ProviderError::Refused { reason: "par_missing" }),
            (Par::Auto | Par::Require, Some(endpoint)) => {
                let mut form = Form::default();
                pairs.iter().for_each(|(name, value)| form.add(name, value));
                let answer = self.client.post("par", endpoint, &form, request.dpop.as_ref()).await;
                let uri = authorize::pushed(&answer.map_err(CallError::of_read)?)?;
                pairs = vec![("client_id".to_owned(), settings.client_id.clone()), ("request_uri".to_owned(), uri)];
            }
        }
        let mut url = authorize::url(&metadata.authorization, &pairs);
        if let Some(fragment) = &settings.dialect.authorize.fragment {
            url.push('#');
            url.push_str(fragment);
        }
        Ok(url)
    }

    /// RFC 9207: `iss` of the callback must be our provider's when it is there, and must be there when announced.
    ///
    /// # Errors
    /// `Invalid`; `Unavailable` when there is none and we do not know yet whether there should be.
    pub fn check_callback_iss(&self, iss: Option<&str>) -> Result<(), ProviderError> {
        match (iss, self.known()) {
            (Some(iss), _) if self.settings.is_issuer(iss, None) => Ok(()),
            // Nothing to compare it with: whether it is another provider's is for those to say who know them.
            (Some(_), _) if !self.settings.has_issuer => Ok(()),
            (Some(_), _) => Err(ProviderError::Invalid { reason: "callback_iss" }),
            (None, Some(metadata)) if metadata.iss_parameter || self.settings.iss_required => {
                Err(ProviderError::Invalid { reason: "callback_iss_missing" })
            }
            (None, Some(_)) => Ok(()),
            (None, None) => Err(ProviderError::Unavailable { reason: "metadata", retry_after: None }),
        }
    }

    /// Redeems a code, once, and verifies what comes. Nothing of the answer is used before all of it holds.
    ///
    /// # Errors
    /// By who is to blame; `Invalid` names the check that failed.
    pub async fn redeem(&self, code: &Code, login: &RedeemContext) -> Result<Login, ProviderError> {
        let metadata = self.metadata().await?;
        // Without keys the code would be spent for nothing.
        self.load_keys(&metadata).await?;

        // A login that began before DPoP was switched on is bound from here on.
        let dpop = login.dpop.clone().or_else(|| self.new_dpop_key());
        let form = token::code_form(&self.settings, code, &login.verifier);
        let dialect = &self.settings.dialect;
        let began = Instant::now();
        let answer = self.client.post_as("token", &metadata.token, &form, dpop.as_ref(), &dialect.token).await;
        let answer = answer.map_err(CallError::of_grant)?;
        let token_type = TokenType::bound(dpop.is_some());
        let mut answer = token::decode(&answer, token_type, dialect, self.default_life(), login.now)?;
        self.require_scopes(&answer)?;
        self.learn_expiry(&metadata, &mut answer, began, login.now).await;
        if !self.settings.openid {
            let identity = self.identify(&metadata, &answer, dpop.as_ref()).await?;
            // Not verified, so it is no hint for anybody.
            answer.id_token = None;
            self.tell_of_no_refresh_token(&metadata, &answer);
            return Ok(Login { tokens: token_set(answer), identity, dpop });
        }
        let raw = self.decrypted(answer.id_token.take().ok_or(Fault("id_token_missing"))?)?;
        let verified = self.verify(&metadata, &raw).await?;
        answer.id_token = Some(raw);
        let expect = LoginExpectation {
            nonce: &login.nonce,
            code,
            access_token: &answer.access_token,
            max_age: login.max_age,
            acr_values: login.acr_values.as_deref(),
        };
        let mut identity = id_token::check_login(&verified, &self.settings, &expect, self.after(login.now))?;
        if self.settings.userinfo {
            let credential = Credential { token: &answer.access_token, dpop: dpop.as_ref() };
            self.complete(&metadata, credential, &mut identity).await?;
        }
        self.add_claims(&answer, &mut identity);
        self.tell_of_no_refresh_token(&metadata, &answer);
        Ok(Login { tokens: token_set(answer), identity, dpop })
    }

    /// The login works without one, but not for long.
    fn tell_of_no_refresh_token(&self, metadata: &ProviderMetadata, answer: &TokenAnswer) {
        if answer.refresh_token.is_some() {
            return;
        }
        if let Some(asked) = authorize::asks_for_refresh_token(&self.settings, metadata) {
            tracing::warn!(
                event = "no_refresh_token",
                "the provider gave no refresh token although {asked} was asked for: sessions end with the access token; \
                 allow refresh tokens for this client there, or try authorize_params = {{ prompt = \"consent\" }}"
            );
        }
    }

    /// The signed token, out of its envelope where ID tokens have one. What is kept of it is a hint and goes to apps, and
    /// must be readable there (OpenID Connect Core section 3.1.2.1).
    fn decrypted(&self, token: String) -> Result<String, Fault> {
        match &self.settings.id_token_decryption {
            Some(decryption) => decryption.open(&token),
            None => Ok(token),
        }
    }

    /// For a token of which nothing else is known. Comes last where the provider is asked first.
    fn default_life(&self) -> Option<Duration> {
        self.settings.default_expires_in.filter(|_| self.settings.introspection.is_none())
    }

    /// Where neither the answer nor the token says when it ends, the provider is asked, once for each token. What cannot be
    /// learnt is no failure: for want of it no refresh that the provider has made is lost. `began`: when the token was
    /// asked for, since whoever waits for it waits no longer than for an answer.
    async fn learn_expiry(
        &self,
        metadata: &ProviderMetadata,
        answer: &mut TokenAnswer,
        began: Instant,
        now: Timestamp,
    ) {
        let (Some(patience), None) = (self.settings.introspection, answer.access_expires) else { return };
        let left = patience.saturating_sub(began.elapsed()).saturating_sub(INTROSPECTION_SLACK);
        let asked = self.introspect(metadata, &answer.access_token, now);
        let told = match tokio::time::timeout(left.min(INTROSPECTION_MAX), asked).await {
            Ok(told) => told,
            Err(_) => Err("timeout"),
        };
        let default = || self.settings.default_expires_in.map(|life| now + life);
        answer.access_expires = match told {
            Ok(expires) => expires.or_else(default),
            Err(reason) => {
                tracing::warn!(event = "introspection", reason, "the provider did not say when an access token ends");
                default()
            }
        };
    }

    /// Token introspection (RFC 7662): when the token ends, if the provider says it.
    async fn introspect(
        &self,
        metadata: &ProviderMetadata,
        token: &AccessToken,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, &'static str> {
        let url = metadata.introspection.as_ref().ok_or("introspection_endpoint")?;
        let mut form = Form::default();
        form.set("token", token.expose());
        form.set("token_type_hint", "access_token");
        let answer = self.client.post("introspection", url, &form, None).await;
        let answer = answer.map_err(|error| error.of_read().reason())?;
        if answer.status != 200 {
            return Err("status");
        }
        let members = json::object(&answer.body).map_err(|_| "unreadable")?;
        if members.get("active") != Some(&Value::Bool(true)) {
            return Err("inactive");
        }
        let latest = now + Duration::from_secs(token::MAX_LIFE_SECS);
        let expires = members.get("exp").and_then(numeric_date).map(Timestamp::from_millis);
        Ok(expires.map(|expires| expires.min(latest)))
    }

    /// TOK-04: an answer that does not name its scope grants all that was asked for (RFC 6749 section 5.1).
    fn require_scopes(&self, answer: &TokenAnswer) -> Result<(), Fault> {
        let Some(granted) = &answer.scope else { return Ok(()) };
        let separator = &self.settings.dialect.authorize.scope_separator;
        let granted: Vec<&str> = granted.split(separator.as_str()).flat_map(str::split_ascii_whitespace).collect();
        let holds = self.settings.required_scopes.iter().all(|scope| granted.contains(&scope.as_str()));
        if holds { Ok(()) } else { Err(Fault("scope_missing")) }
    }

    /// Who the user is without an ID token: as the token answer or userinfo says. Where nothing says it, the subject
    /// names this one login.
    async fn identify(
        &self,
        metadata: &Arc<ProviderMetadata>,
        answer: &TokenAnswer,
        dpop: Option<&DpopKey>,
    ) -> Result<Identity, ProviderError> {
        let told = if self.settings.userinfo {
            let credential = Credential { token: &answer.access_token, dpop };
            let answer = self.fetch_userinfo(metadata, credential).await?;
            userinfo_members(&answer)?
        } else {
            Claims::default()
        };
        let claims = Value::Object(told);
        let place = self.settings.dialect.userinfo_subject.as_deref().unwrap_or("/sub");
        let found = answer.subject.clone().or_else(|| claims.pointer(place).and_then(token::subject));
        if found.is_none() && (self.settings.userinfo || self.settings.dialect.response.subject.is_some()) {
            return Err(Fault("sub").into());
        }
        let named = || {
            let hash = digest::digest(&digest::SHA256, answer.access_token.expose().as_bytes());
            URL_SAFE_NO_PAD.encode_to_string(hash)
        };
        let mut identity = Identity {
            subject: found.unwrap_or_else(named),
            sid: None,
            auth_time: None,
            acr: None,
            claims: match claims {
                Value::Object(members) => members.into_iter().filter(|(name, _)| name != "sub").collect(),
                _ => std::collections::BTreeMap::new(),
            },
        };
        // As an ID token has it: a subject is unique at its issuer only. Nobody else may say it.
        identity.claims.insert("iss".to_owned(), self.settings.issuer.as_str().into());
        self.add_claims(answer, &mut identity);
        Ok(identity)
    }

    /// What the dialect keeps of the token answer, and makes of other claims. Never replaces what is there.
    fn add_claims(&self, answer: &TokenAnswer, identity: &mut Identity) {
        for (name, value) in &answer.kept {
            identity.claims.entry(name.clone()).or_insert_with(|| value.clone());
        }
        let dialect = &self.settings.dialect;
        if dialect.claims.is_empty() {
            return;
        }
        let all = Value::Object(identity.claims.clone().into_iter().collect());
        for (name, pick) in &dialect.claims {
            if let Some(value) = pick.of(&all) {
                identity.claims.entry(name.clone()).or_insert(value);
            }
        }
    }

    async fn fetch_userinfo(
        &self,
        metadata: &Arc<ProviderMetadata>,
        credential: Credential<'_>,
    ) -> Result<Answer, ProviderError> {
        let url = metadata.userinfo.as_ref().ok_or(ProviderError::Refused { reason: "userinfo_endpoint" })?;
        let answer = self.client.get("userinfo", url, Some(credential)).await;
        let answer = answer.map_err(|error| match error {
            // Not to be had, like one that does not come at all.
            CallError::TooLarge => ProviderError::Unavailable { reason: "too_large", retry_after: None },
            error => error.of_read(),
        })?;
        if answer.status != 200 {
            return Err(ProviderError::Unavailable { reason: "userinfo", retry_after: answer.retry_after });
        }
        Ok(answer)
    }

    /// Userinfo (OpenID Connect Core section 5.3): JSON, or a JWT signed like the ID token.
    async fn complete(
        &self,
        metadata: &Arc<ProviderMetadata>,
        credential: Credential<'_>,
        identity: &mut Identity,
    ) -> Result<(), ProviderError> {
        let answer = self.fetch_userinfo(metadata, credential).await?;
        if answer.content_type == "application/jwt" {
            let token = std::str::from_utf8(&answer.body).map_err(|_| Fault("userinfo"))?;
            let verified = self.verify(metadata, token.trim_ascii()).await?;
            id_token::check_typ(&verified)?;
            let claims = verified.get();
            id_token::check_parties(claims, &self.settings)?;
            if let Some(exp) = claims.get("exp") {
                let exp = numeric_date(exp).ok_or(Fault("exp"))?;
                if self.clock.now() > Timestamp::from_millis(exp) + self.settings.clock_skew {
                    return Err(Fault("exp").into());
                }
            }
            return Ok(id_token::merge_userinfo(identity, claims)?);
        }
        Ok(id_token::merge_userinfo(identity, &userinfo_members(&answer)?)?)
    }

    /// The key of a new session, when tokens are to be bound (RFC 9449).
    pub fn new_dpop_key(&self) -> Option<DpopKey> {
        if self.settings.dpop { DpopKey::generate() } else { None }
    }

    /// The time after a call that began at `now`: a token may have been made meanwhile.
    fn after(&self, now: Timestamp) -> Timestamp {
        self.clock.now().max(now)
    }

    /// An access token for this target in exchange for the session's (RFC 8693), and when it ends if anybody knows.
    /// Spends nothing. One call is one try.
    ///
    /// # Errors
    /// By who is to blame; `Refused` with `invalid_scope` also when the token has less scope than was asked for.
    pub async fn exchange(
        &self,
        subject: &AccessToken,
        target: &TokenTarget,
        now: Timestamp,
    ) -> Result<(AccessToken, Option<Timestamp>), ProviderError> {
        let metadata = self.metadata().await?;
        let form = token::exchange_form(&self.settings, subject, target);
        let dialect = &self.settings.dialect;
        let began = Instant::now();
        let answer = self.client.post_as("token", &metadata.token, &form, None, &dialect.token).await;
        let answer = answer.map_err(CallError::of_grant)?;
        let mut answer = token::decode(&answer, TokenType::bound(false), dialect, self.default_life(), now)?;
        self.learn_expiry(&metadata, &mut answer, began, now).await;
        let given = token_set(answer);
        token::judge_target(target, &given, subject)?;
        Ok((given.access_token, given.access_expires))
    }

    /// A token of the client's own (RFC 6749 section 4.4), for no user, and when it ends if anybody knows. One call is one
    /// try.
    ///
    /// # Errors
    /// As [`Provider::exchange`].
    pub async fn client_token(
        &self,
        target: &TokenTarget,
        now: Timestamp,
    ) -> Result<(AccessToken, Option<Timestamp>), ProviderError> {
        let metadata = self.metadata().await?;
        let form = token::client_form(&self.settings, target);
        let dialect = &self.settings.dialect;
        let began = Instant::now();
        let answer = self.client.post_as("token", &metadata.token, &form, None, &dialect.token).await;
        let answer = answer.map_err(CallError::of_grant)?;
        let mut answer = token::decode(&answer, TokenType::bound(false), dialect, self.default_life(), now)?;
        if answer.scope.as_deref().is_some_and(|scope| target.is_denied(scope)) {
            return Err(ProviderError::Refused { reason: "invalid_scope" });
        }
        self.learn_expiry(&metadata, &mut answer, began, now).await;
        Ok((answer.access_token, answer.access_expires))
    }

    /// Revokes a token (RFC 7009), as far as it goes: true when the provider confirmed. Bounded by the call's
    /// time-out. `hint` is `refresh_token` or `access_token`.
    pub async fn revoke(&self, token: &str, hint: &str) -> bool {
        let endpoint = self.known().and_then(|metadata| metadata.revocation.clone());
        let (true, Some(url)) = (self.settings.revoke, endpoint) else {
            return false;
        };
        let style = self.settings.dialect.revocation;
        let access = || AccessToken::new(token);
        let answer = match (style, hint) {
            (Revocation::Standard, _) | (Revocation::RefreshOnly, "refresh_token") => {
                self.client.post("revocation", &url, &logout::revocation_form(token, hint), None).await
            }
            (Revocation::Bearer, "access_token") => {
                self.client.get("revocation", &url, Some(Credential { token: &access(), dpop: None })).await
            }
            (Revocation::GitHub, "access_token") => self.client.delete_token(&url, &access()).await,
            _ => return false,
        };
        let reason = match answer {
            Ok(answer) if style == Revocation::GitHub && answer.status == 204 => return true,
            Ok(answer) if answer.status == 200 => return true,
            Ok(_) => "status",
            Err(error) => error.of_read().reason(),
        };
        tracing::warn!(event = "revocation", reason, "the provider did not confirm the revocation of a token");
        false
    }

    /// Where to send the browser so that the provider's session ends too; none when that is off or not offered.
    pub fn end_session_url(&self, id_token_hint: Option<&IdToken>) -> Option<String> {
        if !self.settings.logout_at_provider {
            return None;
        }
        let own = || self.settings.endpoints.end_session.clone();
        let endpoint = self.known().map_or_else(own, |metadata| metadata.end_session.clone())?;
        let mut state = [0; 16];
        let state = SystemRandom::new().fill(&mut state).ok().map(|()| URL_SAFE_NO_PAD.encode_to_string(state));
        logout::end_session_url(&endpoint, &self.settings, id_token_hint, state.as_deref())
    }

    /// Verifies a logout token (OpenID Connect Back-Channel Logout 1.0 section 2.6). Whether it came before is not
    /// known here.
    ///
    /// # Errors
    /// `Invalid` when it does not hold; else the provider's keys are not to be had.
    pub async fn verify_logout_token(&self, token: &str) -> Result<LogoutToken, ProviderError> {
        // What is no token at all is told so without asking the provider for anything.
        Unverified::parse(token)?.require(self.settings.id_token_alg)?;
        let metadata = self.metadata().await?;
        let verified = self.verify(&metadata, token).await?;
        Ok(logout::check_logout_token(&verified, &self.settings, self.clock.now())?)
    }

    /// For `check --online`: reads metadata and keys now and compares them with the settings.
    pub async fn judge_online(&self) -> Vec<Finding> {
        let fatal = |key, text| vec![Finding { fatal: true, key, text }];
        let metadata = match self.fetch_metadata().await {
            Ok(metadata) => metadata,
            Err(error) => {
                let reason = error.reason();
                let url = self.settings.discovery_url.as_ref().map(Url::as_str).unwrap_or_default();
                let text = match error {
                    ProviderError::Refused { reason: "issuer" } => {
                        format!(
                            "the document at {url} names another issuer than {:?}; copy it as the provider writes it",
                            self.settings.issuer
                        )
                    }
                    ProviderError::Refused { reason: "status" } => {
                        format!("the provider has no document at {url}: its answer is not 200; is the issuer right?")
                    }
                    ProviderError::Refused { .. } => {
                        format!("the document at {url} is not usable: {reason}; is the issuer right?")
                    }
                    _ => format!(
                        "the provider cannot be reached at {url}: {reason}; is it up, the issuer right, and the way there open \
                         (DNS, provider.proxy, provider.ca_file)?"
                    ),
                };
                return fatal("provider.issuer", text);
            }
        };
        let mut findings = self.judge(&metadata);
        let algorithm = self.settings.id_token_alg;
        let Some(jwks) = metadata.jwks.as_ref().filter(|_| self.settings.openid) else { return findings };
        match self.keys.reload(&self.key_source(&metadata)).await {
            Ok(keys) if !keys.serves(algorithm) => findings.push(Finding {
                fatal: false,
                key: "provider.id_token_alg",
                text: format!("the key set at {} holds no key for {algorithm}", jwks),
            }),
            Ok(_) => {}
            Err(error) => findings.push(Finding {
                fatal: true,
                key: "provider.issuer",
                text: format!("the provider's keys cannot be read at {}: {}", jwks, error.reason()),
            }),
        }
        findings
    }

    /// What no metadata tells, and a user should see to at the provider.
    pub fn advice(&self) -> Vec<String> {
        if !self.settings.scopes.iter().any(|scope| scope == "offline_access") {
            return Vec::new();
        }
        let client = &self.settings.client_id;
        vec![
            format!(
                "allow refresh tokens (offline access) for the client {client:?} at the provider: without one a session \
                 ends with its access token"
            ),
            "if the provider rotates refresh tokens, let it take a spent one again for some seconds (leeway, reuse \
             interval, overlap): an answer that gets lost then ends no session; say so here by refresh.leeway"
                .to_owned(),
        ]
    }

    /// What the provider says it does not support.
    fn judge(&self, metadata: &ProviderMetadata) -> Vec<Finding> {
        let settings = &self.settings;
        let mut findings = Vec::new();
        let mut warn = |key, text| findings.push(Finding { fatal: false, key, text });
        for scope in settings.scopes.iter().filter(|scope| metadata.denies_scope(scope)) {
            let left_out = if scope == "offline_access" {
                ": it is left out; see whether this client may have refresh tokens there in another way"
            } else {
                ""
            };
            warn("provider.scopes", format!("the provider does not list the scope {scope:?} as supported{left_out}"));
        }
        let lacks = |list: &Option<Vec<String>>, name: &str| {
            list.as_ref().is_some_and(|list| !list.iter().any(|known| known == name))
        };
        let algorithm = settings.id_token_alg.name();
        if lacks(&metadata.id_token_algs, algorithm) {
            warn("provider.id_token_alg", format!("the provider does not sign ID tokens with {algorithm}"));
        }
        if lacks(&metadata.challenge_methods, "S256") {
            warn(
                "provider.issuer",
                "the provider does not announce PKCE with S256; it is sent all the same".to_owned(),
            );
        }
        let offers_par = metadata.pushed_authorization_request.is_some();
        match settings.par {
            Par::Off if metadata.par_required => warn(
                "provider.par",
                "the provider takes pushed authorization requests (PAR) only: set par = \"auto\"".to_owned(),
            ),
            Par::Auto if metadata.par_required && !offers_par => warn(
                "provider.par",
                "the provider takes pushed authorization requests (PAR) only, and tells no endpoint for them: no login \
                 can start; set endpoints.pushed_authorization_request"
                    .to_owned(),
            ),
            Par::Require if !offers_par => warn(
                "provider.par",
                "the provider offers no pushed authorization requests (PAR), so no login can start; set par = \"auto\", \
                 or endpoints.pushed_authorization_request when it has them all the same"
                    .to_owned(),
            ),
            _ => {}
        }
        if metadata.request_object_required && settings.signing_key.is_none() {
            warn(
                "provider.private_key_file",
                "the provider takes signed authorization requests only (JAR), and there is no key to sign them"
                    .to_owned(),
            );
        }
        let method = settings.client_auth.name();
        if lacks(&metadata.auth_methods, method) {
            let known = metadata.auth_methods.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(", ");
            warn("provider.client_auth", format!("the provider does not list {method} as supported, but {known}"));
        }
        if let ClientAuth::PrivateKeyJwt(key) = &settings.client_auth
            && lacks(&metadata.auth_algs, key.algorithm().name())
        {
            let algorithm = key.algorithm();
            warn("provider.private_key_alg", format!("the provider does not take client assertions by {algorithm}"));
        }
        if settings.dpop && !metadata.dpop_algs.as_ref().is_some_and(|algs| algs.iter().any(|alg| alg == "ES256")) {
            warn("provider.dpop", "the provider does not announce DPoP with ES256: logins will fail".to_owned());
        }
        if settings.form_post && lacks(&metadata.response_modes, "form_post") {
            warn("provider.response_mode", "the provider does not list form_post as supported".to_owned());
        }
        if settings.iss_required && !metadata.iss_parameter {
            warn(
                "provider.profile",
                "the provider does not announce iss in its authorization answers (RFC 9207), which FAPI 2.0 demands"
                    .to_owned(),
            );
        }
        if settings.name.is_some() && settings.own_callback.is_none() && !metadata.iss_parameter {
            warn(
                "provider.callback",
                "the provider does not announce iss in its authorization answers (RFC 9207): beside other providers, set \
                 callback = \"own\" and register that redirect URI there, so that its answers cannot be taken for another's"
                    .to_owned(),
            );
        }
        if settings.backchannel_logout && !metadata.backchannel_logout {
            warn(
                "logout.backchannel",
                "the provider does not announce back-channel logout: its logouts may not be heard of".to_owned(),
            );
        }
        if settings.frontchannel_logout && !metadata.frontchannel_logout {
            warn(
                "logout.frontchannel",
                "the provider does not announce front-channel logout: its logouts may not be heard of".to_owned(),
            );
        }
        if settings.introspection.is_some() && metadata.introspection.is_none() {
            warn(
                "provider.introspection",
                "the provider has no usable introspection endpoint: nobody learns there when a token ends".to_owned(),
            );
        }
        if settings.userinfo && metadata.userinfo.is_none() {
            warn("provider.userinfo", "the provider has no usable userinfo endpoint: logins will fail".to_owned());
        }
        findings
    }
}

#[async_trait]
impl Grant for Provider {
    async fn refresh(&self, request: RefreshRequest<'_>) -> Result<TokenSet, ProviderError> {
        let RefreshRequest { token, target, expect, now } = request;
        // `Invalid` ends the session, and a badly made answer is no word about the session.
        let not_ours = |error| match error {
            ProviderError::Invalid { reason } => ProviderError::Refused { reason },
            other => other,
        };
        let metadata = self.metadata().await?;
        // An answer that cannot be verified would cost the refresh token.
        self.load_keys(&metadata).await?;
        let dialect = &self.settings.dialect;
        let form = token::refresh_form(&self.settings, token, target);
        let began = Instant::now();
        let answer =
            self.client.post_as("token", &metadata.refresh, &form, expect.dpop.as_ref(), &dialect.refresh).await;
        let answer = answer.map_err(|error| not_ours(error.of_grant()))?;
        let token_type = TokenType::bound(expect.dpop.is_some());
        let answer = token::decode(&answer, token_type, dialect, self.default_life(), now);
        let mut answer = answer.map_err(not_ours)?;
        if !self.settings.openid {
            answer.id_token = None;
        }
        if let Some(raw) = answer.id_token.take() {
            let raw = self.decrypted(raw)?;
            let verified = self.verify(&metadata, &raw).await?;
            id_token::check_refresh(&verified, &self.settings, expect, &answer.access_token, self.after(now))?;
            answer.id_token = Some(raw);
        }
        self.learn_expiry(&metadata, &mut answer, began, now).await;
        Ok(token_set(answer))
    }
}

fn userinfo_members(answer: &Answer) -> Result<Claims, ProviderError> {
    json::object(&answer.body).map_err(|error| match error {
        json::JsonError::Syntax => ProviderError::Unavailable { reason: "userinfo", retry_after: None },
        json::JsonError::Shape => Fault("userinfo").into(),
    })
}

/// Reads the key set from where the metadata says.
struct KeySource<'a> {
    client: &'a Client,
    metadata: Arc<ProviderMetadata>,
    /// Tenants share the set.
    apart: bool,
}

#[async_trait]
impl FetchKeys for KeySource<'_> {
    async fn fetch(&self) -> Result<KeySet, ProviderError> {
        let url = self.metadata.jwks.as_ref().ok_or(ProviderError::Refused { reason: "jwks_uri" })?;
        let answer = self.client.get("jwks", url, None).await;
        let answer = document(answer.map_err(CallError::of_read)?)?;
        let keys = KeySet::parse(&answer.body).map_err(|Fault(reason)| ProviderError::Refused { reason })?;
        Ok(if self.apart { keys.keep_apart() } else { keys })
    }
}

/// A document of the provider: 200, or it is not one. Redirects are not followed.
fn document(answer: Answer) -> Result<Answer, ProviderError> {
    match answer.status {
        200 => Ok(answer),
        300..=399 => Err(ProviderError::Refused { reason: "redirect" }),
        408 | 425 | 429 | 500.. => {
            Err(ProviderError::Unavailable { reason: "server_error", retry_after: answer.retry_after })
        }
        _ => Err(ProviderError::Refused { reason: "status" }),
    }
}

fn token_set(answer: TokenAnswer) -> TokenSet {
    TokenSet {
        access_token: answer.access_token,
        access_expires: answer.access_expires,
        refresh_token: answer.refresh_token,
        refresh_expires: answer.refresh_expires,
        id_token: answer.id_token.map(IdToken::new),
        scope: answer.scope,
    }
}

/// The same failure, told while the back-off lasts.
fn later(error: ProviderError, left: Duration) -> ProviderError {
    match error {
        ProviderError::Unavailable { reason, retry_after } => {
            ProviderError::Unavailable { reason, retry_after: Some(retry_after.unwrap_or(left)) }
        }
        other => other,
    }
}

fn backoff(failures: u32) -> Duration {
    jittered(BACKOFF_FIRST.saturating_mul(2_u32.saturating_pow(failures)).min(BACKOFF_LAST))
}

/// 80 to 100 % of `pause`, so that replicas do not all come at once.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0_u8];
    let _ = SystemRandom::new().fill(&mut byte);
    pause.mul_f64(0.8 + 0.2 * f64::from(byte[0]) / 255.0)
}

#[cfg(test)]
#[path = "provider_tests.rs"]
mod tests;
