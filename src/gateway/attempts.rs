//! Used login attempts: a code is sent once, and the same callback arriving twice at once shares one exchange.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::clock::Timestamp;
use crate::session::login_cookie::attempt_name;
use crate::session::store::UsedAttempts;

/// How long a used attempt is remembered: the life of its cookie.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Bound of the memory. Anybody can use attempts up by the thousand, so what is kept of one is small (about 100 bytes,
/// never its outcome, which holds tokens), and making room costs the same however full it is.
const CAPACITY: usize = 50_000;

/// Attempts by id.
#[derive(Debug)]
pub struct Attempts<T = super::endpoints::callback::Finished> {
    used: Arc<Mutex<Used<T>>>,
    capacity: usize,
    /// What other replicas used.
    shared: Option<Arc<dyn UsedAttempts>>,
}

#[derive(Debug)]
struct Used<T> {
    /// The outcome to come; none once it was there.
    attempts: HashMap<[u8; 16], Option<Running<T>>>,
    /// In the order of use, which is the order in which they are forgotten.
    order: VecDeque<(Timestamp, [u8; 16])>,
}

/// Where an exchange tells its outcome.
type Running<T> = watch::Receiver<Option<Taken<T>>>;

/// What became of asking for an exchange.
#[derive(Clone, Debug)]
pub enum Taken<T> {
    /// The exchange's outcome, our own or the one we came in time to share.
    Outcome(T),
    /// The attempt was used up before.
    Used,
}

impl<T> Default for Attempts<T> {
    fn default() -> Self {
        Self::bounded(CAPACITY)
    }
}

impl<T> Attempts<T> {
    fn bounded(capacity: usize) -> Self {
        let used = Used { attempts: HashMap::new(), order: VecDeque::new() };
        Self { used: Arc::new(Mutex::new(used)), capacity, shared: None }
    }

    /// Attempts that are used once among all replicas. While the store is away, in this process.
    pub fn among_replicas(shared: Option<Arc<dyn UsedAttempts>>) -> Self {
        Self { shared, ..Self::default() }
    }
}

