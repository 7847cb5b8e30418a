//! The authorization request (RFC 6749 section 4.1.1, OpenID Connect Core section 3.1.2.1, PKCE).

use base64_simd::URL_SAFE_NO_PAD;
use ring::digest;
use url::Url;

use super::metadata::ProviderMetadata;
use super::settings::Settings;
use super::types::{Nonce, PkceVerifier, State};

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
}

/// The S256 challenge of a verifier (RFC 7636 section 4.2).
pub fn challenge(verifier: &PkceVerifier) -> String {
    URL_SAFE_NO_PAD.encode_to_string(digest::digest(&digest::SHA256, verifier.expose().as_bytes()))
}

/// The scopes to ask for: as configured, without `offline_access` where the provider does not know it.
pub fn scope(settings: &Settings, metadata: &ProviderMetadata) -> String {
    let wanted = |scope: &&String| *scope != "offline_access" || !metadata.denies_scope(scope);
    settings.scopes.iter().filter(wanted).map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// The URL to send the browser to. No parameter occurs twice (but `resource`, RFC 8707 section 2): ours win, then
/// `authorize_params`, then the login's, then what the endpoint itself carries.
pub fn url(settings: &Settings, metadata: &ProviderMetadata, request: &AuthorizationRequest) -> String {
    let mut pairs: Vec<(&str, &str)> = Vec::with_capacity(16);
    let (scope, challenge) = (scope(settings, metadata), challenge(&request.verifier));
    pairs.push(("response_type", "code"));
    pairs.push(("client_id", &settings.client_id));
    pairs.push(("redirect_uri", &settings.redirect_uri));
    if !scope.is_empty() {
        pairs.push(("scope", &scope));
    }
    pairs.push(("state", request.state.expose()));
    pairs.push(("nonce", request.nonce.expose()));
    pairs.push(("code_challenge", &challenge));
    pairs.push(("code_challenge_method", "S256"));
    if let Some(audience) = &settings.audience {
        pairs.push(("audience", audience));
    }
    pairs.extend(settings.resource.iter().map(|resource| ("resource", resource.as_str())));

    let endpoint = &metadata.authorization;
    let fixed = settings.authorize_params.iter();
    let asked = request.login_params.iter().filter(|(name, _)| settings.login_params.contains(name));
    for (name, value) in fixed.chain(asked) {
        // The answer's form is ours to choose: it must come back to the callback as a code.
        if name != "response_mode" && !pairs.iter().any(|(known, _)| known == name) {
            pairs.push((name, value));
        }
    }
    let own: Vec<_> =
        endpoint.query_pairs().filter(|(name, _)| !pairs.iter().any(|(known, _)| known == name)).collect();
    with_query(endpoint, own.iter().map(|(name, value)| (name.as_ref(), value.as_ref())).chain(pairs.iter().copied()))
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
    use crate::oidc::testing::{metadata, settings};

    fn request(login_params: &[(&str, &str)]) -> AuthorizationRequest {
        AuthorizationRequest {
            state: State::new("st"),
            nonce: Nonce::new("no"),
            verifier: PkceVerifier::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
            login_params: login_params.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
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
        assert_eq!(query["prompt"], "consent");
        assert_eq!(query["state"], "st");
        assert_eq!(query["x"], "a b&c");
        assert_eq!(query["login_hint"], "a");
        assert_eq!(query["client_id"], "spa");
        assert_eq!(query["policy"], "b2c");
        assert_eq!((query["resource"].as_str(), query["audience"].as_str()), ("https://rs.example/", "api"));
        assert!(!query.contains_key("acr_values") && !query.contains_key("response_mode"));
    }

    #[test]
    fn several_resources_are_repeated() {
        let mut settings = settings("https://op.example");
        settings.resource = vec!["https://a.example".into(), "https://b.example".into()];
        let url = url(&settings, &metadata("https://op.example"), &request(&[]));
        assert_eq!(Url::parse(&url).unwrap().query_pairs().filter(|(name, _)| name == "resource").count(), 2);
    }
}
