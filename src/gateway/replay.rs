//! When the app refuses the token: one refresh, and the request once more (RFC 6750 section 3.1).
//!
//! A token can be over before its time: revoked, killed by a refresh elsewhere, or of a provider that does not say how
//! long it lives. Only a request without a body is sent again, and only one whose repetition does no harm. An app that
//! refuses every token must not cost a refresh each time: what a refusal brought is not refreshed for the next refusal,
//! unless the app took it in between.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, header};
use parking_lot::Mutex;

use crate::clock::Timestamp;
use crate::session::{Session, SessionId};
use crate::web::challenge::{self, Challenge};

/// How long a token that a refusal brought is taken for as good as any: an app that refuses it means the user.
const BELIEVED: Duration = Duration::from_secs(60);
/// Sessions that are remembered, about 100 bytes each.
const CAPACITY: usize = 10_000;

/// Whether a request may be sent a second time after the app has seen it.
pub fn is_replayable(method: &Method, headers: &HeaderMap) -> bool {
    let bodiless = !headers.contains_key(header::CONTENT_LENGTH) && !headers.contains_key(header::TRANSFER_ENCODING);
    bodiless && matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// Whether an answer says that the token is no good. A challenge that asks for another login or for more scope
/// (RFC 9470, RFC 6750 section 3.1), or another proof (RFC 9449 section 9), is not answered by a newer token of the same grant.
pub fn refuses_token(status: StatusCode, headers: &HeaderMap) -> bool {
    let wants_more = |challenge: &Challenge| {
        ["insufficient_user_authentication", "insufficient_scope", "use_dpop_nonce", "invalid_dpop_proof"]
            .iter()
            .any(|error| challenge.says(error))
    };
    status == StatusCode::UNAUTHORIZED && !challenge::read(headers).iter().any(wants_more)
}

/// Tokens that a refusal brought, by session.
#[derive(Debug, Default)]
pub struct Brought {
    memory: Mutex<Memory>,
    /// Spares the lock at every ordinary answer.
    any: AtomicBool,
}

#[derive(Debug, Default)]
struct Memory {
    generations: HashMap<SessionId, (u64, Timestamp)>,
    /// In the order in which they are forgotten.
    order: VecDeque<(Timestamp, SessionId)>,
}

impl Brought {
    /// This generation was made because the app refused the one before.
    pub fn remember(&self, session: &Session, now: Timestamp) {
        let mut memory = self.memory.lock();
        self.any.store(true, Ordering::Relaxed);
        let until = now + BELIEVED;
        while memory.order.front().is_some_and(|(until, _)| *until <= now) || memory.order.len() >= CAPACITY {
            let Some((until, id)) = memory.order.pop_front() else { break };
            // One that was remembered again since then stays.
            if memory.generations.get(&id).is_some_and(|(_, latest)| *latest <= until) {
                memory.generations.remove(&id);
            }
        }
        memory.generations.insert(session.id, (session.generation, until));
        memory.order.push_back((until, session.id));
    }

    /// The app took the session's token.
    pub fn forget(&self, session: &Session) {
        if self.any.load(Ordering::Relaxed) {
            let mut memory = self.memory.lock();
            memory.generations.remove(&session.id);
            self.any.store(!memory.generations.is_empty(), Ordering::Relaxed);
        }
    }

    /// Whether the token is one of those, so that one more would be refused as well.
    pub fn is_fresh_from_refusal(&self, session: &Session, now: Timestamp) -> bool {
        let memory = self.memory.lock();
        memory.generations.get(&session.id).is_some_and(|(made, until)| *made == session.generation && now < *until)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn only_what_does_no_harm_twice_is_sent_twice() {
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            assert!(is_replayable(&method, &headers(&[])), "{method}");
            assert!(!is_replayable(&method, &headers(&[("content-length", "3")])), "{method} with a body");
            assert!(!is_replayable(&method, &headers(&[("transfer-encoding", "chunked")])), "{method} with a stream");
        }
        for method in [Method::POST, Method::PATCH, Method::PUT, Method::DELETE] {
            assert!(!is_replayable(&method, &headers(&[])), "{method}");
        }
    }

    #[test]
    fn a_newer_token_is_no_answer_to_a_wish_for_more() {
        let refuses = |status, challenge| {
            let fields = headers(&[("www-authenticate", challenge)]);
            refuses_token(StatusCode::from_u16(status).unwrap(), &fields)
        };
        assert!(refuses_token(StatusCode::UNAUTHORIZED, &headers(&[])));
        assert!(refuses(401, "Bearer error=\"invalid_token\""));
        assert!(!refuses(403, "Bearer error=\"invalid_token\""));
        assert!(!refuses(401, "Bearer error=\"insufficient_user_authentication\", acr_values=\"gold\""));
        assert!(!refuses(401, "Bearer error=\"insufficient_scope\", scope=\"admin\""));
        assert!(!refuses(401, "DPoP error=\"use_dpop_nonce\""));
    }
}
