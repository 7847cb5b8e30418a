//! The way in: accept loop, TLS handshake, the strict head of HTTP/1.1, tunnels that can be closed.
//!
//! ```text
//! accept ─► permit ─► PROXY header ─► TLS ─► serve ─┬─► HTTP/2: Pingora frames it
//!                                                   │
//!                 ┌────────────────► its turn ◄─────┘
//!                 │                     └─► head judged (framer) ── refused ─► answer, linger, close
//!                 │                                        │ accepted
//!          connection comes home ◄── answered ──── Guard ⇄ Pingora: one request
//! ```
//!
//! Pingora's parser only ever sees heads and bodies that passed [`framer`]: it is not asked to be strict.

pub mod accept;
pub mod connection;
pub mod dial;
pub mod framer;
pub mod guard;
mod h2;
mod proxy_protocol;
pub mod refusal;
pub mod resolve;
mod serve;
pub mod settings;
pub mod spare;
pub mod tls;
mod turns;
mod websocket;
mod wire;

pub use accept::{AcceptService, BoundListener, Entrance, bind};
pub use connection::{ConnectionInfo, Connections, Control, Kind, Observer};
pub use guard::Guard;
pub use h2::http2_options;
pub use refusal::{Refusal, Refusals};
pub use settings::{ListenAddress, NotAListenAddress, Settings};
pub use tls::{Tls, load_server_config};
