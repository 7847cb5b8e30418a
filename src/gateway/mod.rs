//! The only Pingora request code: each phase delegates, one decision is taken, later phases only apply it.
//!
//! ```text
//! request_filter:   arrive ─► classify ─► open the session ─► decide ─► answer | forward
//! later phases:     apply `Forward`, nothing else
//! ```

pub mod attempts;
pub mod ctx;
pub mod decide;
pub mod downstream;
pub mod endpoints;
pub mod explain;
pub mod refusals;
pub mod rescue;
pub mod respond;
pub mod routes;
pub mod settings;
pub mod state;
pub mod upstream;

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use tokio::time::Instant;

use self::ctx::{Ctx, Forward, Label, Phase, Used};
use self::decide::{Caller, Decision, Presence, Rules, decide};
use self::endpoints::{Answer, Endpoint, Visitor};
use self::routes::Matched;
use self::settings::Access;
use self::state::{RouteEntry, State};
use crate::crypto::random;
use crate::metrics::{MethodLabel, NoRoute};
use crate::net::{ConnectionInfo, Guard};
use crate::refresh::coordinator::{Freshened, Recognised};
use crate::refresh::policy::{Demand, EndReason};
use crate::session::jar::Presented;
use crate::session::lifecycle::Ended;
use crate::session::{Session as UserSession, lifecycle};
use crate::telemetry::{self, AccessLine, audit};
use crate::web::fetch::{Initiator, OriginField, Proof, Site};
use crate::web::path::CleanPath;
use crate::web::problem::{Code, Problem, Shape};
use crate::web::request::RequestView;
use crate::web::response::LocalResponse;
use crate::web::return_to::ReturnTo;
use crate::web::{fetch, forwarded, pages};

/// The request handler that Pingora drives.
#[derive(Debug)]
pub struct Gateway {
    state: Arc<ArcSwap<State>>,
}

impl Gateway {
    /// Requests take the state that is in force when they arrive.
    pub fn new(state: Arc<ArcSwap<State>>) -> Self {
        Self { state }
    }
}

/// What `request_filter` comes to.
enum Outcome {
    Forward(Box<Forward>),
    Respond(LocalResponse),
    /// A refusal, with cookies to set on it.
    Refuse(Problem, Vec<HeaderValue>),
}

impl From<Problem> for Outcome {
    fn from(problem: Problem) -> Self {
        Self::Refuse(problem, Vec::new())
    }
}

/// The session that came with a request, after tombstones and newer generations were considered.
struct Opened {
    presented: Presented,
    /// As the cookies hold it.
    came: Option<Arc<UserSession>>,
    /// The newest generation known of it.
    session: Option<Arc<UserSession>>,
    /// Cookies came, but they are of no use: expire them.
    useless: bool,
}

/// The request's path, query and host, owned.
struct Arrived {
    path: CleanPath,
    query: Option<String>,
    host: String,
}

impl Ctx {
    fn new(state: Arc<State>) -> Self {
        Self {
            state,
            started: Instant::now(),
            upstream_started: None,
            upstream_answered: None,
            request_id: String::new(),
            client: None,
            path: None,
            route: Label::None(NoRoute::Invalid),
            shape: Shape::Json,
            cors: None,
            sub_hash: None,
            code: None,
            phase: Phase::Arrived,
            body_bytes: 0,
            retried: false,
        }
    }

    /// What the rest of the request is judged by.
    fn arrive(&mut self, session: &Session) -> Result<(Arrived, Initiator), Problem> {
        let head = session.req_header();
        let headers = &head.headers;
        let settings = &self.state.settings;
        let peer = peer_ip(session);
        self.client = peer.map(|peer| forwarded::client(peer, headers, &settings.trusted_proxies));
        self.request_id = forwarded::request_id(headers).map_or_else(|| random::base64url::<15>(), ToOwned::to_owned);
        let initiator = Initiator::read(headers, &settings.public, &settings.csrf.allowed_origins);
        self.shape = initiator.shape();
        self.cors = listed_origin(headers, &initiator);

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

        let host = host_of(head);
        if host != settings.public.host() && !self.state.routes.knows_host(&host) {
            return Err(Problem::new(Code::WrongHost, "This host is not served here."));
        }
        if matches!(head.method, Method::TRACE | Method::CONNECT) {
            return Err(Problem::new(Code::MethodNotAllowed, "This method is not served.").allow(String::new()));
        }
        if went_through_us(headers, &self.state.via) {
            return Err(Problem::new(Code::LoopDetected, "The request came through this gateway before."));
        }
        Ok((Arrived { path, query, host }, initiator))
    }

