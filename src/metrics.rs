//! The metric families of contract section 7, behind typed calls so that labels stay bounded.
//!
//! Every label is a word of an enum, a configured route's `path` or a three-digit status: nothing that a client sends
//! becomes a label. A request costs no label look-up: [`RouteMetrics`] is made once per route and holds its counters.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// The media type of [`Metrics::render`].
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Seconds. From a local answer (under 1 ms) to a slow report; a token request lies in the middle.
const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Bytes. 4096 is the browsers' limit of one cookie, 8192 the header limit of many upstreams.
const COOKIE_BYTES: &[f64] = &[512.0, 1024.0, 2048.0, 3072.0, 4096.0, 6144.0, 8192.0, 12288.0, 16384.0, 32768.0];

/// An enum whose values are the words that one label may have.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident => $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The word in the label, and in the log.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl Label for $name {
            const ALL: &[Self] = Self::ALL;

            fn word(self) -> &'static str {
                self.as_str()
            }

            fn position(self) -> usize {
                self as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

label! {
    /// How a login attempt finished.
    LoginOutcome {
        Ok => "ok",
        /// The provider said no.
        Refused => "refused",
        /// The provider's answer did not hold.
        Invalid => "invalid",
        /// The callback proved nothing: foreign or missing state, doubled parameters.
        BadCallback => "bad_callback",
        /// The provider did not answer.
        Unavailable => "unavailable",
        /// Our client is misconfigured there.
        Config => "config",
        /// A fault of our own, such as a session that fits no cookie.
        Internal => "internal",
    }
}

label! {
    /// How a refresh went.
    RefreshOutcome {
        Ok => "ok",
        /// The grant is spent or revoked: the session is over.
        Dead => "dead",
        /// Nothing happened at the provider; to be tried again.
        Retry => "retry",
        /// Sent, with unknown outcome.
        Ambiguous => "ambiguous",
        /// Our client is misconfigured there; the session is kept.
        Config => "config",
    }
}

label! {
    /// What becomes of an ending that other replicas are to hear of.
    EndingFate {
        Told => "told",
        /// Redis is away: kept until it is back.
        Kept => "kept",
        /// More were kept than there is room for.
        Dropped => "dropped",
    }
}

label! {
    /// Why a session ended.
    EndReason {
        Logout => "logout",
        Backchannel => "backchannel",
        Frontchannel => "frontchannel",
        /// A new login took its place.
        Replaced => "replaced",
        Expired => "expired",
        Idle => "idle",
        RefreshDead => "refresh_dead",
        RefreshLimit => "refresh_limit",
        /// An old cookie came back after its successor was in use.
        Reuse => "reuse",
        /// By way of the admin listener.
        Operator => "operator",
    }
}

label! {
    /// What a request to the provider was for.
    ProviderEndpoint {
        Discovery => "discovery",
        Jwks => "jwks",
        Token => "token",
        Par => "par",
        Userinfo => "userinfo",
        Revocation => "revocation",
        Introspection => "introspection",
    }
}

label! {
    /// How a reload of configuration, certificates or keys went.
    ReloadOutcome {
        Ok => "ok",
        /// Not usable: the old one stays.
        Failed => "failed",
    }
}

label! {
    /// What an open connection is. One that carries a WebSocket counts under both its transport and `websocket`.
    ConnectionKind {
        Http => "http",
        Tls => "tls",
        Unix => "unix",
        Websocket => "websocket",
        /// A stream of server-sent events of ours.
        Events => "events",
    }
}

label! {
    /// What stands for the route of a request that has none.
    NoRoute {
        /// No route takes it.
        Unmatched => "unmatched",
        /// One of our own endpoints.
        Endpoint => "endpoint",
        /// Refused before it could be routed.
        Invalid => "invalid",
    }
}

label! {
    /// The methods of RFC 9110 and RFC 5789; all else is one word, since clients make up methods.
    MethodLabel {
        Get => "GET",
        Head => "HEAD",
        Post => "POST",
        Put => "PUT",
        Patch => "PATCH",
        Delete => "DELETE",
        Options => "OPTIONS",
        Connect => "CONNECT",
        Trace => "TRACE",
        Other => "other",
    }
}

impl From<&Method> for MethodLabel {
    fn from(method: &Method) -> Self {
        // Byte comparison, not `Method` constants: those are compared through an enum as well.
        Self::from(method.as_str())
    }
}

impl From<&str> for MethodLabel {
    fn from(method: &str) -> Self {
        Self::ALL.iter().copied().find(|known| known.as_str() == method).unwrap_or(Self::Other)
    }
}

/// What [`label!`] makes.
trait Label: Copy + 'static {
    const ALL: &[Self];
    fn word(self) -> &'static str;
    fn position(self) -> usize;
}

