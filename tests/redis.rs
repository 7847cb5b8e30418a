//! Replicas that share a Redis: one refresh among all of them, whatever becomes of a replica or of Redis. With real
//! servers: `redis-server` has to be installed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sidegate::clock::{Clock, Timestamp};
use sidegate::refresh::shared::{Rung, Shared};
use sidegate::session::model::Handle;
use sidegate::session::store::{Announce, Away, By, Ending, Heard, Kept, Name, Tickets, UsedAttempts};
use sidegate::store::settings::{Address, Deployment, TlsFiles};
use sidegate::store::{Fate, Observer, Settings, Store};
use support::client::{Ask, Browser, Response};
use support::gateway::{Gateway, config, free_port, set};
use support::inside::Inside;
use support::provider::{Endpoint, Grants, Moment, Outage, ProviderDouble, Rotation};
use support::redis::{Redis, Reply, cluster};
use support::upstream::Upstream;
use support::wait::until;
use toml::Table;

const PREFIX: &str = "sidegate:";
/// The access tokens of the double live for an hour.
const HOUR: u64 = 3600;
const MINUTE: Duration = Duration::from_secs(60);

// -- The store by itself -------------------------------------------------------------------------------------------

/// What a replica hears, and what is told of its store.
#[derive(Default)]
struct Told {
    endings: Mutex<Vec<Ending>>,
    up: Mutex<bool>,
    fates: Mutex<Vec<(Fate, usize)>>,
}

impl Heard for Told {
    fn heard(&self, endings: &[Ending]) {
        self.endings.lock().extend(endings);
    }
}

impl Observer for Told {
    fn up(&self, up: bool) {
        *self.up.lock() = up;
    }
    fn endings(&self, fate: Fate, count: usize) {
        self.fates.lock().push((fate, count));
    }
}

impl Told {
    fn fate(&self, fate: Fate) -> usize {
        self.fates.lock().iter().filter(|(is, _)| *is == fate).map(|(_, count)| count).sum()
    }

    async fn is_up(&self) {
        until("Redis is up", async || *self.up.lock()).await;
    }

    async fn hears(&self, ending: Ending) {
        until("it is heard", async || self.endings.lock().contains(&ending)).await;
    }
}

fn settings(redis: &Redis) -> Settings {
    Settings {
        deployment: Deployment::Single(Address::parse(&redis.unix_url()).unwrap()),
        username: None,
        password: None,
        tls: TlsFiles::default(),
        prefix: PREFIX.to_owned(),
        timeout: Duration::from_secs(2),
    }
}

/// A replica's store that runs, and what it told.
async fn replica(settings: Settings) -> (Arc<Store>, Arc<Told>) {
    let told = Arc::new(Told::default());
    let store = Store::new(settings, Clock::System, Arc::clone(&told) as _);
    tokio::spawn(Arc::clone(&store).run(Arc::clone(&told) as _));
    told.is_up().await;
    (store, told)
}

async fn life_of(redis: &Redis, kind: &str) -> i64 {
    let keys = redis.keys().await;
    let key =
        keys.iter().find(|key| key.starts_with(&format!("{PREFIX}{kind}:"))).unwrap_or_else(|| panic!("{keys:?}"));
    redis.say(&format!("PTTL {key}")).await.int()
}

/// REDIS: `absent < LOCK < DEAD < OK`, and a write may only go up.
#[tokio::test]
async fn the_ladder() {
    const LIFE: Duration = Duration::from_secs(100);
    const MINE: [u8; 16] = [1; 16];
    const THEIRS: [u8; 16] = [2; 16];
    let redis = Redis::start().await;
    let (store, _) = replica(settings(&redis)).await;
    let ok = |n: u8| Rung::Renewed(vec![n; 40]);
    let mut number = 0_u8;
    for (before, act, after) in [
        (Rung::Absent, "lock", Rung::Locked),
        (Rung::Absent, "dead", Rung::Dead),
        (Rung::Absent, "ok", ok(2)),
        (Rung::Absent, "unlock", Rung::Absent),
        (Rung::Locked, "lock", Rung::Locked),
        (Rung::Locked, "dead", Rung::Dead),
        (Rung::Locked, "ok", ok(2)),
        (Rung::Locked, "unlock", Rung::Absent),
        (Rung::Locked, "unlock as another", Rung::Locked),
        (Rung::Dead, "lock", Rung::Dead),
        (Rung::Dead, "dead", Rung::Dead),
        (Rung::Dead, "ok", ok(2)),
        (Rung::Dead, "unlock", Rung::Dead),
        (ok(1), "lock", ok(1)),
        (ok(1), "dead", ok(1)),
        (ok(1), "ok", ok(1)),
        (ok(1), "unlock", ok(1)),
    ] {
        number += 1;
        let handle = Handle([number; 16]);
        match &before {
            Rung::Absent => {}
            Rung::Locked => assert_eq!(store.lock(handle, MINE, LIFE).await, Ok(Rung::Absent)),
            settled => store.settle(handle, settled.clone(), LIFE).await.unwrap(),
        }
        match act {
            "lock" => assert_eq!(store.lock(handle, THEIRS, LIFE).await, Ok(before.clone()), "{before:?} {act}"),
            "dead" => store.settle(handle, Rung::Dead, LIFE).await.unwrap(),
            "ok" => store.settle(handle, ok(2), LIFE).await.unwrap(),
            "unlock" => store.unlock(handle, MINE).await,
            _ => store.unlock(handle, THEIRS).await,
        }
        assert_eq!(store.read(handle).await, Ok(after), "{before:?} {act}");
    }
}

