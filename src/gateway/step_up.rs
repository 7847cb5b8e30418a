//! Sensitive operations: a login that is too old, or not strong enough, leads to another one that is asked for what is
//! missing (RFC 9470). The route may want it, or the app by its challenge.
//!
//! It is no circle: the callback verifies what was asked for, and refuses a login that would be turned away again.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::ctx::{Ctx, Phase};
use super::decide::{Caller, Decision, Presence, Rules, decide};
use super::serve::{Outcome, referring_page};
use super::settings::{Access, Route};
use super::state::State;
use crate::clock::Timestamp;
use crate::session::Session;
use crate::web::challenge;
use crate::web::problem::{Code, Problem};
use crate::web::response::LocalResponse;
use crate::web::return_to::ReturnTo;

/// Longer `acr_values` are not passed on: they travel in the attempt's cookie, which must stay below what browsers
/// take, else a link could make logins fail.
pub const MAX_ACR_VALUES: usize = 512;
/// A session that began this lately is not sent to the login because of a challenge that it meets already: what the app
/// misses, another login will not bring.
const JUST_BEGUN: Duration = Duration::from_secs(60);

/// What a login has to be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// At most so many seconds ago.
    pub max_age: Option<u64>,
    /// Of one of these classes, separated by spaces.
    pub acr_values: Option<String>,
}

impl Wanted {
    /// What the route wants of every login; none when it wants nothing.
    pub fn of_route(route: &Route) -> Option<Self> {
        let wanted = Self {
            max_age: route.max_auth_age.map(|age| age.as_secs()),
            acr_values: (!route.acr_values.is_empty()).then(|| route.acr_values.join(" ")),
        };
        (wanted != Self::default()).then_some(wanted)
    }

    /// What the app wants, if its answer is the challenge of RFC 9470 section 3. One that cannot be passed on to the
    /// login counts as none.
    pub fn of_challenge(status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        if status != StatusCode::UNAUTHORIZED {
            return None;
        }
        let challenges = challenge::read(headers);
        let found = challenges.iter().find(|one| one.says("insufficient_user_authentication"))?;
        let fits = |text: &str| {
            !text.is_empty()
                && text.len() <= MAX_ACR_VALUES
                && text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
        };
        let max_age = found.param("max_age").map(str::parse).transpose().ok()?;
        let acr_values = found.param("acr_values").map(|text| text.trim().to_owned());
        if acr_values.as_deref().is_some_and(|text| !fits(text)) {
            return None;
        }
        Some(Self { max_age, acr_values })
    }

    /// Whether the session's login was like that. A time that the provider did not tell is too long ago; seconds are
    /// what `auth_time` counts in.
    pub fn is_met(&self, session: &Session, now: Timestamp) -> bool {
        let fresh = |max_age| session.auth_time.is_some_and(|since| now.as_secs().saturating_sub(since) <= max_age);
        let strong = |wanted: &String| {
            session.acr.as_deref().is_some_and(|acr| wanted.split_ascii_whitespace().any(|one| one == acr))
        };
        self.max_age.is_none_or(fresh) && self.acr_values.as_ref().is_none_or(strong)
    }

    /// Where the login begins that is asked for it.
    pub fn login_url(&self, target: &ReturnTo, prefix: &str) -> String {
        let mut url = target.login_url(prefix);
        if let Some(values) = &self.acr_values {
            url.push_str("&acr_values=");
            url.extend(utf8_percent_encode(values, NON_ALPHANUMERIC));
        }
        if let Some(age) = self.max_age {
            url.push_str("&max_age=");
            url.push_str(&age.to_string());
        }
        url
    }
}

/// The request that needs another login, as far as the answer depends on it.
#[derive(Debug)]
pub(super) struct Asker<'a> {
    pub route: &'a Route,
    pub caller: Caller,
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
    pub return_to: ReturnTo,
}

/// The rules for a session that falls short: as on a route that needs one, for there is somebody to ask.
pub(super) fn rules(route: &Route, embedded: bool) -> Rules {
    Rules { access: Access::Session, ..Rules::of(route, embedded) }
}

