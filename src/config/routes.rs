//! `[[route]]`: each route by itself, then all against each other.

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

use super::load::{cause, join};
use super::parse::{Parser, duration, each, is_local, is_token};
use super::problem::shown;
use super::raw;
use crate::gateway::settings::{
    Access, OnAnonymous, Rate, Route, StaticFiles, Token, TokenHeader, Upstream, UpstreamAddress, UpstreamTls, Verify,
    Way,
};
use crate::gateway::step_up::MAX_ACR_VALUES;
use crate::gateway::template::Template;
use crate::oidc::types::TokenTarget;

/// Headers that frame a message or name its target: no claim, token or fixed value may stand there.
const FRAMING: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// All routes, in order.
pub(super) fn routes(parser: &mut Parser, raw: &[raw::Route], prefix: &str, verify: raw::OnDead) -> Vec<Route> {
    let mut routes: Vec<(usize, Route)> = Vec::new();
    for (index, raw) in raw.iter().enumerate() {
        let at = format!("route[{index}]");
        let Some(route) = route(parser, &at, raw, prefix, verify) else { continue };
        for (other, earlier) in &routes {
            if both_could_win(earlier, &route) {
                let text = format!(
                    "{:?} is also taken by route[{other}]: let them differ by path, methods or hosts",
                    route.path
                );
                parser.found.problem(format!("{at}.path"), text);
            }
        }
        routes.push((index, route));
    }
    if raw.is_empty() && !parser.found.blamed("route") {
        parser.found.warn("route", "there is none: every path but sidegate's own answers 404");
    }
    routes.into_iter().map(|(_, route)| route).collect()
}

/// An empty list means any, which overlaps with everything.
fn both_could_win(one: &Route, other: &Route) -> bool {
    fn overlap<T: PartialEq>(one: &[T], other: &[T]) -> bool {
        one.is_empty() || other.is_empty() || one.iter().any(|item| other.contains(item))
    }
    one.path == other.path && overlap(&one.hosts, &other.hosts) && overlap(&one.methods, &other.methods)
}

pub(super) fn verify(raw: raw::OnDead) -> Verify {
    match raw {
        raw::OnDead::Redirect => Verify::Redirect,
        raw::OnDead::Unauthorized => Verify::Unauthorized,
    }
}

