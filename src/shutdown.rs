//! From SIGTERM to the end of the process: not ready, serving on, draining, gone.
//!
//! ```text
//! Running  ─ signal ─►  Delaying  ─ shutdown_delay ─►  Draining  ─ idle, or shutdown_drain ─►  Stopped
//!                          └────────── a second signal, or `abort` ─────────┴───────────────────►┘
//! ```
//!
//! Pingora by itself closes its listeners at SIGTERM and then sleeps its whole grace period; in a cluster, requests
//! still arrive for some seconds. So [`Shutdown`] takes the signal, walks through the phases, and tells Pingora when
//! all is over. Everything that accepts or serves watches [`Shutdown::phase`] and holds a [`ConnectionGuard`].

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

/// How long connections have, once [`Phase::Stopped`], to say goodbye (the close frame of a WebSocket).
const GOODBYE: Duration = Duration::from_secs(1);

/// Where the process is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Ready.
    Running,
    /// Not ready any more; new connections are still served, since the load balancer has not heard of it yet.
    Delaying,
    /// No new connections; idle ones close, requests in flight finish.
    Draining,
    /// Whatever still runs ends now.
    Stopped,
}

impl Phase {
    /// The word in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Delaying => "delaying",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

/// `delay`: not ready but serving. `drain`: the most that requests in flight get after it.
#[derive(Clone, Copy, Debug)]
struct Times {
    delay: Duration,
    drain: Duration,
}

type Hook = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// The shutdown of one process, shared by all that serve.
pub struct Shutdown {
    times: Mutex<Times>,
    phase: watch::Sender<Phase>,
    /// How often somebody asked for the end. One is graceful, two are not.
    requests: watch::Sender<u32>,
    connections: AtomicUsize,
    /// Told when `connections` falls to zero.
    idle: Notify,
    hooks: Mutex<Vec<Hook>>,
    failed: AtomicBool,
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown").field("phase", &*self.phase.borrow()).finish_non_exhaustive()
    }
}

impl Shutdown {
    /// `delay`: not ready but serving. `drain`: the most that requests in flight get after it.
    pub fn new(delay: Duration, drain: Duration) -> Arc<Self> {
        Arc::new(Self {
            times: Mutex::new(Times { delay, drain }),
            phase: watch::Sender::new(Phase::Running),
            requests: watch::Sender::new(0),
            connections: AtomicUsize::new(0),
            idle: Notify::new(),
            hooks: Mutex::new(Vec::new()),
            failed: AtomicBool::new(false),
        })
    }

    /// Other times for a shutdown that has not begun.
    pub fn set_times(&self, delay: Duration, drain: Duration) {
        *self.times.lock() = Times { delay, drain };
    }

    /// The phase, and news of it. A watcher may miss a phase that is over at once, so compare with `>=`.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Keeps the process draining until the guard is dropped. For each connection of a client.
    pub fn guard(self: &Arc<Self>) -> ConnectionGuard {
        self.connections.fetch_add(1, Ordering::AcqRel);
        ConnectionGuard(Arc::clone(self))
    }

