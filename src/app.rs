//! Composition root: the only place that knows every part.

mod generation;
mod reload;
mod replicas;

use std::fmt;
use std::future::Future;
use std::net::TcpListener;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::join_all;
use parking_lot::Mutex;
use pingora::apps::HttpServerOptions;
use pingora::proxy::{HttpProxy, http_proxy};
use pingora::server::configuration::ServerConf;
use pingora::server::{ListenFds, RunArgs, Server, ShutdownWatch};
use pingora::services::Service;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::reload::Reloader;
use crate::admin::readiness::{Condition, Readiness};
use crate::admin::revoke::{self, Order, Revoke};
use crate::admin::{AdminService, AdminState};
use crate::clock::Clock;
use crate::config::{Config, LogFormat, Reading};
use crate::gateway::Gateway;
use crate::gateway::refusals::Wording;
use crate::gateway::state::{Shared, State};
use crate::metrics::{ConnectionKind, Metrics, OpenConnection};
use crate::net::accept::{AcceptService, Entrance, bind, cannot_listen};
use crate::net::{Connections, Kind, ListenAddress, Tls, connection, http2_options, load_server_config};
use crate::session::endings::Whose;
use crate::session::store::By;
use crate::shutdown::{ConnectionGuard, Phase, Shutdown, Signals};
use crate::spans::Prepared;
use crate::telemetry;

/// How often what is past its time is dropped, and gauges are set.
const SWEEP: Duration = Duration::from_secs(5);
/// The pause before a task that panicked begins anew.
const TASK_AGAIN: Duration = Duration::from_secs(1);
/// How long event streams have for their last bytes at the end of the drain.
const STREAMS_GOODBYE: Duration = Duration::from_millis(250);

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
pub type Reload = Arc<dyn Fn() -> Reading + Send + Sync>;

/// `[log]`, as the log wants it.
pub fn log_settings(config: &Config) -> telemetry::Settings {
    let format = match config.log.format {
        LogFormat::Json => telemetry::Format::Json,
        LogFormat::Text => telemetry::Format::Text,
    };
    telemetry::Settings { format, level: telemetry::Level::from(&config.log.level), access: config.log.access }
}

/// Serves until a signal ends it.
///
/// # Errors
/// When an address cannot be bound, a certificate cannot be used, or a service fails at its start.
pub fn run(config: Config, reload: Reload) -> Result<(), StartError> {
    let Signals { exit, reload: hangup } = Signals::catch();
    let shutdown = Shutdown::new(config.server.shutdown_delay, config.server.shutdown_drain);
    let admin_listener = match config.admin.listen {
        Some(address) => Some(
            TcpListener::bind(address)
                .map_err(|error| StartError(format!("admin.listen: {}", cannot_listen(&address, &error))))?,
        ),
        None => None,
    };
    let threads = config.server.threads;
    let assembly = Assembly::new(config, &Clock::System, &shutdown, reload)?;
    *assembly.reloader.hangup.lock() = hangup;
    for address in assembly.addresses() {
        tracing::info!(target: "sidegate", event = "listening", addr = %address, kind = "public");
    }
    if let Some(address) = assembly.verify_address() {
        tracing::info!(target: "sidegate", event = "listening", addr = %address, kind = "verify");
    }
    // No command line, no file: Pingora is configured here and nowhere else.
    let mut server = Server::new_with_opt_and_conf(None, server_conf(threads));
    server.bootstrap();
    if let Some(listener) = admin_listener {
        let in_force = Arc::clone(&assembly.reloader.in_force);
        let admin = AdminState {
            metrics: measured(Arc::clone(&assembly.state)),
            readiness: Arc::clone(&assembly.readiness),
            config: {
                let in_force = Arc::clone(&in_force);
                Arc::new(move || in_force.load().effective())
            },
            revoke: revocation(in_force, &assembly.state),
        };
        let admin = AdminService::new(listener, admin).map_err(|error| StartError(format!("admin.listen: {error}")))?;
        tracing::info!(target: "sidegate", event = "listening", addr = %admin.address(), kind = "admin");
        server.add_service(admin);
    }
    server.add_service(assembly);
    server.run(RunArgs { shutdown_signal: shutdown.signal_watch(exit) });
    if shutdown.failed() { Err(StartError("a service ended before its time".to_owned())) } else { Ok(()) }
}

