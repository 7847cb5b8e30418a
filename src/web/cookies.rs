//! The `Cookie` and `Set-Cookie` fields as bytes (RFC 6265), tolerant of what browsers and applications put there.

use http::{HeaderMap, HeaderValue, header};

/// What is left of the `Cookie` fields without our cookies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stripped {
    /// Forward the field as it is, or none.
    Unchanged,
    /// Forward this single field instead, or none.
    Changed(Option<HeaderValue>),
}

/// Takes our cookies out and joins the crumbs of HTTP/2 (RFC 9113 section 8.2.3) into one field. The bytes of the other
/// cookies stay as they are.
pub fn strip(headers: &HeaderMap, owns: impl Fn(&str) -> bool) -> Stripped {
    let fields = || headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
    let ours = |piece: &[u8]| std::str::from_utf8(split(piece).0).is_ok_and(&owns);
    let mut changed = fields().nth(1).is_some();
    // Ours are long and often alone: room is made for what stays.
    let mut joined: Vec<u8> = Vec::new();
    for field in fields().filter(|field| !field.trim_ascii().is_empty()) {
        let mut first = true;
        for piece in pieces(field) {
            if ours(piece) {
                changed = true;
                continue;
            }
            if joined.is_empty() {
                joined.extend_from_slice(piece.trim_ascii_start());
            } else {
                joined.extend_from_slice(if first { b"; " } else { b";" });
                joined.extend_from_slice(if first { piece.trim_ascii_start() } else { piece });
            }
            first = false;
        }
    }
    if !changed {
        return Stripped::Unchanged;
    }
    // The pieces come from valid values, so this one is valid; if it ever is not, no cookie is the safe side.
    let value = HeaderValue::from_bytes(&joined).ok().filter(|_| !joined.trim_ascii().is_empty());
    Stripped::Changed(value.map(|mut value| {
        value.set_sensitive(true);
        value
    }))
}

/// All cookies of all `Cookie` fields, in order, repeated names included. Blanks around name and value and a pair of
/// quotes around the value are left out; a name that is not UTF-8 is skipped.
///
/// There is no cap on their number: nothing is stored, and a cap would let planted cookies hide ours.
pub fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &[u8])> {
    headers.get_all(header::COOKIE).iter().flat_map(|field| pieces(field.as_bytes())).filter_map(|piece| {
        let (name, value) = split(piece);
        let value = value?;
        let bare = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
        Some((std::str::from_utf8(name).ok()?, bare))
    })
}

/// The name under which a browser will send back what this `Set-Cookie` stores. A nameless cookie `=a=b` comes back
/// as `a=b`, so its name is `a`.
pub fn set_cookie_name(value: &HeaderValue) -> Option<&str> {
    let pair = pieces(value.as_bytes()).next()?;
    let mut pair = pair.trim_ascii();
    while let Some(rest) = pair.strip_prefix(b"=") {
        pair = rest.trim_ascii_start();
    }
    std::str::from_utf8(split(pair).0).ok().filter(|name| !name.is_empty())
}

/// What stands between the semicolons of a field. A sealed session is long: going through it byte by byte would cost as
/// much as opening it.
pub fn pieces(field: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(field);
    std::iter::from_fn(move || {
        let field = rest?;
        let end = memchr::memchr(b';', field);
        let (piece, after) = end.and_then(|end| field.split_at_checked(end)).unwrap_or((field, &[]));
        rest = after.strip_prefix(b";");
        Some(piece)
    })
}

