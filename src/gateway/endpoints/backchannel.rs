//! `POST <prefix>/logout/backchannel`: the provider ends sessions (OpenID Connect Back-Channel Logout 1.0).

use std::sync::Arc;

use http::{StatusCode, header};

use super::{Answer, provider_problem, too_often};
use crate::gateway::rate::Caller;
use crate::gateway::state::State;
use crate::oidc::ProviderError;
use crate::oidc::jwt::peek_issuer;
use crate::oidc::logout::{Ends, LogoutToken};
use crate::session::endings::Whose;
use crate::session::store::By;
use crate::web::problem::{Code, Problem};
use crate::web::query::Params;
use crate::web::request::RequestView;
use crate::web::response::LocalResponse;

/// Ends the sessions that a logout token names. Nothing but the token counts: no cookie, no origin, no other header.
pub(super) async fn serve(state: &Arc<State>, request: &RequestView<'_>) -> Answer {
    if let Some(wait) = state.ends.refused.wait(Caller::at(request.client), request.now) {
        return too_often(wait).into();
    }
    let token = match form_token(request) {
        Ok(token) => verify(state, &token).await,
        Err(reason) => Err(ProviderError::Invalid { reason }),
    };
    let (issuer, token) = match token {
        Ok(verified) => verified,
        Err(error) => {
            state.ends.refused.count(Caller::at(request.client), request.now);
            return refused(request, &error);
        }
    };
    // A provider that missed our answer sends the token again; the sessions are over, so the answer is the same.
    let first = state.ends.is_first(issuer, &token.jti, token.until);
    if first {
        match &token.ends {
            Ends::ProviderSession { sid, sub } => {
                let session = Whose::ProviderSession { issuer, sid };
                let unnamed = sub.as_deref().map(|subject| Whose::SubjectWithoutSid { issuer, subject });
                let whose: Vec<_> = std::iter::once(session).chain(unnamed).collect();
                state.ends.end_outside(&whose, By::Backchannel);
            }
            Ends::Subject(subject) => {
                state.ends.end_outside(&[Whose::Subject { issuer, subject }], By::Backchannel);
            }
        }
    }
    let outcome = if first { "accepted" } else { "repeated" };
    tracing::info!(target: "sidegate", event = "backchannel_logout", request_id = request.request_id, outcome);
    LocalResponse::empty(StatusCode::OK).into()
}

/// The token, and the issuer that it is of. What it says of its issuer only chooses whose keys judge it.
async fn verify<'s>(state: &'s State, token: &str) -> Result<(&'s str, LogoutToken), ProviderError> {
    let says = peek_issuer(token);
    let said = says.as_deref().and_then(|issuer| state.providers.of_issuer(issuer));
    let provider = state.providers.only().or(said).ok_or(ProviderError::Invalid { reason: "iss" })?;
    let token = provider.verify_logout_token(token).await?;
    Ok((provider.settings().issuer.as_str(), token))
}

/// The one `logout_token` of a form.
fn form_token(request: &RequestView<'_>) -> Result<String, &'static str> {
    let mut types = request.headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(media_type), None) = (types.next(), types.next()) else { return Err("content_type") };
    let media_type = media_type.to_str().ok().and_then(|value| value.split(';').next()).unwrap_or_default();
    if !media_type.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Err("content_type");
    }
    let form = Params::form(request.form);
    match form.one("logout_token") {
        Ok(Some(token)) if !token.is_empty() => Ok(token.to_owned()),
        Ok(_) => Err("logout_token"),
        Err(_) => Err("logout_token_repeated"),
    }
}

/// The reason stands in the log only: who sends forged tokens learns nothing from the answer (BCL-08).
fn refused(request: &RequestView<'_>, error: &ProviderError) -> Answer {
    let reason = error.reason();
    tracing::warn!(target: "sidegate", event = "backchannel_logout", request_id = request.request_id, outcome = "refused", reason);
    match error {
        ProviderError::Invalid { .. } => Problem::new(Code::BadRequest, "The logout token was not accepted.").into(),
        // Whether the token holds could not be judged: the provider may send it again.
        _ => provider_problem(error).into(),
    }
}
