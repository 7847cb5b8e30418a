//! `CleanPath`: the one reading of a request path that routing judges and that is forwarded.
//!
//! Proxies and servers disagree about dot segments, `//`, `;` and encoded slashes, and every disagreement is a way
//! around a route's policy. So such paths are refused; what is left has one reading.

use std::fmt;
use std::sync::Arc;

/// A canonical absolute path. Holding one proves: it begins with `/`, has no empty or dot segment, no encoded or raw
/// byte that acts like `/`, no NUL, valid percent-encoding of valid UTF-8, and no needlessly encoded character.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CleanPath(Arc<str>);

/// Why a path has no single reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathError {
    /// Does not begin with `/`, or still carries a query.
    NotOriginForm,
    /// `\`, `%2f` or `%5c`.
    ActsLikeSlash,
    /// A control character or blank, raw, or a control character encoded.
    Control,
    /// `%` without two hexadecimal digits.
    PercentEncoding,
    /// The decoded bytes are not UTF-8.
    NotUtf8,
    /// `.` or `..`, raw or encoded.
    DotSegment,
    /// `//`.
    EmptySegment,
    /// `;`, where some servers end the path that they match.
    MatrixParameter,
    /// `#`, which no client sends.
    Fragment,
}

impl PathError {
    /// One sentence for the problem document.
    pub fn message(self) -> &'static str {
        match self {
            Self::NotOriginForm => "The request target is not an absolute path.",
            Self::ActsLikeSlash => "The path contains a backslash or an encoded slash.",
            Self::Control => "The path contains a control character.",
            Self::PercentEncoding => "The path contains a percent sign that begins no escape.",
            Self::NotUtf8 => "The path is not UTF-8.",
            Self::DotSegment => "The path contains a dot segment.",
            Self::EmptySegment => "The path contains an empty segment.",
            Self::MatrixParameter => "The path contains a semicolon.",
            Self::Fragment => "The request target contains a fragment.",
        }
    }
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl CleanPath {
    /// Judges the path of a request target, without its query.
    ///
    /// An escape of an unreserved character (RFC 3986 section 2.3) is decoded, since `%61` and `a` are one path; all
    /// else stays byte for byte, other escapes and raw UTF-8 included.
    ///
    /// # Errors
    /// When two servers could read the path differently.
    pub fn parse(raw: &str) -> Result<Self, PathError> {
        if !raw.starts_with('/') {
            return Err(PathError::NotOriginForm);
        }
        let mut previous = 0;
        let mut escaped = false;
        let mut dotted = false;
        for byte in raw.bytes() {
            match byte {
                b'/' if previous == b'/' => return Err(PathError::EmptySegment),
                b'.' if previous == b'/' => dotted = true,
                b'%' => escaped = true,
                b'\\' => return Err(PathError::ActsLikeSlash),
                b';' => return Err(PathError::MatrixParameter),
                b'#' => return Err(PathError::Fragment),
                b'?' => return Err(PathError::NotOriginForm),
                0..=b' ' | 0x7f => return Err(PathError::Control),
                _ => {}
            }
            previous = byte;
        }
        let path: Arc<str> = if escaped { decode_unreserved(raw)?.into() } else { raw.into() };
        if (dotted || escaped) && path.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(PathError::DotSegment);
        }
        Ok(Self(path))
    }

    /// The path as it is judged and forwarded.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the path is `prefix` or lies below it, on a segment boundary. `/api` and `/api/` mean the same here.
    pub fn is_below(&self, prefix: &str) -> bool {
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        self.0.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl fmt::Display for CleanPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn decode_unreserved(raw: &str) -> Result<String, PathError> {
    let mut canonical = Vec::with_capacity(raw.len());
    // What a server sees that decodes everything; it must be text.
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            canonical.push(byte);
            decoded.push(byte);
            rest = tail;
            continue;
        }
        let (&[high, low], tail) = tail.split_first_chunk::<2>().ok_or(PathError::PercentEncoding)?;
        let value = hex(high).zip(hex(low)).map(|(h, l)| h << 4 | l).ok_or(PathError::PercentEncoding)?;
        match value {
            b'/' | b'\\' => return Err(PathError::ActsLikeSlash),
            0..=0x1f | 0x7f => return Err(PathError::Control),
            b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => canonical.push(value),
            _ => canonical.extend([b'%', high, low]),
        }
        decoded.push(value);
        rest = tail;
    }
    std::str::from_utf8(&decoded).map_err(|_| PathError::NotUtf8)?;
    String::from_utf8(canonical).map_err(|_| PathError::NotUtf8)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(raw: &str) -> Result<String, PathError> {
        CleanPath::parse(raw).map(|path| path.0.to_string())
    }

    /// ASVS-1.1.1.
    #[test]
    fn route_02_03_ambiguous_paths_are_refused() {
        use PathError::*;
        for (raw, why) in [
            ("/public/../api/admin", DotSegment),
            ("/public/%2e%2e/api/admin", DotSegment),
            ("/public/%2E./api", DotSegment),
            ("/public/..", DotSegment),
            ("/.", DotSegment),
            ("/./api/admin", DotSegment),
            ("/public/..%2fapi/admin", ActsLikeSlash),
            ("/api%2Fadmin", ActsLikeSlash),
            ("/public\\..\\api", ActsLikeSlash),
            ("/public/%5c..%5C", ActsLikeSlash),
            ("/public/.%00./", Control),
            ("/api/admin%0a", Control),
            ("/api/admin%7f", Control),
            ("/api/a\tb", Control),
            ("/api/a b", Control),
            ("/public/..;/api/admin", MatrixParameter),
            ("/api;x/admin", MatrixParameter),
            ("//api/admin", EmptySegment),
            ("/api//admin", EmptySegment),
            ("/api/admin//", EmptySegment),
            ("/api/%zz", PercentEncoding),
            ("/api/%", PercentEncoding),
            ("/api/%2", PercentEncoding),
            ("/%u002e%u002e/api", PercentEncoding),
            ("/api/%+1", PercentEncoding),
            ("/%c0%ae%c0%ae/api", NotUtf8),
            ("/%ff", NotUtf8),
            ("/%e2%82", NotUtf8),
            ("/public#/../api", Fragment),
            ("/api?x", NotOriginForm),
            ("*", NotOriginForm),
            ("", NotOriginForm),
            ("api/x", NotOriginForm),
            ("http://evil.test/api/x", NotOriginForm),
        ] {
            assert_eq!(parse(raw), Err(why), "{raw}");
        }
    }

    #[test]
    fn route_02_needless_escapes_become_one_form() {
        assert_eq!(parse("/%61pi/%7Euser/x%2etxt").unwrap(), "/api/~user/x.txt");
        assert_eq!(parse("/%41%2d%5f%30").unwrap(), "/A-_0");
    }

    #[test]
    fn all_else_stays_byte_for_byte() {
        for raw in [
            "/",
            "/api/admin/",
            "/API/admin",
            "/api/admin%20",
            "/api/admin%3fx",
            "/api/admin%23x",
            "/api/admin.json",
            "/%252e%252e/x",
            "/a%c3%a4%C3%A4",
            "/ä/%EF%BC%8E%EF%BC%8E/x",
            "/.well-known/x",
            "/.../..a/b..",
            "/a:b@c!$&'()*+,=~|{}\"<>^`[]",
            "/x%3By",
        ] {
            assert_eq!(parse(raw).as_deref(), Ok(raw));
        }
    }

    #[test]
    fn route_05_prefixes_end_at_a_segment() {
        let path = |raw| CleanPath::parse(raw).unwrap();
        for (raw, prefix, below) in [
            ("/auth", "/auth", true),
            ("/auth/", "/auth", true),
            ("/auth/login", "/auth", true),
            ("/auth/login", "/auth/", true),
            ("/auth", "/auth/", true),
            ("/authx", "/auth", false),
            ("/Auth/login", "/auth", false),
            ("/x/auth/login", "/auth", false),
            ("/%61uth/login", "/auth", true),
            ("/", "/", true),
            ("/x", "/", true),
        ] {
            assert_eq!(path(raw).is_below(prefix), below, "{raw} {prefix}");
        }
    }

    proptest! {
        #[test]
        fn parsing_again_changes_nothing(raw in prop_oneof!["/[%./a-f0-9A-Fä~]{0,30}", "/(%[2-7][0-9a-fA-F]|[a-z]){0,12}", "\\PC{0,30}"]) {
            if let Ok(once) = CleanPath::parse(&raw) {
                prop_assert_eq!(CleanPath::parse(once.as_str()), Ok(once.clone()));
                prop_assert!(once.as_str().starts_with('/') && !once.as_str().contains("//"));
                prop_assert!(!once.as_str().split('/').any(|segment| segment == ".."));
            }
        }
    }
}
