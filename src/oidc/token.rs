//! The token endpoint's language (RFC 6749 sections 4.1.3, 5 and 6): forms out, answers in.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value};
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::dialect::{Dialect, Response};
use super::error::{Fault, ProviderError};
use super::json::{self, JsonError};
use super::jwt;
use super::settings::Settings;
use super::types::{AccessToken, Code, PkceVerifier, RefreshToken, TokenSet, TokenTarget};
use crate::clock::Timestamp;

/// The longest life that is believed. More is a mistake of the provider, or an attempt at overflow.
pub(super) const MAX_LIFE_SECS: u64 = 366 * 24 * 3600;

/// A longer subject is not one (OpenID Connect Core section 2).
const MAX_SUBJECT_BYTES: usize = 255;

/// The error of RFC 9449 section 8.
const USE_NONCE: &str = "use_dpop_nonce";

/// How an access token is to be presented (RFC 6749 section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenType {
    /// RFC 6750.
    Bearer,
    /// RFC 9449: with a proof.
    Dpop,
}

impl TokenType {
    /// The type of a token that is bound to a key, or is not.
    pub const fn bound(is_bound: bool) -> Self {
        if is_bound { Self::Dpop } else { Self::Bearer }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Bearer => "Bearer",
            Self::Dpop => "DPoP",
        }
    }
}

/// A form body (`application/x-www-form-urlencoded`). Its values are secrets; `Debug` shows only names.
#[derive(Clone, Default)]
pub struct Form {
    names: Vec<String>,
    encoded: Zeroizing<String>,
}

impl Form {
    /// Adds a parameter unless it is there already.
    pub fn set(&mut self, name: &str, value: &str) {
        if !self.names.iter().any(|known| known == name) {
            self.add(name, value);
        }
    }

    /// Adds a parameter that may be repeated.
    pub(super) fn add(&mut self, name: &str, value: &str) {
        self.names.push(name.to_owned());
        if !self.encoded.is_empty() {
            self.encoded.push('&');
        }
        self.encoded.extend(form_urlencoded::byte_serialize(name.as_bytes()));
        self.encoded.push('=');
        self.encoded.extend(form_urlencoded::byte_serialize(value.as_bytes()));
    }

    /// The parameters, decoded.
    pub fn pairs(&self) -> Vec<(String, String)> {
        form_urlencoded::parse(self.encoded.as_bytes()).into_owned().collect()
    }

    /// The body.
    pub fn encoded(&self) -> &str {
        &self.encoded
    }
}

impl fmt::Debug for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Form").field(&self.names).finish()
    }
}

/// The authorization-code grant (RFC 6749 section 4.1.3, RFC 7636 section 4.5). Client authentication is added by the
/// client.
pub fn code_form(settings: &Settings, code: &Code, verifier: &PkceVerifier) -> Form {
    let mut form = Form::default();
    form.set("grant_type", "authorization_code");
    form.set("code", code.expose());
    form.set("redirect_uri", &settings.redirect_uri);
    if settings.dialect.pkce {
        form.set("code_verifier", verifier.expose());
    }
    extras(form, settings)
}

/// The refresh grant (RFC 6749 section 6). For the session's own tokens `scope` is not sent: what was granted stays. A target
/// of another audience or resource (RFC 8707 section 2.2) replaces the provider's `resource`.
pub fn refresh_form(settings: &Settings, token: &RefreshToken, target: Option<&TokenTarget>) -> Form {
    let mut form = Form::default();
    form.set("grant_type", "refresh_token");
    form.set("refresh_token", token.expose());
    let Some(target) = target else { return extras(form, settings) };
    aim(&mut form, target);
    if target.audience.is_none() && target.resource.is_empty() { extras(form, settings) } else { fixed(form, settings) }
}

/// Token exchange (RFC 8693 section 2.1): an access token for an access token. `resource` and `audience` of the provider
/// are those of the session's token, so they are not sent.
pub fn exchange_form(settings: &Settings, subject: &AccessToken, target: &TokenTarget) -> Form {
    const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
    let mut form = Form::default();
    form.set("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange");
    form.set("subject_token", subject.expose());
    form.set("subject_token_type", ACCESS_TOKEN);
    form.set("requested_token_type", ACCESS_TOKEN);
    aim(&mut form, target);
    fixed(form, settings)
}

