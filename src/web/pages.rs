//! The few small pages that sidegate shows itself: no script, nothing loaded, nothing framed.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::sync::LazyLock;

use http::{HeaderValue, StatusCode, header};

use super::response::LocalResponse;
use super::return_to::ReturnTo;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5a6675;--paper:#f5f6f8;--card:#fff;--line:#dde1e7;--link:#1552c4}\
@media(prefers-color-scheme:dark){:root{--ink:#e7eaef;--soft:#9aa5b4;--paper:#14181e;--card:#1d232b;--line:#303945;--link:#8ab4ff}}\
*{box-sizing:border-box}\
body{margin:0;min-height:100vh;display:grid;place-items:center;padding:1.5rem;background:var(--paper);color:var(--ink);\
font:1rem/1.55 system-ui,sans-serif}\
main{width:100%;max-width:32rem;padding:2rem;background:var(--card);border:1px solid var(--line);border-radius:.75rem}\
h1{margin:0 0 .5rem;font-size:1.35rem;line-height:1.3}\
p{margin:.5rem 0}\
a{color:var(--link)}\
.button{display:inline-block;margin-top:.75rem;padding:.5rem 1.1rem;border-radius:.5rem;background:var(--link);\
color:var(--card);text-decoration:none;font-weight:600}\
dl{display:grid;grid-template-columns:auto 1fr;gap:.15rem 1rem;margin:1.5rem 0 0;padding-top:1rem;\
border-top:1px solid var(--line);color:var(--soft);font-size:.85rem}\
dd{margin:0;font-family:ui-monospace,monospace;overflow-wrap:anywhere}";

/// Allows the one style above, by its hash, and nothing else.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let digest = ring::digest::digest(&ring::digest::SHA256, STYLE.as_bytes());
    let hash = base64_simd::STANDARD.encode_to_string(digest.as_ref());
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"))
});

/// A page, its head and body written by us; whatever comes from outside goes through [`escape`].
#[derive(Debug)]
pub(super) struct Page<'a> {
    pub(super) title: &'a str,
    /// Seconds until the page asks for this target, or for itself.
    pub(super) refresh: Option<(u64, Option<&'a str>)>,
    /// Markup.
    pub(super) body: String,
}

impl Page<'_> {
    pub(super) fn respond(&self, status: StatusCode) -> LocalResponse {
        LocalResponse::with_body(status, "text/html; charset=utf-8", self.to_string())
            .header(header::CONTENT_SECURITY_POLICY, POLICY.clone())
    }
}

impl fmt::Display for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = escape(self.title);
        f.write_str("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n")?;
        match self.refresh {
            Some((seconds, Some(target))) => {
                let target = escape(target);
                writeln!(f, "<meta http-equiv=\"refresh\" content=\"{seconds};url={target}\">")?;
            }
            Some((seconds, None)) => writeln!(f, "<meta http-equiv=\"refresh\" content=\"{seconds}\">")?,
            None => {}
        }
        f.write_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n")?;
        f.write_str("<meta name=\"robots\" content=\"noindex\">\n")?;
        write!(f, "<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n")?;
        write!(f, "{}\n</main>\n</body>\n</html>\n", self.body)
    }
}

/// Sends the browser to the same target once more, now from our own origin, so that it brings its `SameSite=Strict`
/// cookies (RFC 6265bis section 5.6.7.1). `target` is the path and query of the request.
pub fn hop(target: &str) -> LocalResponse {
    // `//host` would be another origin; a clean path never begins so.
    let target = if target.starts_with('/') && !target.starts_with("//") { target } else { "/" };
    let body = link("One moment…", "Continue", target);
    Page { title: "Continuing", refresh: Some((0, Some(target))), body }.respond(StatusCode::OK)
}

/// The hop after a login or a stale callback.
pub fn home_hop(return_to: &ReturnTo) -> LocalResponse {
    hop(return_to.as_str())
}

/// What is left to see after a logout where the start page would log in again.
pub fn signed_out(login_url: &str) -> LocalResponse {
    let body = link("You have been signed out of this application.", "Sign in again", login_url);
    Page { title: "Signed out", refresh: None, body }.respond(StatusCode::OK)
}

/// Where to sign in: a name and a link for each.
pub fn choose_provider(links: &[(&str, String)]) -> LocalResponse {
    let mut body = "<p>Choose where to sign in.</p>".to_owned();
    for (name, target) in links {
        // Writing to a string cannot fail.
        let _ = write!(body, "\n<p><a class=\"button\" href=\"{}\">{}</a></p>", escape(target), escape(name));
    }
    Page { title: "Sign in", refresh: None, body }.respond(StatusCode::OK)
}

/// A sentence and a button.
pub(super) fn link(sentence: &str, label: &str, target: &str) -> String {
    format!("<p>{}</p>\n<p><a class=\"button\" href=\"{}\">{}</a></p>", escape(sentence), escape(target), escape(label))
}

/// Text as element content or quoted attribute value.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '&' | '<' | '>' | '"' | '\'' => {
                // Writing to a string cannot fail.
                let _ = write!(escaped, "&#{};", u32::from(character));
            }
            _ => escaped.push(character),
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(response: &LocalResponse) -> &str {
        std::str::from_utf8(&response.body).unwrap()
    }

    fn policy(response: &LocalResponse) -> &str {
        response.headers.get(header::CONTENT_SECURITY_POLICY).unwrap().to_str().unwrap()
    }

    #[test]
    fn cookie_05_the_hop_goes_to_the_same_target() {
        let page = hop("/app?a=1&b=\"><script>'x'");
        assert_eq!(page.status, StatusCode::OK);
        assert!(page.headers.get(header::LOCATION).is_none());
        let html = text(&page);
        assert!(html.contains("content=\"0;url=/app?a=1&#38;b=&#34;&#62;&#60;script&#62;&#39;x&#39;\""), "{html}");
        assert!(!html.contains("<script"));
        assert!(text(&hop("//evil.test")).contains("content=\"0;url=/\""));
        assert!(text(&home_hop(&ReturnTo::home())).contains("content=\"0;url=/\""));
    }

    /// ASVS-4.1.1.
    #[test]
    fn asvs_3_4_6_pages_load_nothing_and_cannot_be_framed() {
        for page in [hop("/"), signed_out("/auth/login?return_to=/")] {
            assert!(policy(&page).starts_with("default-src 'none'; style-src 'sha256-"));
            assert!(policy(&page).contains("frame-ancestors 'none'"));
            assert!(!policy(&page).contains("unsafe"));
            assert_eq!(page.headers.get(header::CONTENT_TYPE).unwrap(), "text/html; charset=utf-8");
            let html = text(&page);
            assert!(html.contains("<html lang=\"en\">") && html.contains("viewport"));
            assert!(!html.contains("<script") && !html.contains("//"));
        }
    }

    #[test]
    fn the_policy_names_the_style_on_the_page() {
        let page = signed_out("/auth/login");
        let (_, rest) = text(&page).split_once("<style>").unwrap();
        let (style, _) = rest.split_once("</style>").unwrap();
        let digest = ring::digest::digest(&ring::digest::SHA256, style.as_bytes());
        assert!(policy(&page).contains(&base64_simd::STANDARD.encode_to_string(digest.as_ref())));
    }

    #[test]
    fn signed_out_offers_the_way_back() {
        assert!(text(&signed_out("/auth/login?return_to=/a%26b")).contains("href=\"/auth/login?return_to=/a%26b\""));
    }
}