fn route(parser: &mut Parser, at: &str, raw: &raw::Route, prefix: &str, verify: raw::OnDead) -> Option<Route> {
    let key = |name: &str| join(at, name);
    if raw.path.is_empty() {
        // Absent or not a string: the judge has said so.
        return None;
    }
    if let Err(text) = judge_path(&raw.path) {
        parser.found.problem(key("path"), format!("{text}, not {}", shown(&raw.path)));
        return None;
    }
    if raw.path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
        parser.found.warn(
            key("path"),
            format!("{:?} lies below {prefix:?}, which is sidegate's own: this route never wins", raw.path),
        );
    }
    let access = match raw.access {
        raw::Access::Session => Access::Session,
        raw::Access::Optional => Access::Optional,
        raw::Access::Public => Access::Public,
    };
    if access != Access::Session && raw.on_anonymous != raw::OnAnonymous::Auto {
        parser.found.warn(key("on_anonymous"), "has no effect: only access = \"session\" refuses anonymous requests");
    }
    if access != Access::Public && !raw.csrf {
        parser.found.warn(key("csrf"), "false: other sites can make a signed-in browser call this route");
    }
    let token = match &raw.token {
        raw::RouteToken::Named(raw::TokenName::Id) => Token::Id,
        raw::RouteToken::Named(raw::TokenName::None) => Token::None,
        raw::RouteToken::Named(raw::TokenName::Access) => Token::Access,
        raw::RouteToken::Own(_) if raw.static_dir.is_some() => {
            parser.found.warn(key("token"), "has no effect: files get no token");
            Token::None
        }
        raw::RouteToken::Own(own) => {
            let way = match (own.exchange, own.client_credentials) {
                (Some(true), Some(true)) => {
                    parser
                        .found
                        .problem(join(&key("token"), "client_credentials"), "is set beside exchange; keep one of them");
                    Way::Exchange
                }
                (Some(true), _) => Way::Exchange,
                (_, Some(true)) => Way::Client(own.provider.clone()),
                _ => Way::Refresh,
            };
            if own.provider.is_some() && !matches!(way, Way::Client(_)) {
                parser.found.problem(join(&key("token"), "provider"), "needs client_credentials = true");
            }
            Token::Own(own_token(parser, &key("token"), own), way)
        }
    };
    let (strip_prefix, rewrite_prefix) = prefixes(parser, at, raw);
    let (token_header, identity_headers) = request_headers(parser, at, raw);
    let template = template(parser, at, raw);
    Some(Route {
        template,
        path: raw.path.clone(),
        hosts: hosts(parser, at, raw),
        methods: methods(parser, at, raw),
        upstreams: upstreams(parser, at, raw),
        files: static_files(parser, at, raw),
        access,
        on_anonymous: match raw.on_anonymous {
            raw::OnAnonymous::Auto => OnAnonymous::Auto,
            raw::OnAnonymous::Login => OnAnonymous::Login,
            raw::OnAnonymous::Unauthorized => OnAnonymous::Unauthorized,
        },
        strip_prefix,
        rewrite_prefix,
        token,
        token_header,
        identity_headers,
        response_headers: response_headers(parser, &key("response_headers"), &raw.response_headers),
        require: require(parser, at, raw),
        max_body: raw.max_body.read().flatten(),
        connect_timeout: parser.positive(&key("connect_timeout"), &raw.connect_timeout),
        read_timeout: parser.positive(&key("read_timeout"), &raw.read_timeout),
        websocket: raw.websocket,
        preserve_host: raw.preserve_host,
        csrf: raw.csrf,
        verify: self::verify(raw.verify.unwrap_or(verify)),
        max_token_age: raw.max_token_age.as_ref().map(duration),
        max_auth_age: max_auth_age(parser, at, raw),
        acr_values: acr_values(parser, at, raw),
        upstream_tls: upstream_tls(parser, &key("upstream_tls"), raw.upstream_tls.as_ref()),
        rate_limit: raw.rate_limit.as_ref().and_then(|raw| rate_limit(parser, &key("rate_limit"), raw)),
    })
}

fn own_token(parser: &mut Parser, at: &str, raw: &raw::OwnToken) -> TokenTarget {
    let resource: Vec<String> = raw.resource.iter().flat_map(raw::OneOrMany::as_slice).cloned().collect();
    for text in &resource {
        if !url::Url::parse(text).is_ok_and(|url| url.fragment().is_none()) {
            let text = format!("must be an absolute URI without fragment (RFC 8707), not {}", shown(text));
            parser.found.problem(join(at, "resource"), text);
        }
    }
    if raw.audience.as_deref().is_some_and(|audience| audience.trim().is_empty()) {
        parser.found.problem(join(at, "audience"), "is empty; leave it out, or name the API");
    }
    let scopes = raw.scopes.clone().unwrap_or_default();
    for scope in &scopes {
        if scope.is_empty() || !scope.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\')) {
            parser.found.problem(join(at, "scopes"), format!("must be scopes without blanks, not {}", shown(scope)));
        }
    }
    let named = raw.audience.is_some() || !resource.is_empty() || !scopes.is_empty();
    if !named && raw.client_credentials != Some(true) {
        parser.found.problem(at, "says nothing of the token: name its audience, resource or scopes");
    }
    TokenTarget { audience: raw.audience.clone(), resource, scopes }
}

/// Seconds are what providers count in.
fn max_auth_age(parser: &mut Parser, at: &str, raw: &raw::Route) -> Option<Duration> {
    let age = duration(raw.max_auth_age.as_ref()?);
    if age < Duration::from_secs(1) && !parser.found.blamed(&join(at, "max_auth_age")) {
        parser.found.problem(join(at, "max_auth_age"), "must be at least \"1s\": no login would be recent enough");
    }
    no_login(parser, at, raw, "max_auth_age");
    Some(age)
}

