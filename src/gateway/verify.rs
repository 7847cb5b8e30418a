//! Verify, then clear: what a request gets whose refresh token the provider calls dead.
//!
//! Another replica may have spent the token a moment ago, and its answer with the newer cookie be on the way to the
//! browser. So the cookie is not taken away at the first failure: the browser is sent round to the same URL, with
//! whatever cookie it has by then, at most twice.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, Version, header};
use percent_encoding::{CONTROLS, utf8_percent_encode};

use super::settings::Verify;
use super::state::State;
use crate::clock::Timestamp;
use crate::session::Session;
use crate::session::jar::Marker;
use crate::web::fetch;
use crate::web::path::CleanPath;
use crate::web::response::LocalResponse;

/// The pauses before the first and the second time round: what a response needs to arrive, then what a slow one needs.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];

/// What happens now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Wait, then 307 to the same URL; `hops` goes into the marker.
    Again { pause: Duration, hops: u8 },
    /// It is dead: clear the cookies, then 401 or the login.
    Believe,
    /// 401, and nothing cleared: this request cannot be sent round, the next one will tell.
    Doubt,
}

/// Judges. `hops`: how often this very token was sent round already; `alone`: nobody else can have spent it, so one
/// look at the browser's present cookie is enough.
pub fn judge(mode: Verify, alone: bool, replayable: bool, hops: u8) -> Verdict {
    let rounds: &[Duration] = if alone { &[Duration::ZERO] } else { &PAUSES };
    match (mode, replayable) {
        (_, false) => Verdict::Doubt,
        (Verify::Unauthorized, true) => Verdict::Believe,
        (Verify::Redirect, true) => match rounds.get(usize::from(hops)) {
            Some(pause) => Verdict::Again { pause: *pause, hops: hops.saturating_add(1) },
            None => Verdict::Believe,
        },
    }
}

/// Whether a browser can send the request again: not a stream whose bytes it no longer has, not a handshake.
pub fn is_replayable(method: &Method, version: Version, headers: &HeaderMap) -> bool {
    // HTTP/2 does not say that a body is a stream, only not how long it is.
    let has_body = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
    let untold = version == Version::HTTP_2 && has_body && !headers.contains_key(header::CONTENT_LENGTH);
    !untold && !headers.contains_key(header::TRANSFER_ENCODING) && !fetch::is_websocket_handshake(headers)
}

/// A request whose session's refresh token the provider calls dead.
#[derive(Clone, Copy, Debug)]
pub struct Doubted<'a> {
    pub headers: &'a HeaderMap,
    pub replayable: bool,
    pub mode: Verify,
    /// Its own path and query, as they stand in `Location`.
    pub target: &'a str,
    pub now: Timestamp,
}

/// Whether the provider is to be believed, in which case the cookies are cleared.
///
/// # Errors
/// The redirect by which the browser shows what cookie it has by now.
pub async fn verified(state: &State, request: Doubted<'_>, user: &Session) -> Result<bool, LocalResponse> {
    let name = state.jar.handle(user).and_then(|handle| handle.0.first_chunk().copied());
    let marker = state.jar.marker(request.headers, request.now);
    let hops = marker.filter(|marker| Some(marker.handle) == name).map_or(0, |marker| marker.hops);
    let alone = state.settings.single_replica;
    match (judge(request.mode, alone, request.replayable, hops), name) {
        (Verdict::Again { pause, hops }, Some(handle)) => {
            tokio::time::sleep(pause).await;
            let dances = marker.map_or(0, |marker| marker.dances);
            let marked = state.jar.mark(Marker { handle, hops, dances }, state.clock.now());
            let again = LocalResponse::redirect(StatusCode::TEMPORARY_REDIRECT, request.target);
            Err(again.set_cookies(marked))
        }
        (verdict, _) => Ok(verdict != Verdict::Doubt),
    }
}

/// A request's own path and query, as they stand in `Location`.
pub fn own_target(path: &CleanPath, query: Option<&str>) -> String {
    let path = utf8_percent_encode(path.as_str(), CONTROLS);
    match query {
        Some(query) => format!("{path}?{}", utf8_percent_encode(query, CONTROLS)),
        None => path.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_sent_round_twice_and_then_believed() {
        let judge = |hops| judge(Verify::Redirect, false, true, hops);
        assert_eq!(judge(0), Verdict::Again { pause: Duration::from_millis(250), hops: 1 });
        assert_eq!(judge(1), Verdict::Again { pause: Duration::from_secs(1), hops: 2 });
        assert_eq!(judge(2), Verdict::Believe);
        assert_eq!(judge(255), Verdict::Believe);
    }

    #[test]
    fn the_only_instance_looks_once_and_at_once() {
        assert_eq!(judge(Verify::Redirect, true, true, 0), Verdict::Again { pause: Duration::ZERO, hops: 1 });
        assert_eq!(judge(Verify::Redirect, true, true, 1), Verdict::Believe);
    }

    #[test]
    fn what_cannot_be_replayed_clears_nothing() {
        assert_eq!(judge(Verify::Redirect, false, false, 0), Verdict::Doubt);
        assert_eq!(judge(Verify::Unauthorized, false, false, 2), Verdict::Doubt);
        assert_eq!(judge(Verify::Unauthorized, false, true, 0), Verdict::Believe);
    }
}
