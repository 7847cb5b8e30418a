//! What becomes of a request: one decision, taken before anything is sent.
//!
//! ```text
//! arrive ─► endpoint | route ─► open the session ─► decide ─► refresh if due ─► answer | forward
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use super::arrive::{Request, origin_form};
use super::ctx::{Ctx, Forward, Label, Used};
use super::decide::{Caller, Decision, Presence, Rules, decide};
use super::endpoints::{self, Answer, Endpoint, Visitor, renew};
use super::live::OpenStream;
use super::own_token::{self, Lack};
use super::rate;
use super::routes::Matched;
use super::settings::{Access, OnAnonymous};
use super::state::{RouteEntry, State};
use super::step_up::{self, Asker, Wanted};
use super::verify::{self, Doubted, own_target, verified};
use crate::clock::Timestamp;
use crate::metrics::NoRoute;
use crate::refresh::coordinator::Freshened;
use crate::refresh::engine::Recognised;
use crate::refresh::policy::{Demand, EndReason};
use crate::session::jar::{Marker, Presented};
use crate::session::ticket::Ticket;
use crate::session::{Session as UserSession, lifecycle};
use crate::web::pages;
use crate::web::problem::{Code, Problem};
use crate::web::response::LocalResponse;
use crate::web::return_to::ReturnTo;

/// More than any form that our endpoints take.
const ENDPOINT_BODY: u64 = 64 * 1024;
/// For the whole of it.
const FORM_TIMEOUT: Duration = Duration::from_secs(10);

/// What `request_filter` comes to.
pub(super) enum Outcome {
    Forward(Box<Forward>),
    Respond(LocalResponse),
    /// The event stream of this session.
    Events(Arc<UserSession>, OpenStream),
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
    /// The store has the session, and does not answer.
    away: Option<Ticket>,
    /// The session has gone on long ago: the browser may have the newer cookie by now, under the same name.
    straggler: bool,
}

impl Ctx {
    /// Everything up to the decision, and the decision.
    pub(super) async fn serve(&mut self, session: &mut Session) -> Outcome {
        if self.verifies {
            return self.answer_question(session).await;
        }
        if let Err(problem) = self.read_body(session).await {
            // Read all the same: the answer has the form and the id that the request asks for.
            return match self.arrive(session) {
                Ok(_) => problem.into(),
                Err(problem) => problem.into(),
            };
        }
        let request = match self.arrive(session) {
            Ok(request) => request,
            Err(problem) if problem.code == Code::HeadersTooLarge => {
                // DOS-05: cookies that grew too large would refuse the user for ever.
                let presented = self.state.jar.presented(&session.req_header().headers);
                return Outcome::Refuse(problem, self.state.jar.expire_all(&presented));
            }
            Err(problem) => return problem.into(),
        };
        let state = Arc::clone(&self.state);
        match below(request.path.as_str(), &state.settings.prefix) {
            Some(rest) => self.endpoint(&state, &request, rest).await,
            None => self.route(&state, &request).await,
        }
    }