/// The public listeners with all that stands behind them, as a service of Pingora's server. What goes on beside the
/// requests runs on the same runtime, because the provider client's connections live there.
///
/// Tests run it without Pingora's server: [`Assembly::serve`] on any tokio runtime, with a clock of their own.
pub struct Assembly {
    /// Public, and for forward-auth; taken at the start.
    accept: Vec<AcceptService<HttpProxy<Gateway>>>,
    addresses: Vec<ListenAddress>,
    verify_address: Option<ListenAddress>,
    state: Arc<ArcSwap<State>>,
    readiness: Arc<Readiness>,
    connections: Connections,
    phase: watch::Receiver<Phase>,
    drain: watch::Sender<bool>,
    reloader: Arc<Reloader>,
    /// Taken at the start: it needs a runtime.
    traces: Option<Prepared>,
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
    pub fn new(config: Config, clock: &Clock, shutdown: &Arc<Shutdown>, reload: Reload) -> Result<Self, StartError> {
        let listeners = bind(&config.server.listen).map_err(|error| StartError(format!("server.listen: {error}")))?;
        let addresses = listeners.iter().map(|listener| listener.address().clone()).collect();
        let verify = bind(config.verify.as_slice()).map_err(|error| StartError(format!("verify.listen: {error}")))?;
        let verify_address = verify.first().map(|listener| listener.address().clone());
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
        let store = replicas::store(&config, clock, &metrics);
        let state = generation::first(&config, clock, metrics, store.as_ref()).map_err(StartError)?;
        let state = Arc::new(ArcSwap::from_pointee(state));
        let traces = state.load().tracer.prepare(config.tracing.as_ref()).map_err(StartError)?;
        {
            // Run in reverse: the spans of the last refresh go out too.
            let tracer = Arc::clone(&state.load().tracer);
            shutdown.on_drain(move || async move { tracer.flush().await });
            let (refresh, store) = (Arc::clone(&state.load().refresh), store.clone());
            shutdown.on_drain(move || async move {
                refresh.drain().await;
                // A refresh may have ended a session.
                if let Some(store) = store {
                    store.drain().await;
                }
            });
        }
        let conf = Arc::new(server_conf(config.server.threads));
        let proxy = |gateway| {
            let mut proxy = http_proxy(&conf, gateway);
            let mut options = HttpServerOptions::default();
            options.h2_idle_timeout = Some(config.server.net.keepalive);
            // Refused by the gateway, in its own words.
            options.allow_connect_method_proxying = true;
            proxy.server_options = Some(options);
            proxy.h2_options = Some(http2_options(&config.server.net));
            Arc::new(proxy)
        };
        let public = proxy(Gateway::new(Arc::clone(&state)));
        let verifying = proxy(Gateway::verifying(Arc::clone(&state)));
        let connections = Connections::new(Arc::new(Gauges {
            metrics: Arc::clone(&state.load().metrics),
            shutdown: Arc::clone(shutdown),
            transport: if tls.is_some() { ConnectionKind::Tls } else { ConnectionKind::Http },
            clients: Mutex::default(),
            locals: Mutex::default(),
            tunnels: Mutex::default(),
        }));
        let (drain, draining) = watch::channel(false);
        let settings = Arc::new(ArcSwap::from_pointee(config.server.net));
        let proxy_protocol = Arc::new(ArcSwap::from_pointee(reload::proxy_protocol(&config)));
        let h2c = Arc::new(AtomicBool::new(config.server.h2c));
        let entrance = Entrance {
            settings: Arc::clone(&settings),
            tls: tls.clone(),
            proxy_protocol: Arc::clone(&proxy_protocol),
            h2c: Arc::clone(&h2c),
            refusals: Arc::new(Wording(Arc::clone(&state))),
            connections: connections.clone(),
            draining,
        };
        // Questions come from a proxy beside us: in plain HTTP, and from nobody else.
        let side = Entrance { tls: None, proxy_protocol: Arc::default(), h2c: Arc::default(), ..entrance.clone() };
        let accept = vec![AcceptService::new(listeners, public, entrance), AcceptService::new(verify, verifying, side)];
        let began = reload::fingerprint_of(&config.watched_files);
        let in_force = Arc::new(ArcSwap::from_pointee(config));
        let readiness = Readiness::new(shutdown.phase(), Some(provider_known(&in_force, &state)));
        let reloader = Reloader {
            read: reload,
            in_force,
            state: Arc::clone(&state),
            store,
            shutdown: Arc::clone(shutdown),
            net: settings,
            proxy_protocol,
            h2c,
            tls,
            generations: watch::Sender::new(0),
            began,
            hangup: Mutex::new(None),
        };
        Ok(Self {
            accept,
            addresses,
            verify_address,
            state,
            readiness,
            connections,
            phase: shutdown.phase(),
            drain,
            reloader: Arc::new(reloader),
            traces: Some(traces),
        })
    }

