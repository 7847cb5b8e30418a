//! The doubles of the fast test layer: a provider, an upstream, a browser. They know sidegate only by its sockets.
//!
//! Each test binary includes them with `mod support;` and uses what it needs.
#![allow(dead_code, unused_imports, unreachable_pub, reason = "no test binary uses all of it")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "test code: a broken double must stop the test at once"
)]

pub mod burst;
pub mod client;
pub mod exact;
pub mod gateway;
pub mod http2;
pub mod inside;
pub mod jose;
pub mod leak;
pub mod mutate;
pub mod mutual_tls;
pub mod own_tokens;
pub mod provider;
pub mod redis;
pub mod server;
pub mod text;
pub mod upstream;
pub mod wait;
pub mod wire;
pub mod ws;
