//! Proxies as child processes, and what the kernel knows about them.

use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::load::{ask, request};

/// valgrind needs some of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program that has not been started yet.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// Where it will listen.
    pub(crate) addr: SocketAddr,
    /// Who answers what with 200 when it is ready: itself, or its admin listener.
    pub(crate) probe: (SocketAddr, &'static str),
    /// Its files. Deleted in the end.
    pub(crate) dir: TempDir,
}

impl Launch {
    /// Starts it and waits until it is ready. `under`: what starts the program in our place, `taskset` for example.
    ///
    /// # Errors
    ///
    /// The program is not there, or ends; what it wrote.
    pub(crate) async fn start(self, under: &[String]) -> Result<Proxy, String> {
        let log = |name: &str| File::create(self.dir.path().join(name)).map_err(|error| error.to_string());
        let program = self.program.display().to_string();
        let mut words = under.iter().chain([&program]).chain(&self.args);
        let mut command = Command::new(words.next().unwrap_or(&program));
        command.args(words).envs(self.env).current_dir(self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log("stderr")?);
        let started = Instant::now();
        let child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
        let Self { name, addr, probe, dir, .. } = self;
        let mut proxy = Proxy { name, child, addr, ready: Duration::ZERO, idle_kib: 0, dir };
        let question = request(probe.1, probe.0, &[]);
        while ask(probe.0, &question).await.is_none_or(|answer| !answer.starts_with(b"HTTP/1.1 200")) {
            let ended = proxy.child.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || started.elapsed() > PATIENCE {
                return Err(format!("{} does not start: {}", proxy.name, proxy.errors()));
            }
            sleep(Duration::from_millis(1)).await;
        }
        proxy.ready = started.elapsed();
        proxy.idle_kib = proxy.resident_kib();
        Ok(proxy)
    }
}

/// A running proxy. Killed when dropped, with its children.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) name: String,
    child: Child,
    pub(crate) addr: SocketAddr,
    /// From the start of the process to its first answer.
    pub(crate) ready: Duration,
    /// Resident memory at that time.
    pub(crate) idle_kib: u64,
    dir: TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let (_, children) = self.tree().split_first().map_or((0, Vec::new()), |(own, rest)| (*own, rest.to_vec()));
        let _ = self.child.kill();
        let _ = self.child.wait();
        for id in children {
            if let Some(id) = i32::try_from(id).ok().and_then(Pid::from_raw) {
                let _ = kill_process(id, Signal::KILL);
            }
        }
    }
}

impl Proxy {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What it wrote to stderr.
    pub(crate) fn errors(&self) -> String {
        std::fs::read_to_string(self.dir().join("stderr")).unwrap_or_default()
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    ///
    /// It does not end, or not well.
    pub(crate) async fn stop(mut self) -> Result<(), String> {
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw).ok_or("no process")?;
        kill_process(id, Signal::TERM).map_err(|error| error.to_string())?;
        let asked = Instant::now();
        loop {
            match self.child.try_wait().map_err(|error| error.to_string())? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("ends with {status}: {}", self.errors())),
                None if asked.elapsed() > PATIENCE => return Err("does not end".to_owned()),
                None => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// The process and those that it started.
    fn tree(&self) -> Vec<u32> {
        let mut found = vec![self.child.id()];
        let mut at = 0;
        while let Some(id) = found.get(at) {
            for task in tasks(*id) {
                let children = std::fs::read_to_string(task.join("children")).unwrap_or_default();
                found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            }
            at += 1;
        }
        found
    }

    /// Resident memory; what several processes share is counted once.
    pub(crate) fn resident_kib(&self) -> u64 {
        let tree = self.tree();
        let (file, field) = if tree.len() == 1 { ("status", "VmRSS:") } else { ("smaps_rollup", "Pss:") };
        let of = |id: &u32| {
            let text = std::fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(field));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        tree.iter().map(of).sum()
    }

    /// Nanoseconds on a CPU so far, by thread. Whatever ends meanwhile is lost, so take differences of short times.
    pub(crate) fn cpu(&self) -> HashMap<PathBuf, u64> {
        let nanos = |task: &Path| -> Option<u64> {
            if let Ok(stat) = std::fs::read_to_string(task.join("schedstat")) {
                return stat.split(' ').next()?.parse().ok();
            }
            // Without it: utime and stime (proc(5)), in hundredths of a second on every Linux of today.
            let stat = std::fs::read_to_string(task.join("stat")).ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
            let mut ticks = || fields.next()?.parse::<u64>().ok();
            Some((ticks()? + ticks()?) * 10_000_000)
        };
        let tasks = self.tree().into_iter().flat_map(tasks);
        tasks.filter_map(|task| nanos(&task).map(|nanos| (task, nanos))).collect()
    }
}

/// The directories of a process's threads.
fn tasks(id: u32) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Nanoseconds between two looks at the same process.
pub(crate) fn spent(before: &HashMap<PathBuf, u64>, after: &HashMap<PathBuf, u64>) -> u64 {
    after.iter().map(|(task, nanos)| nanos.saturating_sub(before.get(task).copied().unwrap_or(0))).sum()
}