    /// Reads the body, whole, of a request to an endpoint of ours: kept when the endpoint takes a form; otherwise only a
    /// body that does not say how long it is, before anything is done for it.
    async fn read_body(&mut self, session: &mut Session) -> Result<(), Problem> {
        let bodiless = session.is_body_empty();
        let head = session.req_header();
        let target = std::str::from_utf8(head.raw_path()).map(origin_form).unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default();
        let endpoint = below(path, &self.state.settings.prefix).and_then(Endpoint::find);
        let settings = &self.state.settings;
        let Some(endpoint) = endpoint.filter(|endpoint| endpoint.is_on(settings)) else { return Ok(()) };
        let form = head.method == Method::POST && endpoint.reads_form(settings);
        let says = head.headers.contains_key(header::CONTENT_LENGTH) || head.headers.contains_key(header::EXPECT);
        if !form && (bodiless || says || endpoint == Endpoint::Renew) {
            return Ok(());
        }
        let large = || Problem::new(Code::BodyTooLarge, "The request body is larger than this path takes.");
        if too_large(Some(ENDPOINT_BODY), &head.headers).is_some() {
            return Err(large());
        }
        if head.headers.contains_key(header::EXPECT) && head.version != Version::HTTP_10 {
            let _ = session.as_downstream_mut().write_continue_response().await;
        }
        let mut body = BytesMut::new();
        let read = async {
            while let Some(piece) = session.as_downstream_mut().read_request_body().await.map_err(|_| ())? {
                body.extend_from_slice(&piece);
                if u64::try_from(body.len()).is_ok_and(|length| length > ENDPOINT_BODY) {
                    return Ok(false);
                }
            }
            Ok::<_, ()>(true)
        };
        match tokio::time::timeout(FORM_TIMEOUT, read).await {
            Ok(Ok(true)) if form => self.form = body.freeze(),
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return Err(large()),
            Ok(Err(())) => return Err(Problem::new(Code::BadRequest, "The request body did not arrive.")),
            Err(_) => return Err(Problem::new(Code::RequestTimeout, "The request body did not arrive in time.")),
        }
        Ok(())
    }

    /// One of our own endpoints.
    async fn endpoint(&mut self, state: &Arc<State>, request: &Request<'_>, rest: &str) -> Outcome {
        self.route = Label::None(NoRoute::Endpoint);
        let endpoint = Endpoint::find(rest).filter(|endpoint| endpoint.is_on(&state.settings));
        let caller = self.caller(request, false, endpoint == Some(Endpoint::Events));
        if caller.preflight {
            return Outcome::Respond(preflight(request.head, self.cors.as_ref()));
        }
        let Some(endpoint) = endpoint else {
            return Problem::new(Code::NoRoute, "There is no such endpoint.").into();
        };
        if let Some(problem) = elsewhere(state, request) {
            return problem.into();
        }
        // What only passes through is not read.
        let most = (endpoint != Endpoint::Renew).then_some(ENDPOINT_BODY);
        if let Some(problem) = too_large(most, &request.head.headers) {
            return problem.into();
        }
        let opened = self.open(&request.head.headers, true, request.now).await;
        let Opened { presented, came, session, away, straggler, .. } = opened;
        // Its answer must not clear the newer cookie; a logout does, as it is asked to.
        let keeps = straggler && matches!(endpoint, Endpoint::Session | Endpoint::Refresh | Endpoint::Renew);
        let presented = if keeps { Presented::default() } else { presented };
        let visitor = Visitor { session, came, presented, caller, away };
        match endpoint.serve(state, &self.view(request), visitor).await {
            Answer::Respond(response) => Outcome::Respond(response),
            Answer::Events(session, open) => Outcome::Events(session, open),
            Answer::Refuse(problem, cookies) => {
                Outcome::Refuse(with_login_url(problem, &ReturnTo::home(), &state.settings.prefix), cookies)
            }
        }
    }

    /// The route that takes the request.
    fn find_route(&mut self, state: &State, request: &Request<'_>) -> Result<Arc<RouteEntry>, Problem> {
        let method = &request.head.method;
        match state.routes.find(&request.path, &request.host, (!request.preflight).then_some(method)) {
            Matched::Route(entry) => {
                self.route = Label::Route(Arc::clone(&entry.0));
                Ok(Arc::clone(&entry.0))
            }
            Matched::MethodNotAllowed { route, allow } => {
                self.route = Label::Route(Arc::clone(&route.0));
                Err(Problem::new(Code::MethodNotAllowed, "This path does not take the method.").allow(allow))
            }
            Matched::None => {
                self.route = Label::None(NoRoute::Unmatched);
                Err(Problem::new(Code::NoRoute, "No route takes this path."))
            }
        }
    }

