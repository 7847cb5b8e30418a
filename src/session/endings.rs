//! Sessions that were ended from outside their browser: by the provider, by the operator, or on another replica.
//!
//! A session that lives in a cookie is known to nobody until the cookie comes. So what is remembered is not the session
//! but the words by which it was ended, each as a keyed hash ([`Name`]): a session is over when one of its names is here
//! and it began before the moment that stands beside it. What is remembered is forgotten when every session that it
//! could mean is over anyway.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

use super::model::SessionId;
use super::store::{By, Ending, Name};
use crate::clock::Timestamp;

/// Names that are remembered, about 130 bytes each. Only the provider, the operator and logouts of other replicas put
/// some there; beyond this the one that would be forgotten next makes room.
const CAPACITY: usize = 200_000;
/// Names that came by front-channel logout, which anybody can send: they push out only each other.
const UNPROVEN: usize = 20_000;

/// Whose sessions end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose<'a> {
    /// One of ours.
    Session(SessionId),
    /// That of one session at the provider.
    ProviderSession { issuer: &'a str, sid: &'a str },
    /// All of a user.
    Subject { issuer: &'a str, subject: &'a str },
    /// Those of a user whose ID token named no session: each of them may be the one that is meant.
    SubjectWithoutSid { issuer: &'a str, subject: &'a str },
    /// Nobody's: a logout token, so that it counts once.
    LogoutToken { issuer: &'a str, jti: &'a str },
}

impl Whose<'_> {
    /// Kind, issuer and value, as they are hashed.
    pub(super) fn parts(&self) -> (u8, &[u8], &[u8]) {
        match self {
            Self::Session(id) => (1, &[], &id.0),
            Self::ProviderSession { issuer, sid } => (2, issuer.as_bytes(), sid.as_bytes()),
            Self::Subject { issuer, subject } => (3, issuer.as_bytes(), subject.as_bytes()),
            Self::SubjectWithoutSid { issuer, subject } => (4, issuer.as_bytes(), subject.as_bytes()),
            Self::LogoutToken { issuer, jti } => (5, issuer.as_bytes(), jti.as_bytes()),
        }
    }
}

/// What is remembered. While it is empty, asking costs one load.
#[derive(Debug)]
pub struct Endings {
    entries: AtomicUsize,
    known: RwLock<Known>,
}

#[derive(Debug)]
struct Known {
    proven: Pool,
    unproven: Pool,
}

/// A bounded memory of its own.
#[derive(Debug)]
struct Pool {
    by_name: HashMap<Name, Ending>,
    /// In the order in which they are forgotten.
    order: BTreeSet<(Timestamp, Name)>,
    capacity: usize,
}

impl Default for Endings {
    fn default() -> Self {
        Self::bounded(CAPACITY, UNPROVEN)
    }
}

impl Endings {
    fn bounded(proven: usize, unproven: usize) -> Self {
        let known = Known { proven: Pool::new(proven), unproven: Pool::new(unproven) };
        Self { entries: AtomicUsize::new(0), known: RwLock::new(known) }
    }

    /// Whether nothing is remembered: no session needs to be looked for.
    pub fn is_empty(&self) -> bool {
        self.entries.load(Ordering::Acquire) == 0
    }

    /// Remembers them. What is known already stays known for the longer time and the later moment.
    pub fn add(&self, endings: &[Ending], now: Timestamp) {
        let mut known = self.known.write();
        for ending in endings.iter().filter(|ending| now < ending.until) {
            known.pool(ending.by).add(*ending, now);
        }
        self.count(&known);
    }

    /// The ending of a session that has these names and began then, if there is one.
    pub fn find(&self, names: &[Name], begun: Timestamp, now: Timestamp) -> Option<Ending> {
        if self.is_empty() {
            return None;
        }
        let known = self.known.read();
        let pools = [&known.proven, &known.unproven];
        let mut found = pools.into_iter().flat_map(|pool| names.iter().filter_map(|name| pool.by_name.get(name)));
        found.find(|ending| begun < ending.begun_before && now < ending.until).copied()
    }

    /// Remembers that something named so was used; true for the first caller only.
    pub fn take(&self, endings: &[Ending], now: Timestamp) -> bool {
        let mut known = self.known.write();
        let fresh = |ending: &Ending| known.proven.by_name.get(&ending.name).is_none_or(|known| known.until <= now);
        let first = endings.iter().all(fresh);
        for ending in endings {
            known.proven.add(*ending, now);
        }
        self.count(&known);
        first
    }

    /// Drops what is past its time.
    pub fn sweep(&self, now: Timestamp) {
        if self.is_empty() {
            return;
        }
        let mut known = self.known.write();
        known.proven.forget(now, usize::MAX);
        known.unproven.forget(now, usize::MAX);
        self.count(&known);
    }

