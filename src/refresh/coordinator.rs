//! Carries out what the engine advises: the only part of a refresh that waits and spawns.
//!
//! A flight runs in a task of its own. The request that started it may be dropped, time out or fail: the provider has
//! rotated by then, and the result must be there for whoever comes next with the old cookie.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Semaphore, broadcast, oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::breaker::{Breaker, Turn};
use super::engine::{Advice, Engine, FlightId, Landing, Load, Outcome, Recognised, Step};
use super::policy::{self, Demand, Due, EndReason, Facts};
use super::settings::{Rotation, Settings};
use super::shared::{self, Away, Claim, Held, OnError, Owner, Rung, Shared};
use crate::clock::{Clock, Timestamp};
use crate::crypto::random;
use crate::oidc::ProviderError;
use crate::oidc::provider::{Grant, RefreshExpectation, RefreshRequest};
use crate::oidc::token;
use crate::oidc::types::{AccessToken, RefreshToken, TokenSet, TokenTarget};
use crate::session::model::{Handle, Session, SessionId};
use crate::session::vault::Keeping;

/// Locks, so that two sessions seldom meet at one. A session's whole line is in one shard.
const SHARDS: usize = 64;
/// The least memory that a shard is given, else there are fewer: a bound cut into crumbs would hold nothing.
const SHARD_MIN: usize = 64 * 1024;
/// Ended sessions that are remembered, about 250 bytes each. At one logout a second and sessions of 12 h, 43 200 are at
/// a time.
const TOMBSTONES: usize = 128 * 1024;
/// Token requests at once.
const TRIES_AT_ONCE: usize = 256;
/// Generations that a cookie may be behind in what other replicas hold: each is a conversation with the store. Where routes
/// have tokens of their own, every replica adds one for each of them while an access token lives.
const HOPS: usize = 32;
/// The reason of a result that another replica came by.
const ADOPTED: &str = "adopted";
/// Changes that a listener may be behind.
const CHANGES: usize = 1024;
/// Requests that may wait at once; beyond it they are turned away.
const WAITERS: usize = 10_000;
/// Tries after the first one, when nothing happened at the provider.
const RETRIES: u32 = 2;
/// Tries with a token of which it is not known whether it is spent. Beyond the second only while a leeway runs.
const DOUBTFUL_TRIES: u32 = 6;
/// The pause before the first of them when the provider names none; doubles.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// The pause before the first new try to write a success that the store did not take; doubles, up to the second one.
const SETTLE_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// For how long it is tried: well beyond a lock, after which another replica would spend the token again.
const SETTLE_FOR: Duration = Duration::from_secs(60);
/// The longest `Retry-After` that is honoured.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);
/// What turned-away requests are told to wait.
const AGAIN: Duration = Duration::from_secs(1);

/// Names refresh tokens. The cookie jar does it, which has the keys.
pub trait Handles: Send + Sync {
    /// The name of the session's refresh token in this generation; none when it has none, or the key is gone.
    fn handle(&self, session: &Session) -> Option<Handle>;
    /// The key by which names of the next generation are made.
    fn index_key(&self, now: Timestamp) -> u16;
    /// Seals the next generation for other replicas, so that only who presents the spent one can open it.
    fn seal_result(&self, _spent: &Session, _handle: Handle, _next: &Session) -> Option<Vec<u8>> {
        None
    }
    /// Puts the next generation where other requests look for it, before anybody uses it.
    fn keep(&self, next: Session) -> BoxFuture<'_, Keeping> {
        Box::pin(std::future::ready(Keeping::Kept(Box::new(next))))
    }
    /// Opens what another replica sealed.
    fn open_result(&self, _spent: &Session, _handle: Handle, _sealed: &[u8]) -> Option<Session> {
        None
    }
}

/// Is told what happens, for metrics and audit. Called while no lock is held.
pub trait Observer: Send + Sync {
    /// A flight ended: `ok`, `dead`, `retry`, `ambiguous` or `config`, after so long; `reason` for the log.
    fn refreshed(&self, _session: &Session, _outcome: &'static str, _reason: &'static str, _took: Duration) {}
    /// A request waits for a flight that another one started.
    fn joined(&self) {}
    /// A request carried an older generation than we know.
    fn stale_cookie(&self) {}
    /// It carried one whose token is unknown here.
    fn cookie_reuse(&self) {}
    /// A flight leaves the request that started it for a task of its own, in which this is run. For whoever follows
    /// what belongs together.
    fn accompany(&self, flight: BoxFuture<'static, ()>) -> BoxFuture<'static, ()> {
        flight
    }
    /// A session is over; once per session.
    fn session_ended(&self, _session: &Session, _reason: EndReason) {}
    /// The provider is spared from now on, or no longer: too many sessions in a row had no answer.
    fn spared(&self, _spared: bool) {}
}

/// What a request gets.
#[derive(Clone, Debug)]
pub enum Freshened {
    /// Forward with this one. `changed`: it is newer than the presented one, and the browser must get its cookie.
    Use { session: Arc<Session>, changed: bool },
    /// The session is over.
    Over { reason: EndReason },
    /// The session is good until its token ends, but the newer token that was asked for cannot be had.
    Exhausted { session: Arc<Session>, reason: EndReason },
    /// The session goes on with its refresh token, which is in a cookie that did not come along.
    Bring,
    /// The provider does not answer, or too many wait for it. The session is kept.
    Unavailable { retry_after: Duration },
    /// The provider refuses our client. The session is kept.
    Refused,
}

/// What becomes of asking for a token that is not the session's own.
#[derive(Clone, Debug)]
pub enum Obtained {
    /// The token, and when it ends if anybody knows.
    Token(AccessToken, Option<Timestamp>),
    /// The provider gives none. The session is kept.
    Failed(ProviderError),
    /// The session is over.
    Over(EndReason),
    /// Nothing can be refreshed any more, or not from here; the session goes on until its access token ends.
    Exhausted,
}

type Given = Result<(AccessToken, Option<Timestamp>), ProviderError>;

/// Whom to tell what came of his token; none when nobody knows.
type Told = (oneshot::Sender<Given>, Option<Given>);

/// What a flight is for when it is not for the session itself.
struct Aside {
    target: TokenTarget,
    given: Mutex<Option<Given>>,
    sender: oneshot::Sender<Given>,
}

/// Something that a page with this session wants to know at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A newer generation is there.
    Renewed(SessionId),
    /// It is over.
    Ended(SessionId),
}

