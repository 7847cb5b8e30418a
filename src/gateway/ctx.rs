//! What one request carries from phase to phase.
//!
//! ```text
//! Arrived => Answered      a local answer went out
//! Arrived => Forward       the request goes upstream, exactly as Forward says
//! ```

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session as Downstream;
use tokio::time::Instant;

use super::decide::Caller;
use super::live::{self, Tied};
use super::respond;
use super::state::{Pick, RouteEntry, State, Target};
use super::step_up::Wanted;
use crate::clock::Timestamp;
use crate::metrics::NoRoute;
use crate::net::ConnectionInfo;
use crate::net::dial::{LINGER, Silence};
use crate::oidc::types::AccessToken;
use crate::session::Session;
use crate::session::jar::Presented;
use crate::spans;
use crate::telemetry::{SubHash, audit};
use crate::web::forwarded;
use crate::web::origin::Origin;
use crate::web::path::CleanPath;
use crate::web::problem::{Code, Problem, Shape};
use crate::web::response::LocalResponse;

/// One request's context.
#[derive(Debug)]
pub struct Ctx {
    /// The configuration in force when the request arrived; a reload does not change it under way.
    pub state: Arc<State>,
    pub started: Instant,
    /// When the first byte of the upstream's answer came, counted from the connect.
    pub upstream_started: Option<Instant>,
    pub upstream_answered: Option<Instant>,
    pub request_id: String,
    /// None on a unix socket.
    pub client: Option<IpAddr>,
    /// The path as it was judged, for the log; the raw one is never logged.
    pub path: Option<CleanPath>,
    pub route: Label,
    /// Which form our own answers take.
    pub shape: Shape,
    /// Set when the answer goes to a listed CORS origin.
    pub cors: Option<HeaderValue>,
    pub sub_hash: Option<SubHash>,
    /// The `code` of the problem that was answered.
    pub code: Option<&'static str>,
    pub phase: Phase,
    /// The body of a request to an endpoint that takes a form.
    pub form: Bytes,
    /// Bytes of the request body so far, for `max_body`.
    pub body_bytes: u64,
    /// A dead kept-alive connection was already replaced once.
    pub retried: bool,
    /// The app refused the login that the request came with: what it wants.
    pub step_up: Option<Wanted>,
    /// Another proxy asks, on the listener of `[verify]`: nothing is forwarded.
    pub verifies: bool,
    /// Of the request that it asks about.
    pub asked_method: Option<Method>,
    /// The request is sent once more, with the nonce that the upstream wants.
    pub proof: Again,
    /// Set when the request is traced.
    pub traced: Option<Traced>,
    /// What was to be forwarded as `traceparent` when it came to an answer of ours.
    pub traceparent: Option<String>,
    /// Ends the connection with the session, once it has become a tunnel or a stream.
    pub tied: Option<Tied>,
    /// Watches over the upstream's silence.
    pub silence: Option<Silence>,
    /// The client has sent all of its request.
    pub request_over: bool,
    /// The head of the final answer came.
    pub answering: bool,
    /// The answer's end is the connection's, which proves nothing.
    pub until_close: bool,
}

/// A repetition that happens at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    NotYet,
    /// Decided, and about to happen.
    Now,
    Done,
}

/// The spans of a traced request.
#[derive(Debug)]
pub struct Traced {
    /// The request's own.
    pub context: spans::Context,
    /// Of what is forwarded.
    pub upstream: spans::Context,
    pub began: Timestamp,
}

/// The route's name in log and metric: bounded.
#[derive(Clone, Debug)]
pub enum Label {
    None(NoRoute),
    Route(Arc<RouteEntry>),
}

/// Where the request stands.
#[derive(Debug)]
pub enum Phase {
    Arrived,
    Answered,
    Forward(Box<Forward>),
}

