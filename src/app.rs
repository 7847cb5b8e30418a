//! Composition root: the only place that knows every part.

mod replicas;

use std::fmt;
use std::future::Future;
use std::net::TcpListener;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures_util::FutureExt;
use http::HeaderValue;
use parking_lot::Mutex;
use pingora::apps::HttpServerOptions;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::configuration::ServerConf;
use pingora::server::{ListenFds, RunArgs, Server, ShutdownWatch};
use pingora::services::Service;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::readiness::{Condition, Readiness};
use crate::admin::{AdminService, AdminState};
use crate::clock::{Clock, Timestamp};
use crate::config::{Config, Problem};
use crate::crypto::random;
use crate::gateway::Gateway;
use crate::gateway::attempts::Attempts;
use crate::gateway::refusals::Wording;
use crate::gateway::state::{Shared, State};
use crate::metrics::{
    ConnectionKind, EndReason, Metrics, OpenConnection, ProviderEndpoint, RefreshOutcome, ReloadOutcome,
};
use crate::net::accept::{AcceptService, Entrance, bind};
use crate::net::{Connections, Kind, ListenAddress, Tls, connection, load_server_config, resolve};
use crate::oidc::Provider;
use crate::refresh::coordinator::{Coordinator, Handles, Observer};
use crate::refresh::policy;
use crate::session::jar::Jar;
use crate::session::login_cookie::LoginCookies;
use crate::session::model::{Handle, Session};
use crate::session::settings::SameSite;
use crate::shutdown::{ConnectionGuard, Phase, Shutdown};
use crate::store::Store;
use crate::telemetry::{SubHasher, audit};

/// How often what is past its time is dropped, and gauges are set.
const SWEEP: Duration = Duration::from_secs(5);
/// How often files are looked at. Kubernetes swaps symlinks; a poll sees that as well as a plain write.
const WATCH: Duration = Duration::from_secs(2);

/// The pause before a task that panicked begins anew.
const TASK_AGAIN: Duration = Duration::from_secs(1);

/// Why the process could not start: exit status 71.
#[derive(Debug)]
pub struct StartError(String);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

/// Reads the configuration again, the same way as at the start.
pub type Reload = Arc<dyn Fn() -> Result<Config, Vec<Problem>> + Send + Sync>;

/// Serves until a signal ends it.
///
/// # Errors
/// When an address cannot be bound, a certificate cannot be used, or a service fails at its start.
pub fn run(config: &Config, reload: Reload) -> Result<(), StartError> {
    let shutdown = Shutdown::new(config.server.shutdown_delay, config.server.shutdown_drain);
    let admin_listener = match config.admin.listen {
        Some(address) => Some(
            TcpListener::bind(address)
                .map_err(|error| StartError(format!("admin.listen: cannot listen on {address}: {error}")))?,
        ),
        None => None,
    };
    let assembly = Assembly::new(config, &Clock::System, &shutdown, reload)?;
    for address in assembly.addresses() {
        tracing::info!(target: "sidegate", event = "listening", addr = %address, kind = "public");
    }
    // No command line, no file: Pingora is configured here and nowhere else.
    let mut server = Server::new_with_opt_and_conf(None, server_conf(config.server.threads));
    server.bootstrap();
    if let Some(listener) = admin_listener {
        let shown = config.effective();
        let admin = AdminState {
            metrics: assembly.metrics(),
            readiness: Arc::clone(&assembly.readiness),
            config: Arc::new(move || shown.clone()),
        };
        let admin = AdminService::new(listener, admin).map_err(|error| StartError(format!("admin.listen: {error}")))?;
        tracing::info!(target: "sidegate", event = "listening", addr = %admin.address(), kind = "admin");
        server.add_service(admin);
    }
    server.add_service(assembly);
    server.run(RunArgs { shutdown_signal: shutdown.signal_watch() });
    if shutdown.failed() { Err(StartError("a service ended before its time".to_owned())) } else { Ok(()) }
}

/// The public listeners with all that stands behind them, as a service of Pingora's server. What goes on beside the
/// requests runs on the same runtime, because the provider client's connections live there.
///
/// Tests run it without Pingora's server: [`Assembly::serve`] on any tokio runtime, with a clock of their own.
pub struct Assembly {
    accept: Option<AcceptService<HttpProxy<Gateway>>>,
    addresses: Vec<ListenAddress>,
    state: Arc<ArcSwap<State>>,
    store: Option<Arc<Store>>,
    readiness: Arc<Readiness>,
    connections: Connections,
    phase: watch::Receiver<Phase>,
    drain: watch::Sender<bool>,
    watched: Vec<PathBuf>,
    reload: Reload,
}

