//! The configuration file as serde sees it: every key, its type and its default. The JSON Schema is derived from here,
//! and files are judged by that schema, so this is the one place where a key is spelled.
//!
//! Serializing a [`RawConfig`] gives the effective configuration with secrets masked.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::dialect::RawDialect;
use super::text::{DurationOrOff, DurationText, SizeOrNone, SizeText};
use crate::secret::{MASK, Secret};

/// One value, or a list of them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// Just one.
    One(T),
    /// A list.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    /// All values in order.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// Declares a closed set of words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$attribute:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub enum $name { $( #[serde(rename = $text)] $variant ),+ }

        impl $name {
            /// As the file spells it.
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $text ),+ }
            }
        }
    };
}

/// The configuration file of sidegate.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RawConfig {
    /// Where sidegate listens, and under which origin the browser knows it.
    pub server: Server,
    /// Bounds on what a client may send and how slowly.
    pub limits: Limits,
    /// The operator's listener: probes, metrics, effective configuration.
    pub admin: Admin,
    /// The OpenID Connect provider; `[[provider]]` with `name` for several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<OneOrMany<Provider>>,
    /// Presets of your own, or changes to named ones.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", serialize_with = "super::presets::masked")]
    pub presets: BTreeMap<String, BTreeMap<String, Value>>,
    /// The session, its cookies and keys.
    pub session: Session,
    /// When and how access tokens are refreshed.
    pub refresh: Refresh,
    /// Redis or Valkey, shared by the replicas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
    /// How a request proves that it comes from the app.
    pub csrf: Csrf,
    /// What happens at logout.
    pub logout: Logout,
    /// What the session endpoint tells about the user.
    pub claims: Claims,
    /// Routes; the longest matching path wins.
    pub route: Vec<Route>,
    /// sidegate's own endpoints.
    pub endpoints: Endpoints,
    /// The forward-auth listener for other proxies.
    pub verify: Verify,
    /// Logging.
    pub log: Log,
    /// Traces over OTLP.
    pub tracing: Tracing,
}

/// `[server]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// Address such as `0.0.0.0:8080` or `unix:/run/sidegate.sock`, or a list of them. A change needs a restart.
    pub listen: OneOrMany<String>,
    /// Required. The one origin that the browser uses: `https://app.example.com`; `http` only on loopback hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
    /// TLS towards the browser; off when absent. Switching it on or off needs a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
    /// CIDRs of proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<String>,
    /// PROXY protocol v1 and v2, only from `trusted_proxies`.
    pub proxy_protocol: bool,
    /// Worker threads; 0 = the CPUs that this container may use. A change needs a restart.
    #[schemars(range(max = 1024))]
    pub threads: u32,
    /// HTTP/2 without TLS, by prior knowledge.
    pub h2c: bool,
    /// Says that this is the only instance.
    pub single_replica: bool,
    /// After SIGTERM: not ready, but serving, for this long.
    pub shutdown_delay: DurationText,
    /// Then the longest time that requests in flight get.
    pub shutdown_drain: DurationText,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: OneOrMany::One("127.0.0.1:8080".to_owned()),
            public_url: None,
            tls: None,
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
            threads: 0,
            h2c: false,
            single_replica: false,
            shutdown_delay: DurationText::new("5s"),
            shutdown_drain: DurationText::new("25s"),
        }
    }
}

/// `server.tls`
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerTls {
    /// Certificate chain, PEM, the server's own first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<String>,
    /// Private key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
    /// Clients must show a certificate of these authorities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca_file: Option<String>,
}

/// `[limits]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Largest request head.
    pub header_bytes: SizeText,
    /// Most header fields of a request.
    #[schemars(range(min = 1))]
    pub header_count: u32,
    /// Longest request target.
    pub uri_bytes: SizeText,
    /// Time for a whole request head.
    pub head_timeout: DurationText,
    /// Idle time between two requests of a connection.
    pub keepalive: DurationText,
    /// Silence within a body.
    pub body_idle: DurationText,
    /// Most client connections at a time.
    #[schemars(range(min = 1))]
    pub connections: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: SizeText::new("32KiB"),
            header_count: 100,
            uri_bytes: SizeText::new("16KiB"),
            head_timeout: DurationText::new("10s"),
            keepalive: DurationText::new("75s"),
            body_idle: DurationText::new("60s"),
            connections: 10_000,
        }
    }
}

