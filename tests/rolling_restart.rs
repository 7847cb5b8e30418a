//! A rolling update as Kubernetes does it, under load: three replicas that share a Redis are replaced one after the
//! other, behind a Service that forgets a replica when its readiness probe fails. Nobody may notice.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::Signal;
use support::client::{Ask, Browser, Initiator, Response};
use support::gateway::{Gateway, config, free_port, set};
use support::provider::{Call, Endpoint, ProviderDouble, Rotation};
use support::redis::Redis;
use support::text::filler;
use support::upstream::{Gate, Script, Upstream};
use support::wait::{PATIENCE, until};
use support::ws::{CLOSE, WebSocket};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use toml::Table;

const REPLICAS: usize = 3;
const USERS: usize = 5;
/// In seconds; each session is refreshed when one second less has passed.
const TOKEN_LIFE: i64 = 3;
/// Between two requests of one tab.
const PAUSE: Duration = Duration::from_millis(40);
/// A kubelet's period, as short as this test's delay before the drain needs it.
const PROBE: Duration = Duration::from_millis(50);

// -- The Service ---------------------------------------------------------------------------------------------------

struct Replica {
    gateway: Gateway,
    /// Whether the last probe succeeded.
    ready: AtomicBool,
}

/// Gives each new connection to the next replica that is ready. What was given stays where it is; nothing is repeated.
#[derive(Default)]
struct Service {
    replicas: Mutex<Vec<Arc<Replica>>>,
    turn: AtomicUsize,
}

impl Service {
    async fn listen(port: u16) -> Arc<Self> {
        let service = Arc::new(Self::default());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let ours = Arc::clone(&service);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let Some(addr) = ours.next() else { continue };
                tokio::spawn(async move {
                    if let Ok(mut replica) = TcpStream::connect(addr).await {
                        let _ = (client.set_nodelay(true), replica.set_nodelay(true));
                        let _ = copy_bidirectional(&mut client, &mut replica).await;
                    }
                });
            }
        });
        service
    }

    fn next(&self) -> Option<SocketAddr> {
        let replicas = self.replicas.lock();
        let ready: Vec<_> = replicas.iter().filter(|replica| replica.ready.load(Ordering::Acquire)).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        ready.get(turn % ready.len().max(1)).map(|replica| replica.gateway.addr)
    }

    /// Starts one more and waits until it is ready; from then on it is probed until it has ended.
    async fn add(&self, table: &Table) -> Arc<Replica> {
        let replica = Arc::new(Replica { gateway: Gateway::run(table), ready: AtomicBool::new(false) });
        replica.gateway.wait_until_ready().await;
        replica.ready.store(true, Ordering::Release);
        self.replicas.lock().push(Arc::clone(&replica));
        let probed = Arc::clone(&replica);
        tokio::spawn(async move {
            while probed.gateway.exit_status().is_none() {
                let answer = probed.gateway.admin("/readyz").await;
                probed.ready.store(answer.is_some_and(|reply| reply.status == 200), Ordering::Release);
                sleep(PROBE).await;
            }
        });
        replica
    }
}

// -- The load ------------------------------------------------------------------------------------------------------

#[derive(Debug, Default)]
struct Tally {
    answers: usize,
    failed: Vec<String>,
    /// WebSockets that were told to go elsewhere.
    closed: usize,
    /// Event streams that ended as streams should.
    ended: usize,
}

/// What all workers share.
#[derive(Clone)]
struct Load {
    tally: Arc<Mutex<Tally>>,
    stop: watch::Receiver<bool>,
}

impl Load {
    fn goes_on(&self) -> bool {
        !*self.stop.borrow()
    }

    fn failed(&self, what: String) {
        self.tally.lock().failed.push(what);
    }

    fn judge(&self, answer: &Response) {
        self.tally.lock().answers += 1;
        if answer.status != 200 || !answer.complete {
            let Response { method, url, status, complete, error, .. } = answer;
            self.failed(format!("{method} {url}: {status} {} complete {complete} {error:?}", answer.code()));
        }
    }

    /// Requests on connections of their own.
    async fn tab(self, user: Browser) {
        while self.goes_on() {
            for path in ["/api/x", "/auth/session", "/open"] {
                self.judge(&user.fetch(path).await);
                sleep(PAUSE).await;
            }
        }
    }

