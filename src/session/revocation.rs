//! Sessions that were ended before their time: the tombstones of this process.
//!
//! A sealed cookie opens for as long as its keys do, so a logout has to be remembered until the session would have
//! ended by itself.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

use super::SessionId;
use crate::clock::Timestamp;

/// About 15 MB when full. At one logout a second and a session of 12 h, 43 200 are alive at a time.
const CAPACITY: usize = 100_000;

/// A bounded set of ended sessions. When it is full, the one that would have ended first makes room.
#[derive(Debug, Default)]
pub struct Ended {
    graves: RwLock<Graves>,
    /// So that a request takes no lock while nobody has logged out.
    len: AtomicUsize,
}

#[derive(Debug, Default)]
struct Graves {
    until: HashMap<SessionId, Timestamp>,
    by_end: BTreeSet<(Timestamp, SessionId)>,
}

impl Ended {
    /// Remembers that a session is over, until it would have been over anyway.
    pub fn end(&self, id: SessionId, until: Timestamp, now: Timestamp) {
        if until <= now {
            return;
        }
        let mut graves = self.graves.write();
        let graves = &mut *graves;
        let until = until.max(graves.until.get(&id).copied().unwrap_or_default());
        if let Some(before) = graves.until.insert(id, until) {
            graves.by_end.remove(&(before, id));
        }
        graves.by_end.insert((until, id));
        while let Some((first, id)) = graves.by_end.first().copied() {
            if first > now && graves.by_end.len() <= CAPACITY {
                break;
            }
            graves.by_end.pop_first();
            graves.until.remove(&id);
        }
        self.len.store(graves.until.len(), Ordering::Release);
    }

    /// Whether a session was ended.
    pub fn is_ended(&self, id: SessionId, now: Timestamp) -> bool {
        self.len.load(Ordering::Acquire) != 0 && self.graves.read().until.get(&id).is_some_and(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn id(number: u64) -> SessionId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_be_bytes());
        SessionId(id)
    }

    #[test]
    fn an_ended_session_stays_ended_until_its_end() {
        let ended = Ended::default();
        let end = NOW + Duration::from_secs(10);
        assert!(!ended.is_ended(id(1), NOW));
        ended.end(id(1), end, NOW);
        ended.end(id(1), NOW + Duration::from_secs(5), NOW); // does not shorten it
        assert!(ended.is_ended(id(1), NOW + Duration::from_secs(9)));
        assert!(!ended.is_ended(id(2), NOW));
        assert!(!ended.is_ended(id(1), end));
        ended.end(id(2), end + Duration::from_secs(10), end);
        assert_eq!(ended.graves.read().until.len(), 1, "what is past is forgotten");
    }

    #[test]
    fn it_is_bounded_and_drops_what_ends_first() {
        let ended = Ended::default();
        for number in 0..CAPACITY as u64 + 10 {
            ended.end(id(number), NOW + Duration::from_secs(number + 1), NOW);
        }
        assert_eq!(ended.graves.read().until.len(), CAPACITY);
        assert_eq!(ended.graves.read().by_end.len(), CAPACITY);
        assert!(!ended.is_ended(id(9), NOW));
        assert!(ended.is_ended(id(10), NOW));
    }
}