/// `[admin]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Address, or `off`. A change needs a restart.
    pub listen: String,
    /// `/readyz` is 503 until the provider's metadata was loaded once.
    pub ready_requires_provider: bool,
    /// File with the bearer that `POST /revoke` asks for; without it the endpoint is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9180".to_owned(), ready_requires_provider: false, token_file: None }
    }
}

words!(
    /// How the client proves itself at the provider.
    ClientAuth {
        Basic = "client_secret_basic",
        Post = "client_secret_post",
        SecretJwt = "client_secret_jwt",
        PrivateKeyJwt = "private_key_jwt",
        Tls = "tls_client_auth",
        None = "none",
    }
);
words!(
    /// Signature algorithm of client assertions.
    PrivateKeyAlg { Es256 = "ES256", Rs256 = "RS256", Ps256 = "PS256", EdDsa = "EdDSA" }
);
words!(
    /// Signature algorithm of ID tokens.
    IdTokenAlg {
        Rs256 = "RS256", Rs384 = "RS384", Rs512 = "RS512",
        Ps256 = "PS256", Ps384 = "PS384", Ps512 = "PS512",
        Es256 = "ES256", Es384 = "ES384", EdDsa = "EdDSA",
    }
);
words!(
    /// How the key of an encrypted ID token is agreed on.
    IdTokenKeyManagement {
        Dir = "dir", EcdhEs = "ECDH-ES", EcdhEsA128Kw = "ECDH-ES+A128KW", EcdhEsA256Kw = "ECDH-ES+A256KW",
    }
);
words!(
    /// How an ID token is encrypted.
    IdTokenEncryption { A128Gcm = "A128GCM", A256Gcm = "A256GCM" }
);
words!(
    /// Pushed authorization requests (RFC 9126).
    Par { Auto = "auto", Require = "require", Off = "off" }
);
words!(
    /// Signed authorization requests (RFC 9101).
    RequestObject { Auto = "auto", Require = "require" }
);
words!(
    /// Sender-constrained tokens (RFC 9449).
    Dpop { Off = "off", Require = "require" }
);
words!(
    /// Where the provider sends its answers.
    Callback { Shared = "shared", Own = "own" }
);
words!(
    /// How the provider's answer travels back.
    ResponseMode { Query = "query", FormPost = "form_post" }
);
words!(
    /// A security profile to enforce.
    SecurityProfile { Fapi2 = "fapi2" }
);