fn acr_values(parser: &mut Parser, at: &str, raw: &raw::Route) -> Vec<String> {
    let Some(given) = &raw.acr_values else { return Vec::new() };
    let key = join(at, "acr_values");
    let values: Vec<String> =
        given.as_slice().iter().flat_map(|text| text.split_ascii_whitespace()).map(str::to_owned).collect();
    if values.is_empty() {
        parser.found.problem(&key, "is empty: name the authentication contexts that will do, or leave it out");
    }
    if values.iter().any(|value| !value.bytes().all(|byte| byte.is_ascii_graphic())) {
        parser.found.problem(&key, "must be visible ASCII, without line breaks");
    }
    if values.join(" ").len() > MAX_ACR_VALUES {
        parser.found.problem(&key, format!("is longer than {MAX_ACR_VALUES} bytes in all"));
    }
    no_login(parser, at, raw, "acr_values");
    values
}

fn no_login(parser: &mut Parser, at: &str, raw: &raw::Route, name: &str) {
    if raw.access == raw::Access::Public {
        parser.found.warn(join(at, name), "has no effect: a public route knows no login");
    }
}

fn rate_limit(parser: &mut Parser, at: &str, raw: &raw::RateLimit) -> Option<Rate> {
    let per = parser.positive(&join(at, "per"), &raw.per);
    let mut some = |name: &str, number: u32| {
        let number = NonZeroU32::new(number);
        if number.is_none() {
            parser.found.problem(join(at, name), "must be at least 1");
        }
        number
    };
    let (requests, burst) =
        (some("requests", raw.requests), some("burst", raw.burst.unwrap_or_else(|| raw.requests.max(1))));
    Some(Rate { requests: requests?, per, burst: burst? })
}

/// Canonical, as requests are compared: what is written otherwise would never match.
fn judge_path(path: &str) -> Result<(), &'static str> {
    let Some(rest) = path.strip_prefix('/') else { return Err("must begin with /") };
    if path.contains(['?', '#']) {
        return Err("must be a path without query or fragment");
    }
    let inner = rest.strip_suffix('/').unwrap_or(rest);
    if path.contains("//") || inner.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err("must not contain empty or dot segments");
    }
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().filter(|digit| !digit.is_ascii_lowercase());
            let digits = (digit().and_then(hex), digit().and_then(hex));
            let (Some(high), Some(low)) = digits else {
                return Err("must have % only before two upper-case hexadecimal digits");
            };
            let decoded = high << 4 | low;
            if decoded.is_ascii_alphanumeric() || b"-._~/\\\0".contains(&decoded) {
                return Err("must not encode letters, digits, slashes or NUL");
            }
        } else if !(byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte)) {
            return Err("must encode every other character as %XX");
        }
    }
    Ok(())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn hosts(parser: &mut Parser, at: &str, raw: &raw::Route) -> Vec<String> {
    if !raw.hosts.is_empty() && raw.access != raw::Access::Public {
        parser.found.problem(
            join(at, "hosts"),
            "is for routes with access = \"public\" only: our cookies belong to the host of server.public_url",
        );
    }
    let mut hosts = Vec::new();
    for (index, text) in raw.hosts.iter().enumerate() {
        let host = text.to_ascii_lowercase();
        // What a URL with this host reads back is a host without port, path or user.
        let plain = url::Host::parse(&host).is_ok_and(|parsed| parsed.to_string() == host);
        if plain {
            hosts.push(host);
        } else {
            let text = format!("must be a host name without port, such as \"www.example.com\", not {}", shown(text));
            parser.found.problem(format!("{at}.hosts[{index}]"), text);
        }
    }
    hosts
}

fn methods(parser: &mut Parser, at: &str, raw: &raw::Route) -> Vec<Method> {
    if raw.static_dir.is_some() && raw.methods.is_empty() {
        return vec![Method::GET, Method::HEAD];
    }
    let mut methods = Vec::new();
    for (index, text) in raw.methods.iter().enumerate() {
        let key = format!("{at}.methods[{index}]");
        match Method::from_bytes(text.as_bytes()) {
            Ok(Method::TRACE | Method::CONNECT) => parser.found.problem(key, format!("{text} is never forwarded")),
            Ok(method) if raw.static_dir.is_some() && !matches!(method, Method::GET | Method::HEAD) => {
                parser.found.problem(key, format!("{text} is not for files: a static_dir takes GET and HEAD"));
            }
            Ok(method) => {
                if text.bytes().any(|byte| byte.is_ascii_lowercase()) {
                    parser.found.warn(
                        key,
                        format!("{text:?} is not {:?}: methods are case-sensitive", text.to_ascii_uppercase()),
                    );
                }
                methods.push(method);
            }
            Err(_) => parser.found.problem(key, format!("must be a method such as \"GET\", not {}", shown(text))),
        }
    }
    methods
}

