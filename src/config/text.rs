//! Durations and sizes as they stand in the file: checked text that is shown again as it was written.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest duration that makes sense anywhere here: ten years. Keeps all later arithmetic far from overflow.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Declares a text type with a fixed grammar: a schema pattern, a reader, and a sentence for who wrote something else.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident: $pattern:literal, $hint:literal, $read:ident -> $value:ty) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// What the schema says.
            pub const PATTERN: &str = $pattern;
            /// What a mistaken operator is told.
            pub const HINT: &str = $hint;

            /// Takes a text as the file has it.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The text as the file has it.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The value; none when the text does not fit the grammar or is absurdly large.
            pub fn read(&self) -> Option<$value> {
                $read(&self.0)
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": Self::PATTERN })
            }

            fn inline_schema() -> bool {
                true
            }
        }
    };
}

checked_text!(
    /// `"500ms"`, `"60s"`, `"10m"`, `"8h"`, `"30d"`; parts may be joined: `"1h30m"`.
    DurationText: "^([0-9]+(ms|s|m|h|d))+$",
    "must be a duration in quotes such as \"500ms\", \"60s\", \"10m\" or \"8h\"",
    duration -> Duration
);

checked_text!(
    /// A duration, or `"off"`.
    DurationOrOff: "^(off|([0-9]+(ms|s|m|h|d))+)$",
    "must be a duration in quotes such as \"60s\" or \"8h\", or \"off\"",
    duration_or_off -> Option<Duration>
);

checked_text!(
    /// `"7600B"`, `"64KiB"`, `"1MiB"`, `"1GiB"`.
    SizeText: "^[0-9]+(B|KiB|MiB|GiB)$",
    "must be a size in quotes such as \"7600B\", \"64KiB\" or \"1MiB\"",
    size -> u64
);

checked_text!(
    /// A size, or `"none"`.
    SizeOrNone: "^(none|[0-9]+(B|KiB|MiB|GiB))$",
    "must be a size in quotes such as \"64KiB\" or \"10MiB\", or \"none\"",
    size_or_none -> Option<u64>
);

/// Whether `text` fits one of the patterns above, and what to say if not. None: the pattern is not ours.
pub(super) fn fits(pattern: &str, text: &str) -> Option<Result<(), &'static str>> {
    let (fits, hint) = match pattern {
        DurationText::PATTERN => (duration(text).is_some(), DurationText::HINT),
        DurationOrOff::PATTERN => (duration_or_off(text).is_some(), DurationOrOff::HINT),
        SizeText::PATTERN => (size(text).is_some(), SizeText::HINT),
        SizeOrNone::PATTERN => (size_or_none(text).is_some(), SizeOrNone::HINT),
        _ => return None,
    };
    Some(if fits { Ok(()) } else { Err(hint) })
}

fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    loop {
        let (number, tail) = leading_number(rest)?;
        // "ms" before "m": the longer unit wins.
        let (millis, tail) = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)]
            .into_iter()
            .find_map(|(unit, millis)| tail.strip_prefix(unit).map(|tail| (millis, tail)))?;
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
        if tail.is_empty() {
            return (total <= LONGEST).then_some(total);
        }
        rest = tail;
    }
}

fn duration_or_off(text: &str) -> Option<Option<Duration>> {
    if text == "off" { Some(None) } else { duration(text).map(Some) }
}

fn size(text: &str) -> Option<u64> {
    let (number, unit) = leading_number(text)?;
    let factor = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor).filter(|bytes| usize::try_from(*bytes).is_ok())
}

fn size_or_none(text: &str) -> Option<Option<u64>> {
    if text == "none" { Some(None) } else { size(text).map(Some) }
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, rest) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [("500ms", 500), ("60s", 60_000), ("10m", 600_000), ("8h", 28_800_000), ("0s", 0)] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("30d"), Some(Duration::from_secs(30 * 86_400)));
    }

    #[test]
    fn what_is_no_duration_is_none() {
        for text in
            ["", "soon", "5", "-5s", "10 parsecs", "1.5s", "s", "5 s", "5S", "99999999999999999999s", "9000000h"]
        {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(size("7600B"), Some(7600));
        assert_eq!(size("64KiB"), Some(65_536));
        assert_eq!(size_or_none("none"), Some(None));
        for text in ["", "large", "-1KiB", "64", "64KB", "64 KiB", "99999999999GiB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn off_is_a_duration_only_where_it_may_be() {
        assert_eq!(duration_or_off("off"), Some(None));
        assert_eq!(duration("off"), None);
    }
}
