//! Transparent refresh: one flight per session, its result kept for those who still carry the old cookie.
//!
//! `policy`, `flight` and `engine` are sans-IO: events, time and randomness are arguments. `coordinator` is the only
//! part that waits and spawns.

pub mod coordinator;
pub mod engine;
pub mod policy;
pub mod settings;

pub use settings::Settings;
