//! sidegate itself, in several configurations.

use std::path::Path;

use toml::Table;

use super::{World, directory, local, write};
use crate::process::Launch;
use crate::support::gateway::{free_port, set};

/// The build under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_sidegate");

/// `/api/` needs a session, all else is public; one worker. `more`: keys of the configuration and their values, as TOML.
pub(super) fn launch(world: &World, name: &str, program: &Path, more: &[(&str, String)]) -> Launch {
    let (listen, admin) = (local(free_port()), local(free_port()));
    let public = format!("http://localhost:{}", listen.port());
    world.provider.register(&public);
    let text = format!(
        r#"
        [server]
        listen = "{listen}"
        public_url = "{public}"
        threads = 1
        [admin]
        listen = "{admin}"
        [provider]
        issuer = {issuer:?}
        client_id = {id:?}
        client_secret = {secret:?}
        scopes = {scopes:?}
        [session]
        keys = ["{key}"]
        [log]
        format = "json"
        [[route]]
        path = "/api/"
        upstream = "http://{app}"
        access = "session"
        [[route]]
        path = "/"
        upstream = "http://{app}"
        access = "public"
        "#,
        issuer = world.provider.issuer,
        id = world.provider.client_id(),
        secret = world.provider.client_secret(),
        scopes = World::scopes(),
        key = world.key,
        app = world.app,
    );
    let mut config: Table = text.parse().expect("TOML");
    for (key, value) in more {
        set(&mut config, key, value);
    }
    let dir = directory();
    let file = write(&dir, "sidegate.toml", &config.to_string());
    let args = ["run".to_owned(), "-c".to_owned(), file].into();
    let (name, program) = (name.to_owned(), program.to_owned());
    Launch { name, program, args, env: Vec::new(), addr: listen, probe: (admin, "/readyz"), dir }
}
