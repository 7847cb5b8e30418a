//! Everything a request is decided by, held behind one atomic swap.

use std::borrow::Borrow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderName, HeaderValue};

use super::attempts::Attempts;
use super::routes::RouteTable;
use super::settings::{Route, Settings, UpstreamAddress};
use crate::clock::Clock;
use crate::metrics::{EndReason, Metrics, RouteMetrics};
use crate::net::resolve::Name;
use crate::oidc::Provider;
use crate::refresh::coordinator::Coordinator;
use crate::session::SessionId;
use crate::session::jar::Jar;
use crate::session::login_cookie::LoginCookies;
use crate::telemetry::{SubHash, SubHasher, audit};
use crate::web::headers;

/// What a reload replaces as a whole. Sessions, flights and attempts are shared by all its generations.
pub struct State {
    pub settings: Settings,
    pub routes: RouteTable<Entry>,
    /// The session cookie is `SameSite=None`.
    pub embedded: bool,
    pub shared: Shared,
    /// Client headers that no route lets through: identity headers and token headers of every route, folded.
    pub reserved: Vec<String>,
}

/// What lives as long as the process.
#[derive(Clone)]
pub struct Shared {
    pub jar: Arc<Jar>,
    pub logins: Arc<LoginCookies>,
    pub provider: Arc<Provider>,
    pub refresh: Arc<Coordinator>,
    pub attempts: Arc<Attempts>,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub sub_hasher: Arc<SubHasher>,
    /// `1.1 sidegate-<instance>`: what this process adds to `Via`, and knows itself by.
    pub via: HeaderValue,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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
    /// Where the next request begins among the targets.
    next: AtomicUsize,
}

/// One upstream, ready to be connected to.
#[derive(Debug)]
pub struct Target {
    pub endpoint: Endpoint,
    pub tls: bool,
    /// The name that the certificate must carry; never empty with TLS, for an empty one would switch the check off.
    pub server_name: String,
    pub authority: HeaderValue,
    pub base_path: String,
    /// Keeps connections of targets with other trust anchors apart.
    pub group: u64,
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
    /// Prepares a route. `group` numbers its targets apart from other routes'.
    pub fn new(settings: Route, metrics: &Metrics, group: u64) -> Self {
        let targets = settings
            .upstreams
            .iter()
            .map(|upstream| {
                let (endpoint, tls, host) = match &upstream.address {
                    UpstreamAddress::Tcp { tls, host, port } => {
                        (Endpoint::Tcp(Name::new(host, *port)), *tls, host.as_str())
                    }
                    UpstreamAddress::Unix(path) => {
                        (Endpoint::Unix(path.to_string_lossy().into_owned()), false, "localhost")
                    }
                };
                let server_name = settings.upstream_tls.server_name.as_deref().unwrap_or(host);
                Target {
                    endpoint,
                    tls,
                    server_name: server_name.trim_matches(['[', ']']).to_owned(),
                    authority: HeaderValue::try_from(&upstream.authority)
                        .unwrap_or(HeaderValue::from_static("localhost")),
                    base_path: upstream.base_path.clone(),
                    group,
                }
            })
            .collect();
        let metrics = metrics.route(&settings.path);
        Self { settings, metrics, targets, next: AtomicUsize::new(0) }
    }

    /// Takes turns among the targets.
    pub fn turn(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// How many addresses there are to try.
    pub fn known_addresses(&self) -> usize {
        let known = |target: &Target| match &target.endpoint {
            Endpoint::Tcp(name) => name.known(),
            Endpoint::Unix(_) => 1,
        };
        self.targets.iter().map(known).sum()
    }

    /// The names behind this route.
    pub fn names(&self) -> impl Iterator<Item = Arc<Name>> + '_ {
        self.targets.iter().filter_map(|target| match &target.endpoint {
            Endpoint::Tcp(name) => Some(Arc::clone(name)),
            Endpoint::Unix(_) => None,
        })
    }
}

impl State {
    /// Puts the parts together.
    pub fn new(settings: Settings, embedded: bool, shared: Shared) -> Self {
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
        let entries = (0..).zip(settings.routes.iter().cloned()).map(|(group, route)| {
            // Group 0 is Pingora's default; ours begin at 1.
            Entry(Arc::new(RouteEntry::new(route, &shared.metrics, group + 1)))
        });
        let routes = RouteTable::new(entries.collect::<Vec<_>>());
        Self { settings, routes, embedded, shared, reserved }
    }

    /// Whether a client's header could pass for one that we set.
    pub fn is_reserved(&self, name: &HeaderName) -> bool {
        !self.reserved.is_empty() && self.reserved.binary_search(&headers::fold(name.as_str())).is_ok()
    }

    /// Ends a session of which only the id is known, here and now.
    pub fn end_session(&self, id: SessionId, reason: EndReason, origin: &audit::Origin<'_>) {
        let until = self.clock.now() + self.jar.settings().max_age;
        self.refresh.end(id, until);
        self.metrics.observe_session_ended(reason);
        audit::session_ended(origin, reason.as_str());
    }

    /// A user's pseudonym in the log.
    pub fn sub_hash(&self, subject: &str) -> SubHash {
        self.sub_hasher.hash(&self.provider.settings().issuer, subject)
    }

    /// Every name that upstreams are reached by.
    pub fn names(&self) -> Vec<Arc<Name>> {
        self.routes.iter().flat_map(|entry| entry.0.names()).collect()
    }
}
