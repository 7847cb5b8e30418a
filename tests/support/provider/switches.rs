//! What a test may change about the provider.

use std::ops::Range;
use std::time::Duration;

use serde_json::{Map, Value};

use super::super::text::{Pairs, draw, mark};
use super::super::wire::Answer;
use super::fault::Fault;

/// An endpoint of the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    Discovery,
    Jwks,
    Authorize,
    Par,
    Token,
    Userinfo,
    Revocation,
    Introspection,
    EndSession,
    /// A path that the provider does not have.
    Other,
}

/// Which token requests an outage hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grants {
    Any,
    Code,
    Refresh,
}

/// How the client must authenticate (RFC 6749 section 2.3).
#[derive(Clone, Debug, PartialEq)]
pub enum ClientAuth {
    /// `client_secret_basic`, both parts form-encoded.
    Basic,
    /// The same without the encoding.
    BasicRaw,
    /// `client_secret_jwt`.
    SecretJwt,
    /// `private_key_jwt`, by one of these public keys.
    KeyJwt(Vec<Value>),
    /// `tls_client_auth`: the SHA-256 of the certificate, as `MutualTls` tells it.
    Tls(String),
    /// `client_secret_post`.
    Post,
    /// A public client: `client_id` in the form and nothing else.
    None,
}

/// What becomes of a refresh token that was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// It stays good, and the answer repeats it.
    None,
    /// A new one each time; an old one fails, and that is all.
    Token,
    /// A new one each time; an old one ends the whole session.
    Family,
}

/// What a spent refresh token gets within the leeway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeewayAnswer {
    /// Fresh tokens.
    Fresh,
    /// The same answer as the first time.
    Same,
}

/// A provider that does not answer as it should. See [`Switches::fail`].
#[derive(Clone, Debug)]
pub enum Outage {
    /// This status with `server_error` as JSON; nothing was done.
    Status(u16),
    /// This status, but the work was done: a refresh token is spent.
    StatusAfterCommit(u16),
    /// 429, with `Retry-After` when given.
    TooMany(Option<String>),
    /// 503 with `Retry-After`.
    Unavailable(Option<String>),
    /// A page of HTML with this status.
    Html(u16),
    /// 200 without content.
    Empty,
    /// The connection is closed before anything was done.
    Drop,
    /// The connection is closed without an answer after the work was done.
    DropAfterCommit,
    /// No answer, and nothing done, until the client gives up.
    Stall,
    /// The work is done, but no answer comes.
    StallAfterCommit,
    /// The ordinary answer, this much later.
    Slow(Duration),
    /// The work is done at once, but the answer comes this much later.
    Late(Duration),
    /// The head, then one blank every 20 ms, without end.
    Drip,
    /// 200 and this many bytes of JSON.
    Huge(usize),
    /// A redirect.
    Redirect(String),
    /// An OAuth error, written in the provider's [`ErrorStyle`].
    Refuse { status: u16, error: String, description: String },
    /// Exactly this answer; nothing was done.
    Answer(Answer),
    /// Exactly these bytes; then the connection is closed.
    Raw(Vec<u8>),
}

impl Outage {
    /// 400 with this OAuth error.
    pub fn error(error: &str) -> Self {
        let status = if error == "invalid_client" { 401 } else { 400 };
        Self::Refuse { status, error: error.to_owned(), description: "as the test wants it".to_owned() }
    }

    /// Exactly this JSON.
    pub fn json(status: u16, body: &str) -> Self {
        Self::Answer(Answer::json(status, body))
    }
}

/// How errors of the token endpoint look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorStyle {
    /// RFC 6749 section 5.2.
    Standard,
    /// 403 instead of 400 for `invalid_grant`, as Auth0 does.
    Auth0,
    /// Status 200; a dead refresh token is `bad_refresh_token`, as GitHub does.
    Status200,
    /// Status 200 with `errcode` and `errmsg`, content type `text/plain`, as WeChat does.
    Errcode,
    /// Status 200 with `ok: false`, as Slack does.
    OkFalse,
    /// A dead refresh token is `invalid_request` "… claimed by another client", as Dex says it.
    DexClaimed,
    /// A dead refresh token is `invalid_request` "Refresh token expired.", as Dex says it.
    DexExpired,
    /// A spent refresh token is `invalid_request` about concurrent requests, as Hydra says it (worth a retry).
    Hydra,
    /// The standard's JSON as `text/plain`.
    TextPlain,
    /// Form-encoded.
    Form,
}

