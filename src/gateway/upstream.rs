//! Towards the upstream: which peer, and the request's head as it leaves us.

use http::request::Parts as ReqParts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::ALPN;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora::{Error, ErrorType, Result};

use super::ctx::{Forward, Used};
use super::placement;
use super::settings::{Route, Token, Way};
use super::state::{Endpoint, State};
use crate::net::spare::IDLE;
use crate::oidc::dpop;
use crate::oidc::types::AccessToken;
use crate::session::Session;
use crate::web::forwarded::{self, TRACEPARENT, TRACESTATE, X_FORWARDED_FOR, X_REQUEST_ID};
use crate::web::path::CleanPath;
use crate::web::problem::{Code, Problem};
use crate::web::{cookies, headers};

/// Requests at a time on one HTTP/2 connection; what every server takes.
const STREAMS: usize = 100;
/// How much of an answer may wait here for a client that reads slowly.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for all answers on a connection.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const DPOP: HeaderName = HeaderName::from_static("dpop");
const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");

/// The peer of this try. Every try takes the next address, so that a dead one is passed over.
///
/// # Errors
/// `upstream_unreachable` when the name does not resolve.
pub async fn peer(forward: &mut Forward) -> Result<HttpPeer, Problem> {
    let unreachable = || Problem::new(Code::UpstreamUnreachable, "The application's address is not known.");
    let pick = forward.route.pick(forward.turn).await;
    forward.pick = pick;
    let (pick, target) = pick.zip(forward.target()).ok_or_else(unreachable)?;
    let mut peer = match (&target.endpoint, pick.address) {
        (Endpoint::Tcp(_), Some(address)) =>
        {
            #[expect(clippy::disallowed_methods, reason = "a socket address needs no look-up")]
            HttpPeer::new(address, target.tls, target.server_name.clone())
        }
        (Endpoint::Unix(path), _) => HttpPeer::new_uds(path, false, String::new()).map_err(|_| unreachable())?,
        (Endpoint::Tcp(_), None) => return Err(unreachable()),
    };
    peer.group_key = target.group;
    peer.client_cert_key.clone_from(&target.client_cert);
    peer.options.ca.clone_from(&target.ca);
    let settings = &forward.route.settings;
    let options = &mut peer.options;
    let dialers = &forward.route.dialers;
    options.custom_l4 = Some(match (target.tls || forward.over_http2(), forward.repeatable) {
        (true, _) => dialers.layered(),
        (false, true) => dialers.plain(),
        (false, false) => dialers.careful(),
    });
    options.connection_timeout = Some(settings.connect_timeout);
    // The dialler has its own; TLS comes on top.
    options.total_connection_timeout = target.tls.then_some(settings.connect_timeout);
    options.idle_timeout = Some(IDLE);
    // How long the upstream may be silent depends on what it answers: `Ctx::silence` watches it.
    options.read_timeout = None;
    // The same goes for a head that it does not take; a body may come slowly, and is taken nevertheless.
    let watched = forward.repeatable && !forward.over_http2();
    options.write_timeout = (!watched).then_some(settings.read_timeout);
    options.alpn = ALPN::H1;
    if forward.over_http2() {
        // Nothing less: the pool would hand gRPC a connection that speaks HTTP/1.1.
        options.alpn = ALPN::H2;
        options.max_h2_streams = STREAMS;
        options.h2_stream_window_size = Some(STREAM_WINDOW);
        options.h2_connection_window_size = Some(CONNECTION_WINDOW);
        // One connection carries many requests: it cannot be ended for the silence in one of them.
        options.read_timeout = (!forward.grpc && !forward.event_stream).then_some(settings.read_timeout);
    }
    // Pingora takes a lone `Upgrade` field for a handshake; one that `Connection` does not name is none.
    options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
    if forward.upgrade {
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy::standard();
        // A connection of its own, never from the pool; what is dialled so is never kept.
        options.custom_l4 = Some(dialers.tunnels());
        peer.group_key = !target.group;
    }
    Ok(peer)
}

/// Path and query as the upstream gets them: prefix stripped or replaced, then the upstream's base path in front.
pub fn target(route: &Route, base_path: &str, path: &CleanPath, query: Option<&str>) -> String {
    let path = path.as_str();
    let own = route.path.strip_suffix('/').unwrap_or(&route.path);
    let rewritten = match (&route.rewrite_prefix, &route.strip_prefix) {
        // An exact path is replaced as a whole.
        (Some(new), _) if !route.path.ends_with('/') => Some(new.clone()),
        (Some(new), _) => rest_below(path, own).map(|rest| join(new, rest)),
        (None, Some(strip)) => rest_below(path, strip.trim_end_matches('/')).map(|rest| join("", rest)),
        (None, None) => None,
    };
    let path = rewritten.as_deref().unwrap_or(path);
    let mut target = String::with_capacity(base_path.len() + path.len() + query.map_or(0, |query| query.len() + 1));
    target.push_str(base_path);
    target.push_str(path);
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    target
}

