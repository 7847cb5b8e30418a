//! sidegate: a reverse-proxy sidecar that gives a browser single-page app the backend-for-frontend pattern.
//!
//! It is the confidential OAuth 2 / OpenID Connect client of the app: it runs the authorization-code exchange, keeps
//! the tokens in sealed cookies, refreshes them before it forwards a request, and forwards with the access token.
//!
//! # Layers
//!
//! ```text
//!         main
//!          │
//!         app ─────────────► config (figment, environment)     shutdown, telemetry
//!          │                     │ fills the settings structs of ▼
//!    ┌─────┼─────┐
//!  net  gateway  admin          only these, app and shutdown may `use pingora`
//!          │
//!          │    store             only here: redis; implements the traits of refresh and session
//!          │      │
//!       refresh ◄─┘             takes an `oidc::Grant` (a trait, so tests pass a double)
//!          │
//!       session                 what a session is and how it survives in cookies; never makes a network call
//!          │    └──────► crypto only here: aes_gcm
//!        oidc                   only oidc/client.rs: reqwest
//!          └──┬──► web          HTTP vocabulary: no IO, no Pingora
//!             └──► secret, memo, clock, metrics; spans (reqwest too: the export of traces)
//! ```
//!
//! An arrow points at what a layer may import; `tests/layers.rs` checks it. Layers do not import `config`: each has
//! its own `Settings`, which `config::parse` fills and [`app`] hands over.

pub mod admin;
pub mod app;
pub mod clock;
pub mod config;
pub mod crypto;
#[cfg(feature = "demo")]
pub mod demo;
pub mod gateway;
pub mod memo;
pub mod metrics;
pub mod net;
pub mod oidc;
pub mod refresh;
pub mod secret;
pub mod session;
pub mod shutdown;
pub mod spans;
pub mod store;
pub mod telemetry;
pub mod web;
