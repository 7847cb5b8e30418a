//! How often something may happen for one caller: the generic cell rate algorithm, a leaky bucket that keeps one time for
//! each of them. For the `rate_limit` of routes, and for what anybody may ask of our own endpoints.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::settings::{Rate, Route};
use crate::clock::Timestamp;
use crate::session::SessionId;

/// Callers that are remembered, twice: of more than this at a time the oldest are forgotten. Some 5 MB a route.
const CALLERS: usize = 32 * 1024;
/// From so many on, IPv6 newcomers are counted by /48: who has one has 65 536 networks, and could push out all others.
const CROWDED: usize = CALLERS / 2;

/// Whose requests are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    Session(SessionId),
    /// Of IPv6 the /64: one customer has a whole one.
    Address(IpAddr),
    /// A whole site: the /48 of a newcomer while there are many.
    Site(Ipv6Addr),
    /// All that come without an address, by a unix socket.
    Local,
}

impl Caller {
    /// The caller at an address, if there is one.
    pub fn at(address: Option<IpAddr>) -> Self {
        match address {
            None => Self::Local,
            Some(IpAddr::V6(v6)) => Self::Address(IpAddr::V6(network(v6, 64))),
            Some(v4) => Self::Address(v4),
        }
    }
}

fn network(address: Ipv6Addr, bits: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - bits)))
}

/// Counts what callers do.
pub struct Limiter {
    /// Microseconds that one request takes up.
    interval: u64,
    /// Microseconds that may be taken up in advance.
    burst: u64,
    callers: Mutex<Callers>,
}

/// When each caller's bucket will be empty, in microseconds. In two generations, so that the oldest can be forgotten
/// without looking for them.
#[derive(Default)]
struct Callers {
    young: HashMap<Caller, u64>,
    old: HashMap<Caller, u64>,
}

impl Callers {
    fn knows(&self, caller: &Caller) -> Option<u64> {
        self.young.get(caller).or_else(|| self.old.get(caller)).copied()
    }

    /// By what name a caller is counted.
    fn counted(&self, caller: Caller) -> Caller {
        match caller {
            Caller::Address(IpAddr::V6(v6)) if self.young.len() >= CROWDED && self.knows(&caller).is_none() => {
                Caller::Site(network(v6, 48))
            }
            _ => caller,
        }
    }
}

impl Limiter {
    pub fn new(rate: Rate) -> Self {
        let per = u64::try_from(rate.per.as_micros()).unwrap_or(u64::MAX);
        Self::micros(per / u64::from(rate.requests.get()), rate.burst.get())
    }

    /// So many at once, and after that one in so long.
    pub fn every(interval: Duration, burst: u32) -> Self {
        Self::micros(u64::try_from(interval.as_micros()).unwrap_or(u64::MAX), burst)
    }

    fn micros(interval: u64, burst: u32) -> Self {
        let interval = interval.max(1);
        let burst = interval.saturating_mul(u64::from(burst.max(1)) - 1);
        Self { interval, burst, callers: Mutex::default() }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// When it is one too many: how long until the next one may come.
    pub fn admit(&self, caller: Caller, now: Timestamp) -> Result<(), Duration> {
        let mut callers = self.callers.lock();
        let caller = callers.counted(caller);
        let (now, empty) = self.bucket(&callers, caller, now);
        self.room(now, empty)?;
        self.fill(&mut callers, caller, empty);
        Ok(())
    }

    /// How long the caller has to wait before it may; none when it may now. Counts nothing.
    pub fn wait(&self, caller: Caller, now: Timestamp) -> Option<Duration> {
        let callers = self.callers.lock();
        let caller = callers.counted(caller);
        let (now, empty) = self.bucket(&callers, caller, now);
        self.room(now, empty).err()
    }

    /// It did, whether it might or not.
    pub fn count(&self, caller: Caller, now: Timestamp) {
        let mut callers = self.callers.lock();
        let caller = callers.counted(caller);
        let (_, empty) = self.bucket(&callers, caller, now);
        self.fill(&mut callers, caller, empty);
    }

    /// Now, and when the caller's bucket will be empty.
    fn bucket(&self, callers: &Callers, caller: Caller, now: Timestamp) -> (u64, u64) {
        let now = now.as_millis().saturating_mul(1000);
        // The clock may have been set back: nobody waits for longer than a full bucket takes.
        let fullest = now.saturating_add(self.burst).saturating_add(self.interval);
        (now, callers.knows(&caller).unwrap_or(0).clamp(now, fullest))
    }

    fn room(&self, now: u64, empty: u64) -> Result<(), Duration> {
        let ahead = empty - now;
        if ahead > self.burst { Err(Duration::from_micros(ahead - self.burst)) } else { Ok(()) }
    }

    fn fill(&self, callers: &mut Callers, caller: Caller, empty: u64) {
        if callers.young.len() >= CALLERS && !callers.young.contains_key(&caller) {
            callers.old = std::mem::take(&mut callers.young);
        }
        callers.young.insert(caller, empty.saturating_add(self.interval));
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter").field("interval", &self.interval).field("burst", &self.burst).finish_non_exhaustive()
    }
}

/// The limiters of the routes, so that a reload forgets no count of a route that stays as it is.
#[derive(Debug, Default)]
pub struct Limiters(Mutex<HashMap<String, Weak<Limiter>>>);

impl Limiters {
    /// That of the route, if it has a rate: the one that is in use, or a new one.
    pub fn of(&self, route: &Route) -> Option<Arc<Limiter>> {
        let rate = route.rate_limit?;
        let key = format!("{} {:?} {:?} {rate:?}", route.path, route.hosts, route.methods);
        let mut known = self.0.lock();
        known.retain(|_, limiter| limiter.strong_count() > 0);
        let limiter = known.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| Arc::new(Limiter::new(rate)));
        known.insert(key, Arc::downgrade(&limiter));
        Some(limiter)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn limiter(requests: u32, burst: u32) -> Limiter {
        let number = |n| NonZeroU32::new(n).unwrap();
        Limiter::new(Rate { requests: number(requests), per: Duration::from_secs(1), burst: number(burst) })
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + millis)
    }

