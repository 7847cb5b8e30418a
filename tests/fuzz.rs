//! The fuzz targets, for a few seconds: every seed of `fuzz/corpus/`, then mutations of the seeds by a generator with a
//! fixed start, so that a failure comes again. `cargo fuzz run TARGET` goes on from here for hours.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

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

/// xorshift64*: the same sequence on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % bound.max(1)
    }
}

/// Bytes that parsers stumble over.
const SPICE: &[&[u8]] = &[
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"=",
    b"\"",
    b"%",
    b"%2f",
    b"%00",
    b"..",
    b"//",
    b"\\",
    b"\xff",
    b"\xc3\xa4",
    b"0",
    b"-1",
    b"99999999999999999999",
    b"{",
    b"}",
    b"[",
    b"null",
    b"e400",
    b"\\u0000",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Host: evil.example\r\n",
];

fn mutate(seed: &[u8], others: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        match dice.below(6) {
            0 if !bytes.is_empty() => {
                let at = at.min(bytes.len() - 1);
                bytes[at] = u8::try_from(dice.below(256)).unwrap();
            }
            1 => {
                let spice = SPICE[dice.below(SPICE.len())];
                bytes.splice(at..at, spice.iter().copied());
            }
            2 => bytes.truncate(at),
            3 => {
                let end = (at + dice.below(16)).min(bytes.len());
                bytes.drain(at.min(end)..end);
            }
            4 => {
                let end = (at + dice.below(64)).min(bytes.len());
                let piece = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let other = &others[dice.below(others.len())];
                let from = dice.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes.truncate(64 * 1024);
    bytes
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
