//! Keys and sealing: the only place where `aes_gcm` is used.

pub mod keyring;
pub mod random;
pub mod seal;
