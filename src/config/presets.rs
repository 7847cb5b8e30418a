//! Presets: what the name of a provider fills in. They are data: `presets.toml` beside this file, and `[presets]` of
//! the configuration. A preset only fills in keys that nobody set.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::LazyLock;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Tag, Value};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value as Json, json};

use super::load::join;
use super::problem::{Findings, alternatives, did_you_mean, shown};
use super::schema::{is_secret, schema};
use crate::secret::Secret;

const BUILT_IN: &str = include_str!("presets.toml");

/// Keys of the provider that stand for themselves in braces in a preset's values.
const PLACEHOLDERS: [&str; 7] =
    ["tenant", "domain", "environment", "environment_id", "region", "project_id", "user_scopes"];
/// Tables and words of a preset that belong to `[provider.dialect]`.
const DIALECT: [&str; 11] = [
    "id_token",
    "pkce",
    "user_agent",
    "logout",
    "revocation",
    "authorize",
    "token",
    "response",
    "userinfo_subject",
    "claims",
    "upstream",
];
/// Keys of a preset's `refresh` that belong to `[refresh]`; the others are the dialect's.
const REFRESH: [&str; 9] = [
    "rotation",
    "reuse",
    "leeway",
    "kills_access_token",
    "before_expiry",
    "after",
    "on_upstream_401",
    "default_expires_in",
    "on_reuse",
];
/// Presets that are made of presets that are made of presets … end here.
const MAX_BASES: usize = 8;

fn built_in() -> &'static Dict {
    static PRESETS: LazyLock<Dict> = LazyLock::new(|| Toml::from_str::<Dict>(BUILT_IN).unwrap_or_default());
    &PRESETS
}

/// Fills in what the presets of all providers say.
pub(super) fn apply(value: &mut Value, found: &mut Findings) {
    let Value::Dict(_, root) = value else { return };
    let own = match root.get("presets") {
        Some(Value::Dict(_, own)) => own.clone(),
        _ => Dict::new(),
    };
    let mut refresh: Option<Dict> = None;
    match root.get_mut("provider") {
        Some(Value::Dict(_, provider)) => refresh = one("provider", provider, &own, found),
        Some(Value::Array(_, many)) => {
            for (index, provider) in many.iter_mut().enumerate() {
                let Value::Dict(_, provider) = provider else { continue };
                let Some(next) = one(&format!("provider[{index}]"), provider, &own, found) else { continue };
                // No session of it is ever refreshed.
                if matches!(provider.get("login"), Some(Value::Bool(_, false))) {
                    continue;
                }
                refresh = Some(match refresh {
                    None => next,
                    Some(known) => together(known, &next),
                });
            }
        }
        _ => {}
    }
    let Some(said) = refresh.filter(|said| !said.is_empty()) else { return };
    let preset = said.get("preset").and_then(Value::as_str).unwrap_or_default().to_owned();
    let table = root.entry("refresh".to_owned()).or_insert_with(|| Value::Dict(Tag::Default, Dict::new()));
    if let Value::Dict(_, table) = table {
        for (key, value) in said.into_iter().filter(|(key, _)| key != "preset") {
            if let Entry::Vacant(vacant) = table.entry(key) {
                found.sources.filled(&join("refresh", vacant.key()), &preset);
                vacant.insert(value);
            }
        }
    }
}

