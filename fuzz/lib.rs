//! What the programs in `fuzz_targets/` share.

#[path = "targets.rs"]
mod all;

/// Runs one target by its name.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = all::ALL.iter().find(|(known, _)| *known == name).expect("a target of that name");
    target(data);
}
