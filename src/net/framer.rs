//! Where an HTTP/1.1 message begins and ends, read strictly (RFC 9112). Pure: bytes in, verdict out.
//!
//! This is the security boundary against request smuggling. Wherever two readers of RFC 9112 could disagree, the
//! message is refused rather than interpreted, and what is accepted is handed on in one canonical form: chunk
//! extensions and trailers are gone, an absolute target has become a path.
//!
//! A verdict depends on the bytes alone, never on how the network cut them: both readers walk byte by byte and stop at
//! the first one that is wrong.

use std::net::Ipv6Addr;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::refusal::Refusal;
use super::settings::Settings;
use crate::web::problem::Code;

/// Longer than any registered method.
const METHOD_BYTES: usize = 32;
/// `HTTP/1.1`.
const VERSION_BYTES: usize = 8;
/// The parser behind us takes no more fields in a head.
pub const MOST_FIELDS: usize = 256;
/// The `http` crate's limit for a target.
const MOST_TARGET_BYTES: usize = 65_534;
/// Nor a head of a mebibyte; this leaves room for the longest request line.
const MOST_HEADER_BYTES: usize = 900 * 1024;
/// For all chunk extensions of a body together: nobody uses them, and each could cost us a line of parsing per byte.
const EXTENSION_BYTES: usize = 4 * 1024;
/// For the trailer section; it is dropped.
const TRAILER_BYTES: usize = 8 * 1024;
/// 16 hex digits are a 64-bit size.
const SIZE_DIGITS: u8 = 16;
/// Signed 64 bits: what every implementation can count to.
const MOST_LENGTH: u64 = i64::MAX as u64;

/// How much a head may hold.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// For all fields together, line ends included.
    pub header_bytes: usize,
    pub header_count: usize,
    pub uri_bytes: usize,
}

impl From<&Settings> for HeadLimits {
    fn from(settings: &Settings) -> Self {
        Self {
            header_bytes: settings.header_bytes.min(MOST_HEADER_BYTES),
            header_count: settings.header_count.min(MOST_FIELDS),
            uri_bytes: settings.uri_bytes.min(MOST_TARGET_BYTES),
        }
    }
}

/// The framing of a request body (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    None,
    /// Never 0.
    Length(u64),
    Chunked,
}

/// What the client asks the connection to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// Nothing, or not properly: HTTP/1.1, `Upgrade` and `Connection: upgrade`, no body.
    No,
    WebSocket,
    Other,
}

/// An accepted head.
#[derive(Clone, Debug)]
pub struct Head {
    /// The whole head in canonical form, empty line included.
    pub bytes: Bytes,
    pub method: Bytes,
    /// In origin-form, or `*`.
    pub target: Bytes,
    /// Absent in HTTP/1.0 only.
    pub host: Option<Bytes>,
    pub body: Body,
    pub upgrade: Upgrade,
}

impl Head {
    /// The whole head, in a buffer of its size: the one that it was read into is larger than most heads, and whoever waits
    /// for an upstream is not to hold all of that.
    pub fn into_bytes(self) -> BytesMut {
        BytesMut::from(self.bytes.as_ref())
    }
}

/// What the bytes so far amount to.
#[derive(Clone, Debug)]
pub enum Verdict {
    NeedMore,
    Head(Box<Head>),
    Refuse(Refusal),
}

/// Reads one head.
#[derive(Debug)]
pub struct HeadReader {
    limits: HeadLimits,
    state: At,
    /// How many bytes of the buffer were judged.
    judged: usize,
    /// Where the current part (method, target, name, value) begins.
    start: usize,
    fields_start: usize,
    count: usize,
    line: RequestLine,
    seen: Seen,
    /// Where the current field's name ends.
    name_end: usize,
}

/// ## EmptyLine? => Method => Target => Version => (Name => Value)* => End
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// The very first byte; RFC 9112 section 2.2 asks us to ignore one empty line here.
    Start,
    EmptyLineLf,
    Method,
    Target,
    Version,
    VersionLf,
    LineStart,
    Name,
    Value,
    ValueLf,
    EndLf,
}

