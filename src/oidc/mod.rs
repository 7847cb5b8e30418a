//! sidegate as an OAuth 2 / OpenID Connect client. Knows nothing of cookies, sessions or Pingora.

pub mod authorize;
pub mod client;
pub mod dialect;
pub mod dpop;
pub mod error;
pub mod id_token;
pub mod json;
pub mod jwe;
pub mod jwks;
pub mod jwt;
pub mod logout;
pub mod metadata;
pub mod provider;
pub mod settings;
pub mod several;
pub mod signing;
#[cfg(test)]
pub(crate) mod testing;
pub mod token;
pub mod types;

pub use authorize::AuthorizationRequest;
pub use client::{Observer, SetupError};
pub use error::ProviderError;
pub use provider::{Finding, Grant, Provider, RedeemContext, RefreshExpectation, RefreshRequest};
pub use settings::Settings;
pub use several::Providers;
