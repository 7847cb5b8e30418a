//! Login attempts: between the redirect to the provider and the callback they live in cookies of their own, one per
//! attempt, so that several tabs can log in at once.
//!
//! `state` is sealed too. It names the attempt and outlives its cookie: one that was made here can be told from a
//! foreign one after the cookie is gone, and says how often the login was started over.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use super::codec::{Reader, put_tlv, put_tlv_number};
use super::jar::{Found, Names, login_same_site, render};
use super::store::Name;
use super::{SessionId, Settings};
use crate::clock::Timestamp;
use crate::crypto::seal::{Opened, Purpose, Sealer};
use crate::oidc::authorize::unplain_state;
use crate::oidc::dpop::DpopKey;
use crate::oidc::types::{Nonce, PkceVerifier, ProviderKey, State};
use crate::web::return_to::ReturnTo;

/// How long a user may take at the provider.
const LIFE: Duration = Duration::from_secs(600);
/// How long a finished login leaves a trace: the time that a redirect takes.
const TRACE_LIFE: Duration = Duration::from_secs(10);
/// More tabs than this log in at once by accident only.
const MAX_ATTEMPTS: usize = 5;
/// A longer target is not worth a cookie that the browser would refuse: the login ends at the start page.
const MAX_RETURN_TO: usize = 2048;
/// Of the sealed attempt's plaintext, and of the state's.
const VERSION: u8 = 1;
/// Cookies that are looked at in one request.
const MAX_LOOKED_AT: usize = 64;

/// What has to be known again when the provider sends the browser back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Random, from the login's start.
    pub id: [u8; 16],
    /// Where the user was sent, among several: only that provider may answer.
    pub provider: Option<ProviderKey>,
    pub nonce: Nonce,
    pub verifier: PkceVerifier,
    pub return_to: ReturnTo,
    pub started: Timestamp,
    /// What was asked for, to be checked against `auth_time` (OpenID Connect Core section 3.1.3.7), in seconds.
    pub max_age: Option<u64>,
    /// What was asked for, to be checked against `acr`.
    pub acr_values: Option<String>,
    /// `prompt=none`: comes back either way.
    pub silent: bool,
    /// How many times this login was started over.
    pub restarts: u8,
    /// The session that the browser had: the new one ends it.
    pub replaces: Option<SessionId>,
    /// Where the store has that one.
    pub replaces_entry: Option<Name>,
    /// The key that the code, and then the session's tokens, are bound to.
    pub dpop: Option<DpopKey>,
}

/// What a callback's `state` amounts to.
#[derive(Debug, PartialEq)]
pub enum Finish {
    /// Not made here.
    Foreign,
    /// Made here; the attempt is used, too old, or its cookie is gone.
    Stale {
        /// How many times it was started over already.
        restarts: u8,
    },
    /// To be finished. `clear` removes its cookie.
    Attempt { attempt: Box<Attempt>, clear: Vec<HeaderValue> },
}

/// Starts and finishes attempts.
#[derive(Debug)]
pub struct LoginCookies {
    settings: Settings,
    names: Names,
    sealer: Arc<Sealer>,
}

impl LoginCookies {
    /// With the jar's sealer: see `Jar::sealer`.
    pub fn new(settings: Settings, sealer: Arc<Sealer>) -> Self {
        Self { names: Names::new(&settings), settings, sealer }
    }

    /// The `state` parameter, and the `Set-Cookie` values that keep the attempt and drop the oldest beyond five.
    pub fn start(&self, attempt: &Attempt, headers: &HeaderMap, now: Timestamp) -> (State, Vec<HeaderValue>) {
        let mut cookies = self.make_room(headers, now);
        let name = self.names.full(&Found::Login(cookie_id(attempt.id)));
        let text = self.sealer.seal(Purpose::Login, &attempt.encode(), now);
        let life = Some(LIFE.as_secs());
        cookies.extend(render(&self.settings, &name, text, login_same_site(&self.settings), "/", life));

        let mut state = vec![VERSION, attempt.restarts];
        state.extend_from_slice(&attempt.id);
        (State::new(self.sealer.seal(Purpose::State, &state, now)), cookies)
    }