#[derive(Debug, Default)]
struct RequestLine {
    method: (usize, usize),
    target: (usize, usize),
    version: (usize, usize),
    http_1_0: bool,
}

/// The fields that frame, as seen so far.
#[derive(Debug, Default)]
struct Seen {
    host: Option<(usize, usize)>,
    length: Option<u64>,
    chunked: bool,
    connection_upgrade: bool,
    upgrade: Option<Upgrade>,
    expect: bool,
}

impl HeadReader {
    pub fn new(limits: HeadLimits) -> Self {
        Self {
            limits,
            state: At::Start,
            judged: 0,
            start: 0,
            fields_start: 0,
            count: 0,
            line: RequestLine::default(),
            seen: Seen::default(),
            name_end: 0,
        }
    }

    /// Judges the bytes of `buffer` that it has not seen yet. The caller appends to the buffer and takes nothing from
    /// it until the verdict: an accepted head is split off the front, what follows it stays. One that is refused is all
    /// that stays.
    pub fn read(&mut self, buffer: &mut BytesMut) -> Verdict {
        while let Some(&byte) = buffer.get(self.judged) {
            if self.state == At::LineStart {
                match self.lines(buffer) {
                    Ok(false) => {}
                    Ok(true) => continue,
                    Err(refusal) => return Verdict::Refuse(refusal),
                }
            }
            let plain = self.plain(buffer);
            if plain > 0 {
                self.judged += plain;
                continue;
            }
            match self.step(byte, buffer) {
                Ok(false) => self.judged += 1,
                Ok(true) => {
                    let head = buffer.split_to(self.judged + 1).freeze();
                    return match self.finish(&head) {
                        Ok(head) => Verdict::Head(Box::new(head)),
                        Err(refusal) => {
                            // Whoever tells of it looks at what came.
                            *buffer = BytesMut::from(head.as_ref());
                            Verdict::Refuse(refusal)
                        }
                    };
                }
                Err(refusal) => return Verdict::Refuse(refusal),
            }
        }
        Verdict::NeedMore
    }

    /// Takes the field lines that are whole and good at once, to the verdict that [`Self::step`] would come to byte by byte;
    /// all others are left to it. True when there were any.
    fn lines(&mut self, buffer: &[u8]) -> Result<bool, Refusal> {
        let before = self.judged;
        while self.count < self.limits.header_count {
            let rest = buffer.get(self.judged..).unwrap_or_default();
            let name_len = rest.iter().take_while(|byte| is_token(**byte)).count();
            let (name, rest) = rest.split_at(name_len);
            let Some((b':', rest)) = rest.split_first() else { break };
            let Some(length) = memchr::memchr(b'\r', rest) else { break };
            let (value, end) = rest.split_at(length);
            let name_end = self.judged + name_len;
            let last = name_end + 1 + length + 1;
            let good = name_len > 0 && all_values(value) && end.starts_with(b"\r\n");
            if !good || self.within_header_bytes(last).is_err() {
                break;
            }
            self.seen.field(name, value, name_end + 1)?;
            self.count += 1;
            self.judged = last + 1;
        }
        self.start = self.judged;
        Ok(self.judged > before)
    }

    /// How many of the next bytes only continue the target, or a field's name or value: what [`Self::step`] would pass one by one. Most
    /// of a head are values, and a sealed session is a long one.
    fn plain(&self, buffer: &[u8]) -> usize {
        let rest = || {
            let end = self.fields_start.saturating_add(self.limits.header_bytes).min(buffer.len());
            buffer.get(self.judged..end).unwrap_or_default()
        };
        match self.state {
            At::Name => rest().iter().take_while(|byte| is_token(**byte)).count(),
            At::Value => plain_value(rest()),
            At::Target => {
                let end = self.start.saturating_add(self.limits.uri_bytes).min(buffer.len());
                let rest = buffer.get(self.judged..end).unwrap_or_default();
                rest.iter().take_while(|byte| is_of(GRAPHIC, **byte)).count()
            }
            _ => 0,
        }
    }

