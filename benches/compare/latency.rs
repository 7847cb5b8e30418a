//! What a proxy adds to the latency when it has little to do.

use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, interval_at};

use crate::Rig;
use crate::load::Client;
use crate::report::{Table, percentile, quartiles};
use crate::targets::{self, Target, World};
use crate::upstream::Upstream;

/// Keep-alive connections.
const CONNECTIONS: u32 = 20;
/// Turns beyond so many are put together with their neighbours: the 99th percentile of one turn is a handful of requests.
const GROUPS: usize = 8;

/// How often, and how long.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Requests per second.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rate: u32,
    /// How often each target has its turn.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    turns: u32,
    /// Milliseconds of one turn.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    slice: u64,
}

pub(crate) async fn run(rig: &Rig, options: &Options) {
    let upstream = Upstream::start().await;
    let world = World::start(upstream.addr, rig.pin).await;
    let sizes = targets::sizes(&world, &upstream).await;
    let targets = targets::start_all(&world, &upstream, &rig.contenders(sizes)).await;
    let mut turns: Vec<Vec<Vec<u32>>> = targets.iter().map(|_| Vec::new()).collect();
    for round in 0..options.turns as usize {
        for step in 0..targets.len() {
            let index = (round + step) % targets.len();
            let (Some(target), Some(taken)) = (targets.get(index), turns.get_mut(index)) else { continue };
            taken.push(turn(options, target).await);
        }
    }
    let turns: Vec<_> = turns.into_iter().map(groups).collect();
    println!("{} requests per second, {} turns of {} ms", options.rate, options.turns, options.slice);
    let mut table = Table::new(&[
        "target",
        "p50 us",
        "p99 us",
        "p50 to Pingora",
        "p99 to Pingora",
        "p50 to same bytes",
        "p99 to same bytes",
    ]);
    for (target, taken) in targets.iter().zip(&turns) {
        let median = |percent| quartiles(taken.iter().map(|turn| percentile(turn, percent)))[1];
        let ratio = |percent, peer: usize| {
            let peer = turns.get(peer).into_iter().flatten();
            let ratios = taken.iter().zip(peer).map(|(own, peer)| percentile(own, percent) / percentile(peer, percent));
            let [low, middle, high] = quartiles(ratios);
            format!("{middle:.2} ({low:.2}..{high:.2})")
        };
        table.row([
            target.name.clone(),
            format!("{:.0}", median(50.0)),
            format!("{:.0}", median(99.0)),
            ratio(50.0, 0),
            ratio(99.0, 0),
            ratio(50.0, 1),
            ratio(99.0, 1),
        ]);
    }
    table.print();
}

/// What was taken in neighbouring turns, sorted.
fn groups(turns: Vec<Vec<u32>>) -> Vec<Vec<u32>> {
    let each = turns.len().div_ceil(GROUPS).max(1);
    let mut groups: Vec<_> = turns.chunks(each).map(<[_]>::concat).collect();
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups
}

/// Microseconds of each request.
async fn turn(options: &Options, target: &Target) -> Vec<u32> {
    let (start, slice) = (Instant::now() + Duration::from_millis(20), Duration::from_millis(options.slice));
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|index| {
            let (addr, request) = (target.proxy.addr, target.request.clone());
            let each = Duration::from_secs(CONNECTIONS.into()) / options.rate;
            tokio::spawn(async move {
                let mut client = Client::dial(addr).await.expect("the proxy accepts");
                let mut latencies = Vec::new();
                // One after the other, so that they do not come at once.
                let mut due = interval_at(start + each * index / CONNECTIONS, each);
                let mut warm = false;
                while due.tick().await.saturating_duration_since(start) < slice {
                    let began = Instant::now();
                    client.exchange_ok(&request).await.unwrap_or_else(|error| panic!("the proxy {error}"));
                    if warm {
                        latencies.push(began.elapsed().as_micros().try_into().unwrap_or(u32::MAX));
                    }
                    warm = true;
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for client in clients {
        latencies.extend(client.await.expect("a client that ends"));
    }
    latencies
}
