//! The layer diagram of `src/lib.rs`, as a test: who may import whom, and which crates are used where.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

use std::fs;
use std::path::{Path, PathBuf};

/// What a layer may import, besides itself.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("main", &["app", "clock", "config", "crypto", "demo", "gateway", "oidc", "session", "shutdown", "telemetry"]),
    (
        "app",
        &[
            "admin",
            "clock",
            "config",
            "crypto",
            "gateway",
            "metrics",
            "net",
            "oidc",
            "refresh",
            "session",
            "shutdown",
            "spans",
            "store",
            "telemetry",
        ],
    ),
    ("config", &["crypto", "gateway", "net", "oidc", "refresh", "secret", "session", "spans", "store", "web"]),
    ("demo", &["clock", "config", "crypto"]),
    ("gateway", &["clock", "crypto", "metrics", "net", "oidc", "refresh", "session", "spans", "telemetry", "web"]),
    ("admin", &["metrics", "secret", "shutdown", "web"]),
    ("net", &["web"]),
    ("store", &["clock", "crypto", "refresh", "secret", "session"]),
    ("refresh", &["clock", "crypto", "oidc", "session"]),
    ("session", &["clock", "crypto", "memo", "oidc", "web"]),
    ("oidc", &["clock", "crypto", "memo", "secret", "web"]),
    ("crypto", &["clock"]),
    ("shutdown", &[]),
    ("spans", &["clock", "crypto"]),
    ("telemetry", &["clock", "metrics", "web"]),
    ("metrics", &["clock"]),
    ("web", &["clock"]),
    ("memo", &[]),
    ("secret", &[]),
    ("clock", &[]),
];

/// A crate that only these files or folders may use: a decision lives in one place.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("pingora", &["app.rs", "net/", "gateway/", "admin/", "shutdown.rs"]),
    ("reqwest", &["oidc/client.rs", "spans/export.rs"]),
    ("prost", &["spans/"]),
    ("aes_gcm", &["crypto/"]),
    ("p256::", &["oidc/jwe.rs"]),
    ("aes_kw", &["oidc/jwe.rs"]),
    ("redis", &["store/"]),
    ("figment", &["config/"]),
    ("clap", &["config/cli.rs"]),
    ("prometheus", &["metrics.rs"]),
    ("hyper", &["demo/"]),
    ("SystemTime::now", &["clock.rs"]),
    // The handshake of WebSockets demands it, for no security.
    ("digest::SHA1", &["gateway/downstream.rs"]),
];

fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                let text = fs::read_to_string(&path).unwrap();
                // What stands in a test module may reach further.
                let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned();
                let is_test = name.contains("tests") || name.contains("testing");
                if !is_test {
                    found.push((name, code));
                }
            }
        }
    }
    assert!(found.len() > 50, "the sources are where they are looked for");
    found
}

fn layer_of(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

/// Lines that are no comment.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn no_layer_imports_upwards_or_sideways() {
    let layers: Vec<&str> = MAY_IMPORT.iter().map(|(layer, _)| *layer).collect();
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let layer = layer_of(&file);
        if layer == "lib" {
            continue;
        }
        let (_, allowed) = MAY_IMPORT.iter().find(|(name, _)| *name == layer).unwrap_or_else(|| panic!("{layer}?"));
        for line in code_lines(&text) {
            for path in ["crate::", "sidegate::"].iter().flat_map(|root| line.split(root).skip(1)) {
                let names = path.strip_prefix('{').map_or_else(
                    || vec![first_word(path)],
                    |list| list.trim_end_matches(['}', ';']).split(',').map(|item| first_word(item.trim())).collect(),
                );
                for name in names {
                    if layers.contains(&name) && name != layer && !allowed.contains(&name) {
                        wrong.push(format!("{file}: {layer} imports {name}: {}", line.trim()));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// ASVS-11.2.1, ASVS-11.4.1: cryptography in one place, and SHA-1 for WebSocket handshakes alone.
#[test]
fn a_crate_is_used_where_its_decision_lives() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for (name, places) in ONLY_IN {
            if places.iter().any(|place| file.starts_with(place)) {
                continue;
            }
            for line in code_lines(&text) {
                let used = if name.contains("::") { line.contains(name) } else { uses_crate(line, name) };
                if used {
                    wrong.push(format!("{file} uses {name}: {}", line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn uses_crate(line: &str, name: &str) -> bool {
    let path = format!("{name}::");
    line.match_indices(&path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | ':'))
    })
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}
