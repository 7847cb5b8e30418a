//! What the product does with a request that a route takes: one pure table.
//!
//! | access | session | request | decision |
//! | --- | --- | --- | --- |
//! | public | any | WebSocket from a foreign page | 403 `csrf` |
//! | public | any | all else | forward, no token |
//! | optional | live | proves its origin | forward with the token |
//! | optional | live | does not | navigation: forward as anonymous; else 403 `csrf` |
//! | optional | none | WebSocket from a foreign page | 403 `csrf` |
//! | optional | none | all else | forward, no token |
//! | session | live | proves its origin | forward with the token |
//! | session | live | does not | 403 `csrf` |
//! | session | none | names a foreign site, not by navigating | 403 `csrf` |
//! | session | none | WebSocket, in a frame, or a script | 401 `login_required` |
//! | session | none | top-level GET navigation from elsewhere | the hop page, then as below |
//! | session | none | navigation | 302 (POST: 303) to the login |

use http::{Method, StatusCode};

use super::settings::{Access, OnAnonymous, Route};
use crate::web::problem::{Code, Problem};

/// What the request says about who sent it, read once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// `Sec-Fetch-Mode: navigate`.
    pub navigation: bool,
    /// `Sec-Fetch-Dest: document`.
    pub document: bool,
    /// The navigation happens inside a frame.
    pub framed: bool,
    /// `Sec-Fetch-Site: cross-site`.
    pub cross_site: bool,
    /// `Sec-Fetch-Site` names another site or a sibling, whether that one is listed or not.
    pub outside: bool,
    /// `Sec-Fetch-Site: none`, with the trace of a login: a typed address on its way back from the provider, for which
    /// some browsers withhold Strict cookies over the whole chain of redirects.
    pub typed_return: bool,
    /// Any sign of another site or of a sibling origin.
    pub foreign: bool,
    /// A WebSocket handshake.
    pub websocket: bool,
    /// The handshake's `Origin` is ours or listed.
    pub websocket_origin: bool,
    /// A CORS preflight.
    pub preflight: bool,
    /// The request proves that it comes from the app ([`crate::web::fetch`]).
    pub proven: bool,
}

/// What became of the cookies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// None that opens, or one that is over.
    Absent,
    /// A session.
    Live,
}

/// What happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// To the upstream without a token.
    ForwardAnonymous,
    /// To the upstream with the session's token, refreshed if due.
    ForwardWithSession,
    /// A CORS preflight, answered here.
    Preflight,
    /// The same-origin hop page: come again with your Strict cookies.
    Hop,
    /// To the login, with this status.
    Login(StatusCode),
    /// An answer of ours.
    Refuse(Problem),
}

/// The part of a route that decides.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub access: Access,
    pub on_anonymous: OnAnonymous,
    pub csrf: bool,
    pub websocket: bool,
    /// The session cookie is `SameSite=None`: the app may live in a frame.
    pub embedded: bool,
}

impl Rules {
    /// A route's. `embedded`: the session cookie is `SameSite=None`.
    pub fn of(route: &Route, embedded: bool) -> Self {
        Self {
            access: route.access,
            on_anonymous: route.on_anonymous,
            csrf: route.csrf,
            websocket: route.websocket,
            embedded,
        }
    }
}

/// The table above.
pub fn decide(rules: Rules, presence: Presence, caller: Caller, method: &Method) -> Decision {
    if caller.websocket && rules.websocket && !caller.websocket_origin {
        return csrf("A WebSocket handshake needs the Origin of this application.");
    }
    if rules.access == Access::Public {
        return Decision::ForwardAnonymous;
    }
    if caller.preflight {
        return Decision::Preflight;
    }
    let proven = caller.proven || !rules.csrf;
    match (rules.access, presence) {
        (Access::Public, _) | (Access::Optional, Presence::Absent) => Decision::ForwardAnonymous,
        (Access::Optional | Access::Session, Presence::Live) if proven => Decision::ForwardWithSession,
        (Access::Optional, Presence::Live) if caller.navigation && is_safe(method) => Decision::ForwardAnonymous,
        (Access::Optional | Access::Session, Presence::Live) => {
            csrf("The request does not prove that it comes from this application.")
        }
        (Access::Session, Presence::Absent) => anonymous(rules, caller, method),
    }
}