/// For the gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Results kept for those who still carry an older cookie.
    pub entries: usize,
    /// What everything kept occupies, about.
    pub bytes: usize,
    /// Tokens that are being spent.
    pub flights: usize,
}

/// What a coordinator works by, and what a reload replaces; what it knows of sessions stays.
#[derive(Clone)]
pub struct Terms {
    pub settings: Settings,
    pub grant: Arc<dyn Grant>,
    pub handles: Arc<dyn Handles>,
    pub observer: Arc<dyn Observer>,
    /// What other replicas share, and what to do while it is away.
    pub shared: Option<(Arc<dyn Shared>, OnError)>,
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// See the module.
pub struct Coordinator {
    terms: ArcSwap<Terms>,
    clock: Clock,
    shards: Box<[Mutex<Shard>]>,
    tries: Semaphore,
    breaker: Mutex<Breaker>,
    /// Tells this process's locks from others', with `claims`.
    instance: u64,
    claims: AtomicU64,
    waiters: AtomicUsize,
    aloft: watch::Sender<usize>,
    changes: broadcast::Sender<Change>,
}

struct Shard {
    engine: Engine,
    flights: HashMap<FlightId, watch::Receiver<Option<Landing>>>,
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Coordinator {
    /// A coordinator that knows nothing.
    pub fn new(
        settings: Settings,
        grant: Arc<dyn Grant>,
        handles: Arc<dyn Handles>,
        clock: Clock,
        observer: Arc<dyn Observer>,
    ) -> Arc<Self> {
        Self::among_replicas(settings, grant, handles, clock, observer, None)
    }

    /// A coordinator that shares locks and results with other replicas.
    pub fn among_replicas(
        settings: Settings,
        grant: Arc<dyn Grant>,
        handles: Arc<dyn Handles>,
        clock: Clock,
        observer: Arc<dyn Observer>,
        shared: Option<(Arc<dyn Shared>, OnError)>,
    ) -> Arc<Self> {
        Self::with_terms(Terms { settings, grant, handles, observer, shared }, clock)
    }

    /// A coordinator that works by these terms.
    pub fn with_terms(terms: Terms, clock: Clock) -> Arc<Self> {
        let count = (terms.settings.memory / SHARD_MIN).clamp(1, SHARDS);
        let share = terms.settings.share(count);
        let tombstones = TOMBSTONES.div_ceil(count);
        let shard = || {
            let engine = Engine::new(share.clone()).with_tombstones(tombstones);
            Mutex::new(Shard { engine, flights: HashMap::new() })
        };
        Arc::new(Self {
            breaker: Mutex::new(Breaker::new(terms.settings.timeout)),
            instance: terms.settings.replica.unwrap_or_else(|| u64::from_be_bytes(random::bytes())),
            claims: AtomicU64::new(0),
            terms: ArcSwap::from_pointee(terms),
            clock,
            shards: std::iter::repeat_with(shard).take(count).collect(),
            tries: Semaphore::new(TRIES_AT_ONCE),
            waiters: AtomicUsize::new(0),
            aloft: watch::Sender::new(0),
            changes: broadcast::Sender::new(CHANGES),
        })
    }

    /// Works by other terms from now on. Tokens that are being spent are spent by the terms they began with; results,
    /// tombstones and whoever waits stay.
    pub fn replace_terms(&self, terms: Terms) {
        let share = terms.settings.share(self.shards.len());
        self.terms.store(Arc::new(terms));
        for shard in &self.shards {
            shard.lock().engine.replace_settings(share.clone());
        }
    }

    fn observer(&self) -> Arc<dyn Observer> {
        Arc::clone(&self.terms.load().observer)
    }

    /// The session as `demand` wants it, refreshed if need be; waits at most `wait`. To drop the future stops no
    /// refresh.
    pub async fn freshen(self: &Arc<Self>, session: Arc<Session>, demand: Demand) -> Freshened {
        let facts = Facts::of(&session);
        let mut deadline = None;
        let mut answer = self.freshen_once(&session, &facts, demand, &mut deadline, true).await;
        // What another replica made of the token may have been spent in its turn: on, as the browser's cookie leads.
        for _ in 1..HOPS {
            match &answer {
                Freshened::Use { session: next, changed: true } if self.falls_short(next, &session, demand) => {}
                _ => break,
            }
            answer = self.freshen_once(&session, &facts, demand, &mut deadline, false).await;
        }
        answer
    }

    /// A token that is not the session's own, by its refresh token: for another audience or resource, or with less scope.
    /// What the provider gives in the place of that token becomes the session's, while its access token stays. So all
    /// that may spend a session's refresh token stands in one line: a refresh waits for this, and this for a refresh.
    ///
    /// `session` is what the browser showed, not what is known to have come of it. Waits at most `wait`. To drop the future
    /// stops nothing.
    pub async fn obtain(self: &Arc<Self>, session: Arc<Session>, target: &TokenTarget) -> Obtained {
        let unavailable = |reason, until: Option<Timestamp>| {
            let retry_after = until.map_or(AGAIN, |until| until.since(self.clock.now()).max(AGAIN));
            Obtained::Failed(ProviderError::Unavailable { reason, retry_after: Some(retry_after) })
        };
        let facts = Facts::of(&session);
        let deadline = Instant::now() + self.terms.load().settings.wait;
        while Instant::now() < deadline {
            let (sender, answer) = oneshot::channel();
            let aside = Aside { target: target.clone(), given: Mutex::default(), sender };
            let (advice, landing) = self.advise(&session, &facts, Demand::Aside, Some(aside));
            match advice.step {
                Step::Over(reason) => return Obtained::Over(reason),
                Step::Config => return Obtained::Failed(ProviderError::Refused { reason: "client_refused" }),
                Step::BackOff { until } => return unavailable("back_off", Some(until)),
                Step::Forward | Step::Exhausted(_) | Step::Bring => return Obtained::Exhausted,
                Step::Start(_) | Step::Join(_) => {}
            }
            let Some(landing) = self.land(landing, deadline).await else { break };
            // Sent before the flight lands, unless it was another one's.
            match (landing, answer.await) {
                (Landing::Over(reason), _) => return Obtained::Over(reason),
                (_, Ok(Ok((token, expires)))) => return Obtained::Token(token, expires),
                (_, Ok(Err(error))) => return Obtained::Failed(error),
                (Landing::Renewed(_) | Landing::Unspent, Err(_)) => {}
                (Landing::Unavailable { until }, Err(_)) => return unavailable("back_off", Some(until)),
                (Landing::Refused, Err(_)) => {
                    return Obtained::Failed(ProviderError::Refused { reason: "client_refused" });
                }
            }
        }
        unavailable("slow", None)
    }

    /// Whether a newer generation is still not what the request needs, and there may be a newer one.
    fn falls_short(&self, session: &Session, presented: &Session, demand: Demand) -> bool {
        let (facts, now) = (Facts::of(session), self.clock.now());
        let old = match demand {
            Demand::IfDue | Demand::Aside => false,
            Demand::Now => session.shares_access(presented),
            Demand::OlderThan(limit) => now.since(facts.issued) > limit,
        };
        let terms = self.terms.load();
        (old || policy::due(&facts, &terms.settings, now) == Due::Over)
            && policy::renewable(&facts, &terms.settings, now).is_ok()
    }

    async fn freshen_once(
        self: &Arc<Self>,
        session: &Arc<Session>,
        facts: &Facts,
        demand: Demand,
        deadline: &mut Option<Instant>,
        first: bool,
    ) -> Freshened {
        let (mut advice, mut landing) = self.advise(session, facts, demand, None);
        if first && advice.successor.is_some() {
            self.observer().stale_cookie();
        }
        if first && advice.forked {
            self.observer().cookie_reuse();
        }
        let (changed, session, landing) = loop {
            let changed = advice.successor.is_some();
            let newest = advice.successor.take().unwrap_or_else(|| Arc::clone(session));
            let landed = match advice.step {
                Step::Forward => return Freshened::Use { session: newest, changed },
                Step::Over(reason) => return Freshened::Over { reason },
                Step::Exhausted(reason) => return Freshened::Exhausted { session: newest, reason },
                Step::Bring => return Freshened::Bring,
                Step::Config => Some(Landing::Refused),
                Step::BackOff { until } => Some(Landing::Unavailable { until }),
                Step::Start(_) | Step::Join(_) => {
                    if matches!(advice.step, Step::Join(_)) {
                        self.observer().joined();
                    }
                    let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.terms.load().settings.wait);
                    self.land(landing, deadline).await
                }
            };
            if !matches!(landed, Some(Landing::Unspent)) {
                break (changed, newest, landed);
            }
            // That flight was for something else: now it is our turn.
            (advice, landing) = self.advise(session, facts, demand, None);
        };
        let now = self.clock.now();
        match landing {
            Some(Landing::Over(reason)) => Freshened::Over { reason },
            // While this one waited, whatever came of it.
            _ if self.is_ended(session.id) => Freshened::Over { reason: EndReason::Ended },
            Some(Landing::Renewed(next)) => Freshened::Use { session: next, changed: true },
            // No result: what is still good goes on, unless better was asked for.
            _ if !advice.insists
                && policy::due(&Facts::of(&session), &self.terms.load().settings, now) != Due::Over =>
            {
                Freshened::Use { session, changed }
            }
            Some(Landing::Refused) => Freshened::Refused,
            Some(Landing::Unavailable { until }) => Freshened::Unavailable { retry_after: until.since(now).max(AGAIN) },
            Some(Landing::Unspent) | None => Freshened::Unavailable { retry_after: AGAIN },
        }
    }

