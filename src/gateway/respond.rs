//! Writes an answer of our own.

use std::time::Duration;

use http::{HeaderValue, Method, header};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;

use super::downstream::cors_fields;
use crate::web::response::LocalResponse;

/// How long an unread request body is drained, so that the connection can be kept and the client reads the answer
/// instead of a reset.
const DRAIN: Duration = Duration::from_secs(1);

/// Writes the answer, which is finished, whole. A HEAD request gets the head that GET would get.
///
/// # Errors
/// When the client is gone.
pub async fn write(session: &mut Session, response: LocalResponse, cors: Option<&HeaderValue>) -> Result<()> {
    let head_only = session.req_header().method == Method::HEAD;
    let mut head = ResponseHeader::build(response.status, Some(response.headers.len() + response.cookies.len() + 4))?;
    for (name, value) in &response.headers {
        head.append_header(name.clone(), value.clone())?;
    }
    for cookie in response.cookies {
        head.append_header(header::SET_COOKIE, cookie)?;
    }
    share(&mut head, cors)?;
    if response.status != http::StatusCode::NO_CONTENT {
        head.insert_header(header::CONTENT_LENGTH, response.body.len())?;
    }
    settle_request_body(session).await;
    let no_body = head_only || response.body.is_empty();
    session.write_response_header(Box::new(head), no_body).await?;
    if let (true, ServerSession::H2(stream)) = (no_body, session.as_downstream_mut()) {
        // Pingora does so only after what did not fail.
        stream.finish()?;
    }
    if !no_body {
        session.write_response_body(Some(response.body), true).await?;
    }
    Ok(())
}

/// Lets the pages of this origin, which is listed, read the answer.
pub(super) fn share(head: &mut ResponseHeader, origin: Option<&HeaderValue>) -> Result<()> {
    if let Some(origin) = origin {
        for (name, value) in cors_fields(origin) {
            head.insert_header(name, value)?;
        }
        head.append_header(header::VARY, HeaderValue::from_static("Origin"))?;
    }
    Ok(())
}

/// Does away with a request body that nobody wants, before the answer.
pub(super) async fn settle_request_body(session: &mut Session) {
    if session.req_header().headers.contains_key(header::EXPECT) {
        // The client waits for a 100 that will not come; whether it then sends the body is not known.
        session.set_keepalive(None);
    } else if !session.is_body_empty() {
        session.set_total_drain_timeout(Some(DRAIN));
        // One that goes on sending is cut off: the answer closes the connection then.
        if tokio::time::timeout(DRAIN, session.drain_request_body()).await.is_err() {
            session.set_keepalive(None);
        }
    }
}