#[tokio::test]
async fn a_lock_is_its_owners() {
    const LIFE: Duration = Duration::from_secs(10);
    let redis = Redis::start().await;
    let (store, _) = replica(settings(&redis)).await;
    let handle = Handle([7; 16]);
    assert_eq!(store.renew(handle, [1; 16], LIFE).await, Ok(false), "there is none");
    assert_eq!(store.lock(handle, [1; 16], LIFE).await, Ok(Rung::Absent));
    assert_eq!(store.lock(handle, [1; 16], LIFE).await, Ok(Rung::Absent), "the answer to the first try was lost");
    assert_eq!(store.renew(handle, [2; 16], MINUTE).await, Ok(false));
    assert!(life_of(&redis, "h").await <= 10_000);
    assert_eq!(store.renew(handle, [1; 16], MINUTE).await, Ok(true));
    assert!(life_of(&redis, "h").await > 50_000);
    store.settle(handle, Rung::Renewed(vec![5; 9]), MINUTE * 60).await.unwrap();
    assert_eq!(store.renew(handle, [1; 16], LIFE).await, Ok(false), "it is a result now");
    store.acknowledge(handle, MINUTE);
    until("it lives for the grace time only", async || life_of(&redis, "h").await <= 60_000).await;
    assert_eq!(store.read(handle).await, Ok(Rung::Renewed(vec![5; 9])));
}

#[tokio::test]
async fn a_ticket_is_compared_and_set_by_generation() {
    let redis = Redis::start().await;
    let (store, _) = replica(settings(&redis)).await;
    let name = Name([3; 16]);
    let kept = |generation, byte| Kept { generation, sealed: vec![byte, b':', 0, 255] };
    assert_eq!(store.load(name).await, Ok(None));
    assert_eq!(store.save(name, kept(0, 1), false, MINUTE).await, Ok(false), "a refresh brings nothing back");
    assert_eq!(store.save(name, kept(0, 1), true, MINUTE).await, Ok(true));
    assert_eq!(store.save(name, kept(10, 2), false, MINUTE).await, Ok(true));
    assert_eq!(store.save(name, kept(9, 3), true, MINUTE).await, Ok(false), "an older one");
    assert_eq!(store.load(name).await, Ok(Some(kept(10, 2))));
    assert_eq!(store.save(name, kept(10, 4), false, MINUTE).await, Ok(true), "the same one, used again");
    assert_eq!(store.load(name).await, Ok(Some(kept(10, 4))));
    assert!((1..=60_000).contains(&life_of(&redis, "t").await));
    store.remove(name).await.unwrap();
    assert_eq!(store.load(name).await, Ok(None));
    assert_eq!(store.save(name, kept(11, 5), false, MINUTE).await, Ok(false));
}

#[tokio::test]
async fn an_attempt_is_taken_once_by_all() {
    let redis = Redis::start().await;
    let ((one, _), (other, _)) = (replica(settings(&redis)).await, replica(settings(&redis)).await);
    assert_eq!(one.take(Name([1; 16]), MINUTE).await, Ok(true));
    assert_eq!(other.take(Name([1; 16]), MINUTE).await, Ok(false));
    assert_eq!(one.take(Name([1; 16]), MINUTE).await, Ok(false));
    assert_eq!(other.take(Name([2; 16]), MINUTE).await, Ok(true));
    assert!((1..=60_000).contains(&life_of(&redis, "a").await));
}

fn ending(name: u8) -> Ending {
    let now = Clock::System.now();
    Ending { name: Name([name; 16]), begun_before: now, until: now + MINUTE * 60, by: By::Backchannel }
}

