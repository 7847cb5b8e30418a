//! Towards the browser: the upstream's head as it leaves us.

use base64_simd::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};

use super::ctx::Forward;
use super::placement;
use super::state::State;
use crate::web::{cookies, headers};

/// Whether a 101 is the answer to the handshake that was sent (RFC 6455 section 4.1).
pub fn is_valid_switch(request: &RequestHeader, response: &ResponseHeader) -> bool {
    let Some(key) = request.headers.get(header::SEC_WEBSOCKET_KEY) else { return false };
    let mut context = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = STANDARD.encode_to_string(context.finish());
    let says = |name: HeaderName, wanted: &str| {
        response.headers.get_all(name).iter().any(|value| {
            value.to_str().is_ok_and(|text| text.split(',').any(|item| item.trim().eq_ignore_ascii_case(wanted)))
        })
    };
    let accepts: Vec<_> = response.headers.get_all(header::SEC_WEBSOCKET_ACCEPT).iter().collect();
    says(header::UPGRADE, "websocket") && says(header::CONNECTION, "upgrade") && accepts == [accept.as_str()]
}

/// Whether everybody who reads this head finds the answer's end in the same place (RFC 9112 section 6). Pingora looks at the
/// last word of `Transfer-Encoding` only and would pass the others on, for a proxy before us to be misled by.
pub fn has_one_end(response: &ResponseHeader) -> bool {
    let mut codings = response.headers.get_all(header::TRANSFER_ENCODING).iter();
    let coded = match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => {
            coding.as_bytes().eq_ignore_ascii_case(b"chunked") && response.version != Version::HTTP_10
        }
        (Some(_), Some(_)) => false,
    };
    coded && headers::has_plain_length(&response.headers)
}

/// Takes away what must not pass and adds what must: hop-by-hop fields and those that `Connection` nominates,
/// cookies under our names, the route's own fields, CORS.
pub fn rewrite(response: &mut ResponseHeader, state: &State, forward: &Forward, cors: Option<&HeaderValue>) {
    let switching = response.status == StatusCode::SWITCHING_PROTOCOLS;
    let mut unwanted: Vec<HeaderName> = headers::nominated(&response.headers)
        .into_iter()
        .filter_map(|name| HeaderName::try_from(name.as_str()).ok())
        .filter(|name| *name != header::UPGRADE || !switching)
        .collect();
    unwanted.extend(response.headers.keys().filter(|name| is_unwanted(name, switching)).cloned());
    for name in unwanted {
        response.remove_header(&name);
    }
    drop_framing_of_nothing(response);
    drop_our_cookies(response, state);
    drop_internal_challenges(response);
    placement::withdraw(response, state, forward);
    for (name, value) in &forward.route.settings.response_headers {
        let _ = response.insert_header(name.clone(), value.clone());
    }
    if let Some(origin) = cors {
        for (name, value) in cors_fields(origin) {
            let _ = response.insert_header(name, value);
        }
        let _ = response.append_header(header::VARY, HeaderValue::from_static("Origin"));
    }
}

/// For a client of HTTP/1.0, which need not know chunks and must not be sent any (RFC 9112 section 6.1). True when nothing
/// but the connection's end tells where the answer ends.
pub fn end_by_closing(response: &mut ResponseHeader) -> bool {
    response.remove_header(&header::TRANSFER_ENCODING).is_some()
}

/// The same for an interim answer, on which nothing of ours stands: an early hint tells what to load and no more.
pub fn rewrite_interim(response: &mut ResponseHeader) {
    let kept = [header::LINK, header::CONTENT_SECURITY_POLICY];
    let unwanted: Vec<HeaderName> = response.headers.keys().filter(|name| !kept.contains(name)).cloned().collect();
    for name in unwanted {
        response.remove_header(&name);
    }
}

/// Trailers go to clients of gRPC only, for which they hold the call's status; as headers they would say nothing.
pub fn rewrite_trailers(trailers: &mut HeaderMap, grpc: bool) {
    if !grpc {
        return trailers.clear();
    }
    let unwanted: Vec<HeaderName> =
        trailers.keys().filter(|name| is_unwanted(name, false) || is_never_trailing(name)).cloned().collect();
    for name in unwanted {
        trailers.remove(&name);
    }
}

