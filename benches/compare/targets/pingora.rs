//! The plain proxy of `plain.rs`, which is this program under another name.

use super::{World, directory, local};
use crate::process::Launch;
use crate::support::gateway::free_port;

/// `bearer`: bytes of what replaces the cookie; 0 for nothing.
pub(super) fn launch(world: &World, name: &str, bearer: usize) -> Launch {
    let addr = local(free_port());
    Launch {
        name: name.to_owned(),
        program: std::env::current_exe().expect("our own path"),
        args: ["plain-proxy".to_owned(), addr.to_string(), world.app.to_string(), bearer.to_string()].into(),
        env: Vec::new(),
        addr,
        probe: (addr, "/readyz"),
        dir: directory(),
    }
}
