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
