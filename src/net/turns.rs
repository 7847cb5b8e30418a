//! Who begins next: answers that have come go before requests that have not begun.
//!
//! A runtime takes what is ready in the order in which it became so. When a thousand clients ask at once, it begins a
//! thousand requests before it looks at the first answer, and all of them hold their buffers meanwhile. So, while many
//! requests are under way, others begin in groups, and between two groups the runtime takes up what else has become ready:
//!
//! ```text
//! readable ─┬─ few under way ──────────────────────────► begins
//!           └─ many ─► waits ─► the runtime looks for news ─► a group begins ─► …
//! ```
//!
//! Nobody waits for an answer: when none has come, the next group begins at once. However many requests an upstream keeps
//! waiting, as many are under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use tokio::sync::Semaphore;
use tokio::task::yield_now;

/// So many under way, for each worker of the runtime, need no order: their buffers fit in a processor's cache.
const FREELY: usize = 64;
/// So many begin between two looks for news, each of which is a system call, while more are under way.
const GROUP: usize = 16;

/// The requests that are under way, and those that are to begin.
#[derive(Debug)]
pub(super) struct Turns {
    /// So many may be under way before there are groups.
    freely: usize,
    under_way: AtomicUsize,
    waiting: AtomicUsize,
    /// A task lets those that wait begin. It ends with the last of them.
    led: AtomicBool,
    /// What those that wait for get, in the order in which they came.
    begun: Semaphore,
}

impl Turns {
    /// For a runtime of so many workers.
    pub(super) fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self {
            freely: FREELY * workers,
            under_way: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            led: AtomicBool::new(false),
            begun: Semaphore::new(0),
        })
    }

    /// A turn, if there is no need to wait for one.
    pub(super) fn try_begin(self: &Arc<Self>) -> Option<Turn> {
        (self.under_way.load(SeqCst) < self.freely && self.waiting.load(SeqCst) == 0).then(|| self.turn())
    }

    /// A turn, behind what is ready by now and those that wait already. May be dropped meanwhile.
    pub(super) async fn begin(self: &Arc<Self>) -> Turn {
        let waiting = Waiting::new(&self.waiting);
        if !self.led.swap(true, SeqCst) {
            tokio::spawn(Arc::clone(self).lead());
        }
        // Never closed, so that it always comes.
        if let Ok(permit) = self.begun.acquire().await {
            permit.forget();
        }
        drop(waiting);
        self.turn()
    }

    fn turn(self: &Arc<Self>) -> Turn {
        self.under_way.fetch_add(1, SeqCst);
        Turn(Arc::clone(self))
    }

    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        self.under_way.load(SeqCst)
    }

    async fn lead(self: Arc<Self>) {
        loop {
            // Behind all that the runtime finds ready when it looks for news.
            yield_now().await;
            let waiting = self.waiting.load(SeqCst);
            if waiting > 0 {
                let room = self.freely.saturating_sub(self.under_way.load(SeqCst));
                let group = room.max(GROUP).min(waiting);
                // Some of the group before may not have run yet.
                self.begun.add_permits(group.saturating_sub(self.begun.available_permits()));
                continue;
            }
            self.led.store(false, SeqCst);
            // Who came just now found it led.
            if self.waiting.load(SeqCst) == 0 || self.led.swap(true, SeqCst) {
                return;
            }
        }
    }
}

/// Counts one that waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// A request that is under way, until it is dropped: when its answer begins.
#[derive(Debug)]
pub(super) struct Turn(Arc<Turns>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::FutureExt;
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;
    use tokio::task::JoinSet;

    use super::*;

    fn begun(turns: &Arc<Turns>, count: usize) -> Vec<Turn> {
        (0..count).map(|_| turns.try_begin().expect("a turn")).collect()
    }

    #[tokio::test]
    async fn a_few_begin_at_once_and_make_room_when_they_end() {
        let turns = Turns::new(2);
        let mut under_way = begun(&turns, 2 * FREELY);
        assert!(turns.try_begin().is_none());
        under_way.pop();
        assert!(turns.try_begin().is_some());
    }

    #[tokio::test]
    async fn nobody_waits_for_those_that_are_under_way() {
        let turns = Turns::new(1);
        let under_way = begun(&turns, FREELY);
        let mut all = JoinSet::new();
        for _ in 0..500 {
            let turns = turns.clone();
            all.spawn(async move { turns.begin().await });
        }
        let others = all.join_all().await;
        assert_eq!(turns.under_way.load(SeqCst), under_way.len() + others.len());
        drop((under_way, others));
        assert!(turns.try_begin().is_some(), "and afterwards it is as before");
    }

    /// In one thread, so that the order is the runtime's.
    #[tokio::test]
    async fn an_answer_that_has_come_goes_before_the_next_group() {
        let turns = Turns::new(1);
        let _under_way = begun(&turns, FREELY);
        let log = Arc::new(Mutex::new(Vec::new()));
        let (upstream, mut answer) = UnixStream::pair().expect("a pair");
        let mut all = JoinSet::new();
        let heard = log.clone();
        all.spawn(async move {
            answer.read_exact(&mut [0]).await.expect("an answer");
            heard.lock().expect("the log").push("answer");
        });
        let upstream = Arc::new(upstream);
        for _ in 0..3 * GROUP {
            let (turns, log, upstream) = (turns.clone(), log.clone(), upstream.clone());
            all.spawn(async move {
                // It goes on: nothing makes room for others.
                std::mem::forget(turns.begin().await);
                let mut log = log.lock().expect("the log");
                if log.is_empty() {
                    upstream.try_write(b"x").expect("sent");
                }
                log.push("begun");
            });
        }
        while all.join_next().await.is_some() {}
        let log = log.lock().expect("the log");
        assert_eq!(log.iter().position(|entry| *entry == "answer"), Some(GROUP));
        assert_eq!(log.len(), 3 * GROUP + 1);
    }

    #[tokio::test]
    async fn who_goes_away_takes_nobodys_turn() {
        let turns = Turns::new(1);
        let _under_way = begun(&turns, FREELY);
        {
            let mut gone = Box::pin(turns.begin());
            assert!((&mut gone).now_or_never().is_none(), "it waits");
            assert_eq!(turns.waiting.load(SeqCst), 1);
        }
        assert_eq!(turns.waiting.load(SeqCst), 0);
        drop(turns.begin().await);
        while turns.led.load(SeqCst) {
            yield_now().await;
        }
    }
}
