//! Compact versioned encoding of a session.

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

impl PackedToken {
    /// Packs a token.
    pub fn pack(token: &str) -> Self {
        Self { codec: 0, bytes: token.as_bytes().to_vec() }
    }

    /// The token; none when it does not unpack.
    pub fn unpack(&self) -> Option<String> {
        (self.codec == 0).then(|| String::from_utf8(self.bytes.clone()).ok()).flatten()
    }
}
