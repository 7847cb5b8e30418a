//! The answer to bytes that never became a request: the same document, log line and metric as any refusal.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};

use super::state::State;
use crate::crypto::random;
use crate::metrics::{MethodLabel, NoRoute};
use crate::net::refusal::{Refusal, Refusals};
use crate::telemetry::{self, AccessLine};
use crate::web::forwarded;
use crate::web::problem::{Code, Problem, Shape};

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
        let mut response = problem.render(Shape::Json, &request_id);
        if refusal.code == Code::HeadersTooLarge {
            // DOS-05: cookies that grew too large would refuse the user for ever.
            response = response.set_cookies(state.jar.expire_all(&state.jar.presented(&cookie_fields(received))));
        }
        response.finish(state.settings.public.is_https());
        let status = response.status.as_u16();
        state.metrics.observe_no_route(NoRoute::Invalid, MethodLabel::Other, status, Duration::ZERO);
        telemetry::access(&AccessLine {
            request_id: &request_id,
            route: NoRoute::Invalid.as_str(),
            method: "-",
            path: "",
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

/// The `Cookie` fields of a head that was not read to its end.
fn cookie_fields(received: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in received.split(|byte| *byte == b'\n') {
        let Some((name, value)) = line.split_at_checked(b"cookie:".len()) else { continue };
        if name.eq_ignore_ascii_case(b"cookie:")
            && let Ok(value) = HeaderValue::from_bytes(value.trim_ascii())
        {
            fields.append(header::COOKIE, value);
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
        let fields =
            cookie_fields(b"GET / HTTP/1.1\r\nHost: a\r\nCOOKIE: sg=1; sg-1=2\r\ncookies: x=1\r\nCookie:sg-2=ab");
        let found: Vec<_> = fields.get_all(header::COOKIE).iter().collect();
        assert_eq!(found, ["sg=1; sg-1=2", "sg-2=ab"]);
        assert!(cookie_fields(b"").is_empty());
    }
}
