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
}
