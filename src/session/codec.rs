//! Compact versioned encoding of a session: pure functions on bytes.
//!
//! The plaintext is one version byte, then fields in the order of `Tag`: tag, length (LEB128), value. A field occurs
//! once (claims: once per name, in order), so that a session has one encoding for given token packings. Unknown
//! versions and tags are refused: whoever wrote them knows better.
//!
//! # Why tokens are packed as they are
//!
//! Decoding the base64url of a JWT's segments saves a quarter of it for about 0.1 µs per token at every open.
//! Compressing saves more and costs more, so it is spent where it is free or needed:
//!
//! - refresh and ID token are looked at once in many requests: a JWT among them is compressed when that is shorter;
//! - the access token is decoded at every request: the jar compresses it only when the session would otherwise need
//!   one more cookie.
//!
//! Measured by `cargo bench --bench session_codec` on a virtual machine that had other work, bytes and the best
//! nanoseconds of header and payload as one text:
//!
//! | text | zstd 3 | lz4 | deflate 6 (zlib-ng) |
//! | --- | --- | --- | --- |
//! | Keycloak, 863 bytes | 549, inflates in 1 900 | 695, 150 | 517, 3 100 |
//! | Keycloak with 120 roles, 2938 | 606, 2 100 | 1433, 770 | 592, 3 500 |
//! | Entra with 20 groups, 1818 | 1286, 2 600 | 1752, 130 | 1240, 5 800 |
//! | Entra with 200 groups, 8838 | 5122, 8 400 | 8557, 1 400 | 5087, 37 000 |
//!
//! So zstd: deflate saves 1 to 6 % more and takes one and a half to four times as long; lz4 costs next to nothing but
//! is beaten by far where compressing is needed, and what it leaves over is a second cookie on every request. Levels 9
//! and 19 shorten a kilobyte by 1 to 3 %. UUIDs are moved beside the stream, because random bytes only disturb it: the
//! 200 groups then take 3200 bytes and the rest of the token about 900.
//!
//! Compress-then-encrypt shows in the length how well something compressed. Only header and payload of a JWT go into
//! the stream, each token into its own; its signature, opaque tokens and whatever a caller chose stay outside, and the
//! blob is padded to 32.

use std::cell::RefCell;
use std::collections::BTreeMap;

use base64_simd::URL_SAFE_NO_PAD;

use super::model::{Handle, Session, SessionId};
use crate::clock::Timestamp;
use crate::memo::Memo;
use crate::oidc::dpop::DpopKey;
use crate::oidc::types::{AccessToken, ProviderKey};

/// The longest token text that comes out of a packed one.
const MAX_TOKEN: usize = 64 * 1024;
/// Of the sessions' plaintext.
const VERSION: u8 = 1;
/// See the figures above.
const ZSTD_LEVEL: i32 = 3;
/// Stands for a UUID in compressed text. JSON never holds it (RFC 8259 section 7).
const UUID_MARK: u8 = 0x01;

/// A token as it is sealed: codec number and bytes, unpacked only where it is needed.
#[derive(Clone, PartialEq, Eq)]
pub struct PackedToken {
    codec: u8,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for PackedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PackedToken(***)")
    }
}

/// Codec numbers; they are part of the wire format.
mod numbers {
    /// The text itself.
    pub(super) const TEXT: u8 = 0;
    /// A canonical UUID in 16 bytes.
    pub(super) const UUID: u8 = 1;
    /// Segments between dots, each base64url-decoded where it is base64url.
    pub(super) const SEGMENTS: u8 = 2;
    /// A JWT: header and payload in one zstd frame, UUIDs in it moved beside it, signature raw.
    pub(super) const JWT_ZSTD: u8 = 3;
}

impl PackedToken {
    /// The shortest form there is. For tokens that are seldom looked at: unpacking may have to inflate.
    pub fn pack(token: &str) -> Self {
        let plain = Self::pack_plain(token);
        match Self::verified(numbers::JWT_ZSTD, pack_jwt(token), token) {
            Some(zstd) if zstd.bytes.len() < plain.bytes.len() => zstd,
            _ => plain,
        }
    }

    /// The shortest form that unpacks without inflating.
    pub fn pack_plain(token: &str) -> Self {
        Self::verified(numbers::UUID, parse_uuid(token.as_bytes()).map(Vec::from), token)
            .or_else(|| Self::verified(numbers::SEGMENTS, Some(pack_segments(token)), token))
            .unwrap_or_else(|| Self { codec: numbers::TEXT, bytes: token.as_bytes().to_vec() })
    }

