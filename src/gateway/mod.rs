//! The only Pingora request code: each phase delegates, one decision is taken, later phases only apply it.
//!
//! ```text
//! request_filter:   arrive ─► serve ─► answer | forward
//! later phases:     apply `Forward`, nothing else
//! ```

mod arrive;
pub mod attempts;
pub mod ctx;
pub mod decide;
pub mod downstream;
pub mod endpoints;
pub mod ends;
pub mod explain;
mod fields;
mod files;
mod forward;
mod forward_auth;
pub mod live;
pub mod own_token;
pub mod placement;
pub mod rate;
mod record;
pub mod refusals;
pub mod replay;
pub mod rescue;
pub mod respond;
pub mod routes;
mod serve;
pub mod settings;
pub mod state;
pub mod step_up;
pub mod template;
pub mod upstream;
pub mod verify;

use std::os::fd::RawFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use tokio::time::Instant;

use self::ctx::{Again, Ctx, Phase};
use self::serve::Outcome;
use self::state::State;
use crate::net::Guard;
use crate::net::dial::{Line, Silence};
use crate::spans;
use crate::web::problem::{Code, Problem};

/// Not a failure: the app refused the token, a newer one is there, and the request is sent again.
const TOKEN_RENEWED: ErrorType = ErrorType::Custom("TokenRenewed");

/// Not a failure either: the app wants a better login, and the browser is told so in our words.
const LOGIN_WANTED: ErrorType = ErrorType::Custom("LoginWanted");

/// The request handler that Pingora drives.
#[derive(Debug)]
pub struct Gateway {
    state: Arc<ArcSwap<State>>,
    /// Only tells other proxies what would become of their requests.
    verifies: bool,
}

impl Gateway {
    /// Requests take the state that is in force when they arrive.
    pub fn new(state: Arc<ArcSwap<State>>) -> Self {
        Self { state, verifies: false }
    }

    /// For the listener of `[verify]`: forwards nothing, and answers the questions of other proxies.
    pub fn verifying(state: Arc<ArcSwap<State>>) -> Self {
        Self { state, verifies: true }
    }
}

