//! Load for a build that counts what runs, so that the next one knows; see `scripts/release.sh`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::slice::from_ref;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::Rig;
use crate::load::turn;
use crate::targets::{self, Contender, World};
use crate::upstream::Upstream;

const CONNECTIONS: u32 = 50;

/// Whom, and how long.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// The build that counts.
    #[arg(value_parser = crate::program)]
    program: PathBuf,
    /// Milliseconds of load on each configuration.
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    slice: u64,
}

/// Every configuration of sidegate in turn. A failure is one of the whole: half a profile is worse than none.
pub(crate) async fn run(rig: &Rig, options: &Options) -> ExitCode {
    let upstream = Upstream::start().await;
    let world = World::start(upstream.addr, rig.pin).await;
    for contender in targets::sidegates("sidegate", &options.program) {
        match one(&world, &upstream, &contender, options.slice).await {
            Ok(requests) => println!("{}: {requests} requests", contender.name),
            Err(error) => {
                eprintln!("{}: {error}", contender.name);
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

async fn one(world: &World, upstream: &Upstream, contender: &Contender, slice: u64) -> Result<usize, String> {
    let target = contender.start(world, upstream).await?;
    let load = turn(&target.proxy, from_ref(&target.request), CONNECTIONS, Duration::from_millis(slice)).await?;
    // What was counted is written when the process ends by itself.
    let proxy = Arc::try_unwrap(target.proxy).map_err(|_| "somebody else holds the process".to_owned())?;
    proxy.stop().await?;
    Ok(load.requests())
}
