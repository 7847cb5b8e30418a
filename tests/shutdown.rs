//! How the real program starts and ends.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::process::Signal;
use support::client::Ask;
use support::gateway::{Gateway, config, set};
use support::provider::{Endpoint, ProviderDouble};
use support::upstream::{Gate, Script, Upstream};
use support::wait::eventually;
use tokio::net::TcpStream;
use toml::Table;

fn unhurried(delay: &'static str) -> impl FnOnce(&mut Table) {
    move |table| {
        set(table, "server.shutdown_delay", &format!("{delay:?}"));
        set(table, "server.shutdown_drain", "\"30s\"");
    }
}

async fn status(gateway: &Gateway, path: &str) -> u16 {
    gateway.admin(path).await.map_or(0, |reply| reply.status)
}

/// Polls a path of the admin listener until it answers so.
async fn answers(gateway: &Gateway, path: &str, wanted: u16) {
    let answered = eventually(async || status(gateway, path).await == wanted).await;
    assert!(answered, "{path} is never {wanted}:\n{}", gateway.output());
}

/// DOS-25, K8S: not ready at once, alive, and the request in flight is finished. The end has status 0.
#[tokio::test]
async fn pitfall_19_a_signal_lets_requests_in_flight_finish() {
    for signal in [Signal::TERM, Signal::INT] {
        let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
        let gateway = Gateway::start_with(&provider, &upstream, unhurried("1s")).await;
        let browser = gateway.signed_in().await;
        let gate = Gate::default();
        upstream.on("/api/slow", Script::Held(gate.clone(), Box::new(Script::Echo)));
        let slow = browser.launch(&Ask::fetch("/api/slow")).await;
        gate.wait_for(1).await;
        assert_eq!((status(&gateway, "/readyz").await, status(&gateway, "/livez").await), (200, 200));

        gateway.signal(signal);
        answers(&gateway, "/readyz", 503).await;
        assert_eq!(status(&gateway, "/livez").await, 200);
        assert_eq!(browser.fetch("/api/x").await.status, 200, "the load balancer has not heard of it yet");
        gateway.wait_for_log("shutdown", 2).await;
        assert_eq!(gateway.exit_status(), None, "something is in flight");
        assert_eq!(status(&gateway, "/livez").await, 200);
        gate.open();
        assert_eq!(slow.answer().await.status, 200);
        assert_eq!(gateway.wait_for_exit().await.code(), Some(0), "{}", gateway.output());
        let phases: Vec<String> =
            gateway.log_events("shutdown").iter().map(|e| e["phase"].as_str().unwrap().to_owned()).collect();
        assert_eq!(phases, ["delaying", "draining", "stopped"]);
        assert!(!gateway.output().contains("panicked"));
    }
}

/// DOS-25: a client that keeps its connection is told with the answer that it is the last one on it, also when the
/// request came before the signal. So it asks nothing on a connection that is about to close.
#[tokio::test]
async fn answers_on_the_way_out_say_that_the_connection_closes() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start_with(&provider, &upstream, unhurried("20s")).await;
    let browser = gateway.signed_in().await;
    let gate = Gate::default();
    upstream.on("/api/slow", Script::Held(gate.clone(), Box::new(Script::Echo)));
    let slow = browser.launch(&Ask::fetch("/api/slow")).await;
    gate.wait_for(1).await;
    let mut kept = None;
    assert_eq!(browser.fetch_on(&mut kept, "/open").await.header("connection"), Some("keep-alive"));
    assert!(kept.is_some());

    gateway.signal(Signal::TERM);
    answers(&gateway, "/readyz", 503).await;
    while browser.fetch_on(&mut None, "/open").await.header("connection") != Some("close") {
        assert_eq!(gateway.log_events("shutdown").len(), 1, "never told");
    }
    gate.open();
    let mut last = vec![slow.answer().await, browser.fetch_on(&mut kept, "/open").await];
    for path in ["/auth/session", "/nowhere/%2f"] {
        last.push(browser.fetch_on(&mut None, path).await);
    }
    for answer in last {
        assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
        assert!(answer.complete);
    }
    assert_eq!(gateway.log_events("shutdown").len(), 1, "all of it before the drain");
}