    pub(super) async fn route(&mut self, state: &Arc<State>, request: &Request<'_>) -> Outcome {
        let entry = match self.find_route(state, request) {
            Ok(entry) => entry,
            Err(problem) => return problem.into(),
        };
        let headers = &request.head.headers;
        let route = &entry.settings;
        if let Some(problem) = too_large(route.max_body, headers) {
            return problem.into();
        }
        if let Some(problem) = elsewhere(state, request).filter(|_| route.access != Access::Public) {
            return problem.into();
        }
        // Public routes have nothing to do with sessions: no cookie is opened for them.
        let opened = match route.access {
            Access::Public => None,
            Access::Session | Access::Optional => Some(self.open(headers, false, request.now).await),
        };
        let presence = match &opened {
            Some(Opened { session: Some(_), .. } | Opened { away: Some(_), .. }) => Presence::Live,
            _ => Presence::Absent,
        };
        // A browser cannot put a header on a handshake; its Origin is judged instead.
        let caller = self.caller(request, route.on_anonymous == OnAnonymous::Unauthorized, request.websocket);
        let expire = match &opened {
            Some(opened) if opened.useless => state.jar.expire(&opened.presented),
            _ => Vec::new(),
        };
        let decision = decide(Rules::of(route, state.embedded), presence, caller, &request.head.method);
        // What another site makes a browser send does not use up its user's share.
        let foreign = matches!(&decision, Decision::Refuse(problem) if problem.code == Code::Csrf);
        let user = opened.as_ref().and_then(|opened| opened.session.as_deref());
        if let Some(problem) = (!foreign).then(|| self.too_many(&entry, user, request.now)).flatten() {
            return problem.into();
        }
        match decision {
            Decision::ForwardAnonymous => self.forward(request, entry, None, expire),
            Decision::ForwardWithSession => match opened {
                Some(Opened { away: Some(_), .. }) => endpoints::store_unavailable().into(),
                Some(opened) => self.with_session(state, request, entry, opened, caller).await,
                None => self.forward(request, entry, None, expire),
            },
            Decision::Preflight => Outcome::Respond(preflight(request.head, self.cors.as_ref())),
            decision => turned_away(state, request, decision, caller, expire),
        }
    }

    /// Whether the route's `rate_limit` is used up, for the session or else for the address. Nobody's on a unix socket.
    fn too_many(&self, entry: &RouteEntry, user: Option<&UserSession>, now: Timestamp) -> Option<Problem> {
        let limiter = entry.limiter.as_ref()?;
        let caller = match user {
            Some(user) => rate::Caller::Session(user.id),
            None => rate::Caller::at(Some(self.client?)),
        };
        let wait = limiter.admit(caller, now).err()?;
        let seconds = wait.as_millis().div_ceil(1000).max(1);
        let problem = Problem::new(Code::RateLimited, "Too many requests. Try again later.");
        Some(problem.retry_after(u64::try_from(seconds).unwrap_or(u64::MAX)))
    }

