//! The request's line in the log and its place in the metrics.

use std::time::Duration;

use pingora::proxy::Session;

use super::ctx::{Ctx, Label, Phase, Traced};
use crate::metrics::MethodLabel;
use crate::spans::{Kind, Span};
use crate::telemetry::{self, AccessLine};
use crate::web::forwarded;
use crate::web::path::CleanPath;

impl Ctx {
    /// Counts and logs the request; the last that happens to it.
    pub(super) fn record(&self, session: &Session) {
        let method = self.asked_method.as_ref().unwrap_or(&session.req_header().method);
        let status = session.response_written().map_or(499, |written| written.status.as_u16());
        let duration = self.started.elapsed();
        let upstream = self.upstream_started.map(|started| {
            self.upstream_answered.map_or_else(|| started.elapsed(), |answered| answered.duration_since(started))
        });
        match &self.route {
            Label::Route(entry) => entry.metrics.observe(method, status, duration, upstream),
            Label::None(kind) => {
                self.state.metrics.observe_no_route(*kind, MethodLabel::from(method), status, duration);
            }
        }
        let own = self.traced.as_ref().map(|traced| traced.context.traceparent());
        let trace = own.as_deref().or(match &self.phase {
            Phase::Forward(forward) => forward.traceparent.as_deref(),
            Phase::Arrived | Phase::Answered => self.traceparent.as_deref(),
        });
        let came = if trace.is_none() { forwarded::traceparent(&session.req_header().headers) } else { None };
        let trace = trace.or(came.as_deref());
        let trace_id = trace.and_then(|parent| parent.split('-').nth(1));
        if let Some(traced) = &self.traced {
            self.tell_spans(traced, MethodLabel::from(method).as_str(), status, duration);
        }
        telemetry::access(&AccessLine {
            request_id: &self.request_id,
            route: self.route.as_str(),
            method: method.as_str(),
            path: self.path.as_ref().map_or("", CleanPath::as_str),
            status,
            duration,
            upstream,
            client: self.client,
            sub_hash: self.sub_hash,
            trace_id,
            code: self.code,
        });
    }

    /// The request's span, and that of what was forwarded.
    fn tell_spans(&self, traced: &Traced, method: &'static str, status: u16, took: Duration) {
        let route = self.route.as_str();
        let public = self.public();
        let mut span = Span::new(&traced.context, format!("{method} {route}"), Kind::Server, traced.began, took)
            .with("http.request.method", method)
            .with("http.route", route)
            .with("http.response.status_code", status)
            .with("url.scheme", if public.is_https() { "https" } else { "http" })
            .with("server.address", public.host())
            .with("sidegate.request_id", self.request_id.as_str())
            .failed(status >= 500);
        if let Some(code) = self.code {
            span = span.with("sidegate.code", code);
        }
        span.end();
        let (Some(started), Phase::Forward(forward)) = (self.upstream_started, &self.phase) else { return };
        let before = started.duration_since(self.started);
        let began = traced.began + before;
        let answered = self.upstream_answered.is_some();
        let mut span =
            Span::new(&traced.upstream, format!("{method} upstream"), Kind::Client, began, took.saturating_sub(before))
                .with("http.request.method", method)
                .failed(!answered || status >= 500);
        if let Some(address) = forward.target().and_then(|target| target.authority.to_str().ok()) {
            span = span.with("server.address", address);
        }
        if answered {
            span = span.with("http.response.status_code", status);
        }
        span.end();
    }
}
