//! The way in: accept loop, TLS handshake, the strict head of HTTP/1.1, tunnels that can be closed.
//!
//! ```text
//! accept ─► permit ─► TLS handshake ─► serve: ┌─► head judged (framer) ── refused ─► answer, linger, close
//!                                             │        │ accepted
//!                                             │   Guard ⇄ Pingora, one request
//!                                             └── connection comes home
//! ```
//!
//! Pingora's parser only ever sees heads and bodies that passed [`framer`]: it is not asked to be strict.

pub mod accept;
pub mod connection;
pub mod framer;
pub mod guard;
mod refusal;
mod serve;
mod settings;
pub mod tls;
mod websocket;
mod wire;

pub use accept::{AcceptService, BoundListener, Entrance, bind};
pub use connection::{ConnectionInfo, Connections, Control, Kind, Observer};
pub use guard::Guard;
pub use refusal::{Refusal, Refusals};
pub use tls::{Tls, load_server_config};
pub use settings::{ListenAddress, NotAListenAddress, Settings};