    /// Runs `hook` while draining, once no connection is left, and waits for it as long as time allows: for work that
    /// outlives its request, such as a refresh whose caller has gone.
    pub fn on_drain<F, Fut>(&self, hook: F)
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.hooks.lock().push(Box::new(move || Box::pin(hook())));
    }

    /// Asks for a graceful end; asked again, ends at once. What the signals do.
    pub fn request(&self) {
        self.requests.send_modify(|count| *count = count.saturating_add(1));
    }

    /// Ends the process at once because it cannot serve; [`Shutdown::failed`] tells so.
    pub fn abort(&self) {
        self.failed.store(true, Ordering::Release);
        self.requests.send_modify(|count| *count = (*count).max(2));
    }

    /// Whether [`Shutdown::abort`] was called: the exit code is then not 0.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// What Pingora waits for. Run the server with a grace period of 0: all waiting is done here.
    pub fn signal_watch(self: &Arc<Self>, signals: ExitSignals) -> Box<dyn ShutdownSignalWatch> {
        Box::new(Exit { shutdown: Arc::clone(self), signals: Mutex::new(Some(signals)) })
    }

    /// Walks through the phases; returns when the runtimes may go.
    async fn sequence(&self) -> ShutdownSignal {
        self.requested(1).await;
        let Times { delay, drain } = *self.times.lock();
        let graceful = async {
            self.enter(Phase::Delaying);
            // A timer of zero still waits for its next tick.
            if !delay.is_zero() {
                sleep_until(Instant::now() + delay).await;
            }
            self.enter(Phase::Draining);
            let end = Instant::now() + drain;
            let drained = timeout_at(end, self.drained()).await.is_ok();
            self.enter(Phase::Stopped);
            if !drained {
                let _ = timeout_at(Instant::now() + GOODBYE, self.drained()).await;
            }
            ShutdownSignal::GracefulTerminate
        };
        tokio::select! {
            biased;
            () = self.requested(2) => {
                self.enter(Phase::Stopped);
                ShutdownSignal::FastShutdown
            }
            done = graceful => done,
        }
    }

    async fn requested(&self, times: u32) {
        // The sender lives in `self`, so the channel does not close.
        let _ = self.requests.subscribe().wait_for(|count| *count >= times).await;
    }

    async fn drained(&self) {
        self.no_connection().await;
        loop {
            let Some(hook) = self.hooks.lock().pop() else { return };
            hook().await;
        }
    }

    async fn no_connection(&self) {
        loop {
            let mut idle = std::pin::pin!(self.idle.notified());
            // Registered before the count is read, or the last guard could go in between unnoticed.
            idle.as_mut().enable();
            if self.connections.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }

    fn enter(&self, phase: Phase) {
        let connections = self.connections.load(Ordering::Acquire);
        tracing::info!(target: "sidegate", event = "shutdown", phase = phase.as_str(), connections);
        self.phase.send_replace(phase);
    }
}

/// A connection in flight: the process drains until all are dropped.
#[must_use = "the connection counts only while this lives"]
pub struct ConnectionGuard(Arc<Shutdown>);

impl fmt::Debug for ConnectionGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionGuard")
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        if self.0.connections.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// The signals that we act upon. None of them has its default effect, the end of the process, from
/// [`Signals::catch`] on; one that comes before somebody waits for it is kept.
#[derive(Debug)]
pub struct Signals {
    /// Both graceful.
    pub exit: ExitSignals,
    /// SIGHUP.
    pub reload: Option<Signal>,
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct ExitSignals {
    terminate: Option<Signal>,
    interrupt: Option<Signal>,
}

impl Signals {
    /// To be called before anybody is told that we are there. The runtimes that serve come later: whichever runs tells of
    /// a signal, and the one that is made here is needed for nothing but the asking.
    pub fn catch() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let catch = |kind| {
            let caught = match &runtime {
                Ok(runtime) => {
                    let _inside = runtime.enter();
                    signal(kind).map_err(|error| error.kind())
                }
                Err(error) => Err(error.kind()),
            };
            // Without a handler the signal has its default effect: the process ends, only less gracefully.
            caught
                .inspect_err(|kind| tracing::error!(target: "sidegate", event = "signals_unavailable", kind = %kind))
                .ok()
        };
        Self {
            exit: ExitSignals { terminate: catch(SignalKind::terminate()), interrupt: catch(SignalKind::interrupt()) },
            reload: catch(SignalKind::hangup()),
        }
    }
}

/// The next such signal.
pub async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// From the signals to the end.
struct Exit {
    shutdown: Arc<Shutdown>,
    /// Taken by whoever waits.
    signals: Mutex<Option<ExitSignals>>,
}

#[async_trait]
impl ShutdownSignalWatch for Exit {
    async fn recv(&self) -> ShutdownSignal {
        let signals = self.signals.lock().take();
        let listen = async {
            let Some(ExitSignals { mut terminate, mut interrupt }) = signals else {
                return std::future::pending().await;
            };
            loop {
                tokio::select! {
                    () = next(&mut terminate) => {}
                    () = next(&mut interrupt) => {}
                }
                self.shutdown.request();
            }
        };
        tokio::select! {
            biased;
            () = listen => ShutdownSignal::FastShutdown,
            end = self.shutdown.sequence() => end,
        }
    }
}

