//! Everything a request is decided by, held behind one atomic swap.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use pingora::protocols::tls::CaType;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::Instant;

use super::attempts::Attempts;
use super::ends::Ends;
use super::live::{Streams, Uses};
use super::own_token::OwnTokens;
use super::rate::{Limiter, Limiters};
use super::replay::Brought;
use super::routes::RouteTable;
use super::settings::{Route, Settings, Upstream, UpstreamAddress};
use crate::clock::{Clock, Timestamp};
use crate::metrics::{EndReason, Metrics, RouteMetrics};
use crate::net::dial::Dialers;
use crate::net::resolve::{Name, Names};
use crate::net::spare::Spares;
use crate::oidc::dpop::Nonces;
use crate::oidc::{Provider, Providers};
use crate::refresh::coordinator::Coordinator;
use crate::session::jar::{Jar, Presented};
use crate::session::login_cookie::LoginCookies;
use crate::session::settings::SameSite;
use crate::session::vault::Vault;
use crate::session::{Session, SessionId};
use crate::spans::Tracer;
use crate::telemetry::{SubHash, SubHasher, audit};
use crate::web::headers;

/// One generation of the configuration, which a reload replaces as a whole. Sessions, flights and attempts are
/// [`Shared`] by all of them.
pub struct State {
    pub settings: Settings,
    pub routes: RouteTable<Entry>,
    /// The session cookie is `SameSite=None`.
    pub embedded: bool,
    pub jar: Arc<Jar>,
    pub vault: Arc<Vault>,
    pub logins: Arc<LoginCookies>,
    pub providers: Arc<Providers>,
    pub shared: Shared,
    /// Client headers that no route lets through: identity headers and token headers of every route, folded.
    pub reserved: Vec<String>,
    /// The public authority, for `X-Forwarded-Host`.
    pub forwarded_host: HeaderValue,
}

/// What a generation is made of, besides its settings.
#[derive(Debug)]
pub struct Parts {
    pub vault: Arc<Vault>,
    pub providers: Arc<Providers>,
}

/// What lives as long as the process.
#[derive(Clone)]
pub struct Shared {
    pub refresh: Arc<Coordinator>,
    pub ends: Arc<Ends>,
    pub attempts: Arc<Attempts>,
    /// What upstreams want to see in proofs of possession.
    pub nonces: Arc<Nonces>,
    pub brought: Arc<Brought>,
    pub own_tokens: Arc<OwnTokens>,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub sub_hasher: Arc<SubHasher>,
    pub tracer: Arc<Tracer>,
    /// Open event streams.
    pub streams: Arc<Streams>,
    /// When sessions that something is open for were last used.
    pub uses: Arc<Uses>,
    /// Set when the process is on its way out: no answer keeps its connection from then on, so that the next request
    /// goes to another replica, and none is sent on a connection that closes at that moment.
    pub leaving: Arc<AtomicBool>,
    /// What upstreams are reached by.
    pub names: Arc<Names>,
    /// Connections to upstreams that wait for their next request.
    pub spares: Arc<Spares>,
    /// What the routes have counted.
    pub limiters: Arc<Limiters>,
    /// `1.1 sidegate-<instance>`: what this process adds to `Via`, and knows itself by.
    pub via: HeaderValue,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl std::ops::Deref for State {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// A route with what stands behind it.
#[derive(Debug)]
pub struct RouteEntry {
    pub settings: Route,
    pub metrics: Arc<RouteMetrics>,
    pub targets: Vec<Target>,
    pub dialers: Arc<Dialers>,
    pub limiter: Option<Arc<Limiter>>,
    /// Where the next request begins among the targets.
    next: AtomicUsize,
    trust: Trust,
    /// What a template became, by host and path.
    settled: parking_lot::Mutex<HashMap<String, (Instant, Arc<Self>)>>,
}

/// What a route knows its upstreams by.
#[derive(Clone)]
struct Trust {
    group: u64,
    ca: Option<Arc<CaType>>,
    client_cert: Option<Arc<CertKey>>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").field("group", &self.group).finish_non_exhaustive()
    }
}

/// Places that one template led to lately, at most, and how long their addresses are believed.
const MAX_SETTLED: usize = 256;
const SETTLED_FOR: Duration = Duration::from_secs(60);

/// One upstream, ready to be connected to.
pub struct Target {
    pub endpoint: Endpoint,
    pub tls: bool,
    /// The name that the certificate must carry; never empty with TLS, for an empty one would switch the check off.
    pub server_name: String,
    pub authority: HeaderValue,
    pub base_path: String,
    /// Speaks HTTP/2 by prior knowledge.
    pub http2: bool,
    /// Keeps connections of targets with other trust anchors apart.
    pub group: u64,
    /// Trust anchors in place of the system's.
    pub ca: Option<Arc<CaType>>,
    /// Shown to the upstream.
    pub client_cert: Option<Arc<CertKey>>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("endpoint", &self.endpoint).field("tls", &self.tls).finish_non_exhaustive()
    }
}

