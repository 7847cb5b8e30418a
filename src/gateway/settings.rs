//! What the gateway needs to know, parsed: routes, CSRF, endpoints, limits.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use ipnet::IpNet;
use url::Url;

use super::template::Template;
use crate::oidc::types::TokenTarget;
use crate::web::origin::Origin;

/// Everything the gateway decides by.
#[derive(Clone, Debug)]
pub struct Settings {
    pub public: Origin,
    /// `/auth`: sidegate's own, never forwarded.
    pub prefix: String,
    pub routes: Vec<Route>,
    pub csrf: Csrf,
    /// How long a body may be silent.
    pub body_idle: Duration,
    pub head: HeadLimits,
    pub logout: Logout,
    /// Claims that the session endpoint shows.
    pub expose: Vec<String>,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// After the app refused a token: refresh, and send the request once more if that does no harm.
    pub replay_refused: bool,
    /// The operator says that this is the only instance.
    pub single_replica: bool,
    /// Where no route says otherwise.
    pub verify: Verify,
    /// Parameters by which tokens go upstream in the query, and what goes with them: never the client's own.
    pub placed: Vec<String>,
    /// The provider answers by POST to the callback.
    pub form_post: bool,
}

/// What a head may be, for HTTP/2: an HTTP/1.1 head is judged by `net` while it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Names and values of all fields together.
    pub header_bytes: usize,
    pub header_count: usize,
    pub uri_bytes: usize,
}

/// `[csrf]`.
#[derive(Clone, Debug)]
pub struct Csrf {
    pub mode: CsrfMode,
    /// The header that `header` mode asks for, and that counts in `fetch-metadata` mode when a client sends no metadata.
    pub header: HeaderName,
    pub allowed_origins: Vec<Origin>,
}

/// How a request proves that it comes from the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CsrfMode {
    FetchMetadata,
    Header,
}

/// `[logout]`, as far as the browser sees it.
#[derive(Clone, Debug)]
pub struct Logout {
    /// A local path.
    pub return_to: String,
    /// The value of `Clear-Site-Data`; none when the list is empty.
    pub clear_site_data: Option<HeaderValue>,
    /// `<prefix>/logout/backchannel` is there.
    pub backchannel: bool,
    /// `<prefix>/logout/frontchannel` is there.
    pub frontchannel: bool,
}

/// One `[[route]]`.
#[derive(Clone, Debug)]
pub struct Route {
    /// As configured: ends in `/` for a prefix, else exact. Also the metric's and the log's label.
    pub path: String,
    /// Lower case, without port; empty = any host of ours.
    pub hosts: Vec<String>,
    /// Empty = any.
    pub methods: Vec<Method>,
    /// Where requests go; several are used in turn. Empty when files are served instead.
    pub upstreams: Vec<Upstream>,
    /// In place of those: where each user's requests go.
    pub template: Option<Template>,
    /// `static_dir`: what is served in place of an upstream.
    pub files: Option<StaticFiles>,
    pub access: Access,
    pub on_anonymous: OnAnonymous,
    /// Removed from the front of the path before forwarding.
    pub strip_prefix: Option<String>,
    /// Put in place of the route's path.
    pub rewrite_prefix: Option<String>,
    pub token: Token,
    pub token_header: TokenHeader,
    /// Header name and claim.
    pub identity_headers: Vec<(HeaderName, String)>,
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// Claim and accepted values; all must hold.
    pub require: Vec<(String, Vec<String>)>,
    pub max_body: Option<u64>,
    pub connect_timeout: Duration,
    pub read_timeout: Duration,
    pub websocket: bool,
    pub preserve_host: bool,
    pub csrf: bool,
    /// Forced refresh when the token is older than this.
    pub max_token_age: Option<Duration>,
    /// Another login when the last one is longer ago.
    pub max_auth_age: Option<Duration>,
    /// Another login unless the last one was of one of these classes; empty = any will do.
    pub acr_values: Vec<String>,
    pub upstream_tls: UpstreamTls,
    pub verify: Verify,
    pub rate_limit: Option<Rate>,
}

/// `static_dir` and `fallback`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticFiles {
    /// The folder; it was there when the configuration was read.
    pub dir: PathBuf,
    /// Below the folder: what page loads get that match no file.
    pub fallback: Option<PathBuf>,
}

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Needs a session.
    Session,
    /// A token is attached when there is a session.
    Optional,
    /// Never a token.
    Public,
}

/// What a request without a session gets on a `session` route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnAnonymous {
    /// Navigations go to the login, all else gets 401.
    Auto,
    Login,
    Unauthorized,
}

/// Which token goes upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    Access,
    Id,
    None,
    /// One of the route's own.
    Own(TokenTarget, Way),
}

/// How a route's own token is got.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// By the session's refresh token.
    Refresh,
    /// For the session's access token (RFC 8693).
    Exchange,
    /// By the client's own credentials (RFC 6749 section 4.4): the same token for all users of the provider of this name, or
    /// else of the session's.
    Client(Option<String>),
}

/// `token_header`: `Name: Scheme`, or `Name` for the bare token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenHeader {
    pub name: HeaderName,
    pub scheme: Option<String>,
}

/// `verify`: what a replayable request gets whose refresh token the provider calls dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Sent round to the same URL first, since a newer cookie may be on its way.
    Redirect,
    /// 401 or the login, at once.
    Unauthorized,
}

/// `rate_limit`: so many requests in that time, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub requests: NonZeroU32,
    pub per: Duration,
    pub burst: NonZeroU32,
}

/// Where an upstream listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamAddress {
    /// `http://` or `https://` with host and port.
    Tcp { tls: bool, host: String, port: u16 },
    /// `unix:/path`.
    Unix(PathBuf),
}

/// One upstream of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub address: UpstreamAddress,
    /// What `Host` says unless `preserve_host`.
    pub authority: String,
    /// Stands before the whole path; empty or beginning with `/`, never ending with it.
    pub base_path: String,
    /// `h2c://`: HTTP/2 by prior knowledge.
    pub http2: bool,
}

impl Upstream {
    /// Reads `http://host[:port][/base]`, `https://…`, `h2c://…` or `unix:/path`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").map_or(path, |_| path.trim_start_matches("//"));
            if !path.starts_with('/') {
                return Err("unix: needs an absolute path, as in unix:/run/app.sock".to_owned());
            }
            return Ok(Self {
                address: UpstreamAddress::Unix(PathBuf::from(path)),
                authority: "localhost".to_owned(),
                base_path: String::new(),
                http2: false,
            });
        }
        let url = Url::parse(text).map_err(|_| "is not a URL such as http://127.0.0.1:3000".to_owned())?;
        let tls = match url.scheme() {
            "http" | "h2c" => false,
            "https" => true,
            _ => return Err("must begin with http://, https://, h2c:// or unix:".to_owned()),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not contain a user or password".to_owned());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("must not contain a query or fragment".to_owned());
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or("needs a host")?.to_owned();
        let port = url.port_or_known_default().unwrap_or(if tls { 443 } else { 80 });
        let authority = url.port().map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
        let base_path = url.path().trim_end_matches('/').to_owned();
        let http2 = url.scheme() == "h2c";
        Ok(Self { address: UpstreamAddress::Tcp { tls, host, port }, authority, base_path, http2 })
    }
}

/// `upstream_tls`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    pub ca_file: Option<PathBuf>,
    pub server_name: Option<String>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}
