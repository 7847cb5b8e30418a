//! What replicas share, in Redis or Valkey: the only user of the client crate. A normal request with the cookie store
//! does not come here.
//!
//! ```text
//! <prefix>h:<handle>     lock and result of one refresh token         ladder.lua
//! <prefix>t:<name>       a session of which the browser has a ticket  tickets.lua
//! <prefix>a:<name>       a used login attempt                         attempts.rs
//! <prefix>endings        sessions that are over, in the order told    endings.lua; also a channel
//! …endings:unproven      those by front-channel logout                endings.lua
//! <prefix>probe          whether writing works
//! ```
//!
//! Every key has a time to live, names are keyed hashes, values are sealed by whoever hands them in. Each script
//! touches one key, so that a cluster can run it.
//!
//! `link` keeps one connection, which all commands share, and bounds every wait; `breaker` says when not to try at all.

mod attempts;
mod breaker;
mod dial;
mod endings;
mod ladder;
mod link;
pub mod settings;
mod tickets;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64_simd::URL_SAFE_NO_PAD;
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::session::store::Heard;
use dial::Servers;
use endings::{Outbox, Reader};
use link::Link;
pub use settings::Settings;

/// How long a shutdown waits for endings that nobody could be told of: a Redis that is away may stay so.
const FAREWELL: Duration = Duration::from_secs(5);

/// Is told what becomes of the store, for metrics. Called while no lock is held.
pub trait Observer: Send + Sync {
    /// Whether Redis answers.
    fn up(&self, up: bool);
    /// What became of so many endings that other replicas are to hear of.
    fn endings(&self, fate: Fate, count: usize);
}

/// What becomes of an ending that is to be announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Written and published.
    Told,
    /// Redis is away: kept until it is back.
    Kept,
    /// More were kept than there is room for.
    Dropped,
}

/// The shared store of one application. Cheap to share; does nothing until [`Store::run`].
pub struct Store {
    link: Link,
    prefix: String,
    settings: Mutex<Settings>,
    outbox: Outbox,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Store {
    /// A store that has not connected yet. Calls nobody.
    pub fn new(settings: Settings, clock: Clock, observer: Arc<dyn Observer>) -> Arc<Self> {
        let probe = format!("{}probe", settings.prefix);
        let servers = Arc::new(Servers::new(settings.clone()));
        Arc::new(Self {
            link: Link::new(servers, settings.timeout, probe, Arc::clone(&observer)),
            prefix: settings.prefix.clone(),
            settings: Mutex::new(settings),
            outbox: Outbox::new(clock, observer),
        })
    }

    /// Other addresses, credentials or patience, after a reload: connects anew, unless nothing has changed. The prefix
    /// stays.
    pub fn reconfigure(&self, settings: &Settings) {
        let mut known = self.settings.lock();
        if *known != *settings {
            *known = settings.clone();
            self.link.replace(Arc::new(Servers::new(settings.clone())), settings.timeout);
        }
    }

    /// Keeps the connection, announces endings, and passes on to `heard` what other replicas announce. To be run in a
    /// task of the runtime that serves; ends never.
    pub async fn run(self: Arc<Self>, heard: Arc<dyn Heard>) {
        let key = self.endings_key();
        let reader = Reader::new(&self.link, &key, &*heard);
        tokio::join!(self.link.keep_up(), self.outbox.deliver(&self.link, &key), reader.listen());
    }

    /// Waits until everything that ended here was told, for some seconds at most.
    pub async fn drain(&self) {
        let _ = tokio::time::timeout(FAREWELL, self.outbox.empty()).await;
    }

    fn key(&self, kind: char, name: [u8; 16]) -> String {
        let mut key = String::with_capacity(self.prefix.len() + 24);
        key.push_str(&self.prefix);
        key.push(kind);
        key.push(':');
        URL_SAFE_NO_PAD.encode_append(name, &mut key);
        key
    }

    fn endings_key(&self) -> String {
        format!("{}endings", self.prefix)
    }
}

/// As Redis takes it; a time to live of zero would be an error there.
fn millis(life: Duration) -> u64 {
    u64::try_from(life.as_millis()).unwrap_or(u64::MAX).clamp(1, 400 * 24 * 3_600_000)
}
