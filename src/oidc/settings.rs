//! What the operator says about the provider, parsed.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ring::digest;
use url::Url;

use super::dialect::Dialect;
use super::jwe::Decryption;
use super::jwt::Algorithm;
use super::signing::SigningKey;
use super::types::ProviderKey;
use crate::secret::Secret;

/// How the client proves itself at the provider (OpenID Connect Core section 9).
#[derive(Clone, Debug)]
pub enum ClientAuth {
    /// `client_secret_basic`, form-encoded before base64 (RFC 6749 section 2.3.1).
    Basic(Secret),
    /// The same without the encoding, for servers that do not decode.
    BasicRaw(Secret),
    /// `client_secret_post`.
    Post(Secret),
    /// `client_secret_jwt`, by HS256.
    SecretJwt(Secret),
    /// `private_key_jwt`.
    PrivateKeyJwt(Arc<SigningKey>),
    /// `tls_client_auth` (RFC 8705): by `client_certificate`.
    Tls,
    /// A public client.
    None,
}

impl ClientAuth {
    /// The registered name (RFC 8414 section 2).
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Basic(_) | Self::BasicRaw(_) => "client_secret_basic",
            Self::Post(_) => "client_secret_post",
            Self::SecretJwt(_) => "client_secret_jwt",
            Self::PrivateKeyJwt(_) => "private_key_jwt",
            Self::Tls => "tls_client_auth",
            Self::None => "none",
        }
    }

    /// The client secret, where there is one.
    pub fn secret(&self) -> Option<&str> {
        match self {
            Self::Basic(secret) | Self::BasicRaw(secret) | Self::Post(secret) | Self::SecretJwt(secret) => {
                Some(secret.expose())
            }
            Self::PrivateKeyJwt(_) | Self::Tls | Self::None => None,
        }
    }
}

/// PEM files of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// Chain, own certificate first.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// Whether authorization requests are pushed (RFC 9126).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Par {
    /// Where the provider offers it.
    Auto,
    /// Or there is no login.
    Require,
    /// Never.
    Off,
}

/// Whether authorization requests are signed (RFC 9101).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestObject {
    /// Where the provider demands it.
    Auto,
    /// Always.
    Require,
}

/// Endpoints that replace what discovery says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    pub authorization: Option<Url>,
    pub token: Option<Url>,
    /// Where refresh tokens are redeemed, when that is elsewhere.
    pub refresh: Option<Url>,
    pub jwks: Option<Url>,
    pub userinfo: Option<Url>,
    pub end_session: Option<Url>,
    pub revocation: Option<Url>,
    pub introspection: Option<Url>,
    pub pushed_authorization_request: Option<Url>,
}

/// How the browser leaves the provider: what the end-session endpoint wants to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogoutStyle {
    /// OpenID Connect RP-Initiated Logout: `id_token_hint`, `client_id`, `post_logout_redirect_uri`, `state`.
    #[default]
    Oidc,
    /// Amazon Cognito: `client_id`, `logout_uri`.
    Cognito,
    /// Auth0's `/v2/logout`: `client_id`, `returnTo`.
    Auth0V2,
    /// There is nothing of the kind: logout ends here.
    None,
}