    fn address(number: u32) -> Caller {
        Caller::at(Some(IpAddr::V4(number.into())))
    }

    #[test]
    fn dos_16_a_burst_then_a_steady_rate() {
        let limiter = limiter(5, 3);
        let admitted = |millis| limiter.admit(address(1), at(millis)).is_ok();
        assert_eq!([admitted(0), admitted(0), admitted(0), admitted(0)], [true, true, true, false]);
        assert_eq!(limiter.admit(address(1), at(50)), Err(Duration::from_millis(150)));
        assert_eq!([admitted(199), admitted(200), admitted(200), admitted(400)], [false, true, false, true]);
        let later = (0..5).filter(|_| admitted(60_000)).count();
        assert_eq!(later, 3, "a pause gives no more than the burst");
        assert!(limiter.admit(address(2), at(0)).is_ok(), "another caller");
    }

    #[test]
    fn dos_16_a_clock_that_is_set_back_locks_nobody_out() {
        let limiter = limiter(1, 1);
        assert!(limiter.admit(address(1), at(10_000_000)).is_ok());
        assert_eq!(limiter.admit(address(1), at(0)), Err(Duration::from_secs(1)));
        assert!(limiter.admit(address(1), at(0)).is_err());
    }

    #[test]
    fn dos_16_memory_is_bounded() {
        let limiter = limiter(1, 1);
        for number in 0..200_000 {
            assert!(limiter.admit(address(number), at(0)).is_ok());
        }
        let callers = limiter.callers.lock();
        assert!(callers.young.len() <= CALLERS && callers.old.len() <= CALLERS);
        drop(callers);
        assert!(limiter.admit(address(199_999), at(0)).is_err(), "the latest are known");
    }

    #[test]
    fn dos_16_an_ipv6_network_is_one_caller() {
        let caller = |text: &str| Caller::at(Some(text.parse().unwrap()));
        assert_eq!(caller("2001:db8:1:2::1"), caller("2001:db8:1:2:ffff::9"));
        assert_ne!(caller("2001:db8:1:2::1"), caller("2001:db8:1:3::1"));
        assert_ne!(caller("192.0.2.1"), caller("192.0.2.2"));
    }

    #[test]
    fn dos_16_one_ipv6_site_pushes_out_nobody() {
        let limiter = limiter(1, 1);
        assert!(limiter.admit(address(7), at(0)).is_ok());
        let site = u128::from(0x2001_0db8_0001_u64) << 80;
        let refused = (0..200_000_u128)
            .filter(|number| {
                // Each of its networks, and more than once.
                let from = Ipv6Addr::from_bits(site | (number % 65_536) << 64);
                limiter.admit(Caller::at(Some(from.into())), at(0)).is_err()
            })
            .count();
        assert!(limiter.admit(address(7), at(0)).is_err(), "who was there before is known");
        assert!(refused > 180_000, "only {refused}");
        assert!(limiter.callers.lock().young.len() < CALLERS);
    }

    #[test]
    fn what_is_asked_first_and_counted_afterwards() {
        let limiter = Limiter::every(Duration::from_secs(2), 3);
        let may = |caller, millis| {
            let wait = limiter.wait(caller, at(millis));
            if wait.is_none() {
                limiter.count(caller, at(millis));
            }
            wait.map(|wait| wait.as_secs())
        };
        assert_eq!([may(address(1), 0), may(address(1), 0), may(address(1), 0)], [None; 3]);
        assert_eq!((may(address(1), 0), may(Caller::at(None), 0)), (Some(2), None), "each caller for itself");
        assert_eq!((may(address(1), 2000), may(address(1), 2000)), (None, Some(2)));
    }
}