/// One provider. Gives what its preset says of `[refresh]`, with the preset's name.
fn one(at: &str, provider: &mut Dict, own: &Dict, found: &mut Findings) -> Option<Dict> {
    let name = match provider.get("preset") {
        None => "oidc".to_owned(),
        Some(Value::String(_, name)) => name.clone(),
        Some(_) => return None,
    };
    let Some(Preset { keys: mut said, refresh: from_preset }) = find(&name, own) else {
        let known = built_in().keys().chain(own.keys()).map(String::as_str);
        let hint = did_you_mean(&name, known).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
        found.problem(join(at, "preset"), format!("no preset is called {}{hint}", shown(&name)));
        return None;
    };
    let mut refresh = into_provider(provider);
    let words = said.remove("words");
    let more_scopes = said.remove("more_scopes");
    for (key, value) in from_preset {
        refresh.entry(key).or_insert(value);
    }
    let mut filler = Filler { preset: &name, at, values: Vec::new(), unsaid: Vec::new(), found };
    filler.learn(provider, &said, words.as_ref());
    filler.fill(provider, said, at);
    if let Some(Value::Array(_, more)) = more_scopes {
        filler.more_scopes(provider, more);
    }
    refresh.insert("preset".to_owned(), Value::from(name.as_str()));
    Some(refresh)
}

/// A preset, said in the places where the provider has it.
struct Preset {
    /// Of `[provider]`, with `base`, `words` and `more_scopes`.
    keys: Dict,
    /// Of `[refresh]`.
    refresh: Dict,
}

impl Preset {
    /// What the layers say is moved to its place before they meet: there are two ways to say a scope or a URL, and it is
    /// the layer that decides, not the way.
    fn new(mut keys: Dict) -> Self {
        let refresh = into_provider(&mut keys);
        Self { keys, refresh }
    }

    fn over(self, lower: Self) -> Self {
        Self { keys: over(self.keys, lower.keys), refresh: over(self.refresh, lower.refresh) }
    }
}

/// A preset with all that it is made of.
fn find(name: &str, own: &Dict) -> Option<Preset> {
    let layer = |name: &str| {
        let table = |presets: &Dict| match presets.get(name) {
            Some(Value::Dict(_, table)) => Some(Preset::new(table.clone())),
            _ => None,
        };
        match (table(own), table(built_in())) {
            (Some(own), Some(built_in)) => Some(own.over(built_in)),
            (own, built_in) => own.or(built_in),
        }
    };
    let mut preset = layer(name)?;
    for _ in 0..MAX_BASES {
        let Some(Value::String(_, base)) = preset.keys.remove("base") else { break };
        let Some(below) = layer(&base) else { break };
        preset = preset.over(below);
    }
    preset.keys.remove("base");
    Some(preset)
}

/// What a table of `[presets]` may hold, as JSON Schema: the keys of the provider, those of the dialect without their
/// header, and those of `[refresh]`. `root` is the schema of all the file.
pub(super) fn shape(root: &Json) -> Json {
    let properties = |schema: &Json| schema.get("properties").and_then(Json::as_object).cloned().unwrap_or_default();
    let section = |name: &str| root.pointer(&format!("/properties/{name}")).cloned().unwrap_or_default();
    let table = |properties: Map<String, Json>, description: &str| {
        json!({
            "type": "object", "additionalProperties": false, "properties": properties, "description": description
        })
    };
    let mut keys = section("provider").pointer("/anyOf/0").map(properties).unwrap_or_default();
    let mut dialect = keys.get("dialect").map(properties).unwrap_or_default();
    let url = || json!({ "type": "string", "description": "The endpoint." });
    let mut add = |name: &str, more: Vec<(&str, Json)>| {
        let Some(known) = dialect.get_mut(name).and_then(|table| table.get_mut("properties")) else { return };
        let Some(known) = known.as_object_mut() else { return };
        known.extend(more.into_iter().map(|(key, schema)| (key.to_owned(), schema)));
    };
    let scope = json!({ "type": "string", "description": "The scopes, with blanks between them." });
    add("authorize", vec![("url", url()), ("scope", scope)]);
    add("token", vec![("url", url())]);
    let mut refresh = vec![("url", url())];
    refresh
        .push(("scope_name", json!({ "type": "string", "description": "For the reader: asks for a refresh token." })));
    let known = properties(&section("refresh"));
    for name in REFRESH {
        let Some(schema) = known.get(name).cloned() else { continue };
        refresh.push(match name {
            "on_upstream_401" => {
                (name, json!({ "anyOf": [{ "type": "boolean" }, schema], "description": "`replayable` or not." }))
            }
            _ => (name, schema),
        });
    }
    add("refresh", refresh);
    for name in DIALECT.into_iter().chain(["refresh"]) {
        if let Some(schema) = dialect.get(name) {
            keys.insert(name.to_owned(), schema.clone());
        }
    }
    keys.insert("dialect".to_owned(), table(dialect, "What this provider says and does otherwise."));
    let text = || json!({ "type": "string" });
    let word = json!({
        "of": { "type": "string", "description": "The key that the word is made of." },
        "map": { "type": "object", "additionalProperties": text(), "description": "What its values become." },
        "others": { "type": "boolean", "description": "Other values stay as they are." },
    });
    let word = table(word.as_object().cloned().unwrap_or_default(), "A word made of a key.");
    keys.insert("base".to_owned(), json!({ "type": "string", "description": "Fills in what this one leaves open." }));
    keys.insert(
        "words".to_owned(),
        json!({ "type": "object", "additionalProperties": word, "description": "Words made of keys of the provider." }),
    );
    keys.insert(
        "more_scopes".to_owned(),
        json!({ "type": "array", "items": text(), "description": "Added to the scopes when their key has a value." }),
    );
    table(keys, "A preset.")
}