    /// What is known of a session that a request presents.
    pub fn recognise(&self, session: &Session) -> Recognised {
        let Some(shard) = self.shard(session.id) else { return Recognised::Current };
        let recognised = {
            let (mut shard, now) = self.enter(shard);
            shard.engine.recognise(&Facts::of(session), now)
        };
        match recognised {
            // Counted where it is used.
            Recognised::Newer(_) => {}
            Recognised::Reused { ends } => {
                self.observer().cookie_reuse();
                if ends {
                    self.observer().session_ended(session, EndReason::Reuse);
                    self.tell(Change::Ended(session.id));
                }
            }
            Recognised::Forgiven => self.observer().cookie_reuse(),
            Recognised::Current | Recognised::Ended => {}
        }
        recognised
    }

    /// The newest generation known, for a response that is about to leave: it must not carry an older one.
    pub fn newest(&self, id: SessionId) -> Option<Arc<Session>> {
        let (shard, now) = self.enter(self.shard(id)?);
        shard.engine.newest(id, now)
    }

    /// Whose cookie an answer may carry that is about to leave, so long after its request came: the newest generation
    /// known, at least `used`. None when the session is over or has gone on without it. That is also to be feared of an
    /// answer that took longer than `grace`: other replicas may have gone on, and what they knew of the generations before
    /// is gone. Nothing is lost by it, for who still has the older cookie finds its successor here.
    pub fn outgoing(&self, used: &Arc<Session>, age: Duration) -> Option<Arc<Session>> {
        let Some(shard) = self.shard(used.id) else { return Some(Arc::clone(used)) };
        let (newest, now) = {
            let (mut shard, now) = self.enter(shard);
            let engine = &mut shard.engine;
            if engine.is_ended(used.id, now) || engine.is_behind(&Facts::of(used), now) {
                return None;
            }
            (engine.newest(used.id, now), now)
        };
        let newest = newest.filter(|newest| newest.generation >= used.generation);
        let newest = newest.unwrap_or_else(|| Arc::clone(used));
        let grace = self.terms.load().settings.grace;
        let late = age > grace && now.since(newest.issued) > grace;
        (!late).then_some(newest)
    }

