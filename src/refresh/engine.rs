//! What a request may do about its token, decided without a lock, a timer or a socket.
//!
//! One engine keeps a *line* per session: for every refresh token that was spent or is being spent, named by its
//! [`Handle`], one entry.
//!
//! ```text
//! (nothing) => Flying                                    present: the caller spends the token
//! Flying    => Renewed | Dead | BackOff | Config         settled
//! Flying    => (nothing)                                 settled, and the token was not spent
//! Renewed   => Renewed, acknowledged                     present of the next generation: delivered
//! acknowledged => Spent                                  after `grace`: all that is left is that it was spent
//! BackOff   => Flying                                    present, after the pause
//! any but Flying => (nothing)                            its time is over, the session was ended, or memory is short
//! ```
//!
//! A `Renewed` entry is the hand-off: whoever still presents the spent token gets its successor, until the new cookie
//! was seen (`recovery`) and a moment longer (`grace`). A token that has an entry here is never spent twice.
//!
//! Refreshing early does not hold up a burst: the request that starts the flight waits for it, the others go on with
//! the token that is still good.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::policy::{self, Demand, Due, EndReason, Facts};
use super::{OnReuse, Settings};
use crate::clock::Timestamp;
use crate::session::model::{Handle, Session, SessionId};

/// How long the provider's "dead" is believed without asking again.
const DEAD_FOR: Duration = Duration::from_secs(10);
/// How long "your client is misconfigured" is believed: short, since the operator is at work on it.
const CONFIG_FOR: Duration = Duration::from_secs(1);
/// The shortest pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause that we ask of requests whose token is over, whatever the provider's `Retry-After`.
const HARD_PAUSE_MAX: Duration = Duration::from_secs(10);
/// The longest pause between early tries, which nobody waits for.
const SOFT_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long after a pause the next failure still counts as one more in a row.
const STREAK: Duration = Duration::from_secs(60);
/// The least time that a session ended by a bad answer stays ended.
const ENDED_FOR: Duration = Duration::from_secs(24 * 3600);
/// A wall clock that is set by less than this changes nothing of what is kept.
const JUMP_MIN: u64 = 2_000;
/// What one entry costs besides the session that it holds: the line, the map and the queue, with what the allocator and
/// half-empty tables take.
const ENTRY: usize = 480;

/// One spending of one refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlightId {
    session: SessionId,
    handle: Handle,
    number: u64,
}

impl FlightId {
    /// The session whose token is spent.
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// The token that is spent.
    pub fn handle(&self) -> Handle {
        self.handle
    }
}

/// What a request may do.
#[derive(Clone, Debug)]
pub struct Advice {
    /// A newer generation than the presented one: everything below is about it, and the browser gets its cookie.
    pub successor: Option<Arc<Session>>,
    /// The presented token is not the one that this generation has here: its successor's grace is over, or two replicas
    /// refreshed one generation, or somebody has a copy of the cookie.
    pub forked: bool,
    /// The request asked for a newer token than it has: going on with the old one is no answer to it.
    pub insists: bool,
    /// The next step.
    pub step: Step,
}

/// The next step of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The token is good to be sent.
    Forward,
    /// Spend the refresh token, exactly once, and report by [`Engine::settled`].
    Start(FlightId),
    /// The refresh token has to be spent, but the request did not bring it.
    Bring,
    /// Somebody is spending it: wait for that result.
    Join(FlightId),
    /// The provider failed a moment ago.
    BackOff { until: Timestamp },
    /// The provider refused our client a moment ago.
    Config,
    /// The session is over.
    Over(EndReason),
    /// The token is good to its end, but cannot be renewed as the request asked.
    Exhausted(EndReason),
}

