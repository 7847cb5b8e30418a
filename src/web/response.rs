//! An answer that sidegate itself gives.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

/// The policy of an answer that has none of its own.
pub const GUARD: &str = "default-src 'none'; frame-ancestors 'none'";

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

    /// Adds what every answer of ours has. `https_public`: the browser speaks TLS to us. A policy that the answer
    /// already has stays.
    pub fn finish(&mut self, https_public: bool) {
        let headers = &mut self.headers;
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers
            .entry(HeaderName::from_static("cross-origin-resource-policy"))
            .or_insert(HeaderValue::from_static("same-origin"));
        headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(GUARD));
        if https_public {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ASVS-3.4.1, ASVS-3.4.4, ASVS-3.4.5.
    #[test]
    fn asvs_14_3_2_every_answer_is_guarded() {
        let mut response = LocalResponse::json(&serde_json::json!({}));
        response.finish(true);
        for (name, value) in [
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-resource-policy", "same-origin"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
            ("strict-transport-security", "max-age=31536000"),
        ] {
            let values: Vec<_> = response.headers.get_all(name).iter().collect();
            assert_eq!(values, [value], "{name}");
        }
    }

    #[test]
    fn finishing_keeps_a_policy_and_sends_hsts_over_https_only() {
        let policy = HeaderValue::from_static("frame-ancestors https://issuer.test");
        let mut framed = LocalResponse::with_body(StatusCode::OK, "text/html", "x")
            .header(header::CONTENT_SECURITY_POLICY, policy.clone());
        framed.finish(false);
        framed.finish(false);
        assert_eq!(framed.headers.get(header::CONTENT_SECURITY_POLICY), Some(&policy));
        assert!(!framed.headers.contains_key(header::STRICT_TRANSPORT_SECURITY));
        // RFC9700-18: a login's redirect cannot be framed either.
        let mut empty = LocalResponse::redirect(StatusCode::FOUND, "/");
        empty.finish(false);
        assert!(empty.headers.contains_key(header::CONTENT_SECURITY_POLICY));
    }
}
