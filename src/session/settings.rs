//! `[session]`, parsed.

use std::time::Duration;

use crate::oidc::types::ProviderKey;
use crate::web::origin::Origin;

/// The `SameSite` attribute of the session cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    Strict,
    Lax,
    None,
}

/// Where sessions are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// In the browser's cookies.
    Cookie,
    /// In what the replicas share; the browser has a ticket.
    Tickets,
}

/// How a session is spread over cookies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All of it in the session cookie.
    Single,
    /// Refresh and ID token in a cookie that the browser sends only below the prefix.
    Split,
}

/// `[session]` and what binds a cookie to this application.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Base name; `__Host-Http-` goes before it over https.
    pub cookie_name: String,
    pub same_site: SameSite,
    /// The provider's answer comes by a cross-site POST (`form_post`), with which only `None` cookies travel.
    pub form_post: bool,
    pub partitioned: bool,
    /// The origin that the browser uses: decides the name's prefix and `Secure`, and is sealed in as AAD.
    pub public: Origin,
    /// Sealed in as AAD, with `client_id`.
    pub issuer: String,
    /// With several providers: their keys and issuers. `issuer` and `client_id` are then no provider's.
    pub providers: Vec<(ProviderKey, String)>,
    pub client_id: String,
    pub store: Store,
    pub layout: Layout,
    /// `/auth`: below it the browser sends the refresh cookie.
    pub prefix: String,
    /// Absolute life, from login.
    pub max_age: Duration,
    /// Ends a session without forwarded requests.
    pub idle_timeout: Option<Duration>,
    /// 0 = no limit.
    pub max_refreshes: u64,
    /// Largest total of our cookies, name and value, in bytes.
    pub header_budget: usize,
    /// Claims to seal besides the registered ones: what `[claims]`, `identity_headers` and `require` name.
    pub claims: Vec<String>,
    /// A route sends the ID token, so the budget may not drop it.
    pub id_token_needed: bool,
}

impl Settings {
    /// The issuer that a session is of; none when its provider is configured no more.
    pub fn issuer_of(&self, provider: Option<ProviderKey>) -> Option<&str> {
        match provider {
            None if self.providers.is_empty() => Some(&self.issuer),
            None => None,
            Some(key) => self.providers.iter().find(|(known, _)| *known == key).map(|(_, issuer)| issuer.as_str()),
        }
    }
}
