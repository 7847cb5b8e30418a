//! Waiting for what gives no other sign than that it is so.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Longer than anything takes, on machines of which nobody knows how slow they are; only a failing test waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// The first answer; none when there is none in time.
pub async fn found<T, F: Future<Output = Option<T>>>(mut look: impl FnMut() -> F) -> Option<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = look().await;
        if answer.is_some() || Instant::now() > end {
            return answer;
        }
        sleep(PAUSE).await;
    }
}

/// Whether it becomes so in time.
pub async fn eventually<F: Future<Output = bool>>(mut so: impl FnMut() -> F) -> bool {
    let look = || {
        let so = so();
        async move { so.await.then_some(()) }
    };
    found(look).await.is_some()
}

/// Waits until it is so, and fails when that does not come.
pub async fn until<F: Future<Output = bool>>(what: &str, so: impl FnMut() -> F) {
    assert!(eventually(so).await, "waited in vain until {what}");
}
