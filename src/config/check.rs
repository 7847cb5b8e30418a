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

/// The same, with a verdict only when the configuration is refused: for whoever has more to judge.
///
/// # Errors
/// The exit code, when the configuration is refused.
pub fn run_without_verdict(files: &[PathBuf], out: &mut dyn Write) -> Result<Config, i32> {
    let outcome = load(files);
    let text = match &outcome {
        Ok(config) => lines("warning", &config.warnings),
        Err(_) => report(&outcome),
    };
    drop(write!(out, "{text}"));
    outcome.map_err(|_| REFUSED)
}

fn lines(kind: &str, findings: &[Problem]) -> String {
    findings.iter().map(|finding| format!("{kind}: {finding}\n")).collect()
}

/// What `check` prints: a line per problem or warning, then the verdict.
pub fn report(outcome: &Result<Config, Vec<Problem>>) -> String {
    let (kind, findings) = match outcome {
        Ok(config) => ("warning", config.warnings.as_slice()),
        Err(problems) => ("error", problems.as_slice()),
    };
    let mut text = lines(kind, findings);
    text.push_str(&match (outcome, findings.len()) {
        (Ok(_), 0) => "The configuration is fine.\n".to_owned(),
        (Ok(_), 1) => "The configuration is fine, with 1 warning.\n".to_owned(),
        (Ok(_), count) => format!("The configuration is fine, with {count} warnings.\n"),
        (Err(_), 1) => "The configuration is refused: 1 problem.\n".to_owned(),
        (Err(_), count) => format!("The configuration is refused: {count} problems.\n"),
    });
    text
}