/// `[provider]`. `Debug` names the provider only: fixed parameters may hold what a provider takes for a credential.
#[derive(Clone)]
pub struct Settings {
    /// What links call it; none when it is the only one.
    pub name: Option<String>,
    /// The last segment of `redirect_uri`, where its answers come to a callback of its own.
    pub own_callback: Option<String>,
    /// Compared byte for byte with `issuer` and `iss`; `{tenantid}` in it stands for the tenant of a token. A provider
    /// without an issuer is named by its token endpoint.
    pub issuer: String,
    /// False: `issuer` is a name of ours, and no `iss` is compared with it.
    pub has_issuer: bool,
    /// Whose users may come, where `issuer` has `{tenantid}`; empty = anybody.
    pub allowed_tenants: Vec<String>,
    /// A login brings an ID token, or it is refused.
    pub openid: bool,
    pub dialect: Dialect,
    /// Where metadata is read; none = there is none, and `endpoints` say all.
    pub discovery_url: Option<Url>,
    /// Where it is read when there is no document at `discovery_url`: RFC 8414 and OpenID Connect Discovery call it
    /// otherwise, and which of them an authorization server follows is not said.
    pub other_discovery_url: Option<Url>,
    /// Replaces the origin of token, keys, userinfo and revocation endpoints.
    pub backchannel_base_url: Option<Url>,
    pub client_id: String,
    pub client_auth: ClientAuth,
    /// Signs authorization requests where that is wanted.
    pub signing_key: Option<Arc<SigningKey>>,
    /// Shown to the provider in the TLS handshake; read when the client is made.
    pub client_certificate: Option<CertificateFiles>,
    pub par: Par,
    pub request_object: RequestObject,
    /// Bind tokens to a key of the session (RFC 9449).
    pub dpop: bool,
    /// The provider's answer comes as a form, by POST.
    pub form_post: bool,
    /// `iss` must be in the authorization answer, announced or not (FAPI 2.0 section 5.3.3).
    pub iss_required: bool,
    /// Extra trust anchors (PEM), read at start and whenever the file changes.
    pub ca_file: Option<PathBuf>,
    pub scopes: Vec<String>,
    /// A login that is granted less is refused.
    pub required_scopes: Vec<String>,
    pub audience: Option<String>,
    pub resource: Vec<String>,
    pub authorize_params: Vec<(String, String)>,
    pub token_params: Vec<(String, String)>,
    /// Which parameters `/auth/login` may pass on.
    pub login_params: Vec<String>,
    /// The one accepted signature algorithm.
    pub id_token_alg: Algorithm,
    /// ID tokens are encrypted; else they must not be.
    pub id_token_decryption: Option<Arc<Decryption>>,
    pub trusted_audiences: Vec<String>,
    pub userinfo: bool,
    pub endpoints: Endpoints,
    /// Bounds every call.
    pub timeout: Duration,
    pub clock_skew: Duration,
    /// `http://host:port` for all calls to the provider.
    pub proxy: Option<Url>,
    /// The provider is asked when a token ends that nothing else is known of (RFC 7662), if the call that brought the token
    /// took less than this.
    pub introspection: Option<Duration>,
    /// Life of an access token when the provider tells nothing.
    pub default_expires_in: Option<Duration>,
    /// `<public_url><prefix>/callback`, or the provider's own below it.
    pub redirect_uri: String,
    /// `<public_url><prefix>/logout/return`.
    pub post_logout_redirect_uri: String,
    /// Try RP-initiated logout.
    pub logout_at_provider: bool,
    /// Its logout tokens are taken (OpenID Connect Back-Channel Logout).
    pub backchannel_logout: bool,
    /// Its pages may end sessions (OpenID Connect Front-Channel Logout).
    pub frontchannel_logout: bool,
    pub logout_style: LogoutStyle,
    /// Revoke tokens at logout (RFC 7009).
    pub revoke: bool,
}

/// Stands in `issuer` for the tenant of a token.
const TENANT: &str = "{tenantid}";

impl Settings {
    /// Whether nothing of a login is left for metadata to say.
    pub const fn says_all(&self) -> bool {
        let own = &self.endpoints;
        own.authorization.is_some() && own.token.is_some() && (own.jwks.is_some() || !self.openid)
    }

    /// Its key among several; none when it is the only one.
    pub fn key(&self) -> Option<ProviderKey> {
        self.name.as_ref()?;
        let text = format!("{}\0{}", self.issuer, self.client_id);
        let hash = digest::digest(&digest::SHA256, text.as_bytes());
        hash.as_ref().first_chunk().copied().map(ProviderKey)
    }

    /// Whether this `iss` is our provider's. With a template the tenant must be one that may come; a token says it in
    /// `tid` too, and then both must agree.
    pub fn is_issuer(&self, iss: &str, tid: Option<&str>) -> bool {
        if !self.has_tenants() {
            return iss == self.issuer;
        }
        tenant(&self.issuer, iss).is_some_and(|tenant| {
            tid.is_none_or(|tid| tid == tenant)
                && (self.allowed_tenants.is_empty() || self.allowed_tenants.iter().any(|allowed| allowed == tenant))
        })
    }

    /// Whether the issuer stands for those of many tenants.
    pub fn has_tenants(&self) -> bool {
        self.issuer.contains(TENANT)
    }
}

/// The tenant whose issuer this is, by a template.
pub(super) fn tenant<'i>(template: &str, iss: &'i str) -> Option<&'i str> {
    let (before, after) = template.split_once(TENANT)?;
    let tenant = iss.strip_prefix(before)?.strip_suffix(after)?;
    let plain = tenant.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (plain && !tenant.is_empty()).then_some(tenant)
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("issuer", &self.issuer)
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}