fn upstreams(parser: &mut Parser, at: &str, raw: &raw::Route) -> Vec<Upstream> {
    let key = join(at, "upstream");
    let Some(given) = &raw.upstream else {
        if raw.static_dir.is_none() && !parser.found.blamed(&join(at, "static_dir")) {
            parser.found.missing(&key, "is required: where requests go, such as \"http://127.0.0.1:3000\"");
        }
        return Vec::new();
    };
    if raw.static_dir.is_some() {
        parser.found.problem(join(at, "static_dir"), format!("is set beside {key}; keep one of them"));
    }
    if given.as_slice().is_empty() {
        parser.found.problem(&key, "is empty: name at least one, such as \"http://127.0.0.1:3000\"");
    }
    let mut upstreams = Vec::new();
    for (key, text) in each(&key, given) {
        if text.contains('{') {
            // Read by `template`.
            if given.as_slice().len() > 1 {
                parser.found.problem(key, "a template must be the only upstream of its route");
            }
            continue;
        }
        match Upstream::parse(text) {
            Ok(upstream) => {
                if let UpstreamAddress::Tcp { tls: false, host, .. } = &upstream.address
                    && !is_local(host)
                {
                    parser.found.warn(
                        key,
                        format!("plain http to {host}: requests, and tokens with them, cross the network in the clear"),
                    );
                }
                upstreams.push(upstream);
            }
            Err(complaint) => parser.found.problem(key, format!("{complaint}; got {}", shown(text))),
        }
    }
    upstreams
}

/// An upstream that depends on the user.
fn template(parser: &mut Parser, at: &str, raw: &raw::Route) -> Option<Template> {
    let key = join(at, "upstream");
    let given = raw.upstream.as_ref().and_then(|given| given.as_slice().iter().find(|text| text.contains('{')));
    let allowed = raw.allow_hosts.as_deref();
    let Some(text) = given else {
        if allowed.is_some() {
            parser.found.warn(join(at, "allow_hosts"), "has no effect: upstream is no template");
        }
        return None;
    };
    if raw.access != raw::Access::Session {
        parser.found.problem(&key, "a template needs access = \"session\": without a user there is nothing to fill in");
    }
    if allowed.is_none() {
        parser.found.missing(
            &join(at, "allow_hosts"),
            "is required with a template: the hosts that it may lead to, such as [\".example.net\"]",
        );
    }
    for (index, host) in allowed.unwrap_or_default().iter().enumerate() {
        let name = host.strip_prefix('.').unwrap_or(host);
        let port = name.rsplit_once(':').filter(|(_, port)| port.parse::<NonZeroU16>().is_ok());
        let name = port.map_or(name, |(name, _)| name);
        let plain =
            url::Host::parse(&name.to_ascii_lowercase()).is_ok_and(|it| it.to_string() == name.to_ascii_lowercase());
        // A whole top-level domain is anybody's, but for a machine's own name.
        let broad = !name.contains(['.', ':']) && name != "localhost";
        if !plain || broad {
            let text = format!(
                "must be a host, or a dot and a domain, such as \".example.net\" or \"api.example.net:8443\", not {}",
                shown(host)
            );
            parser.found.problem(format!("{at}.allow_hosts[{index}]"), text);
        }
    }
    match Template::parse(text, allowed?) {
        Ok(template) => Some(template),
        Err(complaint) => {
            parser.found.problem(key, format!("{complaint}; got {}", shown(text)));
            None
        }
    }
}

