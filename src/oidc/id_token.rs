//! What must hold of an ID token's claims (OpenID Connect Core sections 3.1.3.7, 3.1.3.8 and 12.2).

use std::collections::BTreeMap;

use ring::digest;
use serde_json::Value;
use subtle::ConstantTimeEq;

use super::error::Fault;
use super::jwt::{Claims, Verified, numeric_date};
use super::provider::RefreshExpectation;
use super::settings::Settings;
use super::types::{AccessToken, Code, Identity, Nonce};
use crate::clock::Timestamp;

/// An older token was not made for this answer.
const MAX_AGE_MILLIS: u64 = 3_600_000;
/// OpenID Connect Core section 2.
const MAX_SUBJECT_CHARS: usize = 255;

/// What the ID token of a login must agree with.
#[derive(Clone, Copy, Debug)]
pub struct LoginExpectation<'a> {
    /// The attempt's nonce.
    pub nonce: &'a Nonce,
    /// The code that was redeemed, for `c_hash`.
    pub code: &'a Code,
    /// The access token that came along, for `at_hash`.
    pub access_token: &'a AccessToken,
    /// A requested `max_age`, in seconds.
    pub max_age: Option<u64>,
    /// Requested `acr_values`, separated by spaces.
    pub acr_values: Option<&'a str>,
}

/// Checks the ID token of a login.
///
/// # Errors
/// The claim that does not hold.
pub fn check_login(
    token: &Verified<Claims>,
    settings: &Settings,
    expect: &LoginExpectation<'_>,
    now: Timestamp,
) -> Result<Identity, Fault> {
    let common = check_common(token, settings, expect.access_token, now)?;
    let claims = token.get();
    if !text(claims, "nonce")?.is_some_and(|nonce| same(nonce, expect.nonce.expose())) {
        return Err(Fault("nonce"));
    }
    if let Some(hash) = text(claims, "c_hash")?
        && !same(hash, &token.algorithm().half_hash(expect.code.expose()))
    {
        return Err(Fault("c_hash"));
    }
    if let Some(max_age) = expect.max_age {
        let since = common.auth_time.ok_or(Fault("auth_time"))?;
        let allowed = max_age.saturating_mul(1000).saturating_add(skew(settings));
        if now.as_millis().saturating_sub(since) > allowed {
            return Err(Fault("max_age"));
        }
    }
    let acr = claims.get("acr").and_then(Value::as_str);
    if let Some(wanted) = expect.acr_values
        && !acr.is_some_and(|acr| wanted.split_ascii_whitespace().any(|one| one == acr))
    {
        return Err(Fault("acr"));
    }
    Ok(Identity {
        subject: common.subject.to_owned(),
        sid: claims.get("sid").and_then(Value::as_str).map(str::to_owned),
        auth_time: common.auth_time.map(|millis| millis / 1000),
        acr: acr.map(str::to_owned),
        claims: others(claims),
    })
}

/// Checks the ID token of a refresh answer.
///
/// # Errors
/// The claim that does not hold.
pub fn check_refresh(
    token: &Verified<Claims>,
    settings: &Settings,
    expect: &RefreshExpectation,
    access_token: &AccessToken,
    now: Timestamp,
) -> Result<(), Fault> {
    let common = check_common(token, settings, access_token, now)?;
    if common.subject != expect.subject {
        return Err(Fault("sub"));
    }
    if let (Some(old), Some(new)) = (expect.auth_time, common.auth_time)
        && old != new / 1000
    {
        return Err(Fault("auth_time"));
    }
    if let (Some(old), Some(new)) = (&expect.nonce_hash, text(token.get(), "nonce")?) {
        let hash = digest::digest(&digest::SHA256, new.as_bytes());
        let (half, _) = hash.as_ref().split_at_checked(old.len()).unwrap_or_default();
        if !bool::from(half.ct_eq(old)) {
            return Err(Fault("nonce"));
        }
    }
    Ok(())
}

/// `iss` and `aud` of any token that the provider made for us.
///
/// # Errors
/// `iss`, `aud`.
pub fn check_parties(claims: &Claims, settings: &Settings) -> Result<(), Fault> {
    let word = |name: &str| claims.get(name).and_then(Value::as_str);
    if !word("iss").is_some_and(|iss| settings.is_issuer(iss, word("tid"))) {
        return Err(Fault("iss"));
    }
    let (mut ours, mut all_known) = (false, true);
    let mut note = |audience: &Value| {
        let name = audience.as_str();
        let is_us = name == Some(settings.client_id.as_str());
        ours |= is_us;
        all_known &= is_us || settings.trusted_audiences.iter().any(|trusted| name == Some(trusted));
    };
    match claims.get("aud") {
        Some(Value::Array(list)) => list.iter().for_each(note),
        Some(single @ Value::String(_)) => note(single),
        _ => {}
    }
    if ours && all_known { Ok(()) } else { Err(Fault("aud")) }
}

