//! Where the browser goes after a login: a path of our own origin, whatever the request asked for.

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};

use super::path::CleanPath;

/// The target travels in the sealed cookie of the attempt, beside everything else.
const MAX_LENGTH: usize = 2048;

/// What a URI may not hold (RFC 3986 appendix A), and what we would refuse when the browser brings it. Non-ASCII text is
/// encoded besides: a `Location` is ASCII.
const PATH: &AsciiSet = &CONTROLS.add(b'"').add(b'<').add(b'>').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');
/// In a query browsers encode the apostrophe too.
const QUERY: &AsciiSet = &PATH.add(b' ').add(b'#').add(b'\\').add(b'\'');

/// What need not be encoded in a query value, `/` for the reader's sake.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A same-origin relative target (`/path?query`), never below sidegate's own prefix. The only type that becomes the
/// `Location` of a finished login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReturnTo(String);

impl ReturnTo {
    /// The application's start page.
    pub fn home() -> Self {
        Self("/".to_owned())
    }

    /// The target that a request asks for, if it is a local path outside `prefix`; else home (RFC 9700 section 4.11).
    /// `text` is form-decoded already. A fragment is dropped.
    pub fn parse(text: Option<&str>, prefix: &str) -> Self {
        text.and_then(|text| local(text, Some(prefix))).map_or_else(Self::home, Self)
    }

    /// The target that brings the browser back to the request it made. A query that makes it too long is left out.
    pub fn from_request(path: &CleanPath, query: Option<&str>, prefix: &str) -> Self {
        if path.is_below(prefix) {
            return Self::home();
        }
        let fits = |target: &String| target.len() <= MAX_LENGTH;
        let whole = assemble(path, query);
        if fits(&whole) {
            return Self(whole);
        }
        Some(assemble(path, None)).filter(fits).map_or_else(Self::home, Self)
    }

    /// Takes a target back out of a sealed cookie. It was judged before; it is judged again because a `Location`
    /// is worth a second look.
    pub(crate) fn restore(text: String) -> Self {
        local(&text, None).map_or_else(Self::home, Self)
    }

    /// The target as it stands in `Location`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where the login begins that ends here: `<prefix>/login?return_to=…`.
    pub fn login_url(&self, prefix: &str) -> String {
        format!("{prefix}/login?return_to={}", utf8_percent_encode(&self.0, QUERY_VALUE))
    }

    /// The page of ours that leads there by a navigation within the origin: `<prefix>/hop?return_to=…`.
    pub fn hop_url(&self, prefix: &str) -> String {
        format!("{prefix}/hop?return_to={}", utf8_percent_encode(&self.0, QUERY_VALUE))
    }
}

fn local(text: &str, prefix: Option<&str>) -> Option<String> {
    if text.len() > MAX_LENGTH {
        return None;
    }
    let text = text.split_once('#').map_or(text, |(before, _)| before);
    let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
    // Browsers drop tabs and line breaks anywhere in a URL before they read it.
    if path.chars().any(char::is_whitespace) || text.chars().any(char::is_control) {
        return None;
    }
    let path = CleanPath::parse(path).ok()?;
    if prefix.is_some_and(|prefix| path.is_below(prefix)) {
        return None;
    }
    Some(assemble(&path, query)).filter(|target| target.len() <= MAX_LENGTH)
}