impl Target {
    fn new(upstream: &Upstream, route: &Route, trust: &Trust, name: impl Fn(&str, u16) -> Arc<Name>) -> Self {
        let (endpoint, tls, host) = match &upstream.address {
            UpstreamAddress::Tcp { tls, host, port } => (Endpoint::Tcp(name(host, *port)), *tls, host.as_str()),
            UpstreamAddress::Unix(path) => (Endpoint::Unix(path.to_string_lossy().into_owned()), false, "localhost"),
        };
        let server_name = route.upstream_tls.server_name.as_deref().unwrap_or(host);
        Self {
            endpoint,
            tls,
            server_name: server_name.trim_matches(['[', ']']).to_owned(),
            authority: HeaderValue::try_from(&upstream.authority).unwrap_or(HeaderValue::from_static("localhost")),
            base_path: upstream.base_path.clone(),
            http2: upstream.http2,
            group: trust.group,
            ca: trust.ca.clone(),
            client_cert: trust.client_cert.clone(),
        }
    }
}

/// Where a target listens.
#[derive(Debug)]
pub enum Endpoint {
    Tcp(Arc<Name>),
    Unix(String),
}

/// What the route table compares.
#[derive(Clone, Debug)]
pub struct Entry(pub Arc<RouteEntry>);

impl Borrow<Route> for Entry {
    fn borrow(&self) -> &Route {
        &self.0.settings
    }
}

impl RouteEntry {
    /// Prepares a route.
    ///
    /// # Errors
    /// A sentence that names the file of `upstream_tls` that cannot be used.
    pub fn new(settings: Route, shared: &Shared) -> Result<Self, String> {
        let anchors = settings.upstream_tls.ca_file.as_deref().map(certificates).transpose()?;
        let group = anchors.as_deref().map_or(0, trust_group);
        let ca = anchors.map(trust_anchors);
        let client_cert = match (&settings.upstream_tls.cert_file, &settings.upstream_tls.key_file) {
            (Some(cert), Some(key)) => Some(client_certificate(cert, key)?),
            _ => None,
        };
        let trust = Trust { group, ca, client_cert };
        let targets = settings
            .upstreams
            .iter()
            .map(|upstream| Target::new(upstream, &settings, &trust, |host, port| shared.names.get(host, port)))
            .collect();
        let metrics = shared.metrics.route(&settings.path);
        let dialers = Arc::new(Dialers::new(settings.connect_timeout, Arc::clone(&shared.spares)));
        let limiter = shared.limiters.of(&settings);
        Ok(Self {
            settings,
            metrics,
            targets,
            dialers,
            limiter,
            next: AtomicUsize::new(0),
            trust,
            settled: parking_lot::Mutex::default(),
        })
    }