/// The client credentials grant (RFC 6749 section 4.4).
pub fn client_form(settings: &Settings, target: &TokenTarget) -> Form {
    let mut form = Form::default();
    form.set("grant_type", "client_credentials");
    aim(&mut form, target);
    fixed(form, settings)
}

fn aim(form: &mut Form, target: &TokenTarget) {
    if let Some(audience) = &target.audience {
        form.set("audience", audience);
    }
    for resource in &target.resource {
        form.add("resource", resource);
    }
    if !target.scopes.is_empty() {
        form.set("scope", &target.scopes.join(" "));
    }
}

/// Whether a token that was asked for a target may go to that target's upstream, as far as can be seen: a provider may
/// leave out of consideration what it does not know. `own`: the session's access token.
///
/// # Errors
/// `Refused` with `invalid_scope` when the answer says that there is less scope, with `target_ignored` when the token is
/// one for the session's own audience.
pub fn judge_target(target: &TokenTarget, given: &TokenSet, own: &AccessToken) -> Result<(), ProviderError> {
    if given.scope.as_deref().is_some_and(|scope| target.is_denied(scope)) {
        return Err(ProviderError::Refused { reason: "invalid_scope" });
    }
    let elsewhere = target.audience.is_some() || !target.resource.is_empty();
    let same = || {
        let (audience, before) = (jwt::peek_audience(given.access_token.expose()), jwt::peek_audience(own.expose()));
        let named = |one: &String| target.audience.as_ref() == Some(one) || target.resource.contains(one);
        !audience.is_empty() && audience == before && !audience.iter().any(named)
    };
    if given.access_token.expose() == own.expose() || elsewhere && same() {
        return Err(ProviderError::Refused { reason: "target_ignored" });
    }
    Ok(())
}

fn extras(mut form: Form, settings: &Settings) -> Form {
    for resource in &settings.resource {
        form.add("resource", resource);
    }
    fixed(form, settings)
}

fn fixed(mut form: Form, settings: &Settings) -> Form {
    // How we authenticate is not a parameter of the operator's: there would be two methods in one call.
    const OURS: [&str; 4] = ["client_id", "client_secret", "client_assertion", "client_assertion_type"];
    for (name, value) in settings.token_params.iter().filter(|(name, _)| !OURS.contains(&name.as_str())) {
        form.set(name, value);
    }
    form
}

/// An HTTP answer of the provider, read whole.
#[derive(Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// `Content-Type`, lower case, without parameters.
    pub content_type: String,
    /// `Retry-After`, made relative.
    pub retry_after: Option<Duration>,
    /// `DPoP-Nonce` (RFC 9449 section 8).
    pub dpop_nonce: Option<String>,
    /// `WWW-Authenticate` says that the proof lacks the server's nonce.
    pub nonce_challenge: bool,
    /// The body, of bounded size.
    pub body: Vec<u8>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status)
            .field("content_type", &self.content_type)
            .finish_non_exhaustive()
    }
}

impl Answer {
    /// Whether the server refuses because the proof lacks its nonce (RFC 9449 sections 8 and 9).
    pub fn demands_nonce(&self) -> bool {
        let said =
            || json::object(&self.body).ok().is_some_and(|members| members.get("error") == Some(&USE_NONCE.into()));
        matches!(self.status, 400 | 401) && (self.nonce_challenge || said())
    }

    fn is_html(&self) -> bool {
        let start = self.body.trim_ascii_start();
        self.content_type == "text/html" || self.content_type == "application/xhtml+xml" || start.first() == Some(&b'<')
    }
}

/// A well-formed answer, nothing of it verified yet.
#[derive(Clone)]
pub struct TokenAnswer {
    /// Visible ASCII.
    pub access_token: AccessToken,
    /// From `expires_in`, the token's own `exp`, or the configured default.
    pub access_expires: Option<Timestamp>,
    /// Printable ASCII.
    pub refresh_token: Option<RefreshToken>,
    /// When the refresh token ends, where the provider tells.
    pub refresh_expires: Option<Timestamp>,
    /// The ID token as it came, not verified.
    pub id_token: Option<String>,
    /// The granted scope.
    pub scope: Option<String>,
    /// Who the user is, where the answer itself says so.
    pub subject: Option<String>,
    /// Other members that become claims.
    pub kept: Vec<(String, Value)>,
}

impl fmt::Debug for TokenAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenAnswer").field("access_expires", &self.access_expires).finish_non_exhaustive()
    }
}

