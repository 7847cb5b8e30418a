//! The demo's application: a page and an API, as they would stand behind the gateway.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::json;

use super::provider::{DemoProvider, answer, json_answer, text};

/// Serves the page to anybody, and `/api/me` to whoever brings a live access token.
pub(super) async fn serve(provider: Arc<DemoProvider>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET only");
    }
    match request.uri().path() {
        "/" | "/index.html" => answer(StatusCode::OK, "text/html; charset=utf-8", include_str!("page/index.html")),
        "/app.js" => answer(StatusCode::OK, "text/javascript; charset=utf-8", include_str!("page/app.js")),
        "/client.js" => answer(StatusCode::OK, "text/javascript; charset=utf-8", include_str!("page/client.js")),
        "/style.css" => answer(StatusCode::OK, "text/css; charset=utf-8", include_str!("page/style.css")),
        "/api/me" => me(&provider, &request),
        _ => text(StatusCode::NOT_FOUND, "not found"),
    }
}

fn me(provider: &DemoProvider, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let bearer = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = bearer.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    let (user, refreshes) = provider.introspect(token);
    let Some(user) = user else {
        return json_answer(StatusCode::UNAUTHORIZED, &json!({ "error": "invalid_token" }));
    };
    // A fingerprint tells tokens apart on the page without telling one.
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    let fingerprint: String = digest.as_ref().iter().take(3).map(|byte| format!("{byte:02x}")).collect();
    json_answer(StatusCode::OK, &json!({ "user": user, "token": fingerprint, "refreshes": refreshes }))
}