    /// Where it listens, with the port that was found for port 0.
    pub fn addresses(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// Where other proxies ask, likewise.
    pub const fn verify_address(&self) -> Option<&ListenAddress> {
        self.verify_address.as_ref()
    }

    /// What it counts.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.state.load().metrics)
    }

    /// Serves until `shutdown` turns true or the process drains, and the last connection has ended.
    pub async fn serve(&mut self, shutdown: ShutdownWatch) {
        let accept = std::mem::take(&mut self.accept);
        if accept.is_empty() {
            return;
        }
        if let Some(traces) = self.traces.take() {
            self.state.load().tracer.install(traces);
        }
        let tasks = self.start_background();
        self.readiness.set_listening();
        let runs = accept.into_iter().map(|mut accept| {
            let shutdown = shutdown.clone();
            async move { accept.run(shutdown).await }
        });
        join_all(runs).await;
        for task in tasks {
            task.abort();
        }
    }

    fn start_background(&self) -> Vec<JoinHandle<()>> {
        let names = Arc::clone(&self.state.load().names);
        let swept = Arc::clone(&self.state);
        let (phase, drain, connections) = (self.phase.clone(), self.drain.clone(), self.connections.clone());
        let shared = self.state.load().shared.clone();
        let reloader = Arc::clone(&self.reloader);
        let mut tasks = vec![
            self.of_each_generation("provider", |state| {
                let all: Vec<_> = state.providers.iter().map(|provider| Arc::clone(provider).keep_ready()).collect();
                async move { drop(join_all(all).await) }
            }),
            keep("resolve", move || {
                let names = Arc::clone(&names);
                async move { names.keep_fresh().await }
            }),
            keep("sweep", move || sweep(Arc::clone(&swept))),
            keep("drain", move || follow(phase.clone(), drain.clone(), shared.clone(), connections.clone())),
            keep("reload", move || Arc::clone(&reloader).watch()),
        ];
        if let Some(store) = self.reloader.store.clone() {
            let ends = Arc::clone(&self.state.load().ends);
            tasks.push(keep("redis", move || Arc::clone(&store).run(Arc::clone(&ends) as _)));
        }
        tasks
    }

    /// A task that begins anew with every generation of the state.
    fn of_each_generation<F, Fut>(&self, task: &'static str, run: F) -> JoinHandle<()>
    where
        F: Fn(&State) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (state, generations) = (Arc::clone(&self.state), self.reloader.generations.subscribe());
        keep(task, move || {
            let (state, mut generations, run) = (Arc::clone(&state), generations.clone(), run.clone());
            async move {
                loop {
                    generations.mark_unchanged();
                    let work = run(&state.load());
                    tokio::select! {
                        () = work => if generations.changed().await.is_err() { return },
                        changed = generations.changed() => if changed.is_err() { return },
                    }
                }
            }
        })
    }
}

