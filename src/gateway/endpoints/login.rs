//! `GET <prefix>/login`: the way to the provider.

use std::sync::Arc;

use http::StatusCode;

use super::{Answer, Visitor, csrf, provider_problem, to_page};
use crate::crypto::random;
use crate::gateway::state::State;
use crate::gateway::step_up::MAX_ACR_VALUES;
use crate::oidc::Provider;
use crate::oidc::authorize::{self, AuthorizationRequest};
use crate::oidc::types::{Nonce, PkceVerifier};
use crate::session::login_cookie::Attempt;
use crate::web::origin::Origin;
use crate::web::pages;
use crate::web::problem::{Code, Problem};
use crate::web::query::Params;
use crate::web::request::RequestView;
use crate::web::response::LocalResponse;
use crate::web::return_to::ReturnTo;

/// How often a login may start over by itself because its attempt went stale.
pub(super) const MAX_RESTARTS: u8 = 3;

/// Starts a login: 302 to the provider, with an attempt's cookie.
pub(super) async fn serve(state: &Arc<State>, request: &RequestView<'_>, visitor: Visitor) -> Answer {
    let caller = visitor.caller;
    // FAPI2-17: nobody else's page starts a login in a frame, an image or a script; that of a listed origin neither.
    if (caller.foreign || caller.outside) && !(caller.navigation && caller.document) {
        return csrf().into();
    }
    let params = Params::parse(request.query);
    if let Some(resume) = params.first("resume") {
        return resumed(state, request, visitor, resume).await;
    }
    let prefix = &state.settings.prefix;
    let wanted = params.one("return_to").ok().flatten();
    let mut return_to = ReturnTo::parse(wanted, prefix);
    let mut chosen = match params.one("provider") {
        // With one provider there is nothing to choose.
        Ok(None) => state.providers.only(),
        Ok(Some(name)) => match state.providers.only().or_else(|| state.providers.named(name)) {
            Some(provider) => Some(provider),
            None => return Problem::new(Code::BadRequest, "No provider of this gateway is called so.").into(),
        },
        Err(_) => return Problem::new(Code::BadRequest, "One provider, please.").into(),
    };
    // OpenID Connect Core section 4: a login that a third party asks for.
    match params.one("iss") {
        Ok(None) => {}
        Ok(Some(issuer)) if state.providers.of_issuer(issuer).is_some() => {
            let meant = state.providers.of_issuer(issuer);
            if chosen.zip(meant).is_some_and(|(chosen, meant)| !Arc::ptr_eq(chosen, meant)) {
                return Problem::new(Code::BadRequest, "The parameters provider and iss name two providers.").into();
            }
            chosen = meant;
            if wanted.is_none() {
                let target = params.one("target_link_uri").ok().flatten();
                return_to = ReturnTo::parse(target.map(|target| within(target, &state.settings.public)), prefix);
            }
        }
        _ => {
            return Problem::new(Code::BadRequest, "The parameter iss does not name the provider of this gateway.")
                .into();
        }
    }
    // Who is to prove more than at the login proves it where that was.
    let again = ["max_age", "acr_values"].iter().any(|name| params.contains(name));
    let own = || visitor.session.as_ref().filter(|_| again).and_then(|session| state.provider_of(session));
    let Some(provider) = chosen.or_else(own).map(Arc::clone) else {
        if params.first("prompt") == Some("none") {
            // Nobody can be asked without being shown anything: that is how it comes back.
            return to_page(StatusCode::FOUND, &return_to).into();
        }
        return choose(state, &return_to, request.query).into();
    };
    let asked: Vec<(String, String)> = provider
        .settings()
        .login_params
        .iter()
        .filter_map(|name| Some((name.clone(), params.one(name).ok()??.to_owned())))
        .filter(|(name, value)| name != "acr_values" || value.len() <= MAX_ACR_VALUES)
        .collect();
    start(state, &provider, request, visitor, return_to, asked, 0).await
}

