//! What replicas share about sessions, as the rest of the gateway sees it: tickets' contents, used login attempts, and
//! the news that a session is over. The traits are here; `store` keeps them in Redis, tests in memory.
//!
//! A store sees sealed bytes and keyed names only: what opens the bytes stands in the browser's cookie, and a name
//! cannot be guessed without the server's key.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::Timestamp;

/// The store does not answer in its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Away;

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the shared store does not answer")
    }
}

impl std::error::Error for Away {}

/// A keyed hash that names something in the store: which session, subject or attempt it is cannot be told from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(pub [u8; 16]);

/// What stands under a ticket's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Of the session that is sealed.
    pub generation: u64,
    pub sealed: Vec<u8>,
}

/// Sessions of which the browser has only a ticket.
#[async_trait]
pub trait Tickets: Send + Sync + fmt::Debug {
    /// What stands there; none when it is gone.
    async fn load(&self, name: Name) -> Result<Option<Kept>, Away>;
    /// Writes it for so long, unless a newer generation stands there already; returns whether it was written.
    /// `create`: also when nothing stands there. A refresh must not bring back what a logout removed.
    async fn save(&self, name: Name, kept: Kept, create: bool, life: Duration) -> Result<bool, Away>;
    /// Removes it.
    async fn remove(&self, name: Name) -> Result<(), Away>;
}

/// Login attempts that were used, remembered by all replicas.
#[async_trait]
pub trait UsedAttempts: Send + Sync + fmt::Debug {
    /// Marks it as used for so long; true for the first caller only.
    async fn take(&self, name: Name, life: Duration) -> Result<bool, Away>;
}

/// That sessions are over: those that the name names (one session, one of the provider's, or all of a subject) and that
/// began before `begun_before`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ending {
    pub name: Name,
    pub begun_before: Timestamp,
    /// Until when it has to be remembered.
    pub until: Timestamp,
    pub by: By,
}

/// Who ended sessions: how their end is counted and logged, by the replica that meets one of them first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// Its own browser, by a logout or a new login; or a reuse of its cookie. Was told there and then.
    Itself,
    /// OpenID Connect Back-Channel Logout.
    Backchannel,
    /// OpenID Connect Front-Channel Logout.
    Frontchannel,
    /// `POST /revoke` of the admin listener.
    Operator,
    /// Nobody: the name is that of a logout token, which is good once.
    Nobody,
}

/// Tells the other replicas. What they tell comes in by [`Heard`].
pub trait Announce: Send + Sync + fmt::Debug {
    /// Tells them now, or, while the store is away, as soon as it is back; nobody waits for it.
    fn announce(&self, endings: &[Ending]);
}

/// Hears of endings that other replicas announced; the same one may come more than once.
pub trait Heard: Send + Sync {
    fn heard(&self, endings: &[Ending]);
}