    /// One byte; `true` at the head's last.
    fn step(&mut self, byte: u8, buffer: &[u8]) -> Result<bool, Refusal> {
        let at = self.judged;
        match self.state {
            At::Start if byte == b'\r' => self.state = At::EmptyLineLf,
            At::EmptyLineLf if byte == b'\n' => self.begin(At::Method, at + 1),
            At::EmptyLineLf => return Err(BARE_CR),
            At::Start | At::Method => {
                self.state = At::Method;
                if byte == b' ' && at > self.start {
                    self.line.method = (self.start, at);
                    self.begin(At::Target, at + 1);
                } else if !is_token(byte) || at - self.start >= METHOD_BYTES {
                    return Err(Refusal::bad("The request does not begin with a method."));
                }
            }
            At::Target => {
                if byte == b' ' && at > self.start {
                    self.line.target = (self.start, at);
                    self.begin(At::Version, at + 1);
                } else if !byte.is_ascii_graphic() {
                    return Err(Refusal::bad("The request line is malformed."));
                } else if at - self.start >= self.limits.uri_bytes {
                    return Err(Refusal::new(Code::UriTooLong, "The request target is too long."));
                }
            }
            At::Version => {
                if byte == b'\r' {
                    self.line.version = (self.start, at);
                    self.state = At::VersionLf;
                } else if !byte.is_ascii_graphic() || at - self.start >= VERSION_BYTES {
                    return Err(Refusal::bad("The request line is malformed."));
                }
            }
            At::VersionLf => {
                if byte != b'\n' {
                    return Err(BARE_CR);
                }
                self.judge_version(buffer)?;
                self.fields_start = at + 1;
                self.begin(At::LineStart, at + 1);
            }
            At::LineStart => {
                if byte == b'\r' {
                    self.state = At::EndLf;
                } else if is_token(byte) {
                    self.within_header_bytes(at)?;
                    self.count += 1;
                    if self.count > self.limits.header_count {
                        return Err(Refusal::new(Code::HeadersTooLarge, "Too many header fields."));
                    }
                    self.begin(At::Name, at);
                } else {
                    return Err(Refusal::bad("A header line does not begin with a field name."));
                }
            }
            At::Name => {
                self.within_header_bytes(at)?;
                if byte == b':' {
                    self.name_end = at;
                    self.state = At::Value;
                } else if !is_token(byte) {
                    return Err(Refusal::bad("A header field name is malformed."));
                }
            }
            At::Value => {
                self.within_header_bytes(at)?;
                if byte == b'\r' {
                    self.state = At::ValueLf;
                } else if !is_value(byte) {
                    return Err(Refusal::bad("A header field value has a control character."));
                }
            }
            At::ValueLf => {
                self.within_header_bytes(at)?;
                if byte != b'\n' {
                    return Err(BARE_CR);
                }
                let (name, value) = (part(buffer, self.start, self.name_end), part(buffer, self.name_end + 1, at - 1));
                self.seen.field(name, value, self.name_end + 1)?;
                self.begin(At::LineStart, at + 1);
            }
            At::EndLf => return if byte == b'\n' { Ok(true) } else { Err(BARE_CR) },
        }
        Ok(false)
    }

    fn begin(&mut self, state: At, start: usize) {
        self.state = state;
        self.start = start;
    }

    fn within_header_bytes(&self, at: usize) -> Result<(), Refusal> {
        if at - self.fields_start >= self.limits.header_bytes {
            return Err(Refusal::new(Code::HeadersTooLarge, "The header fields are too large."));
        }
        Ok(())
    }

