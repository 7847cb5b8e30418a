//! The tokens that the `split` layout keeps apart from their session, and how the two come together again.
//!
//! Both say of which session and generation they are; the session besides by a [`Handle`] which refresh token is its
//! own. A browser stores the two cookies of an answer together, as a rule. When it did not, the refresh token decides
//! where the session stands: what came of that very token is what the refresh engine knows, or finds out.

use super::codec::{PackedToken, Reader, put_tlv, put_tlv_number};
use super::model::{Handle, Session, SessionId};

/// Of the sealed plaintext.
const VERSION: u8 = 1;

const ID: u8 = 1;
const GENERATION: u8 = 2;
const INDEX_KEY: u8 = 3;
const PREVIOUS: u8 = 4;
const REFRESH_TOKEN: u8 = 5;
const ID_TOKEN: u8 = 6;

/// What the refresh cookie holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Apart {
    pub id: SessionId,
    pub generation: u64,
    /// As in the session of that generation.
    pub index_key: u16,
    pub previous: Option<Handle>,
    pub refresh_token: Option<PackedToken>,
    pub id_token: Option<PackedToken>,
}

impl Apart {
    /// What of a session can be kept apart.
    pub fn of(session: &Session) -> Self {
        Self {
            id: session.id,
            generation: session.generation,
            index_key: session.index_key,
            previous: session.previous,
            refresh_token: session.refresh_token.clone(),
            id_token: session.id_token.clone(),
        }
    }

    /// Puts the tokens beside their session. `own`: the refresh token is the one that the session names.
    ///
    /// When it is not, one of two cookies is left from another answer. The session then takes the place of the refresh
    /// token in the line of generations, and its access token counts as over, so that a refresh sets things right.
    #[must_use]
    pub fn join(self, session: Session, own: bool) -> Session {
        let id_token = session.id_token.clone().or(self.id_token);
        match self.refresh_token {
            None => Session { id_token, ..session },
            Some(token) if own => Session { refresh_token: Some(token), elsewhere: None, id_token, ..session },
            // A session that never had a refresh token has none to be found.
            Some(_) if session.elsewhere.is_none() => session,
            Some(token) => Session {
                refresh_token: Some(token),
                elsewhere: None,
                id_token,
                generation: self.generation,
                index_key: self.index_key,
                previous: self.previous,
                access_expires: Some(session.issued),
                ..session
            },
        }
    }

    /// Empty when there is nothing to keep.
    pub fn encode(&self) -> Vec<u8> {
        if self.refresh_token.is_none() && self.id_token.is_none() {
            return Vec::new();
        }
        let size = |token: &Option<PackedToken>| token.as_ref().map_or(0, |token| token.len() + 4);
        let mut out = Vec::with_capacity(64 + size(&self.refresh_token) + size(&self.id_token));
        out.push(VERSION);
        put_tlv(&mut out, ID, &self.id.0);
        put_tlv_number(&mut out, GENERATION, self.generation);
        put_tlv(&mut out, INDEX_KEY, &self.index_key.to_be_bytes());
        if let Some(Handle(previous)) = &self.previous {
            put_tlv(&mut out, PREVIOUS, previous);
        }
        if let Some(token) = &self.refresh_token {
            token.put_as(&mut out, REFRESH_TOKEN);
        }
        if let Some(token) = &self.id_token {
            token.put_as(&mut out, ID_TOKEN);
        }
        out
    }

    /// Reads what [`Self::encode`] wrote. None for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.byte()? != VERSION {
            return None;
        }
        let (mut id, mut generation, mut index_key) = (None, None, None);
        let (mut previous, mut refresh_token, mut id_token) = (None, None, None);
        reader.fields(|tag, value| {
            match tag {
                ID => id = Some(SessionId(value.try_into().ok()?)),
                GENERATION => generation = Some(Reader(value).varint()?),
                INDEX_KEY => index_key = Some(u16::from_be_bytes(value.try_into().ok()?)),
                PREVIOUS => previous = Some(Handle(value.try_into().ok()?)),
                REFRESH_TOKEN => refresh_token = Some(PackedToken::read(value)?),
                ID_TOKEN => id_token = Some(PackedToken::read(value)?),
                _ => return None,
            }
            Some(())
        })?;
        Some(Self { id: id?, generation: generation?, index_key: index_key?, previous, refresh_token, id_token })
    }
}