/// The only thing that later phases act on.
#[derive(Debug)]
pub struct Forward {
    pub route: Arc<RouteEntry>,
    /// As they were judged.
    pub path: CleanPath,
    pub query: Option<String>,
    /// The user's session, when its token or identity goes along.
    pub session: Option<Used>,
    /// The session's token in the header that the route names.
    pub credential: Option<(HeaderName, HeaderValue)>,
    /// The origin that the latest proof of possession was made for.
    pub proven_for: Option<String>,
    pub upgrade: bool,
    /// A call of gRPC, which needs HTTP/2 and its trailers all the way; gRPC-web does not.
    pub grpc: bool,
    /// The client would take events: with an upstream that speaks HTTP/2 the only hint that silence is natural.
    pub event_stream: bool,
    /// GET or HEAD without a body: may be sent again when a kept-alive connection was dead.
    pub repeatable: bool,
    /// May be sent again, once, after the app refused the token.
    pub replayable: bool,
    /// Cookies to expire on the answer.
    pub expire: Vec<HeaderValue>,
    pub forwarded_for: HeaderValue,
    pub traceparent: Option<String>,
    /// The client's, on their way to the upstream.
    pub fields: Fields,
    /// Where this try begins to look among the route's upstreams and their addresses.
    pub turn: usize,
    /// Where this try goes.
    pub pick: Option<Pick>,
    /// Connects that failed so far.
    pub failed: usize,
}

/// Where the client's fields are. Pingora copies a request's head for the upstream, and takes out of the copy what
/// [`super::upstream::rewrite`] takes out as well; what is moved need not be copied.
pub enum Fields {
    /// In Pingora's copy.
    Copied,
    /// Here. Pingora has a head without them.
    Taken(HeaderMap),
    /// Gone with a try before this one; the head is read again.
    Spent,
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Cookies are among them.
        f.write_str(match self {
            Self::Copied => "Copied",
            Self::Taken(_) => "Taken",
            Self::Spent => "Spent",
        })
    }
}

/// A session in use, with what its cookie looked like when it came.
#[derive(Debug)]
pub struct Used {
    /// As the browser presented it.
    pub presented: Presented,
    pub presented_generation: u64,
    /// The newest generation when the request was forwarded.
    pub session: Arc<Session>,
    /// The idle time-out wants the last use sealed again.
    pub touch: bool,
    /// Who sent the request.
    pub caller: Caller,
    /// The token of the route's own, where it has one.
    pub own: Option<AccessToken>,
}

impl Forward {
    /// The upstream of this try.
    pub fn target(&self) -> Option<&Target> {
        self.route.targets.get(self.pick?.index)
    }

    /// Takes note of whether this try's upstream could be connected to.
    pub fn took(&self, connected: bool) {
        if let Some(pick) = self.pick {
            self.route.took(pick, connected);
        }
    }

    /// The upstream of this try is spoken to in HTTP/2.
    pub fn over_http2(&self) -> bool {
        self.target().is_some_and(|target| target.http2 || (self.grpc && target.tls))
    }

    /// Moves on to the next address; false when every one was tried.
    pub fn next_address(&mut self) -> bool {
        self.failed += 1;
        self.turn = self.turn.wrapping_add(1);
        self.failed < self.route.known_addresses()
    }
}

