//! The ticket: all that the browser holds of a session that is kept in the store.
//!
//! It names the session and carries the key that opens it. The store has sealed bytes under a name that cannot be
//! guessed; neither it nor the server's keys alone open them.

use std::sync::Arc;

use zeroize::Zeroizing;

use super::codec::{Reader, put_tlv, put_tlv_number};
use super::model::SessionId;
use crate::clock::Timestamp;
use crate::crypto::random;

/// Of the sealed plaintext.
const VERSION: u8 = 1;

const ID: u8 = 1;
const KEY: u8 = 2;
const INDEX_KEY: u8 = 3;
const CREATED: u8 = 4;

/// See the module. Cloning shares the key, so that there is one copy to wipe.
#[derive(Clone)]
pub struct Ticket {
    pub id: SessionId,
    key: Arc<Zeroizing<[u8; 32]>>,
    /// The key of the ring by which the entry is named and its key derived; stays for the session's life.
    pub index_key: u16,
    /// When the user logged in.
    pub created: Timestamp,
}

impl PartialEq for Ticket {
    fn eq(&self, other: &Self) -> bool {
        let plain = |ticket: &Self| (ticket.id, ticket.index_key, ticket.created);
        plain(self) == plain(other) && self.key == other.key
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticket(***)")
    }
}

impl Ticket {
    /// A ticket with a key of its own.
    pub fn new(id: SessionId, index_key: u16, created: Timestamp) -> Self {
        Self { id, key: Arc::new(Zeroizing::new(random::bytes())), index_key, created }
    }

    pub(super) fn key(&self) -> &[u8] {
        &**self.key
    }

    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(80));
        out.push(VERSION);
        put_tlv(&mut out, ID, &self.id.0);
        put_tlv(&mut out, KEY, self.key());
        put_tlv(&mut out, INDEX_KEY, &self.index_key.to_be_bytes());
        put_tlv_number(&mut out, CREATED, self.created.as_millis());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.byte()? != VERSION {
            return None;
        }
        let mut next = |tag| reader.field()?.filter(|(found, _)| *found == tag).map(|(_, value)| value);
        let id = SessionId(next(ID)?.try_into().ok()?);
        let key = Arc::new(Zeroizing::new(next(KEY)?.try_into().ok()?));
        let index_key = u16::from_be_bytes(next(INDEX_KEY)?.try_into().ok()?);
        let created = Timestamp::from_millis(Reader(next(CREATED)?).varint()?);
        reader.0.is_empty().then_some(Self { id, key, index_key, created })
    }
}
