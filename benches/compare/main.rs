//! What sidegate costs, side by side with its peers.
//!
//! `cargo bench --bench compare -- --help` tells what can be measured. The method, and what the columns mean, is in
//! `docs/performance.md`.
#![expect(clippy::disallowed_methods, reason = "a benchmark starts its peer at a socket address")]
#![expect(clippy::panic, reason = "a benchmark that cannot go on says why and ends")]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use targets::{Contender, Sizes, sidegate};
use tokio::signal::unix::{SignalKind, signal};

#[path = "../../tests/support/mod.rs"]
mod support;

mod cost;
mod growth;
mod instructions;
mod latency;
mod load;
mod memory;
mod plain;
mod process;
mod report;
mod stampede;
mod start;
mod storm;
mod targets;
mod train;
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
    #[arg(long, global = true, value_parser = program)]
    other: Option<PathBuf>,
    /// Only targets whose name has one of these in it, separated by commas; plain Pingora is always there.
    #[arg(long, global = true, value_delimiter = ',')]
    only: Vec<String>,
}

impl Rig {
    /// Who is compared: plain Pingora first, then sidegate, then its peers.
    pub(crate) fn contenders(&self, sizes: Sizes) -> Vec<Contender> {
        let mut more = targets::sidegates("sidegate", sidegate::PROGRAM.as_ref());
        if let Some(other) = &self.other {
            more.extend(targets::sidegates("other sidegate", other));
        }
        more.extend(targets::peers(sizes));
        more.retain(|contender| self.wants(&contender.name));
        let mut all = targets::floors(sizes);
        all.extend(more);
        all
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }
}

/// Whole, because each proxy runs in a directory of its own.
pub(crate) fn program(path: &str) -> Result<PathBuf, std::io::Error> {
    std::fs::canonicalize(path)
}

#[derive(Clone, Debug, Parser)]
enum Figure {
    /// CPU per request, throughput and latency at full load
    Cost(cost::Options),
    /// Instructions per request, by callgrind, compared with a baseline
    Instructions(instructions::Options),
    /// Latency at a modest, fixed rate
    Latency(latency::Options),
    /// Resident memory: idle, busy, and with many idle connections
    Memory(memory::Options),
    /// What the cost of a request grows with: routes, sessions, connections, bytes of the cookie
    Growth(growth::Options),
    /// Fifty requests at once on a token that has ended
    Stampede(stampede::Options),
    /// A thousand sessions whose tokens end in the same second
    Storm(storm::Options),
    /// From starting the process to its first answer
    Start(start::Options),
    /// Load for a build that counts what runs: profile-guided optimisation
    Train(train::Options),
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
    let figure = options.figure.unwrap_or_default();
    if let Figure::PlainProxy { listen, upstream, bearer } = &figure {
        return plain::serve(listen, upstream, bearer);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        tokio::select! {
            code = measure(&options.rig, figure) => code,
            // What is measured is dropped, and with it the proxies end.
            () = stopped() => ExitCode::FAILURE,
        }
    })
}

async fn measure(rig: &Rig, figure: Figure) -> ExitCode {
    match figure {
        Figure::PlainProxy { .. } => {}
        Figure::Instructions(more) => return instructions::run(rig, &more).await,
        Figure::Train(more) => return train::run(rig, &more).await,
        Figure::Cost(more) => cost::run(rig, &more).await,
        Figure::Latency(more) => latency::run(rig, &more).await,
        Figure::Memory(more) => memory::run(rig, &more).await,
        Figure::Growth(more) => growth::run(rig, &more).await,
        Figure::Stampede(more) => stampede::run(rig, &more).await,
        Figure::Storm(more) => storm::run(rig, &more).await,
        Figure::Start(more) => start::run(rig, &more).await,
    }
    ExitCode::SUCCESS
}

/// SIGINT or SIGTERM.
async fn stopped() {
    let mut term = signal(SignalKind::terminate()).expect("a signal handler");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = term.recv() => {}
    }
}
