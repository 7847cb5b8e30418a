//! The operator's wishes: files and environment in, one typed and consistent [`Config`] out, or every mistake at once.
//!
//! ```text
//! files, environment ── load ──► merged value ── presets ── judge (by the schema of raw) ──► RawConfig ── parse ──► Config
//!                                each leaf knows                  keys, types, words                       meaning
//!                                its layer
//! ```

pub mod check;
pub mod cli;
pub mod dialect;
mod files;
mod judge;
mod load;
mod parse;
mod presets;
mod problem;
pub mod raw;
mod routes;
mod schema;
pub mod text;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::crypto::keyring::Keyring;
use crate::net::settings::ListenAddress;
use crate::refresh::shared::OnError;
use crate::{gateway, net, oidc, refresh, session, spans, store};

pub use load::Surroundings;
pub use problem::{Problem, Warning};
pub use schema::schema;

/// A configuration without mistakes: settings for each layer, secrets read.
#[derive(Clone, Debug)]
pub struct Config {
    /// The way in.
    pub server: ServerSettings,
    /// The operator's listener.
    pub admin: AdminSettings,
    /// Where other proxies ask; none = off.
    pub verify: Option<ListenAddress>,
    /// Logging.
    pub log: LogSettings,
    /// Routes, CSRF, endpoints.
    pub gateway: gateway::settings::Settings,
    /// The provider.
    pub oidc: oidc::Settings,
    /// The others, where there are several.
    pub more_oidc: Vec<oidc::Settings>,
    /// Providers where nobody logs in, by name.
    pub services: Vec<(String, oidc::Settings)>,
    /// The session and its cookies.
    pub session: session::Settings,
    /// Keys that seal cookies.
    pub keyring: Keyring,
    /// The keys were made up for this run: sessions end with the process, and a reload must keep them.
    pub keyring_is_random: bool,
    /// Traces; none = off.
    pub tracing: Option<spans::Settings>,
    /// Refreshing.
    pub refresh: refresh::settings::Settings,
    /// What replicas share, and what to do while it is away.
    pub redis: Option<(store::Settings, OnError)>,
    /// What was configured, defaults included; serializes with secrets masked.
    pub raw: raw::RawConfig,
    /// Configuration files and all files that they name: a change of one asks for a reload.
    pub watched_files: Vec<PathBuf>,
    /// Allowed, but worth a word.
    pub warnings: Vec<Warning>,
}

impl Config {
    /// The effective configuration as TOML: key names of the file, defaults included, secrets masked.
    pub fn effective(&self) -> String {
        toml::to_string(&self.raw).unwrap_or_default()
    }

    /// Takes from the configuration in force what only a restart changes, and names the keys that differ.
    pub fn keep_until_restart(&mut self, running: &Self) -> Vec<&'static str> {
        let (new, old) = (&mut self.raw, &running.raw);
        let mut kept = Vec::new();
        let mut keep = |differs: bool, key| {
            if differs {
                kept.push(key);
            }
        };
        keep(self.server.listen != running.server.listen, "server.listen");
        keep(self.server.tls.is_some() != running.server.tls.is_some(), "server.tls");
        keep(self.server.threads != running.server.threads, "server.threads");
        keep(self.admin.listen != running.admin.listen, "admin.listen");
        keep(new.verify.listen != old.verify.listen, "verify.listen");
        let prefix = |config: &Option<(store::Settings, OnError)>| config.as_ref().map(|(it, _)| it.prefix.clone());
        if prefix(&self.redis) != prefix(&running.redis) {
            keep(true, if self.redis.is_some() == running.redis.is_some() { "redis.prefix" } else { "redis" });
            new.redis.clone_from(&old.redis);
            self.redis.clone_from(&running.redis);
        }
        new.server.listen = old.server.listen.clone();
        self.server.listen.clone_from(&running.server.listen);
        if new.server.tls.is_some() != old.server.tls.is_some() {
            new.server.tls.clone_from(&old.server.tls);
            self.server.tls.clone_from(&running.server.tls);
        }
        new.server.threads = old.server.threads;
        self.server.threads = running.server.threads;
        new.admin.listen.clone_from(&old.admin.listen);
        self.admin.listen = running.admin.listen;
        new.verify.listen.clone_from(&old.verify.listen);
        self.verify.clone_from(&running.verify);
        kept
    }
}

