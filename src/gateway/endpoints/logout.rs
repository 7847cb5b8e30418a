//! `<prefix>/logout`: ends the session here and at the provider (OpenID Connect RP-Initiated Logout).

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;

use super::{Answer, Visitor, clear_site_data, csrf, origin};
use crate::gateway::routes::Matched;
use crate::gateway::settings::Access;
use crate::gateway::state::State;
use crate::metrics::EndReason;
use crate::oidc::types::IdToken;
use crate::session::Session;
use crate::telemetry::audit;
use crate::web::pages;
use crate::web::path::CleanPath;
use crate::web::problem::{Code, Problem};
use crate::web::request::RequestView;
use crate::web::response::LocalResponse;
use crate::web::return_to::ReturnTo;

/// How long the answer waits for the provider's revocation endpoint; the call itself goes on after that.
const PATIENCE: Duration = Duration::from_secs(2);

/// Ends the session. Works without one too: what a script that lost its session wants is to be logged out.
pub(super) async fn serve(state: &Arc<State>, request: &RequestView<'_>, visitor: Visitor) -> Answer {
    let caller = visitor.caller;
    // RPL-01: no other page logs the user out, a sibling origin's neither.
    if caller.foreign {
        return csrf().into();
    }
    if *request.method == Method::GET && !caller.navigation {
        let problem = Problem::new(Code::MethodNotAllowed, "A script logs out by POST.");
        return problem.allow("POST".to_owned()).into();
    }
    if *request.method == Method::POST && (visitor.session.is_some() || visitor.away.is_some()) && !caller.proven {
        return csrf().into();
    }
    let mut location = None;
    if let Some(session) = &visitor.session {
        state.ends.end(session.id);
        state.metrics.observe_session_ended(EndReason::Logout);
        audit::logout(&origin(request, Some(state.sub_hash(session))));
        if let Some(ticket) = &session.ticket {
            state.vault.remove(ticket).await;
        }
        revoke(state, session).await;
        let hint = session.id_token.as_ref().and_then(|packed| packed.unpack()).map(IdToken::new);
        location = state.provider_of(session).and_then(|provider| provider.end_session_url(hint.as_ref()));
    }
    if let Some(ticket) = &visitor.away {
        // What the ticket leads to cannot be looked up, but it can be ended.
        state.ends.end(ticket.id);
        state.metrics.observe_session_ended(EndReason::Logout);
        audit::logout(&origin(request, None));
        state.vault.remove(ticket).await;
    }
    let location = location.unwrap_or_else(|| format!("{}/logout/return", state.settings.prefix));
    let response = if caller.navigation {
        LocalResponse::redirect(StatusCode::SEE_OTHER, &location)
    } else {
        LocalResponse::json(&json!({ "location": location }))
    };
    clear_site_data(response, state).set_cookies(state.jar.expire_all(&visitor.presented)).into()
}

/// RFC 7009, refresh token first: with most providers it takes the access token along. In a task of its own, so
/// that neither a slow provider nor a browser that leaves hinders the logout.
async fn revoke(state: &Arc<State>, session: &Arc<Session>) {
    let Some(provider) = state.provider_of(session).filter(|provider| provider.settings().revoke) else { return };
    let task = {
        let (provider, session) = (Arc::clone(provider), Arc::clone(session));
        tokio::spawn(async move {
            if let Some(token) = session.refresh_token.as_ref().and_then(|packed| packed.unpack()) {
                provider.revoke(&token, "refresh_token").await;
            }
            provider.revoke(session.access_token.expose(), "access_token").await;
        })
    };
    let _ = tokio::time::timeout(PATIENCE, task).await;
}

/// Where the provider sends the browser back: on to the configured page, unless that would log the user in again.
pub(super) fn returned(state: &State, request: &RequestView<'_>, visitor: Visitor) -> Answer {
    let target = ReturnTo::parse(Some(&state.settings.logout.return_to), &state.settings.prefix);
    let path = target.as_str().split(['?', '#']).next().unwrap_or("/");
    let opens =
        CleanPath::parse(path).is_ok_and(|path| match state.routes.find(&path, request.host, Some(&Method::GET)) {
            Matched::Route(entry) => entry.0.settings.access != Access::Session,
            Matched::MethodNotAllowed { .. } | Matched::None => false,
        });
    if opens || visitor.session.is_some() {
        LocalResponse::redirect(StatusCode::FOUND, target.as_str()).into()
    } else {
        pages::signed_out(&target.login_url(&state.settings.prefix)).into()
    }
}