    async fn decide(&mut self, session: &Session) -> Outcome {
        let (arrived, initiator) = match self.arrive(session) {
            Ok(arrived) => arrived,
            Err(problem) => return problem.into(),
        };
        let head = session.req_header();
        let now = self.state.clock.now();
        let state = Arc::clone(&self.state);
        let prefix = &state.settings.prefix;
        let caller = self.caller(head, &initiator);
        if let Some(rest) = below(arrived.path.as_str(), prefix) {
            self.route = Label::None(NoRoute::Endpoint);
            if caller.preflight {
                return Outcome::Respond(preflight(head, self.cors.as_ref()));
            }
            let Some(endpoint) = Endpoint::find(rest) else {
                return Problem::new(Code::NoRoute, "There is no such endpoint.").into();
            };
            let opened = self.open(&head.headers, now);
            self.tell_user(opened.session.as_deref());
            let proven = self.proves(head, &initiator, false);
            let visitor = Visitor {
                session: opened.session,
                came: opened.came,
                presented: opened.presented,
                caller: Caller { proven, ..caller },
            };
            let view = self.view(head, &arrived, now);
            return match endpoint.serve(&self.state, &view, visitor).await {
                Answer::Respond(response) => Outcome::Respond(response),
                Answer::Refuse(problem, cookies) => {
                    Outcome::Refuse(with_login_url(problem, &ReturnTo::home(), prefix), cookies)
                }
            };
        }
        self.route_request(session, &arrived, &initiator, caller, now).await
    }

    async fn route_request(
        &mut self,
        session: &Session,
        arrived: &Arrived,
        initiator: &Initiator,
        caller: Caller,
        now: crate::clock::Timestamp,
    ) -> Outcome {
        let state = Arc::clone(&self.state);
        let head = session.req_header();
        let method = (!caller.preflight).then_some(&head.method);
        let entry = match state.routes.find(&arrived.path, &arrived.host, method) {
            Matched::Route(entry) => Arc::clone(&entry.0),
            Matched::MethodNotAllowed { route, allow } => {
                self.route = Label::Route(Arc::clone(&route.0));
                return Problem::new(Code::MethodNotAllowed, "This path does not take the method.").allow(allow).into();
            }
            Matched::None => {
                self.route = Label::None(NoRoute::Unmatched);
                return Problem::new(Code::NoRoute, "No route takes this path.").into();
            }
        };
        self.route = Label::Route(Arc::clone(&entry));
        let route = &entry.settings;
        if let Some(problem) = too_large(route.max_body, &head.headers) {
            return problem.into();
        }
        let rules = Rules {
            access: route.access,
            on_anonymous: route.on_anonymous,
            csrf: route.csrf,
            websocket: route.websocket,
            embedded: state.embedded,
        };
        // Public routes have nothing to do with sessions: no cookie is opened for them.
        let opened = (route.access != Access::Public).then(|| self.open(&head.headers, now));
        let presence = match &opened {
            Some(Opened { session: Some(_), .. }) => Presence::Live,
            _ => Presence::Absent,
        };
        self.tell_user(opened.as_ref().and_then(|opened| opened.session.as_deref()));
        let strict = route.on_anonymous == settings::OnAnonymous::Unauthorized;
        let caller = Caller { proven: self.proves(head, initiator, strict), ..caller };
        let return_to = ReturnTo::from_request(&arrived.path, arrived.query.as_deref(), &state.settings.prefix);
        let expire = match &opened {
            Some(opened) if opened.useless => state.jar.expire(&opened.presented),
            _ => Vec::new(),
        };
        match decide(rules, presence, caller, &head.method) {
            Decision::ForwardAnonymous => self.forward(session, arrived, entry, None, expire),
            Decision::ForwardWithSession => match opened {
                Some(opened) => self.with_session(session, arrived, entry, opened, caller, &return_to, now).await,
                None => self.forward(session, arrived, entry, None, expire),
            },
            Decision::Preflight => Outcome::Respond(preflight(head, self.cors.as_ref())),
            Decision::Hop => Outcome::Respond(pages::hop(return_to.as_str()).set_cookies(expire)),
            Decision::Login(status) => {
                let target =
                    if status == StatusCode::SEE_OTHER { referring_page(&head.headers, &state) } else { return_to };
                let location = target.login_url(&state.settings.prefix);
                Outcome::Respond(LocalResponse::redirect(status, &location).set_cookies(expire))
            }
            Decision::Refuse(problem) => {
                let target = if caller.navigation { return_to } else { referring_page(&head.headers, &state) };
                let expire = if problem.code == Code::Csrf { Vec::new() } else { expire };
                Outcome::Refuse(with_login_url(problem, &target, &state.settings.prefix), expire)
            }
        }
    }

