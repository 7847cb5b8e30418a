//! Whether this instance should get traffic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use crate::shutdown::Phase;

/// What must be true before `/readyz` says yes. The latches close once and stay closed: a provider that goes away later
/// does not take the instance out of service, only the end of the process does.
#[derive(Debug)]
pub struct Readiness {
    phase: watch::Receiver<Phase>,
    requires_provider: bool,
    listening: AtomicBool,
    provider: AtomicBool,
}

impl Readiness {
    /// `requires_provider`: not ready until the provider's metadata was loaded once.
    pub fn new(phase: watch::Receiver<Phase>, requires_provider: bool) -> Arc<Self> {
        Arc::new(Self { phase, requires_provider, listening: AtomicBool::new(false), provider: AtomicBool::new(false) })
    }

    /// All public listeners are bound.
    pub fn set_listening(&self) {
        self.listening.store(true, Ordering::Release);
    }

    /// The provider's metadata was loaded.
    pub fn set_provider_loaded(&self) {
        self.provider.store(true, Ordering::Release);
    }

    /// Whether to send traffic here.
    pub fn is_ready(&self) -> bool {
        *self.phase.borrow() == Phase::Running
            && self.listening.load(Ordering::Acquire)
            && (!self.requires_provider || self.provider.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_once_the_listeners_are_bound() {
        let phase = watch::Sender::new(Phase::Running);
        let readiness = Readiness::new(phase.subscribe(), false);
        assert!(!readiness.is_ready());
        readiness.set_listening();
        assert!(readiness.is_ready());
    }

    #[test]
    fn the_provider_counts_only_where_it_is_required() {
        let phase = watch::Sender::new(Phase::Running);
        let readiness = Readiness::new(phase.subscribe(), true);
        readiness.set_listening();
        assert!(!readiness.is_ready());
        readiness.set_provider_loaded();
        assert!(readiness.is_ready());
    }

    #[test]
    fn not_ready_from_the_signal_on() {
        let phase = watch::Sender::new(Phase::Running);
        let readiness = Readiness::new(phase.subscribe(), false);
        readiness.set_listening();
        for gone in [Phase::Delaying, Phase::Draining, Phase::Stopped] {
            phase.send_replace(gone);
            assert!(!readiness.is_ready(), "{gone:?}");
        }
    }
}
