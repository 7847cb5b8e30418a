//! Leaving the provider: the end-session URL (OpenID Connect RP-Initiated Logout) and revocation (RFC 7009).

use url::Url;

use super::authorize::with_query;
use super::settings::Settings;
use super::token::Form;
use super::types::IdToken;

/// Where to send the browser so that the provider's session ends too.
pub fn end_session_url(
    endpoint: &Url,
    settings: &Settings,
    id_token_hint: Option<&IdToken>,
    state: Option<&str>,
) -> String {
    let mut pairs: Vec<(&str, &str)> = Vec::with_capacity(6);
    if let Some(hint) = id_token_hint {
        pairs.push(("id_token_hint", hint.expose()));
    }
    pairs.push(("client_id", &settings.client_id));
    pairs.push(("post_logout_redirect_uri", &settings.post_logout_redirect_uri));
    if let Some(state) = state {
        pairs.push(("state", state));
    }
    let own: Vec<_> =
        endpoint.query_pairs().filter(|(name, _)| !pairs.iter().any(|(known, _)| known == name)).collect();
    with_query(endpoint, own.iter().map(|(name, value)| (name.as_ref(), value.as_ref())).chain(pairs.iter().copied()))
}

/// The revocation request; `hint` is `refresh_token` or `access_token`.
pub fn revocation_form(token: &str, hint: &str) -> Form {
    let mut form = Form::default();
    form.set("token", token);
    form.set("token_type_hint", hint);
    form
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oidc::testing::settings;

    /// oidcc-client-test-rp-init-logout, RPL-03.
    #[test]
    fn end_session_carries_hint_and_return() {
        let endpoint = Url::parse("https://op.example/end?tenant=a&state=x").unwrap();
        let settings = settings("https://op.example");
        let url = end_session_url(&endpoint, &settings, Some(&IdToken::new("h.p.s")), Some("s1"));
        assert_eq!(
            url,
            "https://op.example/end?tenant=a&id_token_hint=h.p.s&client_id=spa\
             &post_logout_redirect_uri=https%3A%2F%2Fapp.example%2Fauth%2Flogout%2Freturn&state=s1"
        );
        let bare = end_session_url(&endpoint, &settings, None, None);
        assert!(!bare.contains("id_token_hint") && bare.contains("client_id=spa"));
    }

    /// RFC7009-01.
    #[test]
    fn revocation_names_the_kind() {
        assert_eq!(revocation_form("a+b", "refresh_token").encoded(), "token=a%2Bb&token_type_hint=refresh_token");
    }
}