    /// The token. None when the bytes are no packed token, or one that would come out longer than 64 KiB.
    pub fn unpack(&self) -> Option<String> {
        unpack(self.codec, &self.bytes)
    }

    /// Size as sealed, in bytes.
    pub fn len(&self) -> usize {
        1 + self.bytes.len()
    }

    /// Whether there is no token in it.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The sealed form: the codec, then its bytes. Stays the same for as long as the token is carried on.
    pub fn as_sealed(&self) -> (u8, &[u8]) {
        (self.codec, &self.bytes)
    }

    /// Takes a packing only when it is shorter than the text and gives back the very same text: base64url has spellings
    /// that decode alike, and a token changed by one bit is no token.
    fn verified(codec: u8, bytes: Option<Vec<u8>>, token: &str) -> Option<Self> {
        let bytes = bytes.filter(|bytes| bytes.len() < token.len())?;
        (unpack(codec, &bytes)? == token).then_some(Self { codec, bytes })
    }

    fn put(&self, out: &mut Vec<u8>, tag: Tag) {
        self.put_as(out, tag as u8);
    }

    /// As a field.
    pub(super) fn put_as(&self, out: &mut Vec<u8>, tag: u8) {
        out.push(tag);
        put_varint(out, self.len() as u64);
        out.push(self.codec);
        out.extend_from_slice(&self.bytes);
    }

    pub(super) fn read(field: &[u8]) -> Option<Self> {
        let (codec, bytes) = field.split_first()?;
        Some(Self { codec: *codec, bytes: bytes.to_vec() })
    }
}

fn unpack(codec: u8, bytes: &[u8]) -> Option<String> {
    match codec {
        numbers::TEXT => std::str::from_utf8(bytes).ok().map(str::to_owned),
        numbers::UUID => {
            let mut text = Vec::with_capacity(36);
            put_uuid(&mut text, bytes.try_into().ok()?);
            String::from_utf8(text).ok()
        }
        numbers::SEGMENTS => unpack_segments(bytes),
        numbers::JWT_ZSTD => unpack_jwt(bytes),
        _ => None,
    }
}

// Segments: for each one `length * 2 + (1 when it is text as it is)`, then its bytes.

fn pack_segments(token: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(token.len());
    for segment in token.split('.') {
        put_segment(&mut out, segment);
    }
    out
}

fn put_segment(out: &mut Vec<u8>, segment: &str) {
    match URL_SAFE_NO_PAD.decode_to_vec(segment) {
        Ok(bytes) => {
            put_varint(out, bytes.len() as u64 * 2);
            out.extend_from_slice(&bytes);
        }
        Err(_) => {
            put_varint(out, segment.len() as u64 * 2 + 1);
            out.extend_from_slice(segment.as_bytes());
        }
    }
}

fn unpack_segments(bytes: &[u8]) -> Option<String> {
    let mut reader = Reader(bytes);
    let mut text = String::with_capacity(URL_SAFE_NO_PAD.encoded_length(bytes.len()));
    loop {
        reader.segment(&mut text)?;
        if reader.0.is_empty() {
            return Some(text);
        }
        text.push('.');
    }
}

// A compressed JWT: length of the header, number of UUIDs, the UUIDs, the signature as a segment, length of the inflated
// text, zstd frame.

fn pack_jwt(token: &str) -> Option<Vec<u8>> {
    let mut segments = token.split('.');
    let (header, payload, signature) = (segments.next()?, segments.next()?, segments.next()?);
    if segments.next().is_some() {
        return None;
    }
    let mut text = URL_SAFE_NO_PAD.decode_to_vec(header).ok()?;
    let header_len = text.len();
    URL_SAFE_NO_PAD.decode_append(payload, &mut text).ok()?;
    let (text, uuids) = move_uuids_out(&text);

    let mut out = Vec::with_capacity(token.len());
    put_varint(&mut out, header_len as u64);
    put_varint(&mut out, uuids.len() as u64 / 16);
    out.extend_from_slice(&uuids);
    put_segment(&mut out, signature);
    put_varint(&mut out, text.len() as u64);
    out.extend_from_slice(&zstd::bulk::compress(&text, ZSTD_LEVEL).ok()?);
    Some(out)
}

