//! When a token is due, and when it can be renewed at all.

use std::time::Duration;

use super::Settings;
use crate::clock::Timestamp;
use crate::session::model::{Handle, Session, SessionId};

/// The youngest age at which a token can be due. A provider whose tokens end as they are issued would otherwise be
/// asked again by every single request. A shorter `after` is the operator's word.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// How long a forwarded token must still live; at most a tenth of its life.
const TRANSIT: Duration = Duration::from_secs(1);

/// What a request wants of the access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// A token that works: refresh it when it is due.
    IfDue,
    /// A newer token than the one presented.
    Now,
    /// A token that was issued at most this long ago.
    OlderThan(Duration),
    /// None of the session's: the refresh token has to be spent for something else.
    Aside,
}

/// Why a session is over. `word` is the bounded label for log and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The provider said so; the word says why, for the log.
    Dead(&'static str),
    /// The provider's answer was of somebody else. It did not call the token dead, so there is nothing to verify.
    Mismatch(&'static str),
    /// Its life is over, or the access token ended and nothing can renew it.
    Expired,
    /// Nobody used it for too long.
    Idle,
    /// The access token ended and `max_refreshes` is used up.
    RefreshLimit,
    /// Its cookie came back after its successor was in use.
    Reuse,
    /// It was ended here before: logout, or an answer that did not hold. Was told then.
    Ended,
}

impl EndReason {
    /// The fixed word for log and metric.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Dead(_) | Self::Mismatch(_) => "refresh_dead",
            Self::Expired => "expired",
            Self::Idle => "idle",
            Self::RefreshLimit => "refresh_limit",
            Self::Reuse => "reuse",
            Self::Ended => "ended",
        }
    }
}

/// What the engine needs to know of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The same over all generations.
    pub id: SessionId,
    /// +1 with every refresh, 0 at login.
    pub generation: u64,
    /// The generation that this one was made from: presenting this session acknowledges its delivery.
    pub previous: Option<Handle>,
    /// When its tokens were issued.
    pub issued: Timestamp,
    /// When the access token ends, if anybody knows.
    pub access_expires: Option<Timestamp>,
    /// It has a refresh token.
    pub refreshable: bool,
    /// Which this request did not bring.
    pub elsewhere: bool,
    /// When the refresh token ends, if the provider told.
    pub refresh_expires: Option<Timestamp>,
}

impl Facts {
    /// Reads them off a session.
    pub fn of(session: &Session) -> Self {
        Self {
            id: session.id,
            generation: session.generation,
            previous: session.previous,
            issued: session.issued,
            access_expires: session.access_expires,
            refreshable: session.has_refresh_token(),
            elsewhere: session.refresh_token.is_none() && session.elsewhere.is_some(),
            refresh_expires: session.refresh_expires,
        }
    }
}

/// How urgent a refresh is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Good as it is.
    Not,
    /// Good, but not for long: a failed refresh does no harm yet.
    Early,
    /// The access token is over.
    Over,
}

/// Whether the access token wants to be renewed.
pub fn due(facts: &Facts, settings: &Settings, now: Timestamp) -> Due {
    let age = now.since(facts.issued);
    if facts.issued <= now && age < settings.after.map_or(FRESH_FOR, |after| FRESH_FOR.min(after)) {
        return Due::Not;
    }
    if let Some(expires) = facts.access_expires {
        // A token that ends while the request is on its way is of no use to the upstream: what is almost over is over,
        // unless there is no better one to be had.
        let left = expires.since(now);
        let transit = TRANSIT.min(expires.since(facts.issued) / 10);
        if left.is_zero() || (left <= transit && renewable(facts, settings, now).is_ok()) {
            return Due::Over;
        }
    }
    // The session is over with its refresh token: one that ends before the access token is renewed in time as well.
    let first = [facts.access_expires, facts.refresh_expires.filter(|end| now < *end)].into_iter().flatten().min();
    if let Some(expires) = first {
        // A fifth at most, so that a token of short life is not renewed all its life.
        let window = settings.before_expiry.min(expires.since(facts.issued) / 5);
        let window = window.mul_f64(eagerness(settings.replica, facts.id));
        // Requests that are on their way with the old token would fail.
        if expires.since(now) <= window && !settings.kills_access_token {
            return Due::Early;
        }
    }
    if settings.after.is_some_and(|after| age >= after) { Due::Early } else { Due::Not }
}