    /// Ends a session until then: no cookie of it is used or set any more.
    pub fn end(&self, id: SessionId, until: Timestamp) {
        if let Some(shard) = self.shard(id) {
            self.enter(shard).0.engine.tombstone(id, until);
        }
        self.tell(Change::Ended(id));
    }

    /// Ends a session of whose end somebody else has told us; true for the first who says so, if it was not told before.
    pub fn end_once(&self, id: SessionId, until: Timestamp) -> bool {
        let now = self.clock.now();
        let first = self.shard(id).is_some_and(|shard| {
            let engine = &mut shard.lock().engine;
            let first = engine.tell(id, now);
            engine.tombstone(id, until);
            first
        });
        self.tell(Change::Ended(id));
        first
    }

    /// A session came whose time had passed. Told once, and not of an old cookie of one that goes on.
    pub fn came_too_late(&self, session: &Session, reason: EndReason) {
        let first = self.shard(session.id).is_some_and(|shard| {
            let (mut shard, now) = self.enter(shard);
            let engine = &mut shard.engine;
            // A late copy of the cookie says nothing of a session that has gone on.
            let gone_on = |newest: Arc<Session>| newest.generation > session.generation;
            !engine.newest(session.id, now).is_some_and(gone_on) && engine.tell(session.id, now)
        });
        if first {
            self.observer().session_ended(session, reason);
        }
    }

    /// What happens to sessions from now on. Who falls behind misses the oldest, and has to look for himself.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    fn tell(&self, change: Change) {
        // Fails when nobody listens.
        let _ = self.changes.send(change);
    }

    /// The session was ended here.
    pub fn is_ended(&self, id: SessionId) -> bool {
        self.shard(id).is_some_and(|shard| {
            let (shard, now) = self.enter(shard);
            shard.engine.is_ended(id, now)
        })
    }

    /// The provider called the session's refresh token dead a moment ago, here.
    pub fn is_dead(&self, session: &Session) -> bool {
        let (Some(shard), handle) = (self.shard(session.id), self.handle(session)) else { return false };
        let (shard, now) = self.enter(shard);
        shard.engine.is_dead(session.id, handle, now)
    }

    /// Drops what is past its time. To be called every few seconds: what nobody asks for again is freed only here.
    pub fn sweep(&self) {
        for shard in &self.shards {
            let (mut shard, now) = self.enter(shard);
            shard.engine.sweep(now);
        }
    }

    /// Waits until no token is being spent and every result was told to the other replicas: a flight that is cut off
    /// after the provider rotated loses a session. The caller bounds the wait.
    pub async fn drain(&self) {
        // Fails only when the sender is gone, which is ours.
        let _ = self.aloft.subscribe().wait_for(|flights| *flights == 0).await;
    }

    /// For the gauges.
    pub fn stats(&self) -> Stats {
        self.shards.iter().map(|shard| shard.lock().engine.load()).fold(Stats::default(), |sum, load: Load| Stats {
            entries: sum.entries + load.entries,
            bytes: sum.bytes + load.bytes,
            flights: sum.flights + load.flights,
        })
    }

