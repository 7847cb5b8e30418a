//! From the decision to the later phases: what goes upstream, and which cookies go back.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, header};
use ipnet::IpNet;
use pingora::http::ResponseHeader;

use super::arrive::Request;
use super::ctx::{Ctx, Fields, Forward, Phase, Used};
use super::serve::Outcome;
use super::settings::Token;
use super::state::RouteEntry;
use super::{replay, upstream};
use crate::crypto::random;
use crate::refresh::coordinator::Freshened;
use crate::refresh::policy::Demand;
use crate::session::Session as UserSession;
use crate::web::forwarded;
use crate::web::problem::{Code, Problem};

impl Ctx {
    /// Fixes all that later phases apply.
    pub(super) fn forward(
        &self,
        request: &Request<'_>,
        entry: Arc<RouteEntry>,
        used: Option<Used>,
        expire: Vec<HeaderValue>,
    ) -> Outcome {
        let head = request.head;
        let entry = match entry.settle(used.as_ref().map(|used| used.session.as_ref())) {
            Ok(entry) => entry,
            Err(reason) => {
                tracing::warn!(target: "sidegate", event = "upstream_refused", request_id = self.request_id, reason, "the template of this route leads nowhere for this user");
                let problem = Problem::new(Code::UpstreamUnreachable, "There is no address for this user's requests.");
                return Outcome::Refuse(problem, used.as_ref().map(|used| self.cookies_of(used)).unwrap_or_default());
            }
        };
        let credential = match &used {
            Some(used) => match upstream::credential(&self.state, &entry.settings, &used.session, used.own.as_ref()) {
                Ok(credential) => credential,
                Err(problem) => return Outcome::Refuse(problem, self.cookies_of(used)),
            },
            None => None,
        };
        let says = |name, wanted: &[&str]| {
            let value = head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let kind = value.split(';').next().unwrap_or_default().trim();
            wanted.iter().any(|wanted| kind.eq_ignore_ascii_case(wanted))
        };
        let grpc = says(header::CONTENT_TYPE, &["application/grpc", "application/grpc+proto", "application/grpc+json"]);
        let event_stream = says(header::ACCEPT, &["text/event-stream"]);
        let safe = matches!(head.method, Method::GET | Method::HEAD);
        let bodiless =
            !head.headers.contains_key(header::CONTENT_LENGTH) && !head.headers.contains_key(header::TRANSFER_ENCODING);
        // RFC 6455 section 4.1: anything else is a request like others, and loses its `Upgrade`.
        let handshake = request.websocket
            && head.method == Method::GET
            && !head.headers.contains_key(header::TRANSFER_ENCODING)
            && head.headers.get(header::CONTENT_LENGTH).is_none_or(|length| length == "0");
        Outcome::Forward(Box::new(Forward {
            upgrade: entry.settings.websocket && handshake,
            grpc,
            event_stream,
            repeatable: safe && bodiless,
            replayable: self.state.settings.replay_refused
                && entry.settings.token == Token::Access
                && replay::is_replayable(&head.method, &head.headers),
            forwarded_for: forwarded_for(request, &self.state.settings.trusted_proxies),
            traceparent: match &self.traced {
                Some(traced) => Some(traced.upstream.traceparent()),
                None => traceparent(&head.headers, self.state.tracer.is_on()),
            },
            fields: Fields::Copied,
            turn: entry.turn(),
            pick: None,
            failed: 0,
            path: request.path.clone(),
            query: request.query.clone(),
            route: entry,
            session: used,
            credential,
            proven_for: None,
            expire,
        }))
    }

    /// After the app refused the token: a newer one, and true, when the request should be sent again with it. What
    /// cannot be had leaves the app's answer as it is.
    pub(super) async fn renew_refused_token(&mut self, response: &ResponseHeader) -> bool {
        let Phase::Forward(forward) = &mut self.phase else { return false };
        let Some(used) = &mut forward.session else { return false };
        if response.status.is_success() {
            self.state.brought.forget(&used.session);
        }
        if !forward.replayable || !replay::refuses_token(response.status, &response.headers) {
            return false;
        }
        // Once: whatever the second try brings goes to the browser.
        forward.replayable = false;
        let state = &self.state;
        if state.brought.is_fresh_from_refusal(&used.session, state.clock.now()) {
            return false;
        }
        let Freshened::Use { session, .. } = state.refresh.freshen(Arc::clone(&used.session), Demand::Now).await else {
            return false;
        };
        if session.generation <= used.session.generation {
            return false;
        }
        // The refresh may have taken its time, and somebody ended the session meanwhile.
        if state.ends.is_over(&session) {
            return false;
        }
        let Ok(credential) = upstream::credential(state, &forward.route.settings, &session, None) else { return false };
        state.brought.remember(&session, state.clock.now());
        used.session = session;
        forward.credential = credential;
        true
    }

    /// The cookies that go out on whatever answer goes out.
    pub(super) fn late_cookies(&self) -> Vec<HeaderValue> {
        let Phase::Forward(forward) = &self.phase else { return Vec::new() };
        self.cookies_with(forward)
    }

    /// The same, of what is about to be forwarded.
    pub(super) fn cookies_with(&self, forward: &Forward) -> Vec<HeaderValue> {
        let mut cookies = forward.expire.clone();
        cookies.extend(forward.session.iter().flat_map(|used| self.cookies_of(used)));
        cookies
    }

    /// The newest generation known, if the browser has an older one; decided as late as can be, for while the upstream
    /// worked another request may have refreshed the session, or ended it.
    pub(super) fn cookies_of(&self, used: &Used) -> Vec<HeaderValue> {
        let state = &self.state;
        if state.ends.was_ended_outside(&used.session) {
            return Vec::new();
        }
        let Some(newest) = state.refresh.outgoing(&used.session, self.started.elapsed()) else { return Vec::new() };
        // The browser has arrived.
        let mut cookies: Vec<_> = state.jar.unmark(&used.presented).into_iter().collect();
        if newest.generation > used.presented_generation || used.touch {
            let now = state.clock.now();
            let mut touched = UserSession::clone(&newest);
            touched.touch(now);
            state.uses.note(&touched);
            cookies.extend(state.seal(&touched, &used.presented, now, &self.request_id));
        }
        cookies
    }
}

/// Whom the upstream is told that the request comes from.
fn forwarded_for(request: &Request<'_>, trusted: &[IpNet]) -> HeaderValue {
    let unknown = HeaderValue::from_static("unknown");
    let Some(peer) = request.peer else { return unknown };
    HeaderValue::try_from(forwarded::forwarded_for(peer, &request.head.headers, trusted)).unwrap_or(unknown)
}

/// The caller's trace goes on, or one begins here. `left_out`: we record traces, and not this one. Else it is said to be
/// sampled: with the other flag an upstream that follows its parent would record nothing.
fn traceparent(headers: &HeaderMap, left_out: bool) -> Option<String> {
    let given = forwarded::traceparent(headers);
    Some(given.map_or_else(|| forwarded::new_traceparent(random::identifier(), !left_out), Cow::into_owned))
}