impl<T> Used<T> {
    /// Drops what is past its time, then the oldest until there are no more than `most`: a forgotten code is spent at
    /// the provider anyway.
    fn forget(&mut self, now: Timestamp, most: usize) {
        while self.order.front().is_some_and(|(until, _)| *until <= now || self.order.len() > most) {
            if let Some((_, id)) = self.order.pop_front() {
                self.attempts.remove(&id);
            }
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Attempts<T> {
    /// Runs `exchange` for this attempt in a task that outlives the browser's connection, once; whoever comes while
    /// it runs waits for the same outcome. The future it makes is dropped when another replica used the attempt.
    pub async fn once<F>(&self, id: [u8; 16], now: Timestamp, exchange: impl FnOnce() -> F) -> Taken<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut outcome = {
            let mut used = self.used.lock();
            used.forget(now, self.capacity.saturating_sub(1));
            match used.attempts.get(&id) {
                Some(Some(running)) => running.clone(),
                Some(None) => return Taken::Used,
                None => {
                    let (tell, outcome) = watch::channel(None);
                    used.attempts.insert(id, Some(outcome.clone()));
                    used.order.push_back((now + REMEMBERED, id));
                    let over = Over { used: Arc::clone(&self.used), id };
                    let exchange = exchange();
                    let shared = self.shared.clone();
                    tokio::spawn(async move {
                        let first = match shared {
                            Some(shared) => shared.take(attempt_name(id), REMEMBERED).await.unwrap_or(true),
                            None => true,
                        };
                        let done = if first { Taken::Outcome(exchange.await) } else { Taken::Used };
                        drop(over);
                        tell.send_replace(Some(done));
                    });
                    outcome
                }
            }
        };
        match outcome.wait_for(Option::is_some).await {
            Ok(done) => done.clone().unwrap_or(Taken::Used),
            // The exchange panicked: nothing can be said about its code, so it is used.
            Err(_) => Taken::Used,
        }
    }

    /// Drops what nobody can ask for any more.
    pub fn sweep(&self, now: Timestamp) {
        self.used.lock().forget(now, self.capacity);
    }
}

/// Takes the outcome out of the memory when the exchange is over, by a panic too.
struct Over<T> {
    used: Arc<Mutex<Used<T>>>,
    id: [u8; 16],
}

impl<T> Drop for Over<T> {
    fn drop(&mut self) {
        if let Some(attempt) = self.used.lock().attempts.get_mut(&self.id) {
            *attempt = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::session::store::{Away, Name};

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    /// RFC9700-03: consumed at first use, even when the exchange fails.
    #[tokio::test]
    async fn an_attempt_is_used_once() {
        let attempts = Attempts::<u32>::default();
        assert!(matches!(attempts.once([1; 16], NOW, || async { 7 }).await, Taken::Outcome(7)));
        assert!(matches!(attempts.once([1; 16], NOW, || async { 8 }).await, Taken::Used));
        assert!(matches!(attempts.once([2; 16], NOW, || async { 9 }).await, Taken::Outcome(9)));
    }

    #[tokio::test]
    async fn the_same_callback_twice_at_once_shares_one_exchange() {
        let attempts = Attempts::<u32>::default();
        let calls = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(tokio::sync::Notify::new());
        let exchange = || {
            let (calls, gate) = (Arc::clone(&calls), Arc::clone(&gate));
            move || async move {
                calls.fetch_add(1, Ordering::SeqCst);
                gate.notified().await;
                7
            }
        };
        let first = attempts.once([1; 16], NOW, exchange());
        let second = attempts.once([1; 16], NOW, exchange());
        let open = async {
            tokio::task::yield_now().await;
            gate.notify_one();
        };
        let (first, second, ()) = tokio::join!(first, second, open);
        assert!(matches!((first, second), (Taken::Outcome(7), Taken::Outcome(7))));
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    /// DOS: whoever floods us with attempts fills the memory to its bound, with nothing of what came of them.
    #[tokio::test]
    async fn a_flood_stays_within_bounds() {
        let attempts = Attempts::<Arc<u32>>::bounded(100);
        let outcome = Arc::new(7);
        for number in 0..1000_u128 {
            let shared = Arc::clone(&outcome);
            let taken = attempts.once(number.to_be_bytes(), NOW, || async move { shared }).await;
            assert!(matches!(taken, Taken::Outcome(_)));
        }
        assert_eq!(attempts.used.lock().attempts.len(), 100);
        assert_eq!(attempts.used.lock().order.len(), 100);
        let shared = Arc::clone(&outcome);
        assert!(matches!(attempts.once(999_u128.to_be_bytes(), NOW, || async move { shared }).await, Taken::Used));
        assert_eq!(Arc::strong_count(&outcome), 1, "no outcome is kept");
        attempts.sweep(NOW + REMEMBERED);
        assert!(attempts.used.lock().attempts.is_empty());
    }

    /// A memory that replicas share, or one that is away.
    #[derive(Debug, Default)]
    struct Memory(Mutex<Vec<Name>>, bool);

    #[async_trait]
    impl UsedAttempts for Memory {
        async fn take(&self, name: Name, life: Duration) -> Result<bool, Away> {
            assert_eq!(life, REMEMBERED);
            let mut names = self.0.lock();
            let first = !names.contains(&name);
            names.push(name);
            if self.1 { Err(Away) } else { Ok(first) }
        }
    }

    #[tokio::test]
    async fn what_another_replica_used_is_used() {
        let memory: Arc<dyn UsedAttempts> = Arc::new(Memory::default());
        let [one, other] = [(), ()].map(|()| Attempts::<u32>::among_replicas(Some(Arc::clone(&memory))));
        assert!(matches!(one.once([1; 16], NOW, || async { 7 }).await, Taken::Outcome(7)));
        let never = || async { panic!("the code was sent") };
        assert!(matches!(other.once([1; 16], NOW, never).await, Taken::Used));
        assert!(matches!(other.once([2; 16], NOW, || async { 8 }).await, Taken::Outcome(8)));
    }

    #[tokio::test]
    async fn while_the_store_is_away_each_process_remembers_by_itself() {
        let attempts = Attempts::<u32>::among_replicas(Some(Arc::new(Memory(Mutex::default(), true))));
        assert!(matches!(attempts.once([1; 16], NOW, || async { 7 }).await, Taken::Outcome(7)));
        assert!(matches!(attempts.once([1; 16], NOW, || async { 8 }).await, Taken::Used));
    }

    #[tokio::test]
    async fn an_exchange_that_panics_uses_its_attempt_up() {
        let attempts = Attempts::<u32>::default();
        let broken = || async { std::panic::resume_unwind(Box::new("as a bug would")) };
        assert!(matches!(attempts.once([1; 16], NOW, broken).await, Taken::Used));
        assert!(matches!(attempts.once([1; 16], NOW, || async { 8 }).await, Taken::Used));
    }
}
