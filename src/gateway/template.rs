//! An upstream that depends on the user: `upstream = "{account.base_uri}"`. What the provider says is filled in, and
//! only hosts that the operator lists are gone to, so that nobody's claim sends requests where it likes.

use serde_json::Value;
use url::Url;

use super::settings::{Upstream, UpstreamAddress};
use crate::oidc::metadata::is_loopback;
use crate::session::Session;

/// A template, and where it may lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    /// The claim in braces.
    claim: String,
    allowed: Vec<Allowed>,
}

/// An entry of `allow_hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Allowed {
    /// A name stands for itself and all below it, one that begins with a dot only for those below.
    host: String,
    /// Without one that of the scheme; on this machine any.
    port: Option<u16>,
}

impl Allowed {
    fn read(text: &str) -> Self {
        let port = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let (host, port) = port.map_or((text, None), |(host, port)| (host, Some(port)));
        Self { host: host.to_ascii_lowercase(), port }
    }
}

impl Template {
    /// Reads a template with one claim in braces. `allowed` are hosts: a name stands for itself and all below it, one
    /// that begins with a dot only for those below; at the scheme's port unless another one stands behind it.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str, allowed: &[String]) -> Result<Self, &'static str> {
        const ONE: &str = "must hold one claim in braces, as in \"{account.base_uri}\"";
        let (_, rest) = text.split_once('{').ok_or(ONE)?;
        let (claim, rest) = rest.split_once('}').ok_or(ONE)?;
        let plain =
            !claim.is_empty() && claim.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !plain || rest.contains(['{', '}']) {
            return Err(ONE);
        }
        let allowed = allowed.iter().map(|entry| Allowed::read(entry)).collect();
        Ok(Self { text: text.to_owned(), claim: claim.to_owned(), allowed })
    }

    /// As the configuration has it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The claim that has to be kept in the session.
    pub fn claim(&self) -> &str {
        &self.claim
    }

    /// Where this user's requests go.
    ///
    /// # Errors
    /// A fixed word for the log.
    pub fn resolve(&self, session: &Session) -> Result<Upstream, &'static str> {
        self.fill(session.claim(&self.claim).as_deref().and_then(Value::as_str).ok_or("claim_missing")?)
    }

    fn fill(&self, value: &str) -> Result<Upstream, &'static str> {
        // What a URL parser would forgive is no address that a provider sends.
        if !value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
            return Err("claim");
        }
        let text = self.text.replace(&format!("{{{}}}", self.claim), value);
        let upstream = Upstream::parse(&text).map_err(|_| "address")?;
        let UpstreamAddress::Tcp { tls, host, port } = &upstream.address else { return Err("address") };
        let local = Url::parse(&text).is_ok_and(|url| is_loopback(&url));
        let usual = if *tls { 443 } else { 80 };
        if !self.allows(host, |allowed| allowed.map_or(local || *port == usual, |allowed| allowed == *port)) {
            return Err("host");
        }
        if !tls && !local {
            return Err("scheme");
        }
        Ok(upstream)
    }

    fn allows(&self, host: &str, port: impl Fn(Option<u16>) -> bool) -> bool {
        let host = host.to_ascii_lowercase();
        self.allowed.iter().filter(|allowed| port(allowed.port)).any(|allowed| {
            let below_only = allowed.host.starts_with('.');
            match host.strip_suffix(allowed.host.as_str()) {
                Some("") => !below_only,
                Some(before) => below_only || before.ends_with('.'),
                None => false,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_holds_one_claim() {
        assert_eq!(Template::parse("{account.base_uri}", &[]).unwrap().claim(), "account.base_uri");
        assert_eq!(Template::parse("https://{host}/api", &[]).unwrap().claim(), "host");
        for bad in ["{}", "{a}{b}", "{a b}", "x", "{a", "a}", "{a}}"] {
            assert!(Template::parse(bad, &[]).is_err(), "{bad}");
        }
    }

    /// ASVS-1.3.6: a claim leads only to hosts that are listed, whole labels only.
    #[test]
    fn only_listed_hosts() {
        let template = Template::parse("{a}", &[".docusign.net".into(), "API.example.com".into()]).unwrap();
        for good in ["na2.docusign.net", "NA2.docusign.net", "api.example.com", "v2.api.example.com"] {
            assert!(template.allows(good, |_| true), "{good}");
        }
        for bad in ["docusign.net", "xdocusign.net", "docusign.net.evil.example", "xapi.example.com", "example.com", ""]
        {
            assert!(!template.allows(bad, |_| true), "{bad}");
        }
    }

    /// ASVS-1.3.6: and of those only the port that is meant.
    #[test]
    fn only_listed_ports() {
        let template = Template::parse("{a}", &["api.example.com".into(), "b.example.com:8443".into()]).unwrap();
        let resolves = |address: &str| template.fill(address).map(drop);
        for good in ["https://api.example.com", "https://api.example.com:443/x", "https://b.example.com:8443"] {
            assert_eq!(resolves(good), Ok(()), "{good}");
        }
        for bad in ["https://api.example.com:22", "https://b.example.com", "https://b.example.com:443"] {
            assert_eq!(resolves(bad), Err("host"), "{bad}");
        }
    }
}
