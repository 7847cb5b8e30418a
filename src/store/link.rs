//! The one connection that all commands share, and how long anybody waits for it.
//!
//! ```text
//! Dialing ── connected, and a write worked ──► Up
//! Up      ── connection lost ─► Dialing
//! Up, Dialing ── five failures in a row ─► Away ── a probe every two seconds works ─► Up
//! ```
//!
//! Commands never connect. While the state is `Away` they fail at once; while it is `Dialing` they wait within their
//! own time. The probes are the keeper's, so that no request is spent on finding out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use redis::{Cmd, Value};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Observer;
use super::breaker::{Breaker, Turned};
use crate::session::store::Away;

/// A command is tried so often.
const TRIES: usize = 2;
/// Bounds connecting, which no request waits for longer than its own time.
const DIAL: Duration = Duration::from_secs(3);
/// The pause between two probes while the breaker is open.
const HALF_OPEN: Duration = Duration::from_secs(2);
/// The pause between two tries at connecting before that.
const REDIAL: Duration = Duration::from_millis(50);
/// How long the probe's key lives.
const PROBE_LIFE: u64 = 5_000;

/// Why the store gave no answer, in a word for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) reason: &'static str,
    /// The connection is of no use any more.
    pub(super) lost: bool,
}

/// Nobody said anything: it may only be slow.
const SILENCE: &str = "timeout";

/// A connection.
#[async_trait]
pub(super) trait Line: Send + Sync {
    async fn send(&self, command: &Cmd) -> Result<Value, Fault>;
}

/// What comes from a channel; ends when its connection does.
pub(super) type Subscription = BoxStream<'static, Vec<u8>>;

/// Makes connections.
#[async_trait]
pub(super) trait Dialer: Send + Sync {
    async fn dial(&self) -> Result<Arc<dyn Line>, Fault>;
    async fn subscribe(&self, channel: &str) -> Result<Subscription, Fault>;
}

#[derive(Clone)]
enum State {
    Dialing,
    Up(Connected),
    Away,
}

/// A connection with its number.
#[derive(Clone)]
struct Connected {
    line: Arc<dyn Line>,
    number: u64,
}

struct Target {
    dialer: Arc<dyn Dialer>,
    timeout: Duration,
}

/// See the module.
pub(super) struct Link {
    target: ArcSwap<Target>,
    probe: String,
    observer: Arc<dyn Observer>,
    breaker: Mutex<Breaker>,
    /// Whether it was said last that the store is up, and when it was first said.
    told: Mutex<Option<(bool, Instant)>>,
    /// The last failure was a clear one, not silence.
    refused: AtomicBool,
    state: watch::Sender<State>,
}

impl Link {
    pub(super) fn new(dialer: Arc<dyn Dialer>, timeout: Duration, probe: String, observer: Arc<dyn Observer>) -> Self {
        observer.up(false);
        Self {
            target: ArcSwap::from_pointee(Target { dialer, timeout }),
            probe,
            observer,
            breaker: Mutex::default(),
            told: Mutex::default(),
            refused: AtomicBool::new(false),
            state: watch::Sender::new(State::Dialing),
        }
    }

    /// Connects to somebody else from now on.
    pub(super) fn replace(&self, dialer: Arc<dyn Dialer>, timeout: Duration) {
        self.target.store(Arc::new(Target { dialer, timeout }));
        self.state.send_replace(State::Dialing);
    }

    /// The answer to a command, within two times the timeout.
    pub(super) async fn ask(&self, command: &Cmd) -> Result<Value, Away> {
        let patience = self.target.load().timeout;
        for _ in 0..TRIES {
            let end = Instant::now() + patience;
            let Ok(connected) = timeout_at(end, self.connected()).await else { continue };
            let Connected { line, number } = connected.ok_or(Away)?;
            let fault = match timeout_at(end, line.send(command)).await {
                Ok(Ok(value)) => {
                    self.refused.store(false, Ordering::Relaxed);
                    self.breaker.lock().answered();
                    return Ok(value);
                }
                Ok(Err(fault)) => fault,
                Err(_) => Fault { reason: SILENCE, lost: false },
            };
            // Whether a lost connection comes again at once, the keeper finds out.
            if !fault.lost {
                self.refused.store(fault.reason != SILENCE, Ordering::Relaxed);
            }
            self.failed(number, fault);
        }
        Err(Away)
    }

