//! `POST /revoke`: an operator ends the sessions of a user, or those of one session at the provider.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::secret::Secret;
use crate::web::query::Params;

/// Larger than any bearer.
const LARGEST: u64 = 64 * 1024;
/// Larger than any `sub` or `sid`.
const MAX_VALUE: usize = 1024;

/// What the operator wants ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order<'a> {
    /// Whose word `sub` or `sid` is; none where there is one provider.
    pub issuer: Option<&'a str>,
    pub whose: Whose<'a>,
}

/// By which word of the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose<'a> {
    /// `sub`: all sessions of the user.
    Subject(&'a str),
    /// `sid`: those of one session at the provider.
    ProviderSession(&'a str),
}

/// Who may order, and who carries it out.
pub struct Revoke {
    /// Where the bearer is now; none: there is no such endpoint.
    token_file: Box<dyn Fn() -> Option<PathBuf> + Send + Sync>,
    /// The last good content of that file.
    good: Mutex<Option<(PathBuf, Secret)>>,
    end: Box<EndSessions>,
}

type EndSessions = dyn Fn(&Order<'_>) -> bool + Send + Sync;

impl fmt::Debug for Revoke {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revoke").field("token_file", &(self.token_file)()).finish_non_exhaustive()
    }
}

impl Revoke {
    /// `end` carries an order out; false when there is no such issuer, or when it must be named and is not.
    pub fn new(
        token_file: impl Fn() -> Option<PathBuf> + Send + Sync + 'static,
        end: impl Fn(&Order<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        let revoke = Self { token_file: Box::new(token_file), good: Mutex::new(None), end: Box::new(end) };
        let _ = revoke.bearer();
        revoke
    }

    /// Whether there is such an endpoint.
    pub(super) fn is_on(&self) -> bool {
        (self.token_file)().is_some()
    }

    /// The file is read whenever it is asked about, which is seldom. Content that cannot be used leaves the last good one
    /// in force.
    fn bearer(&self) -> Option<Secret> {
        let path = (self.token_file)()?;
        let mut good = self.good.lock();
        if let Some(now) = read(&path) {
            *good = Some((path, now));
        } else {
            good.take_if(|(known, _)| *known != path);
        }
        good.as_ref().map(|(_, bearer)| bearer.clone())
    }

    /// Whether the `Authorization` fields of a request are the one bearer (RFC 6750 section 2.1).
    pub(super) fn allows(&self, fields: &[String]) -> bool {
        let [field] = fields else { return false };
        let Some((scheme, shown)) = field.split_once(' ') else { return false };
        // Compared in constant time.
        scheme.eq_ignore_ascii_case("Bearer") && self.bearer().is_some_and(|bearer| bearer == Secret::new(shown.trim()))
    }

    /// Carries out what a form says; false when it says nothing that can be.
    pub(super) fn carry_out(&self, form: &[u8]) -> bool {
        let params = Params::form(form);
        let word = |name| match params.one(name) {
            Ok(Some(word)) if word.is_empty() || word.len() > MAX_VALUE => Err(()),
            Ok(word) => Ok(word),
            Err(_) => Err(()),
        };
        let (Ok(subject), Ok(sid), Ok(issuer)) = (word("sub"), word("sid"), word("iss")) else { return false };
        let (whose, by) = match (subject, sid) {
            (Some(subject), None) => (Whose::Subject(subject), "sub"),
            (None, Some(sid)) => (Whose::ProviderSession(sid), "sid"),
            _ => return false,
        };
        let done = (self.end)(&Order { issuer, whose });
        if done {
            tracing::info!(target: "sidegate", event = "revoke", outcome = "accepted", by);
        }
        done
    }
}

/// One trailing newline dropped, not blank.
fn read(path: &Path) -> Option<Secret> {
    // A pipe would hold up the listener.
    if !std::fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(LARGEST).read_to_string(&mut text).ok()?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    (!text.trim().is_empty()).then(|| Secret::new(text))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn revoke(token: &str) -> (Revoke, Arc<Mutex<Vec<String>>>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, token).unwrap();
        let orders = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&orders);
        let end = move |order: &Order<'_>| {
            seen.lock().push(format!("{order:?}"));
            order.issuer.is_none_or(|issuer| issuer == "https://op.example")
        };
        (Revoke::new(move || Some(path.clone()), end), orders, dir)
    }

    #[test]
    fn one_bearer_and_no_other() {
        let (revoke, _, dir) = revoke("s3cret-token\r\n");
        let allows =
            |fields: &[&str]| revoke.allows(&fields.iter().map(|field| (*field).to_owned()).collect::<Vec<_>>());
        assert!(allows(&["Bearer s3cret-token"]) && allows(&["bearer  s3cret-token"]));
        for wrong in [
            &[][..],
            &["Bearer"],
            &["Bearer "],
            &["Bearer s3cret-toke"],
            &["Bearer s3cret-token2"],
            &["Basic s3cret-token"],
            &["s3cret-token"],
            &["Bearer s3cret-token", "Bearer s3cret-token"],
        ] {
            assert!(!allows(wrong), "{wrong:?}");
        }
        // Changed, then made useless, then gone: the last good one counts.
        for (content, good) in [("another\n", "another"), (" \n", "another"), ("", "another")] {
            std::fs::write(dir.path().join("token"), content).unwrap();
            assert!(allows(&[&format!("Bearer {good}")]) && !allows(&["Bearer s3cret-token"]), "{content:?}");
        }
        std::fs::remove_file(dir.path().join("token")).unwrap();
        assert!(allows(&["Bearer another"]) && !allows(&["Bearer "]));
        assert!(!format!("{revoke:?}").contains("another"));
    }

    #[test]
    fn a_form_says_whose() {
        let (revoke, orders, _dir) = revoke("t");
        for (form, fine) in [
            ("sub=alice+1", true),
            ("sid=s%201&x=1", true),
            ("sub=a&iss=https%3A%2F%2Fop.example", true),
            ("sub=a&iss=https://other.example", false),
            ("", false),
            ("sub=", false),
            ("sub=a&sid=b", false),
            ("sub=a&sub=a", false),
            ("sub=a&iss=", false),
            ("iss=https://op.example", false),
            ("sub=%ff", false),
        ] {
            assert_eq!(revoke.carry_out(form.as_bytes()), fine, "{form}");
        }
        assert!(!revoke.carry_out(format!("sub={}", "x".repeat(MAX_VALUE + 1)).as_bytes()));
        let orders = orders.lock();
        assert_eq!(orders.len(), 4);
        assert!(orders[0].contains(r#"Subject("alice 1")"#) && orders[1].contains(r#"ProviderSession("s 1")"#));
    }
}