/// One metric per word of a label, all made at the start: they show at zero and need no look-up.
#[derive(Debug)]
struct PerWord<M>(Box<[M]>);

impl<M> PerWord<M> {
    fn new<L: Label>(make: impl Fn(&'static str) -> M) -> Self {
        Self(L::ALL.iter().map(|label| make(label.word())).collect())
    }

    fn with<L: Label>(&self, label: L, act: impl FnOnce(&M)) {
        if let Some(metric) = self.0.get(label.position()) {
            act(metric);
        }
    }
}

/// All metrics of the process (or of one test's gateway): nothing here is global.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    upstream_duration: HistogramVec,
    /// By label; two routes with one path (on two hosts) share a series.
    routes: Mutex<HashMap<String, Arc<RouteMetrics>>>,
    no_route: PerWord<Arc<RouteMetrics>>,
    logins: PerWord<IntCounter>,
    refreshes: PerWord<IntCounter>,
    refresh_duration: Histogram,
    refresh_joined: IntCounter,
    stale_cookies: IntCounter,
    cookie_reuse: IntCounter,
    handoff_entries: IntGauge,
    handoff_bytes: IntGauge,
    sessions_ended: PerWord<IntCounter>,
    csrf_refused: IntCounter,
    cookie_bytes: Histogram,
    provider_duration: PerWord<Histogram>,
    config_reloads: PerWord<IntCounter>,
    connections: PerWord<IntGauge>,
    /// Registered when first told: without Redis the family is absent, not 0.
    redis_up: OnceLock<IntGauge>,
    /// Likewise.
    redis_endings: OnceLock<PerWord<IntCounter>>,
    /// Epoch seconds; constant, so read once.
    started: Option<f64>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Registers all families but those of Redis.
    pub fn new() -> Arc<Self> {
        let registry = Registry::new();
        let requests = counters(&registry, "requests_total", "Requests answered.", &["route", "method", "status"]);
        let request_duration = histograms(
            &registry,
            "request_duration_seconds",
            "From the end of a request's head to the end of its answer.",
            &["route"],
        );
        let upstream_duration = histograms(
            &registry,
            "upstream_duration_seconds",
            "From forwarding a request to the head of the upstream's answer.",
            &["route"],
        );
        let no_route = PerWord::new::<NoRoute>(|word| {
            Arc::new(RouteMetrics::new(word, &requests, &request_duration, &upstream_duration))
        });
        let logins = counters(&registry, "logins_total", "Login attempts that finished.", &["outcome"]);
        let refreshes = counters(&registry, "refreshes_total", "Refresh grants.", &["outcome"]);
        let ended = counters(&registry, "sessions_ended_total", "Sessions that ended here.", &["reason"]);
        let reloads = counters(&registry, "config_reloads_total", "Reloads of files.", &["outcome"]);
        let provider = histograms(
            &registry,
            "provider_request_duration_seconds",
            "Requests to the provider, whatever their outcome.",
            &["endpoint"],
        );
        let connections =
            registered(&registry, IntGaugeVec::new(opts("connections", "Open connections of clients."), &["kind"]));
        let build = registered(&registry, IntGaugeVec::new(opts("build_info", "Always 1."), &["version"]));
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            registered(&registry, Histogram::with_opts(histogram_opts(name, help, buckets)))
        };
        let counter = |name: &str, help: &str| registered(&registry, IntCounter::with_opts(opts(name, help)));
        let gauge = |name: &str, help: &str| registered(&registry, IntGauge::with_opts(opts(name, help)));

