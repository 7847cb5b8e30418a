//! Transparent refresh: one flight per refresh token, its result kept for those who still carry the old cookie.
//!
//! `policy` says when a token is due, `engine` what a request may do about it. Both are sans-IO: events and time are
//! arguments, so that a simulation can drive the code that ships. `breaker` is
//! the same for the provider as a whole. `coordinator` is the only part that waits and spawns.

pub mod breaker;
pub mod coordinator;
pub mod engine;
pub mod policy;
pub mod settings;
pub mod shared;

pub use coordinator::{Coordinator, Freshened, Handles, Observer, Stats};
pub use policy::{Demand, EndReason};
pub use settings::{OnReuse, Rotation, Settings};
