//! Verify, then clear: what a request gets whose refresh token the provider calls dead.
//!
//! Another replica may have spent the token a moment ago, and its answer with the newer cookie be on the way to the
//! browser. So the cookie is not taken away at the first failure: the browser is sent round to the same URL, with
//! whatever cookie it has by then, at most twice.

use std::time::Duration;

use http::{Method, Version, header};
use pingora::http::RequestHeader;

use super::settings::Verify;
use crate::web::fetch;

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
pub fn is_replayable(head: &RequestHeader) -> bool {
    let headers = &head.headers;
    // HTTP/2 does not say that a body is a stream, only not how long it is.
    let has_body = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
    let untold = head.version == Version::HTTP_2 && has_body && !headers.contains_key(header::CONTENT_LENGTH);
    !untold && !headers.contains_key(header::TRANSFER_ENCODING) && !fetch::is_websocket_handshake(headers)
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
