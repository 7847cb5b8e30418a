//! Where the browser goes after a login: a path of our own origin, whatever the request asked for.

/// A same-origin relative target (`/path?query`), never below sidegate's own prefix. The only type that becomes the
/// `Location` of a finished login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReturnTo(String);

impl ReturnTo {
    /// The application's start page.
    pub fn home() -> Self {
        Self("/".to_owned())
    }

    /// A target that was one when it was sealed.
    pub(crate) fn restore(text: String) -> Self {
        Self(text)
    }

    /// The target as it stands in `Location`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
