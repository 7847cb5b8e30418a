//! How often a request asks the allocator, which is what grows unseen: every copy that somebody adds shows here.
//!
//! The only test of this file, so that nobody else in the process allocates meanwhile: the client and the application
//! are threads with buffers of their own, and the provider is not asked.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

use std::alloc::System;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

mod support;

use support::gateway::set;
use support::inside::Inside;
use support::provider::ProviderDouble;
use support::upstream::Upstream;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Per round. Whatever happens beside the requests now and then is not in every round.
const REQUESTS: usize = 100;
const ROUNDS: usize = 6;

/// What an authenticated request may cost in allocations. Pingora's own are about 85 of them. Raise it only with a
/// reason; lower it when it has become less.
const MOST: usize = 113;
/// The same without a session.
const MOST_PUBLIC: usize = 110;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_allocates_no_more_than_it_did() {
    let app = application();
    let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
    let gateway = Inside::start_with(&provider, &upstream, |config| {
        let routes = config.get_mut("route").unwrap().as_array_mut().unwrap();
        for (path, access) in [("/counted/", "session"), ("/open/", "public")] {
            let mut route = toml::Table::new();
            set(&mut route, "path", &format!("{path:?}"));
            set(&mut route, "access", &format!("{access:?}"));
            set(&mut route, "upstream", &format!("\"http://{app}\""));
            routes.push(route.into());
        }
    })
    .await;
    let cookie = gateway.signed_in().await.cookie("sidegate").unwrap();
    let (addr, host) = (gateway.addr, gateway.public_url.trim_start_matches("http://").to_owned());
    let counted = std::thread::spawn(move || {
        let session = allocations(addr, &request(&host, "/counted/x", &format!("Cookie: sidegate={cookie}\r\n")));
        (session, allocations(addr, &request(&host, "/open/x", "")))
    });
    let (session, public) = tokio::task::spawn_blocking(|| counted.join().unwrap()).await.unwrap();
    println!("allocations per request: {session} with a session, {public} without");
    assert!(session <= MOST, "{session} with a session");
    assert!(public <= MOST_PUBLIC, "{public} without");
}

fn request(host: &str, path: &str, cookie: &str) -> Vec<u8> {
    let fields = "Accept: application/json\r\nAccept-Language: en\r\nUser-Agent: test\r\nSec-Fetch-Site: same-origin\r\n\
                  Sec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n";
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}{cookie}\r\n").into_bytes()
}

/// Of the cheapest round, per request.
fn allocations(addr: SocketAddr, request: &[u8]) -> usize {
    let mut stream = TcpStream::connect(addr).unwrap();
    let mut buffer = [0; 4096];
    let mut ask = |times: usize| {
        for _ in 0..times {
            stream.write_all(request).unwrap();
            let (mut read, mut end) = (0, None);
            while end.is_none_or(|end| read < end) {
                let count = stream.read(&mut buffer[read..]).unwrap();
                assert!(count > 0, "the gateway closed the connection");
                read += count;
                end = end
                    .or_else(|| memchr::memmem::find(&buffer[..read], b"\r\n\r\n").map(|head| head + 4 + BODY.len()));
            }
            assert!(buffer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&buffer[..read]));
        }
    };
    ask(REQUESTS);
    let rounds = (0..ROUNDS).map(|_| {
        let region = Region::new(ALLOCATOR);
        ask(REQUESTS);
        let change = region.change();
        (change.allocations + change.reallocations) / REQUESTS
    });
    rounds.min().unwrap()
}

const BODY: &[u8] = b"[1, 2, 3]";

/// Answers every request; allocates for a connection, not for a request.
fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n";
                let answer = [&head[..], BODY].concat();
                let mut buffer = vec![0; 16 * 1024];
                let mut read = 0;
                while let Ok(count @ 1..) = stream.read(&mut buffer[read..]) {
                    read += count;
                    if buffer[..read].ends_with(b"\r\n\r\n") {
                        read = 0;
                        if stream.write_all(&answer).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    addr
}
