//! The session's cookies: which of them are ours, what they hold, what to send back.
//!
//! A session that fits one cookie is that cookie's value. A longer one is cut into parts of at most 3800 characters
//! under the names `<name>`, `<name>-1`, …; each part says before its piece, in eight characters, which part it is, how
//! many there are, and to which group it belongs (from the GCM tag). A session begins with `E` (0x11 in base64url), a
//! part with a digit, so that the two cannot be mistaken. What the parts say of themselves is not trusted: the whole is
//! authenticated, and a group from which a part is missing, doubled or foreign does not open.

use std::sync::Arc;
use std::time::Duration;

use cookie::Cookie;
use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

use super::codec::{self, PackedToken};
use super::endings::Whose;
use super::lifecycle::{self, State};
use super::model::{Handle, Session};
use super::settings::{SameSite, Settings};
use super::store::Name;
use crate::clock::Timestamp;
use crate::crypto::keyring::{KeyId, Keyring};
use crate::crypto::seal::{Binding, Opened as Unsealed, Purpose, Sealer};
use crate::web::cookies::pieces;

/// Characters of a sealed session per cookie: name and value stay clear of the 4096 that browsers allow.
const PIECE: usize = 3800;
/// Index, total, six characters of the group.
const PART_PREFIX: usize = 8;
/// One digit says how many.
const MAX_PARTS: usize = 9;
/// Cookies of ours that are looked at in one request, and blobs that are tried. A browser has a dozen at most.
const MAX_LOOKED_AT: usize = 64;
const MAX_TRIES: usize = 64;
/// Ways to put one group together, so that a forged group leaves tries for others.
const MAX_WAYS: usize = 16;
/// Browsers keep no cookie longer (RFC 6265bis section 5.5).
const MAX_AGE_CAP: u64 = 400 * 24 * 3600;
/// Long enough for two redirects, and gone before the next incident.
const MARKER_LIFE: Duration = Duration::from_secs(10);
/// Where the `split` layout keeps the refresh token.
const SPLIT_PATH: &str = "/auth/";

/// Opens, seals and expires the session's cookies.
#[derive(Debug)]
pub struct Jar {
    settings: Settings,
    names: Names,
    sealer: Arc<Sealer>,
}

/// What a request's cookies hold.
#[derive(Debug)]
pub struct Opened {
    pub state: State,
    pub presented: Presented,
}

/// The cookies of ours that a request carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presented {
    found: Vec<Found>,
    /// Parts that are sealed by a key we do not have, or may be: another replica wants them back.
    unknown: Vec<u32>,
}

/// A cookie of ours, by what its name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The session, or its part of that number.
    Part(u32),
    /// A login attempt, by its id.
    Login(String),
    Verify,
    /// The refresh token's cookie of the `split` layout.
    Split,
}

/// A session that does not fit the header budget: what it is made of, in bytes or characters, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// Characters of all cookies together, names and values.
    pub session: usize,
    /// What they may be: `header_budget`.
    pub limit: usize,
    pub access_token: usize,
    pub refresh_token: usize,
    pub id_token: usize,
    pub claims: usize,
}

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "session {} characters, limit {}; sealed bytes: access token {}, refresh token {}, ID token {}, claims {}",
            self.session, self.limit, self.access_token, self.refresh_token, self.id_token, self.claims
        )
    }
}

impl std::error::Error for TooLarge {}

/// What a verify redirect left behind: which generation failed, and how often the browser was sent round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The first half of the failed generation's [`Handle`].
    pub handle: [u8; 8],
    pub hops: u8,
}

impl Presented {
    /// Whether the request carried none of our cookies.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    fn add(&mut self, found: Found) {
        if !self.found.contains(&found) {
            self.found.push(found);
        }
    }
}

/// Where cookies of these settings open.
fn binding(settings: &Settings) -> Binding {
    Binding {
        cookie_name: settings.cookie_name.clone(),
        origin: settings.public.as_str().to_owned(),
        issuer: settings.issuer.clone(),
        client_id: settings.client_id.clone(),
    }
}