/// Fields that frame, route or authenticate a message, or change what the browser keeps (RFC 9110 section 6.5.1).
fn is_never_trailing(name: &HeaderName) -> bool {
    [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::HOST,
        header::SET_COOKIE,
        header::TRANSFER_ENCODING,
        header::WWW_AUTHENTICATE,
    ]
    .contains(name)
}

fn is_unwanted(name: &HeaderName, switching: bool) -> bool {
    // Pingora frames the answer itself; after a 101 `Connection` and `Upgrade` are the answer.
    let framing = *name == header::TRANSFER_ENCODING || *name == header::CONNECTION;
    let upgrade = *name == header::UPGRADE && switching;
    (headers::is_hop_by_hop(name.as_str()) && !framing && !upgrade) || headers::is_internal_response(name.as_str())
}

/// An answer that never has a body says nothing of one (RFC 9112 sections 6.1 and 6.2): who believed it would wait for
/// what belongs to the next.
fn drop_framing_of_nothing(response: &mut ResponseHeader) {
    let status = response.status;
    let bodiless = status.is_informational() || status == StatusCode::NO_CONTENT;
    if bodiless || status == StatusCode::NOT_MODIFIED {
        response.remove_header(&header::TRANSFER_ENCODING);
    }
    if bodiless {
        response.remove_header(&header::CONTENT_LENGTH);
    }
}

fn drop_our_cookies(response: &mut ResponseHeader, state: &State) {
    let values: Vec<HeaderValue> = response.headers.get_all(header::SET_COOKIE).iter().cloned().collect();
    let ours = |value: &HeaderValue| cookies::set_cookie_name(value).is_some_and(|name| state.jar.owns(name));
    if values.iter().any(ours) {
        response.remove_header(&header::SET_COOKIE);
        for value in values.into_iter().filter(|value| !ours(value)) {
            let _ = response.append_header(header::SET_COOKIE, value);
        }
    }
}

/// What an upstream and its proxy have to settle between them; above all NTLM and Negotiate, which would authenticate a
/// connection that we share between users.
fn drop_internal_challenges(response: &mut ResponseHeader) {
    let values: Vec<HeaderValue> = response.headers.get_all(header::WWW_AUTHENTICATE).iter().cloned().collect();
    if values.iter().any(headers::is_internal_challenge) {
        response.remove_header(&header::WWW_AUTHENTICATE);
        for value in values.into_iter().filter(|value| !headers::is_internal_challenge(value)) {
            let _ = response.append_header(header::WWW_AUTHENTICATE, value);
        }
    }
}

/// Adds our cookies; appended, so that the upstream's own survive. An answer that carries a session is no shared
/// cache's business (RFR-10).
pub fn add_cookies(response: &mut ResponseHeader, cookies: Vec<HeaderValue>) {
    if cookies.is_empty() {
        return;
    }
    for cookie in cookies {
        let _ = response.append_header(header::SET_COOKIE, cookie);
    }
    let private = response.headers.get_all(header::CACHE_CONTROL).iter().any(|value| {
        value.to_str().is_ok_and(|text| {
            text.split(',').any(|item| {
                let name = item.split('=').next().unwrap_or(item).trim();
                name.eq_ignore_ascii_case("no-store") || (item.trim().eq_ignore_ascii_case("private"))
            })
        })
    });
    let public = response
        .headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .any(|value| value.to_str().is_ok_and(|text| text.to_ascii_lowercase().contains("public")));
    if !private || public {
        response.remove_header(&header::CACHE_CONTROL);
        let _ = response.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    }
}

/// What lets a page of a listed origin read the answer (Fetch standard, section 3.3).
pub fn cors_fields(origin: &HeaderValue) -> [(HeaderName, HeaderValue); 2] {
    [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()),
        (header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true")),
    ]
}