/// `[provider]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Provider {
    /// With `[[provider]]`: what `/auth/login?provider=` calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// With `[[provider]]`: `own` has this provider send its answers to a callback of its own, `<prefix>/callback/NAME`, so
    /// that they cannot be taken for another one's.
    pub callback: Callback,
    /// False: nobody logs in here; routes have the client's own token of it, by `token = { client_credentials, provider }`.
    pub login: bool,
    /// `oidc`, `oauth2`, or a named provider. It only fills in other keys.
    pub preset: String,
    /// Required with OpenID Connect. Compared byte for byte with what the provider says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Where metadata is; by default the issuer's well-known path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discovery_url: Option<String>,
    /// Reach token, keys, userinfo and revocation under this origin, and keep `issuer` public.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backchannel_base_url: Option<String>,
    /// Required. The client id as registered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// The client secret; better `client_secret_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<Secret>,
    /// File with the client secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_secret_file: Option<String>,
    /// How the client proves itself.
    pub client_auth: ClientAuth,
    /// Key for `private_key_jwt`, PEM or JWK.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_key_file: Option<String>,
    /// Its algorithm; by default the one that fits the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_key_alg: Option<PrivateKeyAlg>,
    /// Its `kid`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_key_id: Option<String>,
    /// Client certificate towards the provider, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert_file: Option<String>,
    /// Its private key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key_file: Option<String>,
    /// Extra trust anchors for the provider, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Scopes to ask for, sent as given.
    pub scopes: Vec<String>,
    /// Scopes without which a login is refused.
    pub required_scopes: Vec<String>,
    /// `audience` parameter, for providers that know it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// `resource` parameter (RFC 8707).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<OneOrMany<String>>,
    /// Fixed extra parameters of the authorization request.
    pub authorize_params: BTreeMap<String, String>,
    /// Fixed extra parameters of token requests; masked when shown, some are secret.
    pub token_params: BTreeMap<String, Secret>,
    /// Ask the provider when an access token ends, where neither its answer nor the token says it (RFC 7662).
    pub introspection: bool,
    /// ID tokens are encrypted, by this algorithm (RFC 7518 section 4); absent: they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id_token_encrypted_response_alg: Option<IdTokenKeyManagement>,
    /// How the content of encrypted ID tokens is (RFC 7518 section 5).
    pub id_token_encrypted_response_enc: IdTokenEncryption,
    /// P-256 key that opens encrypted ID tokens: PEM or JWK. Changes are noticed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decryption_key_file: Option<String>,
    /// Parameters that `/auth/login` passes on.
    pub login_params: Vec<String>,
    /// Pushed authorization requests.
    pub par: Par,
    /// Signed authorization requests: `auto` where the provider demands them; by `private_key_file`.
    pub request_object: RequestObject,
    /// Sender-constrained tokens.
    pub dpop: Dpop,
    /// How the provider's answer travels back.
    pub response_mode: ResponseMode,
    /// The one accepted signature algorithm of ID tokens.
    pub id_token_alg: IdTokenAlg,
    /// Other audiences that an ID token may also name.
    pub trusted_audiences: Vec<String>,
    /// Fetch userinfo at login and merge its claims.
    pub userinfo: bool,
    /// A security profile to turn on and enforce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<SecurityProfile>,
    /// Endpoints that replace those of discovery.
    pub endpoints: ProviderEndpoints,
    /// Bounds every call to the provider.
    pub timeout: DurationText,
    /// How far the provider's clock may be off.
    pub clock_skew: DurationText,
    /// Forward proxy for all calls: `http://host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// A token endpoint that departs from the standard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dialect: Option<RawDialect>,
    /// For presets with tenants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Tenants whose users may sign in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_tenants: Option<Vec<String>>,
    /// For presets with a domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// For presets with environments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// For presets with environment ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment_id: Option<String>,
    /// For presets with regions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// For presets with projects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    /// For presets with scopes of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_scopes: Option<Vec<String>>,
}

impl Default for Provider {
    fn default() -> Self {
        Self {
            name: None,
            callback: Callback::Shared,
            login: true,
            preset: "oidc".to_owned(),
            issuer: None,
            discovery_url: None,
            backchannel_base_url: None,
            client_id: None,
            client_secret: None,
            client_secret_file: None,
            client_auth: ClientAuth::Basic,
            private_key_file: None,
            private_key_alg: None,
            private_key_id: None,
            tls_cert_file: None,
            tls_key_file: None,
            ca_file: None,
            scopes: strings(&["openid", "offline_access"]),
            required_scopes: Vec::new(),
            audience: None,
            resource: None,
            authorize_params: BTreeMap::new(),
            token_params: BTreeMap::new(),
            login_params: strings(&["prompt", "login_hint", "ui_locales", "acr_values", "max_age"]),
            par: Par::Auto,
            request_object: RequestObject::Auto,
            dpop: Dpop::Off,
            response_mode: ResponseMode::Query,
            id_token_alg: IdTokenAlg::Rs256,
            trusted_audiences: Vec::new(),
            introspection: false,
            id_token_encrypted_response_alg: None,
            id_token_encrypted_response_enc: IdTokenEncryption::A256Gcm,
            decryption_key_file: None,
            userinfo: false,
            profile: None,
            endpoints: ProviderEndpoints::default(),
            timeout: DurationText::new("8s"),
            clock_skew: DurationText::new("60s"),
            proxy: None,
            dialect: None,
            tenant: None,
            allowed_tenants: None,
            domain: None,
            environment: None,
            environment_id: None,
            region: None,
            project_id: None,
            user_scopes: None,
        }
    }
}

