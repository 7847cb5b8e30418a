//! `[redis]`, parsed.

use std::path::PathBuf;
use std::time::Duration;

use crate::secret::Secret;

/// `[redis]` without `on_error`, which is the refresh engine's.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where it is.
    pub deployment: Deployment,
    /// ACL user; before what a URL says.
    pub username: Option<String>,
    /// Its password; before what a URL says.
    pub password: Option<Secret>,
    /// Certificates, read anew at every connect.
    pub tls: TlsFiles,
    /// Every key starts with it.
    pub prefix: String,
    /// Bounds one try of a command; a command is tried twice.
    pub timeout: Duration,
}

/// How Redis is deployed.
#[derive(Clone, Debug, PartialEq)]
pub enum Deployment {
    /// One server.
    Single(Address),
    /// The master that sentinels watch under that name. Credentials of their URLs are the sentinels' own.
    Sentinel {
        /// Never empty.
        sentinels: Vec<Address>,
        /// Its name.
        master: String,
    },
    /// A cluster, by some of its nodes.
    Cluster(Vec<Address>),
}

/// PEM files for `rediss://`, judged at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Shown to the server, with its private key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// One server, of a URL.
#[derive(Clone, Debug)]
pub struct Address(pub(super) redis::ConnectionInfo);

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        let login = |address: &Self| {
            let login = address.0.redis_settings();
            (login.username().map(str::to_owned), login.password().map(Secret::new), login.db())
        };
        self.0.addr() == other.0.addr() && login(self) == login(other)
    }
}

impl Address {
    /// Reads `redis://`, `rediss://` or `unix:`.
    ///
    /// # Errors
    /// What is wrong with it, without the URL: it may hold a password.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "must be a redis://, rediss:// or unix: URL";
        let text = text.trim();
        let info: redis::ConnectionInfo = match text.strip_prefix("unix:") {
            Some(path) => format!("unix://{}", path.strip_prefix("//").unwrap_or(path)).parse(),
            None if text.contains('#') => return Err("must have no fragment: verification cannot be switched off"),
            None => text.parse(),
        }
        .map_err(|_| FORM)?;
        match info.addr() {
            redis::ConnectionAddr::Unix(path) if !path.is_absolute() => Err(FORM),
            redis::ConnectionAddr::Unix(_) if text.starts_with("unix:") => Ok(Self(info)),
            redis::ConnectionAddr::Tcp(..) if text.starts_with("redis://") => Ok(Self(info)),
            redis::ConnectionAddr::TcpTls { .. } if text.starts_with("rediss://") => Ok(Self(info)),
            _ => Err(FORM),
        }
    }

    /// Whether it is spoken to by TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self.0.addr(), redis::ConnectionAddr::TcpTls { .. })
    }

    /// Whether it is a socket of this machine.
    pub fn is_unix(&self) -> bool {
        matches!(self.0.addr(), redis::ConnectionAddr::Unix(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (text, tls, unix) in [
            ("redis://127.0.0.1", false, false),
            ("redis://user:p%40ss@redis.example:6380/2", false, false),
            ("rediss://[::1]:6380", true, false),
            ("unix:/run/redis.sock", false, true),
            ("unix:///run/redis.sock", false, true),
            ("unix:/run/redis.sock?db=1", false, true),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!((address.is_tls(), address.is_unix()), (tls, unix), "{text}");
        }
        let address = Address::parse("redis://user:p%40ss@redis.example:6380/2").unwrap();
        assert_eq!(address.0.redis_settings().password(), Some("p@ss"));
        assert!(!format!("{address:?}").contains("p@ss"));
    }

    /// Verification cannot be switched off, nor can an address of another kind come in.
    #[test]
    fn what_is_no_url() {
        for text in [
            "",
            "redis",
            "http://127.0.0.1",
            "redis://",
            "redis:///0",
            "redis://0.0.0.0",
            "redis://host/x",
            "unix:",
            "unix:redis.sock",
            "rediss://host/#insecure",
            "valkeys://host",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }
}