impl Jar {
    /// A jar for one application.
    pub fn new(settings: Settings, keyring: Keyring) -> Self {
        let sealer = Arc::new(Sealer::new(&binding(&settings), keyring));
        Self { names: Names::new(&settings), sealer, settings }
    }

    /// A jar for changed settings. For the same application it seals by the same keys as this one, which are replaced
    /// for both by [`Jar::replace_keys`]; for another one by `keyring`.
    #[must_use]
    pub fn renewed(&self, settings: Settings, keyring: Keyring) -> Self {
        if binding(&settings) != binding(&self.settings) {
            return Self::new(settings, keyring);
        }
        Self { names: Names::new(&settings), sealer: Arc::clone(&self.sealer), settings }
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What seals: shared with the login cookies, so that one replacement of the keys serves both.
    pub fn sealer(&self) -> &Arc<Sealer> {
        &self.sealer
    }

    /// Reads all `Cookie` fields (RFC 9113 section 8.2.3 lets clients split them) and takes the newest session that
    /// opens, whatever stands beside it.
    pub fn open(&self, headers: &HeaderMap, now: Timestamp) -> Opened {
        let mut presented = Presented::default();
        let mut values: Vec<(u32, &[u8])> = Vec::new();
        for (found, value) in self.names.find(headers).take(MAX_LOOKED_AT) {
            if let Found::Part(index) = found {
                values.push((index, value));
            }
            presented.add(found);
        }
        if values.is_empty() {
            return Opened { state: State::Absent, presented };
        }

        let mut search = Search { sealer: &self.sealer, tries: MAX_TRIES, best: None, garbage: false };
        let mut groups: Vec<Group<'_>> = Vec::new();
        for (index, value) in values {
            match Part::read(index, value) {
                Some(part) => match groups.iter_mut().find(|group| group.id == part.group) {
                    Some(group) => group.parts.push(part),
                    None => groups.push(Group { id: part.group, parts: vec![part] }),
                },
                None if index == 0 => {
                    if search.consider(value) {
                        presented.unknown.push(index);
                    }
                }
                None => search.garbage = true,
            }
        }
        for group in &groups {
            if group.consider(&mut search) {
                presented.unknown.extend(group.parts.iter().map(|part| part.index));
            }
        }
        let state = match search.best {
            Some(session) => lifecycle::judge(session, &self.settings, now),
            None if search.garbage => State::Broken,
            None => State::Absent,
        };
        Opened { state, presented }
    }

    /// What a request carries of ours, by name; nothing is opened.
    pub fn presented(&self, headers: &HeaderMap) -> Presented {
        let mut presented = Presented::default();
        for (found, _) in self.names.find(headers).take(MAX_LOOKED_AT) {
            presented.add(found);
        }
        presented
    }

    /// The `Set-Cookie` values that put this session into the browser and remove what is left of a longer one.
    ///
    /// # Errors
    /// When it is larger than the header budget.
    pub fn seal(&self, session: &Session, presented: &Presented, now: Timestamp) -> Result<Vec<HeaderValue>, TooLarge> {
        let plain = self.encode(session)?;
        let text = self.sealer.seal(Purpose::Session, &plain, now);
        let left = lifecycle::left(session, &self.settings, now);
        // Rounded down: the cookie must not outlive what it holds.
        let life = left.as_secs().clamp(1, MAX_AGE_CAP);

        let total = self.names.parts(text.len());
        let mut cookies = Vec::with_capacity(total);
        if total == 1 {
            cookies.extend(self.set(&self.names.part(0), text, Some(life)));
        } else {
            let group = group_id(&text);
            let mut rest = text.as_str();
            for index in 0..total {
                let (piece, after) = rest.split_at_checked(self.names.piece).unwrap_or((rest, ""));
                rest = after;
                let value = format!("{index}{total}{group}{piece}");
                cookies.extend(self.set(&self.names.part(index as u32), value, Some(life)));
            }
        }
        for found in &presented.found {
            if matches!(found, Found::Part(index) if *index as usize >= total) {
                cookies.extend(self.expiry(found));
            }
        }
        Ok(cookies)
    }

    /// Removes the session that was presented, open or not, with its verify marker. What another replica may be able to
    /// open stays.
    pub fn expire(&self, presented: &Presented) -> Vec<HeaderValue> {
        let ends = |found: &&Found| match found {
            Found::Part(index) => !presented.unknown.contains(index),
            Found::Verify | Found::Split => true,
            Found::Login(_) => false,
        };
        presented.found.iter().filter(ends).filter_map(|found| self.expiry(found)).collect()
    }

    /// Removes every cookie of ours that was presented, login attempts and unknown ones too: what a 431 does.
    pub fn expire_presented(&self, presented: &Presented) -> Vec<HeaderValue> {
        presented.found.iter().filter_map(|found| self.expiry(found)).collect()
    }

    /// Removes every cookie of ours that was presented, and the session's whether presented or not: what a logout does.
    pub fn expire_all(&self, presented: &Presented) -> Vec<HeaderValue> {
        let mut cookies = self.expire_presented(presented);
        if !presented.found.contains(&Found::Part(0)) {
            cookies.extend(self.expiry(&Found::Part(0)));
        }
        cookies
    }

    /// Whether a cookie of that name is ours: never forwarded, never taken from an upstream.
    pub fn owns(&self, name: &str) -> bool {
        self.names.classify(name.as_bytes()).is_some()
    }

    /// The handle of a session's generation; none without a refresh token. It is taken over the refresh token as it is
    /// sealed: the sealed form is carried on unchanged for as long as the token is, and needs no inflating.
    pub fn handle(&self, session: &Session) -> Option<Handle> {
        let (codec, token) = session.refresh_token.as_ref()?.as_sealed();
        let client = self.settings.client_id.as_bytes();
        let parts: [&[u8]; 6] =
            [b"idx1", &(client.len() as u64).to_be_bytes(), client, &session.generation.to_be_bytes(), &[codec], token];
        self.sealer.index(KeyId(session.index_key), &parts).first_chunk().copied().map(Handle)
    }

    /// The names by which an ending may mean this session, under its own `index_key`: every replica that opens it has
    /// that key.
    pub fn names_of(&self, session: &Session) -> [Name; 3] {
        let (issuer, subject) = (self.settings.issuer.as_str(), session.subject.as_str());
        let at_provider = match &session.provider_sid {
            Some(sid) => Whose::ProviderSession { issuer, sid },
            None => Whose::SubjectWithoutSid { issuer, subject },
        };
        let all = [Whose::Session(session.id), at_provider, Whose::Subject { issuer, subject }];
        all.map(|whose| self.name(KeyId(session.index_key), &whose))
    }

    /// The names to end sessions by, under every key of the ring: whose index key is which is not known.
    pub fn names(&self, whose: &Whose<'_>) -> Vec<Name> {
        self.sealer.key_ids().into_iter().map(|key| self.name(key, whose)).collect()
    }

    fn name(&self, key: KeyId, whose: &Whose<'_>) -> Name {
        let client = self.settings.client_id.as_bytes();
        let (kind, issuer, value) = whose.parts();
        let length = |part: &[u8]| (part.len() as u64).to_be_bytes();
        let parts: [&[u8]; 7] = [b"end1", &[kind], &length(client), client, &length(issuer), issuer, value];
        let name = self.sealer.index(key, &parts);
        Name(name.first_chunk().copied().unwrap_or_default())
    }

    /// The key that seals now, for a new generation's `index_key`.
    pub fn sealing_key_id(&self, now: Timestamp) -> u16 {
        self.sealer.sealing_key_id(now).0
    }

    /// Puts another key ring in place; see [`Sealer::replace_keys`].
    pub fn replace_keys(&self, keyring: Keyring, now: Timestamp) {
        self.sealer.replace_keys(keyring, now);
    }

    /// See [`lifecycle::needs_touch`].
    pub fn needs_touch(&self, session: &Session, now: Timestamp) -> bool {
        lifecycle::needs_touch(session, &self.settings, now)
    }

    /// The `Set-Cookie` value that remembers a verify redirect for ten seconds.
    pub fn mark(&self, marker: Marker, now: Timestamp) -> Option<HeaderValue> {
        let until = now + MARKER_LIFE;
        let plain = [&marker.handle[..], &[marker.hops], &until.as_millis().to_be_bytes()].concat();
        let text = self.sealer.seal(Purpose::Marker, &plain, now);
        self.set(&self.names.full(&Found::Verify), text, Some(MARKER_LIFE.as_secs()))
    }

    /// The marker of an earlier verify redirect, if it is not older than ten seconds.
    pub fn marker(&self, headers: &HeaderMap, now: Timestamp) -> Option<Marker> {
        let values = self.names.find(headers).filter(|(found, _)| *found == Found::Verify);
        let markers = values.take(4).filter_map(|(_, value)| {
            let Unsealed::Plain(plain) = self.sealer.open(Purpose::Marker, value) else { return None };
            let (handle, rest) = plain.split_first_chunk()?;
            let (hops, until) = rest.split_first()?;
            let until = Timestamp::from_millis(u64::from_be_bytes(until.try_into().ok()?));
            (now < until).then_some(Marker { handle: *handle, hops: *hops })
        });
        markers.max_by_key(|marker| marker.hops)
    }

    /// The plaintext that makes the fewest cookies: the access token compressed only when that saves one, the ID token
    /// only when it costs none (or a route needs it).
    fn encode(&self, session: &Session) -> Result<Vec<u8>, TooLarge> {
        let access = session.access_token.expose();
        let plain = PackedToken::pack_plain(access);
        let first = codec::encode(session, &plain, true);
        if self.cost(first.len()) == Some(1) {
            return Ok(first);
        }
        let packed = PackedToken::pack(access);
        // In order of preference, as far as the number of cookies is the same.
        let mut candidates = vec![first, codec::encode(session, &packed, true)];
        if session.id_token.is_some() && !self.settings.id_token_needed {
            candidates.push(codec::encode(session, &plain, false));
            candidates.push(codec::encode(session, &packed, false));
        }
        let smallest = candidates.iter().map(Vec::len).min().unwrap_or_default();
        let affordable = candidates.into_iter().filter_map(|bytes| Some((self.cost(bytes.len())?, bytes)));
        // The first of the cheapest.
        let chosen = affordable.min_by_key(|(cookies, _)| *cookies);
        chosen.map(|(_, bytes)| bytes).ok_or_else(|| TooLarge {
            session: self.names.total(Sealer::sealed_len(smallest)),
            limit: self.settings.header_budget,
            access_token: packed.len(),
            refresh_token: session.refresh_token.as_ref().map_or(0, PackedToken::len),
            id_token: session.id_token.as_ref().map_or(0, PackedToken::len),
            claims: session.claims.iter().map(|(name, value)| name.len() + value.to_string().len()).sum(),
        })
    }

    /// How many cookies a plaintext of that size makes; none when they are over the budget.
    fn cost(&self, plain: usize) -> Option<usize> {
        let text = Sealer::sealed_len(plain);
        let parts = self.names.parts(text);
        (parts <= MAX_PARTS && self.names.total(text) <= self.settings.header_budget).then_some(parts)
    }

    fn set(&self, name: &str, value: String, life: Option<u64>) -> Option<HeaderValue> {
        let same_site = self.settings.same_site;
        render(&self.settings, name, value, same_site, "/", life)
    }

    fn expiry(&self, found: &Found) -> Option<HeaderValue> {
        self.names.expiry(&self.settings, found)
    }
}

/// The names of our cookies. Compared byte for byte: a prefix in another case is another cookie (RFC 6265bis
/// section 4.1.3 lets only the browser be lenient).
#[derive(Clone, Debug)]
pub(super) struct Names {
    base: String,
    split: String,
    /// Characters per cookie.
    piece: usize,
}

impl Names {
    pub(super) fn new(settings: &Settings) -> Self {
        let name = &settings.cookie_name;
        let (base, split) = if settings.public.is_https() {
            (format!("__Host-Http-{name}"), format!("__Secure-{name}-refresh"))
        } else {
            (name.clone(), format!("{name}-refresh"))
        };
        // A name so long that little is left for the value is refused by the configuration.
        let room = 4096_usize.saturating_sub(base.len() + 2 + PART_PREFIX).max(1);
        Self { base, split, piece: PIECE.min(room) }
    }

