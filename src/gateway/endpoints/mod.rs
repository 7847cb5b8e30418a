//! sidegate's own endpoints, below the prefix: `RequestView` in, `LocalResponse` out.

pub mod backchannel;
pub mod callback;
pub mod frontchannel;
pub mod login;
pub mod logout;
pub mod renew;
pub mod session;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, StatusCode, header};

use super::decide::Caller;
use super::live::OpenStream;
use super::settings::Settings;
use super::state::State;
use crate::oidc::ProviderError;
use crate::session::Session;
use crate::session::jar::Presented;
use crate::session::ticket::Ticket;
use crate::telemetry::{SubHash, audit};
use crate::web::pages;
use crate::web::problem::{Code, Problem};
use crate::web::query::Params;
use crate::web::request::RequestView;
use crate::web::response::LocalResponse;
use crate::web::return_to::ReturnTo;

/// An endpoint of contract section 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Login,
    Callback,
    Session,
    Refresh,
    Logout,
    LogoutReturn,
    Backchannel,
    Frontchannel,
    Events,
    /// The hop page, for requests that another proxy forwards.
    Hop,
    /// Takes every method: the request is on its way to somewhere else.
    Renew,
}

/// What an endpoint sees of the request's session.
#[derive(Debug)]
pub struct Visitor {
    /// The newest generation known of the session that the cookies hold.
    pub session: Option<Arc<Session>>,
    /// The same session as the cookies hold it.
    pub came: Option<Arc<Session>>,
    /// What the browser sent.
    pub presented: Presented,
    pub caller: Caller,
    /// The store has the session, and does not answer.
    pub away: Option<Ticket>,
}

impl Visitor {
    /// The browser's cookie is older than what is known of its session.
    pub fn is_stale(&self) -> bool {
        let generation = |session: &Option<Arc<Session>>| session.as_ref().map(|session| session.generation);
        generation(&self.came) < generation(&self.session)
    }
}

/// An endpoint's answer.
#[derive(Debug)]
pub enum Answer {
    /// As it is.
    Respond(LocalResponse),
    /// The event stream of this session.
    Events(Arc<Session>, OpenStream),
    /// A refusal, with cookies to set.
    Refuse(Problem, Vec<HeaderValue>),
}

impl From<LocalResponse> for Answer {
    fn from(response: LocalResponse) -> Self {
        Self::Respond(response)
    }
}

impl From<Problem> for Answer {
    fn from(problem: Problem) -> Self {
        Self::Refuse(problem, Vec::new())
    }
}

impl Endpoint {
    /// The endpoint of a path below the prefix; none when there is no such one. `rest` is what follows the prefix.
    pub fn find(rest: &str) -> Option<Self> {
        match rest {
            "/login" => Some(Self::Login),
            "/callback" => Some(Self::Callback),
            "/session" => Some(Self::Session),
            "/refresh" => Some(Self::Refresh),
            "/logout" => Some(Self::Logout),
            "/logout/return" => Some(Self::LogoutReturn),
            "/logout/backchannel" => Some(Self::Backchannel),
            "/logout/frontchannel" => Some(Self::Frontchannel),
            "/events" => Some(Self::Events),
            "/hop" => Some(Self::Hop),
            "/renew" => Some(Self::Renew),
            // A provider's own; whose, and whether there is one, the callback looks up.
            _ if own_callback(rest).is_some() => Some(Self::Callback),
            _ => None,
        }
    }