impl fmt::Debug for Assembly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assembly").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Assembly {
    /// Binds the public listeners and puts everything behind them together. Calls nobody.
    ///
    /// # Errors
    /// When an address cannot be bound, or a certificate cannot be used.
    pub fn new(config: &Config, clock: &Clock, shutdown: &Arc<Shutdown>, reload: Reload) -> Result<Self, StartError> {
        let listeners = bind(&config.server.listen).map_err(|error| StartError(format!("server.listen: {error}")))?;
        let addresses = listeners.iter().map(|listener| listener.address().clone()).collect();
        let tls = match &config.server.tls {
            Some(files) => {
                let client_ca = files.client_ca_file.as_deref();
                let server = load_server_config(&files.cert_file, &files.key_file, client_ca, true)
                    .map_err(|problem| StartError(format!("server.tls: {problem}")))?;
                Some(Tls::new(server))
            }
            None => None,
        };
        let metrics = Metrics::new();
        let store = replicas::store(config, clock, &metrics);
        let state = assemble(config, clock, &metrics, store.as_ref()).map_err(StartError)?;
        let state = Arc::new(ArcSwap::from_pointee(state));
        {
            let refresh = Arc::clone(&state.load().refresh);
            let store = store.clone();
            shutdown.on_drain(move || {
                let refresh = Arc::clone(&refresh);
                async move {
                    refresh.drain().await;
                    if let Some(store) = store {
                        store.drain().await;
                    }
                }
            });
        }
        let mut proxy = http_proxy(&Arc::new(server_conf(config.server.threads)), Gateway::new(Arc::clone(&state)));
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(config.server.net.keepalive);
        proxy.server_options = Some(options);
        let mut h2 = default_h2_options();
        // Beyond twice the limit a head is not even read; below it the refusal is ours, and clears the cookies.
        h2.max_header_list_size(u32::try_from(config.server.net.header_bytes.saturating_mul(2)).unwrap_or(u32::MAX));
        proxy.h2_options = Some(h2);
        let connections = Connections::new(Arc::new(Gauges {
            metrics: Arc::clone(&state.load().metrics),
            shutdown: Arc::clone(shutdown),
            transport: if tls.is_some() { ConnectionKind::Tls } else { ConnectionKind::Http },
            clients: Mutex::default(),
            tunnels: Mutex::default(),
        }));
        let provider_known = config.admin.ready_requires_provider.then(|| {
            let state = Arc::clone(&state);
            Box::new(move || state.load().provider.known().is_some()) as Condition
        });
        let (drain, draining) = watch::channel(false);
        let proxy_protocol =
            if config.server.proxy_protocol { config.server.trusted_proxies.clone() } else { Vec::new() };
        let entrance = Entrance {
            settings: Arc::new(ArcSwap::from_pointee(config.server.net)),
            tls,
            proxy_protocol: proxy_protocol.into(),
            h2c: config.server.h2c,
            refusals: Arc::new(Wording(Arc::clone(&state))),
            connections: connections.clone(),
            draining,
        };
        Ok(Self {
            accept: Some(AcceptService::new(listeners, Arc::new(proxy), entrance)),
            addresses,
            state,
            store,
            readiness: Readiness::new(shutdown.phase(), provider_known),
            connections,
            phase: shutdown.phase(),
            drain,
            watched: config.watched_files.clone(),
            reload,
        })
    }

    /// Where it listens, with the port that was found for port 0.
    pub fn addresses(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.state.load().metrics)
    }

    /// Serves until `shutdown` turns true or the process drains, and the last connection has ended.
    pub async fn serve(&mut self, shutdown: ShutdownWatch) {
        let Some(mut accept) = self.accept.take() else { return };
        let tasks = self.start_background();
        self.readiness.set_listening();
        accept.run(shutdown).await;
        for task in tasks {
            task.abort();
        }
    }

    fn start_background(&self) -> Vec<JoinHandle<()>> {
        let state = self.state.load_full();
        let provider = Arc::clone(&state.provider);
        let names = state.names();
        let (current, watched, reload) = (Arc::clone(&self.state), self.watched.clone(), Arc::clone(&self.reload));
        let shared = self.store.clone();
        let swept = Arc::clone(&self.state);
        let (phase, drain, connections) = (self.phase.clone(), self.drain.clone(), self.connections.clone());
        let mut tasks = vec![
            keep("provider", move || Arc::clone(&provider).keep_ready()),
            keep("resolve", move || resolve::keep_fresh(names.clone())),
            keep("sweep", move || sweep(Arc::clone(&swept))),
            keep("drain", move || follow(phase.clone(), drain.clone(), connections.clone())),
            keep("keys", move || {
                watch_keys(Arc::clone(&current), shared.clone(), watched.clone(), Arc::clone(&reload))
            }),
        ];
        if let Some(store) = self.store.clone() {
            tasks.push(keep("redis", move || Arc::clone(&store).run(Arc::new(replicas::Deaf))));
        }
        tasks
    }
}

