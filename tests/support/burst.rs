//! Many users whose tokens end all the time, before real processes: how many of them have to log in again, how many
//! requests fail, and how often the provider is asked.
//!
//! Each user has a browser. Whenever its token is over it sends a burst of requests at once, each to a random replica.
//! Answers reach the jar in the order of their arrival; some are lost, some bursts are broken off by a navigation.
//! Nothing here depends on how fast the machine is: a burst begins when the token is over, however long that takes, and
//! what the provider was asked is judged by what was presented to it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use toml::Table;
use url::Url;

use super::client::{Ask, Browser, Jar};
use super::gateway::{Gateway, config, free_port, set};
use super::provider::switches::{ExpiresIn, Outage, Rotation};
use super::provider::{Call, ProviderDouble};
use super::redis::Redis;
use super::text::{draw, get};
use super::upstream::{Script, Upstream};

/// Requests of one burst.
const BURST: usize = 10;
/// What the access tokens live longer than the provider says: a slow machine is no expired token.
const REAL_LIFE_MORE: i64 = 60;
/// No token is renewed that is younger than this, whatever the provider says of its life.
const SOONEST: Duration = Duration::from_secs(1);
/// How often a browser tries again what was refused for now, or broke.
const TRIES: usize = 40;

/// What the provider does with a refresh token that comes twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Ends the whole session.
    Family,
    /// Refuses it.
    Token,
    /// Takes it for 30 s, then ends the whole session.
    Leeway,
    /// Refresh tokens are not rotated.
    None,
}

/// How the provider is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Good,
    /// Every tenth refresh is answered 3 s late; the token is spent at once.
    Stalls,
    /// Every fifth refresh gets 503.
    Errors,
    /// Every fifth refresh gets 429 with `Retry-After: 1`.
    RateLimit,
}

/// What the processes share, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    Nothing,
    /// A Redis that is there all the time.
    Redis,
    /// It is never there.
    Absent,
    /// Killed after a third of the bursts.
    Killed,
    /// Killed after a third, and started again, empty, after two thirds.
    Restarted,
    /// Stopped by SIGSTOP from a third to two thirds: connections stay open, and nothing answers.
    Paused,
    /// Stopped by SIGSTOP for a moment again and again: it lives, but misses the time that a command has by default.
    Slow,
}

/// What is to be tried.
#[derive(Clone, Debug)]
pub struct Plan {
    pub replicas: usize,
    pub share: Share,
    /// `redis.on_error`: what is over waits for Redis, instead of being refreshed without it.
    pub waits_for_redis: bool,
    pub reuse: Reuse,
    pub health: Health,
    /// Processes are killed without warning, one after the other, and started again.
    pub kills: bool,
    /// What the provider says of its access tokens, in seconds.
    pub life: u32,
    pub users: usize,
    /// Bursts of each user.
    pub rounds: usize,
}

