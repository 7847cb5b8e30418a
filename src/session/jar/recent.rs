//! Sessions that were opened lately: who sends the same cookies again is spared base64, AES and decoding.
//!
//! Only what opened gets in, found by its GCM tag and compared whole, so that nobody can fill this with anything but
//! sessions, nor find one without its cookie. Whether a session is over is not judged here: that is asked anew every
//! time, as if it had just been opened. Another key ring makes all of it count for nothing.
//!
//! Each shard has two generations: what is used moves into the younger one, and when that is full or old it replaces the
//! elder. So what is kept is bounded in bytes, and what nobody asks for is gone after a while.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::MAX_PARTS;
use crate::clock::Timestamp;
use crate::session::Session;

/// Shards, so that threads do not wait for each other.
const SHARDS: usize = 8;
/// Bytes of all generations together, as they are estimated: some thousand sessions of common size.
const ROOM: usize = 8 * 1024 * 1024;
const GENERATION: usize = ROOM / SHARDS / 2;
/// A generation takes no more after this.
const SPAN: Duration = Duration::from_secs(60);
/// What an entry costs beside its texts.
const OVERHEAD: usize = 512;

/// The end of a sealed text: 96 bits of its GCM tag.
type Tag = [u8; 16];

/// Its keys are tags that our own sealing made.
type Entries = HashMap<Tag, Entry, foldhash::fast::RandomState>;

/// See the module.
#[derive(Debug)]
pub(super) struct Recent([Mutex<Shard>; SHARDS]);

#[derive(Debug, Default)]
struct Shard {
    young: Entries,
    elder: Entries,
    /// Of the young.
    bytes: usize,
    since: Timestamp,
}

#[derive(Clone, Debug)]
struct Entry {
    /// The cookies' values, each after its number and before a semicolon, which stands in none.
    text: Arc<[u8]>,
    /// The number of the key ring that opened it.
    ring: u64,
    session: Arc<Session>,
}

impl Recent {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }

    /// The session that these cookies held when this key ring opened them.
    pub(super) fn find(&self, cookies: &[(u32, &[u8])], ring: u64, now: Timestamp) -> Option<Arc<Session>> {
        let tag = tag(cookies)?;
        let mut shard = self.shard(tag).lock();
        if let Some(entry) = shard.young.get(&tag) {
            return entry.is_of(cookies, ring).then(|| Arc::clone(&entry.session));
        }
        let entry = shard.elder.get(&tag).filter(|entry| entry.is_of(cookies, ring))?.clone();
        let session = Arc::clone(&entry.session);
        shard.insert(tag, entry, now);
        Some(session)
    }

    /// Remembers what these cookies hold.
    pub(super) fn remember(&self, cookies: &[(u32, &[u8])], ring: u64, session: &Arc<Session>, now: Timestamp) {
        let Some(tag) = tag(cookies) else { return };
        let mut text = Vec::with_capacity(cookies.iter().map(|(_, value)| value.len() + 2).sum());
        for (index, value) in cookies {
            text.push(number(*index));
            text.extend_from_slice(value);
            text.push(b';');
        }
        let entry = Entry { text: text.into(), ring, session: Arc::clone(session) };
        self.shard(tag).lock().insert(tag, entry, now);
    }

    fn shard(&self, tag: Tag) -> &Mutex<Shard> {
        let [first, .., last] = tag;
        // Two characters of base64url: more than three bits of chance.
        let [shard, ..] = &self.0;
        self.0.get(usize::from(first ^ last) % SHARDS).unwrap_or(shard)
    }
}

impl Shard {
    fn insert(&mut self, tag: Tag, entry: Entry, now: Timestamp) {
        if self.bytes >= GENERATION || now.since(self.since) > SPAN {
            self.elder = std::mem::take(&mut self.young);
            (self.bytes, self.since) = (0, now);
        }
        self.bytes += entry.bytes();
        if let Some(replaced) = self.young.insert(tag, entry) {
            self.bytes = self.bytes.saturating_sub(replaced.bytes());
        }
    }
}

impl Entry {
    /// A session holds about what its text does, decoded.
    fn bytes(&self) -> usize {
        2 * self.text.len() + OVERHEAD
    }