    /// Freshens the session and forwards with it.
    #[expect(clippy::too_many_arguments, reason = "one step of route_request, split off for its length")]
    async fn with_session(
        &mut self,
        session: &Session,
        arrived: &Arrived,
        entry: Arc<RouteEntry>,
        opened: Opened,
        caller: Caller,
        return_to: &ReturnTo,
        now: crate::clock::Timestamp,
    ) -> Outcome {
        let state = Arc::clone(&self.state);
        // As it came: only what the browser shows is known to be delivered.
        let Some(user) = opened.came else {
            return Problem::new(Code::Internal, "A session was decided on that is not there.").into();
        };
        let demand = match entry.settings.max_token_age {
            Some(age) => Demand::OlderThan(age),
            None => Demand::IfDue,
        };
        let presented_generation = user.generation;
        let fresh = match state.refresh.freshen(user, demand).await {
            Freshened::Use { session, .. } => session,
            Freshened::Exhausted { session, .. } if entry.settings.max_token_age.is_none() => session,
            Freshened::Over { .. } | Freshened::Exhausted { .. } => {
                let expire = state.jar.expire(&opened.presented);
                if entry.settings.access == Access::Optional {
                    return self.forward(session, arrived, entry, None, expire);
                }
                let rules = Rules {
                    access: entry.settings.access,
                    on_anonymous: entry.settings.on_anonymous,
                    csrf: entry.settings.csrf,
                    websocket: entry.settings.websocket,
                    embedded: state.embedded,
                };
                // The hop has nothing to bring: the cookie came, and it is dead.
                let caller = Caller { cross_site: false, typed_return: false, ..caller };
                return match decide(rules, Presence::Absent, caller, &session.req_header().method) {
                    Decision::Login(status) => {
                        let location = return_to.login_url(&state.settings.prefix);
                        Outcome::Respond(LocalResponse::redirect(status, &location).set_cookies(expire))
                    }
                    Decision::Refuse(problem) => {
                        Outcome::Refuse(with_login_url(problem, return_to, &state.settings.prefix), expire)
                    }
                    _ => Problem::new(Code::Internal, "A dead session led nowhere.").into(),
                };
            }
            Freshened::Unavailable { retry_after } => {
                return endpoints::session::unavailable(retry_after.as_secs()).into();
            }
            Freshened::Refused => return endpoints::session::refused().into(),
        };
        let touch = state.jar.needs_touch(&fresh, now);
        let used = Used { presented: opened.presented, presented_generation, session: fresh, touch };
        if !meets(&entry.settings.require, &used.session) {
            let problem = Problem::new(Code::Forbidden, "The signed-in user may not use this.");
            return Outcome::Refuse(problem, self.session_cookies(&Used { touch: false, ..used }));
        }
        self.forward(session, arrived, entry, Some(used), Vec::new())
    }