/// The page that lets the user choose; each link is this login with the provider named.
fn choose(state: &State, return_to: &ReturnTo, query: Option<&str>) -> LocalResponse {
    let asked: String = Params::parse(query)
        .pairs()
        .filter(|(name, _)| !matches!(*name, "return_to" | "provider" | "resume" | "iss" | "target_link_uri"))
        .map(|(name, value)| format!("&{}={}", encoded(name), encoded(value)))
        .collect();
    let url = return_to.login_url(&state.settings.prefix);
    let names = state.providers.iter().filter_map(|provider| provider.settings().name.as_deref());
    let links: Vec<_> = names.map(|name| (name, format!("{url}{asked}&provider={}", encoded(name)))).collect();
    pages::choose_provider(&links)
}

/// `target_link_uri` is a URL as a rule: what of it is a path of ours. Any other is left as it is, to be refused.
fn within<'a>(target: &'a str, public: &Origin) -> &'a str {
    match target.strip_prefix(public.as_str()) {
        Some("") => "/",
        Some(path) if path.starts_with('/') => path,
        _ => target,
    }
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// A stale attempt comes back from the hop page, now with its Strict cookies: home when somebody is logged in, else
/// a new attempt, a few times in a row.
async fn resumed(state: &Arc<State>, request: &RequestView<'_>, visitor: Visitor, resume: &str) -> Answer {
    if visitor.session.is_some() {
        return to_page(StatusCode::FOUND, &ReturnTo::home()).into();
    }
    match state.logins.restarts(resume) {
        Some(restarts) if restarts < MAX_RESTARTS => match state.providers.only().map(Arc::clone) {
            Some(provider) => {
                start(state, &provider, request, visitor, ReturnTo::home(), Vec::new(), restarts + 1).await
            }
            None => choose(state, &ReturnTo::home(), None).into(),
        },
        Some(_) => Problem::new(Code::LoginRefused, "The login went stale several times in a row.").into(),
        None => Problem::new(Code::BadCallback, "This login was not started here.").into(),
    }
}

async fn start(
    state: &Arc<State>,
    provider: &Arc<Provider>,
    request: &RequestView<'_>,
    visitor: Visitor,
    return_to: ReturnTo,
    asked: Vec<(String, String)>,
    restarts: u8,
) -> Answer {
    // As it is sent, so it is verified (IDT-10).
    let value = |name: &str| {
        let mut sent = authorize::more_parameters(provider.settings(), &asked);
        sent.find(|(known, _)| known == name).map(|(_, value)| value.clone())
    };
    let attempt = Attempt {
        id: random::bytes(),
        provider: provider.settings().key(),
        nonce: Nonce::new(random::base64url::<24>()),
        verifier: PkceVerifier::new(random::base64url::<32>()),
        return_to,
        started: request.now,
        max_age: value("max_age").and_then(|text| text.parse().ok()),
        acr_values: value("acr_values"),
        silent: value("prompt").is_some_and(|prompt| prompt == "none"),
        restarts,
        replaces: visitor
            .session
            .as_ref()
            .map(|session| session.id)
            .or_else(|| visitor.away.as_ref().map(|ticket| ticket.id)),
        replaces_entry: visitor
            .session
            .as_ref()
            .and_then(|session| session.ticket.as_ref())
            .or(visitor.away.as_ref())
            .map(|ticket| state.jar.entry_name(ticket)),
        dpop: provider.new_dpop_key(),
    };
    let (login_state, cookies) = state.logins.start(&attempt, request.headers, request.now);
    let authorization = AuthorizationRequest {
        state: login_state,
        nonce: attempt.nonce.clone(),
        verifier: attempt.verifier.clone(),
        login_params: asked,
        dpop: attempt.dpop.clone(),
    };
    match provider.authorization_url(&authorization).await {
        Ok(url) => LocalResponse::redirect(StatusCode::FOUND, &url).set_cookies(cookies).into(),
        Err(error) => {
            tracing::warn!(target: "sidegate", event = "login_unavailable", request_id = request.request_id, reason = error.reason());
            provider_problem(&error).into()
        }
    }
}
