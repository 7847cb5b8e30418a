//! What our cookies are called, and their attributes.

use cookie::Cookie;
use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

use crate::session::settings::{SameSite, Settings};
use crate::web::cookies::pieces;

/// Characters of a sealed text per cookie: name and value stay clear of the 4096 that browsers allow.
pub(super) const PIECE: usize = 3800;
/// Index, total, six characters of the group.
pub(super) const PART_PREFIX: usize = 8;

/// What names may begin with that browsers guard (RFC 6265bis section 4.1.3), the longer first. They compare without case.
const PREFIXES: [&[u8]; 4] = [b"__Host-Http-", b"__Host-", b"__Http-", b"__Secure-"];

/// A cookie of ours, by what its name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::session) enum Found {
    /// The session, or its part of that number.
    Part(u32),
    /// A login attempt, by its id.
    Login(String),
    Verify,
    /// The trace of a login that began with a typed address.
    Returned,
    /// The refresh and ID token of the `split` layout, or their part of that number.
    Refresh(u32),
}

/// Cookies that one sealed text is spread over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Series {
    Session,
    Refresh,
}

impl Series {
    pub(super) fn cookie(self, index: u32) -> Found {
        match self {
            Self::Session => Found::Part(index),
            Self::Refresh => Found::Refresh(index),
        }
    }

    /// The number of a cookie among those of this series.
    pub(super) fn index(self, found: &Found) -> Option<u32> {
        match (self, found) {
            (Self::Session, Found::Part(index)) | (Self::Refresh, Found::Refresh(index)) => Some(*index),
            _ => None,
        }
    }
}

/// The names of our cookies. Compared byte for byte: a prefix in another case is another cookie (RFC 6265bis
/// section 4.1.3 lets only the browser be lenient).
#[derive(Clone, Debug)]
pub(in crate::session) struct Names {
    /// Without prefix.
    name: String,
    base: String,
    refresh: String,
    /// Characters per cookie.
    pub(super) piece: usize,
    /// Where the browser sends the refresh cookie.
    refresh_path: String,
}

impl Names {
    pub(in crate::session) fn new(settings: &Settings) -> Self {
        let name = &settings.cookie_name;
        let (base, refresh) = if settings.public.is_https() {
            (format!("__Host-Http-{name}"), format!("__Secure-{name}-refresh"))
        } else {
            (name.clone(), format!("{name}-refresh"))
        };
        // A name so long that little is left for the value is refused by the configuration.
        let room = 4096_usize.saturating_sub(base.len().max(refresh.len()) + 2 + PART_PREFIX).max(1);
        Self {
            name: name.clone(),
            base,
            refresh,
            piece: PIECE.min(room),
            refresh_path: format!("{}/", settings.prefix),
        }
    }

    pub(in crate::session) fn full(&self, found: &Found) -> String {
        match found {
            Found::Part(0) => self.base.clone(),
            Found::Part(index) => format!("{}-{index}", self.base),
            Found::Login(id) => format!("{}-login-{id}", self.base),
            Found::Verify => format!("{}-verify", self.base),
            Found::Returned => format!("{}-returned", self.base),
            Found::Refresh(0) => self.refresh.clone(),
            Found::Refresh(index) => format!("{}-{index}", self.refresh),
        }
    }

    pub(super) fn path(&self, found: &Found) -> &str {
        if let Found::Refresh(_) = found { &self.refresh_path } else { "/" }
    }

    /// How many cookies a sealed text needs.
    pub(super) fn parts(&self, text: usize) -> usize {
        text.div_ceil(self.piece).max(1)
    }

    /// Characters of all names and values together.
    pub(super) fn total(&self, series: Series, text: usize) -> usize {
        let name = match series {
            Series::Session => self.base.len(),
            Series::Refresh => self.refresh.len(),
        };
        match self.parts(text) {
            1 => name + text,
            // One digit each after the dash.
            parts => text + parts * (PART_PREFIX + name) + (parts - 1) * 2,
        }
    }

    pub(super) fn classify(&self, name: &[u8]) -> Option<Found> {
        let refresh = name.strip_prefix(self.refresh.as_bytes()).and_then(part);
        refresh.map(Found::Refresh).or_else(|| front(name.strip_prefix(self.base.as_bytes())?))
    }