    /// Asks the engine, and starts the flight that it may want.
    fn advise(
        self: &Arc<Self>,
        session: &Arc<Session>,
        facts: &Facts,
        demand: Demand,
        aside: Option<Aside>,
    ) -> (Advice, Option<watch::Receiver<Option<Landing>>>) {
        let forward = Advice { successor: None, forked: false, insists: false, step: Step::Forward };
        let Some(shard) = self.shard(session.id) else { return (forward, None) };
        let (glance, delivered) = {
            let (mut shard, now) = self.enter(shard);
            (shard.engine.glance(facts, demand, now), shard.engine.take_delivered())
        };
        self.spread_delivery(delivered);
        if let Some(advice) = glance {
            return (advice, None);
        }
        let handle = self.handle(session); // a MAC: not under the lock

        let mut told = false;
        let mut landing = None;
        let mut sender = None;
        let advice = {
            let (mut shard, now) = self.enter(shard);
            let may_start = self.waiters.load(Ordering::Relaxed) < WAITERS;
            let advice = shard.engine.present(facts, handle, demand, may_start, now);
            match advice.step {
                Step::Start(flight) => {
                    let (sends, receives) = watch::channel(None);
                    shard.flights.insert(flight, receives.clone());
                    sender = Some((flight, sends));
                    landing = Some(receives);
                }
                Step::Join(flight) => {
                    landing = shard.flights.get(&flight).cloned();
                }
                Step::Over(EndReason::Expired | EndReason::RefreshLimit) => {
                    told = shard.engine.tell(session.id, now);
                }
                _ => {}
            }
            advice
        };
        if let (true, Step::Over(reason)) = (told, advice.step) {
            self.observer().session_ended(session, reason);
        }
        if let Some((flight, sender)) = sender {
            if advice.successor.is_none() {
                // It was presented, so the one before it is of no use any more, whichever replica made this one.
                self.spread_delivery(facts.previous);
            }
            let session = advice.successor.as_ref().unwrap_or(session).clone();
            self.aloft.send_modify(|flights| *flights += 1);
            let aloft = Aloft {
                coordinator: self.clone(),
                terms: self.terms.load_full(),
                flight,
                session,
                aside,
                began: Instant::now(),
                sender: Some(sender),
            };
            let observer = Arc::clone(&aloft.terms.observer);
            tokio::spawn(observer.accompany(Box::pin(aloft.fly())));
        }
        (advice, landing)
    }

    /// Lets other replicas drop results that have reached the browser.
    fn spread_delivery(&self, delivered: impl IntoIterator<Item = Handle>) {
        for handle in delivered {
            let terms = self.terms.load();
            if let Some((shared, _)) = &terms.shared {
                shared.acknowledge(handle, terms.settings.grace);
            }
        }
    }

    /// Waits for a flight.
    async fn land(&self, receiver: Option<watch::Receiver<Option<Landing>>>, until: Instant) -> Option<Landing> {
        let mut receiver = receiver?;
        let waiting = Waiting::enter(&self.waiters)?;
        let landed = timeout_at(until, receiver.wait_for(Option::is_some)).await;
        drop(waiting);
        landed.ok()?.ok()?.clone()
    }

    /// Locks a shard, and tells the time there.
    fn enter<'a>(&self, shard: &'a Mutex<Shard>) -> (MutexGuard<'a, Shard>, Timestamp) {
        let (now, astray) = self.clock.read();
        let mut shard = shard.lock();
        shard.engine.follow(astray);
        (shard, now)
    }

    /// Different for every claim of every process.
    fn owner(&self) -> Owner {
        let claim = self.claims.fetch_add(1, Ordering::Relaxed);
        (u128::from(self.instance) << 64 | u128::from(claim)).to_be_bytes()
    }

    fn told(&self, turn: Option<Turn>) {
        if let Some(turn) = turn {
            self.observer().spared(turn == Turn::Opened);
        }
    }

    /// Session ids are random and sealed: any bytes of them spread well, and nobody can choose theirs.
    fn shard(&self, id: SessionId) -> Option<&Mutex<Shard>> {
        let [first, ..] = id.0;
        self.shards.get(usize::from(first) % self.shards.len().max(1))
    }

    fn handle(&self, session: &Session) -> Handle {
        handle(&*self.terms.load().handles, session)
    }
}

/// A token whose key left the ring still has a name, good within this process.
fn handle(handles: &dyn Handles, session: &Session) -> Handle {
    handles.handle(session).unwrap_or_else(|| {
        let named = u128::from_be_bytes(session.id.0) ^ u128::from(session.generation);
        Handle(named.to_be_bytes())
    })
}

/// One of the requests that wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicUsize) -> Option<Self> {
        let waiting = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < WAITERS).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A flight in the air. However it ends, by a panic too, it lands: else everybody would wait for it for ever.
struct Aloft {
    coordinator: Arc<Coordinator>,
    /// Those in force when it began.
    terms: Arc<Terms>,
    flight: FlightId,
    /// Whose refresh token is spent.
    session: Arc<Session>,
    /// For what, if not for the session.
    aside: Option<Aside>,
    began: Instant,
    sender: Option<watch::Sender<Option<Landing>>>,
}

impl Aloft {
    async fn fly(mut self) {
        // A token whose key left the ring has a name in this process only.
        let named = self.terms.handles.handle(&self.session).is_some();
        let (outcome, reason) = match &self.terms.shared {
            Some((shared, on_error)) if named => self.spend_or_adopt(&**shared, *on_error).await,
            _ => self.spend(None).await,
        };
        self.land(outcome, reason);
    }