/// How a flight ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The provider gave new tokens.
    Renewed {
        /// The next generation.
        next: Arc<Session>,
        /// Names its refresh token.
        handle: Handle,
        /// What it occupies, in bytes.
        weight: usize,
        /// Its access token is a new one; else the refresh token was spent for something else.
        fresh: bool,
    },
    /// The refresh token was used for something else, and is as good as before.
    Unspent,
    /// The provider says that the token is spent or revoked.
    Dead(&'static str),
    /// The answer was of another user or another login: its tokens must not be used, nor the session go on.
    Mismatch(&'static str),
    /// The provider gave new tokens, but the session was ended meanwhile, elsewhere, and told of there.
    Ended,
    /// Nothing happened there; `after` as the provider wished.
    Retry { after: Option<Duration> },
    /// Nobody knows what happened there.
    Ambiguous,
    /// Our client is misconfigured there.
    Config,
}

/// What a settled flight means to those who wait for it.
#[derive(Clone, Debug)]
pub enum Landing {
    /// Use this one.
    Renewed(Arc<Session>),
    /// The session is over.
    Over(EndReason),
    /// Nothing came of it for the session, and nothing has changed: ask again at once.
    Unspent,
    /// No result; ask again from then on.
    Unavailable { until: Timestamp },
    /// Our client is misconfigured at the provider.
    Refused,
}

/// What is kept, for the gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Results kept for those who still carry an older cookie.
    pub entries: usize,
    /// What everything kept occupies, about.
    pub bytes: usize,
    /// Tokens that are being spent.
    pub flights: usize,
}

/// What a presented session is.
#[derive(Clone, Debug)]
pub enum Recognised {
    /// The newest that is known here, or unknown.
    Current,
    /// Behind: this is the newest.
    Newer(Arc<Session>),
    /// Ended here.
    Ended,
    /// Its token was spent, and its successor was in use for longer than `grace`. `ends`: that ended the session.
    Reused { ends: bool },
    /// That, and `on_reuse` ignores it: it goes on as it came.
    Forgiven,
}

