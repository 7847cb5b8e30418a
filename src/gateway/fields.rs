//! The client's fields on their way to the upstream: moved, where nothing but the upstream needs them any more.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

use super::ctx::{Fields, Forward};
use crate::net::framer::MOST_FIELDS;

/// Options of `Connection` in a request that is plain; one or two are usual.
const MOST_OPTIONS: usize = 8;

/// What Pingora still asks the head about, when the request has no body and asks for no upgrade.
const LEFT: [HeaderName; 2] = [header::HOST, header::EXPECT];

/// Takes the fields out of Pingora's hands, for the plain request that most are: HTTP/1.1 on both sides, no body, no
/// upgrade, nothing that `Connection` nominates. All others are Pingora's to clean.
pub(super) fn take(session: &mut Session, forward: &mut Forward) {
    let head = session.req_header();
    let plain = forward.repeatable && !forward.upgrade && head.version == Version::HTTP_11;
    let http1 = forward.route.targets.iter().all(|target| !target.http2) && !forward.grpc;
    if !plain || !http1 || !nominates_nothing(&head.headers) {
        return;
    }
    let head = session.req_header_mut();
    let (blank, ()) = http::Request::new(()).into_parts();
    let mut parts = Parts::from(std::mem::replace(head, RequestHeader::from(blank)));
    let fields = std::mem::take(&mut parts.headers);
    for name in LEFT {
        if let Some(value) = fields.get(&name) {
            parts.headers.insert(name, value.clone());
        }
    }
    *head = RequestHeader::from(parts);
    forward.fields = Fields::Taken(fields);
}

/// Whether `Connection` says only what concerns the connection. What else it may say is Pingora's to judge, or one method
/// would be judged otherwise than another.
fn nominates_nothing(fields: &HeaderMap) -> bool {
    let values = fields.get_all(header::CONNECTION).iter();
    let mut options = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    let ours = |option: &[u8]| option.eq_ignore_ascii_case(b"close") || option.eq_ignore_ascii_case(b"keep-alive");
    options.by_ref().take(MOST_OPTIONS).all(ours) && options.next().is_none()
}

/// What was taken, for the next try; none when Pingora's copy has it.
///
/// # Errors
/// When the head cannot be read again, as cannot happen.
pub(super) fn give(session: &Session, forward: &mut Forward) -> Result<Option<HeaderMap>> {
    if matches!(forward.fields, Fields::Copied) {
        return Ok(None);
    }
    match std::mem::replace(&mut forward.fields, Fields::Spent) {
        Fields::Taken(fields) => Ok(Some(fields)),
        // Without them the request would not be what the client sent.
        Fields::Spent | Fields::Copied => {
            again(session).map(Some).ok_or_else(|| Error::new_in(ErrorType::InternalError))
        }
    }
}

/// The fields as the client sent them, when Pingora does not have them any more.
pub(super) fn give_again(session: &Session, forward: &Forward) -> Option<HeaderMap> {
    match &forward.fields {
        Fields::Copied => None,
        Fields::Taken(fields) => Some(fields.clone()),
        Fields::Spent => again(session),
    }
}

/// Reads the head again, of which Pingora has kept the bytes.
fn again(session: &Session) -> Option<HeaderMap> {
    let ServerSession::H1(session) = session.as_downstream() else { return None };
    parse(&session.get_headers_raw_bytes())
}

fn parse(head: &Bytes) -> Option<HeaderMap> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    if !request.parse(head).ok()?.is_complete() {
        return None;
    }
    let mut map = HeaderMap::with_capacity(request.headers.len());
    for field in request.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        map.append(name, HeaderValue::from_maybe_shared(head.slice_ref(field.value)).ok()?);
    }
    Some(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_again_as_it_was() {
        let head = b"GET /a HTTP/1.1\r\nHost: a.test\r\nX-A: 1\r\nx-a:  two \r\nX-B: \xe9\r\n\r\n";
        let fields = parse(&Bytes::from_static(head)).unwrap();
        assert_eq!(fields["host"], "a.test");
        assert_eq!(fields.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "two"]);
        assert_eq!(fields["x-b"].as_bytes(), b"\xe9");
        assert!(parse(&Bytes::from_static(b"GET /a HTTP/1.1\r\nHost")).is_none());
    }
}