    fn judge_version(&mut self, buffer: &[u8]) -> Result<(), Refusal> {
        let (start, end) = self.line.version;
        let version = part(buffer, start, end);
        match version {
            b"HTTP/1.1" => Ok(()),
            b"HTTP/1.0" => {
                self.line.http_1_0 = true;
                Ok(())
            }
            // The preface of HTTP/2, on a port that does not speak it.
            b"HTTP/2.0" if part(buffer, self.line.method.0, self.line.method.1) == b"PRI" => {
                Err(Refusal::bad("This port does not speak HTTP/2."))
            }
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
                Err(Refusal::new(Code::BadVersion, "Only HTTP/1.0 and HTTP/1.1 are spoken here."))
            }
            _ => Err(Refusal::bad("The request line is malformed.")),
        }
    }

    /// What only the whole head can tell.
    fn finish(&mut self, head: &Bytes) -> Result<Head, Refusal> {
        let seen = std::mem::take(&mut self.seen);
        let method = slice(head, self.line.method);
        let raw_target = slice(head, self.line.target);
        if matches!(method.as_ref(), b"CONNECT" | b"TRACE") {
            return Err(Refusal::new(Code::MethodNotAllowed, "This method is not served."));
        }
        let host = seen.host.map(|at| slice(head, at));
        match &host {
            Some(host) if !is_host(host) => return Err(Refusal::bad("The Host field is malformed.")),
            None if !self.line.http_1_0 => return Err(Refusal::bad("The Host field is missing.")),
            _ => {}
        }
        let target = origin_form(&raw_target, &method, host.as_deref())?;
        if http::uri::PathAndQuery::from_maybe_shared(target.clone()).is_err() {
            return Err(BAD_TARGET);
        }
        let body = match (seen.chunked, seen.length) {
            (true, Some(_)) => return Err(Refusal::bad("Content-Length and Transfer-Encoding together.")),
            (true, None) if self.line.http_1_0 => return Err(Refusal::bad("Transfer-Encoding in HTTP/1.0.")),
            (true, None) => Body::Chunked,
            (false, None | Some(0)) => Body::None,
            (false, Some(length)) => Body::Length(length),
        };
        let upgrade = match seen.upgrade {
            Some(upgrade) if seen.connection_upgrade && !self.line.http_1_0 && body == Body::None => upgrade,
            _ => Upgrade::No,
        };
        let bytes = if target == raw_target && self.line.method.0 == 0 {
            head.clone()
        } else {
            let rest = slice(head, (self.line.target.1, head.len()));
            let mut bytes = BytesMut::with_capacity(method.len() + 1 + target.len() + rest.len());
            bytes.put_slice(&method);
            bytes.put_u8(b' ');
            bytes.put_slice(&target);
            bytes.put_slice(&rest);
            bytes.freeze()
        };
        Ok(Head { bytes, method, target, host, body, upgrade })
    }
}

const BARE_CR: Refusal = Refusal::bad("A line does not end in CR LF.");
const BAD_TARGET: Refusal = Refusal::bad("The request target is malformed.");

impl Seen {
    /// `offset` is where the value begins in the head.
    fn field(&mut self, name: &[u8], value: &[u8], offset: usize) -> Result<(), Refusal> {
        let is = |wanted: &[u8]| name.eq_ignore_ascii_case(wanted);
        // All these begin with one of five letters; most fields end here.
        if !matches!(name.first(), Some(b'C' | b'c' | b'E' | b'e' | b'H' | b'h' | b'T' | b't' | b'U' | b'u')) {
            return Ok(());
        }
        if is(b"host") {
            let trimmed = trim(value);
            let start = offset + (value.len() - value.trim_ascii_start().len());
            if self.host.replace((start, start + trimmed.len())).is_some() {
                return Err(Refusal::bad("The Host field is repeated."));
            }
        } else if is(b"content-length") {
            let length = content_length(value).ok_or(Refusal::bad("The Content-Length field is malformed."))?;
            if self.length.replace(length).is_some() {
                return Err(Refusal::bad("The Content-Length field is repeated."));
            }
        } else if is(b"transfer-encoding") {
            // Several fields are one list, and no list but exactly `chunked` has one meaning everywhere.
            if self.chunked || !one_space_off(value).eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::bad("Transfer-Encoding is not exactly chunked."));
            }
            self.chunked = true;
        } else if is(b"connection") {
            self.connection_upgrade |= value.split(|b| *b == b',').any(|o| trim(o).eq_ignore_ascii_case(b"upgrade"));
        } else if is(b"upgrade") {
            let websocket = self.upgrade.is_none() && trim(value).eq_ignore_ascii_case(b"websocket");
            self.upgrade = Some(if websocket { Upgrade::WebSocket } else { Upgrade::Other });
        } else if is(b"expect") {
            if self.expect || !trim(value).eq_ignore_ascii_case(b"100-continue") {
                return Err(Refusal::new(Code::ExpectationFailed, "The expectation is not 100-continue."));
            }
            self.expect = true;
        }
        Ok(())
    }
}