    /// Freshens the session and forwards with it.
    async fn with_session(
        &self,
        state: &Arc<State>,
        request: &Request<'_>,
        entry: Arc<RouteEntry>,
        opened: Opened,
        caller: Caller,
    ) -> Outcome {
        // As it came, not its successor: only what the browser shows counts as delivered.
        let Some(user) = opened.came else {
            return Problem::new(Code::Internal, "A session was decided on that is not there.").into();
        };
        let (route, headers) = (&entry.settings, &request.head.headers);
        let demand = match route.max_token_age {
            Some(age) => Demand::OlderThan(age),
            None => Demand::IfDue,
        };
        let fresh = match state.refresh.freshen(Arc::clone(&user), demand).await {
            Freshened::Use { session, .. } => session,
            Freshened::Exhausted { session, .. } if route.max_token_age.is_none() => session,
            end @ (Freshened::Over { .. } | Freshened::Exhausted { .. }) => {
                let clear = match end {
                    Freshened::Over { reason: EndReason::Dead(_) } => {
                        let target = own_target(&request.path, request.query.as_deref());
                        let doubted = Doubted {
                            headers,
                            replayable: is_replayable(request),
                            mode: route.verify,
                            target: &target,
                            now: request.now,
                        };
                        match verified(state, doubted, &user).await {
                            Ok(believed) if believed || route.access == Access::Optional => believed,
                            // 401 even for a page: this request cannot come again, the next one will tell.
                            Ok(_) => {
                                let told = "The session seems to be over. Log in at login_url.";
                                let problem = Problem::new(Code::LoginRequired, told);
                                return with_login_url(problem, &request.return_to(state), &state.settings.prefix)
                                    .into();
                            }
                            Err(redirect) => return Outcome::Respond(redirect),
                        }
                    }
                    // The browser may have the newer cookie by now, under the same name.
                    Freshened::Over { reason: EndReason::Reuse } => false,
                    // One that is only too old for this route goes on elsewhere.
                    _ => matches!(end, Freshened::Over { .. }),
                };
                let expire = if clear { state.jar.expire(&opened.presented) } else { Vec::new() };
                if route.access == Access::Optional {
                    return self.forward(request, entry, None, expire);
                }
                return over(state, request, &entry, caller, expire);
            }
            Freshened::Bring => return lead_to_token(state, request, &user),
            Freshened::Unavailable { retry_after } => {
                return endpoints::session::unavailable(retry_after.as_secs()).into();
            }
            Freshened::Refused => return endpoints::session::refused().into(),
        };
        // The refresh may have taken its time, and somebody ended the session meanwhile.
        if state.ends.was_ended_outside(&fresh) {
            let expire = state.jar.expire(&opened.presented);
            if route.access == Access::Optional {
                return self.forward(request, entry, None, expire);
            }
            return over(state, request, &entry, caller, expire);
        }
        let forbidden = !meets(&route.require, &fresh);
        let touch = state.jar.needs_touch(&fresh, request.now);
        if touch && fresh.ticket.is_some() {
            let mut touched = UserSession::clone(&fresh);
            touched.touch(request.now);
            state.uses.note(&touched);
            state.vault.write_later(touched);
        }
        let wanted = Wanted::of_route(route).filter(|wanted| !wanted.is_met(&fresh, request.now));
        let mut used = Used {
            presented: opened.presented,
            presented_generation: user.generation,
            session: fresh,
            touch,
            caller,
            own: None,
        };
        if forbidden {
            let problem = Problem::new(Code::Forbidden, "The signed-in user may not use this.");
            return Outcome::Refuse(problem, self.cookies_of(&used));
        }
        if let Some(wanted) = wanted {
            let (method, headers) = (&request.head.method, &request.head.headers);
            let asker = Asker { route, caller, method, headers, return_to: request.return_to(state) };
            return step_up::answer(state, asker, &wanted, true, self.cookies_of(&used));
        }
        match own_token::token_for(state, route, &used.session, &user).await {
            Ok(own) => used.own = own,
            Err(Lack::Told(problem)) => return Outcome::Refuse(problem, self.cookies_of(&used)),
            Err(Lack::Over(reason)) => {
                let dead = matches!(reason, EndReason::Dead(_)) && !state.settings.single_replica;
                // In doubt, the refresh of another request says whether the browser has a newer cookie.
                let expire =
                    if dead || reason == EndReason::Reuse { Vec::new() } else { state.jar.expire(&used.presented) };
                if route.access == Access::Optional {
                    return self.forward(request, entry, None, expire);
                }
                return over(state, request, &entry, caller, expire);
            }
        }
        // So may that.
        if used.own.is_some() && state.ends.is_over(&used.session) {
            let expire = state.jar.expire(&used.presented);
            if route.access == Access::Optional {
                return self.forward(request, entry, None, expire);
            }
            return over(state, request, &entry, caller, expire);
        }
        self.forward(request, entry, Some(used), Vec::new())
    }

