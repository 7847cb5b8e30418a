//! Reads a request once: who sent it, what it asks for, and whether it is one that can be judged at all.

use std::borrow::Cow;
use std::net::IpAddr;

use http::{HeaderMap, HeaderValue, Method, header};
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use super::ctx::Ctx;
use super::decide::Caller;
use super::settings::{CsrfMode, HeadLimits};
use super::state::State;
use crate::clock::Timestamp;
use crate::crypto::random;
use crate::net::ConnectionInfo;
use crate::web::fetch::{self, Initiator, OriginField, Proof, Site};
use crate::web::forwarded;
use crate::web::headers::has_plain_length;
use crate::web::path::CleanPath;
use crate::web::problem::{Code, Problem};
use crate::web::request::RequestView;
use crate::web::return_to::ReturnTo;

/// A request as the rest of the gateway sees it.
pub(super) struct Request<'a> {
    pub head: &'a RequestHeader,
    /// None on a unix socket.
    pub peer: Option<IpAddr>,
    /// The one reading of the path: judged and forwarded.
    pub path: CleanPath,
    pub query: Option<String>,
    /// Lower case, without port.
    pub host: Cow<'a, str>,
    pub initiator: Initiator,
    /// A WebSocket handshake, but for its method.
    pub websocket: bool,
    /// A CORS preflight.
    pub preflight: bool,
    pub now: Timestamp,
}

impl Request<'_> {
    /// Back to the request itself, after a login.
    pub(super) fn return_to(&self, state: &State) -> ReturnTo {
        ReturnTo::from_request(&self.path, self.query.as_deref(), &state.settings.prefix)
    }
}

impl Ctx {
    /// Reads what everything later is judged by.
    ///
    /// # Errors
    /// For a request that no route and no endpoint is asked about.
    pub(super) fn arrive<'a>(&mut self, session: &'a Session) -> Result<Request<'a>, Problem> {
        let head = session.req_header();
        self.read(head, peer_ip(session), session.is_http2(), host_of(head))
    }

    /// Who sent the request, and how we speak of it: enough to refuse it.
    pub(super) fn introduce(&mut self, head: &RequestHeader, peer: Option<IpAddr>) -> Initiator {
        let headers = &head.headers;
        let settings = &self.state.settings;
        self.client = peer.map(|peer| forwarded::client(peer, headers, &settings.trusted_proxies));
        self.request_id = forwarded::request_id(headers)
            .map_or_else(|| forwarded::new_request_id(random::identifier()), ToOwned::to_owned);
        let initiator = Initiator::read(headers, &settings.public, &settings.csrf.allowed_origins);
        self.shape = initiator.shape();
        self.cors = listed_origin(headers, &initiator);
        initiator
    }

    /// Reads a head. `host`: in lower case, without port.
    ///
    /// # Errors
    /// As [`Ctx::arrive`].
    pub(super) fn read<'a>(
        &mut self,
        head: &'a RequestHeader,
        peer: Option<IpAddr>,
        http2: bool,
        host: Cow<'a, str>,
    ) -> Result<Request<'a>, Problem> {
        let initiator = self.introduce(head, peer);
        let headers = &head.headers;
        let settings = &self.state.settings;
        if http2 {
            within_limits(head, settings.head)?;
            if !has_plain_length(headers) {
                return Err(Problem::new(Code::BadRequest, "The Content-Length field is malformed."));
            }
            // RFC 9113 section 8.2.1; HTTP/1.1 has none, for there they are not of the value.
            if headers.values().any(|value| value.as_bytes() != value.as_bytes().trim_ascii()) {
                return Err(Problem::new(Code::BadRequest, "A header field value begins or ends with a blank."));
            }
        }
        if matches!(head.method, Method::TRACE | Method::CONNECT) {
            return Err(Problem::new(Code::MethodNotAllowed, "This method is not served.").allow(String::new()));
        }
        // Which of them counts is a matter of taste; Host and the framing are judged before, Origin in `fetch`.
        if headers.get_all(header::CONTENT_TYPE).iter().nth(1).is_some() {
            return Err(Problem::new(Code::BadRequest, "The Content-Type field is repeated."));
        }
        let target = std::str::from_utf8(head.raw_path())
            .map_err(|_| Problem::new(Code::BadPath, "The path is not valid UTF-8."))?;
        let target = origin_form(target);
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let path = if path == "*" && head.method == Method::OPTIONS { "/" } else { path };
        let path = CleanPath::parse(path)
            .map_err(|_| Problem::new(Code::BadPath, "The path is ambiguous: it has no single reading."))?;
        self.path = Some(path.clone());

        if host != settings.public.host() && !self.state.routes.knows_host(&host) {
            return Err(Problem::new(Code::WrongHost, "This host is not served here."));
        }
        if went_through_us(headers, &self.state.via) {
            return Err(Problem::new(Code::LoopDetected, "The request came through this gateway before."));
        }
        let now = self.state.clock.now();
        let websocket = fetch::is_websocket_handshake(headers);
        let preflight = fetch::is_preflight(&head.method, headers);
        Ok(Request { head, peer, path, query, host, initiator, websocket, preflight, now })
    }

    /// What the request says about its sender, as [`super::decide`] wants it. `app_navigation_only`: even a
    /// navigation must come from the app or be typed. `headerless`: the client cannot set the header of `header` mode.
    pub(super) fn caller(&self, request: &Request<'_>, app_navigation_only: bool, headerless: bool) -> Caller {
        let Request { head, initiator, .. } = request;
        let csrf = &self.state.settings.csrf;
        let demand = fetch::Demand {
            header_mode: csrf.mode == CsrfMode::Header && !headerless,
            header_present: head.headers.contains_key(&csrf.header),
            app_navigation_only,
        };
        let navigation = initiator.is_navigation();
        let typed = navigation && initiator.site == Site::Typed;
        Caller {
            navigation,
            document: initiator.is_top_level_navigation(),
            framed: initiator.in_frame(),
            cross_site: initiator.site == Site::CrossSite,
            outside: matches!(initiator.site, Site::CrossSite | Site::SameSite),
            typed_return: typed && self.state.logins.is_traced(&head.headers),
            foreign: initiator.names_foreign_site(),
            websocket: request.websocket,
            websocket_origin: initiator.websocket_origin_ok(),
            preflight: request.preflight,
            proven: fetch::proves_origin(initiator, &head.method, demand) == Proof::Proven,
        }
    }

    /// The request as endpoints see it.
    pub(super) fn view<'a>(&'a self, request: &'a Request<'a>) -> RequestView<'a> {
        RequestView {
            method: &request.head.method,
            version: request.head.version,
            path: &request.path,
            query: request.query.as_deref(),
            host: &request.host,
            headers: &request.head.headers,
            form: &self.form,
            client: self.client,
            request_id: &self.request_id,
            now: request.now,
        }
    }
}

