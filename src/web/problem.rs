//! Every refusal of sidegate's own: one code, one status, one title (`docs/endpoints.md` lists them).

use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use super::pages::{self, Page};
use super::response::{GUARD, LocalResponse};

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
    /// Origins whose pages may frame the answer, separated by spaces.
    pub framed_by: Option<String>,
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

    /// The `title` member and the heading of the page.
    pub fn title(self) -> &'static str {
        match self {
            Self::BadRequest => "Bad request",
            Self::BadPath => "Ambiguous path",
            Self::BadCallback => "This sign-in could not be completed",
            Self::LoginRefused => "Sign-in refused",
            Self::LoginRequired => "Sign-in required",
            Self::StepUpRequired => "A stronger sign-in is required",
            Self::Csrf => "Request from another site refused",
            Self::Forbidden => "Access denied",
            Self::NoRoute => "Not found",
            Self::MethodNotAllowed => "Method not allowed",
            Self::RequestTimeout => "Request took too long",
            Self::BodyTooLarge => "Request body too large",
            Self::UriTooLong => "Address too long",
            Self::HeadersTooLarge => "Request headers too large",
            Self::ExpectationFailed => "Expectation not supported",
            Self::WrongHost => "Unknown host",
            Self::RateLimited => "Too many requests",
            Self::SessionTooLarge => "Session too large",
            Self::Internal => "Internal error",
            Self::UpstreamUnreachable => "Application unreachable",
            Self::UpstreamProtocol => "Invalid answer from the application",
            Self::ProviderRefused => "Sign-in is misconfigured",
            Self::StoreUnavailable => "Sessions temporarily unavailable",
            Self::Overloaded => "Temporarily overloaded",
            Self::ProviderUnavailable => "Sign-in temporarily unavailable",
            Self::UpstreamTimeout => "Application did not answer in time",
            Self::NotImplemented => "Not implemented",
            Self::BadVersion => "HTTP version not supported",
            Self::LoopDetected => "Loop detected",
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
        Self { code, detail, login_url: None, allow: None, retry_after: None, framed_by: None }
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

    /// Lets pages of these origins frame the answer, which nobody else's may.
    #[must_use]
    pub fn framed_by(mut self, origins: String) -> Self {
        self.framed_by = Some(origins);
        self
    }

    /// The answer in the form that the client reads. A HEAD request gets it without its body.
    pub fn render(self, shape: Shape, request_id: &str) -> LocalResponse {
        let mut response = match shape {
            Shape::Json => self.document(request_id),
            Shape::Html => self.page(request_id),
        };
        if let Some(origins) = self.framed_by.as_deref().filter(|origins| !origins.is_empty()) {
            let headers = &mut response.headers;
            let policy = headers.get(header::CONTENT_SECURITY_POLICY).and_then(|policy| policy.to_str().ok());
            let policy =
                policy.unwrap_or(GUARD).replace("frame-ancestors 'none'", &format!("frame-ancestors {origins}"));
            if let Ok(policy) = HeaderValue::try_from(policy) {
                headers.insert(header::CONTENT_SECURITY_POLICY, policy);
            }
        }
        if let Some(seconds) = self.retry_after {
            response.headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = self.allow.as_deref().and_then(|methods| HeaderValue::from_str(methods).ok()) {
            response.headers.insert(header::ALLOW, allow);
        }
        response
    }

    /// RFC 9457; without `type`, which then is `about:blank`.
    fn document(&self, request_id: &str) -> LocalResponse {
        let mut document = json!({
            "status": self.code.status().as_u16(),
            "title": self.code.title(),
            "detail": self.detail,
            "code": self.code.as_str(),
            "request_id": request_id,
        });
        if let (Some(url), Some(members)) = (&self.login_url, document.as_object_mut()) {
            members.insert("login_url".to_owned(), json!(url));
        }
        LocalResponse::with_body(self.code.status(), "application/problem+json; charset=utf-8", document.to_string())
    }

    fn page(&self, request_id: &str) -> LocalResponse {
        let mut body = match &self.login_url {
            Some(url) => pages::link(self.detail, "Sign in", url),
            None => format!("<p>{}</p>", pages::escape(self.detail)),
        };
        let refresh = self.refresh_seconds();
        if let Some(seconds) = refresh {
            body.push_str(&format!("\n<p>This page tries again in {seconds} seconds.</p>"));
        } else if let Some(seconds) = self.retry_after {
            body.push_str(&format!("\n<p>Please try again in {seconds} seconds.</p>"));
        }
        body.push_str(&format!(
            "\n<dl><dt>Status</dt><dd>{}</dd><dt>Code</dt><dd>{}</dd><dt>Request</dt><dd>{}</dd></dl>",
            self.code.status().as_u16(),
            self.code.as_str(),
            pages::escape(request_id),
        ));
        let refresh = refresh.map(|seconds| (seconds, None));
        Page { title: self.code.title(), refresh, body }.respond(self.code.status())
    }

    /// A page that heals by itself asks again by itself, neither in a hurry nor never.
    fn refresh_seconds(&self) -> Option<u64> {
        matches!(self.code, Code::ProviderUnavailable | Code::StoreUnavailable)
            .then(|| self.retry_after.unwrap_or(5).clamp(2, 60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(response: &LocalResponse) -> &str {
        std::str::from_utf8(&response.body).unwrap()
    }

    #[test]
    fn err_01_a_script_reads_a_problem_document() {
        let problem = Problem::new(Code::LoginRequired, "No session.").login_url("/auth/login?return_to=/".to_owned());
        let response = problem.render(Shape::Json, "id-12345678");
        assert_eq!(response.status, StatusCode::UNAUTHORIZED);
        let media_type = response.headers.get(header::CONTENT_TYPE).unwrap().to_str().unwrap();
        assert!(media_type.starts_with("application/problem+json"));
        let document: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!(
            document,
            json!({"status": 401, "title": "Sign-in required", "detail": "No session.", "code": "login_required",
                "request_id": "id-12345678", "login_url": "/auth/login?return_to=/"})
        );
    }

    #[test]
    fn err_02_a_person_reads_a_page_with_the_same_facts() {
        let response = Problem::new(Code::Csrf, "It came from \"elsewhere\".").render(Shape::Html, "id-<12345678>");
        assert_eq!(response.status, StatusCode::FORBIDDEN);
        let page = text(&response);
        assert!(
            page.contains("<dd>csrf</dd>") && page.contains("<dd>403</dd>") && page.contains("id-&#60;12345678&#62;")
        );
        assert!(page.contains("&#34;elsewhere&#34;") && !page.contains("<script") && !page.contains("refresh"));
    }

    #[test]
    fn a_login_page_links_to_the_login() {
        let problem =
            Problem::new(Code::StepUpRequired, "x").login_url("/auth/login?acr_values=gold&max_age=0".to_owned());
        let response = problem.render(Shape::Html, "id");
        assert!(text(&response).contains("href=\"/auth/login?acr_values=gold&#38;max_age=0\""));
    }

    #[test]
    fn a_page_that_heals_by_itself_asks_again() {
        let refresh = |problem: Problem| {
            let response = problem.render(Shape::Html, "id");
            text(&response).split_once("http-equiv=\"refresh\" content=\"").map(|(_, rest)| rest[..2].to_owned())
        };
        assert_eq!(refresh(Problem::new(Code::ProviderUnavailable, "x").retry_after(10)).as_deref(), Some("10"));
        assert_eq!(refresh(Problem::new(Code::ProviderUnavailable, "x")).as_deref(), Some("5\""));
        assert_eq!(refresh(Problem::new(Code::RateLimited, "x").retry_after(10)), None);
    }

    #[test]
    fn retry_and_allow_are_headers_in_both_forms() {
        for shape in [Shape::Json, Shape::Html] {
            let problem = Problem::new(Code::MethodNotAllowed, "x").allow("GET, HEAD".to_owned()).retry_after(7);
            let response = problem.render(shape, "id");
            assert_eq!(response.headers.get(header::ALLOW).unwrap(), "GET, HEAD");
            assert_eq!(response.headers.get(header::RETRY_AFTER).unwrap(), "7");
        }
    }
}
