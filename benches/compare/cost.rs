//! CPU per request, throughput and latency at full load, all targets taking turns.

use std::slice::from_ref;
use std::time::Duration;

use clap::Args;

use crate::Rig;
use crate::load::{Slice, turn};
use crate::report::{Table, mib, quartiles};
use crate::targets::{self, Target, World};
use crate::upstream::Upstream;

/// How long, and how much.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// How often each target has its turn.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=1000))]
    turns: u32,
    /// Milliseconds of one turn.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    slice: u64,
    /// Keep-alive connections, each with one request under way.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Answers of 100 kB instead of 1 kB.
    #[arg(long)]
    large: bool,
}

pub(crate) async fn run(rig: &Rig, options: &Options) {
    let upstream = Upstream::start().await;
    let world = World::start(upstream.addr, rig.pin).await;
    let sizes = targets::sizes(&world, &upstream).await;
    let mut contenders = rig.contenders(sizes);
    if options.large {
        contenders = contenders.iter().map(targets::large).collect();
    }
    let targets = targets::start_all(&world, &upstream, &contenders).await;
    println!(
        "{} targets, {} turns of {} ms each, {} connections; sidegate's cookie {} B, its bearer {} B",
        targets.len(),
        options.turns,
        options.slice,
        options.connections,
        sizes.cookie,
        sizes.bearer
    );
    let mut slices: Vec<Vec<Slice>> = targets.iter().map(|_| Vec::new()).collect();
    for round in 0..options.turns as usize {
        // Nobody is always first.
        for step in 0..targets.len() {
            let index = (round + step) % targets.len();
            let (Some(target), Some(taken)) = (targets.get(index), slices.get_mut(index)) else { continue };
            let time = Duration::from_millis(options.slice);
            let slice = turn(&target.proxy, from_ref(&target.request), options.connections, time).await;
            taken.push(slice.unwrap_or_else(|error| panic!("{} {error}", target.name)));
        }
    }
    report(&targets, &slices);
}

fn report(targets: &[Target], slices: &[Vec<Slice>]) {
    let mut table = Table::new(&[
        "target",
        "CPU us",
        "to Pingora",
        "to same bytes",
        "to nginx",
        "req/s",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "B in",
        "B out",
        "MiB",
    ]);
    for (target, taken) in targets.iter().zip(slices) {
        let median = |of: &dyn Fn(&Slice) -> f64| quartiles(taken.iter().map(of))[1];
        // Within one turn both met the same machine.
        let ratio = |peer: &Vec<Slice>| {
            let [low, middle, high] = quartiles(taken.iter().zip(peer).map(|(own, peer)| own.cost() / peer.cost()));
            format!("{middle:.2} ({low:.2}..{high:.2})")
        };
        let nginx = targets.iter().position(|peer| peer.name.starts_with("nginx")).and_then(|at| slices.get(at));
        let [plain, bytes] = [0, 1].map(|at| slices.get(at).map(ratio).unwrap_or_default());
        let ratios = [plain, bytes, nginx.map(ratio).unwrap_or_default()];
        let mut row = vec![target.name.clone(), format!("{:.1}", median(&Slice::cost))];
        row.extend(ratios);
        row.push(format!("{:.0}", median(&Slice::rate)));
        row.extend([50.0, 99.0, 99.9].map(|percent| format!("{:.0}", median(&|slice| slice.percentile(percent)))));
        row.extend([target.request.len(), target.head.len()].map(|bytes| bytes.to_string()));
        row.push(mib(target.proxy.resident_kib()));
        table.row(row);
    }
    table.print();
}
