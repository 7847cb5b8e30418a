//! What can go wrong at the provider, by who is to blame.

use std::fmt;
use std::time::Duration;

/// A failed exchange with the provider. `reason` is a fixed word for log and metric; nothing here holds a token, a
/// code or text of the provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderError {
    /// Not reachable, 429 or 5xx: nothing happened there, try again (after `retry_after`).
    Unavailable {
        /// Why, for the log.
        reason: &'static str,
        /// The provider's `Retry-After`, capped by the caller.
        retry_after: Option<Duration>,
    },
    /// The request was sent, its outcome is not known (time-out, connection lost, unreadable answer).
    Ambiguous {
        /// Why, for the log.
        reason: &'static str,
    },
    /// The provider says that the grant is spent or revoked (`invalid_grant`).
    Dead {
        /// Why, for the log.
        reason: &'static str,
    },
    /// Our client is misconfigured there, or its documents are not usable.
    Refused {
        /// Why, for the log.
        reason: &'static str,
    },
    /// An answer that does not hold: a check of OpenID Connect Core failed.
    Invalid {
        /// Which check, for the log.
        reason: &'static str,
    },
}

impl ProviderError {
    /// The fixed word for log and metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable { reason, .. }
            | Self::Ambiguous { reason }
            | Self::Dead { reason }
            | Self::Refused { reason }
            | Self::Invalid { reason } => reason,
        }
    }
}

impl fmt::Display for ProviderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for ProviderError {}

/// A check that did not hold, as a fixed word (`nonce`, `aud`, `signature`, …).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault(pub &'static str);

impl From<Fault> for ProviderError {
    fn from(fault: Fault) -> Self {
        Self::Invalid { reason: fault.0 }
    }
}
