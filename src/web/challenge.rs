//! `WWW-Authenticate` (RFC 9110 section 11.6.1): the challenges of an answer, whatever their order and number of lines.

use http::{HeaderMap, header};

/// One challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// As it was sent; compared without case.
    pub scheme: String,
    /// Names in lower case; quotes and escapes of values are gone.
    pub params: Vec<(String, String)>,
}

impl Challenge {
    /// The first parameter of that name.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// Whether `error` (RFC 6750 section 3) is this one, in whatever case.
    pub fn says(&self, error: &str) -> bool {
        self.param("error").is_some_and(|own| own.eq_ignore_ascii_case(error))
    }
}

/// All challenges. What is not of the form is passed over.
pub fn read(headers: &HeaderMap) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    for value in headers.get_all(header::WWW_AUTHENTICATE) {
        for element in elements(&String::from_utf8_lossy(value.as_bytes())) {
            read_element(&element, &mut challenges);
        }
    }
    challenges
}

/// `Scheme`, `Scheme name=value`, `Scheme token68`, or `name=value` of the challenge before.
fn read_element(element: &str, challenges: &mut Vec<Challenge>) {
    let (head, rest) = element.split_once([' ', '\t']).unwrap_or((element, ""));
    let begins = !head.contains(['=', '"']) && !rest.trim_start().starts_with('=');
    let param = if begins {
        challenges.push(Challenge { scheme: head.to_owned(), params: Vec::new() });
        rest
    } else {
        element
    };
    let (Some((name, value)), Some(challenge)) = (param.split_once('='), challenges.last_mut()) else { return };
    challenge.params.push((name.trim().to_ascii_lowercase(), unquoted(value.trim())));
}

/// The list's elements: a comma inside quotes does not part them.
fn elements(text: &str) -> Vec<String> {
    let (mut parts, mut part, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for letter in text.chars() {
        if letter == ',' && !quoted {
            parts.push(std::mem::take(&mut part));
            continue;
        }
        quoted ^= letter == '"' && !escaped;
        escaped = quoted && letter == '\\' && !escaped;
        part.push(letter);
    }
    parts.push(part);
    parts.iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

fn unquoted(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').map(|rest| rest.strip_suffix('"').unwrap_or(rest)) else {
        return value.to_owned();
    };
    let (mut text, mut escaped) = (String::with_capacity(inner.len()), false);
    for letter in inner.chars() {
        if letter == '\\' && !escaped {
            escaped = true;
        } else {
            escaped = false;
            text.push(letter);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn parsed(lines: &[&'static str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(line));
        }
        read(&headers)
    }

    #[test]
    fn several_challenges_on_one_line_or_more() {
        let found = parsed(&[
            "Basic realm=\"a, b\", Bearer error=\"x\",acr_values = \"one two\" , max_age=5",
            "Negotiate, DPoP algs=\"ES256 \\\"q\\\"\"",
        ]);
        let schemes: Vec<_> = found.iter().map(|challenge| challenge.scheme.as_str()).collect();
        assert_eq!(schemes, ["Basic", "Bearer", "Negotiate", "DPoP"]);
        assert_eq!(found[0].param("realm"), Some("a, b"));
        assert_eq!((found[1].param("error"), found[1].param("acr_values")), (Some("x"), Some("one two")));
        assert_eq!(found[1].param("max_age"), Some("5"));
        assert_eq!(found[3].param("algs"), Some("ES256 \"q\""));
    }

    #[test]
    fn names_are_compared_without_case_and_nonsense_is_passed_over() {
        assert_eq!(parsed(&["bearer ERROR=\"x\""])[0].param("error"), Some("x"));
        assert_eq!(parsed(&["Bearer error=\"unfinished, b"])[0].param("error"), Some("unfinished, b"));
        assert!(parsed(&["", ",,", "a=b"]).is_empty());
    }
}
