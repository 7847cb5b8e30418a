//! WebSocket (RFC 6455), just enough of it: the handshake, frames in both directions, no extensions.

use std::io;

use super::text::{header, random};
use super::wire::{Conn, Reply};

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The payload as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    /// The status code of a close frame.
    pub fn close_code(&self) -> Option<u16> {
        match self.payload.as_slice() {
            [high, low, ..] if self.opcode == CLOSE => Some(u16::from_be_bytes([*high, *low])),
            _ => None,
        }
    }
}

/// A fresh `Sec-WebSocket-Key`.
pub fn new_key() -> String {
    base64_simd::STANDARD.encode_to_string(random(16))
}

/// The `Sec-WebSocket-Accept` that belongs to a key.
pub fn accept_for(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    base64_simd::STANDARD.encode_to_string(digest.as_ref())
}

/// The bytes of one final frame; clients must mask.
pub fn frame(opcode: u8, payload: &[u8], mask: bool) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode];
    let bit = if mask { 0x80 } else { 0 };
    match payload.len() {
        n if n < 126 => bytes.push(bit | u8::try_from(n).expect("short")),
        n if n < 65_536 => {
            bytes.push(bit | 126);
            bytes.extend_from_slice(&u16::try_from(n).expect("short").to_be_bytes());
        }
        n => {
            bytes.push(bit | 127);
            bytes.extend_from_slice(&u64::try_from(n).expect("fits").to_be_bytes());
        }
    }
    if mask {
        let key = random(4);
        bytes.extend_from_slice(&key);
        bytes.extend(payload.iter().zip(key.iter().cycle()).map(|(b, k)| b ^ k));
    } else {
        bytes.extend_from_slice(payload);
    }
    bytes
}

/// The next frame; `None` when the peer ended.
pub async fn read_frame(conn: &mut Conn) -> io::Result<Option<Frame>> {
    let head = conn.take(2).await?;
    let [first, second] = head.as_slice() else { return Ok(None) };
    let extra = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let more = conn.take(extra).await?;
    let length = match extra {
        0 => u64::from(second & 0x7f),
        _ => more.iter().fold(0, |acc, b| acc << 8 | u64::from(*b)),
    };
    let key = if second & 0x80 == 0 { vec![0] } else { conn.take(4).await? };
    let length = usize::try_from(length).expect("a frame of a test");
    let masked = conn.take(length).await?;
    if masked.len() < length {
        return Ok(None);
    }
    let payload = masked.iter().zip(key.iter().cycle()).map(|(b, k)| b ^ k).collect();
    Ok(Some(Frame { opcode: first & 15, payload }))
}

/// The client's side of an open WebSocket.
#[derive(Debug)]
pub struct WebSocket {
    conn: Conn,
    /// The answer to the handshake.
    pub reply: Reply,
}

impl WebSocket {
    /// Wraps a connection whose handshake got `reply`; checks what a browser checks.
    pub fn new(conn: Conn, reply: Reply, key: &str) -> Self {
        assert_eq!(reply.status, 101, "the handshake was refused");
        assert_eq!(header(&reply.headers, "sec-websocket-accept"), Some(accept_for(key).as_str()));
        let upgrade = header(&reply.headers, "upgrade").unwrap_or_default();
        assert!(upgrade.eq_ignore_ascii_case("websocket"), "Upgrade: {upgrade}");
        Self { conn, reply }
    }

    /// Sends a text frame.
    pub async fn send_text(&mut self, text: &str) -> io::Result<()> {
        self.send(TEXT, text.as_bytes()).await
    }

    /// Sends any frame.
    pub async fn send(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        self.conn.send(&frame(opcode, payload, true)).await
    }

    /// The next frame; `None` when the connection is gone.
    pub async fn next(&mut self) -> Option<Frame> {
        read_frame(&mut self.conn).await.ok().flatten()
    }

    /// Closes with this code and waits for the end.
    pub async fn close(mut self, code: u16) -> Option<Frame> {
        self.send(CLOSE, &code.to_be_bytes()).await.ok()?;
        self.next().await
    }
}
