//! Resident memory: idle, under load, and with many connections that do nothing.

use std::slice::from_ref;
use std::time::Duration;

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Rig;
use crate::load::{Client, turn};
use crate::report::{Table, mib};
use crate::targets::{self, Contender, Target, World};
use crate::upstream::Upstream;

/// How many.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Connections that did one request and stay open.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=25_000))]
    idle: u32,
    /// Seconds of load before each look.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

pub(crate) async fn run(rig: &Rig, options: &Options) {
    let limit = getrlimit(Resource::Nofile);
    // The proxies inherit it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let idle = limit.maximum.map_or(options.idle, |most| options.idle.min((most.saturating_sub(500)) as u32));
    let upstream = Upstream::start().await;
    let world = World::start(upstream.addr, rig.pin).await;
    let sizes = targets::sizes(&world, &upstream).await;
    let many = format!("{idle} idle");
    let mut table = Table::new(&["target", "idle", "50 busy", "1000 busy", "afterwards", &many, "KiB per idle one"]);
    for contender in rig.contenders(sizes) {
        match measure(&world, &upstream, &contender, options.seconds, idle).await {
            Ok(row) => table.row(row),
            Err(error) => println!("{} is left out: {error}", contender.name),
        }
    }
    println!("MiB resident");
    table.print();
}

async fn measure(
    world: &World,
    upstream: &Upstream,
    contender: &Contender,
    seconds: u64,
    idle: u32,
) -> Result<Vec<String>, String> {
    let time = Duration::from_secs(seconds);
    let target = contender.start(world, upstream).await?;
    let mut row = vec![target.name.clone(), mib(target.proxy.idle_kib)];
    for connections in [50, 1000] {
        let slice = turn(&target.proxy, from_ref(&target.request), connections, time).await;
        row.push(slice.map_or_else(
            |error| {
                println!("{} at {connections} connections {error}", target.name);
                "fails".to_owned()
            },
            |slice| mib(slice.resident_kib),
        ));
    }
    row.push(mib(target.proxy.resident_kib()));
    drop(target);
    // Another process, which has nothing from before.
    let target = contender.start(world, upstream).await?;
    let before = target.proxy.resident_kib();
    match open(&target, idle).await {
        Ok(_clients) => {
            let after = target.proxy.resident_kib();
            row.push(mib(after));
            row.push(format!("{:.1}", after.saturating_sub(before) as f64 / f64::from(idle)));
        }
        Err(opened) => row.push(format!("stops at {opened}")),
    }
    Ok(row)
}

/// Connections that have done one request each; how many there were when one failed.
async fn open(target: &Target, count: u32) -> Result<Vec<Client>, usize> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let Some(mut client) = Client::dial(target.proxy.addr).await else { return Err(clients.len()) };
        if let Err(error) = client.exchange_ok(&target.request).await {
            println!("{} {error}", target.name);
            return Err(clients.len());
        }
        client.forget();
        clients.push(client);
    }
    Ok(clients)
}
