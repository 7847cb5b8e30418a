//! One user's browser, the replicas, and the network between them, under a clock that nobody waits for.
//!
//! What stands for `gateway` here does what its request phases do with the coordinator's answers; the coordinator, the
//! engine, the conversation with the store and the verify redirect are the code that ships.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sidegate::clock::{Clock, Timestamp};
use sidegate::crypto::keyring::{Key, Keyring};
use sidegate::gateway::settings::Verify;
use sidegate::gateway::verify::{self, Verdict};
use sidegate::oidc::ProviderError;
use sidegate::oidc::types::{Identity, Login, TokenTarget};
use sidegate::refresh::coordinator::{Freshened, Handles, Obtained};
use sidegate::refresh::engine::Recognised;
use sidegate::refresh::shared::{OnError, Shared};
use sidegate::refresh::{Coordinator, Demand, EndReason, Observer, OnReuse, Rotation, Settings};
use sidegate::session::jar::Jar;
use sidegate::session::model::{Handle, Session, SessionId};
use sidegate::session::settings::{self, Layout, SameSite};
use sidegate::web::origin::Origin;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::dice::Dice;
use crate::provider::{Line, Provider, Rules, Weather};
use crate::store::{Connection, Faults, Store};

const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) replicas: usize,
    pub(crate) rules: Rules,
    pub(crate) weather: Weather,
    pub(crate) store: Option<Faults>,
    pub(crate) on_error: OnError,
    pub(crate) bursts: usize,
    pub(crate) requests: usize,
    /// Milliseconds between the first and the last request of a burst: one tab's, or several tabs'.
    pub(crate) spread: u64,
    /// Seconds from one burst to the next.
    pub(crate) gap: (u64, u64),
    /// Share of bursts that the browser gives up: it comes back up to `away` seconds later.
    pub(crate) aborts: f64,
    pub(crate) away: u64,
    /// Share of responses that never arrive.
    pub(crate) lost: f64,
    /// The longest that a response is on its way, in milliseconds: far above its fellows', they overtake each other.
    pub(crate) down: u64,
    /// Share of requests that also want a token for something else, which the session's refresh token has to bring.
    pub(crate) own: f64,
    /// Share of bursts with one request that the upstream answers only after the next expiry.
    pub(crate) slow: f64,
    /// Share of bursts in which a replica dies; another one takes its place a second later.
    pub(crate) crashes: f64,
    /// Seconds by which all clocks are set during a burst, there and back.
    pub(crate) jump: i64,
    pub(crate) new_keys: bool,
    pub(crate) recovery: u64,
    pub(crate) grace: u64,
}

impl Plan {
    /// The bursts of every other run: ten requests with an expired token, a good network.
    pub(crate) const CALM: Self = Self {
        replicas: 1,
        rules: Rules::FAMILY,
        weather: Weather {
            stalls: 0.01,
            hangs: 0.0,
            server_error: 0.0,
            rate_limited: 0.0,
            lost_answer: 0.0,
            lost_request: 0.0,
            down: None,
            refuses: None,
        },
        store: None,
        on_error: OnError::Local,
        bursts: 5,
        requests: 10,
        spread: 30,
        gap: (300, 360),
        aborts: 0.0,
        away: 120,
        lost: 0.0,
        down: 80,
        own: 0.0,
        slow: 0.0,
        crashes: 0.0,
        jump: 0,
        new_keys: false,
        recovery: 24 * 3600,
        grace: 60,
    };
    /// The good store.
    pub(crate) const STORE: Faults = Faults { failing: 0.0, away: None, loses_all_at: None, hiccups: None, slow: 2 };
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub(crate) bursts: usize,
    /// Bursts after which the user had to log in.
    pub(crate) logins: usize,
    pub(crate) forwarded: usize,
    /// The application refused the token.
    pub(crate) rejected: usize,
    pub(crate) unavailable: usize,
    pub(crate) refused: usize,
    /// No answer, as far as the browser saw.
    pub(crate) broken: usize,
    pub(crate) calls: usize,
    /// Of the requests that were forwarded.
    pub(crate) slowest: Duration,
    pub(crate) trace: String,
}

