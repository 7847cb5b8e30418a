//! An origin (RFC 6454): scheme, host and port, nothing else.

use std::fmt;

use url::{Host, Url};

/// The one origin that the browser uses, or one that CORS allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    serialized: String,
    host: String,
    port: u16,
    https: bool,
    loopback: bool,
}

/// Why a text is not an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginError {
    /// Not an absolute URL with a host.
    NotAbsolute,
    /// Neither `http` nor `https`.
    Scheme,
    /// A user or password.
    User,
    /// A path, query or fragment.
    MoreThanOrigin,
    /// A `*`: a URL may hold one, and no browser is there.
    Wildcard,
}

impl fmt::Display for OriginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAbsolute => "is not an absolute URL such as https://app.example.com",
            Self::Scheme => "must begin with https:// (or http:// on loopback)",
            Self::User => "must not contain a user",
            Self::MoreThanOrigin => "must be an origin: scheme, host and port, without path, query or fragment",
            Self::Wildcard => "must be one origin: * stands for nothing",
        })
    }
}

impl Origin {
    /// Parses `scheme://host[:port]`, an empty path allowed.
    ///
    /// # Errors
    /// When the text is anything but an http or https origin.
    pub fn parse(text: &str) -> Result<Self, OriginError> {
        let url = Url::parse(text).map_err(|_| OriginError::NotAbsolute)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(OriginError::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(OriginError::User);
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() || text.contains('\\') {
            return Err(OriginError::MoreThanOrigin);
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(OriginError::NotAbsolute);
        };
        if text.contains('*') {
            return Err(OriginError::Wildcard);
        }
        Ok(Self {
            serialized: url.origin().ascii_serialization(),
            loopback: is_loopback(&host),
            host: host.to_string(),
            port,
            https: url.scheme() == "https",
        })
    }

    /// `https://app.example.com`, default port left out: what a browser sends as `Origin`.
    pub fn as_str(&self) -> &str {
        &self.serialized
    }

    /// Host and, unless it is the scheme's default, port: what a browser sends as `Host`.
    pub fn authority(&self) -> &str {
        self.serialized.split_once("://").map_or(self.serialized.as_str(), |(_, rest)| rest)
    }

    /// The host, lower case, an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, the scheme's default when none was given.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the browser speaks TLS to it.
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// `localhost`, `*.localhost`, 127.0.0.0/8 or ::1.
    pub fn is_loopback(&self) -> bool {
        self.loopback
    }
}

/// Whether a URL's host stays on this machine: `localhost` and below (RFC 6761 section 6.3), 127.0.0.0/8, `::1`.
pub fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => *name == "localhost" || name.ends_with(".localhost"),
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    }
}