/// The drain is a limit, not a sleep; idle connections hold nobody.
#[tokio::test]
async fn an_idle_process_ends_at_once() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start_with(&provider, &upstream, unhurried("0s")).await;
    let browser = gateway.signed_in().await;
    let mut idle = browser.dial().await;
    idle.send(
        format!("GET /open HTTP/1.1\r\nHost: {}\r\n\r\n", gateway.public_url.trim_start_matches("http://")).as_bytes(),
    )
    .await
    .unwrap();
    support::wire::read_reply(&mut idle, "GET").await.unwrap().unwrap();
    gateway.signal(Signal::TERM);
    let ended = tokio::time::timeout(Duration::from_secs(10), gateway.wait_for_exit()).await;
    assert_eq!(ended.expect("well within the drain").code(), Some(0));
}

/// An event stream of ours says nothing that a request waits for: it ends when the drain begins, and the page comes again,
/// to another replica. It does not say that the session has ended.
#[tokio::test]
async fn an_event_stream_holds_nobody() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start_with(&provider, &upstream, unhurried("0s")).await;
    let browser = gateway.signed_in().await;
    let mut events = browser.open(&Ask::fetch("/auth/events")).await;
    assert!(events.read_until("retry").await.is_some());
    gateway.signal(Signal::TERM);
    assert_eq!(events.read_until("event: ended").await, None);
    let ended = tokio::time::timeout(Duration::from_secs(10), gateway.wait_for_exit()).await;
    assert_eq!(ended.expect("well within the drain").code(), Some(0));
}

/// It goes on while the drain waits for something else: until then a page hears what becomes of its session.
#[tokio::test]
async fn an_event_stream_ends_with_the_drain() {
    for at_the_limit in [false, true] {
        let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
        let gateway = Gateway::start_with(&provider, &upstream, |table| {
            set(table, "server.shutdown_delay", "\"0s\"");
            set(table, "server.shutdown_drain", if at_the_limit { "\"300ms\"" } else { "\"30s\"" });
        })
        .await;
        let browser = gateway.signed_in().await;
        let mut events = browser.open(&Ask::fetch("/auth/events")).await;
        assert!(events.read_until("retry").await.is_some());
        let gate = Gate::default();
        upstream.on("/api/slow", Script::Held(gate.clone(), Box::new(Script::Echo)));
        let slow = browser.launch(&Ask::fetch("/api/slow")).await;
        gate.wait_for(1).await;
        let hold = provider.hold_token_answers();
        let refreshing = browser.launch(&Ask::fetch("/auth/refresh").method("POST")).await;
        hold.wait_for(1).await;

        gateway.signal(Signal::TERM);
        gateway.wait_for_log("shutdown", 2).await;
        if !at_the_limit {
            hold.release();
            assert_eq!(refreshing.answer().await.status, 200);
            assert!(events.read_until("event: refreshed").await.is_some(), "{}", gateway.output());
            gate.open();
            assert_eq!(slow.answer().await.status, 200);
        }
        assert_eq!(events.read_until("event: ended").await, None);
        assert!(events.complete, "it broke off");
        assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
    }
}

/// What hangs is cut off at the end of the drain; a second signal does not wait for that.
#[tokio::test]
async fn what_hangs_does_not_hold_the_process_for_ever() {
    for twice in [false, true] {
        let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
        let gateway = Gateway::start_with(&provider, &upstream, |table| {
            set(table, "server.shutdown_delay", "\"0s\"");
            set(table, "server.shutdown_drain", if twice { "\"30s\"" } else { "\"300ms\"" });
        })
        .await;
        let browser = gateway.signed_in().await;
        upstream.on("/api/stuck", Script::Stall);
        let _stuck = browser.launch(&Ask::fetch("/api/stuck")).await;
        upstream.wait_for_requests(2).await;
        gateway.signal(Signal::TERM);
        gateway.wait_for_log("shutdown", 2).await;
        if twice {
            gateway.signal(Signal::TERM);
        }
        let ended = tokio::time::timeout(Duration::from_secs(15), gateway.wait_for_exit()).await;
        assert_eq!(ended.expect("an end").code(), Some(0), "{}", gateway.output());
    }
}