    /// Opens the cookies; a tombstone makes them useless, a newer generation replaces what they hold. `whole`: the
    /// browser sends all of them here.
    async fn open(&mut self, headers: &HeaderMap, whole: bool, now: Timestamp) -> Opened {
        let opened = self.state.vault.open(headers, whole, now).await;
        let presented = opened.presented;
        match opened.state {
            lifecycle::State::Open(came) => {
                // Another replica may have seen the user since.
                self.state.uses.note(&came);
                let session = match self.state.refresh.recognise(&came) {
                    Recognised::Current | Recognised::Forgiven => Arc::clone(&came),
                    Recognised::Newer(newest) => {
                        if came.ticket.is_some() {
                            // The store was away when it was made.
                            self.state.vault.write_later(UserSession::clone(&newest));
                        }
                        newest
                    }
                    Recognised::Reused { ends: true } => {
                        self.state.ends.spread(came.id);
                        return useless(presented);
                    }
                    Recognised::Ended => return useless(presented),
                    Recognised::Reused { ends: false } => return Opened { straggler: true, ..nothing(presented) },
                };
                if self.state.ends.was_ended_outside(&session) {
                    return useless(presented);
                }
                self.sub_hash = Some(self.state.sub_hash(&session));
                Opened { session: Some(session), came: Some(came), ..nothing(presented) }
            }
            lifecycle::State::Absent => nothing(presented),
            lifecycle::State::Kept(ticket) => Opened { away: Some(ticket), ..nothing(presented) },
            lifecycle::State::Broken => useless(presented),
            lifecycle::State::Over(why, session) => {
                let reason = match why {
                    lifecycle::Ended::Expired => EndReason::Expired,
                    lifecycle::Ended::RefreshLimit => EndReason::RefreshLimit,
                    lifecycle::Ended::Idle => EndReason::Idle,
                };
                self.state.refresh.came_too_late(&session, reason);
                useless(presented)
            }
        }
    }
}

/// Cookies came that hold nothing that counts.
fn useless(presented: Presented) -> Opened {
    Opened { useless: true, ..nothing(presented) }
}

/// No session.
fn nothing(presented: Presented) -> Opened {
    Opened { presented, came: None, session: None, useless: false, away: None, straggler: false }
}

fn is_replayable(request: &Request<'_>) -> bool {
    verify::is_replayable(&request.head.method, request.head.version, &request.head.headers)
}

/// The refresh token has to be spent, and is in a cookie that the browser sends only below the prefix: it is led there,
/// and back. What it cannot send again is told to fetch it by itself.
fn lead_to_token(state: &Arc<State>, request: &Request<'_>, user: &UserSession) -> Outcome {
    let marker = state.jar.marker(&request.head.headers, request.now);
    let dances = marker.map_or(0, |marker| marker.dances);
    let goes = dances < renew::MOST_DANCES && is_replayable(request);
    let way = goes
        .then(|| renew::way(state, user.id, &own_target(&request.path, request.query.as_deref()), request.now))
        .flatten();
    let Some(way) = way else {
        let problem = Problem::new(
            Code::LoginRequired,
            "The access token is over. Send POST to the refresh endpoint and try again, or log in at login_url.",
        );
        return Outcome::Refuse(with_login_url(problem, &request.return_to(state), &state.settings.prefix), Vec::new());
    };
    let (handle, hops) = marker.map_or(([0; 8], 0), |marker| (marker.handle, marker.hops));
    let marked = state.jar.mark(Marker { handle, hops, dances: dances + 1 }, request.now);
    Outcome::Respond(LocalResponse::redirect(StatusCode::TEMPORARY_REDIRECT, &way).set_cookies(marked))
}