/// LOGOUT: told by push; what push lost is found in the set; a replica that starts reads all there is.
#[tokio::test]
async fn endings_reach_every_replica() {
    let redis = Redis::start().await;
    let ((one, told), (_other, heard)) = (replica(settings(&redis)).await, replica(settings(&redis)).await);
    until("both listen", async || redis.say("PUBSUB NUMSUB sidegate:endings").await.list()[1] == Reply::Int(2)).await;
    one.announce(&[ending(1), ending(2)].map(|it| Ending { until: it.begun_before + MINUTE * 60, ..it }));
    let pushed = redis_endings(&redis).await;
    for line in &pushed {
        until("it is heard", async || heard.endings.lock().iter().any(|it| line.contains(&written(it)))).await;
    }
    assert_eq!(told.fate(Fate::Told), 2);

    // Written, and never published.
    let lost = ending(3);
    let line = format!("{}:backchannel:{}:{}", written(&lost), lost.begun_before.as_millis(), lost.until.as_millis());
    let now = Clock::System.now().as_millis().to_string();
    redis.say(&format!("ZADD sidegate:endings {now} {line}")).await;
    heard.hears(lost).await;

    let (_third, late) = replica(settings(&redis)).await;
    late.hears(lost).await;
    until("all are read", async || late.endings.lock().len() >= 3).await;
    let life = redis.say("PTTL sidegate:endings").await.int();
    assert!(life > 3_500_000 && life <= 3_600_000, "{life}");
}

fn written(ending: &Ending) -> String {
    base64_simd::URL_SAFE_NO_PAD.encode_to_string(ending.name.0)
}

/// The set, once it has two endings.
async fn redis_endings(redis: &Redis) -> Vec<String> {
    until("two are written", async || redis.say("ZCARD sidegate:endings").await.int() == 2).await;
    let lines = redis.say("ZRANGE sidegate:endings 0 -1").await.list();
    lines.iter().map(|line| String::from_utf8(line.text()).unwrap()).collect()
}

/// LOGOUT: a logout while Redis is away is kept, counted, and written when it is back.
#[tokio::test]
async fn endings_wait_for_a_redis_that_is_away() {
    let redis = Redis::start().await;
    let ((one, told), (_other, heard)) = (replica(settings(&redis)).await, replica(settings(&redis)).await);
    redis.stop();
    until("it is known", async || !*told.up.lock()).await;
    assert_eq!(one.take(Name([1; 16]), MINUTE).await, Err(Away));
    let kept = ending(1);
    one.announce(&[kept]);
    assert_eq!((told.fate(Fate::Kept), told.fate(Fate::Told)), (1, 0));
    redis.restart().await;
    heard.hears(kept).await;
    one.drain().await;
    assert_eq!(told.fate(Fate::Told), 1);
    assert_eq!(redis.say("ZCARD sidegate:endings").await.int(), 1);
}

/// What has to be remembered no longer goes, and the set goes with its last member.
#[tokio::test]
async fn endings_are_forgotten_in_time() {
    let redis = Redis::start().await;
    let (one, told) = replica(settings(&redis)).await;
    redis.say("ZADD sidegate:endings 1 AAAAAAAAAAAAAAAAAAAAAA:itself:1:2").await;
    one.announce(&[ending(1)]);
    one.drain().await;
    assert_eq!(redis.say("ZCARD sidegate:endings").await.int(), 1);
    one.announce(&[Ending { until: Timestamp::from_secs(1), ..ending(2) }]);
    one.drain().await;
    assert_eq!(redis.say("ZCARD sidegate:endings").await.int(), 1, "over before it could be told");
    assert_eq!(told.fate(Fate::Dropped), 0);
}

/// DOS-15, BCL-07: what anybody can send has a set of its own, with a bound, and pushes out nothing that is proven.
#[tokio::test]
async fn unproven_endings_push_out_only_their_like() {
    let redis = Redis::start().await;
    let ((one, _), (_other, heard)) = (replica(settings(&redis)).await, replica(settings(&redis)).await);
    let fill = "for n = 1, 20000 do redis.call('ZADD', KEYS[1], n, n .. ':frontchannel:1:99999999999999') end";
    redis.ask(&[b"EVAL", fill.as_bytes(), b"1", b"sidegate:endings:unproven"]).await;
    let (proven, unproven) = (ending(1), Ending { by: By::Frontchannel, ..ending(2) });
    one.announce(&[proven, unproven, ending(3)]);
    one.drain().await;
    assert_eq!(redis.say("ZCARD sidegate:endings").await.int(), 2);
    assert_eq!(redis.say("ZCARD sidegate:endings:unproven").await.int(), 20_000);
    heard.hears(unproven).await;
    let (_third, late) = replica(settings(&redis)).await;
    late.hears(proven).await;
    late.hears(unproven).await;
}

// -- Ways to reach it ----------------------------------------------------------------------------------------------

/// Works: a lock is taken and told apart, a channel is heard.
async fn works(settings: Settings) {
    let ((one, _), (other, heard)) = (replica(settings.clone()).await, replica(settings).await);
    // More than one slot of a cluster.
    for name in 1..20 {
        assert_eq!(one.lock(Handle([name; 16]), [1; 16], MINUTE).await, Ok(Rung::Absent));
        assert_eq!(other.lock(Handle([name; 16]), [2; 16], MINUTE).await, Ok(Rung::Locked));
    }
    let ending = ending(1);
    one.announce(&[ending]);
    heard.hears(ending).await;
}

