//! The authorization request (RFC 6749 section 4.1.1, OpenID Connect Core section 3.1.2.1, PKCE).

use std::time::Duration;

use base64_simd::URL_SAFE_NO_PAD;
use ring::digest;
use serde_json::{Map, Value};
use url::Url;

use super::dpop::DpopKey;
use super::error::ProviderError;
use super::json;
use super::metadata::ProviderMetadata;
use super::settings::Settings;
use super::signing::{SigningKey, fresh_id};
use super::token::{self, Answer};
use super::types::{Nonce, PkceVerifier, State};
use crate::clock::Timestamp;

/// How long a signed request holds: it is used at once.
const REQUEST_OBJECT_LIFE: Duration = Duration::from_secs(120);
/// A longer `request_uri` is not one: it has to fit into the browser's URL.
const MAX_REQUEST_URI: usize = 2048;

/// What one login adds to the fixed parameters.
#[derive(Clone, Debug)]
pub struct AuthorizationRequest {
    /// Ties the answer to this attempt.
    pub state: State,
    /// Ties the ID token to this attempt.
    pub nonce: Nonce,
    /// Only its challenge leaves this process now.
    pub verifier: PkceVerifier,
    /// What `/auth/login` was asked to pass on; names outside `login_params` are dropped.
    pub login_params: Vec<(String, String)>,
    /// The key that the code is bound to (RFC 9449 section 10).
    pub dpop: Option<DpopKey>,
}

/// The S256 challenge of a verifier (RFC 7636 section 4.2).
pub fn challenge(verifier: &PkceVerifier) -> String {
    URL_SAFE_NO_PAD.encode_to_string(digest::digest(&digest::SHA256, verifier.expose().as_bytes()))
}

/// The scopes to ask for: as configured, without `offline_access` where the provider does not know it.
pub fn scope(settings: &Settings, metadata: &ProviderMetadata) -> String {
    sent_scopes(settings, metadata).collect::<Vec<_>>().join(&settings.dialect.authorize.scope_separator)
}

fn sent_scopes<'a>(settings: &'a Settings, metadata: &ProviderMetadata) -> impl Iterator<Item = &'a str> {
    let wanted = |scope: &&str| *scope != "offline_access" || !metadata.denies_scope(scope);
    settings.scopes.iter().map(String::as_str).filter(wanted)
}

/// What in the request asks for a refresh token, if anything does: the scope of OpenID Connect, Salesforce's, or
/// Google's parameter.
pub fn asks_for_refresh_token(settings: &Settings, metadata: &ProviderMetadata) -> Option<&'static str> {
    let by_scope = |name: &str| sent_scopes(settings, metadata).any(|scope| scope == name);
    let by_parameter =
        || settings.authorize_params.iter().any(|(name, value)| name == "access_type" && value == "offline");
    match () {
        () if by_scope("offline_access") => Some("offline_access"),
        () if by_scope("refresh_token") => Some("the scope refresh_token"),
        () if by_parameter() => Some("access_type=offline"),
        () => None,
    }
}

/// What goes along besides what we say ourselves: the operator's parameters, then those of the link that may choose some.
/// But for a silent attempt the operator's come first.
pub fn more_parameters<'a>(
    settings: &'a Settings,
    login_params: &'a [(String, String)],
) -> impl Iterator<Item = &'a (String, String)> {
    let asked = login_params.iter().filter(|(name, _)| settings.login_params.contains(name));
    let silent = asked.clone().find(|(name, _)| name == "prompt").is_some_and(|(_, prompt)| prompt == "none");
    settings.authorize_params.iter().filter(move |(name, _)| !(silent && name == "prompt")).chain(asked)
}

