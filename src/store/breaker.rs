//! When not to try at all: a store that does not answer must not slow down those who can go on without it.

/// Failures in a row after which nobody tries any more.
const FAILURES: u32 = 5;

/// Closed at first. What waits between two probes is in `link`.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    open: bool,
}

/// The breaker went from one state to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turned {
    Open,
    Closed,
}

impl Breaker {
    /// A command or a connect failed.
    pub(super) fn failed(&mut self) -> Option<Turned> {
        self.failures = self.failures.saturating_add(1);
        let opens = !self.open && self.failures >= FAILURES;
        self.open |= opens;
        opens.then_some(Turned::Open)
    }

    /// The store answered.
    pub(super) fn answered(&mut self) -> Option<Turned> {
        self.failures = 0;
        std::mem::take(&mut self.open).then_some(Turned::Closed)
    }

    /// Nobody is to try.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_five_failures_in_a_row_and_closes_with_an_answer() {
        let mut breaker = Breaker::default();
        for _ in 0..4 {
            assert_eq!(breaker.failed(), None);
        }
        assert_eq!(breaker.answered(), None, "was never open");
        for _ in 0..4 {
            assert_eq!(breaker.failed(), None, "counted from the last answer");
        }
        assert_eq!(breaker.failed(), Some(Turned::Open));
        assert!(breaker.is_open());
        assert_eq!(breaker.failed(), None, "told once");
        assert_eq!(breaker.answered(), Some(Turned::Closed));
        assert!(!breaker.is_open());
        assert_eq!(breaker.answered(), None);
    }
}
