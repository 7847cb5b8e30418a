//! One request as every decision sees it.

use std::net::IpAddr;

use http::{HeaderMap, Method, Version};

use super::path::CleanPath;
use crate::clock::Timestamp;

/// A request whose path is clean, whose authority is known and whose headers are within the limits.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// The method, case-sensitive (RFC 9110 section 9.1).
    pub method: &'a Method,
    /// By which it came.
    pub version: Version,
    /// The canonical path: the one that routing judges and that is forwarded.
    pub path: &'a CleanPath,
    /// The query without `?`, byte for byte as it came.
    pub query: Option<&'a str>,
    /// The host without port, lower case.
    pub host: &'a str,
    /// All fields as they came.
    pub headers: &'a HeaderMap,
    /// The body, at an endpoint that takes a form; else empty.
    pub form: &'a [u8],
    /// The rightmost untrusted hop; none on a unix socket.
    pub client: Option<IpAddr>,
    /// The id that the log, the upstream and a problem document share.
    pub request_id: &'a str,
    /// When the request arrived.
    pub now: Timestamp,
}