/// Whether the provider is known, or need not be. Once is enough: a reload does not take it back.
fn provider_known(in_force: &Arc<ArcSwap<Config>>, state: &Arc<ArcSwap<State>>) -> Condition {
    let (in_force, state, seen) = (Arc::clone(in_force), Arc::clone(state), AtomicBool::new(false));
    Box::new(move || {
        if state.load().providers.iter().all(|provider| provider.known().is_some()) {
            seen.store(true, Ordering::Relaxed);
        }
        seen.load(Ordering::Relaxed) || !in_force.load().admin.ready_requires_provider
    })
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

/// What `POST /revoke` does; it is there while the configuration in force names a token file.
fn revocation(in_force: Arc<ArcSwap<Config>>, state: &Arc<ArcSwap<State>>) -> Arc<Revoke> {
    let state = Arc::clone(state);
    let end = move |order: &Order<'_>| {
        let state = state.load();
        let issuers = state.providers.iter().map(|provider| provider.settings().issuer.as_str());
        // Whose word it is goes without saying where there is one: two providers may give two users one `sub`.
        let only = state.providers.only().is_some();
        let meant = issuers.filter(|issuer| order.issuer.map_or(only, |given| given == *issuer));
        let whose: Vec<_> = meant
            .map(|issuer| match order.whose {
                revoke::Whose::Subject(subject) => Whose::Subject { issuer, subject },
                revoke::Whose::ProviderSession(sid) => Whose::ProviderSession { issuer, sid },
            })
            .collect();
        state.ends.end_outside(&whose, By::Operator);
        !whose.is_empty()
    };
    Arc::new(Revoke::new(move || in_force.load().admin.token_file.clone(), end))
}

fn server_conf(threads: usize) -> ServerConf {
    let threads = if threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { threads };
    ServerConf {
        // The process ends when the last request has; waiting is `shutdown`'s business.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        threads,
        // From whom, where there is but one?
        work_stealing: threads > 1,
        upstream_keepalive_pool_size: 512,
        // Bounds the tries at connecting; `Gateway::fail_to_connect` and `error_while_proxy` decide on each.
        max_retries: 16,
        ..ServerConf::default()
    }
}

/// Counts connections, for the gauge and for the drain.
struct Gauges {
    metrics: Arc<Metrics>,
    shutdown: Arc<Shutdown>,
    transport: ConnectionKind,
    clients: Mutex<Vec<(OpenConnection, ConnectionGuard)>>,
    locals: Mutex<Vec<(OpenConnection, ConnectionGuard)>>,
    tunnels: Mutex<Vec<OpenConnection>>,
}

impl connection::Observer for Gauges {
    fn opened(&self, kind: Kind) {
        match kind {
            Kind::Client => {
                let counted = (self.metrics.connection(self.transport), self.shutdown.guard());
                self.clients.lock().push(counted);
            }
            Kind::Local => {
                let counted = (self.metrics.connection(ConnectionKind::Unix), self.shutdown.guard());
                self.locals.lock().push(counted);
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
            Kind::Local => drop(self.locals.lock().pop()),
            Kind::Tunnel => drop(self.tunnels.lock().pop()),
        }
    }

    fn handshake_failed(&self) {
        tracing::debug!(target: "sidegate", event = "tls_handshake_failed");
    }
}

/// The page of the metrics: what the gauges of the hand-off show is how it is now.
fn measured(state: Arc<ArcSwap<State>>) -> Arc<dyn Fn() -> String + Send + Sync> {
    Arc::new(move || {
        let state = state.load();
        let stats = state.refresh.stats();
        state.metrics.set_handoff(stats.entries, stats.bytes);
        state.metrics.render()
    })
}

/// Drops what is past its time.
async fn sweep(state: Arc<ArcSwap<State>>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        let state = state.load_full();
        state.refresh.sweep();
        state.attempts.sweep(state.clock.now());
        state.ends.sweep();
        state.own_tokens.sweep(state.clock.now());
    }
}

/// Tells the way in of the shutdown's phases.
async fn follow(
    mut phase: watch::Receiver<Phase>,
    drain: watch::Sender<bool>,
    shared: Shared,
    connections: Connections,
) {
    if phase.wait_for(|phase| *phase >= Phase::Delaying).await.is_ok() {
        shared.leaving.store(true, Ordering::Release);
    }
    if phase.wait_for(|phase| *phase >= Phase::Draining).await.is_ok() {
        drain.send_replace(true);
    }
    // Nobody waits for what a page's event stream says, so these hold nobody: they end with the drain, which is when
    // nothing else is left, or at its limit.
    tokio::select! {
        () = connections.down_to(|| shared.streams.count()) => shared.streams.close(),
        _ = phase.wait_for(|phase| *phase >= Phase::Stopped) => {}
    }
    if phase.wait_for(|phase| *phase >= Phase::Stopped).await.is_ok() {
        shared.streams.close();
        // So that they end as streams should, before their connections do.
        let _ = tokio::time::timeout(STREAMS_GOODBYE, shared.streams.ended()).await;
        connections.close_all();
    }
}
