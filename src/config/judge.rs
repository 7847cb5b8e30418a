//! Judges the merged value by the schema. What does not fit is reported and taken out, so that all the rest can still
//! be read and judged in the same run.

use figment::value::{Num, Value};
use serde_json::Value as Json;

use super::load::join;
use super::problem::{Findings, alternatives, did_you_mean, shown};
use super::schema::{accepts, is_secret};
use super::text;

/// Reports all that does not fit `schema`, and removes it.
pub(super) fn judge(value: &mut Value, schema: &Json, found: &mut Findings) {
    Judge { root: schema, found }.value(value, schema, "", false);
}

/// The same for `[presets]` alone, before any of them fills in anything: a mistake is told once, where it was made.
pub(super) fn judge_presets(value: &mut Value, schema: &Json, found: &mut Findings) {
    let Value::Dict(_, sections) = value else { return };
    let Some(schema) = schema.pointer("/properties/presets") else { return };
    if let Some(presets) = sections.get_mut("presets")
        && !(Judge { root: schema, found }.value(presets, schema, "presets", false))
    {
        sections.remove("presets");
    }
}

struct Judge<'a> {
    root: &'a Json,
    found: &'a mut Findings,
}

impl Judge<'_> {
    /// Whether the value may stay.
    fn value(&mut self, value: &mut Value, schema: &Json, path: &str, secret: bool) -> bool {
        let secret = secret || is_secret(schema);
        let kind = kind(value);
        if !accepts(schema, kind) {
            let seen = if secret { format!("not {}", noun(value)) } else { format!("not {}", echo(value)) };
            self.found.problem(path, format!("must be {}, {seen}", wanted(schema)));
            return false;
        }
        if let Some(branches) = schema.get("anyOf").and_then(Json::as_array) {
            return match branches.iter().find(|branch| accepts(branch, kind)) {
                Some(branch) => self.value(value, branch, path, secret),
                None => true,
            };
        }
        match value {
            Value::String(_, text) => self.text(text, schema, path, secret),
            Value::Num(_, number) => self.number(*number, schema, path),
            Value::Array(_, items) => self.list(items, schema, path, secret),
            Value::Dict(..) => {
                self.table(value, schema, path, secret);
                true
            }
            _ => true,
        }
    }

    fn text(&mut self, text: &str, schema: &Json, path: &str, secret: bool) -> bool {
        let not = if secret { String::new() } else { format!(", not {}", shown(text)) };
        if let Some(words) = schema.get("enum").and_then(Json::as_array) {
            if words.iter().any(|word| word == text) {
                return true;
            }
            let words = words.iter().filter_map(Json::as_str);
            let hint = match did_you_mean(text, words.clone()).filter(|_| !secret) {
                Some(word) => format!("; did you mean {word:?}?"),
                None => String::new(),
            };
            self.found.problem(path, format!("must be {}{not}{hint}", alternatives(words)));
            return false;
        }
        if let Some(Err(hint)) = schema.get("pattern").and_then(Json::as_str).and_then(|it| text::fits(it, text)) {
            self.found.problem(path, format!("{hint}{not}"));
            return false;
        }
        if text.is_empty() && schema.get("minLength").and_then(Json::as_u64).is_some_and(|least| least > 0) {
            self.found.problem(path, "is empty");
            return false;
        }
        true
    }

    fn number(&mut self, number: Num, schema: &Json, path: &str) -> bool {
        let value = match number.to_f64() {
            Some(value) => value,
            // Bounds in the schema are small: no harm in the rounding of huge numbers.
            None => match (number.to_u128_lossy(), number.to_i128()) {
                (Some(value), _) => value as f64,
                (None, Some(value)) => value as f64,
                (None, None) => 0.0,
            },
        };
        let bound = |name: &str| schema.get(name).and_then(Json::as_f64);
        let widest = match schema.get("format").and_then(Json::as_str) {
            Some("uint32") => Some(f64::from(u32::MAX)),
            _ => None,
        };
        let (least, most) = (bound("minimum"), bound("maximum").or(widest));
        let complaint = match (least, most) {
            (Some(least), _) if value < least => format!("must be at least {least}, not {value}"),
            (_, Some(most)) if value > most => format!("must be at most {most}, not {value}"),
            _ => return true,
        };
        self.found.problem(path, complaint);
        false
    }

    fn list(&mut self, items: &mut [Value], schema: &Json, path: &str, secret: bool) -> bool {
        let Some(schema) = schema.get("items") else { return true };
        let mut stays = true;
        for (index, item) in items.iter_mut().enumerate() {
            stays &= self.value(item, schema, &format!("{path}[{index}]"), secret);
        }
        stays
    }

    fn table(&mut self, value: &mut Value, schema: &Json, path: &str, secret: bool) {
        let Value::Dict(_, dict) = value else { return };
        let known = schema.get("properties").and_then(Json::as_object);
        let others = schema.get("additionalProperties");
        let keys: Vec<String> = dict.keys().cloned().collect();
        for key in keys {
            let below = join(path, &key);
            let stays = match (known.and_then(|known| known.get(&key)), others) {
                (Some(schema), _) => dict.get_mut(&key).is_none_or(|it| self.value(it, schema, &below, secret)),
                (None, Some(Json::Bool(false))) => {
                    let siblings = known.into_iter().flatten().map(|(key, _)| key.as_str());
                    let text = self.unknown(&key, path.is_empty(), siblings);
                    self.found.problem(below, text);
                    false
                }
                (None, Some(schema @ Json::Object(_))) => {
                    dict.get_mut(&key).is_none_or(|it| self.value(it, schema, &below, secret))
                }
                (None, _) => true,
            };
            if !stays {
                dict.remove(&key);
            }
        }
        for key in schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str) {
            if !dict.contains_key(key) {
                self.found.missing(&join(path, key), "is required");
            }
        }
    }

    fn unknown<'k>(&self, key: &str, top: bool, siblings: impl Iterator<Item = &'k str>) -> String {
        let what = if top { "unknown section" } else { "unknown key" };
        if let Some(near) = did_you_mean(key, siblings) {
            return if top {
                format!("{what}; did you mean [{near}]?")
            } else {
                format!("{what}; did you mean {near}?")
            };
        }
        let elsewhere = self.root.get("properties").and_then(Json::as_object).into_iter().flatten();
        let mut sections =
            elsewhere.filter(|(_, schema)| schema.get("properties").is_some_and(|it| it.get(key).is_some()));
        match sections.next() {
            Some((section, _)) => format!("{what}; did you mean {section}.{key}?"),
            None => what.to_owned(),
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(..) | Value::Char(..) => "string",
        Value::Bool(..) => "boolean",
        Value::Num(_, Num::F32(_) | Num::F64(_)) => "number",
        Value::Num(..) => "integer",
        Value::Dict(..) => "object",
        Value::Array(..) => "array",
        Value::Empty(..) => "null",
    }
}