/// What `net` checks of an HTTP/1.1 head while it reads it.
fn within_limits(head: &RequestHeader, limits: HeadLimits) -> Result<(), Problem> {
    let bytes: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if head.raw_path().len() > limits.uri_bytes {
        return Err(Problem::new(Code::UriTooLong, "The request target is too long."));
    }
    if head.headers.len() > limits.header_count || bytes > limits.header_bytes {
        return Err(Problem::new(Code::HeadersTooLarge, "The header fields are too large, or too many."));
    }
    Ok(())
}

/// None on a unix socket.
pub(super) fn peer_ip(session: &Session) -> Option<IpAddr> {
    ConnectionInfo::of(session.as_downstream()).and_then(|info| info.peer).map(|peer| peer.ip().to_canonical())
}

/// The path and query of a request target; the authority of an absolute one was compared with `Host` by `net`.
pub(super) fn origin_form(target: &str) -> &str {
    let rest = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"));
    match rest {
        Some(rest) => rest.find(['/', '?']).and_then(|at| rest.get(at..)).unwrap_or("/"),
        None => target,
    }
}

/// The host without port, lower case.
fn host_of(head: &RequestHeader) -> Cow<'_, str> {
    let authority = head
        .headers
        .get(header::HOST)
        .and_then(|value| value.to_str().ok())
        .or_else(|| head.uri.authority().map(http::uri::Authority::as_str))
        .unwrap_or_default();
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let lower = !host.bytes().any(|byte| byte.is_ascii_uppercase());
    if lower { Cow::Borrowed(host) } else { Cow::Owned(host.to_ascii_lowercase()) }
}

fn went_through_us(headers: &HeaderMap, via: &HeaderValue) -> bool {
    let Ok(own) = via.to_str() else { return false };
    headers
        .get_all(header::VIA)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|hop| hop.trim() == own)
}

/// The `Origin` to answer CORS with: only one that the configuration lists.
fn listed_origin(headers: &HeaderMap, initiator: &Initiator) -> Option<HeaderValue> {
    matches!(initiator.origin, OriginField::Allowed(_)).then(|| headers.get(header::ORIGIN).cloned()).flatten()
}