#[tokio::test]
async fn by_tcp_and_unix_socket() {
    let redis = Redis::start().await;
    for url in [redis.url(), redis.unix_url(), format!("{}/3", redis.url())] {
        works(Settings { deployment: Deployment::Single(Address::parse(&url).unwrap()), ..settings(&redis) }).await;
    }
}

/// An ACL user who may do what docs/operations.md says, and nothing else.
#[tokio::test]
async fn with_the_rights_that_the_documentation_names() {
    let redis = Redis::start().await;
    let documented = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    let rule = documented.lines().find(|line| line.starts_with("ACL SETUSER sidegate ")).expect("the rule");
    assert_eq!(redis.say(rule).await, Reply::Text(b"OK".to_vec()));
    redis.say("ACL SETUSER default off").await;
    let url = redis.url().replace("redis://", "redis://sidegate:long-random-password@");
    works(Settings { deployment: Deployment::Single(Address::parse(&url).unwrap()), ..settings(&redis) }).await;
    let (username, password) =
        (Some("sidegate".to_owned()), Some(sidegate::secret::Secret::new("long-random-password")));
    works(Settings { username, password, ..settings(&redis) }).await;
}

fn openssl(dir: &Path, arguments: &str) {
    let mut command = Command::new("openssl");
    command.args(arguments.split(' ')).current_dir(dir).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().unwrap().success(), "openssl {arguments}");
}

/// A CA and a certificate of it for 127.0.0.1: `ca.crt`, `own.crt`, `own.key`.
fn certificates() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    openssl(dir.path(), &format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=test-ca"));
    let san = "-addext subjectAltName=IP:127.0.0.1";
    let signed = "-CA ca.crt -CAkey ca.key -addext basicConstraints=critical,CA:FALSE";
    openssl(dir.path(), &format!("req -x509 {key} -keyout own.key -out own.crt -subj /CN=redis {san} {signed}"));
    dir
}

#[tokio::test]
async fn by_tls_with_client_certificates() {
    let files = certificates();
    let at = |name: &str| files.path().join(name);
    let text = |name: &str| at(name).display().to_string();
    let (cert, key, ca) = (text("own.crt"), text("own.key"), text("ca.crt"));
    let arguments = ["--tls-port", "PORT", "--port", "0", "--tls-cert-file", &cert, "--tls-key-file", &key];
    let redis =
        Redis::start_with(&[&arguments[..], &["--tls-ca-cert-file", &ca, "--tls-auth-clients", "yes"]].concat()).await;
    let url = format!("rediss://127.0.0.1:{}", redis.port);
    let base = Settings { deployment: Deployment::Single(Address::parse(&url).unwrap()), ..settings(&redis) };
    let client = Some((at("own.crt"), at("own.key")));
    works(Settings { tls: TlsFiles { ca_file: Some(at("ca.crt")), client: client.clone() }, ..base.clone() }).await;

    // Not without the trust anchor, nor without the certificate.
    for tls in [TlsFiles { ca_file: None, client }, TlsFiles { ca_file: Some(at("ca.crt")), client: None }] {
        let told = Arc::new(Told::default());
        let store = Store::new(Settings { tls, ..base.clone() }, Clock::System, Arc::clone(&told) as _);
        tokio::spawn(Arc::clone(&store).run(Arc::clone(&told) as _));
        assert_eq!(store.take(Name([1; 16]), MINUTE).await, Err(Away));
        assert!(!*told.up.lock());
    }
}

#[tokio::test]
async fn behind_a_sentinel_after_a_fail_over_too() {
    let master = Redis::start().await;
    let follower = Redis::start_with(&["--replicaof", "127.0.0.1", &master.port.to_string()]).await;
    until("it follows", async || {
        String::from_utf8(follower.say("INFO replication").await.text()).unwrap().contains("master_link_status:up")
    })
    .await;
    let sentinel = master.sentinel().await;
    until("the sentinel knows the follower", async || sentinel.say("SENTINEL replicas main").await.list().len() == 1)
        .await;
    let sentinels = vec![Address::parse(&sentinel.url()).unwrap()];
    let deployment = Deployment::Sentinel { sentinels, master: "main".to_owned() };
    let settings = Settings { deployment, ..settings(&master) };
    works(settings.clone()).await;
    let (store, told) = replica(settings).await;
    drop(told);
    master.stop();
    // However short the time without a master was: the next lock is taken at the new one.
    let handle = Handle([99; 16]);
    until("the new master is found", async || store.lock(handle, [1; 16], MINUTE).await == Ok(Rung::Absent)).await;
    assert_eq!(follower.say("EXISTS sidegate:h:Y2NjY2NjY2NjY2NjY2NjYw").await.int(), 1);
}