/// The target as a path (RFC 9112 section 3.2). An absolute target must name the host that the Host field names.
fn origin_form(target: &Bytes, method: &Bytes, host: Option<&[u8]>) -> Result<Bytes, Refusal> {
    if target.contains(&b'#') {
        return Err(BAD_TARGET);
    }
    if target.starts_with(b"/") {
        return Ok(target.clone());
    }
    if target.as_ref() == b"*" {
        return if method.as_ref() == b"OPTIONS" { Ok(target.clone()) } else { Err(BAD_TARGET) };
    }
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|s| target.get(..s.len()).is_some_and(|t| t.eq_ignore_ascii_case(s)))
        .ok_or(BAD_TARGET)?;
    let rest = target.slice(scheme.len()..);
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, path) = (rest.slice(..end), rest.slice(end..));
    if host.is_none_or(|host| !host.eq_ignore_ascii_case(&authority)) {
        return Err(Refusal::bad("The request target and the Host field differ."));
    }
    if path.starts_with(b"/") {
        return Ok(path);
    }
    let mut rooted = BytesMut::with_capacity(path.len() + 1);
    rooted.put_u8(b'/');
    rooted.put_slice(&path);
    Ok(rooted.freeze())
}

/// `host[:port]`: a name of letters, digits, `-`, `.` and `_`, or a bracketed IPv6 address. Narrower than RFC 3986 on
/// purpose: what else its grammar allows (`,`, `;`, `%2f`) means different hosts to different readers.
fn is_host(host: &[u8]) -> bool {
    let (name, port) = match host.strip_prefix(b"[") {
        Some(rest) => {
            let Some(end) = rest.iter().position(|b| *b == b']') else { return false };
            let (address, rest) = rest.split_at(end);
            let address = std::str::from_utf8(address).ok().and_then(|a| a.parse::<Ipv6Addr>().ok());
            if address.is_none() {
                return false;
            }
            match rest.strip_prefix(b"]") {
                Some([]) => return true,
                Some([b':', port @ ..]) => (None, Some(port)),
                _ => return false,
            }
        }
        None => match host.iter().position(|b| *b == b':') {
            Some(at) => {
                let (name, port) = host.split_at(at);
                (Some(name), port.strip_prefix(b":"))
            }
            None => (Some(host), None),
        },
    };
    let name_is_good = name.is_none_or(|name| {
        !name.is_empty()
            && name.len() <= 253
            && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    });
    let port_is_good = port.is_none_or(|port| {
        (1..=5).contains(&port.len())
            && port.iter().all(u8::is_ascii_digit)
            && std::str::from_utf8(port).ok().and_then(|p| p.parse::<u16>().ok()).is_some()
    });
    name_is_good && port_is_good
}

/// Digits only, in the one way to write a number: no sign, no leading zero, no list, no blanks but the usual one.
fn content_length(value: &[u8]) -> Option<u64> {
    let digits = one_space_off(value);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) || (digits.len() > 1 && digits.starts_with(b"0")) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|length| *length <= MOST_LENGTH)
}

