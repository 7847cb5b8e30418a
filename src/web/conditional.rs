//! Whether a client already has what it asks for, or wants a part of it (RFC 9110 sections 13 and 14), and which
//! encoding it takes (section 12.5.3).

use std::time::SystemTime;

use http::{HeaderMap, header};

/// What is known of a representation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validators {
    /// A strong entity tag, with its quotes.
    pub etag: String,
    /// To the second, as the field says it.
    pub modified: Option<SystemTime>,
}

/// What a GET or HEAD gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selected {
    /// 304.
    NotModified,
    /// 200.
    Whole,
    /// 206: first and last byte.
    Part { first: u64, last: u64 },
    /// 416.
    Unsatisfiable,
}

/// Judges the preconditions, then the range. Several ranges get the whole, which is always allowed.
pub fn select(headers: &HeaderMap, validators: &Validators, length: u64, range_allowed: bool) -> Selected {
    if is_known(headers, validators) {
        return Selected::NotModified;
    }
    let mut ranges = headers.get_all(header::RANGE).iter();
    match (ranges.next().and_then(|value| value.to_str().ok()), ranges.next()) {
        (Some(range), None) if range_allowed && if_range_holds(headers, validators) => part(range, length),
        _ => Selected::Whole,
    }
}

fn is_known(headers: &HeaderMap, validators: &Validators) -> bool {
    if headers.contains_key(header::IF_NONE_MATCH) {
        // Weak comparison; takes precedence over the date (RFC 9110 section 13.2.2).
        let given = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        return given
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == validators.etag);
    }
    let since = headers.get(header::IF_MODIFIED_SINCE).and_then(|value| value.to_str().ok()).and_then(date);
    matches!((since, validators.modified), (Some(since), Some(modified)) if modified <= since)
}

/// Strong comparison: half of the old and half of the new is nothing.
fn if_range_holds(headers: &HeaderMap, validators: &Validators) -> bool {
    let Some(value) = headers.get(header::IF_RANGE) else { return true };
    let Ok(text) = value.to_str() else { return false };
    text == validators.etag || (validators.modified.is_some() && date(text) == validators.modified)
}

fn date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text).ok()
}

/// One range in bytes; what is not understood is ignored (RFC 9110 section 14.2).
fn part(range: &str, length: u64) -> Selected {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let Some((unit, set)) = range.split_once('=') else { return Selected::Whole };
    let Some((first, last)) = set.trim().split_once('-').filter(|_| unit.trim().eq_ignore_ascii_case("bytes")) else {
        return Selected::Whole;
    };
    let end = length.saturating_sub(1);
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first > last => Selected::Whole,
        (Some(first), _) if first >= length && (last.is_empty() || number(last).is_some()) => Selected::Unsatisfiable,
        (Some(first), Some(last)) => Selected::Part { first, last: last.min(end) },
        (Some(first), None) if last.is_empty() => Selected::Part { first, last: end },
        (None, Some(0)) if first.is_empty() => Selected::Unsatisfiable,
        (None, Some(_)) if first.is_empty() && length == 0 => Selected::Unsatisfiable,
        (None, Some(suffix)) if first.is_empty() => Selected::Part { first: length.saturating_sub(suffix), last: end },
        _ => Selected::Whole,
    }
}

/// How much the client wants this content coding, in thousandths; 0: not at all (RFC 9110 section 12.5.3).
pub fn encoding_quality(headers: &HeaderMap, coding: &str) -> u16 {
    let mut any = None;
    for item in headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()) {
        for item in item.split(',') {
            let mut parts = item.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            let wanted = quality.map_or(1000, thousandths);
            if name.eq_ignore_ascii_case(coding) {
                return wanted;
            }
            if name == "*" {
                any = Some(wanted);
            }
        }
    }
    any.unwrap_or(0)
}

