//! The proxies that are compared: how each is started, and how one signs in to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::load::request;
use crate::process::{Launch, Proxy};
use crate::support::client::{Browser, Jar};
use crate::support::provider::ProviderDouble;
use crate::support::provider::switches::AccessToken;
use crate::support::redis::Redis;
use crate::support::text::{b64u, random};
use crate::upstream::{LARGE_PATH, LARGE_PUBLIC_PATH, Upstream};

pub(crate) mod apache;
pub(crate) mod envoy;
pub(crate) mod nginx;
pub(crate) mod oauth2_proxy;
pub(crate) mod pingora;
pub(crate) mod sidegate;

/// What all proxies stand between.
#[derive(Debug)]
pub(crate) struct World {
    /// The application.
    pub(crate) app: SocketAddr,
    pub(crate) provider: Arc<ProviderDouble>,
    /// What starts each proxy: `taskset` with a CPU, or nothing.
    pub(crate) under: Vec<String>,
    /// For sidegate's cookies.
    key: String,
    redis: OnceCell<Redis>,
    /// Tokens end soon: who refreshes only when told to is told to.
    pub(crate) short_lived: bool,
}

impl World {
    /// `pin`: the CPU for proxies.
    pub(crate) async fn start(app: SocketAddr, pin: Option<u32>) -> Self {
        let provider = Arc::new(ProviderDouble::start().await);
        // With the scopes that are asked for, a token of an ordinary size; and nobody has to refresh.
        provider.set(|switches| {
            switches.access_token = AccessToken::Jwt;
            switches.refresh_token_size = 60;
            switches.access_lifetime = 24 * 3600;
        });
        let under = pin.map(|cpu| ["taskset".to_owned(), "-c".to_owned(), cpu.to_string()]);
        let under = under.map(Vec::from).unwrap_or_default();
        Self { app, provider, under, key: b64u(random(32)), redis: OnceCell::new(), short_lived: false }
    }

    /// A server for those who keep sessions in one; started when it is first asked for.
    pub(crate) async fn redis(&self) -> Result<&Redis, String> {
        find("redis-server")?;
        Ok(self.redis.get_or_init(Redis::start).await)
    }

    /// What is asked for at login: `openid` and `offline_access`, and many more, which make an access token of an
    /// ordinary size.
    fn scopes() -> Vec<String> {
        let more = (0..12).map(|n| format!("https://api.example.com/scope-{n}"));
        ["openid", "offline_access"].map(str::to_owned).into_iter().chain(more).collect()
    }

    /// Lets the client use this address.
    fn allow_redirect(&self, url: &str) {
        self.provider.set(|switches| switches.redirect_uris.push(url.to_owned()));
    }
}

/// What the client shows to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    None,
    /// A cookie of so many bytes, which means nothing.
    Filler(usize),
    /// The cookies of a real login.
    Login,
}

/// How many bytes a session of sidegate is, on both sides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) cookie: usize,
    pub(crate) bearer: usize,
}

/// Which proxy, in which configuration.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    /// With what replaces the cookie.
    Pingora(usize),
    /// A build, and changes to the configuration, as TOML.
    Sidegate(PathBuf, Vec<(&'static str, String)>),
    /// The same with sessions in Redis.
    SidegateRedis(PathBuf),
    /// With what replaces the cookie.
    Nginx(usize),
    Envoy,
    EnvoyOauth2,
    Apache,
    Openidc(apache::Sessions),
    /// With sessions in Redis.
    Oauth2Proxy(bool),
}

/// Somebody to compare with: a proxy, and what is asked of it.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    pub(crate) name: String,
    pub(crate) program: Program,
    pub(crate) credentials: Credentials,
    pub(crate) path: &'static str,
}

impl Contender {
    pub(crate) fn new(name: &str, program: Program, credentials: Credentials) -> Self {
        Self { name: name.to_owned(), program, credentials, path: "/api/orders" }
    }

    /// Nothing has to be installed for it.
    pub(crate) const fn is_ours(&self) -> bool {
        matches!(self.program, Program::Pingora(_) | Program::Sidegate(..))
    }

