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
    allowed: Vec<String>,
}

impl Template {
    /// Reads a template with one claim in braces. `allowed` are hosts: a name stands for itself and all below it, one
    /// that begins with a dot only for those below.
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
        let allowed = allowed.iter().map(|host| host.to_ascii_lowercase()).collect();
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
        let value = session.claims.get(&self.claim).and_then(Value::as_str).ok_or("claim_missing")?;
        // What a URL parser would forgive is no address that a provider sends.
        if !value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
            return Err("claim");
        }
        let text = self.text.replace(&format!("{{{}}}", self.claim), value);
        let upstream = Upstream::parse(&text).map_err(|_| "address")?;
        let UpstreamAddress::Tcp { tls, host, .. } = &upstream.address else { return Err("address") };
        if !self.allows(host) {
            return Err("host");
        }
        let local = Url::parse(&text).is_ok_and(|url| is_loopback(&url));
        if !tls && !local {
            return Err("scheme");
        }
        Ok(upstream)
    }

    fn allows(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        self.allowed.iter().any(|allowed| match host.strip_suffix(allowed.as_str()) {
            Some("") => !allowed.starts_with('.'),
            Some(before) => allowed.starts_with('.') || before.ends_with('.'),
            None => false,
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
            assert!(template.allows(good), "{good}");
        }
        for bad in ["docusign.net", "xdocusign.net", "docusign.net.evil.example", "xapi.example.com", "example.com", ""]
        {
            assert!(!template.allows(bad), "{bad}");
        }
    }
}
