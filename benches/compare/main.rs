//! What sidegate costs, side by side with its peers.
//!
//! `cargo bench --bench compare -- --help` tells what can be measured. The method, and what the columns mean, is in
//! `docs/performance.md`.
#![expect(clippy::disallowed_methods, reason = "a benchmark starts its peer at a socket address")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

#[path = "../../tests/support/mod.rs"]
mod support;

mod cost;
mod instructions;
mod load;
mod plain;
mod process;
mod report;
mod targets;
mod upstream;

/// As in the program, so that the plain proxy has it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures sidegate beside other proxies.
#[derive(Clone, Debug, Parser)]
#[command(name = "compare")]
struct Options {
    #[command(subcommand)]
    figure: Option<Figure>,
    #[command(flatten)]
    rig: Rig,
    /// What `cargo bench` adds.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

/// What is the same for all figures.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Rig {
    /// Run the proxies on this CPU, by `taskset`.
    #[arg(long, global = true)]
    pin: Option<u32>,
    /// Another build of sidegate: `cost` measures it in the same turns, `instructions` in place of ours.
    #[arg(long, global = true)]
    other: Option<PathBuf>,
}

#[derive(Clone, Debug, Parser)]
enum Figure {
    /// CPU per request, throughput and latency at full load
    Cost(cost::Options),
    /// Instructions per request, by callgrind, compared with a baseline
    Instructions(instructions::Options),
    /// Be the plain proxy: listen there, forward there; replace the cookie by a bearer of so many bytes
    #[command(hide = true)]
    PlainProxy { listen: String, upstream: String, bearer: String },
}

impl Default for Figure {
    /// What `cargo bench` shows when it runs everything.
    fn default() -> Self {
        Self::parse_from(["compare", "cost"])
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    // One thread for load and upstream: with it and the proxy's one thread, two cores are busy and no more.
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match options.figure.unwrap_or_default() {
        Figure::PlainProxy { listen, upstream, bearer } => return plain::serve(&listen, &upstream, &bearer),
        Figure::Cost(more) => runtime().block_on(cost::run(&options.rig, &more)),
        Figure::Instructions(more) => return runtime().block_on(instructions::run(&options.rig, &more)),
    }
    ExitCode::SUCCESS
}