/// Runs a task beside the requests. One that panics would be missed by nobody until much later, so it is told of and
/// begins anew.
fn keep<F, Fut>(task: &'static str, run: F) -> JoinHandle<()>
where
    F: Fn() -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        while AssertUnwindSafe(run()).catch_unwind().await.is_err() {
            tracing::error!(target: "sidegate", event = "panic_caught", task);
            tokio::time::sleep(TASK_AGAIN).await;
        }
    })
}

#[async_trait]
impl Service for Assembly {
    async fn start_service(&mut self, _fds: Option<ListenFds>, shutdown: ShutdownWatch, _listeners_per_fd: usize) {
        self.serve(shutdown).await;
    }

    fn name(&self) -> &'static str {
        "public"
    }
}

fn server_conf(threads: usize) -> ServerConf {
    ServerConf {
        // The process ends when the last request has; waiting is `shutdown`'s business.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        threads: if threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { threads },
        work_stealing: true,
        upstream_keepalive_pool_size: 512,
        // Bounds the tries at connecting; `Gateway::fail_to_connect` and `error_while_proxy` decide on each.
        max_retries: 16,
        ..ServerConf::default()
    }
}

/// What a request is decided by, made of the configuration.
fn assemble(
    config: &Config,
    clock: &Clock,
    metrics: &Arc<Metrics>,
    store: Option<&Arc<Store>>,
) -> Result<State, String> {
    let provider = {
        let metrics = Arc::clone(metrics);
        let observer = move |endpoint: &'static str, took| {
            if let Some(known) = ProviderEndpoint::ALL.iter().find(|known| known.as_str() == endpoint) {
                metrics.observe_provider(*known, took);
            }
        };
        Provider::new(config.oidc.clone(), clock.clone(), Box::new(observer)).map_err(|error| error.to_string())?
    };
    let jar = Arc::new(Jar::new(config.session.clone(), config.keyring.clone()));
    let logins = Arc::new(LoginCookies::new(config.session.clone(), Arc::clone(jar.sealer())));
    let sub_hasher = Arc::new(SubHasher::new(random::bytes()));
    let told =
        Told { metrics: Arc::clone(metrics), sub_hasher: Arc::clone(&sub_hasher), issuer: config.oidc.issuer.clone() };
    let refresh = Coordinator::among_replicas(
        config.refresh.clone(),
        Arc::clone(&provider) as _,
        Arc::clone(&jar) as _,
        clock.clone(),
        Arc::new(told),
        replicas::shared(config, store),
    );
    let via = format!("1.1 sidegate-{}", random::base64url::<6>());
    let shared = Shared {
        jar,
        logins,
        provider,
        refresh,
        attempts: Arc::new(Attempts::among_replicas(store.map(|store| Arc::clone(store) as _))),
        metrics: Arc::clone(metrics),
        clock: clock.clone(),
        sub_hasher,
        via: HeaderValue::try_from(via).unwrap_or(HeaderValue::from_static("1.1 sidegate")),
    };
    State::new(config.gateway.clone(), config.session.same_site == SameSite::None, shared)
}

impl Handles for Jar {
    fn handle(&self, session: &Session) -> Option<Handle> {
        Self::handle(self, session)
    }

    fn index_key(&self, now: Timestamp) -> u16 {
        self.sealing_key_id(now)
    }

    fn seal_result(&self, spent: &Session, handle: Handle, next: &Session) -> Option<Vec<u8>> {
        Self::seal_result(self, spent, handle, next)
    }

    fn open_result(&self, spent: &Session, handle: Handle, sealed: &[u8]) -> Option<Session> {
        Self::open_result(self, spent, handle, sealed)
    }
}

/// Hears of refreshes, for metrics and audit.
struct Told {
    metrics: Arc<Metrics>,
    sub_hasher: Arc<SubHasher>,
    issuer: String,
}

impl Told {
    fn origin(&self, session: &Session) -> audit::Origin<'static> {
        audit::Origin {
            sub_hash: Some(self.sub_hasher.hash(&self.issuer, &session.subject)),
            ..audit::Origin::default()
        }
    }
}

impl Observer for Told {
    fn refreshed(&self, session: &Session, outcome: &'static str, reason: &'static str, took: Duration) {
        if let Some(known) = RefreshOutcome::ALL.iter().find(|known| known.as_str() == outcome) {
            self.metrics.observe_refresh(*known, took);
        }
        let reason = (outcome != RefreshOutcome::Ok.as_str()).then_some(reason);
        audit::refresh(&self.origin(session), outcome, reason);
    }