/// What follows `prefix` on a segment boundary, without its leading slash.
fn rest_below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix)?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('/') }
}

fn join(prefix: &str, rest: &str) -> String {
    format!("{}/{rest}", prefix.trim_end_matches('/'))
}

/// The header that carries the session's token on this route.
///
/// # Errors
/// `provider_refused` when the route sends the ID token and there is none.
pub fn credential(
    state: &State,
    route: &Route,
    session: &Session,
    own: Option<&AccessToken>,
) -> Result<Option<(HeaderName, HeaderValue)>, Problem> {
    let missing = |detail| Problem::new(Code::ProviderRefused, detail);
    // Put into the query as the request leaves.
    if placement::of(state, &route.token, session).is_some() {
        return match (&route.token, own) {
            (Token::Own(..), None) => Err(missing("There is no token for this route.")),
            _ => Ok(None),
        };
    }
    // A bound token is no bearer token (RFC 9449 section 7.1).
    let scheme = match route.token_header.scheme.as_deref() {
        Some(scheme) if is_bound(route, session) && scheme.eq_ignore_ascii_case("Bearer") => Some("DPoP"),
        scheme => scheme,
    };
    let value = match &route.token {
        Token::None => return Ok(None),
        Token::Access => session.access_token.field(scheme),
        Token::Own(..) => own.ok_or_else(|| missing("There is no token for this route."))?.field(scheme),
        Token::Id => {
            let token = session.id_token.as_ref().and_then(|packed| packed.unpack());
            let token = token.ok_or_else(|| missing("The provider gave no ID token, which this route sends."))?;
            AccessToken::new(token).field(scheme)
        }
    };
    let value = value.ok_or_else(|| missing("The provider's token cannot stand in a header."))?;
    Ok(Some((route.token_header.name.clone(), value)))
}

/// Whether the token of this route counts only with a proof of the session's key.
pub fn is_bound(route: &Route, session: &Session) -> bool {
    matches!(route.token, Token::Access | Token::Own(_, Way::Refresh)) && session.dpop.is_some()
}

/// A proof for the request as it leaves us (RFC 9449 section 4.2): `target` is its path and query, `host` its `Host`.
fn proof(state: &State, used: &Used, method: &str, origin: &str, target: &str) -> Option<HeaderValue> {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let nonce = state.nonces.get(origin);
    let key = used.session.dpop.as_ref()?;
    let token = used.own.as_ref().unwrap_or(&used.session.access_token);
    let htu = format!("{origin}{path}");
    let proof = key.proof(method, &htu, Some(token), nonce.as_deref(), state.clock.now())?;
    let mut proof = HeaderValue::try_from(proof).ok()?;
    proof.set_sensitive(true);
    Some(proof)
}

/// The origin that a request with these fields is for, in their words.
fn origin(tls: bool, fields: &HeaderMap) -> Option<String> {
    let host = fields.get(header::HOST)?.to_str().ok()?;
    Some(format!("{}://{host}", if tls { "https" } else { "http" }))
}

/// What an upstream says about proofs: its nonce is kept for the next request. True when this one failed for want of
/// the nonce, and another try has it (RFC 9449 section 9).
pub fn wants_another_proof(state: &State, forward: &Forward, response: &ResponseHeader) -> bool {
    let Some(origin) = forward.proven_for.as_deref() else { return false };
    let text = |value: &HeaderValue| value.to_str().map(str::to_owned).ok();
    let nonce = response.headers.get(DPOP_NONCE).and_then(text);
    let news = nonce.is_some_and(|nonce| state.nonces.put(origin, &nonce));
    let mut challenges = response.headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(text);
    news && response.status == StatusCode::UNAUTHORIZED && challenges.any(|value| dpop::demands_nonce(&value))
}

/// A claim as text.
pub fn claim_text(session: &Session, name: &str) -> Option<String> {
    session.claim(name)?.as_str().map(str::to_owned)
}

/// The claim behind an identity header.
fn claim(session: &Session, name: &str) -> Option<HeaderValue> {
    session.claim(name).as_deref().and_then(headers::encode_claim)
}

/// The identity headers of this route that the session has the claim for.
pub fn identity(route: &Route, session: &Session) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    route.identity_headers.iter().filter_map(|(name, source)| Some((name.clone(), claim(session, source)?)))
}