    /// Requests on one connection, as long as it is kept.
    async fn kept(self, user: Browser) {
        let mut connection = None;
        while self.goes_on() {
            self.judge(&user.fetch_on(&mut connection, "/api/kept").await);
            sleep(PAUSE).await;
        }
    }

    /// Long ways down, and up.
    async fn slow(self, user: Browser) {
        while self.goes_on() {
            self.judge(&user.fetch("/api/slow").await);
            let upload = user.upload(&parcel()).await;
            sleep(PAUSE * 10).await;
            let answer = upload.finish().await;
            user.land(&answer);
            self.judge(&answer);
        }
    }

    /// A WebSocket that is opened again when it is told to.
    async fn socket(self, user: Browser) {
        while self.goes_on() {
            match user.websocket("/api/ws", Initiator::SameOrigin).await {
                Ok(socket) => self.talk(socket).await,
                Err(refusal) => self.judge(&refusal),
            }
        }
    }

    async fn talk(&self, mut socket: WebSocket) {
        while self.goes_on() {
            // When the other end is gone, the missing answer says so.
            let _ = socket.send_text("tick").await;
            match timeout(PATIENCE, socket.next()).await {
                Ok(Some(frame)) if frame.text() == "tick" => self.tally.lock().answers += 1,
                Ok(Some(frame)) if frame.close_code() == Some(1001) => {
                    self.tally.lock().closed += 1;
                    let _ = socket.send(CLOSE, &frame.payload).await;
                    return;
                }
                other => return self.failed(format!("WebSocket: {other:?}")),
            }
            sleep(PAUSE * 2).await;
        }
        socket.close(1000).await;
    }

    /// An event stream that is opened again when it ends, as `EventSource` does.
    async fn events(mut self, user: Browser) {
        while self.goes_on() {
            let mut stream = user.open(&Ask::fetch("/auth/events")).await;
            if stream.response.status != 200 {
                self.judge(&stream.response);
                continue;
            }
            let mut text = Vec::new();
            loop {
                tokio::select! {
                    piece = stream.next() => match piece {
                        Some(piece) => text.extend(piece),
                        None => break,
                    },
                    _ = self.stop.wait_for(|stop| *stop) => return stream.abort(),
                }
            }
            let text = String::from_utf8_lossy(&text);
            if !stream.complete || text.contains("event: ended") {
                self.failed(format!("event stream: complete {} {text}", stream.complete));
            }
            self.tally.lock().ended += 1;
            sleep(PAUSE).await;
        }
    }
}

fn parcel() -> Ask {
    Ask::fetch("/api/upload").body("text/plain", filler(20_000))
}

// -- The update ----------------------------------------------------------------------------------------------------

/// The configuration of one replica: only its addresses are its own.
fn replica_of(table: &Table) -> Table {
    let mut own = table.clone();
    set(&mut own, "server.listen", &format!("\"127.0.0.1:{}\"", free_port()));
    set(&mut own, "admin.listen", &format!("\"127.0.0.1:{}\"", free_port()));
    own
}

/// Stops a replica that has a WebSocket, an upload and a slow answer under way, and sees each to its end.
async fn retire(replica: &Replica, user: &Browser, upstream: &Upstream, load: &Load) {
    let here = user.at(replica.gateway.addr);
    let mut socket = here.websocket("/api/ws", Initiator::SameOrigin).await.unwrap();
    let upload = here.upload(&parcel()).await;
    let gate = Gate::default();
    upstream.on("/api/held", Script::Held(gate.clone(), Box::new(Script::Echo)));
    let held = here.launch(&Ask::fetch("/api/held")).await;
    gate.wait_for(1).await;

    replica.gateway.signal(Signal::TERM);
    let phases = replica.gateway.wait_for_log("shutdown", 2).await;
    assert_eq!(phases[1]["phase"], "draining");
    assert!(phases[1]["connections"].as_u64().unwrap() >= 3, "{phases:?}");
    gate.open();
    for answer in [held.answer().await, upload.finish().await] {
        here.land(&answer);
        load.judge(&answer);
    }
    let goodbye = timeout(PATIENCE, socket.next()).await.unwrap();
    assert_eq!(goodbye.and_then(|frame| frame.close_code()), Some(1001), "{}", replica.gateway.output());
    assert_eq!(replica.gateway.wait_for_exit().await.code(), Some(0), "{}", replica.gateway.output());
}