    /// Spends the token if no other replica does, else takes over what came of it.
    async fn spend_or_adopt(&self, shared: &dyn Shared, on_error: OnError) -> (Outcome, &'static str) {
        let settings = &self.terms.settings;
        let handle = self.flight.handle();
        // Longer than anybody waits: when the lock of a process that died runs out, a leeway may still be running, and who
        // comes again finds the result.
        let patience = self.began + settings.wait.max(shared::lock_life(settings.timeout) + AGAIN);
        // Without the store two may spend one token. Where that is no harm, or nothing is spent then, nobody waits.
        let hold = if on_error == OnError::Local && settings.spends_once() {
            shared::HICCUP.min(settings.wait / 2)
        } else {
            Duration::ZERO
        };
        match shared::claim(shared, handle, self.coordinator.owner(), settings.timeout, patience, hold).await {
            Ok(Claim::Ours(mut held)) => {
                let (outcome, reason) = self.spend(Some((shared, &mut held))).await;
                self.tell_replicas(shared, Some(held.owner), outcome, reason).await
            }
            Ok(Claim::Settled(Rung::Renewed(sealed))) => match self.adopt(&sealed) {
                Some(outcome) => (outcome, ADOPTED),
                None => (Outcome::Retry { after: None }, "unreadable_result"),
            },
            Ok(Claim::Settled(_)) => (Outcome::Dead("dead_elsewhere"), "dead_elsewhere"),
            Ok(Claim::Patience) => (Outcome::Retry { after: None }, "slow_elsewhere"),
            Err(Away) => match on_error {
                // The store may be back by now: a success has to be there for the others, and theirs for us.
                OnError::Local => {
                    let (outcome, reason) = self.spend(None).await;
                    self.tell_replicas(shared, None, outcome, reason).await
                }
                OnError::Wait => (Outcome::Retry { after: None }, "store_away"),
            },
        }
    }

    /// Writes what came of the token. What is not certain gives the lock back, so that another one may try.
    async fn tell_replicas(
        &self,
        shared: &dyn Shared,
        owner: Option<Owner>,
        outcome: Outcome,
        reason: &'static str,
    ) -> (Outcome, &'static str) {
        let handle = self.flight.handle();
        match &outcome {
            Outcome::Renewed { next, .. } => {
                if let Some(sealed) = self.terms.handles.seal_result(&self.session, handle, next) {
                    // Again and again: a result that is lost here is a session lost for the others.
                    let life = self.terms.settings.recovery;
                    let rung = Rung::Renewed(sealed);
                    if shared.settle(handle, rung.clone(), life).await.is_err() {
                        self.settle_later(rung);
                    }
                }
            }
            Outcome::Dead(_) => {
                if let Some(outcome) = shared::doubt(shared, handle).await.and_then(|sealed| self.adopt(&sealed)) {
                    return (outcome, ADOPTED);
                }
                // To another token the provider may say so of what the user did not grant it.
                match (&self.aside, owner) {
                    (None, _) => {
                        let _ = shared.settle(handle, Rung::Dead, shared::DEAD_FOR).await;
                    }
                    (Some(_), Some(owner)) => shared.unlock(handle, owner).await,
                    (Some(_), None) => {}
                }
            }
            // Another replica would hear the same, but has no business believing us: its own answer ends its own.
            Outcome::Mismatch(_) | Outcome::Ended => {
                let _ = shared.settle(handle, Rung::Dead, shared::DEAD_FOR).await;
            }
            Outcome::Unspent | Outcome::Retry { .. } | Outcome::Ambiguous | Outcome::Config => {
                if let Some(owner) = owner {
                    shared.unlock(handle, owner).await;
                }
            }
        }
        (outcome, reason)
    }

    /// Writes a success while nobody waits for it, as soon as the store answers.
    fn settle_later(&self, rung: Rung) {
        let Some((shared, _)) = &self.terms.shared else { return };
        let (shared, handle, life) = (Arc::clone(shared), self.flight.handle(), self.terms.settings.recovery);
        // Still in the air: the drain waits for it, since with this process the result would be gone.
        let told = ToTell::new(&self.coordinator);
        tokio::spawn(async move {
            let _told = told;
            let (mut pause, longest) = SETTLE_PAUSE;
            let end = Instant::now() + SETTLE_FOR;
            while Instant::now() < end {
                sleep(pause).await;
                if shared.settle(handle, rung.clone(), life).await.is_ok() {
                    break;
                }
                pause = (pause * 2).min(longest);
            }
        });
    }

    /// The next generation as another replica sealed it.
    fn adopt(&self, sealed: &[u8]) -> Option<Outcome> {
        let handles = &*self.terms.handles;
        let next = handles.open_result(&self.session, self.flight.handle(), sealed)?;
        // Of another session, or no step forward: sealed under the same name, this cannot be.
        if next.id != self.session.id || next.generation <= self.session.generation {
            return None;
        }
        let next = Session { ticket: self.session.ticket.clone(), ..next };
        let handle = handle(handles, &next);
        let weight = rounded(weight(&next) + sealed.len());
        let fresh = !next.shares_access(&self.session);
        Some(Outcome::Renewed { next: Arc::new(next), handle, weight, fresh })
    }