fn unpack_jwt(bytes: &[u8]) -> Option<String> {
    let mut reader = Reader(bytes);
    let header_len = reader.len()?;
    let count = reader.len()?;
    let uuids = reader.take(count.checked_mul(16)?)?;
    let mut signature = String::new();
    reader.segment(&mut signature)?;
    let len = reader.len()?;
    // Every bound is checked before memory is taken.
    if len.checked_add(count.checked_mul(35)?)? > MAX_TOKEN {
        return None;
    }
    let text = move_uuids_in(&inflate(reader.0, len)?, uuids)?;
    let (header, payload) = text.split_at_checked(header_len)?;
    let mut token = String::with_capacity(URL_SAFE_NO_PAD.encoded_length(text.len()) + signature.len() + 4);
    URL_SAFE_NO_PAD.encode_append(header, &mut token);
    token.push('.');
    URL_SAFE_NO_PAD.encode_append(payload, &mut token);
    token.push('.');
    token.push_str(&signature);
    Some(token)
}

fn inflate(frame: &[u8], len: usize) -> Option<Vec<u8>> {
    thread_local! {
        // A fresh context costs several times the inflating.
        static CONTEXT: RefCell<zstd::bulk::Decompressor<'static>> = RefCell::default();
    }
    let mut text = Vec::with_capacity(len);
    let written = CONTEXT.with_borrow_mut(|zstd| zstd.decompress_to_buffer(frame, &mut text)).ok()?;
    (written == len && text.len() == len).then_some(text)
}

/// Text with a mark for each canonical UUID, and the UUIDs: 16 bytes that no compressor can shorten.
fn move_uuids_out(text: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut rest, mut kept, mut uuids) = (text, Vec::with_capacity(text.len()), Vec::new());
    while let Some((first, after)) = rest.split_first() {
        let uuid = rest.split_at_checked(36).and_then(|(window, after)| Some((parse_uuid(window)?, after)));
        if let Some((uuid, after)) = uuid {
            uuids.extend_from_slice(&uuid);
            kept.push(UUID_MARK);
            rest = after;
        } else {
            kept.push(*first);
            rest = after;
        }
    }
    (kept, uuids)
}

fn move_uuids_in(text: &[u8], uuids: &[u8]) -> Option<Vec<u8>> {
    let (uuids, _) = uuids.as_chunks::<16>();
    let (mut rest, mut out) = (text, Vec::with_capacity(text.len() + uuids.len() * 35));
    for uuid in uuids {
        let (before, after) = rest.split_at_checked(memchr::memchr(UUID_MARK, rest)?)?;
        out.extend_from_slice(before);
        put_uuid(&mut out, *uuid);
        rest = after.split_first()?.1;
    }
    out.extend_from_slice(rest);
    memchr::memchr(UUID_MARK, rest).is_none().then_some(out)
}

/// A UUID as RFC 9562 section 4 prints it, in lower case.
fn parse_uuid(text: &[u8]) -> Option<[u8; 16]> {
    let text: &[u8; 36] = text.try_into().ok()?;
    let (mut uuid, mut high, mut at) = ([0; 16], None, 0);
    for (place, byte) in text.iter().enumerate() {
        if matches!(place, 8 | 13 | 18 | 23) {
            if *byte != b'-' {
                return None;
            }
            continue;
        }
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        if let Some(high) = high.take() {
            *uuid.get_mut(at)? = high << 4 | digit;
            at += 1;
        } else {
            high = Some(digit);
        }
    }
    Some(uuid)
}

fn put_uuid(out: &mut Vec<u8>, uuid: [u8; 16]) {
    let digit = |nibble: u8| nibble + if nibble < 10 { b'0' } else { b'a' - 10 };
    for (place, byte) in uuid.iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        out.extend_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
    }
}

/// Field numbers; they are part of the wire format.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Tag {
    Id = 1,
    Generation,
    Created,
    LastUsed,
    Issued,
    IndexKey,
    Previous,
    AccessToken,
    AccessExpires,
    RefreshToken,
    RefreshExpires,
    IdToken,
    Scope,
    Subject,
    ProviderSid,
    AuthTime,
    Acr,
    NonceHash,
    Claim,
    DpopKey,
    Elsewhere,
    Provider,
}

