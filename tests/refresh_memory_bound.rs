//! R9: however many results nobody acknowledges, they stay inside `refresh.memory`, as the operating system counts it.
//! `REFRESHES=100000 cargo test --release --test refresh_memory_bound -- --nocapture` has the default bound, 64 MiB.
//!
//! The only test of this file, so that the process is its own, and nothing was in it before.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "helpers of tests are test code too"
)]

#[path = "refresh_memory/rig.rs"]
mod rig;

use rig::{MIB, Rig, resident};

/// As the binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::test(flavor = "current_thread")]
async fn r9_unacknowledged_results_stay_inside_the_bound() {
    let count = std::env::var("REFRESHES").ok().and_then(|text| text.parse().ok()).unwrap_or(6_000);
    let bound = count * 671;
    let rig = Rig::new(bound);
    let before = resident();
    println!("{before} before");
    for number in 0..count {
        rig.visit(&rig.session(number)).await;
        let bytes = rig.coordinator.stats().bytes;
        assert!(number % 1000 != 0 || bytes <= bound, "{bytes} after {number}");
    }
    let (used, stats) = (resident().saturating_sub(before), rig.coordinator.stats());
    println!(
        "{count} refreshes, bound {bound}: {} entries kept, {} bytes accounted, {used} more resident",
        stats.entries, stats.bytes
    );
    assert!(stats.bytes <= bound && stats.bytes > bound * 3 / 4);
    // Whatever the bound, pages of every size are in use.
    assert!(used < bound * 6 / 5 + 8 * MIB, "{used}");
    assert!(rig.remembers(count - 1).await && !rig.remembers(0).await);
}
