//! The system's randomness, the only kind used here.

use std::cell::RefCell;

use base64_simd::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};

/// Fills `bytes`.
///
/// # Panics
/// When the system has no randomness to give: no nonce and no key can be made then, so there is nothing to fall back to.
#[expect(clippy::expect_used, reason = "no randomness, no security: there is nothing to fall back to")]
pub fn fill(bytes: &mut [u8]) {
    SystemRandom::new().fill(bytes).expect("the system's random source works");
}

/// `N` random bytes. Panics as [`fill`] does.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

/// `N` random bytes as unpadded base64url: four characters for three bytes. Panics as [`fill`] does.
pub fn base64url<const N: usize>() -> String {
    URL_SAFE_NO_PAD.encode_to_string(bytes::<N>())
}

/// `N` random bytes for what names a request and protects nothing: drawn by the kilobyte, so that a request costs no
/// system call for its ids. Not for keys, nonces, or anything that must not be guessed by who reads this memory. Panics
/// as [`fill`] does.
pub fn identifier<const N: usize>() -> [u8; N] {
    thread_local! {
        static DRAWN: RefCell<Drawn> = const { RefCell::new(Drawn { bytes: [0; 1024], used: 1024 }) };
    }
    DRAWN.with_borrow_mut(Drawn::take)
}

/// What a thread has in stock. Bytes are given out once.
struct Drawn {
    bytes: [u8; 1024],
    used: usize,
}

impl Drawn {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        if self.used + N > self.bytes.len() {
            fill(&mut self.bytes);
            self.used = 0;
        }
        let given = self.bytes.get(self.used..).and_then(|rest| rest.first_chunk().copied());
        self.used += N;
        given.unwrap_or_else(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_fresh_and_url_safe() {
        let text = base64url::<16>();
        assert_eq!(text.len(), 22);
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        assert_ne!(bytes::<16>(), bytes::<16>());
    }

    #[test]
    fn identifiers_are_given_out_once() {
        let mut drawn: Vec<[u8; 24]> = (0..500).map(|_| identifier()).collect();
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), 500);
        assert_ne!(identifier::<2000>()[..16], identifier::<2000>()[..16], "more than there is in stock");
    }

    /// ASVS-7.2.3, ASVS-11.5.1, ASVS-11.5.2: many threads at once never draw the same 128 bits.
    #[test]
    fn threads_draw_nothing_twice() {
        let draw = || (0..2000).map(|_| bytes::<16>()).collect::<Vec<_>>();
        let drawn: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(draw)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(drawn.iter().collect::<std::collections::HashSet<_>>().len(), 16 * 2000);
        // Every bit is as often set as not: within six deviations of the half.
        for bit in 0..128 {
            let set = drawn.iter().filter(|bytes| bytes[bit / 8] >> (bit % 8) & 1 == 1).count();
            assert!(set.abs_diff(16_000) < 540, "bit {bit}: {set} of 32000");
        }
    }
}
