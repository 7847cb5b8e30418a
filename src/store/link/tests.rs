use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::store::Fate;

const TIMEOUT: Duration = Duration::from_millis(50);
const REFUSED: Fault = Fault { reason: "refused", lost: true };
const ERROR: Fault = Fault { reason: "error", lost: false };

/// What the server does with the next commands; it answers when nothing is said.
#[derive(Clone, Copy)]
enum Act {
    Answer,
    Hang,
    Fail(Fault),
}

#[derive(Default)]
struct Double {
    /// While true nobody gets through.
    down: Mutex<bool>,
    script: Arc<Mutex<VecDeque<Act>>>,
    dials: AtomicUsize,
    commands: Arc<AtomicUsize>,
    ups: Mutex<Vec<bool>>,
}

struct DoubleLine(Arc<Mutex<VecDeque<Act>>>, Arc<AtomicUsize>);

#[async_trait]
impl Line for DoubleLine {
    async fn send(&self, command: &Cmd) -> Result<Value, Fault> {
        if command.args_iter().next().is_some_and(|first| matches!(first, redis::Arg::Simple(b"SET"))) {
            return Ok(Value::Okay);
        }
        self.1.fetch_add(1, Ordering::SeqCst);
        let act = self.0.lock().pop_front().unwrap_or(Act::Answer);
        match act {
            Act::Answer => Ok(Value::Int(1)),
            Act::Hang => std::future::pending().await,
            Act::Fail(fault) => Err(fault),
        }
    }
}

#[async_trait]
impl Dialer for Double {
    async fn dial(&self) -> Result<Arc<dyn Line>, Fault> {
        self.dials.fetch_add(1, Ordering::SeqCst);
        if *self.down.lock() {
            return Err(REFUSED);
        }
        Ok(Arc::new(DoubleLine(Arc::clone(&self.script), Arc::clone(&self.commands))))
    }

    async fn subscribe(&self, _: &str) -> Result<Subscription, Fault> {
        Err(REFUSED)
    }
}

impl Observer for Double {
    fn up(&self, up: bool) {
        self.ups.lock().push(up);
    }
    fn endings(&self, _: Fate, _: usize) {}
}

fn rig(down: bool, script: &[Act]) -> (Arc<Double>, Arc<Link>) {
    let double = Arc::new(Double::default());
    *double.down.lock() = down;
    double.script.lock().extend(script);
    let link = Link::new(Arc::clone(&double) as _, TIMEOUT, "p:probe".to_owned(), Arc::clone(&double) as _);
    let link = Arc::new(link);
    let keeper = Arc::clone(&link);
    tokio::spawn(async move { keeper.keep_up().await });
    (double, link)
}

fn ping() -> Cmd {
    redis::cmd("PING")
}

#[tokio::test(start_paused = true)]
async fn a_command_waits_for_the_first_connection_within_its_own_time() {
    let (_, link) = rig(false, &[]);
    assert_eq!(link.ask(&ping()).await, Ok(Value::Int(1)));
}

#[tokio::test(start_paused = true)]
async fn a_command_is_tried_twice_and_takes_no_longer_than_that() {
    let (double, link) = rig(false, &[Act::Fail(ERROR), Act::Answer, Act::Hang, Act::Hang]);
    assert!(link.ask(&ping()).await.is_ok(), "the second try");
    let began = Instant::now();
    assert_eq!(link.ask(&ping()).await, Err(Away));
    assert!(began.elapsed() < TIMEOUT * 2 + Duration::from_millis(5));
    assert_eq!(double.commands.load(Ordering::SeqCst), 4);
}

/// While the breaker is open nobody waits and nobody asks; a probe every two seconds finds out when that is over.
#[tokio::test(start_paused = true)]
async fn five_failures_open_and_a_probe_closes() {
    let (double, link) = rig(false, &[Act::Hang; 5]);
    link.up().await;
    for _ in 0..3 {
        assert_eq!(link.ask(&ping()).await, Err(Away));
    }
    *double.down.lock() = true;
    let asked = double.commands.load(Ordering::SeqCst);
    assert_eq!(asked, 5, "the sixth was not tried");
    let began = Instant::now();
    for _ in 0..100 {
        assert_eq!(link.ask(&ping()).await, Err(Away));
    }
    assert_eq!((began.elapsed(), double.commands.load(Ordering::SeqCst)), (Duration::ZERO, asked));
    let (dials, span) = (double.dials.load(Ordering::SeqCst), Duration::from_secs(3));
    assert!(!link.is_away_since(span), "it may only be slow");
    sleep(Duration::from_secs(9)).await;
    assert!(link.is_away_since(span));
    assert_eq!(double.dials.load(Ordering::SeqCst) - dials, 4, "one probe every two seconds");
    *double.down.lock() = false;
    sleep(HALF_OPEN).await;
    assert_eq!(link.ask(&ping()).await, Ok(Value::Int(1)));
    assert_eq!(*double.ups.lock(), [false, true, false, true]);
    assert!(!link.is_away_since(Duration::ZERO));
}

/// Only silence may be slowness: a clear no, of the server or of its address, is known at once.
#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_from_silence() {
    let (double, link) = rig(false, &[Act::Hang, Act::Hang, Act::Fail(ERROR), Act::Fail(ERROR), Act::Answer]);
    assert_eq!((link.ask(&ping()).await, link.is_refused()), (Err(Away), false), "it says nothing");
    assert_eq!((link.ask(&ping()).await, link.is_refused()), (Err(Away), true), "it says no");
    assert_eq!((link.ask(&ping()).await, link.is_refused()), (Ok(Value::Int(1)), false));
    *double.down.lock() = true;
    double.script.lock().extend([Act::Fail(REFUSED); 2]);
    assert_eq!((link.ask(&ping()).await, link.is_refused()), (Err(Away), true), "nobody listens there");
    *double.down.lock() = false;
    link.up().await;
    assert!(!link.is_refused());
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_made_anew_at_once() {
    let (double, link) = rig(false, &[Act::Fail(REFUSED)]);
    assert_eq!(link.ask(&ping()).await, Ok(Value::Int(1)), "the second try has the new connection");
    assert_eq!(double.dials.load(Ordering::SeqCst), 2);
    assert_eq!(link.number(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn starts_without_the_store_and_finds_it_later() {
    let (double, link) = rig(true, &[]);
    assert_eq!(link.ask(&ping()).await, Err(Away));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(link.ask(&ping()).await, Err(Away));
    *double.down.lock() = false;
    sleep(HALF_OPEN).await;
    assert!(link.ask(&ping()).await.is_ok());
    assert_eq!(*double.ups.lock(), [false, false, true]);
}

#[tokio::test(start_paused = true)]
async fn a_reload_connects_at_once() {
    let (double, link) = rig(true, &[]);
    sleep(Duration::from_millis(2_500)).await;
    let other = Arc::new(Double::default());
    link.replace(Arc::clone(&other) as _, TIMEOUT);
    assert!(link.ask(&ping()).await.is_ok());
    assert_eq!(other.dials.load(Ordering::SeqCst), 1);
    drop(double);
}