    /// Whether it is one of our names, whatever the prefix: only the configured spelling opens anything, but no other one
    /// is anybody else's either.
    pub(super) fn owns(&self, name: &[u8]) -> bool {
        let bare = PREFIXES.iter().find_map(|prefix| {
            let (start, rest) = name.split_at_checked(prefix.len())?;
            start.eq_ignore_ascii_case(prefix).then_some(rest)
        });
        bare.unwrap_or(name)
            .strip_prefix(self.name.as_bytes())
            .is_some_and(|rest| front(rest).is_some() || rest.strip_prefix(b"-refresh").and_then(part).is_some())
    }

    /// Our cookies in all `Cookie` fields, with their values, in the order of the request. Whatever cannot be ours is
    /// passed over.
    pub(in crate::session) fn find<'h>(&self, headers: &'h HeaderMap) -> impl Iterator<Item = (Found, &'h [u8])> {
        let pairs = headers.get_all(COOKIE).into_iter().flat_map(|field| pieces(field.as_bytes()));
        pairs.filter_map(|pair| {
            // Exactly the one space that browsers put there: a name that begins with white space is not ours.
            let pair = pair.strip_prefix(b" ").unwrap_or(pair);
            let (name, value) = pair.split_at_checked(memchr::memchr(b'=', pair)?)?;
            Some((self.classify(name)?, value.strip_prefix(b"=")?))
        })
    }

    pub(in crate::session) fn expiry(&self, settings: &Settings, found: &Found) -> Option<HeaderValue> {
        render(settings, &self.full(found), String::new(), same_site(settings, found), self.path(found), None)
    }
}

/// By what follows the name: a cookie that the browser sends everywhere.
fn front(rest: &[u8]) -> Option<Found> {
    match rest {
        b"-verify" => Some(Found::Verify),
        b"-returned" => Some(Found::Returned),
        _ => match rest.strip_prefix(b"-login-") {
            Some(id) => {
                let fits = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'_';
                let id = std::str::from_utf8(id).ok()?;
                (!id.is_empty() && id.len() <= 64 && id.as_bytes().iter().all(fits))
                    .then(|| Found::Login(id.to_owned()))
            }
            None => part(rest).map(Found::Part),
        },
    }
}

/// By what follows the name: which part it is.
fn part(rest: &[u8]) -> Option<u32> {
    if rest.is_empty() { Some(0) } else { rest.strip_prefix(b"-").and_then(number) }
}

/// The number after the dash of a part's name.
fn number(digits: &[u8]) -> Option<u32> {
    let fits = digits.len() < 10 && !digits.starts_with(b"0") && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|_| fits)
}

fn same_site(settings: &Settings, found: &Found) -> SameSite {
    match found {
        Found::Login(_) | Found::Returned => login_same_site(settings),
        Found::Part(_) | Found::Refresh(_) | Found::Verify => settings.same_site,
    }
}

/// The provider's redirect is cross-site: a Strict cookie would stay behind, and a Lax one with a POST.
pub(in crate::session) fn login_same_site(settings: &Settings) -> SameSite {
    if settings.same_site == SameSite::None || settings.form_post { SameSite::None } else { SameSite::Lax }
}

/// A `Set-Cookie` value with a life in seconds, or one that removes the cookie.
pub(in crate::session) fn render(
    settings: &Settings,
    name: &str,
    value: String,
    same_site: SameSite,
    path: &str,
    life: Option<u64>,
) -> Option<HeaderValue> {
    let mut cookie = Cookie::build((name.to_owned(), value))
        .path(path)
        .http_only(true)
        .secure(settings.public.is_https())
        .partitioned(settings.partitioned)
        .same_site(match same_site {
            SameSite::Strict => cookie::SameSite::Strict,
            SameSite::Lax => cookie::SameSite::Lax,
            SameSite::None => cookie::SameSite::None,
        })
        .max_age(cookie::time::Duration::seconds(life.and_then(|life| life.try_into().ok()).unwrap_or(0)));
    if life.is_none() {
        cookie = cookie.expires(cookie::time::OffsetDateTime::UNIX_EPOCH);
    }
    // Names are configured as tokens and values are base64url, so this never yields nothing.
    let mut header = HeaderValue::from_str(&cookie.build().to_string()).ok()?;
    header.set_sensitive(true);
    Some(header)
}
