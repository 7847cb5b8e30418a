//! An answer that sidegate itself gives.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

/// A complete answer, cookies included. [`crate::gateway`] writes it; nobody adds to it on the way but the headers
/// that every answer of ours has.
#[derive(Clone, Debug)]
pub struct LocalResponse {
    /// The status.
    pub status: StatusCode,
    /// The fields, without `Set-Cookie` and `Content-Length`.
    pub headers: HeaderMap,
    /// The `Set-Cookie` values, in order.
    pub cookies: Vec<HeaderValue>,
    /// The whole body.
    pub body: Bytes,
}

impl LocalResponse {
    /// An answer without a body.
    pub fn empty(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), cookies: Vec::new(), body: Bytes::new() }
    }

    /// An answer with a body of the given media type.
    pub fn with_body(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Self {
        let mut response = Self::empty(status);
        response.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
        response.body = body.into();
        response
    }

    /// `200` with a JSON document.
    pub fn json(document: &serde_json::Value) -> Self {
        Self::with_body(StatusCode::OK, "application/json", document.to_string())
    }

    /// A redirect. A target that cannot stand in a header becomes `/`: the callers' targets are all parsed URLs, so
    /// this is the last line, not the check.
    pub fn redirect(status: StatusCode, location: &str) -> Self {
        let mut response = Self::empty(status);
        let value = HeaderValue::try_from(location).unwrap_or(HeaderValue::from_static("/"));
        response.headers.insert(header::LOCATION, value);
        response
    }

    /// Sets a field, replacing any of that name.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Adds `Set-Cookie` fields.
    #[must_use]
    pub fn set_cookies(mut self, cookies: impl IntoIterator<Item = HeaderValue>) -> Self {
        self.cookies.extend(cookies);
        self
    }
}