/// `[provider.endpoints]`
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ProviderEndpoints {
    /// Authorization endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorization: Option<String>,
    /// Token endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Token endpoint for refreshes, where it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh: Option<String>,
    /// Signature keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwks: Option<String>,
    /// Userinfo endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userinfo: Option<String>,
    /// RP-initiated logout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_session: Option<String>,
    /// Token introspection (RFC 7662).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub introspection: Option<String>,
    /// Token revocation (RFC 7009).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revocation: Option<String>,
    /// Pushed authorization requests (RFC 9126).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pushed_authorization_request: Option<String>,
}

words!(
    /// Where sessions are kept.
    Store { Cookie = "cookie", Redis = "redis" }
);
words!(
    /// The `SameSite` attribute.
    SameSite { Strict = "strict", Lax = "lax", None = "none" }
);
words!(
    /// How the session is spread over cookies.
    Layout { Single = "single", Split = "split" }
);

/// `[session]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Session {
    /// `cookie`: the sealed session travels in the browser. `redis`: only a ticket does.
    pub store: Store,
    /// Cookie keys as `sidegate keygen` prints them, newest first; better `key_files`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<Secret>>,
    /// Files with one cookie key each, newest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_files: Option<Vec<String>>,
    /// Base name of the cookies.
    pub cookie_name: String,
    /// `SameSite` of the session cookie; `none` only with `partitioned`.
    pub same_site: SameSite,
    /// CHIPS: a cookie jar per embedding site.
    pub partitioned: bool,
    /// `split`: the refresh token in a cookie of its own.
    pub layout: Layout,
    /// Absolute life from login.
    pub max_age: DurationText,
    /// Ends a session without forwarded requests.
    pub idle_timeout: DurationOrOff,
    /// A new login after so many refreshes; 0 = no limit.
    pub max_refreshes: u64,
    /// Largest total of our cookies.
    pub header_budget: SizeText,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            store: Store::Cookie,
            keys: None,
            key_files: None,
            cookie_name: "sidegate".to_owned(),
            same_site: SameSite::Strict,
            partitioned: false,
            layout: Layout::Single,
            max_age: DurationText::new("12h"),
            idle_timeout: DurationOrOff::new("off"),
            max_refreshes: 0,
            header_budget: SizeText::new("7600B"),
        }
    }
}

words!(
    /// What is repeated after a 401 of the upstream.
    OnUpstream401 { Replayable = "replayable", Off = "off" }
);
words!(
    /// What happens to a cookie that was superseded long ago.
    OnReuse { Ignore = "ignore", Reauthenticate = "reauthenticate", Revoke = "revoke" }
);
words!(
    /// What a request gets whose refresh token turns out dead.
    OnDead { Redirect = "redirect", Unauthorized = "401" }
);
words!(
    /// How the provider rotates refresh tokens.
    Rotation { None = "none", Single = "single", Maybe = "maybe" }
);
words!(
    /// What the provider does when a spent refresh token comes back.
    Reuse { Token = "token", Family = "family" }
);

