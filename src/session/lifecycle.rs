//! Whether a session still lives. Pure: session, settings and time in, verdict out.
//!
//! ```text
//! Kept     authentic, and what there is of it is in the store
//! Absent   nothing of ours was presented, or only what another replica may open
//! Broken   something of ours was presented and none of it opens
//! Over     authentic, but its time has passed
//! Open     to be used
//! ```

use std::sync::Arc;
use std::time::Duration;

use super::ticket::Ticket;
use super::{Session, Settings};
use crate::clock::Timestamp;

/// What the cookies of a request amount to.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    Absent,
    Broken,
    Kept(Ticket),
    Over(Ended, Arc<Session>),
    Open(Arc<Session>),
}

/// Why a session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its absolute life, or that of its tokens, has passed.
    Expired,
    /// No request was forwarded for too long.
    Idle,
    /// The access token ended, and `max_refreshes` forbids another.
    RefreshLimit,
}

/// `=> (Over | Open)`
pub fn judge(session: Arc<Session>, settings: &Settings, now: Timestamp) -> State {
    // Sealed for a provider that is configured no more, or in another way.
    if settings.issuer_of(session.provider).is_none() {
        return State::Over(Ended::Expired, session);
    }
    if now >= session.ends(settings) {
        let why = if now < session.could_last(settings) { Ended::RefreshLimit } else { Ended::Expired };
        State::Over(why, session)
    } else if session.idle_ends(settings).is_some_and(|end| now >= end) {
        State::Over(Ended::Idle, session)
    } else {
        State::Open(session)
    }
}

/// Whether the last use should be sealed again: at most once per tenth of the idle timeout, so that not every answer
/// sets a cookie.
pub fn needs_touch(session: &Session, settings: &Settings, now: Timestamp) -> bool {
    settings.idle_timeout.is_some_and(|idle| now.since(session.last_used) > idle / 10)
}

/// What is left of the session's life.
pub fn left(session: &Session, settings: &Settings, now: Timestamp) -> Duration {
    let end = session.ends(settings);
    session.idle_ends(settings).map_or(end, |idle| idle.min(end)).since(now)
}
