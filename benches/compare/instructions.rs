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
use crate::process::Proxy;
use crate::report::Table;
use crate::targets::{self, Contender, Program, World};
use crate::upstream::Upstream;

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
    /// Where nothing can be counted (no valgrind, a container that forbids it), say so and be content.
    #[arg(long)]
    if_possible: bool,
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
#[derive(Debug, Deserialize, Serialize)]
struct Baseline {
    /// Who built what was counted: another compiler makes other instructions of the same source.
    compiler: String,
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
    let upstream = Upstream::start().await;
    let world = World::start(upstream.addr, None).await;
    let program = rig.other.clone().unwrap_or_else(|| targets::sidegate::PROGRAM.into());
    let mut contenders = targets::floors(targets::sizes(&world, &upstream).await);
    let own = targets::sidegates("sidegate", &program);
    // A client library's buffers and timers are not repeatable to a percent.
    let own = own.into_iter().filter(|own| !matches!(own.program, Program::SidegateRedis(_)));
    contenders.extend(own.filter(|own| own.name.contains(&options.row)));
    let mut rows: Vec<Row> = Vec::new();
    for contender in &contenders {
        eprintln!("{} …", contender.name);
        let count = match count(options, &world, &upstream, contender).await {
            Ok(count) => count,
            Err(error) => {
                println!("Instructions cannot be counted: {error}");
                if !rows.is_empty() {
                    // Those of the plain proxy could be.
                    return ExitCode::FAILURE;
                }
                println!("It takes valgrind, which Debian has in a package of that name, and the right to trace.");
                return if options.if_possible { ExitCode::SUCCESS } else { ExitCode::FAILURE };
            }
        };
        let plain = rows.first().map_or(count, |plain| plain.instructions as f64);
        let ratio = (count / plain * 1000.0).round() / 1000.0;
        rows.push(Row { name: contender.name.clone(), instructions: count.round() as u64, ratio });
    }
    judge(options, rows)
}

/// Instructions that a proxy executes for one request.
async fn count(options: &Options, world: &World, upstream: &Upstream, contender: &Contender) -> Result<f64, String> {
    let launch = contender.launch(world).await?;
    let profile = launch.dir.path().join("callgrind.out");
    let mut under = ["valgrind", "--tool=callgrind", "--quiet"].map(str::to_owned).to_vec();
    under.push(format!("--callgrind-out-file={}", profile.display()));
    let proxy = Arc::new(launch.start(&under).await?);
    let target = contender.aim(&proxy, upstream).await?;
    let mut client = Client::dial(proxy.addr).await.ok_or("the proxy does not accept")?;
    send(&mut client, &target.request, WARM).await;
    // Both set the counters to nothing.
    command(&proxy, "dump")?;
    send(&mut client, &target.request, options.requests).await;
    command(&proxy, "dump")?;
    let profile = profile.with_extension("out.2");
    if let Some(directory) = &options.profiles {
        let kept = directory.join(format!("{}.callgrind", contender.name.replace([' ', ','], "-")));
        std::fs::copy(&profile, kept).map_err(|error| error.to_string())?;
    }
    Ok(total(&profile) as f64 / f64::from(options.requests))
}

async fn send(client: &mut Client, request: &[u8], times: u32) {
    for _ in 0..times {
        client.exchange_ok(request).await.unwrap_or_else(|error| panic!("the proxy {error}"));
    }
}

/// Tells callgrind something. With an end: where tracing is forbidden, vgdb may wait for ever.
fn command(proxy: &Proxy, word: &str) -> Result<(), String> {
    let told = Command::new("timeout").args(["60", "vgdb", &format!("--pid={}", proxy.id()), word]).output();
    let told = told.map_err(|error| format!("vgdb: {error}"))?;
    if !told.status.success() {
        return Err(format!("vgdb {word}: {}: {}", told.status, String::from_utf8_lossy(&told.stderr)));
    }
    Ok(())
}

/// The count of a dump.
fn total(profile: &Path) -> u64 {
    let text = std::fs::read_to_string(profile).expect("callgrind wrote a profile");
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    totals.and_then(|totals| totals.trim().parse().ok()).expect("a profile has totals")
}

/// The compiler that `cargo bench` has built with, and what it builds for.
fn compiler() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().expect("rustc tells its version");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = |key: &str| told.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim().to_owned();
    format!("rustc {}, {}", value("release:"), value("host:"))
}

fn judge(options: &Options, rows: Vec<Row>) -> ExitCode {
    let compiler = compiler();
    if options.bless {
        let head = "# Instructions per request, written by `make instructions-baseline`; see docs/performance.md.\n\n";
        let body = toml::to_string(&Baseline { compiler, row: rows }).expect("a baseline");
        std::fs::write(&options.baseline, head.to_owned() + &body).expect("a written baseline");
        println!("wrote {}", options.baseline.display());
        return ExitCode::SUCCESS;
    }
    let text = std::fs::read_to_string(&options.baseline).map_err(|error| error.to_string());
    let baseline = text.and_then(|text| toml::from_str::<Baseline>(&text).map_err(|error| error.to_string()));
    let baseline = match baseline {
        Ok(baseline) => baseline,
        Err(error) => {
            println!("{}: {error}\n`make instructions-baseline` writes it anew.", options.baseline.display());
            return ExitCode::FAILURE;
        }
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
    if baseline.compiler != compiler {
        println!("\nNothing is judged: the baseline is of {}, this of {compiler}.", baseline.compiler);
    } else if worse {
        println!(
            "\nMore than {:.0} % over the baseline. If that is its price, `make instructions-baseline` writes it anew.",
            (TOLERANCE - 1.0) * 100.0
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
