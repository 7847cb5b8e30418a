//! What the cost of a request grows with, and what it does not.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use crate::Rig;
use crate::load::{Slice, request, turn};
use crate::process::Proxy;
use crate::report::{Table, quartiles};
use crate::support::provider::switches::AccessToken;
use crate::targets::{Contender, Credentials, Program, World, bearer_bytes, cookie_field, sidegate};
use crate::upstream::Upstream;

/// Connections where they are not what grows.
const CONNECTIONS: u32 = 50;

/// How long, and how far.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// How often each row has its turn.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1000))]
    turns: u32,
    /// Milliseconds of one turn.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    slice: u64,
    /// Routes of the longest table.
    #[arg(long, default_value_t = 1000)]
    routes: u32,
    /// Sessions that take turns.
    #[arg(long, default_value_t = 1000)]
    sessions: u32,
    /// Numbers of connections.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1000])]
    connections: Vec<u32>,
    /// Sizes of the access token, in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [200, 1000, 2000, 3000, 6000])]
    tokens: Vec<usize>,
}

/// Something measured.
struct Row {
    name: String,
    proxy: Arc<Proxy>,
    requests: Vec<Vec<u8>>,
    connections: u32,
    /// The row that it is compared with.
    base: usize,
    taken: Vec<Slice>,
}

impl Row {
    fn new(name: String, proxy: &Arc<Proxy>, requests: Vec<Vec<u8>>, base: usize) -> Self {
        Self { name, proxy: Arc::clone(proxy), requests, connections: CONNECTIONS, base, taken: Vec::new() }
    }

    fn cost(&self) -> f64 {
        quartiles(self.taken.iter().map(Slice::cost))[1]
    }
}

/// The processes, and the rows so far.
struct Bench<'a> {
    world: &'a World,
    upstream: &'a Upstream,
    rows: Vec<Row>,
}

pub(crate) async fn run(rig: &Rig, options: &Options) {
    let upstream = Upstream::start().await;
    let world = World::start(upstream.addr, rig.pin).await;
    let mut bench = Bench { world: &world, upstream: &upstream, rows: Vec::new() };
    let plain = bench.start("Pingora", Program::Pingora(0)).await;
    let own = bench.start("sidegate", own(Vec::new())).await;
    let ask = bench.session(&own).await;
    let first = bench.add("sidegate, session", &own, vec![ask.clone()]);
    bench.routes(options, first).await;
    bench.sessions(options, &own, first).await;
    bench.connections(options, &plain, &own, &ask);
    let sizes = bench.tokens(options, &own).await;
    for round in 0..options.turns as usize {
        for step in 0..bench.rows.len() {
            let index = (round + step) % bench.rows.len();
            if let Some(row) = bench.rows.get_mut(index) {
                let time = Duration::from_millis(options.slice);
                let slice = turn(&row.proxy, &row.requests, row.connections, time).await;
                row.taken.push(slice.unwrap_or_else(|error| panic!("{} {error}", row.name)));
            }
        }
    }
    bench.report(&sizes);
}