/// Reads the answer to a grant sent at `now`, which must bring a token of this type.
///
/// # Errors
/// By who is to blame: `Dead`, `Refused` and `Unavailable` by the provider's own words, `Ambiguous` when a success
/// cannot be read, `Invalid` when it can and does not hold.
pub fn decode(
    answer: &Answer,
    token_type: TokenType,
    dialect: &Dialect,
    default_expires_in: Option<Duration>,
    now: Timestamp,
) -> Result<TokenAnswer, ProviderError> {
    let unavailable = |reason| ProviderError::Unavailable { reason, retry_after: answer.retry_after };
    match answer.status {
        408 | 425 => return Err(unavailable("timeout_status")),
        429 => return Err(unavailable("rate_limited")),
        500.. => return Err(unavailable("server_error")),
        300..=399 => return Err(ProviderError::Refused { reason: "redirect" }),
        _ => {}
    }
    let blank = answer.body.trim_ascii().is_empty();
    let response = &dialect.response;
    match response.members(answer) {
        Ok(members) if response.is_error(&members) || answer.status != 200 => {
            Err(response.classify(&members, answer).unwrap_or_else(|| {
                let text = |place: &str| members.pointer(place).and_then(Value::as_str).unwrap_or_default();
                refused(text(&response.error), text(&response.description), answer)
            }))
        }
        Ok(members) => success(&members, token_type, dialect, default_expires_in, now).map_err(ProviderError::from),
        Err(_) if answer.status == 200 && blank => Err(unavailable("empty")),
        Err(_) if matches!(answer.status, 401 | 404 | 405 | 415) => Err(ProviderError::Refused { reason: "status" }),
        Err(_) if blank || answer.is_html() => Err(unavailable("not_json")),
        Err(JsonError::Shape) if answer.status == 200 => Err(ProviderError::Invalid { reason: "token_answer" }),
        Err(_) if answer.status == 200 => Err(ProviderError::Ambiguous { reason: "unreadable" }),
        Err(_) => Err(ProviderError::Refused { reason: "status" }),
    }
}

/// RFC 6749 section 5.2, with the dialects that say the same in other words.
pub(super) fn refusal(members: &Map<String, Value>, answer: &Answer) -> ProviderError {
    let text = |name| members.get(name).and_then(Value::as_str).unwrap_or_default();
    refused(text("error"), text("error_description"), answer)
}

fn refused(error: &str, told: &str, answer: &Answer) -> ProviderError {
    let retry_after = answer.retry_after;
    match error {
        "invalid_grant" => ProviderError::Dead { reason: "invalid_grant" },
        "interaction_required" | "login_required" | "consent_required" => {
            ProviderError::Dead { reason: "interaction_required" }
        }
        // Dex has no word of its own for a spent or expired refresh token.
        "invalid_request"
            if told.contains("already been claimed by another client") || told.starts_with("Refresh token expired") =>
        {
            ProviderError::Dead { reason: "invalid_grant" }
        }
        // Hydra, when two requests redeem one refresh token at the same time.
        "invalid_request" if told.contains("multiple concurrent requests") => {
            ProviderError::Unavailable { reason: "concurrent", retry_after }
        }
        "temporarily_unavailable" | "server_error" | "slow_down" => {
            ProviderError::Unavailable { reason: "server_error", retry_after }
        }
        "invalid_client" => ProviderError::Refused { reason: "invalid_client" },
        // 401 is for a client that did not prove who it is; these are Keycloak's words for it.
        "unauthorized_client" | "invalid_request" if answer.status == 401 => {
            ProviderError::Refused { reason: "invalid_client" }
        }
        "unauthorized_client" => ProviderError::Refused { reason: "unauthorized_client" },
        "unsupported_grant_type" => ProviderError::Refused { reason: "unsupported_grant_type" },
        "invalid_request" => ProviderError::Refused { reason: "invalid_request" },
        "invalid_scope" => ProviderError::Refused { reason: "invalid_scope" },
        "invalid_target" => ProviderError::Refused { reason: "invalid_target" },
        "invalid_dpop_proof" => ProviderError::Refused { reason: "invalid_dpop_proof" },
        USE_NONCE => ProviderError::Refused { reason: USE_NONCE },
        _ => ProviderError::Refused { reason: "error" },
    }
}

