//! The session's cookies: which of them are ours, what they hold, what to send back.
//!
//! A session that fits one cookie is that cookie's value. A longer one is cut into parts of at most 3800 characters
//! under the names `<name>`, `<name>-1`, …; each part says before its piece, in eight characters, which part it is, how
//! many there are, and to which group it belongs (from the GCM tag). A session begins with `E` (0x11 in base64url), a
//! part with a digit, so that the two cannot be mistaken. What the parts say of themselves is not trusted: the whole is
//! authenticated, and a group from which a part is missing, doubled or foreign does not open.
//!
//! In the `split` layout refresh and ID token are a text of their own, in cookies that the browser sends only below the
//! prefix. The session says by its [`Handle`] which refresh token is its own; see [`apart`]. What is read does not
//! depend on the configured layout, only what is written.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use zeroize::Zeroizing;

use self::names::Series;
pub(super) use self::names::{Found, Names, login_same_site, render};
use self::recent::Recent;
use self::search::{group_id, search};
use super::apart::Apart;
use super::codec::{self, PackedToken};
use super::endings::Whose;
use super::lifecycle::{self, State};
use super::model::{Handle, Session};
use super::settings::{Layout, Settings};
use super::store::{Kept, Name};
use super::ticket::Ticket;
use crate::clock::Timestamp;
use crate::crypto::keyring::{KeyId, Keyring};
use crate::crypto::seal::{Binding, Opened as Unsealed, Purpose, Sealer};

mod names;
mod recent;
mod search;

/// What a sealed ticket begins with: 0x71 in base64url.
const TICKET: u8 = b'c';
/// One digit says how many.
const MAX_PARTS: usize = 9;
/// Cookies of ours that are looked at in one request. A browser has a dozen at most.
const MAX_LOOKED_AT: usize = 64;
/// Browsers keep no cookie longer (RFC 6265bis section 5.5).
const MAX_AGE_CAP: u64 = 400 * 24 * 3600;
/// Long enough for two redirects, and gone before the next incident.
const MARKER_LIFE: Duration = Duration::from_secs(10);