    fn forward(
        &self,
        session: &Session,
        arrived: &Arrived,
        entry: Arc<RouteEntry>,
        used: Option<Used>,
        expire: Vec<HeaderValue>,
    ) -> Outcome {
        let head = session.req_header();
        let credential = match &used {
            Some(used) => match upstream::credential(&entry.settings, &used.session) {
                Ok(credential) => credential,
                Err(problem) => return Outcome::Refuse(problem, self.session_cookies(used)),
            },
            None => None,
        };
        let event_stream = head
            .headers
            .get(header::ACCEPT)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|accept| accept.contains("text/event-stream"));
        let safe = matches!(head.method, Method::GET | Method::HEAD);
        let bodiless =
            !head.headers.contains_key(header::CONTENT_LENGTH) && !head.headers.contains_key(header::TRANSFER_ENCODING);
        Outcome::Forward(Box::new(Forward {
            upgrade: entry.settings.websocket && fetch::is_websocket_handshake(&head.headers),
            event_stream,
            repeatable: safe && bodiless,
            forwarded_for: peer_ip(session).map_or_else(
                || "unknown".to_owned(),
                |peer| forwarded::forwarded_for(peer, &head.headers, &self.state.settings.trusted_proxies),
            ),
            traceparent: traceparent(&head.headers),
            turn: entry.turn(),
            failed: 0,
            path: arrived.path.clone(),
            query: arrived.query.clone(),
            route: entry,
            session: used,
            credential,
            expire,
        }))
    }

    fn caller(&self, head: &RequestHeader, initiator: &Initiator) -> Caller {
        let websocket = fetch::is_websocket_handshake(&head.headers);
        let navigation = initiator.is_navigation();
        let typed = navigation && initiator.site == Site::Typed;
        Caller {
            navigation,
            document: initiator.is_top_level_navigation(),
            framed: initiator.in_frame(),
            cross_site: initiator.site == Site::CrossSite,
            typed_return: typed && self.state.logins.any_presented(&head.headers),
            foreign: initiator.names_foreign_site(),
            websocket,
            websocket_origin: initiator.websocket_origin_ok(),
            preflight: fetch::is_preflight(&head.method, &head.headers),
            proven: false,
        }
    }

    fn proves(&self, head: &RequestHeader, initiator: &Initiator, strict: bool) -> bool {
        let csrf = &self.state.settings.csrf;
        let demand = fetch::Demand {
            header_mode: csrf.mode == settings::CsrfMode::Header,
            header_present: head.headers.contains_key(&csrf.header),
            app_navigation_only: strict,
        };
        fetch::proves_origin(initiator, &head.method, demand) == Proof::Proven
    }

    /// Opens the cookies; a tombstone makes them useless, a newer generation replaces what they hold.
    fn open(&self, headers: &HeaderMap, now: crate::clock::Timestamp) -> Opened {
        let opened = self.state.jar.open(headers, now);
        let presented = opened.presented;
        let none = |useless| (None, None, useless);
        let (came, session, useless) = match opened.state {
            lifecycle::State::Open(session) => match self.state.refresh.recognise(&session) {
                Recognised::Newest => {
                    let session: Arc<UserSession> = Arc::from(session);
                    (Some(Arc::clone(&session)), Some(session), false)
                }
                Recognised::Successor(newest) => (Some(Arc::from(session)), Some(newest), false),
                Recognised::Ended | Recognised::Reused => none(true),
            },
            lifecycle::State::Over(ended, session) => {
                self.state.refresh.passed(
                    &session,
                    match ended {
                        Ended::Expired => EndReason::Expired,
                        Ended::RefreshLimit => EndReason::RefreshLimit,
                        Ended::Idle => EndReason::Idle,
                    },
                );
                none(true)
            }
            lifecycle::State::Broken => none(true),
            lifecycle::State::Absent => none(false),
        };
        Opened { presented, came, session, useless }
    }

    fn tell_user(&mut self, session: Option<&UserSession>) {
        self.sub_hash = session.map(|session| self.state.sub_hash(&session.subject));
    }

    fn view<'a>(
        &'a self,
        head: &'a RequestHeader,
        arrived: &'a Arrived,
        now: crate::clock::Timestamp,
    ) -> RequestView<'a> {
        RequestView {
            method: &head.method,
            path: &arrived.path,
            query: arrived.query.as_deref(),
            host: &arrived.host,
            headers: &head.headers,
            client: self.client,
            request_id: &self.request_id,
            now,
        }
    }

    /// The cookies that go out on whatever answer goes out: the newest generation known, decided as late as can be.
    fn late_cookies(&self) -> Vec<HeaderValue> {
        let Phase::Forward(forward) = &self.phase else { return Vec::new() };
        let mut cookies = forward.expire.clone();
        cookies.extend(forward.session.iter().flat_map(|used| self.session_cookies(used)));
        cookies
    }

    /// The session's newest generation, when the browser does not have it yet, or its last use.
    fn session_cookies(&self, used: &Used) -> Vec<HeaderValue> {
        let state = &self.state;
        if state.refresh.is_ended(used.session.id) {
            return Vec::new();
        }
        let newest = state.refresh.newest(used.session.id);
        let newest = newest.filter(|newest| newest.generation >= used.session.generation);
        let newest = newest.as_ref().unwrap_or(&used.session);
        if newest.generation <= used.presented_generation && !used.touch {
            return Vec::new();
        }
        let now = state.clock.now();
        let mut sealed = UserSession::clone(newest);
        sealed.touch(now);
        match state.jar.seal(&sealed, &used.presented, now) {
            Ok(fresh) => {
                state.metrics.observe_cookie_bytes(fresh.iter().map(HeaderValue::len).sum());
                fresh
            }
            Err(too_large) => {
                tracing::error!(target: "sidegate", event = "session_too_large", request_id = %self.request_id, sizes = %too_large);
                Vec::new()
            }
        }
    }

    async fn respond(&mut self, session: &mut Session, response: LocalResponse) -> Result<()> {
        self.phase = Phase::Answered;
        respond::write(session, response, self.public().is_https(), self.cors.as_ref()).await
    }

    fn render(&mut self, problem: Problem, cookies: Vec<HeaderValue>) -> LocalResponse {
        if problem.code == Code::Csrf {
            self.state.metrics.observe_csrf_refused();
            audit::csrf_refused(&self.origin(), self.route.as_str(), "origin_not_proven");
        }
        self.code = Some(problem.code.as_str());
        problem.render(self.shape, &self.request_id).set_cookies(cookies)
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx::new(self.state.load_full())
    }

    fn init_downstream_modules(&self, _modules: &mut pingora::modules::http::HttpModules) {
        // No compression here: bodies travel as they are.
    }

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<()> {
        // Silence of the client is `net::guard`'s business, which knows a body from a tunnel.
        session.set_read_timeout(None);
        session.set_write_timeout(Some(ctx.state.settings.body_idle));
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        let outcome = AssertUnwindSafe(ctx.decide(session)).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(target: "sidegate", event = "panic_caught", request_id = %ctx.request_id);
            Problem::new(Code::Internal, "This is a bug in the gateway; the log has it under the request id.").into()
        });
        match outcome {
            Outcome::Forward(forward) => {
                ctx.phase = Phase::Forward(forward);
                Ok(false)
            }
            Outcome::Respond(response) => {
                ctx.respond(session, response).await?;
                Ok(true)
            }
            Outcome::Refuse(problem, cookies) => {
                let response = ctx.render(problem, cookies);
                ctx.respond(session, response).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, _session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        let Phase::Forward(forward) = &ctx.phase else {
            return Error::e_explain(ErrorType::InternalError, "forwarding was not decided");
        };
        ctx.upstream_started.get_or_insert_with(Instant::now);
        match upstream::peer(forward).await {
            Ok(peer) => Ok(Box::new(peer)),
            Err(_) => Err(Error::new_up(ErrorType::ConnectNoRoute)),
        }
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if let Phase::Forward(forward) = &ctx.phase {
            upstream::rewrite(request, &ctx.state, forward, &ctx.request_id);
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        _end: bool,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let (Phase::Forward(forward), Some(body)) = (&ctx.phase, body) else { return Ok(()) };
        if session.was_upgraded() {
            return Ok(());
        }
        ctx.body_bytes = ctx.body_bytes.saturating_add(u64::try_from(body.len()).unwrap_or(u64::MAX));
        match forward.route.settings.max_body {
            Some(max) if ctx.body_bytes > max => Err(Error::new_down(ErrorType::HTTPStatus(413))),
            _ => Ok(()),
        }
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        ctx.upstream_answered.get_or_insert_with(Instant::now);
        if response.status == StatusCode::SWITCHING_PROTOCOLS
            && !downstream::is_valid_switch(session.req_header(), response)
        {
            return Err(Error::new_up(ErrorType::InvalidHTTPHeader));
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let switching = response.status == StatusCode::SWITCHING_PROTOCOLS;
        if response.status.is_informational() && !switching {
            return Ok(());
        }
        let cookies = ctx.late_cookies();
        if let Phase::Forward(forward) = &ctx.phase {
            downstream::rewrite(response, &ctx.state, forward, ctx.cors.as_ref());
        }
        downstream::add_cookies(response, cookies);
        Ok(())
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Ctx,
        mut e: Box<Error>,
    ) -> Box<Error> {
        // Nothing was sent: the next address may have it, once for every address there is.
        let another = match &mut ctx.phase {
            Phase::Forward(forward) => forward.next_address(),
            Phase::Arrived | Phase::Answered => false,
        };
        e.set_retry(another);
        e
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        _session: &mut Session,
        mut e: Box<Error>,
        ctx: &mut Ctx,
        client_reused: bool,
    ) -> Box<Error> {
        // A kept-alive connection may have died under us: only what is safe to repeat is sent again, and once.
        let repeatable = matches!(&ctx.phase, Phase::Forward(forward) if forward.repeatable);
        let again = repeatable && client_reused && !ctx.retried && ctx.upstream_answered.is_none();
        ctx.retried |= again;
        if again {
            e.retry.decide_reuse(client_reused);
        } else {
            e.set_retry(false);
        }
        e
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Ctx) -> FailToProxy {
        let dead = FailToProxy { error_code: 0, can_reuse_downstream: false };
        if session.response_written().is_some_and(|head| !head.status.is_informational()) {
            return dead;
        }
        let fault = Guard::of(session.as_downstream()).and_then(Guard::fault);
        let Some(problem) = fault.map(Problem::from).or_else(|| rescue::problem(e)) else { return dead };
        let code = problem.code.status().as_u16();
        tracing::warn!(target: "sidegate", event = "forward_failed", request_id = %ctx.request_id, code = problem.code.as_str(), kind = e.etype().as_str());
        let cookies = ctx.late_cookies();
        let response = ctx.render(problem, cookies);
        session.set_keepalive(None);
        if ctx.respond(session, response).await.is_err() {
            return dead;
        }
        FailToProxy { error_code: code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, _e: Option<&Error>, ctx: &mut Ctx) {
        let head = session.req_header();
        let status = session.response_written().map_or(499, |written| written.status.as_u16());
        let duration = ctx.started.elapsed();
        let upstream = ctx.upstream_started.map(|started| {
            ctx.upstream_answered.map_or_else(|| started.elapsed(), |answered| answered.duration_since(started))
        });
        match &ctx.route {
            Label::Route(entry) => entry.metrics.observe(&head.method, status, duration, upstream),
            Label::None(kind) => {
                ctx.state.metrics.observe_no_route(*kind, MethodLabel::from(&head.method), status, duration);
            }
        }
        let trace_id = match &ctx.phase {
            Phase::Forward(forward) => forward.traceparent.as_deref().and_then(|parent| parent.split('-').nth(1)),
            Phase::Arrived | Phase::Answered => None,
        };
        telemetry::access(&AccessLine {
            request_id: &ctx.request_id,
            route: ctx.route.as_str(),
            method: head.method.as_str(),
            path: ctx.path.as_ref().map_or("", CleanPath::as_str),
            status,
            duration,
            upstream,
            client: ctx.client,
            sub_hash: ctx.sub_hash,
            trace_id,
            code: ctx.code,
        });
    }

    /// Pingora's default prints the query, which may hold a code.
    fn request_summary(&self, session: &Session, ctx: &Ctx) -> String {
        format!("{} {}", session.req_header().method, ctx.route.as_str())
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &Ctx, _error: &Error) -> bool {
        true // `forward_failed` says it, without bytes of the request
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Ctx, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}

/// None on a unix socket.
fn peer_ip(session: &Session) -> Option<IpAddr> {
    ConnectionInfo::of(session.as_downstream()).and_then(|info| info.peer).map(|peer| peer.ip().to_canonical())
}

/// The path and query of a request target; the authority of an absolute one was compared with `Host` by `net`.
fn origin_form(target: &str) -> &str {
    let rest = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"));
    match rest {
        Some(rest) => rest.find(['/', '?']).and_then(|at| rest.get(at..)).unwrap_or("/"),
        None => target,
    }
}

/// The host without port, lower case.
fn host_of(head: &RequestHeader) -> String {
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
    host.to_ascii_lowercase()
}

fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
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

/// A CORS preflight, answered here: a listed origin may, any other learns nothing.
fn preflight(head: &RequestHeader, listed: Option<&HeaderValue>) -> LocalResponse {
    let response = LocalResponse::empty(StatusCode::NO_CONTENT);
    if listed.is_none() {
        return response;
    }
    let mut response = response
        .header(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE"));
    if let Some(asked) = head.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        let harmless = asked.to_str().is_ok_and(|text| {
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b',' | b' ' | b'_'))
        });
        if harmless {
            response = response.header(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
    }
    response
}

/// The local page that a request names as its `Referer`; the start page when it names none of ours.
fn referring_page(headers: &HeaderMap, state: &State) -> ReturnTo {
    let referer = headers.get(header::REFERER).and_then(|value| value.to_str().ok());
    let local = referer.and_then(|referer| referer.strip_prefix(state.settings.public.as_str()));
    ReturnTo::parse(local.filter(|local| local.starts_with('/')), &state.settings.prefix)
}

fn with_login_url(problem: Problem, target: &ReturnTo, prefix: &str) -> Problem {
    match problem.code {
        Code::LoginRequired => problem.login_url(target.login_url(prefix)),
        _ => problem,
    }
}

fn too_large(max_body: Option<u64>, headers: &HeaderMap) -> Option<Problem> {
    let announced = headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse::<u64>().ok()?;
    (announced > max_body?)
        .then(|| Problem::new(Code::BodyTooLarge, "The request body is larger than this route takes."))
}

/// The caller's trace goes on, or one begins here.
fn traceparent(headers: &HeaderMap) -> Option<String> {
    let given = headers.get(upstream::TRACEPARENT).and_then(|value| value.to_str().ok());
    let given = given.filter(|value| forwarded::valid_traceparent(value));
    Some(given.map_or_else(|| forwarded::new_traceparent(random::bytes()), ToOwned::to_owned))
}

/// Whether the session's claims have one of the values of each.
fn meets(require: &[(String, Vec<String>)], session: &UserSession) -> bool {
    require.iter().all(|(claim, accepted)| match session.claims.get(claim) {
        Some(serde_json::Value::String(value)) => accepted.contains(value),
        Some(serde_json::Value::Array(values)) => {
            values.iter().filter_map(serde_json::Value::as_str).any(|value| accepted.iter().any(|own| own == value))
        }
        Some(serde_json::Value::Bool(value)) => accepted.iter().any(|own| *own == value.to_string()),
        Some(serde_json::Value::Number(value)) => accepted.iter().any(|own| *own == value.to_string()),
        _ => false,
    })
}
