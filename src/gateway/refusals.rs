//! The answer to bytes that never became a request: the same document, log line and metric as any refusal.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::state::State;
use crate::crypto::random;
use crate::metrics::{MethodLabel, NoRoute};
use crate::net::refusal::{Refusal, Refusals};
use crate::session::jar::Presented;
use crate::telemetry::{self, AccessLine};
use crate::web::problem::{Code, Problem, Shape};

/// Renders, counts and logs what `net` refuses.
#[derive(Debug)]
pub struct Wording(pub Arc<ArcSwap<State>>);

impl Refusals for Wording {
    fn refuse(&self, refusal: &Refusal, peer: IpAddr) -> Bytes {
        let state = self.0.load();
        let request_id = random::base64url::<15>();
        let mut problem = Problem::from(*refusal);
        if refusal.code == Code::MethodNotAllowed {
            problem = problem.allow("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS".to_owned());
        }
        let mut response = problem.render(Shape::Json, &request_id);
        if refusal.code == Code::HeadersTooLarge {
            // DOS-05: cookies that grew too large would refuse the user for ever.
            response = response.set_cookies(state.jar.expire_all(&Presented::default()));
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