/// Makes the head that Pingora is about to send anew: what may pass of the client's, and what is ours. Runs once per
/// try, after Pingora removed what `Connection` nominates, so that a client cannot nominate away what is set here.
/// `taken`: the client's fields, in place of those in `request`; `Connection` nominates none of them.
///
/// Names leave as the standards spell them, whatever the client's spelling was: keeping that would cost a second map
/// with an entry for each of them.
///
/// # Errors
/// When the head cannot be made: nothing is sent then, for what the client sent must not pass as it is.
pub fn rewrite(
    request: &mut RequestHeader,
    taken: Option<HeaderMap>,
    state: &State,
    forward: &mut Forward,
    request_id: &str,
) -> Result<()> {
    let target = forward.target().ok_or_else(|| Error::new_in(ErrorType::InternalError))?;
    let ends_stream = request.send_end_stream();
    // Taken apart, and not copied; after an error an empty head stays behind.
    let (blank, ()) = http::Request::new(()).into_parts();
    let mut parts = ReqParts::from(std::mem::replace(request, RequestHeader::from(blank)));
    let kept_by_pingora = taken.is_none();
    parts.headers = taken.unwrap_or(parts.headers);
    let fields = &mut parts.headers;
    fields.reserve(OURS);
    let stops: Vec<HeaderName> = fields.keys().filter(|name| !passes(name, state, kept_by_pingora)).cloned().collect();
    for name in stops {
        fields.remove(name);
    }
    match cookies::strip(fields, |name| state.jar.owns(name)) {
        cookies::Stripped::Unchanged => {}
        cookies::Stripped::Changed(Some(rest)) => drop(fields.insert(header::COOKIE, rest)),
        cookies::Stripped::Changed(None) => drop(fields.remove(header::COOKIE)),
    }

    let query = placement::query(state, forward);
    let path = self::target(&forward.route.settings, &target.base_path, &forward.path, query.as_deref());
    let public = &state.settings.public;
    if !forward.route.settings.preserve_host {
        fields.insert(header::HOST, target.authority.clone());
    }
    fields.insert(X_FORWARDED_FOR, forward.forwarded_for.clone());
    fields.insert(X_FORWARDED_HOST, state.forwarded_host.clone());
    fields.insert(X_FORWARDED_PROTO, HeaderValue::from_static(if public.is_https() { "https" } else { "http" }));
    set(fields, X_REQUEST_ID, HeaderValue::try_from(request_id).ok());
    if forwarded::traceparent(fields).is_none() {
        // It belongs to the one that did not come, or that is replaced (W3C Trace Context section 3.3).
        fields.remove(TRACESTATE);
    }
    if let Some(traceparent) = &forward.traceparent {
        set(fields, TRACEPARENT, HeaderValue::try_from(traceparent).ok());
    }
    if forward.grpc && forward.over_http2() {
        // What a server goes by to tell whether its trailers, which hold the call's status, will arrive.
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    // A chain of proxies each adds itself (RFC 9110 section 7.6.3).
    fields.append(header::VIA, state.via.clone());

    if let Some((name, value)) = &forward.credential {
        fields.insert(name, value.clone());
    }
    let route = &forward.route.settings;
    if let Some(used) = forward.session.as_ref().filter(|used| is_bound(route, &used.session)) {
        let failed = || Error::new_in(ErrorType::InternalError);
        let origin = origin(target.tls, fields).ok_or_else(failed)?;
        let proof = proof(state, used, parts.method.as_str(), &origin, &path).ok_or_else(failed)?;
        fields.insert(DPOP, proof);
        forward.proven_for = Some(origin);
    }
    if let Some(used) = &forward.session {
        for (name, source) in &forward.route.settings.identity_headers {
            set(fields, name.clone(), claim(&used.session, source));
        }
    }
    *request = RequestHeader::from(parts);
    if let Some(ends) = ends_stream {
        request.set_send_end_stream(ends);
    }
    request.set_raw_path(path.as_bytes())
}

/// Room for what [`rewrite`] adds.
const OURS: usize = 10;

/// Whether a client's field goes on to the upstream. `framing`: Pingora has cleaned the fields, so what frames among them
/// is what it needs.
fn passes(name: &HeaderName, state: &State, framing: bool) -> bool {
    let frames = || matches!(*name, header::CONNECTION | header::UPGRADE | header::TRANSFER_ENCODING);
    (!headers::is_hop_by_hop(name.as_str()) || (framing && frames()))
        && !headers::is_removed_from_client(name.as_str())
        && !state.is_reserved(name)
}

/// Sets the field to exactly this value, or removes it.
fn set(fields: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    match value {
        // Replaces all that were there.
        Some(value) => drop(fields.insert(name, value)),
        None => drop(fields.remove(name)),
    }
}