/// See the module.
pub struct Engine {
    settings: Settings,
    lines: HashMap<SessionId, Line>,
    ledger: Ledger,
    numbers: u64,
    /// The most tombstones.
    tombstones: usize,
    /// Tokens whose results were acknowledged and that nobody asked for yet.
    delivered: Vec<Handle>,
    /// By how many milliseconds the wall clock has been set, as far as it was followed.
    astray: i64,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("load", &self.load()).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine that knows nothing. `settings.memory` bounds this engine, tombstones apart.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            lines: HashMap::new(),
            ledger: Ledger::default(),
            numbers: 0,
            tombstones: usize::MAX,
            delivered: Vec::new(),
            astray: 0,
        }
    }

    /// The wall clock was set, by so many milliseconds in all: what is kept for a while is kept for that while
    /// nevertheless, and an hour that is jumped over makes no cookie a reused one. Tombstones stay: they last until the
    /// session's end, which is a time of the wall clock.
    pub fn follow(&mut self, astray: i64) {
        let by = astray.saturating_sub(self.astray);
        if by.unsigned_abs() < JUMP_MIN {
            return;
        }
        self.astray = astray;
        for entry in self.lines.values_mut().flat_map(|line| &mut line.entries) {
            entry.since = entry.since.shifted(by);
            entry.until = entry.until.shifted(by);
            if let State::BackOff { hard, soft, .. } = &mut entry.state {
                *hard = hard.shifted(by);
                *soft = soft.shifted(by);
            }
        }
    }

    /// Bounds the number of tombstones. They have a bound of their own, so that no amount of refreshes lets a session
    /// come back that was ended; beyond it the oldest goes.
    #[must_use]
    pub fn with_tombstones(self, tombstones: usize) -> Self {
        Self { tombstones, ..self }
    }

    /// Goes by other settings from now on; a smaller memory makes room with the next result. That the provider refused
    /// our client is forgotten: that may be what was mended.
    pub fn replace_settings(&mut self, settings: Settings) {
        self.settings = settings;
        let Self { lines, ledger, .. } = self;
        lines.retain(|_, line| {
            for entry in line.entries.extract_if(.., |entry| matches!(entry.state, State::Config)) {
                ledger.strike(&entry);
            }
            !line.is_empty()
        });
    }

    /// The answer where no handle is needed to give it: naming a token costs a MAC, and most requests carry the newest
    /// token and it is not due. Acknowledges like [`Self::present`].
    pub fn glance(&mut self, facts: &Facts, demand: Demand, now: Timestamp) -> Option<Advice> {
        self.prune(facts.id, now);
        if let Some(line) = self.lines.get_mut(&facts.id) {
            if line.is_ended() {
                return Some(Advice::of(Step::Over(EndReason::Ended)));
            }
            if line.is_reuse(facts) && self.settings.on_reuse != OnReuse::Ignore {
                if self.settings.on_reuse == OnReuse::Revoke {
                    self.end(facts.id, now + self.settings.recovery.max(ENDED_FOR), false);
                }
                return Some(Advice::of(Step::Over(EndReason::Reuse)));
            }
            line.acknowledge(facts, now + self.settings.grace, &mut self.ledger, &mut self.delivered);
            if line.newest().is_some_and(|newest| newest.generation > facts.generation) {
                return None;
            }
        }
        let wanted = match demand {
            Demand::IfDue => false,
            Demand::Now | Demand::Aside => true,
            Demand::OlderThan(limit) => now.since(facts.issued) > limit,
        };
        let idle = !wanted && policy::due(facts, &self.settings, now) == Due::Not;
        idle.then(|| Advice::of(Step::Forward))
    }

    /// The tokens whose results were acknowledged since this was last asked: other replicas may drop them as soon.
    pub fn take_delivered(&mut self) -> Vec<Handle> {
        std::mem::take(&mut self.delivered)
    }

    /// What is known of a session that a request presents, before anything is asked of its token.
    pub fn recognise(&mut self, facts: &Facts, now: Timestamp) -> Recognised {
        self.prune(facts.id, now);
        let Some(line) = self.lines.get(&facts.id) else { return Recognised::Current };
        if line.is_ended() {
            return Recognised::Ended;
        }
        let reused = line.is_reuse(facts);
        if reused {
            match self.settings.on_reuse {
                OnReuse::Ignore => {}
                OnReuse::Reauthenticate => return Recognised::Reused { ends: false },
                OnReuse::Revoke => {
                    self.end(facts.id, now + self.settings.recovery.max(ENDED_FOR), true);
                    return Recognised::Reused { ends: true };
                }
            }
        }
        match line.newest().filter(|newest| newest.generation > facts.generation) {
            Some(newest) => Recognised::Newer(newest.clone()),
            None if reused => Recognised::Forgiven,
            None => Recognised::Current,
        }
    }

    /// A request presents a session whose refresh token is named `handle`. `may_start`: there is room for one more that
    /// waits.
    pub fn present(
        &mut self,
        facts: &Facts,
        handle: Handle,
        demand: Demand,
        may_start: bool,
        now: Timestamp,
    ) -> Advice {
        if let Some(advice) = self.glance(facts, demand, now) {
            return advice;
        }
        let line = self.lines.get(&facts.id);
        let forked = line.is_some_and(|line| line.is_fork(facts, handle));
        if forked && self.settings.fork_is_reuse() && self.settings.on_reuse != OnReuse::Ignore {
            if self.settings.on_reuse == OnReuse::Revoke {
                self.end(facts.id, now + self.settings.recovery.max(ENDED_FOR), false);
            }
            return Advice { forked, ..Advice::of(Step::Over(EndReason::Reuse)) };
        }
        let found = line.and_then(|line| line.walk(facts, handle));
        let (facts, handle) = found.as_ref().map_or((*facts, handle), |found| (Facts::of(&found.next), found.handle));
        let insists = match demand {
            Demand::IfDue => false,
            Demand::Now => found.as_ref().is_none_or(|found| !found.fresh),
            Demand::Aside => true,
            Demand::OlderThan(limit) => now.since(facts.issued) > limit,
        };
        let step = self.step(&facts, handle, insists, may_start, now);
        let forked = forked || found.as_ref().is_some_and(|found| found.unknown);
        Advice { successor: found.map(|found| found.next), forked, insists, step }
    }

    fn step(&mut self, facts: &Facts, handle: Handle, insists: bool, may_start: bool, now: Timestamp) -> Step {
        let due = policy::due(facts, &self.settings, now);
        if due == Due::Not && !insists {
            return Step::Forward;
        }
        let usable = due != Due::Over;
        let goes_on = usable && !insists;
        let state = self.lines.get(&facts.id).and_then(|line| line.find(handle)).map(|entry| &entry.state);
        let mut failures = 0;
        match state {
            Some(State::Config | State::Renewed { .. } | State::Spent) if goes_on => return Step::Forward,
            Some(State::Flying { .. }) if goes_on && !self.settings.kills_access_token => return Step::Forward,
            Some(State::Flying { number, .. }) => {
                return Step::Join(FlightId { session: facts.id, handle, number: *number });
            }
            Some(State::Dead { reason, .. }) => return Step::Over(EndReason::Dead(reason)),
            Some(State::Config) => return Step::Config,
            Some(State::BackOff { soft, .. }) if goes_on && now < *soft => return Step::Forward,
            Some(State::BackOff { hard, .. }) if !goes_on && now < *hard => return Step::BackOff { until: *hard },
            Some(State::BackOff { failures: before, .. }) => failures = *before,
            // The walk ends where no result is; to spend this one again would be the fault that we are here to prevent.
            Some(State::Renewed { .. } | State::Spent) => return Step::BackOff { until: now + PAUSE },
            None => {}
        }
        match policy::renewable(facts, &self.settings, now) {
            Ok(()) if (facts.elsewhere || !may_start) && goes_on => Step::Forward,
            Ok(()) if facts.elsewhere => Step::Bring,
            Ok(()) if !may_start => Step::BackOff { until: now + PAUSE },
            Ok(()) => Step::Start(self.start(facts, handle, failures, now)),
            Err(_) if goes_on => Step::Forward,
            Err(reason) if usable => Step::Exhausted(reason),
            Err(reason) => Step::Over(reason),
        }
    }

    fn start(&mut self, facts: &Facts, handle: Handle, failures: u32, now: Timestamp) -> FlightId {
        self.numbers += 1;
        let number = self.numbers;
        let line = self.lines.entry(facts.id).or_default();
        line.id = Some(facts.id);
        line.remove(handle, &mut self.ledger);
        line.push(Entry {
            handle,
            generation: facts.generation,
            state: State::Flying { number, failures },
            since: now,
            until: Timestamp::from_millis(u64::MAX),
            weight: ENTRY,
            place: None,
        });
        self.ledger.bytes += ENTRY;
        self.ledger.flights += 1;
        FlightId { session: facts.id, handle, number }
    }

    /// A flight is over. Says what that means to those who wait; once per flight.
    pub fn settled(&mut self, flight: FlightId, outcome: Outcome, now: Timestamp) -> Landing {
        self.prune(flight.session, now);
        let Some(line) = self.lines.get_mut(&flight.session) else { return Landing::Unavailable { until: now } };
        let flying = line.find(flight.handle).and_then(|entry| match entry.state {
            State::Flying { number, failures } if number == flight.number => Some((entry.generation, failures)),
            _ => None,
        });
        let Some((generation, failures)) = flying else { return Landing::Unavailable { until: now } };
        line.remove(flight.handle, &mut self.ledger);
        if line.mark.as_ref().is_some_and(|mark| mark.ended && mark.until > now) {
            return Landing::Over(EndReason::Ended);
        }
        // No result, but a request has meanwhile brought what another replica made of it, and it went on from there.
        let newer = line.newest().filter(|newest| newest.generation > generation);
        if let (Outcome::Dead(_) | Outcome::Ambiguous | Outcome::Retry { .. }, Some(newer)) = (&outcome, newer) {
            return Landing::Renewed(newer.clone());
        }
        let (state, until, weight, landing) = match outcome {
            Outcome::Unspent => {
                self.prune(flight.session, now);
                return Landing::Unspent;
            }
            Outcome::Renewed { next, handle, weight, fresh } if next.generation > generation => {
                let landing = Landing::Renewed(next.clone());
                // Of no use to anybody when both of its tokens are over.
                let life = next.refresh_expires.zip(next.access_expires).map(|(refresh, access)| refresh.max(access));
                let until = now + self.settings.recovery;
                let until = life.map_or(until, |life| until.min(life));
                (State::Renewed { next, handle, fresh, acknowledged: false }, until, weight, landing)
            }
            Outcome::Dead(reason) => {
                (State::Dead { reason }, now + DEAD_FOR, 0, Landing::Over(EndReason::Dead(reason)))
            }
            Outcome::Mismatch(reason) => {
                self.end(flight.session, now + self.settings.recovery.max(ENDED_FOR), false);
                return Landing::Over(EndReason::Mismatch(reason));
            }
            Outcome::Ended => {
                self.end(flight.session, now + self.settings.recovery.max(ENDED_FOR), true);
                return Landing::Over(EndReason::Ended);
            }
            Outcome::Config => (State::Config, now + CONFIG_FOR, 0, Landing::Refused),
            Outcome::Retry { .. } | Outcome::Ambiguous | Outcome::Renewed { .. } => {
                let after = if let Outcome::Retry { after } = outcome { after } else { None };
                let pause = after.unwrap_or(PAUSE).clamp(PAUSE, HARD_PAUSE_MAX);
                let hard = now + pause;
                let soft = now + pause.max(PAUSE.saturating_mul(1 << failures.min(5)).min(SOFT_PAUSE_MAX));
                let state = State::BackOff { hard, soft, failures: failures.saturating_add(1) };
                (state, soft + STREAK, 0, Landing::Unavailable { until: hard })
            }
        };
        let weight = weight.saturating_add(ENTRY);
        let place = self.ledger.enter(Rank::Kept, (flight.session, Some(flight.handle)), weight);
        if matches!(state, State::Renewed { .. }) {
            self.ledger.results += 1;
        }
        let entry = Entry { handle: flight.handle, generation, state, since: now, until, weight, place: Some(place) };
        self.lines.entry(flight.session).or_default().push(entry);
        self.shed(place);
        landing
    }

    /// The session was ended, by a logout for example: until then no generation of it is used, and results of flights
    /// that are still in the air are dropped.
    pub fn tombstone(&mut self, id: SessionId, until: Timestamp) {
        self.end(id, until, true);
    }

    /// The session is ended here.
    pub fn is_ended(&self, id: SessionId, now: Timestamp) -> bool {
        self.lines.get(&id).and_then(|line| line.mark.as_ref()).is_some_and(|mark| mark.ended && mark.until > now)
    }

    /// The provider called this refresh token dead a moment ago.
    pub fn is_dead(&self, id: SessionId, handle: Handle, now: Timestamp) -> bool {
        let entry = self.lines.get(&id).and_then(|line| line.find(handle));
        entry.is_some_and(|entry| matches!(entry.state, State::Dead { .. }) && entry.until > now)
    }

    /// True for the first caller only, as long as the session is remembered: the end of a session is told once.
    pub fn tell(&mut self, id: SessionId, now: Timestamp) -> bool {
        self.prune(id, now);
        if let Some(mark) = self.lines.get_mut(&id).and_then(|line| line.mark.as_mut()) {
            return !std::mem::replace(&mut mark.told, true);
        }
        self.mark(id, Mark { ended: false, told: true, until: now + self.settings.recovery, place: Place::default() });
        true
    }

    /// The newest generation known, for responses that are about to leave.
    pub fn newest(&self, id: SessionId, now: Timestamp) -> Option<Arc<Session>> {
        let line = self.lines.get(&id).filter(|_| !self.is_ended(id, now))?;
        let results = line.entries.iter().filter(|entry| !entry.is_past(now)).filter_map(Entry::result);
        results.map(|(next, _)| next).max_by_key(|next| next.generation).cloned()
    }

    /// The generation was given up long ago: its cookie must not be set again.
    pub fn is_behind(&mut self, facts: &Facts, now: Timestamp) -> bool {
        self.prune(facts.id, now);
        self.lines.get(&facts.id).is_some_and(|line| line.is_reuse(facts))
    }

    /// Drops everything whose time is over.
    pub fn sweep(&mut self, now: Timestamp) {
        let Self { lines, ledger, settings, .. } = self;
        let recovery = settings.recovery;
        lines.retain(|_, line| {
            line.prune(now, recovery, ledger);
            !line.is_empty()
        });
    }

    /// For the gauges.
    pub fn load(&self) -> Load {
        Load { entries: self.ledger.results, bytes: self.ledger.bytes, flights: self.ledger.flights }
    }

    fn end(&mut self, id: SessionId, until: Timestamp, told: bool) {
        let line = self.lines.entry(id).or_default();
        for entry in line.entries.extract_if(.., |entry| !entry.is_flying()) {
            self.ledger.strike(&entry);
        }
        let before = line.mark.take();
        if let Some(mark) = &before {
            self.ledger.leave(mark.place, ENTRY);
        }
        let (until, told) = before.map_or((until, told), |mark| (until.max(mark.until), told || mark.told));
        self.mark(id, Mark { ended: true, told, until, place: Place::default() });
    }

    fn mark(&mut self, id: SessionId, mark: Mark) {
        let rank = if mark.ended { Rank::Tombstone } else { Rank::Kept };
        let place = self.ledger.enter(rank, (id, None), ENTRY);
        self.lines.entry(id).or_default().mark = Some(Mark { place, ..mark });
        self.shed(place);
    }

    fn prune(&mut self, id: SessionId, now: Timestamp) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.prune(now, self.settings.recovery, &mut self.ledger);
            if line.is_empty() {
                self.lines.remove(&id);
            }
        }
    }

    /// Back within bounds: acknowledged results go first, then the oldest. `spare` is what was just learned: it stays,
    /// for at this moment somebody waits for it.
    fn shed(&mut self, spare: Place) {
        while self.ledger.bytes > self.settings.memory {
            let mut kept = self.ledger.order.range(..FIRST_TOMBSTONE);
            let Some((_, what)) = kept.find(|(place, _)| **place != spare) else { break };
            if !self.give_up(*what) {
                break;
            }
        }
        while self.ledger.tombstones > self.tombstones {
            let mut graves = self.ledger.order.range(FIRST_TOMBSTONE..);
            let Some((_, what)) = graves.find(|(place, _)| **place != spare) else { break };
            if !self.give_up(*what) {
                break;
            }
        }
    }

    /// False when it is not there, which would be a bug: better over the bound than in here for ever.
    fn give_up(&mut self, (id, what): (SessionId, Option<Handle>)) -> bool {
        let Some(line) = self.lines.get_mut(&id) else { return false };
        match what {
            Some(handle) => line.remove(handle, &mut self.ledger),
            None => {
                if let Some(mark) = line.mark.take() {
                    self.ledger.leave(mark.place, ENTRY);
                }
            }
        }
        if line.is_empty() {
            self.lines.remove(&id);
        }
        true
    }
}