/// The parameters of the request. None occurs twice (but `resource`, RFC 8707 section 2): ours win, then those of
/// [`more_parameters`].
pub fn parameters(
    settings: &Settings,
    metadata: &ProviderMetadata,
    request: &AuthorizationRequest,
) -> Vec<(String, String)> {
    let dialect = &settings.dialect;
    let mut pairs: Vec<(String, String)> = Vec::with_capacity(16);
    let mut put = |name: &str, value: &str| pairs.push((name.to_owned(), value.to_owned()));
    put("response_type", "code");
    put(&dialect.authorize.client_id_param, &settings.client_id);
    put("redirect_uri", &settings.redirect_uri);
    let scope = scope(settings, metadata);
    if !scope.is_empty() {
        put("scope", &scope);
    }
    if dialect.authorize.plain_state {
        put("state", &plain_state(request.state.expose()));
    } else {
        put("state", request.state.expose());
    }
    if settings.openid {
        put("nonce", request.nonce.expose());
    }
    if dialect.pkce {
        put("code_challenge", &challenge(&request.verifier));
        put("code_challenge_method", "S256");
    }
    if settings.form_post {
        put("response_mode", "form_post");
    }
    if let Some(thumbprint) = request.dpop.as_ref().and_then(DpopKey::thumbprint) {
        put("dpop_jkt", &thumbprint);
    }
    if let Some(audience) = &settings.audience {
        put("audience", audience);
    }
    settings.resource.iter().for_each(|resource| put("resource", resource));

    for (name, value) in more_parameters(settings, &request.login_params) {
        // The answer's form is ours to choose: it must come back to the callback as a code.
        if name != "response_mode" && !pairs.iter().any(|(known, _)| known == name) {
            pairs.push((name.clone(), value.clone()));
        }
    }
    let order = &dialect.authorize.order;
    if !order.is_empty() {
        pairs.sort_by_key(|(name, _)| order.iter().position(|first| first == name).unwrap_or(order.len()));
    }
    pairs
}

/// A `state` for providers that take letters and digits only: base64url with its two other characters, and `Z`,
/// written as `Z` and a digit.
pub fn plain_state(state: &str) -> String {
    let mut plain = String::with_capacity(state.len() + 16);
    for letter in state.chars() {
        match letter {
            'Z' => plain.push_str("Z0"),
            '-' => plain.push_str("Z1"),
            '_' => plain.push_str("Z2"),
            other => plain.push(other),
        }
    }
    plain
}

/// The `state` that [`plain_state`] was made of; none when it was made by nobody.
pub fn unplain_state(plain: &str) -> Option<String> {
    let mut state = String::with_capacity(plain.len());
    let mut letters = plain.chars();
    while let Some(letter) = letters.next() {
        state.push(match letter {
            'Z' => match letters.next()? {
                '0' => 'Z',
                '1' => '-',
                '2' => '_',
                _ => return None,
            },
            other => other,
        });
    }
    Some(state)
}

/// The URL to send the browser to. What the endpoint itself carries stays where we say nothing else.
pub fn url(endpoint: &Url, pairs: &[(String, String)]) -> String {
    let own: Vec<_> =
        endpoint.query_pairs().filter(|(name, _)| !pairs.iter().any(|(known, _)| known == name)).collect();
    let pairs = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    with_query(endpoint, own.iter().map(|(name, value)| (name.as_ref(), value.as_ref())).chain(pairs))
}

