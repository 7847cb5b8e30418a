//! A browser, as far as a gateway can tell: a cookie jar with the rules of RFC 6265bis, fetch metadata, redirects, pages
//! that navigate by themselves. It connects to loopback only, whatever the host is called.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::task::JoinSet;
use url::Url;

use super::text::{self, Pairs, find, latin1, mark};
use super::wait::PATIENCE;
use super::wire::{self, Conn, Reply};
use super::ws::{self, WebSocket};

const AGENT: &str =
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36";
const PAGE: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8";
const HOPS: usize = 20;

// -- Cookies -------------------------------------------------------------------------------------------------------

/// The `SameSite` attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    Strict,
    Lax,
    None,
    /// Not given: treated like `Lax`.
    Unset,
}

/// A cookie as a server set it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie {
    pub name: String,
    pub value: String,
    pub domain: String,
    /// No `Domain` attribute: goes to this host only.
    pub host_only: bool,
    pub path: String,
    /// Whether `Path` was given.
    pub has_path: bool,
    pub secure: bool,
    pub http_only: bool,
    pub partitioned: bool,
    pub same_site: SameSite,
    /// Seconds since the epoch; `None`: until the browser ends.
    pub expires: Option<i64>,
    pub max_age: Option<i64>,
    /// The header line as it came.
    pub line: String,
}

impl Cookie {
    /// Reads a `Set-Cookie` line that `url` answered with.
    pub fn parse(line: &str, url: &Url, now: i64) -> Self {
        let mut parts = line.split(';');
        let pair = parts.next().unwrap_or_default();
        let (name, value) = pair.split_once('=').unwrap_or(("", pair));
        let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
        let default_path = match url.path().rfind('/') {
            Some(at) if at > 0 => url.path().get(..at).unwrap_or("/").to_owned(),
            _ => "/".to_owned(),
        };
        let mut cookie = Self {
            name: name.trim().to_owned(),
            value: value.trim().to_owned(),
            domain: host,
            host_only: true,
            path: default_path,
            has_path: false,
            secure: false,
            http_only: false,
            partitioned: false,
            same_site: SameSite::Unset,
            expires: None,
            max_age: None,
            line: line.to_owned(),
        };
        for attribute in parts {
            let (key, value) = attribute.split_once('=').unwrap_or((attribute, ""));
            let value = value.trim();
            match key.trim().to_ascii_lowercase().as_str() {
                "secure" => cookie.secure = true,
                "httponly" => cookie.http_only = true,
                "partitioned" => cookie.partitioned = true,
                "path" if value.starts_with('/') => (cookie.path, cookie.has_path) = (value.to_owned(), true),
                "domain" if !value.is_empty() => {
                    cookie.domain = value.trim_start_matches('.').to_ascii_lowercase();
                    cookie.host_only = false;
                }
                "max-age" => cookie.max_age = value.parse().ok(),
                "expires" => cookie.expires = http_date(value),
                "samesite" => {
                    cookie.same_site = match value.to_ascii_lowercase().as_str() {
                        "strict" => SameSite::Strict,
                        "lax" => SameSite::Lax,
                        "none" => SameSite::None,
                        _ => SameSite::Unset,
                    }
                }
                _ => {}
            }
        }
        if let Some(seconds) = cookie.max_age {
            cookie.expires = Some(if seconds <= 0 { 0 } else { now.saturating_add(seconds) });
        }
        cookie
    }

