//! sidegate as an OAuth 2 / OpenID Connect client. Knows nothing of cookies, sessions or Pingora.

pub mod authorize;
pub mod client;
pub mod error;
pub mod id_token;
pub mod jwks;
pub mod jwt;
pub mod logout;
pub mod metadata;
pub mod provider;
pub mod settings;
pub mod token;
pub mod types;

pub use error::ProviderError;
pub use provider::{Grant, Provider};
pub use settings::Settings;
