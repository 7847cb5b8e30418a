//! Tokens of a route's own, by refresh (RFC 6749 section 6, RFC 8707), by token exchange (RFC 8693) or by client credentials:
//! kept in a bounded memory until they end, asked for by one request at a time for a session and a target; those of the
//! client for all sessions. Only a refresh spends something, which is the coordinator's business: it also keeps what the
//! session gets in its place.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Mutex as Turn;

use super::settings::{Route, Token, Way};
use super::state::State;
use crate::clock::Timestamp;
use crate::oidc::ProviderError;
use crate::oidc::types::{AccessToken, ProviderKey, TokenTarget};
use crate::refresh::coordinator::{Freshened, Obtained};
use crate::refresh::policy::{Demand, EndReason};
use crate::session::{Session, SessionId};
use crate::web::problem::{Code, Problem};

/// Tokens that are kept, a kilobyte or two each.
const CAPACITY: usize = 10_000;
/// How long a token is kept of which nobody says when it ends.
const UNTOLD: Duration = Duration::from_secs(60);
/// A token is not used in the last part of its life, so that it still holds when the app looks at it.
const MARGIN: Duration = Duration::from_secs(10);
/// How long a failure is the answer for those who waited for the same token.
const SHARED_FAILURE: Duration = Duration::from_secs(1);
/// The same, where each try may spend a refresh token and the provider will say no again.
const SHARED_REFUSAL: Duration = Duration::from_secs(10);

/// Whose token, for what, and how it is got.
type Key = (Owner, [u8; 32], Way);
/// Held by whoever asks the provider.
type Slot = Arc<Turn<Option<Kept>>>;

/// Whose token it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Owner {
    User(SessionId),
    /// Ours, at this one of several providers.
    Client(Option<ProviderKey>),
}

/// What came of asking.
#[derive(Clone, Debug)]
struct Kept {
    outcome: Result<AccessToken, ProviderError>,
    until: Timestamp,
}

/// Why a route has no token of its own for a request.
#[derive(Debug)]
pub enum Lack {
    /// What the browser is told; the session stays.
    Told(Problem),
    /// The session turned out to be over.
    Over(EndReason),
}

/// The tokens that were got.
#[derive(Debug, Default)]
pub struct OwnTokens {
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    slots: HashMap<Key, Slot>,
    /// In the order in which they are forgotten.
    order: VecDeque<Key>,
}

impl OwnTokens {
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
        memory.slots.insert(key.clone(), Arc::clone(&slot));
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

/// The route's own token for this session; none when the route has none. `came`: the session as the browser's cookies hold
/// it, for only what the browser shows counts as delivered.
///
/// # Errors
/// Why there is no such token; the session's own is never sent instead.
pub async fn token_for(
    state: &State,
    route: &Route,
    session: &Session,
    came: &Arc<Session>,
) -> Result<Option<AccessToken>, Lack> {
    let Token::Own(target, way) = &route.token else { return Ok(None) };
    let asked = || state.provider_of(session).map(|provider| provider.settings().scopes.join(" ")).unwrap_or_default();
    let granted = session.scope.clone().unwrap_or_else(asked);
    let owner = match way {
        Way::Client(_) => Owner::Client(session.provider),
        Way::Refresh | Way::Exchange if target.is_beyond(&granted) => return Err(Lack::Told(beyond())),
        Way::Refresh | Way::Exchange => Owner::User(session.id),
    };
    let slot = state.own_tokens.slot((owner, target.name(), way.clone()));
    let mut kept = slot.lock().await;
    let now = state.clock.now();
    let current = match &*kept {
        Some(current) if now < current.until => current.clone(),
        _ => {
            let made = match way {
                Way::Exchange | Way::Client(_) => ask(state, target, way, session, now).await,
                Way::Refresh => refresh(state, target, came).await?,
            };
            *kept = Some(made.clone());
            made
        }
    };
    current.outcome.map(Some).map_err(|error| {
        tracing::warn!(target: "sidegate", event = "route_token_failed", route = %route.path, reason = error.reason());
        Lack::Told(match error {
            ProviderError::Refused { reason: "invalid_scope" } => beyond(),
            ProviderError::Unavailable { .. } | ProviderError::Ambiguous { .. } => {
                Problem::new(Code::ProviderUnavailable, "The login service gives no token for this now. Try again.")
                    .retry_after(2)
            }
            ProviderError::Refused { .. } | ProviderError::Dead { .. } | ProviderError::Invalid { .. } => {
                Problem::new(Code::ProviderRefused, "The login service gives no token for this.")
            }
        })
    })
}

/// What spends nothing.
async fn ask(state: &State, target: &TokenTarget, way: &Way, session: &Session, now: Timestamp) -> Kept {
    let provider = match way {
        Way::Client(Some(name)) => state.providers.service(name),
        _ => state.provider_of(session),
    };
    let outcome = match provider {
        Some(provider) if matches!(way, Way::Client(_)) => provider.client_token(target, now).await,
        Some(provider) => provider.exchange(&session.access_token, target, now).await,
        None => Err(ProviderError::Refused { reason: "provider_gone" }),
    };
    match outcome {
        Ok((token, expires)) => good(token, expires, now),
        Err(error) => Kept { outcome: Err(error), until: state.clock.now() + SHARED_FAILURE },
    }
}

async fn refresh(state: &State, target: &TokenTarget, came: &Arc<Session>) -> Result<Kept, Lack> {
    let now = state.clock.now();
    let error = match state.refresh.obtain(Arc::clone(came), target).await {
        Obtained::Token(token, expires) => return Ok(good(token, expires, now)),
        Obtained::Over(reason) => return Err(Lack::Over(reason)),
        Obtained::Exhausted => ProviderError::Refused { reason: "no_refresh_token" },
        Obtained::Failed(error @ ProviderError::Dead { .. }) => {
            // Said of this token, or of the refresh token itself? A refresh for the session tells.
            match state.refresh.freshen(Arc::clone(came), Demand::Now).await {
                Freshened::Over { reason } => return Err(Lack::Over(reason)),
                _ => error,
            }
        }
        Obtained::Failed(error) => error,
    };
    let pause = match &error {
        ProviderError::Unavailable { retry_after, .. } => retry_after.unwrap_or(SHARED_FAILURE),
        ProviderError::Ambiguous { .. } => SHARED_FAILURE,
        ProviderError::Refused { .. } | ProviderError::Dead { .. } | ProviderError::Invalid { .. } => SHARED_REFUSAL,
    };
    Ok(Kept { outcome: Err(error), until: state.clock.now() + pause })
}

fn good(token: AccessToken, expires: Option<Timestamp>, now: Timestamp) -> Kept {
    let until = expires.map_or(now + UNTOLD, |expires| {
        let life = expires.since(now);
        now + life.saturating_sub(MARGIN.min(life / 5))
    });
    Kept { outcome: Ok(token), until }
}

fn beyond() -> Problem {
    Problem::new(Code::Forbidden, "The user did not grant what this route asks for.")
}
