//! A changed configuration takes effect in a running process: all of it, or nothing.
//!
//! ```text
//! SIGHUP ─────────────┐
//!                     ├─► read and judge ─► prepare what can fail ─► put in place ─► log, metric
//! a file has changed ─┘         └─ mistakes ──────┴─► log, metric; what was in force stays
//! ```

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::{Reload, generation, log_settings};
use crate::config::Config;
use crate::gateway::state::State;
use crate::metrics::ReloadOutcome;
use crate::net::{self, Tls, load_server_config};
use crate::shutdown::{self, Shutdown};
use crate::store::Store;
use crate::telemetry;

/// How often files are looked at. Kubernetes swaps symlinks; a poll sees that as well as a plain write.
const LOOK: Duration = Duration::from_secs(1);
/// Looks after which a file that changes all the time is read all the same.
const PATIENCE: u32 = 5;
/// Nothing that a configuration names is larger.
const LARGEST: u64 = 1 << 20;

/// What a reload reads and what it replaces.
pub(super) struct Reloader {
    pub(super) read: Reload,
    /// The configuration in force.
    pub(super) in_force: Arc<ArcSwap<Config>>,
    pub(super) state: Arc<ArcSwap<State>>,
    /// None when the process began without.
    pub(super) store: Option<Arc<Store>>,
    pub(super) shutdown: Arc<Shutdown>,
    pub(super) net: Arc<ArcSwap<net::Settings>>,
    pub(super) proxy_protocol: Arc<ArcSwap<Vec<IpNet>>>,
    pub(super) h2c: Arc<AtomicBool>,
    /// None when the listeners began without.
    pub(super) tls: Option<Tls>,
    /// Counts the generations of the state, for tasks that belong to one.
    pub(super) generations: watch::Sender<u64>,
    /// The watched files as they were before anything was served.
    pub(super) began: Fingerprint,
    /// SIGHUP, where it was caught before anything was served.
    pub(super) hangup: Mutex<Option<Signal>>,
}

/// Peers that must begin with a PROXY header; none when the protocol is off.
pub(super) fn proxy_protocol(config: &Config) -> Vec<IpNet> {
    if config.server.proxy_protocol { config.server.trusted_proxies.clone() } else { Vec::new() }
}

impl Reloader {
    /// Reloads at SIGHUP and whenever a watched file has changed.
    pub(super) async fn watch(self: Arc<Self>) {
        let caught = self.hangup.lock().take();
        let mut hangup = caught.or_else(|| signal(SignalKind::hangup()).ok());
        let mut files = self.in_force.load().watched_files.clone();
        let mut looks = tokio::time::interval(LOOK);
        let mut watched = Watched::new(self.began.clone());
        loop {
            let trigger = tokio::select! {
                () = shutdown::next(&mut hangup) => "signal",
                _ = looks.tick() => {
                    if !watched.look(fingerprint(&files).await) {
                        continue;
                    }
                    "files"
                }
            };
            // Before it reads: what changes while it does is looked at again.
            let seen = fingerprint(&files).await;
            let this = Arc::clone(&self);
            let Ok(named) = tokio::task::spawn_blocking(move || this.reload(trigger)).await else { continue };
            if named == files {
                watched = Watched::new(seen);
            } else {
                files = named;
                watched = Watched::new(fingerprint(&files).await);
            }
        }
    }

    /// Reads the configuration and puts it in place if it is a good one. What to watch from now on.
    fn reload(&self, trigger: &'static str) -> Vec<PathBuf> {
        let reading = (self.read)();
        let metrics = Arc::clone(&self.state.load().metrics);
        let outcome = reading.outcome.map_err(|problems| problems.iter().map(ToString::to_string).collect());
        match outcome.and_then(|config| self.apply(config).map_err(|problem| vec![problem])) {
            Ok(()) => {
                metrics.observe_reload(ReloadOutcome::Ok);
                tracing::info!(target: "sidegate", event = "reload", outcome = "ok", trigger);
                reading.files
            }
            Err(problems) => {
                let problems: Vec<String> = problems;
                metrics.observe_reload(ReloadOutcome::Failed);
                for problem in problems {
                    tracing::error!(target: "sidegate", event = "reload", outcome = "failed", trigger, problem);
                }
                // Either the new files are mended, or the old ones come back.
                let mut files = self.in_force.load().watched_files.clone();
                files.extend(reading.files);
                files.sort_unstable();
                files.dedup();
                files
            }
        }
    }

