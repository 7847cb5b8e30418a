//! What outlives a request: tunnels and streams that end with their session, and `GET <prefix>/events`, which tells a
//! page what becomes of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, Version, header};
use parking_lot::Mutex;
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::respond::share;
use super::state::State;
use crate::clock::Timestamp;
use crate::metrics::ConnectionKind;
use crate::net::Control;
use crate::refresh::coordinator::Change;
use crate::session::{Session as UserSession, SessionId};
use crate::web::response::LocalResponse;

/// How often a session is looked at whose end nobody announces: by age, or told to another process.
const LOOK: Duration = Duration::from_secs(5);
/// How long the other requests of an HTTP/2 connection have before it ends. With [`LOOK`] less than the 15 s within
/// which streams end.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often an event stream looks at the clock.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between two comments, by which a dead connection is noticed.
const HEARTBEAT: u32 = 15;
/// How long before its end an access token counts as expiring, when nothing refreshes it earlier.
const EXPIRING: Duration = Duration::from_secs(30);

/// How many event streams a session may have open: one for each tab of a busy user.
const STREAMS: usize = 32;

/// The event streams that are open, counted by session.
#[derive(Debug, Default)]
pub struct Streams {
    open: Mutex<HashMap<SessionId, usize>>,
    total: watch::Sender<usize>,
    closing: watch::Sender<bool>,
}

impl Streams {
    /// Ends all of them, now and from now on, without a word about the session: pages ask again, and reach another
    /// replica or the next process.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        *self.total.borrow()
    }

    /// Resolves when none is open.
    pub async fn ended(&self) {
        // An error would mean that the sender, which lives in `self`, is gone.
        let _ = self.total.subscribe().wait_for(|total| *total == 0).await;
    }

    /// Counts one more; none when the session has too many.
    pub fn open(self: &Arc<Self>, session: SessionId) -> Option<OpenStream> {
        let mut open = self.open.lock();
        let count = open.entry(session).or_default();
        if *count >= STREAMS {
            return None;
        }
        *count += 1;
        self.total.send_modify(|total| *total = total.saturating_add(1));
        Some(OpenStream { streams: Arc::clone(self), session })
    }
}

/// Counts an event stream for as long as it lives.
#[derive(Debug)]
pub struct OpenStream {
    streams: Arc<Streams>,
    session: SessionId,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.streams.total.send_modify(|total| *total = total.saturating_sub(1));
        let mut open = self.streams.open.lock();
        if let Some(count) = open.get_mut(&self.session) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.session);
            }
        }
    }
}

/// When sessions that something is open for were last used, as their cookies have it: told by every request that brings
/// one, so that a use which another replica sealed counts here too.
#[derive(Debug, Default)]
pub struct Uses(Mutex<HashMap<SessionId, (usize, Timestamp)>>);

impl Uses {
    /// The session was used then.
    pub fn note(&self, session: &UserSession) {
        if let Some((_, last)) = self.0.lock().get_mut(&session.id) {
            *last = session.last_used.max(*last);
        }
    }

    fn watch(self: &Arc<Self>, session: &UserSession) -> Watch {
        let mut known = self.0.lock();
        let (count, last) = known.entry(session.id).or_insert((0, session.last_used));
        *count += 1;
        *last = session.last_used.max(*last);
        Watch { uses: Arc::clone(self), session: session.id }
    }
}

/// Follows a session's uses for as long as it lives.
struct Watch {
    uses: Arc<Uses>,
    session: SessionId,
}

impl Watch {
    /// Whether the session ended for want of use, as far as this process knows.
    fn is_idle(&self, state: &State, now: Timestamp) -> bool {
        let Some(idle) = state.jar.settings().idle_timeout else { return false };
        self.uses.0.lock().get(&self.session).is_some_and(|(_, last)| *last + idle <= now)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut known = self.uses.0.lock();
        if let Some((count, _)) = known.get_mut(&self.session) {
            *count -= 1;
            if *count == 0 {
                known.remove(&self.session);
            }
        }
    }
}

/// Ends a connection when its session ends; until it is dropped.
#[derive(Debug)]
pub struct Tied(AbortHandle);