    /// The route with the upstream that its template means for this session; itself without a template.
    ///
    /// # Errors
    /// A fixed word that says why there is none.
    pub fn settle(self: Arc<Self>, session: Option<&Session>) -> Result<Arc<Self>, &'static str> {
        let Some(template) = &self.settings.template else { return Ok(self) };
        let upstream = template.resolve(session.ok_or("no_session")?)?;
        let key = format!("{:?}{}", upstream.address, upstream.base_path);
        let mut settled = self.settled.lock();
        if let Some((since, entry)) = settled.get(&key)
            && since.elapsed() < SETTLED_FOR
        {
            return Ok(Arc::clone(entry));
        }
        if settled.len() >= MAX_SETTLED {
            settled.clear();
        }
        let target = Target::new(&upstream, &self.settings, &self.trust, Name::new);
        let entry = Arc::new(Self {
            settings: Route { template: None, upstreams: vec![upstream], ..self.settings.clone() },
            metrics: Arc::clone(&self.metrics),
            targets: vec![target],
            dialers: Arc::clone(&self.dialers),
            // Was asked already.
            limiter: None,
            next: AtomicUsize::new(0),
            trust: self.trust.clone(),
            settled: parking_lot::Mutex::default(),
        });
        settled.insert(key, (Instant::now(), Arc::clone(&entry)));
        Ok(entry)
    }

    /// Takes turns among the targets.
    pub fn turn(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// How many addresses there are to try.
    pub fn known_addresses(&self) -> usize {
        self.targets.iter().map(|target| target.endpoint.known()).sum()
    }

    /// The upstream of this turn: the next one that did not fail to answer lately, else the next one. `None` when no
    /// name resolves.
    pub async fn pick(&self, turn: usize) -> Option<Pick> {
        if let Some(pick) = self.pick_known(turn) {
            return Some(pick);
        }
        // Names that were never looked up; one that does not resolve is not waited for while there are others.
        for target in &self.targets {
            if let Endpoint::Tcp(name) = &target.endpoint {
                name.addresses().await;
            }
        }
        self.pick_known(turn)
    }

    fn pick_known(&self, turn: usize) -> Option<Pick> {
        let count = self.targets.len();
        let most = self.targets.iter().map(|target| target.endpoint.known()).max().unwrap_or(0);
        let mut dead = None;
        for turn in (0..count * most).map(|step| turn.wrapping_add(step)) {
            let index = turn % count;
            let Some(target) = self.targets.get(index) else { continue };
            let Endpoint::Tcp(name) = &target.endpoint else { return Some(Pick { index, address: None }) };
            let known = name.known();
            let Some(address) = known.get(turn / count % known.len().max(1)).copied() else { continue };
            let pick = Pick { index, address: Some(address) };
            if !name.is_dead(address) {
                return Some(pick);
            }
            dead.get_or_insert(pick);
        }
        dead
    }

    /// Takes note of whether the picked upstream could be connected to.
    pub fn took(&self, pick: Pick, connected: bool) {
        let target = self.targets.get(pick.index);
        if let (Some(Target { endpoint: Endpoint::Tcp(name), .. }), Some(address)) = (target, pick.address) {
            if connected { name.mark_alive(address) } else { name.mark_dead(address) }
        }
    }
}

/// Where a try goes: one of the route's targets, and which of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    pub index: usize,
    /// None for a unix socket.
    pub address: Option<SocketAddr>,
}

impl Endpoint {
    /// How many addresses are known.
    fn known(&self) -> usize {
        match self {
            Self::Tcp(name) => name.known().len(),
            Self::Unix(_) => 1,
        }
    }
}

impl State {
    /// Puts the parts together.
    ///
    /// # Errors
    /// As [`RouteEntry::new`], with the route's path in front.
    pub fn new(settings: Settings, parts: Parts, shared: Shared) -> Result<Self, String> {
        let Parts { vault, providers } = parts;
        let jar = Arc::clone(vault.jar());
        let reserved = settings
            .routes
            .iter()
            .flat_map(|route| {
                let identity = route.identity_headers.iter().map(|(name, _)| name.as_str());
                identity.chain(std::iter::once(route.token_header.name.as_str())).map(headers::fold)
            })
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        let entries = settings.routes.iter().cloned().map(|route| {
            let path = route.path.clone();
            let entry = RouteEntry::new(route, &shared);
            entry.map(|entry| Entry(Arc::new(entry))).map_err(|problem| format!("route {path}: {problem}"))
        });
        let routes = RouteTable::new(entries.collect::<Result<Vec<_>, _>>()?);
        let logins = Arc::new(LoginCookies::new(jar.settings().clone(), Arc::clone(jar.sealer())));
        let embedded = jar.settings().same_site == SameSite::None;
        let forwarded_host = HeaderValue::try_from(settings.public.authority())
            .map_err(|_| "server.public_url: its host cannot stand in a header".to_owned())?;
        Ok(Self { settings, routes, embedded, jar, vault, logins, providers, shared, reserved, forwarded_host })
    }

