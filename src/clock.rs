//! The only reader of the wall clock. Everything else takes a [`Timestamp`] as an argument.

use std::ops::{Add, Sub};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// From milliseconds since the epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// From seconds since the epoch (the unit of JWT times, RFC 7519 section 2 NumericDate).
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Milliseconds since the epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// So many milliseconds later, or earlier.
    pub const fn shifted(self, millis: i64) -> Self {
        Self(self.0.saturating_add_signed(millis))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// Where the time comes from: the system, or a test's hand.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The wall clock.
    #[default]
    System,
    /// Stands still until moved.
    Manual(Arc<AtomicU64>),
    /// Goes with tokio's timers, so that paused time moves both; [`Clock::set_by`] sets it like an administrator.
    Timers(Arc<Timers>),
}

/// See [`Clock::Timers`].
#[derive(Debug)]
pub struct Timers {
    from: Timestamp,
    origin: Instant,
    set_by: AtomicI64,
}

impl Clock {
    /// A clock that stands at `now` until [`Clock::advance`] moves it.
    pub fn manual(now: Timestamp) -> Self {
        Self::Manual(Arc::new(AtomicU64::new(now.as_millis())))
    }

    /// A clock that reads `now` and goes with tokio's timers from here on.
    pub fn timers(now: Timestamp) -> Self {
        Self::Timers(Arc::new(Timers { from: now, origin: Instant::now(), set_by: AtomicI64::new(0) }))
    }

    /// The time.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
            }
            Self::Manual(millis) => Timestamp(millis.load(Ordering::Relaxed)),
            Self::Timers(timers) => {
                (timers.from + timers.origin.elapsed()).shifted(timers.set_by.load(Ordering::Relaxed))
            }
        }
    }

    /// The time, and by how many milliseconds the clock was set or has gone astray since the process began to ask,
    /// judged by one that cannot be set. What is to last for a while, whatever becomes of the wall clock, follows that.
    pub fn read(&self) -> (Timestamp, i64) {
        static BEGUN: OnceLock<(Instant, Timestamp)> = OnceLock::new();
        let now = self.now();
        let astray = match self {
            Self::System => {
                let (origin, from) = BEGUN.get_or_init(|| (Instant::now(), now));
                let steady = *from + origin.elapsed();
                now.0.cast_signed().saturating_sub(steady.0.cast_signed())
            }
            Self::Manual(_) => 0,
            Self::Timers(timers) => timers.set_by.load(Ordering::Relaxed),
        };
        (now, astray)
    }

    /// Sets a clock that goes with the timers; the timers do not notice.
    pub fn set_by(&self, millis: i64) {
        if let Self::Timers(timers) = self {
            timers.set_by.fetch_add(millis, Ordering::Relaxed);
        }
    }

    /// Moves a manual clock on; the system's clock goes on by itself.
    pub fn advance(&self, by: Duration) {
        if let Self::Manual(millis) = self {
            millis.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }
}
