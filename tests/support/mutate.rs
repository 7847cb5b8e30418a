//! Mutations of byte strings, the same on every machine.

/// xorshift64*.
#[derive(Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// 0 to `bound - 1`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % bound.max(1)
    }
}

/// Bytes that parsers stumble over.
const SPICE: &[&[u8]] = &[
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"=",
    b"\"",
    b"%",
    b"%2f",
    b"%00",
    b"..",
    b"//",
    b"\\",
    b"\x0b",
    b"\xff",
    b"\xc3\xa4",
    b"0",
    b"+",
    b"-1",
    b"0x",
    b"99999999999999999999",
    b"{",
    b"}",
    b"[",
    b"null",
    b"e400",
    b"\\u0000",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding:\tchunked\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Host: evil.example\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close, content-length\r\n",
    b"0\r\n\r\n",
    b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
];

/// Changes `seed` in one to four places; `others` lend their tails.
pub fn mutate(seed: &[u8], others: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=dice.below(4) {
        change(&mut bytes, others, dice);
    }
    bytes.truncate(64 * 1024);
    bytes
}

/// Changes one place.
pub fn change(bytes: &mut Vec<u8>, others: &[Vec<u8>], dice: &mut Dice) {
    let at = dice.below(bytes.len() + 1);
    match dice.below(6) {
        0 if !bytes.is_empty() => {
            let at = at.min(bytes.len() - 1);
            bytes[at] = u8::try_from(dice.below(256)).unwrap();
        }
        1 => {
            let spice = SPICE[dice.below(SPICE.len())];
            bytes.splice(at..at, spice.iter().copied());
        }
        2 => bytes.truncate(at),
        3 => {
            let end = (at + dice.below(16)).min(bytes.len());
            bytes.drain(at.min(end)..end);
        }
        4 => {
            let end = (at + dice.below(64)).min(bytes.len());
            let piece = bytes[at.min(end)..end].to_vec();
            bytes.splice(at..at, piece);
        }
        _ => {
            let other = &others[dice.below(others.len())];
            let from = dice.below(other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}
