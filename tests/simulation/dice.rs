//! All chance of a run comes from its seed.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

/// splitmix64.
#[derive(Clone, Debug)]
pub(crate) struct Dice(Arc<Mutex<u64>>);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5151_de9a)))
    }

    pub(crate) fn roll(&self) -> u64 {
        let mut state = self.0.lock();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = *state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(crate) fn below(&self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }

    /// In [0, 1).
    fn part(&self) -> f64 {
        (self.roll() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn chance(&self, of: f64) -> bool {
        of > 0.0 && self.part() < of
    }

    /// Milliseconds.
    pub(crate) fn between(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.roll() % (to - from).max(1))
    }

    /// A latency as providers have them: most near the median, some far above.
    pub(crate) fn log_normal(&self, median: f64, sigma: f64) -> Duration {
        let (a, b) = (self.part().max(1e-12), self.part());
        let normal = (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
        Duration::from_millis((median * (sigma * normal).exp()) as u64)
    }
}