    /// Spends the refresh token. Only a try of which the provider knows nothing is made again at leisure; one whose
    /// outcome is unknown once, at once, and then for as long as the leeway runs that the provider is known to have.
    async fn spend(&self, mut lock: Option<(&dyn Shared, &mut Held)>) -> (Outcome, &'static str) {
        let Some(text) = self.session.refresh_token.as_ref().and_then(|token| token.unpack()) else {
            return (Outcome::Dead("no_refresh_token"), "no_refresh_token");
        };
        let settings = &self.terms.settings;
        let token = RefreshToken::new(text);
        let expect = RefreshExpectation {
            provider: self.session.provider,
            subject: self.session.subject.clone(),
            auth_time: self.session.auth_time,
            nonce_hash: self.session.nonce_hash,
            dpop: self.session.dpop.clone(),
        };
        let target = self.aside.as_ref().map(|aside| &aside.target);
        let deadline = Instant::now() + settings.wait;
        let mut retries = 0;
        let mut doubts = 0;
        let mut first_sent = None;
        // Then a token is as good after a lost answer as before.
        let rotates_not = settings.rotation == Some(Rotation::None);
        loop {
            let Ok(permit) = timeout_at(deadline, self.coordinator.tries.acquire()).await else {
                let outcome = if doubts > 0 { Outcome::Ambiguous } else { Outcome::Retry { after: None } };
                return (outcome, "overloaded");
            };
            if let Some((shared, held)) = &mut lock
                && !held.allows(*shared, self.flight.handle()).await.unwrap_or(false)
            {
                return (Outcome::Retry { after: None }, "lock_lost");
            }
            let admitted = self.coordinator.breaker.lock().admit(Instant::now());
            if let Err(pause) = admitted {
                let outcome = if doubts > 0 { Outcome::Ambiguous } else { Outcome::Retry { after: Some(pause) } };
                return (outcome, "provider_spared");
            }
            let now = self.coordinator.clock.now();
            let tried = Instant::now();
            let sent = *first_sent.get_or_insert(tried);
            let request = RefreshRequest { token: &token, target, expect: &expect, now };
            let answer = timeout(settings.timeout, self.terms.grant.refresh(request)).await;
            drop(permit);
            let answer = answer.unwrap_or(Err(ProviderError::Ambiguous { reason: "timeout" }));
            self.report(&answer, tried);
            match answer {
                Ok(tokens) => return (self.renewed(tokens, &token).await, "ok"),
                Err(ProviderError::Dead { reason }) => return (Outcome::Dead(reason), reason),
                Err(ProviderError::Invalid { reason }) => return (Outcome::Mismatch(reason), reason),
                Err(ProviderError::Refused { reason }) => return (Outcome::Config, reason),
                Err(ProviderError::Ambiguous { reason }) if !rotates_not => {
                    doubts += 1;
                    let pause = if doubts == 1 { Duration::ZERO } else { RETRY_PAUSE.saturating_mul(1 << doubts) };
                    let forgiven = doubts < DOUBTFUL_TRIES && Instant::now() + pause < sent + settings.leeway;
                    if doubts > 1 && !forgiven {
                        return (Outcome::Ambiguous, reason);
                    }
                    sleep(pause).await;
                    let known = self.coordinator.newest(self.flight.session());
                    if known.is_some_and(|newest| newest.generation > self.session.generation) {
                        return (Outcome::Ambiguous, "overtaken");
                    }
                    if let Some((shared, _)) = &lock
                        && let Ok(Rung::Renewed(sealed)) = shared.read(self.flight.handle()).await
                        && let Some(outcome) = self.adopt(&sealed)
                    {
                        return (outcome, ADOPTED);
                    }
                }
                Err(error @ (ProviderError::Ambiguous { .. } | ProviderError::Unavailable { .. })) => {
                    let after = match error {
                        ProviderError::Unavailable { retry_after, .. } => retry_after,
                        _ => None,
                    };
                    let after = after.map(|after| after.min(RETRY_AFTER_MAX));
                    let pause = after.unwrap_or_else(|| RETRY_PAUSE.saturating_mul(1 << retries));
                    if retries == RETRIES || Instant::now() + pause >= deadline {
                        return (Outcome::Retry { after }, error.reason());
                    }
                    retries += 1;
                    sleep(pause).await;
                }
            }
        }
    }

    /// Tells the breaker. A provider that asks for patience is there; one that says 5xx is not.
    fn report(&self, answer: &Result<TokenSet, ProviderError>, sent: Instant) {
        let absent = match answer {
            Err(ProviderError::Unavailable { reason, .. }) => *reason != "rate_limited",
            Err(ProviderError::Ambiguous { .. }) => true,
            Ok(_) | Err(_) => false,
        };
        let turn = {
            let mut breaker = self.coordinator.breaker.lock();
            let now = Instant::now();
            if absent { breaker.failed(self.flight.session(), sent, now) } else { breaker.answered(now) }
        };
        self.coordinator.told(turn);
    }

    async fn renewed(&self, tokens: TokenSet, spent: &RefreshToken) -> Outcome {
        let (handles, clock) = (&*self.terms.handles, &self.coordinator.clock);
        if let Some(aside) = &self.aside {
            let judged = token::judge_target(&aside.target, &tokens, &self.session.access_token);
            *aside.given.lock() = Some(match judged {
                Ok(()) => Ok((tokens.access_token.clone(), tokens.access_expires)),
                Err(error) => Err(error),
            });
            if tokens.refresh_token.as_ref().is_none_or(|next| next.expose() == spent.expose()) {
                return Outcome::Unspent;
            }
        }
        let longest = |token: Option<&str>, old: usize| token.map_or(old, str::len);
        let id_token = longest(tokens.id_token.as_ref().map(|token| token.expose()), self.kept_id_token());
        let refresh_token = longest(tokens.refresh_token.as_ref().map(|token| token.expose()), spent.expose().len());
        let now = clock.now();
        let next = match self.aside {
            None => self.session.refreshed(tokens, self.flight.handle(), handles.index_key(now), now),
            Some(_) => self.session.rotated(&tokens, self.flight.handle(), handles.index_key(now)),
        };
        let next = match handles.keep(next).await {
            Keeping::Kept(next) | Keeping::Newer(next) => *next,
            Keeping::Gone => return Outcome::Ended,
        };
        let weight = rounded(weight(&next) + id_token + refresh_token);
        let handle = handle(handles, &next);
        Outcome::Renewed { next: Arc::new(next), handle, weight, fresh: self.aside.is_none() }
    }