impl Drop for Tied {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Ties a connection to a session. `shared`: other requests run on it too (HTTP/2), among them perhaps the very logout
/// that ends the session, whose answer has to reach the browser.
pub fn tie(state: &Arc<State>, session: &Arc<UserSession>, control: &Arc<Control>, shared: bool) -> Tied {
    let (state, session, control) = (Arc::clone(state), Arc::clone(session), Arc::clone(control));
    let watch = state.uses.watch(&session);
    let task = tokio::spawn(async move {
        let mut changes = state.refresh.changes();
        let mut looks = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(Change::Ended(id)) if id == session.id => break,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                _ = looks.tick() => {
                    let now = state.clock.now();
                    if is_over(&state, &session, now) || watch.is_idle(&state, now) {
                        break;
                    }
                }
            }
        }
        if shared {
            tokio::time::sleep(FAREWELL).await;
        }
        control.close();
    });
    Tied(task.abort_handle())
}

/// Whether the session has ended, or come to its end in the newest generation known.
fn is_over(state: &State, session: &UserSession, now: Timestamp) -> bool {
    let newest = state.refresh.newest(session.id);
    let newest = newest.as_deref().unwrap_or(session);
    state.ends.is_over(newest) || newest.ends(state.jar.settings()) <= now
}

/// Serves server-sent events until the session or the connection ends, or the drain does.
///
/// # Errors
/// When the client is gone.
pub async fn events(
    stream: &mut Session,
    state: &Arc<State>,
    session: Arc<UserSession>,
    cors: Option<&HeaderValue>,
) -> Result<()> {
    let _counted = state.metrics.connection(ConnectionKind::Events);
    let mut changes = state.refresh.changes();
    let mut closing = state.streams.closing.subscribe();
    write_head(stream, state, cors).await?;
    let watch = state.uses.watch(&session);
    let mut current = session;
    let mut warned = None;
    let mut ticks = tokio::time::interval(TICK);
    let mut quiet = 0;
    loop {
        let told = tokio::select! {
            change = changes.recv() => change,
            _ = ticks.tick() => Err(RecvError::Lagged(0)),
            () = closed(&mut closing) => return stream.write_response_body(None, true).await,
        };
        let now = state.clock.now();
        // A refresh token that the provider calls dead is only told, not kept for ever.
        let ended = matches!(told, Ok(Change::Ended(id)) if id == current.id);
        if ended || matches!(told, Err(RecvError::Closed)) || is_over(state, &current, now) {
            break;
        }
        if watch.is_idle(state, now) {
            if state.settings.single_replica {
                break;
            }
            // Another replica may have seen the user: the browser asks again, with the cookie that it has by now.
            return stream.write_response_body(None, true).await;
        }
        if let Some(newest) = state.refresh.newest(current.id).filter(|newest| newest.generation > current.generation) {
            current = newest;
            quiet = 0;
            send(stream, "refreshed", state, &current, now).await?;
        }
        let soon = current.access_expires.is_some_and(|expires| expires <= now + EXPIRING);
        if soon && warned != Some(current.generation) {
            warned = Some(current.generation);
            quiet = 0;
            send(stream, "expiring", state, &current, now).await?;
        }
        if told.is_err() {
            quiet += 1;
        }
        if quiet >= HEARTBEAT {
            quiet = 0;
            stream.write_response_body(Some(Bytes::from_static(b":\n\n")), false).await?;
        }
    }
    stream.write_response_body(Some(Bytes::from_static(b"event: ended\ndata: {}\n\n")), true).await
}

async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error would mean that the streams' count is gone, and with it the process.
    let _ = closing.wait_for(|closing| *closing).await;
}

async fn write_head(stream: &mut Session, state: &State, cors: Option<&HeaderValue>) -> Result<()> {
    let mut answer = LocalResponse::empty(StatusCode::OK)
        .header(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"))
        // For proxies that would collect an answer before they pass it on.
        .header(http::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    answer.finish(state.settings.public.is_https());
    let mut head = ResponseHeader::build(answer.status, Some(answer.headers.len() + 4))?;
    for (name, value) in &answer.headers {
        head.append_header(name.clone(), value.clone())?;
    }
    share(&mut head, cors)?;
    if stream.req_header().version == Version::HTTP_11 {
        head.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    } else if !stream.is_http2() {
        stream.set_keepalive(None);
    }
    stream.set_write_timeout(Some(state.settings.body_idle));
    stream.write_response_header(Box::new(head), false).await?;
    stream.write_response_body(Some(Bytes::from_static(b"retry: 3000\n\n")), false).await
}

async fn send(stream: &mut Session, event: &str, state: &State, session: &UserSession, now: Timestamp) -> Result<()> {
    let data = json!({
        "access_token_expires_at": session.access_expires.map(Timestamp::as_secs),
        "expires_at": session.ends(state.jar.settings()).as_secs(),
        "now": now.as_secs(),
    });
    stream.write_response_body(Some(format!("event: {event}\ndata: {data}\n\n").into()), false).await
}