/// What a byte may be part of. One look into a table: every byte of every head is asked about.
const TOKEN: u8 = 1;
const VALUE: u8 = 2;
const GRAPHIC: u8 = 4;
const CLASSES: [u8; 256] = classes();

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut byte: u8 = 0;
    loop {
        // RFC 9110 section 5.6.2.
        let token = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        // RFC 9110 section 5.5: visible characters, blanks, and bytes above ASCII.
        let value = byte == b'\t' || (byte >= b' ' && byte != 0x7f);
        classes[byte as usize] = (if token { TOKEN } else { 0 })
            | (if value { VALUE } else { 0 })
            | (if byte.is_ascii_graphic() { GRAPHIC } else { 0 });
        if byte == u8::MAX {
            return classes;
        }
        byte += 1;
    }
}

fn is_of(class: u8, byte: u8) -> bool {
    CLASSES.get(usize::from(byte)).is_some_and(|classes| classes & class != 0)
}

fn is_token(byte: u8) -> bool {
    is_of(TOKEN, byte)
}

fn is_value(byte: u8) -> bool {
    is_of(VALUE, byte)
}

/// Without a branch for each byte, so that the compiler takes many at a time.
fn all_values(bytes: &[u8]) -> bool {
    let wrong = |byte: u8| (byte < b' ' && byte != b'\t') || byte == 0x7f;
    bytes.iter().fold(0, |bad, byte| bad | u8::from(wrong(*byte))) == 0
}

/// How many bytes a value goes on for at least.
fn plain_value(bytes: &[u8]) -> usize {
    let (blocks, _) = bytes.as_chunks::<32>();
    let whole = blocks.iter().take_while(|block| all_values(*block)).count() * 32;
    let tail = bytes.get(whole..).unwrap_or_default();
    whole + tail.iter().take_while(|byte| is_value(**byte)).count()
}

fn trim(value: &[u8]) -> &[u8] {
    value.trim_ascii()
}

fn one_space_off(value: &[u8]) -> &[u8] {
    value.strip_prefix(b" ").unwrap_or(value)
}

fn part(buffer: &[u8], start: usize, end: usize) -> &[u8] {
    buffer.get(start..end).unwrap_or_default()
}

fn slice(bytes: &Bytes, (start, end): (usize, usize)) -> Bytes {
    if start <= end && end <= bytes.len() { bytes.slice(start..end) } else { Bytes::new() }
}

/// Reads one body: judges the bytes, and re-frames chunks canonically.
#[derive(Debug)]
pub struct BodyReader {
    state: Reading,
    extension_bytes: usize,
    trailer_bytes: usize,
}

/// ## Length => Done
/// ## Size => Extension? => SizeLf => Data => DataCr => DataLf => Size ... => Trailer* => Done
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Length(u64),
    Size {
        value: u64,
        digits: u8,
    },
    /// `named`: at least one character of the current name or value was there.
    Extension {
        value: u64,
        named: bool,
        valued: bool,
    },
    SizeLf {
        value: u64,
    },
    Data(u64),
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

const BAD_CHUNK: Refusal = Refusal::bad("A chunk of the body is malformed.");
const BAD_TRAILER: Refusal = Refusal::bad("The trailer section of the body is malformed.");

impl BodyReader {
    pub fn new(body: Body) -> Self {
        let state = match body {
            Body::None | Body::Length(0) => Reading::Done,
            Body::Length(length) => Reading::Length(length),
            Body::Chunked => Reading::Size { value: 0, digits: 0 },
        };
        Self { state, extension_bytes: 0, trailer_bytes: 0 }
    }

    /// The body's last byte was judged; what follows belongs to the next request.
    pub fn is_done(&self) -> bool {
        self.state == Reading::Done
    }

