//! CPU per request, throughput and latency at full load, all targets taking turns.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::Rig;
use crate::load::{Slice, turn};
use crate::process::Proxy;
use crate::report::{Table, quartiles};
use crate::targets::{Target, World, bearer_bytes, pingora, sidegate};
use crate::upstream::BODY;

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
}

pub(crate) async fn run(rig: &Rig, options: &Options) {
    let world = World::start(rig.pin).await;
    let program = Path::new(sidegate::PROGRAM);
    let start = async |name: &str, program: &Path, more: &[(&str, &str)]| {
        let launch = sidegate::launch(&world, name, program, more);
        Arc::new(launch.start(&world.under).await.expect("sidegate starts"))
    };
    let mut proxies = vec![
        start("sidegate", program, &[]).await,
        start("sidegate, no access log", program, &[("log.access", "false")]).await,
    ];
    if let Some(other) = &rig.other {
        proxies.push(start("other sidegate", other, &[]).await);
    }
    let mut targets = Vec::new();
    let mut sizes = (0, 0);
    for (index, proxy) in proxies.iter().enumerate() {
        let cookie = sidegate::sign_in(proxy).await;
        if index != 1 {
            let name = format!("{}, public route", proxy.name);
            targets.push(Target::new(&world, &name, proxy, "/orders", &[]).await);
        }
        let name = format!("{}, session", proxy.name);
        let target = Target::new(&world, &name, proxy, "/api/orders", &[("Cookie", &cookie)]).await;
        sizes = (cookie.len(), bearer_bytes(&world.look(proxy, &target.request).await));
        targets.push(target);
    }
    let (cookie_bytes, bearer) = sizes;
    assert!(bearer > 0, "the session's token did not reach the upstream");
    // The peers come first in turns and tables.
    for (at, (name, bearer)) in [("Pingora", 0), ("Pingora, same bytes", bearer)].into_iter().enumerate() {
        let launch = pingora::launch(&world, name, bearer);
        let proxy = Arc::new(launch.start(&world.under).await.expect("our own proxy starts"));
        let cookie = "c".repeat(cookie_bytes);
        let fields = [("Cookie", cookie.as_str())];
        let fields = if bearer == 0 { &[][..] } else { &fields };
        targets.insert(at, Target::new(&world, name, &proxy, "/api/orders", fields).await);
        proxies.push(proxy);
    }

    println!(
        "{} targets, {} turns of {} ms each, {} connections; cookie {cookie_bytes} B, bearer {bearer} B, answers {BODY} B",
        targets.len(),
        options.turns,
        options.slice,
        options.connections
    );
    let mut slices: Vec<Vec<Slice>> = targets.iter().map(|_| Vec::new()).collect();
    for round in 0..options.turns as usize {
        // Nobody is always first.
        for step in 0..targets.len() {
            let index = (round + step) % targets.len();
            let (Some(target), Some(taken)) = (targets.get(index), slices.get_mut(index)) else { continue };
            let time = Duration::from_millis(options.slice);
            taken.push(turn(&target.proxy, &target.request, options.connections, time).await);
        }
    }
    report(&targets, &slices);
    report_processes(&proxies, program);
}

fn report(targets: &[Target], slices: &[Vec<Slice>]) {
    let mut table = Table::new(&[
        "target",
        "CPU us",
        "to Pingora",
        "to same bytes",
        "req/s",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "B in",
        "B out",
    ]);
    for (target, taken) in targets.iter().zip(slices) {
        let median = |of: &dyn Fn(&Slice) -> f64| quartiles(taken.iter().map(of))[1];
        // Within one turn both met the same machine.
        let ratio = |peer: &Vec<Slice>| {
            let [low, middle, high] = quartiles(taken.iter().zip(peer).map(|(own, peer)| own.cost() / peer.cost()));
            format!("{middle:.2} ({low:.2}..{high:.2})")
        };
        let ratios: Vec<String> = slices.iter().take(2).map(ratio).collect();
        let mut row = vec![target.name.clone(), format!("{:.1}", median(&Slice::cost))];
        row.extend(ratios);
        row.push(format!("{:.0}", median(&Slice::rate)));
        row.extend([50.0, 99.0, 99.9].map(|percent| format!("{:.0}", median(&|slice| slice.percentile(percent)))));
        row.extend([target.request.len(), target.forwarded].map(|bytes| bytes.to_string()));
        table.row(row);
    }
    table.print();
}

fn report_processes(proxies: &[Arc<Proxy>], program: &Path) {
    let mut table = Table::new(&["process", "ready ms", "idle MiB", "after MiB"]);
    for proxy in proxies {
        let mib = |kib: u64| format!("{:.1}", kib as f64 / 1024.0);
        let ready = format!("{:.1}", proxy.ready.as_secs_f64() * 1000.0);
        table.row([proxy.name.clone(), ready, mib(proxy.idle_kib), mib(proxy.resident_kib())]);
    }
    table.print();
    let bytes = std::fs::metadata(program).map_or(0, |file| file.len());
    println!("\n{}: {:.1} MiB", program.file_name().unwrap_or_default().to_string_lossy(), bytes as f64 / 1_048_576.0);
}