/// `[refresh]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Refresh {
    /// Refresh this long before the access token ends, at most 20 % of its life.
    pub before_expiry: DurationText,
    /// Refresh this long after the token was issued, whatever its expiry.
    pub after: DurationOrOff,
    /// Bounds one try.
    pub timeout: DurationText,
    /// The longest that a request waits in all.
    pub wait: DurationText,
    /// How long a result is kept after the new cookie was seen.
    pub grace: DurationText,
    /// How long a result is kept while the new cookie was not seen.
    pub recovery: DurationText,
    /// Bound of all kept results.
    pub memory: SizeText,
    /// Refresh and repeat once after a 401 of the upstream.
    pub on_upstream_401: OnUpstream401,
    /// How long the provider still honours a spent refresh token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leeway: Option<DurationText>,
    /// Life of an access token when the provider tells nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_expires_in: Option<DurationText>,
    /// What happens to a cookie that was superseded long ago.
    pub on_reuse: OnReuse,
    /// What a replayable request gets whose refresh token is dead.
    pub verify: OnDead,
    /// How the provider rotates refresh tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
    /// What the provider does when a spent refresh token comes back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reuse: Option<Reuse>,
    /// A refresh ends the access token before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kills_access_token: Option<bool>,
}

impl Default for Refresh {
    fn default() -> Self {
        Self {
            before_expiry: DurationText::new("60s"),
            after: DurationOrOff::new("off"),
            timeout: DurationText::new("8s"),
            wait: DurationText::new("10s"),
            grace: DurationText::new("60s"),
            recovery: DurationText::new("24h"),
            memory: SizeText::new("64MiB"),
            on_upstream_401: OnUpstream401::Replayable,
            leeway: None,
            default_expires_in: None,
            on_reuse: OnReuse::Reauthenticate,
            verify: OnDead::Redirect,
            rotation: None,
            reuse: None,
            kills_access_token: None,
        }
    }
}

words!(
    /// What happens while Redis is away.
    OnRedisError { Local = "local", Wait = "wait" }
);
words!(
    /// How Redis is deployed.
    RedisMode { Single = "single", Sentinel = "sentinel", Cluster = "cluster" }
);

/// `[redis]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// `redis://`, `rediss://` or `unix:`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<Secret>,
    /// File with the URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_file: Option<String>,
    /// How Redis is deployed.
    pub mode: RedisMode,
    /// Sentinels, or nodes of the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub urls: Option<Vec<Secret>>,
    /// Name of the master that the sentinels watch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    /// User name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Password; better `password_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// File with the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<String>,
    /// Extra trust anchors, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// Client certificate, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<String>,
    /// Its private key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
    /// Every key starts with this.
    pub prefix: String,
    /// Bounds every command.
    pub timeout: DurationText,
    /// `local`: go on alone while Redis is away. `wait`: expired tokens wait for it.
    pub on_error: OnRedisError,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            url: None,
            url_file: None,
            mode: RedisMode::Single,
            urls: None,
            master: None,
            username: None,
            password: None,
            password_file: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            prefix: "sidegate:".to_owned(),
            timeout: DurationText::new("50ms"),
            on_error: OnRedisError::Local,
        }
    }
}

words!(
    /// How a request proves that it comes from the app.
    CsrfMode { FetchMetadata = "fetch-metadata", Header = "header" }
);

/// `[csrf]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Csrf {
    /// What counts as proof.
    pub mode: CsrfMode,
    /// The header that scripts send.
    pub header: String,
    /// Other origins that may call with the session (CORS), exact.
    pub allowed_origins: Vec<String>,
}

impl Default for Csrf {
    fn default() -> Self {
        Self { mode: CsrfMode::FetchMetadata, header: "X-CSRF".to_owned(), allowed_origins: Vec::new() }
    }
}

words!(
    /// What `Clear-Site-Data` names.
    SiteData {
        Cache = "cache",
        Cookies = "cookies",
        Storage = "storage",
        ExecutionContexts = "executionContexts",
        ClientHints = "clientHints",
        PrefetchCache = "prefetchCache",
        PrerenderCache = "prerenderCache",
        All = "*",
    }
);

