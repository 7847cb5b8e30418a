//! How often something may happen for one client: so many at once, then one at a time (GCRA), in bounded memory.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Timestamp;

/// Clients that are remembered at a time, about 50 bytes each.
const CLIENTS: usize = 10_000;

/// Counts by client address; an IPv6 client is its /64.
#[derive(Debug)]
pub struct Limiter {
    /// After the burst, one in so long.
    every: Duration,
    burst: u32,
    /// When a client will have paid for all that it did.
    paid: Mutex<HashMap<Option<IpAddr>, Timestamp>>,
}

impl Limiter {
    pub fn new(burst: u32, every: Duration) -> Self {
        Self { every, burst, paid: Mutex::default() }
    }

    /// How long the client has to wait before it may; none when it may now.
    pub fn wait(&self, client: Option<IpAddr>, now: Timestamp) -> Option<Duration> {
        let paid = self.paid.lock().get(&network(client)).copied()?;
        let most = now + self.every.saturating_mul(self.burst.saturating_sub(1));
        (paid > most).then(|| paid.since(most))
    }

    /// It did.
    pub fn count(&self, client: Option<IpAddr>, now: Timestamp) {
        let mut paid = self.paid.lock();
        if paid.len() >= CLIENTS {
            paid.retain(|_, until| now < *until);
        }
        let client = network(client);
        let full = paid.len() >= CLIENTS;
        match paid.get_mut(&client) {
            Some(until) => *until = (*until).max(now) + self.every,
            // So many at once share one place: they are one crowd.
            None if full => {
                let until = paid.entry(None).or_insert(now);
                *until = (*until).max(now) + self.every;
            }
            None => {
                paid.insert(client, now + self.every);
            }
        }
    }
}

fn network(client: Option<IpAddr>) -> Option<IpAddr> {
    client.map(|client| match client {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn client(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn a_burst_and_then_one_at_a_time() {
        let limiter = Limiter::new(3, Duration::from_secs(2));
        let may = |who, at| {
            let now = NOW + Duration::from_secs(at);
            let wait = limiter.wait(client(who), now);
            if wait.is_none() {
                limiter.count(client(who), now);
            }
            wait.map(|wait| wait.as_secs())
        };
        assert_eq!([may("10.0.0.1", 0), may("10.0.0.1", 0), may("10.0.0.1", 0)], [None; 3]);
        assert_eq!((may("10.0.0.1", 0), may("10.0.0.2", 0)), (Some(2), None), "each client for itself");
        assert_eq!((may("10.0.0.1", 2), may("10.0.0.1", 2)), (None, Some(2)));
        assert_eq!([may("10.0.0.1", 60), may("10.0.0.1", 60), may("10.0.0.1", 60)], [None; 3]);
        assert_eq!([may("2001:db8::1", 0), may("2001:db8::2", 0), may("2001:db8::3", 0)], [None; 3]);
        assert!(may("2001:db8::4", 0).is_some() && may("2001:db8:0:1::4", 0).is_none());
    }

    #[test]
    fn the_memory_is_bounded() {
        let limiter = Limiter::new(3, Duration::from_secs(2));
        for number in 0..u32::try_from(2 * CLIENTS).unwrap() {
            limiter.count(Some(IpAddr::from(number.to_be_bytes())), NOW);
        }
        assert!(limiter.paid.lock().len() <= CLIENTS + 1);
    }
}
