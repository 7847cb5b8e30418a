//! Canaries: remembers every secret that was handed out and looks for it in what an outsider can see.

use std::collections::BTreeMap;

use super::text::{find, hex, latin1, percent};

/// The secrets to look for, each with a label.
#[derive(Clone, Debug, Default)]
pub struct Canaries {
    labels: BTreeMap<String, String>,
}

/// A secret that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// What it is.
    pub label: String,
    /// How it was written: `plain`, `percent`, `base64` …
    pub form: &'static str,
    /// Where it stood.
    pub place: String,
}

impl Canaries {
    /// Remembers `value`. Texts under 8 bytes are left out: they would be found by chance.
    pub fn add(&mut self, label: &str, value: &str) {
        if value.len() < 8 {
            return;
        }
        self.labels.entry(value.to_owned()).or_insert_with(|| label.to_owned());
        // The parts of a JWT betray it as well; its header is the same for all.
        if value.starts_with("eyJ") {
            for part in value.split('.').skip(1).filter(|p| p.len() >= 16) {
                self.labels.entry(part.to_owned()).or_insert_with(|| format!("{label} (a part)"));
            }
        }
    }

    /// Takes over the other's canaries.
    pub fn extend(&mut self, other: &Self) {
        self.labels.extend(other.labels.clone());
    }

    /// Only those whose label is one of `labels`.
    #[must_use]
    pub fn only(&self, labels: &[&str]) -> Self {
        let keep = |label: &String| labels.iter().any(|l| label.starts_with(l));
        Self { labels: self.labels.iter().filter(|(_, l)| keep(l)).map(|(v, l)| (v.clone(), l.clone())).collect() }
    }

    /// All but those whose label is one of `labels`.
    #[must_use]
    pub fn without(&self, labels: &[&str]) -> Self {
        let drop = |label: &String| labels.iter().any(|l| label.starts_with(l));
        Self { labels: self.labels.iter().filter(|(_, l)| !drop(l)).map(|(v, l)| (v.clone(), l.clone())).collect() }
    }

    /// About `n` of them, from all over: where there are thousands, and looking for each would take long.
    #[must_use]
    pub fn few(&self, n: usize) -> Self {
        let step = (self.labels.len() / n.max(1)).max(1);
        Self { labels: self.labels.iter().step_by(step).map(|(v, l)| (v.clone(), l.clone())).collect() }
    }

    /// How many texts are looked for.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Every canary in `text`, each once.
    pub fn scan(&self, place: &str, text: impl AsRef<[u8]>) -> Vec<Hit> {
        let text = text.as_ref();
        let hit = |(value, label): (&String, &String)| {
            let (form, _) = forms(value).into_iter().find(|(_, bytes)| find(text, bytes).is_some())?;
            Some(Hit { label: label.clone(), form, place: place.to_owned() })
        };
        self.labels.iter().filter_map(hit).collect()
    }

    /// Panics when `text` holds a canary; the message names it by label only.
    #[track_caller]
    pub fn assert_absent(&self, place: &str, text: impl AsRef<[u8]>) {
        let hits = self.scan(place, text);
        assert!(hits.is_empty(), "secrets in sight: {hits:?}");
    }
}

/// The ways a secret may be written down.
fn forms(value: &str) -> Vec<(&'static str, Vec<u8>)> {
    let raw = value.as_bytes();
    let mut forms = vec![("plain", raw.to_vec())];
    let escaped = percent(raw);
    if escaped != value {
        let lower = |b: &u8| match char::from(*b) {
            c if percent([*b]).len() == 1 => c.to_string(),
            _ => format!("%{b:02x}"),
        };
        forms.push(("percent", raw.iter().map(lower).collect::<String>().into_bytes()));
        forms.push(("form", escaped.replace("%20", "+").into_bytes()));
        forms.push(("percent", escaped.into_bytes()));
        let quoted = serde_json::to_string(value).unwrap_or_default();
        forms.push(("json", quoted.trim_matches('"').as_bytes().to_vec()));
        forms.push(("debug", latin1(format!("{value:?}").trim_matches('"').as_bytes()).into_bytes()));
    }
    forms.push(("hex", hex(raw).into_bytes()));
    // Inside a longer encoded text a secret can start at any of three offsets; what mixes with its neighbours is cut off.
    for shift in 0..3 {
        let shifted = [&vec![0; shift], raw].concat();
        let whole = shifted.len() / 3 * 4;
        let skip = if shift == 0 { 0 } else { 4 };
        for (form, alphabet) in [("base64", base64_simd::STANDARD_NO_PAD), ("base64url", base64_simd::URL_SAFE_NO_PAD)]
        {
            let text = alphabet.encode_to_string(&shifted);
            let core = text.get(skip..whole).unwrap_or_default();
            if core.len() >= 10 {
                forms.push((form, core.as_bytes().to_vec()));
            }
        }
    }
    forms
}