    /// Starts the process.
    ///
    /// # Errors
    ///
    /// The program is not there, or does not start.
    pub(crate) async fn launch(&self, world: &World) -> Result<Launch, String> {
        let name = &self.name;
        match &self.program {
            Program::Pingora(bearer) => Ok(pingora::launch(world, name, *bearer)),
            Program::Sidegate(program, more) => Ok(sidegate::launch(world, name, program, more)),
            Program::SidegateRedis(program) => {
                let redis = world.redis().await?;
                // So long, because on one CPU with the load Redis has to wait for its turn too.
                let more = [
                    ("session.store", "\"redis\"".to_owned()),
                    ("redis.url", format!("{:?}", redis.url())),
                    ("redis.timeout", "\"5s\"".to_owned()),
                ];
                Ok(sidegate::launch(world, name, program, &more))
            }
            Program::Nginx(bearer) => nginx::launch(world, name, *bearer),
            Program::Envoy => envoy::launch(world, name, false),
            Program::EnvoyOauth2 => envoy::launch(world, name, true),
            Program::Apache => apache::launch(world, name, None),
            Program::Openidc(sessions) => apache::launch(world, name, Some(*sessions)),
            Program::Oauth2Proxy(redis) => {
                let redis = if *redis { Some(world.redis().await?) } else { None };
                oauth2_proxy::launch(world, name, redis)
            }
        }
    }

    /// Signs in; the browser.
    pub(crate) async fn sign_in(&self, proxy: &Proxy) -> Result<Browser, String> {
        let browser = Browser::behind(&format!("http://localhost:{}", proxy.addr.port()), proxy.addr);
        let landed = match self.program {
            Program::Sidegate(..) | Program::SidegateRedis(_) => browser.login("/").await,
            _ => browser.navigate("/api/orders").await,
        };
        let cookies = !browser.jar().cookies.is_empty();
        if landed.status == 200 && cookies && landed.url.starts_with(&browser.url("/")) {
            return Ok(browser);
        }
        let words = format!("{} at {}: {}", landed.status, landed.url, landed.text());
        Err(format!("{}: the login ended with {words}\n{}", self.name, proxy.errors()))
    }

    /// Starts it, signs in, and sees that requests get through.
    ///
    /// # Errors
    ///
    /// What does not work.
    pub(crate) async fn start(&self, world: &World, upstream: &Upstream) -> Result<Target, String> {
        let proxy = Arc::new(self.launch(world).await?.start(&world.under).await?);
        self.aim(&proxy, upstream).await
    }

    /// Makes a request to a process that was started before.
    pub(crate) async fn aim(&self, proxy: &Arc<Proxy>, upstream: &Upstream) -> Result<Target, String> {
        let cookie = match self.credentials {
            Credentials::None => None,
            Credentials::Filler(bytes) => Some("c".repeat(bytes)),
            Credentials::Login => Some(cookie_field(&self.sign_in(proxy).await?.jar())),
        };
        let fields = cookie.as_deref().map(|cookie| ("Cookie", cookie));
        let request = request(self.path, proxy.addr, fields.as_slice());
        let head = upstream.look(proxy, &request).await?;
        let (name, cookie) = (self.name.clone(), cookie.map_or(0, |cookie| cookie.len()));
        Ok(Target { name, proxy: Arc::clone(proxy), request, cookie, head })
    }
}

/// A running proxy and a request to it.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) request: Vec<u8>,
    /// Bytes of the `Cookie` field in it.
    pub(crate) cookie: usize,
    /// What reaches the upstream.
    pub(crate) head: String,
}

/// How large a session of sidegate is: starts one and signs in.
pub(crate) async fn sizes(world: &World, upstream: &Upstream) -> Sizes {
    let program = Program::Sidegate(sidegate::PROGRAM.into(), Vec::new());
    let contender = Contender::new("sidegate", program, Credentials::Login);
    let target = contender.start(world, upstream).await.unwrap_or_else(|error| panic!("{error}"));
    let bearer = bearer_bytes(&target.head);
    assert!(bearer > 0, "the session's token did not reach the upstream");
    Sizes { cookie: target.cookie, bearer }
}

