//! Nobody is logged out by a race: the small version of `benches/burst.rs`.

mod support;

use support::burst::{Plan, Reuse, Share, run};

/// RFR-01, RFR-03: one process before a provider that forgives nothing.
#[tokio::test(flavor = "multi_thread")]
async fn one_process_renews_every_token_once_and_loses_nobody() {
    let tally = run(Plan::new(Reuse::Family)).await;
    assert!(tally.expiries > 0, "{tally:?}");
    assert_eq!((tally.logins, tally.failed, tally.alarms), (0, 0, 0), "{tally:?}");
    assert_eq!(tally.spent, tally.expiries, "{tally:?}");
}

/// RFR-01, REDIS: three processes that share a Redis do as well, and who reads the Redis learns nothing.
#[tokio::test(flavor = "multi_thread")]
async fn three_processes_with_redis_renew_every_token_once_and_lose_nobody() {
    let tally = run(Plan { replicas: 3, share: Share::Redis, ..Plan::new(Reuse::Family) }).await;
    assert!(tally.expiries > 0 && tally.dump > 0, "{tally:?}");
    assert_eq!((tally.logins, tally.failed, tally.alarms), (0, 0, 0), "{tally:?}");
    assert_eq!(tally.spent, tally.expiries, "{tally:?}");
    assert!(tally.leaks.is_empty(), "{tally:?}");
}
