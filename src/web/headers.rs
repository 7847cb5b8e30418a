//! Which fields stop here: hop-by-hop ones both ways, what a client must not claim, what an upstream tells its proxy.
//!
//! Names are compared as CGI-style servers fold them (`X_User`, `X.User` and `x-user` are one variable there), without
//! allocating: every request asks for every field.

use std::cmp::Ordering;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::Value;

/// Longest value of an identity header; upstreams commonly take 8 KiB of headers in all.
const MAX_CLAIM: usize = 8 * 1024;

/// Fields of one connection (RFC 9110 section 7.6.1). `TE: trailers` is the caller's to keep for gRPC.
pub fn is_hop_by_hop(name: &str) -> bool {
    // Of the names below; every field of every message is asked about.
    if !matches!(
        name.as_bytes(),
        [b'c' | b'C' | b'h' | b'H' | b'k' | b'K' | b'p' | b'P' | b't' | b'T' | b'u' | b'U', ..]
    ) {
        return false;
    }
    const NAMES: &[&str] = &[
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-authentication-info",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    ];
    NAMES.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// The fields that `Connection` declares hop-by-hop. Take them out before adding ours, so that ours stay. `Host` and
/// the framing are not a client's to remove.
pub fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|option| !option.eq_ignore_ascii_case(b"close") && !option.eq_ignore_ascii_case(b"keep-alive"))
        .filter_map(|option| HeaderName::from_bytes(option).ok())
        .filter(|name| ![header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING].contains(name))
        .collect()
}

/// Whether `Content-Length` is absent, or one number in the one way to write it. The libraries below take repeated fields,
/// lists and leading zeros as long as they agree, and would pass them on to somebody who reads them otherwise.
pub fn has_plain_length(headers: &HeaderMap) -> bool {
    let mut fields = headers.get_all(header::CONTENT_LENGTH).iter();
    let (length, more) = (fields.next(), fields.next());
    more.is_none()
        && length.is_none_or(|length| {
            let digits = length.as_bytes();
            digits == b"0" || (!digits.starts_with(b"0") && !digits.is_empty() && digits.iter().all(u8::is_ascii_digit))
        })
}

/// Fields that a client must not send upstream: credentials, and what only a proxy may say. Identity headers of the
/// configuration come on top ([`folds_to`]). `Cookie`, `X-Request-Id` and `traceparent` are judged by their values.
pub fn is_removed_from_client(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "authorization",
        "proxy",
        "dpop",
        "cookie2",
        "forwarded",
        "x_real_ip",
        "x_http_method",
        "x_http_method_override",
        "x_method_override",
    ];
    const PREFIXES: &[&str] = &["proxy_", "x_forwarded_", "x_original_", "x_rewrite_"];
    if name.contains('_') {
        return true;
    }
    let begins = matches!(
        name.as_bytes(),
        [b'a' | b'A' | b'c' | b'C' | b'd' | b'D' | b'f' | b'F' | b'p' | b'P' | b'x' | b'X', ..]
    );
    begins
        && (NAMES.iter().any(|known| folds_to(name, known))
            || PREFIXES.iter().any(|prefix| folded(name).take(prefix.len()).eq(prefix.bytes())))
}

/// A name as CGI-style servers see it: lower case, all but letters and digits become `_`.
pub fn fold(name: &str) -> String {
    folded(name).map(char::from).collect()
}

/// Whether a name in any spelling is the one that [`fold`] gave.
pub fn folds_to(name: &str, known: &str) -> bool {
    name.len() == known.len() && folded(name).eq(known.bytes())
}

/// How what [`fold`] gave sorts against a name in any spelling; for searches without allocating.
pub fn cmp_folded(known: &str, name: &str) -> Ordering {
    known.bytes().cmp(folded(name))
}

/// Fields of an upstream's answer that are for its proxy, or that tell of the inside.
pub fn is_internal_response(name: &str) -> bool {
    const NAMES: &[&str] = &["server", "x_powered_by", "x_sendfile", "authorization", "dpop_nonce"];
    NAMES.iter().any(|known| folds_to(name, known))
        || ["x_accel_", "proxy_"].iter().any(|prefix| folded(name).take(prefix.len()).eq(prefix.bytes()))
}

/// Challenges (`WWW-Authenticate`) that must not reach the browser: DPoP is between us and the upstream, and NTLM and
/// Negotiate authenticate a connection, which we share between users.
pub fn is_internal_challenge(value: &HeaderValue) -> bool {
    // Several challenges may stand in one value: each, and each further parameter, follows a comma.
    value.as_bytes().split(|byte| *byte == b',').any(|part| {
        let scheme = part.trim_ascii().split(|byte| matches!(byte, b' ' | b'\t')).next().unwrap_or_default();
        ["dpop", "ntlm", "negotiate"].iter().any(|known| scheme.eq_ignore_ascii_case(known.as_bytes()))
    })
}

/// A claim as the value of an identity header: printable ASCII as it is, other text percent-encoded. A list of strings
/// is joined by `,`, with commas inside an element encoded, so that no element can pose as two. `None` for what has no
/// such form, is empty, or is longer than 8 KiB.
pub fn encode_claim(value: &Value) -> Option<HeaderValue> {
    let text = match value {
        Value::String(text) => encode(text, false),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Array(list) => {
            let items: Option<Vec<String>> =
                list.iter().map(|item| item.as_str().map(|text| encode(text, true))).collect();
            items?.join(",")
        }
        Value::Null | Value::Object(_) => return None,
    };
    if text.is_empty() || text.len() > MAX_CLAIM {
        return None;
    }
    let mut value = HeaderValue::from_str(&text).ok()?;
    // Personal data: not for debug output.
    value.set_sensitive(true);
    Some(value)
}