/// The request as one signed object (RFC 9101): `client_id` and `request`. None when the key does not sign.
pub fn signed(
    settings: &Settings,
    key: &SigningKey,
    pairs: &[(String, String)],
    now: Timestamp,
) -> Option<Vec<(String, String)>> {
    let mut claims = Map::new();
    for (name, value) in pairs {
        let value: Value = match (name.as_str(), value.parse::<u64>()) {
            // A number in a request object (OpenID Connect Core section 6.1).
            ("max_age", Ok(seconds)) => seconds.into(),
            _ => value.as_str().into(),
        };
        match claims.get_mut(name) {
            None => drop(claims.insert(name.clone(), value)),
            Some(Value::Array(list)) => list.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    claims.insert("iss".to_owned(), settings.client_id.as_str().into());
    claims.insert("aud".to_owned(), settings.issuer.as_str().into());
    claims.insert("jti".to_owned(), fresh_id()?.into());
    claims.insert("iat".to_owned(), now.as_secs().into());
    claims.insert("nbf".to_owned(), now.as_secs().into());
    claims.insert("exp".to_owned(), (now + REQUEST_OBJECT_LIFE).as_secs().into());
    let object = key.jwt("oauth-authz-req+jwt", None, &claims)?;
    Some(vec![("client_id".to_owned(), settings.client_id.clone()), ("request".to_owned(), object)])
}

/// Reads the answer to a pushed request (RFC 9126 section 2.2): the `request_uri`.
///
/// # Errors
/// `Unavailable` when it is worth another try, else `Refused`: the request is never sent in another way.
pub fn pushed(answer: &Answer) -> Result<String, ProviderError> {
    let members = json::object(&answer.body).unwrap_or_default();
    let fits = |text: &&str| {
        !text.is_empty() && text.len() <= MAX_REQUEST_URI && text.bytes().all(|byte| byte.is_ascii_graphic())
    };
    match (answer.status, members.get("request_uri").and_then(Value::as_str).filter(fits)) {
        (200 | 201, Some(uri)) => Ok(uri.to_owned()),
        (200 | 201, None) => Err(ProviderError::Refused { reason: "par_answer" }),
        (408 | 425 | 429 | 500.., _) => {
            Err(ProviderError::Unavailable { reason: "par", retry_after: answer.retry_after })
        }
        _ => Err(match token::refusal(&members, answer) {
            unavailable @ ProviderError::Unavailable { .. } => unavailable,
            ProviderError::Refused { reason } if reason != "error" => ProviderError::Refused { reason },
            _ => ProviderError::Refused { reason: "par" },
        }),
    }
}

/// `endpoint` with exactly these parameters.
pub(super) fn with_query<'a>(endpoint: &Url, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut url = endpoint.clone();
    url.query_pairs_mut().clear().extend_pairs(pairs);
    url.into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use serde_json::json;

    use crate::oidc::jwks::KeySet;
    use crate::oidc::jwt::{Algorithm, Unverified};
    use crate::oidc::testing::{Signer, metadata, settings};

    fn url(settings: &Settings, metadata: &ProviderMetadata, request: &AuthorizationRequest) -> String {
        super::url(&metadata.authorization, &parameters(settings, metadata, request))
    }

    fn request(login_params: &[(&str, &str)]) -> AuthorizationRequest {
        AuthorizationRequest {
            state: State::new("st"),
            nonce: Nonce::new("no"),
            verifier: PkceVerifier::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
            login_params: login_params.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            dpop: None,
        }
    }

    fn query(url: &str) -> BTreeMap<String, String> {
        let pairs: Vec<_> = Url::parse(url).unwrap().query_pairs().into_owned().collect();
        let map: BTreeMap<_, _> = pairs.iter().cloned().collect();
        assert_eq!(map.len(), pairs.len(), "a parameter occurs twice in {url}");
        map
    }

    /// BFF-02, RFC7636-01, RFC9700-04: only the code flow, always S256 (the vector of RFC 7636 appendix B).
    #[test]
    fn asks_for_a_code_with_pkce() {
        let url = url(&settings("https://op.example"), &metadata("https://op.example"), &request(&[]));
        assert!(url.starts_with("https://op.example/authorize?"));
        let query = query(&url);
        assert_eq!(query["response_type"], "code");
        assert_eq!(query["code_challenge"], "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
        assert_eq!(query["code_challenge_method"], "S256");
        assert_eq!((query["state"].as_str(), query["nonce"].as_str()), ("st", "no"));
        assert_eq!(query["redirect_uri"], "https://app.example/auth/callback");
        assert_eq!(query["scope"], "openid offline_access");
        assert!(!query.contains_key("response_mode") && !query.contains_key("code_verifier"));
    }

    #[test]
    fn offline_access_is_left_out_where_it_is_not_known() {
        let mut metadata = metadata("https://op.example");
        metadata.scopes = Some(vec!["openid".into()]);
        assert_eq!(query(&url(&settings("https://op.example"), &metadata, &request(&[])))["scope"], "openid");
    }

    /// Ours, then `authorize_params`, then the login's; never twice, never one that login may not set.
    #[test]
    fn no_parameter_twice() {
        let mut settings = settings("https://op.example");
        settings.authorize_params =
            [("prompt", "consent"), ("state", "evil"), ("x", "a b&c"), ("x", "2"), ("response_mode", "fragment")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec();
        settings.login_params = vec!["prompt".into(), "login_hint".into(), "client_id".into()];
        settings.resource = vec!["https://rs.example/".into()];
        settings.audience = Some("api".into());
        let mut metadata = metadata("https://op.example");
        metadata.authorization = Url::parse("https://op.example/authorize?policy=b2c&client_id=other&x=0").unwrap();
        let login =
            [("prompt", "none"), ("login_hint", "a"), ("login_hint", "b"), ("acr_values", "x"), ("client_id", "e")];
        let query = query(&url(&settings, &metadata, &request(&login)));
        assert_eq!(query["prompt"], "none", "who asks to be shown nothing is shown nothing");
        assert_eq!(query["state"], "st");
        assert_eq!(query["x"], "a b&c");
        assert_eq!(query["login_hint"], "a");
        assert_eq!(query["client_id"], "spa");
        assert_eq!(query["policy"], "b2c");
        assert_eq!((query["resource"].as_str(), query["audience"].as_str()), ("https://rs.example/", "api"));
        assert!(!query.contains_key("acr_values") && !query.contains_key("response_mode"));
    }

    #[test]
    fn a_refresh_token_is_asked_for_in_several_ways() {
        let mut settings = settings("https://op.example");
        let mut metadata = metadata("https://op.example");
        let ask = |settings: &Settings, metadata: &ProviderMetadata| asks_for_refresh_token(settings, metadata);
        assert_eq!(ask(&settings, &metadata), Some("offline_access"));
        metadata.scopes = Some(vec!["openid".into()]);
        assert_eq!(ask(&settings, &metadata), None, "it is not sent");
        settings.scopes = vec!["api".into(), "refresh_token".into()];
        assert_eq!(ask(&settings, &metadata), Some("the scope refresh_token"));
        settings.scopes = vec!["openid".into()];
        settings.authorize_params = vec![("access_type".into(), "offline".into())];
        assert_eq!(ask(&settings, &metadata), Some("access_type=offline"));
        settings.authorize_params = vec![("access_type".into(), "online".into())];
        assert_eq!(ask(&settings, &metadata), None);
    }

    #[test]
    fn several_resources_are_repeated() {
        let mut settings = settings("https://op.example");
        settings.resource = vec!["https://a.example".into(), "https://b.example".into()];
        let url = url(&settings, &metadata("https://op.example"), &request(&[]));
        assert_eq!(Url::parse(&url).unwrap().query_pairs().filter(|(name, _)| name == "resource").count(), 2);
    }

    /// RFC 9449 section 10, and form_post: asked for where configured.
    #[test]
    fn key_and_answer_mode_are_named() {
        let mut settings = settings("https://op.example");
        settings.form_post = true;
        let key = DpopKey::generate().unwrap();
        let request = AuthorizationRequest { dpop: Some(key.clone()), ..request(&[]) };
        let query = query(&url(&settings, &metadata("https://op.example"), &request));
        assert_eq!(query["response_mode"], "form_post");
        assert_eq!(query["dpop_jkt"], key.thumbprint().unwrap());
    }

    /// FAPI2-18: a signed request object holds all parameters; beside it stands only `client_id`.
    #[test]
    fn a_signed_request_holds_everything() {
        let signer = Signer::new(Algorithm::Es256, None);
        let key = SigningKey::parse(&signer.private_jwk("k1"), None).unwrap();
        let pairs = [("state", "st"), ("max_age", "60"), ("resource", "a:b"), ("resource", "c:d")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let now = Timestamp::from_secs(1_800_000_000);
        let sent = signed(&settings("https://op.example"), &key, &pairs, now).unwrap();
        assert_eq!(sent.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["client_id", "request"]);
        let set = KeySet::parse(json!({"keys": [signer.jwk()]}).to_string().as_bytes()).unwrap();
        let token = Unverified::parse(&sent[1].1).unwrap();
        assert!(set.verify_for_test(&token, Algorithm::Es256));
        let header = token.header();
        assert_eq!((header.typ.as_deref(), header.kid.as_deref()), (Some("oauth-authz-req+jwt"), Some("k1")));
        let payload = sent[1].1.split('.').nth(1).unwrap();
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode_to_vec(payload).unwrap()).unwrap();
        assert_eq!((&claims["iss"], &claims["aud"]), (&json!("spa"), &json!("https://op.example")));
        assert_eq!((&claims["state"], &claims["max_age"]), (&json!("st"), &json!(60)));
        assert_eq!(claims["resource"], json!(["a:b", "c:d"]));
        assert!(claims["exp"].as_u64().unwrap() <= now.as_secs() + 300);
    }

    /// FAPI2-15, RFC9126-01: only a good answer leads on.
    #[test]
    fn answers_to_a_pushed_request() {
        let read = |status, body: Value| {
            let (content_type, body) = ("application/json".to_owned(), body.to_string().into_bytes());
            pushed(&Answer { status, content_type, retry_after: None, dpop_nonce: None, nonce_challenge: false, body })
        };
        let uri = "urn:ietf:params:oauth:request_uri:x";
        assert_eq!(read(201, json!({"request_uri": uri, "expires_in": 60})).unwrap(), uri);
        for odd in
            [json!({}), json!({"request_uri": 7}), json!({"request_uri": ""}), json!({"request_uri": "a b"}), json!([])]
        {
            assert_eq!(read(201, odd), Err(ProviderError::Refused { reason: "par_answer" }));
        }
        for (status, error, reason) in [
            (401, "invalid_client", "invalid_client"),
            (401, "invalid_request", "invalid_client"),
            (400, "invalid_request", "invalid_request"),
            (400, "invalid_grant", "par"),
            (413, "x", "par"),
            (302, "x", "par"),
        ] {
            assert_eq!(read(status, json!({"error": error})), Err(ProviderError::Refused { reason }), "{status}");
        }
        for status in [429, 500, 503] {
            let error = read(status, json!({"error": "invalid_client", "request_uri": uri})).unwrap_err();
            assert!(matches!(error, ProviderError::Unavailable { .. }), "{status}");
        }
    }
}