    /// Moves the body's bytes from `input` to `output`, as far as there are any. After an error the connection is of no
    /// more use.
    pub fn read(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<(), Refusal> {
        while !input.is_empty() && !self.is_done() {
            if let Reading::Length(left) | Reading::Data(left) = self.state {
                let take = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
                let data = input.split_to(take);
                if output.is_empty() {
                    *output = data;
                } else {
                    output.extend_from_slice(&data);
                }
                let left = left - take as u64;
                self.state = match self.state {
                    Reading::Length(_) if left == 0 => Reading::Done,
                    Reading::Length(_) => Reading::Length(left),
                    _ if left == 0 => Reading::DataCr,
                    _ => Reading::Data(left),
                };
            } else {
                let byte = input.get_u8();
                self.state = self.frame(byte, output)?;
            }
        }
        Ok(())
    }

    /// One byte of what frames the data.
    fn frame(&mut self, byte: u8, output: &mut BytesMut) -> Result<Reading, Refusal> {
        Ok(match (self.state, byte) {
            (Reading::Size { value, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits >= SIZE_DIGITS || value > MOST_LENGTH >> 4 {
                    return Err(BAD_CHUNK);
                }
                let digit = char::from(byte).to_digit(16).ok_or(BAD_CHUNK)?;
                Reading::Size { value: (value << 4) | u64::from(digit), digits: digits + 1 }
            }
            (Reading::Size { value, digits: 1.. }, b'\r') => Reading::SizeLf { value },
            (Reading::Size { value, digits: 1.. }, b';') => Reading::Extension { value, named: false, valued: false },
            // Quoted values are refused: to some readers a CR LF in them ends the line.
            (Reading::Extension { value, named, valued }, _) => {
                self.extension_bytes += 1;
                if self.extension_bytes > EXTENSION_BYTES {
                    return Err(BAD_CHUNK);
                }
                match byte {
                    b'\r' if named => Reading::SizeLf { value },
                    b';' if named => Reading::Extension { value, named: false, valued: false },
                    b'=' if named && !valued => Reading::Extension { value, named: false, valued: true },
                    _ if is_token(byte) => Reading::Extension { value, named: true, valued },
                    _ => return Err(BAD_CHUNK),
                }
            }
            (Reading::SizeLf { value: 0 }, b'\n') => Reading::TrailerStart,
            (Reading::SizeLf { value }, b'\n') => {
                output.extend_from_slice(format!("{value:x}\r\n").as_bytes());
                Reading::Data(value)
            }
            (Reading::DataCr, b'\r') => Reading::DataLf,
            (Reading::DataLf, b'\n') => {
                output.extend_from_slice(b"\r\n");
                Reading::Size { value: 0, digits: 0 }
            }
            (Reading::TrailerStart, b'\r') => Reading::EndLf,
            (Reading::EndLf, b'\n') => {
                output.extend_from_slice(b"0\r\n\r\n");
                Reading::Done
            }
            (Reading::TrailerStart | Reading::TrailerName | Reading::TrailerValue | Reading::TrailerLf, _) => {
                self.trailer_bytes += 1;
                if self.trailer_bytes > TRAILER_BYTES {
                    return Err(Refusal::new(Code::HeadersTooLarge, "The trailer section of the body is too large."));
                }
                match (self.state, byte) {
                    (Reading::TrailerStart | Reading::TrailerName, _) if is_token(byte) => Reading::TrailerName,
                    (Reading::TrailerName, b':') => Reading::TrailerValue,
                    (Reading::TrailerValue, b'\r') => Reading::TrailerLf,
                    (Reading::TrailerValue, _) if is_value(byte) => Reading::TrailerValue,
                    (Reading::TrailerLf, b'\n') => Reading::TrailerStart,
                    _ => return Err(BAD_TRAILER),
                }
            }
            (Reading::EndLf, _) => return Err(BAD_TRAILER),
            _ => return Err(BAD_CHUNK),
        })
    }
}

#[cfg(test)]
#[path = "framer_tests.rs"]
mod tests;