        Arc::new(Self {
            no_route,
            logins: PerWord::new::<LoginOutcome>(|word| logins.with_label_values(&[word])),
            refreshes: PerWord::new::<RefreshOutcome>(|word| refreshes.with_label_values(&[word])),
            refresh_duration: histogram("refresh_duration_seconds", "Refresh grants, tries included.", SECONDS),
            refresh_joined: counter("refresh_joined_total", "Requests that shared another request's refresh."),
            stale_cookies: counter("stale_cookies_total", "Requests with a cookie from before the last refresh."),
            cookie_reuse: counter("cookie_reuse_total", "Old cookies that came back after their successor was in use."),
            handoff_entries: gauge("handoff_entries", "Refresh results kept for cookies that are still on their way."),
            handoff_bytes: gauge("handoff_bytes", "Memory of the kept refresh results."),
            sessions_ended: PerWord::new::<EndReason>(|word| ended.with_label_values(&[word])),
            csrf_refused: counter("csrf_refused_total", "Requests refused because they did not prove their origin."),
            cookie_bytes: histogram("cookie_bytes", "Size of the session cookies of one answer.", COOKIE_BYTES),
            provider_duration: PerWord::new::<ProviderEndpoint>(|word| provider.with_label_values(&[word])),
            config_reloads: PerWord::new::<ReloadOutcome>(|word| reloads.with_label_values(&[word])),
            connections: PerWord::new::<ConnectionKind>(|word| connections.with_label_values(&[word])),
            redis_up: OnceLock::new(),
            redis_endings: OnceLock::new(),
            started: process::started(),
            routes: Mutex::new(HashMap::new()),
            requests,
            request_duration,
            upstream_duration,
            registry,
        })
    }

    /// The handle of a configured route, by its `path`. Once per route at the start, never per request.
    pub fn route(&self, path: &str) -> Arc<RouteMetrics> {
        let mut routes = self.routes.lock();
        let make =
            || Arc::new(RouteMetrics::new(path, &self.requests, &self.request_duration, &self.upstream_duration));
        Arc::clone(routes.entry(path.to_owned()).or_insert_with(make))
    }

    /// Counts a request that no route took.
    pub fn observe_no_route(&self, kind: NoRoute, method: MethodLabel, status: u16, took: Duration) {
        self.no_route.with(kind, |metrics| metrics.observe(method, status, took, None));
    }

    /// A login attempt finished.
    pub fn observe_login(&self, outcome: LoginOutcome) {
        self.logins.with(outcome, IntCounter::inc);
    }

    /// A refresh grant finished.
    pub fn observe_refresh(&self, outcome: RefreshOutcome, took: Duration) {
        self.refreshes.with(outcome, IntCounter::inc);
        self.refresh_duration.observe(took.as_secs_f64());
    }

    /// A request waited for a refresh that another one had started.
    pub fn observe_refresh_joined(&self) {
        self.refresh_joined.inc();
    }

    /// A request came with a cookie from before the last refresh.
    pub fn observe_stale_cookie(&self) {
        self.stale_cookies.inc();
    }

    /// An old cookie came back after its successor was in use.
    pub fn observe_cookie_reuse(&self) {
        self.cookie_reuse.inc();
    }

    /// What the hand-off of refresh results holds now.
    pub fn set_handoff(&self, entries: usize, bytes: usize) {
        self.handoff_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        self.handoff_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// A session ended.
    pub fn observe_session_ended(&self, reason: EndReason) {
        self.sessions_ended.with(reason, IntCounter::inc);
    }

    /// A request did not prove its origin.
    pub fn observe_csrf_refused(&self) {
        self.csrf_refused.inc();
    }

    /// Session cookies were set, of this many bytes in all.
    pub fn observe_cookie_bytes(&self, bytes: usize) {
        self.cookie_bytes.observe(bytes as f64);
    }

    /// A request to the provider finished, well or not.
    pub fn observe_provider(&self, endpoint: ProviderEndpoint, took: Duration) {
        self.provider_duration.with(endpoint, |histogram| histogram.observe(took.as_secs_f64()));
    }

    /// Files were read again.
    pub fn observe_reload(&self, outcome: ReloadOutcome) {
        self.config_reloads.with(outcome, IntCounter::inc);
    }

    /// Whether Redis answers. The family appears with the first call.
    pub fn set_redis_up(&self, up: bool) {
        let make = || registered(&self.registry, IntGauge::with_opts(opts("redis_up", "Whether Redis answers.")));
        self.redis_up.get_or_init(make).set(i64::from(up));
    }

    /// What became of so many endings that other replicas are to hear of. The family appears with the first call.
    pub fn observe_redis_endings(&self, fate: EndingFate, count: usize) {
        let make = || {
            let endings = counters(
                &self.registry,
                "redis_endings_total",
                "Ends of sessions that other replicas are to hear of.",
                &["outcome"],
            );
            PerWord::new::<EndingFate>(|word| endings.with_label_values(&[word]))
        };
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.redis_endings.get_or_init(make).with(fate, |counter| counter.inc_by(count));
    }

    /// Counts a connection for as long as the guard lives.
    pub fn connection(&self, kind: ConnectionKind) -> OpenConnection {
        let mut gauge = None;
        self.connections.with(kind, |found| gauge = Some(found.clone()));
        OpenConnection::new(gauge)
    }

    /// Everything in the Prometheus text format, process metrics included.
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(32 * 1024);
        // Fails only for a family without series, and those are not gathered; what was written until then stays.
        let _ = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text);
        process::render(&mut text, self.started);
        text
    }
}