    pub(super) fn full(&self, found: &Found) -> String {
        match found {
            Found::Part(index) => self.part(*index),
            Found::Login(id) => format!("{}-login-{id}", self.base),
            Found::Verify => format!("{}-verify", self.base),
            Found::Split => self.split.clone(),
        }
    }

    fn part(&self, index: u32) -> String {
        if index == 0 { self.base.clone() } else { format!("{}-{index}", self.base) }
    }

    /// How many cookies a sealed text needs.
    fn parts(&self, text: usize) -> usize {
        text.div_ceil(self.piece).max(1)
    }

    /// Characters of all names and values together.
    fn total(&self, text: usize) -> usize {
        match self.parts(text) {
            1 => self.base.len() + text,
            // One digit each after the dash.
            parts => text + parts * (PART_PREFIX + self.base.len()) + (parts - 1) * 2,
        }
    }

    fn classify(&self, name: &[u8]) -> Option<Found> {
        if name == self.split.as_bytes() {
            return Some(Found::Split);
        }
        match name.strip_prefix(self.base.as_bytes())? {
            b"" => Some(Found::Part(0)),
            b"-verify" => Some(Found::Verify),
            rest => {
                let rest = std::str::from_utf8(rest.strip_prefix(b"-")?).ok()?;
                if let Some(id) = rest.strip_prefix("login-") {
                    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
                    return (!id.is_empty() && id.len() <= 64 && id.bytes().all(fits))
                        .then(|| Found::Login(id.to_owned()));
                }
                let number =
                    rest.len() < 10 && !rest.starts_with('0') && rest.bytes().all(|byte| byte.is_ascii_digit());
                rest.parse().ok().filter(|_| number).map(Found::Part)
            }
        }
    }

