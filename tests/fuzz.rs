//! The fuzz targets, for a few seconds: every seed of `fuzz/corpus/`, then mutations of the seeds by a generator with a
//! fixed start, so that a failure comes again. `cargo fuzz run TARGET` goes on from here for hours.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are test code too"
)]

#[path = "support/mutate.rs"]
mod mutate;
#[path = "../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use mutate::{Dice, mutate};
use targets::{ALL, Target};

/// Mutations of each seed.
const ROUNDS: usize = 1500;
/// The whole gateway answers over sockets: fewer.
const ROUNDS_OF_GATEWAY: usize = 25;

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 2, "{name} has seeds");
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn run(target: Target, input: &[u8], what: &str) {
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| target(input)));
    assert!(outcome.is_ok(), "{what} fails on {:?}", String::from_utf8_lossy(input));
}

fn smoke(wanted: &str) {
    let (name, target) = *ALL.iter().find(|(name, _)| *name == wanted).unwrap();
    let rounds = if name == "gateway" { ROUNDS_OF_GATEWAY } else { ROUNDS };
    let seeds = seeds(name);
    let mut dice = Dice(0x5eed_0000_0000_0001);
    run(target, b"", name);
    for seed in &seeds {
        run(target, seed, name);
    }
    for seed in &seeds {
        for _ in 0..rounds {
            run(target, &mutate(seed, &seeds, &mut dice), name);
        }
    }
}

macro_rules! smoke {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $($(#[$doc])* #[test] fn $name() { smoke(stringify!($name)); })*
        #[test]
        fn every_target_is_run() {
            let run = [$(stringify!($name)),*];
            let all: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
            assert_eq!(run.as_slice(), all);
        }
    };
}

smoke! {
    cookie_header
    sealed_cookie
    session_codec
    path
    return_to
    query
    jwt
    provider_documents
    token_answer
    forwarded
    configuration
    http1
    gateway
}

/// SUP-04: every parser that faces the network has a target that `cargo fuzz` can run.
#[test]
fn libfuzzer_knows_every_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    for (name, _) in ALL {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is missing in fuzz/Cargo.toml");
        let program = fs::read_to_string(root.join("fuzz_targets").join(format!("{name}.rs"))).unwrap();
        assert!(program.contains(&format!("targets::run(\"{name}\"")), "{name}");
    }
}