    /// What a flight for something else came to: for the session, and for who asked. What the provider says there is said
    /// of the other token; only that nobody knows whether the refresh token is spent, and that an answer was somebody
    /// else's, concerns the session.
    fn told_aside(&mut self, outcome: Outcome, reason: &'static str) -> (Outcome, Option<Told>) {
        let Some(Aside { given, sender, .. }) = self.aside.take() else { return (outcome, None) };
        let given = given.into_inner();
        let failed = match &outcome {
            Outcome::Dead(_) => Some(ProviderError::Dead { reason }),
            Outcome::Config => Some(ProviderError::Refused { reason }),
            Outcome::Retry { after } => Some(ProviderError::Unavailable { reason, retry_after: *after }),
            _ => None,
        };
        match failed {
            Some(error) => (Outcome::Unspent, Some((sender, Some(Err(error))))),
            None => (outcome, Some((sender, given))),
        }
    }

    /// A guess: to unpack a token only to measure it is not worth it.
    fn kept_id_token(&self) -> usize {
        if self.session.id_token.is_some() { 1024 } else { 0 }
    }

    /// Tells the engine, the observer, and those who wait, in this order.
    fn land(&mut self, outcome: Outcome, reason: &'static str) {
        let Some(sender) = self.sender.take() else { return };
        let word = match &outcome {
            Outcome::Renewed { .. } | Outcome::Unspent | Outcome::Ended => "ok",
            Outcome::Dead(_) | Outcome::Mismatch(_) => "dead",
            Outcome::Retry { .. } => "retry",
            Outcome::Ambiguous => "ambiguous",
            Outcome::Config => "config",
        };
        let (outcome, given) = self.told_aside(outcome, reason);
        let observer = Arc::clone(&self.terms.observer);
        let Some(shard) = self.coordinator.shard(self.flight.session()) else { return };
        let (landing, told) = {
            let (mut shard, now) = self.coordinator.enter(shard);
            let landing = shard.engine.settled(self.flight, outcome, now);
            shard.flights.remove(&self.flight);
            let told = matches!(landing, Landing::Over(_)) && shard.engine.tell(self.flight.session(), now);
            (landing, told)
        };
        // What another replica refreshed is counted there.
        if reason == ADOPTED {
            observer.joined();
        } else if given.is_none() {
            observer.refreshed(&self.session, word, reason, self.began.elapsed());
        }
        match &landing {
            Landing::Renewed(_) => self.coordinator.tell(Change::Renewed(self.flight.session())),
            Landing::Over(_) => self.coordinator.tell(Change::Ended(self.flight.session())),
            _ => {}
        }
        if let (true, Landing::Over(reason)) = (told, &landing) {
            observer.session_ended(&self.session, *reason);
        }
        if let (Some((sender, Some(given))), false) = (given, matches!(landing, Landing::Over(_))) {
            // Fails when nobody waits any more.
            let _ = sender.send(given);
        }
        sender.send_replace(Some(landing));
        self.coordinator.aloft.send_modify(|flights| *flights = flights.saturating_sub(1));
    }
}

/// A result that other replicas are yet to learn of.
struct ToTell(Arc<Coordinator>);

impl ToTell {
    fn new(coordinator: &Arc<Coordinator>) -> Self {
        coordinator.aloft.send_modify(|flights| *flights += 1);
        Self(Arc::clone(coordinator))
    }
}

impl Drop for ToTell {
    fn drop(&mut self) {
        self.0.aloft.send_modify(|flights| *flights = flights.saturating_sub(1));
    }
}

impl Drop for Aloft {
    fn drop(&mut self) {
        self.land(Outcome::Ambiguous, "interrupted");
    }
}

/// With what an allocator adds, which has blocks of a few sizes and pages that are not full: three sixteenths, by
/// `tests/refresh_memory.rs`.
fn rounded(bytes: usize) -> usize {
    bytes + bytes * 3 / 16
}

/// What a session occupies without its packed tokens, about.
fn weight(session: &Session) -> usize {
    fn json(value: &serde_json::Value) -> usize {
        let inner = match value {
            serde_json::Value::String(text) => text.len(),
            serde_json::Value::Array(items) => items.iter().map(json).sum(),
            serde_json::Value::Object(members) => members.iter().map(|(key, value)| 32 + key.len() + json(value)).sum(),
            _ => 0,
        };
        size_of::<serde_json::Value>() + inner
    }
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    // A node of the map has room for eleven, and is at least half full but for the only one.
    let node = 16 + 11 * (size_of::<String>() + size_of::<serde_json::Value>());
    let texts: usize = session.claims.iter().map(|(name, value)| 16 + name.len() + json(value)).sum();
    let claims = session.claims.len().div_ceil(6) * node + texts;
    size_of::<Session>()
        + session.access_token.expose().len()
        + session.subject.len()
        + text(&session.scope)
        + text(&session.provider_sid)
        + text(&session.acr)
        + claims
}

#[cfg(test)]
mod tests;
