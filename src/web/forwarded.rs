//! Who the client is behind trusted proxies, and the ids that follow a request.

use std::borrow::Cow;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use base64_simd::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

/// The chain of hops, nearest last.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The id that the log, the upstream and a problem document share.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// W3C trace context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What vendors add to it: means nothing beside another `traceparent`.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// As long as any sensible chain; the rest of a longer one is dropped on the far side.
const MAX_HOPS: usize = 32;

/// The client's address: the rightmost hop that no trusted proxy vouches for. An IPv4-mapped IPv6 address counts as
/// the IPv4 address that it is.
pub fn client(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.to_canonical();
    for hop in chain(headers).take(MAX_HOPS) {
        if !is_trusted(client, trusted) {
            break;
        }
        client = hop;
    }
    client
}

/// An address as text: what its `Display` gives, without the machinery of padding for the common kind.
pub fn put_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            for (index, octet) in address.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                out.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
            }
        }
        // Writing to memory cannot fail.
        IpAddr::V6(address) => drop(write!(out, "{address}")),
    }
}

/// The value of `X-Forwarded-For` towards the upstream: the peer, after the chain of a trusted proxy.
pub fn forwarded_for(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> Vec<u8> {
    let peer = peer.to_canonical();
    let mut value = Vec::with_capacity(40);
    if !is_trusted(peer, trusted) {
        put_address(&mut value, peer);
        return value;
    }
    let mut hops: Vec<IpAddr> = chain(headers).take(MAX_HOPS).collect();
    hops.reverse();
    hops.push(peer);
    for hop in hops {
        if !value.is_empty() {
            value.extend_from_slice(b", ");
        }
        put_address(&mut value, hop);
    }
    value
}

/// The client's request id, if it gave a single usable one: 8 to 128 of `[A-Za-z0-9._:-]`.
pub fn request_id(headers: &HeaderMap) -> Option<&str> {
    only(headers, X_REQUEST_ID).filter(|id| {
        (8..=128).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-'))
    })
}

/// An id for a request that came without one, from random bytes: 20 characters of base64url.
pub fn new_request_id(random: [u8; 15]) -> String {
    URL_SAFE_NO_PAD.encode_to_string(random)
}

/// The client's trace context, if it gave a single valid one. Of a later version there is what version 00 has of it, as
/// W3C Trace Context wants it: ids, and the one flag that is known.
pub fn traceparent(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    let value = only(headers, TRACEPARENT)?;
    if valid_traceparent(value) {
        return Some(Cow::Borrowed(value));
    }
    let version = value.get(..2).filter(|version| !matches!(*version, "00" | "ff") && is_hex(version))?;
    let (known, more) = value.strip_prefix(version)?.split_at_checked(VERSION_00 - 2)?;
    let (ids, flags) = known.split_at_checked(VERSION_00 - 4)?;
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1;
    let as_00 = format!("00{ids}{sampled:02x}");
    let whole = more.is_empty() || more.starts_with('-');
    (whole && is_hex(flags) && valid_traceparent(&as_00)).then_some(Cow::Owned(as_00))
}

/// The length of a `traceparent` of version 00.
const VERSION_00: usize = 55;

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a value is a `traceparent` of W3C Trace Context level 1, version 00.
pub fn valid_traceparent(value: &str) -> bool {
    let mut parts = value.split('-');
    let mut hex = |length: usize| parts.next().filter(|part| part.len() == length && is_hex(part));
    let set = |part: &str| part.bytes().any(|byte| byte != b'0');
    hex(2) == Some("00")
        && hex(32).is_some_and(set)
        && hex(16).is_some_and(set)
        && hex(2).is_some()
        && parts.next().is_none()
}

/// A new trace from random bytes, with the flag "sampled" or without.
pub fn new_traceparent(random: [u8; 24], sampled: bool) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| HEX.get(usize::from(nibble)).copied().map_or('0', char::from);
    let mut value = String::with_capacity(55);
    value.push_str("00-");
    let (trace, span) = random.split_at(16);
    for (part, end) in [(trace, "-"), (span, if sampled { "-01" } else { "-00" })] {
        // An id of zeros is no id.
        let zero = part.iter().all(|byte| *byte == 0);
        for (index, byte) in part.iter().enumerate() {
            let byte = if zero && index == 0 { 1 } else { *byte };
            value.push(digit(byte >> 4));
            value.push(digit(byte & 15));
        }
        value.push_str(end);
    }
    value
}

fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&address))
}

/// The hops of `X-Forwarded-For`, nearest first, up to the first that is no address: nobody vouches for what lies
/// beyond.
fn chain(headers: &HeaderMap) -> impl Iterator<Item = IpAddr> {
    headers
        .get_all(X_FORWARDED_FOR)
        .iter()
        .rev()
        .flat_map(|value| value.to_str().unwrap_or("?").rsplit(','))
        .map_while(address)
}

