//! Query and form parameters (`application/x-www-form-urlencoded`).

use std::borrow::Cow;
use std::fmt;

use percent_encoding::percent_decode;

/// More than any request to our endpoints has; beyond it nothing can be said about "exactly once".
const MAX_PARAMS: usize = 64;

/// The parameters of a request to one of our own endpoints, in order.
///
/// `Debug` shows their number only: they hold codes and states.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Params {
    /// `None`: the value is not UTF-8.
    pairs: Vec<(String, Option<String>)>,
    overflow: bool,
}

/// Why a parameter has no single value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamError {
    /// Given more than once (RFC 6749 section 3.1).
    Repeated,
    /// Its bytes are not UTF-8.
    NotUtf8,
    /// The request has more parameters than we read.
    TooMany,
}

impl Params {
    /// Reads a query without its `?`.
    pub fn parse(query: Option<&str>) -> Self {
        Self::form(query.unwrap_or_default().as_bytes())
    }

    /// Reads a form body.
    pub fn form(body: &[u8]) -> Self {
        let mut params = Self::default();
        for piece in body.split(|byte| *byte == b'&').filter(|piece| !piece.is_empty()) {
            if params.pairs.len() == MAX_PARAMS {
                params.overflow = true;
                break;
            }
            let mut halves = piece.splitn(2, |byte| *byte == b'=');
            let name = halves.next().and_then(decode);
            let value = decode(halves.next().unwrap_or_default());
            // A name that is not text is none that we ask for.
            params.pairs.push((name.unwrap_or_default(), value));
        }
        params
    }

    /// All that are text, in order.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?)))
    }

    /// The value of a parameter that may be given once.
    ///
    /// # Errors
    /// When it is repeated or not text, or when the request has too many parameters to tell.
    pub fn one(&self, name: &str) -> Result<Option<&str>, ParamError> {
        if self.overflow {
            return Err(ParamError::TooMany);
        }
        let mut values = self.pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value);
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => value.as_deref().map(Some).ok_or(ParamError::NotUtf8),
            (Some(_), Some(_)) => Err(ParamError::Repeated),
        }
    }

    /// The first value of a parameter, where a repetition does no harm.
    pub fn first(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.as_deref())
    }

    /// Whether the parameter is there at all, with whatever value.
    pub fn contains(&self, name: &str) -> bool {
        self.pairs.iter().any(|(key, _)| key == name)
    }

    /// All pairs whose value is text, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_deref()?)))
    }
}

impl fmt::Debug for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Params({})", self.pairs.len())
    }
}

fn decode(bytes: &[u8]) -> Option<String> {
    let bytes: Cow<'_, [u8]> = if memchr::memchr(b'+', bytes).is_some() {
        bytes.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect()
    } else {
        bytes.into()
    };
    percent_decode(&bytes).decode_utf8().ok().map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_form_decoded() {
        let params = Params::parse(Some("a=1+2&b=%C3%A4%2B&c&d=x=y&&e="));
        assert_eq!(params.one("a"), Ok(Some("1 2")));
        assert_eq!(params.one("b"), Ok(Some("ä+")));
        assert_eq!(params.one("c"), Ok(Some("")));
        assert_eq!(params.one("d"), Ok(Some("x=y")));
        assert_eq!(params.one("e"), Ok(Some("")));
        assert_eq!(params.one("f"), Ok(None));
        assert_eq!(Params::parse(None), Params::default());
    }

    /// ASVS-15.3.7.
    #[test]
    fn rfc6749_01_a_repeated_parameter_is_no_parameter() {
        let params = Params::parse(Some("code=a&sta%74e=s&code=a&state=t"));
        assert_eq!(params.one("code"), Err(ParamError::Repeated));
        assert_eq!(params.one("state"), Err(ParamError::Repeated), "whatever its spelling");
        assert_eq!(params.first("code"), Some("a"));
    }

    #[test]
    fn a_value_that_is_no_text_is_an_error_of_that_value() {
        let params = Params::parse(Some("a=%ff&b=ok&%ff=x"));
        assert_eq!(params.one("a"), Err(ParamError::NotUtf8));
        assert_eq!(params.one("b"), Ok(Some("ok")));
        assert!(params.contains("a") && params.first("a").is_none());
    }

    #[test]
    fn too_many_parameters_hide_no_repetition() {
        let query = format!("code=a&{}code=b", "x=1&".repeat(MAX_PARAMS));
        assert_eq!(Params::parse(Some(&query)).one("code"), Err(ParamError::TooMany));
        assert_eq!(Params::parse(Some(&"&".repeat(10_000))).one("code"), Ok(None));
    }

    #[test]
    fn values_are_not_printed() {
        let text = format!("{:?}", Params::parse(Some("code=canary")));
        assert!(!text.contains("canary"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let params = Params::form(&body);
            prop_assert!(params.iter().count() <= MAX_PARAMS);
        }
    }
}