/// What a value is, without showing it.
fn noun(value: &Value) -> &'static str {
    match kind(value) {
        "string" => "a string",
        "boolean" => "a boolean",
        "integer" | "number" => "a number",
        "array" => "a list",
        _ => "a table",
    }
}

fn echo(value: &Value) -> String {
    match value {
        Value::String(_, text) => shown(text),
        Value::Bool(_, value) => value.to_string(),
        Value::Num(_, number) => match (number.to_i128(), number.to_u128()) {
            (Some(number), _) => number.to_string(),
            (None, Some(number)) => number.to_string(),
            (None, None) => number.to_f64().unwrap_or_default().to_string(),
        },
        other => noun(other).to_owned(),
    }
}

/// What may stand here, in words.
fn wanted(schema: &Json) -> String {
    if let Some(branches) = schema.get("anyOf").and_then(Json::as_array) {
        return branches.iter().map(wanted).collect::<Vec<_>>().join(" or ");
    }
    if let Some(words) = schema.get("enum").and_then(Json::as_array) {
        return alternatives(words.iter().filter_map(Json::as_str));
    }
    if let Some(Err(hint)) = schema.get("pattern").and_then(Json::as_str).and_then(|pattern| text::fits(pattern, "")) {
        return hint.trim_start_matches("must be ").to_owned();
    }
    match schema.get("type").and_then(Json::as_str).unwrap_or_default() {
        "string" => "a string in quotes",
        "boolean" => "true or false",
        "integer" => "a whole number",
        "number" => "a number",
        "array" => match schema.get("items").and_then(|items| items.get("type")).and_then(Json::as_str) {
            Some("object") => "a list of tables, each with a header in double brackets",
            _ => "a list in brackets",
        },
        "object" => "a table",
        _ => "something else",
    }
    .to_owned()
}
