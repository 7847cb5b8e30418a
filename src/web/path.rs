//! `CleanPath`: the one reading of a request path that routing judges and that is forwarded.

/// A canonical absolute path. Holding one proves: it begins with `/`, has no empty or dot segment, no encoded or raw
/// byte that acts like `/`, no NUL, valid percent-encoding of valid UTF-8, and no needlessly encoded character.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CleanPath(String);

impl CleanPath {
    /// The path as it is judged and forwarded.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
