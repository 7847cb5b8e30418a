//! Names of upstreams to addresses, in the background: a look-up never stops the start, and a failed one keeps what
//! was known.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;

/// How often a name is looked up again. The system's resolver does not tell a record's TTL.
pub const INTERVAL: Duration = Duration::from_secs(30);

/// A host and port, with the addresses last known.
#[derive(Debug)]
pub struct Name {
    host: String,
    port: u16,
    addresses: ArcSwap<Vec<SocketAddr>>,
    /// One look-up at a time; those who wait for the first find its result.
    looking: Mutex<()>,
}

impl Name {
    /// An address literal is known at once and for ever; a name is looked up at its first use.
    pub fn new(host: &str, port: u16) -> Arc<Self> {
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let addresses = literal.map(|ip| vec![SocketAddr::new(ip, port)]).unwrap_or_default();
        Arc::new(Self {
            host: host.to_owned(),
            port,
            addresses: ArcSwap::from_pointee(addresses),
            looking: Mutex::new(()),
        })
    }

    /// Whether it stands for this host and port.
    pub fn is_of(&self, host: &str, port: u16) -> bool {
        self.host == host && self.port == port
    }

    /// Whether there is anything to look up.
    pub fn is_literal(&self) -> bool {
        self.host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
    }

    /// The addresses last known; the first caller of an unknown name waits for the look-up. Empty when it fails.
    pub async fn addresses(&self) -> Arc<Vec<SocketAddr>> {
        let known = self.addresses.load_full();
        if !known.is_empty() {
            return known;
        }
        let _turn = self.looking.lock().await;
        if self.addresses.load().is_empty() {
            self.look_up().await;
        }
        self.addresses.load_full()
    }

    /// How many addresses are known.
    pub fn known(&self) -> usize {
        self.addresses.load().len()
    }

    /// Looks the name up again, unless somebody is at it.
    pub async fn refresh(&self) {
        if let Ok(_turn) = self.looking.try_lock() {
            self.look_up().await;
        }
    }

    async fn look_up(&self) {
        match tokio::net::lookup_host((self.host.as_str(), self.port)).await {
            Ok(found) => {
                let mut found: Vec<SocketAddr> = found.collect();
                found.sort_unstable();
                found.dedup();
                if !found.is_empty() {
                    self.addresses.store(Arc::new(found));
                }
            }
            Err(error) => {
                tracing::warn!(target: "sidegate", event = "resolve_failed", host = %self.host, kind = %error.kind());
            }
        }
    }
}

/// Keeps names fresh until dropped.
pub async fn keep_fresh(names: Vec<Arc<Name>>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        for name in names.iter().filter(|name| !name.is_literal()) {
            name.refresh().await;
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
}