/// Opens, seals and expires the session's cookies.
#[derive(Debug)]
pub struct Jar {
    settings: Settings,
    names: Names,
    sealer: Arc<Sealer>,
    recent: Recent,
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
    /// What is sealed by a key we do not have, or may be: another replica wants it back.
    unknown: Vec<Found>,
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

/// What a redirect left behind: how often the browser was sent round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The first half of the [`Handle`] that `hops` is about.
    pub handle: [u8; 8],
    /// To the same URL, since its refresh token seemed dead.
    pub hops: u8,
    /// To fetch the refresh token, of whatever generation.
    pub dances: u8,
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
        Self { names: Names::new(&settings), sealer, settings, recent: Recent::new() }
    }

    /// A jar for changed settings. For the same application it seals by the same keys as this one, which are replaced
    /// for both by [`Jar::replace_keys`]; for another one by `keyring`.
    #[must_use]
    pub fn renewed(&self, settings: Settings, keyring: Keyring) -> Self {
        if binding(&settings) != binding(&self.settings) {
            return Self::new(settings, keyring);
        }
        Self { names: Names::new(&settings), sealer: Arc::clone(&self.sealer), settings, recent: Recent::new() }
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
    /// opens, whatever stands beside it. Its refresh token may be in a cookie that the browser does not send here.
    pub fn open(&self, headers: &HeaderMap, now: Timestamp) -> Opened {
        self.read(headers, false, now)
    }

    /// The same below the prefix, where the browser sends every cookie of ours: what did not come is not there.
    pub fn open_whole(&self, headers: &HeaderMap, now: Timestamp) -> Opened {
        self.read(headers, true, now)
    }

    fn read(&self, headers: &HeaderMap, whole: bool, now: Timestamp) -> Opened {
        let mut presented = Presented::default();
        let mut values: Vec<(u32, &[u8])> = Vec::new();
        let mut kept_apart: Vec<(u32, &[u8])> = Vec::new();
        for (found, value) in self.names.find(headers).take(MAX_LOOKED_AT) {
            match found {
                Found::Part(index) => values.push((index, value)),
                Found::Refresh(index) => kept_apart.push((index, value)),
                Found::Login(_) | Found::Verify | Found::Returned => {}
            }
            presented.add(found);
        }
        if values.is_empty() {
            return Opened { state: State::Absent, presented };
        }
        // Tokens that are kept apart go with the request, not with the session: what they belong to is opened anew.
        let alone = kept_apart.is_empty() && !whole;
        let ring = self.sealer.ring();
        if let Some(session) = alone.then(|| self.recent.find(&values, ring, now)).flatten() {
            return Opened { state: lifecycle::judge(session, &self.settings, now), presented };
        }
        let came = values.clone();
        let (kept, garbage) = self.newest_ticket(&mut values, &mut presented);
        let mut best: Option<Session> = None;
        let rest = search(&self.sealer, Purpose::Session, values, |plain| {
            let Some(session) = codec::decode(plain) else { return false };
            let age = |session: &Session| (session.created, session.generation, session.last_used);
            if best.as_ref().is_none_or(|best| age(best) < age(&session)) {
                best = Some(session);
            }
            true
        });
        presented.unknown.extend(rest.unknown.into_iter().map(Found::Part));
        let state = match best {
            best if kept.as_ref().is_some_and(|kept| best.as_ref().is_none_or(|best| best.created <= kept.created)) => {
                kept.map_or(State::Absent, State::Kept)
            }
            Some(session) => {
                let session = Arc::new(self.join(session, kept_apart, whole, &mut presented));
                if alone && presented.unknown.is_empty() && !rest.garbage && !garbage {
                    self.recent.remember(&came, ring, &session, now);
                }
                lifecycle::judge(session, &self.settings, now)
            }
            None if rest.garbage || garbage => State::Broken,
            None => State::Absent,
        };
        Opened { state, presented }
    }

    /// Takes the tickets out of the session's values and opens the newest; and whether one did not open.
    fn newest_ticket(&self, values: &mut Vec<(u32, &[u8])>, presented: &mut Presented) -> (Option<Ticket>, bool) {
        let (mut newest, mut garbage): (Option<Ticket>, bool) = (None, false);
        values.retain(|(index, value)| {
            if *index != 0 || value.first() != Some(&TICKET) {
                return true;
            }
            match self.sealer.open(Purpose::Ticket, value) {
                Unsealed::Plain(plain) => match Ticket::decode(&plain) {
                    Some(ticket) if newest.as_ref().is_none_or(|newest| newest.created < ticket.created) => {
                        newest = Some(ticket);
                    }
                    Some(_) => {}
                    None => garbage = true,
                },
                Unsealed::UnknownKey => presented.unknown.push(Found::Part(0)),
                Unsealed::Broken => garbage = true,
            }
            false
        });
        (newest, garbage)
    }

    /// The name of what a ticket leads to.
    pub fn entry_name(&self, ticket: &Ticket) -> Name {
        let client = self.settings.client_id.as_bytes();
        let parts: [&[u8]; 4] = [b"ticket1", &(client.len() as u64).to_be_bytes(), client, &ticket.id.0];
        Name(self.sealer.index(KeyId(ticket.index_key), &parts).first_chunk().copied().unwrap_or_default())
    }

    /// A session as the store keeps it, to be opened with its ticket only.
    pub fn seal_entry(&self, session: &Session, ticket: &Ticket) -> Option<Kept> {
        let access = PackedToken::pack(session.access_token.expose());
        let plain = Zeroizing::new(codec::encode(session, &access, true));
        let aad = self.entry_place(ticket, session.generation);
        let sealed = self.sealer.seal_for(KeyId(ticket.index_key), &[ticket.key()], &[b"ticket1"], &aad, &plain)?;
        Some(Kept { generation: session.generation, sealed })
    }

    /// What stands under a ticket's name.
    pub fn open_entry(&self, ticket: &Ticket, entry: &Kept) -> Option<Session> {
        let aad = self.entry_place(ticket, entry.generation);
        let key = KeyId(ticket.index_key);
        let plain = self.sealer.open_for(key, &[ticket.key()], &[b"ticket1"], &aad, &entry.sealed)?;
        let session = codec::decode(&plain).filter(|session| session.id == ticket.id)?;
        Some(Session { ticket: Some(ticket.clone()), ..session })
    }

    fn entry_place(&self, ticket: &Ticket, generation: u64) -> Vec<u8> {
        [&self.entry_name(ticket).0[..], &generation.to_be_bytes()].concat()
    }

    /// Puts the tokens that are kept apart beside a session of theirs; anybody else's do not count, for a sibling site
    /// can plant a cookie of that name, its own validly sealed one included.
    fn join(&self, session: Session, values: Vec<(u32, &[u8])>, whole: bool, presented: &mut Presented) -> Session {
        let mut session = session;
        if session.refresh_token.is_none() && !values.is_empty() {
            let mut found: Option<Apart> = None;
            let is_own =
                |apart: &Apart| session.elsewhere.is_some() && self.name_apart(apart, &session) == session.elsewhere;
            let rest = search(&self.sealer, Purpose::Apart, values, |plain| {
                let Some(apart) = Apart::decode(plain) else { return false };
                let rank = |apart: &Apart| (is_own(apart), apart.generation);
                if apart.id == session.id && found.as_ref().is_none_or(|best| rank(best) < rank(&apart)) {
                    found = Some(apart);
                }
                true
            });
            presented.unknown.extend(rest.unknown.into_iter().map(Found::Refresh));
            if let Some(apart) = found {
                let own = is_own(&apart);
                session = apart.join(session, own);
            }
        }
        if whole {
            session.elsewhere = None;
        }
        session
    }

    /// The handle that a token kept apart has in this session's generation.
    fn name_apart(&self, apart: &Apart, session: &Session) -> Option<Handle> {
        let token = apart.refresh_token.as_ref()?;
        self.handle_of(session.index_key, session.generation, token)
    }

    /// What a request carries of ours, by name; nothing is opened.
    pub fn presented(&self, headers: &HeaderMap) -> Presented {
        let mut presented = Presented::default();
        for (found, _) in self.names.find(headers).take(MAX_LOOKED_AT) {
            presented.add(found);
        }
        presented
    }

    /// The `Set-Cookie` values that put this session into the browser and remove what is left of another form of it. A
    /// refresh token that is elsewhere stays there.
    ///
    /// # Errors
    /// When it is larger than the header budget.
    pub fn seal(&self, session: &Session, presented: &Presented, now: Timestamp) -> Result<Vec<HeaderValue>, TooLarge> {
        let left = lifecycle::left(session, &self.settings, now);
        let mut cookies = Vec::with_capacity(2);
        if let Some(ticket) = &session.ticket {
            self.put(&mut cookies, (Series::Session, Purpose::Ticket), &ticket.encode(), left, now);
            let is_left = |found: &&Found| matches!(found, Found::Part(1..) | Found::Refresh(_));
            cookies.extend(presented.found.iter().filter(is_left).filter_map(|found| self.expiry(found)));
            return Ok(cookies);
        }
        let Plain { front, back } = self.encode(session)?;
        let parts = self.put(&mut cookies, (Series::Session, Purpose::Session), &front, left, now);
        let kept_apart = match back {
            // The last use is sealed in the session alone: this one lasts as long as it may be of use.
            Some(plain) => self.put(
                &mut cookies,
                (Series::Refresh, Purpose::Apart),
                &plain,
                session.ends(&self.settings).since(now),
                now,
            ),
            None if session.elsewhere.is_some() => usize::MAX,
            None => 0,
        };
        for found in &presented.found {
            let is_left = |series: Series, parts| series.index(found).is_some_and(|index| index as usize >= parts);
            if is_left(Series::Session, parts) || is_left(Series::Refresh, kept_apart) {
                cookies.extend(self.expiry(found));
            }
        }
        Ok(cookies)
    }

    /// Seals a text into as many cookies as it needs, and says how many.
    fn put(
        &self,
        cookies: &mut Vec<HeaderValue>,
        (series, purpose): (Series, Purpose),
        plain: &[u8],
        left: Duration,
        now: Timestamp,
    ) -> usize {
        let text = self.sealer.seal(purpose, plain, now);
        // Rounded down: the cookie must not outlive what it holds.
        let life = Some(left.as_secs().clamp(1, MAX_AGE_CAP));
        let total = self.names.parts(text.len());
        if total == 1 {
            cookies.extend(self.set(&series.cookie(0), text, life));
        } else {
            let group = group_id(&text);
            let mut rest = text.as_str();
            for index in 0..total {
                let (piece, after) = rest.split_at_checked(self.names.piece).unwrap_or((rest, ""));
                rest = after;
                cookies.extend(self.set(&series.cookie(index as u32), format!("{index}{total}{group}{piece}"), life));
            }
        }
        total
    }

    /// Removes the session that was presented, open or not, with its verify marker. What another replica may be able to
    /// open stays.
    pub fn expire(&self, presented: &Presented) -> Vec<HeaderValue> {
        let ends =
            |found: &&Found| !matches!(found, Found::Login(_) | Found::Returned) && !presented.unknown.contains(found);
        let mut cookies: Vec<_> = presented.found.iter().filter(ends).filter_map(|found| self.expiry(found)).collect();
        if !cookies.is_empty() {
            cookies.extend(self.expire_unseen(presented));
        }
        cookies
    }

    /// Removes the cookie that may be there although this request did not bring it.
    fn expire_unseen(&self, presented: &Presented) -> Option<HeaderValue> {
        let unseen = Found::Refresh(0);
        let may_be = self.settings.layout == Layout::Split && !presented.found.contains(&unseen);
        may_be.then(|| self.expiry(&unseen)).flatten()
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
        cookies.extend(self.expire_unseen(presented));
        cookies
    }

    /// Whether a cookie of that name is ours: never forwarded, never taken from an upstream.
    pub fn owns(&self, name: &str) -> bool {
        self.names.owns(name.as_bytes())
    }

    /// The handle of a session's generation; none without a refresh token. It is taken over the refresh token as it is
    /// sealed: the sealed form is carried on unchanged for as long as the token is, and needs no inflating.
    pub fn handle(&self, session: &Session) -> Option<Handle> {
        match &session.refresh_token {
            Some(token) => self.handle_of(session.index_key, session.generation, token),
            None => session.elsewhere,
        }
    }

    fn handle_of(&self, index_key: u16, generation: u64, token: &PackedToken) -> Option<Handle> {
        let (codec, token) = token.as_sealed();
        let client = self.settings.client_id.as_bytes();
        let parts: [&[u8]; 6] =
            [b"idx1", &(client.len() as u64).to_be_bytes(), client, &generation.to_be_bytes(), &[codec], token];
        self.sealer.index(KeyId(index_key), &parts).first_chunk().copied().map(Handle)
    }

    /// Seals the next generation for other replicas: only who presents the spent refresh token can open it.
    pub fn seal_result(&self, spent: &Session, handle: Handle, next: &Session) -> Option<Vec<u8>> {
        let plain = Zeroizing::new(codec::encode(next, &PackedToken::pack(next.access_token.expose()), true));
        let (_, token) = spent.refresh_token.as_ref()?.as_sealed();
        let (secret, info, aad) = handoff(spent, token, &handle);
        self.sealer.seal_for(KeyId(spent.index_key), &secret, &info, &aad, &plain)
    }

    /// Opens what another replica sealed.
    pub fn open_result(&self, spent: &Session, handle: Handle, sealed: &[u8]) -> Option<Session> {
        let (_, token) = spent.refresh_token.as_ref()?.as_sealed();
        let (secret, info, aad) = handoff(spent, token, &handle);
        codec::decode(&self.sealer.open_for(KeyId(spent.index_key), &secret, &info, &aad, sealed)?)
    }

    /// The names by which an ending may mean this session, under its own `index_key`: every replica that opens it has
    /// that key.
    pub fn names_of(&self, session: &Session) -> [Name; 3] {
        let issuer = self.settings.issuer_of(session.provider).unwrap_or(&self.settings.issuer);
        let subject = session.subject.as_str();
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
        let plain = [&marker.handle[..], &[marker.hops, marker.dances], &until.as_millis().to_be_bytes()].concat();
        let text = self.sealer.seal(Purpose::Marker, &plain, now);
        self.set(&Found::Verify, text, Some(MARKER_LIFE.as_secs()))
    }

    /// Removes the marker, if there is one.
    pub fn unmark(&self, presented: &Presented) -> Option<HeaderValue> {
        presented.found.contains(&Found::Verify).then(|| self.expiry(&Found::Verify)).flatten()
    }

    /// The marker of an earlier verify redirect, if it is not older than ten seconds.
    pub fn marker(&self, headers: &HeaderMap, now: Timestamp) -> Option<Marker> {
        let values = self.names.find(headers).filter(|(found, _)| *found == Found::Verify);
        let markers = values.take(4).filter_map(|(_, value)| {
            let Unsealed::Plain(plain) = self.sealer.open(Purpose::Marker, value) else { return None };
            let (handle, rest) = plain.split_first_chunk()?;
            let ([hops, dances], until) = rest.split_first_chunk()?;
            let until = Timestamp::from_millis(u64::from_be_bytes(until.try_into().ok()?));
            (now < until).then_some(Marker { handle: *handle, hops: *hops, dances: *dances })
        });
        markers.max_by_key(|marker| (marker.hops, marker.dances))
    }

    /// What to seal, in the layout that is configured.
    fn encode(&self, session: &Session) -> Result<Plain, TooLarge> {
        match self.settings.layout {
            Layout::Single => Ok(Plain { front: self.encode_single(session)?, back: None }),
            Layout::Split => self.encode_split(session),
        }
    }

    /// The plaintext that makes the fewest cookies: the access token compressed only when that saves one, the ID token
    /// only when it costs none (or a route needs it).
    fn encode_single(&self, session: &Session) -> Result<Vec<u8>, TooLarge> {
        let access = session.access_token.expose();
        let plain = PackedToken::pack_plain(access);
        let first = codec::encode(session, &plain, true);
        if self.cost(first.len(), None) == Some(1) {
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
        let affordable = candidates.into_iter().filter_map(|bytes| Some((self.cost(bytes.len(), None)?, bytes)));
        // The first of the cheapest.
        let chosen = affordable.min_by_key(|(cookies, _)| *cookies);
        chosen.map(|(_, bytes)| bytes).ok_or_else(|| {
            self.too_large(session, &packed, self.names.total(Series::Session, Sealer::sealed_len(smallest)))
        })
    }

    /// The same in two texts. An ID token that a route sends stays with the session.
    fn encode_split(&self, session: &Session) -> Result<Plain, TooLarge> {
        let mut front = session.clone();
        let mut apart = Apart::of(session);
        front.elsewhere = self.handle(session);
        front.refresh_token = None;
        if self.settings.id_token_needed {
            apart.id_token = None;
        } else {
            front.id_token = None;
        }
        let access = session.access_token.expose();
        let plain = codec::encode(&front, &PackedToken::pack_plain(access), true);
        let packed = (self.cost(plain.len(), None) != Some(1)).then(|| PackedToken::pack(access));
        let mut fronts = vec![plain];
        fronts.extend(packed.as_ref().map(|packed| codec::encode(&front, packed, true)));
        let mut backs = vec![apart.encode()];
        if apart.id_token.take().is_some() {
            backs.push(apart.encode());
        }
        // In order of preference; the last one, without any token, makes no cookie.
        let backs: Vec<_> = backs.into_iter().map(|back| (!back.is_empty()).then_some(back)).collect();
        let pairs = fronts.iter().flat_map(|front| backs.iter().map(move |back| (front, back)));
        let affordable = pairs
            .clone()
            .filter_map(|(front, back)| Some((self.cost(front.len(), back.as_ref().map(Vec::len))?, front, back)));
        let chosen = affordable.min_by_key(|(cookies, ..)| *cookies);
        chosen.map(|(_, front, back)| Plain { front: front.clone(), back: back.clone() }).ok_or_else(|| {
            let total =
                |(front, back): (&Vec<u8>, &Option<Vec<u8>>)| self.total(front.len(), back.as_ref().map(Vec::len));
            let packed = packed.unwrap_or_else(|| PackedToken::pack(access));
            self.too_large(session, &packed, pairs.map(total).min().unwrap_or_default())
        })
    }

    fn too_large(&self, session: &Session, access: &PackedToken, total: usize) -> TooLarge {
        TooLarge {
            session: total,
            limit: self.settings.header_budget,
            access_token: access.len(),
            refresh_token: session.refresh_token.as_ref().map_or(0, PackedToken::len),
            id_token: session.id_token.as_ref().map_or(0, PackedToken::len),
            claims: session.claims.iter().map(|(name, value)| name.len() + value.to_string().len()).sum(),
        }
    }

    /// Characters of all cookies together, for plaintexts of these sizes.
    fn total(&self, front: usize, back: Option<usize>) -> usize {
        let total = |series, plain| self.names.total(series, Sealer::sealed_len(plain));
        total(Series::Session, front) + back.map_or(0, |back| total(Series::Refresh, back))
    }

    /// How many cookies plaintexts of these sizes make; none when they are over the budget.
    fn cost(&self, front: usize, back: Option<usize>) -> Option<usize> {
        let parts = |plain| self.names.parts(Sealer::sealed_len(plain));
        let (front_parts, back_parts) = (parts(front), back.map_or(0, parts));
        let fits = front_parts.max(back_parts) <= MAX_PARTS && self.total(front, back) <= self.settings.header_budget;
        fits.then_some(front_parts + back_parts)
    }

    fn set(&self, found: &Found, value: String, life: Option<u64>) -> Option<HeaderValue> {
        let same_site = self.settings.same_site;
        render(&self.settings, &self.names.full(found), value, same_site, self.names.path(found), life)
    }

    fn expiry(&self, found: &Found) -> Option<HeaderValue> {
        self.names.expiry(&self.settings, found)
    }
}

/// Secret, info and additional data of a result that is handed to other replicas. The secret stands in the browser's
/// cookie only.
fn handoff<'a>(spent: &'a Session, token: &'a [u8], handle: &'a Handle) -> ([&'a [u8]; 2], [&'a [u8]; 2], Vec<u8>) {
    let place = [&handle.0[..], &spent.generation.to_be_bytes()].concat();
    ([token, &spent.id.0], [b"handoff1", &handle.0], place)
}

/// What is sealed: the session, and what is kept apart from it.
struct Plain {
    front: Vec<u8>,
    back: Option<Vec<u8>>,
}

#[cfg(test)]
mod tests;
