//! From starting a process to its first answer.

use clap::Args;

use crate::Rig;
use crate::report::{Table, mib, quartiles};
use crate::targets::{self, World};
use crate::upstream::Upstream;

/// How often.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Starts of each target.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    starts: u32,
}

pub(crate) async fn run(rig: &Rig, options: &Options) {
    let upstream = Upstream::start().await;
    let world = World::start(upstream.addr, rig.pin).await;
    let sizes = targets::sizes(&world, &upstream).await;
    let mut table = Table::new(&["target", "ready ms", "fastest", "slowest", "idle MiB", "program MiB"]);
    let mut seen = Vec::new();
    for contender in rig.contenders(sizes) {
        // The same process with another request.
        let key = format!("{:?}", contender.program);
        if seen.contains(&key) {
            continue;
        }
        seen.push(key);
        let (mut ready, mut idle, mut size) = (Vec::new(), 0, 0);
        for _ in 0..options.starts {
            let started = match contender.launch(&world).await {
                Ok(launch) => {
                    size = std::fs::metadata(&launch.program).map_or(0, |file| file.len() / 1024);
                    launch.start(&world.under).await
                }
                Err(error) => Err(error),
            };
            match started {
                Ok(proxy) => {
                    ready.push(proxy.ready.as_secs_f64() * 1000.0);
                    idle = proxy.idle_kib;
                }
                Err(error) => {
                    println!("{} is left out: {error}", contender.name);
                    break;
                }
            }
        }
        if ready.is_empty() {
            continue;
        }
        let least = ready.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ready.iter().copied().fold(0.0, f64::max);
        let times = [quartiles(ready.iter().copied())[1], least, most].map(|time| format!("{time:.0}"));
        table.row([vec![contender.name.clone()], times.into(), vec![mib(idle), mib(size)]].concat());
    }
    table.print();
}