/// What both kinds of check go on with; `auth_time` in milliseconds.
struct Common<'a> {
    subject: &'a str,
    auth_time: Option<u64>,
}

fn check_common<'a>(
    token: &'a Verified<Claims>,
    settings: &Settings,
    access_token: &AccessToken,
    now: Timestamp,
) -> Result<Common<'a>, Fault> {
    check_typ(token)?;
    let claims = token.get();
    check_parties(claims, settings)?;
    if text(claims, "azp")?.is_some_and(|party| party != settings.client_id) {
        return Err(Fault("azp"));
    }
    let subject = text(claims, "sub")?.ok_or(Fault("sub"))?;
    if subject.is_empty() || subject.chars().count() > MAX_SUBJECT_CHARS {
        return Err(Fault("sub"));
    }
    check_times(claims, settings, now)?;
    if let Some(hash) = text(claims, "at_hash")?
        && !same(hash, &token.algorithm().half_hash(access_token.expose()))
    {
        return Err(Fault("at_hash"));
    }
    Ok(Common { subject, auth_time: time(claims, "auth_time")? })
}

/// A logout token or an access token is no ID token, although the same key signed it (RFC 8725 section 3.11).
pub(super) fn check_typ(token: &Verified<Claims>) -> Result<(), Fault> {
    match &token.header().typ {
        Some(typ) if !typ.eq_ignore_ascii_case("JWT") => Err(Fault("typ")),
        _ => Ok(()),
    }
}

fn check_times(claims: &Claims, settings: &Settings, now: Timestamp) -> Result<(), Fault> {
    let (now, skew) = (now.as_millis(), skew(settings));
    let exp = time(claims, "exp")?.ok_or(Fault("exp"))?;
    if now > exp.saturating_add(skew) {
        return Err(Fault("exp"));
    }
    let iat = time(claims, "iat")?.ok_or(Fault("iat"))?;
    if iat > now.saturating_add(skew) || now.saturating_sub(iat) > MAX_AGE_MILLIS {
        return Err(Fault("iat"));
    }
    if time(claims, "nbf")?.is_some_and(|nbf| nbf > now.saturating_add(skew)) {
        return Err(Fault("nbf"));
    }
    Ok(())
}

pub(super) fn skew(settings: &Settings) -> u64 {
    u64::try_from(settings.clock_skew.as_millis()).unwrap_or(u64::MAX)
}

/// A text claim: absent is fine, another type is not.
pub(super) fn text<'a>(claims: &'a Claims, name: &'static str) -> Result<Option<&'a str>, Fault> {
    claims.get(name).map(|value| value.as_str().ok_or(Fault(name))).transpose()
}

/// A time claim in milliseconds: absent is fine, another type or an absurd number is not.
pub(super) fn time(claims: &Claims, name: &'static str) -> Result<Option<u64>, Fault> {
    claims.get(name).map(|value| numeric_date(value).ok_or(Fault(name))).transpose()
}

fn same(a: &str, b: &str) -> bool {
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

/// The claims that [`Identity`] has no field for, without those that only protect the exchange.
fn others(claims: &Claims) -> BTreeMap<String, Value> {
    const NOT: [&str; 8] = ["sub", "sid", "auth_time", "acr", "nonce", "at_hash", "c_hash", "s_hash"];
    let kept = claims.iter().filter(|(name, _)| !NOT.contains(&name.as_str()));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Completes an identity by userinfo claims (OpenID Connect Core section 5.3.2).
///
/// Claims of the protocol itself stay the ID token's; aggregated and distributed sources are neither fetched nor kept.
///
/// # Errors
/// `userinfo_sub` unless the subject is the same.
pub fn merge_userinfo(identity: &mut Identity, userinfo: &Claims) -> Result<(), Fault> {
    const NOT: [&str; 18] = [
        "iss",
        "sub",
        "aud",
        "azp",
        "exp",
        "iat",
        "nbf",
        "jti",
        "nonce",
        "at_hash",
        "c_hash",
        "s_hash",
        "auth_time",
        "acr",
        "amr",
        "sid",
        "_claim_names",
        "_claim_sources",
    ];
    if userinfo.get("sub").and_then(Value::as_str) != Some(identity.subject.as_str()) {
        return Err(Fault("userinfo_sub"));
    }
    for (name, value) in userinfo.iter().filter(|(name, _)| !NOT.contains(&name.as_str())) {
        identity.claims.insert(name.clone(), value.clone());
    }
    Ok(())
}

#[cfg(test)]
#[path = "id_token_tests.rs"]
mod tests;