/// `upper` before `lower`, table by table.
fn over(mut upper: Dict, lower: Dict) -> Dict {
    for (key, value) in lower {
        match (upper.remove(&key), value) {
            (None, value) => drop(upper.insert(key, value)),
            (Some(Value::Dict(tag, own)), Value::Dict(_, other)) => {
                upper.insert(key, Value::Dict(tag, over(own, other)));
            }
            (Some(own), _) => drop(upper.insert(key, own)),
        }
    }
    upper
}

/// Moves what a preset, or a dialect, says in its own places to where the provider has it. Gives what it says of
/// `[refresh]`.
fn into_provider(table: &mut Dict) -> Dict {
    let mut refresh = Dict::new();
    let mut dialect = match table.remove("dialect") {
        Some(Value::Dict(_, dialect)) => dialect,
        Some(other) => {
            table.insert("dialect".to_owned(), other);
            return refresh;
        }
        None => Dict::new(),
    };
    for name in DIALECT {
        // A preset may leave the dialect's own header out.
        if let Some(value) = table.remove(name) {
            dialect.entry(name.to_owned()).or_insert(value);
        }
    }
    if let Some(value) = table.remove("refresh") {
        dialect.entry("refresh".to_owned()).or_insert(value);
    }
    if let Some(Value::Dict(_, said)) = dialect.get_mut("refresh") {
        for name in REFRESH {
            if let Some(value) = said.remove(name) {
                let value = match (name, &value) {
                    ("on_upstream_401", Value::Bool(_, true)) => Value::from("replayable"),
                    ("on_upstream_401", Value::Bool(_, false)) => Value::from("off"),
                    _ => value,
                };
                refresh.insert(name.to_owned(), value);
            }
        }
        // Said for the reader: offline access has a scope of this name.
        said.remove("scope_name");
    }
    for (section, endpoint) in [("authorize", "authorization"), ("token", "token"), ("refresh", "refresh")] {
        let url = match dialect.get_mut(section) {
            Some(Value::Dict(_, said)) => said.remove("url"),
            _ => None,
        };
        if let Some(url) = url {
            put(table, "endpoints", endpoint, url);
        }
    }
    if let Some(Value::Dict(_, said)) = dialect.get_mut("authorize")
        && let Some(Value::String(tag, scope)) = said.get("scope").cloned()
    {
        said.remove("scope");
        let scopes = scope.split_ascii_whitespace().map(Value::from).collect();
        table.entry("scopes".to_owned()).or_insert(Value::Array(tag, scopes));
    }
    // Those that all was taken out of. What nobody knows stays for the judge.
    let emptied = |name: &str| ["authorize", "token", "refresh"].contains(&name);
    dialect.retain(|name, value| !(emptied(name) && matches!(value, Value::Dict(_, said) if said.is_empty())));
    if !dialect.is_empty() {
        table.insert("dialect".to_owned(), Value::Dict(Tag::Default, dialect));
    }
    refresh
}