    fn joined(&self) {
        self.metrics.observe_refresh_joined();
    }

    fn stale_cookie(&self) {
        self.metrics.observe_stale_cookie();
    }

    fn cookie_reuse(&self) {
        self.metrics.observe_cookie_reuse();
    }

    fn session_ended(&self, session: &Session, reason: policy::EndReason) {
        if let Some(known) = EndReason::ALL.iter().find(|known| known.as_str() == reason.word()) {
            self.metrics.observe_session_ended(*known);
        }
        audit::session_ended(&self.origin(session), reason.word());
    }
}

/// Counts connections, for the gauge and for the drain.
struct Gauges {
    metrics: Arc<Metrics>,
    shutdown: Arc<Shutdown>,
    transport: ConnectionKind,
    clients: Mutex<Vec<(OpenConnection, ConnectionGuard)>>,
    tunnels: Mutex<Vec<OpenConnection>>,
}

impl connection::Observer for Gauges {
    fn opened(&self, kind: Kind) {
        match kind {
            Kind::Client => {
                let counted = (self.metrics.connection(self.transport), self.shutdown.guard());
                self.clients.lock().push(counted);
            }
            Kind::Tunnel => {
                let counted = self.metrics.connection(ConnectionKind::Websocket);
                self.tunnels.lock().push(counted);
            }
        }
    }

    fn closed(&self, kind: Kind) {
        // Any one will do: they differ in nothing.
        match kind {
            Kind::Client => drop(self.clients.lock().pop()),
            Kind::Tunnel => drop(self.tunnels.lock().pop()),
        }
    }

    fn handshake_failed(&self) {
        tracing::debug!(target: "sidegate", event = "tls_handshake_failed");
    }
}

/// Drops what is past its time, and sets the gauges.
async fn sweep(state: Arc<ArcSwap<State>>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        let state = state.load_full();
        state.refresh.sweep();
        state.attempts.sweep(state.clock.now());
        let stats = state.refresh.stats();
        state.metrics.set_handoff(stats.entries, stats.bytes);
    }
}

/// Tells the way in of the shutdown's phases.
async fn follow(mut phase: watch::Receiver<Phase>, drain: watch::Sender<bool>, connections: Connections) {
    if phase.wait_for(|phase| *phase >= Phase::Draining).await.is_ok() {
        drain.send_replace(true);
    }
    if phase.wait_for(|phase| *phase >= Phase::Stopped).await.is_ok() {
        connections.close_all();
    }
}

/// Takes new cookie keys when a file of the configuration changed, as long as the whole of it is without mistakes: a
/// configuration that cannot be used leaves the old keys in force. What else changed waits for a restart.
async fn watch_keys(state: Arc<ArcSwap<State>>, store: Option<Arc<Store>>, watched: Vec<PathBuf>, reload: Reload) {
    let mut known = fingerprint(&watched).await;
    let mut ticks = tokio::time::interval(WATCH);
    loop {
        ticks.tick().await;
        let now = fingerprint(&watched).await;
        if now == known {
            continue;
        }
        known = now;
        let reload = Arc::clone(&reload);
        let Ok(outcome) = tokio::task::spawn_blocking(move || reload()).await else { continue };
        let state = state.load_full();
        match outcome {
            Ok(config) if config.keyring_is_random => {}
            Ok(config) => {
                if let (Some(store), Some((settings, _))) = (&store, config.redis) {
                    store.reconfigure(settings);
                }
                state.jar.replace_keys(config.keyring, state.clock.now());
                state.metrics.observe_reload(ReloadOutcome::Ok);
                tracing::info!(target: "sidegate", event = "reload", outcome = "ok", scope = "session keys");
            }
            Err(problems) => {
                state.metrics.observe_reload(ReloadOutcome::Failed);
                for problem in problems {
                    tracing::error!(target: "sidegate", event = "reload", outcome = "failed", problem = %problem);
                }
            }
        }
    }
}

/// What the files hold, as one hash. Contents, not times: a symlink swap changes no time of the file it leads to.
async fn fingerprint(files: &[PathBuf]) -> Option<Vec<u8>> {
    let files = files.to_vec();
    let read = move || {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        for file in &files {
            match std::fs::read(file) {
                Ok(content) => {
                    hash.update(&u64::try_from(content.len()).unwrap_or(u64::MAX).to_be_bytes());
                    hash.update(&content);
                }
                Err(_) => hash.update(b"absent"),
            }
        }
        hash.finish().as_ref().to_vec()
    };
    tokio::task::spawn_blocking(read).await.ok()
}