impl Advice {
    const fn of(step: Step) -> Self {
        Self { successor: None, forked: false, insists: false, step }
    }
}

/// All that is known of one session.
#[derive(Default)]
struct Line {
    /// Of the session; none in a line that was just made.
    id: Option<SessionId>,
    entries: Vec<Entry>,
    mark: Option<Mark>,
}

/// What became of one refresh token.
struct Entry {
    handle: Handle,
    /// Of the session that it belongs to.
    generation: u64,
    state: State,
    since: Timestamp,
    until: Timestamp,
    weight: usize,
    /// In the queue for eviction; a flight is in none.
    place: Option<Place>,
}

enum State {
    Flying {
        number: u64,
        failures: u32,
    },
    Renewed {
        next: Arc<Session>,
        /// Of `next`.
        handle: Handle,
        /// With a new access token.
        fresh: bool,
        acknowledged: bool,
    },
    /// Spent long ago; kept to know a reuse by.
    Spent,
    Dead {
        reason: &'static str,
    },
    BackOff {
        /// Nobody asks before.
        hard: Timestamp,
        /// Nobody whose token is still good asks before.
        soft: Timestamp,
        failures: u32,
    },
    Config,
}

/// What outlives a session's entries.
struct Mark {
    /// A tombstone: nothing of the session counts.
    ended: bool,
    /// Its end was told.
    told: bool,
    until: Timestamp,
    place: Place,
}