fn put(table: &mut Dict, section: &str, key: &str, value: Value) {
    let section = table.entry(section.to_owned()).or_insert_with(|| Value::Dict(Tag::Default, Dict::new()));
    if let Value::Dict(_, section) = section {
        section.entry(key.to_owned()).or_insert(value);
    }
}

/// What holds for several providers at once: `[refresh]` is one for all, so the most careful word counts.
fn together(mut known: Dict, next: &Dict) -> Dict {
    let word = |dict: &Dict, key: &str| dict.get(key).and_then(Value::as_str).map(str::to_owned);
    let kills = |dict: &Dict| matches!(dict.get("kills_access_token"), Some(Value::Bool(_, true)));
    if word(&known, "rotation") != word(next, "rotation") {
        known.insert("rotation".to_owned(), Value::from("maybe"));
    }
    if word(next, "reuse").as_deref() == Some("family") {
        known.insert("reuse".to_owned(), Value::from("family"));
    }
    if kills(&known) || kills(next) {
        known.insert("kills_access_token".to_owned(), Value::from(true));
    }
    // Nobody grants what another one does not.
    if word(&known, "leeway") != word(next, "leeway") {
        known.remove("leeway");
    }
    known
}

/// Presets as they may be shown: their secrets are no types of their own, but the schema knows them.
pub(super) fn masked<S: Serializer>(
    presets: &BTreeMap<String, BTreeMap<String, Json>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut shown = json!(presets);
    if let Some(schema) = schema().pointer("/properties/presets") {
        mask(&mut shown, schema, false);
    }
    shown.serialize(serializer)
}

fn mask(value: &mut Json, schema: &Json, secret: bool) {
    let secret = secret || is_secret(schema);
    match value {
        Json::Object(members) => {
            for (key, value) in members {
                let below = schema.get("properties").and_then(|keys| keys.get(key));
                mask(value, below.or_else(|| schema.get("additionalProperties")).unwrap_or(&Json::Null), secret);
            }
        }
        Json::Array(items) => items.iter_mut().for_each(|item| mask(item, &Json::Null, secret)),
        other if secret => *other = json!(Secret::new(String::new())),
        _ => {}
    }
}

struct Filler<'a> {
    preset: &'a str,
    at: &'a str,
    values: Vec<(String, String)>,
    /// Words whose key nobody set, with that key.
    unsaid: Vec<(String, String)>,
    found: &'a mut Findings,
}

/// A placeholder without a value.
struct Lacking(String);

