//! Instructions per request, counted by callgrind, beside those of the plain proxy; and a baseline to hold them to.
//!
//! Unlike time they hardly depend on what else the machine does. The kernel's share is not among them.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::Rig;
use crate::load::Client;
use crate::process::{Launch, Proxy};
use crate::report::Table;
use crate::targets::{Target, World, bearer_bytes, pingora, sidegate};

/// How much a row may grow before it is a regression.
const TOLERANCE: f64 = 1.03;
/// Before counting: connections, caches and lazy statics are in place.
const WARM: u32 = 300;

/// What is counted, and what it is held against.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Requests that are counted, one after the other.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: u32,
    /// Only rows whose name has this in it; the plain proxy is always there.
    #[arg(long, default_value = "")]
    row: String,
    /// Write the baseline instead of comparing with it.
    #[arg(long)]
    bless: bool,
    /// Where it is.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/baseline.toml"))]
    baseline: PathBuf,
    /// Keep callgrind's profiles in this directory, for `callgrind_annotate`.
    #[arg(long)]
    profiles: Option<PathBuf>,
}

/// The file of the baseline.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Baseline {
    row: Vec<Row>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Row {
    name: String,
    /// Per request; they depend on compiler and libraries too.
    instructions: u64,
    /// To the plain proxy of the same run: this is what is compared.
    ratio: f64,
}

pub(crate) async fn run(rig: &Rig, options: &Options) -> ExitCode {
    let world = World::start(rig.pin).await;
    let program = rig.other.clone().unwrap_or_else(|| sidegate::PROGRAM.into());
    let mut counts: Vec<(&str, f64)> = Vec::new();

    let plain = pingora::launch(&world, "Pingora", 0);
    let plain = count(options, plain, async |proxy| Target::new(&world, "Pingora", proxy, "/orders", &[]).await).await;
    counts.push(("Pingora", plain));
    let mut sizes = (0, 0);
    for (name, session, more) in [
        ("sidegate, public route", false, &[][..]),
        ("sidegate, public route, no access log", false, &[("log.access", "false")][..]),
        ("sidegate, session", true, &[][..]),
        ("sidegate, session, no access log", true, &[("log.access", "false")][..]),
        ("sidegate, session in two cookies", true, &[("session.layout", "\"split\"")][..]),
    ] {
        if !name.contains(&options.row) {
            continue;
        }
        let launch = sidegate::launch(&world, name, &program, more);
        let prepare = async |proxy: &Arc<Proxy>| {
            if !session {
                return Target::new(&world, name, proxy, "/orders", &[]).await;
            }
            let cookie = sidegate::sign_in(proxy).await;
            let target = Target::new(&world, name, proxy, "/api/orders", &[("Cookie", &cookie)]).await;
            sizes = (cookie.len(), bearer_bytes(&world.look(proxy, &target.request).await));
            target
        };
        counts.push((name, count(options, launch, prepare).await));
    }
    let (cookie, bearer) = sizes;
    if bearer > 0 {
        let name = "Pingora, same bytes";
        let cookie = "c".repeat(cookie);
        let launch = pingora::launch(&world, name, bearer);
        let prepare =
            async |proxy: &Arc<Proxy>| Target::new(&world, name, proxy, "/api/orders", &[("Cookie", &cookie)]).await;
        counts.insert(1, (name, count(options, launch, prepare).await));
    }
    let rows = counts.iter().map(|(name, count)| Row {
        name: (*name).to_owned(),
        instructions: count.round() as u64,
        ratio: (count / plain * 1000.0).round() / 1000.0,
    });
    judge(options, rows.collect())
}

/// Instructions that the proxy executes for one request.
async fn count(options: &Options, launch: Launch, prepare: impl AsyncFnOnce(&Arc<Proxy>) -> Target) -> f64 {
    let name = launch.name.clone();
    let profile = launch.dir.path().join("callgrind.out");
    let under = ["valgrind", "--tool=callgrind", "--quiet"].map(str::to_owned);
    let file = [format!("--callgrind-out-file={}", profile.display())];
    let under = [&under[..], &file].concat();
    let proxy = match launch.start(&under).await {
        Ok(proxy) => Arc::new(proxy),
        Err(error) => panic!("{error}\nThis needs valgrind (on Debian: apt-get install valgrind)."),
    };
    let target = prepare(&proxy).await;
    let mut client = Client::dial(proxy.addr).await.expect("the proxy accepts");
    send(&mut client, &target.request, WARM).await;
    // Both set the counters to nothing.
    command(&proxy, "dump");
    send(&mut client, &target.request, options.requests).await;
    command(&proxy, "dump");
    let profile = profile.with_extension("out.2");
    if let Some(directory) = &options.profiles {
        let kept = directory.join(format!("{}.callgrind", name.replace([' ', ','], "-")));
        std::fs::copy(&profile, kept).expect("a directory for profiles");
    }
    total(&profile) as f64 / f64::from(options.requests)
}
async fn send(client: &mut Client, request: &[u8], times: u32) {
    for _ in 0..times {
        client.exchange(request).await.expect("the proxy answers");
        client.expect_ok();
    }
}

/// Tells callgrind something.
fn command(proxy: &Proxy, word: &str) {
    let output = Command::new("vgdb").arg(format!("--pid={}", proxy.id())).arg(word).output().expect("vgdb runs");
    assert!(output.status.success(), "vgdb {word}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The count of a dump.
fn total(profile: &Path) -> u64 {
    let text = std::fs::read_to_string(profile).expect("callgrind wrote a profile");
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    totals.and_then(|totals| totals.trim().parse().ok()).expect("a profile has totals")
}

fn judge(options: &Options, rows: Vec<Row>) -> ExitCode {
    if options.bless {
        let head = "# Instructions per request, written by `make instructions-baseline`; see docs/performance.md.\n\n";
        let body = toml::to_string(&Baseline { row: rows }).expect("a baseline");
        std::fs::write(&options.baseline, head.to_owned() + &body).expect("a written baseline");
        println!("wrote {}", options.baseline.display());
        return ExitCode::SUCCESS;
    }
    let baseline: Baseline = match std::fs::read_to_string(&options.baseline) {
        Ok(text) => toml::from_str(&text).expect("a baseline"),
        Err(_) => Baseline::default(),
    };
    let mut table = Table::new(&["target", "instructions", "to Pingora", "baseline", "change %"]);
    let mut worse = false;
    for row in rows {
        let before = baseline.row.iter().find(|before| before.name == row.name);
        let change = before.map(|before| row.ratio / before.ratio);
        let is_worse = change.is_some_and(|change| change > TOLERANCE);
        worse |= is_worse;
        table.row([
            row.name,
            row.instructions.to_string(),
            format!("{:.3}", row.ratio),
            before.map_or_else(|| "none".to_owned(), |before| format!("{:.3}", before.ratio)),
            change.map_or_else(String::new, |change| {
                format!("{:+.1}{}", (change - 1.0) * 100.0, if is_worse { " WORSE" } else { "" })
            }),
        ]);
    }
    table.print();
    if worse {
        println!(
            "\nMore than {:.0} % over the baseline. If that is its price, `make instructions-baseline` writes it anew.",
            (TOLERANCE - 1.0) * 100.0
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