/// `Connection: close` on the answer to come, when the process is on its way out. HTTP/2 has GOAWAY for that.
fn part_if_leaving(session: &mut Session, ctx: &Ctx) {
    if ctx.state.leaving.load(Ordering::Acquire) {
        session.set_keepalive(None);
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    /// Boxed: Pingora moves it by value from future to future.
    type CTX = Box<Ctx>;

    fn new_ctx(&self) -> Box<Ctx> {
        Box::new(Ctx { verifies: self.verifies, ..Ctx::new(self.state.load_full()) })
    }

    fn init_downstream_modules(&self, _modules: &mut pingora::modules::http::HttpModules) {
        // No compression here: bodies travel as they are.
    }

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Box<Ctx>) -> Result<()> {
        // Silence of the client is `net::guard`'s business, which knows a body from a tunnel; on HTTP/2 streams share a
        // connection that nobody else watches.
        session.set_read_timeout(None);
        let within = session.is_http2().then_some(ctx.state.settings.body_idle);
        session.set_write_timeout(within);
        // It need not know what an interim answer is (RFC 9110 section 15.2).
        let old = session.req_header().version == Version::HTTP_10;
        session.set_ignore_info_resp(old);
        part_if_leaving(session, ctx);
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Box<Ctx>) -> Result<bool> {
        let span = ctx.begin_trace(&session.req_header().headers);
        let outcome =
            AssertUnwindSafe(spans::within(span, ctx.serve(session))).catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!(target: "sidegate", event = "panic_caught", request_id = %ctx.request_id);
                Problem::new(Code::Internal, "This is a bug in the gateway; the log has it under the request id.")
                    .into()
            });
        match outcome {
            Outcome::Forward(mut forward) => {
                let files = forward.route.settings.files.clone();
                if files.is_none() {
                    fields::take(session, &mut forward);
                }
                ctx.phase = Phase::Forward(forward);
                let Some(files) = files else { return Ok(false) };
                ctx.serve_file(session, &files).await?;
                Ok(true)
            }
            Outcome::Respond(response) => {
                ctx.respond(session, response).await?;
                Ok(true)
            }
            Outcome::Events(user, _open) => {
                ctx.phase = Phase::Answered;
                let state = Arc::clone(&ctx.state);
                // A page that went away is no news.
                let _ = live::events(session, &state, user, ctx.cors.as_ref()).await;
                Ok(true)
            }
            Outcome::Refuse(problem, cookies) => {
                let response = ctx.render(problem, cookies);
                ctx.respond(session, response).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, _session: &mut Session, ctx: &mut Box<Ctx>) -> Result<Box<HttpPeer>> {
        let Phase::Forward(forward) = &mut ctx.phase else {
            return Error::e_explain(ErrorType::InternalError, "forwarding was not decided");
        };
        ctx.upstream_started.get_or_insert_with(Instant::now);
        let peer = upstream::peer(forward).await.map_err(|_| Error::new_up(ErrorType::ConnectNoRoute))?;
        Ok(Box::new(peer))
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        _fd: RawFd,
        digest: Option<&Digest>,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        let Phase::Forward(forward) = &ctx.phase else { return Ok(()) };
        let line = digest.and_then(Line::of).filter(|_| !forward.over_http2());
        ctx.silence = line.clone().map(|line| line.begin(forward.route.settings.read_timeout));
        if !reused && !ctx.silence.as_ref().is_some_and(Silence::reuses) {
            forward.took(true);
        }
        // A try that is not the first sends the body again.
        (ctx.request_over, ctx.body_bytes) = (session.is_body_empty(), 0);
        if let (true, Some(line)) = (forward.upgrade, &line) {
            line.hold_answer();
        }
        match &ctx.silence {
            Some(silence) if ctx.request_over => silence.listen(),
            // While the client still sends, it is not the upstream's turn. On HTTP/1.1 `net::guard` watches the client.
            Some(silence) => silence.send(session.is_http2().then_some(ctx.state.settings.body_idle)),
            None => {}
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        match &mut ctx.phase {
            Phase::Forward(forward) => {
                let fields = fields::give(session, forward)?;
                upstream::rewrite(request, fields, &ctx.state, forward, &ctx.request_id)
            }
            Phase::Arrived | Phase::Answered => {
                Error::e_explain(ErrorType::InternalError, "forwarding was not decided")
            }
        }
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        let was_over = ctx.request_over;
        ctx.request_over |= end;
        if let (false, Some(silence)) = (was_over, &ctx.silence) {
            if end { silence.sent(ctx.answering) } else { silence.heard() }
        }
        if end && body.as_ref().is_some_and(Bytes::is_empty) {
            // Pingora would write it as a chunk, which is the end of a body, and then the end once more: bytes that the
            // upstream takes for the next request. HTTP/2 often ends so.
            *body = None;
        }
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
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        if let Phase::Forward(forward) = &ctx.phase
            && upstream::wants_another_proof(&ctx.state, forward, response)
            && (forward.repeatable || forward.replayable)
            && ctx.proof == Again::NotYet
        {
            ctx.proof = Again::Now;
            return Err(Error::new_up(ErrorType::HTTPStatus(401)));
        }
        let now = Instant::now();
        ctx.upstream_answered.get_or_insert(now);
        if !downstream::has_one_end(response) {
            return Err(Error::new_up(ErrorType::InvalidHTTPHeader));
        }
        if ctx.renew_refused_token(response).await {
            return Err(Error::new_up(TOKEN_RENEWED));
        }
        ctx.step_up = ctx.challenged(response.status, &response.headers);
        if ctx.step_up.is_some() {
            return Err(Error::new_up(LOGIN_WANTED));
        }
        ctx.tie(session, response);
        if response.status == StatusCode::SWITCHING_PROTOCOLS
            && !downstream::is_valid_switch(session.req_header(), response)
        {
            return Err(Error::new_up(ErrorType::InvalidHTTPHeader));
        }
        ctx.watch_answer(session, response, now);
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        session: &mut Session,
        _body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Box<Ctx>,
    ) -> Result<Option<Duration>> {
        let Some(silence) = &ctx.silence else { return Ok(None) };
        if end {
            ctx.answer_ended(session);
        } else {
            silence.heard();
        }
        if end && ctx.until_close && silence.is_over() {
            // The end was our doing, not the upstream's: the client is not to take it for the answer's.
            return Err(Error::new_up(ErrorType::ReadTimedout));
        }
        Ok(None)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Box<Ctx>,
    ) -> Result<()> {
        let switching = response.status == StatusCode::SWITCHING_PROTOCOLS;
        if response.status.is_informational() && !switching {
            downstream::rewrite_interim(response);
            return Ok(());
        }
        // Again: the upstream may have taken its time.
        part_if_leaving(session, ctx);
        let cookies = ctx.late_cookies();
        if let Phase::Forward(forward) = &ctx.phase {
            downstream::rewrite(response, &ctx.state, forward, ctx.cors.as_ref());
        }
        downstream::add_cookies(response, cookies);
        if session.req_header().version == Version::HTTP_10 && downstream::end_by_closing(response) {
            session.set_keepalive(None);
        }
        Ok(())
    }

    async fn response_trailer_filter(
        &self,
        session: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut Box<Ctx>,
    ) -> Result<Option<Bytes>> {
        let grpc = matches!(&ctx.phase, Phase::Forward(forward) if forward.grpc) && session.is_http2();
        downstream::rewrite_trailers(trailers, grpc);
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Box<Ctx>,
        mut e: Box<Error>,
    ) -> Box<Error> {
        // Nothing was sent: the next address may have it, once for every address there is.
        let another = match &mut ctx.phase {
            Phase::Forward(forward) => {
                forward.took(false);
                forward.next_address()
            }
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
        ctx: &mut Box<Ctx>,
        client_reused: bool,
    ) -> Box<Error> {
        if ctx.proof == Again::Now {
            ctx.proof = Again::Done;
            e.set_retry(true);
            return e;
        }
        if *e.etype() == TOKEN_RENEWED {
            // The next try is a request of its own.
            ctx.upstream_answered = None;
            e.set_retry(true);
            return e;
        }
        // A kept-alive connection may have died under us: only what is safe to repeat is sent again, and once.
        let repeatable = matches!(&ctx.phase, Phase::Forward(forward) if forward.repeatable);
        let silent = ctx.silence.as_ref().is_some_and(Silence::is_over);
        // One that has begun to answer was alive.
        let answering = ctx.upstream_answered.is_some() || rescue::has_begun(&e);
        let client_reused = client_reused || ctx.silence.as_ref().is_some_and(Silence::reuses);
        let again = repeatable && client_reused && !ctx.retried && !silent && !answering;
        ctx.retried |= again;
        if again {
            e.retry.decide_reuse(client_reused);
        } else {
            e.set_retry(false);
        }
        e
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut Box<Ctx>) -> FailToProxy {
        let dead = FailToProxy { error_code: 0, can_reuse_downstream: false };
        if session.response_written().is_some_and(|head| !head.status.is_informational()) {
            return dead;
        }
        let head = session.req_header();
        let again = match &ctx.phase {
            Phase::Forward(forward) if ctx.step_up.is_some() => fields::give_again(session, forward),
            _ => None,
        };
        let headers = again.as_ref().unwrap_or(&head.headers);
        if let Some(response) = ctx.instead_of_challenge(&head.method, headers) {
            let code = response.status.as_u16();
            session.set_keepalive(None);
            return match ctx.respond(session, response).await {
                Ok(()) => FailToProxy { error_code: code, can_reuse_downstream: false },
                Err(_) => dead,
            };
        }
        let fault = Guard::of(session.as_downstream()).and_then(Guard::fault);
        let silent = ctx.silence.as_ref().is_some_and(Silence::is_over);
        let stuck = ctx.silence.as_ref().is_some_and(Silence::is_stuck);
        let silent = silent.then(|| if ctx.request_over || stuck { rescue::timed_out() } else { rescue::stalled() });
        let problem = fault.map(Problem::from).or(silent).or_else(|| rescue::problem(e));
        let Some(problem) = problem else { return dead };
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

    async fn logging(&self, session: &mut Session, _e: Option<&Error>, ctx: &mut Box<Ctx>) {
        ctx.record(session);
    }

    /// Pingora's default prints the query, which may hold a code.
    fn request_summary(&self, session: &Session, ctx: &Box<Ctx>) -> String {
        format!("{} {}", session.req_header().method, ctx.route.as_str())
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &Box<Ctx>, _error: &Error) -> bool {
        true // `forward_failed` says it, without bytes of the request
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Box<Ctx>, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}
