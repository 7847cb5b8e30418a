//! The answer to bytes that never became a request: the same document, log line and metric as any refusal.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::arrive::origin_form;
use super::state::State;
use crate::crypto::random;
use crate::metrics::{MethodLabel, NoRoute};
use crate::net::refusal::{Refusal, Refusals};
use crate::telemetry::{self, AccessLine};
use crate::web::fetch::Initiator;
use crate::web::forwarded;
use crate::web::path::CleanPath;
use crate::web::problem::{Code, Problem};

/// How much of a path is logged that may be without end.
const PATH_BYTES: usize = 1024;

/// Renders, counts and logs what `net` refuses.
#[derive(Debug)]
pub struct Wording(pub Arc<ArcSwap<State>>);

impl Refusals for Wording {
    fn refuse(&self, refusal: &Refusal, peer: IpAddr, received: &[u8]) -> Bytes {
        let state = self.0.load();
        let request_id = forwarded::new_request_id(random::identifier());
        let mut problem = Problem::from(*refusal);
        if refusal.code == Code::MethodNotAllowed {
            problem = problem.allow("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS".to_owned());
        }
        // Behind a failure of ours stands the next request, if any.
        let received = if refusal.code == Code::Internal { &[] } else { received };
        let (method, path) = request_line(received);
        let settings = &state.settings;
        let initiator = Initiator::read(&fields(received), &settings.public, &settings.csrf.allowed_origins);
        let mut response = problem.render(initiator.shape(), &request_id);
        if refusal.code == Code::HeadersTooLarge {
            // DOS-05: cookies that grew too large would refuse the user for ever.
            response = response.set_cookies(state.jar.expire_all(&state.jar.presented(&fields(received))));
        }
        response.finish(state.settings.public.is_https());
        let status = response.status.as_u16();
        state.metrics.observe_no_route(NoRoute::Invalid, method, status, Duration::ZERO);
        telemetry::access(&AccessLine {
            request_id: &request_id,
            route: NoRoute::Invalid.as_str(),
            method: if method == MethodLabel::Other { "-" } else { method.as_str() },
            path: path.as_ref().map_or("", CleanPath::as_str),
            status,
            duration: Duration::ZERO,
            upstream: None,
            client: Some(peer),
            sub_hash: None,
            trace_id: None,
            code: Some(refusal.code.as_str()),
        });
        let mut head = format!("HTTP/1.1 {status} {}\r\n", response.status.canonical_reason().unwrap_or("Refused"));
        for (name, value) in &response.headers {
            let _ = write!(head, "{name}: {}\r\n", value.to_str().unwrap_or_default());
        }
        for cookie in &response.cookies {
            let _ = write!(head, "set-cookie: {}\r\n", cookie.to_str().unwrap_or_default());
        }
        let _ = write!(head, "content-length: {}\r\nconnection: close\r\n\r\n", response.body.len());
        let mut answer = head.into_bytes();
        answer.extend_from_slice(&response.body);
        answer.into()
    }
}

/// The method and the path of a head that was not read to its end, where they can be told.
fn request_line(received: &[u8]) -> (MethodLabel, Option<CleanPath>) {
    let line = received.trim_ascii_start().split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return (MethodLabel::Other, None) };
    let method = std::str::from_utf8(method).map_or(MethodLabel::Other, MethodLabel::from);
    let target = std::str::from_utf8(target).map(origin_form).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    let mut cut = (0..=path.len().min(PATH_BYTES)).rev().find(|at| path.is_char_boundary(*at)).unwrap_or_default();
    if cut < path.len() {
        // Not within an escape.
        cut = path.get(..cut).and_then(|path| path.rfind('%')).filter(|at| at + 3 > cut).unwrap_or(cut);
    }
    (method, path.get(..cut).and_then(|path| CleanPath::parse(path).ok()))
}

/// What the answer depends on among the fields of such a head.
fn fields(received: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in received.split(|byte| *byte == b'\n').skip(1) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(colon);
        let Ok(name) = HeaderName::from_bytes(name) else { continue };
        let counts =
            [header::COOKIE, header::ACCEPT, header::ORIGIN].contains(&name) || name.as_str().starts_with("sec-fetch-");
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if let (true, Ok(value)) = (counts, HeaderValue::from_bytes(value)) {
            // More than a map holds says no more.
            let _ = fields.try_append(name, value);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    /// DOS-05: what made the head too large is found in it, cut off as it is.
    #[test]
    fn cookies_are_found_in_a_head_that_was_cut_off() {
        let fields = fields(b"GET / HTTP/1.1\r\nHost: a\r\nCOOKIE: sg=1; sg-1=2\r\ncookies: x=1\r\nCookie:sg-2=ab");
        let found: Vec<_> = fields.get_all(header::COOKIE).iter().collect();
        assert_eq!(found, ["sg=1; sg-1=2", "sg-2=ab"]);
        assert!(super::fields(b"").is_empty());
        let many = format!("GET / HTTP/1.1\r\n{}", "Accept:\r\n".repeat(100_000));
        assert!(!super::fields(many.as_bytes()).is_empty(), "more than a map of fields holds");
    }

    /// A refusal is logged like an ordinary request, as far as it can be read.
    #[test]
    fn method_and_path_are_found_in_a_head_that_was_refused() {
        let read = |received: &str| {
            let (method, path) = request_line(received.as_bytes());
            (method.as_str(), path.map(|path| path.as_str().to_owned()).unwrap_or_default())
        };
        let found = |method, path: &str| (method, path.to_owned());
        assert_eq!(read("TRACE /a/b?code=secret HTTP/1.1\r\nHost: a\r\n\r\n"), found("TRACE", "/a/b"));
        assert_eq!(read("\r\nGET http://a.test/x HTTP/3.0\r\n"), found("GET", "/x"));
        assert_eq!(read("CONNECT a.test:443 HTTP/1.1\r\n"), found("CONNECT", ""));
        assert_eq!(read("GET /half"), found("GET", "/half"));
        assert_eq!(read("GET /a/../b HTTP/1.1\r\n"), found("GET", ""), "it has no single reading");
        assert_eq!(read("SECRET /a HTTP/1.1\r\n"), found("other", "/a"));
        for garbage in ["", "GET", "\u{16}\u{3}\u{1}", "\r\n\r\n"] {
            assert_eq!(read(garbage), found("other", ""), "{garbage:?}");
        }
        let long = format!("/{}%20{}", "a".repeat(PATH_BYTES - 3), "b".repeat(9000));
        assert_eq!(read(&format!("GET {long}")), found("GET", &long[..PATH_BYTES - 2]));
    }
}
