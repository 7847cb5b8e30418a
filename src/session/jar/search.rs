//! The search for what opens among the cookies of one series: whole texts, and texts in parts.

use super::names::{PART_PREFIX, PIECE};
use crate::crypto::seal::{Opened as Unsealed, Purpose, Sealer};

/// Texts that are tried. A browser has one or two.
const MAX_TRIES: usize = 64;
/// Ways to put one group together, so that a forged group leaves tries for others.
const MAX_WAYS: usize = 16;

/// What was found beside that which opened.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// Something did not open.
    pub garbage: bool,
    /// Cookies that are sealed by a key we do not have, or may be.
    pub unknown: Vec<u32>,
}

/// Tries all values, by the numbers of their cookies. `take` gets each plaintext and says whether it made sense.
pub(super) fn search<'h>(
    sealer: &Sealer,
    purpose: Purpose,
    values: impl IntoIterator<Item = (u32, &'h [u8])>,
    take: impl FnMut(&[u8]) -> bool,
) -> Rest {
    let mut search = Search { sealer, purpose, tries: MAX_TRIES, take, rest: Rest::default() };
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (index, value) in values {
        match Part::read(index, value) {
            Some(part) => match groups.iter_mut().find(|group| group.id == part.group) {
                Some(group) => group.parts.push(part),
                None => groups.push(Group { id: part.group, parts: vec![part] }),
            },
            None if index == 0 => {
                if search.consider(value) {
                    search.rest.unknown.push(index);
                }
            }
            None => search.rest.garbage = true,
        }
    }
    for group in &groups {
        if group.consider(&mut search) {
            search.rest.unknown.extend(group.parts.iter().map(|part| part.index));
        }
    }
    search.rest
}

/// The first 36 bits of the GCM tag, the last 16 bytes of the blob.
pub(super) fn group_id(text: &str) -> String {
    let blob = base64_simd::URL_SAFE_NO_PAD.decode_to_vec(text).unwrap_or_default();
    let tag = blob.last_chunk::<16>().copied().unwrap_or_default();
    let mut id = base64_simd::URL_SAFE_NO_PAD.encode_to_string(tag);
    id.truncate(6);
    id
}

/// One cookie of a text in several.
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
    fn consider<T: FnMut(&[u8]) -> bool>(&self, search: &mut Search<'_, T>) -> bool {
        let places: Vec<Vec<&[u8]>> = (0..u32::from(self.id.0))
            .map(|index| self.parts.iter().filter(|part| part.index == index).map(|part| part.piece).collect())
            .collect();
        let ways = places.iter().try_fold(1_usize, |ways, place| ways.checked_mul(place.len())).unwrap_or(MAX_WAYS);
        if ways == 0 {
            // Incomplete. Its first part may tell that it was never ours to judge.
            let first = places.first().into_iter().flatten();
            let unknown = first.into_iter().any(|piece| search.sealer.is_of_unknown_key(search.purpose, piece));
            search.rest.garbage |= !unknown;
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

struct Search<'a, T> {
    sealer: &'a Sealer,
    purpose: Purpose,
    tries: usize,
    take: T,
    rest: Rest,
}

impl<T: FnMut(&[u8]) -> bool> Search<'_, T> {
    /// True when another key may open the text.
    fn consider(&mut self, text: &[u8]) -> bool {
        let Some(tries) = self.tries.checked_sub(1) else { return false };
        self.tries = tries;
        match self.sealer.open(self.purpose, text) {
            Unsealed::Plain(plain) => self.rest.garbage |= !(self.take)(&plain),
            Unsealed::UnknownKey => return true,
            Unsealed::Broken => self.rest.garbage = true,
        }
        false
    }
}
