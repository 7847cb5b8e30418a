//! Small helpers that all doubles share: time, marks, encodings, header lists.

use ring::rand::{SecureRandom, SystemRandom};

/// Ordered name-value pairs.
pub type Pairs = Vec<(String, String)>;

/// Seconds since the epoch, from the wall clock.
#[expect(clippy::disallowed_methods, reason = "the doubles have no clock to be handed")]
pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("the clock is past 1970");
    i64::try_from(since.as_secs()).expect("seconds fit")
}

/// `n` random bytes.
pub fn random(n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    SystemRandom::new().fill(&mut bytes).expect("the system has random bytes");
    bytes
}

/// A random number of that range; its start when the range is empty.
pub fn draw(range: std::ops::Range<u64>) -> u64 {
    let number = random(8).into_iter().fold(0, |number, byte| number << 8 | u64::from(byte));
    let width = range.end.saturating_sub(range.start).max(1);
    range.start + number % width
}

/// A unique text of letters and digits that starts with `label`.
pub fn mark(label: &str) -> String {
    format!("{label}{}", hex(&random(12)))
}

/// Filler text of `n` characters that does not compress.
pub fn filler(n: usize) -> String {
    let mut text = b64u(random(n * 3 / 4 + 3)).replace(['-', '_'], "x");
    text.truncate(n);
    text
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes of a hexadecimal text.
pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex digits")).collect()
}

/// Base64url without padding.
pub fn b64u(bytes: impl AsRef<[u8]>) -> String {
    base64_simd::URL_SAFE_NO_PAD.encode_to_string(bytes.as_ref())
}

/// Decodes base64url without padding.
pub fn unb64u(text: &str) -> Option<Vec<u8>> {
    base64_simd::URL_SAFE_NO_PAD.decode_to_vec(text).ok()
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
pub fn percent(bytes: impl AsRef<[u8]>) -> String {
    let keep = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
    bytes.as_ref().iter().map(|b| if keep(b) { char::from(*b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// `application/x-www-form-urlencoded`.
pub fn form<K: AsRef<str>, V: AsRef<str>>(pairs: &[(K, V)]) -> String {
    url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(pairs.iter().map(|(k, v)| (k.as_ref(), v.as_ref())))
        .finish()
}

/// The pairs of a form or a query, in order.
pub fn unform(text: &[u8]) -> Pairs {
    url::form_urlencoded::parse(text).into_owned().collect()
}

/// Decodes one form-encoded value.
pub fn unform_value(text: &str) -> String {
    let spaced = text.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
}

/// Bytes as text, one character each, so that nothing is lost.
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

/// The way back from [`latin1`]; characters beyond it are written in UTF-8.
pub fn unlatin1(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match u8::try_from(u32::from(c)) {
            Ok(byte) => bytes.push(byte),
            Err(_) => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// The first value under `name`, names compared as they are.
pub fn get<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
}

/// The first header named `name`, in any case.
pub fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
}

/// All headers named `name`, in any case.
pub fn header_all<'a>(headers: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    headers.iter().filter(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
}

/// A name that occurs twice, if there is one.
pub fn doubled<'a>(pairs: &'a [(String, String)], may_repeat: &[&str]) -> Option<&'a str> {
    let mut seen = std::collections::HashSet::new();
    pairs.iter().map(|(k, _)| k.as_str()).find(|k| !may_repeat.contains(k) && !seen.insert(*k))
}

/// Where `needle` starts in `hay`.
pub fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(hay, needle)
}