    /// Waits for a connection, whatever it takes; its number.
    pub(super) async fn up(&self) -> u64 {
        let mut state = self.state.subscribe();
        let up = state.wait_for(|state| matches!(state, State::Up(_))).await;
        match up.as_deref() {
            Ok(State::Up(connected)) => connected.number,
            // The sender is ours: this does not happen.
            _ => 0,
        }
    }

    /// The number of the connection that is up.
    pub(super) fn number(&self) -> Option<u64> {
        match &*self.state.borrow() {
            State::Up(connected) => Some(connected.number),
            _ => None,
        }
    }

    /// Whether it is known for so long that the store is away.
    pub(super) fn is_away_since(&self, span: Duration) -> bool {
        self.told.lock().is_some_and(|(up, since)| !up && since.elapsed() >= span)
    }

    /// Whether it said no, or nobody listens there: that is not what a slow one does.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    pub(super) async fn subscribe(&self, channel: &str) -> Result<Subscription, Fault> {
        let dialer = Arc::clone(&self.target.load().dialer);
        timeout(DIAL, dialer.subscribe(channel)).await.unwrap_or(Err(Fault { reason: SILENCE, lost: true }))
    }

    /// None while the store is away.
    async fn connected(&self) -> Option<Connected> {
        if let State::Up(connected) = &*self.state.borrow() {
            return Some(connected.clone());
        }
        let mut state = self.state.subscribe();
        match state.wait_for(|state| !matches!(state, State::Dialing)).await.as_deref() {
            Ok(State::Up(connected)) => Some(connected.clone()),
            _ => None,
        }
    }

    fn failed(&self, number: u64, fault: Fault) {
        let turned = self.breaker.lock().failed();
        let mut gone = false;
        self.state.send_if_modified(|state| {
            gone = matches!(state, State::Up(connected) if connected.number == number);
            let next = match turned {
                Some(Turned::Open) => State::Away,
                _ if fault.lost && gone => State::Dialing,
                _ => return false,
            };
            *state = next;
            true
        });
        if turned == Some(Turned::Open) {
            self.tell(Err(fault.reason));
        }
    }

    /// One line per change.
    fn tell(&self, state: Result<(), &'static str>) {
        self.observer.up(state.is_ok());
        {
            let mut told = self.told.lock();
            if told.is_some_and(|(up, _)| up == state.is_ok()) {
                return;
            }
            *told = Some((state.is_ok(), Instant::now()));
        }
        match state {
            Ok(()) => tracing::info!(target: "sidegate", event = "redis", state = "up"),
            Err(reason) => tracing::warn!(target: "sidegate", event = "redis", state = "away", reason),
        }
    }

    /// Connects, and connects again. Ends never.
    pub(super) async fn keep_up(&self) {
        let mut number = 0;
        let mut state = self.state.subscribe();
        loop {
            if matches!(&*state.borrow_and_update(), State::Away) {
                // A reload need not wait.
                let _ = timeout(HALF_OPEN, state.changed()).await;
            }
            match self.dial().await {
                Ok(line) => {
                    number += 1;
                    self.refused.store(false, Ordering::Relaxed);
                    self.breaker.lock().answered();
                    self.state.send_replace(State::Up(Connected { line, number }));
                    self.tell(Ok(()));
                    let _ = state.wait_for(|state| !matches!(state, State::Up(up) if up.number == number)).await;
                }
                Err(fault) => {
                    self.refused.store(fault.reason != SILENCE, Ordering::Relaxed);
                    let (turned, open) = {
                        let mut breaker = self.breaker.lock();
                        (breaker.failed(), breaker.is_open())
                    };
                    if turned.is_some() {
                        self.tell(Err(fault.reason));
                    }
                    if open {
                        self.state.send_replace(State::Away);
                    } else {
                        sleep(REDIAL).await;
                    }
                }
            }
        }
    }

    /// A connection over which a write worked: a replica that takes none, or a user who may not, is of no use.
    async fn dial(&self) -> Result<Arc<dyn Line>, Fault> {
        let target = self.target.load_full();
        let slow = Fault { reason: SILENCE, lost: true };
        let line = timeout(DIAL, target.dialer.dial()).await.unwrap_or(Err(slow))?;
        let mut probe = redis::cmd("SET");
        probe.arg(&self.probe).arg(1).arg("PX").arg(PROBE_LIFE);
        // A fresh connection may be slower than one in use; nobody waits for it.
        timeout(DIAL, line.send(&probe)).await.unwrap_or(Err(slow))?;
        Ok(line)
    }
}

#[cfg(test)]
mod tests;
