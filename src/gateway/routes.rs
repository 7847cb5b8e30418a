//! Which route takes a request: by path, then host, then method. Longest path wins, and its cost does not grow with
//! the number of routes.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;

use http::Method;

use super::settings::Route;
use crate::web::path::CleanPath;

/// Asked several times for a request. Its keys are the configuration's, so that nobody can choose any that collide.
type Table<R> = HashMap<String, Vec<R>, foldhash::fast::RandomState>;

/// All routes, by path. `R` is what stands behind a route: the gateway's entry, or the bare settings in `explain`.
pub struct RouteTable<R> {
    exact: Table<R>,
    prefix: Table<R>,
    hosts: Vec<String>,
}

/// What the table says of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Matched<'a, R> {
    /// This route takes it.
    Route(&'a R),
    /// The path is there, the method is not.
    MethodNotAllowed {
        /// One of the path's routes, for log and metric.
        route: &'a R,
        /// All methods that the path has, as `Allow` lists them.
        allow: String,
    },
    /// No route names the path.
    None,
}

impl<R> fmt::Debug for RouteTable<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteTable").field("exact", &self.exact.len()).field("prefix", &self.prefix.len()).finish()
    }
}

impl<R: Borrow<Route>> RouteTable<R> {
    /// Builds the table. That no two routes could both win was judged with the configuration.
    pub fn new(routes: impl IntoIterator<Item = R>) -> Self {
        let (mut exact, mut prefix, mut hosts) = (Table::default(), Table::default(), Vec::new());
        for route in routes {
            let settings = route.borrow();
            hosts.extend(settings.hosts.iter().cloned());
            let table = if settings.path.ends_with('/') { &mut prefix } else { &mut exact };
            let path = settings.path.clone();
            table.entry(path).or_insert_with(Vec::new).push(route);
        }
        hosts.sort_unstable();
        hosts.dedup();
        Self { exact, prefix, hosts }
    }

    /// All routes, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &R> {
        self.exact.values().chain(self.prefix.values()).flatten()
    }

    /// Whether some route is for this host (lower case, no port).
    pub fn knows_host(&self, host: &str) -> bool {
        self.hosts.binary_search_by(|known| known.as_str().cmp(host)).is_ok()
    }

    /// The route of a request. `method` is none for a question about the path alone, such as a preflight.
    pub fn find(&self, path: &CleanPath, host: &str, method: Option<&Method>) -> Matched<'_, R> {
        let path = path.as_str();
        let mut levels = self.exact.get(path).into_iter().chain(Levels { table: &self.prefix, rest: Some(path) });
        levels
            .find_map(|level| {
                let mut candidates = level.iter().filter(|route| takes_host((*route).borrow(), host)).peekable();
                let first: &R = candidates.peek().copied()?;
                let mut allow: Vec<&str> = Vec::new();
                for route in candidates {
                    let methods = &Borrow::<Route>::borrow(route).methods;
                    if method.is_none_or(|method| takes_method(methods, method)) {
                        return Some(Matched::Route(route));
                    }
                    allow.extend(methods.iter().map(Method::as_str));
                }
                Some(Matched::MethodNotAllowed { route: first, allow: allow.join(", ") })
            })
            .unwrap_or(Matched::None)
    }
}

fn takes_host(route: &Route, host: &str) -> bool {
    route.hosts.is_empty() || route.hosts.iter().any(|own| own == host)
}

/// A route that answers GET answers HEAD (RFC 9110 section 9.3.2).
fn takes_method(methods: &[Method], method: &Method) -> bool {
    methods.is_empty() || methods.contains(method) || (method == Method::HEAD && methods.contains(&Method::GET))
}

/// The prefix routes above a path, longest first: `/a/b` asks for `/a/b/`, `/a/`, `/`.
struct Levels<'t, 'p, R> {
    table: &'t Table<R>,
    rest: Option<&'p str>,
}

impl<'t, R> Iterator for Levels<'t, '_, R> {
    type Item = &'t Vec<R>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(rest) = self.rest {
            let (level, parent) = match rest.strip_suffix('/') {
                // `/a/b/`: this level, then the one above the last segment.
                Some(trimmed) => (self.table.get(rest), trimmed.rfind('/')),
                // `/a/b` is also the root of the prefix `/a/b/`.
                None => (self.table.get(&format!("{rest}/")), rest.rfind('/')),
            };
            self.rest = parent.and_then(|slash| rest.get(..=slash)).filter(|parent| *parent != rest);
            if level.is_some() {
                return level;
            }
        }
        None
    }
}
