//! R9: what the refresh engine says it keeps is what the operating system counts, and what goes first.
//!
//! The only test of this file, so that the process is its own.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

#[path = "refresh_memory/rig.rs"]
mod rig;

use rig::{MIB, Rig, resident};

/// As the binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::test(flavor = "current_thread")]
async fn r9_what_is_accounted_is_what_is_used() {
    // Room for all: what is accounted is what is used.
    let count = 3_000;
    let rig = Rig::new(512 * MIB);
    for number in 0..64 {
        rig.visit(&rig.session(number)).await;
    }
    let before = (resident(), rig.coordinator.stats());
    for number in 64..count {
        rig.visit(&rig.session(number)).await;
    }
    let stats = rig.coordinator.stats();
    let (used, accounted) = (resident() - before.0, stats.bytes - before.1.bytes);
    println!("{count} entries: {accounted} bytes accounted, {used} resident, {} each", used / count);
    assert_eq!((stats.entries, rig.calls()), (count, count));
    assert!(used < accounted * 6 / 5 && accounted < used * 6 / 5, "within a fifth of each other");
    drop(rig);

    // Acknowledged ones go first, whatever their age.
    let rig = Rig::new(64 * 1024);
    let mut newest = Vec::new();
    while rig.coordinator.stats().bytes < 48 * 1024 {
        newest.push(rig.visit(&rig.session(newest.len())).await);
    }
    let kept = newest.len();
    for delivered in &newest[kept / 2..] {
        rig.visit(delivered).await;
    }
    for number in 0..kept / 2 {
        rig.visit(&rig.session(1000 + number)).await;
    }
    assert!(rig.remembers(0).await, "the oldest was never shown to have arrived");
    assert!(!rig.remembers(kept / 2).await, "the first that was");
    let calls = rig.calls();
    assert_eq!(rig.visit(&rig.session(0)).await.generation, 1);
    assert_eq!(rig.calls(), calls, "its token is not spent again");
}