/// RFR-03: a refresh whose caller has left is finished before the process ends: the provider has rotated.
#[tokio::test]
async fn a_refresh_in_flight_is_finished_before_the_end() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start_with(&provider, &upstream, unhurried("0s")).await;
    let browser = gateway.signed_in().await;
    let hold = provider.hold_token_answers();
    let leaving = browser.launch(&Ask::fetch("/auth/refresh").method("POST")).await;
    hold.wait_for(1).await;
    leaving.abort();
    gateway.signal(Signal::TERM);
    gateway.wait_for_log("shutdown", 2).await;
    assert_eq!(gateway.exit_status(), None, "a token is being spent");
    hold.release();
    assert_eq!(gateway.wait_for_exit().await.code(), Some(0));
    let told = gateway.wait_for_log("refresh", 1).await;
    assert_eq!(told[0]["outcome"], "ok");
    assert_eq!(provider.calls_to(Endpoint::Token).last().unwrap().status, Some(200));
}

/// CFG-02: an address that cannot be had is named.
#[tokio::test]
async fn a_taken_address_is_named() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    for key in ["server.listen", "admin.listen"] {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let mut table = config(&provider, &upstream);
        set(&mut table, key, &format!("{address:?}"));
        let gateway = Gateway::run(&table);
        let ended = tokio::time::timeout(Duration::from_secs(10), gateway.wait_for_exit()).await;
        assert_eq!(ended.expect("within seconds").code(), Some(71), "{}", gateway.output());
        assert!(gateway.output().contains(&address), "{}", gateway.output());
        assert!(gateway.output().contains(key), "{}", gateway.output());
    }
}

/// CFG-06: it listens where it is told, and nowhere else: another address of the same machine is refused.
#[tokio::test]
async fn cfg_06_it_listens_where_it_is_told() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start(&provider, &upstream).await;
    for told in [gateway.addr, gateway.admin_addr] {
        assert!(TcpStream::connect(told).await.is_ok(), "{told}");
        let other = SocketAddr::from(([127, 0, 0, 2], told.port()));
        let error = TcpStream::connect(other).await.expect_err("nobody listens there");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{other}");
    }
}

/// LOG-12: no core dumps, and what the process has in memory is not this user's to read.
#[tokio::test]
async fn log_12_the_memory_is_nobodys_to_read() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Gateway::start(&provider, &upstream).await;
    assert!(gateway.log_events("not_hardened").is_empty());
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.id())).unwrap();
    let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>(), ["0", "0", "bytes"]);
    // Files of a process that may not be dumped are root's; root itself is not stopped by it.
    let owner = std::fs::metadata(format!("/proc/{}/mem", gateway.id())).unwrap().uid();
    assert_eq!(owner, 0);
}

/// CFG-01: a configuration with mistakes does not start, and each mistake is named.
#[tokio::test]
async fn a_refused_configuration_does_not_start() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let mut table = config(&provider, &upstream);
    set(&mut table, "server.public_url", "\"http://app.example.com\"");
    set(&mut table, "session.max_agee", "\"1h\"");
    set(&mut table, "refresh.timeout", "\"soon\"");
    let gateway = Gateway::run(&table);
    assert_eq!(gateway.wait_for_exit().await.code(), Some(78));
    for word in ["server.public_url", "session.max_agee", "max_age", "refresh.timeout"] {
        assert!(gateway.output().contains(word), "{word}: {}", gateway.output());
    }
    assert!(upstream.untouched() && provider.calls().is_empty());
}

/// K8S: the start needs nobody, and the listeners are told.
#[tokio::test]
async fn it_starts_while_provider_and_upstream_are_down() {
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    provider.go_down().await;
    upstream.go_down().await;
    let gateway = Gateway::start(&provider, &upstream).await;
    let listening = gateway.wait_for_log("listening", 2).await;
    let addresses: Vec<&str> = listening.iter().map(|line| line["addr"].as_str().unwrap()).collect();
    assert!(addresses.contains(&gateway.addr.to_string().as_str()), "{addresses:?}");
    let browser = gateway.browser();
    assert_eq!(browser.fetch("/open").await.status, 502);
    let page = browser.login("/").await;
    assert_eq!(page.status, 503);
    assert!(page.header("retry-after").is_some());
    provider.come_back().await;
    upstream.come_back().await;
    let healed = eventually(async || browser.login("/").await.status == 200).await;
    assert!(healed, "does not heal:\n{}", gateway.output());
}
