//! The steps between reading a request's head and sending it on, one by one: `cargo bench --bench hot_path`.
//!
//! Opening, sealing and decoding a session have a benchmark of their own, `session_codec`.

use divan::{Bencher, black_box};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use sidegate::config::{Surroundings, load_in};
use sidegate::gateway::decide::{Caller, Presence, Rules, decide};
use sidegate::gateway::routes::{Matched, RouteTable};
use sidegate::gateway::settings::Route;
use sidegate::web::cookies;
use sidegate::web::fetch::{Demand, Initiator, proves_origin};
use sidegate::web::headers;
use sidegate::web::origin::Origin;
use sidegate::web::path::CleanPath;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

/// `/api/`, `/`, and more of the kind of `/service-17/`.
fn routes(count: usize) -> Vec<Route> {
    let route =
        |path: &str| format!("[[route]]\npath = \"{path}\"\nupstream = \"http://127.0.0.1:9\"\naccess = \"session\"\n");
    let more = (2..count).map(|n| route(&format!("/service-{n}/")));
    let all: String = [route("/api/"), route("/")].into_iter().chain(more).collect();
    let text = format!(
        "[server]\npublic_url = \"http://localhost:8080\"\n[provider]\nissuer = \"http://localhost:9\"\n\
         client_id = \"spa\"\nclient_secret = \"secret\"\n[session]\nkeys = [\"{}\"]\n{all}",
        "A".repeat(43)
    );
    let around = Surroundings { text: Some(("bench.toml", text)), ..Surroundings::default() };
    load_in(&[], &around).expect("a good configuration").gateway.routes
}

/// What a browser's `fetch()` sends, with a session's cookie and one that is not ours.
fn head() -> HeaderMap {
    let cookie = format!("theme=dark; sidegate={}", "c".repeat(2900));
    [
        ("host", "localhost:8080"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0)"),
        ("accept", "application/json"),
        ("accept-language", "en"),
        ("accept-encoding", "gzip, deflate, br"),
        ("sec-fetch-site", "same-origin"),
        ("sec-fetch-mode", "cors"),
        ("sec-fetch-dest", "empty"),
        ("cookie", &cookie),
    ]
    .into_iter()
    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value")))
    .collect()
}

#[divan::bench]
fn path_parse() -> bool {
    CleanPath::parse(black_box("/api/v1/orders/4711/items")).is_ok()
}

#[divan::bench(args = [2, 1000])]
fn route_find(bencher: Bencher<'_, '_>, count: usize) {
    let table = RouteTable::new(routes(count));
    let path = CleanPath::parse("/api/v1/orders/4711/items").expect("a path");
    bencher.bench_local(|| {
        matches!(table.find(black_box(&path), black_box("localhost"), Some(&Method::GET)), Matched::Route(_))
    });
}

#[divan::bench]
fn csrf_judge(bencher: Bencher<'_, '_>) {
    let (head, public) = (head(), Origin::parse("http://localhost:8080").expect("an origin"));
    let demand = Demand { header_mode: false, header_present: false, app_navigation_only: false };
    bencher.bench_local(|| proves_origin(&Initiator::read(black_box(&head), &public, &[]), &Method::GET, demand));
}

#[divan::bench]
fn decide_session(bencher: Bencher<'_, '_>) {
    let routes = routes(2);
    let rules = Rules::of(routes.first().expect("a route"), false);
    let caller = Caller { proven: true, ..Caller::default() };
    bencher.bench_local(|| decide(black_box(rules), Presence::Live, black_box(caller), &Method::GET));
}

#[divan::bench]
fn head_fields_judge(bencher: Bencher<'_, '_>) {
    let head = head();
    let removed =
        |name: &HeaderName| headers::is_hop_by_hop(name.as_str()) || headers::is_removed_from_client(name.as_str());
    bencher.bench_local(|| black_box(&head).keys().filter(|name| removed(name)).count());
}

#[divan::bench]
fn cookie_strip(bencher: Bencher<'_, '_>) {
    let head = head();
    bencher.bench_local(|| cookies::strip(black_box(&head), |name| name == "sidegate"));
}