/// The counters of one route. Shared by all its requests; every update is a few atomic additions.
pub struct RouteMetrics {
    label: String,
    requests: IntCounterVec,
    /// By method and hundred of the status, made at the first such request: most routes see few of them.
    counters: Box<[OnceLock<Box<Hundred>>]>,
    request_duration: Histogram,
    upstream_duration: Histogram,
}

/// The counters of the statuses `n00` to `n99`.
type Hundred = [OnceLock<IntCounter>; 100];

/// `1xx` to `9xx`, whatever they mean, and one for what has no three digits.
const CLASSES: usize = 10;

impl fmt::Debug for RouteMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteMetrics").field("label", &self.label).finish_non_exhaustive()
    }
}

impl RouteMetrics {
    fn new(label: &str, requests: &IntCounterVec, duration: &HistogramVec, upstream: &HistogramVec) -> Self {
        Self {
            label: label.to_owned(),
            requests: requests.clone(),
            counters: (0..MethodLabel::ALL.len() * CLASSES).map(|_| OnceLock::new()).collect(),
            request_duration: duration.with_label_values(&[label]),
            upstream_duration: upstream.with_label_values(&[label]),
        }
    }

    /// The `route` label.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Counts one request; `upstream` when it was forwarded.
    pub fn observe(&self, method: impl Into<MethodLabel>, status: u16, took: Duration, upstream: Option<Duration>) {
        let method = method.into();
        let (class, rest) = match status {
            100..=999 => (usize::from(status / 100 - 1), usize::from(status % 100)),
            _ => (CLASSES - 1, 0),
        };
        let hundred = self
            .counters
            .get(method.position() * CLASSES + class)
            .map(|slot| slot.get_or_init(|| Box::new([const { OnceLock::new() }; 100])));
        if let Some(slot) = hundred.and_then(|hundred| hundred.get(rest)) {
            slot.get_or_init(|| self.counter(method, status)).inc();
        }
        self.request_duration.observe(took.as_secs_f64());
        if let Some(upstream) = upstream {
            self.upstream_duration.observe(upstream.as_secs_f64());
        }
    }

    fn counter(&self, method: MethodLabel, status: u16) -> IntCounter {
        let status = if (100..=999).contains(&status) { status.to_string() } else { "other".to_owned() };
        self.requests.with_label_values(&[self.label.as_str(), method.as_str(), status.as_str()])
    }
}

/// One open connection in `sidegate_connections`.
#[derive(Debug)]
#[must_use = "the connection counts only while this lives"]
pub struct OpenConnection(Option<IntGauge>);

impl OpenConnection {
    fn new(gauge: Option<IntGauge>) -> Self {
        if let Some(gauge) = &gauge {
            gauge.inc();
        }
        Self(gauge)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if let Some(gauge) = &self.0 {
            gauge.dec();
        }
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("sidegate_{name}"), help)
}

fn histogram_opts(name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(format!("sidegate_{name}"), help).buckets(buckets.to_vec())
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    registered(registry, IntCounterVec::new(opts(name, help), labels))
}

fn histograms(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    registered(registry, HistogramVec::new(histogram_opts(name, help, SECONDS), labels))
}

fn registered<M: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> M {
    let metric = metric.expect("names, labels and buckets are literals of this file");
    registry.register(Box::new(metric.clone())).expect("each family is registered once");
    metric
}

/// What Linux tells about this process, read at the scrape. A file that cannot be read leaves its metric out.
mod process {
    use std::fmt::Write as _;
    use std::fs;

    use rustix::process::{Resource, getrlimit};

