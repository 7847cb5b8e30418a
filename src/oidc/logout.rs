//! Leaving the provider: the end-session URL (OpenID Connect RP-Initiated Logout), revocation (RFC 7009), and the
//! provider's word that a session is over (OpenID Connect Back-Channel Logout).

use serde_json::Value;
use url::Url;

use super::authorize::with_query;
use super::error::Fault;
use super::id_token::{check_parties, skew, text, time};
use super::jwt::{Claims, Verified};
use super::settings::{LogoutStyle, Settings};
use super::token::Form;
use super::types::IdToken;
use crate::clock::Timestamp;

/// An older logout token is none.
const MAX_AGE_MILLIS: u64 = 5 * 60 * 1000;
/// Claims that become names; nothing that a provider sends is longer.
const MAX_CLAIM_BYTES: usize = 1024;
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// Where to send the browser so that the provider's session ends too; none where the provider has no such thing.
pub fn end_session_url(
    endpoint: &Url,
    settings: &Settings,
    id_token_hint: Option<&IdToken>,
    state: Option<&str>,
) -> Option<String> {
    let return_to = settings.post_logout_redirect_uri.as_str();
    let mut pairs: Vec<(&str, &str)> = Vec::with_capacity(4);
    match settings.logout_style {
        LogoutStyle::Oidc => {
            pairs.extend(id_token_hint.map(|hint| ("id_token_hint", hint.expose())));
            pairs.extend([("client_id", settings.client_id.as_str()), ("post_logout_redirect_uri", return_to)]);
            pairs.extend(state.map(|state| ("state", state)));
        }
        LogoutStyle::Cognito => pairs.extend([("client_id", settings.client_id.as_str()), ("logout_uri", return_to)]),
        LogoutStyle::Auth0V2 => pairs.extend([("client_id", settings.client_id.as_str()), ("returnTo", return_to)]),
        LogoutStyle::None => return None,
    }
    let own: Vec<_> =
        endpoint.query_pairs().filter(|(name, _)| !pairs.iter().any(|(known, _)| known == name)).collect();
    let own = own.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
    Some(with_query(endpoint, own.chain(pairs.iter().copied())))
}

/// What a logout token that holds says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogoutToken {
    pub ends: Ends,
    /// Names the token.
    pub jti: String,
    /// From then on it is refused for its age.
    pub until: Timestamp,
}

/// Whose sessions a logout token ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ends {
    /// The sessions that belong to this one of the provider's; `sub` says whose it is, if the token has it.
    ProviderSession { sid: String, sub: Option<String> },
    /// All of the user.
    Subject(String),
}

/// Checks the claims of a logout token (OpenID Connect Back-Channel Logout 1.0 section 2.6). `exp` counts if it is
/// there; `typ` may be absent or `JWT`, since providers still send such.
///
/// # Errors
/// The claim that does not hold.
pub fn check_logout_token(token: &Verified<Claims>, settings: &Settings, now: Timestamp) -> Result<LogoutToken, Fault> {
    let is_known =
        |typ: &String| ["logout+jwt", "application/logout+jwt", "JWT"].iter().any(|k| typ.eq_ignore_ascii_case(k));
    if !token.header().typ.as_ref().is_none_or(is_known) {
        return Err(Fault("typ"));
    }
    let claims = token.get();
    check_parties(claims, settings)?;
    let (millis, skew) = (now.as_millis(), skew(settings));
    let iat = time(claims, "iat")?.ok_or(Fault("iat"))?;
    if iat > millis.saturating_add(skew) || millis.saturating_sub(iat) > MAX_AGE_MILLIS {
        return Err(Fault("iat"));
    }
    if time(claims, "exp")?.is_some_and(|exp| millis > exp.saturating_add(skew)) {
        return Err(Fault("exp"));
    }
    if time(claims, "nbf")?.is_some_and(|nbf| nbf > millis.saturating_add(skew)) {
        return Err(Fault("nbf"));
    }
    let event = claims.get("events").and_then(Value::as_object).and_then(|events| events.get(EVENT));
    if !event.is_some_and(Value::is_object) {
        return Err(Fault("events"));
    }
    // An ID token has one; this is what tells the two apart where neither has a `typ`.
    if claims.contains_key("nonce") {
        return Err(Fault("nonce"));
    }
    let word = |name: &'static str| match text(claims, name)? {
        Some(word) if word.is_empty() || word.len() > MAX_CLAIM_BYTES => Err(Fault(name)),
        word => Ok(word.map(str::to_owned)),
    };
    let ends = match (word("sid")?, word("sub")?) {
        (Some(sid), sub) => Ends::ProviderSession { sid, sub },
        (None, Some(sub)) => Ends::Subject(sub),
        (None, None) => return Err(Fault("sub")),
    };
    let jti = word("jti")?.ok_or(Fault("jti"))?;
    // One more, for the fraction of a second.
    let until = Timestamp::from_millis(iat.saturating_add(MAX_AGE_MILLIS + 1));
    Ok(LogoutToken { ends, jti, until })
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
            url.unwrap(),
            "https://op.example/end?tenant=a&id_token_hint=h.p.s&client_id=spa\
             &post_logout_redirect_uri=https%3A%2F%2Fapp.example%2Fauth%2Flogout%2Freturn&state=s1"
        );
        let bare = end_session_url(&endpoint, &settings, None, None).unwrap();
        assert!(!bare.contains("id_token_hint") && bare.contains("client_id=spa"));
    }

    /// What providers take that are older than the standard.
    #[test]
    fn other_styles_of_logout() {
        let endpoint = Url::parse("https://op.example/logout").unwrap();
        let mut settings = settings("https://op.example");
        let hint = IdToken::new("h.p.s");
        let mut url = |style| {
            settings.logout_style = style;
            end_session_url(&endpoint, &settings, Some(&hint), Some("s1"))
        };
        let back = "https%3A%2F%2Fapp.example%2Fauth%2Flogout%2Freturn";
        assert_eq!(
            url(LogoutStyle::Cognito).unwrap(),
            format!("https://op.example/logout?client_id=spa&logout_uri={back}")
        );
        assert_eq!(
            url(LogoutStyle::Auth0V2).unwrap(),
            format!("https://op.example/logout?client_id=spa&returnTo={back}")
        );
        assert_eq!(url(LogoutStyle::None), None);
    }

    /// RFC7009-01.
    #[test]
    fn revocation_names_the_kind() {
        assert_eq!(revocation_form("a+b", "refresh_token").encoded(), "token=a%2Bb&token_type_hint=refresh_token");
    }
}
