//! sidegate itself, in several configurations.

use std::path::Path;

use toml::Table;

use super::{World, browser, cookie_field, local};
use crate::process::{Launch, Proxy};
use crate::support::gateway::{free_port, set};

/// The build under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_sidegate");

/// `/api/` needs a session, all else is public; one worker. `more`: keys of the configuration and their values, as TOML.
pub(crate) fn launch(world: &World, name: &str, program: &Path, more: &[(&str, &str)]) -> Launch {
    let (listen, admin) = (local(free_port()), local(free_port()));
    let public = format!("http://localhost:{}", listen.port());
    world.provider.register(&public);
    // Many scopes make an access token of an ordinary size.
    let scopes: String = (0..12).map(|n| format!(r#", "https://api.example.com/scope-{n}""#)).collect();
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
        scopes = ["openid", "offline_access"{scopes}]
        [session]
        keys = ["{key}"]
        [log]
        format = "json"
        [[route]]
        path = "/api/"
        upstream = "http://{upstream}"
        access = "session"
        [[route]]
        path = "/"
        upstream = "http://{upstream}"
        access = "public"
        "#,
        issuer = world.provider.issuer,
        id = world.provider.client_id(),
        secret = world.provider.client_secret(),
        key = world.key,
        upstream = world.upstream.addr,
    );
    let mut config: Table = text.parse().expect("TOML");
    for (key, value) in more {
        set(&mut config, key, value);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("sidegate.toml");
    std::fs::write(&file, config.to_string()).expect("a written configuration");
    let args = ["run".to_owned(), "-c".to_owned(), file.display().to_string()].into();
    Launch { name: name.to_owned(), program: program.to_owned(), args, addr: listen, probe: admin, dir }
}

/// The `Cookie` field of a browser that has signed in.
pub(crate) async fn sign_in(proxy: &Proxy) -> String {
    let browser = browser(proxy);
    let landed = browser.login("/").await;
    assert_eq!(browser.session().await.get("authenticated"), Some(&true.into()), "{landed:?}");
    cookie_field(&browser.jar())
}