fn success(
    whole: &Value,
    token_type: TokenType,
    dialect: &Dialect,
    default_expires_in: Option<Duration>,
    now: Timestamp,
) -> Result<TokenAnswer, Fault> {
    let response = &dialect.response;
    let members = whole.pointer(&response.root).ok_or(Fault("token_answer"))?;
    let told = members.get("token_type").and_then(Value::as_str);
    let fits = |told: &str| told.eq_ignore_ascii_case(token_type.name());
    if !response.any_token_type && !told.is_some_and(fits) {
        return Err(Fault("token_type"));
    }
    let text = |name: &'static str, place: &str, fits: fn(u8) -> bool| match members.pointer(place) {
        None | Some(Value::Null) => Ok(None),
        // Some providers write an absent one so.
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if text.bytes().all(fits) => Ok(Some(text.clone())),
        Some(_) => Err(Fault(name)),
    };
    let visible = |byte: u8| byte.is_ascii_graphic();
    let printable = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
    let access_token = text("access_token", &response.access_token, visible)?.ok_or(Fault("access_token"))?;
    let expires_in = members.pointer(&response.expires_in).and_then(life);
    // Counted from when we asked, in whole seconds: so do providers, and a token of ours must not outlive theirs.
    let now = Timestamp::from_secs(now.as_secs());
    let access_expires = expires_in
        .map(|secs| now + Duration::from_secs(secs))
        .or_else(|| {
            let latest = now + Duration::from_secs(MAX_LIFE_SECS);
            jwt::peek_exp(&access_token).map(|exp| Timestamp::from_secs(exp).min(latest))
        })
        .or_else(|| default_expires_in.map(|life| now + life));
    let refresh_life = ["refresh_expires_in", "refresh_token_expires_in"].into_iter();
    let refresh_token = text("refresh_token", &response.refresh_token, printable)?.map(RefreshToken::new);
    let refresh_life = refresh_life
        .filter_map(|name| members.get(name).and_then(life))
        .find(|secs| *secs > 0)
        .map(Duration::from_secs)
        .or_else(|| dialect.refresh_life.filter(|_| refresh_token.is_some()));
    Ok(TokenAnswer {
        subject: response.subject.as_ref().and_then(|place| subject(whole.pointer(place)?)),
        kept: kept(response, whole),
        access_token: AccessToken::new(access_token),
        access_expires,
        refresh_token,
        // Zero means "never" where it occurs (Keycloak's offline tokens), so it says nothing.
        refresh_expires: refresh_life.map(|life| now + life),
        // Any text: what is wrong inside is the verification's to say, which at a refresh ends the session.
        id_token: text("id_token", "/id_token", |_| true)?,
        scope: members
            .pointer(&response.scope)
            .and_then(Value::as_str)
            .filter(|scope| scope.bytes().all(printable))
            .map(str::to_owned),
    })
}

/// A user's identifier: text, or a number as some providers have it.
pub(super) fn subject(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    (!text.is_empty() && text.len() <= MAX_SUBJECT_BYTES).then_some(text)
}

fn kept(response: &Response, whole: &Value) -> Vec<(String, Value)> {
    response.keep.iter().filter_map(|name| Some((name.clone(), whole.get(name)?.clone()))).collect()
}

/// Seconds as a number or a numeric string, within reason; none when it is neither.
fn life(value: &Value) -> Option<u64> {
    let secs = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse::<f64>().ok().filter(|secs| secs.is_finite())?,
        _ => return None,
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float cast saturates")]
    Some((secs as u64).min(MAX_LIFE_SECS))
}

/// `Retry-After` (RFC 9110 section 10.2.3): seconds or an HTTP date. At most a day, so that the result can be added
/// to any time.
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    const DAY: Duration = Duration::from_secs(86_400);
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)).min(DAY));
    }
    http_date(value).map(|at| at.since(now).min(DAY))
}

/// An IMF-fixdate (RFC 9110 section 5.6.7); the two obsolete forms are not read.
fn http_date(text: &str) -> Option<Timestamp> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.strip_suffix(" GMT")?.split(' ');
    let day: i64 = words.next()?.parse().ok().filter(|day| (1..=31).contains(day))?;
    let month = words.next()?;
    let month = i64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()? + 1;
    let year: i64 = words.next()?.parse().ok().filter(|year| (1970..=9999).contains(year))?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok().filter(|part| *part < 61));
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if words.next().is_some() || clock.next().is_some() {
        return None;
    }
    // Days since the epoch in the proleptic Gregorian calendar, counting years from March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Some(Timestamp::from_secs(u64::try_from(days).ok()? * 86_400 + hour * 3600 + minute * 60 + second))
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