/// `[logout]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Logout {
    /// Sign out at the provider too, when it offers it.
    pub provider: bool,
    /// Revoke the tokens (RFC 7009).
    pub revoke: bool,
    /// Where the browser ends: a local path.
    pub return_to: String,
    /// OpenID Connect Back-Channel Logout.
    pub backchannel: bool,
    /// OpenID Connect Front-Channel Logout.
    pub frontchannel: bool,
    /// What the browser is told to clear; empty = nothing.
    pub clear_site_data: Vec<SiteData>,
}

impl Default for Logout {
    fn default() -> Self {
        Self {
            provider: true,
            revoke: true,
            return_to: "/".to_owned(),
            backchannel: false,
            frontchannel: false,
            clear_site_data: vec![SiteData::Cache],
        }
    }
}

/// `[claims]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Claims {
    /// Claims that the session endpoint shows.
    pub expose: Vec<String>,
}

impl Default for Claims {
    fn default() -> Self {
        Self { expose: strings(&["sub", "name", "preferred_username", "email", "picture"]) }
    }
}

words!(
    /// Who may use a route.
    Access { Session = "session", Optional = "optional", Public = "public" }
);
words!(
    /// What a request without a session gets.
    OnAnonymous { Auto = "auto", Login = "login", Unauthorized = "401" }
);
words!(
    /// Which token goes upstream.
    TokenName { Access = "access", Id = "id", None = "none" }
);

/// `[[route]]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["path"]))]
pub struct Route {
    /// Ends in `/`: this prefix on a segment boundary; otherwise exact.
    #[schemars(length(min = 1))]
    pub path: String,
    /// Hosts besides that of `public_url`, without port; public routes only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Methods; empty = any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// `http://`, `https://`, `h2c://` or `unix:/path`, or a list of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<OneOrMany<String>>,
    /// Serve files from this folder instead, to GET and HEAD: with validators, ranges and `.br` or `.gz` variants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub static_dir: Option<String>,
    /// With `static_dir`: the file that page loads get which match none, such as `index.html`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// `session`: needs one. `optional`: token when there is one. `public`: never a token.
    pub access: Access,
    /// What a request without a session gets on a `session` route.
    pub on_anonymous: OnAnonymous,
    /// `true` for the route's path, or a string: taken off before forwarding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strip_prefix: Option<StripPrefix>,
    /// Put in place of the route's path before forwarding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite_prefix: Option<String>,
    /// Which token goes upstream, or a table for one of its own.
    pub token: RouteToken,
    /// `Name: Scheme`, or `Name` for the bare token.
    pub token_header: String,
    /// Headers that carry claims: `{ "X-User" = "sub" }`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub identity_headers: BTreeMap<String, String>,
    /// The claim must have one of the values of each.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub require: BTreeMap<String, Vec<String>>,
    /// Set on every answer of the route.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub response_headers: BTreeMap<String, String>,
    /// Host suffixes that a templated `upstream` may point to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_hosts: Option<Vec<String>>,
    /// Refresh first when the token is older.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_token_age: Option<DurationText>,
    /// Log in again when the login is older (RFC 9470).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_auth_age: Option<DurationText>,
    /// Log in again unless the login was one of these (RFC 9470).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acr_values: Option<OneOrMany<String>>,
    /// Largest request body, or `none`.
    pub max_body: SizeOrNone,
    /// Time to connect to the upstream.
    pub connect_timeout: DurationText,
    /// Silence of the upstream between two reads.
    pub read_timeout: DurationText,
    /// WebSocket handshakes pass.
    pub websocket: bool,
    /// The upstream sees the public `Host`.
    pub preserve_host: bool,
    /// `false` switches the CSRF check off for this route.
    pub csrf: bool,
    /// Requests per session, else per client address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// What a replayable request gets whose refresh token is dead; by default as `[refresh]` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<OnDead>,
    /// TLS towards the upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_tls: Option<UpstreamTls>,
}

