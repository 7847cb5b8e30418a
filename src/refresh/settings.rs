//! `[refresh]`, parsed.

use std::time::Duration;

/// `[refresh]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Refresh this long before the access token ends, at most 20 % of its life.
    pub before_expiry: Duration,
    /// Refresh this long after the token was issued, whatever its expiry.
    pub after: Option<Duration>,
    /// Bounds one try.
    pub timeout: Duration,
    /// The longest that a request waits in all.
    pub wait: Duration,
    /// How long a result is kept after the new cookie was seen.
    pub grace: Duration,
    /// How long a result is kept while the new cookie was not seen.
    pub recovery: Duration,
    /// Bound of all kept results, in bytes.
    pub memory: usize,
    /// 0 = no limit.
    pub max_refreshes: u64,
    /// What a cookie gets that comes back after its successor was in use.
    pub on_reuse: OnReuse,
    /// Whether the provider gives a new refresh token with every refresh; none when nobody said.
    pub rotation: Option<Rotation>,
    /// How long the provider still honours a spent refresh token.
    pub leeway: Duration,
    /// A refresh ends the access token before it: it is not refreshed early, and not used while that is done.
    pub kills_access_token: bool,
    /// Tells replicas apart, so that they become eager at different moments; none when there is only one.
    pub replica: Option<u64>,
}

impl Settings {
    /// Whether two different refresh tokens of one session and generation can only mean that somebody has a copy. With
    /// several processes they do not: each may have refreshed the same generation at a provider that allows it.
    pub fn fork_is_reuse(&self) -> bool {
        self.replica.is_none() && self.leeway.is_zero() && self.rotation == Some(Rotation::Single)
    }

    /// Whether a token that is spent twice may end the session.
    pub fn spends_once(&self) -> bool {
        self.rotation != Some(Rotation::None) && self.leeway.is_zero()
    }

    /// What one of so many engines goes by: its part of the memory.
    pub(super) fn share(&self, count: usize) -> Self {
        Self { memory: self.memory / count.max(1), ..self.clone() }
    }
}

/// `rotation`: what becomes of a refresh token that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// It goes on.
    None,
    /// It is spent, and a new one is given.
    Single,
    /// Either.
    Maybe,
}

/// `on_reuse`: an old cookie came back after `grace`. A browser does not do that, a thief or a restored profile may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnReuse {
    /// Counted, nothing else.
    Ignore,
    /// The presenter has to log in; the session goes on elsewhere.
    Reauthenticate,
    /// The session ends everywhere.
    Revoke,
}