/// How much of the early window a replica uses for a session: without a word to each other, replicas become eager at
/// different moments, and mostly do not collide (R8).
fn eagerness(replica: Option<u64>, id: SessionId) -> f64 {
    let Some(replica) = replica else { return 1.0 };
    // The id is random: mixing is all that is needed. splitmix64's finalizer.
    let mut x = replica ^ u64::from_be_bytes(*id.0.first_chunk().unwrap_or(&[0; 8]));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    f64::from(u32::try_from(x >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}

/// Whether a refresh has a chance. It has none without a refresh token, with one known to be past its life, or beyond
/// `max_refreshes`; the access token is then used to its end.
///
/// # Errors
/// Why not.
pub fn renewable(facts: &Facts, settings: &Settings, now: Timestamp) -> Result<(), EndReason> {
    if !facts.refreshable || facts.refresh_expires.is_some_and(|expires| expires <= now) {
        return Err(EndReason::Expired);
    }
    if settings.max_refreshes != 0 && facts.generation >= settings.max_refreshes {
        return Err(EndReason::RefreshLimit);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refresh::engine::tests::settings;

    const T0: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn facts(life: Option<u64>) -> Facts {
        Facts {
            id: SessionId([1; 16]),
            generation: 0,
            previous: None,
            issued: T0,
            access_expires: life.map(|secs| T0 + Duration::from_secs(secs)),
            refreshable: true,
            elsewhere: false,
            refresh_expires: None,
        }
    }

    #[test]
    fn a_token_is_due_before_its_end_but_never_for_more_than_a_fifth_of_its_life() {
        let settings = settings();
        for (life, at, expect) in [
            (Some(3600), 3539, Due::Not),
            (Some(3600), 3540, Due::Early),
            (Some(3600), 3598, Due::Early),
            (Some(3600), 3599, Due::Over),
            (Some(3600), 3600, Due::Over),
            (Some(100), 79, Due::Not),
            (Some(100), 80, Due::Early),
            (Some(0), 0, Due::Not),
            (Some(0), 1, Due::Over),
            (None, 1_000_000, Due::Not),
        ] {
            assert_eq!(due(&facts(life), &settings, T0 + Duration::from_secs(at)), expect, "{life:?} at {at}");
        }
    }

    /// BFF-11: who is there when the refresh token nears its end gets another one, though the access token lives on.
    #[test]
    fn a_refresh_token_that_ends_first_is_renewed_in_time() {
        for (ends, at, expect) in
            [(1800, 1739, Due::Not), (1800, 1740, Due::Early), (1800, 1801, Due::Not), (7200, 1740, Due::Not)]
        {
            let facts = Facts { refresh_expires: Some(T0 + Duration::from_secs(ends)), ..facts(Some(3600)) };
            assert_eq!(due(&facts, &settings(), T0 + Duration::from_secs(at)), expect, "{ends} at {at}");
        }
    }

    #[test]
    fn after_counts_from_issue_whatever_the_expiry() {
        let settings = Settings { after: Some(Duration::from_secs(30)), ..settings() };
        assert_eq!(due(&facts(None), &settings, T0 + Duration::from_secs(29)), Due::Not);
        assert_eq!(due(&facts(None), &settings, T0 + Duration::from_secs(30)), Due::Early);
        assert_eq!(due(&facts(Some(10)), &settings, T0 + Duration::from_secs(30)), Due::Over);
        let settings = Settings { after: Some(Duration::from_millis(300)), ..settings };
        assert_eq!(due(&facts(Some(3600)), &settings, T0 + Duration::from_millis(299)), Due::Not);
        assert_eq!(due(&facts(Some(3600)), &settings, T0 + Duration::from_millis(300)), Due::Early);
    }

    #[test]
    fn a_token_that_dies_with_its_refresh_is_used_to_its_end() {
        let settings = Settings { kills_access_token: true, ..settings() };
        assert_eq!(due(&facts(Some(3600)), &settings, T0 + Duration::from_secs(3598)), Due::Not);
        assert_eq!(due(&facts(Some(3600)), &settings, T0 + Duration::from_secs(3599)), Due::Over);
    }

    /// RFR-09, R8: replicas do not speak to each other, and yet seldom begin at one moment.
    #[test]
    fn replicas_become_eager_at_different_moments() {
        let eager_from = |replica, session: u8| {
            let settings = Settings { replica: Some(replica), ..settings() };
            let facts = Facts { id: SessionId([session; 16]), ..facts(Some(3600)) };
            (0..3600).find(|at| due(&facts, &settings, T0 + Duration::from_secs(*at)) != Due::Not).unwrap_or(3600)
        };
        let moments: Vec<Vec<u64>> =
            (0..40).map(|session| [11, 22, 33].map(|replica| eager_from(replica, session)).to_vec()).collect();
        assert!(moments.iter().flatten().all(|at| (3540..3600).contains(at)), "within the window: {moments:?}");
        let apart = |times: &&Vec<u64>| {
            let mut sorted = (*times).clone();
            sorted.sort_unstable();
            sorted.windows(2).all(|pair| matches!(pair, [a, b] if b - a >= 1))
        };
        assert!(moments.iter().filter(apart).count() >= 34, "of 40 sessions: {moments:?}");
        let firsts: std::collections::BTreeSet<u64> =
            moments.iter().filter_map(|times| times.first().copied()).collect();
        assert!(firsts.len() > 15, "one replica is not eager at one moment for all: {firsts:?}");
    }

    /// RFR-09: a clock that goes back finds a token of the future: nothing to do, so nothing to do again and again.
    #[test]
    fn a_clock_that_goes_back_does_not_make_a_token_due() {
        assert_eq!(due(&facts(Some(300)), &settings(), T0 - Duration::from_secs(3600)), Due::Not);
        assert_eq!(due(&facts(Some(300)), &settings(), T0 + Duration::from_secs(3600)), Due::Over);
    }

    #[test]
    fn no_doomed_call_is_made() {
        let settings = Settings { max_refreshes: 3, ..settings() };
        let good = facts(Some(10));
        assert_eq!(renewable(&good, &settings, T0), Ok(()));
        assert_eq!(renewable(&Facts { refreshable: false, ..good }, &settings, T0), Err(EndReason::Expired));
        assert_eq!(renewable(&Facts { refresh_expires: Some(T0), ..good }, &settings, T0), Err(EndReason::Expired));
        assert_eq!(renewable(&Facts { generation: 2, ..good }, &settings, T0), Ok(()));
        assert_eq!(renewable(&Facts { generation: 3, ..good }, &settings, T0), Err(EndReason::RefreshLimit));
    }
}
