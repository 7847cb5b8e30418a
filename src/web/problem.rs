//! Every refusal of sidegate's own: one code, one status, one title (`docs/endpoints.md` lists them).

use http::StatusCode;

/// The `code` of a problem document: contract section 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    BadRequest,
    BadPath,
    BadCallback,
    LoginRefused,
    LoginRequired,
    StepUpRequired,
    Csrf,
    Forbidden,
    NoRoute,
    MethodNotAllowed,
    RequestTimeout,
    BodyTooLarge,
    UriTooLong,
    HeadersTooLarge,
    ExpectationFailed,
    WrongHost,
    RateLimited,
    SessionTooLarge,
    Internal,
    UpstreamUnreachable,
    UpstreamProtocol,
    ProviderRefused,
    StoreUnavailable,
    Overloaded,
    ProviderUnavailable,
    UpstreamTimeout,
    NotImplemented,
    BadVersion,
    LoopDetected,
}

/// A refusal with what the client may know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which refusal.
    pub code: Code,
    /// One sentence for a developer; never text of the request, the provider or the upstream.
    pub detail: &'static str,
    /// Where the browser logs in, for `login_required` and `step_up_required`.
    pub login_url: Option<String>,
    /// The methods the resource has, for `method_not_allowed`.
    pub allow: Option<String>,
    /// Seconds after which a retry makes sense.
    pub retry_after: Option<u64>,
}

/// Which form the client reads: a document for scripts, a page for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `application/problem+json` (RFC 9457).
    Json,
    /// A small page with the same facts, a strict policy and no script.
    Html,
}

impl Code {
    /// The status that goes with it.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest | Self::BadPath | Self::BadCallback | Self::LoginRefused => StatusCode::BAD_REQUEST,
            Self::LoginRequired | Self::StepUpRequired => StatusCode::UNAUTHORIZED,
            Self::Csrf | Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::ExpectationFailed => StatusCode::EXPECTATION_FAILED,
            Self::WrongHost => StatusCode::MISDIRECTED_REQUEST,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::SessionTooLarge | Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::UpstreamUnreachable | Self::UpstreamProtocol | Self::ProviderRefused => StatusCode::BAD_GATEWAY,
            Self::StoreUnavailable | Self::Overloaded | Self::ProviderUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::BadVersion => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::LoopDetected => StatusCode::LOOP_DETECTED,
        }
    }

    /// The `code` member, stable for ever.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::BadPath => "bad_path",
            Self::BadCallback => "bad_callback",
            Self::LoginRefused => "login_refused",
            Self::LoginRequired => "login_required",
            Self::StepUpRequired => "step_up_required",
            Self::Csrf => "csrf",
            Self::Forbidden => "forbidden",
            Self::NoRoute => "no_route",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RequestTimeout => "request_timeout",
            Self::BodyTooLarge => "body_too_large",
            Self::UriTooLong => "uri_too_long",
            Self::HeadersTooLarge => "headers_too_large",
            Self::ExpectationFailed => "expectation_failed",
            Self::WrongHost => "wrong_host",
            Self::RateLimited => "rate_limited",
            Self::SessionTooLarge => "session_too_large",
            Self::Internal => "internal",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamProtocol => "upstream_protocol",
            Self::ProviderRefused => "provider_refused",
            Self::StoreUnavailable => "store_unavailable",
            Self::Overloaded => "overloaded",
            Self::ProviderUnavailable => "provider_unavailable",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::NotImplemented => "not_implemented",
            Self::BadVersion => "bad_version",
            Self::LoopDetected => "loop_detected",
        }
    }
}

impl Problem {
    /// A refusal with a sentence about it.
    pub fn new(code: Code, detail: &'static str) -> Self {
        Self { code, detail, login_url: None, allow: None, retry_after: None }
    }

    /// Asks the client to come again after `seconds`.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Says where to log in.
    #[must_use]
    pub fn login_url(mut self, url: String) -> Self {
        self.login_url = Some(url);
        self
    }

    /// Says which methods there are.
    #[must_use]
    pub fn allow(mut self, methods: String) -> Self {
        self.allow = Some(methods);
        self
    }
}