fn renewed(replica: &Replica) -> usize {
    replica.gateway.log_events("refresh").iter().filter(|line| line["outcome"] == "ok").count()
}

/// K8S-06, DOS-25, RFR-03, REDIS: no request fails, nobody is signed out, each token is spent once, and no WebSocket or
/// event stream just breaks off.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_under_load_fails_no_request_and_signs_nobody_out() {
    let (provider, upstream, redis) = (ProviderDouble::start().await, Upstream::start().await, Redis::start().await);
    provider.set(|switches| {
        switches.rotation = Rotation::Family;
        switches.access_lifetime = TOKEN_LIFE;
        switches.refresh_latency = 20..300;
    });
    upstream.on("/api/slow", Script::SlowBody { pieces: 8, pause: PAUSE });
    let port = free_port();
    let public_url = format!("http://localhost:{port}");
    provider.register(&public_url);
    let mut table = config(&provider, &upstream);
    for (key, value) in [
        ("server.public_url", format!("{public_url:?}")),
        ("server.shutdown_delay", "\"2s\"".to_owned()),
        ("server.shutdown_drain", "\"4s\"".to_owned()),
        ("refresh.before_expiry", "\"1s\"".to_owned()),
        ("redis.url", format!("{:?}", redis.unix_url())),
        // Patient, for machines of which nobody knows how slow they are.
        ("redis.timeout", "\"5s\"".to_owned()),
    ] {
        set(&mut table, key, &value);
    }

    let service = Service::listen(port).await;
    let mut replicas = Vec::new();
    for _ in 0..REPLICAS {
        replicas.push(service.add(&replica_of(&table)).await);
    }
    let (stop, stopped) = watch::channel(false);
    let load = Load { tally: Arc::default(), stop: stopped };
    let mut workers = JoinSet::new();
    let mut users = Vec::new();
    for _ in 0..USERS {
        let user = Browser::new(&public_url);
        assert_eq!(user.login("/").await.status, 200);
        workers.spawn(load.clone().tab(user.clone()));
        workers.spawn(load.clone().tab(user.clone()));
        workers.spawn(load.clone().kept(user.clone()));
        workers.spawn(load.clone().slow(user.clone()));
        workers.spawn(load.clone().socket(user.clone()));
        workers.spawn(load.clone().events(user.clone()));
        users.push(user);
    }

    for old in 0..REPLICAS {
        replicas.push(service.add(&replica_of(&table)).await);
        retire(&replicas[old], &users[old], &upstream, &load).await;
    }
    // The new ones know every session: each is refreshed once more by them.
    provider.wait_for_calls(Endpoint::Token, USERS + provider.refreshes() + USERS).await;
    stop.send_replace(true);
    workers.join_all().await;

    for user in &users {
        assert_eq!(user.session().await["authenticated"], true);
    }
    let tally = std::mem::take(&mut *load.tally.lock());
    let refreshes: Vec<Call> = provider.calls_to(Endpoint::Token).into_iter().filter(Call::is_refresh).collect();
    eprintln!(
        "{REPLICAS} replicas replaced: {} answers, {} failed; {} logins of {USERS} users, {} refreshes; {} WebSockets \
         closed by 1001, {} event streams ended",
        tally.answers,
        tally.failed.len(),
        provider.code_exchanges(),
        refreshes.len(),
        tally.closed + REPLICAS,
        tally.ended,
    );
    assert!(tally.failed.is_empty(), "{:#?}", tally.failed);
    assert!(tally.closed > 0 && tally.ended > 0, "{tally:?}");
    assert_eq!((provider.code_exchanges(), provider.reuse_alarms()), (USERS, 0), "forced logins");
    assert_eq!(provider.violations(), Vec::<String>::new());

    let spent: HashSet<&str> = refreshes.iter().filter_map(|call| call.param("refresh_token")).collect();
    assert_eq!(spent.len(), refreshes.len(), "a token was spent twice");
    assert!(refreshes.iter().all(|call| call.status == Some(200)));
    // The readers of the logs may be a moment behind.
    let told = async || replicas.iter().map(|replica| renewed(replica)).sum::<usize>() == provider.refreshes();
    until("the logs tell of one call for each refresh", told).await;
}