/// How good token answers look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerStyle {
    /// RFC 6749 section 5.1.
    Json,
    /// Form-encoded, as GitHub answers without `Accept`.
    Form,
    /// JSON under another content type, for example `text/plain`.
    JsonAs(String),
    /// With `ok: true`, as Slack does.
    OkTrue,
    /// The same, with the tokens in `authed_user`.
    Nested,
    /// Without `token_type`, with `openid`, as `text/plain`, as WeChat does.
    WeChat,
    /// A JSON array around the object.
    Array,
    /// A member given twice: `access_token`.
    Doubled,
    /// This status instead of 200.
    Status(u16),
}

/// What `expires_in` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpiresIn {
    /// The access token's real lifetime.
    Honest,
    /// Nothing.
    Missing,
    /// This JSON text: `"\"3600\""`, `"3599.5"`, `"1e300"`, `"-5"`, `"null"` …
    Json(String),
}

/// What access tokens are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessToken {
    Opaque,
    /// Opaque, filled up to this many characters.
    Sized(usize),
    /// A signed JWT (RFC 9068).
    Jwt,
    /// An opaque one with this text after it, for example `"\r\nX: 1"`.
    With(String),
}

/// What the authorization endpoint answers to a good request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorization {
    /// `code`.
    Code,
    /// An error (RFC 6749 section 4.1.2.1), with more parameters.
    Error { error: String, more: Pairs },
    /// Only `state`: how WeChat says that the user refused.
    OnlyState,
    /// A page; no redirect.
    Page,
}

impl Authorization {
    /// An error without more parameters.
    pub fn error(error: &str) -> Self {
        Self::Error { error: error.to_owned(), more: Vec::new() }
    }
}

/// The `iss` parameter of the authorization answer (RFC 9207).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IssParameter {
    Right,
    Missing,
    Is(String),
}

/// What userinfo answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Userinfo {
    Json,
    /// `application/jwt`, signed.
    Signed,
    /// Signed, for another client.
    SignedWrongAud,
    /// Signed, of another issuer.
    SignedWrongIss,
    /// A JWT with `alg: none`.
    SignedNone,
    /// Signed, without `sub`.
    SignedWithoutSub,
    /// Signed with a key that is not in the set.
    SignedByOutsider,
    /// Another user's.
    WrongSub,
    /// No `sub`.
    MissingSub,
    /// With a claim in an embedded JWT (OpenID Connect Core section 5.6.2).
    Aggregated,
    /// With a claim that would have to be fetched from this URL.
    Distributed(String),
    /// A JSON array.
    Array,
    /// Claims that would replace those of the ID token.
    ReplacesIssuer,
}

/// What the end-session endpoint does with `state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogoutReturn {
    /// Gives it back.
    Right,
    /// Gives another one back.
    OtherState,
    /// Leaves it out.
    NoState,
    /// Shows a page and sends nobody back.
    Page,
}

/// Pushed authorization requests (RFC 9126).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Par {
    Off,
    Offered,
    Required,
}

/// Proofs of possession (RFC 9449).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dpop {
    /// Unknown here: tokens are bearer tokens.
    Off,
    /// Demanded; tokens are bound.
    Bound,
    /// Also with a nonce of the provider.
    WithNonce,
    /// Every proof lacks the newest nonce.
    NeverContent,
}

/// Everything that a test may change, at any time. The default is a strict, well-behaved provider.
#[derive(Clone, Debug)]
pub struct Switches {
    // The client.
    pub client_id: String,
    pub client_secret: String,
    pub client_auth: ClientAuth,
    pub dpop: Dpop,
    /// Authorization requests must be signed by one of these public keys.
    pub request_object: Option<Vec<Value>>,
    /// PKCE is demanded; else it must not be there.
    pub pkce: bool,
    /// As WeChat has it: the client is `appid` and `secret`, token requests are GET, a refresh has no secret.
    pub wechat: bool,
    /// Exact; see `ProviderDouble::register`.
    pub redirect_uris: Vec<String>,
    pub post_logout_redirect_uris: Vec<String>,