#[tokio::test]
async fn in_a_cluster() {
    let nodes = cluster().await;
    let urls = nodes.iter().map(|node| Address::parse(&node.url()).unwrap()).collect();
    works(Settings { deployment: Deployment::Cluster(urls), ..settings(&nodes[0]) }).await;
    for node in &nodes {
        assert!(!node.keys().await.is_empty(), "every node has its share");
    }
}

// -- Gateways ------------------------------------------------------------------------------------------------------

/// The configuration of one of several replicas: another address, everything else the same.
fn beside(table: &Table) -> Table {
    let mut other = table.clone();
    set(&mut other, "server.listen", &format!("\"127.0.0.1:{}\"", free_port()));
    set(&mut other, "admin.listen", &format!("\"127.0.0.1:{}\"", free_port()));
    other
}

fn shared(provider: &ProviderDouble, upstream: &Upstream, redis: &Redis, more: &[(&str, &str)]) -> Table {
    let mut table = config(provider, upstream);
    set(&mut table, "redis.url", &format!("{:?}", redis.unix_url()));
    // Patient, for machines of which nobody knows how slow they are.
    set(&mut table, "redis.timeout", "\"5s\"");
    for (key, value) in more {
        set(&mut table, key, value);
    }
    provider.register(table["server"]["public_url"].as_str().unwrap());
    table
}

/// Replicas that share a Redis, before a provider that ends the whole session when a refresh token comes twice.
struct Replicas {
    provider: ProviderDouble,
    _upstream: Upstream,
    redis: Redis,
    gateways: Vec<Inside>,
}

impl Replicas {
    async fn start(count: usize, more: &[(&str, &str)]) -> Self {
        let (provider, upstream) = (ProviderDouble::start().await, Upstream::start().await);
        let redis = Redis::start().await;
        provider.set(|s| s.rotation = Rotation::Family);
        let table = shared(&provider, &upstream, &redis, more);
        let mut gateways = vec![Inside::run(table.clone()).await];
        for _ in 1..count {
            gateways.push(Inside::run(beside(&table)).await);
        }
        let replicas = Self { provider, _upstream: upstream, redis, gateways };
        replicas.are_up().await;
        replicas
    }

    async fn are_up(&self) {
        for gateway in &self.gateways {
            until("Redis is up", async || gateway.metric("sidegate_redis_up", &[]) == 1.0).await;
        }
    }

    async fn are_alone(&self) {
        for gateway in &self.gateways {
            until("Redis is away", async || gateway.metric("sidegate_redis_up", &[]) == 0.0).await;
        }
    }

    /// An hour later for all: the access tokens are over.
    fn expire(&self) {
        self.provider.advance(HOUR.try_into().unwrap());
        for gateway in &self.gateways {
            gateway.catch_up(&self.provider);
        }
    }

    /// The browser as it comes to that replica.
    fn at(&self, browser: &Browser, index: usize) -> Browser {
        browser.at(self.gateways[index % self.gateways.len()].addr)
    }

    fn is_live(&self, answer: &Response) -> bool {
        answer.status == 200 && answer.json()["token"].as_str().is_some_and(|token| self.provider.is_active(token))
    }

    fn spent(&self) -> (usize, u32) {
        (self.provider.refreshes(), self.provider.reuse_alarms())
    }
}

/// RFR, REDIS: ten requests a replica at every expiry, and one token request.
#[tokio::test]
async fn three_replicas_spend_a_token_once() {
    let replicas = Replicas::start(3, &[]).await;
    let browser = replicas.gateways[0].signed_in().await;
    for round in 1..=4 {
        replicas.expire();
        let hold = replicas.provider.hold_token_answers();
        let mut flights = Vec::new();
        for index in 0..30 {
            flights.push(replicas.at(&browser, index).launch(&Ask::fetch("/api/x")).await);
        }
        hold.wait_for(1).await;
        hold.release();
        for flight in flights {
            let answer = flight.answer().await;
            assert!(replicas.is_live(&answer), "{answer:?}");
            browser.land(&answer);
        }
        assert_eq!(replicas.spent(), (round, 0));
    }
}