/// `[server]` and the connection's part of `[limits]`.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Where to listen; never empty.
    pub listen: Vec<ListenAddress>,
    /// TLS towards the browser.
    pub tls: Option<TlsFiles>,
    /// Peers that may use the PROXY protocol and whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Expect PROXY protocol v1 or v2 from trusted peers.
    pub proxy_protocol: bool,
    /// 0 = as many as this container may use.
    pub threads: usize,
    /// HTTP/2 by prior knowledge on listeners without TLS.
    pub h2c: bool,
    /// The operator says that there is one instance.
    pub single_replica: bool,
    /// After SIGTERM: serving, but not ready.
    pub shutdown_delay: Duration,
    /// Then the longest time that requests in flight get.
    pub shutdown_drain: Duration,
    /// Bounds of connections and request heads.
    pub net: net::Settings,
}

/// PEM files, judged at start: readable, and key and certificate belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Chain, own certificate first.
    pub cert_file: PathBuf,
    /// Private key.
    pub key_file: PathBuf,
    /// Ask clients for a certificate of these authorities.
    pub client_ca_file: Option<PathBuf>,
}

/// `[admin]`.
#[derive(Clone, Debug)]
pub struct AdminSettings {
    /// None = off.
    pub listen: Option<SocketAddr>,
    /// `/readyz` waits for the provider's metadata.
    pub ready_requires_provider: bool,
    /// Holds the bearer of `POST /revoke`.
    pub token_file: Option<PathBuf>,
}

/// `[log]`.
#[derive(Clone, Copy, Debug)]
pub struct LogSettings {
    /// Text for a terminal, JSON for machines.
    pub format: LogFormat,
    /// The least severe level that is written.
    pub level: tracing::Level,
    /// A line per request.
    pub access: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For human eyes.
    Text,
}

/// A configuration that was read, good or not, with all files that it names: whoever mends one of them wants it to be
/// read again.
#[derive(Debug)]
pub struct Reading {
    /// Configuration files, secrets, keys, certificates; those that were found before the first fatal mistake.
    pub files: Vec<PathBuf>,
    /// The configuration, or every mistake that was found; never empty.
    pub outcome: Result<Config, Vec<Problem>>,
}

/// Reads and judges the configuration: `files` in order, or the usual places when there are none, then the environment.
///
/// # Errors
/// Every mistake that was found; never empty.
pub fn load(files: &[PathBuf]) -> Result<Config, Vec<Problem>> {
    load_in(files, &Surroundings::of_process())
}

/// [`load`] in given surroundings, for tests.
///
/// # Errors
/// As [`load`].
pub fn load_in(files: &[PathBuf], around: &Surroundings) -> Result<Config, Vec<Problem>> {
    read_in(files, around).outcome
}

/// [`load_in`], for whoever wants to know what to watch.
pub fn read_in(files: &[PathBuf], around: &Surroundings) -> Reading {
    let (sources, mut problems) = match load::read(files, around) {
        Ok(read) => read,
        Err(problems) => return Reading { files: Vec::new(), outcome: Err(problems) },
    };
    let named = sources.files().map(PathBuf::from).collect();
    let mut value = sources.value();
    let mut found = problem::Findings::new(sources);
    found.problems.append(&mut problems);
    judge::judge_presets(&mut value, schema(), &mut found);
    presets::apply(&mut value, &mut found);
    judge::judge(&mut value, schema(), &mut found);
    let raw: raw::RawConfig = match value.deserialize() {
        Ok(raw) => raw,
        Err(error) => {
            // Not the error's own Display: that shows the value.
            found.problem(error.path.join("."), "does not have the form that `sidegate schema` describes");
            return Reading { files: named, outcome: Err(found.problems) };
        }
    };
    parse::parse(raw, found, around)
}
