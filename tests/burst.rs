//! Nobody is logged out by a race: the small version of `benches/burst.rs`.

mod support;

use support::burst::{Plan, Reuse, run};

/// RFR-01, RFR-03: one process before a provider that forgives nothing.
#[tokio::test(flavor = "multi_thread")]
async fn one_process_renews_every_token_once_and_loses_nobody() {
    let tally = run(Plan::new(Reuse::Family)).await;
    assert!(tally.expiries > 0, "{tally:?}");
    assert_eq!((tally.logins, tally.failed, tally.alarms), (0, 0, 0), "{tally:?}");
    assert_eq!(tally.spent, tally.expiries, "{tally:?}");
}
