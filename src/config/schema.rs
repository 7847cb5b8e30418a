//! The JSON Schema of the configuration file: what `sidegate schema` prints, and what files are judged by.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::presets;
use super::raw::RawConfig;

/// JSON Schema, draft 2020-12.
pub fn schema() -> &'static Value {
    static SCHEMA: LazyLock<Value> = LazyLock::new(generate);
    &SCHEMA
}

fn generate() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        // No references: an editor shows each key with its own description, and the judge need not resolve any.
        settings.inline_subschemas = true;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<RawConfig>().to_value();
    without_null(&mut schema);
    let preset = presets::shape(&schema);
    if let Some(presets) = schema.pointer_mut("/properties/presets").and_then(Value::as_object_mut) {
        presets.insert("additionalProperties".to_owned(), preset);
    }
    let examples = include_str!("examples.toml").parse::<toml::Table>().unwrap_or_default();
    let examples = serde_json::to_value(examples).unwrap_or_default();
    with_examples(&mut schema, Some(&examples));
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("title".to_owned(), "sidegate.toml".into());
    }
    schema
}

/// Gives each key an example: that of the document, else the default.
fn with_examples(schema: &mut Value, examples: Option<&Value>) {
    let Some(Value::Object(properties)) = schema.get_mut("properties") else { return };
    for (key, property) in properties {
        let example = examples.and_then(|examples| examples.get(key));
        let first = example.and_then(|example| example.get(0));
        with_examples(property, example);
        if let Some(items) = property.get_mut("items") {
            with_examples(items, first);
        }
        for branch in property.get_mut("anyOf").and_then(Value::as_array_mut).into_iter().flatten() {
            with_examples(branch, example);
            if let Some(items) = branch.get_mut("items") {
                with_examples(items, first.or(example));
            }
        }
        let nothing = |value: &&Value| {
            value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
        };
        let example = example.or_else(|| property.get("default").filter(|default| !nothing(default))).cloned();
        if let (Some(example), Some(property)) = (example, property.as_object_mut())
            && !property.contains_key("properties")
        {
            property.insert("examples".to_owned(), Value::Array(vec![example]));
        }
    }
}

/// Whether a value of this JSON kind may stand here.
pub(super) fn accepts(schema: &Value, kind: &str) -> bool {
    if let Some(branches) = schema.get("anyOf").and_then(Value::as_array) {
        return branches.iter().any(|branch| accepts(branch, kind));
    }
    let fits = |allowed: &str| allowed == kind || (allowed == "number" && kind == "integer");
    match schema.get("type") {
        Some(Value::String(allowed)) => fits(allowed),
        Some(Value::Array(allowed)) => allowed.iter().filter_map(Value::as_str).any(fits),
        _ => true,
    }
}

/// Whether values here must not be shown.
pub(super) fn is_secret(schema: &Value) -> bool {
    schema.get("writeOnly").is_some_and(|secret| secret == true)
        || ["items", "additionalProperties"].iter().any(|part| schema.get(part).is_some_and(is_secret))
        || schema.get("anyOf").and_then(Value::as_array).is_some_and(|branches| branches.iter().any(is_secret))
}

/// TOML has no null: an absent key is what Rust calls `None`.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::Array(types)) = map.get_mut("type") {
                types.retain(|kind| kind != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    map.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(words)) = map.get_mut("enum") {
                words.retain(|word| !word.is_null());
            }
            if map.get("default").is_some_and(Value::is_null) {
                map.shift_remove("default");
            }
            if let Some(Value::Array(branches)) = map.get_mut("anyOf") {
                branches.retain(|branch| branch.get("type").is_none_or(|kind| kind != "null"));
                if branches.len() == 1
                    && let Some(Value::Object(only)) = branches.pop()
                {
                    map.shift_remove("anyOf");
                    for (key, value) in only {
                        map.entry(key).or_insert(value);
                    }
                }
            }
            map.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_its_draft_and_refuses_unknown_keys_everywhere() {
        let schema = schema();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert_eq!(schema["additionalProperties"], false);
        for section in ["server", "limits", "session", "csrf", "redis"] {
            assert_eq!(schema["properties"][section]["additionalProperties"], false, "{section}");
        }
        assert_eq!(schema["properties"]["route"]["items"]["additionalProperties"], false);
    }

    #[test]
    fn strip_prefix_takes_a_boolean_first() {
        let strip = &schema()["properties"]["route"]["items"]["properties"]["strip_prefix"];
        assert_eq!(strip["anyOf"][0]["type"], "boolean", "{strip}");
        assert_eq!(strip["anyOf"][1]["type"], "string");
    }

    /// One of a kind that the key takes. Secrets have none: an example would be copied.
    #[test]
    fn keys_have_examples_that_fit() {
        fn walk(schema: &Value, path: &str, without: &mut Vec<String>) {
            for (key, value) in schema["properties"].as_object().into_iter().flatten() {
                let path = format!("{path}.{key}");
                match value["examples"].as_array().and_then(|examples| examples.first()) {
                    Some(example) => {
                        let kind = match example {
                            Value::Null => "null",
                            Value::Bool(_) => "boolean",
                            Value::Number(number) if number.is_f64() => "number",
                            Value::Number(_) => "integer",
                            Value::String(_) => "string",
                            Value::Array(_) => "array",
                            Value::Object(_) => "object",
                        };
                        assert!(accepts(value, kind), "{path}: {example} for {value}");
                        if let (Some(words), Some(word)) = (value["enum"].as_array(), example.as_str()) {
                            assert!(words.iter().any(|known| known == word), "{path}: {word}");
                        }
                    }
                    None if value["properties"].is_object() || is_secret(value) => {}
                    None => without.push(path.clone()),
                }
                walk(value, &path, without);
                walk(&value["items"], &path, without);
            }
        }
        let mut without = Vec::new();
        walk(schema(), "", &mut without);
        without.retain(|path| !matches!(path.as_str(), ".presets" | ".provider.dialect"));
        assert_eq!(without, Vec::<String>::new(), "add them to examples.toml");
    }

    #[test]
    fn every_key_has_a_description_and_none_is_null() {
        fn walk(schema: &Value, path: &str) {
            for (key, value) in schema["properties"].as_object().into_iter().flatten() {
                let path = format!("{path}.{key}");
                assert!(value["description"].is_string(), "{path} has no description: {value}");
                walk(value, &path);
            }
            if schema["items"].is_object() {
                walk(&schema["items"], path);
            }
            for branch in schema["anyOf"].as_array().into_iter().flatten() {
                walk(branch, path);
            }
        }
        let schema = schema();
        walk(schema, "");
        assert!(!schema.to_string().contains("\"null\""));
    }
}