/// Encodes a session with an access token packed by the caller, who knows whether it pays to compress it.
pub fn encode(session: &Session, access_token: &PackedToken, with_id_token: bool) -> Vec<u8> {
    let size = 256
        + access_token.len()
        + session.refresh_token.as_ref().map_or(0, PackedToken::len)
        + session.id_token.as_ref().map_or(0, PackedToken::len);
    let mut out = Vec::with_capacity(size);
    // Other times count from the login, which makes them short; what lies before it wraps around, and back again.
    let after = |time: Timestamp| time.as_millis().wrapping_sub(session.created.as_millis());
    out.push(VERSION);
    put(&mut out, Tag::Id, &session.id.0);
    put_number(&mut out, Tag::Generation, session.generation);
    put_number(&mut out, Tag::Created, session.created.as_millis());
    put_number(&mut out, Tag::LastUsed, after(session.last_used));
    put_number(&mut out, Tag::Issued, after(session.issued));
    put(&mut out, Tag::IndexKey, &session.index_key.to_be_bytes());
    if let Some(Handle(previous)) = &session.previous {
        put(&mut out, Tag::Previous, previous);
    }
    access_token.put(&mut out, Tag::AccessToken);
    if let Some(expires) = session.access_expires {
        put_number(&mut out, Tag::AccessExpires, after(expires));
    }
    if let Some(token) = &session.refresh_token {
        token.put(&mut out, Tag::RefreshToken);
    }
    if let Some(expires) = session.refresh_expires {
        put_number(&mut out, Tag::RefreshExpires, after(expires));
    }
    if let Some(token) = session.id_token.as_ref().filter(|_| with_id_token) {
        token.put(&mut out, Tag::IdToken);
    }
    if let Some(scope) = &session.scope {
        put(&mut out, Tag::Scope, scope.as_bytes());
    }
    // Most providers make a UUID or base64url of it.
    PackedToken::pack_plain(&session.subject).put(&mut out, Tag::Subject);
    if let Some(sid) = &session.provider_sid {
        PackedToken::pack_plain(sid).put(&mut out, Tag::ProviderSid);
    }
    if let Some(time) = session.auth_time {
        put_number(&mut out, Tag::AuthTime, time);
    }
    if let Some(acr) = &session.acr {
        put(&mut out, Tag::Acr, acr.as_bytes());
    }
    if let Some(hash) = &session.nonce_hash {
        put(&mut out, Tag::NonceHash, hash);
    }
    for (name, value) in &session.claims {
        let mut field = Vec::with_capacity(64);
        put_varint(&mut field, name.len() as u64);
        field.extend_from_slice(name.as_bytes());
        // Most claims are texts, and JSON is slow to read at every request.
        match value {
            serde_json::Value::String(text) => {
                field.push(0);
                field.extend_from_slice(text.as_bytes());
            }
            other => {
                field.push(1);
                field.extend_from_slice(other.to_string().as_bytes());
            }
        }
        put(&mut out, Tag::Claim, &field);
    }
    if let Some(key) = &session.dpop {
        put(&mut out, Tag::DpopKey, key.as_bytes());
    }
    if let Some(Handle(elsewhere)) = &session.elsewhere {
        put(&mut out, Tag::Elsewhere, elsewhere);
    }
    if let Some(ProviderKey(key)) = &session.provider {
        put(&mut out, Tag::Provider, key);
    }
    out
}

