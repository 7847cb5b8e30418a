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
}