fn anonymous(rules: Rules, caller: Caller, method: &Method) -> Decision {
    if caller.websocket {
        return login_required();
    }
    if caller.foreign && !caller.navigation {
        return csrf("The request comes from another site.");
    }
    match rules.on_anonymous {
        OnAnonymous::Unauthorized => return login_required(),
        OnAnonymous::Auto if !caller.navigation => return login_required(),
        OnAnonymous::Auto | OnAnonymous::Login => {}
    }
    if caller.framed && !rules.embedded {
        return login_required();
    }
    match *method {
        Method::GET if caller.document && (caller.cross_site || caller.typed_return) => Decision::Hop,
        Method::GET | Method::HEAD => Decision::Login(StatusCode::FOUND),
        _ if caller.foreign => csrf("The request comes from another site."),
        _ => Decision::Login(StatusCode::SEE_OTHER),
    }
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

fn csrf(detail: &'static str) -> Decision {
    Decision::Refuse(Problem::new(Code::Csrf, detail))
}

fn login_required() -> Decision {
    Decision::Refuse(Problem::new(Code::LoginRequired, "There is no session. Log in at login_url."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(access: Access) -> Rules {
        Rules { access, on_anonymous: OnAnonymous::Auto, csrf: true, websocket: true, embedded: false }
    }

    fn script() -> Caller {
        Caller { proven: true, ..Caller::default() }
    }

    fn typed() -> Caller {
        Caller { navigation: true, document: true, proven: true, ..Caller::default() }
    }

    fn foreign_link() -> Caller {
        Caller { cross_site: true, foreign: true, ..typed() }
    }

    fn foreign_script() -> Caller {
        Caller { cross_site: true, foreign: true, ..Caller::default() }
    }

    fn refused(decision: &Decision) -> Option<Code> {
        match decision {
            Decision::Refuse(problem) => Some(problem.code),
            _ => None,
        }
    }

    /// BFF-05: navigations go to the login, scripts get 401.
    #[test]
    fn without_a_session_a_navigation_logs_in_and_a_script_is_told() {
        let rules = rules(Access::Session);
        assert_eq!(decide(rules, Presence::Absent, typed(), &Method::GET), Decision::Login(StatusCode::FOUND));
        let answer = decide(rules, Presence::Absent, script(), &Method::GET);
        assert_eq!(refused(&answer), Some(Code::LoginRequired));
        let answer = decide(rules, Presence::Absent, typed(), &Method::POST);
        assert_eq!(answer, Decision::Login(StatusCode::SEE_OTHER), "a form's body is not replayed (RFC9700-16)");
    }

    /// COOKIE-05: a link from another site comes without its Strict cookie.
    #[test]
    fn a_link_from_another_site_hops_once() {
        let answer = decide(rules(Access::Session), Presence::Absent, foreign_link(), &Method::GET);
        assert_eq!(answer, Decision::Hop);
        let returning = Caller { typed_return: true, ..typed() };
        assert_eq!(decide(rules(Access::Session), Presence::Absent, returning, &Method::GET), Decision::Hop);
        let strict = Rules { on_anonymous: OnAnonymous::Unauthorized, ..rules(Access::Session) };
        let answer = decide(strict, Presence::Absent, foreign_link(), &Method::GET);
        assert_eq!(refused(&answer), Some(Code::LoginRequired));
    }

    /// BFF-19, BFF-23: what uses the session proves where it comes from.
    #[test]
    fn a_session_is_not_used_for_a_foreign_page() {
        let answer = decide(rules(Access::Session), Presence::Live, foreign_script(), &Method::POST);
        assert_eq!(refused(&answer), Some(Code::Csrf));
        let answer = decide(rules(Access::Optional), Presence::Live, foreign_script(), &Method::POST);
        assert_eq!(refused(&answer), Some(Code::Csrf));
        let unproven_link = Caller { proven: false, ..foreign_link() };
        let answer = decide(rules(Access::Optional), Presence::Live, unproven_link, &Method::GET);
        assert_eq!(answer, Decision::ForwardAnonymous);
        assert_eq!(
            decide(rules(Access::Session), Presence::Live, script(), &Method::POST),
            Decision::ForwardWithSession
        );
    }

    /// WS-04: on public routes too.
    #[test]
    fn a_websocket_needs_our_origin_everywhere() {
        let handshake = Caller { websocket: true, ..script() };
        for access in [Access::Public, Access::Optional, Access::Session] {
            let answer = decide(rules(access), Presence::Live, handshake, &Method::GET);
            assert_eq!(refused(&answer), Some(Code::Csrf), "{access:?}");
        }
        let ours = Caller { websocket_origin: true, ..handshake };
        let answer = decide(rules(Access::Session), Presence::Absent, ours, &Method::GET);
        assert_eq!(refused(&answer), Some(Code::LoginRequired), "never a redirect");
        assert_eq!(decide(rules(Access::Session), Presence::Live, ours, &Method::GET), Decision::ForwardWithSession);
    }

    /// BFF-21: no preflight reaches an upstream that gets tokens.
    #[test]
    fn preflights_are_answered_here() {
        let preflight = Caller { preflight: true, foreign: true, ..Caller::default() };
        for access in [Access::Optional, Access::Session] {
            assert_eq!(decide(rules(access), Presence::Absent, preflight, &Method::OPTIONS), Decision::Preflight);
        }
        let answer = decide(rules(Access::Public), Presence::Absent, preflight, &Method::OPTIONS);
        assert_eq!(answer, Decision::ForwardAnonymous);
    }
}