    fn count(&self, known: &Known) {
        self.entries.store(known.proven.by_name.len() + known.unproven.by_name.len(), Ordering::Release);
    }
}

impl Known {
    fn pool(&mut self, by: By) -> &mut Pool {
        if by == By::Frontchannel { &mut self.unproven } else { &mut self.proven }
    }
}

impl Pool {
    fn new(capacity: usize) -> Self {
        Self { by_name: HashMap::new(), order: BTreeSet::new(), capacity }
    }

    fn add(&mut self, ending: Ending, now: Timestamp) {
        let known = self.by_name.get(&ending.name).copied();
        if let Some(known) = known {
            self.order.remove(&(known.until, known.name));
        } else {
            self.forget(now, self.capacity.saturating_sub(1));
        }
        let merged = known.map_or(ending, |known| Ending {
            begun_before: ending.begun_before.max(known.begun_before),
            until: ending.until.max(known.until),
            ..ending
        });
        self.order.insert((merged.until, merged.name));
        self.by_name.insert(merged.name, merged);
    }

    /// Drops what is past its time, and then until there are no more than `most`.
    fn forget(&mut self, now: Timestamp, most: usize) {
        while self.order.first().is_some_and(|(until, _)| *until <= now || self.order.len() > most) {
            if let Some((_, name)) = self.order.pop_first() {
                self.by_name.remove(&name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn at(seconds: u64) -> Timestamp {
        NOW + Duration::from_secs(seconds)
    }

    fn name(number: u64) -> Name {
        Name(u128::from(number).to_be_bytes())
    }

    fn ending(number: u64, begun_before: u64, until: u64, by: By) -> Ending {
        Ending { name: name(number), begun_before: at(begun_before), until: at(until), by }
    }

    /// BCL-05: one name is enough, and only sessions that began before are meant.
    #[test]
    fn an_ending_means_what_began_before_it() {
        let endings = Endings::default();
        assert!(endings.is_empty());
        endings.add(&[ending(1, 100, 1000, By::Backchannel)], at(100));
        let found = |names: &[u64], begun, now| {
            let names: Vec<_> = names.iter().copied().map(name).collect();
            endings.find(&names, at(begun), at(now)).map(|ending| ending.by)
        };
        assert_eq!(found(&[7, 1, 8], 99, 100), Some(By::Backchannel));
        assert_eq!(found(&[7, 8], 99, 100), None);
        assert_eq!(found(&[1], 100, 101), None, "a later login goes on");
        assert_eq!(found(&[1], 0, 999), Some(By::Backchannel));
        assert_eq!(found(&[1], 0, 1000), None);
        // The same again, from another replica: the later moment and the longer time count.
        endings.add(&[ending(1, 200, 900, By::Backchannel)], at(200));
        assert_eq!(found(&[1], 150, 950), Some(By::Backchannel));
        endings.add(&[ending(1, 50, 400, By::Backchannel)], at(200));
        assert_eq!(found(&[1], 150, 950), Some(By::Backchannel));
        endings.sweep(at(1000));
        assert!(endings.is_empty());
        endings.add(&[ending(2, 0, 1000, By::Itself)], at(1000));
        assert!(endings.is_empty(), "news that came too late are none");
    }

    /// BCL-03
    #[test]
    fn a_logout_token_is_taken_once() {
        let endings = Endings::default();
        let token = [ending(1, 0, 300, By::Nobody), ending(2, 0, 300, By::Nobody)];
        assert!(endings.take(&token, at(0)));
        assert!(!endings.take(&token, at(299)));
        // Another replica took it.
        endings.add(&[ending(3, 0, 300, By::Nobody)], at(0));
        assert!(!endings.take(&[ending(3, 0, 300, By::Nobody)], at(1)));
        assert!(endings.find(&[name(1)], Timestamp::from_secs(0), at(1)).is_none_or(|found| found.by == By::Nobody));
    }

    /// BCL-07, DOS-15: bounded, and what anybody can send pushes out nothing that is proven.
    #[test]
    fn the_memory_is_bounded() {
        let endings = Endings::bounded(100, 10);
        endings.add(&[ending(1, 100, 5000, By::Operator)], at(0));
        for number in 0..1000 {
            endings.add(&[ending(1_000 + number, 100, 9000, By::Frontchannel)], at(0));
        }
        assert!(endings.find(&[name(1)], at(0), at(1)).is_some());
        assert_eq!(endings.entries.load(Ordering::Relaxed), 11);
        for number in 0..1000 {
            endings.add(&[ending(10_000 + number, 100, 6000 + number, By::Backchannel)], at(0));
        }
        assert_eq!(endings.entries.load(Ordering::Relaxed), 110);
        assert!(endings.find(&[name(10_999)], at(0), at(1)).is_some(), "what lasts longest stays");
        let known = endings.known.read();
        assert_eq!(known.proven.order.len(), known.proven.by_name.len());
    }
}
