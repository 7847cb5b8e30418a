//! Layers: defaults, files in order, environment; the later wins. Remembers which layer each value came from. The only
//! code that reads the environment.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Tag, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;
use toml::Spanned;

use super::problem::Problem;
use super::schema::{accepts, schema};

/// Files that are read when none is named.
const USUAL_PLACES: [&str; 2] = ["./sidegate.toml", "/etc/sidegate/sidegate.toml"];
/// Names a file when no `-c` does.
const FILE_VARIABLE: &str = "SIDEGATE_CONFIG";
const PREFIX: &str = "SIDEGATE_";
/// Between section and key.
const SEPARATOR: &str = "__";

/// What the configuration depends on besides files.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The environment.
    pub variables: Vec<(OsString, OsString)>,
    /// Standard output is a terminal.
    pub terminal: bool,
    /// Stands for the files, under this name: the demo has none.
    pub text: Option<(&'static str, String)>,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Self {
        Self { variables: std::env::vars_os().collect(), terminal: std::io::stdout().is_terminal(), text: None }
    }

    fn variable(&self, name: &str) -> Option<&OsStr> {
        self.variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_os_str())
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    /// Position: files in order, then the environment.
    pub(super) rank: usize,
    /// Whether it is the environment.
    pub(super) environment: bool,
    name: String,
    line: Option<usize>,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{} line {line}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// All layers, merged.
#[derive(Debug)]
pub(super) struct Sources {
    figment: Figment,
    merged: Value,
    files: Vec<FileLayer>,
    /// What presets filled in: key and preset.
    filled: BTreeMap<String, String>,
}

impl Sources {
    /// The merged value, each leaf tagged with its layer.
    pub(super) fn value(&self) -> Value {
        self.merged.clone()
    }

    /// The files, in order.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// The value at `key` is a preset's.
    pub(super) fn filled(&mut self, key: &str, preset: &str) {
        self.filled.insert(key.to_owned(), preset.to_owned());
    }

    /// Where the value at `key` came from; none when nobody set it.
    pub(super) fn layer(&self, key: &str) -> Option<Layer> {
        if let Some(preset) = self.preset_of(key) {
            return Some(Layer { rank: 0, environment: false, name: format!("preset {preset}"), line: None });
        }
        let mut value = &self.merged;
        for step in steps(key) {
            value = match (value, step) {
                (Value::Dict(_, dict), Step::Key(key)) => dict.get(&key)?,
                (Value::Array(_, items), Step::Index(index)) => items.get(index)?,
                _ => return None,
            };
        }
        let name = self.figment.get_metadata(leaf_tag(value))?.source.as_ref()?.custom()?.to_owned();
        Some(match self.files.iter().position(|file| file.name() == name) {
            Some(rank) => {
                let line = self.files.get(rank).and_then(|file| file.lines.get(key)).copied();
                Layer { rank, environment: false, name, line }
            }
            None => Layer { rank: self.files.len(), environment: true, name, line: None },
        })
    }

    /// The preset that filled in `key`, or the list that it is an item of.
    fn preset_of(&self, key: &str) -> Option<&String> {
        self.filled.get(key).or_else(|| self.filled.get(key.rsplit_once('[')?.0))
    }
}

/// A table's own tag says little after a merge; its first leaf's says who wrote in it.
fn leaf_tag(value: &Value) -> Tag {
    match value {
        Value::Dict(tag, dict) => dict.values().next().map_or(*tag, leaf_tag),
        other => other.tag(),
    }
}

/// Reads all layers.
///
/// # Errors
/// When a file cannot be read or is not TOML; then nothing else can be judged.
pub(super) fn read(files: &[PathBuf], around: &Surroundings) -> Result<(Sources, Vec<Problem>), Vec<Problem>> {
    let mut problems = Vec::new();
    let layers = match &around.text {
        Some((name, text)) => vec![FileLayer::parse(Path::new(name), text)],
        None => select(files, around)?.iter().map(|path| FileLayer::read(path)).collect(),
    };
    let files: Vec<FileLayer> =
        layers.into_iter().filter_map(|layer| layer.map_err(|problem| problems.push(problem)).ok()).collect();
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut figment = Figment::new();
    for file in &files {
        figment = figment.merge(file);
    }
    for variable in variables(around, &mut problems) {
        figment = figment.merge(variable);
    }
    let merged = figment.find_value("").unwrap_or_else(|_| Value::Dict(Tag::Default, Dict::new()));
    Ok((Sources { figment, merged, files, filled: BTreeMap::new() }, problems))
}