fn static_files(parser: &mut Parser, at: &str, raw: &raw::Route) -> Option<StaticFiles> {
    let Some(text) = &raw.static_dir else {
        if raw.fallback.is_some() {
            parser.found.problem(join(at, "fallback"), "needs static_dir: it names a file in that folder");
        }
        return None;
    };
    let dir = PathBuf::from(text);
    match std::fs::read_dir(&dir) {
        Ok(_) => {}
        Err(error) => {
            let text = format!("cannot read the folder {}: {}", shown(text), cause(&error));
            parser.found.problem(join(at, "static_dir"), text);
            return None;
        }
    }
    if raw.strip_prefix.is_some() || raw.rewrite_prefix.is_some() {
        let key = if raw.strip_prefix.is_some() { "strip_prefix" } else { "rewrite_prefix" };
        parser.found.warn(join(at, key), "has no effect: the route's path is never part of a file's name");
    }
    let fallback = raw.fallback.as_ref().map(PathBuf::from);
    if let Some(name) = &fallback {
        let key = join(at, "fallback");
        if !name.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
            let name = raw.fallback.as_deref().unwrap_or_default();
            parser
                .found
                .problem(key, format!("must be a name below static_dir, such as \"index.html\", not {}", shown(name)));
        } else if !dir.join(name).is_file() {
            parser.found.warn(key, "is not there yet: until it is, page loads that match no file get 404");
        }
    }
    Some(StaticFiles { dir, fallback })
}

fn prefixes(parser: &mut Parser, at: &str, raw: &raw::Route) -> (Option<String>, Option<String>) {
    let strip = match &raw.strip_prefix {
        Some(raw::StripPrefix::Path(true)) => Some(raw.path.clone()),
        Some(raw::StripPrefix::Text(text)) => {
            let rest = raw.path.strip_prefix(text.trim_end_matches('/'));
            let whole_segments = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            if judge_path(text).is_err() || !whole_segments {
                let text =
                    format!("must be whole segments that {:?} begins with, or true, not {}", raw.path, shown(text));
                parser.found.problem(join(at, "strip_prefix"), text);
            }
            Some(text.clone())
        }
        Some(raw::StripPrefix::Path(false)) | None => None,
    };
    if let Some(text) = &raw.rewrite_prefix {
        if judge_path(text).is_err() {
            let text = format!("must be a path such as \"/new/\", not {}", shown(text));
            parser.found.problem(join(at, "rewrite_prefix"), text);
        } else if raw.path.ends_with('/') != text.ends_with('/') {
            let text = format!("must end in / exactly when the route's path {:?} does, not {}", raw.path, shown(text));
            parser.found.problem(join(at, "rewrite_prefix"), text);
        }
        if strip.is_some() {
            parser
                .found
                .problem(join(at, "rewrite_prefix"), "already replaces the route's path: leave strip_prefix out");
        }
    }
    (strip, raw.rewrite_prefix.clone())
}

fn request_headers(parser: &mut Parser, at: &str, raw: &raw::Route) -> (TokenHeader, Vec<(HeaderName, String)>) {
    let key = join(at, "token_header");
    let token_header = parse_token_header(&raw.token_header).unwrap_or_else(|text| {
        parser.found.problem(&key, format!("{text}, not {}", shown(&raw.token_header)));
        TokenHeader { name: http::header::AUTHORIZATION, scheme: Some("Bearer".to_owned()) }
    });
    let mut headers: Vec<(HeaderName, String)> = Vec::new();
    for (name, claim) in &raw.identity_headers {
        let key = join(&join(at, "identity_headers"), name);
        let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
            parser.found.problem(key, "is not a header name");
            continue;
        };
        if is_reserved(&header) || header == token_header.name {
            parser.found.problem(key, "cannot carry a claim: this header has a meaning of its own");
        } else if headers.iter().any(|(other, _)| *other == header) {
            parser.found.problem(key, "is there twice, in another spelling");
        } else if claim.is_empty() {
            parser.found.problem(key, "must name a claim, such as \"sub\"");
        } else {
            headers.push((header, claim.clone()));
        }
    }
    (token_header, headers)
}

fn is_reserved(header: &HeaderName) -> bool {
    FRAMING.contains(&header.as_str()) || matches!(header.as_str(), "authorization" | "cookie")
}