    // The user.
    pub sub: String,
    pub name: String,
    pub email: String,
    /// More claims, in the ID token.
    pub id_claims: Map<String, Value>,
    /// More claims, in userinfo.
    pub userinfo_claims: Map<String, Value>,
    /// False: `prompt=none` fails with `login_required`.
    pub signed_in: bool,
    /// Seconds since the user signed in at the provider.
    pub auth_age: i64,
    /// `acr`; without it the first of the `acr_values` asked for.
    pub acr: Option<String>,

    // Discovery.
    /// Another `issuer` in the document.
    pub document_issuer: Option<String>,
    /// Members left out.
    pub omit: Vec<String>,
    /// Members added or replaced.
    pub document: Map<String, Value>,
    /// Members written a second time, as JSON text, before the first.
    pub document_doubled: Vec<(String, String)>,
    /// Says `authorization_response_iss_parameter_supported`.
    pub announce_iss: bool,
    pub par: Par,

    // Keys. See also the methods of `ProviderDouble`.
    /// Published before the real keys: odd ones, decoys.
    pub more_keys: Vec<Value>,
    /// Leaves `kid` out of the set and of token headers.
    pub without_kid: bool,
    /// A new key is made, and the old one withdrawn, right before the next ID token is signed.
    pub rotate_before_signing: bool,
    /// Replaces the whole key set document.
    pub jwks_document: Option<String>,

    // Authorization.
    pub authorization: Authorization,
    pub iss_parameter: IssParameter,
    /// More parameters of the authorization answer, for example `session_state`.
    pub authorization_more: Pairs,
    /// `state` is given back altered.
    pub wrong_state: bool,

    // Tokens.
    /// How long access tokens really live, in seconds.
    pub access_lifetime: i64,
    pub expires_in: ExpiresIn,
    pub access_token: AccessToken,
    /// Seconds; said as `refresh_expires_in` too.
    pub refresh_lifetime: Option<i64>,
    /// Put at the end of every refresh token.
    pub refresh_token_tail: String,
    pub refresh_token_size: usize,
    pub refresh_token_at_login: bool,
    pub refresh_token_at_refresh: bool,
    pub id_token_at_login: bool,
    pub id_token_at_refresh: bool,
    /// The nonce of the login in ID tokens of a refresh.
    pub nonce_at_refresh: bool,
    /// `RS256`, `PS256`, `RS384`, `ES256` or `EdDSA`.
    pub id_token_alg: &'static str,
    pub id_lifetime: i64,
    /// `None`: the member is missing.
    pub token_type: Option<String>,
    /// Scope in the answer: `None` echoes what was asked, an empty one is not named.
    pub granted_scope: Option<String>,
    /// More members of the token answer.
    pub token_more: Map<String, Value>,
    pub answer_style: AnswerStyle,
    pub error_style: ErrorStyle,

    /// ID tokens are encrypted to the client: by `ECDH-ES` to this public key, without one by `dir`.
    pub id_token_encryption: Option<Option<Value>>,

    // What is wrong with ID tokens.
    pub fault: Option<Fault>,
    /// The same for ID tokens of a refresh.
    pub refresh_fault: Option<Fault>,

    // Refresh.
    pub rotation: Rotation,
    /// How long a spent refresh token is still taken.
    pub leeway: Duration,
    /// How often it is still taken within that time; `None`: as often as one likes. With a zero leeway the count alone
    /// decides.
    pub leeway_count: Option<u32>,
    pub leeway_answer: LeewayAnswer,
    /// A refresh ends the access tokens issued before.
    pub kills_access_token: bool,

    // The rest.
    pub userinfo: Userinfo,
    pub logout_return: LogoutReturn,
    /// What befalls a refresh for which no outage was planned, now and then: so many in a hundred, each.
    pub refresh_mishaps: Vec<(u8, Outage)>,
    /// How long a refresh takes, in milliseconds, drawn anew for each; the work is done in the middle of it.
    pub refresh_latency: Range<u64>,
    pub(super) outages: Vec<Planned>,
}