    /// Its methods, as `Allow` lists them. The provider's answer comes by POST only where it was asked to (`form_post`).
    pub fn methods(self, settings: &Settings) -> &'static str {
        match self {
            Self::Callback if settings.form_post => "GET, POST",
            Self::Login | Self::Callback | Self::Frontchannel | Self::Events => "GET",
            Self::Session | Self::LogoutReturn | Self::Hop => "GET, HEAD",
            Self::Refresh | Self::Backchannel => "POST",
            Self::Logout => "GET, POST",
            Self::Renew => "GET, HEAD, POST, PUT, PATCH, DELETE",
        }
    }

    /// Whether a callback is at this path, below the prefix: the one that all share, or a provider's own.
    fn is_callback(state: &State, rest: &str) -> bool {
        state.providers.iter().any(|provider| provider.settings().own_callback.as_deref() == own_callback(rest))
    }

    /// Whether the configuration has it: what is switched off is not there.
    pub fn is_on(self, settings: &Settings) -> bool {
        match self {
            Self::Backchannel => settings.logout.backchannel,
            Self::Frontchannel => settings.logout.frontchannel,
            _ => true,
        }
    }

    /// Whether it reads a form from the request's body.
    pub fn reads_form(self, settings: &Settings) -> bool {
        self == Self::Backchannel || (self == Self::Callback && settings.form_post)
    }

    /// Whether it takes the method.
    pub fn takes(self, method: &Method, settings: &Settings) -> bool {
        self == Self::Renew || self.methods(settings).split(", ").any(|own| own == method.as_str())
    }

    /// Serves one request.
    pub async fn serve(self, state: &Arc<State>, request: &RequestView<'_>, visitor: Visitor) -> Answer {
        let rest = request.path.as_str().strip_prefix(state.settings.prefix.as_str()).unwrap_or_default();
        if self == Self::Callback && !Self::is_callback(state, rest) {
            return Problem::new(Code::NoRoute, "There is no such endpoint.").into();
        }
        if !self.takes(request.method, &state.settings) {
            let problem = Problem::new(Code::MethodNotAllowed, "This endpoint does not take the method.");
            return problem.allow(self.methods(&state.settings).to_owned()).into();
        }
        let needs_session = matches!(self, Self::Session | Self::Refresh | Self::Events | Self::Renew);
        if needs_session && visitor.away.is_some() {
            return if visitor.caller.foreign { csrf() } else { store_unavailable() }.into();
        }
        match self {
            Self::Login => login::serve(state, request, visitor).await,
            Self::Callback => callback::serve(state, request, visitor).await,
            Self::Session => session::show(state, request, visitor),
            Self::Refresh => session::refresh(state, request, visitor).await,
            Self::Logout => logout::serve(state, request, visitor).await,
            Self::LogoutReturn => logout::returned(state, request, visitor),
            Self::Events => session::events(state, visitor),
            Self::Backchannel => backchannel::serve(state, request).await,
            Self::Frontchannel => frontchannel::serve(state, request, visitor),
            Self::Hop => hop(state, request).into(),
            Self::Renew => renew::serve(state, request, visitor).await,
        }
    }
}

/// The name of a provider's own callback, from what follows the prefix.
fn own_callback(rest: &str) -> Option<&str> {
    rest.strip_prefix("/callback/").filter(|name| !name.is_empty() && !name.contains('/'))
}

/// The request that an audit event belongs to.
fn origin<'a>(request: &RequestView<'a>, sub_hash: Option<SubHash>) -> audit::Origin<'a> {
    audit::Origin { request_id: Some(request.request_id), client: request.client, sub_hash }
}

/// A refusal for a request that does not prove its origin.
fn csrf() -> Problem {
    Problem::new(Code::Csrf, "The request does not prove that it comes from this application.")
}

/// A refusal for a client that asks too often.
fn too_often(wait: Duration) -> Problem {
    Problem::new(Code::RateLimited, "Too many of these requests came from this address.")
        .retry_after(wait.as_secs() + 1)
}

/// 503 while the store does not answer; the session is kept.
pub(crate) fn store_unavailable() -> Problem {
    Problem::new(Code::StoreUnavailable, "The session cannot be looked up at the moment; it is kept. Try again.")
        .retry_after(1)
}

/// What a failed call to the provider means for the browser.
fn provider_problem(error: &ProviderError) -> Problem {
    match error {
        ProviderError::Unavailable { retry_after, .. } => {
            let seconds = retry_after.map_or(2, |after| after.as_secs().clamp(1, 10));
            Problem::new(Code::ProviderUnavailable, "The login service does not answer. Try again.")
                .retry_after(seconds)
        }
        ProviderError::Ambiguous { .. } => {
            Problem::new(Code::ProviderUnavailable, "The login service does not answer. Try again.").retry_after(2)
        }
        ProviderError::Refused { .. } => {
            Problem::new(Code::ProviderRefused, "This gateway is not set up correctly at the login service.")
        }
        ProviderError::Dead { .. } | ProviderError::Invalid { .. } => {
            Problem::new(Code::LoginRefused, "The login service refused, or its answer did not hold.")
        }
    }
}

/// Leads to a page of the application by a navigation within the origin, which carries the Strict cookies: a proxy that
/// asks by forward-auth cannot show a page itself.
fn hop(state: &State, request: &RequestView<'_>) -> LocalResponse {
    let params = Params::parse(request.query);
    let target = ReturnTo::parse(params.one("return_to").ok().flatten(), &state.settings.prefix);
    pages::hop(target.as_str())
}

/// A redirect to a page of the application.
fn to_page(status: StatusCode, target: &ReturnTo) -> LocalResponse {
    LocalResponse::redirect(status, target.as_str())
}

/// `Clear-Site-Data`, when configured.
fn clear_site_data(response: LocalResponse, state: &State) -> LocalResponse {
    match &state.settings.logout.clear_site_data {
        Some(value) => response.header(http::HeaderName::from_static("clear-site-data"), value.clone()),
        None => response,
    }
}

/// Keeps `Location` free of a fragment that the browser would carry over a redirect (RFC 9700 section 4.1.3).
fn without_fragment(target: &ReturnTo) -> String {
    format!("{}#", target.as_str())
}

/// The `Location` field of an answer.
fn set_location(mut response: LocalResponse, location: &str) -> LocalResponse {
    if let Ok(value) = HeaderValue::try_from(location) {
        response.headers.insert(header::LOCATION, value);
    }
    response
}