/// RFR-02, REDIS: tokens of routes' own and the session's, at every replica at once: each refresh token comes once.
#[tokio::test]
async fn replicas_spend_a_token_once_for_routes_of_their_own_too() {
    let replicas = Replicas::start(3, &[]).await;
    let mut table = replicas.gateways[0].config.clone();
    let route = |name: &str| {
        let upstream = replicas._upstream.url();
        let text = format!("path = '/api/{name}/'\nupstream = '{upstream}'\ntoken = {{ audience = '{name}' }}");
        toml::Value::Table(text.parse().unwrap())
    };
    table["route"].as_array_mut().unwrap().extend(["orders", "other"].map(route));
    let Replicas { provider, _upstream, redis, .. } = replicas;
    let mut gateways = Vec::new();
    for _ in 0..3 {
        table = beside(&table);
        gateways.push(Inside::run(table.clone()).await);
    }
    let replicas = Replicas { provider, _upstream, redis, gateways };
    replicas.are_up().await;
    let browser = replicas.at(&replicas.gateways[0].signed_in().await, 0);
    for round in 0..3 {
        replicas.expire();
        let mut flights = Vec::new();
        for index in 0..27 {
            let path = ["/api/x", "/api/orders/x", "/api/other/x"][index / 3 % 3];
            flights.push(replicas.at(&browser, index).launch(&Ask::fetch(path)).await);
        }
        for flight in flights {
            let answer = flight.answer().await;
            assert!(replicas.is_live(&answer), "round {round}: {answer:?}");
            browser.land(&answer);
        }
        // One for the session, and of each other token one for each replica.
        assert_eq!(replicas.spent(), ((round + 1) * 7, 0));
    }
}

/// RFR-02: the answer that carried the new cookie was lost; the next request goes to another replica.
#[tokio::test]
async fn another_replica_heals_a_lost_response() {
    let replicas = Replicas::start(2, &[]).await;
    let browser = replicas.gateways[0].signed_in().await;
    replicas.expire();
    let lost = browser.fork().send(Ask::fetch("/api/x")).await;
    assert!(replicas.is_live(&lost));
    let answer = replicas.at(&browser, 1).fetch("/api/x").await;
    assert!(replicas.is_live(&answer), "{answer:?}");
    assert_eq!(answer.json()["token"], lost.json()["token"]);
    assert!(answer.set_cookie("sidegate").is_some());
    assert_eq!(replicas.spent(), (1, 0));
}

/// RFR: a cookie from three generations ago, at a replica that saw none of them.
#[tokio::test]
async fn a_stale_cookie_is_followed_through_redis() {
    let replicas = Replicas::start(2, &[]).await;
    let browser = replicas.gateways[0].signed_in().await;
    let ahead = browser.fork();
    for _ in 0..3 {
        replicas.expire();
        // Its cookies are those of another tab whose answers the first one never sees.
        assert!(replicas.is_live(&ahead.fetch("/api/x").await));
    }
    let answer = replicas.at(&browser, 1).fetch("/api/x").await;
    assert!(replicas.is_live(&answer), "{answer:?}");
    assert_eq!(replicas.spent(), (3, 0));
}

/// RFR-03: delivered: the result has to live for the grace time only.
#[tokio::test]
async fn a_delivered_result_is_cut_to_the_grace_time() {
    let replicas = Replicas::start(1, &[("refresh.grace", "\"30s\"")]).await;
    let browser = replicas.gateways[0].signed_in().await;
    replicas.expire();
    assert!(replicas.is_live(&browser.fetch("/api/x").await));
    assert!(life_of(&replicas.redis, "h").await > 60_000, "nobody has shown the new cookie");
    assert!(replicas.is_live(&browser.fetch("/api/x").await));
    until("it is cut", async || life_of(&replicas.redis, "h").await <= 30_000).await;
}

/// LOGOUT: a copy of the cookie is worthless at every replica after a logout at one, and after one that happened while
/// Redis was away as soon as it is back.
#[tokio::test]
async fn a_logout_is_known_to_every_replica() {
    let replicas = Replicas::start(2, &[]).await;
    for away in [false, true] {
        let browser = replicas.gateways[0].signed_in().await;
        let copy = replicas.at(&browser.fork(), 1);
        assert_eq!(copy.fetch("/api/x").await.status, 200);
        if away {
            replicas.redis.stop();
            replicas.are_alone().await;
        }
        assert_eq!(browser.post("/auth/logout").await.status, 200);
        if away {
            assert_eq!(copy.fetch("/api/x").await.status, 200, "nobody has told it yet");
            replicas.redis.restart().await;
        }
        until("the other replica knows", async || copy.fork().send(Ask::fetch("/api/x")).await.status == 401).await;
    }
    let kept = replicas.gateways[0].metric("sidegate_redis_endings_total", &[("outcome", "kept")]);
    assert!(kept >= 1.0);
}

/// BCL-06: a logout token that one replica got ends the session at the other.
#[tokio::test]
async fn bcl_06_a_logout_token_is_heard_by_every_replica() {
    let replicas = Replicas::start(2, &[("logout.backchannel", "true")]).await;
    let browser = replicas.gateways[0].signed_in().await;
    let sid = replicas.provider.last_session().sid;
    let other = replicas.at(&browser, 1);
    assert_eq!(other.fetch("/api/x").await.status, 200);
    let token = replicas.provider.logout_token(None, Some(&sid), None);
    let ask = Ask::fetch("/auth/logout/backchannel").form(&[("logout_token", &token)]);
    assert_eq!(replicas.gateways[0].browser().send(ask).await.status, 200);
    until("the other replica knows", async || other.fork().fetch("/api/x").await.status == 401).await;
}

