//! The PROXY protocol, versions 1 and 2: a load balancer that does not speak HTTP says whose connection it passes on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, its end included.
const V1_BYTES: usize = 107;
/// More than any known set of extensions needs.
const V2_BYTES: usize = 4096;

/// Reads the header and not a byte more. `None`: the load balancer speaks for itself (a health check).
///
/// # Errors
///
/// The connection's own; `InvalidData` when there is no such header.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let mut start = [0; V2_SIGNATURE.len()];
    stream.read_exact(&mut start).await?;
    if &start == V2_SIGNATURE {
        let mut fixed = [0; 4];
        stream.read_exact(&mut fixed).await?;
        let [version_command, family, high, low] = fixed;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > V2_BYTES {
            return Err(invalid());
        }
        let mut rest = vec![0; length];
        stream.read_exact(&mut rest).await?;
        return v2(version_command, family, &rest).ok_or_else(invalid);
    }
    let mut line = start.to_vec();
    // One byte at a time: what follows the line belongs to another reader.
    while !line.ends_with(b"\r\n") {
        if line.len() >= V1_BYTES || !line.starts_with(b"PROXY ") {
            return Err(invalid());
        }
        line.push(stream.read_u8().await?);
    }
    v1(&line).ok_or_else(invalid)
}

/// Outer `None`: malformed.
fn v1(line: &[u8]) -> Option<Option<SocketAddr>> {
    let line = std::str::from_utf8(line).ok()?.strip_prefix("PROXY ")?.strip_suffix("\r\n")?;
    let mut words = line.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(None);
    }
    let (source, destination): (IpAddr, IpAddr) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let port = |word: &str| word.bytes().all(|b| b.is_ascii_digit()).then(|| word.parse::<u16>().ok()).flatten();
    let (source_port, _) = (port(words.next()?)?, port(words.next()?)?);
    let fits = match family {
        "TCP4" => source.is_ipv4() && destination.is_ipv4(),
        "TCP6" => source.is_ipv6() && destination.is_ipv6(),
        _ => false,
    };
    (fits && words.next().is_none()).then_some(Some(SocketAddr::new(source, source_port)))
}

/// Outer `None`: malformed.
fn v2(version_command: u8, family: u8, rest: &[u8]) -> Option<Option<SocketAddr>> {
    match version_command {
        0x20 => return Some(None),
        0x21 => {}
        _ => return None,
    }
    let (address, ports) = match family {
        0x11 => {
            let (addresses, rest) = rest.split_first_chunk::<8>()?;
            (IpAddr::V4(Ipv4Addr::from(*addresses.first_chunk::<4>()?)), rest)
        }
        0x21 => {
            let (addresses, rest) = rest.split_first_chunk::<32>()?;
            (IpAddr::V6(Ipv6Addr::from(*addresses.first_chunk::<16>()?)), rest)
        }
        // Neither TCP over IPv4 nor over IPv6: no address to take over.
        _ => return Some(None),
    };
    let ports = ports.first_chunk::<4>()?;
    Some(Some(SocketAddr::new(address, u16::from_be_bytes(*ports.first_chunk::<2>()?))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a header says, and what of the stream was left.
    async fn parse(bytes: &[u8]) -> (Option<Option<String>>, usize) {
        let mut stream = bytes;
        let said = read(&mut stream).await.ok().map(|peer| peer.map(|peer| peer.to_string()));
        (said, stream.len())
    }

    fn binary(version_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&V2_SIGNATURE[..], &[version_command, family], &length, rest, b"GET"].concat()
    }

    #[tokio::test]
    async fn version_1() {
        let said = |text: &str| Some(Some(text.to_owned()));
        assert_eq!(parse(b"PROXY TCP4 192.0.2.1 192.0.2.2 5 443\r\nGET").await, (said("192.0.2.1:5"), 3));
        assert_eq!(parse(b"PROXY TCP6 2001:db8::1 ::1 65535 1\r\nGET").await, (said("[2001:db8::1]:65535"), 3));
        assert_eq!(parse(b"PROXY UNKNOWN\r\nGET").await, (Some(None), 3));
        assert_eq!(parse(b"PROXY UNKNOWN ff ff 1 2\r\nGET").await, (Some(None), 3));
        for bad in [
            "PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 5\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 65536 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +5 1\r\n",
            "PROXY TCP4  192.0.2.1 192.0.2.2 5 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 5 1 \r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 5 1\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "PROXY UNKNOWN",
            "proxy unknown\r\n",
        ] {
            assert_eq!(parse(bad.as_bytes()).await.0, None, "{bad:?}");
        }
        assert_eq!(parse(format!("PROXY UNKNOWN{}\r\n", " x".repeat(60)).as_bytes()).await.0, None);
    }

    #[tokio::test]
    async fn version_2() {
        let v4 = [192, 0, 2, 1, 192, 0, 2, 2, 0, 5, 1, 187];
        assert_eq!(parse(&binary(0x21, 0x11, &v4)).await, (Some(Some("192.0.2.1:5".into())), 3));
        assert_eq!(
            parse(&binary(0x21, 0x11, &[&v4[..], &[4, 0, 1, 0]].concat())).await.0,
            Some(Some("192.0.2.1:5".into()))
        );
        let mut v6 = [0; 36];
        (v6[15], v6[33]) = (1, 7);
        assert_eq!(parse(&binary(0x21, 0x21, &v6)).await, (Some(Some("[::1]:7".into())), 3));
        assert_eq!(parse(&binary(0x20, 0x00, &[])).await, (Some(None), 3));
        assert_eq!(parse(&binary(0x21, 0x31, &[0; 216])).await, (Some(None), 3));
        for bad in [
            binary(0x11, 0x11, &v4),
            binary(0x22, 0x11, &v4),
            binary(0x21, 0x11, &v4[..11]),
            binary(0x21, 0x21, &v4),
            binary(0x21, 0, &[0; 5000]),
        ] {
            assert_eq!(parse(&bad).await.0, None);
        }
    }
}
