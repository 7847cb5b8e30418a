//! What the operator says about the provider, parsed.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::jwt::Algorithm;
use crate::secret::Secret;

/// How the client proves itself at the provider (OpenID Connect Core section 9).
#[derive(Clone, Debug)]
pub enum ClientAuth {
    /// `client_secret_basic`, form-encoded before base64 (RFC 6749 section 2.3.1).
    Basic(Secret),
    /// `client_secret_post`.
    Post(Secret),
    /// A public client.
    None,
}

/// Endpoints that replace what discovery says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    pub authorization: Option<Url>,
    pub token: Option<Url>,
    pub jwks: Option<Url>,
    pub userinfo: Option<Url>,
    pub end_session: Option<Url>,
    pub revocation: Option<Url>,
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
    /// Compared byte for byte with `issuer` and `iss`.
    pub issuer: String,
    /// Where metadata is read.
    pub discovery_url: Url,
    /// Replaces the origin of token, keys, userinfo and revocation endpoints.
    pub backchannel_base_url: Option<Url>,
    pub client_id: String,
    pub client_auth: ClientAuth,
    /// Extra trust anchors (PEM), read at start and whenever the file changes.
    pub ca_file: Option<PathBuf>,
    pub scopes: Vec<String>,
    pub audience: Option<String>,
    pub resource: Vec<String>,
    pub authorize_params: Vec<(String, String)>,
    pub token_params: Vec<(String, String)>,
    /// Which parameters `/auth/login` may pass on.
    pub login_params: Vec<String>,
    /// The one accepted signature algorithm.
    pub id_token_alg: Algorithm,
    pub trusted_audiences: Vec<String>,
    pub userinfo: bool,
    pub endpoints: Endpoints,
    /// Bounds every call.
    pub timeout: Duration,
    pub clock_skew: Duration,
    /// `http://host:port` for all calls to the provider.
    pub proxy: Option<Url>,
    /// Life of an access token when the provider tells nothing.
    pub default_expires_in: Option<Duration>,
    /// `<public_url><prefix>/callback`.
    pub redirect_uri: String,
    /// `<public_url><prefix>/logout/return`.
    pub post_logout_redirect_uri: String,
    /// Try RP-initiated logout.
    pub logout_at_provider: bool,
    pub logout_style: LogoutStyle,
    /// Revoke tokens at logout (RFC 7009).
    pub revoke: bool,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("issuer", &self.issuer)
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}