impl Plan {
    /// A good provider and a single process.
    pub fn new(reuse: Reuse) -> Self {
        Self {
            replicas: 1,
            share: Share::Nothing,
            waits_for_redis: false,
            reuse,
            health: Health::Good,
            kills: false,
            life: 2,
            users: 10,
            rounds: 3,
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bursts on a token that was over.
    pub bursts: usize,
    /// Users who had to log in again.
    pub logins: usize,
    /// Requests whose answer a script waited for.
    pub requests: usize,
    /// Of these, without the answer of the application, with a live token, in the end.
    pub failed: usize,
    /// Of these, told to come back later at least once.
    pub waited: usize,
    /// Access tokens that came to their end and were renewed, as the provider saw it.
    pub expiries: usize,
    /// Token requests that were worked on.
    pub spent: usize,
    /// Token requests that the provider turned away unseen: 5xx, 429.
    pub refused: usize,
    /// Spent tokens that came again outside of the leeway.
    pub alarms: usize,
    /// Why requests failed, and what of the token requests was not as it should be; how often.
    pub remarks: BTreeMap<String, usize>,
    /// Bytes of the names and values in Redis at the end, and the secrets that were found in them.
    pub dump: usize,
    pub leaks: Vec<String>,
}

impl Tally {
    /// Per thousand expiries.
    pub fn logins_per_1000(&self) -> f64 {
        1000.0 * self.logins as f64 / self.bursts.max(1) as f64
    }

    /// Per thousand requests.
    pub fn failed_per_1000(&self) -> f64 {
        1000.0 * self.failed as f64 / self.requests.max(1) as f64
    }

    /// Per thousand requests.
    pub fn waited_per_1000(&self) -> f64 {
        1000.0 * self.waited as f64 / self.requests.max(1) as f64
    }

    /// Token requests per expiry.
    pub fn spent_per_expiry(&self) -> f64 {
        self.spent as f64 / self.expiries.max(1) as f64
    }
}

/// Runs a plan to its end.
pub async fn run(plan: Plan) -> Tally {
    let world = World::start(plan).await;
    let killer = tokio::spawn(Arc::clone(&world).kill_processes());
    let breaker = tokio::spawn(Arc::clone(&world).break_redis());
    let mut users = JoinSet::new();
    for _ in 0..world.plan.users {
        users.spawn(Arc::clone(&world).live());
    }
    let mut tally = Tally::default();
    while let Some(one) = users.join_next().await {
        let one = one.expect("a user");
        tally.bursts += one.bursts;
        tally.logins += one.logins;
        tally.requests += one.requests;
        tally.failed += one.failed;
        tally.waited += one.waited;
        for (remark, times) in one.remarks {
            *tally.remarks.entry(remark).or_default() += times;
        }
    }
    killer.await.expect("the killer of processes");
    breaker.await.expect("the breaker of Redis");
    world.ask_the_provider(&mut tally);
    world.look_into_redis(&mut tally).await;
    tally
}

/// Everything that runs.
#[derive(Debug)]
struct World {
    plan: Plan,
    provider: Arc<ProviderDouble>,
    _upstream: Upstream,
    redis: Option<Redis>,
    replicas: Vec<Replica>,
    home: Url,
    /// Bursts that have begun.
    begun: watch::Sender<usize>,
}

#[derive(Debug)]
struct Replica {
    config: Table,
    addr: SocketAddr,
    process: tokio::sync::Mutex<Gateway>,
}

impl World {
    async fn start(plan: Plan) -> Arc<Self> {
        let (provider, upstream) = (Arc::new(ProviderDouble::start().await), Upstream::start().await);
        provider.set(|s| {
            (s.rotation, s.leeway) = match plan.reuse {
                Reuse::Family => (Rotation::Family, Duration::ZERO),
                Reuse::Token => (Rotation::Token, Duration::ZERO),
                Reuse::Leeway => (Rotation::Family, Duration::from_secs(30)),
                Reuse::None => (Rotation::None, Duration::ZERO),
            };
            s.access_lifetime = i64::from(plan.life) + REAL_LIFE_MORE;
            s.expires_in = ExpiresIn::Json(plan.life.to_string());
            s.refresh_latency = 20..120;
            s.refresh_mishaps = match plan.health {
                Health::Good => Vec::new(),
                Health::Stalls => vec![(10, Outage::Late(Duration::from_secs(3)))],
                Health::Errors => vec![(20, Outage::Status(503))],
                Health::RateLimit => vec![(20, Outage::TooMany(Some("1".to_owned())))],
            };
        });
        let resource_server = Arc::clone(&provider);
        upstream.otherwise(Script::by(move |request| {
            if request.bearer().is_some_and(|token| resource_server.is_active(token)) {
                Script::SlowBody { pieces: 1, pause: Duration::from_millis(draw(1..60)) }
            } else {
                Script::invalid_token()
            }
        }));

        let mut first = config(&provider, &upstream);
        set(&mut first, "log.access", "false");
        // So that a slow machine is no provider that does not answer. A lock outlives its dead holder by the timeout.
        let timeout = if plan.kills { "\"4s\"" } else { "\"20s\"" };
        set(&mut first, "refresh.timeout", timeout);
        set(&mut first, "refresh.wait", "\"25s\"");
        set(&mut first, "server.single_replica", &(plan.replicas == 1).to_string());
        let redis = if plan.share == Share::Nothing { None } else { Some(Redis::start().await) };
        if let Some(redis) = &redis {
            set(&mut first, "redis.url", &format!("{:?}", redis.unix_url()));
            // As above; but where Redis is to be away, that has to be noticed.
            match plan.share {
                Share::Redis => set(&mut first, "redis.timeout", "\"5s\""),
                Share::Slow => {}
                _ => set(&mut first, "redis.timeout", "\"300ms\""),
            }
            set(&mut first, "redis.on_error", if plan.waits_for_redis { "\"wait\"" } else { "\"local\"" });
            if plan.share == Share::Absent {
                redis.stop();
            }
        }
        let public_url = first["server"]["public_url"].as_str().expect("a URL").to_owned();
        provider.register(&public_url);
        let mut replicas = Vec::new();
        for number in 0..plan.replicas {
            let mut config = first.clone();
            if number > 0 {
                for section in ["server", "admin"] {
                    set(&mut config, &format!("{section}.listen"), &format!("\"127.0.0.1:{}\"", free_port()));
                }
            }
            let process = Gateway::run(&config);
            replicas.push(Replica { addr: process.addr, config, process: process.into() });
        }
        for replica in &replicas {
            replica.process.lock().await.wait_until_ready().await;
            if !matches!(plan.share, Share::Nothing | Share::Absent) {
                replica.process.lock().await.reaches("sidegate_redis_up", 1.0).await;
            }
        }
        let home = Url::parse(&public_url).expect("a URL");
        Arc::new(Self { plan, provider, _upstream: upstream, redis, replicas, home, begun: watch::Sender::new(0) })
    }

    fn somewhere(&self) -> SocketAddr {
        self.replicas[usize::try_from(draw(0..self.replicas.len() as u64)).expect("small")].addr
    }

    /// Waits until so many hundredths of all bursts have begun.
    async fn progress(&self, percent: usize) {
        let wanted = self.plan.users * self.plan.rounds * percent / 100;
        let _ = self.begun.subscribe().wait_for(|begun| *begun >= wanted).await;
    }

    /// From one to the next: killed, and started again at once.
    async fn kill_processes(self: Arc<Self>) {
        let moments: &[usize] = if self.plan.kills { &[20, 40, 60, 80] } else { &[] };
        for (moment, replica) in moments.iter().zip(self.replicas.iter().cycle()) {
            self.progress(*moment).await;
            // In the middle of the burst that has just begun.
            sleep(Duration::from_millis(draw(0..100))).await;
            let mut process = replica.process.lock().await;
            process.signal(rustix::process::Signal::KILL);
            process.wait_for_exit().await;
            *process = Gateway::run(&replica.config);
            process.wait_until_ready().await;
        }
    }

    /// What the plan has for Redis.
    async fn break_redis(self: Arc<Self>) {
        let Some(redis) = &self.redis else { return };
        if self.plan.share == Share::Slow {
            while *self.begun.borrow() < self.plan.users * self.plan.rounds {
                redis.pause();
                sleep(Duration::from_millis(draw(100..400))).await;
                redis.go_on();
                sleep(Duration::from_millis(draw(100..1000))).await;
            }
        }
        if matches!(self.plan.share, Share::Killed | Share::Restarted | Share::Paused) {
            self.progress(33).await;
            if self.plan.share == Share::Paused { redis.pause() } else { redis.stop() }
        }
        if matches!(self.plan.share, Share::Restarted | Share::Paused) {
            // Where all wait for Redis, nothing goes forward before it is back.
            let patience = if self.plan.waits_for_redis { 4 } else { 600 };
            let _ = tokio::time::timeout(Duration::from_secs(patience), self.progress(66)).await;
            if self.plan.share == Share::Paused { redis.go_on() } else { redis.restart().await }
        }
    }

    /// Whoever has the Redis has nothing: none of the secrets and names stands there, in whatever way written.
    async fn look_into_redis(&self, tally: &mut Tally) {
        let there = matches!(self.plan.share, Share::Redis | Share::Restarted | Share::Paused | Share::Slow);
        let Some(redis) = self.redis.as_ref().filter(|_| there) else { return };
        let dump = redis.dump().await;
        let mut canaries = self.provider.canaries().few(200);
        let (sub, name, email) = {
            let switches = self.provider.switches.lock();
            (switches.sub.clone(), switches.name.clone(), switches.email.clone())
        };
        for (label, value) in [("sub", &sub), ("name", &name), ("e-mail", &email)] {
            canaries.add(label, value);
        }
        for session in self.provider.sessions().iter().take(20) {
            canaries.add("sid", &session.sid);
        }
        tally.dump = dump.len();
        tally.leaks = canaries.scan("Redis", &dump).into_iter().map(|hit| format!("{hit:?}")).collect();
    }

    /// One user.
    async fn live(self: Arc<Self>) -> Tally {
        let life = Duration::from_secs(self.plan.life.into());
        let mut tally = Tally::default();
        sleep(Duration::from_millis(draw(0..1000))).await;
        let browser = Browser::new(self.home.as_str());
        self.log_in(&browser).await;
        sleep(life).await;
        for _ in 0..self.plan.rounds {
            sleep(Duration::from_millis(draw(50..600))).await;
            self.begun.send_modify(|begun| *begun += 1);
            tally.bursts += 1;
            let Some(fates) = self.burst(&browser).await else {
                // Broken off: the user comes back at once or a little later, with whatever cookie there is by then.
                sleep(Duration::from_millis(draw(0..3000))).await;
                continue;
            };
            for fate in &fates {
                tally.requests += 1;
                tally.waited += usize::from(fate.waited);
                if let End::SignedOut | End::Failed(_) = &fate.end {
                    tally.failed += 1;
                    *tally.remarks.entry(format!("{:?}", fate.end)).or_default() += 1;
                }
            }
            // Alone and with all cookies in place: what is refused now is over.
            if fates.iter().any(|fate| fate.end == End::SignedOut)
                && self.request(&browser, 1, false).await.end == End::SignedOut
            {
                tally.logins += 1;
                browser.set_jar(Jar::default());
                self.log_in(&browser).await;
            }
            sleep(life).await;
        }
        tally
    }

    async fn log_in(&self, browser: &Browser) {
        for _ in 0..TRIES {
            let page = browser.at(self.somewhere()).login("/").await;
            if page.status == 200 || page.status == 401 {
                // The upstream's start page has no token and says 401; that we arrived there is enough.
                return;
            }
            sleep(Duration::from_millis(200)).await; // and presses again
        }
        panic!("nobody can log in");
    }

    /// All at once; none when it was broken off.
    async fn burst(self: &Arc<Self>, browser: &Browser) -> Option<Vec<Fate>> {
        let broken_off = (draw(0..100) < 5).then(|| Duration::from_millis(draw(0..300)));
        // Offline at the wrong moment: nothing of it arrives.
        let offline = draw(0..100) < 3;
        let mut requests = JoinSet::new();
        for number in 0..BURST {
            let (world, tab) = (Arc::clone(self), browser.clone());
            let lost = offline || draw(0..100) < 2;
            requests.spawn(async move { world.request(&tab, number, lost).await });
        }
        match broken_off {
            // Dropping them closes their connections.
            Some(after) => tokio::time::timeout(after, requests.join_all()).await.ok(),
            None => Some(requests.join_all().await),
        }
    }

    /// One request of a script, as a browser and a well-written app handle it.
    async fn request(&self, tab: &Browser, number: usize, lost: bool) -> Fate {
        let ask = match number {
            0 => Ask::fetch("/api/save").body("application/json", "{}"),
            _ => Ask::fetch("/api/load"),
        };
        let mut fate = Fate { end: End::Failed("no end".to_owned()), waited: false };
        let mut hops = 0;
        for _ in 0..TRIES {
            sleep(Duration::from_millis(draw(0..20))).await;
            let response = match tab.at(self.somewhere()).try_launch(&ask).await {
                Ok(flight) => flight.answer().await,
                Err(failed) => *failed,
            };
            if response.status == 0 || (response.status == 200 && !response.complete && self.plan.kills) {
                // Killed under us, or not yet up again: a load balancer or the script asks another one.
                if !self.plan.kills {
                    return Fate { end: End::Failed(response.error.unwrap_or_default()), ..fate };
                }
                sleep(Duration::from_millis(100)).await; // as such scripts do
                continue;
            }
            if lost {
                return Fate { end: End::Lost, ..fate };
            }
            sleep(Duration::from_millis(draw(0..30))).await;
            tab.with_jar(|jar| response.header_all("set-cookie").iter().for_each(|line| jar.store(&self.home, line)));
            match response.status {
                200 if response.complete => return Fate { end: End::Fine, ..fate },
                307 if hops < 20 => hops += 1,
                503 => {
                    fate.waited = true;
                    let after = response.header("retry-after").and_then(|value| value.parse().ok()).unwrap_or(1);
                    sleep(Duration::from_secs(after)).await;
                }
                401 if response.code() == "login_required" => return Fate { end: End::SignedOut, ..fate },
                status => {
                    return Fate { end: End::Failed(format!("{status} {}", response.code())), ..fate };
                }
            }
        }
        fate
    }

    /// Counts what the provider saw. A refresh is one of an expiry when its token comes for the first time, and not
    /// sooner after the one before than a token can be due: where tokens are not rotated, only that tells the second of
    /// two.
    fn ask_the_provider(&self, tally: &mut Tally) {
        let mut session_of = HashMap::new();
        for (number, session) in self.provider.sessions().into_iter().enumerate() {
            session_of.extend(session.refresh_tokens.into_iter().map(|token| (token, number)));
        }
        let mut latest: HashMap<usize, Instant> = HashMap::new();
        let mut seen = HashSet::new();
        for call in self.provider.calls().iter().filter(|call| call.is_refresh()) {
            if matches!(call.status, Some(429 | 503)) {
                tally.refused += 1;
                continue;
            }
            tally.spent += 1;
            let Some((token, session)) = token_of(call).and_then(|token| Some((token, *session_of.get(token)?))) else {
                *tally.remarks.entry("an unknown token came".to_owned()).or_default() += 1;
                continue;
            };
            let since = latest.insert(session, call.at).map(|before| call.at - before);
            let again = !seen.insert(token.to_owned()) && self.plan.reuse != Reuse::None;
            let remark = match since {
                _ if again => "a token came again".to_owned(),
                Some(since) if since < SOONEST => {
                    format!("a token came within {} ms", since.as_millis() / 500 * 500 + 500)
                }
                _ => {
                    tally.expiries += 1;
                    continue;
                }
            };
            *tally.remarks.entry(remark).or_default() += 1;
        }
        tally.alarms = self.provider.reuse_alarms() as usize;
    }
}

fn token_of(call: &Call) -> Option<&str> {
    get(&call.form, "refresh_token")
}

/// What became of a request.
#[derive(Clone, Debug)]
struct Fate {
    end: End,
    waited: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Fine,
    /// Its answer was lost on the way.
    Lost,
    /// 401: log in.
    SignedOut,
    Failed(String),
}