    /// Judges a callback's `state`.
    pub fn finish(&self, state: &str, headers: &HeaderMap, now: Timestamp) -> Finish {
        let Some((id, restarts)) = self.open_state(state) else { return Finish::Foreign };
        let name = cookie_id(id);
        let attempts = self.presented(headers).filter(|(found, _)| *found == name);
        let attempt = attempts.filter_map(|(_, value)| self.open(value, now)).find(|attempt| attempt.id == id);
        match attempt {
            Some(attempt) => Finish::Attempt { attempt: Box::new(attempt), clear: self.clear(id) },
            None => Finish::Stale { restarts },
        }
    }

    /// How often the login behind a `state` was started over; none when it was not made here.
    pub fn restarts(&self, state: &str) -> Option<u8> {
        self.open_state(state).map(|(_, restarts)| restarts)
    }

    /// Whether a login left its trace a moment ago.
    pub fn is_traced(&self, headers: &HeaderMap) -> bool {
        self.names.find(headers).take(MAX_LOOKED_AT).any(|(found, _)| found == Found::Returned)
    }

    /// The trace of a finished login: it lives for seconds and opens nothing. The verify marker would not do, which is
    /// withheld together with the session's cookie.
    pub fn trace(&self) -> Option<HeaderValue> {
        let name = self.names.full(&Found::Returned);
        let life = Some(TRACE_LIFE.as_secs());
        render(&self.settings, &name, "1".to_owned(), login_same_site(&self.settings), "/", life)
    }

    /// Removes an attempt's cookie.
    pub fn clear(&self, id: [u8; 16]) -> Vec<HeaderValue> {
        self.names.expiry(&self.settings, &Found::Login(cookie_id(id))).into_iter().collect()
    }

    fn open_state(&self, state: &str) -> Option<([u8; 16], u8)> {
        let open = |state: &str| match self.sealer.open(Purpose::State, state.as_bytes()) {
            Opened::Plain(plain) => Some(plain),
            _ => None,
        };
        // Some providers take letters and digits only.
        let plain = open(state).or_else(|| open(&unplain_state(state)?))?;
        let ([version, restarts], id) = plain.split_first_chunk()?;
        (*version == VERSION).then_some((id.try_into().ok()?, *restarts))
    }

    /// The attempt of a cookie value, unless it is over.
    fn open(&self, value: &[u8], now: Timestamp) -> Option<Attempt> {
        let Opened::Plain(plain) = self.sealer.open(Purpose::Login, value) else { return None };
        Attempt::decode(&plain).filter(|attempt| now < attempt.started + LIFE)
    }

    fn presented<'h>(&self, headers: &'h HeaderMap) -> impl Iterator<Item = (String, &'h [u8])> {
        let login = |(found, value)| match found {
            Found::Login(id) => Some((id, value)),
            _ => None,
        };
        self.names.find(headers).filter_map(login).take(MAX_LOOKED_AT)
    }

    /// What has to go so that one more fits: first what does not open, then the oldest.
    fn make_room(&self, headers: &HeaderMap, now: Timestamp) -> Vec<HeaderValue> {
        let mut kept: Vec<(Option<Timestamp>, String)> = Vec::new();
        for (id, value) in self.presented(headers) {
            let started = self.open(value, now).map(|attempt| attempt.started);
            match kept.iter_mut().find(|(_, known)| *known == id) {
                Some((known, _)) => *known = started.max(*known),
                None => kept.push((started, id)),
            }
        }
        kept.sort();
        let excess = (kept.len() + 1).saturating_sub(MAX_ATTEMPTS);
        let gone = kept.into_iter().take(excess);
        gone.filter_map(|(_, id)| self.names.expiry(&self.settings, &Found::Login(id))).collect()
    }
}

/// Names a used attempt in the store. Its id is random and sealed wherever it travels, so that it serves as the key.
pub fn attempt_name(id: [u8; 16]) -> Name {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &id);
    let hash = ring::hmac::sign(&key, b"used attempt 1");
    Name(hash.as_ref().first_chunk().copied().unwrap_or_default())
}

/// The end of the cookie's name: short, and different among the few that a browser has.
fn cookie_id(id: [u8; 16]) -> String {
    let mut name = base64_simd::URL_SAFE_NO_PAD.encode_to_string(id);
    name.truncate(8);
    name
}

