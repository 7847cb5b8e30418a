//! The system's randomness, the only kind used here.

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