/// Where a walk over results came out.
struct Found {
    next: Arc<Session>,
    handle: Handle,
    unknown: bool,
    /// Its access token is newer than the presented one.
    fresh: bool,
}

impl Entry {
    fn is_flying(&self) -> bool {
        matches!(self.state, State::Flying { .. })
    }

    /// Over, or a failure that a clock set back would prolong.
    fn is_past(&self, now: Timestamp) -> bool {
        let failed = !matches!(self.state, State::Flying { .. } | State::Renewed { .. } | State::Spent);
        self.until <= now || failed && now < self.since
    }

    /// A result with a new access token.
    fn is_fresh(&self) -> bool {
        matches!(self.state, State::Renewed { fresh: true, .. })
    }

    fn result(&self) -> Option<(&Arc<Session>, Handle)> {
        match &self.state {
            State::Renewed { next, handle, .. } => Some((next, *handle)),
            _ => None,
        }
    }
}

impl Line {
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.mark.is_none()
    }

    /// Nearly every line has one entry: room for more is made when they come.
    fn push(&mut self, entry: Entry) {
        self.entries.reserve_exact(1);
        self.entries.push(entry);
    }

    fn is_ended(&self) -> bool {
        self.mark.as_ref().is_some_and(|mark| mark.ended)
    }

    /// Whether the presented generation was given up long ago.
    fn is_reuse(&self, facts: &Facts) -> bool {
        let spent = |entry: &Entry| matches!(entry.state, State::Spent) && entry.generation >= facts.generation;
        self.entries.iter().any(spent)
    }

    fn find(&self, handle: Handle) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.handle == handle)
    }

    /// Another token of the presented generation is known: what came of the one before it.
    fn is_fork(&self, facts: &Facts, handle: Handle) -> bool {
        let mut siblings = self.entries.iter().filter_map(Entry::result);
        siblings.any(|(next, own)| next.generation == facts.generation && own != handle)
    }

    fn newest(&self) -> Option<&Arc<Session>> {
        let results = self.entries.iter().filter_map(Entry::result);
        results.map(|(next, _)| next).max_by_key(|next| next.generation)
    }

    /// From a spent token to the newest generation that came of it. A token of which no result is known, but whose
    /// generation is behind, is not spent either: at a provider that watches for reuse that would end the session.
    /// (What `on_reuse` says is decided on [`Advice::forked`].)
    fn walk(&self, facts: &Facts, handle: Handle) -> Option<Found> {
        let mut found = None;
        let mut at = handle;
        // Every hop is one generation up; the bound only guards against a handle that comes twice.
        for _ in &self.entries {
            let Some(entry) = self.find(at) else { break };
            let Some((next, handle)) = entry.result() else { break };
            let fresh = entry.is_fresh() || found.as_ref().is_some_and(|found: &Found| found.fresh);
            found = Some(Found { next: next.clone(), handle, unknown: false, fresh });
            at = handle;
        }
        if found.is_some() || self.find(handle).is_some_and(Entry::is_flying) {
            return found;
        }
        let results = self.entries.iter().filter_map(Entry::result);
        let (next, handle) = results.max_by_key(|(next, _)| next.generation)?;
        let behind = next.generation > facts.generation;
        let fresh = || self.entries.iter().any(|entry| entry.generation >= facts.generation && entry.is_fresh());
        behind.then(|| Found { next: next.clone(), handle, unknown: true, fresh: fresh() })
    }

    /// The presented session proves the delivery of the generation that it is, and of all before it.
    fn acknowledge(&mut self, facts: &Facts, until: Timestamp, ledger: &mut Ledger, news: &mut Vec<Handle>) {
        for entry in &mut self.entries {
            let delivered =
                facts.previous == Some(entry.handle) || entry.generation.saturating_add(1) < facts.generation;
            if let State::Renewed { acknowledged, .. } = &mut entry.state
                && delivered
                && !*acknowledged
            {
                *acknowledged = true;
                news.push(entry.handle);
                entry.until = entry.until.min(until);
                entry.place = entry.place.map(|place| ledger.demote(place));
            }
        }
    }

    fn remove(&mut self, handle: Handle, ledger: &mut Ledger) {
        if let Some(at) = self.entries.iter().position(|entry| entry.handle == handle) {
            ledger.strike(&self.entries.swap_remove(at));
        }
    }

    fn prune(&mut self, now: Timestamp, recovery: Duration, ledger: &mut Ledger) {
        let mut spent: Option<(Handle, u64, Timestamp)> = None;
        for entry in self.entries.extract_if(.., |entry| entry.is_past(now)) {
            ledger.strike(&entry);
            let until = entry.since + recovery;
            let given_up = matches!(entry.state, State::Renewed { acknowledged: true, .. }) && until > now;
            if given_up && spent.is_none_or(|(_, generation, _)| generation < entry.generation) {
                spent = Some((entry.handle, entry.generation, until));
            }
        }
        if let (Some((handle, generation, until)), Some(id)) = (spent, self.id) {
            // One is enough: whatever is older is behind it.
            for older in self.entries.extract_if(.., |entry| matches!(entry.state, State::Spent)) {
                ledger.strike(&older);
            }
            let place = Some(ledger.enter(Rank::Acknowledged, (id, Some(handle)), ENTRY));
            self.push(Entry { handle, generation, state: State::Spent, since: now, until, weight: ENTRY, place });
        }
        if let Some(mark) = self.mark.take_if(|mark| mark.until <= now) {
            ledger.leave(mark.place, ENTRY);
        }
    }
}