/// Reads what [`encode`] wrote. None for anything else; why does not matter to anybody.
pub fn decode(bytes: &[u8]) -> Option<Session> {
    let mut reader = Reader(bytes);
    if reader.byte()? != VERSION {
        return None;
    }
    let mut ahead = reader.field()?;
    // Each step takes its field when that is the next one. What is left over at the end is unknown, double or misplaced.
    let mut next = |tag: Tag| match ahead {
        Some((found, value)) if found == tag as u8 => {
            ahead = reader.field()?;
            Some(Some(value))
        }
        _ => Some(None),
    };
    let id = SessionId(next(Tag::Id)??.try_into().ok()?);
    let generation = number(next(Tag::Generation)??)?;
    let created = number(next(Tag::Created)??)?;
    let time = |value| number(value).map(|after| Timestamp::from_millis(created.wrapping_add(after)));
    let session = Session {
        id,
        generation,
        created: Timestamp::from_millis(created),
        last_used: time(next(Tag::LastUsed)??)?,
        issued: time(next(Tag::Issued)??)?,
        index_key: u16::from_be_bytes(next(Tag::IndexKey)??.try_into().ok()?),
        previous: optional(next(Tag::Previous)?, |value| value.try_into().ok().map(Handle))?,
        access_token: AccessToken::new(unpacked(next(Tag::AccessToken)??)?),
        access_expires: optional(next(Tag::AccessExpires)?, time)?,
        refresh_token: optional(next(Tag::RefreshToken)?, PackedToken::read)?,
        refresh_expires: optional(next(Tag::RefreshExpires)?, time)?,
        id_token: optional(next(Tag::IdToken)?, PackedToken::read)?,
        scope: optional(next(Tag::Scope)?, text)?,
        subject: unpacked(next(Tag::Subject)??)?,
        provider_sid: optional(next(Tag::ProviderSid)?, unpacked)?,
        auth_time: optional(next(Tag::AuthTime)?, number)?,
        acr: optional(next(Tag::Acr)?, text)?,
        nonce_hash: optional(next(Tag::NonceHash)?, |value| value.try_into().ok())?,
        claims: {
            let mut claims = BTreeMap::new();
            while let Some(field) = next(Tag::Claim)? {
                let (name, value) = claim(field)?;
                if claims.last_key_value().is_some_and(|(last, _)| *last >= name) {
                    return None;
                }
                claims.insert(name, value);
            }
            claims
        },
        dpop: optional(next(Tag::DpopKey)?, DpopKey::from_bytes)?,
        pseudonym: Memo::default(),
        ticket: None,
        elsewhere: optional(next(Tag::Elsewhere)?, |value| value.try_into().ok().map(Handle))?,
        provider: optional(next(Tag::Provider)?, |value| value.try_into().ok().map(ProviderKey))?,
    };
    ahead.is_none().then_some(session)
}

fn claim(field: &[u8]) -> Option<(String, serde_json::Value)> {
    let mut reader = Reader(field);
    let len = reader.len()?;
    let name = text(reader.take(len)?)?;
    let value = match reader.byte()? {
        0 => serde_json::Value::String(text(reader.0)?),
        1 => serde_json::from_slice(reader.0).ok()?,
        _ => return None,
    };
    Some((name, value))
}

fn optional<'a, T>(value: Option<&'a [u8]>, read: impl FnOnce(&'a [u8]) -> Option<T>) -> Option<Option<T>> {
    match value {
        Some(value) => read(value).map(Some),
        None => Some(None),
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

fn number(bytes: &[u8]) -> Option<u64> {
    let mut reader = Reader(bytes);
    let number = reader.varint()?;
    reader.0.is_empty().then_some(number)
}

fn unpacked(field: &[u8]) -> Option<String> {
    let (codec, bytes) = field.split_first()?;
    unpack(*codec, bytes)
}

fn put(out: &mut Vec<u8>, tag: Tag, value: &[u8]) {
    put_tlv(out, tag as u8, value);
}

fn put_number(out: &mut Vec<u8>, tag: Tag, number: u64) {
    put_tlv_number(out, tag as u8, number);
}

/// Tag, length, value.
pub(super) fn put_tlv(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    out.push(tag);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Tag, length, LEB128.
pub(super) fn put_tlv_number(out: &mut Vec<u8>, tag: u8, number: u64) {
    out.push(tag);
    let bits = 64 - number.leading_zeros();
    put_varint(out, u64::from(bits.div_ceil(7).max(1)));
    put_varint(out, number);
}

/// LEB128: seven bits a byte, lowest first.
fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// What is left to read. Every step may find that it is not there.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn len(&mut self) -> Option<usize> {
        usize::try_from(self.varint()?).ok()
    }

    /// The next field, or that there is none; the outer none is for one that is cut off.
    pub(super) fn field(&mut self) -> Option<Option<(u8, &'a [u8])>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let tag = self.byte()?;
        let len = self.len()?;
        Some(Some((tag, self.take(len)?)))
    }

    /// Every field that is left, by rising tags: a thing has one spelling. None when they are not, or at the first that
    /// `take` does not want.
    pub(super) fn fields(&mut self, mut take: impl FnMut(u8, &'a [u8]) -> Option<()>) -> Option<()> {
        let mut last = 0;
        while let Some((tag, value)) = self.field()? {
            if tag <= last {
                return None;
            }
            last = tag;
            take(tag, value)?;
        }
        Some(())
    }

    fn segment(&mut self, text: &mut String) -> Option<()> {
        let word = self.varint()?;
        let bytes = self.take(usize::try_from(word / 2).ok()?)?;
        if word % 2 == 0 {
            URL_SAFE_NO_PAD.encode_append(bytes, text);
        } else {
            text.push_str(std::str::from_utf8(bytes).ok()?);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests;