fn own(more: Vec<(&'static str, String)>) -> Program {
    Program::Sidegate(sidegate::PROGRAM.into(), more)
}

impl Bench<'_> {
    async fn start(&self, name: &str, program: Program) -> Arc<Proxy> {
        let contender = Contender::new(name, program, Credentials::None);
        let proxy = async { contender.launch(self.world).await?.start(&self.world.under).await };
        Arc::new(proxy.await.unwrap_or_else(|error| panic!("{error}")))
    }

    /// A row that is its own base; its index.
    fn add(&mut self, name: &str, proxy: &Arc<Proxy>, requests: Vec<Vec<u8>>) -> usize {
        let index = self.rows.len();
        self.rows.push(Row::new(name.to_owned(), proxy, requests, index));
        index
    }

    /// The request of a fresh session.
    async fn session(&self, proxy: &Proxy) -> Vec<u8> {
        let contender = Contender::new("sidegate", own(Vec::new()), Credentials::Login);
        let browser = contender.sign_in(proxy).await.unwrap_or_else(|error| panic!("{error}"));
        request("/api/orders", proxy.addr, &[("Cookie", &cookie_field(&browser.jar()))])
    }

    async fn routes(&mut self, options: &Options, base: usize) {
        let app = self.world.app;
        let route = |path: String, access: &str| {
            format!(r#"{{ path = "{path}", upstream = "http://{app}", access = "{access}" }}"#)
        };
        let more = (2..options.routes).map(|n| route(format!("/service-{n}/"), "session"));
        let all: Vec<String> =
            [route("/api/".to_owned(), "session"), route("/".to_owned(), "public")].into_iter().chain(more).collect();
        let table = format!("[{}]", all.join(", "));
        let name = format!("sidegate, {} routes", all.len());
        let proxy = self.start(&name, own(vec![("route", table)])).await;
        let ask = self.session(&proxy).await;
        self.rows.push(Row::new(name, &proxy, vec![ask], base));
    }

    async fn sessions(&mut self, options: &Options, proxy: &Arc<Proxy>, base: usize) {
        let mut asks = Vec::new();
        for _ in 0..options.sessions {
            asks.push(self.session(proxy).await);
        }
        self.rows.push(Row::new(format!("sidegate, {} sessions in turn", asks.len()), proxy, asks, base));
    }

    fn connections(&mut self, options: &Options, plain: &Arc<Proxy>, own: &Arc<Proxy>, ask: &[u8]) {
        for connections in &options.connections {
            let bare = request("/api/orders", plain.addr, &[]);
            let base = self.add(&format!("Pingora, {connections} connections"), plain, vec![bare]);
            let name = format!("sidegate, {connections} connections");
            self.rows.push(Row::new(name, own, vec![ask.to_vec()], base));
            for row in self.rows.iter_mut().rev().take(2) {
                row.connections = *connections;
            }
        }
    }

    /// For each size: what the cookie has, and the indices of both rows.
    async fn tokens(&mut self, options: &Options, own: &Arc<Proxy>) -> Vec<(usize, usize, usize)> {
        let mut sizes = Vec::new();
        for size in &options.tokens {
            self.world.provider.set(|switches| switches.access_token = AccessToken::Sized(*size));
            let ask = self.session(own).await;
            let head = self.upstream.look(own, &ask).await.unwrap_or_else(|error| panic!("{error}"));
            let bare = request("/api/orders", own.addr, &[]).len();
            let cookie = ask.len().saturating_sub(bare + "Cookie: \r\n".len());
            let name = format!("Pingora, same bytes, cookie of {cookie} B");
            let proxy = self.start(&name, Program::Pingora(bearer_bytes(&head))).await;
            let filler = request("/api/orders", proxy.addr, &[("Cookie", &"c".repeat(cookie))]);
            let base = self.add(&name, &proxy, vec![filler]);
            let name = format!("sidegate, cookie of {cookie} B");
            self.rows.push(Row::new(name, own, vec![ask], base));
            sizes.push((cookie, base + 1, base));
        }
        sizes
    }

    fn report(&self, sizes: &[(usize, usize, usize)]) {
        let mut table = Table::new(&["row", "CPU us", "to"]);
        for (index, row) in self.rows.iter().enumerate() {
            let base = self.rows.get(row.base).filter(|_| row.base != index);
            let ratio = base.map(|base| {
                let pairs = row.taken.iter().zip(&base.taken);
                let [low, middle, high] = quartiles(pairs.map(|(own, base)| own.cost() / base.cost()));
                format!("{middle:.2} ({low:.2}..{high:.2}) to {}", base.name)
            });
            table.row([row.name.clone(), format!("{:.1}", row.cost()), ratio.unwrap_or_default()]);
        }
        table.print();
        let cost = |at: usize| self.rows.get(at).map_or(f64::NAN, Row::cost);
        let own: Vec<_> = sizes.iter().map(|(bytes, own, _)| (*bytes as f64, cost(*own))).collect();
        let bare: Vec<_> = sizes.iter().map(|(bytes, _, bare)| (*bytes as f64, cost(*bare))).collect();
        println!(
            "\nCPU per 1000 bytes of cookie: sidegate {:.2} us, moving the same bytes {:.2} us",
            slope(&own) * 1000.0,
            slope(&bare) * 1000.0
        );
    }
}

/// Of the straight line nearest to these points.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let (above, below) = points
        .iter()
        .fold((0.0, 0.0), |(above, below), (px, py)| (above + (px - x) * (py - y), below + (px - x) * (px - x)));
    above / below
}
