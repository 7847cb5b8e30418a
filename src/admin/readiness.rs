//! Whether this instance should get traffic.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use crate::shutdown::Phase;

/// Whether the provider's metadata is known. Must not turn false again: a provider that goes away later does not take
/// the instance out of service, only the end of the process does.
pub type Condition = Box<dyn Fn() -> bool + Send + Sync>;

/// What must be true before `/readyz` says yes.
pub struct Readiness {
    phase: watch::Receiver<Phase>,
    listening: AtomicBool,
    provider_known: Option<Condition>,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness").field("ready", &self.is_ready()).finish_non_exhaustive()
    }
}

impl Readiness {
    /// `provider_known`: where the provider counts (`ready_requires_provider`).
    pub fn new(phase: watch::Receiver<Phase>, provider_known: Option<Condition>) -> Arc<Self> {
        Arc::new(Self { phase, listening: AtomicBool::new(false), provider_known })
    }

    /// All public listeners are bound.
    pub fn set_listening(&self) {
        self.listening.store(true, Ordering::Release);
    }

    /// Whether to send traffic here.
    pub fn is_ready(&self) -> bool {
        *self.phase.borrow() == Phase::Running
            && self.listening.load(Ordering::Acquire)
            && self.provider_known.as_ref().is_none_or(|known| known())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_once_the_listeners_are_bound() {
        let phase = watch::Sender::new(Phase::Running);
        let readiness = Readiness::new(phase.subscribe(), None);
        assert!(!readiness.is_ready());
        readiness.set_listening();
        assert!(readiness.is_ready());
    }

    #[test]
    fn the_provider_counts_only_where_it_is_required() {
        let phase = watch::Sender::new(Phase::Running);
        let loaded = Arc::new(AtomicBool::new(false));
        let known = Arc::clone(&loaded);
        let readiness = Readiness::new(phase.subscribe(), Some(Box::new(move || known.load(Ordering::Acquire))));
        readiness.set_listening();
        assert!(!readiness.is_ready());
        loaded.store(true, Ordering::Release);
        assert!(readiness.is_ready());
    }

    #[test]
    fn not_ready_from_the_signal_on() {
        let phase = watch::Sender::new(Phase::Running);
        let readiness = Readiness::new(phase.subscribe(), None);
        readiness.set_listening();
        for gone in [Phase::Delaying, Phase::Draining, Phase::Stopped] {
            phase.send_replace(gone);
            assert!(!readiness.is_ready(), "{gone:?}");
        }
    }
}