impl Ctx {
    /// A request that was not read yet.
    pub fn new(state: Arc<State>) -> Self {
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
            form: Bytes::new(),
            body_bytes: 0,
            retried: false,
            step_up: None,
            verifies: false,
            asked_method: None,
            proof: Again::NotYet,
            traced: None,
            traceparent: None,
            tied: None,
            silence: None,
            request_over: false,
            answering: false,
            until_close: false,
        }
    }

    /// Begins the request's span, when it is to be traced.
    pub(super) fn begin_trace(&mut self, headers: &HeaderMap) -> Option<spans::Context> {
        let context = self.state.tracer.begin(forwarded::traceparent(headers).as_deref())?;
        let began = self.state.tracer.now();
        self.traced = Some(Traced { upstream: context.child(), context: context.clone(), began });
        Some(context)
    }

    /// Answers the request ourselves.
    ///
    /// # Errors
    /// When the client is gone.
    pub(super) async fn respond(&mut self, session: &mut Downstream, response: LocalResponse) -> Result<()> {
        if let Phase::Forward(forward) = std::mem::replace(&mut self.phase, Phase::Answered) {
            self.traceparent = forward.traceparent;
        }
        let mut response = response;
        response.finish(self.public().is_https());
        if let Label::Route(entry) = &self.route {
            // The route's own fields stand on every answer of the route; what guards ours stays as it is.
            for (name, value) in &entry.settings.response_headers {
                response.headers.entry(name).or_insert_with(|| value.clone());
            }
        }
        respond::write(session, response, self.cors.as_ref()).await
    }

    /// The document of a refusal, counted and logged if it is the kind that is.
    pub(super) fn render(&mut self, problem: Problem, cookies: Vec<HeaderValue>) -> LocalResponse {
        if problem.code == Code::Csrf {
            self.state.metrics.observe_csrf_refused();
            audit::csrf_refused(&self.origin(), self.route.as_str(), "origin_not_proven");
        }
        self.code = Some(problem.code.as_str());
        problem.render(self.shape, &self.request_id).set_cookies(cookies)
    }

    /// A tunnel or a stream of events ends with the session whose token opened it.
    pub fn tie(&mut self, session: &Downstream, response: &ResponseHeader) {
        let media_type = response.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let endless = response.status == StatusCode::SWITCHING_PROTOCOLS
            || media_type.is_some_and(|kind| kind.starts_with("text/event-stream"));
        if let (true, Phase::Forward(forward), Some(info)) =
            (endless, &self.phase, ConnectionInfo::of(session.as_downstream()))
        {
            self.tied = forward
                .session
                .as_ref()
                .map(|used| live::tie(&self.state, &used.session, &info.control, session.is_http2()));
        }
    }

    /// How long the upstream may be silent from here on depends on what it answers.
    pub fn watch_answer(&mut self, session: &mut Downstream, response: &ResponseHeader, now: Instant) {
        let switching = response.status == StatusCode::SWITCHING_PROTOCOLS;
        let Some(silence) = &self.silence else { return };
        if response.status.is_informational() && !switching {
            return silence.heard();
        }
        self.answering = true;
        let media_type = response.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if switching || media_type.is_some_and(is_quiet) {
            silence.pause();
        } else {
            silence.listen_from(now);
        }
        let framed = response.headers.contains_key(header::CONTENT_LENGTH)
            || response.headers.contains_key(header::TRANSFER_ENCODING);
        let bodiless = session.req_header().method == Method::HEAD
            || matches!(
                response.status,
                StatusCode::SWITCHING_PROTOCOLS | StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        self.until_close = !framed && !bodiless;
        let zeros = |length: &HeaderValue| length.as_bytes().iter().all(|byte| *byte == b'0');
        let empty = response.headers.get(header::CONTENT_LENGTH).is_some_and(zeros);
        if !switching && (bodiless || empty) {
            self.answer_ended(session);
        }
    }

    /// The upstream's answer is complete. When it answered before it had all of the request, the client may send the
    /// rest, but is not waited for as for one that has no answer.
    pub fn answer_ended(&self, session: &mut Downstream) {
        if let Some(silence) = &self.silence {
            silence.ended(self.request_over);
        }
        if !self.request_over {
            session.set_read_timeout(Some(LINGER));
        }
    }

    /// The request that an audit event belongs to.
    pub fn origin(&self) -> audit::Origin<'_> {
        audit::Origin { request_id: Some(&self.request_id), client: self.client, sub_hash: self.sub_hash }
    }

    /// The public origin in force.
    pub fn public(&self) -> &Origin {
        &self.state.settings.public
    }
}

impl Label {
    /// As it stands in the log and in metrics.
    pub fn as_str(&self) -> &str {
        match self {
            Self::None(kind) => kind.as_str(),
            Self::Route(entry) => &entry.settings.path,
        }
    }
}

/// Media types of answers in which silence is natural.
fn is_quiet(media_type: &str) -> bool {
    ["text/event-stream", "application/grpc"]
        .iter()
        .any(|kind| media_type.get(..kind.len()).is_some_and(|start| start.eq_ignore_ascii_case(kind)))
}