/// No core dumps, and no other process of this user may read our memory (LOG-12): keys and tokens live there.
/// `/proc/PID` is from now on root's.
///
/// # Errors
/// When the system refuses; the process can go on.
pub fn harden_process() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // The limit does not hold for a `core_pattern` that pipes into a program; this does.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::JoinHandle;

    const DELAY: Duration = Duration::from_secs(5);
    const DRAIN: Duration = Duration::from_secs(25);

    fn start(shutdown: &Arc<Shutdown>) -> JoinHandle<ShutdownSignal> {
        let shutdown = Arc::clone(shutdown);
        tokio::spawn(async move { shutdown.sequence().await })
    }

    async fn reached(shutdown: &Shutdown, phase: Phase) {
        shutdown.phase().wait_for(|now| *now >= phase).await.expect("the shutdown lives");
        assert_eq!(*shutdown.phase().borrow(), phase);
    }

    /// DOS-25
    #[tokio::test(start_paused = true)]
    async fn serves_on_for_the_delay_and_ends_when_idle() {
        let shutdown = Shutdown::new(DELAY, DRAIN);
        let end = start(&shutdown);
        let began = Instant::now();
        assert_eq!(*shutdown.phase().borrow(), Phase::Running);
        shutdown.request();
        reached(&shutdown, Phase::Delaying).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "not ready at once");
        assert!(matches!(end.await.unwrap(), ShutdownSignal::GracefulTerminate));
        assert_eq!(*shutdown.phase().borrow(), Phase::Stopped);
        assert!(began.elapsed() >= DELAY);
        assert!(began.elapsed() < DELAY + Duration::from_secs(1), "the drain is a limit, not a sleep");
        assert!(!shutdown.failed());
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_last_request_then_for_the_hooks() {
        let shutdown = Shutdown::new(Duration::ZERO, DRAIN);
        let (told, hook_ran) = tokio::sync::oneshot::channel();
        shutdown.on_drain(move || async move {
            let _ = told.send(());
        });
        let (one, two) = (shutdown.guard(), shutdown.guard());
        let end = start(&shutdown);
        shutdown.request();
        reached(&shutdown, Phase::Draining).await;
        drop(one);
        tokio::task::yield_now().await;
        assert!(!end.is_finished());
        drop(two);
        assert!(matches!(end.await.unwrap(), ShutdownSignal::GracefulTerminate));
        hook_ran.await.expect("the hook ran");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_connection_does_not_hold_the_process() {
        let shutdown = Shutdown::new(DELAY, DRAIN);
        let stuck = shutdown.guard();
        let end = start(&shutdown);
        let began = Instant::now();
        shutdown.request();
        reached(&shutdown, Phase::Stopped).await;
        assert!(began.elapsed() >= DELAY + DRAIN);
        assert!(!end.is_finished(), "time to say goodbye");
        end.await.unwrap();
        assert!(began.elapsed() < DELAY + DRAIN + GOODBYE * 2);
        drop(stuck);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_ends_at_once() {
        let shutdown = Shutdown::new(DELAY, DRAIN);
        let _stuck = shutdown.guard();
        let end = start(&shutdown);
        let began = Instant::now();
        shutdown.request();
        reached(&shutdown, Phase::Delaying).await;
        shutdown.request();
        assert!(matches!(end.await.unwrap(), ShutdownSignal::FastShutdown));
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(*shutdown.phase().borrow(), Phase::Stopped);
    }

    #[tokio::test(start_paused = true)]
    async fn abort_is_a_failure() {
        let shutdown = Shutdown::new(DELAY, DRAIN);
        shutdown.abort();
        assert!(matches!(start(&shutdown).await.unwrap(), ShutdownSignal::FastShutdown));
        assert!(shutdown.failed());
    }

    /// From the catching on: what comes before the server waits is waited for all the same, on a runtime of its own.
    #[test]
    fn a_signal_that_comes_too_early_counts() {
        use rustix::process::{Signal, getpid, kill_process};
        let Signals { exit, mut reload } = Signals::catch();
        for early in [Signal::TERM, Signal::HUP] {
            kill_process(getpid(), early).expect("ourselves");
        }
        let shutdown = Shutdown::new(Duration::ZERO, DRAIN);
        let watch = shutdown.signal_watch(exit);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            assert!(matches!(watch.recv().await, ShutdownSignal::GracefulTerminate));
            next(&mut reload).await;
        });
        assert_eq!(*shutdown.phase().borrow(), Phase::Stopped);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_hook_does_not_hold_the_process() {
        let shutdown = Shutdown::new(Duration::ZERO, DRAIN);
        shutdown.on_drain(std::future::pending);
        shutdown.request();
        let began = Instant::now();
        start(&shutdown).await.unwrap();
        assert!(began.elapsed() < DRAIN + GOODBYE * 2);
    }
}