    /// Our cookies in all `Cookie` fields, with their values, in the order of the request. Whatever cannot be ours is
    /// passed over.
    pub(super) fn find<'h>(&self, headers: &'h HeaderMap) -> impl Iterator<Item = (Found, &'h [u8])> {
        let pairs = headers.get_all(COOKIE).into_iter().flat_map(|field| pieces(field.as_bytes()));
        pairs.filter_map(|pair| {
            // Exactly the one space that browsers put there: a name that begins with white space is not ours.
            let pair = pair.strip_prefix(b" ").unwrap_or(pair);
            let (name, value) = pair.split_at_checked(memchr::memchr(b'=', pair)?)?;
            Some((self.classify(name)?, value.strip_prefix(b"=")?))
        })
    }

    pub(super) fn expiry(&self, settings: &Settings, found: &Found) -> Option<HeaderValue> {
        let same_site = if let Found::Login(_) = found { login_same_site(settings) } else { settings.same_site };
        let path = if *found == Found::Split { SPLIT_PATH } else { "/" };
        render(settings, &self.full(found), String::new(), same_site, path, None)
    }
}

/// The provider's redirect is cross-site: a Strict cookie would stay behind, and a Lax one with a POST.
pub(super) fn login_same_site(settings: &Settings) -> SameSite {
    if settings.same_site == SameSite::None || settings.form_post { SameSite::None } else { SameSite::Lax }
}

