//! What the way in needs to know, parsed.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// `[limits]`, as far as they hold before a request is a request. Read anew for every connection and head, so that a
/// reload reaches connections that are already open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// For the whole head, from the accept or from the first byte after an idle time; also for the TLS handshake.
    pub head_timeout: Duration,
    /// How long a connection may idle between two requests.
    pub keepalive: Duration,
    /// How long a body may be silent; not its total time.
    pub body_idle: Duration,
    /// How many connections are served at a time; more wait in the backlog.
    pub connections: usize,
    /// For all header fields together, their line ends included, the request line not.
    pub header_bytes: usize,
    /// How many header fields.
    pub header_count: usize,
    /// For the request target.
    pub uri_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(10),
            keepalive: Duration::from_secs(75),
            body_idle: Duration::from_secs(60),
            connections: 10_000,
            header_bytes: 32 * 1024,
            header_count: 100,
            uri_bytes: 16 * 1024,
        }
    }
}

/// One entry of `server.listen`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// `127.0.0.1:8080`, `[::1]:8080`.
    Tcp(SocketAddr),
    /// `unix:/path`.
    Unix(PathBuf),
}

/// Neither an IP address with a port nor `unix:/path`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAListenAddress;

impl fmt::Display for NotAListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("neither an IP address with a port (`127.0.0.1:8080`, `[::1]:8080`) nor `unix:/path`")
    }
}

impl std::error::Error for NotAListenAddress {}

impl FromStr for ListenAddress {
    type Err = NotAListenAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') && path.len() > 1 && !path.contains('\0') => {
                Ok(Self::Unix(path.into()))
            }
            Some(_) => Err(NotAListenAddress),
            None => text.parse().map(Self::Tcp).map_err(|_| NotAListenAddress),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses_are_ip_and_port_or_unix() {
        for text in ["127.0.0.1:8080", "[::1]:0", "0.0.0.0:443", "unix:/run/sidegate.sock"] {
            let address: ListenAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
        }
        for text in
            ["", "localhost:8080", "localhost", "127.0.0.1", "127.0.0.1:99999", ":8080", "unix:", "unix:x", "unix:/"]
        {
            assert_eq!(text.parse::<ListenAddress>(), Err(NotAListenAddress), "{text:?}");
        }
    }
}