impl Filler<'_> {
    /// The values of placeholders: the provider's own keys, those that the preset presumes, and the words made of them.
    fn learn(&mut self, provider: &Dict, preset: &Dict, words: Option<&Value>) {
        for name in PLACEHOLDERS {
            let text = match provider.get(name).or_else(|| preset.get(name)) {
                Some(Value::String(_, text)) => text.clone(),
                Some(Value::Array(_, items)) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
                _ => continue,
            };
            let plain = name == "user_scopes"
                || (!text.is_empty()
                    && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte)));
            if !plain {
                let text = format!("must be a plain name without scheme, slash or blank, not {}", shown(&text));
                self.found.problem(join(self.at, name), text);
            }
            self.values.push((name.to_owned(), text));
        }
        let Some(Value::Dict(_, words)) = words else { return };
        for (name, word) in words {
            let Value::Dict(_, word) = word else { continue };
            let of = word.get("of").and_then(Value::as_str).unwrap_or_default();
            let Some(given) = self.values.iter().find(|(known, _)| known == of).map(|(_, given)| given.clone()) else {
                self.unsaid.push((name.clone(), of.to_owned()));
                continue;
            };
            let Some(Value::Dict(_, map)) = word.get("map") else { continue };
            let meant = match map.get(&given).and_then(Value::as_str) {
                Some(meant) => meant.to_owned(),
                None if matches!(word.get("others"), Some(Value::Bool(_, true))) => given.clone(),
                None => {
                    let known = alternatives(map.keys().map(String::as_str));
                    let text = format!("must be {known} with preset {:?}, not {}", self.preset, shown(&given));
                    self.found.problem(join(self.at, of), text);
                    given.clone()
                }
            };
            self.values.push((name.clone(), meant));
        }
    }

    /// `text` with every placeholder replaced.
    fn written(&self, text: &str) -> Result<String, Lacking> {
        let mut written = text.to_owned();
        for (name, value) in &self.values {
            written = written.replace(&format!("{{{name}}}"), value);
        }
        let holds = |name: &str| written.contains(&format!("{{{name}}}"));
        let own = PLACEHOLDERS.into_iter().find(|name| holds(name));
        let lacking = own.or_else(|| self.unsaid.iter().find(|(word, _)| holds(word)).map(|(_, of)| of.as_str()));
        match lacking {
            Some(name) => Err(Lacking(name.to_owned())),
            None => Ok(written),
        }
    }

    fn fill(&mut self, table: &mut Dict, preset: Dict, path: &str) {
        let optional = path.ends_with(".authorize_params") || path.ends_with(".token_params");
        for (key, value) in preset {
            let below = join(path, &key);
            match (table.get_mut(&key), value) {
                (Some(Value::Dict(_, table)), Value::Dict(_, preset)) => self.fill(table, preset, &below),
                // An empty text takes a parameter of the preset away.
                (Some(Value::String(_, own)), _) if optional && own.is_empty() => drop(table.remove(&key)),
                (Some(_), _) => {}
                (None, Value::Dict(tag, preset)) => {
                    let mut own = Dict::new();
                    self.fill(&mut own, preset, &below);
                    table.insert(key, Value::Dict(tag, own));
                }
                (None, Value::String(tag, text)) => match self.written(&text) {
                    Ok(text) => self.insert(table, key, Value::String(tag, text), &below),
                    Err(_) if optional => {}
                    Err(Lacking(name)) => {
                        let text = format!("is required with preset {:?}", self.preset);
                        self.found.missing(&join(self.at, &name), text);
                    }
                },
                (None, Value::Array(tag, items)) => {
                    let written = |item| match item {
                        Value::String(tag, text) => self.written(&text).ok().map(|text| Value::String(tag, text)),
                        other => Some(other),
                    };
                    let items = items.into_iter().filter_map(written).collect();
                    self.insert(table, key, Value::Array(tag, items), &below);
                }
                (None, value) => self.insert(table, key, value, &below),
            }
        }
    }

    fn insert(&mut self, table: &mut Dict, key: String, value: Value, path: &str) {
        self.found.sources.filled(path, self.preset);
        table.insert(key, value);
    }

    /// Scopes that go with a key, whoever chose the others.
    fn more_scopes(&self, provider: &mut Dict, more: Vec<Value>) {
        let more: Vec<String> = more.iter().filter_map(Value::as_str).filter_map(|it| self.written(it).ok()).collect();
        let usual = || Value::from(vec!["openid", "offline_access"]);
        let scopes = provider.entry("scopes".to_owned()).or_insert_with(usual);
        let Value::Array(_, scopes) = scopes else { return };
        for scope in more {
            if !scopes.iter().any(|known| known.as_str() == Some(scope.as_str())) {
                scopes.push(Value::from(scope));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_presets_that_come_along_are_toml() {
        let presets = Toml::from_str::<Dict>(BUILT_IN).unwrap();
        assert!(presets.len() > 22, "{:?}", presets.keys());
        assert!(presets.values().all(|preset| matches!(preset, Value::Dict(..))));
    }
}