/// A `Set-Cookie` value with a life in seconds, or one that removes the cookie.
pub(super) fn render(
    settings: &Settings,
    name: &str,
    value: String,
    same_site: SameSite,
    path: &'static str,
    life: Option<u64>,
) -> Option<HeaderValue> {
    let mut cookie = Cookie::build((name.to_owned(), value))
        .path(path)
        .http_only(true)
        .secure(settings.public.is_https())
        .partitioned(settings.partitioned)
        .same_site(match same_site {
            SameSite::Strict => cookie::SameSite::Strict,
            SameSite::Lax => cookie::SameSite::Lax,
            SameSite::None => cookie::SameSite::None,
        })
        .max_age(cookie::time::Duration::seconds(life.and_then(|life| life.try_into().ok()).unwrap_or(0)));
    if life.is_none() {
        cookie = cookie.expires(cookie::time::OffsetDateTime::UNIX_EPOCH);
    }
    // Names are configured as tokens and values are base64url, so this never yields nothing.
    let mut header = HeaderValue::from_str(&cookie.build().to_string()).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// The first 36 bits of the GCM tag, the last 16 bytes of the blob.
fn group_id(text: &str) -> String {
    let blob = base64_simd::URL_SAFE_NO_PAD.decode_to_vec(text).unwrap_or_default();
    let tag = blob.last_chunk::<16>().copied().unwrap_or_default();
    let mut id = base64_simd::URL_SAFE_NO_PAD.encode_to_string(tag);
    id.truncate(6);
    id
}

/// One cookie of a session in several.
struct Part<'h> {
    index: u32,
    group: (u8, [u8; 6]),
    piece: &'h [u8],
}

