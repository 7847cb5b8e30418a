//! How sessions end otherwise than by their age: here, on all replicas, and which of those that come are over.
//!
//! ```text
//! logout, new login, reuse ─► end ──► tombstone ─┐
//! provider, operator ─► end_outside ─► names ────┴─► announce ─► heard, on the other replicas
//! a session comes ─► is_over: tombstone, or one of its names
//! ```

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::rate::Limiter;
use crate::clock::{Clock, Timestamp};
use crate::metrics::{EndReason, Metrics};
use crate::refresh::coordinator::Coordinator;
use crate::session::endings::{Endings, Whose};
use crate::session::jar::Jar;
use crate::session::store::{Announce, By, Ending, Heard};
use crate::session::{Session, SessionId};
use crate::telemetry::{SubHasher, audit};

/// "Began before now" takes in what began this very moment.
const MOMENT: Duration = Duration::from_millis(1);
/// How far the clocks of replicas may differ for what a provider or an operator ends: a session that began at one whose
/// clock is ahead is meant too. The price is that who logs in again within this time does so once more.
const CLOCKS: Duration = Duration::from_secs(1);
/// How far another replica's clock may be ahead of ours. An id is never used again, so too late does no harm.
const AHEAD: Duration = Duration::from_secs(60);

/// Logout tokens that do not hold, which one client may send at once, and how often after that. Good ones are not
/// counted: a provider may have many sessions to end.
const REFUSED: (u32, Duration) = (100, Duration::from_millis(100));
/// Front-channel requests of one client. They cost memory although nothing proves who asks.
const UNPROVEN: (u32, Duration) = (50, Duration::from_millis(200));

/// See the module.
pub struct Ends {
    /// Of clients that send logout tokens which do not hold.
    pub refused: Limiter,
    /// Of clients that ask by the front channel.
    pub unproven: Limiter,
    endings: Endings,
    /// A reload puts another one in place.
    jar: ArcSwap<Jar>,
    refresh: Arc<Coordinator>,
    metrics: Arc<Metrics>,
    sub_hasher: Arc<SubHasher>,
    clock: Clock,
    replicas: OnceLock<Arc<dyn Announce>>,
}

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ends").finish_non_exhaustive()
    }
}

impl Ends {
    /// Knows of no end yet.
    pub fn new(
        jar: Arc<Jar>,
        refresh: Arc<Coordinator>,
        metrics: Arc<Metrics>,
        sub_hasher: Arc<SubHasher>,
        clock: Clock,
    ) -> Self {
        let (endings, jar) = (Endings::default(), ArcSwap::new(jar));
        let (refused, unproven) = (Limiter::every(REFUSED.1, REFUSED.0), Limiter::every(UNPROVEN.1, UNPROVEN.0));
        Self { refused, unproven, endings, jar, refresh, metrics, sub_hasher, clock, replicas: OnceLock::new() }
    }

    /// Names sessions by another jar from now on.
    pub fn replace_jar(&self, jar: Arc<Jar>) {
        self.jar.store(jar);
    }

    /// Tells the other replicas from now on.
    pub fn share(&self, replicas: Arc<dyn Announce>) {
        // Once is enough: there is one store.
        let _ = self.replicas.set(replicas);
    }

    /// Ends a session whose id is known, here and everywhere. Who calls this tells of it.
    pub fn end(&self, id: SessionId) {
        let now = self.clock.now();
        let until = now + self.jar.load().settings().max_age;
        self.refresh.end(id, until);
        self.announce(&[Whose::Session(id)], now + AHEAD, until, By::Itself);
    }

    /// Ends all sessions that one of these words means and that began until now, here and everywhere. Each of them is
    /// told of when it is next met.
    pub fn end_outside(&self, whose: &[Whose<'_>], by: By) {
        let now = self.clock.now();
        let slack = if self.replicas.get().is_some() { CLOCKS } else { MOMENT };
        let endings = self.endings(whose, now + slack, now + self.jar.load().settings().max_age, by);
        self.endings.add(&endings, now);
        self.tell_replicas(&endings);
    }

    /// Whether a logout token comes for the first time; `until` then it would be refused for its age.
    pub fn is_first(&self, issuer: &str, jti: &str, until: Timestamp) -> bool {
        let token = self.endings(&[Whose::LogoutToken { issuer, jti }], Timestamp::from_secs(0), until, By::Nobody);
        let first = self.endings.take(&token, self.clock.now());
        if first {
            self.tell_replicas(&token);
        }
        first
    }

    /// Whether the session was ended, here or elsewhere.
    pub fn is_over(&self, session: &Session) -> bool {
        self.refresh.is_ended(session.id) || self.was_ended_outside(session)
    }

    /// Whether it was ended by one of its names. The first to notice lays its tombstone and tells of it.
    pub fn was_ended_outside(&self, session: &Session) -> bool {
        if self.endings.is_empty() {
            return false;
        }
        let ending = self.endings.find(&self.jar.load().names_of(session), session.created, self.clock.now());
        let Some(ending) = ending else { return false };
        let reason = match ending.by {
            By::Itself | By::Nobody => None,
            By::Backchannel => Some(EndReason::Backchannel),
            By::Frontchannel => Some(EndReason::Frontchannel),
            By::Operator => Some(EndReason::Operator),
        };
        let first = self.refresh.end_once(session.id, ending.until);
        if let (true, Some(reason)) = (first, reason) {
            self.metrics.observe_session_ended(reason);
            let jar = self.jar.load();
            let issuer = jar.settings().issuer_of(session.provider).unwrap_or_default();
            let sub_hash = self.sub_hasher.hash(issuer, &session.subject);
            let origin = audit::Origin { sub_hash: Some(sub_hash), ..audit::Origin::default() };
            audit::session_ended(&origin, reason.as_str());
        }
        true
    }

    /// Drops what is past its time.
    pub fn sweep(&self) {
        self.endings.sweep(self.clock.now());
    }

    /// The session is over here already: tells the others.
    pub fn spread(&self, id: SessionId) {
        let now = self.clock.now();
        self.announce(&[Whose::Session(id)], now + AHEAD, now + self.jar.load().settings().max_age, By::Itself);
    }

    fn announce(&self, whose: &[Whose<'_>], begun_before: Timestamp, until: Timestamp, by: By) {
        if self.replicas.get().is_some() {
            self.tell_replicas(&self.endings(whose, begun_before, until, by));
        }
    }

    fn tell_replicas(&self, endings: &[Ending]) {
        if let Some(replicas) = self.replicas.get() {
            replicas.announce(endings);
        }
    }

    fn endings(&self, whose: &[Whose<'_>], begun_before: Timestamp, until: Timestamp, by: By) -> Vec<Ending> {
        let names = whose.iter().flat_map(|whose| self.jar.load().names(whose));
        names.map(|name| Ending { name, begun_before, until, by }).collect()
    }
}

impl Heard for Ends {
    fn heard(&self, endings: &[Ending]) {
        self.endings.add(endings, self.clock.now());
    }
}