fn select(files: &[PathBuf], around: &Surroundings) -> Result<Vec<PathBuf>, Vec<Problem>> {
    if !files.is_empty() {
        return Ok(files.to_vec());
    }
    if let Some(file) = around.variable(FILE_VARIABLE).filter(|file| !file.is_empty()) {
        return Ok(vec![PathBuf::from(file)]);
    }
    match USUAL_PLACES.iter().map(PathBuf::from).find(|path| path.exists()) {
        Some(path) => Ok(vec![path]),
        None => Err(vec![Problem {
            key: String::new(),
            layer: None,
            text: format!(
                "no configuration file: neither {} exists; name one with -c FILE or in {FILE_VARIABLE}",
                USUAL_PLACES.join(" nor ")
            ),
        }]),
    }
}

/// One file.
#[derive(Debug)]
struct FileLayer {
    path: PathBuf,
    dict: Dict,
    /// Line of each key.
    lines: BTreeMap<String, usize>,
}

impl FileLayer {
    fn read(path: &Path) -> Result<Self, Problem> {
        let problem = |text: String| Problem { key: String::new(), layer: None, text };
        let bytes = std::fs::read(path)
            .map_err(|error| problem(format!("cannot read {}: {}", path.display(), cause(&error))))?;
        let text = String::from_utf8(bytes).map_err(|_| problem(format!("{} is not UTF-8 text", path.display())))?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Problem> {
        let problem = |text: String| Problem { key: String::new(), layer: None, text };
        // Some editors begin a file with a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let dict = Toml::from_str::<Dict>(text).map_err(|error| {
            // Not the error's own Display: that quotes the line, and a secret may stand there.
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            let why = error.message().lines().collect::<Vec<_>>().join(", ");
            problem(format!("{} is not TOML: line {line}: {why}", path.display()))
        })?;
        Ok(Self { path: path.to_owned(), dict, lines: lines(text) })
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

impl Provider for FileLayer {
    fn metadata(&self) -> Metadata {
        Metadata::from("file", self.name())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// The reason without the number of the system's error.
pub(super) fn cause(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((reason, _)) => reason.to_owned(),
        None => text,
    }
}

/// One variable.
#[derive(Debug)]
struct Variable {
    name: String,
    path: Vec<String>,
    value: Value,
}

impl Provider for Variable {
    fn metadata(&self) -> Metadata {
        Metadata::from("environment", format!("environment variable {}", self.name))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut value = self.value.clone();
        for key in self.path.iter().rev() {
            value = Value::Dict(Tag::Default, Dict::from([(key.clone(), value)]));
        }
        Ok(Profile::Default.collect(value.into_dict().unwrap_or_default()))
    }
}

/// `SIDEGATE_SECTION__KEY` sets `section.key`. Others, such as those that Kubernetes makes for a Service of our name,
/// are none of our business.
fn variables(around: &Surroundings, problems: &mut Vec<Problem>) -> Vec<Variable> {
    let schema = schema();
    let mut variables = Vec::new();
    for (name, value) in &around.variables {
        let Some(name) = name.to_str() else { continue };
        let Some(rest) = name.strip_prefix(PREFIX).filter(|rest| rest.contains(SEPARATOR)) else { continue };
        let path: Vec<String> = rest.split(SEPARATOR).map(str::to_ascii_lowercase).collect();
        let layer = format!("environment variable {name}");
        let read = match value.to_str() {
            Some(value) => typed(value, schema_at(schema, &path)),
            None => Err("is not UTF-8 text"),
        };
        match read {
            Ok(value) => variables.push(Variable { name: name.to_owned(), path, value }),
            Err(text) => {
                problems.push(Problem { key: path.join("."), layer: Some(layer), text: text.to_owned() });
            }
        }
    }
    // The environment has no order of its own.
    variables.sort_by(|one, other| one.name.cmp(&other.name));
    variables
}

/// A variable's text as a value of the type that the key has. Text stays text: nothing is expanded or unquoted.
fn typed(text: &str, schema: Option<&Json>) -> Result<Value, &'static str> {
    let literal = Value::from(text);
    let Some(schema) = schema else { return Ok(literal) };
    let is_text = accepts(schema, "string");
    if is_text {
        let list = accepts(schema, "array") && text.trim_start().starts_with('[');
        let flag = accepts(schema, "boolean") && matches!(text, "true" | "false");
        if !list && !flag {
            return Ok(literal);
        }
    }
    // A single value: what follows it, such as another line with another key, is an error.
    match <Value as Deserialize>::deserialize(toml::de::ValueDeserializer::new(text.trim())) {
        Ok(value) => Ok(value),
        // Not all that begins like a list is one: `[::]:8080`.
        Err(_) if is_text => Ok(literal),
        Err(_) => Err(if accepts(schema, "array") {
            "must be a TOML list such as [\"one\", \"two\"]"
        } else if accepts(schema, "boolean") {
            "must be true or false"
        } else if accepts(schema, "object") {
            "must be a TOML table such as { key = \"value\" }"
        } else {
            "must be a number"
        }),
    }
}

fn schema_at<'s>(schema: &'s Json, path: &[String]) -> Option<&'s Json> {
    let Some((key, rest)) = path.split_first() else { return Some(schema) };
    let schema = match schema.get("anyOf").and_then(Json::as_array) {
        Some(branches) => branches.iter().find(|branch| accepts(branch, "object"))?,
        None => schema,
    };
    let next =
        schema.get("properties").and_then(|keys| keys.get(key)).or_else(|| schema.get("additionalProperties"))?;
    next.is_object().then(|| schema_at(next, rest)).flatten()
}

