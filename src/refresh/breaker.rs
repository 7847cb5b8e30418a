//! Spares a provider that does not answer: a pure state machine, time is an argument.
//!
//! ```text
//! Closed  => Open      so many sessions in a row got no answer
//! Open    => Probing   a pause later, for one try
//! Probing => Closed    the try was answered, whatever the answer
//! Probing => Open      it was not, and the pause doubles
//! any     => Closed    an answer
//! ```
//!
//! Open means that no token is spent, nothing else: tokens that are good are used, requests whose token is over are told
//! when to come again, and no session ends.
//!
//! It counts sessions, not tries: a provider that fails over one user's data must not lock out everybody else. And a try
//! tells nothing that was sent before the last answer came: the provider has been there since.

use std::time::Duration;

use tokio::time::Instant;

use crate::session::model::SessionId;

/// Sessions in a row without an answer.
const LIMIT: usize = 5;
/// The first pause; doubles with every probe that fails.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest one.
const PAUSE_MAX: Duration = Duration::from_secs(8);

/// See the module.
#[derive(Debug)]
pub struct Breaker {
    state: State,
    /// Sessions whose last try got no answer, since the last answer to anybody. At most [`LIMIT`].
    failing: Vec<SessionId>,
    /// When the provider last answered.
    answered: Option<Instant>,
    pause: Duration,
    /// How long a probe may take before another one is made.
    patience: Duration,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed,
    Open { until: Instant },
    Probing { until: Instant },
}

/// What became of the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Opened,
    Closed,
}

impl Breaker {
    /// A closed one. `timeout` bounds a try.
    pub fn new(timeout: Duration) -> Self {
        Self { state: State::Closed, failing: Vec::new(), answered: None, pause: PAUSE, patience: timeout + PAUSE }
    }

    /// Whether a try may be made now; it must be reported. After a pause that is true once.
    ///
    /// # Errors
    /// When to come again.
    pub fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match self.state {
            State::Closed => Ok(()),
            State::Open { until } if now < until => Err(until - now),
            State::Probing { until } if now < until => Err(PAUSE),
            State::Open { .. } | State::Probing { .. } => {
                self.state = State::Probing { until: now + self.patience };
                Ok(())
            }
        }
    }

    /// The provider answered a try: it may have said no, but it is there.
    pub fn answered(&mut self, now: Instant) -> Option<Turn> {
        self.failing.clear();
        self.answered = Some(now);
        self.pause = PAUSE;
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Closed => None,
            State::Open { .. } | State::Probing { .. } => Some(Turn::Closed),
        }
    }

    /// It did not answer a try that was sent then, or with a 5xx.
    pub fn failed(&mut self, session: SessionId, sent: Instant, now: Instant) -> Option<Turn> {
        match self.state {
            State::Closed if self.answered.is_some_and(|answered| sent < answered) => None,
            State::Closed => {
                if !self.failing.contains(&session) {
                    self.failing.push(session);
                }
                (self.failing.len() >= LIMIT).then(|| {
                    self.state = State::Open { until: now + self.pause };
                    Turn::Opened
                })
            }
            State::Probing { .. } => {
                self.pause = (self.pause * 2).min(PAUSE_MAX);
                self.state = State::Open { until: now + self.pause };
                None
            }
            // One that was under way when it opened.
            State::Open { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn id(number: u8) -> SessionId {
        SessionId([number; 16])
    }

    fn open(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(8 * SECOND);
        for number in 1..5 {
            assert_eq!(breaker.failed(id(number), now, now), None);
        }
        assert_eq!(breaker.failed(id(5), now, now), Some(Turn::Opened));
        breaker
    }

    #[test]
    fn five_sessions_in_a_row_open_it() {
        let now = Instant::now();
        let mut breaker = open(now);
        assert_eq!(breaker.admit(now), Err(SECOND));
        assert_eq!(breaker.admit(now + SECOND / 4), Err(SECOND * 3 / 4));
    }

    #[test]
    fn an_answer_to_anybody_begins_the_count_anew() {
        let now = Instant::now();
        let mut breaker = Breaker::new(8 * SECOND);
        for number in 0..100 {
            assert_eq!(breaker.failed(id(number), now, now), None);
            if number % 4 == 3 {
                assert_eq!(breaker.answered(now), None);
            }
        }
        assert_eq!(breaker.admit(now), Ok(()));
    }

    /// A provider that stumbles over one user answers the others.
    #[test]
    fn one_session_alone_never_opens_it() {
        let now = Instant::now();
        let mut breaker = Breaker::new(8 * SECOND);
        for _ in 0..1000 {
            assert_eq!(breaker.failed(id(1), now, now), None);
        }
        assert_eq!(breaker.admit(now), Ok(()));
    }

    #[test]
    fn after_a_pause_one_try_decides() {
        let mut now = Instant::now();
        let mut breaker = open(now);
        for pause in [1, 2, 4, 8, 8] {
            now += SECOND * pause;
            assert_eq!(breaker.admit(now - Duration::from_millis(1)), Err(Duration::from_millis(1)), "pause {pause}");
            assert_eq!(breaker.admit(now), Ok(()));
            assert_eq!(breaker.admit(now), Err(SECOND), "one at a time");
            assert_eq!(breaker.failed(id(9), now, now), None);
        }
        now += 8 * SECOND;
        assert_eq!(breaker.admit(now), Ok(()));
        assert_eq!(breaker.answered(now), Some(Turn::Closed));
        assert_eq!(breaker.admit(now), Ok(()));
        assert_eq!(breaker.admit(now), Ok(()));
        // And it opens anew after five, with a short pause.
        for number in 0..5 {
            breaker.failed(id(number), now, now);
        }
        assert_eq!(breaker.admit(now), Err(SECOND));
    }

    #[test]
    fn a_probe_that_is_never_reported_is_followed_by_another() {
        let now = Instant::now();
        let mut breaker = open(now);
        assert_eq!(breaker.admit(now + SECOND), Ok(()));
        assert_eq!(breaker.admit(now + 9 * SECOND), Err(SECOND));
        assert_eq!(breaker.admit(now + 10 * SECOND), Ok(()));
    }

    #[test]
    fn a_late_answer_closes_it_too() {
        let now = Instant::now();
        let mut breaker = open(now);
        assert_eq!(breaker.failed(id(7), now, now), None);
        assert_eq!(breaker.answered(now), Some(Turn::Closed));
    }

    /// A provider that answered meanwhile is there: tries that have been waiting since before say nothing new.
    #[test]
    fn what_was_sent_before_the_last_answer_does_not_count() {
        let sent = Instant::now();
        let now = sent + 8 * SECOND;
        let mut breaker = Breaker::new(8 * SECOND);
        assert_eq!(breaker.answered(sent + SECOND), None);
        for number in 0..20 {
            assert_eq!(breaker.failed(id(number), sent, now), None);
        }
        assert_eq!(breaker.admit(now), Ok(()));
        for number in 0..4 {
            assert_eq!(breaker.failed(id(number), now, now), None);
        }
        assert_eq!(breaker.failed(id(4), now, now), Some(Turn::Opened));
    }
}
