//! JSON (RFC 8259) from others: duplicate member names and deep nesting are refused, so that two readers of one
//! document cannot disagree about it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How deep arrays and objects may nest. OpenID documents need four levels or so.
const MAX_DEPTH: usize = 32;

/// Why a text is not JSON that we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JsonError {
    /// Not JSON at all, or cut off.
    Syntax,
    /// JSON, but with a duplicate member name, too deep, or (where one is needed) not an object.
    Shape,
}

/// Reads one JSON value and nothing after it.
///
/// # Errors
/// See [`JsonError`].
pub fn value(text: &[u8]) -> Result<Value, JsonError> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Strict { depth: 0 }.deserialize(&mut reader).map_err(judge)?;
    reader.end().map_err(judge)?;
    Ok(value)
}

/// Reads one JSON object and nothing after it.
///
/// # Errors
/// See [`JsonError`].
pub fn object(text: &[u8]) -> Result<Map<String, Value>, JsonError> {
    match value(text)? {
        Value::Object(members) => Ok(members),
        _ => Err(JsonError::Shape),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn judge(error: serde_json::Error) -> JsonError {
    if error.is_data() { JsonError::Shape } else { JsonError::Syntax }
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom("nested too deeply"));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Number::from_f64(number).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(deeper)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let deeper = self.deeper()?;
        let mut map = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if map.contains_key(&name) {
                return Err(A::Error::custom("duplicate member"));
            }
            map.insert(name, members.next_value_seed(deeper)?);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_what_serde_json_reads() {
        let text = r#" {"a":[1,-2,3.5,true,null,"x\u00e9\n"],"b":{"c":{}}} "#;
        assert_eq!(value(text.as_bytes()), Ok(json!({"a":[1,-2,3.5,true,null,"x\u{e9}\n"],"b":{"c":{}}})));
    }

    /// IDT-07, ASVS-1.5.2, ASVS-1.5.3: no duplicates at any level, also when spelled with escapes; nothing after the
    /// value.
    #[test]
    fn refuses_duplicates_and_trailing_data() {
        for text in [r#"{"a":1,"a":2}"#, r#"{"x":{"a":1,"b":2,"a":3}}"#, r#"[{"a":1,"\u0061":2}]"#] {
            assert_eq!(value(text.as_bytes()), Err(JsonError::Shape), "{text}");
        }
        for text in ["{} x", "{}{}", "", "{", "[1,]", "{\"a\":1e999}", "\u{feff}{}", "NaN"] {
            assert_eq!(value(text.as_bytes()), Err(JsonError::Syntax), "{text}");
        }
        assert_eq!(object(b"[1]"), Err(JsonError::Shape));
        assert_eq!(value(b"\"\xff\""), Err(JsonError::Syntax));
    }

    /// KEY-09, DOS-18: depth is bounded.
    #[test]
    fn refuses_deep_nesting() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(value(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert_eq!(value(nested(MAX_DEPTH + 1).as_bytes()), Err(JsonError::Shape));
        assert!(value("[".repeat(100_000).as_bytes()).is_err());
        assert!(value("{\"a\":".repeat(100_000).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = value(&bytes);
        }

        #[test]
        fn agrees_with_serde_json_where_it_accepts(text in r#"[\[\]{}:,"a0-9. -]{0,40}"#) {
            if let Ok(ours) = value(text.as_bytes()) {
                prop_assert_eq!(ours, serde_json::from_str::<Value>(&text).unwrap());
            }
        }
    }
}
