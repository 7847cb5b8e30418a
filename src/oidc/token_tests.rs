use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::oidc::testing::{b64, settings};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn answer(status: u16, content_type: &str, body: &str) -> Answer {
    Answer {
        status,
        content_type: content_type.into(),
        retry_after: None,
        dpop_nonce: None,
        nonce_challenge: false,
        body: body.into(),
    }
}

fn read(status: u16, body: Value) -> Result<TokenAnswer, ProviderError> {
    decode(&answer(status, "application/json", &body.to_string()), TokenType::Bearer, &Dialect::default(), None, NOW)
}

fn good() -> Value {
    json!({"access_token": "at", "token_type": "Bearer", "expires_in": 300, "refresh_token": "rt", "id_token": "a.b.c", "scope": "openid"})
}

fn with(name: &str, value: Value) -> Result<TokenAnswer, ProviderError> {
    let mut body = good();
    body[name] = value;
    read(200, body)
}

fn without(name: &str) -> Value {
    let mut body = good();
    body.as_object_mut().unwrap().remove(name);
    body
}

fn life_of(expires_in: Value) -> Option<u64> {
    with("expires_in", expires_in).unwrap().access_expires.map(|at| at.as_secs() - NOW.as_secs())
}

#[test]
fn a_code_is_redeemed_with_its_verifier() {
    let mut settings = settings("https://op.example");
    settings.token_params = [("x_token", "t 1"), ("code", "evil"), ("client_secret", "evil")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    settings.resource = vec!["https://a.example".into(), "https://b.example".into()];
    let form = code_form(&settings, &Code::new("c/1+"), &PkceVerifier::new("v"));
    assert_eq!(
        form.encoded(),
        "grant_type=authorization_code&code=c%2F1%2B&redirect_uri=https%3A%2F%2Fapp.example%2Fauth%2Fcallback\
         &code_verifier=v&resource=https%3A%2F%2Fa.example&resource=https%3A%2F%2Fb.example&x_token=t+1"
    );
    assert!(!format!("{form:?}").contains("c/1"), "a form shows no values");
}

/// oidcc-client-test-refresh-token: any printable ASCII arrives byte-exact; `scope` is not sent.
#[test]
fn a_refresh_token_is_form_encoded() {
    let token = r#"a+&=%"\; b/?#:@!$'()*,[]~"#;
    let form = refresh_form(&settings("https://op.example"), &RefreshToken::new(token), None);
    let pairs: Vec<_> = form_urlencoded::parse(form.encoded().as_bytes()).into_owned().collect();
    assert_eq!(
        pairs,
        [("grant_type".to_owned(), "refresh_token".to_owned()), ("refresh_token".to_owned(), token.to_owned())]
    );
}

/// TOK-01: `token_type` in any case, and required.
#[test]
fn token_type_is_bearer_in_any_case() {
    for kind in ["Bearer", "bearer", "BEARER", "bEARER"] {
        assert!(with("token_type", json!(kind)).is_ok());
    }
    for kind in [json!("mac"), json!("DPoP"), json!(null), json!(7), json!("Bearer ")] {
        assert_eq!(with("token_type", kind).unwrap_err(), ProviderError::Invalid { reason: "token_type" });
    }
    assert_eq!(read(200, without("token_type")).unwrap_err().reason(), "token_type");
}

/// TOK-05: nothing that could break out of a header.
#[test]
fn tokens_are_ascii() {
    for token in ["a\r\nX: 1", "a b", "", "\u{e9}", "a\u{7f}", "a\u{0}"] {
        assert_eq!(with("access_token", json!(token)).unwrap_err(), ProviderError::Invalid { reason: "access_token" });
    }
    assert_eq!(read(200, without("access_token")).unwrap_err().reason(), "access_token");
    assert_eq!(with("access_token", json!(["x"])).unwrap_err().reason(), "access_token");
    assert_eq!(with("refresh_token", json!("a\nb")).unwrap_err().reason(), "refresh_token");
    assert_eq!(with("refresh_token", json!("a b")).unwrap().refresh_token, Some(RefreshToken::new("a b")));
    for absent in [json!(null), json!("")] {
        assert_eq!(with("refresh_token", absent.clone()).unwrap().refresh_token, None);
        assert_eq!(with("id_token", absent).unwrap().id_token, None);
    }
    assert_eq!(with("id_token", json!(7)).unwrap_err().reason(), "id_token");
}

/// TOK-02, ASVS-1.4.2: numbers and numeric strings, clamped.
#[test]
fn expires_in_is_read_kindly_and_clamped() {
    assert_eq!(life_of(json!(3600)), Some(3600));
    assert_eq!(life_of(json!("3600")), Some(3600));
    assert_eq!(life_of(json!(59.9)), Some(59));
    assert_eq!(life_of(json!(-5)), Some(0));
    for huge in [json!(u64::MAX), json!(1e300), json!("99999999999999999999")] {
        assert_eq!(life_of(huge), Some(MAX_LIFE_SECS));
    }
    for nonsense in [json!("soon"), json!(null), json!([]), json!(true), json!("inf"), json!("NaN")] {
        assert_eq!(life_of(nonsense), None);
    }
}

/// TOK-02: without `expires_in` the JWT's `exp`, then the configured default, then nothing.
#[test]
fn life_without_expires_in() {
    let mut body = without("expires_in");
    let hour = Some(Duration::from_secs(3600));
    let read = |body: &Value, default| {
        let answer = answer(200, "application/json", &body.to_string());
        decode(&answer, TokenType::Bearer, &Dialect::default(), default, NOW).unwrap().access_expires
    };
    assert_eq!(read(&body, None), None);
    assert_eq!(read(&body, hour), Some(NOW + Duration::from_secs(3600)));
    body["access_token"] = json!(format!("e30.{}.c2ln", b64(json!({"exp": 1_800_000_100}).to_string())));
    assert_eq!(read(&body, hour), Some(Timestamp::from_secs(1_800_000_100)));
    body["access_token"] = json!(format!("e30.{}.c2ln", b64(json!({"exp": 250_000_000_000_u64}).to_string())));
    assert_eq!(read(&body, hour), Some(NOW + Duration::from_secs(MAX_LIFE_SECS)));
}

#[test]
fn refresh_token_life_in_both_spellings() {
    let at = |secs| Some(NOW + Duration::from_secs(secs));
    assert_eq!(with("refresh_expires_in", json!(1800)).unwrap().refresh_expires, at(1800));
    assert_eq!(with("refresh_token_expires_in", json!("60")).unwrap().refresh_expires, at(60));
    assert_eq!(with("refresh_expires_in", json!(0)).unwrap().refresh_expires, None);
    assert_eq!(read(200, good()).unwrap().refresh_expires, None);
    assert_eq!(read(200, good()).unwrap().scope.as_deref(), Some("openid"));
}

/// TOK-03 and the classes of the refresh engine.
#[test]
fn errors_are_classified() {
    use ProviderError::{Dead, Refused};
    let error = |status, error: &str| read(status, json!({ "error": error })).unwrap_err();
    assert_eq!(error(400, "invalid_grant"), Dead { reason: "invalid_grant" });
    assert_eq!(error(403, "invalid_grant"), Dead { reason: "invalid_grant" });
    assert_eq!(error(200, "invalid_grant"), Dead { reason: "invalid_grant" });
    assert_eq!(error(400, "interaction_required"), Dead { reason: "interaction_required" });
    for code in ["invalid_client", "unauthorized_client", "unsupported_grant_type"] {
        assert!(matches!(error(400, code), Refused { reason } if reason == code));
    }
    // RFC 6749 section 5.2: 401 is for who did not prove to be the client. The last two are Keycloak's words.
    for code in ["invalid_client", "unauthorized_client", "invalid_request"] {
        assert_eq!(error(401, code), Refused { reason: "invalid_client" }, "{code}");
    }
    assert_eq!(error(401, "unsupported_grant_type"), Refused { reason: "unsupported_grant_type" });
    assert_eq!(error(401, "invalid_grant"), Dead { reason: "invalid_grant" });
    for code in ["invalid_request", "something_else", ""] {
        assert!(matches!(error(400, code), Refused { .. }), "{code}");
    }
    assert!(matches!(read(400, json!({"error": 7})), Err(Refused { .. })));
    assert!(matches!(read(400, json!({})), Err(Refused { .. })));
    assert!(matches!(read(302, json!({})), Err(Refused { reason: "redirect" })));
    assert!(matches!(read(201, good()), Err(Refused { .. })));
}

#[test]
fn outages_are_no_verdict() {
    let unavailable = |status, kind: &str, body: &str| {
        let mut answer = answer(status, kind, body);
        answer.retry_after = Some(Duration::from_secs(7));
        let error = decode(&answer, TokenType::Bearer, &Dialect::default(), None, NOW).unwrap_err();
        let retry_after = Some(Duration::from_secs(7));
        assert!(
            matches!(error, ProviderError::Unavailable { retry_after: after, .. } if after == retry_after),
            "{status} {body}: {error:?}"
        );
    };
    unavailable(429, "application/json", r#"{"error":"slow_down"}"#);
    unavailable(500, "application/json", r#"{"error":"invalid_grant"}"#);
    unavailable(503, "text/html", "<h1>maintenance</h1>");
    unavailable(200, "application/json", "");
    unavailable(200, "application/json", " \r\n");
    unavailable(200, "text/html", "<html>captive portal</html>");
    unavailable(200, "application/json", " <!doctype html>");
    unavailable(403, "text/html", "<h1>blocked</h1>");
    unavailable(400, "application/json", r#"{"error":"temporarily_unavailable"}"#);
    let dialect =
        json!({"error": "invalid_request", "error_description": "multiple concurrent requests using the same token"});
    unavailable(400, "application/json", &dialect.to_string());
}

#[test]
fn dialects_that_say_dead_in_other_words() {
    for text in ["Refresh token is invalid or has already been claimed by another client.", "Refresh token expired."] {
        let error = read(400, json!({"error": "invalid_request", "error_description": text})).unwrap_err();
        assert_eq!(error, ProviderError::Dead { reason: "invalid_grant" });
    }
}

/// TOK-01: a success that is no token answer.
#[test]
fn odd_successes() {
    assert_eq!(read(200, json!([good()])).unwrap_err(), ProviderError::Invalid { reason: "token_answer" });
    let doubled = good().to_string().replacen('{', r#"{"access_token":"x","#, 1);
    let error = decode(&answer(200, "application/json", &doubled), TokenType::Bearer, &Dialect::default(), None, NOW)
        .unwrap_err();
    assert_eq!(error, ProviderError::Invalid { reason: "token_answer" });
    let cut = decode(
        &answer(200, "application/json", r#"{"access_token":"x"#),
        TokenType::Bearer,
        &Dialect::default(),
        None,
        NOW,
    )
    .unwrap_err();
    assert_eq!(cut, ProviderError::Ambiguous { reason: "unreadable" });
    assert!(
        decode(&answer(200, "text/plain", &good().to_string()), TokenType::Bearer, &Dialect::default(), None, NOW)
            .is_ok()
    );
}

#[test]
fn retry_after_in_both_forms() {
    let now = Timestamp::from_secs(784_111_777);
    assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
    assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:47 GMT", now), Some(Duration::from_secs(10)));
    assert_eq!(retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), Some(Duration::ZERO));
    assert_eq!(
        retry_after("Thu, 29 Feb 2024 00:00:00 GMT", Timestamp::from_secs(1_709_164_740)),
        Some(Duration::from_secs(60))
    );
    for far in [&"9".repeat(40), "Fri, 31 Dec 9999 23:59:59 GMT"] {
        assert_eq!(retry_after(far, now), Some(Duration::from_secs(86_400)));
    }
    for nonsense in
        ["", "-1", "1.5", "soon", "Sun, 06 Foo 1994 08:49:47 GMT", "Sun, 06 Nov 1994 08:49:47", ", a b c d GMT"]
    {
        assert_eq!(retry_after(nonsense, now), None, "{nonsense}");
    }
}

proptest! {
    #[test]
    fn reading_never_panics(status in 100_u16..600, kind in "text/html|application/json|", body in ".{0,100}") {
        let _ = decode(&answer(status, &kind, &body), TokenType::Bearer, &Dialect::default(), None, NOW);
        let _ = retry_after(&body, NOW);
    }

    #[test]
    fn what_is_read_is_safe_for_a_header(token in ".{0,12}", life in any::<f64>()) {
        if let Ok(answer) = read(200, json!({"access_token": token, "token_type": "bearer", "expires_in": life})) {
            prop_assert!(answer.access_token.expose().bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(answer.access_expires.is_none_or(|at| at >= NOW));
        }
    }
}
