//! The configured providers: one, or several that a login chooses among. A session and an attempt know theirs by its
//! key, so that neither a code nor a token ever goes to another one.

use std::sync::Arc;

use async_trait::async_trait;

use super::error::ProviderError;
use super::provider::{Grant, Provider, RefreshRequest};
use super::types::{ProviderKey, TokenSet};

/// Never empty.
#[derive(Clone, Debug)]
pub struct Providers {
    first: Arc<Provider>,
    more: Vec<Arc<Provider>>,
    services: Vec<(String, Arc<Provider>)>,
}

impl Providers {
    /// In the configuration's order.
    pub const fn new(first: Arc<Provider>, more: Vec<Arc<Provider>>) -> Self {
        Self { first, more, services: Vec::new() }
    }

    /// With these beside them, at which nobody logs in: they only give tokens of the client's own.
    #[must_use]
    pub fn with_services(self, services: Vec<(String, Arc<Provider>)>) -> Self {
        Self { services, ..self }
    }

    /// One of those, by its name.
    pub fn service(&self, name: &str) -> Option<&Arc<Provider>> {
        self.services.iter().find(|(own, _)| own == name).map(|(_, provider)| provider)
    }

    /// The only one; none when there are several.
    pub fn only(&self) -> Option<&Arc<Provider>> {
        self.more.is_empty().then_some(&self.first)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Provider>> {
        std::iter::once(&self.first).chain(&self.more)
    }

    /// The one of this key: none when it is configured no more.
    pub fn of_key(&self, key: Option<ProviderKey>) -> Option<&Arc<Provider>> {
        self.iter().find(|provider| provider.settings().key() == key)
    }

    /// The one that links and the chooser call so.
    pub fn named(&self, name: &str) -> Option<&Arc<Provider>> {
        self.iter().find(|provider| provider.settings().name.as_deref() == Some(name))
    }

    /// The one with this issuer: the one that is called so before one whose tenants are left open.
    pub fn of_issuer(&self, issuer: &str) -> Option<&Arc<Provider>> {
        let named = self.iter().find(|provider| provider.settings().issuer == issuer);
        named.or_else(|| self.iter().find(|provider| provider.settings().is_issuer(issuer, None)))
    }
}

#[async_trait]
impl Grant for Providers {
    async fn refresh(&self, request: RefreshRequest<'_>) -> Result<TokenSet, ProviderError> {
        // A token is shown to whoever gave it, and to nobody else.
        let provider = self.of_key(request.expect.provider);
        provider.ok_or(ProviderError::Refused { reason: "provider_gone" })?.refresh(request).await
    }
}