/// K8S-11: no step of a session needs the replica of the step before.
#[tokio::test]
async fn k8s_11_every_step_at_another_replica() {
    let replicas = Replicas::start(3, &[]).await;
    let browser = replicas.gateways[0].browser();
    let at = |index| replicas.at(&browser, index);
    let start = at(0).start_login("/").await;
    let back = browser.send(Ask::navigate(start.location().unwrap()).stay()).await;
    assert_eq!(at(1).send(Ask::navigate(back.location().unwrap()).stay()).await.status, 302);
    for round in 1..=3 {
        replicas.expire();
        for step in 1..=3 {
            let answer = at(round + step).fetch("/api/x").await;
            assert!(replicas.is_live(&answer), "{answer:?}");
        }
        assert_eq!(replicas.spent(), (round, 0));
    }
    replicas.expire();
    assert_eq!(at(1).post("/auth/refresh").await.status, 200);
    let copy = browser.fork();
    assert_eq!(at(2).post("/auth/logout").await.status, 200);
    let first = replicas.at(&copy, 0);
    until("the first replica knows", async || first.fork().fetch("/api/x").await.status == 401).await;
    assert_eq!(replicas.spent().1, 0);
}

/// OPS: Redis is stopped: each replica goes on by itself, nobody gets an error, and the cookie stays.
#[tokio::test]
async fn goes_on_without_redis_and_takes_it_up_again() {
    let replicas = Replicas::start(2, &[]).await;
    let browser = replicas.gateways[0].signed_in().await;
    replicas.redis.stop();
    replicas.are_alone().await;
    replicas.expire();
    assert!(replicas.is_live(&browser.fetch("/api/x").await));
    assert_eq!(replicas.spent(), (1, 0));
    replicas.redis.restart().await;
    replicas.are_up().await;
    replicas.expire();
    let lost = browser.fork().send(Ask::fetch("/api/x")).await;
    assert!(replicas.is_live(&lost));
    assert!(replicas.is_live(&replicas.at(&browser, 1).fetch("/api/x").await));
    assert_eq!(replicas.spent(), (2, 0));
}

/// OPS: with `on_error = "wait"` a token that is over waits for Redis: 503, and the cookie untouched.
#[tokio::test]
async fn waits_for_a_paused_redis_when_told_to() {
    let replicas = Replicas::start(2, &[("redis.on_error", "\"wait\""), ("redis.timeout", "\"100ms\"")]).await;
    let browser = replicas.gateways[0].signed_in().await;
    replicas.redis.pause();
    replicas.are_alone().await;
    replicas.expire();
    for index in 0..2 {
        let answer = replicas.at(&browser, index).fetch("/api/x").await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "provider_unavailable"), "{answer:?}");
        assert!(answer.header("retry-after").is_some());
        assert!(answer.set_cookies().is_empty(), "{answer:?}");
    }
    assert_eq!(replicas.spent(), (0, 0));
    replicas.redis.go_on();
    replicas.are_up().await;
    // The failure is believed for a second of the gateway's own clock.
    replicas.provider.advance(2);
    for gateway in &replicas.gateways {
        gateway.catch_up(&replicas.provider);
    }
    for index in 0..2 {
        let answer = replicas.at(&browser, index).fork().send(Ask::fetch("/api/x")).await;
        assert!(replicas.is_live(&answer), "{answer:?}");
    }
    assert_eq!(replicas.spent(), (1, 0));
}

/// OPS: starts while Redis is down, serves, and finds it later without a restart.
#[tokio::test]
async fn starts_without_redis() {
    let (provider, upstream, redis) = (ProviderDouble::start().await, Upstream::start().await, Redis::start().await);
    provider.set(|s| s.rotation = Rotation::Family);
    redis.stop();
    let gateway = Inside::run(shared(&provider, &upstream, &redis, &[])).await;
    let browser = gateway.signed_in().await;
    gateway.advance(&provider, HOUR);
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    assert_eq!(gateway.metric("sidegate_redis_up", &[]), 0.0);
    redis.restart().await;
    until("it is found", async || gateway.metric("sidegate_redis_up", &[]) == 1.0).await;
    gateway.advance(&provider, HOUR);
    assert_eq!(browser.fetch("/api/x").await.status, 200);
    assert_eq!(life_of(&redis, "h").await.signum(), 1);
    assert_eq!((provider.refreshes(), provider.reuse_alarms()), (2, 0));
}

