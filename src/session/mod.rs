//! What a session is, and how it survives in cookies, or in a store that it knows as a trait.

pub mod apart;
pub mod codec;
pub mod endings;
pub mod jar;
pub mod lifecycle;
pub mod login_cookie;
pub mod model;
pub mod settings;
pub mod store;
pub mod ticket;
pub mod vault;

/// Tokens as providers make them.
#[cfg(test)]
#[path = "../../benches/samples/mod.rs"]
mod samples;

pub use model::{Session, SessionId};
pub use settings::Settings;
