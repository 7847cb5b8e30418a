//! `rate_limit` of a route: the generic cell rate algorithm, a leaky bucket that keeps one time for each caller.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use parking_lot::Mutex;

use super::settings::Rate;
use crate::clock::Timestamp;
use crate::session::SessionId;

/// Callers that are remembered, twice: of more than this at a time the oldest are forgotten. Some 5 MB a route.
const CALLERS: usize = 32 * 1024;

/// Whose requests are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    Session(SessionId),
    /// Of IPv6 the network: one customer has a whole one.
    Address(IpAddr),
}

impl Caller {
    /// The caller at an address.
    pub fn at(address: IpAddr) -> Self {
        Self::Address(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        })
    }
}

/// Counts the requests of one route.
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

impl Limiter {
    pub fn new(rate: Rate) -> Self {
        let per = u64::try_from(rate.per.as_micros()).unwrap_or(u64::MAX);
        let interval = (per / u64::from(rate.requests.get())).max(1);
        Self { interval, burst: interval.saturating_mul(u64::from(rate.burst.get()) - 1), callers: Mutex::default() }
    }

    /// Counts a request.
    ///
    /// # Errors
    /// When it is one too many: how long until the next one may come.
    pub fn admit(&self, caller: Caller, now: Timestamp) -> Result<(), Duration> {
        let now = now.as_millis().saturating_mul(1000);
        let mut callers = self.callers.lock();
        let known = callers.young.get(&caller).or_else(|| callers.old.get(&caller)).copied().unwrap_or(0);
        // The clock may have been set back: nobody waits for longer than a full bucket takes.
        let fullest = now.saturating_add(self.burst).saturating_add(self.interval);
        let empty = known.clamp(now, fullest);
        let ahead = empty - now;
        if ahead > self.burst {
            return Err(Duration::from_micros(ahead - self.burst));
        }
        if callers.young.len() >= CALLERS && !callers.young.contains_key(&caller) {
            callers.old = std::mem::take(&mut callers.young);
        }
        callers.young.insert(caller, empty.saturating_add(self.interval));
        Ok(())
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter").field("interval", &self.interval).field("burst", &self.burst).finish_non_exhaustive()
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
        Caller::at(IpAddr::V4(number.into()))
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
        let caller = |text: &str| Caller::at(text.parse().unwrap());
        assert_eq!(caller("2001:db8:1:2::1"), caller("2001:db8:1:2:ffff::9"));
        assert_ne!(caller("2001:db8:1:2::1"), caller("2001:db8:1:3::1"));
        assert_ne!(caller("192.0.2.1"), caller("192.0.2.2"));
    }
}
