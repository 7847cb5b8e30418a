//! `GET <prefix>/logout/frontchannel`: the provider's page ends a session from a frame (OpenID Connect Front-Channel
//! Logout 1.0).
//!
//! The frame is foreign to us, so the browser withholds the session's cookie, and nothing proves who asks. What ends is
//! therefore only what the request names: the sessions of one `sid` of our issuer, which only the provider and the
//! user's browser know. Nothing is called at the provider (FCL-01).

use http::{HeaderName, HeaderValue, StatusCode, header};
use url::Url;

use super::{Answer, Visitor, too_often};
use crate::gateway::rate::Caller;
use crate::gateway::state::State;
use crate::session::endings::Whose;
use crate::session::store::By;
use crate::web::problem::{Code, Problem};
use crate::web::query::Params;
use crate::web::request::RequestView;
use crate::web::response::LocalResponse;

/// Longer ones are no provider's.
const MAX_SID: usize = 1024;

pub(super) fn serve(state: &State, request: &RequestView<'_>, visitor: Visitor) -> Answer {
    match end(state, request, visitor) {
        // The provider's page shows it in the same frame.
        Answer::Refuse(problem, cookies) => {
            let issuers = state.providers.iter().filter_map(|provider| origin(provider.settings().issuer.as_str()));
            Answer::Refuse(problem.framed_by(issuers.collect::<Vec<_>>().join(" ")), cookies)
        }
        answer => answer,
    }
}

fn end(state: &State, request: &RequestView<'_>, visitor: Visitor) -> Answer {
    let params = Params::parse(request.query);
    let (Ok(Some(iss)), Ok(Some(sid))) = (params.one("iss"), params.one("sid")) else {
        return Problem::new(Code::BadRequest, "iss and sid are needed, once each.").into();
    };
    let known = state.providers.of_issuer(iss).filter(|_| !sid.is_empty() && sid.len() <= MAX_SID);
    let Some(provider) = known else {
        return Problem::new(Code::BadRequest, "This names no session of this provider.").into();
    };
    let issuer = provider.settings().issuer.as_str();
    if let Some(wait) = state.ends.unproven.wait(Caller::at(request.client), request.now) {
        return too_often(wait).into();
    }
    state.ends.unproven.count(Caller::at(request.client), request.now);
    state.ends.end_outside(&[Whose::ProviderSession { issuer, sid }], By::Frontchannel);
    // An embedded app's cookies do come along: then the end is noticed, and told of, at once.
    let ended = visitor.session.is_some_and(|session| state.ends.is_over(&session));
    let expired = if ended { state.jar.expire(&visitor.presented) } else { Vec::new() };
    let mut response = LocalResponse::with_body(StatusCode::OK, "text/html; charset=utf-8", PAGE)
        // The page that frames us may ask for this of all that it loads.
        .header(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("cross-origin"))
        .set_cookies(expired);
    if let Some(policy) = frame_policy(issuer) {
        response = response.header(header::CONTENT_SECURITY_POLICY, policy);
    }
    response.into()
}

const PAGE: &str = "<!doctype html><title>Signed out</title>\n";

/// Only the issuer's own pages may frame this one.
fn frame_policy(issuer: &str) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("default-src 'none'; frame-ancestors {}", origin(issuer)?)).ok()
}

fn origin(issuer: &str) -> Option<String> {
    let origin = Url::parse(issuer).ok()?.origin();
    origin.is_tuple().then(|| origin.ascii_serialization())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_issuer_alone_may_frame() {
        for (issuer, ancestors) in [
            ("https://login.example.com/realms/acme", "https://login.example.com"),
            ("https://login.example.com:8443", "https://login.example.com:8443"),
            ("http://127.0.0.1:4711/x", "http://127.0.0.1:4711"),
        ] {
            assert_eq!(frame_policy(issuer).unwrap(), format!("default-src 'none'; frame-ancestors {ancestors}"));
        }
        assert_eq!(frame_policy("urn:x"), None);
    }
}
