//! Names of upstreams to addresses, in the background: a look-up never stops the start, and a failed one keeps what
//! was known. Beside them, for a short while, which addresses did not answer.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

/// How often a name is looked up again. The system's resolver does not tell a record's TTL.
pub const INTERVAL: Duration = Duration::from_secs(30);
/// How long a look-up may take.
const LOOK_UP: Duration = Duration::from_secs(5);
/// How long requests for a name without addresses take a failed look-up for granted.
const UNKNOWN_FOR: Duration = Duration::from_secs(1);
/// How long an address that did not answer is passed over, while there are others.
const DEAD_FOR: Duration = Duration::from_secs(5);

/// A host and port, with the addresses last known.
pub struct Name {
    host: String,
    port: u16,
    addresses: ArcSwap<Vec<SocketAddr>>,
    /// One look-up at a time; those who wait for the first find its result. Inside: when the last one failed.
    looking: Mutex<Option<Instant>>,
    /// Whether `dead` is worth looking at.
    any_dead: AtomicBool,
    dead: parking_lot::Mutex<Vec<(SocketAddr, Instant)>>,
}

impl Name {
    /// An address literal is known at once and for ever; a name is looked up at its first use.
    pub fn new(host: &str, port: u16) -> Arc<Self> {
        let addresses = literal(host).map(|ip| vec![SocketAddr::new(ip, port)]).unwrap_or_default();
        Arc::new(Self {
            host: host.to_owned(),
            port,
            addresses: ArcSwap::from_pointee(addresses),
            looking: Mutex::default(),
            any_dead: AtomicBool::new(false),
            dead: parking_lot::Mutex::default(),
        })
    }

    /// Whether it stands for this host and port.
    pub fn is_of(&self, host: &str, port: u16) -> bool {
        self.host == host && self.port == port
    }

    /// Whether there is anything to look up.
    pub fn is_literal(&self) -> bool {
        literal(&self.host).is_some()
    }

    /// The addresses last known; empty when none ever was.
    pub fn known(&self) -> Arc<Vec<SocketAddr>> {
        self.addresses.load_full()
    }

    /// The addresses last known; the first caller of an unknown name waits for the look-up. Empty when it fails.
    pub async fn addresses(&self) -> Arc<Vec<SocketAddr>> {
        let known = self.known();
        if !known.is_empty() {
            return known;
        }
        let mut failed = self.looking.lock().await;
        let just_failed = failed.is_some_and(|at| at.elapsed() < UNKNOWN_FOR);
        if self.addresses.load().is_empty() && !just_failed {
            *failed = self.look_up().await;
        }
        self.known()
    }

    /// Looks the name up again, unless somebody is at it.
    pub async fn refresh(&self) {
        if let Ok(mut failed) = self.looking.try_lock() {
            *failed = self.look_up().await;
        }
    }

    /// Some: the look-up failed, now.
    async fn look_up(&self) -> Option<Instant> {
        let kind = match timeout(LOOK_UP, tokio::net::lookup_host((self.host.as_str(), self.port))).await {
            Ok(Ok(found)) => {
                let mut found: Vec<SocketAddr> = found.collect();
                found.sort_unstable();
                found.dedup();
                if found.is_empty() {
                    std::io::ErrorKind::NotFound
                } else {
                    self.addresses.store(Arc::new(found));
                    return None;
                }
            }
            Ok(Err(error)) => error.kind(),
            Err(_) => std::io::ErrorKind::TimedOut,
        };
        tracing::warn!(target: "sidegate", event = "resolve_failed", host = %self.host, kind = %kind);
        Some(Instant::now())
    }

    /// The address did not answer.
    pub fn mark_dead(&self, address: SocketAddr) {
        let mut dead = self.dead.lock();
        dead.retain(|(other, since)| *other != address && since.elapsed() < DEAD_FOR);
        dead.push((address, Instant::now()));
        self.any_dead.store(true, Ordering::Release);
    }

    /// The address did answer.
    pub fn mark_alive(&self, address: SocketAddr) {
        if self.any_dead.load(Ordering::Acquire) {
            let mut dead = self.dead.lock();
            dead.retain(|(other, since)| *other != address && since.elapsed() < DEAD_FOR);
            self.any_dead.store(!dead.is_empty(), Ordering::Release);
        }
    }

    /// Whether the address failed to answer a short while ago.
    pub fn is_dead(&self, address: SocketAddr) -> bool {
        self.any_dead.load(Ordering::Acquire)
            && self.dead.lock().iter().any(|(other, since)| *other == address && since.elapsed() < DEAD_FOR)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Name").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

fn literal(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// All names in use. What is known of one outlives a reload, and routes to one host share it.
#[derive(Debug, Default)]
pub struct Names(parking_lot::Mutex<HashMap<(String, u16), Weak<Name>>>);

impl Names {
    /// The name, new or in use already.
    pub fn get(&self, host: &str, port: u16) -> Arc<Name> {
        let mut names = self.0.lock();
        names.retain(|_, name| name.strong_count() > 0);
        let key = (host.to_ascii_lowercase(), port);
        if let Some(name) = names.get(&key).and_then(Weak::upgrade) {
            return name;
        }
        let name = Name::new(host, port);
        names.insert(key, Arc::downgrade(&name));
        name
    }

    fn in_use(&self) -> Vec<Arc<Name>> {
        self.0.lock().values().filter_map(Weak::upgrade).filter(|name| !name.is_literal()).collect()
    }

    /// Keeps names fresh until dropped; all at a time, so that none waits for another's resolver.
    pub async fn keep_fresh(&self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            join_all(self.in_use().iter().map(|name| name.refresh())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_literal_needs_no_look_up() {
        for (host, want) in [("127.0.0.1", "127.0.0.1:80"), ("[::1]", "[::1]:80")] {
            let name = Name::new(host, 80);
            assert!(name.is_literal());
            assert_eq!(name.addresses().await.as_slice(), [want.parse().unwrap()]);
        }
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_yields_nothing_and_stops_nothing() {
        let name = Name::new("no-such-host.invalid", 80);
        assert!(name.addresses().await.is_empty());
    }

    #[tokio::test]
    async fn localhost_resolves_to_loopback() {
        let name = Name::new("localhost", 80);
        assert!(name.addresses().await.iter().all(|address| address.ip().is_loopback()));
    }

    #[tokio::test]
    async fn routes_to_one_host_share_what_is_known_of_it() {
        let names = Names::default();
        let (one, two) = (names.get("App.internal", 80), names.get("app.internal", 80));
        assert!(Arc::ptr_eq(&one, &two));
        assert!(!Arc::ptr_eq(&one, &names.get("app.internal", 81)));
        assert_eq!(names.in_use().len(), 1, "nobody holds the other any more");
    }

    #[tokio::test(start_paused = true)]
    async fn dos_08_a_dead_address_is_remembered_for_a_short_while() {
        let name = Name::new("127.0.0.1", 80);
        let address = "127.0.0.1:80".parse().unwrap();
        assert!(!name.is_dead(address));
        name.mark_dead(address);
        assert!(name.is_dead(address));
        name.mark_alive(address);
        assert!(!name.is_dead(address));
        name.mark_dead(address);
        tokio::time::advance(DEAD_FOR).await;
        assert!(!name.is_dead(address));
    }
}