    fn is_of(&self, cookies: &[(u32, &[u8])], ring: u64) -> bool {
        let mut rest = &*self.text;
        let all = cookies.iter().all(|(index, value)| {
            let Some((own, after)) = rest.split_first() else { return false };
            let Some((text, after)) = after.split_at_checked(value.len()) else { return false };
            let Some((end, after)) = after.split_first() else { return false };
            rest = after;
            *own == number(*index) && *end == b';' && is_same(text, value)
        });
        all && rest.is_empty() && ring == self.ring
    }
}

/// In a time that does not tell how much of it is the same.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    // No branch for any byte, so that the compiler takes many at a time.
    a.len() == b.len() && black_box(a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
}

/// None for what is too much to be remembered.
fn tag(cookies: &[(u32, &[u8])]) -> Option<Tag> {
    let (_, last) = cookies.last()?;
    let fits = cookies.len() <= MAX_PARTS && cookies.iter().all(|(index, _)| (*index as usize) < MAX_PARTS);
    last.last_chunk().copied().filter(|_| fits)
}

#[expect(clippy::cast_possible_truncation, reason = "below MAX_PARTS")]
fn number(index: u32) -> u8 {
    index as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::model::tests::{NOW, at, session, tokens};

    fn text(seed: usize) -> Vec<u8> {
        format!("E{seed:0>2000}{:0>16}", seed * 7919).into_bytes()
    }

    fn some_session() -> Arc<Session> {
        Arc::new(session(tokens("a", Some("r"))))
    }

    #[test]
    fn the_same_cookies_are_known_and_others_are_not() {
        let recent = Recent::new();
        let session = some_session();
        let (a, b) = (text(1), text(2));
        recent.remember(&[(0, &a), (1, &b)], 1, &session, NOW);
        assert!(recent.find(&[(0, &a), (1, &b)], 1, NOW).is_some_and(|found| Arc::ptr_eq(&found, &session)));
        for (cookies, ring) in [
            (&[(0, &a[..]), (1, &b[..])][..], 2),
            (&[(0, &a), (2, &b)], 1),
            (&[(1, &b)], 1),
            (&[(0, &b), (1, &b)], 1),
            (&[(0, &a[1..]), (1, &b)], 1),
            (&[(0, &a), (0, &a), (1, &b)], 1),
            (&[], 1),
            (&[(0, b"x")], 1),
        ] {
            assert!(recent.find(cookies, ring, NOW).is_none(), "ring {ring}, {} cookies", cookies.len());
        }
        // Every byte counts.
        for at in [0, 1, 1000, a.len() - 1] {
            let mut other = a.clone();
            other[at] ^= 1;
            assert!(recent.find(&[(0, &other), (1, &b)], 1, NOW).is_none(), "byte {at}");
        }
    }

    #[test]
    fn cookies_of_other_numbers_are_not_remembered() {
        let recent = Recent::new();
        let value = text(1);
        recent.remember(&[(9, &value)], 1, &some_session(), NOW);
        recent.remember(&[(256, &value)], 1, &some_session(), NOW);
        assert!(recent.find(&[(0, &value)], 1, NOW).is_none() && recent.find(&[(9, &value)], 1, NOW).is_none());
    }

    #[test]
    fn what_is_used_stays_and_the_rest_makes_room() {
        let recent = Recent::new();
        let session = some_session();
        let used = text(0);
        recent.remember(&[(0, &used)], 1, &session, NOW);
        for seed in 1..10_000 {
            recent.remember(&[(0, &text(seed))], 1, &session, NOW);
            assert!(recent.find(&[(0, &used)], 1, NOW).is_some(), "after {seed}");
        }
        let kept: Vec<_> = recent.0.iter().map(|shard| shard.lock()).collect();
        let bytes: usize =
            kept.iter().flat_map(|shard| shard.young.values().chain(shard.elder.values())).map(Entry::bytes).sum();
        assert!((ROOM / 2..ROOM + SHARDS * 2 * 8192).contains(&bytes), "{bytes}");
    }

    #[test]
    fn what_nobody_asks_for_is_gone_after_a_while() {
        let recent = Recent::new();
        let mut remembered = Vec::new();
        for seed in 0..64 {
            let session = some_session();
            remembered.push(Arc::downgrade(&session));
            recent.remember(&[(0, &text(seed))], 1, &session, NOW);
        }
        for minute in 1..4 {
            for seed in 100..164 {
                recent.remember(&[(0, &text(seed))], 1, &some_session(), at(61 * minute));
            }
        }
        assert_eq!(remembered.iter().filter(|session| session.strong_count() > 0).count(), 0);
    }
}
