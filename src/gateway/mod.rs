//! The only Pingora request code.

pub mod settings;