/// An address, perhaps with a port, perhaps in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let parsed = bare.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    parsed.map(|address| address.to_canonical())
}

fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return None;
    }
    value.to_str().ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn sent(name: &'static str, values: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for value in values {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn trusted() -> Vec<IpNet> {
        vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]
    }

    #[test]
    fn hdr_06_an_untrusted_peer_is_the_client() {
        let headers = sent("x-forwarded-for", &["198.51.100.7"]);
        assert_eq!(client(ip("203.0.113.9"), &headers, &trusted()), ip("203.0.113.9"));
        assert_eq!(forwarded_for(ip("203.0.113.9"), &headers, &trusted()), b"203.0.113.9");
        assert_eq!(client(ip("10.0.0.1"), &headers, &[]), ip("10.0.0.1"));
    }

    #[test]
    fn hdr_06_the_rightmost_untrusted_hop_is_the_client() {
        for (peer, chain, expected) in [
            ("10.0.0.1", &["198.51.100.7"][..], "198.51.100.7"),
            ("10.0.0.1", &["1.1.1.1, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),
            ("10.0.0.1", &["1.1.1.1", "198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["1.1.1.1, garbage, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["198.51.100.7:4711"], "198.51.100.7"),
            ("10.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("::ffff:10.0.0.1", &["198.51.100.7, ::ffff:10.9.9.9"], "198.51.100.7"),
            ("fd00::1", &["198.51.100.7"], "198.51.100.7"),
        ] {
            let headers = sent("x-forwarded-for", chain);
            assert_eq!(client(ip(peer), &headers, &trusted()), ip(expected), "{peer} {chain:?}");
        }
    }

    #[test]
    fn hdr_06_a_trusted_chain_goes_on() {
        let headers = sent("x-forwarded-for", &["x, 1.1.1.1", "198.51.100.7:1 , ::ffff:10.0.0.2"]);
        assert_eq!(
            forwarded_for(ip("::ffff:10.0.0.1"), &headers, &trusted()),
            b"1.1.1.1, 198.51.100.7, 10.0.0.2, 10.0.0.1"
        );
        let long = vec!["1.1.1.1"; 500].join(",");
        let value = forwarded_for(ip("10.0.0.1"), &sent("x-forwarded-for", &[&long]), &trusted());
        assert_eq!(value.split(|byte| *byte == b',').count(), MAX_HOPS + 1);
    }

    #[test]
    fn hdr_16_request_ids_are_ids() {
        let good = "0123-abc.DEF_x:y";
        assert_eq!(request_id(&sent("x-request-id", &[good])), Some(good));
        let long = "x".repeat(129);
        for bad in ["short", "a b c d e f", "<script>x", "a,bbbbbbbb", "'; drop table", &long, ""] {
            assert_eq!(request_id(&sent("x-request-id", &[bad])), None, "{bad}");
        }
        assert_eq!(request_id(&sent("x-request-id", &[good, good])), None);
    }

    #[test]
    fn hdr_16_trace_contexts_are_validated() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(traceparent(&sent("traceparent", &[good])).as_deref(), Some(good));
        for (later, flags) in [("-01", "01"), ("-03-what-comes", "01"), ("-fe", "00")] {
            let later = good.replacen("00", "cc", 1).replace("-01", later);
            let known = good.replace("-01", &format!("-{flags}"));
            assert_eq!(traceparent(&sent("traceparent", &[&later])), Some(Cow::Owned(known)), "{later}");
        }
        for bad in ["-01.more", "-0", "-0g", "-+1", ""] {
            let later = good.replacen("00", "01", 1).replace("-01", bad);
            assert_eq!(traceparent(&sent("traceparent", &[&later])), None, "{later}");
        }
        for bad in [
            "",
            "garbage",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-gggggggggggggggggggggggggggggggg-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
        ] {
            assert!(!valid_traceparent(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn new_trace_contexts_are_valid(random in any::<[u8; 24]>(), sampled in any::<bool>()) {
            prop_assert!(valid_traceparent(&new_traceparent(random, sampled)));
            prop_assert!(valid_traceparent(&new_traceparent([0; 24], sampled)));
        }

        #[test]
        fn no_chain_breaks_the_reading(text in "[ -~]{0,60}") {
            let headers = sent("x-forwarded-for", &[&text]);
            client(ip("10.0.0.1"), &headers, &trusted());
            prop_assert!(forwarded_for(ip("10.0.0.1"), &headers, &trusted()).ends_with(b"10.0.0.1"));
        }
    }
}
