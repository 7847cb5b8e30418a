//! What is wrong with a configuration, in the operator's words.

use std::fmt;

use super::load::Sources;

/// A mistake, or something that deserves a word: which key, where its value came from, how to mend it. Never holds a
/// secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Key path such as `route[1].access`; empty when a whole file is meant.
    pub key: String,
    /// File and line, or variable, that the value came from; none for a key that nobody set.
    pub layer: Option<String>,
    /// What is wrong and how to mend it.
    pub text: String,
}

/// Something that is allowed but deserves a word.
pub type Warning = Problem;

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)?;
        match &self.layer {
            Some(layer) => write!(f, " ({layer})"),
            None => Ok(()),
        }
    }
}

/// Collects problems and warnings, and knows where values came from.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) sources: Sources,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Warning>,
}

impl Findings {
    pub(super) fn new(sources: Sources) -> Self {
        Self { sources, problems: Vec::new(), warnings: Vec::new() }
    }

    /// The value of `key` cannot be used.
    pub(super) fn problem(&mut self, key: impl Into<String>, text: impl Into<String>) {
        let found = self.describe(key.into(), text.into());
        if !self.problems.contains(&found) {
            self.problems.push(found);
        }
    }

    /// `key` is not there. Says nothing when a mistake was already found in it, above it or below it: then it is
    /// missing because of that.
    pub(super) fn missing(&mut self, key: &str, text: impl Into<String>) {
        if !self.blamed(key) {
            self.problem(key, text);
        }
    }

    /// Works, but deserves a word.
    pub(super) fn warn(&mut self, key: impl Into<String>, text: impl Into<String>) {
        let found = self.describe(key.into(), text.into());
        self.warnings.push(found);
    }

    /// Whether a mistake was found at `key`, above or below it.
    pub(super) fn blamed(&self, key: &str) -> bool {
        self.problems.iter().any(|problem| below(&problem.key, key) || below(key, &problem.key))
    }

    fn describe(&self, key: String, text: String) -> Problem {
        let layer = self.sources.layer(&key).map(|layer| layer.to_string());
        Problem { key, layer, text }
    }
}

/// Whether `key` is `top` or lies below it.
fn below(key: &str, top: &str) -> bool {
    !top.is_empty() && key.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// A word that is close to `wrong`, however that is written.
pub(super) fn did_you_mean<'a>(wrong: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wrong = wrong.to_lowercase();
    words
        .into_iter()
        .map(|word| (strsim::jaro_winkler(&wrong, &word.to_lowercase()), word))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, word)| word)
}

/// `"a", "b" or "c"`
pub(super) fn alternatives<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let mut words: Vec<String> = words.into_iter().map(|word| format!("{word:?}")).collect();
    match (words.pop(), words.is_empty()) {
        (Some(last), true) => last,
        (Some(last), false) => format!("{} or {last}", words.join(", ")),
        (None, _) => String::new(),
    }
}

/// A wrong value for a message: short, on one line, and nothing that might be a URL with a password in it.
pub(super) fn shown(text: &str) -> String {
    if text.contains('@') {
        return "this value".to_owned();
    }
    let short: String = text.chars().take(60).collect();
    if short.len() < text.len() { format!("{short:?}…") } else { format!("{short:?}") }
}