fn assemble(path: &CleanPath, query: Option<&str>) -> String {
    let mut target = utf8_percent_encode(path.as_str(), PATH).to_string();
    if let Some(query) = query {
        target.push('?');
        target.extend(utf8_percent_encode(query, QUERY));
    }
    target
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use url::Url;

    use super::*;

    fn target(text: &str) -> String {
        ReturnTo::parse(Some(text), "/auth").0
    }

    /// ASVS-1.2.2.
    #[test]
    fn rfc9700_05_no_open_redirector() {
        let long = format!("/{}", "a".repeat(10_240));
        for evil in [
            "",
            "//evil",
            "///evil",
            "/\\evil",
            "\\/evil",
            "\\\\evil",
            "/%09/evil",
            "/\t/evil",
            "/\n/evil",
            "/x\r\nSet-Cookie: a=b",
            "/a?x\r\ny",
            "https:evil",
            "https://evil",
            "https://app.test@evil",
            "javascript:alert(1)",
            "data:text/html,x",
            "/%2f%2fevil",
            "/%2fevil",
            "/%5cevil",
            "/..//evil",
            "/../x",
            "/.//evil",
            "/%2e/x",
            "evil",
            "@evil",
            ":80",
            "?x=//evil",
            "#x",
            " //evil",
            "\u{2028}//evil",
            "/\u{a0}/evil",
            "/\u{85}x",
            "/%00",
            "/%zz",
            "%2f%2fevil",
            &long,
        ] {
            assert_eq!(target(evil), "/", "{evil:?}");
        }
        assert_eq!(ReturnTo::parse(None, "/auth"), ReturnTo::home());
    }

    #[test]
    fn below_our_own_prefix_is_home() {
        for ours in ["/auth", "/auth/", "/auth/logout", "/auth/login?return_to=/x", "/%61uth/logout", "/auth#x"] {
            assert_eq!(target(ours), "/", "{ours}");
        }
        assert_eq!(target("/authors"), "/authors");
    }

    #[test]
    fn local_targets_are_kept() {
        for text in [
            "/",
            "/a/b?c=d&e=f",
            "/a?b=//evil",
            "/%C3%A4?x=%2F%2Fe",
            "/a?next=https://x.example/",
            "/?",
            "/a?f[x]=1&b=(c)!*,;:@",
        ] {
            assert_eq!(target(text), text);
        }
        assert_eq!(target("/a#frag//evil"), "/a");
        assert_eq!(target("/a\"<b>?q=\"<'>\\^`{|}"), "/a%22%3Cb%3E?q=%22%3C%27%3E%5C%5E%60%7B%7C%7D");
        assert_eq!(target("/ä?ö=ü x"), "/%C3%A4?%C3%B6=%C3%BC%20x");
    }

    #[test]
    fn a_request_is_come_back_to() {
        fn back(path: &str, query: Option<&str>) -> String {
            ReturnTo::from_request(&CleanPath::parse(path).unwrap(), query, "/auth").0
        }
        assert_eq!(back("/app/ä", Some("x=1")), "/app/%C3%A4?x=1");
        assert_eq!(back("/auth/session", None), "/");
        assert_eq!(back("/app", Some(&"q".repeat(4096))), "/app");
        assert_eq!(back(&format!("/{}", "p".repeat(4096)), None), "/");
    }

    #[test]
    fn login_url_carries_the_target_whole() {
        let url = ReturnTo::parse(Some("/a b/../"), "/auth").login_url("/auth");
        assert_eq!(url, "/auth/login?return_to=/");
        let wanted = "/a?b=c&d=%20+e";
        let url = ReturnTo::parse(Some(wanted), "/auth").login_url("/auth");
        let query = super::super::query::Params::parse(url.split_once('?').map(|(_, query)| query));
        assert_eq!(query.one("return_to"), Ok(Some(wanted)));
        assert_eq!(query.iter().count(), 1);
    }

    #[test]
    fn a_sealed_target_is_judged_again() {
        assert_eq!(ReturnTo::restore("/a?b".to_owned()).as_str(), "/a?b");
        assert_eq!(ReturnTo::restore("//evil".to_owned()), ReturnTo::home());
    }

    proptest! {
        #[test]
        fn rfc9700_05_a_browser_never_leaves_our_origin(text in prop_oneof!["[/\\\\%.#?;:@a-f0259 \t\r\n]{0,30}", "/[/\\\\%.0259a-fe\t]{0,8}(evil)?", "\\PC{0,40}"]) {
            let base = Url::parse("https://app.test/deep/page").unwrap();
            let target = ReturnTo::parse(Some(&text), "/auth");
            let url = base.join(target.as_str()).unwrap();
            prop_assert_eq!(url.origin(), base.origin());
            prop_assert!(!url.path().starts_with("/auth/"));
            prop_assert!(target.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert_eq!(&ReturnTo::parse(Some(target.as_str()), "/auth"), &target);
            prop_assert_eq!(ReturnTo::restore(target.as_str().to_owned()), target);
        }
    }
}