    /// Whether this line takes a cookie away.
    pub fn deletes(&self, now: i64) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }

    /// Why a browser would not store it.
    fn objection(&self, url: &Url, foreign_subresource: bool) -> Option<&'static str> {
        let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
        let name = self.name.to_ascii_lowercase();
        let prefixed = ["__host-", "__secure-", "__http-"].iter().any(|p| name.starts_with(p));
        let inside = host == self.domain || host.ends_with(&format!(".{}", self.domain));
        if self.name.len() + self.value.len() > 4096 {
            Some("more than 4096 bytes")
        } else if self.line.bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f) {
            Some("a control character")
        } else if self.secure && !trustworthy(url) {
            Some("Secure over plain http")
        } else if !self.host_only && !inside {
            Some("a foreign Domain")
        } else if self.same_site == SameSite::None && !self.secure {
            Some("SameSite=None without Secure")
        } else if self.partitioned && !self.secure {
            Some("Partitioned without Secure")
        } else if prefixed && !self.secure {
            Some("a prefix without Secure")
        } else if name.starts_with("__host-") && (!self.host_only || self.path != "/" || !self.has_path) {
            Some("__Host- with Domain or without Path=/")
        } else if (name.starts_with("__host-http-") || name.starts_with("__http-")) && !self.http_only {
            Some("an Http prefix without HttpOnly")
        } else if foreign_subresource && self.same_site != SameSite::None {
            Some("a SameSite cookie in a cross-site subresource")
        } else {
            None
        }
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` in seconds since the epoch.
fn http_date(text: &str) -> Option<i64> {
    let mut words = text.split([' ', '-']).skip(1);
    let day: i64 = words.next()?.parse().ok()?;
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let name = words.next()?;
    let month = i64::try_from(months.iter().position(|m| *m == name)?).ok()? + 1;
    let year: i64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<i64>());
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    // Days from the civil calendar; the year begins in March, so that the leap day is its last.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

/// A browser's cookies. A clone is a copy.
#[derive(Clone, Debug, Default)]
pub struct Jar {
    /// Oldest first.
    pub cookies: Vec<Cookie>,
    /// `Set-Cookie` lines that a browser would not store, and why.
    pub refused: Vec<(String, &'static str)>,
    ahead: i64,
}

impl Jar {
    fn now(&self) -> i64 {
        text::now() + self.ahead
    }

    /// Moves the jar's clock.
    pub fn advance(&mut self, seconds: i64) {
        self.ahead += seconds;
    }

    /// The live cookie of that name.
    pub fn get(&self, name: &str) -> Option<&Cookie> {
        self.cookies.iter().find(|c| c.name == name && !c.deletes(self.now()))
    }

    /// The names of all live cookies.
    pub fn names(&self) -> Vec<&str> {
        self.cookies.iter().filter(|c| !c.deletes(self.now())).map(|c| c.name.as_str()).collect()
    }

    /// Forgets one cookie.
    pub fn remove(&mut self, name: &str) {
        self.cookies.retain(|c| c.name != name);
    }

    /// Stores a `Set-Cookie` line that `url` answered with.
    pub fn store(&mut self, url: &Url, line: &str) {
        self.store_from(url, line, false);
    }

    fn store_from(&mut self, url: &Url, line: &str, foreign_subresource: bool) {
        let cookie = Cookie::parse(line, url, self.now());
        if let Some(why) = cookie.objection(url, foreign_subresource) {
            self.refused.push((line.to_owned(), why));
            return;
        }
        let same = |c: &Cookie| {
            (&c.name, &c.domain, &c.path, c.host_only) == (&cookie.name, &cookie.domain, &cookie.path, cookie.host_only)
        };
        let place = self.cookies.iter().position(same);
        match (place, cookie.deletes(self.now())) {
            (Some(at), true) => drop(self.cookies.remove(at)),
            (Some(at), false) => self.cookies[at] = cookie,
            (None, true) => {}
            (None, false) => self.cookies.push(cookie),
        }
    }

    /// The `Cookie` header for a request, if any goes along.
    fn header(&self, url: &Url, cross_site: bool, lax_allowed: bool) -> Option<String> {
        let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
        let path = url.path();
        let now = self.now();
        let goes = |c: &&Cookie| {
            let here = if c.host_only {
                host == c.domain
            } else {
                host == c.domain || host.ends_with(&format!(".{}", c.domain))
            };
            let below = path == c.path || path.starts_with(&format!("{}/", c.path.trim_end_matches('/')));
            let site = match c.same_site {
                _ if !cross_site => true,
                SameSite::None => true,
                SameSite::Strict => false,
                SameSite::Lax | SameSite::Unset => lax_allowed,
            };
            here && below && site && !c.deletes(now) && (!c.secure || trustworthy(url))
        };
        let mut chosen: Vec<&Cookie> = self.cookies.iter().filter(goes).collect();
        chosen.sort_by_key(|c| std::cmp::Reverse(c.path.len()));
        let pairs: Vec<String> = chosen.iter().map(|c| format!("{}={}", c.name, c.value)).collect();
        (!pairs.is_empty()).then(|| pairs.join("; "))
    }
}

// -- Origins and sites ---------------------------------------------------------------------------------------------

fn loopback(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost") || host == "127.0.0.1" || host == "[::1]"
}

fn trustworthy(url: &Url) -> bool {
    url.scheme() == "https" || loopback(url.host_str().unwrap_or_default())
}

fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Scheme and registrable domain; addresses and loopback names stay whole. Ports do not count.
fn site(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let whole = loopback(host) || host.starts_with('[') || host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let labels: Vec<&str> = host.split('.').collect();
    let from = if whole { 0 } else { labels.len().saturating_sub(2) };
    format!("{}://{}", url.scheme(), labels[from..].join("."))
}

/// Who starts a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Initiator {
    /// The user: an address typed, a bookmark.
    Typed,
    /// A page of the target's origin.
    SameOrigin,
    /// A page of another origin on the target's site.
    SameSite,
    /// A page of a foreign site.
    CrossSite,
    /// A page of this origin.
    Origin(String),
}

impl Initiator {
    fn origin_for(&self, target: &Url) -> Option<Url> {
        let text = match self {
            Self::Typed => return None,
            Self::SameOrigin => origin(target),
            Self::CrossSite => "https://evil.example".to_owned(),
            Self::Origin(text) => text.clone(),
            Self::SameSite => {
                let host = target.host_str().unwrap_or_default();
                if loopback(host) {
                    format!("{}://{host}:1", target.scheme())
                } else {
                    format!("{}://sibling.{host}", target.scheme())
                }
            }
        };
        Url::parse(&text).ok()
    }
}

/// What kind of request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A top-level navigation.
    Navigation,
    /// A navigation inside a frame.
    Frame,
    /// `fetch()` of a script, with credentials.
    Fetch,
    /// A subresource without CORS, for example an image.
    Image,
}

// -- Requests ------------------------------------------------------------------------------------------------------

/// A request that the browser shall make.
#[derive(Clone, Debug)]
pub struct Ask {
    pub url: String,
    pub method: String,
    pub kind: Kind,
    pub from: Initiator,
    /// Added; a name given here replaces the browser's own header.
    pub headers: Pairs,
    pub body: Option<Vec<u8>>,
    pub follow: bool,
    /// The `Cookie` header to send instead of the jar's; `Some("")` sends none.
    pub cookie: Option<String>,
}

impl Ask {
    fn new(kind: Kind, from: Initiator, url: &str) -> Self {
        let method = "GET".to_owned();
        Self { url: url.to_owned(), method, kind, from, headers: Vec::new(), body: None, follow: true, cookie: None }
    }

    /// A navigation to an address that the user typed.
    pub fn navigate(url: &str) -> Self {
        Self::new(Kind::Navigation, Initiator::Typed, url)
    }

    /// A script's `fetch()` from the app's own page.
    pub fn fetch(url: &str) -> Self {
        Self::new(Kind::Fetch, Initiator::SameOrigin, url)
    }

    /// An image on a page.
    pub fn image(url: &str) -> Self {
        Self::new(Kind::Image, Initiator::SameOrigin, url)
    }

    /// A frame on a page.
    pub fn frame(url: &str) -> Self {
        Self::new(Kind::Frame, Initiator::SameOrigin, url)
    }

    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = method.to_owned();
        self
    }

    #[must_use]
    pub fn from(mut self, from: Initiator) -> Self {
        self.from = from;
        self
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// POST unless another method was given, with this body.
    #[must_use]
    pub fn body(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        if self.method == "GET" {
            "POST".clone_into(&mut self.method);
        }
        self.body = Some(body.into());
        self.header("Content-Type", content_type)
    }

    /// POST of a form.
    #[must_use]
    pub fn form(self, pairs: &[(&str, &str)]) -> Self {
        self.body("application/x-www-form-urlencoded", text::form(pairs))
    }

    /// POST of JSON.
    #[must_use]
    pub fn json(self, value: &Value) -> Self {
        self.body("application/json", value.to_string())
    }

    /// Stops at redirects and at pages that navigate.
    #[must_use]
    pub fn stay(mut self) -> Self {
        self.follow = false;
        self
    }

    /// Sends this `Cookie` header instead of the jar's.
    #[must_use]
    pub fn cookie(mut self, header: &str) -> Self {
        self.cookie = Some(header.to_owned());
        self
    }
}

/// An answer, with what was asked.
#[derive(Clone, Debug, Default)]
pub struct Response {
    pub method: String,
    pub url: String,
    /// 0 when there was none; see `error`.
    pub status: u16,
    pub headers: Pairs,
    pub body: Vec<u8>,
    pub trailers: Pairs,
    /// Status codes of 1xx answers before it.
    pub informational: Vec<u16>,
    /// False when the body broke off.
    pub complete: bool,
    /// The request headers as sent.
    pub sent: Pairs,
    /// The answers before this one in the same navigation.
    pub via: Vec<Self>,
    /// Why there is no answer.
    pub error: Option<String>,
    foreign_subresource: bool,
}

impl Response {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        text::header(&self.headers, name)
    }

    /// All headers of that name.
    pub fn header_all(&self, name: &str) -> Vec<&str> {
        text::header_all(&self.headers, name)
    }

    /// A request header as sent.
    pub fn sent_header(&self, name: &str) -> Option<&str> {
        text::header(&self.sent, name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {} {}", self.status, self.text()))
    }

    /// The `code` of a problem document.
    pub fn code(&self) -> String {
        serde_json::from_slice::<Value>(&self.body)
            .ok()
            .and_then(|v| Some(v["code"].as_str()?.to_owned()))
            .unwrap_or_default()
    }

    /// The `Location` header.
    pub fn location(&self) -> Option<&str> {
        self.header("location")
    }

    /// One parameter in the query of `Location`.
    pub fn location_param(&self, name: &str) -> Option<String> {
        let query = self.location()?.split_once('?')?.1;
        let query = query.split('#').next().unwrap_or_default();
        text::get(&text::unform(query.as_bytes()), name).map(str::to_owned)
    }

    /// The path of the URL that gave this answer.
    pub fn path(&self) -> String {
        Url::parse(&self.url).map(|u| u.path().to_owned()).unwrap_or_default()
    }

    /// The cookies it sets, as parsed; also those that a browser would not store.
    pub fn set_cookies(&self) -> Vec<Cookie> {
        let Ok(url) = Url::parse(&self.url) else { return Vec::new() };
        self.header_all("set-cookie").iter().map(|line| Cookie::parse(line, &url, text::now())).collect()
    }

    /// The cookie of that name that it sets.
    pub fn set_cookie(&self, name: &str) -> Option<Cookie> {
        self.set_cookies().into_iter().find(|c| c.name == name)
    }

    /// Whether the answer is a page that sends the browser on by itself (a hop page).
    pub fn hops_to(&self) -> Option<String> {
        next_of_page(self).filter(|next| next.method == "GET").map(|next| next.url)
    }

    /// Everything that arrived, for a leak scan.
    pub fn everything(&self) -> Vec<u8> {
        let headers: String = self.headers.iter().map(|(k, v)| format!("{k}: {v}\r\n")).collect();
        [headers.as_bytes(), b"\r\n", &self.body].concat()
    }
}

/// A request that was sent and whose answer is not yet read.
#[derive(Debug)]
pub struct InFlight {
    conn: Conn,
    response: Response,
}

impl InFlight {
    /// Waits for the whole answer. The jar does not learn of it: see [`Browser::land`].
    pub async fn answer(mut self) -> Response {
        let method = self.response.method.clone();
        let reply = tokio::time::timeout(PATIENCE, wire::read_reply(&mut self.conn, &method)).await;
        self.response.take(reply);
        self.response
    }

    /// Gives up: the connection is reset.
    pub fn abort(self) {
        self.conn.reset_soon();
    }
}

impl Response {
    fn take(&mut self, reply: Result<io::Result<Option<Reply>>, tokio::time::error::Elapsed>) {
        match reply {
            Ok(Ok(Some(reply))) => {
                (self.status, self.headers, self.body) = (reply.status, reply.headers, reply.body);
                (self.trailers, self.informational) = (reply.trailers, reply.informational);
                self.complete = reply.complete;
            }
            Ok(Ok(None)) => self.error = Some("the connection ended without an answer".to_owned()),
            Ok(Err(error)) => self.error = Some(error.to_string()),
            Err(_) => self.error = Some(format!("no answer within {PATIENCE:?}")),
        }
    }
}

/// A request whose last byte has not been sent.
#[derive(Debug)]
pub struct Upload {
    flight: InFlight,
    last: u8,
}

impl Upload {
    /// Sends the last byte and waits for the answer. The jar does not learn of it: see [`Browser::land`].
    pub async fn finish(mut self) -> Response {
        // When the other end is gone, the missing answer says so.
        let _ = self.flight.conn.send(&[self.last]).await;
        self.flight.answer().await
    }
}

/// An answer whose body is read piece by piece.
#[derive(Debug)]
pub struct Streaming {
    /// The head; its body is empty.
    pub response: Response,
    conn: Conn,
    chunked: bool,
    text: Vec<u8>,
    /// Whether a chunked body has come to its end, and did not just break off.
    pub complete: bool,
}

impl Streaming {
    /// The next piece of the body; `None` at its end.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        if !self.chunked {
            return self.conn.take_some().await.ok().filter(|b| !b.is_empty());
        }
        let line = self.conn.take_until(b"\r\n").await.ok()??;
        let size = usize::from_str_radix(latin1(&line).trim(), 16).ok()?;
        let piece = self.conn.take(size + 2).await.ok()?;
        self.complete = size == 0 && piece == b"\r\n";
        (size > 0).then(|| piece[..size.min(piece.len())].to_vec())
    }

    /// Reads until `needle` has come, and gives back all up to and with it; `None` at the end of the body.
    pub async fn read_until(&mut self, needle: &str) -> Option<String> {
        loop {
            if let Some(at) = find(&self.text, needle.as_bytes()) {
                let taken: Vec<u8> = self.text.drain(..at + needle.len()).collect();
                return Some(String::from_utf8_lossy(&taken).into_owned());
            }
            let piece = tokio::time::timeout(PATIENCE, self.next()).await.expect("the stream went silent")?;
            self.text.extend_from_slice(&piece);
        }
    }

    /// Gives up: the connection is reset.
    pub fn abort(self) {
        self.conn.reset_soon();
    }
}

// -- The browser ---------------------------------------------------------------------------------------------------

/// A browser whose user looks at one app. Clones are tabs: they share jar and history.
#[derive(Clone, Debug)]
pub struct Browser {
    base: Url,
    connect: SocketAddr,
    shared: Arc<Shared>,
    /// Some browsers withhold SameSite cookies when any redirect on the way was foreign. On unless switched off.
    pub chain_aware: bool,
}

#[derive(Debug, Default)]
struct Shared {
    jar: Mutex<Jar>,
    history: Mutex<Vec<Response>>,
}

impl Browser {
    /// For the app at `public_url`, found at `127.0.0.1` and the URL's port.
    pub fn new(public_url: &str) -> Self {
        let base = Url::parse(public_url).expect("a public URL");
        let connect = SocketAddr::from((Ipv4Addr::LOCALHOST, base.port_or_known_default().unwrap_or(80)));
        Self { base, connect, shared: Arc::default(), chain_aware: true }
    }

    /// For the app at `public_url`, found at `addr` and spoken to without TLS, as if that ended in front of it.
    pub fn behind(public_url: &str, addr: SocketAddr) -> Self {
        Self { connect: addr, ..Self::new(public_url) }
    }

    /// Another browser with a copy of the jar and no history.
    #[must_use]
    pub fn fork(&self) -> Self {
        let shared = Shared { jar: Mutex::new(self.jar()), history: Mutex::default() };
        Self { shared: Arc::new(shared), ..self.clone() }
    }

    /// The same browser at another instance of the app.
    #[must_use]
    pub fn at(&self, addr: SocketAddr) -> Self {
        Self { connect: addr, ..self.clone() }
    }

    /// A copy of the jar.
    pub fn jar(&self) -> Jar {
        self.shared.jar.lock().clone()
    }

    /// Puts another jar in place.
    pub fn set_jar(&self, jar: Jar) {
        *self.shared.jar.lock() = jar;
    }

    /// Changes the jar.
    pub fn with_jar<T>(&self, change: impl FnOnce(&mut Jar) -> T) -> T {
        change(&mut self.shared.jar.lock())
    }

    /// The value of a live cookie.
    pub fn cookie(&self, name: &str) -> Option<String> {
        self.shared.jar.lock().get(name).map(|c| c.value.clone())
    }

    /// All answers so far, redirects too.
    pub fn history(&self) -> Vec<Response> {
        self.shared.history.lock().clone()
    }

    /// The absolute URL of a path.
    pub fn url(&self, path: &str) -> String {
        self.base.join(path).expect("a URL").to_string()
    }

    // -- The usual steps -------------------------------------------------------------------------------------------

    /// The user types an address; redirects and hop pages are followed.
    pub async fn navigate(&self, url: &str) -> Response {
        self.send(Ask::navigate(url)).await
    }

    /// A link is followed from a page of `from`.
    pub async fn navigate_from(&self, from: Initiator, url: &str) -> Response {
        self.send(Ask::navigate(url).from(from)).await
    }

    /// A script of the app fetches.
    pub async fn fetch(&self, path: &str) -> Response {
        self.send(Ask::fetch(path)).await
    }

    /// A script of the app posts, without a body.
    pub async fn post(&self, path: &str) -> Response {
        self.send(Ask::fetch(path).method("POST")).await
    }

    /// The same fetch `n` times at once.
    pub async fn fetch_many(&self, path: &str, n: usize) -> Vec<Response> {
        let mut tasks = JoinSet::new();
        for _ in 0..n {
            let (tab, path) = (self.clone(), path.to_owned());
            tasks.spawn(async move { tab.fetch(&path).await });
        }
        tasks.join_all().await
    }

    /// A click on "sign in" in the app; all the way through the provider and back to `path`.
    pub async fn login(&self, path: &str) -> Response {
        self.navigate_from(Initiator::SameOrigin, &login_url(path)).await
    }

    /// Only the first step of a login: the redirect to the provider.
    pub async fn start_login(&self, path: &str) -> Response {
        self.send(Ask::navigate(&login_url(path)).from(Initiator::SameOrigin).stay()).await
    }

    /// What the session endpoint says.
    pub async fn session(&self) -> Value {
        self.fetch("/auth/session").await.json()
    }

    // -- Requests in all detail ------------------------------------------------------------------------------------

    /// Makes a request and follows it to the end, storing cookies on the way.
    pub async fn send(&self, mut ask: Ask) -> Response {
        let mut chain = vec![self.resolve(&ask.url)];
        let mut via: Vec<Response> = Vec::new();
        loop {
            let mut response = match self.launch_hop(&ask, &chain).await {
                Ok(flight) => flight.answer().await,
                Err(failed) => *failed,
            };
            self.land(&response);
            let here = chain.last().cloned().expect("never empty");
            if ask.follow && via.len() < HOPS {
                let next = next_hop(&mut ask, &mut chain, &response, &here);
                if next == Hop::On {
                    via.push(response);
                    continue;
                }
                if next == Hop::Blocked {
                    response.error = Some("a redirect to another origin".to_owned());
                    response.status = 0;
                }
            }
            response.via = via;
            return response;
        }
    }

    /// Sends a request with the cookies of this moment; its answer is read later, or never.
    pub async fn launch(&self, ask: &Ask) -> InFlight {
        self.try_launch(ask).await.unwrap_or_else(|failed| panic!("cannot send: {:?}", failed.error))
    }

    /// The same, where it may be that nobody listens.
    pub async fn try_launch(&self, ask: &Ask) -> Result<InFlight, Box<Response>> {
        self.launch_hop(ask, &[self.resolve(&ask.url)]).await
    }

    /// Stores the cookies of an answer, and the answer in the history.
    pub fn land(&self, response: &Response) {
        if let Ok(url) = Url::parse(&response.url) {
            let mut jar = self.shared.jar.lock();
            for line in response.header_all("set-cookie") {
                jar.store_from(&url, line, response.foreign_subresource);
            }
        }
        self.shared.history.lock().push(response.clone());
    }

    /// Makes a request and reads only the head; the body comes piece by piece.
    pub async fn open(&self, ask: &Ask) -> Streaming {
        let InFlight { mut conn, mut response } = self.launch(ask).await;
        let reply = tokio::time::timeout(PATIENCE, wire::read_reply_head(&mut conn)).await;
        response.take(reply);
        self.land(&response);
        let chunked = response.header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
        Streaming { response, conn, chunked, text: Vec::new(), complete: false }
    }

    /// A script's fetch on a connection that is kept, as browsers and proxies do: on a new one where there is none, or
    /// where its other end was seen to go while it was idle. Nothing is sent twice.
    pub async fn fetch_on(&self, kept: &mut Option<Conn>, path: &str) -> Response {
        let (addr, bytes, mut response) = self.compose(&Ask::fetch(path), &[self.resolve(path)]);
        if let Some(conn) = kept
            && conn.is_over().await
        {
            *kept = None;
        }
        let mut conn = match kept.take() {
            Some(conn) => conn,
            None => match Conn::dial(addr).await {
                Ok(conn) => conn,
                Err(error) => return Response { error: Some(error.to_string()), ..response },
            },
        };
        // When the other end is gone, the missing answer says so.
        let _ = conn.send(&bytes).await;
        response.take(tokio::time::timeout(PATIENCE, wire::read_reply(&mut conn, "GET")).await);
        let last = response.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        *kept = (response.complete && !last).then_some(conn);
        self.land(&response);
        response
    }

    /// Begins a request whose body is on its way for as long as the caller likes: all but its last byte is sent.
    pub async fn upload(&self, ask: &Ask) -> Upload {
        let (addr, mut bytes, response) = self.compose(ask, &[self.resolve(&ask.url)]);
        let last = bytes.pop().expect("a body");
        let mut conn = Conn::dial(addr).await.expect("the app listens");
        conn.send(&bytes).await.expect("the app reads");
        Upload { flight: InFlight { conn, response }, last }
    }

    /// Opens a WebSocket from a page of `from`; the refusal when there is one.
    pub async fn websocket(&self, path: &str, from: Initiator) -> Result<WebSocket, Response> {
        let key = ws::new_key();
        let mut ask = Ask::fetch(path).from(from);
        let target = self.resolve(path);
        let source = ask.from.origin_for(&target).unwrap_or_else(|| target.clone());
        for (name, value) in [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", &key),
            ("Sec-Fetch-Mode", "websocket"),
            ("Sec-Fetch-Dest", "empty"),
            ("Origin", &origin(&source)),
        ] {
            ask = ask.header(name, value);
        }
        let InFlight { mut conn, mut response } = self.launch(&ask).await;
        let head = tokio::time::timeout(PATIENCE, wire::read_reply_head(&mut conn)).await;
        if let Ok(Ok(Some(mut reply))) = head {
            if reply.status == 101 {
                return Ok(WebSocket::new(conn, reply, &key));
            }
            let body = wire::read_reply_body(&mut conn, "GET", &mut reply).await;
            response.take(Ok(body.map(|()| Some(reply))));
        } else {
            response.take(head);
        }
        self.land(&response);
        Err(response)
    }

    /// A connection to the app, for exact bytes.
    pub async fn dial(&self) -> Conn {
        Conn::dial(self.connect).await.expect("the app listens")
    }

    /// Sends exact bytes and reads until one whole answer is there or the connection ends; gives back its bytes.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        let mut conn = self.dial().await;
        // The peer may answer and close before it has read all.
        let _ = conn.send(bytes.as_ref()).await;
        let method = latin1(bytes.as_ref()).split(' ').next().unwrap_or_default().to_owned();
        let reply = tokio::time::timeout(PATIENCE, wire::read_reply(&mut conn, &method)).await;
        match reply.expect("an answer or an end") {
            Ok(Some(reply)) => [reply.head_bytes, reply.body].concat(),
            _ => Vec::new(),
        }
    }

    /// Sends exact bytes, ends our direction, and reads all until the connection ends.
    pub async fn raw_to_end(&self, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        let mut conn = self.dial().await;
        let _ = conn.send(bytes.as_ref()).await;
        let _ = conn.half_close().await;
        tokio::time::timeout(PATIENCE, conn.take_to_end()).await.expect("an end")
    }

    fn resolve(&self, url: &str) -> Url {
        self.base.join(url).unwrap_or_else(|e| panic!("{url}: {e}"))
    }

    /// Where a request goes, its bytes with the cookies of this moment, and the place for its answer.
    fn compose(&self, ask: &Ask, chain: &[Url]) -> (SocketAddr, Vec<u8>, Response) {
        let url = chain.last().expect("never empty");
        let source = ask.from.origin_for(&chain[0]);
        let relation = relation(source.as_ref(), chain);
        let navigation = matches!(ask.kind, Kind::Navigation | Kind::Frame);
        let crossed = self.chain_aware && chain.iter().any(|u| site(u) != site(url));
        let foreign = source.as_ref().is_some_and(|s| site(s) != site(url));
        let cross_site = if self.chain_aware { relation == "cross-site" || crossed } else { foreign };
        let safe = matches!(ask.method.as_str(), "GET" | "HEAD");
        let lax_allowed = ask.kind == Kind::Navigation && safe;

        let mut headers: Pairs = Vec::new();
        let mut put = |name: &str, value: &str| {
            if text::header(&ask.headers, name).is_none() {
                headers.push((name.to_owned(), value.to_owned()));
            }
        };
        let host = url.host_str().unwrap_or_default();
        put("Host", &url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")));
        put("Connection", "keep-alive");
        put("User-Agent", AGENT);
        put("Accept", if navigation { PAGE } else { "*/*" });
        let (mode, dest) = match ask.kind {
            Kind::Navigation => ("navigate", "document"),
            Kind::Frame => ("navigate", "iframe"),
            Kind::Fetch => ("cors", "empty"),
            Kind::Image => ("no-cors", "image"),
        };
        put("Sec-Fetch-Site", relation);
        put("Sec-Fetch-Mode", mode);
        put("Sec-Fetch-Dest", dest);
        if ask.kind == Kind::Navigation {
            put("Sec-Fetch-User", "?1");
            put("Upgrade-Insecure-Requests", "1");
        }
        put("Accept-Encoding", "identity");
        put("Accept-Language", "en");
        if let Some(source) = &source {
            put("Referer", &format!("{}/", origin(source)));
        }
        if !safe || (ask.kind == Kind::Fetch && matches!(relation, "cross-site" | "same-site")) {
            let first = source.as_ref().map_or_else(|| origin(url), origin);
            let tainted = chain.len() > 1 && chain.iter().any(|u| origin(u) != first);
            put("Origin", if tainted { "null" } else { &first });
        }
        let from_jar = || self.shared.jar.lock().header(url, cross_site, lax_allowed);
        if let Some(cookies) = ask.cookie.clone().or_else(from_jar).filter(|c| !c.is_empty()) {
            put("Cookie", &cookies);
        }
        headers.extend(ask.headers.iter().cloned());
        let body = if safe { ask.body.as_deref() } else { Some(ask.body.as_deref().unwrap_or_default()) };
        let target = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let bytes = wire::request_bytes(&ask.method, &target, &headers, body);
        let mut bare = url.clone();
        bare.set_fragment(None);
        let response = Response {
            method: ask.method.clone(),
            url: bare.to_string(),
            sent: headers,
            foreign_subresource: cross_site && !navigation,
            ..Response::default()
        };
        let addr = if origin(url) == origin(&self.base) {
            self.connect
        } else {
            SocketAddr::from((Ipv4Addr::LOCALHOST, url.port_or_known_default().unwrap_or(80)))
        };
        (addr, bytes, response)
    }

    async fn launch_hop(&self, ask: &Ask, chain: &[Url]) -> Result<InFlight, Box<Response>> {
        let (addr, bytes, response) = self.compose(ask, chain);
        let connected = async {
            let mut conn = Conn::dial(addr).await?;
            conn.send(&bytes).await?;
            Ok::<_, io::Error>(conn)
        };
        match connected.await {
            Ok(conn) => Ok(InFlight { conn, response }),
            Err(error) => Err(Box::new(Response { error: Some(error.to_string()), ..response })),
        }
    }
}

fn login_url(path: &str) -> String {
    format!("/auth/login?return_to={}", text::percent(path))
}

fn relation(source: Option<&Url>, chain: &[Url]) -> &'static str {
    let Some(source) = source else { return "none" };
    let mut relation = "same-origin";
    for url in chain {
        if site(url) != site(source) {
            return "cross-site";
        }
        if origin(url) != origin(source) {
            relation = "same-site";
        }
    }
    relation
}

#[derive(PartialEq, Eq)]
enum Hop {
    On,
    End,
    Blocked,
}

/// Turns `ask` and `chain` into the request that follows `response`.
fn next_hop(ask: &mut Ask, chain: &mut Vec<Url>, response: &Response, here: &Url) -> Hop {
    if let (301..=303 | 307 | 308, Some(location)) = (response.status, response.location()) {
        let Ok(next) = here.join(location) else { return Hop::End };
        if !next.scheme().starts_with("http") {
            return Hop::End;
        }
        if ask.kind == Kind::Fetch && origin(&next) != origin(&chain[0]) {
            return Hop::Blocked;
        }
        if response.status == 303 || (response.status <= 302 && ask.method == "POST") {
            to_get(ask);
        }
        chain.push(next);
        return Hop::On;
    }
    if ask.kind != Kind::Navigation {
        return Hop::End;
    }
    let Some(next) = next_of_page(response) else { return Hop::End };
    let Ok(url) = here.join(&next.url) else { return Hop::End };
    // The page navigates: it is the initiator, and what came before is forgotten.
    to_get(ask);
    ask.headers.clear();
    ask.from = Initiator::Origin(origin(here));
    ask.method = next.method;
    if let Some(body) = next.body {
        ask.body = Some(body.into_bytes());
        ask.headers.push(("Content-Type".to_owned(), "application/x-www-form-urlencoded".to_owned()));
    }
    chain.clear();
    chain.push(url);
    Hop::On
}

fn to_get(ask: &mut Ask) {
    "GET".clone_into(&mut ask.method);
    ask.body = None;
    ask.headers.retain(|(k, _)| !k.eq_ignore_ascii_case("content-type"));
}

struct PageNext {
    method: String,
    url: String,
    body: Option<String>,
}

/// Where a page goes by itself: `Refresh`, a meta refresh, or a form that submits itself.
fn next_of_page(response: &Response) -> Option<PageNext> {
    let get = |url: String| Some(PageNext { method: "GET".to_owned(), url, body: None });
    if let Some(refresh) = response.header("refresh") {
        return get(refresh_target(refresh)?);
    }
    if response.status >= 400 || !response.header("content-type").is_some_and(|t| t.contains("html")) {
        return None;
    }
    let page = response.text();
    for tag in tags(&page, "meta") {
        if attribute(tag, "http-equiv").is_some_and(|v| v.eq_ignore_ascii_case("refresh")) {
            return get(refresh_target(&attribute(tag, "content")?)?);
        }
    }
    let form = *tags(&page, "form").first()?;
    if !page.contains(".submit()") {
        return None;
    }
    let action = attribute(form, "action").unwrap_or_default();
    let field = |tag: &&str| Some((attribute(tag, "name")?, attribute(tag, "value").unwrap_or_default()));
    let fields: Pairs = tags(&page, "input").iter().filter_map(field).collect();
    let encoded = text::form(&fields);
    if attribute(form, "method").is_some_and(|m| m.eq_ignore_ascii_case("post")) {
        return Some(PageNext { method: "POST".to_owned(), url: action, body: Some(encoded) });
    }
    get(format!("{}?{encoded}", action.split('?').next().unwrap_or_default()))
}

fn refresh_target(content: &str) -> Option<String> {
    let (_, target) = content.split_once([';', ','])?;
    let target = target.trim();
    let target = match target.get(..4) {
        Some(word) if word.eq_ignore_ascii_case("url=") => target.get(4..).unwrap_or_default(),
        _ => target,
    };
    Some(target.trim().trim_matches(['"', '\'']).to_owned())
}

/// The start tags of that name, from `<` to `>`.
fn tags<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    let starts = |tag: &str| {
        tag.get(..name.len()).is_some_and(|n| n.eq_ignore_ascii_case(name))
            && tag.as_bytes().get(name.len()).is_some_and(|b| b.is_ascii_whitespace() || *b == b'>')
    };
    let tag = |at: usize| page.get(at + 1..).and_then(|rest| rest.get(..rest.find('>')? + 1));
    page.match_indices('<').filter_map(|(at, _)| tag(at)).filter(|t| starts(t)).collect()
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let lower = tag.to_ascii_lowercase();
    let mut from = 0;
    while let Some(at) = lower.get(from..)?.find(name).map(|i| i + from) {
        from = at + name.len();
        let before = lower.as_bytes().get(at.checked_sub(1)?)?;
        let rest = tag.get(from..)?.trim_start();
        if let (true, Some(value)) = (before.is_ascii_whitespace(), rest.strip_prefix('=')) {
            let value = value.trim_start();
            let value = match value.chars().next()? {
                quote @ ('"' | '\'') => value.get(1..)?.split(quote).next()?,
                _ => value.split(|c: char| c.is_ascii_whitespace() || c == '>').next()?,
            };
            return Some(unescape(value));
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let pairs = [
        ("&lt;", "<"),
        ("&#60;", "<"),
        ("&gt;", ">"),
        ("&#62;", ">"),
        ("&quot;", "\""),
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&#x27;", "'"),
        ("&#x2F;", "/"),
    ];
    // Last, so that `&amp;lt;` stays `&lt;`.
    let text = pairs.iter().fold(text.to_owned(), |t, (from, to)| t.replace(from, to));
    text.replace("&#38;", "&").replace("&amp;", "&")
}

/// A name for a test's own cookie or header.
pub fn fresh_name() -> String {
    mark("n")
}
