//! `GET <prefix>/callback`, by `form_post` also `POST`: the provider sends the browser back (RFC 6749 section 4.1.2).

use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode, header};

use super::login::MAX_RESTARTS;
use super::{
    Answer, Visitor, origin, own_callback, provider_problem, set_location, store_unavailable, to_page, without_fragment,
};
use crate::crypto::random;
use crate::gateway::attempts::Taken;
use crate::gateway::routes::Matched;
use crate::gateway::settings::Access;
use crate::gateway::state::State;
use crate::gateway::step_up::Wanted;
use crate::metrics::{EndReason, LoginOutcome};
use crate::oidc::provider::RedeemContext;
use crate::oidc::types::Code as AuthorizationCode;
use crate::oidc::{Provider, ProviderError};
use crate::session::login_cookie::{Attempt, Finish};
use crate::session::vault::Unplaced;
use crate::session::{Session, SessionId};
use crate::spans;
use crate::telemetry::audit;
use crate::web::pages;
use crate::web::path::CleanPath;
use crate::web::problem::{Code, Problem};
use crate::web::query::Params;
use crate::web::request::RequestView;
use crate::web::return_to::ReturnTo;

/// The outcome of one exchange, shared by all who brought the same callback.
pub type Finished = Result<Arc<Session>, Failure>;

/// Why a login was refused.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The provider's doing.
    Provider(ProviderError),
    /// The tokens do not fit into cookies; the sizes are for the log.
    TooLarge(String),
    /// The store, where the session belongs, does not answer.
    StoreAway,
}

