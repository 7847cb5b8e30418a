//! `sidegate check`: says all there is to say about a configuration.

use std::io::Write;
use std::path::PathBuf;

use super::{Config, Problem, load};

/// Exit code of a refused configuration (`EX_CONFIG` of sysexits.h).
pub const REFUSED: i32 = 78;

/// Judges the configuration and writes every problem and warning to `out`, one a line.
///
/// # Errors
/// The exit code, when the configuration is refused.
pub fn run(files: &[PathBuf], out: &mut dyn Write) -> Result<Config, i32> {
    let outcome = load(files);
    // A closed pipe is no reason to fail: the exit code tells.
    drop(write!(out, "{}", report(&outcome)));
    outcome.map_err(|_| REFUSED)
}

/// What `check` prints: a line per problem or warning, then the verdict.
pub fn report(outcome: &Result<Config, Vec<Problem>>) -> String {
    let (kind, findings) = match outcome {
        Ok(config) => ("warning", config.warnings.as_slice()),
        Err(problems) => ("error", problems.as_slice()),
    };
    let mut text: String = findings.iter().map(|finding| format!("{kind}: {finding}\n")).collect();
    text.push_str(&match (outcome, findings.len()) {
        (Ok(_), 0) => "The configuration is fine.\n".to_owned(),
        (Ok(_), 1) => "The configuration is fine, with 1 warning.\n".to_owned(),
        (Ok(_), count) => format!("The configuration is fine, with {count} warnings.\n"),
        (Err(_), 1) => "The configuration is refused: 1 problem.\n".to_owned(),
        (Err(_), count) => format!("The configuration is refused: {count} problems.\n"),
    });
    text
}
