//! What was derived once and is wanted often.

use std::fmt;
use std::sync::{Arc, OnceLock};

/// Holds what follows from the value that it lies in. So it makes no difference between two of them, clones share it,
/// and it is not printed.
pub struct Memo<T>(Arc<OnceLock<T>>);

impl<T> Memo<T> {
    /// What follows, derived by the first who asks.
    pub fn get_or_init(&self, derive: impl FnOnce() -> T) -> &T {
        self.0.get_or_init(derive)
    }
}

impl<T> Default for Memo<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for Memo<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> PartialEq for Memo<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Memo<T> {}

impl<T> fmt::Debug for Memo<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memo")
    }
}