impl Report {
    pub(crate) fn failed(&self) -> usize {
        self.rejected + self.unavailable + self.refused
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.bursts += other.bursts;
        self.logins += other.logins;
        self.forwarded += other.forwarded;
        self.rejected += other.rejected;
        self.unavailable += other.unavailable;
        self.refused += other.refused;
        self.broken += other.broken;
        self.calls += other.calls;
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// Whether a process lives. What asks in a dead one never gets on.
#[derive(Clone, Debug)]
pub(crate) struct Alive(Arc<watch::Sender<bool>>);

impl Alive {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(true)))
    }

    pub(crate) async fn check(&self) {
        if !*self.0.borrow() {
            std::future::pending::<()>().await;
        }
    }

    async fn death(&self) {
        let _ = self.0.subscribe().wait_for(|alive| !alive).await;
    }

    fn kill(&self) {
        self.0.send_replace(false);
    }
}

/// One process.
struct Replica {
    coordinator: Arc<Coordinator>,
    jar: Arc<Jar>,
    alive: Alive,
}

/// Names by the jar; seals by putting away, where only who has the token looks.
struct Names {
    jar: Arc<Jar>,
    vault: Arc<Mutex<BTreeMap<u64, (Handle, Session)>>>,
}

impl Handles for Names {
    fn handle(&self, session: &Session) -> Option<Handle> {
        self.jar.handle(session)
    }

    fn index_key(&self, now: Timestamp) -> u16 {
        self.jar.sealing_key_id(now)
    }

    fn seal_result(&self, spent: &Session, handle: Handle, next: &Session) -> Option<Vec<u8>> {
        assert_eq!(self.jar.handle(spent), Some(handle));
        let mut vault = self.vault.lock();
        let number = vault.len() as u64;
        vault.insert(number, (handle, next.clone()));
        Some(number.to_be_bytes().to_vec())
    }

    fn open_result(&self, spent: &Session, handle: Handle, sealed: &[u8]) -> Option<Session> {
        assert_eq!(self.jar.handle(spent), Some(handle));
        let number = u64::from_be_bytes(sealed.try_into().ok()?);
        let vault = self.vault.lock();
        let (named, next) = vault.get(&number)?;
        (*named == handle).then(|| next.clone())
    }
}

/// What a browser keeps.
#[derive(Debug, Default)]
pub(crate) struct Browser {
    pub(crate) cookie: Mutex<Option<Arc<Session>>>,
    marker: Mutex<Option<([u8; 8], u8, Instant)>>,
    signed_out: AtomicBool,
}

