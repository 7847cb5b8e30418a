//! The proxies that are compared: how each is started, and how one signs in to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crate::load::{ask, request};
use crate::process::Proxy;
use crate::support::client::{Browser, Jar};
use crate::support::provider::ProviderDouble;
use crate::support::provider::switches::AccessToken;
use crate::support::text::{b64u, random};
use crate::upstream::{BODY, LARGE_BODY, Upstream};

pub(crate) mod pingora;
pub(crate) mod sidegate;

/// What all proxies stand between.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) provider: ProviderDouble,
    /// For sidegate's cookies.
    key: String,
    /// What starts each proxy: `taskset` with a CPU, or nothing.
    pub(crate) under: Vec<String>,
}

impl World {
    /// `pin`: the CPU for proxies.
    pub(crate) async fn start(pin: Option<u32>) -> Self {
        let provider = ProviderDouble::start().await;
        // With the scopes that sidegate asks for, a token of an ordinary size; and nobody has to refresh.
        provider.set(|switches| {
            switches.access_token = AccessToken::Jwt;
            switches.refresh_token_size = 60;
            switches.access_lifetime = 24 * 3600;
        });
        let under = pin.map(|cpu| ["taskset".to_owned(), "-c".to_owned(), cpu.to_string()]);
        let upstream = Upstream::start().await;
        Self { upstream, provider, key: b64u(random(32)), under: under.map(Vec::from).unwrap_or_default() }
    }

    /// Sends a request once; the head that reached the upstream. Panics unless the proxy gives the upstream's answer.
    pub(crate) async fn look(&self, proxy: &Proxy, request: &[u8]) -> String {
        self.upstream.look(true);
        let answer = ask(proxy.addr, request).await.unwrap_or_default();
        self.upstream.look(false);
        let text = String::from_utf8_lossy(&answer);
        let long = [BODY, LARGE_BODY].iter().any(|length| answer.ends_with(&b"x".repeat(*length)));
        assert!(text.starts_with("HTTP/1.1 200") && long, "{} answered:\n{text}\n{}", proxy.name, proxy.errors());
        self.upstream.last_head()
    }
}

/// A running proxy and a request to it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) request: Vec<u8>,
    /// Bytes of the head that reaches the upstream.
    pub(crate) forwarded: usize,
}

impl Target {
    /// A GET of `path` with these fields.
    pub(crate) async fn new(world: &World, name: &str, proxy: &Arc<Proxy>, path: &str, more: &[(&str, &str)]) -> Self {
        let request = request(path, proxy.addr, more);
        let forwarded = world.look(proxy, &request).await.len();
        Self { name: name.to_owned(), proxy: Arc::clone(proxy), request, forwarded }
    }
}

/// Bytes of the `Authorization` field in a head.
pub(crate) fn bearer_bytes(head: &str) -> usize {
    let value = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("authorization").then_some(value.len())
    });
    value.unwrap_or(0)
}

/// The `Cookie` field with which a browser sends requests below `/api/`.
fn cookie_field(jar: &Jar) -> String {
    let sent = jar.cookies.iter().filter(|cookie| "/api/".starts_with(&cookie.path));
    sent.map(|cookie| format!("{}={}", cookie.name, cookie.value)).collect::<Vec<_>>().join("; ")
}

pub(crate) fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A browser of the app behind this proxy.
pub(crate) fn browser(proxy: &Proxy) -> Browser {
    Browser::behind(&format!("http://localhost:{}", proxy.addr.port()), proxy.addr)
}