// ---------------------------------------------------------------------------------------------------------------------
// Key paths and lines
// ---------------------------------------------------------------------------------------------------------------------

/// `parent.key`, quoted like TOML when it must be.
pub(super) fn join(parent: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if parent.is_empty() { key } else { format!("{parent}.{key}") }
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// Takes a key path apart again.
fn steps(key: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = key;
    while !rest.is_empty() {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if let Some((index, tail)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            steps.push(Step::Index(index.parse().unwrap_or(usize::MAX)));
            rest = tail;
        } else if let Some((quoted, tail)) = rest.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
            steps.push(Step::Key(quoted.to_owned()));
            rest = tail;
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            let (name, tail) = rest.split_at_checked(end).unwrap_or((rest, ""));
            steps.push(Step::Key(name.to_owned()));
            rest = tail;
        }
    }
    steps
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// The line of each key. Empty when the reader cannot tell: lines are a comfort, not a need.
fn lines(text: &str) -> BTreeMap<String, usize> {
    let mut lines = BTreeMap::new();
    if let Ok(node) = toml::from_str::<Node>(text) {
        node.collect("", text, &mut lines);
    }
    lines
}

/// The shape of a file: keys with their places, values without their content.
enum Node {
    Table(Vec<(Spanned<String>, Self)>),
    List(Vec<Self>),
    Leaf,
}

impl Node {
    fn collect(&self, path: &str, text: &str, lines: &mut BTreeMap<String, usize>) {
        match self {
            Self::Table(entries) => {
                for (key, node) in entries {
                    let path = join(path, key.get_ref());
                    lines.insert(path.clone(), line_of(text, key.span().start));
                    node.collect(&path, text, lines);
                }
            }
            Self::List(items) => {
                for (index, node) in items.iter().enumerate() {
                    let item = format!("{path}[{index}]");
                    node.collect(&item, text, lines);
                    // A table of a list begins, for a reader, where its first key is.
                    let line = match node {
                        Self::Table(entries) => entries.first().map(|(key, _)| line_of(text, key.span().start)),
                        Self::List(_) | Self::Leaf => lines.get(path).copied(),
                    };
                    if let Some(line) = line {
                        lines.insert(item, line);
                    }
                }
            }
            Self::Leaf => {}
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NodeVisitor;

        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a TOML value")
            }

            fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_str<E>(self, _: &str) -> Result<Node, E> {
                Ok(Node::Leaf)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
                let mut nodes = Vec::new();
                while let Some(node) = items.next_element()? {
                    nodes.push(node);
                }
                Ok(Node::List(nodes))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Table(entries))
            }
        }

        deserializer.deserialize_any(NodeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_paths_come_apart_as_they_were_joined() {
        let path = join(&format!("{}[1]", join("", "route")), "X User.y");
        assert_eq!(path, "route[1].\"X User.y\"");
        assert_eq!(steps(&path), [Step::Key("route".to_owned()), Step::Index(1), Step::Key("X User.y".to_owned())]);
    }

    #[test]
    fn lines_are_those_an_editor_shows() {
        let lines = lines("[server]\nlisten = \"a\"\n\n[[route]]\npath = \"/\"\n[[route]]\n# why\npath = \"/x\"\n");
        assert_eq!(lines.get("server.listen"), Some(&2));
        assert_eq!(lines.get("route[1].path"), Some(&8));
    }

    #[test]
    fn a_variable_is_one_value_of_the_keys_type() {
        let schema = schema();
        let at = |path: &str| schema_at(schema, &path.split('.').map(str::to_owned).collect::<Vec<_>>());
        for text in ["true", "[1, 2]", "\"quoted\"", "{ a = 1 }", "x\"\n[server]\nlisten = 1"] {
            let value = typed(text, at("provider.client_secret")).ok();
            assert_eq!(value.as_ref().and_then(Value::as_str), Some(text));
        }
        assert_eq!(typed("77", at("limits.header_count")).ok().and_then(|value| value.to_num()?.to_i128()), Some(77));
        assert_eq!(typed("true", at("provider.userinfo")).ok().and_then(|value| value.to_bool()), Some(true));
        assert!(typed("1\nx = 2", at("limits.header_count")).is_err());
        assert!(typed("[\"a:1\"]", at("server.listen")).is_ok_and(|value| value.as_array().is_some()));
        assert!(typed("a:1", at("server.listen")).is_ok_and(|value| value.as_str() == Some("a:1")));
        assert!(typed("10.0.0.0/8", at("server.trusted_proxies")).is_err());
    }
}