impl<'h> Part<'h> {
    fn read(index: u32, value: &'h [u8]) -> Option<Self> {
        let ([own, total, group @ ..], piece) = value.split_first_chunk::<PART_PREFIX>()?;
        let total = total.checked_sub(b'0').filter(|total| (2..=9).contains(total))?;
        let own = own.checked_sub(b'0').filter(|own| *own < total)?;
        let fits = !piece.is_empty() && piece.len() <= 4096 && u32::from(own) == index;
        fits.then_some(Self { index, group: (total, *group), piece })
    }
}

struct Group<'h> {
    id: (u8, [u8; 6]),
    parts: Vec<Part<'h>>,
}

impl Group<'_> {
    /// Tries every way to fill the group's places: a name that came twice offers two. True when another key may open it.
    fn consider(&self, search: &mut Search<'_>) -> bool {
        let places: Vec<Vec<&[u8]>> = (0..u32::from(self.id.0))
            .map(|index| self.parts.iter().filter(|part| part.index == index).map(|part| part.piece).collect())
            .collect();
        let ways = places.iter().try_fold(1_usize, |ways, place| ways.checked_mul(place.len())).unwrap_or(MAX_WAYS);
        if ways == 0 {
            // Incomplete. Its first part may tell that it was never ours to judge.
            let first = places.first().into_iter().flatten();
            let unknown = first.into_iter().any(|piece| search.sealer.is_of_unknown_key(Purpose::Session, piece));
            search.garbage |= !unknown;
            return unknown;
        }
        let mut unknown = false;
        for way in 0..ways.min(MAX_WAYS) {
            let (mut way, mut text) = (way, Vec::with_capacity(places.len() * PIECE));
            for place in &places {
                text.extend_from_slice(place.get(way % place.len()).copied().unwrap_or_default());
                way /= place.len();
            }
            unknown |= search.consider(&text);
        }
        unknown
    }
}

/// The search for the newest session that opens.
struct Search<'a> {
    sealer: &'a Sealer,
    tries: usize,
    best: Option<Session>,
    garbage: bool,
}

impl Search<'_> {
    /// True when another key may open the text.
    fn consider(&mut self, text: &[u8]) -> bool {
        let Some(tries) = self.tries.checked_sub(1) else { return false };
        self.tries = tries;
        match self.sealer.open(Purpose::Session, text) {
            Unsealed::Plain(plain) => match codec::decode(&plain) {
                Some(session) => {
                    let age = |session: &Session| (session.created, session.generation, session.last_used);
                    if self.best.as_ref().is_none_or(|best| age(best) < age(&session)) {
                        self.best = Some(session);
                    }
                }
                None => self.garbage = true,
            },
            Unsealed::UnknownKey => return true,
            Unsealed::Broken => self.garbage = true,
        }
        false
    }
}

#[cfg(test)]
mod tests;