    /// First all that can fail, then the rest.
    fn apply(&self, mut config: Config) -> Result<(), String> {
        let running = self.in_force.load_full();
        let kept = config.keep_until_restart(&running);
        let old = self.state.load_full();
        let next = generation::next(&config, &old, self.store.as_ref())?;
        let tracer = old.tracer.prepare(config.tracing.as_ref())?;
        let tls = match (&self.tls, &config.server.tls) {
            (Some(tls), Some(files)) => {
                let client_ca = files.client_ca_file.as_deref();
                let server = load_server_config(&files.cert_file, &files.key_file, client_ca, true)
                    .map_err(|problem| format!("server.tls: {problem}"))?;
                Some((tls, server))
            }
            _ => None,
        };

        if !config.keyring_is_random {
            next.state.jar.replace_keys(config.keyring.clone(), old.clock.now());
        }
        if let Some((tls, server)) = tls {
            tls.replace(server);
        }
        if let (Some(store), Some((settings, _))) = (&self.store, &config.redis) {
            store.reconfigure(settings);
        }
        self.net.store(Arc::new(config.server.net));
        self.proxy_protocol.store(Arc::new(proxy_protocol(&config)));
        self.h2c.store(config.server.h2c, Ordering::Relaxed);
        self.shutdown.set_times(config.server.shutdown_delay, config.server.shutdown_drain);
        telemetry::reconfigure(&log_settings(&config));
        old.tracer.install(tracer);
        old.refresh.replace_terms(next.terms);
        old.ends.replace_jar(Arc::clone(&next.state.jar));
        self.state.store(Arc::new(next.state));
        self.generations.send_modify(|generation| *generation += 1);
        for key in kept {
            tracing::warn!(target: "sidegate", event = "restart_needed", key, "a change of {key} waits for a restart");
        }
        for warning in config.warnings.iter().filter(|warning| !running.warnings.contains(warning)) {
            tracing::warn!(target: "sidegate", event = "config_warning", problem = %warning);
        }
        self.in_force.store(Arc::new(config));
        Ok(())
    }
}

/// Decides when files that change are read: once they hold still, for a writer may be half-way.
#[derive(Debug)]
struct Watched {
    /// As it was when the files were read.
    read: Fingerprint,
    /// As it was at the last look, and how many looks found it different from what was read.
    last: Fingerprint,
    looks: u32,
}

impl Watched {
    fn new(read: Fingerprint) -> Self {
        Self { last: read.clone(), read, looks: 0 }
    }

    /// Takes a look; true when it is time to read.
    fn look(&mut self, now: Fingerprint) -> bool {
        let still = now == self.last;
        self.last = now;
        if self.last == self.read {
            self.looks = 0;
            return false;
        }
        self.looks += 1;
        still || self.looks >= PATIENCE
    }
}

/// What the files hold, as one hash. Contents, not times: a symlink swap changes no time of the file it leads to.
pub(super) type Fingerprint = Vec<u8>;

async fn fingerprint(files: &[PathBuf]) -> Fingerprint {
    let files = files.to_vec();
    tokio::task::spawn_blocking(move || fingerprint_of(&files)).await.unwrap_or_default()
}

pub(super) fn fingerprint_of(files: &[PathBuf]) -> Fingerprint {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    for file in files {
        match content(file) {
            Some(content) => {
                hash.update(&u64::try_from(content.len()).unwrap_or(u64::MAX).to_be_bytes());
                hash.update(&content);
            }
            None => hash.update(b"absent"),
        }
    }
    hash.finish().as_ref().to_vec()
}

/// None when it cannot be read, or is something that one would wait for, such as a pipe.
fn content(file: &Path) -> Option<Zeroizing<Vec<u8>>> {
    let length = std::fs::metadata(file).ok().filter(std::fs::Metadata::is_file)?.len();
    // With room from the start: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(length.min(LARGEST)).unwrap_or(0) + 1));
    std::fs::File::open(file).ok()?.take(LARGEST).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(of: &str) -> Fingerprint {
        of.as_bytes().to_vec()
    }

    #[test]
    fn files_are_read_once_they_hold_still() {
        let mut watched = Watched::new(print("a"));
        assert!(!watched.look(print("a")));
        assert!(!watched.look(print("half")), "the writer may not be done");
        assert!(!watched.look(print("whole")));
        assert!(watched.look(print("whole")));
    }

    #[test]
    fn what_comes_back_is_no_change() {
        let mut watched = Watched::new(print("a"));
        assert!(!watched.look(print("b")));
        assert!(!watched.look(print("a")));
        assert!(!watched.look(print("a")));
        assert!(!watched.look(print("b")));
        assert!(watched.look(print("b")));
    }

    #[test]
    fn a_file_that_never_holds_still_is_read_in_the_end() {
        let mut watched = Watched::new(print("0"));
        let looks = (1..).take_while(|look| !watched.look(print(&look.to_string()))).count();
        assert_eq!(looks + 1, PATIENCE as usize);
    }

    /// K8S-08: what a mounted Secret does.
    #[test]
    fn a_symlink_swap_is_a_change_and_a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (version, content) in [("..1", "old"), ("..2", "new")] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("key"), content).unwrap();
        }
        std::os::unix::fs::symlink("..1", at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/key", at("key")).unwrap();
        let before = fingerprint_of(&[at("key")]);
        std::os::unix::fs::symlink("..2", at("..tmp")).unwrap();
        std::fs::rename(at("..tmp"), at("..data")).unwrap();
        assert_ne!(fingerprint_of(&[at("key")]), before);
        assert_eq!(fingerprint_of(&[dir.path().to_owned()]), fingerprint_of(&[at("absent")]), "not a file");
    }
}