/// The two that everything is compared with.
pub(crate) fn floors(sizes: Sizes) -> Vec<Contender> {
    let bytes = Program::Pingora(sizes.bearer);
    vec![
        Contender::new("Pingora", Program::Pingora(0), Credentials::None),
        Contender::new("Pingora, same bytes", bytes, Credentials::Filler(sizes.cookie)),
    ]
}

/// A build of sidegate by store and layout.
pub(crate) fn sidegates(name: &str, program: &Path) -> Vec<Contender> {
    let with = |what: &str, more: &[(&'static str, &str)], credentials| {
        let more = more.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        Contender::new(&format!("{name}, {what}"), Program::Sidegate(program.to_owned(), more), credentials)
    };
    let redis = Program::SidegateRedis(program.to_owned());
    vec![
        Contender { path: "/orders", ..with("public route", &[], Credentials::None) },
        with("session", &[], Credentials::Login),
        with("session, no access log", &[("log.access", "false")], Credentials::Login),
        with("session in two cookies", &[("session.layout", "\"split\"")], Credentials::Login),
        Contender::new(&format!("{name}, session in Redis"), redis, Credentials::Login),
    ]
}

/// Other people's proxies.
pub(crate) fn peers(sizes: Sizes) -> Vec<Contender> {
    let bytes = Program::Nginx(sizes.bearer);
    let mut all = vec![
        Contender::new("nginx", Program::Nginx(0), Credentials::None),
        Contender::new("nginx, same bytes", bytes, Credentials::Filler(sizes.cookie)),
        Contender::new("Envoy", Program::Envoy, Credentials::None),
        Contender::new("Apache", Program::Apache, Credentials::None),
    ];
    all.extend(with_sessions());
    all
}

/// Those of other people's proxies that keep sessions.
pub(crate) fn with_sessions() -> Vec<Contender> {
    use apache::Sessions::{Cookie, Shm};
    [
        ("Envoy, OAuth2 filter", Program::EnvoyOauth2),
        ("mod_auth_openidc, cookie", Program::Openidc(Cookie)),
        ("mod_auth_openidc, shm", Program::Openidc(Shm)),
        ("oauth2-proxy, cookie", Program::Oauth2Proxy(false)),
        ("oauth2-proxy, Redis", Program::Oauth2Proxy(true)),
    ]
    .map(|(name, program)| Contender::new(name, program, Credentials::Login))
    .into()
}

/// The same with answers of 100 kB.
pub(crate) fn large(contender: &Contender) -> Contender {
    let path = if contender.path.starts_with("/api/") { LARGE_PATH } else { LARGE_PUBLIC_PATH };
    Contender { name: format!("{}, 100 kB", contender.name), path, ..contender.clone() }
}

/// Starts all; who is not there is skipped, with a word, unless it is one of ours.
pub(crate) async fn start_all(world: &World, upstream: &Upstream, contenders: &[Contender]) -> Vec<Target> {
    let mut targets = Vec::new();
    for contender in contenders {
        match contender.start(world, upstream).await {
            Ok(target) => targets.push(target),
            Err(error) if contender.is_ours() => panic!("{error}"),
            Err(error) => println!("{} is left out: {error}", contender.name),
        }
    }
    targets
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
pub(crate) fn cookie_field(jar: &Jar) -> String {
    let sent = jar.cookies.iter().filter(|cookie| "/api/".starts_with(&cookie.path));
    sent.map(|cookie| format!("{}={}", cookie.name, cookie.value)).collect::<Vec<_>>().join("; ")
}

pub(crate) fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Where `scripts/install-peers.sh` puts what a distribution does not have; then `PATH`, then where servers are.
fn find(program: &str) -> Result<PathBuf, String> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::iter::once(own).chain(std::env::split_paths(&path)).chain([PathBuf::from("/usr/sbin")]);
    let found = places.find_map(|place| Some(place.join(program)).filter(|file| file.is_file()));
    found.ok_or_else(|| format!("{program} is not installed"))
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn write(dir: &TempDir, name: &str, text: &str) -> String {
    let file = dir.path().join(name);
    std::fs::write(&file, text).expect("a written configuration");
    file.display().to_string()
}