fn encode(text: &str, in_list: bool) -> String {
    const TEXT: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b',');
    let printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        && text.trim_ascii().len() == text.len()
        && !(in_list && text.contains(','));
    // No encoded form is shorter, so there is no need to build one that is too long.
    if printable || text.len() > MAX_CLAIM { text.to_owned() } else { utf8_percent_encode(text, TEXT).to_string() }
}

fn folded(name: &str) -> impl Iterator<Item = u8> {
    name.bytes().map(|byte| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'_' })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn hdr_08_hdr_06_what_a_client_must_not_claim() {
        for name in [
            "authorization",
            "Authorization",
            "proxy-authorization",
            "proxy",
            "dpop",
            "cookie2",
            "forwarded",
            "x-real-ip",
            "x-forwarded-for",
            "X-Forwarded-User",
            "x.forwarded.for",
            "x-original-url",
            "x-rewrite-url",
            "x-http-method-override",
            "x-http-method",
            "x-method-override",
            "content_length",
            "authorization_",
            "_host",
        ] {
            assert!(is_removed_from_client(name), "{name}");
        }
        for name in ["host", "cookie", "content-type", "x-request-id", "traceparent", "x-forward", "x-custom", "dnt"] {
            assert!(!is_removed_from_client(name), "{name}");
        }
    }

    #[test]
    fn hdr_03_every_spelling_folds_to_one() {
        let known = fold("X-User");
        for name in ["X-User", "x-user", "X_User", "X.User", "x~user"] {
            assert!(folds_to(name, &known), "{name}");
            assert_eq!(cmp_folded(&known, name), Ordering::Equal, "{name}");
        }
        for name in ["x-users", "x-use", "xuser", "x--user"] {
            assert!(!folds_to(name, &known), "{name}");
            assert_eq!(cmp_folded(&known, name), known.cmp(&fold(name)), "{name}");
        }
    }

    #[test]
    fn hdr_01_02_connection_names_its_own() {
        let mut headers = HeaderMap::new();
        for value in ["keep-alive, x-hop , X-HOP2,,", "close", "Host, Content-Length, authorization", "b@d"] {
            headers.append(header::CONNECTION, HeaderValue::from_static(value));
        }
        let names = nominated(&headers);
        assert_eq!(names, ["x-hop", "x-hop2", "authorization"]);
        for name in ["Connection", "keep-alive", "TE", "trailer", "transfer-encoding", "upgrade", "proxy-authenticate"]
        {
            assert!(is_hop_by_hop(name), "{name}");
        }
        assert!(!is_hop_by_hop("set-cookie"));
    }

    #[test]
    fn http_02_03_a_length_is_said_once_and_in_one_way() {
        let plain = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::CONTENT_LENGTH, HeaderValue::from_static(value));
            }
            has_plain_length(&headers)
        };
        assert!(plain(&[]) && plain(&["0"]) && plain(&["10"]));
        for odd in [&["5", "5"][..], &["5, 5"], &["05"], &["00"], &["+5"], &["-0"], &["0x5"], &[""], &["5 "]] {
            assert!(!plain(odd), "{odd:?}");
        }
    }

    #[test]
    fn hdr_10_what_an_upstream_tells_its_proxy() {
        for name in ["x-accel-redirect", "X-Sendfile", "dpop-nonce", "server", "x-powered-by", "proxy-authenticate"] {
            assert!(is_internal_response(name), "{name}");
        }
        for name in ["set-cookie", "content-security-policy", "server-timing", "www-authenticate", "x-accelerate"] {
            assert!(!is_internal_response(name), "{name}");
        }
        for value in ["DPoP algs=\"ES256\"", "NTLM", "negotiate abc", "Bearer realm=\"x\", dPoP error=\"y\""] {
            assert!(is_internal_challenge(&HeaderValue::from_static(value)), "{value}");
        }
        assert!(!is_internal_challenge(&HeaderValue::from_static("Bearer error=\"invalid_token\"")));
    }

    #[test]
    fn hdr_12_claims_stay_inside_their_header() {
        for (claim, value) in [
            (json!("alice"), Some("alice")),
            (json!("Alice, A. (100%)"), Some("Alice, A. (100%)")),
            (json!(42), Some("42")),
            (json!(true), Some("true")),
            (json!("a\r\nX-Injected: 1"), Some("a%0D%0AX-Injected:%201")),
            (json!("a\u{0}b"), Some("a%00b")),
            (json!("Zoë 100%"), Some("Zo%C3%AB%20100%25")),
            (json!("  padded  "), Some("%20%20padded%20%20")),
            (json!(["staff", "ops"]), Some("staff,ops")),
            (json!(["a,admin", "ö"]), Some("a%2Cadmin,%C3%B6")),
            (json!(["a", 1]), None),
            (json!([]), None),
            (json!(""), None),
            (json!(null), None),
            (json!({"a": 1}), None),
            (json!("x".repeat(100_000)), None),
            (json!("ö".repeat(8_000)), None),
        ] {
            let encoded = encode_claim(&claim);
            assert_eq!(encoded.as_ref().map(|value| value.to_str().unwrap()), value);
        }
    }

    proptest! {
        #[test]
        fn hdr_12_no_text_breaks_a_header(text in any::<String>()) {
            if let Some(value) = encode_claim(&json!([text, "x"])) {
                prop_assert!(value.as_bytes().iter().all(|byte| (b' '..=b'~').contains(byte)));
                prop_assert_eq!(value.as_bytes().iter().filter(|byte| **byte == b',').count(), 1);
            }
        }
    }
}
