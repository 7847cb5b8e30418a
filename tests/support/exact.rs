//! Requests that say exactly what a test wants them to say, to a gateway with a signed-in user.

use serde_json::Value;
use toml::Table;

use super::client::Browser;
use super::inside::Inside;
use super::provider::ProviderDouble;
use super::text::{self, Pairs};
use super::upstream::Upstream;
pub use super::wait::PATIENCE;
use super::wire::{self, Conn, Reply, Request};

/// Header fields, in order.
pub type Fields<'a> = [(&'a str, &'a str)];

/// What a browser says of a `fetch()` by the app's own page.
pub const SCRIPT: &Fields<'static> =
    &[("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty")];
/// … of an address that the user typed.
pub const TYPED: &Fields<'static> =
    &[("Sec-Fetch-Site", "none"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")];
/// … of a link on a foreign page.
pub const FOREIGN_LINK: &Fields<'static> =
    &[("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")];
/// … of a `fetch()` by a foreign page.
pub const FOREIGN_SCRIPT: &Fields<'static> = &[
    ("Sec-Fetch-Site", "cross-site"),
    ("Sec-Fetch-Mode", "cors"),
    ("Sec-Fetch-Dest", "empty"),
    ("Origin", "https://evil.example"),
];

/// Puts these routes, a TOML text of `[[route]]` tables, in place of the configured ones.
pub fn routes(config: &mut Table, text: &str) {
    let mut table: Table = text.parse().expect("TOML");
    config.insert("route".to_owned(), table.remove("route").expect("routes"));
}

/// Adds these routes to the configured ones.
pub fn more_routes(config: &mut Table, text: &str) {
    let table: Table = text.parse().expect("TOML");
    let more = table["route"].as_array().expect("routes").clone();
    config["route"].as_array_mut().expect("routes").extend(more);
}

/// One route on `path` with more keys, as TOML text.
pub fn route(path: &str, upstream: &str, more: &str) -> String {
    format!("[[route]]\npath = {path:?}\nupstream = {upstream:?}\n{more}\n")
}

impl Reply {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        text::header(&self.headers, name)
    }

    /// All headers of that name.
    pub fn header_all(&self, name: &str) -> Vec<&str> {
        text::header_all(&self.headers, name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The `code` of a problem document; empty for anything else.
    pub fn code(&self) -> String {
        let document: Option<Value> = serde_json::from_slice(&self.body).ok();
        document.and_then(|v| Some(v["code"].as_str()?.to_owned())).unwrap_or_default()
    }

    /// Status and code, for one comparison.
    pub fn verdict(&self) -> (u16, String) {
        (self.status, self.code())
    }

    /// The head as text.
    pub fn head(&self) -> String {
        text::latin1(&self.head_bytes)
    }
}

impl Inside {
    /// `Host` as browsers send it.
    pub fn host(&self) -> &str {
        self.public_url.split_once("://").expect("a URL").1
    }

    /// The bytes of a request with exactly these fields; `Host` is added unless it is among them.
    pub fn bytes(&self, method: &str, target: &str, fields: &Fields<'_>, body: Option<&[u8]>) -> Vec<u8> {
        let mut headers: Pairs = Vec::new();
        if !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            headers.push(("Host".to_owned(), self.host().to_owned()));
        }
        headers.extend(fields.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        wire::request_bytes(method, target, &headers, body)
    }

    /// A connection of its own.
    pub async fn dial(&self) -> Conn {
        Conn::dial(self.addr).await.expect("the gateway listens")
    }

    /// Sends exactly this on a connection of its own; none when it ends without an answer.
    pub async fn exact(&self, method: &str, target: &str, fields: &Fields<'_>, body: Option<&[u8]>) -> Option<Reply> {
        let mut conn = self.dial().await;
        // The gateway may answer and close before it has read all.
        let _ = conn.send(&self.bytes(method, target, fields, body)).await;
        answer(&mut conn, method).await
    }
}

/// The next answer on a connection; none when it ends without one.
pub async fn answer(conn: &mut Conn, method: &str) -> Option<Reply> {
    let reply = tokio::time::timeout(PATIENCE, wire::read_reply(conn, method)).await;
    reply.expect("an answer or an end").ok().flatten()
}

/// A gateway, what stands behind it, and a user who is signed in.
#[derive(Debug)]
pub struct Rig {
    pub provider: ProviderDouble,
    pub upstream: Upstream,
    pub gateway: Inside,
    pub browser: Browser,
    /// The user's `Cookie` header.
    pub cookie: String,
}

impl Rig {
    /// With changes to the smallest configuration; they may name the upstream.
    pub async fn start(change: impl FnOnce(&mut Table, &str)) -> Self {
        Self::prepared(|_| {}, change).await
    }

    /// The same, with the provider prepared before the user signs in.
    pub async fn prepared(prepare: impl FnOnce(&ProviderDouble), change: impl FnOnce(&mut Table, &str)) -> Self {
        let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
        prepare(&provider);
        let gateway = Inside::start_with(&provider, &upstream, |config| change(config, &upstream.url())).await;
        let browser = gateway.browser();
        let back = browser.login("/auth/logout/return").await;
        let cookie = cookie_of(&browser);
        assert!(!cookie.is_empty(), "the login did not take: {back:?}");
        upstream.forget();
        Self { provider, upstream, gateway, browser, cookie }
    }

    /// The user's cookie and these fields.
    pub fn signed<'a>(&'a self, fields: &Fields<'a>) -> Vec<(&'a str, &'a str)> {
        [&[("Cookie", self.cookie.as_str())], fields].concat()
    }

    /// A request with exactly these fields.
    pub async fn call(&self, method: &str, target: &str, fields: &Fields<'_>) -> Reply {
        let body: Option<&[u8]> = matches!(method, "POST" | "PUT" | "PATCH").then_some(b"");
        let reply = self.gateway.exact(method, target, fields, body).await;
        reply.unwrap_or_else(|| panic!("no answer to {method} {target} {fields:?}"))
    }

    /// A GET by the app's script, with the user's cookie and these fields.
    pub async fn get(&self, target: &str, fields: &Fields<'_>) -> Reply {
        self.call("GET", target, &self.signed(&[SCRIPT, fields].concat())).await
    }

    /// Makes the request and gives back what the upstream got of it.
    pub async fn forwarded(&self, method: &str, target: &str, fields: &Fields<'_>) -> Request {
        self.upstream.forget();
        let reply = self.call(method, target, fields).await;
        assert_eq!(reply.status, 200, "{method} {target} {fields:?}: {}", reply.text());
        self.upstream.last()
    }
}

/// A browser's live cookies as one `Cookie` header.
pub fn cookie_of(browser: &Browser) -> String {
    let jar = browser.jar();
    let pairs = jar.names().into_iter().filter_map(|name| jar.get(name).map(|c| format!("{name}={}", c.value)));
    pairs.collect::<Vec<_>>().join("; ")
}
