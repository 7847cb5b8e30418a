//! The real program as a child process, with its configuration in a directory of its own.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use toml::Table;

use super::client::{Browser, Response};
use super::provider::ProviderDouble;
use super::text::{b64u, random};
use super::upstream::Upstream;
use super::wait::{PATIENCE, eventually, found};
use super::wire::{self, Conn, Reply};

/// A port that nobody listens on. Below the range from which the kernel takes ports for `:0`, counting up from a
/// start that differs between processes, so that nobody else is given it before the child binds it.
pub fn free_port() -> u16 {
    const LOW: u16 = 20_000;
    const COUNT: u16 = 12_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    static START: std::sync::LazyLock<u16> =
        std::sync::LazyLock::new(|| random(2).iter().fold(0, |acc, b| acc << 8 | u16::from(*b)) % COUNT);
    for _ in 0..COUNT {
        let port = LOW + (*START + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port")
}

/// The smallest configuration: `/api/` needs a session, `/opt/` may have one, `/` is public.
pub fn config(provider: &ProviderDouble, upstream: &Upstream) -> Table {
    let (port, admin) = (free_port(), free_port());
    let text = format!(
        r#"
        [server]
        listen = "127.0.0.1:{port}"
        public_url = "http://localhost:{port}"
        [admin]
        listen = "127.0.0.1:{admin}"
        [provider]
        issuer = {issuer:?}
        client_id = {id:?}
        client_secret = {secret:?}
        [session]
        keys = ["{key}"]
        [[route]]
        path = "/api/"
        upstream = "{upstream}"
        access = "session"
        [[route]]
        path = "/opt/"
        upstream = "{upstream}"
        access = "optional"
        [[route]]
        path = "/"
        upstream = "{upstream}"
        access = "public"
        "#,
        issuer = provider.issuer,
        id = provider.client_id(),
        secret = provider.client_secret(),
        key = b64u(random(32)),
        upstream = upstream.url(),
    );
    text.parse().expect("TOML")
}

/// Sets `section.key` (dots go deeper) to a value, given as TOML.
pub fn set(config: &mut Table, key: &str, value: &str) {
    let value: Table = format!("v = {value}").parse().expect("TOML");
    let value = value.get("v").cloned().expect("a value");
    let mut path: Vec<&str> = key.split('.').collect();
    let last = path.pop().expect("a key");
    let mut table = config;
    for part in path {
        let next = table.entry(part).or_insert_with(|| Table::new().into());
        table = next.as_table_mut().expect("a table");
    }
    table.insert(last.to_owned(), value);
}

/// The running program. Killed when dropped.
#[derive(Debug)]
pub struct Gateway {
    child: Mutex<Child>,
    dir: TempDir,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Where its admin listener is.
    pub admin_addr: SocketAddr,
    /// What browsers call it.
    pub public_url: String,
    lines: Arc<watch::Sender<Vec<String>>>,
    errors: Arc<Mutex<String>>,
    readers: [JoinHandle<()>; 2],
}

impl Gateway {
    /// Starts the program with [`config`] and waits until it is ready.
    pub async fn start(provider: &ProviderDouble, upstream: &Upstream) -> Self {
        Self::start_with(provider, upstream, |_| {}).await
    }

    /// The same, with changes to the configuration.
    pub async fn start_with(provider: &ProviderDouble, upstream: &Upstream, change: impl FnOnce(&mut Table)) -> Self {
        let mut table = config(provider, upstream);
        change(&mut table);
        let gateway = Self::run(&table);
        provider.register(&gateway.public_url);
        gateway.wait_until_ready().await;
        gateway
    }

    /// Starts the program with this configuration and does not wait.
    pub fn run(config: &Table) -> Self {
        Self::run_in(config, &[])
    }

    /// The same, with these environment variables.
    pub fn run_in(config: &Table, environment: &[(&str, &str)]) -> Self {
        Self::run_program(Path::new(env!("CARGO_BIN_EXE_sidegate")), config, environment)
    }

    /// The same, with another build of the program.
    pub fn run_program(program: &Path, config: &Table, environment: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("sidegate.toml");
        std::fs::write(&file, config.to_string()).expect("a written configuration");
        let mut command = Command::new(program);
        command.args([Path::new("run"), Path::new("-c"), &file]).current_dir(dir.path()).env_clear();
        command.envs(environment.iter().copied());
        // Coverage runs tell the child where to leave its data.
        if let Some(profile) = std::env::var_os("LLVM_PROFILE_FILE") {
            command.env("LLVM_PROFILE_FILE", profile);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");

        let lines = Arc::new(watch::Sender::new(Vec::new()));
        let (out, seen) = (child.stdout.take().expect("piped"), Arc::clone(&lines));
        let of_lines = std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                seen.send_modify(|all| all.push(line));
            }
        });
        let errors = Arc::new(Mutex::new(String::new()));
        let (mut err, seen) = (child.stderr.take().expect("piped"), Arc::clone(&errors));
        let of_errors = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(n @ 1..) = err.read(&mut piece) {
                seen.lock().push_str(&String::from_utf8_lossy(&piece[..n]));
            }
        });

        let text = |section: &str, key: &str| config.get(section)?.get(key)?.as_str().map(str::to_owned);
        let address = |section: &str| {
            let listen = text(section, "listen").and_then(|l| l.parse().ok());
            listen.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        };
        let public_url = text("server", "public_url").unwrap_or_default();
        let (addr, admin_addr) = (address("server"), address("admin"));
        Self {
            child: Mutex::new(child),
            dir,
            addr,
            admin_addr,
            public_url,
            lines,
            errors,
            readers: [of_lines, of_errors],
        }
    }

    /// Polls `/readyz`; panics with the log when the program ends instead.
    pub async fn wait_until_ready(&self) {
        let ready = eventually(async || {
            if let Some(status) = self.exit_status() {
                panic!("the program ended with {status}:\n{}", self.output());
            }
            self.admin("/readyz").await.is_some_and(|reply| reply.status == 200)
        });
        assert!(ready.await, "not ready:\n{}", self.output());
    }

    /// A fresh browser for it.
    pub fn browser(&self) -> Browser {
        Browser::behind(&self.public_url, self.addr)
    }

    /// A browser that is signed in.
    pub async fn signed_in(&self) -> Browser {
        let browser = self.browser();
        let end: Response = browser.login("/").await;
        let session = browser.session().await;
        assert_eq!(session["authenticated"], true, "{end:?}\n{}", self.output());
        browser
    }

    /// A GET to the admin listener; `None` when nobody answers.
    pub async fn admin(&self, path: &str) -> Option<Reply> {
        let mut conn = Conn::dial(self.admin_addr).await.ok()?;
        let headers = [("Host", "admin"), ("Connection", "close")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        conn.send(&wire::request_bytes("GET", path, &headers, None)).await.ok()?;
        tokio::time::timeout(Duration::from_secs(10), wire::read_reply(&mut conn, "GET")).await.ok()?.ok()?
    }

    /// The metrics, as text.
    pub async fn metrics(&self) -> String {
        let reply = self.admin("/metrics").await.expect("the admin listener answers");
        String::from_utf8_lossy(&reply.body).into_owned()
    }

    /// The sum of the series of that name that have all these labels.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        metric_in(&self.metrics().await, name, labels)
    }

    /// Waits until the sum of a metric's series is this or more: what it counts has no other sign.
    pub async fn reaches(&self, name: &str, value: f64) {
        let reached = eventually(async || self.metric(name, &[]).await >= value).await;
        assert!(reached, "{name} stays below {value}:\n{}", self.output());
    }

    /// The log lines of one event.
    pub fn log_events(&self, event: &str) -> Vec<Value> {
        events_in(&self.lines.borrow(), event)
    }

    /// Waits until `n` log lines of one event have been written, and gives them back.
    pub async fn wait_for_log(&self, event: &str, n: usize) -> Vec<Value> {
        let mut lines = self.lines.subscribe();
        let enough = lines.wait_for(|lines| events_in(lines, event).len() >= n);
        let waited = tokio::time::timeout(PATIENCE, enough).await.is_ok();
        assert!(waited, "no {n} times {event} in the log:\n{}", self.output());
        self.log_events(event)
    }

    /// Everything that the program wrote.
    pub fn output(&self) -> String {
        format!("{}\n{}", self.lines.borrow().join("\n"), self.errors.lock())
    }

    /// The same, and forgets it: for runs that take long.
    pub fn take_output(&self) -> String {
        let lines = self.lines.send_replace(Vec::new());
        format!("{}\n{}", lines.join("\n"), std::mem::take(&mut *self.errors.lock()))
    }

    /// The lines on stdout.
    pub fn stdout(&self) -> Vec<String> {
        self.lines.borrow().clone()
    }

    /// Where the configuration file is.
    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("sidegate.toml")
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.lock().id()
    }

    /// How it ended, if it did.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.child.lock().try_wait().expect("our own child")
    }

    /// Sends a signal: `rustix::process::Signal::TERM`, `HUP` …
    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
        rustix::process::kill_process(id, signal).expect("our own child");
    }

    /// Waits for its end, and until all that it wrote is read.
    pub async fn wait_for_exit(&self) -> ExitStatus {
        let is_read = || self.readers.iter().all(JoinHandle::is_finished);
        let ended = found(async || self.exit_status().filter(|_| is_read())).await;
        ended.unwrap_or_else(|| panic!("still running:\n{}", self.output()))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn events_in(lines: &[String], event: &str) -> Vec<Value> {
    let parse = |line: &String| serde_json::from_str::<Value>(line).ok();
    lines.iter().filter_map(parse).filter(|v| v["event"] == event).collect()
}

/// The sum of the series of that name that have all these labels, in a text of metrics.
pub fn metric_in(metrics: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let has = |series: &str| labels.iter().all(|(k, v)| series.contains(&format!("{k}=\"{v}\"")));
    let value = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let base = series.split('{').next().unwrap_or_default();
        (base == name && has(series)).then(|| value.parse::<f64>().ok()).flatten()
    };
    metrics.lines().filter(|l| !l.starts_with('#')).filter_map(value).sum()
}
