//! Tokens of a route's own, by token exchange (RFC 8693): kept in a bounded memory until they end, one exchange at a time
//! for a session and a target. The session's own tokens stay as they are, for an exchange spends no refresh token.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Mutex as Turn;

use super::settings::{Route, Token};
use super::state::State;
use crate::clock::Timestamp;
use crate::oidc::ProviderError;
use crate::oidc::types::{AccessToken, TokenTarget};
use crate::session::{Session, SessionId};
use crate::web::problem::{Code, Problem};

/// Tokens that are kept, a kilobyte or two each.
const CAPACITY: usize = 10_000;
/// How long a token is kept of which nobody says when it ends.
const UNTOLD: Duration = Duration::from_secs(60);
/// A token is not used in the last part of its life, so that it still holds when the app looks at it.
const MARGIN: Duration = Duration::from_secs(10);
/// How long a failure is the answer for those who waited for the same exchange.
const SHARED_FAILURE: Duration = Duration::from_secs(1);

/// Whose token, and for what.
type Key = (SessionId, [u8; 32]);
/// Held by whoever makes the exchange.
type Slot = Arc<Turn<Option<Kept>>>;

/// The outcome of an exchange.
#[derive(Clone, Debug)]
struct Kept {
    outcome: Result<AccessToken, ProviderError>,
    until: Timestamp,
}

/// The tokens that were exchanged.
#[derive(Debug, Default)]
pub struct Exchanged {
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    slots: HashMap<Key, Slot>,
    /// In the order in which they are forgotten.
    order: VecDeque<Key>,
}

impl Exchanged {
    fn slot(&self, key: Key) -> Slot {
        let mut memory = self.memory.lock();
        if let Some(slot) = memory.slots.get(&key) {
            return Arc::clone(slot);
        }
        while memory.order.len() >= CAPACITY {
            let Some(oldest) = memory.order.pop_front() else { break };
            memory.slots.remove(&oldest);
        }
        let slot = Slot::default();
        memory.slots.insert(key, Arc::clone(&slot));
        memory.order.push_back(key);
        slot
    }

    /// Drops what is past its time.
    pub fn sweep(&self, now: Timestamp) {
        let mut memory = self.memory.lock();
        let Memory { slots, order } = &mut *memory;
        // One that is held is being filled.
        slots.retain(|_, slot| slot.try_lock().map_or(true, |kept| kept.as_ref().is_some_and(|kept| now < kept.until)));
        order.retain(|key| slots.contains_key(key));
    }
}

/// The route's own token for this session; none when the route has none.
///
/// # Errors
/// What the browser is told when there is no such token; the session's own is never sent instead.
pub async fn token_for(state: &State, route: &Route, session: &Session) -> Result<Option<AccessToken>, Problem> {
    let Token::Own(target) = &route.token else { return Ok(None) };
    let asked = || state.provider_of(session).map(|provider| provider.settings().scopes.join(" ")).unwrap_or_default();
    let granted = session.scope.clone().unwrap_or_else(asked);
    if target.is_beyond(&granted) {
        return Err(beyond());
    }
    let slot = state.exchanged.slot((session.id, target.name()));
    let mut kept = slot.lock().await;
    let now = state.clock.now();
    let current = match &*kept {
        Some(current) if now < current.until => current.clone(),
        _ => {
            let made = exchange(state, target, session, now).await;
            *kept = Some(made.clone());
            made
        }
    };
    current.outcome.map(Some).map_err(|error| {
        tracing::warn!(target: "sidegate", event = "token_exchange_failed", route = %route.path, reason = error.reason());
        match &error {
            ProviderError::Refused { reason: "invalid_scope" } => beyond(),
            ProviderError::Unavailable { .. } | ProviderError::Ambiguous { .. } => {
                Problem::new(Code::ProviderUnavailable, "The login service gives no token for this now. Try again.")
                    .retry_after(2)
            }
            ProviderError::Refused { .. } | ProviderError::Dead { .. } | ProviderError::Invalid { .. } => {
                Problem::new(Code::ProviderRefused, "The login service gives no token for this.")
            }
        }
    })
}

async fn exchange(state: &State, target: &TokenTarget, session: &Session, now: Timestamp) -> Kept {
    let outcome = match state.provider_of(session) {
        Some(provider) => provider.exchange(&session.access_token, target, now).await,
        None => Err(ProviderError::Refused { reason: "provider_gone" }),
    };
    match outcome {
        Ok((token, expires)) => {
            let until = expires.map_or(now + UNTOLD, |expires| {
                let life = expires.since(now);
                now + life.saturating_sub(MARGIN.min(life / 5))
            });
            Kept { outcome: Ok(token), until }
        }
        Err(error) => Kept { outcome: Err(error), until: state.clock.now() + SHARED_FAILURE },
    }
}

fn beyond() -> Problem {
    Problem::new(Code::Forbidden, "The user did not grant what this route asks for.")
}