    /// `USER_HZ`: 100 in the kernel's interface to user space on every architecture that we build for.
    const TICKS_PER_SECOND: f64 = 100.0;

    pub(super) fn render(out: &mut String, started: Option<f64>) {
        if let Ok(status) = fs::read_to_string("/proc/self/status") {
            let bytes = |key: &str| field_kib(&status, key).map(|kib| kib * 1024.0);
            gauge(out, "process_resident_memory_bytes", "Resident memory.", bytes("VmRSS:"));
            gauge(out, "process_virtual_memory_bytes", "Virtual memory.", bytes("VmSize:"));
            gauge(out, "process_threads", "Threads.", field_kib(&status, "Threads:"));
        }
        // The directory's own descriptor is listed as well.
        let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1) as f64);
        gauge(out, "process_open_fds", "Open file descriptors.", open);
        let limit = getrlimit(Resource::Nofile).current.map(|limit| limit as f64);
        gauge(out, "process_max_fds", "Limit of open file descriptors.", limit);
        if let Some(seconds) = fs::read_to_string("/proc/self/stat").ok().and_then(|stat| cpu_seconds(&stat)) {
            family(out, "process_cpu_seconds_total", "User and system time.", "counter", seconds);
        }
        gauge(out, "process_start_time_seconds", "Start of the process, since the epoch.", started);
    }

    /// Epoch seconds, from the boot time and the start in ticks after it.
    pub(super) fn started() -> Option<f64> {
        let boot = fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        let ticks: f64 = stat_field(&fs::read_to_string("/proc/self/stat").ok()?, 22)?;
        Some(boot + ticks / TICKS_PER_SECOND)
    }

    pub(super) fn cpu_seconds(stat: &str) -> Option<f64> {
        Some((stat_field(stat, 14)? + stat_field(stat, 15)?) / TICKS_PER_SECOND)
    }

    /// Field `number` of proc_pid_stat(5), from 3 on. The second field is the program's name in parentheses and may
    /// hold spaces and parentheses itself, so counting starts after the last one.
    fn stat_field(stat: &str, number: usize) -> Option<f64> {
        let (_, rest) = stat.rsplit_once(')')?;
        rest.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
    }

    fn field_kib(status: &str, key: &str) -> Option<f64> {
        status.lines().find_map(|line| line.strip_prefix(key))?.split_ascii_whitespace().next()?.parse().ok()
    }

    fn gauge(out: &mut String, name: &str, help: &str, value: Option<f64>) {
        if let Some(value) = value {
            family(out, name, help, "gauge", value);
        }
    }

    fn family(out: &mut String, name: &str, help: &str, kind: &str, value: f64) {
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str, series: &str) -> Option<f64> {
        text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
    }

    const MS: Duration = Duration::from_millis(1);

    /// MET-03: a scrape before the first request shows what there is to watch.
    #[test]
    fn families_are_there_from_the_start() {
        let text = Metrics::new().render();
        for series in [
            "sidegate_refresh_joined_total",
            "sidegate_stale_cookies_total",
            "sidegate_cookie_reuse_total",
            "sidegate_handoff_entries",
            "sidegate_handoff_bytes",
            "sidegate_csrf_refused_total",
            "sidegate_cookie_bytes_count",
            "sidegate_refresh_duration_seconds_count",
            "sidegate_refreshes_total{outcome=\"ambiguous\"}",
            "sidegate_logins_total{outcome=\"ok\"}",
            "sidegate_sessions_ended_total{reason=\"refresh_limit\"}",
            "sidegate_provider_request_duration_seconds_count{endpoint=\"token\"}",
            "sidegate_config_reloads_total{outcome=\"ok\"}",
            "sidegate_connections{kind=\"http\"}",
        ] {
            assert_eq!(value(&text, series), Some(0.0), "{series}");
        }
        assert!(!text.contains("redis_up"), "absent without Redis");
        assert_eq!(
            value(&text, &format!("sidegate_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))),
            Some(1.0)
        );
    }

    #[test]
    fn a_request_is_counted_under_its_route() {
        let metrics = Metrics::new();
        let route = metrics.route("/api/");
        route.observe(&Method::GET, 200, MS, Some(MS));
        route.observe(&Method::GET, 200, MS, Some(MS));
        metrics.route("/api/").observe(&Method::POST, 403, MS, None);
        let odd = metrics.route("/odd/");
        for status in [666, 999, 1000, 99] {
            odd.observe(&Method::GET, status, MS, Some(MS));
        }
        let text = metrics.render();
        assert_eq!(value(&text, r#"sidegate_requests_total{method="GET",route="/api/",status="200"}"#), Some(2.0));
        assert_eq!(value(&text, r#"sidegate_requests_total{method="POST",route="/api/",status="403"}"#), Some(1.0));
        for (status, times) in [("666", 1.0), ("999", 1.0), ("other", 2.0)] {
            let series = format!("sidegate_requests_total{{method=\"GET\",route=\"/odd/\",status=\"{status}\"}}");
            assert_eq!(value(&text, &series), Some(times), "{status}");
        }
        assert_eq!(value(&text, r#"sidegate_request_duration_seconds_count{route="/api/"}"#), Some(3.0));
        assert_eq!(value(&text, r#"sidegate_upstream_duration_seconds_count{route="/api/"}"#), Some(2.0));
    }

    /// MET-02: whatever clients and upstreams send, the series stay few. (Statuses have three digits; of those that nobody
    /// ever defined an upstream that sends them all makes four hundred.)
    #[test]
    fn labels_are_bounded() {
        let metrics = Metrics::new();
        let route = metrics.route("/");
        for n in 0..2000_u16 {
            route.observe(format!("FOO{n}").as_str(), 1000 + n, MS, None);
            metrics.observe_no_route(NoRoute::Unmatched, format!("BAR{n}").as_str().into(), 404, MS);
        }
        route.observe("get", 99, MS, None);
        let text = metrics.render();
        let series: Vec<_> = text.lines().filter(|line| line.starts_with("sidegate_requests_total")).collect();
        assert_eq!(
            series,
            [
                r#"sidegate_requests_total{method="other",route="/",status="other"} 2001"#,
                r#"sidegate_requests_total{method="other",route="unmatched",status="404"} 2000"#,
            ]
        );
    }

    #[test]
    fn every_status_and_method_has_its_own_counter() {
        let metrics = Metrics::new();
        let route = metrics.route("/x");
        for status in 100..600 {
            for method in MethodLabel::ALL {
                route.observe(*method, status, MS, None);
            }
        }
        let text = metrics.render();
        let ones = text.lines().filter(|line| line.starts_with("sidegate_requests_total") && line.ends_with(" 1"));
        assert_eq!(ones.count(), 500 * MethodLabel::ALL.len());
    }

    /// ASVS-1.4.3.
    #[test]
    fn a_connection_counts_while_it_is_open() {
        let metrics = Metrics::new();
        let open = [metrics.connection(ConnectionKind::Tls), metrics.connection(ConnectionKind::Tls)];
        assert_eq!(value(&metrics.render(), r#"sidegate_connections{kind="tls"}"#), Some(2.0));
        drop(open);
        assert_eq!(value(&metrics.render(), r#"sidegate_connections{kind="tls"}"#), Some(0.0));
    }

    #[test]
    fn redis_appears_when_told_about() {
        let metrics = Metrics::new();
        metrics.set_redis_up(true);
        metrics.set_redis_up(false);
        assert_eq!(value(&metrics.render(), "sidegate_redis_up"), Some(0.0));
    }

    /// MET-03: the text format, and the process metrics that a dashboard expects.
    #[test]
    fn exposition_is_well_formed() {
        let metrics = Metrics::new();
        metrics.route("/a\"b\\c/").observe(&Method::GET, 200, MS, Some(MS));
        metrics.observe_cookie_bytes(5000);
        let text = metrics.render();
        let mut declared = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(!declared.contains(&name), "{name} is declared twice");
                declared.push(name);
            } else if !line.starts_with("# HELP ") {
                let (series, value) = line.rsplit_once(' ').unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
                let family = declared.last().unwrap();
                assert!(series.starts_with(family), "{series} stands below {family}");
            }
        }
        assert!(text.contains(r#"route="/a\"b\\c/""#), "quotes and backslashes are escaped");
        for name in ["process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"] {
            assert!(value(&text, name).is_some(), "{name}");
        }
        assert!(value(&text, "process_start_time_seconds").unwrap() > 1.6e9);
        assert!(value(&text, "process_resident_memory_bytes").unwrap() > 1e5);
    }

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0 999 0";
        assert_eq!(process::cpu_seconds(stat), Some(2.0));
    }
}