impl Default for Route {
    fn default() -> Self {
        Self {
            path: String::new(),
            hosts: Vec::new(),
            methods: Vec::new(),
            upstream: None,
            static_dir: None,
            fallback: None,
            access: Access::Session,
            on_anonymous: OnAnonymous::Auto,
            strip_prefix: None,
            rewrite_prefix: None,
            token: RouteToken::Named(TokenName::Access),
            token_header: "Authorization: Bearer".to_owned(),
            identity_headers: BTreeMap::new(),
            require: BTreeMap::new(),
            response_headers: BTreeMap::new(),
            allow_hosts: None,
            max_token_age: None,
            max_auth_age: None,
            acr_values: None,
            max_body: SizeOrNone::new("none"),
            connect_timeout: DurationText::new("3s"),
            read_timeout: DurationText::new("60s"),
            websocket: true,
            preserve_host: false,
            csrf: true,
            rate_limit: None,
            verify: None,
            upstream_tls: None,
        }
    }
}

/// `strip_prefix`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum StripPrefix {
    /// The route's path, or nothing.
    Path(bool),
    /// This text.
    Text(String),
}

/// `token`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RouteToken {
    /// One of the session's.
    Named(TokenName),
    /// One of its own.
    Own(OwnToken),
}

/// `token = { … }`
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OwnToken {
    /// `audience` of the token request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// `resource` of the token request (RFC 8707).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<OneOrMany<String>>,
    /// Scopes, at most those granted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
    /// By token exchange (RFC 8693) instead of by refresh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exchange: Option<bool>,
    /// The application's own token, the same for all users (RFC 6749 section 4.4).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_credentials: Option<bool>,
    /// With that: the `[[provider]]` of `login = false` that gives it; by default the session's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
}

/// `rate_limit = { … }`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimit {
    /// So many requests …
    #[schemars(range(min = 1))]
    pub requests: u32,
    /// … in this time.
    pub per: DurationText,
    /// So many at once; as many as `requests` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub burst: Option<u32>,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { requests: 5, per: DurationText::new("1s"), burst: None }
    }
}

/// `upstream_tls = { … }`
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamTls {
    /// Trust anchors instead of the system's, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// The name that the certificate must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Client certificate, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<String>,
    /// Its private key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
}

/// `[endpoints]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Endpoints {
    /// Everything below belongs to sidegate and is never forwarded.
    pub prefix: String,
}

impl Default for Endpoints {
    fn default() -> Self {
        Self { prefix: "/auth".to_owned() }
    }
}

/// `[verify]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Verify {
    /// Address of the forward-auth listener, or `off`. A change needs a restart.
    pub listen: String,
}

impl Default for Verify {
    fn default() -> Self {
        Self { listen: "off".to_owned() }
    }
}

words!(
    /// How log lines look.
    LogFormat { Json = "json", Text = "text" }
);
words!(
    /// The least severe level that is written.
    LogLevel { Error = "error", Warn = "warn", Info = "info", Debug = "debug", Trace = "trace" }
);

/// `[log]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// By default `json`, on a terminal `text`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<LogFormat>,
    /// The least severe level that is written.
    pub level: LogLevel,
    /// Write a line per request.
    pub access: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: None, level: LogLevel::Info, access: true }
    }
}

/// `[tracing]`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tracing {
    /// The collector, such as `http://127.0.0.1:4318`: OTLP over HTTP, protobuf, to `/v1/traces`. Off without it.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "without_query")]
    pub otlp_endpoint: Option<String>,
    /// Headers of the export, often credentials; better `headers_file`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
    /// File with those headers, one a line: `Name: value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers_file: Option<String>,
    /// Share of traces that are kept, 0 to 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sample: f64,
    /// Name of this service in traces.
    pub service_name: String,
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            headers: BTreeMap::new(),
            headers_file: None,
            sample: 1.0,
            service_name: "sidegate".to_owned(),
        }
    }
}

/// Some collectors want their credential in the query.
fn without_query<S: Serializer>(url: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    let shown = |url: &String| url.split_once('?').map_or_else(|| url.clone(), |(url, _)| format!("{url}?{MASK}"));
    url.as_ref().map(shown).serialize(serializer)
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