fn parse_token_header(text: &str) -> Result<TokenHeader, &'static str> {
    const FORM: &str = "must be \"Name: Scheme\", or \"Name\" for the bare token";
    let (name, scheme) = match text.split_once(':') {
        Some((name, scheme)) => (name.trim(), Some(scheme.trim())),
        None => (text.trim(), None),
    };
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| FORM)?;
    if scheme.is_some_and(|scheme| !is_token(scheme)) {
        return Err(FORM);
    }
    if name != http::header::AUTHORIZATION && is_reserved(&name) {
        return Err("must be a header without another meaning");
    }
    Ok(TokenHeader { name, scheme: scheme.map(str::to_owned) })
}

fn response_headers(parser: &mut Parser, at: &str, raw: &BTreeMap<String, String>) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::new();
    for (name, value) in raw {
        let key = join(at, name);
        match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            (Err(_), _) => parser.found.problem(key, "is not a header name"),
            (_, Err(_)) => {
                parser.found.problem(key, "has a value that no header can carry: visible ASCII and blanks only")
            }
            (Ok(name), _) if FRAMING.contains(&name.as_str()) => {
                parser.found.problem(key, "cannot be set: this header frames the message");
            }
            (Ok(name), Ok(value)) => headers.push((name, value)),
        }
    }
    headers
}

fn require(parser: &mut Parser, at: &str, raw: &raw::Route) -> Vec<(String, Vec<String>)> {
    let key = join(at, "require");
    if !raw.require.is_empty() && raw.access == raw::Access::Public {
        parser.found.problem(&key, "needs a session to look at: use access = \"session\"");
    }
    for (claim, _) in raw.require.iter().filter(|(_, values)| values.is_empty()) {
        parser.found.problem(join(&key, claim), "is empty: no session could ever meet it");
    }
    raw.require.clone().into_iter().collect()
}

fn upstream_tls(parser: &mut Parser, at: &str, raw: Option<&raw::UpstreamTls>) -> UpstreamTls {
    let Some(raw) = raw else { return UpstreamTls::default() };
    if let Some(path) = &raw.ca_file {
        parser.files.certificates(&join(at, "ca_file"), path, &mut parser.found);
    }
    if raw.cert_file.is_some() || raw.key_file.is_some() {
        parser.both(at, ["cert_file", "key_file"], [&raw.cert_file, &raw.key_file]);
    }
    if let Some(name) = &raw.server_name
        && rustls::pki_types::ServerName::try_from(name.as_str()).is_err()
    {
        parser.found.problem(join(at, "server_name"), format!("must be a host name, not {}", shown(name)));
    }
    UpstreamTls {
        ca_file: raw.ca_file.as_ref().map(PathBuf::from),
        server_name: raw.server_name.clone(),
        cert_file: raw.cert_file.as_ref().map(PathBuf::from),
        key_file: raw.key_file.as_ref().map(PathBuf::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_canonical_or_refused() {
        for path in ["/", "/api/", "/api", "/a/b/c/", "/caf%C3%A9/", "/a:b@c;d=e"] {
            assert_eq!(judge_path(path), Ok(()), "{path}");
        }
        for path in [
            "", "api/", "/a/../b/", "/./", "/a//b", "/a?x", "/a#x", "/a b", "/é", "/%2f", "/%2F", "/%41", "/%c3%a9",
            "/%", "/%4", "/a\\b", "/%00", "/..",
        ] {
            assert!(judge_path(path).is_err(), "{path}");
        }
    }

    #[test]
    fn the_token_header_names_header_and_scheme() {
        let header = parse_token_header("X-Token").unwrap();
        assert_eq!((header.name.as_str(), header.scheme), ("x-token", None));
        let header = parse_token_header("Authorization: DPoP").unwrap();
        assert_eq!((header.name.as_str(), header.scheme.as_deref()), ("authorization", Some("DPoP")));
        for text in ["", "A B", "Authorization:", "Host: x", "Cookie", "X: a b"] {
            assert!(parse_token_header(text).is_err(), "{text}");
        }
    }
}