impl Browser {
    fn generation(&self) -> i64 {
        self.cookie.lock().as_ref().map_or(-1, |session| session.generation.cast_signed())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Follows redirects, as navigations and scripts do.
    Replayable,
    /// A streamed body, or a handshake.
    Stream,
    /// Answered only after so many seconds.
    Slow(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Forwarded,
    Rejected,
    Again,
    Login,
    /// 401 that clears nothing.
    Doubted,
    Unavailable,
    Refused,
    Broken,
}

enum SetCookie {
    Nothing,
    Session(Arc<Session>),
    Clear,
}

struct Answer {
    status: Status,
    cookie: SetCookie,
    marker: Option<([u8; 8], u8, Instant)>,
}

impl Answer {
    const fn of(status: Status) -> Self {
        Self { status, cookie: SetCookie::Nothing, marker: None }
    }
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) dice: Dice,
    pub(crate) clock: Clock,
    began: Instant,
    pub(crate) provider: Arc<Provider>,
    store: Option<Arc<Store>>,
    vault: Arc<Mutex<BTreeMap<u64, (Handle, Session)>>>,
    keys: Mutex<Vec<Key>>,
    replicas: Mutex<Vec<Arc<Replica>>>,
    pub(crate) report: Mutex<Report>,
    tracing: bool,
}

struct Hear(Arc<World>);

impl Observer for Hear {
    fn refreshed(&self, session: &Session, outcome: &'static str, reason: &'static str, _: Duration) {
        self.0.note(|| format!("refresh of gen {}: {outcome} {reason}", session.generation));
    }
    fn cookie_reuse(&self) {
        self.0.note(|| "cookie reuse".to_owned());
    }
    fn session_ended(&self, session: &Session, reason: EndReason) {
        self.0.note(|| format!("session ended at gen {}: {reason:?}", session.generation));
    }
    fn spared(&self, spared: bool) {
        self.0.note(|| format!("provider spared: {spared}"));
    }
}

fn key(dice: &Dice) -> Key {
    let bytes: Vec<u8> = (0..4).flat_map(|_| dice.roll().to_be_bytes()).collect();
    Key::parse(&base64_simd::URL_SAFE_NO_PAD.encode_to_string(bytes)).unwrap()
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan, tracing: bool) -> Arc<Self> {
        let dice = Dice::new(seed);
        let clock = Clock::timers(START);
        let world = Arc::new(Self {
            provider: Provider::new(plan.rules, plan.weather, dice.clone(), clock.clone()),
            store: plan.store.map(|faults| Store::new(faults, dice.clone())),
            keys: Mutex::new(vec![key(&dice)]),
            plan,
            dice,
            clock,
            began: Instant::now(),
            vault: Arc::default(),
            replicas: Mutex::default(),
            report: Mutex::default(),
            tracing,
        });
        for _ in 0..plan.replicas {
            let replica = world.replica();
            world.replicas.lock().push(replica);
        }
        world
    }

    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        if self.tracing {
            let at = self.began.elapsed();
            let mut report = self.report.lock();
            let _ = writeln!(report.trace, "{:>9.3} {}", at.as_secs_f64(), what());
        }
    }

    /// A process that has just started.
    fn replica(self: &Arc<Self>) -> Arc<Replica> {
        let plan = &self.plan;
        let settings = Settings {
            before_expiry: Duration::from_secs(60),
            after: None,
            timeout: Duration::from_secs(8),
            wait: Duration::from_secs(10),
            grace: Duration::from_secs(plan.grace),
            recovery: Duration::from_secs(plan.recovery),
            memory: 64 * 1024,
            max_refreshes: 0,
            on_reuse: OnReuse::Reauthenticate,
            rotation: Some(if plan.rules.rotates { Rotation::Single } else { Rotation::None }),
            leeway: plan.rules.leeway,
            kills_access_token: plan.rules.kills_access_token,
            replica: (plan.replicas > 1 || plan.store.is_some()).then(|| self.dice.roll()),
        };
        let ours = sidegate::session::Settings {
            cookie_name: "sidegate".into(),
            same_site: SameSite::Strict,
            form_post: false,
            partitioned: false,
            public: Origin::parse("https://app.example.com").unwrap(),
            issuer: "https://login.example.com".into(),
            providers: Vec::new(),
            client_id: "app".into(),
            store: settings::Store::Cookie,
            layout: Layout::Single,
            prefix: "/auth".into(),
            max_age: Duration::from_secs(365 * 24 * 3600),
            idle_timeout: None,
            max_refreshes: 0,
            header_budget: 7600,
            claims: Vec::new(),
            id_token_needed: false,
        };
        let jar = Arc::new(Jar::new(ours, Keyring::new(self.keys.lock().clone()).unwrap()));
        let alive = Alive::new();
        let line = Arc::new(Line { provider: Arc::clone(&self.provider), alive: alive.clone() });
        let names = Arc::new(Names { jar: Arc::clone(&jar), vault: Arc::clone(&self.vault) });
        let shared = self.store.as_ref().map(|store| {
            let connection = Connection { store: Arc::clone(store), alive: alive.clone() };
            (Arc::new(connection) as Arc<dyn Shared>, plan.on_error)
        });
        let hear = Arc::new(Hear(Arc::clone(self)));
        let coordinator = Coordinator::among_replicas(settings, line, names, self.clock.clone(), hear, shared);
        Arc::new(Replica { coordinator, jar, alive })
    }

    pub(crate) fn log_in(&self, browser: &Browser) {
        let login = Login {
            tokens: self.provider.login(),
            identity: Identity {
                subject: "alice".into(),
                sid: None,
                auth_time: None,
                acr: None,
                claims: BTreeMap::new(),
            },
            dpop: None,
        };
        let id: Vec<u8> = [self.dice.roll().to_be_bytes(), self.dice.roll().to_be_bytes()].concat();
        let now = self.clock.now();
        let replica = Arc::clone(&self.replicas.lock()[0]);
        let id = SessionId(id.try_into().unwrap());
        let session = Session::begin(login, [1; 16], id, replica.jar.sealing_key_id(now), replica.jar.settings(), now);
        *browser.cookie.lock() = Some(Arc::new(session));
        *browser.marker.lock() = None;
        browser.signed_out.store(false, Ordering::Relaxed);
        self.note(|| "login".to_owned());
    }

    /// One request with all its redirects, as the browser sees it.
    pub(crate) async fn visit(self: Arc<Self>, browser: Arc<Browser>, kind: Kind) -> Status {
        let began = Instant::now();
        for _ in 0..8 {
            let cookie = browser.cookie.lock().clone();
            let marker = browser.marker.lock().filter(|(_, _, until)| Instant::now() < *until);
            sleep(self.dice.between(10, 60)).await;
            let replica = {
                let replicas = self.replicas.lock();
                Arc::clone(&replicas[self.dice.below(replicas.len())])
            };
            let answer = tokio::select! {
                biased;
                () = replica.alive.death() => return Status::Broken,
                answer = self.serve(&replica, cookie.clone(), marker, kind) => answer,
            };
            sleep(self.dice.between(10, self.plan.down)).await;
            let shown = cookie.as_ref().map_or(-1, |session| session.generation.cast_signed());
            if self.dice.chance(self.plan.lost) {
                self.note(|| format!("gen {shown} => {:?}, lost on its way", answer.status));
                return Status::Broken;
            }
            let brings = match &answer.cookie {
                SetCookie::Nothing => "",
                SetCookie::Clear => ", clears",
                SetCookie::Session(_) => ", sets",
            };
            match answer.cookie {
                SetCookie::Nothing => {}
                SetCookie::Session(session) => *browser.cookie.lock() = Some(session),
                SetCookie::Clear => {
                    *browser.cookie.lock() = None;
                    *browser.marker.lock() = None;
                }
            }
            if answer.marker.is_some() {
                *browser.marker.lock() = answer.marker;
            }
            self.note(|| {
                format!("gen {shown} => {:?}{brings}; the browser has gen {}", answer.status, browser.generation())
            });
            if answer.status == Status::Forwarded && !matches!(kind, Kind::Slow(_)) {
                let mut report = self.report.lock();
                report.slowest = report.slowest.max(began.elapsed());
            }
            if answer.status != Status::Again {
                return answer.status;
            }
        }
        Status::Broken
    }

    /// As `gateway::serve` and `gateway::forward`.
    async fn serve(
        &self,
        replica: &Replica,
        cookie: Option<Arc<Session>>,
        marker: Option<([u8; 8], u8, Instant)>,
        kind: Kind,
    ) -> Answer {
        let Some(came) = cookie else { return Answer::of(Status::Login) };
        match replica.coordinator.recognise(&came) {
            Recognised::Current | Recognised::Newer(_) | Recognised::Forgiven => {}
            Recognised::Ended => return Answer { cookie: SetCookie::Clear, ..Answer::of(Status::Login) },
            Recognised::Reused { .. } => return Answer::of(Status::Login),
        }
        let asked = Instant::now();
        let used = match replica.coordinator.freshen(Arc::clone(&came), Demand::IfDue).await {
            Freshened::Use { session, .. } | Freshened::Exhausted { session, .. } => session,
            Freshened::Over { reason: EndReason::Dead(_) } => return self.doubt(replica, &came, marker, kind).await,
            Freshened::Over { reason: EndReason::Reuse } => return Answer::of(Status::Login),
            Freshened::Over { .. } => return Answer { cookie: SetCookie::Clear, ..Answer::of(Status::Login) },
            Freshened::Bring => panic!("the one cookie holds the refresh token"),
            Freshened::Unavailable { retry_after } => {
                assert!(retry_after >= Duration::from_secs(1), "Retry-After is at least a second");
                return Answer::of(Status::Unavailable);
            }
            Freshened::Refused => return Answer::of(Status::Refused),
        };
        if self.plan.own > 0.0 && self.dice.chance(self.plan.own) {
            match self.own_token(replica, &came).await {
                None => {}
                Some(Status::Doubted) => return self.doubt(replica, &came, marker, kind).await,
                Some(status) => return Answer::of(status),
            }
        }
        let accepted = self.provider.accepts(&used.access_token);
        match kind {
            Kind::Slow(seconds) => sleep(Duration::from_secs(seconds)).await,
            _ => sleep(self.dice.between(20, 400)).await,
        }
        let status = if accepted { Status::Forwarded } else { Status::Rejected };
        let newest = replica.coordinator.outgoing(&used, asked.elapsed());
        let newest = newest.filter(|newest| newest.generation > came.generation);
        Answer { cookie: newest.map_or(SetCookie::Nothing, SetCookie::Session), ..Answer::of(status) }
    }

    /// As `gateway::own_token`, without its memory: every request asks. What is wrong, if anything is.
    async fn own_token(&self, replica: &Replica, came: &Arc<Session>) -> Option<Status> {
        let target = TokenTarget { audience: Some("orders".into()), ..TokenTarget::default() };
        let over = |reason| if matches!(reason, EndReason::Dead(_)) { Status::Doubted } else { Status::Login };
        match replica.coordinator.obtain(Arc::clone(came), &target).await {
            Obtained::Token(token, _) => {
                assert_ne!(token.expose(), came.access_token.expose(), "a token of its own");
                None
            }
            Obtained::Over(reason) => Some(over(reason)),
            Obtained::Failed(ProviderError::Dead { .. }) => {
                match replica.coordinator.freshen(Arc::clone(came), Demand::Now).await {
                    Freshened::Over { reason } => Some(over(reason)),
                    _ => Some(Status::Refused),
                }
            }
            Obtained::Failed(ProviderError::Refused { .. }) | Obtained::Exhausted => Some(Status::Refused),
            Obtained::Failed(_) => Some(Status::Unavailable),
        }
    }

    async fn doubt(
        &self,
        replica: &Replica,
        came: &Session,
        marker: Option<([u8; 8], u8, Instant)>,
        kind: Kind,
    ) -> Answer {
        let Some(name) = replica.jar.handle(came).and_then(|handle| handle.0.first_chunk().copied()) else {
            return Answer { cookie: SetCookie::Clear, ..Answer::of(Status::Login) };
        };
        let hops = marker.filter(|(named, ..)| *named == name).map_or(0, |(_, hops, _)| hops);
        let alone = self.plan.replicas == 1;
        match verify::judge(Verify::Redirect, alone, kind != Kind::Stream, hops) {
            Verdict::Again { pause, hops } => {
                sleep(pause).await;
                let marker = Some((name, hops, Instant::now() + Duration::from_secs(10)));
                Answer { marker, ..Answer::of(Status::Again) }
            }
            Verdict::Believe => Answer { cookie: SetCookie::Clear, ..Answer::of(Status::Login) },
            Verdict::Doubt => Answer::of(Status::Doubted),
        }
    }

    /// Requests at about the same moment. True when the user has to log in.
    pub(crate) async fn burst(self: &Arc<Self>, browser: &Arc<Browser>, late: &mut JoinSet<Status>) -> bool {
        let mut visits = JoinSet::new();
        for _ in 0..self.plan.requests {
            let (world, browser, pause) =
                (Arc::clone(self), Arc::clone(browser), self.dice.between(0, self.plan.spread));
            visits.spawn(async move {
                sleep(pause).await;
                world.visit(browser, Kind::Replayable).await
            });
        }
        if self.dice.chance(self.plan.slow) {
            let seconds = 200 + self.dice.roll() % 400;
            late.spawn(Arc::clone(self).visit(Arc::clone(browser), Kind::Slow(seconds)));
        }
        if self.dice.chance(self.plan.crashes) {
            let (world, after) = (Arc::clone(self), self.dice.between(0, 500));
            tokio::spawn(async move { world.crash(after).await });
        }
        if self.plan.jump != 0 {
            let (clock, by, after) = (self.clock.clone(), self.plan.jump * 1000, self.dice.between(0, 500));
            let back = self.dice.between(60_000, 250_000);
            tokio::spawn(async move {
                sleep(after).await;
                clock.set_by(by);
                sleep(back).await;
                clock.set_by(-by);
            });
        }
        if self.plan.new_keys {
            self.keys.lock().insert(0, key(&self.dice));
            let ring = self.keys.lock().clone();
            for replica in self.replicas.lock().iter() {
                let (jar, clock, ring, after) =
                    (Arc::clone(&replica.jar), self.clock.clone(), ring.clone(), self.dice.between(0, 2000));
                tokio::spawn(async move {
                    sleep(after).await;
                    jar.replace_keys(Keyring::new(ring).unwrap(), clock.now());
                });
            }
        }
        if self.dice.chance(self.plan.aborts) {
            sleep(self.dice.between(0, 600)).await;
            self.note(|| "the browser gives up".to_owned());
            visits.shutdown().await;
            sleep(self.dice.between(300, self.plan.away * 1000)).await;
            for _ in 0..self.plan.requests {
                visits.spawn(Arc::clone(self).visit(Arc::clone(browser), Kind::Replayable));
            }
        }
        let (mut login, mut told_to_wait) = (false, false);
        while let Some(status) = visits.join_next().await {
            let status = status.unwrap();
            told_to_wait |= status == Status::Unavailable;
            login |= self.count(status);
        }
        // The page that reloads itself, the application that heeds `Retry-After`.
        for _ in 0..20 {
            if !told_to_wait || login {
                break;
            }
            sleep(self.dice.between(1000, 2000)).await;
            let status = Arc::clone(self).visit(Arc::clone(browser), Kind::Replayable).await;
            told_to_wait = status == Status::Unavailable;
            login |= self.count(status);
        }
        login || browser.cookie.lock().is_none()
    }

    pub(crate) fn count(&self, status: Status) -> bool {
        let mut report = self.report.lock();
        match status {
            Status::Forwarded => report.forwarded += 1,
            Status::Rejected => report.rejected += 1,
            Status::Unavailable => report.unavailable += 1,
            Status::Refused => report.refused += 1,
            Status::Broken | Status::Again => report.broken += 1,
            Status::Login | Status::Doubted => return true,
        }
        false
    }

    async fn crash(self: &Arc<Self>, after: Duration) {
        sleep(after).await;
        let place = self.dice.below(self.plan.replicas);
        let dead = Arc::clone(&self.replicas.lock()[place]);
        dead.alive.kill();
        self.note(|| format!("replica {place} dies"));
        if self.plan.replicas == 1 {
            sleep(Duration::from_secs(1)).await;
        }
        let fresh = self.replica();
        self.replicas.lock()[place] = fresh;
    }

    /// Ends the session on every replica, as a logout here, or one that the provider tells of, does.
    pub(crate) fn end(&self, id: SessionId) {
        self.note(|| "logout".to_owned());
        for replica in self.replicas.lock().iter() {
            replica.coordinator.end(id, self.clock.now() + Duration::from_secs(365 * 24 * 3600));
        }
    }

    pub(crate) fn sweep(&self) {
        for replica in self.replicas.lock().iter() {
            replica.coordinator.sweep();
        }
    }

    /// All bursts of the plan.
    pub(crate) async fn drive(self: &Arc<Self>) {
        let browser = Arc::new(Browser::default());
        self.log_in(&browser);
        let mut late = JoinSet::new();
        for _ in 0..self.plan.bursts {
            let (from, to) = self.plan.gap;
            sleep(self.dice.between(from * 1000, to * 1000)).await;
            self.sweep();
            let login = self.burst(&browser, &mut late).await;
            self.report.lock().bursts += 1;
            let mut missed = login;
            while let Some(status) = late.try_join_next() {
                missed |= self.count(status.unwrap());
            }
            if missed {
                self.report.lock().logins += 1;
                self.log_in(&browser);
            }
        }
        let calls = self.provider.calls();
        self.report.lock().calls = calls;
    }
}

/// One run, from its seed alone.
pub(crate) fn run(seed: u64, plan: Plan, tracing: bool) -> Report {
    under_paused_time(async move {
        let world = World::new(seed, plan, tracing);
        world.drive().await;
        world.report.lock().clone()
    })
}

pub(crate) fn under_paused_time<T>(run: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(run)
}