/// The answer to a request whose session turned out to be over while it was refreshed.
fn over(state: &State, request: &Request<'_>, entry: &RouteEntry, caller: Caller, expire: Vec<HeaderValue>) -> Outcome {
    // The hop has nothing to bring: the cookie came, and it is dead.
    let caller = Caller { cross_site: false, typed_return: false, ..caller };
    let decision = decide(Rules::of(&entry.settings, state.embedded), Presence::Absent, caller, &request.head.method);
    turned_away(state, request, decision, caller, expire)
}

/// The answer to a request that is not forwarded.
fn turned_away(
    state: &State,
    request: &Request<'_>,
    decision: Decision,
    caller: Caller,
    expire: Vec<HeaderValue>,
) -> Outcome {
    let prefix = &state.settings.prefix;
    let headers = &request.head.headers;
    match decision {
        Decision::Hop => Outcome::Respond(pages::hop(request.return_to(state).as_str()).set_cookies(expire)),
        Decision::Login(status) => {
            // The body of a POST is not repeated: back to the page that it came from.
            let target =
                if status == StatusCode::SEE_OTHER { referring_page(headers, state) } else { request.return_to(state) };
            Outcome::Respond(LocalResponse::redirect(status, &target.login_url(prefix)).set_cookies(expire))
        }
        Decision::Refuse(problem) => {
            let target = if caller.navigation { request.return_to(state) } else { referring_page(headers, state) };
            let expire = if problem.code == Code::Csrf { Vec::new() } else { expire };
            Outcome::Refuse(with_login_url(problem, &target, prefix), expire)
        }
        Decision::ForwardAnonymous | Decision::ForwardWithSession | Decision::Preflight => {
            Problem::new(Code::Internal, "A request to be forwarded was turned away.").into()
        }
    }
}

/// Sessions live on the public origin. On another host of ours `Sec-Fetch-Site: same-origin` speaks of that host's
/// pages, which prove nothing here.
fn elsewhere(state: &State, request: &Request<'_>) -> Option<Problem> {
    (request.host != state.settings.public.host())
        .then(|| Problem::new(Code::WrongHost, "There are no sessions on this host."))
}

fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// A CORS preflight, answered here: a listed origin may, any other learns nothing.
fn preflight(head: &RequestHeader, listed: Option<&HeaderValue>) -> LocalResponse {
    let response = LocalResponse::empty(StatusCode::NO_CONTENT);
    if listed.is_none() {
        return response;
    }
    let mut response = response
        .header(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE"));
    let asked = head.headers.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS).into_iter();
    let asked = asked.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).map(str::trim_ascii);
    // Names only, and no `*`, which would mean all of them.
    let names: Vec<&str> = asked.filter(|name| HeaderName::try_from(*name).is_ok() && !name.contains('*')).collect();
    if let (false, Ok(names)) = (names.is_empty(), HeaderValue::try_from(names.join(", "))) {
        response = response.header(header::ACCESS_CONTROL_ALLOW_HEADERS, names);
    }
    response
}

/// The local page that a request names as its `Referer`; the start page when it names none of ours.
pub(super) fn referring_page(headers: &HeaderMap, state: &State) -> ReturnTo {
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
        .then(|| Problem::new(Code::BodyTooLarge, "The request body is larger than this path takes."))
}

/// Whether the session's claims have one of the values of each.
fn meets(require: &[(String, Vec<String>)], session: &UserSession) -> bool {
    require.iter().all(|(claim, accepted)| match session.claim(claim).as_deref() {
        Some(serde_json::Value::String(value)) => accepted.contains(value),
        Some(serde_json::Value::Array(values)) => {
            values.iter().filter_map(serde_json::Value::as_str).any(|value| accepted.iter().any(|own| own == value))
        }
        Some(serde_json::Value::Bool(value)) => accepted.iter().any(|own| *own == value.to_string()),
        Some(serde_json::Value::Number(value)) => accepted.iter().any(|own| *own == value.to_string()),
        _ => false,
    })
}