/// Name and value, blanks around them left out; without `=` all of it is the name.
fn split(piece: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut halves = piece.splitn(2, |byte| *byte == b'=');
    let name = halves.next().unwrap_or_default().trim_ascii();
    (name, halves.next().map(<[u8]>::trim_ascii))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(fields: &[&[u8]]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for field in fields {
            map.append(header::COOKIE, HeaderValue::from_bytes(field).unwrap());
        }
        map
    }

    fn owns(name: &str) -> bool {
        name == "sg" || name == "sg-1"
    }

    fn left(fields: &[&[u8]]) -> Option<Vec<u8>> {
        match strip(&headers(fields), owns) {
            Stripped::Unchanged => panic!("unchanged"),
            Stripped::Changed(value) => value.map(|value| value.as_bytes().to_vec()),
        }
    }

    #[test]
    fn bff_08_ours_are_removed_and_the_others_kept_byte_for_byte() {
        for (sent, kept) in [
            ("sg=1; a=b", "a=b"),
            ("a=b; sg=1", "a=b"),
            ("a=b; sg=1; c=d", "a=b; c=d"),
            ("a=b;sg=1;c=d", "a=b;c=d"),
            ("a=b ;  sg = 1;c=\"d\"", "a=b ;c=\"d\""),
            ("sg=1; sg-1=2; theme=\"da rk\"; =x; $Version=1; n", "theme=\"da rk\"; =x; $Version=1; n"),
            ("SG=1; sg=2; sgx=3; sg.=4; sg%20=5", "SG=1; sgx=3; sg.=4; sg%20=5"),
            ("sg=1; sg=2; a=1,b=2", "a=1,b=2"),
        ] {
            assert_eq!(left(&[sent.as_bytes()]).as_deref(), Some(kept.as_bytes()), "{sent}");
        }
        assert_eq!(left(&[b"sg=1"]), None);
        assert_eq!(left(&[b"sg=1; sg-1=2"]), None);
        assert_eq!(left(&[b"sg=1; a=\xff\xfe"]).as_deref(), Some(&b"a=\xff\xfe"[..]));
    }

    #[test]
    fn cookie_04_foreign_cookies_alone_stay_untouched() {
        for field in [&b"a=b; c=d"[..], b"", b";;;", b"\xff=\xff", b"=", b"a"] {
            assert_eq!(strip(&headers(&[field]), owns), Stripped::Unchanged);
        }
        assert_eq!(strip(&HeaderMap::new(), owns), Stripped::Unchanged);
    }

    #[test]
    fn cookie_30_crumbs_are_joined() {
        assert_eq!(left(&[b"a=b", b"sg=1", b"c=d; e=f"]).as_deref(), Some(&b"a=b; c=d; e=f"[..]));
        assert_eq!(left(&[b"a=b", b"c=d"]).as_deref(), Some(&b"a=b; c=d"[..]));
        assert_eq!(left(&[b"a=b", b"", b"c=d"]).as_deref(), Some(&b"a=b; c=d"[..]));
        assert_eq!(left(&[b"sg=1", b"sg=2"]), None);
    }

    #[test]
    fn cookie_03_every_cookie_of_a_name_is_seen() {
        let map = headers(&[b"sg=1; a = \"q\" ;sg=", b"x; sg=3=4; \xff=1; =v"]);
        let seen: Vec<_> = pairs(&map).collect();
        assert_eq!(
            seen,
            [("sg", &b"1"[..]), ("a", b"q"), ("sg", b""), ("sg", b"3=4"), ("", b"v")],
            "in order, over all fields"
        );
    }

    #[test]
    fn cookie_04_ten_thousand_cookies_hide_nothing() {
        let mut field = b"a=1;".repeat(10_000);
        field.extend_from_slice(b"sg=found");
        let map = headers(&[&field]);
        assert_eq!(pairs(&map).find(|(name, _)| *name == "sg"), Some(("sg", &b"found"[..])));
    }

    #[test]
    fn a_field_is_cut_at_every_semicolon() {
        let cut = |field: &'static str| pieces(field.as_bytes()).collect::<Vec<_>>();
        assert_eq!(cut("a=b; c=d;;e;"), [&b"a=b"[..], b" c=d", b"", b"e", b""]);
        assert_eq!(cut(""), [b""]);
    }

    #[test]
    fn cookie_14_the_name_that_a_browser_will_send() {
        for (value, name) in [
            ("sg=1; Path=/", Some("sg")),
            (" sg = 1", Some("sg")),
            ("sg", Some("sg")),
            ("=sg=1", Some("sg")),
            ("= =sg=1", Some("sg")),
            ("a=sg=1", Some("a")),
            ("", None),
            ("; Path=/", None),
        ] {
            assert_eq!(set_cookie_name(&HeaderValue::from_static(value)), name, "{value}");
        }
    }

    proptest! {
        #[test]
        fn pieces_are_what_split_gives(field in "[;a= ]{0,12}") {
            let field = field.as_bytes();
            prop_assert!(pieces(field).eq(field.split(|byte| *byte == b';')));
        }

        #[test]
        fn nothing_of_ours_survives(fields in proptest::collection::vec("(sg|a|\"| |;|=|sg=1|; )*", 0..4)) {
            let fields: Vec<_> = fields.iter().map(String::as_bytes).collect();
            if let Stripped::Changed(Some(value)) = strip(&headers(&fields), owns) {
                let mut map = HeaderMap::new();
                map.insert(header::COOKIE, value);
                prop_assert!(pairs(&map).all(|(name, _)| !owns(name)));
                prop_assert_eq!(strip(&map, owns), Stripped::Unchanged);
            }
        }
    }
}
