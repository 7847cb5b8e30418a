//! Many sessions whose tokens end in the same second.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;
use tokio::time::{Instant, interval, sleep, sleep_until};

use crate::Rig;
use crate::load::{Client, request};
use crate::process::Proxy;
use crate::report::{Table, percentile};
use crate::support::provider::switches::{AccessToken, Rotation};
use crate::targets::{Contender, Credentials, Program, World, cookie_field, sidegate};
use crate::upstream::Upstream;

/// How many, and how slow.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Sessions.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    sessions: u32,
    /// Milliseconds that the provider takes for a refresh.
    #[arg(long, default_value_t = 50)]
    provider: u64,
    /// Seconds until the tokens end; in this time all have to log in.
    #[arg(long, default_value_t = 60)]
    life: i64,
}

pub(crate) async fn run(rig: &Rig, options: &Options) {
    let own: std::path::PathBuf = sidegate::PROGRAM.into();
    let mut table = Table::new(&[
        "target",
        "answered",
        "token requests",
        "p50 ms",
        "p99 ms",
        "slowest ms",
        "others p99 ms before",
        "meanwhile",
    ]);
    for (name, program) in [
        ("sidegate, cookie", Program::Sidegate(own.clone(), Vec::new())),
        ("sidegate, Redis", Program::SidegateRedis(own)),
    ] {
        if rig.wants(name) {
            match storm(rig, options, &Contender::new(name, program, Credentials::Login)).await {
                Ok(row) => table.row(row),
                Err(error) => println!("{name} is left out: {error}"),
            }
        }
    }
    println!("{} sessions within a second, provider of {} ms", options.sessions, options.provider);
    table.print();
}

async fn storm(rig: &Rig, options: &Options, contender: &Contender) -> Result<Vec<String>, String> {
    let upstream = Upstream::start().await;
    let world = World::start(upstream.addr, rig.pin).await;
    let provider = &world.provider;
    provider.set(|switches| {
        switches.rotation = Rotation::Family;
        switches.leeway = Duration::ZERO;
        // The provider is in this process: signatures would cost what is measured.
        switches.access_token = AccessToken::Sized(1200);
        switches.id_token_at_refresh = false;
        switches.refresh_latency = options.provider..options.provider + 1;
    });
    let proxy = contender.launch(&world).await?.start(&world.under).await?;
    let started = Instant::now();
    let mut requests = Vec::new();
    for _ in 0..options.sessions {
        // All end at the same time, whenever they began.
        let left = options.life - i64::try_from(started.elapsed().as_secs()).unwrap_or(0);
        provider.set(|switches| switches.access_lifetime = left.max(1));
        let browser = contender.sign_in(&proxy).await?;
        requests.push(request("/api/orders", proxy.addr, &[("Cookie", &cookie_field(&browser.jar()))]));
    }
    let end = started + Duration::from_secs(options.life.unsigned_abs() + 1);
    if Instant::now() > end {
        return Err("the logins took longer than the tokens live: --life".to_owned());
    }
    provider.set(|switches| switches.access_lifetime = 3600);
    let before = quiet(&proxy, Duration::from_secs(2)).await;
    sleep_until(end).await;

    let calls = provider.refreshes();
    let others = tokio::spawn({
        let proxy = proxy.addr;
        async move { others(proxy, Duration::from_millis(1500)).await }
    });
    let each = Duration::from_secs(1) / options.sessions;
    let asks = requests.into_iter().enumerate().map(|(index, request)| {
        let addr = proxy.addr;
        async move {
            sleep(each * u32::try_from(index).unwrap_or(0)).await;
            let began = Instant::now();
            let mut client = Client::dial(addr).await?;
            client.exchange_ok(&request).await.ok()?;
            Some(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX))
        }
    });
    let mut answered: Vec<u32> = join_all(asks).await.into_iter().flatten().collect();
    answered.sort_unstable();
    let meanwhile = others.await.map_err(|error| error.to_string())?;
    let ms = |sorted: &[u32], percent| format!("{:.1}", percentile(sorted, percent) / 1000.0);
    Ok(vec![
        contender.name.clone(),
        format!("{} of {}", answered.len(), options.sessions),
        (provider.refreshes() - calls).to_string(),
        ms(&answered, 50.0),
        ms(&answered, 99.0),
        ms(&answered, 100.0),
        ms(&before, 99.0),
        ms(&meanwhile, 99.0),
    ])
}

async fn quiet(proxy: &Proxy, time: Duration) -> Vec<u32> {
    others(proxy.addr, time).await
}

/// Somebody who has no session, 200 times a second.
async fn others(addr: SocketAddr, time: Duration) -> Vec<u32> {
    let ask = request("/orders", addr, &[]);
    let Some(mut client) = Client::dial(addr).await else { return Vec::new() };
    let (mut due, started, mut latencies) = (interval(Duration::from_millis(5)), Instant::now(), Vec::new());
    while started.elapsed() < time {
        due.tick().await;
        let began = Instant::now();
        client.exchange_ok(&ask).await.unwrap_or_else(|error| panic!("the proxy {error}"));
        latencies.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    latencies.sort_unstable();
    latencies
}
