//! `GET <prefix>/session` and `POST <prefix>/refresh`: who is logged in, and until when.

use std::sync::Arc;

use http::HeaderValue;
use serde_json::{Map, Value, json};

use super::{Answer, Visitor, csrf};
use crate::clock::Timestamp;
use crate::gateway::state::State;
use crate::gateway::verify::{Doubted, is_replayable, own_target, verified};
use crate::refresh::coordinator::Freshened;
use crate::refresh::policy::{Demand, EndReason};
use crate::session::Session;
use crate::session::jar::Presented;
use crate::web::problem::{Code, Problem};
use crate::web::request::RequestView;
use crate::web::response::LocalResponse;

/// Seconds after which one of the other event streams may have ended.
const STREAM_AGAIN: u64 = 10;

/// Who is logged in. Polling it keeps no session alive (BFF-39).
pub(super) fn show(state: &State, request: &RequestView<'_>, visitor: Visitor) -> Answer {
    if visitor.caller.foreign || (visitor.session.is_some() && !visitor.caller.proven) {
        return csrf().into();
    }
    let stale = visitor.is_stale();
    let Some(session) = visitor.session else {
        let cookies = state.jar.expire(&visitor.presented);
        return LocalResponse::json(&json!({ "authenticated": false })).set_cookies(cookies).into();
    };
    // Told a moment ago, to a request that could not be sent round. Its cookie stays: see there.
    if state.refresh.is_dead(&session) {
        return LocalResponse::json(&json!({ "authenticated": false })).into();
    }
    let response = LocalResponse::json(&describe(state, &session, request.now));
    // A cookie older than what is known here is mended on the way (an earlier answer was lost).
    response.set_cookies(mended(state, request, &visitor.presented, stale, &session)).into()
}

/// Refreshes now.
pub(super) async fn refresh(state: &Arc<State>, request: &RequestView<'_>, visitor: Visitor) -> Answer {
    let over = |cookies| {
        Answer::Refuse(Problem::new(Code::LoginRequired, "There is no session. Log in at login_url."), cookies)
    };
    let expired = || state.jar.expire(&visitor.presented);
    let stale = visitor.is_stale();
    // As it came: only what the browser shows counts as delivered.
    let Some(session) = &visitor.came else {
        return if visitor.caller.foreign { csrf().into() } else { over(expired()) };
    };
    if !visitor.caller.proven {
        return csrf().into();
    }
    match state.refresh.freshen(Arc::clone(session), Demand::Now).await {
        // `max_refreshes` is used up: the session goes on to its token's end, but a newer one is not to be had.
        Freshened::Exhausted { session: last, .. } => {
            let problem =
                Problem::new(Code::LoginRequired, "The session cannot be refreshed any more. Log in at login_url.");
            Answer::Refuse(problem, mended(state, request, &visitor.presented, stale, &last))
        }
        Freshened::Use { session: fresh, .. } if state.ends.is_over(&fresh) => over(expired()),
        Freshened::Use { session: fresh, changed } => {
            let cookies = mended(state, request, &visitor.presented, changed, &fresh);
            LocalResponse::json(&describe(state, &fresh, state.clock.now())).set_cookies(cookies).into()
        }
        // Another replica may have spent the token a moment ago, and the browser have the newer cookie by now, under the
        // same name.
        Freshened::Over { reason: EndReason::Dead(_) } => {
            let doubted = Doubted {
                headers: request.headers,
                replayable: is_replayable(request.method, request.version, request.headers),
                mode: state.settings.verify,
                target: &own_target(request.path, request.query),
                now: request.now,
            };
            match verified(state, doubted, session).await {
                Ok(believed) => over(if believed { expired() } else { Vec::new() }),
                Err(redirect) => redirect.into(),
            }
        }
        Freshened::Over { reason: EndReason::Reuse } => over(Vec::new()),
        Freshened::Over { .. } | Freshened::Bring => over(expired()),
        Freshened::Unavailable { retry_after } => unavailable(retry_after.as_secs()).into(),
        Freshened::Refused => refused().into(),
    }
}

/// The session's cookies, for a browser that has older ones.
pub(super) fn mended(
    state: &State,
    request: &RequestView<'_>,
    presented: &Presented,
    stale: bool,
    session: &Session,
) -> Vec<HeaderValue> {
    if stale { state.seal(session, presented, request.now, request.request_id) } else { Vec::new() }
}

/// What becomes of the session, as it happens.
pub(super) fn events(state: &State, visitor: Visitor) -> Answer {
    match visitor.session {
        _ if visitor.caller.foreign => csrf().into(),
        Some(_) if !visitor.caller.proven => csrf().into(),
        Some(session) => match state.streams.open(session.id) {
            Some(open) => Answer::Events(session, open),
            None => Problem::new(Code::RateLimited, "This session has too many event streams open.")
                .retry_after(STREAM_AGAIN)
                .into(),
        },
        None => Problem::new(Code::LoginRequired, "There is no session. Log in at login_url.").into(),
    }
}

/// 503 while the provider does not answer; the session is kept.
pub(crate) fn unavailable(seconds: u64) -> Problem {
    Problem::new(Code::ProviderUnavailable, "The login service does not answer; the session is kept. Try again.")
        .retry_after(seconds.max(1))
}

/// 502 while our client is misconfigured at the provider; the session is kept.
pub(crate) fn refused() -> Problem {
    Problem::new(
        Code::ProviderRefused,
        "This gateway is not set up correctly at the login service; the session is kept.",
    )
}

fn describe(state: &State, session: &Session, now: Timestamp) -> Value {
    let mut claims = Map::new();
    for name in &state.settings.expose {
        if let Some(value) = session.claim(name) {
            claims.insert(name.clone(), value.into_owned());
        }
    }
    let settings = state.jar.settings();
    json!({
        "authenticated": true,
        "claims": claims,
        "expires_at": session.ends(settings).as_secs(),
        "access_token_expires_at": session.access_expires.map(Timestamp::as_secs),
        "idle_expires_at": session.idle_ends(settings).map(seconds),
        "now": seconds(now),
    })
}

/// Epoch seconds, with a fraction only where one is needed.
fn seconds(time: Timestamp) -> u64 {
    time.as_secs()
}