/// OPS: the replica that holds the lock is killed before the provider acted; another one takes over when the lock ends.
#[tokio::test]
async fn a_holder_that_is_killed_is_succeeded() {
    let (provider, upstream, redis) = (ProviderDouble::start().await, Upstream::start().await, Redis::start().await);
    provider.set(|s| s.rotation = Rotation::Family);
    let table = shared(&provider, &upstream, &redis, &[("refresh.timeout", "\"1s\"")]);
    let (one, other) = (Gateway::run(&table), Gateway::run(&beside(&table)));
    for gateway in [&one, &other] {
        gateway.wait_until_ready().await;
        gateway.wait_for_log("redis", 1).await;
    }
    let browser = one.signed_in().await;
    provider.set(|s| s.fail_refresh_times(Outage::Stall, 1));
    let flight = browser.launch(&Ask::fetch("/auth/refresh").method("POST")).await;
    provider.wait_for_calls(Endpoint::Token, 2).await;
    one.signal(rustix::process::Signal::KILL);
    one.wait_for_exit().await;
    flight.abort();
    // The lock outlives the try of its holder, who cannot be known to be dead.
    let flight = browser.at(other.addr).launch(&Ask::fetch("/auth/refresh").method("POST")).await;
    let answer = flight.answer().await;
    assert_eq!((answer.status, provider.reuse_alarms()), (200, 0), "{answer:?}");
    assert_eq!(answer.json()["authenticated"], true);
}

/// A code is sent once, at whichever replica its callback arrives (RFC9700-03).
#[tokio::test]
async fn a_callback_is_finished_once_among_replicas() {
    let replicas = Replicas::start(2, &[]).await;
    let browser = replicas.gateways[0].browser();
    let start = browser.start_login("/").await;
    let provider = start.location().unwrap().to_owned();
    let back = browser.send(Ask::navigate(&provider).stay()).await;
    let callback = back.location().unwrap().to_owned();
    let twin = browser.fork();
    assert_eq!(browser.send(Ask::navigate(&callback).stay()).await.status, 302);
    let again = replicas.at(&twin, 1).send(Ask::navigate(&callback).stay()).await;
    assert!(again.set_cookie("sidegate").is_none(), "{again:?}");
    assert_eq!(replicas.provider.code_exchanges(), 1);
}

/// SEC: who has the Redis has nothing: no token, subject, e-mail, session id or key in any encoding. Every key has the
/// prefix and ends by itself.
#[tokio::test]
async fn a_dump_of_redis_tells_nothing() {
    let replicas = Replicas::start(2, &[]).await;
    let browser = replicas.gateways[0].signed_in().await;
    for index in 0..3 {
        replicas.expire();
        assert!(replicas.is_live(&replicas.at(&browser, index).fetch("/api/x").await));
    }
    let mut canaries = replicas.provider.canaries();
    canaries.add("cookie key", replicas.gateways[0].config["session"]["keys"][0].as_str().unwrap());
    for answer in browser.history() {
        for cookie in answer.via.iter().chain([&answer]).flat_map(Response::set_cookies) {
            canaries.add("cookie", &cookie.value);
        }
    }
    for (label, value) in [("e-mail", "alice@users.example"), ("name", "Alice Example"), ("sub", "alice-4711")] {
        canaries.add(label, value);
    }
    let dump = replicas.redis.dump().await;
    assert!(dump.len() > 1000, "there is something to look at");
    assert!(canaries.len() > 10);
    canaries.assert_absent("Redis", &dump);
    let keys = replicas.redis.keys().await;
    assert!(keys.iter().any(|key| key.starts_with("sidegate:h:")), "{keys:?}");
    for key in keys {
        assert!(key.starts_with(PREFIX), "{key}");
        let life = replicas.redis.say(&format!("PTTL {key}")).await.int();
        // -2: it ended while we looked.
        assert!(life > 0 || life == -2, "{key} stays for ever");
    }
}

/// A refresh that is still under way is finished and handed over before the process ends.
#[tokio::test]
async fn a_shutdown_waits_for_the_refresh_and_hands_it_over() {
    let (provider, upstream, redis) = (ProviderDouble::start().await, Upstream::start().await, Redis::start().await);
    provider.set(|s| s.rotation = Rotation::Family);
    let table = shared(&provider, &upstream, &redis, &[("server.shutdown_delay", "\"0s\"")]);
    let (one, other) = (Gateway::run(&table), Gateway::run(&beside(&table)));
    for gateway in [&one, &other] {
        gateway.wait_until_ready().await;
        gateway.wait_for_log("redis", 1).await;
    }
    let browser = one.signed_in().await;
    let hold = provider.hold(Endpoint::Token, Grants::Refresh, Moment::After);
    let flight = browser.launch(&Ask::fetch("/auth/refresh").method("POST")).await;
    hold.wait_for(1).await;
    flight.abort();
    one.signal(rustix::process::Signal::TERM);
    one.wait_for_log("shutdown", 2).await;
    hold.release();
    assert!(one.wait_for_exit().await.success());
    let answer = browser.at(other.addr).send(Ask::fetch("/auth/refresh").method("POST")).await;
    assert_eq!((answer.status, provider.refreshes(), provider.reuse_alarms()), (200, 1, 0), "{answer:?}");
}
