//! Used login attempts: a code is sent once, and the same callback arriving twice at once shares one exchange.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::clock::Timestamp;

/// How long a used attempt is remembered: the life of its cookie.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Bound of the memory: an attempt costs about 100 bytes.
const CAPACITY: usize = 50_000;

/// Attempts by id.
#[derive(Debug)]
pub struct Attempts<T = super::endpoints::callback::Finished> {
    used: Mutex<HashMap<[u8; 16], Slot<T>>>,
}

#[derive(Debug)]
struct Slot<T> {
    outcome: watch::Receiver<Option<T>>,
    until: Timestamp,
}

/// What became of asking for an exchange.
#[derive(Debug)]
pub enum Taken<T> {
    /// The exchange's outcome, our own or the one we came in time to share.
    Outcome(T),
    /// The attempt was used up before.
    Used,
}

impl<T> Default for Attempts<T> {
    fn default() -> Self {
        Self { used: Mutex::new(HashMap::new()) }
    }
}

impl<T: Clone + Send + Sync + 'static> Attempts<T> {
    /// Runs `exchange` for this attempt in a task that outlives the browser's connection, once; whoever comes while
    /// it runs waits for the same outcome.
    pub async fn once<F>(&self, id: [u8; 16], now: Timestamp, exchange: impl FnOnce() -> F) -> Taken<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut outcome = {
            let mut used = self.used.lock();
            if let Some(slot) = used.get(&id).filter(|slot| slot.until > now) {
                if slot.outcome.borrow().is_some() || slot.outcome.has_changed().is_err() {
                    return Taken::Used;
                }
                slot.outcome.clone()
            } else {
                if used.len() >= CAPACITY {
                    used.retain(|_, slot| slot.until > now);
                }
                if used.len() >= CAPACITY {
                    // Forgetting the oldest keeps the bound; its code is spent at the provider anyway.
                    let oldest = used.iter().min_by_key(|(_, slot)| slot.until).map(|(id, _)| *id);
                    oldest.and_then(|oldest| used.remove(&oldest));
                }
                let (tell, outcome) = watch::channel(None);
                used.insert(id, Slot { outcome: outcome.clone(), until: now + REMEMBERED });
                let exchange = exchange();
                tokio::spawn(async move {
                    let done = exchange.await;
                    tell.send_replace(Some(done));
                });
                outcome
            }
        };
        match outcome.wait_for(Option::is_some).await {
            Ok(done) => done.clone().map_or(Taken::Used, Taken::Outcome),
            // The exchange panicked: nothing can be said about its code, so it is used.
            Err(_) => Taken::Used,
        }
    }

    /// Drops what nobody can ask for any more.
    pub fn sweep(&self, now: Timestamp) {
        self.used.lock().retain(|_, slot| slot.until > now);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

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
}