/// What the provider sent, once it is known to be well-formed.
#[derive(Debug, PartialEq, Eq)]
enum Callback<'a> {
    Code(&'a str),
    Error(&'a str),
}

/// Finishes a login, or says why not.
pub(super) async fn serve(state: &Arc<State>, request: &RequestView<'_>, visitor: Visitor) -> Answer {
    // RFC 9700 section 4.4.2.2: where the answer comes to says whose it is.
    let came_to = request.path.as_str().strip_prefix(state.settings.prefix.as_str()).and_then(own_callback);
    let is_here = |provider: &Arc<Provider>| provider.settings().own_callback.as_deref() == came_to;
    let params = if request.method == Method::POST {
        // What a form brings is all that counts: the URL of the callback has no query of ours.
        if !has_form(request) {
            return bad_callback(state, request, "content_type");
        }
        Params::form(request.form)
    } else {
        Params::parse(request.query)
    };
    let bare_denial = state.providers.iter().any(|provider| provider.settings().dialect.authorize.bare_denial);
    let (login_state, callback) = match read(&params, bare_denial) {
        Ok(read) => read,
        Err(reason) => return bad_callback(state, request, reason),
    };
    let (attempt, clear) = match state.logins.finish(login_state, request.headers, request.now) {
        Finish::Foreign => return bad_callback(state, request, "state"),
        Finish::Stale { restarts } => return stale(state, request, &visitor, login_state, restarts),
        Finish::Attempt { attempt, clear } => (attempt, clear),
    };
    // RFC 9207: for errors too, before anything else of the answer counts.
    let Ok(issuer) = params.one("iss") else { return bad_callback(state, request, "iss_repeated") };
    // Only the provider that the user was sent to may answer: its key is sealed in the attempt.
    let Some(provider) = state.providers.of_key(attempt.provider).map(Arc::clone) else {
        return bad_callback(state, request, "provider_gone");
    };
    if bare_denial && !provider.settings().dialect.authorize.bare_denial && says_nothing(&params) {
        return bad_callback(state, request, "code_missing");
    }
    if let Err(error) = provider.metadata().await {
        return provider_problem(&error).into();
    }
    let others = issuer.is_some_and(|iss| {
        let other = state.providers.of_issuer(iss);
        other.is_some_and(|other| other.settings().key() != attempt.provider)
    });
    if !is_here(&provider) || others || provider.check_callback_iss(issuer).is_err() {
        // RFC9207-03: a mix-up ends the attempt, so that the same state opens nothing later.
        let mixed_up = || async { Err(Failure::Provider(ProviderError::Invalid { reason: "iss" })) };
        state.attempts.once(attempt.id, request.now, mixed_up).await;
        state.metrics.observe_login(LoginOutcome::BadCallback);
        audit::login_refused(&origin(request, None), "iss");
        return Answer::Refuse(not_ours(), clear);
    }
    match callback {
        Callback::Error(error) => {
            refused_by_provider(state, request, &visitor, &attempt, clear, error, login_state).await
        }
        Callback::Code(code) => redeem(state, &provider, request, visitor, *attempt, clear, code, login_state).await,
    }
}

/// Neither code nor error.
fn says_nothing(params: &Params) -> bool {
    !params.contains("code") && !params.contains("error")
}

/// RFC9700-16: after a POST the browser is to go on with GET.
fn onward(request: &RequestView<'_>) -> StatusCode {
    if request.method == Method::POST { StatusCode::SEE_OTHER } else { StatusCode::FOUND }
}

fn has_form(request: &RequestView<'_>) -> bool {
    let media_type =
        request.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default();
    media_type.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// RFC6749-01, BFF-02: one state, and either a code or an error; no token by the front channel. With some providers
/// an answer with neither says that the user refused.
fn read(params: &Params, bare_denial: bool) -> Result<(&str, Callback<'_>), &'static str> {
    let one = |name: &'static str, repeated: &'static str| params.one(name).map_err(|_| repeated);
    for name in ["access_token", "id_token", "refresh_token"] {
        if params.contains(name) {
            return Err("front_channel_token");
        }
    }
    let state = one("state", "state_repeated")?.filter(|state| !state.is_empty()).ok_or("state_missing")?;
    let code = one("code", "code_repeated")?;
    let error = one("error", "error_repeated")?;
    one("iss", "iss_repeated")?;
    match (code, error) {
        (Some(code), None) if !code.is_empty() => Ok((state, Callback::Code(code))),
        (None, Some(error)) if !error.is_empty() => Ok((state, Callback::Error(error))),
        (None, None) if bare_denial => Ok((state, Callback::Error("access_denied"))),
        (Some(_), Some(_)) => Err("code_and_error"),
        _ => Err("code_missing"),
    }
}

#[expect(clippy::too_many_arguments, reason = "all that a callback is made of")]
async fn redeem(
    state: &Arc<State>,
    provider: &Arc<Provider>,
    request: &RequestView<'_>,
    visitor: Visitor,
    attempt: Attempt,
    clear: Vec<HeaderValue>,
    code: &str,
    login_state: &str,
) -> Answer {
    let exchange = {
        let (state, provider) = (Arc::clone(state), Arc::clone(provider));
        let code = AuthorizationCode::new(code);
        let now = request.now;
        let context = RedeemContext {
            nonce: attempt.nonce.clone(),
            verifier: attempt.verifier.clone(),
            max_age: attempt.max_age,
            acr_values: attempt.acr_values.clone(),
            dpop: attempt.dpop.clone(),
            now,
        };
        let nonce_hash = attempt.nonce_hash();
        let (request_id, client) = (request.request_id.to_owned(), request.client);
        let (replaces, replaces_entry) = (attempt.replaces, attempt.replaces_entry);
        let wanted = asked_for(&state, &attempt);
        move || {
            spans::carry(async move {
                // Before the exchange: the provider may end the session as soon as it has answered, and what it says of
                // its sessions' ends counts for those that began before.
                let begun = state.clock.now();
                let outcome = match provider.redeem(&code, &context).await {
                    Ok(login) => {
                        let id = SessionId(random::bytes());
                        let now = state.clock.now();
                        let mut session = Session::begin(
                            login,
                            nonce_hash,
                            id,
                            state.jar.sealing_key_id(now),
                            state.jar.settings(),
                            begun,
                        );
                        session.provider = provider.settings().key();
                        // Before anything says that the login succeeded.
                        if wanted.is_some_and(|wanted| !wanted.is_met(&session, now)) {
                            Err(Failure::Provider(ProviderError::Invalid { reason: "step_up" }))
                        } else {
                            state.vault.place(session, now).await.map(Arc::new).map_err(|unplaced| match unplaced {
                                Unplaced::TooLarge(sizes) => Failure::TooLarge(sizes.to_string()),
                                Unplaced::Away => Failure::StoreAway,
                            })
                        }
                    }
                    Err(error) => Err(Failure::Provider(error)),
                };
                if let (Ok(_), Some(entry)) = (&outcome, replaces_entry) {
                    state.vault.remove_entry(entry).await;
                }
                let from = audit::Origin { request_id: Some(&request_id), client, sub_hash: None };
                finish(&state, &outcome, replaces, from);
                outcome
            })
        }
    };
    match state.attempts.once(attempt.id, request.now, exchange).await {
        Taken::Used => stale(state, request, &visitor, login_state, attempt.restarts),
        Taken::Outcome(Err(Failure::Provider(error))) => Answer::Refuse(provider_problem(&error), clear),
        Taken::Outcome(Err(Failure::TooLarge(_))) => Answer::Refuse(too_large(), clear),
        Taken::Outcome(Err(Failure::StoreAway)) => Answer::Refuse(store_unavailable(), clear),
        Taken::Outcome(Ok(session)) => match state.jar.seal(&session, &visitor.presented, request.now) {
            Ok(cookies) => {
                state.weigh(&cookies);
                // A browser that says `none` over the whole chain withholds the Strict cookie from the page behind
                // this redirect: leave a short-lived trace of the login, by which that page is answered with a hop.
                let typed = request.headers.get("sec-fetch-site").is_some_and(|site| site == "none");
                let trace = typed.then(|| state.logins.trace()).flatten();
                set_location(to_page(onward(request), &attempt.return_to), &without_fragment(&attempt.return_to))
                    .set_cookies(cookies)
                    .set_cookies(clear)
                    .set_cookies(trace)
                    .into()
            }
            Err(_) => Answer::Refuse(too_large(), clear),
        },
    }
}

fn too_large() -> Problem {
    Problem::new(Code::SessionTooLarge, "The provider's tokens do not fit into cookies; the log has the sizes.")
}

/// Counts and logs a finished exchange, and ends the session that it replaces (ASVS 7.2.4).
fn finish(state: &State, outcome: &Finished, replaces: Option<SessionId>, from: audit::Origin<'_>) {
    match outcome {
        Ok(session) => {
            state.metrics.observe_login(LoginOutcome::Ok);
            let from = audit::Origin { sub_hash: Some(state.sub_hash(session)), ..from };
            audit::login(&from);
            if let Some(old) = replaces {
                state.end_session(old, EndReason::Replaced, &from);
            }
        }
        Err(Failure::StoreAway) => {
            state.metrics.observe_login(LoginOutcome::Unavailable);
            audit::login_refused(&from, "store_unavailable");
        }
        Err(Failure::TooLarge(sizes)) => {
            state.metrics.observe_login(LoginOutcome::Internal);
            audit::login_too_large(&from, sizes);
        }
        Err(Failure::Provider(error)) => {
            state.metrics.observe_login(match error {
                ProviderError::Unavailable { .. } | ProviderError::Ambiguous { .. } => LoginOutcome::Unavailable,
                ProviderError::Refused { .. } => LoginOutcome::Config,
                ProviderError::Dead { .. } => LoginOutcome::Refused,
                ProviderError::Invalid { .. } => LoginOutcome::Invalid,
            });
            audit::login_refused(&from, error.reason());
        }
    }
}

/// The provider said no. A silent attempt comes back either way; all else gets a page.
async fn refused_by_provider(
    state: &Arc<State>,
    request: &RequestView<'_>,
    visitor: &Visitor,
    attempt: &Attempt,
    clear: Vec<HeaderValue>,
    error: &str,
    login_state: &str,
) -> Answer {
    let reason = error_word(error);
    let told = {
        let (state, request_id, client) = (Arc::clone(state), request.request_id.to_owned(), request.client);
        move || async move {
            let outcome = Err(Failure::Provider(ProviderError::Dead { reason }));
            finish(&state, &outcome, None, audit::Origin { request_id: Some(&request_id), client, sub_hash: None });
            outcome
        }
    };
    if matches!(state.attempts.once(attempt.id, request.now, told).await, Taken::Used) {
        return stale(state, request, visitor, login_state, attempt.restarts);
    }
    if attempt.silent {
        let response = if needs_session(state, request, &attempt.return_to) {
            pages::signed_out(&attempt.return_to.login_url(&state.settings.prefix))
        } else {
            let location = without_fragment(&attempt.return_to);
            set_location(to_page(onward(request), &attempt.return_to), &location)
        };
        return response.set_cookies(clear).into();
    }
    Answer::Refuse(Problem::new(Code::LoginRefused, "The login service refused this login."), clear)
}

/// The registered error codes (RFC 6749 section 4.1.2.1, OpenID Connect Core section 3.1.2.6): what is logged is one
/// of these words, never the provider's text.
fn error_word(error: &str) -> &'static str {
    const KNOWN: [&str; 14] = [
        "access_denied",
        "invalid_request",
        "unauthorized_client",
        "unsupported_response_type",
        "invalid_scope",
        "server_error",
        "temporarily_unavailable",
        "interaction_required",
        "login_required",
        "account_selection_required",
        "consent_required",
        "request_not_supported",
        "invalid_target",
        "unmet_authentication_requirements",
    ];
    KNOWN.into_iter().find(|known| *known == error).unwrap_or("provider_error")
}

/// What the page behind the login wants of it, when the login was asked for something of the kind: one that falls short
/// would be sent round and round.
fn asked_for(state: &State, attempt: &Attempt) -> Option<Wanted> {
    if attempt.max_age.is_none() && attempt.acr_values.is_none() {
        return None;
    }
    let path = attempt.return_to.as_str().split(['?', '#']).next().unwrap_or("/");
    let path = CleanPath::parse(path).ok()?;
    match state.routes.find(&path, state.settings.public.host(), Some(&Method::GET)) {
        Matched::Route(entry) => Wanted::of_route(&entry.0.settings),
        Matched::MethodNotAllowed { .. } | Matched::None => None,
    }
}

/// Whether sending the browser to this page would start another login.
fn needs_session(state: &State, request: &RequestView<'_>, target: &ReturnTo) -> bool {
    let path = target.as_str().split(['?', '#']).next().unwrap_or("/");
    let Ok(path) = CleanPath::parse(path) else { return true };
    match state.routes.find(&path, request.host, Some(&Method::GET)) {
        Matched::Route(entry) => entry.0.settings.access == Access::Session,
        Matched::MethodNotAllowed { .. } | Matched::None => false,
    }
}

/// Made here, but its attempt is used, expired or gone. Whether somebody is logged in can only be said when the
/// Strict cookies come along, which the provider's redirect withholds: by way of the hop page, then.
fn stale(state: &State, request: &RequestView<'_>, visitor: &Visitor, login_state: &str, restarts: u8) -> Answer {
    tracing::info!(target: "sidegate", event = "login_stale", request_id = request.request_id, restarts);
    if visitor.session.is_some() {
        return to_page(onward(request), &ReturnTo::home()).into();
    }
    if restarts >= MAX_RESTARTS {
        return bad_callback(state, request, "stale");
    }
    let target = format!("{}/login?resume={login_state}", state.settings.prefix);
    pages::hop(&target).into()
}

fn bad_callback(state: &State, request: &RequestView<'_>, reason: &'static str) -> Answer {
    state.metrics.observe_login(LoginOutcome::BadCallback);
    audit::login_refused(&origin(request, None), reason);
    not_ours().into()
}

fn not_ours() -> Problem {
    Problem::new(Code::BadCallback, "This does not finish a login that was started here.")
}
