//! The request's line in the log and its place in the metrics.

use pingora::proxy::Session;

use super::ctx::{Ctx, Label, Phase};
use crate::metrics::MethodLabel;
use crate::telemetry::{self, AccessLine};
use crate::web::path::CleanPath;

impl Ctx {
    /// Counts and logs the request; the last that happens to it.
    pub(super) fn record(&self, session: &Session) {
        let head = session.req_header();
        let status = session.response_written().map_or(499, |written| written.status.as_u16());
        let duration = self.started.elapsed();
        let upstream = self.upstream_started.map(|started| {
            self.upstream_answered.map_or_else(|| started.elapsed(), |answered| answered.duration_since(started))
        });
        match &self.route {
            Label::Route(entry) => entry.metrics.observe(&head.method, status, duration, upstream),
            Label::None(kind) => {
                self.state.metrics.observe_no_route(*kind, MethodLabel::from(&head.method), status, duration);
            }
        }
        let trace_id = match &self.phase {
            Phase::Forward(forward) => forward.traceparent.as_deref().and_then(|parent| parent.split('-').nth(1)),
            Phase::Arrived | Phase::Answered => None,
        };
        telemetry::access(&AccessLine {
            request_id: &self.request_id,
            route: self.route.as_str(),
            method: head.method.as_str(),
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
}