/// What goes first when memory is short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Acknowledged,
    #[default]
    Kept,
    /// A queue of their own: without one a session that was ended could come back.
    Tombstone,
}

/// A place in the queue: rank, then age.
type Place = (Rank, u64);

const FIRST_TOMBSTONE: Place = (Rank::Tombstone, 0);

/// Everything kept, in the order in which it would be given up, and what it all occupies.
#[derive(Default)]
struct Ledger {
    order: BTreeMap<Place, (SessionId, Option<Handle>)>,
    sequence: u64,
    bytes: usize,
    results: usize,
    flights: usize,
    /// Not counted in `bytes`.
    tombstones: usize,
}

impl Ledger {
    fn enter(&mut self, rank: Rank, what: (SessionId, Option<Handle>), weight: usize) -> Place {
        self.sequence += 1;
        let place = (rank, self.sequence);
        self.order.insert(place, what);
        match rank {
            Rank::Tombstone => self.tombstones += 1,
            Rank::Acknowledged | Rank::Kept => self.bytes = self.bytes.saturating_add(weight),
        }
        place
    }

    fn demote(&mut self, place: Place) -> Place {
        let lower = (Rank::Acknowledged, place.1);
        if let Some(what) = self.order.remove(&place) {
            self.order.insert(lower, what);
        }
        lower
    }

    fn leave(&mut self, place: Place, weight: usize) {
        self.order.remove(&place);
        match place.0 {
            Rank::Tombstone => self.tombstones = self.tombstones.saturating_sub(1),
            Rank::Acknowledged | Rank::Kept => self.bytes = self.bytes.saturating_sub(weight),
        }
    }

    fn strike(&mut self, entry: &Entry) {
        match entry.place {
            Some(place) => self.leave(place, entry.weight),
            None => self.bytes = self.bytes.saturating_sub(entry.weight),
        }
        match entry.state {
            State::Renewed { .. } => self.results -= 1,
            State::Flying { .. } => self.flights -= 1,
            _ => {}
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