/// The answer: to the login where an anonymous request would be sent there and `leads` says so, else 401 with the
/// `login_url`.
pub(super) fn answer(
    state: &State,
    asker: Asker<'_>,
    wanted: &Wanted,
    leads: bool,
    cookies: Vec<HeaderValue>,
) -> Outcome {
    let Asker { route, caller, method, headers, return_to } = asker;
    // The request proved where it comes from when its session was used.
    let caller = Caller { cross_site: false, typed_return: false, foreign: false, ..caller };
    let rules = rules(route, state.embedded);
    let prefix = &state.settings.prefix;
    match decide(rules, Presence::Absent, caller, method) {
        Decision::Login(status) if leads => {
            // The body of a POST is not repeated: back to the page that it came from.
            let target = if status == StatusCode::SEE_OTHER { referring_page(headers, state) } else { return_to };
            Outcome::Respond(LocalResponse::redirect(status, &wanted.login_url(&target, prefix)).set_cookies(cookies))
        }
        _ => {
            let target = if caller.navigation { return_to } else { referring_page(headers, state) };
            let told = "This needs a more recent or a stronger login. Log in at login_url.";
            let problem = Problem::new(Code::StepUpRequired, told).login_url(wanted.login_url(&target, prefix));
            Outcome::Refuse(problem, cookies)
        }
    }
}

impl Ctx {
    /// What the app's answer wants of the login, when it was asked with a session's token.
    pub(super) fn challenged(&self, status: StatusCode, headers: &HeaderMap) -> Option<Wanted> {
        match &self.phase {
            Phase::Forward(forward) if forward.session.is_some() => Wanted::of_challenge(status, headers),
            _ => None,
        }
    }

    /// The answer in place of the app's challenge, of which nothing is shown.
    pub(super) fn instead_of_challenge(&mut self, method: &Method, headers: &HeaderMap) -> Option<LocalResponse> {
        let wanted = self.step_up.take()?;
        let Phase::Forward(forward) = &self.phase else { return None };
        let used = forward.session.as_ref()?;
        let state = &self.state;
        let now = state.clock.now();
        let leads = if wanted.is_met(&used.session, now) {
            now >= used.session.created + JUST_BEGUN
        } else {
            let provider = state.provider_of(&used.session).map(|provider| provider.settings());
            let passes = |name: &str, asked: bool| {
                let Some(provider) = provider else { return !asked };
                let fixed = provider.authorize_params.iter().any(|(own, _)| own == name);
                !asked || (!fixed && provider.login_params.iter().any(|own| own == name))
            };
            passes("max_age", wanted.max_age.is_some()) && passes("acr_values", wanted.acr_values.is_some())
        };
        let return_to = ReturnTo::from_request(&forward.path, forward.query.as_deref(), &state.settings.prefix);
        let asker = Asker { route: &forward.route.settings, caller: used.caller, method, headers, return_to };
        match answer(state, asker, &wanted, leads, self.late_cookies()) {
            Outcome::Respond(response) => Some(response),
            Outcome::Refuse(problem, cookies) => Some(self.render(problem, cookies)),
            Outcome::Forward(_) | Outcome::Events(..) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;

    fn challenged(value: &'static str) -> Option<Wanted> {
        let mut headers = HeaderMap::new();
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(value));
        Wanted::of_challenge(StatusCode::UNAUTHORIZED, &headers)
    }

    /// RFC 9470 section 3, and what is none.
    #[test]
    fn a_challenge_says_what_it_wants() {
        let wanted = challenged("Bearer error=\"insufficient_user_authentication\", acr_values=\"gold  silver\"");
        assert_eq!(wanted, Some(Wanted { max_age: None, acr_values: Some("gold  silver".into()) }));
        let wanted = challenged("DPoP error=\"insufficient_user_authentication\", max_age=\"5\"");
        assert_eq!(wanted, Some(Wanted { max_age: Some(5), acr_values: None }));
        assert_eq!(challenged("Bearer error=\"insufficient_user_authentication\""), Some(Wanted::default()));
        for other in [
            "Bearer error=\"invalid_token\", error_description=\"insufficient_user_authentication\"",
            "Bearer error=\"insufficient_user_authentication\", max_age=\"soon\"",
            "Bearer error=\"insufficient_user_authentication\", acr_values=\"\"",
            "Bearer",
        ] {
            assert_eq!(challenged(other), None, "{other}");
        }
    }

    #[test]
    fn the_login_is_asked_for_it() {
        let wanted = Wanted { max_age: Some(300), acr_values: Some("urn:a b&c".into()) };
        let url = wanted.login_url(&ReturnTo::home(), "/auth");
        assert_eq!(url, "/auth/login?return_to=/&acr_values=urn%3Aa%20b%26c&max_age=300");
    }
}