/// An outage that is still to happen.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) endpoint: Endpoint,
    pub(super) grants: Grants,
    pub(super) outage: Outage,
    pub(super) times: Option<u32>,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            client_id: "spa-client".to_owned(),
            client_secret: mark("secret-"),
            client_auth: ClientAuth::Basic,
            dpop: Dpop::Off,
            request_object: None,
            pkce: true,
            wechat: false,
            redirect_uris: Vec::new(),
            post_logout_redirect_uris: Vec::new(),
            sub: "alice-4711".to_owned(),
            name: "Alice Example".to_owned(),
            email: "alice@users.example".to_owned(),
            id_claims: Map::new(),
            userinfo_claims: Map::new(),
            signed_in: true,
            auth_age: 5,
            acr: None,
            document_issuer: None,
            omit: Vec::new(),
            document: Map::new(),
            document_doubled: Vec::new(),
            announce_iss: true,
            par: Par::Off,
            more_keys: Vec::new(),
            without_kid: false,
            rotate_before_signing: false,
            jwks_document: None,
            authorization: Authorization::Code,
            iss_parameter: IssParameter::Right,
            authorization_more: Vec::new(),
            wrong_state: false,
            access_lifetime: 3600,
            expires_in: ExpiresIn::Honest,
            access_token: AccessToken::Opaque,
            refresh_lifetime: None,
            refresh_token_tail: String::new(),
            refresh_token_size: 0,
            refresh_token_at_login: true,
            refresh_token_at_refresh: true,
            id_token_at_login: true,
            id_token_at_refresh: true,
            nonce_at_refresh: false,
            id_token_alg: "RS256",
            id_lifetime: 300,
            token_type: Some("Bearer".to_owned()),
            granted_scope: None,
            token_more: Map::new(),
            answer_style: AnswerStyle::Json,
            error_style: ErrorStyle::Standard,
            id_token_encryption: None,
            fault: None,
            refresh_fault: None,
            rotation: Rotation::None,
            leeway: Duration::ZERO,
            leeway_count: None,
            leeway_answer: LeewayAnswer::Fresh,
            kills_access_token: false,
            userinfo: Userinfo::Json,
            logout_return: LogoutReturn::Right,
            refresh_mishaps: Vec::new(),
            refresh_latency: 0..0,
            outages: Vec::new(),
        }
    }
}

impl Switches {
    /// Every request to `endpoint` meets this outage, until [`Switches::heal`].
    pub fn fail(&mut self, endpoint: Endpoint, outage: Outage) {
        self.plan(endpoint, Grants::Any, outage, None);
    }

    /// The next `times` requests meet it. Outages planned one after the other happen one after the other.
    pub fn fail_times(&mut self, endpoint: Endpoint, outage: Outage, times: u32) {
        self.plan(endpoint, Grants::Any, outage, Some(times));
    }

    /// Every refresh meets it; code exchanges do not.
    pub fn fail_refresh(&mut self, outage: Outage) {
        self.plan(Endpoint::Token, Grants::Refresh, outage, None);
    }

    /// The next `times` refreshes meet it.
    pub fn fail_refresh_times(&mut self, outage: Outage, times: u32) {
        self.plan(Endpoint::Token, Grants::Refresh, outage, Some(times));
    }

    /// Every code exchange meets it.
    pub fn fail_code(&mut self, outage: Outage) {
        self.plan(Endpoint::Token, Grants::Code, outage, None);
    }

    /// Ends all outages of `endpoint`.
    pub fn heal(&mut self, endpoint: Endpoint) {
        self.outages.retain(|p| p.endpoint != endpoint);
    }

    fn plan(&mut self, endpoint: Endpoint, grants: Grants, outage: Outage, times: Option<u32>) {
        self.outages.push(Planned { endpoint, grants, outage, times });
    }

    pub(super) fn next_outage(&mut self, endpoint: Endpoint, grants: Grants) -> Option<Outage> {
        let fits = |p: &Planned| {
            p.endpoint == endpoint && (p.grants == Grants::Any || p.grants == grants) && p.times != Some(0)
        };
        if let Some(planned) = self.outages.iter_mut().find(|p| fits(p)) {
            planned.times = planned.times.map(|n| n - 1);
            return Some(planned.outage.clone());
        }
        if grants != Grants::Refresh {
            return None;
        }
        let mut drawn = draw(0..100);
        for (percent, outage) in &self.refresh_mishaps {
            match drawn.checked_sub(u64::from(*percent)) {
                Some(rest) => drawn = rest,
                None => return Some(outage.clone()),
            }
        }
        None
    }
}