/// `0.5` => 500; 0 for what is no weight.
fn thousandths(quality: &str) -> u16 {
    let (whole, part) = quality.split_once('.').unwrap_or((quality, ""));
    let digits = part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit());
    match (whole, format!("{part:0<3}").parse::<u16>()) {
        ("0", Ok(part)) if digits => part,
        ("1", Ok(0)) if digits => 1000,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use std::time::{Duration, UNIX_EPOCH};

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
    const EARLIER: &str = "Sun, 06 Nov 1994 08:49:36 GMT";

    fn judge(fields: &[(&'static str, &'static str)], length: u64) -> Selected {
        let headers = fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        let validators =
            Validators { etag: "\"abc\"".to_owned(), modified: Some(UNIX_EPOCH + Duration::from_secs(784_111_777)) };
        select(&headers, &validators, length, true)
    }

    #[test]
    fn preconditions() {
        for (fields, known) in [
            (vec![], false),
            (vec![("if-none-match", "\"abc\"")], true),
            (vec![("if-none-match", "W/\"abc\"")], true),
            (vec![("if-none-match", "\"x\", \"abc\"")], true),
            (vec![("if-none-match", "*")], true),
            (vec![("if-none-match", "\"x\"")], false),
            (vec![("if-none-match", "abc")], false),
            (vec![("if-modified-since", DATE)], true),
            (vec![("if-modified-since", LATER)], true),
            (vec![("if-modified-since", EARLIER)], false),
            (vec![("if-modified-since", "yesterday")], false),
            (vec![("if-none-match", "\"x\""), ("if-modified-since", LATER)], false),
            (vec![("if-none-match", "\"abc\""), ("range", "bytes=0-1")], true),
        ] {
            assert_eq!(judge(&fields, 10) == Selected::NotModified, known, "{fields:?}");
        }
    }

    #[test]
    fn ranges() {
        use Selected::{Part, Unsatisfiable, Whole};
        for (range, expect) in [
            ("bytes=0-0", Part { first: 0, last: 0 }),
            ("bytes=2-5", Part { first: 2, last: 5 }),
            ("bytes=2-", Part { first: 2, last: 9 }),
            ("bytes=2-500", Part { first: 2, last: 9 }),
            ("bytes=-3", Part { first: 7, last: 9 }),
            ("bytes=-500", Part { first: 0, last: 9 }),
            ("Bytes = 1-2", Part { first: 1, last: 2 }),
            ("bytes=10-", Unsatisfiable),
            ("bytes=10-12", Unsatisfiable),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=5-2", Whole),
            ("bytes=0-1,3-4", Whole),
            ("bytes=-", Whole),
            ("bytes=a-b", Whole),
            ("bytes=+1-2", Whole),
            ("bytes=1-x", Whole),
            ("lines=1-2", Whole),
            ("bytes", Whole),
        ] {
            assert_eq!(judge(&[("range", range)], 10), expect, "{range}");
        }
        assert_eq!(judge(&[("range", "bytes=0-")], 0), Unsatisfiable);
        assert_eq!(judge(&[("range", "bytes=-1")], 0), Unsatisfiable);
        assert_eq!(judge(&[("range", "bytes=0-1"), ("if-range", "\"abc\"")], 10), Part { first: 0, last: 1 });
        assert_eq!(judge(&[("range", "bytes=0-1"), ("if-range", DATE)], 10), Part { first: 0, last: 1 });
        for stale in ["W/\"abc\"", "\"x\"", LATER, "nonsense"] {
            assert_eq!(judge(&[("range", "bytes=0-1"), ("if-range", stale)], 10), Whole, "{stale}");
        }
    }

    #[test]
    fn encodings() {
        for (field, br, gzip) in [
            ("br, gzip", 1000, 1000),
            ("gzip, deflate", 0, 1000),
            ("BR;q=0.5", 500, 0),
            ("br;q=0, gzip;q=1.0", 0, 1000),
            ("br; q=0.000, *", 0, 1000),
            ("br;q=0.05, gzip;q=0.125", 50, 125),
            ("br;q=1.5, gzip;q=x", 0, 0),
            ("br;q=0.1234, gzip;q=", 0, 0),
            ("*", 1000, 1000),
            ("*;q=0", 0, 0),
            ("identity", 0, 0),
            ("brotli", 0, 0),
            ("", 0, 0),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(field))]);
            assert_eq!((encoding_quality(&headers, "br"), encoding_quality(&headers, "gzip")), (br, gzip), "{field}");
        }
        assert_eq!(encoding_quality(&HeaderMap::new(), "gzip"), 0);
    }
}