const ID: u8 = 1;
const NONCE: u8 = 2;
const VERIFIER: u8 = 3;
const RETURN_TO: u8 = 4;
const STARTED: u8 = 5;
const MAX_AGE: u8 = 6;
const ACR_VALUES: u8 = 7;
const SILENT: u8 = 8;
const RESTARTS: u8 = 9;
const REPLACES: u8 = 10;
const REPLACES_ENTRY: u8 = 11;
const DPOP: u8 = 12;
const PROVIDER: u8 = 13;

impl Attempt {
    /// The first 16 bytes of SHA-256 of the nonce, for `Session::nonce_hash`.
    pub fn nonce_hash(&self) -> [u8; 16] {
        let hash = ring::digest::digest(&ring::digest::SHA256, self.nonce.expose().as_bytes());
        hash.as_ref().first_chunk().copied().unwrap_or_default()
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        put_tlv(&mut out, ID, &self.id);
        put_tlv(&mut out, NONCE, self.nonce.expose().as_bytes());
        put_tlv(&mut out, VERIFIER, self.verifier.expose().as_bytes());
        if self.return_to.as_str().len() <= MAX_RETURN_TO {
            put_tlv(&mut out, RETURN_TO, self.return_to.as_str().as_bytes());
        }
        put_tlv_number(&mut out, STARTED, self.started.as_millis());
        if let Some(max_age) = self.max_age {
            put_tlv_number(&mut out, MAX_AGE, max_age);
        }
        if let Some(acr_values) = &self.acr_values {
            put_tlv(&mut out, ACR_VALUES, acr_values.as_bytes());
        }
        if self.silent {
            put_tlv(&mut out, SILENT, &[]);
        }
        put_tlv(&mut out, RESTARTS, &[self.restarts]);
        if let Some(replaces) = &self.replaces {
            put_tlv(&mut out, REPLACES, &replaces.0);
        }
        if let Some(name) = &self.replaces_entry {
            put_tlv(&mut out, REPLACES_ENTRY, &name.0);
        }
        if let Some(key) = &self.dpop {
            put_tlv(&mut out, DPOP, key.as_bytes());
        }
        if let Some(ProviderKey(key)) = &self.provider {
            put_tlv(&mut out, PROVIDER, key);
        }
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.byte()? != VERSION {
            return None;
        }
        let text = |value: &[u8]| std::str::from_utf8(value).ok().map(str::to_owned);
        let (mut id, mut nonce, mut verifier, mut started) = (None, None, None, None);
        let (mut return_to, mut max_age, mut acr_values) = (None, None, None);
        let (mut silent, mut restarts, mut replaces) = (false, None, None);
        let (mut replaces_entry, mut dpop) = (None, None);
        let mut provider = None;
        reader.fields(|tag, value| {
            match tag {
                ID => id = Some(value.try_into().ok()?),
                NONCE => nonce = Some(Nonce::new(text(value)?)),
                VERIFIER => verifier = Some(PkceVerifier::new(text(value)?)),
                RETURN_TO => return_to = Some(ReturnTo::restore(text(value)?)),
                STARTED => started = Some(Timestamp::from_millis(Reader(value).varint()?)),
                MAX_AGE => max_age = Some(Reader(value).varint()?),
                ACR_VALUES => acr_values = Some(text(value)?),
                SILENT => silent = true,
                RESTARTS => restarts = value.first().copied(),
                REPLACES => replaces = Some(SessionId(value.try_into().ok()?)),
                REPLACES_ENTRY => replaces_entry = Some(Name(value.try_into().ok()?)),
                DPOP => dpop = Some(DpopKey::from_bytes(value)?),
                PROVIDER => provider = Some(ProviderKey(value.try_into().ok()?)),
                _ => return None,
            }
            Some(())
        })?;
        Some(Self {
            id: id?,
            provider,
            nonce: nonce?,
            verifier: verifier?,
            return_to: return_to.unwrap_or_else(ReturnTo::home),
            started: started?,
            max_age,
            acr_values,
            silent,
            restarts: restarts?,
            replaces,
            replaces_entry,
            dpop,
        })
    }
}

#[cfg(test)]
mod tests;
