//! Where WebSocket frames end (RFC 6455 section 5.2), so that a close frame can be put between two of them.

/// `1001 going away`, unmasked as servers send it.
pub(super) const GOING_AWAY: [u8; 4] = [0x88, 0x02, 0x03, 0xe9];

/// Follows the frames that the upstream sends.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Header bytes of the current frame so far.
    header: Vec<u8>,
    /// Payload bytes (and mask) still to come.
    left: u64,
    /// A close frame went by: nothing may follow it.
    closing: bool,
}

impl Frames {
    /// Takes note of bytes that were sent.
    pub(super) fn sent(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skip = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
                self.left -= skip as u64;
                bytes = bytes.get(skip..).unwrap_or_default();
            } else if let Some((byte, rest)) = bytes.split_first() {
                self.header.push(*byte);
                bytes = rest;
                if let Some(left) = payload(&self.header) {
                    self.closing |= self.header.first().is_some_and(|b| b & 0x0f == 0x08);
                    self.left = left;
                    self.header.clear();
                }
            }
        }
    }

    /// A close frame may be sent now.
    pub(super) fn may_close(&self) -> bool {
        self.left == 0 && self.header.is_empty() && !self.closing
    }
}

/// How many bytes follow the length; `None` while the length is incomplete.
fn payload(header: &[u8]) -> Option<u64> {
    let (_, [second, extended @ ..]) = header.split_first()? else { return None };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let length = match second & 0x7f {
        126 => u64::from(u16::from_be_bytes(extended.try_into().ok()?)),
        127 => u64::from_be_bytes(extended.try_into().ok()?),
        short => u64::from(short),
    };
    Some(length.saturating_add(mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_frame_fits_only_between_frames() {
        let mut long = vec![0x82, 126, 0x01, 0x00];
        long.extend([7; 256]);
        let mut huge = vec![0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0];
        huge.extend([7; 65536]);
        for frame in [vec![0x81, 0], vec![0x81, 2, b'h', b'i'], vec![0x81, 0x82, 1, 2, 3, 4, 9, 9], long, huge] {
            let mut frames = Frames::default();
            assert!(frames.may_close());
            for (at, byte) in frame.iter().enumerate() {
                frames.sent(&[*byte]);
                assert_eq!(frames.may_close(), at + 1 == frame.len(), "after {at} of {frame:?}");
            }
            let mut twice = Frames::default();
            twice.sent(&[frame.clone(), frame].concat());
            assert!(twice.may_close());
        }
    }

    #[test]
    fn nothing_follows_a_close_frame() {
        let mut frames = Frames::default();
        frames.sent(&GOING_AWAY);
        assert!(!frames.may_close());
    }
}