    /// Whether a client's header could pass for one that we set.
    pub fn is_reserved(&self, name: &HeaderName) -> bool {
        self.reserved.binary_search_by(|known| headers::cmp_folded(known, name.as_str())).is_ok()
    }

    /// Ends a session of which only the id is known, here and on all replicas.
    pub fn end_session(&self, id: SessionId, reason: EndReason, origin: &audit::Origin<'_>) {
        self.ends.end(id);
        self.metrics.observe_session_ended(reason);
        audit::session_ended(origin, reason.as_str());
    }

    /// Counts the size of the session cookies of one answer.
    pub fn weigh(&self, cookies: &[HeaderValue]) {
        self.metrics.observe_cookie_bytes(cookies.iter().map(HeaderValue::len).sum());
    }

    /// The cookies that bring the browser this session. Without them, when it has grown too large, the browser goes on
    /// with the older one for as long as that is known here.
    pub fn seal(&self, session: &Session, presented: &Presented, now: Timestamp, request_id: &str) -> Vec<HeaderValue> {
        match self.jar.seal(session, presented, now) {
            Ok(cookies) => {
                self.weigh(&cookies);
                cookies
            }
            Err(sizes) => {
                tracing::error!(target: "sidegate", event = "session_too_large", request_id, sizes = %sizes);
                Vec::new()
            }
        }
    }

    /// A user's pseudonym in the log.
    pub fn sub_hash(&self, session: &Session) -> SubHash {
        let issuer = || self.jar.settings().issuer_of(session.provider).unwrap_or_default();
        let hash = || self.sub_hasher.hash(issuer(), &session.subject).to_bytes();
        SubHash::from_bytes(*session.pseudonym.get_or_init(hash))
    }

    /// The provider of this session. A session of one that is gone does not open.
    pub fn provider_of(&self, session: &Session) -> Option<&Arc<Provider>> {
        self.providers.of_key(session.provider)
    }
}

/// The certificates of a PEM file. Each is judged by the TLS library first: Pingora's reader panics on a bad one.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unusable = |why: &str| format!("upstream_tls: {} {why}", file.display());
    let found = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|_| unusable("is not readable PEM"))?;
    let mut judge = rustls::RootCertStore::empty();
    if found.is_empty() || found.iter().any(|certificate| judge.add(certificate.clone()).is_err()) {
        return Err(unusable("holds no usable certificate, or one that is not"));
    }
    Ok(found)
}

/// Names a set of trust anchors by its content: a pooled connection that was made by other anchors, or before a reload
/// by other content of the file, is not taken. 0, Pingora's default, is the system's anchors.
fn trust_group(anchors: &[CertificateDer<'static>]) -> u64 {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    anchors.iter().for_each(|anchor| hash.update(anchor));
    hash.finish().as_ref().first_chunk().map_or(1, |head| u64::from_be_bytes(*head) | 1)
}

fn trust_anchors(anchors: Vec<CertificateDer<'static>>) -> Arc<CaType> {
    let wrap = |certificate: CertificateDer<'static>| WrappedX509::new(certificate.to_vec(), parse_x509);
    anchors.into_iter().map(wrap).collect()
}

fn client_certificate(cert: &Path, key: &Path) -> Result<Arc<CertKey>, String> {
    let chain = certificates(cert)?.iter().map(|certificate| certificate.to_vec()).collect();
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|_| format!("upstream_tls: {} holds no private key in PEM", key.display()))?;
    Ok(Arc::new(CertKey::new(chain, key.secret_der().to_vec())))
}
